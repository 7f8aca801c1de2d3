"""Rows that wait in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from saec_gpu.backends.protocol import StorePlan
from saec_gpu.data import Chunk, Float64
from saec_gpu.layout import Layout, Segment


class HostStore:
    """A store (`RowStore`) in host memory, for backends that load rows from there as they go.

    Parameters
    ----------
    plan : StorePlan
    reads_held : int
        Reads of rows that do not stay which are held at once.
    load : function
        The backend's `load_rows`.
    """

    def __init__(self, plan: StorePlan, reads_held: int, load: Callable[[Chunk], Any]) -> None:
        resident = plan.resident
        self._places = {segment.field: segment for segment in resident.segments}
        self._held = Chunk(
            resident,
            np.empty(resident.n_values, plan.dtype),
            np.ones(resident.n_rows) if plan.weighted else None,
        )
        self._slots = [
            (np.empty(plan.read_values, plan.dtype), np.empty(plan.read_rows * plan.weighted))
            for _ in range(reads_held)
        ]
        self._weighted = plan.weighted
        self._next = 0
        self._load = load
        self._whole: Any = None

    def room(self, layout: Layout, *, stays: bool) -> Chunk:
        """Return memory to read these rows of one field into."""
        if stays:
            return self._view(layout)
        values, weights = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        n_rows, n_values = layout.n_rows, layout.n_values
        return Chunk(layout, values[:n_values], weights[:n_rows] if self._weighted else None)

    def put(self, chunk: Chunk, *, stays: bool) -> Any:
        """Return the rows as the backend loads them."""
        if stays:
            self._whole = None
        return self._load(chunk)

    def part(self, layout: Layout) -> Any:
        """Return rows of one field that were put to stay."""
        return self._load(self._view(layout))

    def whole(self) -> Any:
        """Return all rows that were put to stay."""
        if self._whole is None:
            self._whole = self._load(self._held)
        return self._whole

    def weights(self, layout: Layout) -> Float64 | None:
        """Return the weights of rows of one field that were put to stay."""
        return self._view(layout).weights

    def _view(self, layout: Layout) -> Chunk:
        (segment,) = layout.segments
        place = placed(self._places[segment.field], segment)
        weights = self._held.weights
        return Chunk(
            layout,
            self._held.values[place.values],
            None if weights is None else weights[place.rows],
        )


def placed(field: Segment, part: Segment) -> Segment:
    """Return where rows of a field lie in the buffers that hold all of them."""
    ahead = part.start - field.start
    return Segment(
        part.field, part.start, part.n_rows, part.dim,
        field.first_row + ahead, field.first_value + ahead * field.dim,
    )  # fmt: skip
