"""Probes: the matrix unit lays out and adds up as the kernels and their proof suppose.

    python -m saec_gpu.bench.device.probes --out probes.jsonl

The error of a sum of products is counted in the units of kernels/BOUND.md, section 4: 2⁻²³ of
|c| + Σ max(|a|, 2⁻¹⁴)·max(|b|, 2⁻¹⁴), because a matrix unit does not normalise subnormal float16.
All numbers of the search are whole multiples of 2⁻⁵⁰ and small, so the exact sum fits 64-bit
integers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Float32, Int64

from .machine import Machine, open_machine
from .part import Part, arguments_of, run_part

ROWS, COLUMNS, STEP = 16, 8, 16
ASSUMED_A_COLUMN = 2.0  # BOUND.md, section 4; bound.cuh, stepwise_bound: of one step
BOUND_A_COLUMN = 3.0  # bound.cuh, chained_bound: what the filter allows for several
LEAST_NORMAL = 2.0**-14  # of float16
SCALE = 50  # numbers of the search are multiples of 2^-SCALE
LEAST_EXPONENT = -29  # of a product: 21 bits below it still are such multiples
GREATEST_EXPONENT = 0  # and 256 products together stay below 2^(63 - SCALE)
WARPS = 8

Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Search:
    """How much is tried.

    Attributes
    ----------
    tiles : int
        Products of 16 × 16 × 8 in each launch.
    rounds : int
        Launches after the first, each with children of the worst so far.
    chains : tuple of int
        Steps of 16 columns that are added one after another.
    """

    tiles: int
    rounds: int
    chains: tuple[int, ...]


FULL = Search(tiles=1024, rounds=12, chains=(1, 2, 4, 8, 16))
DRY = Search(tiles=16, rounds=2, chains=(1, 2))


def to_fragments(
    a: Halves,  # IN (n, steps, 16, 16)
    b: Halves,  # IN (n, steps, 16, 8)
    c: Float32,  # IN (n, 16, 8)
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], Float32]:
    """Return the operands as lanes hold them, as mma_f16 of port.cuh documents it."""
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    words_a = np.empty((*a.shape[:2], 32, 4), np.uint32)
    for word in range(4):
        rows, first = g + 8 * (word % 2), 2 * t + 8 * (word // 2)
        words_a[..., word] = _pairs(a[:, :, rows, first], a[:, :, rows, first + 1])
    words_b = np.empty((*b.shape[:2], 32, 2), np.uint32)
    for word in range(2):
        first = 2 * t + 8 * word
        words_b[..., word] = _pairs(b[:, :, first, g], b[:, :, first + 1, g])
    own_c = np.stack([c[:, g + 8 * (i // 2), 2 * t + i % 2] for i in range(4)], axis=-1)
    return words_a, words_b, own_c


def from_fragments(d: Float32) -> Float32:
    """Return D (n, 16, 8) from what lanes hold, (n, 32, 4)."""
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    out = np.empty((len(d), ROWS, COLUMNS), np.float32)
    for i in range(4):
        out[:, g + 8 * (i // 2), 2 * t + i % 2] = d[:, :, i]
    return out


def _pairs(low: Halves, high: Halves) -> NDArray[np.uint32]:
    bits = [np.array(half).view(np.uint16).astype(np.uint32) for half in (low, high)]
    return bits[0] | (bits[1] << np.uint32(16))


def multiplied(machine: Machine, a: Halves, b: Halves, c: Float32) -> Float32:
    """Return c + Σ_s A_s·B_s, float32 (n, 16, 8), as the device's matrix unit has it."""
    stream = machine.own.stream()
    n = len(a)
    warps = WARPS if n % WARPS == 0 else 1
    given = [machine.uploaded(one, stream) for one in to_fragments(a, b, c)]
    d = machine.own.empty(n * 128, np.float32)
    machine.own.launch(
        "probe_fragments", n // warps, 32 * warps,
        {"a": given[0], "b": given[1], "c": given[2], "d": d, "steps": a.shape[1]},
        shared_bytes=0, stream=stream,
    )  # fmt: skip
    return from_fragments(machine.downloaded(d, stream).reshape(n, 32, 4))


