"""Codes in ceil(log2 k) bits, in planes that find any row in O(1).

A code of b bits is cut into planes of 8, 4, 2 and 1 bits: as many eights as fit, then at most one
of each of the others, so 11 bits are planes of 8, 2 and 1. The first plane holds the lowest bits of
the codes, the next one the bits above them, and so on. In a plane of w bits row i lies in the bits
(i·w) mod 8 and up of byte i·w // 8, low bits first: no row crosses a byte. A plane has
ceil(n·w / 8) bytes, its unused last bits are zero, and planes follow each other without padding.

A file of codes is a `.npy` file of these bytes, whose header has always 128 bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saec_gpu.durable import write_error
from saec_gpu.errors import ArtifactError

HEADER_BYTES = 128

# Codes are packed and unpacked in blocks of this many rows, so that temporaries stay small. A
# multiple of 8: such a block is a whole number of bytes in each plane.
_BLOCK_ROWS = 1 << 18

_READ_BYTES = 1 << 16


def code_bits(codewords: int) -> int:
    """Return ceil(log2 codewords), the bits of one code; 0 for one codeword or none.

    >>> [code_bits(codewords) for codewords in (1, 2, 256, 257)]
    [0, 1, 8, 9]
    """
    return max(codewords - 1, 0).bit_length()


def plane_widths(bits: int) -> tuple[int, ...]:
    """Return the widths in bits of the planes, lowest bits of the code first.

    >>> plane_widths(11), plane_widths(20)
    ((8, 2, 1), (8, 8, 4))
    """
    return (8,) * (bits // 8) + tuple(width for width in (4, 2, 1) if bits & width)


def packed_size(n_rows: int, codewords: int) -> int:
    """Return the bytes that n_rows codes take.

    Raises
    ------
    ArtifactError
        A count is negative, or there are rows but no codewords.

    >>> packed_size(1000, 256), packed_size(1000, 257), packed_size(1000, 1)
    (1000, 1125, 0)
    """
    if n_rows < 0 or codewords < 0 or (n_rows and not codewords):
        raise ArtifactError(
            f"{n_rows} rows cannot be coded with {codewords} codewords; "
            "rows need at least one codeword, and no count is negative"
        )
    return sum(_plane_bytes(n_rows, width) for width in plane_widths(code_bits(codewords)))


def code_dtype(codewords: int) -> np.dtype[Any]:
    """Return the least unsigned dtype that holds every code.

    >>> code_dtype(256), code_dtype(257)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.min_scalar_type(max(codewords - 1, 0))


def pack(codes: NDArray[Any], codewords: int) -> NDArray[np.uint8]:
    """Return the codes packed.

    Parameters
    ----------
    codes : integers (n,)
    codewords : int
        Each code lies below it.

    Returns
    -------
    packed : uint8 (packed_size(n, codewords),)

    Raises
    ------
    ArtifactError
        A code is not below codewords. Names the first such row.

    Examples
    --------
    Codes below 5 take 3 bits, a plane of 2 and a plane of 1:

    >>> pack(np.array([0, 1, 2, 3, 4]), 5).tolist()
    [228, 0, 16]
    """
    n_rows = len(codes)
    packed = np.empty(packed_size(n_rows, codewords), np.uint8)
    for first in range(0, n_rows, _BLOCK_ROWS):
        block = _checked(codes[first : first + _BLOCK_ROWS], codewords, first)
        for place, plane in _planes(block, first, n_rows, codewords):
            packed[place : place + len(plane)] = plane
    return packed


