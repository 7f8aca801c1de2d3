"""The oracle against numbers worked out by hand, paragraph by paragraph of DEFINITIONS.md."""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import reference
from reference import FixedPoint, Partial, Sample

TINY = math.ldexp(1.0, -149)  # least subnormal float32
HUGE = float(np.float32(3e38))  # 0.88… · 2^128
HALF = 1 << 63  # a draw with U = 0.5
EXACT_HALF = ((1 << 52) - 1) << 11  # (raw >> 11) + 1 = 2^52: q = w / 0.5


def column(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows of one column."""
    return np.array(values, dtype=np.float64).reshape(-1, 1)


def bits(array: Any) -> bytes:
    """Bytes of the float32 array: -0.0 and 0.0 differ."""
    return np.ascontiguousarray(array, dtype=np.float32).tobytes()


def whole(rows: Any, omega: Sequence[float] | None = None) -> Sample:
    """A sample that holds every row."""
    n = len(rows)
    return Sample(list(range(n)), [1.0] * n if omega is None else list(omega), 0.0, [1.0] * n)


def update_once(
    rows: Any, weights: Any, codewords: Any, codes: Sequence[int], sample: Sample | None = None
) -> Any:
    """One update of given codes, with the field's own statistics."""
    found = reference.statistics(rows, weights, 0)
    fixed = reference.fixed_point(found.exponents, found.minimum, found.maximum)
    sums = reference.partial(rows, weights, codes, len(codewords), fixed)
    sample = whole(rows) if sample is None else sample
    return reference.update(
        codewords, sums, fixed, found.minimum, found.maximum, sample, np.asarray(rows)
    )


class Draws:
    """Stands in for Philox: known raw draws."""

    def __init__(self, raws: Sequence[int]) -> None:
        self.raws = list(raws)

    def random_raw(self, n: int | None = None) -> Any:
        if n is None:
            return self.raws.pop(0)
        taken, self.raws = self.raws[:n], self.raws[n:]
        return np.array(taken, dtype=np.uint64)


def known_draws(monkeypatch: pytest.MonkeyPatch, raws: Sequence[int]) -> None:
    monkeypatch.setattr(reference, "stream", lambda *_: Draws(raws))


def test_the_oracle_imports_nothing_of_the_package() -> None:
    tree = ast.parse(inspect.getsource(reference))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "numpy" in names
    assert not any(name.startswith("saec_gpu") for name in names)


# DESIGN.md 1 and 2: distance and code


def test_dist_rounds_square_and_sum_apart() -> None:
    # t = 1 + 2^-30: t² = 1 + 2^-29 + 2^-60 rounds to 1 + 2^-29. Adding 2^-54 + 2^-54 = 2^-53 is a
    # tie, to even: 1 + 2^-29. A fused multiply-add would see 2^-60 too and go up by 2^-52.
    e = 2.0**-27
    assert reference.dist([e, e, 1.0], [0.0, 0.0, -(2.0**-30)]) == 1.0 + 2.0**-29


def test_dist_goes_up_the_columns() -> None:
    # Three squares of 2^-54 are lost one by one after 1, but make 1.5 · 2^-53 before it.
    e = 2.0**-27
    assert reference.dist([1.0, e, e, e], [0.0] * 4) == 1.0
    assert reference.dist([e, e, e, 1.0], [0.0] * 4) == 1.0 + 2.0**-52


def test_dist_is_float64_for_float32_arrays() -> None:
    # (2 · 3e38)² overflows float32; (2^-149)² is 0 there.
    x: Any = np.array([3e38, TINY], dtype=np.float32)
    c: Any = np.array([-3e38, 0.0], dtype=np.float32)
    assert reference.dist(x, c) == (2 * HUGE) ** 2
    assert reference.dist(x[1:], c[1:]) == 2.0**-298


def test_nearest_gives_ties_to_the_lower_index() -> None:
    assert reference.nearest([5.0], [[10.0], [0.0]]) == (0, 25.0)
    assert reference.nearest([5.0], [[0.0], [10.0]]) == (0, 25.0)
    assert reference.nearest([5.0], [[9.0], [6.0], [4.0], [6.0]]) == (1, 1.0)
    assert reference.nearest([-0.0], [[0.0], [-0.0]]) == (0, 0.0)


def test_assign_gives_codes_and_distances() -> None:
    assert reference.assign(column(1, 4, 9), column(0, 10)) == ([0, 0, 1], [1.0, 16.0, 1.0])


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
    digest = hashlib.sha256(b"sample\x00" + b"7\x00" + "größe".encode()).digest()
    key = sum(byte << (8 * i) for i, byte in enumerate(digest[:16]))
    raws = reference.stream("sample", 7, "größe").random_raw(11)
    assert [int(raw) for raw in raws] == [philox(key, i) for i in range(11)]


def test_stream_differs_by_each_part_of_its_key() -> None:
    first = {
        reference.stream(*key).random_raw()
        for key in [("seed", 0, "x"), ("sample", 0, "x"), ("seed", 1, "x"), ("seed", 0, "y")]
    }
    assert len(first) == 4


@pytest.mark.parametrize("i", [0, 1, 3, 4, 5, 31, 97])
def test_draw_i_is_found_by_advance(i: int) -> None:
    raws = reference.stream("sample", 0, "x").random_raw(98)
    there = reference.stream("sample", 0, "x")
    there.advance(i // 4)
    assert there.random_raw(i % 4 + 1)[i % 4] == raws[i]


def test_uniform_keeps_53_bits() -> None:
    assert reference.uniform(0) == 0.0
    assert reference.uniform(2047) == 0.0  # the low 11 bits do not count
    assert reference.uniform(HALF) == 0.5
    assert reference.uniform((1 << 64) - 1) == 1.0 - 2.0**-53


# B. statistics and fixed point


def test_statistics_by_hand() -> None:
    rows = [[1.0, -0.0], [-3.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    found = reference.statistics(rows, [1.0, 3.0, 0.5, 0.0], 2)
    assert found.n == 4
    assert found.minimum == [-3.0, 0.0]
    assert found.maximum == [1.0, 0.0]
    assert found.exponents == {1: 1, 2: 1, 0: 1}  # 1 = 0.5·2, 3 = 0.75·4, 0.5 = 0.5·1
    assert found.distinct == [0, 1]  # rows 2 and 3 equal row 0: -0.0 = 0.0


def test_distinct_rows_are_given_up_above_k() -> None:
    rows = column(1, 2, 2, 3)
    assert reference.statistics(rows, None, 3).distinct == [0, 1, 3]
    assert reference.statistics(rows, None, 2).distinct is None


def test_rows_are_rounded_to_float32_once() -> None:
    # 1 + 2^-30 is 1 in float32, so there is one distinct row.
    assert reference.statistics(column(1.0, 1.0 + 2.0**-30), None, 1).distinct == [0]


def test_weights_all_zero_or_none_are_all_one() -> None:
    assert reference.statistics(column(1, 2), [0.0, 0.0], 0).exponents == {1: 2}
    assert reference.statistics(column(1, 2), None, 0).exponents == {1: 2}
    assert reference.field_weights([0, 0], 2) == [1.0, 1.0]
    assert reference.field_weights([0, 5], 2) == [0.0, 5.0]


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 2.0**-401, 1.0000001 * 2.0**400])
def test_weights_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        reference.statistics(column(1, 2), [1.0, bad], 1)


def test_weights_at_the_edges_of_the_range_are_taken() -> None:
    found = reference.statistics(column(1, 2), [2.0**-400, 2.0**400], 0)
    assert found.exponents == {-399: 1, 401: 1}


def test_weights_of_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        reference.statistics(column(1, 2), [1.0, 1.0, 1.0], 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.5e38])
def test_rows_not_finite_in_float32_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        reference.statistics(column(1.0, bad), None, 1)


def test_fixed_point_of_columns_of_different_scale() -> None:
    # weights 1, 3, 0.5: P = 2 + 4 + 1 = 7, b = 3; b - e_min = 3: 62 bits, t = 59.
    # 2^19 < 1e6 < 2^20: a = 20. 2^-14 < 1e-4 < 2^-13: a = -13. Zeros: a = 0.
    fixed = reference.fixed_point({1: 1, 2: 1, 0: 1}, [-1e6, 0.0, 0.0], [5.0, 1e-4, 0.0])
    assert fixed == FixedPoint(62, 3, 0, 59, [20, -13, 0], [39, 72, 59])


def test_fixed_point_of_an_exact_power_of_two() -> None:
    # four weights of 1: P = 4·2 = 8 = 2^3. max|x| = 1 has exponent 1, 0.99 has 0.
    fixed = reference.fixed_point({1: 4}, [-1.0, -0.5], [0.0, 0.99])
    assert (fixed.b, fixed.a, fixed.s) == (3, [1, 0], [58, 59])
    assert reference.fixed_point({1: 5}, [0.0], [0.0]).b == 4  # P = 10
    assert reference.fixed_point({-399: 1}, [0.0], [0.0]).b == -399  # P = 2^-399


def test_fixed_point_is_wide_above_38() -> None:
    # 1 and 2^37: P = 2 + 2^38, b = 39, b - 1 = 38. 1 and 2^38: b = 40, b - 1 = 39.
    narrow = reference.fixed_point({1: 1, 38: 1}, [0.0], [1.0])
    wide = reference.fixed_point({1: 1, 39: 1}, [0.0], [1.0])
    assert (narrow.bits, narrow.b, narrow.t, narrow.s) == (62, 39, 23, [22])
    assert (wide.bits, wide.b, wide.t, wide.s) == (94, 40, 54, [53])


def test_partial_of_columns_of_different_scale() -> None:
    # f32(1e-4) = 13743895 · 2^-37. Two rows of weight 1: P = 4, b = 2, t = 60, s = (40, 73).
    rows = [[1e6, 1e-4], [-3.0, 1e-4]]
    found = reference.statistics(rows, None, 0)
    fixed = reference.fixed_point(found.exponents, found.minimum, found.maximum)
    assert fixed.s == [40, 73]
    one = reference.partial(rows, None, [0, 0], 2, fixed)
    assert one.sums == [[999_997 << 40, 13743895 << 37], [0, 0]]
    assert one.weight_sums == [2 << 60, 0]
    assert one.counts == [2, 0]
    # means: 999997 / 2, and 1e-4 to the last bit
    new = update_once(rows, None, np.zeros((1, 2)), [0, 0])
    assert bits(new) == bits([[499998.5, 1e-4]])


def test_partial_rounds_terms_half_to_even() -> None:
    fixed = FixedPoint(62, 62, 1, 0, [0], [0])  # terms are rint(w·x), rint(w)
    one = reference.partial(column(1, 1, 1, 1), [0.5, 1.5, 2.5, 0.75], [0, 1, 2, 3], 4, fixed)
    assert one.weight_sums == [0, 2, 2, 1]
    assert one.sums == [[0], [2], [2], [1]]
    negative = reference.partial(column(-1, -1), [0.5, 1.5], [0, 1], 2, fixed)
    assert negative.sums == [[0], [-2]]


def test_partial_keeps_zero_weights_of_a_part() -> None:
    fixed = FixedPoint(62, 2, 1, 60, [0], [60])
    assert reference.partial(column(1), [0.0], [0], 1, fixed) == Partial([[0]], [0], [1])


def test_wide_sums_hold_weights_of_1_and_2_to_the_60() -> None:
    # weights 1, 2^60, 2^60: P = 2 + 2·2^61, b = 63; b - 1 > 38: wide, t = 31. max 1: a = 1, s = 30.
    rows, weights = column(1.0, 0.5, -0.5), [1.0, 2.0**60, 2.0**60]
    found = reference.statistics(rows, weights, 0)
    fixed = reference.fixed_point(found.exponents, found.minimum, found.maximum)
    assert fixed == FixedPoint(94, 63, 1, 31, [1], [30])
    # terms 2^30, 2^89, -2^89: the small one survives. Weights 2^31 + 2·2^91.
    one = reference.partial(rows, weights, [0, 0, 0], 1, fixed)
    assert one.sums == [[2**30]]
    assert one.weight_sums == [2**92 + 2**31]
    # float64 of the weight sum is 2^92: 2^30 / 2^92 · 2 = 2^-61
    assert bits(update_once(rows, weights, [[9.0]], [0, 0, 0])) == bits([[2.0**-61]])


def test_partials_of_parts_add_up() -> None:
    rows = np.random.default_rng(3).normal(size=(31, 3))
    weights = 2.0 ** np.random.default_rng(4).integers(-30, 30, 31)
    found = reference.statistics(rows, weights, 0)
    fixed = reference.fixed_point(found.exponents, found.minimum, found.maximum)
    codes = [i % 4 for i in range(31)]
    all_of_it = reference.partial(rows, weights, codes, 4, fixed)
    left = reference.partial(rows[:13], weights[:13], codes[:13], 4, fixed)
    right = reference.partial(rows[13:], weights[13:], codes[13:], 4, fixed)
    for c in range(4):
        assert all_of_it.weight_sums[c] == left.weight_sums[c] + right.weight_sums[c]
        for j in range(3):
            assert all_of_it.sums[c][j] == left.sums[c][j] + right.sums[c][j]
            assert abs(all_of_it.sums[c][j]) < 2**fixed.bits


# C. sample


def test_priority_by_hand() -> None:
    assert reference.priority(3.0, 0) == 3.0 * 2.0**53  # divisor 2^-53
    assert reference.priority(3.0, EXACT_HALF) == 6.0
    assert reference.priority(3.0, (1 << 64) - 1) == 3.0  # divisor 1
    assert reference.priority(1.0, (3 << 62) - (1 << 11)) == 1.0 / 0.75


@pytest.mark.parametrize(
    ("n", "k", "m"),
    [
        (10, 3, 10),
        (1_000_000, 1, 32),
        (1_000_000, 4096, 131_072),
        (1_000_000, 5000, 131_072),  # 32 · 4096 > 2 · 5000
        (1_000_000, 70_000, 140_000),
    ],
)
def test_sample_size(n: int, k: int, m: int) -> None:
    assert reference.sample_size(n, k) == m


def test_sample_takes_the_greatest_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    # q = 2w = 2, 4, …, 68; m = 32 of 34 rows: rows 2 … 33, τ = q of row 1 = 4.
    known_draws(monkeypatch, [EXACT_HALF] * 34)
    drawn = reference.sample(np.zeros((34, 2)), np.arange(1, 35), 1, 0, "x")
    assert drawn.index == list(range(2, 34))
    assert drawn.tau == 4.0
    assert drawn.omega == [4.0, 4.0, *map(float, range(5, 35))]  # max(3, 4), max(4, 4), 5, …
    assert drawn.q == [float(q) for q in range(6, 70, 2)]


def test_sample_of_all_rows_but_one_has_a_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    known_draws(monkeypatch, [EXACT_HALF] * 33)  # q = 2w; row 0 is left out: τ = 2
    drawn = reference.sample(np.zeros((33, 1)), np.arange(1, 34), 1, 0, "x")
    assert (drawn.index, drawn.tau) == (list(range(1, 33)), 2.0)
    known_draws(monkeypatch, [EXACT_HALF] * 32)  # all 32 rows: no (m + 1)-th
    drawn = reference.sample(np.zeros((32, 1)), np.arange(1, 33), 1, 0, "x")
    assert (drawn.index, drawn.tau) == (list(range(32)), 0.0)


def test_sample_uses_draw_i_for_row_i(monkeypatch: pytest.MonkeyPatch) -> None:
    # Draws of rows 0 and 33 make q = 2^53; the other 32 have q = 2. Ties of those: lower rows.
    known_draws(monkeypatch, [0, *[EXACT_HALF] * 32, 0])
    drawn = reference.sample(np.zeros((34, 1)), None, 1, 0, "x")
    assert drawn.index == [*range(31), 33]
    assert drawn.tau == 2.0
    assert drawn.omega == [2.0] * 32


def test_sample_of_few_positive_weights_holds_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    known_draws(monkeypatch, [EXACT_HALF] * 40)
    weights = [0.0] * 37 + [3.0, 1.0, 2.0]
    drawn = reference.sample(np.zeros((40, 1)), weights, 1, 0, "x")
    assert drawn == Sample([37, 38, 39], [3.0, 1.0, 2.0], 0.0, [6.0, 2.0, 4.0])


def test_sample_is_of_its_stream() -> None:
    raws = reference.stream("sample", 5, "item").random_raw(100)
    q = [1.0 / float(Fraction((int(raw) >> 11) + 1, 2**53)) for raw in raws]
    drawn = reference.sample(np.zeros((100, 1)), None, 2, 5, "item")  # m = 64
    assert drawn.tau == sorted(q)[100 - 65]
    assert drawn.index == [i for i in range(100) if q[i] > drawn.tau]


# D. seeds


def test_seeds_are_drawn_by_cumulative_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    # c = 1, 2, 3; U·c_last = 1.5: row 1. dist = 1, 0, 4: c = 1, 1, 5; 2.5: row 2.
    # dist = 1, 0, 0: c = 1, 1, 1; 0.5: row 0. dist = 0: ends at three of four.
    known_draws(monkeypatch, [HALF] * 4)
    rows = column(0, 1, 3)
    assert bits(reference.seeds(whole(rows), rows, 4, 0, "x")) == bits(column(1, 3, 0))


def test_seeds_take_the_first_c_strictly_above(monkeypatch: pytest.MonkeyPatch) -> None:
    # ω = 1, 1, 2: c = 1, 2, 4; U·c_last = 2 is not exceeded by c_1 = 2: row 2 (ω counts, too).
    # dist to 5 = 25, 4, 0; ω·dist = 25, 4, 0: c_last = 29; U = 0: c_0 = 25 > 0: row 0.
    known_draws(monkeypatch, [HALF, 0])
    rows = column(0, 3, 5)
    found = reference.seeds(whole(rows, [1.0, 1.0, 2.0]), rows, 2, 0, "x")
    assert bits(found) == bits(column(5, 0))


def test_seeds_do_not_take_a_row_of_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    # first: c = 1, 2, U = 0: row 0. Then dist = 0, 9: c = 0, 9, U = 0: c_0 = 0 is not above 0.
    known_draws(monkeypatch, [0, 0])
    rows = column(2, 5)
    assert bits(reference.seeds(whole(rows), rows, 2, 0, "x")) == bits(column(2, 5))


def test_seeds_weigh_distance_by_omega(monkeypatch: pytest.MonkeyPatch) -> None:
    # U = 0: row 0. dist = 0, 1, 4; ω·dist = 0, 8, 4: c = 0, 8, 12; 6 < 8: row 1. Unweighted
    # c = 0, 1, 5; 2.5: row 2.
    known_draws(monkeypatch, [0, HALF])
    rows = column(0, 1, 2)
    found = reference.seeds(whole(rows, [1.0, 8.0, 1.0]), rows, 2, 0, "x")
    assert bits(found) == bits(column(0, 1))


def test_seeds_copy_bits_of_the_sampled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    known_draws(monkeypatch, [0, 0])
    rows = column(7, -0.0, 1)
    sample = Sample([1, 2], [1.0, 1.0], 0.0, [1.0, 1.0])  # row 0 is not in the sample
    assert bits(reference.seeds(sample, rows, 2, 0, "x")) == bits(column(-0.0, 1))


def test_seeds_are_of_their_stream() -> None:
    # Unit vectors are all at dist 2 from each other, so each draw takes any row left alike: of the
    # rows left in order, with c = 2, 4, …, 2·left, the first above U · 2·left is floor(U · left).
    rows = np.eye(32)
    for seed in range(4):
        left, expected = list(range(32)), []
        for raw in reference.stream("seed", seed, "item").random_raw(3):
            expected.append(left.pop(math.floor(int(raw) / 2**64 * len(left))))
        assert bits(reference.seeds(whole(rows), rows, 3, seed, "item")) == bits(rows[expected])


def test_rounds_double_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Row 0 is drawn. Chances are 0, 1, 9, 16, 0 and U of those above 0 alike: row 3. Then they are
    # 0, 1, 1, 0, 0: two rows, and what is met is left out.
    known_draws(monkeypatch, [0, *[HALF] * 15])
    monkeypatch.setattr(reference, "SEED_LIMIT", 1)
    rows = column(0, 1, 3, 4, 0)
    assert bits(reference.seeds(whole(rows), rows, 5, 0, "x")) == bits(column(0, 4, 1, 3))


# E. update


def test_update_of_four_points() -> None:
    rows = [[0, 0], [0, 2], [8, 0], [8, 2]]
    new = update_once(rows, None, [[0, 0], [8, 0]], [0, 0, 1, 1])
    assert bits(new) == bits([[0, 1], [8, 1]])
    # weights 1, 3, 1, 7: (0·1 + 2·3) / 4 and (0·1 + 2·7) / 8
    new = update_once(rows, [1, 3, 1, 7], [[0, 0], [8, 0]], [0, 0, 1, 1])
    assert bits(new) == bits([[0, 1.5], [8, 1.75]])


def test_update_has_no_negative_zero() -> None:
    assert bits(update_once(column(-0.0, -0.0), None, [[1.0]], [0, 0])) == bits([[0.0]])
    # mean of -2^-149 and three zeros is -2^-151: -0.0 in float32 before + 0.0
    assert bits(update_once(column(-TINY, 0, 0, 0), None, [[1.0]], [0] * 4)) == bits([[0.0]])


def test_update_of_subnormals_rounds_half_to_even() -> None:
    # means of (1, 3), (1, 2), (2, 3) times 2^-149: 2, 1.5 → 2, 2.5 → 2
    rows = column(1, 3, 1, 2, 2, 3) * TINY
    new = update_once(rows, None, np.zeros((3, 1)), [0, 0, 1, 1, 2, 2])
    assert bits(new) == bits(column(2, 2, 2) * TINY)


def test_update_near_the_end_of_float32() -> None:
    # three rows whose float32 sum would be infinite
    new = update_once(column(3e38, 3e38, 3e38, -3e38), None, column(0, 1), [0, 0, 0, 1])
    assert bits(new) == bits(column(3e38, -3e38))


def test_update_is_clamped_to_the_range_of_the_column() -> None:
    # weights 1 and 2^92: P = 2 + 2^93, b = 94, wide, t = 0; 3e38 has a = 128, s = -128.
    # Row 1: weight 1 unit, term rint(0.88) = 1 unit: 1 / 1 · 2^128 would be infinite in float32.
    rows, weights = column(-3e38, 3e38), [2.0**92, 1.0]
    found = reference.statistics(rows, weights, 0)
    fixed = reference.fixed_point(found.exponents, found.minimum, found.maximum)
    assert fixed == FixedPoint(94, 94, 1, 0, [128], [-128])
    assert reference.partial(rows, weights, [0, 1], 2, fixed).sums[1] == [1]
    assert bits(update_once(rows, weights, column(0, 1), [0, 1])) == bits(column(-3e38, 3e38))
    # and below: -0.88 → -1 unit
    assert bits(update_once(-rows, weights, column(0, 1), [0, 1])) == bits(column(3e38, -3e38))
    # finite, too: 0.75 → 1 unit · 2^0 = 1, clamped to 0.75
    assert bits(update_once(column(0.5, 0.75), weights, column(0, 1), [0, 1])) == bits(
        column(0.5, 0.75)
    )


def test_update_takes_a_weight_sum_of_no_units_as_empty() -> None:
    # weights 2^92 and 0.5: P = 2^93 + 1, b = 94, t = 0: rint(0.5) = 0 units. Codeword 1 is refilled
    # with the row of greatest ω·dist to codeword 0 = 4: row 1.
    rows, weights = column(4, 1), [2.0**92, 0.5]
    assert bits(update_once(rows, weights, column(3, 9), [0, 1])) == bits(column(4, 1))


# F. repair


def test_repair_takes_the_worst_served_row() -> None:
    # mean 103 / 4 = 25.75; dist 25.75², 24.75², 23.75², 74.25²: row 3
    new = update_once(column(0, 1, 2, 100), None, column(1, 1000), [0, 0, 0, 0])
    assert bits(new) == bits(column(25.75, 100))


def test_repair_sees_what_was_refilled() -> None:
    # mean 204 / 5 = 40.8; greatest dist 60.2²: row 4 → codeword 1. Then row 3 is at 1 of it, and
    # row 0 at 40.8² of the mean is the worst: codeword 2. The old value 2000 is not looked at.
    new = update_once(column(0, 1, 2, 100, 101), None, column(1, 1000, 2000), [0] * 5)
    assert bits(new) == bits(column(40.8, 101, 0))


def test_repair_does_not_look_at_empty_codewords() -> None:
    # the old value 100 of the empty codeword does not serve row 3
    new = update_once(column(0, 1, 2, 100), None, column(1, 100), [0, 0, 0, 0])
    assert bits(new) == bits(column(25.75, 100))
    new = update_once(column(0, 1, 2, 100), None, column(1, 99.5, 0.5), [0, 0, 0, 0])
    assert bits(new) == bits(column(25.75, 100, 0))


def test_repair_weighs_by_omega_and_gives_ties_to_the_lower_row() -> None:
    rows, codes = column(-15, 0, 15, 10), [1, 1, 1, 1]
    # mean 10 / 4 = 2.5: dist 306.25, 6.25, 156.25, 56.25; ω = 1, 1, 2, 1: 306.25 < 312.5: row 2
    new = update_once(rows, None, column(77, 0), codes, whole(rows, [1.0, 1.0, 2.0, 1.0]))
    assert bits(new) == bits(column(15, 2.5))
    # ±15 around a mean of 0: equal g, row 0
    rows = column(-15, 0, 15, 0)
    assert bits(update_once(rows, None, column(77, 0), codes)) == bits(column(-15, 0))


def test_repair_looks_at_the_sample_only() -> None:
    # row 3 at 100 is not in the sample; row 0 is worst of rows 0 to 2 around 25.75
    sample = Sample([0, 1, 2], [1.0] * 3, 0.0, [1.0] * 3)
    new = update_once(column(0, 1, 2, 100), None, column(1, 1000), [0] * 4, sample)
    assert bits(new) == bits(column(25.75, 0))


def test_repair_copies_bits() -> None:
    # mean of row 1 alone is 5; row 0 has weight 0 and code 1, so codeword 1 is empty
    new = update_once(column(-0.0, 5), [0, 1], column(9, 7), [1, 0])
    assert bits(new) == bits(column(5, -0.0))


def test_repair_keeps_the_value_when_all_rows_are_served() -> None:
    new = update_once(column(3, 3, 3), None, column(3, 7, -0.0), [0, 0, 0])
    assert bits(new) == bits(column(3, 7, -0.0))


# G. stop, order, last assignment

FOUR = np.array([[0, 0], [0, 2], [8, 0], [8, 2]], dtype=np.float32)


def test_variance_by_hand() -> None:
    # means (4, 1); (4·16 + 4·1) / 4 / 2 = 8.5
    assert reference.variance(whole(FOUR), FOUR) == 8.5
    # ω = 3, 1 on 0, 4: mean 1; (3·1 + 1·9) / 4 = 3
    assert reference.variance(whole([0, 4], [3.0, 1.0]), column(0, 4)) == 3.0


def test_variance_adds_columns_that_are_summed_alone() -> None:
    # columns sum to 2 and 2·2^-52. Added row by row 2^-52 would be lost twice (ties to even at 2).
    f = 2.0**-26
    rows = [[1, 0], [-1, 0], [0, f], [0, -f]]
    assert reference.variance(whole(rows), rows) == (2.0 + 2.0**-51) / 8


def test_shift_adds_codewords_that_are_summed_alone() -> None:
    # 1, then 3 · 2^-54 together: 1.5 · 2^-53 rounds up; one by one they would be lost
    e = 2.0**-27
    assert reference.shift([[1, 0, 0], [e, e, e]], np.zeros((2, 3))) == 1.0 + 2.0**-52


def test_fit_of_four_points_stops_when_nothing_moves() -> None:
    # iteration 1: codewords (0,1), (8,1), shift 2 > 1e-4 · 8.5; iteration 2: shift 0
    fit = reference.fit(FOUR, None, 2, initial=[[0, 0], [8, 0]])
    assert bits(fit.codewords) == bits([[0, 1], [8, 1]])
    assert fit.codes == [0, 0, 1, 1]
    assert (fit.iterations, fit.stopped, fit.counts) == (2, "shift", [2, 2])
    assert fit.without_rows == []


def test_fit_stops_on_a_shift_equal_to_the_threshold() -> None:
    # columns ±4, ±2: V = (4·16 + 4·4) / 4 / 2 = 10; shift of iteration 1 is 2²+2² = 8 = 0.8 · 10
    rows = np.array([[-4, -2], [-4, 2], [4, -2], [4, 2]])
    start = [[-4, -2], [4, -2]]
    assert reference.variance(whole(rows), rows) == 10.0
    assert reference.fit(rows, None, 2, tol=0.8, initial=start)[2:4] == (1, "shift")
    less = float(np.nextafter(0.8, 0))
    assert reference.fit(rows, None, 2, tol=less, initial=start)[2:4] == (2, "shift")


def test_fit_stops_after_max_iter() -> None:
    fit = reference.fit(FOUR, None, 2, max_iter=1, initial=[[0, 0], [8, 0]])
    assert (fit.iterations, fit.stopped) == (1, "max_iter")
    # at the limit both rules hold: the shift is named
    fit = reference.fit(FOUR, None, 2, max_iter=2, initial=[[0, 0], [8, 0]])
    assert (fit.iterations, fit.stopped) == (2, "shift")


def test_fit_with_tol_zero_stops_when_nothing_moves() -> None:
    fit = reference.fit(FOUR, None, 2, tol=0.0, initial=[[0, 0], [8, 0]])
    assert (fit.iterations, fit.stopped) == (2, "shift")


def test_codewords_are_ordered_by_rows_not_by_weight() -> None:
    fit = reference.fit(column(0, 1, 10, 11, 12), [9, 9, 1, 1, 1], 2, initial=column(0, 10))
    assert bits(fit.codewords) == bits(column(11, 0.5))
    assert fit.codes == [1, 1, 0, 0, 0]
    assert fit.counts == [3, 2]


def test_codewords_are_ordered_by_the_last_fit_pass() -> None:
    # pass: 0, 1 → 0 and 7, 8, 60 → 9; update: 0.5 and 75 / 3 = 25. Order by 2, 3 rows: 25, 0.5.
    # The last assignment moves 7 and 8 to 0.5 and changes no order.
    fit = reference.fit(column(0, 1, 7, 8, 60), None, 2, max_iter=1, initial=column(0, 9))
    assert bits(fit.codewords) == bits(column(25, 0.5))
    assert fit.codes == [1, 1, 1, 1, 0]
    assert fit.counts == [3, 2]


def test_fit_repairs_an_empty_codeword() -> None:
    # 1: 25.75 and 100 (F). 2: rows 0, 1, 2 → mean 1; shift 24.75² > 1e-4 · V. 3: nothing moves.
    fit = reference.fit(column(0, 1, 2, 100), None, 2, initial=column(1, 1000))
    assert bits(fit.codewords) == bits(column(1, 100))
    assert (fit.codes, fit.iterations, fit.stopped) == ([0, 0, 0, 1], 3, "shift")


def test_rows_of_weight_zero_keep_their_code() -> None:
    # The sample is row 0: codeword 1 is empty (W = 0), nothing refills it, it keeps 6 and has the
    # most rows: first in order. V = 0 and shift = 0: 0 <= 0 stops.
    fit = reference.fit(column(5, 6, 7), [1, 0, 0], 2, initial=column(5, 6))
    assert bits(fit.codewords) == bits(column(6, 5))
    assert (fit.codes, fit.counts, fit.iterations) == ([1, 0, 0], [2, 1], 1)
    # without `initial` one seed is found, and k is 1
    assert bits(reference.fit(column(5, 6, 7), [1, 0, 0], 2).codewords) == bits([[5.0]])


def test_codewords_without_rows_stay_and_are_listed() -> None:
    fit = reference.fit(column(5, 6, 4), [1, 0, 0], 2, initial=column(100, 5))
    assert bits(fit.codewords) == bits(column(5, 100))
    assert (fit.codes, fit.without_rows, fit.counts) == ([0, 0, 0], [1], [3, 0])


def test_few_distinct_rows_are_the_codewords() -> None:
    fit = reference.fit(column(-0.0, 2, 0.0, 2, 1), None, 3)
    assert bits(fit.codewords) == bits(column(-0.0, 2, 1))
    assert fit == reference.Fit(fit.codewords, [0, 1, 0, 1, 2], 0, "distinct", [2, 2, 1], [])


def test_equal_rows_need_one_codeword() -> None:
    fit = reference.fit(np.full((9, 3), 1e-4), None, 4)
    assert bits(fit.codewords) == bits([[1e-4] * 3])
    assert fit.codes == [0] * 9
    assert reference.errors(np.full((9, 3), 1e-4), None, fit.codewords, fit.codes) == (0.0, 0.0)


def test_a_field_without_rows_has_no_codewords() -> None:
    fit = reference.fit(np.zeros((0, 3)), None, 4)
    assert fit.codewords.shape == (0, 3)
    assert fit.codes == []
    assert reference.errors(np.zeros((0, 3)), None, fit.codewords, []) == (0.0, 0.0)


@pytest.mark.parametrize(("k", "max_iter"), [(0, 25), (2, 0)])
def test_fit_refuses_nothing_to_do(k: int, max_iter: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        reference.fit(FOUR, None, k, max_iter=max_iter)


def test_powers_of_two_carry_through_a_whole_fit() -> None:
    # Scaling rows or weights by a power of two changes exponents only.
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(97, 3)).astype(np.float32)
    weights = np.floor(100 / np.arange(1, 98))
    fit = reference.fit(rows, weights, 5, seed=2, field="item")
    assert len(fit.codewords) == 5
    assert fit.iterations > 1
    assert fit.codes == reference.assign(rows, fit.codewords)[0]
    scaled = reference.fit(rows * 2.0**20, weights * 2.0**-70, 5, seed=2, field="item")
    assert bits(scaled.codewords) == bits(fit.codewords * np.float32(2.0**20))
    assert scaled.codes == fit.codes
    other = reference.fit(rows, weights, 5, seed=3, field="item")
    assert bits(other.codewords) != bits(fit.codewords)


# H. error


def test_errors_of_four_points() -> None:
    found = reference.errors(FOUR, [1, 2, 3, 4], [[0, 1], [8, 1]], [0, 0, 1, 1])
    assert found == (4.0, 10.0)  # each dist is 1
    # given codes count, not nearest ones: row 1 to (8, 1) is 65
    assert reference.errors(FOUR, None, [[0, 1], [8, 1]], [0, 1, 1, 1])[0] == 68.0


def test_errors_without_weights_are_the_unweighted_ones() -> None:
    assert reference.errors(FOUR, None, [[0, 1], [8, 1]], [0, 0, 1, 1]) == (4.0, 4.0)
    assert reference.errors(FOUR, [0, 0, 0, 0], [[0, 1], [8, 1]], [0, 0, 1, 1]) == (4.0, 4.0)


def test_errors_of_the_least_and_the_widest_rows() -> None:
    found = reference.errors(column(0, TINY, 2 * TINY), None, [[0.0]], [0, 0, 0])
    assert found[0] == 5 * 2.0**-298
    assert reference.errors(column(-3e38, 3e38), None, [[-3e38]], [0, 0])[0] == (2 * HUGE) ** 2


def test_error_terms_are_rounded_and_their_sum_once() -> None:
    # 3 · f64(1/3) rounds to 1; 2^53 + 1 + 2^-10 to 2^53 + 2
    rows, far = column(0, 0, 0), [2.0**53 * 3, 3.0, 3 * 2.0**-10]
    third = float(np.float32(3**-0.5)) ** 2
    found = reference.errors(rows, far, [[np.float32(3**-0.5)]], [0, 0, 0])
    assert found[1] == float(sum(Fraction(w * third) for w in far))
