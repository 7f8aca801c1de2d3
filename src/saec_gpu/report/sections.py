"""The numbers of a report, section by section, as JSON-able values.

Read are the manifest and `run.json`. Of a field's entry in the manifest, beside what every field
has: `curve` (list of points, see `curves`) where it was made under a byte budget, and where it was
made by an update `churn`, `drift` and `staleness` (`Changes.record` of clustering/margin.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saec_gpu.artifact import Artifact, CompressedField
from saec_gpu.clustering.selection import weights_by_parts
from saec_gpu.data import Float64, Int64, Progress, ProgressFunction
from saec_gpu.errors import NonFiniteRowError, ParamError
from saec_gpu.report.lookup_groups import GROUPS, UNSEEN, LookupGroups
from saec_gpu.sources import TableSource, WeightSource, open_tables, open_weights
from saec_gpu.verification import tables_of

Entry = Mapping[str, Any]

READ_ROWS = 1 << 20  # of codes that are counted at once
READ_BYTES = 1 << 23  # of float32 rows that are read at once
SUMMED = ("rows", "lookups", "sq_error", "sq_norm")  # of each group of look-ups
CURVE_RANKS = 65  # at most so many codewords stand for all in a chart of their use


def report_data(
    artifact: Artifact,
    tables: Any = None,
    weights: Any = None,
    *,
    progress: ProgressFunction | None = None,
) -> dict[str, Any]:
    """Return all that a report shows of an artifact, as JSON-able values.

    Parameters
    ----------
    artifact : Artifact
    tables : TableSource, path, mapping of name to array, or 2-D array, optional
        Those it was made from; with `weights`, for the error by frequency.
    weights : path, mapping or vector, optional
        How often each row is looked up, as for `compress`.
    progress : function of Progress, optional
        Called often: "codes" while codes are counted, "statistics" while rows are read.

    Returns
    -------
    data : dict
        By section: "head", "fields" (see `fields`), "curves" (`curves`), "errors" (`errors_of`;
        None without tables), "use" (`use_of`), "run" (`run`), "update" (`update`).

    Raises
    ------
    ParamError
        One of tables and weights was given without the other.
    ArtifactError
        A file of the artifact was altered or cannot be read.
    SourceError
        The tables lack a field of the artifact, or it has other rows, dims or dtype there.
    WeightError, NonFiniteRowError
        A weight or a row is not allowed. Names field and row.

    Notes
    -----
    Reads all codes, with tables also all rows once and all weights twice. Holds about 100 MB beside
    the codewords.

    Examples
    --------
    >>> import numpy as np, tempfile, saec_gpu as saec
    >>> rows = np.repeat(np.eye(4, dtype=np.float32), 100, axis=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = saec.compress({"item": rows}, codewords=4, out=f"{folder}/item.saec")
    ...     report_data(artifact)["use"][0]["entropy"]
    2.0
    """
    if (tables is None) != (weights is None):
        given, missing = ("tables", "weights") if weights is None else ("weights", "tables")
        raise ParamError(
            f"{given} were given without {missing}; the error by frequency needs both: give both, "
            "or none for a report without it"
        )
    tell = progress or (lambda _: None)
    entries = artifact.manifest["fields"]
    return {
        "head": head(artifact),
        "fields": fields(entries),
        "curves": curves(entries),
        "errors": None if tables is None else _errors(artifact, tables, weights, tell),
        "use": _use(artifact, tell),
        "run": run(entries, artifact.run),
        "update": update(entries),
    }


def head(artifact: Artifact) -> dict[str, Any]:
    """Return what is said of the artifact as a whole; bytes are counted as in its ratio."""
    record = artifact.run
    return {
        "path": str(artifact.path),
        "ratio": artifact.ratio,
        "table_bytes": artifact.table_bytes,
        "counted_bytes": artifact.counted_bytes,
        "disk_bytes": artifact.disk_bytes,
        "fields": len(artifact),
        "rows": artifact.manifest["totals"]["rows"],
        "parameters": artifact.manifest["parameters"],
        "run": {
            key: record[key]
            for key in ("source", "begun", "backend", "threads", "versions")
            if key in record
        },
    }


def fields(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the sizes and errors of the fields, those with the most table bytes first.

    Bits per row are those of its code as stored; `mean_sq_error` is the sum of squared distances by
    rows, None for a field that states none.
    """
    found = []
    for entry in by_table_bytes(entries):
        sse = 0.0 if entry["encoding"] == "identity" else entry.get("sse")
        found.append(
            {
                "name": entry["name"],
                "rows": entry["rows"],
                "dim": entry["dim"],
                "dtype": entry["dtype"],
                "encoding": entry["encoding"],
                "codewords": entry["codewords"],
                "codewords_dtype": codewords_dtype(entry),
                "bits_per_row": _per_row(8 * entry["code_bytes"], entry),
                "table_bytes": entry["table_bytes"],
                "codebook_bytes": entry["codebook_bytes"],
                "code_bytes": entry["code_bytes"],
                "counted_bytes": entry["codebook_bytes"] + entry["code_bytes"],
                "mean_sq_error": None if sse is None else _per_row(sse, entry),
            }
        )
    return found


def by_table_bytes(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of fields in the order of a report: most table bytes first, then names."""
    return sorted(entries, key=lambda entry: (-entry["table_bytes"], entry["name"]))


def codewords_dtype(entry: Entry) -> str:
    """Return the dtype in which the codewords of a field lie in the artifact."""
    return str(entry["codewords_dtype"])


def _per_row(amount: float, entry: Entry) -> float:
    return amount / entry["rows"] if entry["rows"] else 0.0


def curves(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the distortion curves of the fields that have one, and what came of each.

    Returns
    -------
    curves : list of dict
        `points`: the manifest's, by bytes ascending: codewords, dtype ("whole": the rows are kept),
        distortion (Σ weight × squared distance, estimated), codebook_bytes, code_bytes (estimated).
        `chosen`: the index of the point that the field was made by, None if it is none of them.
        `bytes`, `distortion`: of the field as it was made, the latter None if it is not stated.
    """
    found = []
    for entry in by_table_bytes(entries):
        if not entry.get("curve"):
            continue
        points = [dict(point) for point in entry["curve"]]
        whole = entry["encoding"] == "identity"
        made = (
            entry["codewords"] if whole else entry.get("codewords_asked", entry["codewords"]),
            "whole" if whole else codewords_dtype(entry),
        )
        places = [
            i for i, point in enumerate(points) if (point["codewords"], point["dtype"]) == made
        ]
        weighted = entry.get("weighted_sse")
        found.append(
            {
                "name": entry["name"],
                "points": points,
                "chosen": places[0] if places else None,
                "bytes": entry["codebook_bytes"] + entry["code_bytes"],
                "distortion": entry.get("sse") if weighted is None else weighted,
            }
        )
    return found


def run(entries: Sequence[Entry], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return seconds by stage, and of each field that was clustered passes and rows rechecked.

    `rechecked_share` is of all rows of all passes: those whose nearest codeword the fast filter did
    not prove, so that the definition decided. Empty where `run.json` does not tell.
    """
    shares = record.get("rechecked_share", {})
    return {
        "seconds": dict(record.get("seconds", {})),
        "fields": [
            {
                "name": entry["name"],
                "passes": entry.get("iterations"),
                "stopped": entry.get("stopped"),
                "rechecked_share": shares[entry["name"]],
            }
            for entry in by_table_bytes(entries)
            if entry["name"] in shares
        ],
    }


def update(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return what an update changed, field by field; nothing of a first compression."""
    return [
        {key: entry[key] for key in ("name", "churn", "drift", "staleness")}
        for entry in by_table_bytes(entries)
        if entry.get("rule") == "margin"
    ]


def use_of(counts: Int64) -> dict[str, Any]:
    """Return how evenly codewords are used.

    Parameters
    ----------
    counts : int64 (k,)
        Rows of each codeword; at least one row in all.

    Returns
    -------
    use : dict
        entropy: bits a row that its codes carry, at most log2(k). even: 2^entropy, the number of
        codewords that would carry as much if all were used alike. used: codewords with a row.
        most, median: rows of a codeword. ranks: pairs (rank, rows) of codewords by rows descending,
        all or `CURVE_RANKS` of them, spread evenly in the logarithm of the rank.

    Examples
    --------
    >>> use = use_of(np.array([1, 0, 2, 1]))
    >>> use["entropy"], use["used"], use["most"], use["median"], use["ranks"]
    (1.5, 3, 2, 1.0, [(1, 2), (2, 1), (3, 1), (4, 0)])
    """
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum()) + 0.0  # of one codeword 0, not −0
    descending = np.sort(counts)[::-1]
    ranks = np.unique(np.rint(np.geomspace(1, len(counts), CURVE_RANKS)).astype(np.int64))
    if len(counts) <= CURVE_RANKS:
        ranks = np.arange(1, len(counts) + 1)
    return {
        "entropy": entropy,
        "even": float(2**entropy),
        "used": len(share),
        "most": int(descending[0]),
        "median": float(np.median(descending)),
        "ranks": [(int(rank), int(descending[rank - 1])) for rank in ranks],
    }


def _use(artifact: Artifact, tell: ProgressFunction) -> list[dict[str, Any]]:
    """Return the use of the codewords of the fields that have codes."""
    coded = [
        entry
        for entry in by_table_bytes(artifact.manifest["fields"])
        if entry["encoding"] != "identity" and entry["rows"]
    ]
    total, done = sum(entry["rows"] for entry in coded), 0
    found = []
    for entry in coded:
        field = artifact[entry["name"]]
        counts = np.zeros(field.n_codewords, np.int64)
        for start in range(0, field.n_rows, READ_ROWS):
            stop = min(start + READ_ROWS, field.n_rows)
            counts += np.bincount(field.codes_between(start, stop), minlength=len(counts))
            done += stop - start
            tell(Progress("codes", done, total))
        stored = _per_row(8 * entry["code_bytes"], entry)
        sizes = {"name": field.name, "codewords": field.n_codewords, "bits_per_row": stored}
        found.append(sizes | use_of(counts))
    return found


def _errors(
    artifact: Artifact, tables: Any, weights: Any, tell: ProgressFunction
) -> list[dict[str, Any]]:
    """Return the errors by frequency of the fields with rows and weights."""
    source = tables_of(artifact, open_tables(tables))
    lookups = open_weights(weights, source)
    names = [
        entry["name"]
        for entry in by_table_bytes(artifact.manifest["fields"])
        if entry["rows"] and entry["name"] in lookups.fields
    ]
    total, done = sum(artifact[name].n_rows for name in names), 0
    found = []
    for name in names:
        sums = np.zeros((len(SUMMED), GROUPS + 1))
        for part in _sums_of_parts(artifact[name], source, lookups):
            sums += part
            done += int(part[0].sum())
            tell(Progress("statistics", done, total))
        found.append({"name": name} | errors_of(sums))
    return found


def _sums_of_parts(
    field: CompressedField, source: TableSource, lookups: WeightSource
) -> Iterator[Float64]:
    """Yield the sums that `errors_of` takes, of a few rows at a time."""
    groups = LookupGroups(part for _, part in weights_by_parts(lookups, field.name))
    at_once = max(1, READ_BYTES // (field.dim * np.dtype(np.float32).itemsize))
    for start in range(0, field.n_rows, at_once):
        n_rows = min(at_once, field.n_rows - start)
        rows, weights = np.empty((n_rows, field.dim), np.float32), np.empty(n_rows)
        source.read(field.name, start, rows)
        lookups.read(field.name, start, weights)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise NonFiniteRowError(
                f'row {start + int(finite.argmin())} of field "{field.name}" holds NaN or '
                "infinity; give the tables that the artifact was made from"
            )
        wide = rows.astype(np.float64)
        apart = wide - field.lookup(np.arange(start, start + n_rows))
        of_rows = (
            np.ones(n_rows),
            weights,
            np.einsum("ij,ij->i", apart, apart),
            np.einsum("ij,ij->i", wide, wide),
        )
        group = groups.assign(weights)
        yield np.array([np.bincount(group, values, GROUPS + 1) for values in of_rows])


def errors_of(sums: Float64) -> dict[str, Any]:
    """Return the error of rows by how often they are looked up.

    Parameters
    ----------
    sums : float64 (len(SUMMED), GROUPS + 1)
        By group, `UNSEEN` last: rows, look-ups, Σ squared distance, Σ squared norm.

    Returns
    -------
    errors : dict
        `groups`: ten, the most looked up first; `unseen`; `all`. Each is a dict of rows, lookups,
        mean_sq_error, mean_sq_norm and relative, the first mean by the second. The means are None
        without rows; relative is None too where all rows are zero.

    Examples
    --------
    >>> sums = np.zeros((len(SUMMED), GROUPS + 1))
    >>> sums[:, 0] = 2, 30, 1, 4
    >>> errors_of(sums)["groups"][0]["relative"]
    0.25
    """
    groups = [_group(*map(float, column)) for column in sums.T]
    return {
        "groups": groups[:UNSEEN],
        "unseen": groups[UNSEEN],
        "all": _group(*map(float, sums.sum(axis=1))),
    }


def _group(rows: float, lookups: float, sq_error: float, sq_norm: float) -> dict[str, Any]:
    return {
        "rows": int(rows),
        "lookups": lookups,
        "mean_sq_error": sq_error / rows if rows else None,
        "mean_sq_norm": sq_norm / rows if rows else None,
        "relative": sq_error / sq_norm if sq_norm else None,
    }
