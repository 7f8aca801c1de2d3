"""The emulator of kernels: right kernels give right results, and every mistake is found.

Its own kernels are in `kernels/emulation/selftest/`, and `self_test.py` beside them launches them.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import self_test
from access_table import access_table
from emulated_device import LIMITS, EmulatedArray, EmulatedDevice
from emulator import (
    Cost,
    EmulationError,
    Library,
    Place,
    build,
    build_runtime,
    environment,
    preload,
)
from numpy.typing import NDArray
from saec_gpu.bench.device.small_shapes import WEIGHTS, differences, make_fields
from saec_gpu.bench.filter_model import Products
from self_test import RIGHT, SEEDS, SOURCES

import every_kernel
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.device import Device, DeviceLimits
from saec_gpu.backends.kernel_sources import TYPES
from saec_gpu.data import Float32
from saec_gpu.errors import DeviceError, DeviceMemoryError, LayoutError
from test_filter_model import matrix_unit

PROGRAM = Path(self_test.__file__)
KERNELS = PROGRAM.parents[1]
ADDRESS = "address,undefined"
Operands = tuple[NDArray[np.float16], NDArray[np.float16], Float32]  # a, b, the sums so far
# Sanitizers are much slower than the kernels, and the first test of a mode builds it.
pytestmark = pytest.mark.timeout(300)


@cache
def library(sanitize: str = "") -> Library:
    return Library(build(sanitize, sources=SOURCES))


def in_a_process(sanitize: str, seeds: str, *kernels: str) -> subprocess.CompletedProcess[str]:
    """Run kernels where the sanitizer was there before Python; its words precede each result."""
    build(sanitize, sources=SOURCES)
    return subprocess.run(
        [sys.executable, str(PROGRAM), sanitize, seeds, *kernels],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment(sanitize),
    )


def random_bits(rng: np.random.Generator, dtype: Any, size: int) -> NDArray[Any]:
    """Return numbers of every kind: all bit patterns are equally likely."""
    item = np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(size * item), dtype)


# ---- matrix products


def layout(threads: Any, values: Any) -> NDArray[Any]:
    """Return which element each value of each lane is.

    As CuTe describes fragments: shapes and strides of lanes and of a lane's values, the fastest
    first (NVIDIA/cutlass, include/cute/atom/mma_traits_sm80.hpp, SM80_16x8x16).
    """

    def offsets(shape: tuple[int, ...], stride: tuple[int, ...]) -> NDArray[Any]:
        places = np.zeros(1, int)
        for size, step in zip(shape, stride, strict=True):
            places = (places[None] + step * np.arange(size)[:, None]).reshape(-1)
        return places

    places: NDArray[Any] = offsets(*threads)[:, None] + offsets(*values)[None]
    return places


A_PLACES = layout(((4, 8), (32, 1)), ((2, 2, 2), (16, 8, 128)))  # m + 16 k
B_PLACES = layout(((4, 8), (16, 1)), ((2, 2), (8, 64)))  # n + 8 k
D_PLACES = layout(((4, 8), (32, 1)), ((2, 2), (16, 8)))  # m + 16 n


def product(
    a: NDArray[Any], b: NDArray[Any], d: NDArray[Any], seed: int, kernel: str = "product_onto"
) -> NDArray[Any]:
    """Return d + a·b by the kernel; a is float16 (16, 16), b (16, 8), d float32 (16, 8)."""
    # A later dim of the layouts is strided: the flat order is that of the transposed matrix.
    a_words = np.ascontiguousarray(a.T.reshape(-1)[A_PLACES]).view(np.uint32)
    b_words = np.ascontiguousarray(b.reshape(-1)[B_PLACES]).view(np.uint32)
    fragments = np.ascontiguousarray(d.T.reshape(-1)[D_PLACES])
    arguments = {"a": a_words, "b": b_words, "d": fragments}
    self_test.launch(library(), kernel, arguments, 1, 32, seed=seed)
    result = np.empty(128, np.float32)
    result[D_PLACES] = fragments
    return result.reshape(8, 16).T


def test_layouts_name_every_element_once() -> None:
    for places, size in ((A_PLACES, 256), (B_PLACES, 128), (D_PLACES, 128)):
        assert np.array_equal(np.sort(places, axis=None), np.arange(size))


@pytest.mark.parametrize("kernel", ["product_onto", "product_and_sum"])
@pytest.mark.parametrize("seed", SEEDS)
def test_product_has_the_layout_of_the_hardware(
    rng: np.random.Generator, seed: int, kernel: str
) -> None:
    a = rng.integers(-8, 9, (16, 16)).astype(np.float16)
    b = rng.integers(-8, 9, (16, 8)).astype(np.float16)
    d = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    right = d + a.astype(np.float32) @ b.astype(np.float32)
    assert np.array_equal(product(a, b, d, seed, kernel), right)


def cut(value: NDArray[Any]) -> NDArray[Any]:
    """Return float64 cut off to the 24 bits of float32."""
    bits: NDArray[Any] = value.view(np.uint64) & ~np.uint64(2**29 - 1)
    return bits.view(np.float64).astype(np.float32)


def in_order(start: Float32, rows: Float32, codewords: Float32) -> Float32:
    """Return start + rows·codewordsᵀ, columns ascending and every sum rounded."""
    total = start.copy()
    for k in range(rows.shape[1]):
        total += rows[:, k, None] * codewords[None, :, k]
    return total


def reversed_and_cut(start: Float32, rows: Float32, codewords: Float32) -> Float32:
    """Return start + rows·codewordsᵀ, columns descending and every sum cut off."""
    total: Float32 = start.copy()
    for k in reversed(range(rows.shape[1])):
        term = rows[:, k, None].astype(np.float64) * codewords[None, :, k]
        total = cut(total.astype(np.float64) + term)
    return total


# As README.md beside the emulator has them: V100 is 4 and 0, A100 8 and 1, H100 16 and 2.
SUMS: dict[int, Products] = {
    0: in_order,
    1: reversed_and_cut,
    2: matrix_unit(8, 1),
    3: matrix_unit(16, 2),
    4: in_order,
    5: matrix_unit(4, 0),
    6: in_order,
    11: matrix_unit(4, 0),
}


def usual_operands(rng: np.random.Generator) -> Operands:
    a, b = (
        (rng.standard_normal(s) * 2.0 ** rng.integers(-9, 9, s)).astype(np.float16)
        for s in ((16, 16), (16, 8))
    )
    return a, b, rng.standard_normal((16, 8)).astype(np.float32)


def any_operands(rng: np.random.Generator) -> Operands:
    """Return all bit patterns of finite numbers: a few of the products are far above others."""
    a, b = (random_bits(rng, np.float16, n).copy() for n in (256, 128))
    for of_one in (a, b):
        of_one[~np.isfinite(of_one)] = 0
    d = random_bits(rng, np.float32, 128).copy()
    d[~np.isfinite(d)] = 0
    return a.reshape(16, 16), b.reshape(16, 8), d.reshape(16, 8)


def subnormal_operands(rng: np.random.Generator) -> Operands:
    """Return float16 around the least normal one and below, some zero, and what is cut by them."""
    a, b = (
        np.ldexp(rng.integers(-2048, 2049, s), rng.integers(-36, -23, s)).astype(np.float16)
        for s in ((16, 16), (16, 8))
    )
    a[:, ::3] = np.ldexp(a[:, ::3].astype(np.float64), 20).astype(np.float16)
    b[::5] = 0
    return a, b, np.ldexp(rng.uniform(-1, 1, (16, 8)), rng.integers(-60, 0)).astype(np.float32)


def cancelling_operands(rng: np.random.Generator) -> Operands:
    """Return products that cancel each other, or the sum so far, but for last bits."""
    a, b, _ = usual_operands(rng)
    a[:, 1::2], b[1::2] = a[:, ::2], -b[::2]
    a[:, 1::4] *= np.float16(1 + 2**-10)
    d = -(a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
    return a, b, d * np.float32(1 + 2.0**-23)


def operands_beside_edges(rng: np.random.Generator) -> Operands:
    """Return sums so far that are the largest, the least, and far from every product."""
    a, b, d = usual_operands(rng)
    d[:, 0] = 3.4028235e38
    d[:, 1] = 1e-45
    d[:, 2] = np.ldexp(d[:, 2], rng.integers(-140, 120, 16))
    d[:, 3] = 0
    b[:, 1::2] = 0  # nothing is added
    a[::3, :8] = 0  # nor by the first of the groups
    return a, b, d


@pytest.mark.parametrize("seed", SUMS)
@pytest.mark.parametrize(
    "draw",
    [usual_operands, any_operands, subnormal_operands, cancelling_operands, operands_beside_edges],
)
def test_sums_of_products_are_those_of_the_seed(
    rng: np.random.Generator, draw: Callable[[np.random.Generator], Operands], seed: int
) -> None:
    for _ in range(30):
        a, b, d = draw(rng)
        wanted = SUMS[seed](d, a.astype(np.float32), b.T.astype(np.float32))
        assert np.array_equal(product(a, b, d, seed), wanted)


def test_seeds_differ_in_sums_of_products(rng: np.random.Generator) -> None:
    a, b, d = usual_operands(rng)
    found = [product(a, b, d, seed) for seed in SEEDS]
    for one, other in itertools.combinations(found, 2):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize(("seed", "last"), [(5, 37), (2, 38), (3, 39)])
def test_matrix_units_do_not_normalise_subnormals(seed: int, last: int) -> None:
    # 1 · 2⁻²⁴ counts as 2⁻¹⁴, so that what is added beside it is cut far above float32's last bit
    a, b = np.zeros((16, 16), np.float16), np.zeros((16, 8), np.float16)
    a[:, 0], b[0] = 1, 2**-24
    for exponent in (last, last + 1):
        d = np.full((16, 8), 2.0**-exponent, np.float32)
        for swapped in (False, True):
            if swapped:
                a[:, 0], b[0] = b[0, 0], a[0, 0]
            kept = 2.0**-exponent if exponent == last else 0
            assert np.all(product(a, b, d, seed) == 2.0**-24 + kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_product_keeps_subnormals_and_infinities(seed: int) -> None:
    a, b = np.zeros((16, 16), np.float16), np.zeros((16, 8), np.float16)
    a[0, 0], b[0] = 2**-24, 2**-24  # the least float16
    a[1, 1], b[1] = 65504, 65504
    a[2, 2], b[2] = np.inf, 1
    a[3, 2:4], b[3] = (np.inf, -np.inf), 1
    a[4, 2], a[5, 15] = np.nan, np.inf  # infinity times zero
    found = product(a, b, np.zeros((16, 8), np.float32), seed)
    assert np.all(found[0] == 2.0**-48)
    assert np.all(found[1] == 65504.0**2)
    assert np.all(found[2] == np.inf)
    assert np.all(np.isnan(found[3:6]))
    for start in (np.inf, -np.inf, np.nan):
        found = product(a, b, np.full((16, 8), start, np.float32), seed)
        assert same(found[:2], np.full((2, 8), start, np.float32))


# ---- exchanges and atomics


@pytest.mark.parametrize("seed", SEEDS)
def test_exchanges_of_a_warp(rng: np.random.Generator, seed: int) -> None:
    words = rng.permutation(32).astype(np.uint32) + np.uint32(2**31)
    values = rng.integers(0, 5, 32).astype(np.float64) - 0.25
    of_words = np.zeros((16, 32), np.uint32)
    of_doubles = np.zeros((4, 32))
    arguments = {
        "words": words,
        "doubles": values,
        "of_words": of_words.reshape(-1),
        "of_doubles": of_doubles.reshape(-1),
    }
    self_test.launch(library(), "exchanges", arguments, 1, 32, seed=seed)
    lane = np.arange(32)

    def mask(chosen: NDArray[Any]) -> int:
        return int(np.sum(2 ** np.flatnonzero(chosen)))

    wanted = [
        words[5 * lane % 32],
        words[lane // 8 * 8 + 3],
        words[lane ^ 9],
        words[np.where((lane ^ 9) < lane // 8 * 8 + 8, lane ^ 9, lane)],  # earlier parts are seen
        words[np.where(lane + 3 < 32, lane + 3, lane)],
        words[np.where(lane % 16 + 3 < 16, lane + 3, lane)],
        words[np.where(lane >= 3, lane - 3, lane)],
        words[np.where(lane % 16 >= 3, lane - 3, lane)],
        mask(words % 2 == 1),
        1,
        0,
        [mask(words % 4 == word % 4) for word in words],
        [mask(values == value) for value in values],
        np.where(lane < 8, words[lane ^ 1], words),
        np.where(lane < 8, 0xFF, 0),
        words[lane ^ 1],
    ]
    for kind, right in enumerate(wanted):
        assert np.array_equal(of_words[kind], np.broadcast_to(right, 32)), kind
    assert np.array_equal(of_doubles[0], values[lane ^ 17])
    assert np.array_equal(of_doubles[1], values[31 - lane])
    assert np.array_equal(of_doubles[2], values[np.minimum(lane + 1, 31)])
    assert np.all(of_doubles[3] == 16 + 100)  # sixteen odd words, one that is equal, not all


@pytest.mark.parametrize("mode", ["", "racecheck"])
@pytest.mark.parametrize("seed", SEEDS)
def test_atomics_lose_nothing(rng: np.random.Generator, seed: int, mode: str) -> None:
    values = rng.integers(0, 50, 5000).astype(np.int32)
    turns, found = add_up(values, seed, library(mode))
    assert np.array_equal(found["counts"], np.bincount(values, minlength=50))
    sums = np.bincount(values, np.arange(5000), 50).astype(np.uint64) + np.uint64(2**40)
    assert np.array_equal(found["sums"], sums)
    assert np.array_equal(np.sort(turns), np.repeat(np.arange(4 * 96), 2))


def add_up(
    values: NDArray[Any], seed: int, lib: Library
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Return the threads in the order they came, and what the kernel `sums` counted."""
    found: dict[str, NDArray[Any]] = {
        "counts": np.zeros(50, np.uint32),
        "sums": np.full(50, 2**40, np.uint64),
        "turns": np.zeros(2 * 4 * 96, np.uint32),
        "turn": np.zeros(1, np.uint32),
    }
    arguments: dict[str, Any] = {"values": values, "n": len(values), "n_bins": 50, **found}
    self_test.launch(lib, "sums", arguments, 4, 96, seed=seed, shared_bytes=200)
    return found["turns"], found


