"""Peak memory of compressing a table larger than its memory budget.

    python -m saec_gpu.bench.memory --gigabytes 4 --memory 500MB --append results.jsonl

Makes a `.npy` table of the size in a temporary folder, compresses it in a process of its own and
records the process's peak resident memory above what it had after a tiny compression (interpreter,
packages, kernels).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from .records import SCHEMA, append_record, circumstances

DIM = 16
WRITE_ROWS = 1 << 20

CHILD = """
import json, sys
import numpy as np
import saec_gpu as saec
from saec_gpu.bench.resident import peak_resident_bytes, resident_bytes

folder, memory, codewords, max_iter = sys.argv[1:]
rows = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
saec.compress(rows, codewords=20, out=f"{folder}/tiny.saec", threads=2)
before = resident_bytes()
artifact = saec.compress(
    f"{folder}/table.npy", codewords=int(codewords), out=f"{folder}/table.saec", memory=memory,
    max_iter=int(max_iter), threads=2,
)
print(json.dumps({
    "before_bytes": before,
    "peak_above_bytes": peak_resident_bytes() - before,
    "codebook_bytes": sum(f["codebook_bytes"] for f in artifact.manifest["fields"]),
    "seconds": artifact.run["seconds"],
    "residency_sets": artifact.run["residency_sets"],
}))
"""


def write_table(path: Path, n_rows: int) -> None:
    """Write float32 (n_rows, DIM) rows of many clusters, block by block."""
    table = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, DIM))
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((1000, DIM), np.float32)
    for start in range(0, n_rows, WRITE_ROWS):
        rows = table[start : start + WRITE_ROWS]
        rows[:] = generator.standard_normal(rows.shape, np.float32)
        rows += centres[generator.integers(0, len(centres), len(rows))]
    table.flush()


def main() -> None:
    """Measure once and append the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the table")
    parser.add_argument("--memory", default="500MB", help="as for saec compress")
    parser.add_argument("--codewords", type=int, default=256)
    parser.add_argument("--max-iter", type=int, default=3)
    parser.add_argument("--append", type=Path, help="append the record to this file")
    arguments = parser.parse_args()
    n_rows = int(arguments.gigabytes * 1e9 / (4 * DIM))
    with tempfile.TemporaryDirectory(prefix="saec-memory-") as folder:
        write_table(Path(folder) / "table.npy", n_rows)
        child = subprocess.run(
            [
                *(sys.executable, "-c", CHILD, folder, arguments.memory),
                *(str(arguments.codewords), str(arguments.max_iter)),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    record = {
        "schema": SCHEMA,
        "op": "memory",
        "n_rows": n_rows,
        "dim": DIM,
        "n_codewords": arguments.codewords,
        "memory": arguments.memory,
        **json.loads(child.stdout),
        **circumstances(),
    }
    print(json.dumps(record, indent=1))
    if arguments.append is not None:
        append_record(arguments.append, record)


if __name__ == "__main__":
    main()
