"""What an update keeps and saves, hour by hour, beside clustering anew.

    python -m saec_gpu.bench.hours --rows 1e5 --append bench/results/hours.jsonl

Tables of 26 Zipf fields; each hour a tenth of every field's rows become other ones, and it grows by
two per cent. The artifact of the last hour is updated, and the same tables are compressed with the
same numbers of codewords, by turns. One thread is compared by CPU time, several by wall time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saec_gpu as saec
from saec_gpu.synthetic import recommender_tables

from .cases import SEED
from .records import SCHEMA, append_record, circumstances, spread

FIELDS, DIM = 26, 16
CHANGED, GROWTH = 0.1, 0.02  # of a field's rows, an hour
CODEWORDS = 0.01

Arrays = dict[str, NDArray[Any]]


def hours(n_rows: int, n_hours: int, seed: int) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield tables and lookups of the first hour and of n_hours more.

    All rows are drawn at once, so that new ones are like the old; each is taken once.
    """
    rows_taken = sum((CHANGED + GROWTH) * (1 + GROWTH) ** hour for hour in range(n_hours))
    pool, counts_of_pool = recommender_tables(
        round(n_rows * (1 + rows_taken)) + FIELDS * (n_hours + 1), FIELDS, DIM, seed
    )
    rng = np.random.default_rng(seed)
    first = {name: max(1, int(len(rows) / (1 + rows_taken))) for name, rows in pool.items()}
    tables = {name: rows[: first[name]] for name, rows in pool.items()}
    counts = {name: own[: first[name]] for name, own in counts_of_pool.items()}
    taken = dict(first)
    yield tables, counts
    for hour in range(1, n_hours + 1):
        tables, counts = dict(tables), dict(counts)
        for name, rows in pool.items():
            own = tables[name].copy()
            changed = rng.choice(len(own), int(CHANGED * len(own)), replace=False)
            grown = int(first[name] * (1 + GROWTH) ** hour) - len(own)
            start, middle = taken[name], taken[name] + len(changed)
            taken[name] = stop = min(middle + grown, len(rows))
            own[changed] = rows[start:middle]
            tables[name] = np.concatenate([own, rows[middle:stop]])
            counts[name] = np.concatenate([counts[name], counts_of_pool[name][middle:stop]])
        yield tables, counts


def measure(n_rows: int, n_hours: int, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the record of some hours.

    Returns
    -------
    record : dict
        `hours`, of each: `churn`, share of the rows that stayed whose code changed; `error` and
        `weighted_error`, those of the update over those of clustering anew; `seconds` of both;
        `delta_bytes` and `artifact_bytes`. `churn`, `error`, `weighted_error` and `speed`
        (seconds anew over seconds of the update): least, median and greatest over the hours.
    """
    shared: dict[str, Any] = {"threads": threads, "backend": "cpu", "overwrite": True}
    clock = time.process_time if threads == 1 else time.perf_counter
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="saec-hours-") as name:
        folder = Path(name)
        made = hours(n_rows, n_hours, SEED)
        tables, counts = next(made)
        last = saec.compress(
            tables, weights=counts, codewords=CODEWORDS, out=folder / "0.saec", **shared
        )
        for number, (tables, counts) in enumerate(made, 1):
            begun = clock()
            updated = saec.update(
                last, tables, weights=counts, out=folder / f"{number % 2}.saec", **options, **shared
            )
            between = clock()
            codewords = {name: max(updated[name].n_codewords, 1) for name in updated}
            anew = saec.compress(
                tables, weights=counts, codewords=codewords, out=folder / "anew.saec", **shared
            )
            ended = clock()
            delta = saec.write_delta(last, updated, folder / "x.delta").stat().st_size
            found.append(
                _compared(updated, anew)
                | {
                    "seconds": {"update": between - begun, "anew": ended - between},
                    "delta_bytes": delta,
                    "artifact_bytes": updated.disk_bytes,
                }
            )
            print(f"hour {number}: {found[-1]}", file=sys.stderr)
            last = updated
    speeds = [one["seconds"]["anew"] / one["seconds"]["update"] for one in found]
    return {
        "schema": SCHEMA,
        "op": "hours",
        "n_rows": n_rows,
        "n_fields": FIELDS,
        "changed": CHANGED,
        "growth": GROWTH,
        "threads": threads,
        "compared_by": "cpu_seconds" if threads == 1 else "wall_seconds",
        "options": options,
        "hours": found,
        "speed": _range(speeds),
        **{
            key: _range([one[key] for one in found]) for key in ("churn", "error", "weighted_error")
        },
        **circumstances(),
    }


def _compared(updated: saec.Artifact, anew: saec.Artifact) -> dict[str, float]:
    coded = [updated[name] for name in updated if updated[name].record["rule"] == "margin"]
    kept = sum(field.n_rows - field.record["rows_added"] for field in coded)
    sums = {
        key: [sum(artifact[name].record[key] or 0.0 for name in artifact) for artifact in pair]
        for pair in [(updated, anew)]
        for key in ("sse", "weighted_sse")
    }
    return {
        "churn": sum(field.record["codes_changed"] for field in coded) / kept,
        "error": sums["sse"][0] / sums["sse"][1],
        "weighted_error": sums["weighted_sse"][0] / sums["weighted_sse"][1],
    }


def _range(numbers: Sequence[float]) -> dict[str, float]:
    return {"least": min(numbers), "median": spread(numbers)["p50"], "greatest": max(numbers)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for and print or append the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=float, default=1e5, help="rows of all fields at first")
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--margin", type=float, help="of the update; its default if not given")
    parser.add_argument("--max-iter", type=int, help="likewise")
    parser.add_argument("--append", type=Path, help="file of JSON lines to add the record to")
    asked = parser.parse_args(arguments)
    options = {
        key: value
        for key, value in (("margin", asked.margin), ("max_iter", asked.max_iter))
        if value is not None
    }
    record = measure(int(asked.rows), asked.hours, asked.threads, options)
    for key in ("churn", "error", "weighted_error", "speed"):
        print(key, {name: round(value, 4) for name, value in record[key].items()})
    if asked.append is not None:
        append_record(asked.append, record)


if __name__ == "__main__":
    main()