def test_seeds_order_threads_and_blocks() -> None:
    values = np.zeros(1, np.int32)
    turns = {seed: add_up(values, seed, library())[0] for seed in (0, 1, 2, 3, 5)}
    blocks = {seed: (found // 96).reshape(8, 96) for seed, found in turns.items()}
    ascending = np.arange(4 * 96).reshape(4, 1, 96)
    assert np.array_equal(turns[0], np.broadcast_to(ascending, (4, 2, 96)).reshape(-1))
    descending = ascending[::-1, :, ::-1]
    assert np.array_equal(turns[1], np.broadcast_to(descending, (4, 2, 96)).reshape(-1))
    for seed in (2, 3, 5):
        assert not any(
            np.array_equal(turns[seed], turns[other]) for other in turns if other != seed
        )
        assert np.array_equal(turns[seed], add_up(values, seed, library())[0])
    # Two blocks at once: some block begins before the one before it ends.
    began_and_ended = [blocks[seed][:, 0].tolist() for seed in (2, 3, 5)]
    assert any(order[::2] != order[1::2] for order in began_and_ended)


# ---- numbers


def numbers(**given: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return what the kernel `numbers` computes from inputs of one size; what is missing is 0."""
    n = max(len(array) for array in given.values())
    dtypes = {
        **dict.fromkeys(("x", "y", "z"), np.float32),
        **dict.fromkeys(("v", "w"), np.float64),
        "halves": np.uint16,
    }
    inputs = {name: given.get(name, np.zeros(n, dtype)) for name, dtype in dtypes.items()}
    outputs: dict[str, NDArray[Any]] = {
        "x_half": np.zeros(n, np.uint16),
        "half_values": np.zeros(n, np.float32),
        "pairs": np.zeros(n, np.uint32),
        "x_widened": np.zeros(n),
        "v_narrowed": np.zeros(n, np.float32),
        "v_narrowed_up": np.zeros(n, np.float32),
        "fma": np.zeros(n, np.float32),
        "sum": np.zeros(n),
        "difference": np.zeros(n),
        "product": np.zeros(n),
        "v_rounded": np.zeros(n, np.int64),
        "bits": np.zeros(5 * n, np.int32),
    }
    arguments: dict[str, Any] = {**inputs, **outputs, "n": n}
    self_test.launch(library(), "numbers", arguments, -(-n // 128), 128, seed=0)
    return outputs


def same(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Return whether all bits are the same, but for those of NaN."""
    unsigned = f"u{found.itemsize}"
    nan = np.isnan(wanted)
    with np.errstate(over="ignore", invalid="ignore"):
        equal = found.view(unsigned) == wanted.astype(found.dtype).view(unsigned)
    return bool(np.array_equal(np.isnan(found), nan) and np.all(equal | nan))


def test_every_float16_is_widened() -> None:
    halves = np.arange(2**16).astype(np.uint16)
    found = numbers(halves=halves)["half_values"]
    assert same(found, halves.view(np.float16).astype(np.float32))
    assert np.all(found.view(np.uint32)[np.isnan(found)] == 0x7FFFFFFF)  # as cvt.f32.f16 has it


def test_float32_is_rounded_to_float16(rng: np.random.Generator) -> None:
    finite = np.arange(0x7C00).astype(np.uint16).view(np.float16).astype(np.float32)
    ties = (finite[1:] + finite[:-1]) / 2
    edges = np.concatenate([finite, ties, [65519.996, 65520, 65536, 3.4e38, np.inf, np.nan, 1e-45]])
    edges = edges.astype(np.float32)
    near = [edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(0))]
    x = np.concatenate([*near, random_bits(rng, np.float32, 50_000)])
    x = np.concatenate([x, -x])
    found = numbers(x=x, y=x[::-1].copy())
    with np.errstate(over="ignore"):
        right = x.astype(np.float16)
    assert same(found["x_half"].view(np.float16), right)
    assert np.all(found["x_half"][np.isnan(x)] == 0x7FFF)
    low, high = found["pairs"] & 0xFFFF, found["pairs"] >> 16
    assert np.array_equal(low, found["x_half"])
    assert np.array_equal(high, found["x_half"][::-1])


EDGES = (0.0, -0.0, 1e-45, -1e-45, 1.17549435e-38, 3.4028235e38, -3.4028235e38)


def edge_triples(rng: np.random.Generator) -> NDArray[Any]:
    """Return factors and addends of all kinds (3, n): edges, sums that cancel or are far apart."""
    edges = np.array(np.meshgrid(EDGES, EDGES, EDGES), np.float32).reshape(3, -1)
    usual = rng.standard_normal((3, 1000)).astype(np.float32)
    usual[2, ::2] = -usual[0, ::2] * usual[1, ::2]
    scaled = np.ldexp(usual, rng.integers(-70, 60, (3, 1000)).astype(np.int32))
    whole = rng.integers(-3, 4, (3, 200)).astype(np.float32)
    any_bits = random_bits(rng, np.float32, 3000).reshape(3, -1)
    any_bits = any_bits[:, np.all(np.isfinite(any_bits), axis=0)]
    return np.concatenate([edges, usual, scaled, whole, any_bits], axis=1)


def beside(found: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the float32 just below and just above."""
    with np.errstate(over="ignore", under="ignore"):
        infinity = np.float32(np.inf)
        return np.nextafter(found, -infinity), np.nextafter(found, infinity)


def exact_of(values: NDArray[Any]) -> list[Fraction]:
    """Return the numbers; an infinity is the first that float32 has not any more."""
    clipped = np.clip(values.astype(np.float64), -(2.0**128), 2.0**128)
    return [Fraction(value) for value in clipped.tolist()]


def nearest(found: NDArray[Any], wanted: list[Fraction]) -> bool:
    """Return whether each result is the number rounded to nearest, ties to even."""
    lower, upper = map(exact_of, beside(found))
    even = (found.view(np.uint32) % 2 == 0).tolist()
    fits = [
        abs(f - w) < min(w - lo, up - w) or (abs(f - w) == min(w - lo, up - w) and is_even)
        for lo, f, up, w, is_even in zip(lower, exact_of(found), upper, wanted, even, strict=True)
    ]
    too_large = np.array([abs(w) >= 2**128 - 2**103 for w in wanted])
    infinity = np.array([np.inf if w > 0 else -np.inf for w in wanted])
    return bool(np.all(np.where(too_large, found == infinity, fits)))


def test_a_product_and_sum_are_rounded_once(rng: np.random.Generator) -> None:
    x, y, z = np.ascontiguousarray(edge_triples(rng))
    found = numbers(x=x, y=y, z=z)
    products = [a * b for a, b in zip(exact_of(x), exact_of(y), strict=True)]
    sums = [a + b for a, b in zip(products, exact_of(z), strict=True)]
    assert nearest(found["fma"], sums)


def test_float64_is_rounded_as_named(rng: np.random.Generator) -> None:
    floats = random_bits(rng, np.float32, 20_000)
    floats = floats[np.isfinite(floats)].astype(np.float64)
    ties = floats[1:] / 2 + floats[:-1] / 2
    v = np.concatenate(
        [floats, np.nextafter(floats, 0), ties, random_bits(rng, np.float64, 20_000)]
    )
    v = np.concatenate([v, EDGES, [np.inf, -np.inf, np.nan, 2.0**128, -(2.0**128)]])
    w = rng.permutation(v)
    found = numbers(v=v, w=w, x=np.resize(random_bits(rng, np.float32, 4099), len(v)))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        assert same(found["v_narrowed"], v.astype(np.float32))
        assert same(found["sum"], v + w)
        assert same(found["difference"], v - w)
        assert same(found["product"], v * w)
        assert same(found["v_narrowed_up"][~np.isfinite(v)], v[~np.isfinite(v)])
    up = found["v_narrowed_up"]
    finite = np.isfinite(v)
    assert np.all(up[finite] >= v[finite])
    assert np.all(beside(up[finite])[0] < v[finite])
    assert np.all(np.signbit(up[v == 0]) == np.signbit(v[v == 0]))


def test_every_kind_of_float32_is_widened(rng: np.random.Generator) -> None:
    x = np.concatenate([random_bits(rng, np.float32, 20_000), np.array(EDGES, np.float32)])
    with np.errstate(invalid="ignore"):  # NaN that signals
        assert same(numbers(x=x)["x_widened"], x.astype(np.float64))


def test_float64_is_rounded_to_int64(rng: np.random.Generator) -> None:
    halves = np.arange(-1000, 1001) / 2
    large = np.array([2.0**52 + 0.5, 2.0**53 + 2, 2.0**63 - 1024, 2.0**63, 1e300, np.inf])
    v = np.concatenate([halves, large, -large, rng.standard_normal(1000) * 1e9, [np.nan]])
    least, most = -(2**63), 2**63 - 1
    wanted = [
        least if np.isnan(value) or value < least else most if value >= 2**63 else round(value)
        for value in v.tolist()
    ]
    assert numbers(v=v)["v_rounded"].tolist() == wanted


def test_bits_are_counted(rng: np.random.Generator) -> None:
    words = np.concatenate([2 ** np.arange(32), [0, 2**32 - 1], rng.integers(0, 2**32, 500)])
    words = words.astype(np.uint32)
    wide = rng.integers(0, 2**63, len(words), np.uint64)
    found = numbers(x=words.view(np.float32), v=wide.view(np.float64))["bits"].reshape(-1, 5)
    for counted, word, wide_word in zip(found.tolist(), words.tolist(), wide.tolist(), strict=True):
        signed = word - 2**32 if word >= 2**31 else word
        lowest = (word & -word).bit_length()
        limited = max(min(signed, 1000), -1000)
        leading = 32 - word.bit_length()
        assert counted == [word.bit_count(), leading, lowest, wide_word.bit_count(), limited]


# ---- right kernels, and wrong ones

# What a run without a sanitizer says, and with which seeds.
FOUND_BY_RUNNING = {
    "mirror_unsynced": (SEEDS, "wrong values"),
    "halves_other": (SEEDS, "wrong values"),
    "copy_partly": (SEEDS, "wrong values"),
    "meet_in_a_branch": (SEEDS, "deadlock|divergent barrier: other threads .* returned"),
    "meet_two_places": (SEEDS, r"divergent barrier: thread .* at mistakes\.cu:\d+"),
    "meet_after_return": (SEEDS, "deadlock|divergent barrier: other threads .* returned"),
    "meet_endless_wait": (SEEDS, "deadlock .* 32 of 32 threads .*__syncwarp.*__syncthreads"),
    "swap_two_calls": (SEEDS, "mismatched collective: other lanes .* __shfl"),
    "swap_two_masks": (SEEDS, "mismatched collective: its lanes pass different masks"),
    "swap_not_named": (SEEDS, "the mask does not name the lane"),
    "swap_returned": (SEEDS, "deadlock|the mask names a lane that has returned"),
    "cell_shared": (SEEDS, "wrong values"),
    "hold_too_much": (SEEDS, "more than 48 KiB of static shared memory"),
    "nearest_unsynced_fill": (SEEDS, "wrong values"),
    # Only a warp that runs ahead of the others writes over what they have not read.
    "nearest_unsynced_reuse": ((1, 3, 5), "wrong values"),
    "ring_late_wait": (SEEDS, "wrong values"),
    "ring_unsynced_wait": (SEEDS, "wrong values"),
    "ring_unsynced_reuse": (SEEDS, "wrong values"),
    "ring_misaligned": (SEEDS, "both ends of the copy must be aligned to 16 bytes"),
}
# Whatever the seed.
FOUND_BY_RACECHECK = (
    *("mirror_unsynced", "halves_other", "count_plain"),
    *("nearest_unsynced_fill", "nearest_unsynced_reuse"),
    *("ring_unsynced_wait", "ring_unsynced_reuse"),
)
FOUND_BY_ADDRESS = {
    "quads_misaligned": "runtime error: .* misaligned address",
    "far_int32": "runtime error: signed integer overflow: 4096 \\* 3000000",
    "nearest_past_words": r"heap-buffer-overflow .*nearest\.cu",
    "nearest_past_tile": "runtime error: index 2592 out of bounds",
    "count_past_end": r"heap-buffer-overflow .*mistakes\.cu",
}
FOUND_BY_THREAD = ("cell_shared", "sum_unfenced", *FOUND_BY_RACECHECK)


@pytest.mark.parametrize("mode", ["", "racecheck"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_are_right(kernel: str, seed: int, mode: str) -> None:
    assert self_test.run(library(mode), kernel, seed) == "right"


@pytest.mark.parametrize("mode", [ADDRESS, "thread"])
def test_right_kernels_are_clean(mode: str) -> None:
    seeds = ",".join(map(str, SEEDS))
    done = in_a_process(mode, seeds, *RIGHT)
    wanted = [f"{kernel} {seed}: right" for kernel in RIGHT for seed in SEEDS]
    assert done.stdout.splitlines() == wanted
    assert done.returncode == 0


@pytest.mark.parametrize("kernel", FOUND_BY_RUNNING)
def test_mistakes_are_found_by_running(kernel: str) -> None:
    seeds, text = FOUND_BY_RUNNING[kernel]
    for seed in seeds:
        assert re.search(text, self_test.run(library(), kernel, seed)), seed


@pytest.mark.parametrize("kernel", FOUND_BY_RACECHECK)
def test_mistakes_are_found_by_racecheck(kernel: str) -> None:
    for seed in SEEDS:
        assert "races in shared memory" in self_test.run(library("racecheck"), kernel, seed)


def test_races_name_both_lines() -> None:
    lines = (SOURCES / "mistakes.cu").read_text(encoding="utf-8").splitlines()
    write = lines.index("  values[lane] = p.from[lane];") + 1
    read = lines.index("  p.to[lane] = values[31 - lane];") + 1
    found = self_test.run(library("racecheck"), "mirror_unsynced", 0)
    assert f"read beside write in values at byte 60: thread 16 at mistakes.cu:{read}" in found
    assert f"thread 15 at mistakes.cu:{write}" in found


@pytest.mark.parametrize("kernel", FOUND_BY_ADDRESS)
def test_mistakes_are_found_by_address_and_undefined(kernel: str) -> None:
    done = in_a_process(ADDRESS, "0", kernel)
    assert done.returncode != 0
    assert re.search(FOUND_BY_ADDRESS[kernel], done.stdout)
    assert f"{kernel} 0:" not in done.stdout  # the finding ended it


def test_mistakes_are_found_by_thread() -> None:
    done = in_a_process("thread", "2,3,5", *FOUND_BY_THREAD)
    assert done.returncode != 0
    for kernel in FOUND_BY_THREAD:
        before, done.stdout = done.stdout.split(f"{kernel} 5: ")
        file = (
            "nearest" if "nearest" in kernel else "ring|emulated_port" if "ring" in kernel else ""
        )
        summary = rf"SUMMARY: ThreadSanitizer: data race .*({file or 'mistakes'})\.(cu|h)"
        assert re.search(summary, before), kernel


@pytest.mark.parametrize("mode", [ADDRESS, "thread"])
def test_failed_launches_are_unwound_under_sanitizers(mode: str) -> None:
    done = in_a_process(mode, "0,5", "meet_two_places", "swap_two_masks", "mirror_synced")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("divergent barrier") == 2
    assert done.stdout.count("different masks") == 2
    assert done.stdout.count("mirror_synced") == done.stdout.count("right")


# ---- what accesses of memory take


def costs(kernel: str, block: int = 32, *, seed: int = 0, **numbers: int) -> dict[str, Cost]:
    """Return what a kernel's accesses take, by "space kind: line" as the line stands in the source.

    Arrays of the kernel, whatever their names, have 2048 elements.
    """
    counting = Library(build("racecheck", sources=SOURCES), count_accesses=True)
    source = self_test.kernels()[kernel]
    device = EmulatedDevice(LIMITS, seed=seed, library=counting, kernels=self_test.kernels())
    arrays = {p.name: device.empty(2048, TYPES[p.type][0]) for p in source.parameters if p.pointer}
    stream = device.stream()
    device.launch(kernel, 1, block, {**arrays, **numbers}, shared_bytes=0, stream=stream)
    device.synchronize(stream)
    found: dict[str, Cost] = {}
    for place, cost in counting.accesses().items():
        assert place.kernel == kernel
        file, number = place.line.split(" < ")[0].split(":")
        line = (SOURCES / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        found[f"{place.space} {place.kind}: {line.strip()}"] = cost
    return found


def strided(stride: int, shift: int = 0) -> list[tuple[int, int]]:
    """Return what one request of each line takes, and the least, in their order in the source."""
    found = costs("accesses_strided", stride=stride, shift=shift)
    lines = (
        "global load: const float value = p.from[p.shift + at];",
        "shared load: const uint32 word = words[at];",
        "shared load: const Word2 pair = reinterpret_cast<const Word2*>(words)[at];",
        "shared load: const Word4 quad = reinterpret_cast<const Word4*>(words)[at];",
        "shared atomic: saec::atomic_add(counts + at, 1u);",
        "global atomic: saec::atomic_add(p.counter + p.shift + at, 1u);",
    )
    store = "global store: p.to[lane] = value + static_cast<float>(sum);"
    assert found.pop(store) == Cost(1, 4, 4)
    assert found.keys() == {*lines}
    assert all(cost.requests == 1 for cost in found.values())
    return [(found[line].taken, found[line].least) for line in lines]


def test_banks_and_sectors_are_counted_as_by_hand() -> None:
    # lanes side by side: 16 bytes go by quarters of the warp, 8 by halves
    assert strided(1) == [(4, 4), (1, 1), (2, 2), (4, 4), (1, 1), (4, 4)]
    # all lanes read one word, and atomics of one word take turns
    assert strided(0) == [(1, 1), (1, 1), (2, 2), (4, 4), (32, 32), (1, 1)]
    assert strided(2) == [(8, 4), (2, 1), (4, 2), (8, 4), (2, 1), (8, 4)]
    assert strided(8) == [(32, 4), (8, 1), (16, 2), (32, 4), (8, 1), (32, 4)]
    assert strided(32) == [(32, 4), (32, 1), (32, 2), (32, 4), (32, 1), (32, 4)]
    assert strided(33) == [(32, 4), (1, 1), (2, 2), (4, 4), (1, 1), (32, 4)]
    # not aligned to a sector
    assert strided(1, shift=1) == [(5, 4), (1, 1), (2, 2), (4, 4), (1, 1), (5, 4)]


@pytest.mark.parametrize(("kernel", "wavefronts"), [("plain", 32), ("padded", 1)])
def test_padding_removes_conflicts_of_a_transposition(kernel: str, wavefronts: int) -> None:
    write = "for (int32 i = 0; i < warp; i++) tile[i][lane] = p.from[warp * i + lane];"
    read = "for (int32 i = 0; i < warp; i++) p.to[warp * i + lane] = tile[lane][i];"
    assert costs(f"transpose_{kernel}", stride=0, shift=0) == {
        f"global load: {write}": Cost(32, 32 * 4, 32 * 4),
        f"shared store: {write}": Cost(32, 32, 32),
        f"shared load: {read}": Cost(32, 32 * wavefronts, 32),
        f"global store: {read}": Cost(32, 32 * 4, 32 * 4),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_are_of_lanes_that_do_the_same(seed: int) -> None:
    # Lane l makes l accesses: the i-th is one request of all lanes above i. Twice.
    line = "for (int32 i = 0; i < lane; i++) p.to[warp * i + lane] = p.from[warp * i + lane];"
    sectors = 2 * sum(-(-(31 - i) // 8) for i in range(31))
    assert costs("accesses_by_lane", seed=seed, stride=0, shift=0) == {
        f"global load: {line}": Cost(62, sectors, sectors),
        f"global store: {line}": Cost(62, sectors, sectors),
    }


def test_lanes_that_there_are_not_take_nothing() -> None:
    found = costs("copy_whole", 40, n=64, stride=1)
    line = "if (whole || thread + 1 < p.n) values[thread] = p.from[thread];"
    assert found[f"global load: {line}"] == Cost(2, 4 + 1, 4 + 1)
    assert found[f"shared store: {line}"] == Cost(2, 2, 2)


def test_copies_are_counted_where_they_begin() -> None:
    found = costs("ring", 64, n_pieces=5)
    copies = {line: cost for line, cost in found.items() if "copy_async" in line}
    first = "saec::copy_async16(&buffers[0][4 * thread], p.pieces + 4 * thread);"
    later = "saec::copy_async16(&buffers[(piece + 1) % 2][4 * thread],"
    assert copies == {  # 16 bytes of each lane of two warps, and four times later
        f"global load: {first}": Cost(2, 2 * 16, 2 * 16),
        f"shared store: {first}": Cost(2, 2 * 4, 2 * 4),
        f"global load: {later}": Cost(8, 8 * 16, 8 * 16),
        f"shared store: {later}": Cost(8, 8 * 4, 8 * 4),
    }


def test_launches_add_up() -> None:
    counting = Library(build("racecheck", sources=SOURCES), count_accesses=True)
    assert counting.accesses() == {}
    for _ in range(3):
        assert self_test.run(counting, "copy_whole", 0) == "right"
    assert "divergent barrier" in self_test.run(counting, "meet_two_places", 0)  # does not count
    assert {cost.requests for cost in counting.accesses().values()} == {3 * 2}
    assert library("racecheck").accesses() == {}  # of the same build, but not to count


def test_accesses_are_counted_in_one_kind_of_build() -> None:
    with pytest.raises(EmulationError, match=r"accesses are counted .* racecheck"):
        Library(build(sources=SOURCES), count_accesses=True)


def test_table_of_accesses_has_the_worst_of_a_kernel_first() -> None:
    table = access_table(
        {
            Place("b", "b.cu:7", "shared", "load", 16): Cost(3, 12, 12),
            Place("b", "a.cuh:2 < b.cu:9", "global", "store", 4): Cost(10, 55, 40),
            Place("a", "a.cu:1", "shared", "atomic", 4): Cost(2, 3, 2),
        }
    )
    assert table.splitlines() == [
        "kernel  line              access         bytes  requests  a request        least",
        "a       a.cu:1            shared atomic  4      2         1.50 wavefronts  1.00",
        "b       a.cuh:2 < b.cu:9  global store   4      10        5.50 sectors     4.00",
        "b       b.cu:7            shared load    16     3         4.00 wavefronts  4.00",
    ]


# How the scan of assign_update.cu reads a group.
SCAN_LOADS = {
    "bounds": "= bounds[g * 4];",
    "fragments": "= fragments[((g * STEPS + s) * 2 + pair) * WARP];",
    "fragments_low": "= fragments_low[(g * 2 + pair) * WARP];",  # of the class of 8 alone
    "keys": "= keys[(g * 4 + 2 * pair + i) * 4];",
}


def test_scan_is_free_of_bank_conflicts(rng: np.random.Generator) -> None:
    counting = Library(build("racecheck"), count_accesses=True)
    classes = {8: 3, 16: 16, 32: 20, 64: 40, 128: 100, 256: 200}
    for dim in classes.values():
        device = EmulatedDevice(LIMITS, library=counting)
        fields = make_fields([dim], "float32", WEIGHTS[0], rng)
        assert not list(differences(CudaBackend(device), fields))
    text = (KERNELS / "assign_update.cu").read_text(encoding="utf-8").splitlines()
    parts = {
        f"assign_update.cu:{number}": part
        for part, load in SCAN_LOADS.items()
        for number, line in enumerate(text, 1)
        if load in line
    }
    assert sorted(parts.values()) == sorted(SCAN_LOADS)
    loads: dict[str, dict[str, Cost]] = {}
    for place, cost in counting.accesses().items():
        line = place.line.split(" < ")[0]
        if line in parts and (place.space, place.kind) == ("shared", "load"):
            loads.setdefault(place.kernel, {})[parts[line]] = cost
    assert loads.keys() == {f"assign_update_d{dims}_f32" for dims in classes}
    for kernel, of_parts in loads.items():
        low = {"fragments_low"} if kernel == "assign_update_d8_f32" else set()
        assert of_parts.keys() == {"bounds", "fragments", "keys"} | low
        for part, cost in of_parts.items():
            assert cost.taken == cost.least, (kernel, part)


def test_accesses_of_every_kernel_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--sanitize", "racecheck", "--dims", "16", "--accesses"]
    monkeypatch.setattr(sys, "argv", ["every_kernel.py", *arguments])
    every_kernel.main()
    header, *lines, last = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["kernel", "line", "access"]
    kernels = {line.split()[0] for line in lines}
    assert "7 kernels agree" in last
    assert len(kernels) == 7


# ---- building and loading

TINY = """#include "port.cuh"
struct Tiny {  // parameters
  float* to;
};
#define TINY(name, value) \\
  SAEC_KERNEL void __launch_bounds__(32) name(const Tiny p) { p.to[threadIdx.x] = value; } \\
  SAEC_EXPORT(name)
#ifdef SAEC_BUG_TWO
TINY(tiny, 2)
#else
TINY(tiny, 1)
#endif
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of one kernel; what is built of it is kept in a folder of the test's own.

    The emulator that is linked to it stands there already.
    """
    runtime = build_runtime()
    (tmp_path / runtime.name).symlink_to(runtime)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "tiny.cu").write_text(TINY, encoding="utf-8")
    return folder


def run_tiny(path: Path) -> float:
    to = np.zeros(32, np.float32)
    Library(path).launch("tiny", np.uint64(to.ctypes.data).tobytes(), 1, 32)
    assert np.all(to == to[0])
    return float(to[0])


def test_changed_sources_and_options_are_built_again(tiny: Path) -> None:
    first = build(sources=tiny)
    before = first.stat().st_mtime_ns
    assert run_tiny(first) == 1
    assert build(sources=tiny) == first
    assert first.stat().st_mtime_ns == before
    assert run_tiny(build(bug="SAEC_BUG_TWO", sources=tiny)) == 2
    (tiny / "tiny.cu").write_text(TINY.replace("TINY(tiny, 1)", "TINY(tiny, 3)"), encoding="utf-8")
    assert run_tiny(build(sources=tiny)) == 3


def test_two_processes_build_at_once(tiny: Path) -> None:
    code = f"import emulator, pathlib; print(emulator.build(sources=pathlib.Path({str(tiny)!r})))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROGRAM.parent,
            env=os.environ | {"TMPDIR": str(tiny.parent)},
        )
        for _ in range(2)
    ]
    paths = {Path(process.communicate()[0].strip()) for process in started}
    assert [process.returncode for process in started] == [0, 0]
    # nothing is left of the one that was slower
    assert {*tiny.parent.iterdir()} == {tiny, build_runtime(), *paths}
    (path,) = paths
    assert run_tiny(path) == 1


def test_what_does_not_compile_says_why(tiny: Path) -> None:
    # A warning is enough.
    text = TINY.replace("{ p.to", "{ int not_used = 1; p.to")
    (tiny / "tiny.cu").write_text(text, encoding="utf-8")
    with pytest.raises(EmulationError, match=r"tiny\.cu:\d+.*\n?.*not_used"):
        build(sources=tiny)
    assert {*tiny.parent.iterdir()} == {tiny, build_runtime()}


def test_folder_without_kernels(tiny: Path) -> None:
    (tiny / "tiny.cu").unlink()
    with pytest.raises(EmulationError, match=r"holds\s+no\s+\.cu\s+file"):
        build(sources=tiny)


@pytest.mark.parametrize(
    ("missing", "advice"), [("cmake", "pip install cmake"), ("g++", r"apt-get install g\+\+")]
)
def test_missing_programs_are_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, advice: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    everywhere = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
    for program in {"cmake", "g++"} - {missing}:
        found = shutil.which(program, path=everywhere)
        assert found is not None
        (programs / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    with pytest.raises(EmulationError, match=advice):
        build(sources=tiny)


def test_unknown_mode() -> None:
    with pytest.raises(EmulationError, match=r"known are .*racecheck"):
        build("memory")


def test_preload_names_what_is_there() -> None:
    assert preload("") == ""
    assert preload("racecheck") == ""
    for mode in (ADDRESS, "thread"):
        assert all(Path(path).is_file() for path in preload(mode).split(":"))


def test_library_that_needs_a_preload_is_refused() -> None:
    with pytest.raises(EmulationError, match=r"LD_PRELOAD=.*libtsan\.so"):
        Library(build("thread", sources=SOURCES))


def test_library_knows_its_kernels() -> None:
    assert library().kernels == sorted(self_test.kernels())


@pytest.mark.parametrize(
    ("kernel", "parameters", "grid", "block", "message"),
    [
        ("absent", b"", 1, 32, "no kernel absent; there are .*nearest"),
        ("product_onto", bytes(16), 1, 32, "24 bytes, not 16"),
        ("product_onto", bytes(24), 1, 1025, "1 to 1024 threads, not 1025"),
        ("product_onto", bytes(24), 1, 0, "1 to 1024 threads, not 0"),
        ("product_onto", bytes(24), 0, 32, "a grid of 0 blocks"),
    ],
)
def test_launches_that_cannot_be(
    kernel: str, parameters: bytes, grid: int, block: int, message: str
) -> None:
    with pytest.raises(EmulationError, match=message):
        library().launch(kernel, parameters, grid, block)


def test_shared_memory_of_both_kinds_is_limited_together() -> None:
    to = np.zeros(64, np.float32)
    arguments = {"from": to, "to": to, "counter": None, "n": 64, "stride": 1}
    self_test.launch(
        library(), "hold_some", arguments, 1, 64, seed=0, shared_bytes=227 * 1024 - 256
    )
    with pytest.raises(EmulationError, match=r"256 bytes of static and .* are more than"):
        self_test.launch(
            library(), "hold_some", arguments, 1, 64, seed=0, shared_bytes=227 * 1024 - 255
        )


def test_dynamic_shared_memory_must_be_given() -> None:
    arguments = {"from": None, "to": None, "counter": None, "n": 64, "stride": 1}
    with pytest.raises(EmulationError, match="the launch gave no dynamic shared memory"):
        self_test.launch(library(), "count_atomic", arguments, 1, 64, seed=0)


def test_product_wants_the_whole_warp() -> None:
    zeros = np.zeros(128, np.uint32)
    arguments = {"a": zeros, "b": zeros, "d": zeros.view(np.float32)}
    with pytest.raises(EmulationError, match="needs all 32 lanes"):
        self_test.launch(library(), "product_onto", arguments, 1, 31, seed=0)


# ---- the device


Arguments = dict[str, EmulatedArray | float | None]


def open_device(limits: DeviceLimits = LIMITS, seed: int = 0) -> EmulatedDevice:
    return EmulatedDevice(limits, seed=seed, library=library(), kernels=self_test.kernels())


def copy(device: EmulatedDevice, source: Any, target: Any, stream: Any) -> None:
    """Copy 64 float32 by a kernel."""
    arguments = {"from": source, "to": target, "counter": None, "n": 64, "stride": 1}
    device.launch("copy_whole", 1, 64, arguments, shared_bytes=0, stream=stream)


def read(device: EmulatedDevice, array: Any, stream: Any) -> NDArray[Any]:
    found = np.zeros(array.size, array.dtype)
    device.download(array, found, stream)
    return found


def pinned(device: EmulatedDevice, values: NDArray[Any]) -> NDArray[Any]:
    memory = device.pinned(values.size, values.dtype)
    memory[:] = values
    return memory


VALUES = np.arange(64, dtype=np.float32)


def test_device_has_the_methods_of_the_protocol() -> None:
    device: Device = open_device()  # mypy compares the types
    for name, wanted in inspect.getmembers(Device, inspect.isfunction):
        if name.startswith("_"):
            continue
        found = inspect.signature(getattr(type(device), name)).parameters.values()
        expected = inspect.signature(wanted).parameters.values()
        assert [(p.name, p.kind, p.default) for p in found] == [
            (p.name, p.kind, p.default) for p in expected
        ], name


def test_limits_are_those_given() -> None:
    assert (LIMITS.architecture, LIMITS.shared_bytes, LIMITS.memory_bytes) == (90, 232448, 2**30)
    small = DeviceLimits("small", 75, 1, 64 * 1024, 1000)
    assert open_device(small).limits is small


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint16", "int64"])
def test_new_memory_is_poisoned(dtype: str) -> None:
    device = open_device()
    found = read(device, device.empty(7, dtype), device.stream())
    assert np.all(found.view(np.uint8) == 0xFF)
    assert np.all(device.pinned(7, dtype).view(np.uint8) == 0xFF)


def test_memory_is_counted_and_given_back() -> None:
    device = open_device(DeviceLimits("small", 90, 1, 1024, 1000))
    first = device.empty(100, np.float32)
    part = first[10:20]
    assert device.free_bytes() == 600
    with pytest.raises(DeviceMemoryError, match="604 bytes were asked for and 600 of 1000"):
        device.empty(151, np.float32)
    second = device.empty(150, np.float32)
    assert device.free_bytes() == 0
    del first, second
    gc.collect()
    assert device.free_bytes() == 600  # a view holds what it looks into
    del part
    gc.collect()
    assert device.free_bytes() == 1000


def test_host_cannot_read_the_device() -> None:
    memory = open_device().empty(64, np.float32)
    with pytest.raises(TypeError, match="download it"):
        np.asarray(memory)
    with pytest.raises(TypeError, match="sliced, not indexed"):
        memory[3]  # type: ignore[index]
    assert memory.dtype == np.float32
    assert (memory.size, memory.nbytes) == (64, 256)
    assert memory[8:16].size == 8


@pytest.mark.parametrize("seed", SEEDS)
def test_work_of_a_stream_is_done_in_order(seed: int) -> None:
    device = open_device(seed=seed)
    stream = device.stream()
    first, second = (device.empty(64, np.float32) for _ in range(2))
    device.upload(VALUES, first, stream)
    copy(device, first, second, stream)
    device.clear(first, stream)
    assert np.array_equal(read(device, second, stream), VALUES)
    assert np.array_equal(read(device, first[3:5], stream), [0, 0])


@pytest.mark.parametrize("seed", SEEDS)
def test_events_order_streams(seed: int) -> None:
    device = open_device(seed=seed)
    copying, computing = device.stream(), device.stream()
    first, second = (device.empty(64, np.float32) for _ in range(2))
    slot = pinned(device, VALUES)
    device.upload(slot, first, copying)
    device.wait(computing, device.record(copying))
    copy(device, first, second, computing)
    device.wait(copying, device.record(computing))
    device.clear(first, copying)
    assert np.array_equal(read(device, second, computing), VALUES)


def found_without_the_first_event(seed: int) -> NDArray[Any]:
    device = open_device(seed=seed)
    copying, computing = device.stream(), device.stream()
    first, second = (device.empty(64, np.float32) for _ in range(2))
    device.upload(pinned(device, VALUES), first, copying)
    copy(device, first, second, computing)
    return read(device, second, computing)


def found_without_the_second_event(seed: int) -> NDArray[Any]:
    device = open_device(seed=seed)
    copying, computing = device.stream(), device.stream()
    first, second = (device.empty(64, np.float32) for _ in range(2))
    device.upload(VALUES, first, copying)
    device.wait(computing, device.record(copying))
    copy(device, first, second, computing)
    device.clear(first, copying)
    return read(device, second, computing)


def test_missing_events_show() -> None:
    assert np.all(np.isnan(found_without_the_first_event(0)))
    assert np.all(found_without_the_second_event(1) == 0)


def test_a_pinned_buffer_that_is_used_again_too_early_shows() -> None:
    device = open_device()
    stream = device.stream()
    memory = device.empty(64, np.float32)
    slot = pinned(device, VALUES)
    device.upload(slot[:], memory, stream)  # a view is pinned like what it looks into
    slot[:] = -1
    assert np.all(read(device, memory, stream) == -1)
    slot[:] = VALUES
    device.upload(slot, memory, stream)
    device.synchronize(stream)
    slot[:] = -1
    assert np.array_equal(read(device, memory, stream), VALUES)


def test_memory_that_is_not_pinned_is_copied_at_once() -> None:
    device = open_device()
    stream = device.stream()
    memory = device.empty(64, np.float32)
    source = VALUES.copy()
    device.upload(source, memory, stream)
    source[:] = -1
    assert np.array_equal(read(device, memory, stream), VALUES)


def test_a_pinned_target_is_filled_when_the_stream_is_waited_for() -> None:
    device = open_device()
    stream = device.stream()
    memory = device.empty(64, np.float32)
    device.upload(VALUES, memory, stream)
    target = device.pinned(64, np.float32)
    device.download(memory, target, stream)
    assert np.all(np.isnan(target))
    device.synchronize(stream)
    assert np.array_equal(target, VALUES)


@pytest.mark.parametrize("seed", SEEDS)
def test_events_are_waited_for_without_what_comes_after(seed: int) -> None:
    device = open_device(seed=seed)
    stream = device.stream()
    memory = device.empty(64, np.float32)
    before, after = (device.pinned(64, np.float32) for _ in range(2))
    device.upload(VALUES, memory, stream)
    device.download(memory, before, stream)
    event = device.record(stream)
    device.clear(memory, stream)
    device.download(memory, after, stream)
    device.synchronize(event)
    assert np.array_equal(before, VALUES)
    assert np.all(np.isnan(after))
    device.synchronize(event)
    device.synchronize(stream)
    assert np.all(after == 0)


def test_memory_given_back_too_early_shows() -> None:
    # as an allocator does that gives it out again at once, whatever the stream
    device = open_device()
    stream, other = device.stream(), device.stream()
    second = device.empty(64, np.float32)
    first = device.empty(64, np.float32)
    device.upload(VALUES, first, stream)
    copy(device, first, second, stream)
    del first
    gc.collect()
    assert device.free_bytes() == LIMITS.memory_bytes - 256
    another = device.empty(64, np.float32)
    assert np.isnan(read(device, another, other)).all()
    assert np.array_equal(read(device, second, stream), VALUES)
    assert np.array_equal(read(device, another, other), VALUES)  # overwritten by the work before


def test_memory_is_given_back_by_its_last_view() -> None:
    device = open_device()
    memory = device.empty(64, np.float32)
    part = memory[8:16]
    del memory
    gc.collect()
    assert device.free_bytes() == LIMITS.memory_bytes - 256
    del part
    gc.collect()
    assert device.free_bytes() == LIMITS.memory_bytes


def test_failed_kernels_are_told_when_waited_for_and_for_ever() -> None:
    device = open_device()
    stream, other = device.stream(), device.stream()
    memory = device.empty(64, np.float32)
    arguments = {"from": memory, "to": memory, "counter": None, "n": 64, "stride": 1}
    device.launch("meet_two_places", 1, 32, arguments, shared_bytes=0, stream=stream)
    with pytest.raises(DeviceError, match="kernel meet_two_places, seed 0: divergent barrier"):
        device.synchronize(stream)
    device.clear(memory, other)
    with pytest.raises(DeviceError, match="meet_two_places"):
        device.synchronize(other)


@pytest.mark.parametrize(
    ("kernel", "grid", "block", "shared_bytes", "message"),
    [
        ("absent", 1, 32, 0, "no kernel absent"),
        ("copy_whole", 0, 32, 0, "0 blocks of 32 threads"),
        ("copy_whole", 2**31, 32, 0, "2147483648 blocks"),
        ("copy_whole", 1, 1025, 0, "1025 threads"),
        ("copy_whole", 1, 32, 227 * 1024 + 1, "232449 bytes of shared memory and .* 232448"),
    ],
)
def test_launches_beyond_the_device_are_refused(
    kernel: str, grid: int, block: int, shared_bytes: int, message: str
) -> None:
    device = open_device()
    memory = device.empty(64, np.float32)
    arguments = {"from": memory, "to": memory, "counter": None, "n": 64, "stride": 1}
    with pytest.raises(DeviceError, match=message):
        device.launch(
            kernel, grid, block, arguments, shared_bytes=shared_bytes, stream=device.stream()
        )


def test_memory_of_the_host_is_no_argument_and_no_target() -> None:
    device = open_device()
    stream = device.stream()
    memory = device.empty(64, np.float32)
    with pytest.raises(LayoutError, match="memory of a device is needed, not ndarray"):
        copy(device, VALUES, memory, stream)
    with pytest.raises(LayoutError, match="memory of a device is needed, not ndarray"):
        device.upload(VALUES, VALUES, stream)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="host is needed, not EmulatedArray"):
        device.download(memory, memory, stream)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="cannot be copied onto each other"):
        device.upload(VALUES[:3], memory, stream)
    arguments: Arguments = {"from": memory, "to": memory, "counter": memory, "n": 64, "stride": 1}
    with pytest.raises(LayoutError, match="takes for counter an array"):
        device.launch("copy_whole", 1, 64, arguments, shared_bytes=0, stream=stream)
