"""What starting costs: imports, and the first compression before and after kernels are compiled.

    python -m saec_gpu.bench.startup --out records.jsonl

Each number is taken in a process of its own; the imports that are compared take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saec_gpu.errors import ParamError, SaecError

from .records import SCHEMA, append_record, circumstances, spread

IMPORTS = {"import_numpy": "import numpy", "import_saec_gpu": "import saec_gpu"}
COMPRESS = """
import numpy, saec_gpu, tempfile
rows = numpy.repeat(numpy.arange(64, dtype=numpy.float32).reshape(16, 4), 8, axis=0)
rows += numpy.arange(len(rows), dtype=numpy.float32)[:, None] / 1024
with tempfile.TemporaryDirectory() as folder:
    saec_gpu.compress(rows, codewords=4, out=folder + "/x.saec", threads=1)
"""
TIMED = """
import time
begun = time.perf_counter()
{}
print(time.perf_counter() - begun)
"""


def measure_startup(*, repeats: int = 7) -> dict[str, Any]:
    """Return the record of what starting costs.

    Parameters
    ----------
    repeats : int
        Processes of each kind; the first compression, which compiles for seconds, is done once.

    Returns
    -------
    record : dict
        `seconds` holds p20, p50 and p80 of the wall time of "import_numpy", "import_saec_gpu",
        "first_compress" (nothing compiled yet) and "later_compress" (kernels in Numba's cache).
        Both compressions include the imports.

    Raises
    ------
    ParamError
        `repeats` is below 1.
    SaecError
        A process failed.
    """
    if repeats < 1:
        raise ParamError(f"repeats={repeats} was given; give 1 or more")
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for code in IMPORTS.values():
        _seconds(code)  # reads the files, so that no timed process does so first
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            taken[name].append(_seconds(code))
    with tempfile.TemporaryDirectory(prefix="saec-bench-") as cache:
        own_cache = {"NUMBA_CACHE_DIR": cache}
        taken["first_compress"] = [_seconds(COMPRESS, own_cache)]
        taken["later_compress"] = [_seconds(COMPRESS, own_cache) for _ in range(repeats)]
    return {
        "schema": SCHEMA,
        "op": "startup",
        "backend": "cpu",
        "repeats": repeats,
        "seconds": {name: spread(seconds) for name, seconds in taken.items()},
        **circumstances(),
    }


def _seconds(code: str, environment: Mapping[str, str] | None = None) -> float:
    """Return the seconds that code takes in a new Python, without those of Python's own start."""
    result = subprocess.run(
        [sys.executable, "-c", TIMED.format(code)],
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
        check=False,
    )
    if result.returncode:
        raise SaecError(f"a new Python failed to run {code.strip()!r}: {result.stderr.strip()}")
    return float(result.stdout)


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.startup", description="Time imports and first compressions."
    )
    parser.add_argument("--repeats", type=int, default=7, help="processes of each kind")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append the record to")
    options = parser.parse_args()
    try:
        record = measure_startup(repeats=options.repeats)
    except SaecError as err:
        sys.exit(f"error: {err}")
    if options.out is not None:
        append_record(options.out, record)
    print(json.dumps(record, allow_nan=False))


if __name__ == "__main__":
    main()
