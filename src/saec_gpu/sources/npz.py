"""NumPy's `.npz` archives: stored members are read in place, deflated ones in order."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from saec_gpu.errors import SourceError
from saec_gpu.sources.npy import NpyHeader, array_at, read_npy_header, unreadable
from saec_gpu.sources.stored import (
    BLOCK_BYTES,
    StoredArray,
    UnreadableArray,
    byte_view,
    named_once,
    row_bytes,
)
from saec_gpu.sources.zipped import stored_offset, zip_errors


class DeflatedArray:
    """A compressed member of an archive, in C order.

    It can be decompressed from its beginning only. The place is kept between reads, so that going
    forward costs nothing twice; going back starts again.
    """

    def __init__(self, path: Path, member: str, header: NpyHeader) -> None:
        self.origin = path
        self.shape = header.shape
        self.dtype = header.dtype.name
        self._member = member
        self._header = header
        self._archive: zipfile.ZipFile | None = None
        self._stream: IO[bytes] | None = None

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill out (C order, storage dtype) with the rows start .. start + len(out)."""
        offset = self._header.length + start * row_bytes(self)
        with zip_errors(self.origin):
            if self._stream is None or self._stream.tell() > offset:
                self._close()
                self._archive = zipfile.ZipFile(self.origin)
                self._stream = self._archive.open(self._member)
            while behind := offset - self._stream.tell():
                if not self._stream.read(min(behind, BLOCK_BYTES)):
                    raise EOFError(f"{self._member} ends too early")
            left = byte_view(out)
            while left:
                # In blocks: the stream makes a second copy of what one call reads.
                data = self._stream.read(min(len(left), BLOCK_BYTES))
                if not data:
                    raise EOFError(f"{self._member} ends too early")
                left[: len(data)] = data
                left = left[len(data) :]
            if start + len(out) == self.shape[0]:
                self._close()
        if self._header.byteorder != sys.byteorder:
            out.byteswap(inplace=True)

    def _close(self) -> None:
        if self._archive is not None:
            self._archive.close()
        self._archive = self._stream = None


def open_npz(path: Path) -> dict[str, StoredArray]:
    """Return the arrays of a `.npz` archive under their names.

    Raises
    ------
    SourceError
        The archive or a member's header is damaged, a name occurs twice, or a compressed matrix is
        in Fortran order (its rows are spread over the whole stream).
    """
    with zip_errors(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        return named_once(
            (
                (member.filename.removesuffix(".npy"), _array(path, archive, file, member))
                for member in archive.infolist()
            ),
            path,
        )


def _array(
    path: Path, archive: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo
) -> StoredArray:
    """Return one member of the archive."""
    where = f"{path}: member {member.filename!r}"
    if not member.filename.endswith(".npy"):
        return UnreadableArray(path, (), "bytes of no array")
    with archive.open(member) as stream:
        header = read_npy_header(stream, where)
    if not header.readable:
        return unreadable(path, header)
    if member.file_size != header.length + header.nbytes:
        raise SourceError(
            f"{where} has {member.file_size} bytes, but {header.shape} {header.dtype.name} with "
            f"header takes {header.length + header.nbytes}; the file is altered: write it again"
        )
    if member.compress_type == zipfile.ZIP_STORED:
        return array_at(path, stored_offset(file, member, path) + header.length, header)
    if header.fortran:
        raise SourceError(
            f"{where} is compressed and in Fortran order, so its rows cannot be read by ranges; "
            "write it with numpy.savez, or in C order (numpy.ascontiguousarray)"
        )
    return DeflatedArray(path, member.filename, header)
