"""What clustering a coreset instead of all rows gains and costs.

    python -m saec_gpu.bench.fast --rows 1e7 --append FILE [--brute]
    python -m saec_gpu.bench.fast --tables T.safetensors --weights W.safetensors --codewords 0.004
    python -m saec_gpu.bench.fast --tables T.safetensors --weights W.safetensors --selections 32,64

Compresses the same tables with the same codewords fast and in full, by turns, the fast one first
and last; with --brute the full run looks at every codeword in every pass. With --selections:
clusters the largest field by its most frequent rows, and by a coreset, and compares their weighted
errors over all rows with that of clustering all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import saec_gpu as saec
from saec_gpu.backends import open_backend
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.host_store import HostStore
from saec_gpu.backends.protocol import StorePlan
from saec_gpu.clustering.asked import codewords_by_field
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.selection import coreset
from saec_gpu.data import Codebook, Float32, Float64, chunk_of
from saec_gpu.errors import SaecError
from saec_gpu.sources import TableSource, WeightSource, open_tables, open_weights
from saec_gpu.sources.generated import generated_tables, generated_weights

from .cases import SEED
from .records import SCHEMA, append_record, circumstances

WARM_ROWS = 200_000  # some fields have rows enough for a coreset, and for the first pass
ROWS_A_CODEWORD, MOST_CODEWORDS = 100, 1024  # of rows made on demand
DIM, FIELDS = 16, 26


class BruteForce(CpuBackend):
    """Looks at every codeword in float32, in every pass: what clustering in full is without bounds.

    Parameters
    ----------
    threads : int
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads, first_pass=False)

    def open_store(self, plan: StorePlan) -> HostStore:
        """Return a store that remembers nothing of the last pass."""
        return HostStore(plan, self.reads_held, lambda chunk: chunk)


