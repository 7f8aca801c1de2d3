"""Where rows lie: all index arithmetic of the package.

A chunk holds rows of one field or of many in one flat buffer. Each run of rows of one field is a
segment; tiles are the rows of one segment that one task takes. All positions are Python ints or
int64, whatever the size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from saec_gpu.errors import LayoutError

TILE_VALUES = 1 << 16  # 256 KiB of float32 stay in the second cache between their two uses
TILE_ROWS = 4096
LEAST_TILE_ROWS = 64


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `start + n_rows` of one field, at known places of a chunk's flat buffers."""

    field: str
    start: int
    n_rows: int
    dim: int
    first_row: int
    first_value: int

    @property
    def rows(self) -> slice:
        """Return the segment's place in buffers of one entry a row (codes, weights, distances)."""
        return slice(self.first_row, self.first_row + self.n_rows)

    @property
    def values(self) -> slice:
        """Return the segment's place in the flat buffer of values."""
        return slice(self.first_value, self.first_value + self.n_rows * self.dim)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Return (first row within the segment, number of rows) of each tile, in order."""
        step = min(TILE_ROWS, max(LEAST_TILE_ROWS, TILE_VALUES // self.dim))
        for first in range(0, self.n_rows, step):
            yield first, min(step, self.n_rows - first)


@dataclass(frozen=True)
class Layout:
    """The segments of one chunk, one after another."""

    segments: tuple[Segment, ...]
    n_rows: int
    n_values: int


def lay_out(runs: Iterable[tuple[str, int, int, int]]) -> Layout:
    """Return the layout of runs (field, first row in the field, number of rows, dim) in this order.

    Raises
    ------
    LayoutError
        A run has a negative start, fewer than no rows, or no columns.
    """
    segments: list[Segment] = []
    first_row = first_value = 0
    for field, start, n_rows, dim in runs:
        if start < 0 or n_rows < 0 or dim < 1:
            raise LayoutError(
                f'rows {start} to {start + n_rows} of {dim} columns were asked of field "{field}"; '
                "a run of rows starts at 0 or later, is not negative and has at least one column"
            )
        segments.append(Segment(field, start, n_rows, dim, first_row, first_value))
        first_row += n_rows
        first_value += n_rows * dim
    return Layout(tuple(segments), first_row, first_value)
