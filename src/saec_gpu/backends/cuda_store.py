"""Rows on a CUDA device: what stays there, and what passes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.device import Device, DeviceArray, Event, Stream
from saec_gpu.backends.host_store import placed
from saec_gpu.backends.protocol import StorePlan
from saec_gpu.data import Chunk, Float64
from saec_gpu.layout import Layout, Segment

# how the values of rows are stored, by the end of the kernels' names
ROW_KINDS: Mapping[str, str] = {"float32": "f32", "float16": "f16", "uint16": "bf16"}


@dataclass(eq=False)
class _Slot:
    """Memory of one read on its way: pinned on the host and, for rows that do not stay, a place.

    `copied` is when the host may write here again, `used` when the device may.
    """

    values: NDArray[Any]
    weights: Float64
    place: tuple[DeviceArray, DeviceArray] | None = None
    copied: Event | None = None
    used: Event | None = None


@dataclass(frozen=True, eq=False)
class CudaRows:
    """Rows on the device, once their copy is `ready`; of `slot` where they do not stay."""

    layout: Layout
    kind: str
    values: DeviceArray
    weights: DeviceArray | None
    ready: Event | None = None
    slot: _Slot | None = None


class CudaStore:
    """A store (`RowStore`) on the device: reads go through pinned memory, copies beside the work.

    A read waits in one of a ring of pinned slots for its copy. Rows that stay are copied to their
    place; others to a place of the slot's own, once what worked on the rows before them has ended.
    All of them as they are stored: the kernels widen.
    """

    def __init__(self, plan: StorePlan, reads_held: int, device: Device, stream: Stream) -> None:
        self._device = device
        self._stream = stream
        self._kind = ROW_KINDS[plan.dtype.name]
        self._layout = plan.resident
        self._places = {segment.field: segment for segment in plan.resident.segments}
        n_rows = plan.resident.n_rows
        self._values = device.empty(plan.resident.n_values, plan.dtype)
        self._weights = device.empty(n_rows, np.float64) if plan.weighted else None
        self._host_weights = np.empty(n_rows) if plan.weighted else None
        self._slots = [
            _Slot(
                device.pinned(plan.read_values, plan.dtype),
                device.pinned(plan.read_rows * plan.weighted, np.float64),
            )
            for _ in range(reads_held)
        ]
        self._next = 0
        self._ready: Event | None = None

    def room(self, layout: Layout, *, stays: bool) -> Chunk:
        """Return pinned memory to read these rows of one field into."""
        slot = self._slots[self._next]
        if slot.copied is not None:
            self._device.synchronize(slot.copied)
        n_rows, n_values = layout.n_rows, layout.n_values
        weighted = self._weights is not None
        return Chunk(layout, slot.values[:n_values], slot.weights[:n_rows] if weighted else None)

    def put(self, chunk: Chunk, *, stays: bool) -> CudaRows:
        """Return the rows, on their way to the device."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        if stays:
            rows = self.part(chunk.layout)
            if self._host_weights is not None:
                self._host_weights[self._place(chunk.layout).rows] = chunk.weights
        else:
            rows = self._passing(chunk.layout, slot)
        self._device.upload(chunk.values, rows.values, self._stream)
        if chunk.weights is not None:
            self._device.upload(chunk.weights, rows.weights, self._stream)
        slot.copied = self._device.record(self._stream)
        if stays:
            self._ready = slot.copied
        return replace(rows, ready=slot.copied)

    def part(self, layout: Layout) -> CudaRows:
        """Return rows of one field that were put to stay."""
        place = self._place(layout)
        weights = None if self._weights is None else self._weights[place.rows]
        return CudaRows(layout, self._kind, self._values[place.values], weights, self._ready)

    def whole(self) -> CudaRows:
        """Return all rows that were put to stay."""
        return CudaRows(self._layout, self._kind, self._values, self._weights, self._ready)

    def weights(self, layout: Layout) -> Float64 | None:
        """Return the weights, in host memory, of rows of one field that were put to stay."""
        return None if self._host_weights is None else self._host_weights[self._place(layout).rows]

    def _place(self, layout: Layout) -> Segment:
        (segment,) = layout.segments
        return placed(self._places[segment.field], segment)

    def _passing(self, layout: Layout, slot: _Slot) -> CudaRows:
        """Return a place for rows that do not stay, from which the work before has gone."""
        if slot.place is None:
            slot.place = (
                self._device.empty(len(slot.values), slot.values.dtype),
                self._device.empty(len(slot.weights), np.float64),
            )
        if slot.used is not None:
            self._device.wait(self._stream, slot.used)
        values, weights = slot.place
        return CudaRows(
            layout, self._kind, values[: layout.n_values],
            None if self._weights is None else weights[: layout.n_rows], slot=slot,
        )  # fmt: skip
