"""Clustering of one field: equal to the oracle bit for bit, and to numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import reference
from builders import (
    HUGE,
    ROW_KINDS,
    TINY,
    WEIGHT_KINDS,
    Piece,
    assert_clustered_alike,
    bits,
    chunk_of_pieces,
    chunks_of,
    cluster,
    column,
    rows_of,
    start_fit,
    statistics_of,
    weights_of,
    whole,
)
from saec_gpu.backends import open_backend
from saec_gpu.clustering import sampling, seeding
from saec_gpu.clustering.compiled_loops import limbs_to_float
from saec_gpu.clustering.error import ErrorSums, ExactSum
from saec_gpu.clustering.lloyd import (
    assigned,
    finish_pass,
    fit,
    fit_pass,
    repaired,
    sample_variance,
    squared_shift,
)
from saec_gpu.clustering.sampling import Sampler, random_stream, sample_size, uniforms
from saec_gpu.clustering.seeding import seed_codewords
from saec_gpu.clustering.statistics import fixed_point, total_bits
from saec_gpu.data import Codebook, Float32, Float64, Partial, Sample, Statistics, carry, chunk_of
from saec_gpu.errors import LayoutError, NonFiniteRowError, WeightError

WIDEST = float(np.float32(3e38))  # 0.88… · 2^128
HALF = 1 << 63  # a draw with U = 0.5
EXACT_HALF = ((1 << 52) - 1) << 11  # (raw >> 11) + 1 = 2^52: q = w / 0.5


def assert_as_the_oracle(
    rows: Float32,
    weights: Float64 | None,
    k: int,
    *,
    seed: int = 0,
    tol: float = 1e-4,
    max_iter: int = 25,
    initial: Float32 | None = None,
    step: int | None = None,
    threads: int = 1,
) -> reference.Fit:
    """Fail unless the package clusters a field as the oracle does; return what that is."""
    expected = reference.fit(rows, weights, k, seed, "x", tol, max_iter, initial)
    sse, weighted_sse = reference.errors(rows, weights, expected.codewords, expected.codes)
    found = cluster(
        rows, weights, k, seed=seed, tol=tol, max_iter=max_iter, initial=initial, step=step,
        backend=open_backend("cpu", threads=threads),
    )  # fmt: skip
    assert bits(found.codewords) == bits(expected.codewords)
    assert found.codes.tolist() == expected.codes
    assert (found.iterations, found.stopped) == (expected.iterations, expected.stopped)
    assert (found.sse, found.weighted_sse) == (sse, weighted_sse)
    assert np.isfinite(found.codewords).all()  # RELIABILITY 26
    assert max(expected.codes) < len(found.codewords)  # RELIABILITY 35
    return expected


def assert_statistics_as_the_oracle(
    rows: Float32, weights: Float64 | None, k: int, seed: int, step: int | None
) -> Statistics:
    """Fail unless statistics, sample, exponents and seeds are the oracle's; return the former."""
    found = statistics_of(rows, weights, k, seed=seed, step=step)
    expected = reference.statistics(rows, weights, k)
    assert found.n_rows == expected.n
    assert found.minimum.tolist() == expected.minimum
    assert found.maximum.tolist() == expected.maximum
    assert found.exponents == expected.exponents
    if expected.distinct is None:
        assert found.distinct is None
    else:
        assert found.distinct is not None
        assert bits(found.distinct) == bits(rows[expected.distinct])
    drawn = reference.sample(rows, weights, k, seed, "x")
    assert found.sample.index.tolist() == drawn.index
    assert bits(found.sample.rows) == bits(rows[drawn.index])
    assert found.sample.priority.tolist() == drawn.q
    assert found.sample.weights.tolist() == drawn.omega
    assert sample_variance(found.sample) == reference.variance(drawn, rows)
    ours, exact = fixed_point(found), reference.fixed_point(*expected[3:4], *expected[1:3])
    assert (ours.bits, ours.weight_shift) == (exact.bits, exact.t)
    assert ours.column_exponents.tolist() == exact.a
    assert ours.column_shifts.tolist() == exact.s
    seeds = seed_codewords(open_backend("cpu", threads=1), found.sample, k, seed, "x")
    assert bits(seeds) == bits(reference.seeds(drawn, rows, k, seed, "x"))
    return found


@pytest.mark.parametrize("weights", WEIGHT_KINDS)
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_fields_of_all_kinds(rng: np.random.Generator, kind: str, weights: str) -> None:
    # RELIABILITY 4, 26, 33, 35, 36, 37, 38, 39
    for n in (31, 97):
        dim, k = int(rng.choice([1, 3, 7, 17])), int(rng.choice([1, 2, 5, 9]))
        rows, own = rows_of(kind, rng, n, dim), weights_of(weights, rng, n)
        step = rng.choice([1, 7, 64, n])
        for threads in (1, 2):
            assert_as_the_oracle(
                rows, own, k, seed=int(rng.integers(9)), tol=float(rng.choice([0, 1e-4, 0.1])),
                max_iter=int(rng.choice([1, 3, 25])), step=int(step), threads=threads,
            )  # fmt: skip
        assert_statistics_as_the_oracle(rows, own, k, 3, int(step))


@pytest.mark.parametrize("kind", ["normal", "offset", "repeated", "heavy", "grid"])
def test_fields_from_given_codewords(rng: np.random.Generator, kind: str) -> None:
    # codewords that coincide, that no row takes or that lie far outside: repair is forced
    # RELIABILITY 32
    rows, own = rows_of(kind, rng, 97, 3), weights_of("whole", rng, 97)
    equal = np.repeat(rows[:2], 4, axis=0)
    far = rows[:8] + np.float32(1e7) * (np.arange(8) > 3)[:, None].astype(np.float32)
    for initial in (rows[:8].copy(), equal, far):
        expected = assert_as_the_oracle(rows, own, 8, initial=initial, step=31)
        assert expected.stopped != "distinct"


def test_a_field_much_larger_than_its_sample(rng: np.random.Generator) -> None:
    rows, own = rows_of("heavy", rng, 1025, 3), weights_of("wide", rng, 1025)
    for weights in (None, own):
        expected = assert_as_the_oracle(rows, weights, 3, step=100, threads=2)
        assert expected.stopped != "distinct"
        found = assert_statistics_as_the_oracle(rows, weights, 3, 0, 64)
        assert len(found.sample.index) == 96


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_as_many_rows_as_codewords_or_nearly(rng: np.random.Generator, n: int) -> None:
    # RELIABILITY 37
    for k in range(1, 6):
        assert_as_the_oracle(rows_of("normal", rng, n, 2), None, k)


