"""Zip archives (`.npz`, `torch.save`): where a stored member's bytes lie in the file."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from saec_gpu.errors import SourceError

# What zipfile raises for archives that are damaged (ValueError: an offset no file can have),
# encrypted or packed in a way it lacks (RuntimeError and its child NotImplementedError).
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)

_LOCAL_HEADER = struct.Struct("<4s22xHH")


@contextmanager
def zip_errors(path: Path) -> Iterator[None]:
    """Turn what zipfile raises into a SourceError that names the file."""
    try:
        yield
    except SourceError:
        raise
    except _ZIP_ERRORS as err:
        raise SourceError(
            f"{path}: cannot be read as a zip archive ({err}); "
            "the file is cut short or altered: copy or write it again"
        ) from err


def stored_offset(file: IO[bytes], member: zipfile.ZipInfo, path: Path) -> int:
    """Return where the bytes of an uncompressed member begin in the file.

    The local header repeats the name and has extra bytes of its own length, so it must be read:
    the central directory does not tell.
    """
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise SourceError(
            f"{path}: no header of the member {member.filename!r} where the archive's directory "
            "says; the file is altered: copy or write it again"
        )
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return member.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)
