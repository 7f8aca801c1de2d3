"""Codewords per field under one budget of bytes: the least weighted distortion of all tables.

Each field's curve is reduced to its lower convex hull, from no codeword kept to every row kept
whole. Steps along the hulls are taken in order of what they spare for a byte (the greedy choice of
Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP
36(9), 1988, which is the best there is at each of its own totals); what is left is spent off the
hulls and between points of the curves, field by field.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

from saec_gpu.clustering.asked import MOST_CODEWORDS
from saec_gpu.clustering.curves import MOST_MEASURED, Point, grid
from saec_gpu.codewords import CODEWORDS_DTYPES, CodewordsDtype, codebook_bytes
from saec_gpu.errors import ParamError
from saec_gpu.packing import packed_size
from saec_gpu.sources import TableField

FIRST_AIM = 0.99  # of the budget: estimates of code bytes err by a hundredth or so
NEXT_AIM = 0.996  # once they were corrected
LESS_AFTER_EXCESS = 0.004  # of the budget; twice as much each time, so that it ends
NEAR_THE_END = 2  # points of a curve, a doubling: so far a choice is not moved by what follows
LEAST_USED = 0.98  # of the budget, where more could be used at all
MOST_ROUNDS = 6  # then the best choice within the budget is returned to


@dataclass(frozen=True)
class FieldCurve:
    """What choosing needs to know of one field.

    Attributes
    ----------
    table : TableField
    points : tuple of Point
        As measured.
    sensitivity : float
        Scales the distortion.
    code_share : float
        Bytes of its codes as they were last found to be, relative to those measured; 1 before.
    known : tuple of Point
        What was chosen before, with the bytes that were found.
    bit_price : float
        λ for which the points were measured (rules.py); 0: codes are those of the nearest.
    """

    table: TableField
    points: tuple[Point, ...]
    sensitivity: float = 1.0
    code_share: float = 1.0
    known: tuple[Point, ...] = ()
    bit_price: float = 0.0

    def options(self) -> list[Point]:
        """Return the points, code bytes corrected, those beyond and that of all rows kept."""
        whole = Point(self.table.n_rows, "whole", 0.0, self.table.nbytes, 0)
        return [*(one for same in self._by_dtype for one in same), whole]

    @cached_property
    def _by_dtype(self) -> list[list[Point]]:
        """Return the points of each dtype by number of codewords, code bytes corrected.

        So many codewords are taken to have as long codes in the dtypes for which these were not
        found. A field where fewer were found than asked gets no more.
        """
        most = min((one.codewords for one in self.known if self._is_less(one)), default=math.inf)
        found = []
        for dtype in CODEWORDS_DTYPES:
            same = [
                replace(one, code_bytes=round(one.code_bytes * self.code_share))
                for one in self._extended(dtype)
            ]
            points = {one.codewords: one for one in same}
            for one in self.known:
                if same and same[0].codewords <= one.codewords <= same[-1].codewords:
                    own = self._at(same, one.codewords)
                    points[one.codewords] = replace(own, code_bytes=one.code_bytes)
            points |= {one.codewords: one for one in self.known if one.dtype == dtype}
            found.append([points[number] for number in sorted(points) if number <= most])
        return found

    def _is_less(self, one: Point) -> bool:
        """Return whether fewer codewords were found than the point says."""
        return one.codebook_bytes < codebook_bytes(one.codewords, self.table.dim, one.dtype)

    def _extended(self, dtype: CodewordsDtype) -> list[Point]:
        """Return the points of a dtype, and those of more codewords than were measured.

        There each doubling is taken to spare the share of the distortion that the last measured
        one did, and to make the codes longer as planes get longer.
        """
        same = sorted((p for p in self.points if p.dtype == dtype), key=lambda p: p.codewords)
        half = MOST_MEASURED // 2
        if not same or same[-1].codewords < MOST_MEASURED or same[0].codewords > half:
            return same
        last, before = same[-1], self._at(same, half)
        if min(before.distortion, last.distortion) == 0.0:
            return same
        share = last.distortion / before.distortion
        most = min(self.table.n_rows, MOST_CODEWORDS)
        planes = packed_size(self.table.n_rows, last.codewords)
        for codewords in grid(most, most):
            if codewords > last.codewords:
                longer = packed_size(self.table.n_rows, codewords) - planes
                same.append(
                    Point(
                        codewords, dtype, self._at(same, codewords // 2).distortion * share,
                        codebook_bytes(codewords, self.table.dim, dtype), last.code_bytes + longer,
                    )
                )  # fmt: skip
        return same

    def hull(self) -> list[Point]:
        """Return the options that some price of a byte makes best, from the smallest on."""
        kept: list[Point] = []
        for one in sorted(self.options(), key=lambda p: (p.nbytes, p.distortion, p.dtype)):
            if kept and one.distortion >= kept[-1].distortion:
                continue
            while len(kept) > 1 and _gain(kept[-2], kept[-1]) <= _gain(kept[-2], one):
                kept.pop()
            kept.append(one)
        return kept

    def best(self, most_bytes: int) -> Point:
        """Return the least distortion that can be had for so many bytes, in any dtype.

        The bytes must be enough for one of the options.
        """
        found = [one for one in self.options() if one.nbytes <= most_bytes]
        for same in self._by_dtype:
            for one, other in pairwise(same):
                between = range(one.codewords + 1, other.codewords)
                place = bisect_right(between, most_bytes, key=partial(self._nbytes_at, same))
                if place > 0:
                    found.append(self._at(same, between[place - 1]))
        return min(found, key=lambda p: (p.distortion, p.nbytes, p.dtype))

    def measured_code_bytes(self, codewords: int, dtype: CodewordsDtype) -> int:
        """Return the bytes that codes take by what was measured, not corrected."""
        return self._at(self._extended(dtype), codewords).code_bytes

    def _at(self, same: list[Point], codewords: int) -> Point:
        """Return the point of a number of codewords, between those of the points of a dtype.

        Between two of these distortion is taken to change evenly, and so are the bytes of codes,
        where both have them in levels; else codes take what they do at the greater number, as those
        in planes do: there is a point at each power of two.
        """
        place = bisect_left(same, codewords, key=lambda p: p.codewords)
        other = same[place]
        if other.codewords == codewords:
            return other
        one = same[place - 1]
        part, gap = codewords - one.codewords, other.codewords - one.codewords
        code_bytes = other.code_bytes
        if self._in_levels(one) and self._in_levels(other):
            code_bytes -= (code_bytes - one.code_bytes) * (gap - part) // gap  # rounded up
        distortion = one.distortion + (other.distortion - one.distortion) * (part / gap)
        size = codebook_bytes(codewords, self.table.dim, other.dtype)
        return Point(codewords, other.dtype, distortion, size, code_bytes)

    def _nbytes_at(self, same: list[Point], codewords: int) -> int:
        return self._at(same, codewords).nbytes

    def _in_levels(self, one: Point) -> bool:
        return one.code_bytes < packed_size(self.table.n_rows, one.codewords)


def _gain(one: Point, other: Point) -> float:
    """Return the distortion that a byte more spares."""
    return (one.distortion - other.distortion) / (other.nbytes - one.nbytes)


def choose(curves: Mapping[str, FieldCurve], budget: int) -> dict[str, Point]:
    """Return the point of each field, at most `budget` bytes together.

    Raises
    ------
    ParamError
        The least that every field can take is more than the budget.
    """
    hulls = {name: curve.hull() for name, curve in curves.items()}
    places = dict.fromkeys(hulls, 0)
    left = budget - sum(hull[0].nbytes for hull in hulls.values())
    if left < 0:
        least, table = budget - left, sum(curve.table.nbytes for curve in curves.values())
        most = math.floor(100 * table / least) / 100  # rounded down, so that it can be asked
        raise ParamError(
            f"{budget:,} bytes were given for all fields, but one codeword a field already takes "
            f"{least:,} of the tables' {table:,}; the most that can be asked here is ratio={most}"
        )
    steps: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        hull, place = hulls[name], places[name]
        if place + 1 < len(hull):
            gain = curves[name].sensitivity * _gain(hull[place], hull[place + 1])
            heapq.heappush(steps, (-gain, name))

    for name in hulls:
        offer(name)
    too_dear: list[str] = []  # the best first
    while steps:
        _, name = heapq.heappop(steps)
        hull, place = hulls[name], places[name]
        cost = hull[place + 1].nbytes - hull[place].nbytes
        if cost > left:
            too_dear.append(name)
            continue
        places[name] += 1
        left -= cost
        offer(name)
    chosen = {name: hull[places[name]] for name, hull in hulls.items()}
    for name in too_dear:
        left += chosen[name].nbytes
        chosen[name] = curves[name].best(left)
        left -= chosen[name].nbytes
    return chosen


def price_of_a_byte(curves: Mapping[str, FieldCurve], budget: int) -> float:
    """Return the distortion, times sensitivity, that one more byte than the budget would spare.

    That is what the first step along the hulls spares for a byte which leads beyond the budget, all
    steps in order of it; 0.0 if none does.
    """
    hulls = {name: curve.hull() for name, curve in curves.items()}
    steps = [
        (curves[name].sensitivity * _gain(one, other), other.nbytes - one.nbytes)
        for name, hull in hulls.items()
        for one, other in pairwise(hull)
    ]
    used = sum(hull[0].nbytes for hull in hulls.values())
    for gain, cost in sorted(steps, key=lambda step: -step[0]):
        used += cost
        if used > budget:
            return gain
    return 0.0


def unsettled(curves: Mapping[str, FieldCurve], budget: int) -> set[str]:
    """Return the fields whose points would be at the end of what was measured, or nearly.

    What other fields may want beyond that leaves fewer bytes for a field: one that is far from its
    end now is taken not to come there later.
    """
    found = set()
    within = max(budget, _least_bytes(curves))  # the least may be out of reach
    for name, point in choose(curves, within).items():
        last = sorted({one.codewords for one in curves[name].points})[-NEAR_THE_END:]
        if point.dtype == "whole" or point.codewords >= last[0]:
            found.add(name)
    return found


class Allocation:
    """A choice that is corrected until the bytes that came of it are within the budget, and use it.

    Parameters
    ----------
    curves : mapping of name to FieldCurve
    budget : int
        Counted bytes of all fields.

    Attributes
    ----------
    chosen : dict of name to Point
    """

    def __init__(self, curves: Mapping[str, FieldCurve], budget: int) -> None:
        self.curves = dict(curves)
        self._budget = budget
        self._aim = FIRST_AIM
        self._enough, self._too_much = 0.0, math.inf  # aims that were seen to be
        self._less = LESS_AFTER_EXCESS
        self._rounds = 0
        self._kept: tuple[int, dict[str, Point]] | None = None
        self._all_tried = False
        self._last = False
        self.chosen = self._choose()

    def _choose(self) -> dict[str, Point]:
        least = min(_least_bytes(self.curves), self._budget)
        return choose(self.curves, max(int(self._budget * self._aim), least))

    def settled(self, found: Mapping[str, Sequence[int]]) -> bool:
        """Return whether what was found of each field will do; if not, choose anew.

        Given are its number of codewords, that of its rows if they are kept, and its counted bytes.

        Where most of a budget stays free though nothing more can be had for all of it, that will do
        too, and so will the best of some rounds. Every field's least is met exactly, so an end is
        reached however wrong the estimates are.
        """
        used = sum(nbytes for _, nbytes in found.values())
        fits = used <= self._budget
        self._correct(found)
        if fits and (self._last or used >= LEAST_USED * self._budget):
            return True
        if fits and (self._kept is None or used > self._kept[0]):
            self._kept = used, self.chosen
        if fits:
            self._enough = max(self._enough, self._aim)
        else:
            self._too_much = min(self._too_much, self._aim)
        self._aim = self._next_aim()
        self._rounds += 1
        before, self.chosen = self.chosen, self._choose()
        if fits and not self._spares(before) and not self._all_tried:
            self._aim, self._all_tried = 1.0, True
            self.chosen = self._choose()
        nothing_new = fits and not self._spares(before)
        if self._kept is not None and (nothing_new or self._rounds >= MOST_ROUNDS):
            self._last = True
            self.chosen = self._kept[1]
        return fits and _sizes(before) == _sizes(self.chosen)

    def _spares(self, before: Mapping[str, Point]) -> bool:
        """Return whether the choice promises less distortion than one before."""
        return self._distortion(self.chosen) < self._distortion(before)

    def _distortion(self, chosen: Mapping[str, Point]) -> float:
        return math.fsum(
            self.curves[name].sensitivity * point.distortion for name, point in chosen.items()
        )

    def _next_aim(self) -> float:
        """Return a share of the budget between what was enough and what was too much, if both were.

        Estimates were corrected since, so the two may have changed places.
        """
        if self._too_much == math.inf:
            return NEXT_AIM
        if 0.0 < self._enough < self._too_much:
            return (self._enough + self._too_much) / 2
        less, self._less = self._less, 2 * self._less
        return self._too_much - less

    def _correct(self, found: Mapping[str, Sequence[int]]) -> None:
        """Correct the estimates by the codewords and bytes that were found.

        Where a sample had fewer distinct rows than codewords were asked, nothing is learnt of the
        codes of other numbers.
        """
        for name, point in self.chosen.items():
            if point.dtype == "whole":
                continue
            curve = self.curves[name]
            codewords, nbytes = found[name]
            codebook = codebook_bytes(codewords, curve.table.dim, point.dtype)
            codes = nbytes - codebook
            measured = curve.measured_code_bytes(point.codewords, point.dtype)
            share = curve.code_share
            if codewords == point.codewords and min(codes, measured) > 0:
                share = codes / measured
            as_found = replace(point, codebook_bytes=codebook, code_bytes=codes)
            self.curves[name] = replace(curve, code_share=share, known=(*curve.known, as_found))


def _least_bytes(curves: Mapping[str, FieldCurve]) -> int:
    """Return the fewest bytes that all fields can take together."""
    return sum(min(one.nbytes for one in curve.options()) for curve in curves.values())


def _sizes(chosen: Mapping[str, Point]) -> dict[str, tuple[int, str]]:
    return {name: (point.codewords, point.dtype) for name, point in chosen.items()}
