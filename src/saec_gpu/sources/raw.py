"""Arrays that lie in a file as plain numbers, read in place."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import SourceError
from saec_gpu.sources.stored import byte_view, row_bytes, storage_dtype

ByteOrder = Literal["little", "big"]


@dataclass(frozen=True)
class RawArray:
    """An array in C order at a byte offset of a file.

    Rows are read, not mapped, straight into the caller's memory: a table larger than the memory
    never counts as resident. The file is opened for each read, so a source of ten thousand files
    holds none of them open, and any number of threads may read.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    byteorder: ByteOrder = "little"

    @property
    def origin(self) -> Path:
        """Return the file."""
        return self.path

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill out (C order, storage dtype) with the rows start .. start + len(out)."""
        read_exactly(self.path, self.offset + start * row_bytes(self), out, self.byteorder)


@dataclass(frozen=True)
class ColumnsArray:
    """A matrix in Fortran order at a byte offset of a file: read column by column.

    A read costs one access of the file per column.
    """

    path: Path
    offset: int
    shape: tuple[int, int]
    dtype: str
    byteorder: ByteOrder = "little"

    @property
    def origin(self) -> Path:
        """Return the file."""
        return self.path

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill out (C order, storage dtype) with the rows start .. start + len(out)."""
        column = np.empty(len(out), storage_dtype(self.dtype))
        for number in range(self.shape[1]):
            first = number * self.shape[0] + start
            read_exactly(self.path, self.offset + first * column.itemsize, column, self.byteorder)
            out[:, number] = column


def read_exactly(path: Path, offset: int, out: NDArray[Any], byteorder: ByteOrder) -> None:
    """Fill out (C order) with the bytes at an offset of a file, in the machine's byte order.

    Raises
    ------
    SourceError
        The file cannot be read or ends too early. Names it, the bytes needed and found.
    """
    left = byte_view(out)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while left:
                count = file.readinto(left)
                if not count:
                    raise SourceError(
                        f"{path}: ends after {file.tell()} bytes, but {offset + out.nbytes} are "
                        "needed; it was cut short or altered since it was opened"
                    )
                left = left[count:]
    except OSError as err:
        raise SourceError(f"{path}: cannot be read: {err}") from err
    if byteorder != sys.byteorder:
        out.byteswap(inplace=True)
