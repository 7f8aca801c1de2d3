"""k-means++ looks closely at few rows, and adds up few; the draws are the oracle's to the bit.

The inputs are made to break its shortcuts: distances that differ in the last bit, or in float32
not at all, chances that lie midway between two sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import reference
from builders import HUGE, TINY, bits, definition
from saec_gpu.clustering.seeding import Seeds
from saec_gpu.clustering.seeding_loops import BLOCK, NEVER_SUMMED, add_blocks, lower_blocks
from saec_gpu.data import Float32, Float64, Sample

GREATEST_ONES = (1 << 53) - 1  # a significand of ones


def drawn(rows: Float32, omega: Float64, *numbers: int) -> list[list[list[int]]]:
    """Bits of as many first seeds as each of the numbers says, asked for one after another."""
    sample = Sample(np.arange(len(rows)), rows, np.ones(len(rows)), omega)
    seeds = Seeds(sample, 3, "x")
    return [bits(seeds.first(number)) for number in numbers]


def oracle(rows: Float32, omega: Float64, number: int) -> list[list[int]]:
    every = list(range(len(rows)))
    sample = reference.Sample(every, omega.tolist(), 0.0, [1.0] * len(rows))
    return bits(reference.seeds(sample, rows, number, 3, "x"))


def _normal(rng: np.random.Generator, n: int, dim: int) -> NDArray[Any]:
    return rng.standard_normal((n, dim))


def _permuted(rng: np.random.Generator, n: int, dim: int) -> NDArray[Any]:
    """Rows as far from one another as others are, but for the order in which float64 adds."""
    base = rng.standard_normal(dim).astype(np.float32)
    return rng.permuted(np.tile(base, (n, 1)), axis=1)


def _nearly_equal(rng: np.random.Generator, n: int, dim: int) -> NDArray[Any]:
    """Around 1 in steps of its last bit: most differences are 0 or 2⁻²³."""
    return 1.0 + rng.integers(-2, 3, (n, dim)) * 2.0**-23


def _underflowing(rng: np.random.Generator, n: int, dim: int) -> NDArray[Any]:
    """Squares that float32 rounds to 0, to its least numbers, or not at all."""
    return rng.integers(-3, 4, (n, dim)) * np.ldexp(1.0, rng.integers(-78, -72, (n, dim)))


def _overflowing(rng: np.random.Generator, n: int, dim: int) -> NDArray[Any]:
    """Squares that float32 cannot hold, some of differences that it cannot."""
    return (rng.standard_normal((n, dim)) * np.ldexp(1.0, rng.integers(60, 128, (n, 1)))).clip(
        -HUGE, HUGE
    )


ROWS: dict[str, Callable[[np.random.Generator, int, int], NDArray[Any]]] = {
    "normal": _normal,
    "permuted": _permuted,
    "nearly equal": _nearly_equal,
    "underflowing": _underflowing,
    "overflowing": _overflowing,
    "whole numbers": lambda rng, n, dim: rng.integers(-2, 3, (n, dim)) * 1.0,
    "repeated": lambda rng, n, dim: _normal(rng, 7, dim)[rng.integers(0, 7, n)],
    "offset": lambda rng, n, dim: 1e6 + _normal(rng, n, dim),
    "least": lambda rng, n, dim: rng.integers(-3, 4, (n, dim)) * TINY,
    "scales": lambda rng, n, dim: np.ldexp(_normal(rng, n, dim), rng.integers(-140, 120, (n, 1))),
}
WEIGHTS: dict[str, Callable[[np.random.Generator, int], NDArray[Any]]] = {
    "ones": lambda rng, n: np.ones(n),
    "lookups": lambda rng, n: rng.zipf(1.3, n) * 1.0,
    "powers": lambda rng, n: np.ldexp(1.0, rng.integers(-400, 401, n)),
    "ones of bits": lambda rng, n: np.ldexp(GREATEST_ONES * 1.0, rng.integers(-60, -50, n)),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", ROWS)
def test_seeds_are_those_of_the_oracle(kind: str, weights: str, rng: np.random.Generator) -> None:
    for n, dim, k in [(1, 3, 2), (BLOCK - 1, 1, 12), (BLOCK, 5, 40), (3 * BLOCK + 1, 17, 30)]:
        rows = ROWS[kind](rng, n, dim).astype(np.float32)
        omega = WEIGHTS[weights](rng, n)
        (found,) = drawn(rows, omega, k)
        assert found == oracle(rows, omega, k)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, BLOCK + 9), st.integers(1, 3)),
        elements=st.sampled_from(
            [-HUGE, -1.0, -0.0, 0.0, TINY, 3 * TINY, 2.0**-75, 1.0, 1 + 2.0**-23, 2.0**64, HUGE]
        ),
    ),
    st.data(),
)
def test_seeds_of_any_rows(rows: Float32, data: st.DataObject) -> None:
    weight = st.sampled_from([2.0**-400, 0.1, 1.0, 1 + 2.0**-52, 2.0**53, 2.0**400])
    omega = data.draw(arrays(np.float64, len(rows), elements=weight), "omega")
    (found,) = drawn(rows, omega, 9)
    assert found == oracle(rows, omega, 9)


def test_fewer_seeds_are_the_first_of_more(rng: np.random.Generator) -> None:
    rows, omega = (
        rng.standard_normal((200, 4)).astype(np.float32),
        rng.zipf(1.5, 200).astype(np.float64),
    )
    expected = oracle(rows, omega, 30)
    assert drawn(rows, omega, 3, 3, 30, 7) == [expected[:n] for n in (3, 3, 30, 7)]


def test_drawing_ends_where_all_rows_are_met(rng: np.random.Generator) -> None:
    rows = rng.integers(0, 2, (300, 3)).astype(np.float32)
    found = drawn(rows, np.ones(300), 5, 20, 40)
    assert [len(seeds) for seeds in found] == [5, 8, 8]
    assert found[2] == oracle(rows, np.ones(300), 40)


@pytest.mark.parametrize("kind", ROWS)
def test_least_distances_are_those_of_the_definition(kind: str, rng: np.random.Generator) -> None:
    # a distance that is wrong in its last bit hardly ever changes a draw
    for dim in (1, 2, 3, 8, 17, 64):
        rows = ROWS[kind](rng, 4 * BLOCK, dim).astype(np.float32)
        columns = np.ascontiguousarray(rows.reshape(4, BLOCK, dim).transpose(0, 2, 1))
        weights, floors = rng.random((4, BLOCK)), np.zeros(4)
        least, chances = np.full((4, BLOCK), np.inf), weights.copy()
        limits, room = least.astype(np.float32), np.empty(BLOCK, np.float32)
        for number in range(40):
            before = least.copy()
            floors[:] = 1.0
            lower_blocks(rows[number], columns, weights, least, limits, chances, floors, room)
            expected = definition(rows, rows[: number + 1]).min(axis=1)
            assert least.reshape(-1).tolist() == expected.tolist()
            assert chances.tolist() == (weights * least).tolist()
            changed = (least < before).any(axis=1)
            assert floors.tolist() == np.where(changed, NEVER_SUMMED, 1.0).tolist()


class Sums:
    """The kept sums of chances, held against NumPy's, which adds one after another."""

    def __init__(self, chances: Float64) -> None:
        self.chances = chances
        self.floors = np.full(len(chances), NEVER_SUMMED)
        self.added = np.zeros(len(chances))

    def check(self) -> None:
        ends = np.empty(len(self.chances))
        total = add_blocks(self.chances, self.floors, self.added, ends)
        expected = np.cumsum(self.chances)[BLOCK - 1 :: BLOCK]
        assert ends.tolist() == expected.tolist()
        assert total == expected[-1]

    def replace(self, block: int, i: int, chance: float) -> None:
        self.chances[block, i] = chance
        self.floors[block] = NEVER_SUMMED


