"""A billion rows from end to end: made on demand, compressed within a memory budget, resumable.

    python -m saec_gpu.bench.billion --rows 1e9 --memory 2GB --checkpoint FOLDER --append FILE

The fields have Criteo's proportions and clip(rows / 100, 1, 256) codewords each. Interrupted or
killed, the same command continues where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import saec_gpu as saec
from saec_gpu.console import ProgressDisplay, note
from saec_gpu.data import ProgressFunction
from saec_gpu.errors import SaecError
from saec_gpu.sources.generated import generated_tables, generated_weights

from .cases import SEED
from .peak import FmaChains
from .records import SCHEMA, append_record, circumstances
from .resident import peak_resident_bytes, resident_bytes

MOST_CODEWORDS = 256
WARM_ROWS = 100_000  # of which the largest field has rows enough for as many codewords
PEAK_ROUNDS = 5
INTERRUPTED = 130  # exit status, as of saec
ENCODING = "codes"  # the stage of the pass that encodes


def measure_compression(
    n_rows: int,
    *,
    dim: int = 16,
    n_fields: int = 26,
    weighted: bool = False,
    memory: str | None = None,
    threads: int | None = None,
    checkpoint: Path | None = None,
    progress: ProgressFunction | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the record of one compression of rows made on demand.

    Parameters
    ----------
    n_rows, dim, n_fields : int
        As of `generated_tables`.
    weighted : bool
        Rows weigh as often as `generated_weights` says that they are looked up.
    memory, threads, checkpoint, progress
        As of `compress`.
    **options
        More of what `compress` takes: max_iter, tol, backend, …

    Returns
    -------
    record : dict
        `seconds` of each stage and in total, `peak_bytes` of the process and `before_bytes` that it
        held before; `gflops` of the encoding pass, useful ones: 2·rows·codewords·dim of the
        clustered fields, and their share of what the machine's fused multiply-adds reach on the
        same threads; None of other backends than the CPU's. `manifest_sha256` is the same wherever
        the same parameters ran. Where a run was `resumed`, its seconds are those since, and what
        they would divide is None.

    Raises
    ------
    ParamError, CheckpointError
        As of `compress`.

    Notes
    -----
    Compiles every loop on a small table first. The artifact is written beside the checkpoint,
    without one in the system's temporary folder, and thrown away: a byte a row at most. Linux only.
    """
    _compress(WARM_ROWS, dim, n_fields, weighted, None, threads=threads, **options)
    resumed = checkpoint is not None and (checkpoint / "run.json").exists()
    before = resident_bytes()
    begun = time.perf_counter()
    manifest, run = _compress(
        n_rows, dim, n_fields, weighted, checkpoint,
        memory=memory, threads=threads, progress=progress, **options,
    )  # fmt: skip
    total = time.perf_counter() - begun
    peak_bytes = peak_resident_bytes()
    fields, totals = manifest["fields"], manifest["totals"]
    flop = sum(
        2.0 * field["rows"] * field["codewords"] * dim
        for field in fields
        if field["encoding"] != "identity"
    )
    rate = None if resumed else flop / run["seconds"][ENCODING]
    on_cpu = run["backend"] == "cpu"
    return {
        "schema": SCHEMA,
        "op": "compress",
        "backend": run["backend"],
        "case": "billion",
        "n_rows": totals["rows"],
        "dim": dim,
        "n_fields": n_fields,
        "n_codewords": sum(field["codewords"] for field in fields),
        "dtype": "float32",
        "threads": run["threads"],
        "weighted": weighted,
        "memory": memory,
        "options": options,
        "resumed": resumed,
        "rows_per_s": None if resumed else totals["rows"] / total,
        "seconds": {**run["seconds"], "total": total},
        "iterations": {field["name"]: field["iterations"] for field in fields},
        "before_bytes": before,
        "peak_bytes": peak_bytes,
        "residency_sets": run["residency_sets"],
        "encoding": {
            "flop": flop,
            "gflops": None if rate is None else rate / 1e9,
            "share_of_fma_peak": rate / _fma_peak(run["threads"]) if rate and on_cpu else None,
        },
        "ratio": totals["table_bytes"] / totals["counted_bytes"],
        "sse": sum(field["sse"] for field in fields),
        "manifest_sha256": manifest["sha256"],
        **circumstances(),
    }


def _compress(
    n_rows: int, dim: int, n_fields: int, weighted: bool, checkpoint: Path | None, **options: Any
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return manifest and run record of an artifact that is thrown away."""
    tables = generated_tables(n_rows, dim, n_fields, SEED)
    weights = generated_weights(n_rows, n_fields, SEED) if weighted else None
    codewords = {
        name: min(max(field.n_rows // 100, 1), MOST_CODEWORDS)
        for name, field in tables.fields.items()
    }
    # in the file system of the checkpoint, so that its codes are moved and not copied
    beside = None
    if checkpoint is not None:
        beside = checkpoint.absolute().parent
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="saec-billion-", dir=beside) as folder:
        artifact = saec.compress(
            tables, weights=weights, codewords=codewords, checkpoint=checkpoint,
            out=Path(folder) / "billion.saec", **options,
        )  # fmt: skip
        return artifact.manifest, artifact.run


def _fma_peak(threads: int) -> float:
    """Return the flop a second that fused multiply-adds reach, the best of some rounds."""
    chains = FmaChains(threads)
    rates = []
    for _ in range(PEAK_ROUNDS):
        begun = time.perf_counter()
        flop = chains.run()
        rates.append(flop / (time.perf_counter() - begun))
    return max(rates)


def main() -> None:
    """Measure once from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.billion", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--rows", type=float, default=1e9, help="of all fields, such as 4e6")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--fields", type=int, default=26)
    parser.add_argument("--weighted", action="store_true", help="rows weigh as often as looked up")
    parser.add_argument("--max-iter", type=int, default=25, help="as for saec compress")
    parser.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        help="cluster coresets; where it pays if not given",
    )
    parser.add_argument("--memory", help="as for saec compress: 2GB")
    parser.add_argument("--threads", type=int, help="cores to use; all if not given")
    parser.add_argument("--backend", default="auto", help="as for saec compress")
    parser.add_argument("--checkpoint", type=Path, help="folder from which a run continues")
    parser.add_argument("--append", type=Path, help="append the record to this file")
    asked = parser.parse_args()
    try:
        with ProgressDisplay(quiet=False) as progress:
            record = measure_compression(
                int(asked.rows), dim=asked.dim, n_fields=asked.fields, weighted=asked.weighted,
                memory=asked.memory, threads=asked.threads, checkpoint=asked.checkpoint,
                progress=progress, backend=asked.backend, max_iter=asked.max_iter,
                fast=asked.fast,
            )  # fmt: skip
    except SaecError as err:
        sys.exit(f"error: {err}")
    except KeyboardInterrupt:
        if asked.checkpoint is not None:
            note("interrupted; the same command continues")
        sys.exit(INTERRUPTED)
    print(json.dumps(record, allow_nan=False))
    if asked.append is not None:
        append_record(asked.append, record)


if __name__ == "__main__":
    main()