def generated(n_rows: int) -> tuple[TableSource, WeightSource | None, dict[str, int]]:
    """Return tables of 26 Zipf fields, their lookups, and clip(rows / 100, 1, 1024) codewords."""
    tables = generated_tables(n_rows, DIM, FIELDS, SEED)
    codewords = {
        name: min(max(field.n_rows // ROWS_A_CODEWORD, 1), MOST_CODEWORDS)
        for name, field in tables.fields.items()
    }
    return tables, generated_weights(n_rows, FIELDS, SEED), codewords


def opened(
    source: str, weights: str | None, share: float, fields: str | None
) -> tuple[TableSource, WeightSource | None, dict[str, int]]:
    """Return the tables of a source, their weights, and a share of the rows as codewords."""
    tables = open_tables(source, fields=fields)
    counts = None if weights is None else open_weights(weights, tables)
    return tables, counts, codewords_by_field(tables.fields, share)


def compare(
    tables: TableSource,
    weights: WeightSource | None,
    codewords: dict[str, int],
    *,
    rounds: int = 1,
    threads: int = 1,
    fast: bool | None = None,
    brute: bool = False,
) -> dict[str, Any]:
    """Return the record of a comparison.

    Parameters
    ----------
    tables, weights, codewords
        As of `compress`.
    rounds : int
        Full runs, each between two fast ones.
    threads : int
    fast : bool or None
        Of the fast runs, as of `compress`.
    brute : bool
        Full runs look at every codeword in float32, in every pass.

    Returns
    -------
    record : dict
        `speed`: full seconds over fast seconds, the least of the rounds each; `error`: weighted
        error of the fast run over that of the full one, over all fields.
    """
    seconds: dict[str, list[dict[str, float]]] = {"fast": [], "full": []}
    errors, clustered = {}, {}
    for kind in ["fast", *["full", "fast"] * rounds]:
        with tempfile.TemporaryDirectory(prefix="saec-fast-") as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            artifact = saec.compress(
                tables, weights=weights, codewords=codewords, threads=threads,
                backend=BruteForce(threads) if brute and kind == "full" else "cpu",
                fast=fast if kind == "fast" else False, out=Path(folder) / "x.saec",
            )  # fmt: skip
            spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            seconds[kind].append(spent | artifact.run["seconds"])
            fields = artifact.manifest["fields"]
            errors[kind] = sum(f["weighted_sse"] or f["sse"] for f in fields)
            clustered[kind] = sum(f.get("clustered_rows", 0) for f in fields)
    clock = "cpu" if threads == 1 else "wall"
    best = {kind: min(one[clock] for one in runs) for kind, runs in seconds.items()}
    return {
        "schema": SCHEMA,
        "op": "fast",
        "n_rows": sum(field.n_rows for field in tables.fields.values()),
        "n_fields": len(tables.fields),
        "n_codewords": sum(codewords.values()),
        "weighted": weights is not None,
        "threads": threads,
        "brute": brute,
        "compared_by": f"{clock}_seconds",
        "seconds": seconds,
        "clustered_rows": clustered,
        "speed": best["full"] / best["fast"],
        "error": errors["fast"] / errors["full"] if errors["full"] else 1.0,
        **circumstances(),
    }


def compare_selections(
    tables: TableSource,
    weights: WeightSource,
    codewords: dict[str, int],
    rows_a_codeword: Sequence[int],
) -> dict[str, Any]:
    """Return the record of how well selections of the largest field stand for all of its rows.

    Returns
    -------
    record : dict
        `head` and `coreset`: for each number of rows a codeword the weighted error of all rows,
        over that of clustering all rows.
    """
    field = max(tables.fields.values(), key=lambda one: one.n_rows)
    k = codewords[field.name]
    rows, counts = np.empty((field.n_rows, field.dim), np.float32), np.empty(field.n_rows)
    tables.read(field.name, 0, rows)
    weights.read(field.name, 0, counts)
    backend = open_backend("cpu")

    def error(chosen: Float32, own: Float64) -> float:
        with tempfile.TemporaryDirectory(prefix="saec-selection-") as folder:
            artifact = saec.compress(
                {field.name: chosen}, weights={field.name: own}, codewords=k, fast=False,
                codewords_dtype="float32", backend=backend, out=Path(folder) / "x.saec",
            )  # fmt: skip
            loaded = backend.load_codebooks({field.name: Codebook(artifact[field.name].codebook)})
            found = backend.assign(chunk_of(field.name, rows), loaded, distances=True)
        total = ErrorSums()
        assert found.distances is not None
        total.add(found.distances, counts)
        return total.weighted_sse

    whole = error(rows, counts)
    by_weight = np.argsort(-counts, kind="stable")
    errors: dict[str, dict[int, float]] = {"head": {}, "coreset": {}}
    for some in rows_a_codeword:
        head = np.sort(by_weight[: some * k])
        drawn = coreset(tables, weights, field, some * k, SEED)
        errors["head"][some] = error(rows[head], counts[head]) / whole
        errors["coreset"][some] = error(drawn.rows, drawn.weights) / whole
    return {
        "schema": SCHEMA,
        "op": "selection",
        "field": field.name,
        "n_rows": field.n_rows,
        "n_codewords": k,
        **errors,
        **circumstances(),
    }


def main() -> None:
    """Measure once from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.fast", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--rows", type=float, default=1e7, help="made on demand, in 26 fields")
    parser.add_argument("--tables", help="instead: a source, as for saec compress")
    parser.add_argument("--weights", help="of --tables")
    parser.add_argument("--fields", help="of --tables: those that match; all without")
    parser.add_argument("--codewords", type=float, default=0.01, help="of --tables: share of rows")
    parser.add_argument(
        "--everywhere", action="store_true", help="fast also where it is not chosen by itself"
    )
    parser.add_argument(
        "--brute", action="store_true", help="full runs look at every codeword in every pass"
    )
    parser.add_argument("--selections", help="rows a codeword, such as 8,32: compare selections")
    parser.add_argument("--rounds", type=int, default=1, help="full runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--append", type=Path, help="append the record to this file")
    asked = parser.parse_args()
    try:
        if asked.tables is None:
            given = generated(int(asked.rows))
        else:
            given = opened(asked.tables, asked.weights, asked.codewords, asked.fields)
        if asked.selections is not None:
            numbers_of_rows = [int(number) for number in asked.selections.split(",")]
            tables, weights, codewords = given
            if weights is None:
                parser.error("--selections needs weights")
            _report(compare_selections(tables, weights, codewords, numbers_of_rows), asked.append)
            return
        # every loop is compiled before it is timed
        compare(*generated(WARM_ROWS), rounds=1, fast=True)
        record = compare(
            *given, rounds=asked.rounds, threads=asked.threads,
            fast=True if asked.everywhere else None, brute=asked.brute,
        )  # fmt: skip
    except SaecError as err:
        sys.exit(f"error: {err}")
    _report(record, asked.append)


def _report(record: dict[str, Any], append: Path | None) -> None:
    print(json.dumps(record, allow_nan=False))
    if append is not None:
        append_record(append, record)


if __name__ == "__main__":
    main()
