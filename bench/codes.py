"""What codes in levels cost and save: bytes beside the entropy of the codes, time beside planes.

    python -m saec_gpu.bench.codes --table criteo80k.safetensors --append bench/results/codes.jsonl

First the bytes, for each table given and each number of codewords: those of the codes in planes and
in levels over the bytes of their entropy, summed over the fields with at least `--rows` rows. The
entropy is that of the codes over the rows, −Σ p log2 p bits a row. `TABLE.counts.safetensors`
beside a table are its weights.

With `--ratio`, the weighted error of codes of the nearest and of codes by error and length
(`codes="entropy"`) at as many counted bytes, summed over the fields.

Then the time of random look-ups on made codes, 256 codewords whose use falls as rank^−1.2: of codes
alone, and of vectors of 16 float32. Levels and planes take turns; the ratio is that of the medians
of CPU times, and only within one record do times compare.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from saec_gpu.bench.records import SCHEMA, append_record, circumstances, spread

import saec_gpu as saec
from saec_gpu.artifact_writer import EncodedField, write_artifact
from saec_gpu.levels import choose_levels, encode_in_levels
from saec_gpu.packing import PlaneWriter, packed_size

CODEWORDS, DIM = 256, 16  # of the look-ups
ASKED: tuple[dict[str, Any], ...] = (
    {"ratio": 27.7},
    {"codewords": 32},
    {"codewords": 64},
    {"codewords": 256},
)


def entropy_bytes(uses: NDArray[np.int64]) -> float:
    """Return the bytes of codes that are used so often, at −log2 of their share each."""
    shares = uses[uses > 0] / uses.sum()
    return float(-(shares * np.log2(shares)).sum() * uses.sum() / 8)


def bytes_of(table: Path, asked: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a record of the bytes of one table's codes; fields of fewer rows are left out."""
    counts = table.with_suffix(".counts.safetensors")
    entropy, planes, levels, fields = 0.0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        artifact = saec.compress(
            table,
            weights=counts if counts.exists() else None,
            out=Path(folder) / "codes.saec",
            **asked,
        )
        for name in artifact:
            field = artifact[name]
            if field.encoding != "identity" and field.n_rows >= rows:
                uses = np.bincount(field.codes, minlength=field.n_codewords)
                (entry,) = (e for e in artifact.manifest["fields"] if e["name"] == name)
                entropy += entropy_bytes(uses)
                planes += packed_size(field.n_rows, field.n_codewords)
                levels += entry["code_bytes"]
                fields += 1
    return {
        "op": "code_bytes",
        "case": table.stem,
        "asked": asked,
        "weighted": counts.exists(),
        "n_fields": fields,
        "least_rows": rows,
        "entropy_bytes": entropy,
        "planes_bytes": planes,
        "levels_bytes": levels,
        "planes_of_entropy": planes / entropy,
        "levels_of_entropy": levels / entropy,
    }


