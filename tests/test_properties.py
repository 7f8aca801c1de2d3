"""What must hold whatever the data: additivity, independence, symmetry, exact counts."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterable

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders import (
    ROW_KINDS,
    WEIGHT_KINDS,
    Piece,
    assert_clustered_alike,
    bits,
    chunk_of_pieces,
    chunks_of,
    cluster,
    column,
    fixed_points,
    rows_of,
    start_fit,
    statistics_of,
    weights_of,
    whole,
)
from saec_gpu.backends import open_backend
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.lloyd import finish_pass, fit, fit_pass
from saec_gpu.clustering.seeding import seed_codewords
from saec_gpu.data import Chunk, Codebook, FixedPoint, Float32, Float64, Partial, chunk_of
from saec_gpu.sources import open_tables

kinds = st.sampled_from(list(ROW_KINDS))
weight_kinds = st.sampled_from(list(WEIGHT_KINDS))
generators = st.integers(0, 2**32).map(np.random.default_rng)


@hypothesis.settings(max_examples=60)
@hypothesis.given(rng=generators, kind=kinds, weights=weight_kinds, n=st.integers(1, 150))
def test_partial_of_a_union_is_the_sum_of_partials(
    rng: np.random.Generator, kind: str, weights: str, n: int
) -> None:
    rows, own = rows_of(kind, rng, n, 3), weights_of(weights, rng, n)
    ours, _ = fixed_points(rows, own)
    backend = open_backend("cpu", threads=1)
    in_a = rng.random(n) < rng.random()  # any two sets, not only ranges

    def partial_of(some: NDArray[np.bool_]) -> Partial:
        loaded = backend.load_codebooks({"x": Codebook(rows[:5], ours)})
        part = None if own is None else own[some]
        backend.assign_accumulate(backend.load_rows(chunk_of("x", rows[some], part)), loaded)
        return backend.partials(loaded)["x"]

    assert whole(partial_of(in_a) + partial_of(~in_a)) == whole(partial_of(np.ones(n, bool)))


@pytest.mark.parametrize("step", [None, 50])
def test_fields_are_independent(rng: np.random.Generator, step: int | None) -> None:
    # all together, in one chunk or in many, each is what it is alone
    backend = open_backend("cpu", threads=2)
    pieces = [
        Piece(f"{kind}, {weights}", rows_of(kind, rng, n, dim), weights_of(weights, rng, n))
        for kind, weights, n, dim in [
            ("normal", "none", 300, 3),
            ("offset", "wide", 97, 17),
            ("huge", "whole", 130, 1),
            ("subnormal", "zero", 64, 7),
            ("columns", "one in ten 2^40", 257, 16),
        ]
    ]
    fits = {}
    for p in pieces:
        statistics = statistics_of(p.rows, p.weights, 6, field=p.field)
        seeds = seed_codewords(backend, statistics.sample, 6, 0, p.field)
        fits[p.field] = start_fit(statistics, seeds)

    def chunks(active: Collection[str]) -> Iterable[Chunk]:
        return chunks_of(pieces, step)

    fit(backend, chunks, fits, tol=1e-4, max_iter=25, after_pass=lambda _: None)
    final = {name: Codebook(one.ordered()) for name, one in fits.items()}
    chunk = chunk_of_pieces(pieces)
    codes = backend.assign(chunk, backend.load_codebooks(final)).codes
    for p, segment in zip(pieces, chunk.layout.segments, strict=True):
        alone = cluster(p.rows, p.weights, 6, field=p.field)
        assert bits(final[p.field].codewords) == bits(alone.codewords)
        assert codes[segment.rows].tolist() == alone.codes.tolist()
        assert fits[p.field].iterations == alone.iterations


def test_other_fields_do_not_change_the_draws(rng: np.random.Generator) -> None:
    # the field's name keys them, not its number
    rows = rows_of("normal", rng, 200, 3)
    alone = statistics_of(rows, None, 4, field="item").sample
    statistics_of(rows, None, 4, field="brand")
    again = statistics_of(rows, None, 4, field="item").sample
    assert alone.index.tolist() == again.index.tolist()


def _never_empty(rows: Float32, weights: Float64, start: Float32) -> bool:
    """Return whether a fit takes several passes, in each of which every codeword has rows."""
    passes = cluster(rows, weights, 20, tol=0.0, initial=start).iterations
    codes = [
        cluster(rows, weights, 20, tol=0.0, initial=start, max_iter=number).codes
        for number in range(1, passes)
    ]
    return bool(codes) and all((np.bincount(one, minlength=4) > 0).all() for one in codes)


@pytest.mark.parametrize("kind", ["normal", "offset", "heavy", "columns"])
def test_a_whole_weight_is_as_many_copies(rng: np.random.Generator, kind: str) -> None:
    # RELIABILITY 1, 2
    # The one margin of these tests. Weights and copies choose different exponents of the sums
    # (DEFINITIONS B: P of a weight 3 is 4, of three copies 6), so terms and means are rounded at
    # other places: 1e-12 of the column's largest value is 2^13 times coarser than float64.
    # An empty codeword is refilled by weight times distance, of one copy or of all: other rows.
    never_empty = False
    while not never_empty:
        rows, weights = rows_of(kind, rng, 60, 3), rng.integers(1, 6, 60)
        start = rows[:4].copy()
        never_empty = _never_empty(rows, weights.astype(np.float64), start)
    copies = np.repeat(rows, weights, axis=0)
    for tol in (0.0, 1e-4):
        # 20 codewords are allowed, so that the sample holds all rows and copies; four are given
        by_weight = cluster(rows, weights.astype(np.float64), 20, tol=tol, initial=start)
        by_copies = cluster(copies, None, 20, tol=tol, initial=start)
        assert by_weight.iterations == by_copies.iterations
        # by_weight counts rows, by_copies copies: the order of the codewords may differ
        one = by_weight.codewords[np.lexsort(by_weight.codewords.T)].astype(np.float64)
        other = by_copies.codewords[np.lexsort(by_copies.codewords.T)].astype(np.float64)
        assert (np.abs(one - other).max(axis=0) <= 1e-12 * np.abs(one).max(axis=0)).all()
        assert abs(by_weight.weighted_sse - by_copies.sse) <= 1e-12 * by_copies.sse
        assert by_copies.sse == by_copies.weighted_sse


@pytest.mark.parametrize("kind", ["normal", "offset", "columns", "huge", "repeated"])
@pytest.mark.parametrize("weights", ["none", "whole", "wide"])
def test_a_permutation_of_rows_permutes_codes(
    rng: np.random.Generator, kind: str, weights: str
) -> None:
    # tol 0 and no empty codeword: nothing depends on the sample, whose draws go by row number
    rows, own = rows_of(kind, rng, 150, 3), weights_of(weights, rng, 150)
    own = None if own is None else own + (own == 0)
    start = np.unique(rows, axis=0)[:: len(np.unique(rows, axis=0)) // 4][:4].copy()
    order = rng.permutation(150)
    one = cluster(rows, own, 4, tol=0.0, initial=start)
    other = cluster(rows[order], None if own is None else own[order], 4, tol=0.0, initial=start)
    assert bits(other.codewords) == bits(one.codewords)
    assert other.codes.tolist() == one.codes[order].tolist()
    assert (other.sse, other.weighted_sse) == (one.sse, one.weighted_sse)
    assert other.iterations == one.iterations


@pytest.mark.parametrize(("power", "weight_power"), [(20, -70), (-60, 3), (1, 0), (90, 200)])
def test_a_power_of_two_carries_through_a_whole_fit(
    rng: np.random.Generator, power: int, weight_power: int
) -> None:
    rows, own = rows_of("normal", rng, 500, 3), weights_of("whole", rng, 500)
    assert own is not None
    one = cluster(rows, own, 6, seed=2)
    assert one.iterations > 1
    scaled = cluster(np.ldexp(rows, power), np.ldexp(own, weight_power), 6, seed=2)
    assert bits(scaled.codewords) == bits(np.ldexp(one.codewords, power))
    assert scaled.codes.tolist() == one.codes.tolist()
    assert (scaled.iterations, scaled.stopped) == (one.iterations, one.stopped)
    assert scaled.sse == math.ldexp(one.sse, 2 * power)
    assert scaled.weighted_sse == math.ldexp(one.weighted_sse, 2 * power + weight_power)


@pytest.mark.parametrize("weights", ["none", "whole", "sparse", "wide"])
@pytest.mark.parametrize("kind", ["normal", "heavy", "grid", "repeated", "columns", "tiny"])
def test_the_error_does_not_rise(rng: np.random.Generator, kind: str, weights: str) -> None:
    # RELIABILITY 8. A codeword is rounded to float32, so the error may rise by a rounding.
    rows, own = rows_of(kind, rng, 300, 4), weights_of(weights, rng, 300)
    backend = open_backend("cpu", threads=1)
    statistics = statistics_of(rows, own, 8)
    one = start_fit(statistics, seed_codewords(backend, statistics.sample, 8, 0, "x"))
    chunk, errors = chunk_of("x", rows, own), []
    for _ in range(12):
        loaded = backend.load_codebooks({"x": Codebook(one.codewords)})
        distances = backend.assign(chunk, loaded, distances=True).distances
        assert distances is not None
        sums = ErrorSums()
        sums.add(distances, own)
        errors.append(sums.weighted_sse)
        partials, _ = fit_pass(backend, [chunk], {"x": one})
        finish_pass(backend, one, partials["x"], tol=0.0, max_iter=100)
    assert errors[-1] < errors[0]
    for before, after in itertools.pairwise(errors):
        assert after <= before * (1 + 1e-12)


def test_enough_codewords_lose_nothing(rng: np.random.Generator) -> None:
    # RELIABILITY 33
    for kind in ("repeated", "grid"):
        rows = rows_of(kind, rng, 97, 3)
        found = cluster(rows, None, 97)
        assert (found.codewords[found.codes] == rows).all()
        assert (found.sse, found.iterations) == (0.0, 0)
        assert len(found.codewords) == len(np.unique(rows + np.float32(0.0), axis=0))


@pytest.mark.parametrize("weights", WEIGHT_KINDS)
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_no_nan_comes_of_finite_rows(rng: np.random.Generator, kind: str, weights: str) -> None:
    # RELIABILITY 26, 32, 35
    rows, own = rows_of(kind, rng, 1025, 3), weights_of(weights, rng, 1025)
    found = cluster(rows, own, 40, max_iter=5)
    assert np.isfinite(found.codewords).all()
    assert (found.codewords >= rows.min(axis=0)).all()
    assert (found.codewords <= rows.max(axis=0)).all()
    assert math.isfinite(found.sse)
    assert math.isfinite(found.weighted_sse)
    assert found.codes.max() < len(found.codewords) <= 40


def test_codes_are_those_of_the_stored_codewords(rng: np.random.Generator) -> None:
    # RELIABILITY 5, 6, 41: of all rows again, and of each row alone
    rows = rows_of("offset", rng, 200, 5)
    found = cluster(rows, None, 9, max_iter=2)
    backend = open_backend("cpu", threads=1)
    loaded = backend.load_codebooks({"x": Codebook(found.codewords)})
    errors = []
    again = backend.assign(chunk_of("x", rows), loaded, distances=True)
    assert again.codes.tolist() == found.codes.tolist()
    assert again.distances is not None
    sums = ErrorSums()
    for i in range(len(rows)):
        alone = backend.assign(chunk_of("x", rows[i : i + 1]), loaded, distances=True)
        assert alone.codes.tolist() == [found.codes[i]]
        assert alone.distances is not None
        errors.append(alone.distances)
        sums.add(alone.distances, None)
    assert sums.sse == found.sse


def test_an_offset_that_float32_holds_exactly_changes_no_code(rng: np.random.Generator) -> None:
    # RELIABILITY 31: whole numbers, 2^20 times smaller than their offset
    rows = rng.integers(-8, 9, (1000, 16)).astype(np.float32)
    codewords = rows[:64].copy()
    backend = open_backend("cpu", threads=1)
    codes = []
    for offset in (0, 2**10, -(2**20), 2**23):
        moved = rows + np.float32(offset)
        loaded = backend.load_codebooks({"x": Codebook(codewords + np.float32(offset))})
        codes.append(backend.assign(chunk_of("x", moved), loaded).codes.tolist())
    assert codes[1:] == codes[:1] * 3


def test_two_runs_are_the_same(rng: np.random.Generator) -> None:
    # RELIABILITY 39
    rows, own = rows_of("heavy", rng, 9000, 4), weights_of("wide", rng, 9000)
    backend = open_backend("cpu", threads=3)
    first = cluster(rows, own, 30, max_iter=4, step=5000, backend=backend)
    for _ in range(5):
        assert_clustered_alike(
            first, cluster(rows, own, 30, max_iter=4, step=5000, backend=backend)
        )


def test_global_random_state_is_left_alone(rng: np.random.Generator) -> None:
    # RELIABILITY 44
    rows, own = rows_of("normal", rng, 200, 3), weights_of("whole", rng, 200)
    plain, legacy = random.getstate(), np.random.get_state()
    cluster(rows, own, 5)
    assert random.getstate() == plain
    for before, after in zip(legacy, np.random.get_state(), strict=True):
        assert np.array_equal(before, after)


def test_nothing_given_is_written_to(rng: np.random.Generator) -> None:
    rows, own = rows_of("normal", rng, 200, 3), weights_of("whole", rng, 200)
    assert own is not None
    start = rows[:5].copy()
    before = [rows.tobytes(), own.tobytes(), start.tobytes()]
    cluster(rows, own, 5, initial=start)
    assert [rows.tobytes(), own.tobytes(), start.tobytes()] == before


# Counts and sums of many rows


def test_more_than_2_to_the_24_equal_rows_are_counted() -> None:
    # RELIABILITY 13: float32 counts stall at 2^24
    n = 2**24 + 1
    rows = np.full((n + 2, 1), 3.0, np.float32)
    rows[0] = rows[-1] = -1.0
    # 2^24 + 3 rows of weight 1: P = 2^25 + 6, b = 26, t = 36; max|x| = 3: a = 2, s = 34
    fixed = FixedPoint(62, 36, np.array([2]), False)
    backend = open_backend("cpu", threads=2)
    loaded = backend.load_codebooks({"x": Codebook(column(2, 0), fixed)})
    backend.assign_accumulate(chunk_of("x", rows), loaded)
    found = whole(backend.partials(loaded)["x"])
    assert found.counts == [n, 2]
    assert found.sums == [[3 * n << 34], [-2 << 34]]
    assert found.weight_sums == [n << 36, 2 << 36]


def exact_rows(rng: np.random.Generator, n: int) -> tuple[Float32, Float64]:
    """Rows of one column, and their squares: multiples of 2^-40, whose sum needs 60 bits."""
    rows = np.ldexp(rng.integers(1, 2**23, (n, 1)), -20).astype(np.float32)
    return rows, rows[:, 0].astype(np.float64) ** 2


def test_the_error_of_a_million_rows_is_that_of_fsum(rng: np.random.Generator) -> None:
    # RELIABILITY 8: each term is exact, so the total is rounded once, as math.fsum does it
    rows, squares = exact_rows(rng, 1_000_000)
    backend = open_backend("cpu", threads=2)
    loaded = backend.load_codebooks({"x": Codebook(column(0))})
    sums = ErrorSums()
    for first in range(0, len(rows), 300_001):
        chunk = chunk_of("x", rows[first : first + 300_001])
        distances = backend.assign(chunk, loaded, distances=True).distances
        assert distances is not None
        sums.add(distances, None)
    assert sums.sse == math.fsum(squares.tolist())
    # what the test is there to see
    assert float(np.cumsum(squares, dtype=np.float32)[-1]) != sums.sse
    assert float(np.cumsum(squares)[-1]) != sums.sse


def test_rows_near_the_end_of_float16_do_not_overflow(rng: np.random.Generator) -> None:
    # RELIABILITY 28, 29
    stored = rng.choice([6e4, 5e4, -6e4], (3000, 4)).astype(np.float16)
    rows = np.empty(stored.shape, np.float32)
    open_tables(stored).read("x", 0, rows)
    equal = cluster(np.full((3000, 4), rows.max()), None, 1, initial=column(0).repeat(4, axis=1))
    assert bits(equal.codewords) == bits(np.full((1, 4), np.float16(6e4), np.float32))
    found = cluster(rows, None, 7)
    assert found.iterations <= 25
    assert np.isfinite(found.codewords).all()
    assert np.abs(found.codewords).max() <= np.float16(6e4)
    assert math.isfinite(found.sse)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes_that_hold_the_same_values_give_the_same_bits(
    rng: np.random.Generator, dtype: str
) -> None:
    # RELIABILITY 27, 29, 30
    exact = rng.standard_normal((300, 3)).astype(np.float16)
    rows = np.empty(exact.shape, np.float32)
    open_tables(exact.astype(dtype)).read("x", 0, rows)
    assert_clustered_alike(cluster(rows, None, 5), cluster(exact.astype(np.float32), None, 5))
