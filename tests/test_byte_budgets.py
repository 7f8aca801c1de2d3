"""Bytes are split as the plain loops split them, kept within, and used."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import reference
from saec_gpu.clustering.asked import MOST_CODEWORDS
from saec_gpu.clustering.budget import LEAST_USED, MOST_ROUNDS, Allocation, FieldCurve, choose
from saec_gpu.clustering.curves import MOST_MEASURED, Point, grid
from saec_gpu.codewords import CODEWORDS_DTYPES, CodewordsDtype, codebook_bytes
from saec_gpu.errors import ParamError
from saec_gpu.packing import packed_size
from saec_gpu.sources import TableField

Choice = Mapping[str, Point]


def table_of(n_rows: int, dim: int = 4, dtype: str = "float32", name: str = "x") -> TableField:
    return TableField(name, n_rows, dim, dtype)


def point(
    table: TableField, codewords: int, distortion: float, dtype: CodewordsDtype = "float32"
) -> Point:
    return Point(
        codewords, dtype, float(distortion), codebook_bytes(codewords, table.dim, dtype),
        packed_size(table.n_rows, codewords),
    )  # fmt: skip


def random_curve(
    rng: np.random.Generator, n_rows: int, dim: int = 4, name: str = "x", **changes: Any
) -> FieldCurve:
    """Return a curve that mostly falls, in whole numbers, so that sums of them are exact."""
    table = table_of(n_rows, dim, str(rng.choice(["float16", "float32", "float64"])), name)
    points = []
    for dtype in CODEWORDS_DTYPES:
        distortion = int(rng.integers(500, 1000))
        for codewords in grid(n_rows):
            points.append(point(table, codewords, distortion, dtype))
            distortion = max(0, distortion - int(rng.integers(-5, distortion // 2 + 2)))
    return FieldCurve(table, tuple(points), **changes)


def realistic_curve(
    rng: np.random.Generator, n_rows: int, dim: int = 8, name: str = "x", **changes: Any
) -> FieldCurve:
    """Return a curve that falls by a share with each doubling, less in narrow dtypes."""
    table = table_of(n_rows, dim, name=name)
    size, share = float(rng.uniform(1, 100)) * n_rows, float(rng.uniform(0.5, 0.9))
    points = [
        point(table, k, size * (share ** np.log2(k) + floor), dtype)
        for dtype, floor in zip(CODEWORDS_DTYPES, (0.0, 1e-6, 1e-4), strict=True)
        for k in grid(n_rows)
    ]
    return FieldCurve(table, tuple(points), **changes)


def pairs(points: list[Point]) -> list[reference.Option]:
    return [(one.nbytes, one.distortion) for one in points]


def scaled(curves: Mapping[str, FieldCurve], chosen: Choice) -> float:
    return sum(curves[name].sensitivity * one.distortion for name, one in chosen.items())


def bytes_of(chosen: Choice) -> int:
    return sum(one.nbytes for one in chosen.values())


def every_number(curve: FieldCurve) -> list[Point]:
    """Return all options and, dtype by dtype, every number of codewords between two of them."""
    found = curve.options()
    n_rows = curve.table.n_rows
    for dtype in CODEWORDS_DTYPES:
        same = sorted((p for p in found if p.dtype == dtype), key=lambda p: p.codewords)
        for low, high in itertools.pairwise(same):
            for k in range(low.codewords + 1, high.codewords):
                part = Fraction(k - low.codewords, high.codewords - low.codewords)
                distortion = low.distortion + (high.distortion - low.distortion) * float(part)
                size = codebook_bytes(k, curve.table.dim, dtype)
                codes = Fraction(high.code_bytes)
                if all(p.code_bytes < packed_size(n_rows, p.codewords) for p in (low, high)):
                    codes -= (high.code_bytes - low.code_bytes) * (1 - part)
                found.append(Point(k, dtype, distortion, size, math.ceil(codes)))
    return found


# Hulls.


def test_hull_computed_by_hand() -> None:
    # 64 rows of 128 bytes: 8,192. Codes of 1, 2 and 3 bits take 8, 16 and 24 bytes.
    table = table_of(64, 32)
    curve = FieldCurve(
        table,
        (
            point(table, 1, 100),  # 128 bytes
            point(table, 2, 90),  # 264: above the chord to the next, which spares 0.15 a byte
            point(table, 3, 60),  # 400
            point(table, 4, 60),  # 528: spares nothing
            point(table, 6, 61),  # worse than three
            point(table, 8, 20),  # 1,048
        ),
    )
    assert [(p.codewords, p.dtype) for p in curve.hull()] == [
        (1, "float32"), (3, "float32"), (8, "float32"), (64, "whole"),
    ]  # fmt: skip


def test_hull_without_loss_leaves_out_the_rows_themselves() -> None:
    table = table_of(1000)
    curve = FieldCurve(table, (point(table, 1, 5), point(table, 2, 0), point(table, 2, 0)))
    assert [p.codewords for p in curve.hull()] == [1, 2]


@pytest.mark.parametrize("n_rows", [1, 2, 5, 97, 1025])
def test_hull_is_that_of_the_definition(rng: np.random.Generator, n_rows: int) -> None:
    for _ in range(5):
        curve = random_curve(rng, n_rows)
        assert pairs(curve.hull()) == reference.lower_hull(pairs(curve.options()))


# Within some bytes.


@pytest.mark.parametrize("n_rows", [1, 2, 97, 300])
def test_best_is_that_of_all_numbers(rng: np.random.Generator, n_rows: int) -> None:
    curve = random_curve(rng, n_rows, code_share=float(rng.choice([1.0, 0.7, 1.3])))
    everything = every_number(curve)
    least = min(one.nbytes for one in everything)
    for most_bytes in {least, least + 1, *rng.integers(least, 2 * curve.table.nbytes, 20).tolist()}:
        found = curve.best(most_bytes)
        assert found.nbytes <= most_bytes
        assert found.distortion == min(
            one.distortion for one in everything if one.nbytes <= most_bytes
        )


def in_levels(table: TableField, codewords: int, distortion: float, code_bytes: int) -> Point:
    one = replace(point(table, codewords, distortion), code_bytes=code_bytes)
    assert code_bytes < packed_size(table.n_rows, codewords)
    return one


def test_codes_between_numbers_computed_by_hand() -> None:
    # In planes codes of 5 to 8 codewords take 375 bytes. A codeword takes 16.
    table = table_of(1000)
    points = point(table, 4, 9), in_levels(table, 6, 7, 300), in_levels(table, 8, 5, 321)
    curve = FieldCurve(table, points)
    assert curve.best(7 * 16 + 311) == in_levels(table, 7, 6, 311)  # half of 21 more, rounded up
    assert curve.best(7 * 16 + 310) == points[1]
    assert curve.best(5 * 16 + 300) == in_levels(table, 5, 8, 300)  # after planes as at 6
    assert curve.best(5 * 16 + 299) == points[0]


def test_bytes_found_hold_for_other_dtypes_of_as_many_codewords() -> None:
    table = table_of(1000)
    points = in_levels(table, 6, 7, 300), in_levels(table, 8, 5, 320)
    narrow = [replace(p, dtype="int8", codebook_bytes=8 * p.codewords) for p in points]
    found = replace(narrow[0], codewords=7, codebook_bytes=56, distortion=6.0, code_bytes=290)
    curve = FieldCurve(table, (*points, *narrow), known=(found,))
    sizes = {(p.codewords, p.dtype): p.code_bytes for p in curve.options()}
    assert sizes == {
        **{(k, dtype): codes for k, codes in ((6, 300), (7, 290), (8, 320))
           for dtype in ("float32", "int8")},
        (1000, "whole"): 0,
    }  # fmt: skip


# Beyond what was measured.


def test_beyond_the_measured_numbers_each_doubling_spares_as_the_last() -> None:
    table = table_of(20_000, 16)
    curve = FieldCurve(
        table, tuple(point(table, k, d) for k, d in ((2048, 8), (3072, 6), (4096, 4)))
    )
    beyond = {p.codewords: p for p in curve.options() if p.codewords > 4096}
    # 10,000 is 1,808 of 4,096 above 8,192, where 2 becomes 1.5: 20,000 have half of its distortion.
    half_of_most = 2 + (1.5 - 2) * (10_000 - 8192) / 4096
    expected = {6144: 3.0, 8192: 2.0, 12288: 1.5, 16384: 1.0, 20_000: half_of_most / 2}
    whole = beyond.pop(20_000)  # all rows kept come last
    assert (whole.dtype, whole.distortion, whole.nbytes) == ("whole", 0.0, table.nbytes)
    assert {k: p.distortion for k, p in beyond.items()} == {
        k: d for k, d in expected.items() if k != 20_000
    }
    extended = [p for p in curve.options() if (p.codewords, p.dtype) == (20_000, "float32")]
    assert [p.distortion for p in extended] == [expected[20_000]]
    for one in [*beyond.values(), *extended]:
        assert one.codebook_bytes == codebook_bytes(one.codewords, 16, "float32")
        assert one.code_bytes == packed_size(20_000, one.codewords)


def test_beyond_the_measured_numbers_nothing_is_taken_for_granted() -> None:
    many = table_of(3 * MOST_CODEWORDS)
    ends = {
        "most that can be asked": ((2048, 8.0), (4096, 4.0), MOST_CODEWORDS),
        "no loss already": ((2048, 8.0), (4096, 0.0), 4096),
        "fewer found than measured for": ((2048, 8.0), (4095, 4.0), 4095),
        "nothing to learn from": ((2049, 8.0), (4096, 4.0), 4096),
    }
    for low, high, most in ends.values():
        curve = FieldCurve(many, (point(many, *low), point(many, *high)))
        coded = [p for p in curve.options() if p.dtype != "whole"]
        assert max(p.codewords for p in coded) == most
        assert all(0 <= p.distortion <= low[1] for p in coded)
    few = FieldCurve(table_of(4096), (point(table_of(4096), 4096, 1.0),))
    assert max(p.codewords for p in few.options()) == 4096


def test_long_codes_get_longer_as_planes_do() -> None:
    # Whatever codes take of 4,096 codewords: of 8,192 they take a bit a row more.
    table = table_of(80_000)
    short = replace(point(table, 4096, 4.0), code_bytes=50_000)
    curve = FieldCurve(table, (point(table, 2048, 8.0), short))
    (longer,) = [p for p in curve.options() if p.codewords == 8192]
    assert longer.code_bytes == 50_000 + 80_000 // 8


# The choice.


def curves_of(rng: np.random.Generator, sizes: list[int]) -> dict[str, FieldCurve]:
    return {
        f"f{number}": random_curve(
            rng, n_rows, dim=int(rng.integers(1, 9)), name=f"f{number}",
            sensitivity=float(rng.choice([0.5, 1.0, 4.0])),
        )
        for number, n_rows in enumerate(sizes)
    }  # fmt: skip


def span(curves: Mapping[str, FieldCurve]) -> tuple[int, int]:
    """Return the least bytes of all fields, and those of all tables."""
    least = sum(curve.hull()[0].nbytes for curve in curves.values())
    return least, sum(curve.table.nbytes for curve in curves.values())


def test_choice_is_the_greedy_one_and_what_is_left_buys_the_best(rng: np.random.Generator) -> None:
    curves = curves_of(rng, [1, 3, 40, 97, 300])
    hulls = {name: pairs(curve.hull()) for name, curve in curves.items()}
    scales = {name: curve.sensitivity for name, curve in curves.items()}
    least, most = span(curves)
    for budget in {least, least + 1, most, *rng.integers(least, most, 30).tolist()}:
        chosen = choose(curves, budget)
        places, ended = reference.greedy(hulls, scales, budget)
        expected = {name: hulls[name][place] for name, place in places.items()}
        left = budget - sum(nbytes for nbytes, _ in expected.values())
        for name in ended:
            best = curves[name].best(expected[name][0] + left)
            left -= best.nbytes - expected[name][0]
            expected[name] = best.nbytes, best.distortion
        assert {name: (p.nbytes, p.distortion) for name, p in chosen.items()} == expected
        assert bytes_of(chosen) <= budget


def test_of_fields_that_are_alike_the_first_gets_more() -> None:
    table = table_of(1000)
    points = tuple(point(table, k, 100 // k) for k in (1, 2, 3, 4))
    curves = {name: FieldCurve(table, points) for name in ("b", "a", "c")}
    step = points[1].nbytes - points[0].nbytes
    chosen = choose(curves, 3 * points[0].nbytes + step)
    assert {name: p.codewords for name, p in chosen.items()} == {"a": 2, "b": 1, "c": 1}


def test_no_combination_is_better_at_its_own_totals(rng: np.random.Generator) -> None:
    # Of four rows every number is measured, so that nothing lies between.
    curves = curves_of(rng, [4, 4, 4])
    hulls = {name: pairs(curve.hull()) for name, curve in curves.items()}
    scales = {name: curve.sensitivity for name, curve in curves.items()}
    everything = [pairs(curve.options()) for curve in curves.values()]
    least, most = span(curves)
    totals = set()
    for budget in range(least, most + 1):
        places, _ = reference.greedy(hulls, scales, budget)
        totals.add(sum(hulls[name][place][0] for name, place in places.items()))
        chosen = choose(curves, budget)
        best = reference.least_distortion(everything, list(scales.values()), budget)
        assert scaled(curves, chosen) >= best
    # the totals of an unbroken row of steps, each at a gain not above that of the one before
    reached = [total for total in sorted(totals) if _unbroken(hulls, scales, total)]
    assert len(reached) > 2
    for total in reached:
        chosen = choose(curves, total)
        best = reference.least_distortion(everything, list(scales.values()), total)
        assert scaled(curves, chosen) == best


def _unbroken(
    hulls: Mapping[str, list[reference.Option]], scales: Mapping[str, float], total: int
) -> bool:
    """Return whether steps taken by gain alone, none left out, meet this total."""
    steps = sorted(
        (-Fraction(scales[name]) * (Fraction(low[1]) - Fraction(high[1])) / (high[0] - low[0]),
         name, high[0] - low[0])
        for name, hull in hulls.items()
        for low, high in itertools.pairwise(hull)
    )  # fmt: skip
    reached = sum(hull[0][0] for hull in hulls.values())
    for *_, cost in steps:
        if reached == total:
            return True
        reached += cost
    return reached == total


def test_sensitivity_moves_bytes_towards_a_field() -> None:
    rng = np.random.default_rng(4)
    plain = {name: realistic_curve(rng, 3000, name=name) for name in ("a", "b", "c")}
    budget = 60_000
    before = choose(plain, budget)["b"]
    sizes = []
    for sensitivity in (0.01, 1.0, 100.0):
        curves = plain | {"b": replace(plain["b"], sensitivity=sensitivity)}
        sizes.append(choose(curves, budget)["b"].nbytes)
    assert sizes[0] < sizes[1] == before.nbytes < sizes[2]


def test_budget_out_of_reach_says_what_can_be_asked() -> None:
    # 12 bytes of int8 a codeword of ten, and one row of float16
    wide = table_of(3000, 10)
    curves = {
        "wide": FieldCurve(wide, (point(wide, 1, 9.0), point(wide, 1, 9.5, "int8"))),
        "row": FieldCurve(table_of(1, 1, "float16"), (point(table_of(1, 1), 1, 0.0),)),
    }
    assert bytes_of(choose(curves, 14)) == 14
    with pytest.raises(ParamError, match=r"13 bytes were given .* takes 14 of the tables' 120,002"):
        choose(curves, 13)
    with pytest.raises(ParamError, match=r"can be asked here is ratio=8571\.57$"):
        choose(curves, 13)
    assert int(120_002 / 8571.57) == 14  # and that can be


def test_more_than_the_tables_take_keeps_all_without_loss(rng: np.random.Generator) -> None:
    curves = curves_of(rng, [1, 97, 300])
    chosen = choose(curves, span(curves)[1])
    assert scaled(curves, chosen) == 0.0
    allocation = Allocation(curves, 10 * span(curves)[1])
    assert scaled(curves, allocation.chosen) == 0.0
    assert allocation.settled({name: as_estimated(p) for name, p in allocation.chosen.items()})


def test_numbers_near_the_ends_of_float64_are_split_too() -> None:
    table = table_of(500)
    sizes = {"huge": 1e300, "tiny": 5e-324, "none": 0.0}
    curves = {
        name: FieldCurve(table, tuple(point(table, k, d / k) for k in grid(500)), sensitivity=scale)
        for (name, d), scale in zip(sizes.items(), (1e300, 1e-300, 1.0), strict=True)
    }
    chosen = choose(curves, 4000)
    assert bytes_of(chosen) <= 4000
    assert chosen["none"].codewords == 1
    assert chosen["huge"].codewords > chosen["tiny"].codewords


# Rounds.


def as_estimated(chosen: Point) -> tuple[int, int]:
    return chosen.codewords, chosen.nbytes


def rounds_of(
    allocation: Allocation, found_of: Callable[[str, Point], tuple[int, int]], budget: int
) -> int:
    """Run an allocation to its end; return the rounds, after checks of the end."""
    for rounds in range(1, 2 * MOST_ROUNDS + 6):
        found = {name: found_of(name, p) for name, p in allocation.chosen.items()}
        if allocation.settled(found):
            assert sum(nbytes for _, nbytes in found.values()) <= budget
            return rounds
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("low", "high"), [(0.97, 1.03), (0.5, 2.0), (0.01, 1.0), (1.0, 40.0)])
def test_rounds_end_within_the_budget_however_wrong_the_estimates(
    seed: int, low: float, high: float
) -> None:
    rng = np.random.default_rng([seed, int(100 * low), int(100 * high)])
    curves = {
        f"f{n}": realistic_curve(rng, int(rng.integers(1, 20_000)), name=f"f{n}") for n in range(8)
    }
    least, most = span(curves)
    budget = int(rng.integers(least, most))
    errors: dict[tuple[str, int, str], float] = {}

    def found_of(name: str, chosen: Point) -> tuple[int, int]:
        # another error for each number: nothing is learnt from a round
        key = name, chosen.codewords, chosen.dtype
        share = errors.setdefault(key, float(rng.uniform(low, high)))
        table = curves[name].table
        codes = packed_size(table.n_rows, chosen.codewords) if chosen.dtype != "whole" else 0
        return chosen.codewords, chosen.codebook_bytes + round(codes * share)

    rounds_of(Allocation(curves, budget), found_of, budget)


@pytest.mark.parametrize("seed", range(8))
def test_one_error_a_field_is_learnt_and_the_budget_used(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curves = {
        f"f{n}": realistic_curve(rng, int(rng.integers(200, 20_000)), name=f"f{n}")
        for n in range(30)
    }
    errors = {name: float(rng.uniform(0.7, 1.2)) for name in curves}
    budget = int(span(curves)[1] * rng.uniform(0.02, 0.5))
    used = 0

    def found_of(name: str, chosen: Point) -> tuple[int, int]:
        nonlocal used
        if name == "f0":
            used = 0
        planes = packed_size(curves[name].table.n_rows, chosen.codewords)
        codes = 0 if chosen.dtype == "whole" else round(planes * errors[name])
        used += chosen.codebook_bytes + codes
        return chosen.codewords, chosen.codebook_bytes + codes

    assert rounds_of(Allocation(curves, budget), found_of, budget) <= MOST_ROUNDS
    assert used >= LEAST_USED * budget


def test_where_nothing_more_can_be_had_a_round_is_the_last() -> None:
    # Two codewords are within the budget, three are not: codes get a bit longer.
    table = table_of(100_000, 1)
    curve = FieldCurve(table, tuple(point(table, k, 8 // k) for k in (1, 2, 3, 4)))
    budget = curve.points[2].nbytes - 1
    allocation = Allocation({"x": curve}, budget)
    assert allocation.chosen["x"].codewords == 2
    assert rounds_of(allocation, lambda _, chosen: as_estimated(chosen), budget) == 1


def test_fewer_codewords_than_asked_end_too() -> None:
    rng = np.random.default_rng(1)
    curves = {name: realistic_curve(rng, 5000, name=name) for name in ("a", "b")}
    budget = span(curves)[1] // 4

    def found_of(name: str, chosen: Point) -> tuple[int, int]:
        if name == "b" or chosen.dtype == "whole":
            return as_estimated(chosen)
        k = min(3, chosen.codewords)
        return k, codebook_bytes(k, 8, chosen.dtype) + packed_size(5000, k)

    allocation = Allocation(curves, budget)
    before = allocation.chosen
    rounds_of(allocation, found_of, budget)
    # what "a" leaves goes to "b"
    assert allocation.chosen["a"].nbytes == found_of("a", allocation.chosen["a"])[1]
    assert allocation.chosen["b"].codewords > before["b"].codewords
    left = budget - allocation.chosen["a"].nbytes
    assert allocation.chosen["b"].distortion == curves["b"].best(left).distortion


def test_the_share_is_of_what_was_measured_however_often_it_was_corrected() -> None:
    table = table_of(5000, 1)
    points = [in_levels(table, k, 100 / k, 600 + k) for k in (16, 24, 32, 48, 64)]
    curve = FieldCurve(table, tuple(points))
    allocation = Allocation({"x": curve}, 800)
    for codes in (700, 610, 690):
        one = allocation.chosen["x"]
        allocation.settled({"x": (one.codewords, one.codebook_bytes + codes)})
        measured = curve.measured_code_bytes(one.codewords, "float32")
        assert allocation.curves["x"].code_share == codes / measured


def test_all_of_a_small_budget_is_tried() -> None:
    # A codeword takes 16 bytes of 301; codes of 17 to 32 take 13.
    table = table_of(20)
    curve = FieldCurve(table, tuple(point(table, k, 20 - k) for k in grid(20)))
    allocation = Allocation({"x": curve}, 18 * 16 + 13)
    assert allocation.chosen["x"].codewords == 17
    assert rounds_of(allocation, lambda _, chosen: as_estimated(chosen), 18 * 16 + 13) == 2
    assert allocation.chosen["x"].codewords == 18


@pytest.mark.parametrize("seed", range(12))
def test_more_bytes_are_not_spent_on_more_distortion(seed: int) -> None:
    # as the first choice of more bytes may, where fields have steps of other sizes
    rng = np.random.default_rng(seed)
    curves = curves_of(rng, [60, 200, 500])
    least, most = span(curves)
    budget = int(rng.integers(least, most))
    allocation = Allocation(curves, budget)
    before = scaled(curves, allocation.chosen)
    rounds_of(allocation, lambda _, chosen: as_estimated(chosen), budget)
    assert scaled(curves, allocation.chosen) <= before


def test_the_best_of_the_rounds_is_returned_to() -> None:
    # Codes of an even number of codewords take twice their bytes, of an odd one a hundredth.
    rng = np.random.default_rng(3)
    curve = realistic_curve(rng, 4000, dim=1)
    budget = curve.table.nbytes // 4
    seen: list[int] = []

    def found_of(_: str, chosen: Point) -> tuple[int, int]:
        planes = packed_size(4000, chosen.codewords)
        codes = round(planes * (0.01 if chosen.codewords % 2 else 2.0))
        seen.append(chosen.codebook_bytes + codes)
        return chosen.codewords, seen[-1]

    rounds_of(Allocation({"x": curve}, budget), found_of, budget)
    assert seen[-1] == max(size for size in seen if size <= budget)


def test_what_a_checkpoint_keeps_leads_to_the_same_choice() -> None:
    rng = np.random.default_rng(2)
    curves = {f"f{n}": realistic_curve(rng, 900 * (n + 1), name=f"f{n}") for n in range(5)}
    budget = span(curves)[1] // 10
    first = Allocation(curves, budget)
    rounds: list[dict[str, tuple[int, int]]] = []
    for share in (1.5, 0.4, 1.1):
        found = {
            name: (p.codewords, p.codebook_bytes + round(share * p.code_bytes))
            for name, p in first.chosen.items()
        }
        rounds.append(found)
        first.settled(found)
    kept = json.loads(json.dumps({n: [asdict(p) for p in c.points] for n, c in curves.items()}))
    again = Allocation(
        {n: FieldCurve(c.table, tuple(Point(**p) for p in kept[n])) for n, c in curves.items()},
        budget,
    )
    for found in json.loads(json.dumps(rounds)):
        again.settled(found)
    assert again.chosen == first.chosen
    assert again.curves == first.curves


def test_a_thousand_small_fields() -> None:
    rng = np.random.default_rng(5)
    curves = {
        f"f{n}": realistic_curve(rng, int(rng.integers(1, 60)), name=f"f{n}") for n in range(1000)
    }
    for share in (0.3, 0.9):
        budget = int(share * span(curves)[1])
        allocation = Allocation(curves, budget)
        assert LEAST_USED * budget <= bytes_of(allocation.chosen) <= budget
        assert allocation.settled({name: as_estimated(p) for name, p in allocation.chosen.items()})


def test_the_grid_is_geometric_and_ends_with_all_rows_or_the_most() -> None:
    for n_rows in (1, 2, 3, 7, 100, MOST_MEASURED, MOST_MEASURED + 1, 10**9):
        numbers = grid(n_rows)
        assert numbers[0] == 1
        assert numbers[-1] == min(n_rows, MOST_MEASURED)
        for low, high in itertools.pairwise(numbers):
            assert low < high <= max(2 * low, low + 1)
            assert (low & (low - 1)) * ((low // 3) & (low // 3 - 1)) == 0
