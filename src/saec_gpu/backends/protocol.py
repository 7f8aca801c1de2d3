"""What a backend must do: find codes and add up rows, to the bit of DESIGN.md, nothing more.

Update, repair, seeding and stopping are written once, above it. Rows and codebooks are loaded
first, because a device keeps its own copies; for the CPU backend that copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Chunk, Codebook, Float64, Partial
from saec_gpu.layout import Layout


@dataclass(frozen=True, eq=False)
class Assignment:
    """Codes of a chunk's rows.

    Attributes
    ----------
    codes : uint32 (n_rows of the chunk,)
        Index of the nearest codeword of the row's field; ties to the lower index. Rows of fields
        without a codebook keep 0.
    distances : float64 (n_rows of the chunk,) or None
        Squared distance to it, as DESIGN.md 1 defines it.
    """

    codes: NDArray[np.uint32]
    distances: Float64 | None


@dataclass(frozen=True, eq=False)
class StorePlan:
    """What a store must have room for.

    Attributes
    ----------
    resident : Layout
        Of all rows that stay.
    dtype : numpy dtype
        Of the values of all rows, as `Backend.row_dtypes` allows them; bfloat16 as uint16.
    read_rows, read_values : int
        The most rows, and values, that are read at once.
    weighted : bool
        Whether rows have weights.
    spare : int
        Bytes that the run's memory leaves beside all this. A backend may keep in them what a pass
        over rows that stay tells it for the next one.
    """

    resident: Layout
    dtype: np.dtype[Any]
    read_rows: int
    read_values: int
    weighted: bool
    spare: int = 0


class RowStore(Protocol):
    """Room for rows where a backend works on them: some stay, others come and go.

    Filled piece by piece, each with `room`, then `put`, by one thread; used by another.
    """

    def room(self, layout: Layout, *, stays: bool) -> Chunk:
        """Return host memory to read these rows of one field into.

        What it holds is good until the backend's `reads_held` − 1 further calls.
        """

    def put(self, chunk: Chunk, *, stays: bool) -> Any:
        """Return the rows, now read, where the backend works on them.

        Rows that do not stay are good as long as what `room` gave.
        """

    def part(self, layout: Layout) -> Any:
        """Return rows of one field that were put to stay."""

    def whole(self) -> Any:
        """Return all rows that were put to stay, as the store's layout has them."""

    def weights(self, layout: Layout) -> Float64 | None:
        """Return the weights, in host memory, of rows of one field that were put to stay."""


class Backend(Protocol):
    """One machine or device that assigns and accumulates.

    Attributes
    ----------
    name : str
    threads : int
        How many hold sums of their own, and so how often those take memory.
    reads_held : int
        Reads of rows that do not stay which a store holds at once.
    row_dtypes : collection of str
        Dtypes of tables whose rows a store holds as they are stored. Rows of others come as
        float32, which always is among them.
    """

    name: str
    threads: int
    reads_held: int
    row_dtypes: Collection[str]

    def memory_budget(self) -> int:
        """Return how many bytes a run may take by default."""

    def open_store(self, plan: StorePlan) -> RowStore:
        """Return an empty store.

        Raises
        ------
        DeviceMemoryError
            The device has not that much memory left.
        """

    def load_rows(self, chunk: Chunk) -> Any:
        """Return the chunk's rows where the backend can work on them."""

    def load_codebooks(self, codebooks: Mapping[str, Codebook]) -> Any:
        """Return codebooks by field, with empty partials beside those that have a fixed point.

        Fields that are not named are passed over in everything that follows.

        Raises
        ------
        LayoutError
            A codebook has no codeword.
        """

    def assign(self, rows: Any, codebooks: Any, *, distances: bool = False) -> Assignment:
        """Return the nearest codeword of each row, and its distance when asked."""

    def assign_later(
        self, rows: Any, codebooks: Any, *, distances: bool = False
    ) -> Callable[[], Assignment]:
        """Begin what `assign` does; return what waits for it, to be called once.

        Rows that do not stay must be kept until then.
        """

    def assign_accumulate(self, rows: Any, codebooks: Any) -> None:
        """Add rows to the partials of their nearest codewords: one reading of the rows."""

    def accumulate(self, rows: Any, codes: NDArray[np.uint32], codebooks: Any) -> None:
        """Add rows to the partials of the codewords that `codes` names."""

    def partials(self, codebooks: Any) -> Mapping[str, Partial]:
        """Return all that was accumulated since the codebooks were loaded."""

    def rechecked(self, codebooks: Any) -> Mapping[str, int]:
        """Return how many rows of each field the filter did not prove since then."""


def known_backends() -> Sequence[str]:
    """Return the names that `backend=` takes, "auto" aside."""
    return ("cpu", "cupy", "numba")