@hypothesis.settings(max_examples=300)
@hypothesis.given(data=st.data())
def test_fields_of_any_finite_values(data: st.DataObject) -> None:
    # RELIABILITY 26
    n, dim = data.draw(st.integers(1, 14), "n"), data.draw(st.integers(1, 4), "dim")
    number = st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2.0**-23, 1e6, TINY, -TINY, HUGE, -HUGE]),
        st.integers(-3, 3).map(float),
    )
    rows = data.draw(arrays(np.float32, (n, dim), elements=number), "rows")
    weight = st.sampled_from([0.0, 1.0, 3.0, 0.1, 2.0**40, 2.0**60, 2.0**-400, 2.0**400])
    own = data.draw(st.one_of(st.none(), arrays(np.float64, n, elements=weight)), "weights")
    k = data.draw(st.integers(1, 6), "k")
    step = data.draw(st.sampled_from([1, 3, None]), "step")
    assert_as_the_oracle(rows, own, k, seed=data.draw(st.integers(0, 3), "seed"), step=step)
    assert_statistics_as_the_oracle(rows, own, k, 0, step)


@pytest.mark.parametrize("step", [1, 7, 64, None])
@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_and_threads_change_nothing(
    rng: np.random.Generator, step: int | None, threads: int
) -> None:
    # RELIABILITY 4, 39
    rows, own = rows_of("columns", rng, 500, 5), weights_of("wide", rng, 500)
    one = cluster(rows, own, 7)
    other = cluster(rows, own, 7, step=step, backend=open_backend("cpu", threads=threads))
    assert one.iterations > 1
    assert_clustered_alike(one, other)


def test_seed_and_field_name_key_the_draws(rng: np.random.Generator) -> None:
    rows = rows_of("normal", rng, 500, 3)
    for seed, field in [(0, "x"), (1, "x"), (0, "größe"), (2**70, "")]:
        expected = reference.fit(rows, None, 5, seed, field, max_iter=1)
        found = cluster(rows, None, 5, seed=seed, field=field, max_iter=1)
        assert bits(found.codewords) == bits(expected.codewords)
    # RELIABILITY 39
    assert bits(cluster(rows, None, 5).codewords) != bits(cluster(rows, None, 5, seed=1).codewords)


# A. random bits


