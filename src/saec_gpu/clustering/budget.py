"""Codewords per field under one budget of bytes: the least weighted distortion of all tables.

Each field's curve is reduced to its lower convex hull, from no codeword kept to every row kept
whole. Steps along the hulls are taken in order of what they spare for a byte (the greedy choice of
Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE Trans. ASSP
36(9), 1988, which is the best there is at each of its own totals); what is left is spent between
points of the curves.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from saec_gpu.clustering.curves import Point
from saec_gpu.codewords import codebook_bytes
from saec_gpu.errors import ParamError
from saec_gpu.sources import TableField

FIRST_AIM = 0.99  # of the budget: estimates of code bytes err by a hundredth or so
NEXT_AIM = 0.996  # once they were corrected
LESS_EACH_TIME = 0.004
NEAR_THE_END = 2  # points of a curve: one beyond the choice says that it is none to go past
LEAST_USED = 0.98  # of the budget, where more could be used at all


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
        Bytes of its codes as they were found to be, relative to those estimated; 1 before.
    """

    table: TableField
    points: tuple[Point, ...]
    sensitivity: float = 1.0
    code_share: float = 1.0

    def options(self) -> list[Point]:
        """Return the points, code bytes corrected, and that of all rows kept."""
        whole = Point(self.table.n_rows, "whole", 0.0, self.table.nbytes, 0)
        corrected = [
            replace(one, code_bytes=round(one.code_bytes * self.code_share)) for one in self.points
        ]
        return [*corrected, whole]

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

    def between(self, low: Point, most_bytes: int) -> Point | None:
        """Return the greatest number of codewords above `low`, of its dtype, within the bytes.

        Between two measured numbers everything is taken to change evenly.
        """
        if low.dtype == "whole":
            return None
        same = [p for p in self.options() if p.dtype == low.dtype and p.codewords >= low.codewords]
        found = None
        for one, other in pairwise(sorted(same, key=lambda p: p.codewords)):
            steps = other.codewords - one.codewords
            fit, beyond = 0, steps + 1
            while beyond - fit > 1:
                middle = (fit + beyond) // 2
                if self._at(one, other, middle).nbytes <= most_bytes:
                    fit = middle
                else:
                    beyond = middle
            if fit > 0:
                found = self._at(one, other, fit)
            if fit < steps:
                break
        return found

    def _at(self, one: Point, other: Point, step: int) -> Point:
        """Return the point `step` codewords after one of two neighbours."""
        share = step / (other.codewords - one.codewords)
        codewords = one.codewords + step
        return replace(
            one,
            codewords=codewords,
            distortion=one.distortion + (other.distortion - one.distortion) * share,
            codebook_bytes=codebook_bytes(codewords, self.table.dim, one.dtype),
            code_bytes=one.code_bytes + round((other.code_bytes - one.code_bytes) * share),
        )


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
        raise ParamError(
            f"{budget:,} bytes were given for all fields, but one codeword a field already takes "
            f"{least:,} of the tables' {table:,}; the most that can be asked here is "
            f"ratio={table / least:.4g}"
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
        one = chosen[name]
        chosen[name] = curves[name].between(one, one.nbytes + left) or one
        left -= chosen[name].nbytes - one.nbytes
    return chosen


def unsettled(curves: Mapping[str, FieldCurve], budget: int) -> set[str]:
    """Return the fields whose points would be at the end of what was measured, or nearly.

    What other fields may want beyond that leaves fewer bytes for a field: one that is not at its
    end now would not be there later.
    """
    found = set()
    for name, point in choose(curves, budget).items():
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
        self.chosen = choose(self.curves, self._bytes_aimed_at())

    def _bytes_aimed_at(self) -> int:
        least = sum(curve.hull()[0].nbytes for curve in self.curves.values())
        return max(int(self._budget * self._aim), min(least, self._budget))

    def settled(self, found: Mapping[str, int]) -> bool:
        """Return whether the bytes found of each field will do; if not, choose anew.

        Where most of a budget stays free though nothing more can be had for it, that will do too.
        """
        used = sum(found.values())
        for name, point in self.chosen.items():
            codes = found[name] - point.codebook_bytes
            if point.dtype != "whole" and point.code_bytes > 0 and codes > 0:
                share = self.curves[name].code_share * codes / point.code_bytes
                self.curves[name] = replace(self.curves[name], code_share=share)
        if LEAST_USED * self._budget <= used <= self._budget:
            return True
        self._aim = min(NEXT_AIM, self._aim if used < self._budget else self._aim - LESS_EACH_TIME)
        if used < self._budget:
            self._aim = NEXT_AIM
        before, self.chosen = self.chosen, choose(self.curves, self._bytes_aimed_at())
        return used <= self._budget and _sizes(before) == _sizes(self.chosen)


def _sizes(chosen: Mapping[str, Point]) -> dict[str, tuple[int, str]]:
    return {name: (point.codewords, point.dtype) for name, point in chosen.items()}