def probe_layout(machine: Machine, tiles: int) -> int:
    """Return how many of the elements of whole-number products are wrong; there must be none."""
    rng = np.random.default_rng(1)
    a = rng.integers(-31, 32, (tiles, 2, ROWS, STEP)).astype(np.float16)
    b = rng.integers(-31, 32, (tiles, 2, STEP, COLUMNS)).astype(np.float16)
    c = rng.integers(-999, 999, (tiles, ROWS, COLUMNS)).astype(np.float32)
    wanted = c + np.einsum("nsik,nskj->nij", a.astype(np.float64), b.astype(np.float64))
    return int(np.count_nonzero(multiplied(machine, a, b, c) != wanted))


def probe_subnormals(machine: Machine) -> int:
    """Return how many products with subnormal float16 are wrong; there must be none."""
    a = np.full((WARPS, 1, ROWS, STEP), 2.0**-24, np.float16)
    b = np.ones((WARPS, 1, STEP, COLUMNS), np.float16)
    found = multiplied(machine, a, b, np.zeros((WARPS, ROWS, COLUMNS), np.float32))
    return int(np.count_nonzero(found != np.float32(2.0**-20)))


def probe_copies(machine: Machine, blocks: int, chunks: int) -> int:
    """Return how many words come wrong through shared memory; there must be none."""
    stream = machine.own.stream()
    words = np.random.default_rng(2).integers(0, 2**32, blocks * chunks * 512, np.uint32)
    to = machine.own.empty(words.size, np.uint32)
    machine.own.clear(to, stream)
    machine.own.launch(
        "probe_copies", blocks, 128,
        {"from": machine.uploaded(words, stream), "to": to, "chunks": chunks},
        shared_bytes=0, stream=stream,
    )  # fmt: skip
    return int(np.count_nonzero(machine.downloaded(to, stream) != words))


# ---- the error of accumulation


def whole_products(a: Halves, b: Halves) -> Int64:
    """Return every product a_ik·b_kj of (n, steps, …) in units of 2^-SCALE, exact."""
    products = a.astype(np.float64)[..., :, :, None] * b.astype(np.float64)[..., None, :, :]
    return np.ldexp(products, SCALE).astype(np.int64)  # 22 bits each: nothing is rounded


def units_of_error(a: Halves, b: Halves, c: Float32, d: Float32) -> NDArray[np.float64]:
    """Return |d − exact| in units, float64 (n, 16, 8)."""
    exact = np.ldexp(c.astype(np.float64), SCALE).astype(np.int64)
    size = np.abs(c.astype(np.float64))
    for step in range(a.shape[1]):
        exact += whole_products(a[:, step], b[:, step]).sum(axis=2)
        size += _counted(a[:, step]) @ _counted(b[:, step])
    error = np.abs(np.ldexp(d.astype(np.float64), SCALE).astype(np.int64) - exact)
    units: NDArray[np.float64] = np.ldexp(error, 23 - SCALE) / size
    return units


def _counted(operand: Halves) -> NDArray[np.float64]:
    return np.maximum(np.abs(operand.astype(np.float64)), LEAST_NORMAL)


@dataclass(frozen=True, eq=False)
class Operands:
    """Operands of many tiles, and which pattern each is of."""

    pattern: list[str]
    a: Halves
    b: Halves
    c: Float32


def first_operands(rng: np.random.Generator, tiles: int, steps: int) -> Operands:
    """Return operands of all patterns in turn."""
    makers = list(_PATTERNS.values())
    names = list(_PATTERNS)
    made = [makers[i % len(makers)](rng, steps) for i in range(tiles)]
    return Operands(
        [names[i % len(names)] for i in range(tiles)],
        np.stack([one[0] for one in made]),
        np.stack([one[1] for one in made]),
        np.stack([one[2] for one in made]),
    )


Tile = tuple[Halves, Halves, Float32]
# A half whose significand is all ones, so that as much as can be is cut off from a product.
_FULL_HALF = 2047 / 1024