def philox(key: int, i: int) -> int:
    """Raw draw i of Philox4x64-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405)."""
    mask = (1 << 64) - 1
    counter = [i // 4 + 1, 0, 0, 0]  # NumPy counts up before it generates
    low, high = key & mask, key >> 64
    for _ in range(10):
        p0, p1 = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [
            (p1 >> 64) ^ counter[1] ^ low,
            p1 & mask,
            (p0 >> 64) ^ counter[3] ^ high,
            p0 & mask,
        ]
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return counter[i % 4]


def test_stream_is_philox_keyed_by_purpose_seed_and_field() -> None:
    # SHA-256 of "sample\0" "7\0" "größe", computed with sha256sum
    key = int.from_bytes(bytes.fromhex("574181b4e030f0ec73654c14edbb3827"), "little")
    raws = random_stream("sample", 7, "größe").random_raw(11)
    assert [int(raw) for raw in raws] == [philox(key, i) for i in range(11)]


@pytest.mark.parametrize("i", [0, 1, 3, 4, 5, 97, 2**31 + 1, 2**40 + 3])
def test_draw_i_is_found_by_advance(i: int) -> None:
    # RELIABILITY 11: rows far above 2^31 have draws of their own
    there = random_stream("sample", 0, "x")
    key = there.state["state"]["key"]
    there.advance(i // 4)
    raw = there.random_raw(i % 4 + 1)[i % 4]
    assert int(raw) == philox(int(key[0]) | int(key[1]) << 64, i)


def test_uniforms_keep_53_bits() -> None:
    raw = np.array([0, 2047, HALF, (1 << 64) - 1], np.uint64)
    assert uniforms(raw).tolist() == [0.0, 0.0, 0.5, 1.0 - 2.0**-53]


# B. statistics and fixed point


def test_statistics_by_hand() -> None:
    rows = np.array([[1.0, -0.0], [-3.0, 0.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    found = statistics_of(rows, np.array([1.0, 3.0, 0.5, 0.0]), 2)
    assert found.n_rows == 4
    assert found.minimum.tolist() == [-3.0, 0.0]
    assert found.maximum.tolist() == [1.0, 0.0]
    assert found.exponents == {1: 1, 2: 1, 0: 1}  # 1 = 0.5·2, 3 = 0.75·4, 0.5 = 0.5·1
    assert found.weighted
    assert found.distinct is not None
    assert bits(found.distinct) == bits(rows[:2])  # rows 2 and 3 equal row 0: −0.0 = 0.0


def test_distinct_rows_are_given_up_above_k() -> None:
    # RELIABILITY 33
    rows = column(1, 2, 2, 3)
    for k in (3, 4, 100):
        distinct = statistics_of(rows, None, k).distinct
        assert distinct is not None
        assert bits(distinct) == bits(column(1, 2, 3))
    assert statistics_of(rows, None, 2).distinct is None


@pytest.mark.parametrize("n_distinct", [63, 64, 65, 127, 128, 129, 1000])
def test_many_distinct_rows_are_found_in_order(rng: np.random.Generator, n_distinct: int) -> None:
    # the table of rows seen grows on the way; some rows hash alike in their low bits
    values = rng.permutation(np.arange(n_distinct, dtype=np.float32) * 2.0**-10)
    rows = values[np.concatenate([np.arange(n_distinct), rng.integers(0, n_distinct, 500)])]
    for step in (1, 100, None):
        found = statistics_of(rows.reshape(-1, 1), None, n_distinct, step=step).distinct
        assert found is not None
        assert bits(found) == bits(values.reshape(-1, 1))
        assert statistics_of(rows.reshape(-1, 1), None, n_distinct - 1, step=step).distinct is None


@pytest.mark.parametrize("zeros", [np.zeros(5), -np.zeros(5)])
def test_weights_that_are_all_zero_count_as_none(zeros: Float64) -> None:
    rows = column(1, 2, 3, 4, 5)
    for step in (1, 2, None):
        found, plain = statistics_of(rows, zeros, 2, step=step), statistics_of(rows, None, 2)
        assert found.exponents == {1: 5}
        assert not found.weighted
        assert found.sample.priority.tolist() == plain.sample.priority.tolist()


def test_weights_of_zero_before_the_first_positive_one_stay_zero() -> None:
    rows, weights = column(*range(10)), np.array([0.0] * 9 + [2.0])
    for step in (1, 4, None):
        found = statistics_of(rows, weights, 2, step=step)
        assert found.exponents == {2: 1}
        assert found.sample.index.tolist() == [9]


@pytest.mark.parametrize("bad", [-1.0, -TINY, math.nan, math.inf, 2.0**-401, 1.0000001 * 2.0**400])
def test_weights_out_of_range_are_refused(bad: float) -> None:
    weights = np.array([1.0, 0.0, bad, bad])
    with pytest.raises(WeightError, match=r'row 2 of field "x" has weight .*2\^-400 to 2\^400'):
        statistics_of(column(1, 2, 3, 4), weights, 1)
    with pytest.raises(WeightError, match='row 2 of field "x"'):
        statistics_of(column(1, 2, 3, 4), weights, 1, step=1)


def test_weights_at_the_edges_of_the_range_are_taken() -> None:
    found = statistics_of(column(1, 2), np.array([2.0**-400, 2.0**400]), 0)
    assert found.exponents == {-399: 1, 401: 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_refused(bad: float) -> None:
    # RELIABILITY 24
    rows = np.array([[1, 2], [3, 4], [5, bad], [bad, 0]], np.float32)
    with pytest.raises(NonFiniteRowError, match=r'row 2 of field "x" .* not finite'):
        statistics_of(rows, None, 1)
    with pytest.raises(NonFiniteRowError, match='row 2 of field "x"'):
        statistics_of(rows, None, 1, step=1)


def plain_statistics(
    exponents: dict[int, int], minimum: Sequence[float], maximum: Sequence[float]
) -> Statistics:
    """Statistics that hold only what the exponents are made of."""
    low, high = np.array(minimum, np.float32), np.array(maximum, np.float32)
    nothing = Sample(
        np.zeros(0, np.int64), np.zeros((0, len(low)), np.float32), np.zeros(0), np.zeros(0)
    )
    return Statistics(sum(exponents.values()), low, high, exponents, True, None, nothing)


def test_fixed_point_of_columns_of_different_scale() -> None:
    # weights 1, 3, 0.5: P = 2 + 4 + 1 = 7, b = 3; b − e_min = 3: 62 bits, t = 59.
    # 2^19 < 1e6 < 2^20: a = 20. 2^-14 < 1e-4 < 2^-13: a = −13. Zeros: a = 0.
    found = fixed_point(plain_statistics({1: 1, 2: 1, 0: 1}, [-1e6, 0, 0], [5, 1e-4, 0]))
    assert (found.bits, found.weight_shift, found.wide) == (62, 59, False)
    assert found.column_exponents.tolist() == [20, -13, 0]
    assert found.column_shifts.tolist() == [39, 72, 59]


def test_fixed_point_of_exact_powers_of_two() -> None:
    assert total_bits({1: 4}) == 3  # four weights of 1: P = 4·2 = 2^3
    assert total_bits({1: 5}) == 4  # P = 10
    assert total_bits({-399: 1}) == -399
    assert total_bits({401: 2**40}) == 441
    assert total_bits({1: 1, 38: 1}) == 39  # 2 + 2^38
    found = fixed_point(plain_statistics({1: 4}, [-1.0, -0.5], [0.0, 0.99]))
    assert found.column_exponents.tolist() == [1, 0]
    extremes = fixed_point(plain_statistics({1: 1}, [-TINY, -HUGE], [0.0, 0.0]))
    assert extremes.column_exponents.tolist() == [-148, 128]


def test_fixed_point_is_wide_above_38() -> None:
    # 1 and 2^37: P = 2 + 2^38, b = 39, b − 1 = 38. 1 and 2^38: b = 40, b − 1 = 39.
    narrow = fixed_point(plain_statistics({1: 1, 38: 1}, [0], [1]))
    wide = fixed_point(plain_statistics({1: 1, 39: 1}, [0], [1]))
    assert (narrow.bits, narrow.weight_shift, narrow.wide) == (62, 23, False)
    assert (wide.bits, wide.weight_shift, wide.wide) == (94, 54, True)


def accumulated(
    rows: Float32, weights: Float64 | None, codes: Sequence[int], k: int
) -> tuple[Statistics, Partial]:
    """The package's statistics of a field, and its partial of given codes."""
    found = statistics_of(rows, weights, 0)
    backend = open_backend("cpu", threads=1)
    words = np.zeros((k, rows.shape[1]), np.float32)
    loaded = backend.load_codebooks({"x": Codebook(words, fixed_point(found))})
    backend.accumulate(chunk_of("x", rows, weights), np.array(codes, np.uint32), loaded)
    return found, backend.partials(loaded)["x"]


def test_sums_of_columns_of_different_scale() -> None:
    # f32(1e-4) = 13743895 · 2^-37. Two rows of weight 1: P = 4, b = 2, t = 60, s = (40, 73).
    rows = np.array([[1e6, 1e-4], [-3.0, 1e-4]], np.float32)
    _, found = accumulated(rows, None, [0, 0], 2)
    expected = reference.Partial([[999_997 << 40, 13743895 << 37], [0, 0]], [2 << 60, 0], [2, 0])
    assert whole(found) == expected


def test_terms_are_rounded_half_to_even() -> None:
    # eight rows: P = 16, b = 4, t = 58; max|x| = 1: a = 1, s = 57. A unit is 2^-57.
    units = [2.0**57, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.75]
    found, partial = accumulated(column(*[u * 2.0**-57 for u in units]), None, list(range(8)), 8)
    assert fixed_point(found).column_shifts.tolist() == [57]
    assert [row[0] for row in whole(partial).sums] == [2**57, 0, 2, 2, 0, -2, -2, 1]


def test_wide_sums_hold_weights_of_1_and_2_to_the_60() -> None:
    # weights 1, 2^60, 2^60: P = 2 + 2·2^61, b = 63; b − 1 > 38: wide, t = 31. max 1: a = 1, s = 30.
    rows, weights = column(1.0, 0.5, -0.5), np.array([1.0, 2.0**60, 2.0**60])
    _, partial = accumulated(rows, weights, [0, 0, 0], 1)
    # terms 2^30, 2^89, −2^89: the small one survives. Weights 2^31 + 2·2^91.
    assert whole(partial) == reference.Partial([[2**30]], [2**92 + 2**31], [3])
    assert partial.sums.tolist() == [[0]]
    assert partial.sums_low is not None
    assert partial.sums_low.tolist() == [[2**30]]
    # float64 of the weight sum is 2^92: 2^30 / 2^92 · 2 = 2^-61
    assert bits(update_once(rows, weights, column(9), [0, 0, 0])) == bits(column(2.0**-61))
    # negative totals have a low limb from 0, too
    _, negative = accumulated(column(-1.0, 0.5, -0.5), weights, [0, 0, 0], 1)
    assert whole(negative).sums == [[-(2**30)]]
    assert negative.sums.tolist() == [[-1]]


@pytest.mark.parametrize(
    ("high", "low", "carried"),
    [
        (0, 2**32, (1, 0)),
        (5, 2**62 + 7, (5 + 2**30, 7)),
        (-1, 2**32 - 1, (-1, 2**32 - 1)),
        (-1, 2**32 + 1, (0, 1)),
        (3, -1, (2, 2**32 - 1)),
    ],
)
def test_carry_keeps_the_value(high: int, low: int, carried: tuple[int, int]) -> None:
    found = carry(np.array([high]), np.array([low]))
    assert (int(found[0][0]), int(found[1][0])) == carried
    assert carried[0] * 2**32 + carried[1] == high * 2**32 + low


def test_partials_add_with_carry() -> None:
    def partial(value: int) -> Partial:
        high, low = np.array([[value >> 32]]), np.array([[value & (2**32 - 1)]])
        return Partial(high, high[0], np.array([1]), low, low[0])

    # 2^32 − 1 and 1; values of both signs; near the room of 94 bits
    for a, b in [(2**32 - 1, 1), (-1, 1), (-(2**80) - 1, 2**80), (2**93 - 1, 1 - 2**93), (-7, -9)]:
        assert whole(partial(a) + partial(b)) == reference.Partial([[a + b]], [a + b], [2])
    narrow = Partial(np.array([[5]]), np.array([2]), np.array([1]))
    assert whole(narrow + narrow) == reference.Partial([[10]], [4], [2])


def test_partials_of_different_fits_do_not_add() -> None:
    one = Partial(np.zeros((2, 3), np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64))
    other = Partial(np.zeros((3, 2), np.int64), np.zeros(3, np.int64), np.zeros(3, np.int64))
    limbs = Partial(one.sums, one.weight_sums, one.counts, one.sums, one.weight_sums)
    for a, b in [(one, other), (one, limbs), (limbs, one)]:
        with pytest.raises(LayoutError, match="must belong to one fit of one field"):
            a + b


def floats_of(values: Sequence[int]) -> list[float]:
    """float64 of integers, through two limbs."""
    high, low = np.array([v >> 32 for v in values]), np.array([v & (2**32 - 1) for v in values])
    out = np.full(len(values), np.nan)
    limbs_to_float(high, low, out)
    return [float(x) for x in out]


def test_float64_of_limbs_is_rounded_once() -> None:
    values = [0, 1, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**53 + 3, 2**63 - 1, 2**63, 2**64 - 1]
    values += [2**64, 2**64 + 2**11, 2**64 + 2**11 + 1, 2**64 + 3 * 2**11, 2**93 - 1, 2**93]
    for power in range(54, 94):
        half = 1 << (power - 53)  # half a unit in the last place of 2^power
        for odd in (0, 1, 2, 3):  # ties go down and up, to the even one
            base = (1 << power) + odd * 2 * half
            values += [base + half, base + half + 1, base + half - 1]
    values += [-v for v in values]
    # Python's int to float rounds once, half to even
    assert floats_of(values) == [float(v) for v in values]


@hypothesis.given(
    st.lists(st.integers(-(2**94), 2**94).flatmap(lambda v: st.sampled_from([v, v >> 30, v >> 45])))
)
def test_float64_of_any_limbs(values: list[int]) -> None:
    assert floats_of(values) == [float(v) for v in values]


# C. sample


class Draws:
    """Stands in for Philox: known raw draws."""

    def __init__(self, raws: Sequence[int]) -> None:
        self.raws = list(raws)

    def advance(self, counters: int) -> None:
        self.raws = self.raws[4 * counters :]

    def random_raw(self, n: int) -> NDArray[np.uint64]:
        taken, self.raws = self.raws[:n], self.raws[n:]
        return np.array(taken, dtype=np.uint64)


def sampled(
    monkeypatch: pytest.MonkeyPatch,
    raws: Sequence[int],
    weights: Float64 | None,
    *,
    k: int = 1,
    step: int | None = None,
) -> Sample:
    """The package's sample of rows 0, 1, 2, … of one column with known draws."""
    monkeypatch.setattr(sampling, "random_stream", lambda *_: Draws(raws))
    sampler = Sampler(sample_size(len(raws), k), 1, 0, "x")
    rows = column(*range(len(raws)))
    for chunk in chunks_of([Piece("x", rows, weights)], step):
        (segment,) = chunk.layout.segments
        sampler.add(segment.start, chunk.rows(segment), chunk.weights)
    return sampler.sample()


STEPS = [1, 2, 3, 5, 7, 33, None]


@pytest.mark.parametrize("step", STEPS)
def test_sample_takes_the_greatest_priorities(
    monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    # q = 2w = 2, 4, …, 68; m = 32 of 34 rows: rows 2 … 33, τ = q of row 1 = 4.
    found = sampled(monkeypatch, [EXACT_HALF] * 34, np.arange(1.0, 35.0), step=step)
    assert found.index.tolist() == list(range(2, 34))
    assert found.rows[:, 0].tolist() == list(range(2, 34))
    assert found.weights.tolist() == [4.0, 4.0, *range(5, 35)]  # max(3, 4), max(4, 4), 5, …
    assert found.priority.tolist() == list(range(6, 70, 2))


@pytest.mark.parametrize("step", STEPS)
def test_sample_of_all_rows_but_one_has_a_threshold(
    monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    found = sampled(monkeypatch, [EXACT_HALF] * 33, np.arange(1.0, 34.0), step=step)
    assert found.index.tolist() == list(range(1, 33))
    assert found.weights.tolist() == list(range(2, 34))  # τ = 2
    found = sampled(monkeypatch, [EXACT_HALF] * 32, np.arange(1.0, 33.0), step=step)
    assert found.index.tolist() == list(range(32))
    assert found.weights.tolist() == list(range(1, 33))  # no (m + 1)-th: τ = 0


@pytest.mark.parametrize("step", STEPS)
def test_sample_gives_ties_to_the_lower_row(
    monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    # Draws of rows 0 and 99 make q = 2^53; the other 98 have q = 2.
    found = sampled(monkeypatch, [0, *[EXACT_HALF] * 98, 0], None, step=step)
    assert found.index.tolist() == [*range(31), 99]
    assert found.weights.tolist() == [2.0] * 32
    # all alike
    found = sampled(monkeypatch, [EXACT_HALF] * 100, None, step=step)
    assert found.index.tolist() == list(range(32))
    # the greater half comes last, so that earlier ties are pushed out one by one
    raws = [EXACT_HALF] * 80 + [0] * 20
    found = sampled(monkeypatch, raws, None, step=step)
    assert found.index.tolist() == [*range(12), *range(80, 100)]


@pytest.mark.parametrize("step", STEPS)
def test_sample_of_few_positive_weights_holds_them_all(
    monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    weights = np.array([0.0] * 37 + [3.0, 1.0, 2.0])
    found = sampled(monkeypatch, [EXACT_HALF] * 40, weights, step=step)
    assert found.index.tolist() == [37, 38, 39]
    assert found.weights.tolist() == [3.0, 1.0, 2.0]
    assert found.priority.tolist() == [6.0, 2.0, 4.0]


def test_sample_divides_by_the_upper_53_bits_plus_one(monkeypatch: pytest.MonkeyPatch) -> None:
    raws = [0, EXACT_HALF, (1 << 64) - 1, (3 << 62) - (1 << 11)]
    found = sampled(monkeypatch, raws, np.array([3.0, 3.0, 3.0, 1.0]), k=4)
    assert found.priority.tolist() == [3.0 * 2.0**53, 6.0, 3.0, 1.0 / 0.75]


def test_sample_is_of_its_stream_and_of_no_chunk(rng: np.random.Generator) -> None:
    # RELIABILITY 39
    rows, own = rows_of("normal", rng, 1000, 2), weights_of("wide", rng, 1000)
    for weights in (None, own):
        expected = reference.sample(rows, weights, 3, 5, "item")
        for step in (1, 7, 64, 999, None):
            found = statistics_of(rows, weights, 3, seed=5, field="item", step=step).sample
            assert found.index.tolist() == expected.index
            assert found.weights.tolist() == expected.omega
            assert found.priority.tolist() == expected.q


@pytest.mark.parametrize(
    ("n", "k", "m"),
    [
        (10, 3, 10),
        (1_000_000, 1, 32),
        (1_000_000, 4096, 131_072),
        (1_000_000, 5000, 131_072),  # 32 · 4096 > 2 · 5000
        (1_000_000, 70_000, 140_000),
        (2**40, 2**20, 2**21),
    ],
)
def test_sample_size(n: int, k: int, m: int) -> None:
    assert sample_size(n, k) == m


# D. seeds


def sample_of(rows: Float32, omega: Sequence[float] | None = None) -> Sample:
    """A sample that holds every row."""
    weights = np.ones(len(rows)) if omega is None else np.array(omega, np.float64)
    return Sample(np.arange(len(rows)), rows, np.ones(len(rows)), weights)


@pytest.mark.parametrize(
    ("rows", "omega", "raws", "expected"),
    [
        # c = 1, 2, 3; U·c_last = 1.5: row 1. dist = 1, 0, 4: c = 1, 1, 5; 2.5: row 2.
        # dist = 1, 0, 0: c = 1, 1, 1; 0.5: row 0. dist = 0: ends at three of four.
        ([0, 1, 3], [1, 1, 1], [HALF] * 4, [1, 3, 0]),
        # ω = 1, 1, 2: c = 1, 2, 4; U·c_last = 2 is not exceeded by c_1 = 2: row 2.
        # dist to 5 = 25, 4, 0: c = 25, 29, 29; U = 0: c_0 = 25 > 0: row 0.
        ([0, 3, 5], [1, 1, 2], [HALF, 0], [5, 0]),
        # U = 0: row 0. Then dist = 0, 9: c = 0, 9: c_0 = 0 is not above 0.
        ([2, 5], [1, 1], [0, 0], [2, 5]),
        # U = 0: row 0. ω·dist = 0, 8, 4: c = 0, 8, 12; 6 < 8: row 1 (unweighted it is row 2).
        ([0, 1, 2], [1, 8, 1], [0, HALF], [0, 1]),
        # the greatest U is below 1, so the last row is the last that can be taken
        ([7, 8], [1, 1], [(1 << 64) - 1] * 2, [8, 7]),
        # equal rows: one seed
        ([4, 4, 4], [1, 1, 1], [HALF] * 3, [4]),
        # bits are copied
        ([-0.0, 1], [1, 1], [0, 0], [-0.0, 1]),
        # distances of subnormals do not vanish
        ([0, TINY, 3 * TINY], [1, 1, 1], [0, HALF, HALF], [0, 3 * TINY, TINY]),
    ],
)
def test_seeds_by_hand(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[float],
    omega: list[float],
    raws: list[int],
    expected: list[float],
) -> None:
    monkeypatch.setattr(seeding, "random_stream", lambda *_: Draws(raws))
    backend = open_backend("cpu", threads=1)
    found = seed_codewords(backend, sample_of(column(*rows), omega), len(raws), 0, "x")
    assert bits(found) == bits(column(*expected))


@pytest.mark.parametrize(
    ("rows", "omega", "raws", "expected"),
    [
        # One by one row 0 is taken; ω·dist = 0, 1, 9, 16, 0. All U are alike: of the round of one,
        # row 3. Then ω·dist = 0, 1, 1, 0, 0: of the round of two, rows 1 and 2.
        ([0, 1, 3, 4, 0], [1] * 5, [HALF] * 10, [0, 4, 1, 3]),
        # ties to the lower row
        ([0, 1, -1], [1] * 3, [HALF] * 6, [0, 1, -1]),
        # q = (0, 1, 1) / ((raw >> 11) + 1)·2⁻⁵³ with raws of HALF, HALF and HALF − 1: row 2
        ([0, 1, -1], [1] * 3, [HALF, HALF, HALF - 1], [0, -1]),
        # ω counts: 8·1 is above 4
        ([0, 1, 2], [1, 8, 1], [HALF] * 3, [0, 1]),
        # equal rows may come of one round; what is met does not come again
        ([0, 5, 5, 5], [1] * 4, [HALF] * 12, [0, 5]),
        ([0, 9, 5, 5], [1] * 4, [HALF] * 12, [0, 9, 5, 5]),
    ],
)
def test_rounds_by_hand(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[float],
    omega: list[float],
    raws: list[int],
    expected: list[float],
) -> None:
    monkeypatch.setattr(seeding, "MOST_DRAWN", 1)
    streams = {"seed": Draws([0]), "rounds": Draws(raws)}
    monkeypatch.setattr(seeding, "random_stream", lambda purpose, *_: streams[purpose])
    n_rounds = len(raws) // len(rows)
    asked = min(2**n_rounds, len(rows))
    backend = open_backend("cpu", threads=1)
    found = seed_codewords(backend, sample_of(column(*rows), omega), asked, 0, "x")
    assert bits(found) == bits(column(*expected))


@pytest.mark.parametrize("weights", ["none", "whole", "wide"])
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_rounds_as_the_oracle(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str, weights: str
) -> None:
    rows, own = rows_of(kind, rng, 150, 5), weights_of(weights, rng, 150)
    sample = statistics_of(rows, own, 60).sample
    theirs = reference.sample(rows, own, 60, 0, "x")
    monkeypatch.setattr(seeding, "MOST_DRAWN", 3)
    monkeypatch.setattr(reference, "SEED_LIMIT", 3)
    assert sample.index.tolist() == theirs.index
    for k in (4, 6, 7, 60):
        for threads in (1, 2):
            found = seed_codewords(open_backend("cpu", threads=threads), sample, k, 0, "x")
            assert bits(found) == bits(reference.seeds(theirs, rows, k, 0, "x"))


def test_a_field_of_more_than_4096_codewords(rng: np.random.Generator) -> None:
    # RELIABILITY 47, in part: k-means++ ends at 4096, behind it the rounds decide
    rows, own = rows_of("normal", rng, 132_000, 1), weights_of("whole", rng, 132_000)
    expected = reference.sample(rows, own, 4097, 0, "x")
    sample = statistics_of(rows, own, 4097, step=50_000).sample
    assert sample.index.tolist() == expected.index
    assert sample.weights.tolist() == expected.omega
    backend = open_backend("cpu", threads=2)
    drawn = seed_codewords(backend, sample, 4096, 0, "x")
    found = seed_codewords(backend, sample, 5000, 0, "x")
    assert bits(found[:4096]) == bits(drawn)
    words = np.sort(drawn[:, 0].astype(np.float64))
    x = sample.rows[:, 0].astype(np.float64)
    place = np.clip(np.searchsorted(words, x), 1, len(words) - 1)
    chances = sample.weights * np.minimum(
        np.square(x - words[place - 1]), np.square(x - words[place])
    )
    raws = reference.stream("rounds", 0, "x").random_raw(len(x))
    q = [reference.priority(float(p), int(raw)) for p, raw in zip(chances, raws, strict=True)]
    ranked = sorted(range(len(x)), key=lambda i: (-q[i], i))
    assert bits(found[4096:]) == bits(sample.rows[ranked[:904]])


def test_rounds_reach_what_the_rows_of_greatest_priority_leave_out() -> None:
    # Why DEFINITIONS D takes rounds above 4096: half of the groups hold 31 of 32 rows, and so most
    # rows of greatest priority. The rows alone say which groups still lack a codeword.
    generator = np.random.default_rng(3)
    middles = 100 * generator.standard_normal((6000, 2))
    groups = np.repeat(np.arange(6000), np.where(np.arange(6000) < 3000, 31, 1))
    rows = (middles[groups] + generator.standard_normal((len(groups), 2))).astype(np.float32)
    sample = statistics_of(rows, None, 6000).sample
    backend = open_backend("cpu", threads=2)

    def error(seeds: Float32) -> float:
        distances = assigned(backend, sample.rows, seeds, None).distances
        assert distances is not None
        return float(sample.weights @ distances)

    by_priority = sample.rows[np.lexsort((sample.index, -sample.priority))[:6000]]
    found = seed_codewords(backend, sample, 6000, 0, "x")
    assert 2 * error(found) < error(by_priority)


def test_seeds_end_where_all_rows_are_met(rng: np.random.Generator) -> None:
    rows = np.repeat(rng.permutation(4200), 2)[:, None].astype(np.float32)
    sample = sample_of(rows)
    found = seed_codewords(open_backend("cpu", threads=1), sample, 8000, 0, "x")
    assert len(np.unique(found)) == 4200 <= len(found) <= 4096 + 2 * 104


# E. update


def update_once(
    rows: Float32,
    weights: Float64 | None,
    codewords: Float32,
    codes: Sequence[int],
    sample: Sample | None = None,
) -> Float32:
    """The codewords after one update and repair of given codes, with the field's own statistics."""
    statistics, partial = accumulated(rows, weights, codes, len(codewords))
    own = sample_of(rows) if sample is None else sample
    one = start_fit(
        Statistics(
            statistics.n_rows, statistics.minimum, statistics.maximum, statistics.exponents,
            statistics.weighted, None, own,
        ),
        codewords,
    )  # fmt: skip
    finish_pass(open_backend("cpu", threads=1), one, partial, tol=0.0, max_iter=25)
    return one.codewords


FOUR = np.array([[0, 0], [0, 2], [8, 0], [8, 2]], np.float32)


def test_update_of_four_points() -> None:
    start = FOUR[[0, 2]]
    found = update_once(FOUR, None, start, [0, 0, 1, 1])
    assert bits(found) == bits(np.array([[0, 1], [8, 1]], np.float32))
    # weights 1, 3, 1, 7: (0·1 + 2·3) / 4 and (0·1 + 2·7) / 8
    found = update_once(FOUR, np.array([1.0, 3.0, 1.0, 7.0]), start, [0, 0, 1, 1])
    assert bits(found) == bits(np.array([[0, 1.5], [8, 1.75]], np.float32))


@pytest.mark.parametrize(
    ("rows", "codes", "expected"),
    [
        # no −0.0, neither from rows nor from a mean of −2^-151 that rounds to it
        ([-0.0, -0.0], [0, 0], [0.0]),
        ([-TINY, 0, 0, 0], [0, 0, 0, 0], [0.0]),
        # subnormal means of (1, 3), (1, 2), (2, 3) units: 2, 1.5 → 2, 2.5 → 2
        ([TINY, 3 * TINY, TINY, 2 * TINY, 2 * TINY, 3 * TINY], [0, 0, 1, 1, 2, 2], [2 * TINY] * 3),
        # three rows whose float32 sum would be infinite
        ([WIDEST, WIDEST, WIDEST, -WIDEST], [0, 0, 0, 1], [WIDEST, -WIDEST]),
    ],
)
def test_update_at_the_ends_of_float32(
    rows: list[float], codes: list[int], expected: list[float]
) -> None:
    # RELIABILITY 26
    start = np.zeros((len(expected), 1), np.float32)
    assert bits(update_once(column(*rows), None, start, codes)) == bits(column(*expected))


def test_update_of_columns_of_different_scale() -> None:
    # 999997 / 2, and 1e-4 to the last bit: a common exponent would leave nothing of it
    rows = np.array([[1e6, 1e-4], [-3.0, 1e-4]], np.float32)
    found = update_once(rows, None, np.zeros((1, 2), np.float32), [0, 0])
    assert bits(found) == bits(np.array([[499998.5, 1e-4]], np.float32))


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        # P = 2 + 2^93, b = 94, wide, t = 0; 3e38 has a = 128. Row 1: weight 1 unit, term
        # rint(±0.88) = ±1 unit: ±1 / 1 · 2^128 would be infinite in float32.
        ([-WIDEST, WIDEST], [2.0**92, 1.0]),
        ([WIDEST, -WIDEST], [2.0**92, 1.0]),
        # finite, too: 0.75 → 1 unit · 2^0 = 1, held at 0.75
        ([0.5, 0.75], [2.0**92, 1.0]),
        ([-0.5, -0.75], [2.0**92, 1.0]),
    ],
)
def test_update_is_held_within_the_range_of_the_column(
    values: list[float], weights: list[float]
) -> None:
    rows = column(*values)
    found = update_once(rows, np.array(weights), column(0, 1), [0, 1])
    assert bits(found) == bits(rows)


def test_a_weight_sum_of_no_units_is_empty() -> None:
    # weights 2^92 and 0.5: P = 2^93 + 1, b = 94, t = 0: rint(0.5) = 0 units. Codeword 1 is refilled
    # with the row of greatest ω·dist to codeword 0 = 4: row 1.
    rows = column(4, 1)
    found = update_once(rows, np.array([2.0**92, 0.5]), column(3, 9), [0, 1])
    assert bits(found) == bits(rows)


# F. repair


@pytest.mark.parametrize(
    ("rows", "omega", "start", "expected"),
    [
        # mean 103 / 4 = 25.75; dist 25.75², 24.75², 23.75², 74.25²: row 3
        ([0, 1, 2, 100], None, [1, 1000], [25.75, 100]),
        # mean 40.8: row 4, then row 3 is at 1 of it, and row 0 at 40.8² is the worst
        ([0, 1, 2, 100, 101], None, [1, 1000, 2000], [40.8, 101, 0]),
        # old values of empty codewords serve no row, though 100 and 0.5 are rows or near them
        ([0, 1, 2, 100], None, [1, 100], [25.75, 100]),
        ([0, 1, 2, 100], None, [1, 99.5, 0.5], [25.75, 100, 0]),
        # all rows are served: what is empty keeps its bits
        ([3, 3, 3], None, [3, 7, -0.0], [3, 7, -0.0]),
        # 2.5: dist 306.25, 6.25, 156.25, 56.25; ω = 1, 1, 2, 1: 306.25 < 312.5: row 2
        ([-15, 0, 15, 10], [1, 1, 2, 1], [0, 77], [2.5, 15]),
        # ±15 around 0: equal g, row 0
        ([-15, 0, 15, 0], None, [0, 77], [0, -15]),
    ],
)
def test_repair_by_hand(
    rows: list[float], omega: list[float] | None, start: list[float], expected: list[float]
) -> None:
    # RELIABILITY 7, 32
    table = column(*rows)
    found = update_once(table, None, column(*start), [0] * len(rows), sample_of(table, omega))
    assert bits(found) == bits(column(*expected))


def test_repair_goes_up_the_empty_codewords() -> None:
    # live is codeword 1 alone: 0 gets the worst row, then 2
    rows = column(0, 1, 2, 100, 101)
    found = update_once(rows, None, column(1000, 1, 2000), [1] * 5)
    assert bits(found) == bits(column(101, 40.8, 0))


def test_repair_looks_at_the_sample_only() -> None:
    # row 3 at 100 is not in the sample; row 0 is worst of rows 0 to 2 around 25.75
    rows = column(0, 1, 2, 100)
    found = update_once(rows, None, column(1, 1000), [0] * 4, sample_of(rows[:3]))
    assert bits(found) == bits(column(25.75, 0))


def test_repair_copies_bits() -> None:
    # mean of row 1 alone is 5; row 0 has weight 0 and code 1, so codeword 1 is empty
    rows = column(-0.0, 5)
    assert bits(update_once(rows, np.array([0.0, 1.0]), column(9, 7), [1, 0])) == bits(
        column(5, -0.0)
    )


def test_repair_is_the_brute_force_one(rng: np.random.Generator) -> None:
    # RELIABILITY 7, 32
    backend = open_backend("cpu", threads=1)
    for kind in ROW_KINDS:
        rows, omega = rows_of(kind, rng, 65, 3), rng.uniform(0.1, 9.0, 65)
        codewords = rows_of(kind, rng, 9, 3)
        empty = np.sort(rng.choice(9, 4, replace=False))
        found = repaired(backend, codewords, empty, sample_of(rows, omega.tolist()))
        expected, live = codewords.copy(), [c for c in range(9) if c not in empty]
        for c in empty:
            _, least = reference.assign(rows, expected[live])
            g = [o * d for o, d in zip(omega.tolist(), least, strict=True)]
            if max(g) > 0:
                expected[c] = rows[g.index(max(g))]
                live.append(int(c))
        assert bits(found) == bits(expected)


# G. stop, order, last assignment


def test_variance_by_hand() -> None:
    # means (4, 1); (4·16 + 4·1) / 4 / 2 = 8.5
    assert sample_variance(sample_of(FOUR)) == 8.5
    # ω = 3, 1 on 0, 4: mean 1; (3·1 + 1·9) / 4 = 3
    assert sample_variance(sample_of(column(0, 4), [3, 1])) == 3.0
    # columns sum to 2 and 2·2^-52; added row by row 2^-52 would be lost twice (ties to even at 2)
    f = 2.0**-26
    rows = np.array([[1, 0], [-1, 0], [0, f], [0, -f]], np.float32)
    assert sample_variance(sample_of(rows)) == (2.0 + 2.0**-51) / 8


def test_shift_adds_codewords_that_are_summed_alone() -> None:
    # 1, then 3 · 2^-54 together: 1.5 · 2^-53 rounds up; one by one they would be lost
    e = 2.0**-27
    new = np.array([[1, 0, 0], [e, e, e]], np.float32)
    assert squared_shift(new, np.zeros((2, 3), np.float32)) == 1.0 + 2.0**-52


@pytest.mark.parametrize(
    ("tol", "max_iter", "iterations", "stopped"),
    [
        # pass 1: codewords (0,1), (8,1), shift 2 > 1e-4 · 8.5; pass 2: shift 0
        (1e-4, 25, 2, "shift"),
        (0.0, 25, 2, "shift"),
        (1e-4, 1, 1, "max_iter"),
        (1e-4, 2, 2, "shift"),  # at the limit both rules hold: the shift is named
        (2 / 8.5, 25, 1, "shift"),  # 2/8.5 rounds up: equal is enough
        (0.235, 25, 2, "shift"),
    ],
)
def test_fit_of_four_points(tol: float, max_iter: int, iterations: int, stopped: str) -> None:
    found = cluster(FOUR, None, 2, tol=tol, max_iter=max_iter, initial=FOUR[[0, 2]])
    assert bits(found.codewords) == bits(np.array([[0, 1], [8, 1]], np.float32))
    assert found.codes.tolist() == [0, 0, 1, 1]
    assert (found.iterations, found.stopped) == (iterations, stopped)
    assert (found.sse, found.weighted_sse) == (4.0, 4.0)


def test_fit_stops_on_a_shift_equal_to_the_threshold() -> None:
    # columns ±4, ±2: V = (4·16 + 4·4) / 4 / 2 = 10; shift of pass 1 is 2² + 2² = 8 = 0.8 · 10
    rows = np.array([[-4, -2], [-4, 2], [4, -2], [4, 2]], np.float32)
    assert cluster(rows, None, 2, tol=0.8, initial=rows[[0, 2]]).iterations == 1
    less = float(np.nextafter(0.8, 0))
    assert cluster(rows, None, 2, tol=less, initial=rows[[0, 2]]).iterations == 2


@pytest.mark.parametrize(
    ("rows", "weights", "max_iter", "start", "codewords", "codes"),
    [
        # by rows, not by weight
        ([0, 1, 10, 11, 12], [9, 9, 1, 1, 1], 25, [0, 10], [11, 0.5], [1, 1, 0, 0, 0]),
        # by the last fit pass: 0, 1 → 0 and 7, 8, 60 → 9; update 0.5 and 25; order 25, 0.5; the
        # last assignment moves 7 and 8 and changes no order
        ([0, 1, 7, 8, 60], None, 1, [0, 9], [25, 0.5], [1, 1, 1, 1, 0]),
        # an empty codeword is refilled: 25.75 and 100, then 1 and 100
        ([0, 1, 2, 100], None, 25, [1, 1000], [1, 100], [0, 0, 0, 1]),
        # rows of weight 0 keep their code, and their codeword its value: it has the most rows
        ([5, 6, 7], [1, 0, 0], 25, [5, 6], [6, 5], [1, 0, 0]),
        # a codeword that no row takes stays
        ([5, 6, 4], [1, 0, 0], 25, [100, 5], [5, 100], [0, 0, 0]),
        # equal counts keep the order
        ([0, 1, 10, 11], None, 25, [10, 0], [10.5, 0.5], [1, 1, 0, 0]),
    ],
)
def test_order_and_last_assignment(
    rows: list[float],
    weights: list[float] | None,
    max_iter: int,
    start: list[float],
    codewords: list[float],
    codes: list[int],
) -> None:
    own = None if weights is None else np.array(weights, np.float64)
    found = cluster(column(*rows), own, 2, max_iter=max_iter, initial=column(*start))
    assert bits(found.codewords) == bits(column(*codewords))
    assert found.codes.tolist() == codes


def test_one_seed_is_found_where_one_row_has_weight() -> None:
    found = cluster(column(5, 6, 7), np.array([1.0, 0.0, 0.0]), 2)
    assert bits(found.codewords) == bits(column(5))
    assert found.codes.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "k", "codewords", "codes"),
    [
        ([-0.0, 2, 0.0, 2, 1], 3, [-0.0, 2, 1], [0, 1, 0, 1, 2]),
        ([1e-4] * 9, 4, [1e-4], [0] * 9),
        ([WIDEST], 1, [WIDEST], [0]),
    ],
)
def test_few_distinct_rows_are_the_codewords(
    rows: list[float], k: int, codewords: list[float], codes: list[int]
) -> None:
    # RELIABILITY 33, 37
    found = cluster(column(*rows), None, k)
    assert bits(found.codewords) == bits(column(*codewords))
    assert found.codes.tolist() == codes
    assert (found.iterations, found.stopped, found.sse) == (0, "distinct", 0.0)


def test_fields_stop_one_by_one(rng: np.random.Generator) -> None:
    # each freezes in the pass in which its own rule fires, and is not looked at again
    backend = open_backend("cpu", threads=2)
    tables = {f"{n} rows": rows_of("normal", rng, n, 3) for n in (20, 400, 90)}
    tables["four"] = np.pad(FOUR, ((0, 0), (0, 1)))
    fits = {}
    for name, rows in tables.items():
        statistics = statistics_of(rows, None, 3, field=name)
        fits[name] = start_fit(statistics, seed_codewords(backend, statistics.sample, 3, 0, name))
    asked: list[list[str]] = []

    def after_pass(rechecked: object) -> None:
        asked.append([name for name, one in fits.items() if one.iterations == len(asked) + 1])

    chunk = chunk_of_pieces([Piece(name, rows) for name, rows in tables.items()])
    fit(backend, lambda _: [chunk], fits, tol=1e-4, max_iter=25, after_pass=after_pass)
    assert len({one.iterations for one in fits.values()}) > 1
    for name, rows in tables.items():
        expected = reference.fit(rows, None, 3, field=name)
        assert bits(fits[name].ordered()) == bits(expected.codewords)
        assert (fits[name].iterations, fits[name].stopped) == expected[2:4]
        assert [name in names for names in asked] == [
            number < expected.iterations for number in range(len(asked))
        ]


def test_a_pass_counts_what_the_filter_did_not_prove() -> None:
    rows = np.zeros((7, 1), np.float32)  # as far from 1 as from −1
    statistics = plain_statistics({1: 7}, [-1], [1])
    one = start_fit(
        Statistics(7, statistics.minimum, statistics.maximum, {1: 7}, False, None, sample_of(rows)),
        column(1, -1),
    )
    backend = open_backend("cpu", threads=1)
    partials, rechecked = fit_pass(backend, [chunk_of("x", rows)], {"x": one})
    assert partials["x"].counts.tolist() == [7, 0]
    assert rechecked == {"x": 7}


# H. error


def errors_of(weights: Float64 | None, distances: Sequence[float]) -> tuple[float, float]:
    """sse and weighted sse of given distances, in one piece; fails if two give another result."""
    found = []
    for parts in ([slice(None)], [slice(1, None), slice(0, 1)]):
        errors = ErrorSums()
        for part in parts:
            errors.add(np.array(distances)[part], None if weights is None else weights[part])
        found.append((errors.sse, errors.weighted_sse))
    assert found[0] == found[1]  # RELIABILITY 5
    return found[0]


def test_errors_of_four_points() -> None:
    found = errors_of(np.array([1.0, 2.0, 3.0, 4.0]), [1.0, 65.0, 1.0, 1.0])
    assert found == (68.0, 138.0)
    assert errors_of(None, [1.0, 65.0, 1.0, 1.0]) == (68.0, 68.0)
    assert errors_of(np.zeros(4), [1.0, 65.0, 1.0, 1.0]) == (68.0, 68.0)


def test_errors_at_the_ends_of_float32() -> None:
    assert errors_of(None, [0.0, 2.0**-298, 2.0**-296])[0] == 5 * 2.0**-298
    assert errors_of(None, [0.0, (2 * WIDEST) ** 2])[0] == (2 * WIDEST) ** 2


def test_each_weighted_term_is_rounded_to_float64() -> None:
    _, weighted = errors_of(np.array([3.0, 2.0**60]), [1 / 3, 2.0**-60])
    assert weighted == 2.0  # the product 3 · f64(1/3) is less than 1, and rounds to it


def test_errors_are_rounded_once() -> None:
    # 2^53 + 1 + 2^-10: float64 of the exact sum; added one by one both small ones are lost
    assert errors_of(None, [2.0**53, 1.0, 2.0**-10, 0.0])[0] == 2.0**53 + 2
    assert 2.0**53 + 1.0 + 2.0**-10 == 2.0**53


def test_the_exact_sum_is_that_of_fractions() -> None:
    # of all exponents, subnormal ones and zeros among them, whatever the order
    rng = np.random.default_rng(8)
    numbers = np.abs(np.ldexp(rng.standard_normal(4000), rng.integers(-1080, 900, 4000)))
    for part in (numbers, numbers[numbers < 2.0**-1000], np.zeros(3), numbers[:1]):
        total = ExactSum()
        for piece in np.array_split(rng.permutation(part), 3):
            total.add(piece)
        assert total.value == float(sum(map(Fraction, part.tolist()), Fraction(0)))