def unpack(
    packed: NDArray[np.uint8],
    n_rows: int,
    codewords: int,
    start: int = 0,
    stop: int | None = None,
) -> NDArray[Any]:
    """Return the codes of the rows start .. stop (all, if not given).

    Parameters
    ----------
    packed : uint8 (packed_size(n_rows, codewords),)
        As `pack` returns it; may be memory-mapped.
    n_rows, codewords : int
        Of all of `packed`.

    Returns
    -------
    codes : least unsigned dtype (stop - start,)

    Raises
    ------
    ArtifactError
        The range is not one of 0 .. n_rows, packed has another size, or a code is not below
        codewords.

    >>> unpack(np.array([228, 0, 16], np.uint8), 5, 5)
    array([0, 1, 2, 3, 4], dtype=uint8)
    """
    stop = n_rows if stop is None else stop
    _check_packed(packed, n_rows, codewords)
    if not 0 <= start <= stop <= n_rows:
        raise ArtifactError(f"rows {start} to {stop} were asked for; there are {n_rows} rows")
    widths = plane_widths(code_bits(codewords))
    codes = np.zeros(stop - start, code_dtype(codewords))
    aligned = start - start % 8
    for first in range(aligned, stop, _BLOCK_ROWS):
        last = min(first + _BLOCK_ROWS, stop)
        out = codes[max(first - start, 0) : last - start]
        place = shift = 0
        for width in widths:
            plane = packed[place + first * width // 8 : place + _plane_bytes(last, width)]
            low = _spread(plane, width)[max(start - first, 0) : last - first]
            out |= low.astype(codes.dtype) << shift
            place += _plane_bytes(n_rows, width)
            shift += width
        _check_unpacked(out, codewords)
    return codes


def take(
    packed: NDArray[np.uint8],
    n_rows: int,
    codewords: int,
    rows: ArrayLike,
    *,
    field: str | None = None,
) -> NDArray[Any]:
    """Return the codes of given rows: as many bytes a row are read as there are planes.

    Parameters
    ----------
    packed : uint8 (packed_size(n_rows, codewords),)
        As `pack` returns it; may be memory-mapped.
    n_rows, codewords : int
        Of all of `packed`.
    rows : integers, any shape
        Row numbers, repeated and in any order.
    field : str, optional
        Whose rows they are, for messages.

    Returns
    -------
    codes : least unsigned dtype, shape of rows

    Raises
    ------
    ArtifactError
        As `row_numbers` does; or packed has another size, or a code is not below codewords.

    >>> take(np.array([228, 0, 16], np.uint8), 5, 5, [4, 1, 4])
    array([4, 1, 4], dtype=uint8)
    """
    numbers = row_numbers(rows, n_rows, field=field)
    _check_packed(packed, n_rows, codewords)
    codes = np.zeros(numbers.shape, code_dtype(codewords))
    place = shift = 0
    for width in plane_widths(code_bits(codewords)):
        if width == 8:
            low = packed[place + numbers]
        else:
            bit = numbers * width
            low = packed[place + (bit >> 3)] >> (bit & 7).astype(np.uint8)
            low &= (1 << width) - 1
        codes |= low.astype(codes.dtype) << shift
        place += _plane_bytes(n_rows, width)
        shift += width
    _check_unpacked(codes, codewords, field)
    return codes


def row_numbers(rows: ArrayLike, n_rows: int, *, field: str | None = None) -> NDArray[np.int64]:
    """Return row numbers as int64, checked.

    Parameters
    ----------
    rows : integers, any shape
    n_rows : int
        Each number must be at least 0 and below it: there is no counting from the end.
    field : str, optional
        Whose rows they are, for messages.

    Raises
    ------
    ArtifactError
        The numbers are not integers (booleans are not), or one is out of range: the message names
        the first.

    >>> row_numbers([[1, 0]], 2)
    array([[1, 0]])
    """
    where = "" if field is None else f' of field "{field}"'
    numbers = np.asarray(rows)
    if numbers.size == 0 and not hasattr(rows, "dtype"):
        return np.zeros(numbers.shape, np.int64)  # an empty list has no dtype of its own
    if numbers.dtype.kind not in "iu":
        raise ArtifactError(
            f"row numbers{where} must be integers, not {numbers.dtype}; "
            "for a mask give np.flatnonzero(mask)"
        )
    if numbers.size and (numbers.min() < 0 or numbers.max() >= n_rows):
        row = numbers[(numbers < 0) | (numbers >= n_rows)].flat[0]
        raise ArtifactError(
            f"row {row}{where} is out of range: there are {n_rows} rows, numbered from 0"
        )
    # One dimension more and back: a single number stays an array.
    return np.atleast_1d(numbers).astype(np.int64, copy=False).reshape(numbers.shape)


def npy_header(size: int) -> bytes:
    """Return the header of a `.npy` file of `size` bytes: always the same 128 bytes.

    NumPy's own writer chooses the padding, and has changed it between versions.

    >>> len(npy_header(10)), npy_header(10)[10:61]
    (128, b"{'descr': '|u1', 'fortran_order': False, 'shape': (")
    """
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}"
    return b"\x93NUMPY\x01\x00\x76\x00" + text.encode().ljust(HEADER_BYTES - 11) + b"\n"