def _split(exponents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two exponents that float16 holds as normal numbers and that add up to these."""
    first = exponents // 2
    return first, exponents - first


def _leading(rng: np.random.Generator, steps: int) -> Tile:
    """One product or sum of 1, all others just below what it lets through."""
    depth = int(rng.integers(20, 28))
    a, b = _tile(rng, np.full((steps, STEP), -depth), full=True)
    c = np.zeros((ROWS, COLUMNS), np.float32)
    place = int(rng.integers(-STEP, STEP))
    if place >= 0:
        a[0, :, place] = b[0, place] = 1
    else:
        c[:] = rng.choice([-1, 1], (ROWS, COLUMNS))
    return a, b, c


def _cancelling(rng: np.random.Generator, steps: int) -> Tile:
    """Two large products that cancel, so that what was cut off the others is all that is left."""
    depth = int(rng.integers(18, 28))
    exponents = np.full((steps, STEP), -depth)
    places = rng.choice(STEP, 2, replace=False)
    exponents[0, places] = 0
    a, b = _tile(rng, exponents, full=True)
    a[0, :, places[1]], b[0, places[1]] = -a[0, :, places[0]], b[0, places[0]]
    return a, b, np.zeros((ROWS, COLUMNS), np.float32)


def _subnormal(rng: np.random.Generator, steps: int) -> Tile:
    """One subnormal operand, whose product counts as more than it is, beside small products."""
    depth = int(rng.integers(20, 28))
    a, b = _tile(rng, np.full((steps, STEP), -depth), full=True)
    place = int(rng.integers(0, STEP))
    a[0, :, place] = rng.choice([-1, 1], ROWS) * rng.integers(1, 1024, ROWS) * 2.0**-24
    b[0, place] = 2.0 ** rng.integers(4, 14)
    return a, b, np.zeros((ROWS, COLUMNS), np.float32)


def _staircase(rng: np.random.Generator, steps: int) -> Tile:
    """Exponents that fall from column to column, in any order."""
    fall = float(rng.uniform(0.2, 2.0))
    exponents = -np.floor(np.arange(steps * STEP) * fall).astype(np.int64)
    exponents = rng.permutation(np.maximum(exponents, LEAST_EXPONENT)).reshape(steps, STEP)
    return *_tile(rng, exponents, full=False), np.zeros((ROWS, COLUMNS), np.float32)


def _scattered(rng: np.random.Generator, steps: int) -> Tile:
    """Exponents drawn from a range of some width."""
    width = int(rng.integers(1, -LEAST_EXPONENT))
    exponents = rng.integers(-width, 1, (steps, STEP))
    c = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    return *_tile(rng, exponents, full=False), _on_grid(c * np.float32(2.0 ** rng.integers(-8, 3)))


_PATTERNS = {
    "one leads": _leading,
    "two cancel": _cancelling,
    "subnormal": _subnormal,
    "staircase": _staircase,
    "scattered": _scattered,
}


def _tile(
    rng: np.random.Generator, exponents: NDArray[np.int64], *, full: bool
) -> tuple[Halves, Halves]:
    """Return A (steps, 16, 16) and B (steps, 16, 8) whose products have these exponents."""
    steps = len(exponents)
    shape_a, shape_b = (steps, ROWS, STEP), (steps, STEP, COLUMNS)
    of_a, of_b = _split(exponents)
    signs = [rng.choice([-1.0, 1.0], shape) for shape in (shape_a, shape_b)]
    if rng.random() < 0.5:  # all that is cut off then has one sign
        signs = [np.ones(shape) for shape in (shape_a, shape_b)]
    sizes = [
        np.full(shape, _FULL_HALF) if full else 1 + rng.integers(0, 1024, shape) / 1024
        for shape in (shape_a, shape_b)
    ]
    a = np.ldexp(signs[0] * sizes[0], of_a[:, None, :])
    b = np.ldexp(signs[1] * sizes[1], of_b[:, :, None])
    return a.astype(np.float16), b.astype(np.float16)


def _on_grid(c: Float32) -> Float32:
    """Return the sums that products are added to, as multiples of 2^-SCALE."""
    return np.ldexp(np.rint(np.ldexp(c.astype(np.float64), 40)), -40).astype(np.float32)


def children(
    rng: np.random.Generator, parents: Operands, units: NDArray[np.float64], tiles: int
) -> Operands:
    """Return operands like those of the worst elements so far, a little changed."""
    best = np.argsort(units.reshape(-1))[::-1][: max(1, tiles // 8)]
    tile, row, column = np.unravel_index(best[np.arange(tiles) % len(best)], units.shape)
    a = np.repeat(parents.a[tile, :, row][:, :, None], ROWS, axis=2)
    b = np.repeat(parents.b[tile, :, :, column][:, :, :, None], COLUMNS, axis=3)
    c = np.broadcast_to(parents.c[tile, row, column][:, None, None], (tiles, ROWS, COLUMNS)).copy()
    for operand in (a, b):
        changed = rng.random(operand.shape) < 0.08
        kind = rng.integers(0, 3, operand.shape)
        flipped = np.where(kind == 0, -operand, operand)
        scaled = flipped * np.where(kind == 1, np.float16(2.0) ** rng.integers(-1, 2), 1)
        drawn = 1 + rng.integers(0, 1024, operand.shape) / 1024
        fresh = np.copysign(np.ldexp(drawn, _exponent(operand)), scaled)
        operand[...] = np.where(changed, np.where(kind == 2, fresh, scaled), operand)
    # what leaves the range of the search is as it was before the change
    parent_a, parent_b = parents.a[tile, :, row], parents.b[tile, :, :, column]
    exponents = _exponent(a)[..., None] + _exponent(b)[:, :, None]
    wild = (exponents < LEAST_EXPONENT) | (exponents > GREATEST_EXPONENT)
    a = np.where(wild.any(axis=4), parent_a[:, :, None], a)
    b = np.where(wild.any(axis=2), parent_b[..., None], b)
    pattern = [parents.pattern[i] for i in tile]
    return Operands(pattern, a.astype(np.float16), b.astype(np.float16), c)


def _exponent(values: Halves) -> NDArray[np.int64]:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1


def search(machine: Machine, plan: Search, steps: int) -> Iterator[tuple[str, float, Operands]]:
    """Yield the worst element of each launch: its pattern, its units and its operands."""
    rng = np.random.default_rng([3, steps])
    tiles = max(WARPS, plan.tiles // steps)
    operands = first_operands(rng, tiles, steps)
    for _ in range(plan.rounds + 1):
        d = multiplied(machine, operands.a, operands.b, operands.c)
        units = units_of_error(operands.a, operands.b, operands.c, d)
        by_tile = units.max(axis=(1, 2))
        for pattern in dict.fromkeys(operands.pattern):
            own = np.array([one == pattern for one in operands.pattern])
            yield pattern, float(by_tile[own].max()), operands
        operands = children(rng, operands, units, tiles)


def probe_accumulation(machine: Machine, plan: Search, part: Part) -> None:
    """Record the greatest error that the search finds, for each number of steps."""
    for steps in plan.chains:
        worst: dict[str, float] = {}
        for pattern, units, _ in search(machine, plan, steps):
            worst[pattern] = max(worst.get(pattern, 0.0), units)
        columns = steps * STEP
        allowed = ASSUMED_A_COLUMN if steps == 1 else BOUND_A_COLUMN
        most = max(worst.values())
        part.add(
            "probe", probe="accumulation", steps=steps, columns=columns, units=most,
            units_a_column=most / columns, units_a_step=most / steps,
            assumed_a_column=ASSUMED_A_COLUMN, bound_a_column=allowed, by_pattern=worst,
            ok=most <= allowed * columns,
        )  # fmt: skip
        part.say(
            f"{columns} columns: {most:.3f} units, {most / columns:.3f} a column; bound {allowed}"
        )
        if most > allowed * columns:
            part.fault(
                f"the sum of {columns} products errs by {most:.2f} · 2^-23, more than "
                f"{allowed} a column: the filter's bound does not hold on this device"
            )


def probe(part: Part, *, dry: bool) -> None:
    """Do all probes."""
    machine = open_machine(dry=dry)
    part.describe(**machine.about())
    checks: dict[str, tuple[int, int]] = {
        "fragments": (probe_layout(machine, 8 if dry else 1024), 128 * (8 if dry else 1024)),
        "subnormals": (probe_subnormals(machine), 128 * WARPS),
        "copies": (probe_copies(machine, *((2, 3) if dry else (264, 33))), 0),
    }
    for name, (wrong, checked) in checks.items():
        part.add("probe", probe=name, wrong=wrong, checked=checked, ok=wrong == 0)
        part.say(f"{name}: {wrong} wrong")
        if wrong:
            part.fault(f"probe {name}: {wrong} elements are wrong")
    probe_accumulation(machine, DRY if dry else FULL, part)


def main(given: list[str] | None = None) -> Any:
    """Run from the command line."""
    options: argparse.Namespace = arguments_of("probes", "Probe the matrix unit.").parse_args(given)
    run_part("probes", options, lambda part: probe(part, dry=options.dry_run))


if __name__ == "__main__":
    main()
