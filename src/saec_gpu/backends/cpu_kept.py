"""Rows that stay in memory over the passes of a fit, and what the last pass told of them.

What is kept decides only which codewords a pass looks at (cpu_skipping): never a code or a sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cpu_changes import Sums
from saec_gpu.backends.cpu_filter import PANEL
from saec_gpu.backends.host_store import HostStore
from saec_gpu.backends.protocol import StorePlan
from saec_gpu.data import Chunk, Float32, Int64
from saec_gpu.layout import Layout, Segment

FIRST_PASSES = 3  # codewords move so far in these that bounds would not hold for the next
LEAST_PANELS = 4  # below, looking at all codewords takes no longer than the bounds
BOUND_BYTES = 4
MOVED_SLACK = 2.0**-24  # float64 sums of up to 2²⁷ squares


@dataclass(frozen=True, eq=False)
class Frame:
    """Codewords as the filter saw them in a pass.

    Attributes
    ----------
    codewords : float32 (k, dim)
    scale : float32
    centre : float32 (dim,)
    """

    codewords: Float32
    scale: np.float32
    centre: Float32

    def sees_as(self, other: Frame) -> bool:
        """Return whether distances of the one frame are those of the other."""
        return (
            self.codewords.shape == other.codewords.shape
            and self.scale == other.scale
            and np.array_equal(self.centre, other.centre)
        )


@dataclass(eq=False)
class Bounds:
    """Bounds of the rows of one segment, a part of the memory's.

    Attributes
    ----------
    start : int
        Of its n_panels * n_rows bounds: tile by tile (panels, rows of the tile).
    drifts : float32 (n_panels,)
        How far each panel's farthest mover had moved, summed over the passes.
    order : int64 (k,)
        Codewords as they stand in panels.
    frame : Frame or None
        What the bounds are of; None: of nothing.
    """

    start: int
    drifts: Float32
    order: Int64
    frame: Frame | None = None

    def bring_to(self, now: Frame) -> None:
        """Add to the drifts how far codewords moved since the last pass, never too little."""
        if self.frame is None or not self.frame.sees_as(now):
            self.frame = None
            self.drifts = np.zeros_like(self.drifts)
            return
        apart = now.codewords.astype(np.float64) - self.frame.codewords
        moved = np.sqrt((apart * apart).sum(axis=1)) * np.float64(now.scale)
        farthest = np.maximum.reduceat(moved[self.order], np.arange(0, len(moved), PANEL))
        # the factor covers the roundings of the distance, nextafter that of the sum
        with np.errstate(over="ignore"):
            sums = (self.drifts + farthest * (1.0 + MOVED_SLACK)).astype(np.float32)
        self.drifts = np.where(farthest > 0, np.nextafter(sums, np.float32(np.inf)), self.drifts)


def neighbours_together(codewords: Float32) -> Int64:
    """Return an order of codewords in which those of a panel are near each other.

    Halves at the median of the widest column, down to panels, as a k-d tree does.

    Returns
    -------
    int64 (k,)
        Numbers of codewords.
    """
    order = np.arange(len(codewords))
    open_ranges = [(0, len(codewords))]
    while open_ranges:
        first, last = open_ranges.pop()
        n_panels = -(-(last - first) // PANEL)
        if n_panels > 1:
            some = order[first:last]
            column = codewords[some].std(axis=0, dtype=np.float64).argmax()
            order[first:last] = some[np.argsort(codewords[some, column], kind="stable")]
            middle = first + n_panels // 2 * PANEL
            open_ranges += [(first, middle), (middle, last)]
    return order


@dataclass(eq=False)
class RowMemory:
    """What the passes over one chunk's rows left.

    Attributes
    ----------
    codes : uint32 (n_rows of the chunk,)
    room : int
        Bytes that bounds may take.
    slow : set of str
        Fields whose codes are found faster without a first pass (cpu_first_pass).
    sums : dict of field to Sums
        Those of the rows by `codes`.
    """

    codes: NDArray[np.uint32]
    room: int
    slow: set[str] = field(default_factory=set)
    sums: dict[str, Sums] = field(default_factory=dict)
    _orders: dict[str, Int64] = field(default_factory=dict)
    _passes: dict[Segment, int] = field(default_factory=dict)
    _kept: dict[Segment, Bounds] = field(default_factory=dict)
    _size: int = 0
    _bounds: Float32 = field(default_factory=lambda: np.zeros(PANEL, np.float32))

    def begin(self, segment: Segment, codewords: Float32) -> Bounds | None:
        """Return where the bounds of a segment are to be kept in this pass, or None.

        A codebook of which a codeword equals another must not be used with them: the filter leaves
        it out, so that bounds would not hold once it moved.
        """
        n_panels = -(-len(codewords) // PANEL)
        if n_panels < LEAST_PANELS:
            return None
        passes = self._passes.get(segment, 0)
        self._passes[segment] = passes + 1
        kept = self._kept.get(segment)
        if kept is None:
            size = n_panels * segment.n_rows
            if (self._size + size) * BOUND_BYTES > self.room:
                return None
            kept = Bounds(self._size, np.zeros(n_panels, np.float32), np.zeros(0, np.int64))
            self._kept[segment] = kept
            self._size += size
        if passes < FIRST_PASSES or len(kept.drifts) != n_panels:
            return None
        if len(self._orders.get(segment.field, ())) != len(codewords):
            self._orders[segment.field] = neighbours_together(codewords)
        kept.order = self._orders[segment.field]
        return kept

    def bounds(self) -> Float32:
        """Return all bounds, float32, with room for one vector behind the last."""
        if len(self._bounds) != self._size + PANEL:
            self._bounds = np.empty(self._size + PANEL, np.float32)
            self.forget()
        return self._bounds

    def forget(self) -> None:
        """Take no bound and no sum for true until the next pass has ended."""
        self.sums = {}
        for kept in self._kept.values():
            kept.frame = None


@dataclass(frozen=True, eq=False)
class KeptRows(Chunk):
    """A chunk whose rows stay the same from pass to pass."""

    memory: RowMemory


def kept_rows(chunk: Chunk, room: int) -> KeptRows:
    """Return the chunk's rows with a memory of the passes over them, of at most `room` bytes."""
    codes = np.zeros(chunk.layout.n_rows, np.uint32)
    return KeptRows(chunk.layout, chunk.values, chunk.weights, RowMemory(codes, room))


class KeptStore(HostStore):
    """A store in host memory, whose rows that stay have a memory of the passes over them.

    Parameters
    ----------
    plan : StorePlan
    reads_held : int
    """

    def __init__(self, plan: StorePlan, reads_held: int) -> None:
        super().__init__(plan, reads_held, lambda chunk: chunk)
        self._room = plan.spare
        self._kept: dict[Layout, KeptRows] = {}

    def put(self, chunk: Chunk, *, stays: bool) -> Any:
        """Return the rows."""
        if stays:
            self._kept.clear()
        return super().put(chunk, stays=stays)

    def part(self, layout: Layout) -> Any:
        """Return rows of one field that were put to stay."""
        share = self._room * layout.n_rows // max(self._held.layout.n_rows, 1)
        return self._remembered(super().part(layout), share)

    def whole(self) -> Any:
        """Return all rows that were put to stay."""
        return self._remembered(super().whole(), self._room)

    def _remembered(self, chunk: Chunk, room: int) -> KeptRows:
        if chunk.layout not in self._kept:
            self._kept[chunk.layout] = kept_rows(chunk, room)
        return self._kept[chunk.layout]