def open_planes(file: BinaryIO, n_rows: int, codewords: int) -> NDArray[np.uint8]:
    """Return the packed codes of a file opened for reading; it may be closed afterwards.

    Returns
    -------
    packed : uint8 (packed_size(n_rows, codewords),), read-only
        As `open_packed` does.

    Raises
    ------
    ArtifactError
        The file is no finished file of that many codes. Names it.
    """
    size = packed_size(n_rows, codewords)
    return open_packed(file, size, f"the codes of {n_rows} rows for {codewords} codewords")


def open_packed(file: BinaryIO, size: int, what: str) -> NDArray[np.uint8]:
    """Return the bytes of a `.npy` file opened for reading; it may be closed afterwards.

    Parameters
    ----------
    size : int
        Bytes that it must hold behind its header.
    what : str
        What they are, for messages.

    Returns
    -------
    packed : uint8 (size,), read-only
        Memory-mapped, but small ones are read: each map keeps a file open, and fields can be many.

    Raises
    ------
    ArtifactError
        It is no finished file of that size. Names it.
    """
    found = os.fstat(file.fileno()).st_size
    if found != HEADER_BYTES + size or file.read(HEADER_BYTES) != npy_header(size):
        raise ArtifactError(
            f'"{file.name}" ({found} bytes) does not hold {what}, which take {HEADER_BYTES} + '
            f"{size} bytes; it is unfinished, truncated or altered"
        )
    if size <= _READ_BYTES:
        return np.frombuffer(file.read(size), np.uint8)
    mapped = np.memmap(file, np.uint8, "r", HEADER_BYTES, (size,))
    return mapped.view(np.ndarray)


