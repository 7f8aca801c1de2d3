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

WHOLE = "whole"  # the dtype of a point at which rows are kept as they are


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
        Counted bytes of its codes that were found, relative to those estimated; 1 before.
    """

    table: TableField
    points: tuple[Point, ...]
    sensitivity: float = 1.0
    code_share: float = 1.0

    def options(self) -> list[Point]:
        """Return the points with sensitivity and share applied, and that of all rows kept."""
        whole = Point(self.table.n_rows, WHOLE, 0.0, self.table.nbytes, 0)
        scaled = [
            replace(
                one,
                distortion=one.distortion * self.sensitivity,
                code_bytes=round(one.code_bytes * self.code_share),
            )
            for one in self.points
        ]
        return [*scaled, whole]

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

        Between two measured numbers code bytes are taken to grow evenly.
        """
        same = sorted(
            (p for p in self.options() if p.dtype == low.dtype), key=lambda p: p.codewords
        )
        found = None
        for one, other in pairwise(p for p in same if p.codewords >= low.codewords):
            steps = other.codewords - one.codewords
            a, b = 0, steps
            while a < b:
                middle = (a + b + 1) // 2
                if self._at(one, other, middle).nbytes <= most_bytes:
                    a = middle
                else:
                    b = middle - 1
            if a > 0:
                found = self._at(one, other, a)
            if a < steps:
                break
        return found

    def _at(self, one: Point, other: Point, step: int) -> Point:
        share = step / (other.codewords - one.codewords)
        k = one.codewords + step
        return Point(
            k, one.dtype, one.distortion + (other.distortion - one.distortion) * share,
            codebook_bytes(k, self.table.dim, one.dtype),
            one.code_bytes + round((other.code_bytes - one.code_bytes) * share),
        )  # fmt: skip


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
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(point.nbytes for point in chosen.values())
    if left < 0:
        least, table = budget - left, sum(curve.table.nbytes for curve in curves.values())
        raise ParamError(
            f"a budget of {budget:,} bytes was given, but one codeword a field already takes "
            f"{least:,} of the tables' {table:,} bytes; the greatest ratio that can be asked here "
            f"is {table / least:.4g}"
        )
    places = dict.fromkeys(hulls, 0)
    steps: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        hull, place = hulls[name], places[name]
        if place + 1 < len(hull):
            heapq.heappush(steps, (-_gain(hull[place], hull[place + 1]), name))

    for name in hulls:
        offer(name)
    dropped: list[str] = []
    while steps:
        _, name = heapq.heappop(steps)
        more = hulls[name][places[name] + 1]
        cost = more.nbytes - chosen[name].nbytes
        if cost > left:
            dropped.append(name)  # the best first
            continue
        chosen[name] = more
        places[name] += 1
        left -= cost
        offer(name)
    for name in dropped:
        if chosen[name].dtype == WHOLE:
            continue
        between = curves[name].between(chosen[name], chosen[name].nbytes + left)
        if between is not None:
            left -= between.nbytes - chosen[name].nbytes
            chosen[name] = between
    return chosen