def errors_of(table: Path, ratio: float) -> dict[str, Any]:
    """Return a record of the weighted error of a table at a ratio, with and without entropy."""
    counts = table.with_suffix(".counts.safetensors")
    record: dict[str, Any] = {
        "op": "entropy_codes",
        "case": table.stem,
        "ratio": ratio,
        "weighted": counts.exists(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for codes in ("auto", "entropy"):
            begun = time.perf_counter()
            artifact = saec.compress(
                table,
                weights=counts if counts.exists() else None,
                ratio=ratio,
                codes=codes,
                out=Path(folder) / f"{codes}.saec",
            )
            errors = [
                one["sse"] if one["weighted_sse"] is None else one["weighted_sse"]
                for one in artifact.manifest["fields"]
                if one["rows"]
            ]
            record[codes] = {
                "weighted_sse": math.fsum(errors),
                "counted_bytes": artifact.counted_bytes,
                "codebook_bytes": artifact.manifest["totals"]["codebook_bytes"],
                "seconds": time.perf_counter() - begun,
            }
    nearest = record["auto"]["weighted_sse"]
    record["error_ratio"] = record["entropy"]["weighted_sse"] / nearest if nearest else 1.0
    return record


def time_of(n_rows: int, lookups: int, repeats: int) -> dict[str, Any]:
    """Return a record of the time that random look-ups take, in planes and in levels."""
    generator = np.random.default_rng(0)
    share = np.arange(1, CODEWORDS + 1) ** -1.2
    codes = generator.choice(CODEWORDS, n_rows, p=share / share.sum()).astype(np.uint8)
    codebook = generator.standard_normal((CODEWORDS, DIM)).astype(np.float32)
    levels = choose_levels(np.bincount(codes, minlength=CODEWORDS))
    assert levels is not None
    rows = generator.integers(0, n_rows, lookups)
    with tempfile.TemporaryDirectory() as folder:
        fields = []
        for encoding in ("planes", "levels"):
            path = Path(folder) / f"{encoding}.npy"
            with PlaneWriter(path, n_rows, CODEWORDS) as writer:
                writer.append(codes)
            if encoding == "levels":
                encode_in_levels(path, CODEWORDS, levels)
            fields.append(
                EncodedField(
                    encoding, n_rows, DIM, "float32", encoding, codebook, path,
                    levels=levels if encoding == "levels" else None,
                )
            )  # fmt: skip
        artifact = write_artifact(
            Path(folder) / "codes.saec", fields, parameters={}, run={}, overwrite=False
        )
        planes, other = artifact["planes"], artifact["levels"]
        assert np.array_equal(planes.codes_of(rows), other.codes_of(rows))
        seconds: dict[str, list[float]] = {}
        for _ in range(repeats):
            for what, work in (
                ("planes_codes", planes.codes_of),
                ("levels_codes", other.codes_of),
                ("planes_vectors", planes.lookup),
                ("levels_vectors", other.lookup),
            ):
                seconds.setdefault(what, []).append(_cpu_seconds(work, rows))
    spreads = {what: spread(found) for what, found in seconds.items()}
    return {
        "op": "lookup",
        "case": f"{n_rows} rows",
        "n_rows": n_rows,
        "n_codewords": CODEWORDS,
        "dim": DIM,
        "lookups": lookups,
        "repeats": repeats,
        "level_bits": list(levels.bits),
        "level_rows": list(levels.rows),
        "planes_bytes": packed_size(n_rows, CODEWORDS),
        "levels_bytes": levels.size,
        "seconds": spreads,
        "codes_ratio": spreads["levels_codes"]["p50"] / spreads["planes_codes"]["p50"],
        "vectors_ratio": spreads["levels_vectors"]["p50"] / spreads["planes_vectors"]["p50"],
    }


def _cpu_seconds(work: Callable[[NDArray[np.int64]], Any], rows: NDArray[np.int64]) -> float:
    begun = time.thread_time()
    work(rows)
    return time.thread_time() - begun


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line for each record, and keep them where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", type=Path, action="append", default=[])
    parser.add_argument("--ratio", type=float, action="append", default=[])
    parser.add_argument("--rows", type=int, default=2000, help="least rows of a field")
    parser.add_argument("--lookup-rows", type=int, nargs="*", default=[10**6, 10**7])
    parser.add_argument("--lookups", type=int, default=10**6)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--append", type=Path, help="file of JSON lines to add the records to")
    options = parser.parse_args(arguments)
    records = [bytes_of(table, asked, options.rows) for table in options.table for asked in ASKED]
    records += [errors_of(table, ratio) for table in options.table for ratio in options.ratio]
    records += [time_of(n, options.lookups, options.repeats) for n in options.lookup_rows]
    for record in records:
        if record["op"] == "code_bytes":
            print(
                f"{record['case']} {record['asked']}: of the entropy's bytes planes take "
                f"{record['planes_of_entropy']:.3f}, levels {record['levels_of_entropy']:.3f}"
            )
        elif record["op"] == "entropy_codes":
            print(
                f"{record['case']} {record['ratio']}x: codes by error and length have "
                f"{record['error_ratio']:.3f} times the weighted error of those of the nearest"
            )
        else:
            print(
                f"{record['case']}: levels take {record['vectors_ratio']:.2f} times as long as "
                f"planes to look up vectors, {record['codes_ratio']:.2f} times to look up codes"
            )
        if options.append is not None:
            append_record(options.append, {"schema": SCHEMA, **record, **circumstances()})


if __name__ == "__main__":
    main()
