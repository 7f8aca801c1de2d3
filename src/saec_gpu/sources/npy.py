"""NumPy's `.npy` files, one by one or a folder of them: the file's stem names the field."""

from __future__ import annotations

import math
import sys
import tokenize
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from saec_gpu.errors import SourceError
from saec_gpu.sources.raw import ByteOrder, ColumnsArray, RawArray
from saec_gpu.sources.stored import NUMBER_DTYPES, StoredArray, UnreadableArray, check_file_size


class NpyHeader(NamedTuple):
    """What stands before the numbers of a `.npy` file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int

    @property
    def readable(self) -> bool:
        """Return whether the array holds numbers in at most two axes."""
        return self.dtype.name in NUMBER_DTYPES and len(self.shape) <= 2

    @property
    def nbytes(self) -> int:
        """Return the bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def byteorder(self) -> ByteOrder:
        """Return the byte order of the numbers."""
        return byteorder_of(self.dtype)


def byteorder_of(dtype: np.dtype[Any]) -> ByteOrder:
    """Return the byte order of a dtype."""
    if dtype.byteorder in "<>":
        return "little" if dtype.byteorder == "<" else "big"
    return sys.byteorder


def read_npy_header(file: IO[bytes], where: str) -> NpyHeader:
    """Return the header of a `.npy` file that is open at its beginning.

    Raises
    ------
    SourceError
        It is no such header. Names `where`.
    """
    try:
        version = np.lib.format.read_magic(file)
        # Version 3 differs from 2 only in the encoding of the names of columns, which no table has.
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version in ((2, 0), (3, 0)):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of the format is not known")
    except (ValueError, TypeError, SyntaxError, KeyError, tokenize.TokenError) as err:
        raise SourceError(
            f"{where}: no .npy header ({err}); the file is cut short, altered or not an array "
            "written by numpy.save"
        ) from err
    if min(shape, default=0) < 0:
        raise SourceError(f"{where}: the .npy header gives the shape {shape}; the file is altered")
    return NpyHeader(shape, fortran and len(shape) == 2, dtype, file.tell())


def array_at(path: Path, offset: int, header: NpyHeader) -> StoredArray:
    """Return the array whose numbers begin at an offset of a file."""
    if not header.readable:
        return unreadable(path, header)
    if header.fortran:
        n_rows, dim = header.shape
        return ColumnsArray(path, offset, (n_rows, dim), header.dtype.name, header.byteorder)
    return RawArray(path, offset, header.shape, header.dtype.name, header.byteorder)


def unreadable(path: Path, header: NpyHeader) -> UnreadableArray:
    """Return the entry of an array that is not read; pickled objects never are."""
    name = "pickled objects (never loaded)" if header.dtype.hasobject else header.dtype.name
    return UnreadableArray(path, header.shape, name)


def open_npy(path: Path) -> dict[str, StoredArray]:
    """Return the array of a `.npy` file under the file's stem.

    Raises
    ------
    SourceError
        The header is damaged, or the file has another size than the header says.
    """
    with path.open("rb") as file:
        header = read_npy_header(file, str(path))
    if not header.dtype.hasobject:
        check_file_size(
            path, header.length + header.nbytes, f"{header.shape} {header.dtype.name} with header"
        )
    return {path.stem: array_at(path, header.length, header)}