class PlaneWriter:
    """Writes the codes of one field, chunk after chunk, into a `.npy` file in planes.

    A context manager. When it is left without an exception the file is complete and flushed to the
    disk; otherwise there is no file. After a kill the file may be there, but without its header,
    and `open_planes` refuses it.

    Parameters
    ----------
    path : path
        Replaced if it exists (as a new file, so that a hard link to the old one keeps its bytes).
    n_rows : int
        Codes that will be appended in all.
    codewords : int
        Each code lies below it.

    Raises
    ------
    ArtifactError
        The file cannot be written; a code is not below codewords (names the row); more or fewer
        codes than n_rows came.

    Notes
    -----
    Holds a copy of a part of the chunk, at most a few MB.
    """

    def __init__(self, path: str | os.PathLike[str], n_rows: int, codewords: int) -> None:
        self._path = Path(path)
        self._n_rows = n_rows
        self._codewords = codewords
        self._size = packed_size(n_rows, codewords)
        self._written = 0
        # Up to 7 rows wait here until they fill whole bytes of every plane.
        self._waiting = np.empty(0, code_dtype(codewords))

    def append(self, codes: NDArray[Any]) -> None:
        """Write the codes, integers (n,), of the next n rows."""
        came = self._written + len(self._waiting) + len(codes)
        if came > self._n_rows:
            raise ArtifactError(
                f'"{self._path}" was to hold {self._n_rows} codes, but {came} were appended'
            )
        for first in range(0, len(codes), _BLOCK_ROWS):
            block = _checked(
                codes[first : first + _BLOCK_ROWS],
                self._codewords,
                self._written + len(self._waiting),
            )
            block = np.concatenate([self._waiting, block])
            whole = len(block) - len(block) % 8
            self._write(block[:whole])
            self._waiting = block[whole:]

    def _write(self, codes: NDArray[Any]) -> None:
        for place, plane in _planes(codes, self._written, self._n_rows, self._codewords):
            self._write_at(HEADER_BYTES + place, plane.data)
        self._written += len(codes)

    def _finish(self) -> None:
        self._write(self._waiting)
        if self._written != self._n_rows:
            raise ArtifactError(
                f'"{self._path}" was to hold {self._n_rows} codes, '
                f"but {self._written} were appended"
            )
        # The header comes last: a file that has one is whole.
        self._write_at(0, b"\0" * HEADER_BYTES, flush=True)
        self._write_at(0, npy_header(self._size), flush=True)

    def _write_at(self, place: int, data: bytes | memoryview, *, flush: bool = False) -> None:
        # Opened for each write: ten thousand fields may be written side by side.
        try:
            with self._path.open("r+b", buffering=0) as file:
                file.seek(place)
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                if flush:
                    os.fsync(file.fileno())
        except OSError as err:
            raise write_error(self._path, err) from err

    def __enter__(self) -> PlaneWriter:
        """Make the file, empty."""
        try:
            self._path.unlink(missing_ok=True)
            self._path.touch(exist_ok=False)
        except OSError as err:
            raise write_error(self._path, err) from err
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete and flush the file, or remove it."""
        finished = False
        try:
            if kind is None:
                self._finish()
                finished = True
        finally:
            if not finished:
                self._path.unlink(missing_ok=True)


def _plane_bytes(n_rows: int, width: int) -> int:
    return (n_rows * width + 7) // 8


def _planes(
    codes: NDArray[Any], first: int, n_rows: int, codewords: int
) -> list[tuple[int, NDArray[np.uint8]]]:
    """Return (byte where it belongs, bytes) in each plane of the codes of the rows from first on.

    first is a multiple of 8; so is the number of codes, unless they are the last ones.
    """
    parts = []
    place = shift = 0
    for width in plane_widths(code_bits(codewords)):
        low = (codes >> shift).astype(np.uint8)
        parts.append((place + first * width // 8, _gather(low, width)))
        place += _plane_bytes(n_rows, width)
        shift += width
    return parts


def _gather(low: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return the lowest `width` bits of each byte, one after another, low bits first."""
    if width == 8:
        return low
    rows_per_byte = 8 // width
    padded = np.zeros((_plane_bytes(len(low), width), rows_per_byte), np.uint8)
    padded.reshape(-1)[: len(low)] = low & ((1 << width) - 1)
    gathered = padded[:, 0].copy()
    for place in range(1, rows_per_byte):
        gathered |= padded[:, place] << (place * width)
    return gathered


def _spread(plane: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return what `_gather` was given, with zeros up to the end of the last byte."""
    if width == 8:
        return plane
    rows_per_byte = 8 // width
    spread = np.empty((len(plane), rows_per_byte), np.uint8)
    for place in range(rows_per_byte):
        spread[:, place] = (plane >> (place * width)) & ((1 << width) - 1)
    return spread.reshape(-1)


def _checked(codes: NDArray[Any], codewords: int, first: int) -> NDArray[Any]:
    """Return codes of the rows from first on in the least unsigned dtype, each below codewords."""
    if codes.dtype.kind not in "iu" or codes.ndim != 1:
        raise ArtifactError(
            f"codes must be integers in one dimension, not {codes.dtype} of shape {codes.shape}"
        )
    if codes.size and (codes.min() < 0 or codes.max() >= codewords):
        row = int(np.flatnonzero((codes < 0) | (codes >= codewords))[0])
        raise ArtifactError(
            f"the code of row {first + row} is {codes[row]}; with {codewords} codewords it must be "
            f"0 to {codewords - 1}"
        )
    return codes.astype(code_dtype(codewords), copy=False)


def _check_packed(packed: NDArray[np.uint8], n_rows: int, codewords: int) -> None:
    size = packed_size(n_rows, codewords)
    if packed.dtype != np.uint8 or packed.shape != (size,):
        raise ArtifactError(
            f"packed codes are {packed.dtype} of shape {packed.shape}; {n_rows} rows and "
            f"{codewords} codewords need uint8 of shape ({size},)"
        )


def _check_unpacked(codes: NDArray[Any], codewords: int, field: str | None = None) -> None:
    """Refuse codes that no codeword has: reading them would give another row or fail later."""
    if codes.size and codes.max() >= codewords:
        where = "" if field is None else f' of field "{field}"'
        raise ArtifactError(
            f"the packed codes{where} hold the code {codes.max()}, but there are {codewords} "
            "codewords; the codes were altered"
        )
