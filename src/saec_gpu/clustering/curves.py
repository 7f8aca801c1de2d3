"""Distortion curves: what a field's codewords, in number and in dtype, cost and spare.

A curve is measured on a coreset of the field, clustered as a table of its own with few passes. A
field of no more rows than the coreset is measured whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.error import ExactSum
from saec_gpu.clustering.lloyd import FieldFit, fit, sample_variance
from saec_gpu.clustering.margin import distances_of
from saec_gpu.clustering.rules import CostRule, RuledCodebooks, constrained, estimated_uses
from saec_gpu.clustering.seeding import Seeds
from saec_gpu.clustering.selection import Selection, chunk_of_selections
from saec_gpu.clustering.statistics import fixed_point
from saec_gpu.codewords import CodewordsDtype, codebook_bytes, store
from saec_gpu.data import Codebook, Float32, Int64
from saec_gpu.errors import ParamError
from saec_gpu.layout import Segment
from saec_gpu.levels import shorter_levels
from saec_gpu.packing import packed_size
from saec_gpu.sources import TableField
from saec_gpu.threads import in_threads

CORESET_ROWS = 1 << 16
# Of a larger coreset's rows 16 a codeword are left at least: fewer flatter their own codewords.
MOST_MEASURED = CORESET_ROWS // 16
PASSES = 3  # a curve needs no more: what later passes gain is much alike for all numbers
TOLERANCE = 1e-3
LOOKED_AT = {1 << i for i in range(5, 20)}  # before so many: who wants them?
GROUP_BYTES = 1 << 26  # of rows that are measured together: many small fields in one pass


@dataclass(frozen=True)
class Point:
    """One way to compress a field.

    Attributes
    ----------
    codewords : int
    dtype : {"float32", "float16", "int8", "whole"}
        In which they are stored; "whole": the rows themselves are.
    distortion : float
        Σ w·dist over the field, estimated.
    codebook_bytes, code_bytes : int
        Counted bytes, the latter estimated.
    """

    codewords: int
    dtype: CodewordsDtype | Literal["whole"]
    distortion: float
    codebook_bytes: int
    code_bytes: int

    @property
    def nbytes(self) -> int:
        """Return the counted bytes."""
        return self.codebook_bytes + self.code_bytes


def grid(n_rows: int, most: int = MOST_MEASURED) -> list[int]:
    """Return the numbers of codewords at which a field is measured: 1, 2, 3, 4, 6, 8, 12 and so on.

    >>> grid(5), grid(1), grid(100, 7)
    ([1, 2, 3, 4, 5], [1], [1, 2, 3, 4, 6, 7])
    """
    most = min(n_rows, most)
    steps = {base << i for base in (2, 3) for i in range(most.bit_length())}
    return sorted({1, most, *(step for step in steps if step < most)})


def grid_from(n_rows: int, least: int) -> list[int]:
    """Return these numbers from one on, the greatest of them in any case.

    >>> grid_from(5, 3), grid_from(5, 9)
    ([3, 4, 5], [5])
    """
    numbers = grid(n_rows)
    return [number for number in numbers if number >= min(least, numbers[-1])]


def measure(
    backend: Backend,
    fields: Sequence[TableField],
    select: Callable[[TableField], Selection],
    *,
    dtypes: Sequence[CodewordsDtype],
    in_levels: bool,
    bit_prices: Mapping[str, float],
    least: Mapping[str, int],
    seed: int,
    wanted: Callable[[Mapping[str, Sequence[Point]]], Collection[str]],
    progress: Callable[[int], None],
) -> dict[str, tuple[Point, ...]]:
    """Return the curve of each field.

    Parameters
    ----------
    backend : Backend
    fields : sequence of TableField
        Each with rows.
    select : function
        Returns a field's coreset.
    dtypes : sequence of {"float32", "float16", "int8"}
        In which codewords may be stored.
    in_levels : bool
        Whether codes are stored in levels where these take fewer bytes than planes.
    bit_prices : mapping of name to float
        λ of the fields whose codes are chosen by error and length (rules.py).
    least : mapping of name to int
        Numbers of codewords from which on a field is measured, 1 if not named.
    seed : int
    wanted : function
        Given the curves so far, of some fields, returns the names of those that could want more
        codewords than were measured; the curves of others end there.
    progress : function
        Called with the number of fields that were measured since the last call.

    Raises
    ------
    ParamError
        Codewords are beyond float16, and that is the only dtype.
    """
    curves: dict[str, tuple[Point, ...]] = {}
    for group in _groups(fields):
        selections = {field.name: select(field) for field in group}
        points: dict[str, list[Point]] = {field.name: [] for field in group}
        measured = _Measured(backend, group, selections, seed)
        more = set(points)
        grids = {
            field.name: set(grid_from(field.n_rows, least.get(field.name, 1))) for field in group
        }
        for n_codewords in sorted(set().union(*grids.values())):
            if n_codewords in LOOKED_AT:
                begun = {name: own for name, own in points.items() if own}
                more &= {*wanted(begun), *(points.keys() - begun)}
            asked = [name for name, own in grids.items() if name in more and n_codewords in own]
            words = measured.fitted(asked, n_codewords)
            words, rules = measured.constrained(words, bit_prices)
            for name, own in measured.points(words, rules, dtypes, in_levels=in_levels).items():
                points[name] += own
        curves |= {name: tuple(found) for name, found in points.items()}
        progress(len(group))
    return curves


def _groups(fields: Sequence[TableField]) -> Iterator[list[TableField]]:
    """Yield fields whose coresets are in memory together."""
    group: list[TableField] = []
    held = 0
    for field in fields:
        size = min(field.n_rows, CORESET_ROWS) * (4 * field.dim + 32)
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(field)
        held += size
    if group:
        yield group


class _Measured:
    """The coresets of some fields where the backend works on them, and their seeds."""

    def __init__(
        self,
        backend: Backend,
        group: Sequence[TableField],
        selections: Mapping[str, Selection],
        seed: int,
    ) -> None:
        self._backend = backend
        self._selections = selections
        self.tables = {field.name: field for field in group}
        chunk = chunk_of_selections(selections)
        self._layout = chunk.layout
        self._rows = backend.load_rows(chunk)
        self._starts = {}  # what every fit of a field begins with but its codewords
        self._seeds = {}
        for field in group:
            most = grid(field.n_rows)[-1]
            statistics = selections[field.name].statistics(field.name, most, seed)
            self._starts[field.name] = (
                statistics, fixed_point(statistics), sample_variance(statistics.sample),
            )  # fmt: skip
            self._seeds[field.name] = Seeds(statistics.sample, seed, field.name)

    def fitted(self, names: Iterable[str], n_codewords: int) -> dict[str, Float32]:
        """Return the codewords of fields after a few passes."""
        asked = list(names)
        seeds = in_threads(
            lambda name: self._seeds[name].first(n_codewords), asked, self._backend.threads
        )
        fits = {
            name: FieldFit(*self._starts[name], first)
            for name, first in zip(asked, seeds, strict=True)
        }
        fit(
            self._backend, lambda _: [self._rows], fits, tol=TOLERANCE, max_iter=PASSES,
            after_pass=lambda _: None,
        )  # fmt: skip
        return {name: one.codewords for name, one in fits.items()}

    def constrained(
        self, codewords: Mapping[str, Float32], bit_prices: Mapping[str, float]
    ) -> tuple[dict[str, Float32], dict[str, CostRule]]:
        """Return codewords trained on for codes by cost where a bit has a price, and the rules."""
        priced = {
            name: words
            for name, words in codewords.items()
            if name in bit_prices and not self._met_exactly(name, len(words))
        }
        found = constrained(
            self._backend, self._rows, priced, bit_prices, self._selections,
            {name: one[0] for name, one in self._starts.items()},
            {name: table.n_rows for name, table in self.tables.items()},
        )  # fmt: skip
        words = {name: own for name, (own, _) in found.items()}
        rules = {name: rule for name, (_, rule) in found.items() if rule is not None}
        return {**codewords, **words}, rules

    def _met_exactly(self, name: str, n_codewords: int) -> bool:
        distinct = self._starts[name][0].distinct
        return distinct is not None and n_codewords >= len(distinct)

    def points(
        self,
        codewords: Mapping[str, Float32],
        rules: Mapping[str, CostRule],
        dtypes: Sequence[CodewordsDtype],
        *,
        in_levels: bool,
    ) -> dict[str, list[Point]]:
        """Return a point of each field for each dtype that holds its codewords.

        Codes are those of the codewords before they are stored: choosing anew for each dtype would
        change the distortion by far less than what is compared here differs by.
        """
        own = [one.weights / one.multiplicity for one in self._selections.values()]
        found = RuledCodebooks(
            self._backend, {name: Codebook(words) for name, words in codewords.items()}, rules
        ).assign(self._rows, np.concatenate(own))

        def of_segment(segment: Segment) -> tuple[str, list[Point]]:
            name = segment.field
            table, one, words = self.tables[name], self._selections[name], codewords[name]
            codes = found.codes[segment.rows]
            uses = estimated_uses(codes, len(words), one, table.n_rows, rules.get(name))
            if name in rules:
                code_bytes = rules[name].levels.of(uses).size
            else:
                code_bytes = _code_bytes(table.n_rows, uses, in_levels=in_levels)
            points = []
            for dtype in dtypes:
                stored = _storable(words, dtype, name, must=len(dtypes) == 1)
                if stored is not None:
                    size = codebook_bytes(len(words), table.dim, dtype)
                    distortion = _distortion(one, codes, stored)
                    points.append(Point(len(words), dtype, distortion, size, code_bytes))
            return name, points

        segments = [one for one in self._layout.segments if one.field in codewords]
        return dict(in_threads(of_segment, segments, self._backend.threads))


def _distortion(selection: Selection, codes: NDArray[np.uint32], codewords: Float32) -> float:
    """Return Σ w·dist of the rows of a selection, each to the codeword of its code."""
    distances = np.empty(len(codes))
    distances_of(selection.rows, codes.astype(np.int64), codewords, distances)
    total = ExactSum()
    total.add(selection.weights * distances)
    return total.value


def _storable(codewords: Float32, dtype: str, field: str, *, must: bool) -> Float32 | None:
    """Return codewords as a dtype holds them; an error or None where it cannot."""
    try:
        return store(codewords, dtype, field=field).decoded()
    except ParamError:
        if must:
            raise
        return None


def _code_bytes(n_rows: int, counts: Int64, *, in_levels: bool) -> int:
    """Return the bytes of the codes of all rows, from the rows of each codeword, in any order."""
    levels = shorter_levels(np.sort(counts)[::-1]) if in_levels else None
    return packed_size(n_rows, len(counts)) if levels is None else levels.size
