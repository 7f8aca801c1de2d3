"""A table larger than the memory is read: nothing but the caller's buffer counts as resident."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

_ROWS, _DIM = 1 << 20, 128  # 512 MiB of float32, as a file with a hole


def _npy(path: Path) -> Path:
    with (path / "t.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (_ROWS, _DIM)}
        )
        file.truncate(file.tell() + _ROWS * _DIM * 4)
    return path / "t.npy"


def _fbin(path: Path) -> Path:
    with (path / "t.fbin").open("wb") as file:
        file.write(struct.pack("<II", _ROWS, _DIM))
        file.truncate(8 + _ROWS * _DIM * 4)
    return path / "t.fbin"


def _safetensors(path: Path) -> Path:
    header = json.dumps(
        {"t": {"dtype": "F32", "shape": [_ROWS, _DIM], "data_offsets": [0, _ROWS * _DIM * 4]}}
    ).encode()
    with (path / "t.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + _ROWS * _DIM * 4)
    return path / "t.safetensors"


_PROGRAM = """
import resource, sys
import numpy as np
from saec_gpu.sources import open_tables

tables = open_tables(np.load(sys.argv[1], mmap_mode="r") if sys.argv[2] == "map" else sys.argv[1])
field = next(iter(tables.fields.values()))
out = np.empty((1 << 16, field.dim), np.float32)
tables.read(field.name, 0, out)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(0, field.n_rows, len(out)):
    tables.read(field.name, start, out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024)
"""


@pytest.mark.parametrize(
    ("write", "how"), [(_npy, "path"), (_fbin, "path"), (_safetensors, "path"), (_npy, "map")]
)
def test_reading_adds_nothing_to_the_resident_memory(
    tmp_path: Path, write: Callable[[Path], Path], how: str
) -> None:
    # RELIABILITY 17, 18
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(write(tmp_path)), how],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(done.stdout) < 8 << 20
