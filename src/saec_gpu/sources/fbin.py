"""Vector files of the ANN benchmarks: uint32 rows, uint32 dims, then the numbers in C order.

The format is the one of big-ann-benchmarks and cuVS (docs.rapids.ai, "cuvs_bench datasets").
"""

from __future__ import annotations

import struct
from pathlib import Path

from saec_gpu.errors import SourceError
from saec_gpu.sources.raw import RawArray
from saec_gpu.sources.stored import StoredArray, check_file_size, total_bytes

_HEADER = struct.Struct("<II")
_DTYPES = {".fbin": "float32", ".f16bin": "float16"}


def open_fbin(path: Path) -> dict[str, StoredArray]:
    """Return the matrix of a `.fbin` (float32) or `.f16bin` (float16) file under the file's stem.

    Raises
    ------
    SourceError
        The file has another size than its header says.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise SourceError(
            f"{path}: has {len(header)} bytes, but its header alone (rows, dims) takes "
            f"{_HEADER.size}; the file is cut short: copy or write it again"
        )
    n_rows, dim = _HEADER.unpack(header)
    array = RawArray(path, _HEADER.size, (n_rows, dim), _DTYPES[path.suffix.lower()])
    check_file_size(
        path, _HEADER.size + total_bytes(array), f"{array.shape} {array.dtype} with header"
    )
    return {path.stem: array}