def _midway(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[Any]:
    """Chances most of which lie midway between two multiples of some sum's last bit."""
    return (2 * rng.integers(0, 1 << 20, size) + 1) * np.ldexp(1.0, rng.integers(-60, -50, size))


CHANCES: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]]] = {
    "even": lambda rng, size: rng.random(size),
    "whole numbers": lambda rng, size: rng.integers(0, 5, size) * 1.0,
    "midway": _midway,
    "half of the last bit": lambda rng, size: np.ldexp(1.0, rng.integers(-54, -51, size)),
    "any scale": lambda rng, size: np.ldexp(rng.random(size), rng.integers(-698, 690, size)),
    "mostly nothing": lambda rng, size: rng.random(size) * (rng.random(size) < 0.004),
    "falling": lambda rng, size: 1.0 / np.arange(1, 1 + size[0] * size[1]).reshape(size) ** 2,
    "nothing": lambda rng, size: np.zeros(size),
}


@pytest.mark.parametrize("kind", CHANCES)
def test_sums_are_those_of_one_after_another(kind: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        chances = CHANCES[kind](rng, (40, BLOCK))
        chances[0, 0] += rng.integers(0, 2)  # now and then a sum that is far above what is added
        sums = Sums(chances)
        sums.check()
        for _ in range(20):
            block, i = int(rng.integers(0, 40)), int(rng.integers(0, BLOCK))
            sums.replace(block, i, chances[block, i] * rng.choice([0.0, 0.3, 0.5, 1.0]))
            sums.check()


def test_sums_of_most_blocks_are_kept(rng: np.random.Generator) -> None:
    # else the tests above would say nothing of them
    sums = Sums(rng.random((200, BLOCK)))
    sums.check()
    kept = np.isfinite(sums.added) & (sums.added < sums.floors)
    assert kept.sum() > 150
    sums.added[kept] += 1.0
    with pytest.raises(AssertionError):
        sums.check()
