"""What a run takes stays within what it was given, measured from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saec_gpu.doctor import examine

# The peak is that of a process of its own, above what interpreter, packages and kernels take.
CHILD = """
import json, sys
import numpy as np
import saec_gpu as saec
from saec_gpu.bench.resident import peak_resident_bytes, resident_bytes

table, out, memory, codewords, threads = sys.argv[1:]
rows = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
saec.compress(rows, codewords=20, out=out + ".tiny", threads=int(threads))
before = resident_bytes()
artifact = saec.compress(table, codewords=int(codewords), out=out, memory=memory, max_iter=1,
                         threads=int(threads))
print(json.dumps({
    "above": peak_resident_bytes() - before,
    "codebooks": sum(f["codebook_bytes"] for f in artifact.manifest["fields"]),
    "resident": [s["resident"] for s in artifact.run["residency_sets"]],
}))
"""


@pytest.fixture(scope="module", autouse=True)
def _kernels_are_compiled() -> None:
    """Keep memory that only compiling takes out of what is measured."""
    examine(warm=True)


@pytest.mark.parametrize(
    ("n_rows", "dtype", "codewords", "memory"),
    [
        (1_500_000, "float32", 64, 32_000_000),  # RELIABILITY 17, 19: a third of the table
        (750_000, "float64", 64, 32_000_000),  # RELIABILITY 20
        (200_000, "float32", 2000, 64_000_000),  # RELIABILITY 15: a large codebook to seed
    ],
)
def test_peak_memory_is_what_was_given(
    tmp_path: Path, n_rows: int, dtype: str, codewords: int, memory: int
) -> None:
    table = np.lib.format.open_memmap(tmp_path / "table.npy", "w+", np.dtype(dtype), (n_rows, 16))
    generator = np.random.default_rng(0)
    for start in range(0, n_rows, 100_000):
        part = table[start : start + 100_000]
        part[:] = generator.standard_normal(part.shape, np.float32)
    table.flush()
    del table
    child = subprocess.run(
        [
            *(sys.executable, "-c", CHILD, str(tmp_path / "table.npy"), str(tmp_path / "t.saec")),
            *(str(memory), str(codewords), "2"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(child.stdout)
    assert found["above"] <= memory + found["codebooks"]
