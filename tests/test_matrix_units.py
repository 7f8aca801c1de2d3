"""The kernels on matrix units whose errors decide: none of what their bound allows for can go."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from emulated_device import EmulatedDevice
from emulator import Library, build
from self_test import SEEDS

from builders import definition
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.data import Codebook, Float32, chunk_of
from test_filter import Case
from test_filter_model import LOST_PRODUCTS, lowest_exponents

KERNELS = Path(__file__).parents[1] / "kernels"
DIMS = (8, 16, 32)
# Width and extra bits by the seed whose products are added up so.
UNITS = {5: (4, 0), 2: (8, 1), 3: (16, 2)}


@cache
def library() -> Library:
    return Library(build())


def right(library: Library, seed: int, case: Case, middle: Float32 | None = None) -> bool:
    """Return whether the rows get the definition's codes."""
    rows, codewords = case
    backend = CudaBackend(EmulatedDevice(seed=seed, library=library))
    codebooks = backend.load_codebooks({"field": Codebook(codewords, middle=middle)})
    found = backend.assign(backend.load_rows(chunk_of("field", rows)), codebooks).codes
    return np.array_equal(found, definition(rows, codewords).argmin(axis=1))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("unit", UNITS.values())
@pytest.mark.parametrize("seed", SEEDS)
def test_codes_are_the_definition_s(seed: int, unit: tuple[int, int], dim: int) -> None:
    assert right(library(), seed, lowest_exponents(*unit, dim))


def built_without(pattern: str, replacement: str, places: int, folder: Path) -> Library:
    """Return the kernels with a bound in which so many places are replaced."""
    sources = folder / "kernels"
    shutil.copytree(KERNELS, sources)
    bound = sources / "bound.cuh"
    text, found = re.subn(pattern, replacement, bound.read_text(encoding="utf-8"))
    assert found == places
    bound.write_text(text, encoding="utf-8")
    return Library(build(sources=sources))


@pytest.fixture(scope="module")
def without_shares(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Return the kernels with a bound that has no share for subnormal operands."""
    pattern = r"(LOWEST(_OF_ROW|_OF_CHUNK)?) = 0x1p-\d+f;"
    return built_without(pattern, r"\1 = 0.0f;", 3, tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize(
    ("seed", "dim"),
    # where a unit adds more columns than there are, what it cuts off is too little
    [(seed, dim) for seed, (width, _) in UNITS.items() for dim in DIMS if width <= dim],
)
def test_without_their_share_a_wrong_code_is_proved(
    without_shares: Library, seed: int, dim: int
) -> None:
    # a row that is not proved would get the definition's code
    assert not right(without_shares, seed, lowest_exponents(*UNITS[seed], dim))


@pytest.mark.parametrize("kappa", sorted({one.kappa for one in LOST_PRODUCTS}))
def test_every_kappa_is_needed(kappa: str, tmp_path: Path) -> None:
    pattern = rf"(float {kappa}_bound\(int32 dim\) \{{\n  return )"
    without = built_without(pattern, r"\g<1>0.0f * ", 1, tmp_path)
    for one in (one for one in LOST_PRODUCTS if one.kappa == kappa):
        (seed,) = (seed for seed, unit in UNITS.items() if unit == (one.width, one.extra_bits))
        middle = np.zeros(one.dim, np.float32)
        assert right(library(), seed, one.case(), middle), one
        assert not right(without, seed, one.case(), middle), one
