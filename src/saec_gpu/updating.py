"""The next hour: an artifact brought up to tables whose rows have moved on."""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from saec_gpu.artifact import Artifact, CompressedField, loaded
from saec_gpu.artifact_writer import check_out
from saec_gpu.backends import open_backend
from saec_gpu.backends.protocol import Backend
from saec_gpu.checkpoint import Checkpoint, is_codes_name, run_id_of
from saec_gpu.clustering.asked import MOST_CODEWORDS, FieldPlan
from saec_gpu.clustering.margin import NO_CODE, LastField
from saec_gpu.clustering.selection import rows_to_cluster
from saec_gpu.codewords import CODEWORDS_DTYPES
from saec_gpu.compression import check_numbers, cluster, finished, run_record, write
from saec_gpu.data import Int64, ProgressFunction
from saec_gpu.durable import scratch_beside
from saec_gpu.errors import ParamError
from saec_gpu.pipeline import Params, Pipeline
from saec_gpu.sources import TableField, WeightSource, open_tables, open_weights
from saec_gpu.sources.stored import listed
from saec_gpu.verification import tables_of

logger = logging.getLogger(__name__)


def update(
    last: Artifact | str | os.PathLike[str],
    tables: Any,
    *,
    weights: Any = None,
    previous_rows: Any = None,
    out: str | os.PathLike[str],
    margin: float = 0.25,
    max_iter: int = 0,
    tol: float = 1e-4,
    backend: str | Backend = "auto",
    chunk_rows: int | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: ProgressFunction | None = None,
) -> Artifact:
    """Return the artifact written to `out`: the last one, brought up to the tables of now.

    Codewords keep their numbers and move to the means of their rows, of which most are known by the
    last codes (clustering/continued.py); a row keeps its code unless another codeword is nearer by
    more than a margin. So an update takes little longer than to read and to assign each row once,
    little changes, and `write_delta` tells a server no more than that. Where a field has grown,
    codewords are added, so that it has as many for its rows as it had at first; they begin at the
    rows that are served worst, and so do codewords that do little where they are
    (clustering/relocation.py). Seed, encoding of codes, dtypes of codewords and the fields kept
    whole are those of the last artifact.
    Codes that were chosen by error and length go on by the margin.

    The same last artifact, rows, weights, margin, max_iter and tol give the same bytes, whatever
    the format, backend, chunk_rows, memory and threads, and also after a kill and resume.

    Parameters
    ----------
    last : Artifact or path
        May have been retrained since (`saec_gpu.nn.to_artifact`).
    tables : TableSource, path, mapping of name to array, or 2-D array
        The fields of the artifact, with the same dims and dtypes; rows may have been added, removed
        and changed.
    weights : path, mapping or vector, optional
        As for `compress`, of the rows of now.
    previous_rows : path, mapping or vector, optional
        Where rows have other numbers now: of each row of a field the number it had, −1 for a new
        one, in the formats of weights. By keys: `pandas.Index(last_keys).get_indexer(keys)`. Fields
        without one kept their numbers, and rows were added or removed at the end.
    out : path
        Folder to write; with `overwrite` it may be that of the last artifact.
    margin : float
        A row keeps its code while its squared distance is at most 1 + margin times the least one
        (clustering/margin.py). So the error of a field is at most that much above the least.
    max_iter : int
        Most passes of Lloyd's iterations that follow. A pass costs as much as all else together and
        lowers the error a little, at the price of more codes that change.
    tol, backend, chunk_rows, memory, threads, checkpoint, overwrite, progress
        As for `compress`.

    Returns
    -------
    artifact : Artifact
        The record of each field states rows_added, rows_removed, codes_changed, churn, drift and
        staleness (`Changes.record`).

    Raises
    ------
    ParamError, SourceError, WeightError, NonFiniteRowError, ArtifactError, CheckpointError
        Each names what was given, what is needed and where.

    Notes
    -----
    With the default margin, and a tenth of the rows other ones each hour, about an eighth of the
    codes change, and the errors stay within 2 % of those of clustering anew (bench/hours.py). A
    field is clustered by a coreset where `compress` would do so, else by all its rows, which are
    held in memory then: at most 256 a codeword, or 32,768. Besides, every row is read once.

    Examples
    --------
    >>> import numpy as np, tempfile, saec_gpu as saec
    >>> rows = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     last = saec.compress({"item": rows}, codewords=8, out=f"{folder}/1.saec")
    ...     rows[:40] += 1
    ...     now = saec.update(last, {"item": rows}, out=f"{folder}/2.saec")
    ...     now["item"].record["churn"] < 0.15
    True
    """
    begun = time.time()
    before = loaded(last)
    opened = open_tables(tables)
    source = tables_of(before, opened, same_rows=False)
    if new := sorted(opened.fields.keys() - source.fields.keys()):
        logger.info("left out, for the artifact does not have them: %s", listed(new))
    weight_source = None if weights is None else open_weights(weights, source)
    numbers = None if previous_rows is None else open_weights(previous_rows, source)
    check_numbers(0, max_iter, tol, chunk_rows, least_iter=0)
    if not (isinstance(margin, int | float | np.number) and 0 <= margin < math.inf):
        raise ParamError(f"margin={margin!r} was given; give a finite number from 0, such as 0.25")
    asked = before.manifest["parameters"]
    params = Params(
        asked.get("seed", 0), int(max_iter), float(tol), "auto",
        "planes" if asked.get("codes") == "planes" else "auto",
        margin=float(margin), last=before.manifest["sha256"],
    )  # fmt: skip
    engine = open_backend(backend, threads=threads) if isinstance(backend, str) else backend
    plans = {name: _plan(before[name], table) for name, table in source.fields.items()}
    kept = None
    with ExitStack() as stack:
        if checkpoint is not None:
            folder = Path(checkpoint)
            # in place, the last artifact may be what this very run has made of it
            ended = finished(run_id_of(folder), Path(out))
            if ended is not None:
                return ended
            identity = {
                "parameters": params.manifest(),
                "tables": source.fingerprint(),
                "weights": weight_source and weight_source.fingerprint(),
                "previous_rows": numbers and numbers.fingerprint(),
            }
            kept = Checkpoint(folder, identity)
        place = check_out(out, overwrite=overwrite)
        if checkpoint is None:
            folder = stack.enter_context(scratch_beside(place, is_codes_name))
        run = Pipeline(
            source, weight_source, params, plans, engine, folder, kept,
            progress or (lambda _: None), by_piece=chunk_rows is not None,
            last={
                name: _last_field(before[name], numbers, float(margin))
                for name in source.fields
                if not plans[name].whole and before[name].n_codewords
            },
        )  # fmt: skip
        sets = cluster(run, memory, chunk_rows)
        for name in run.last.keys() & run.records.keys():
            run.records[name]["first"] = _first(before[name])
        record = run_record(run, begun, sets, chunk_rows, memory)
        return write(run, Path(out), record, overwrite=overwrite)


def _first(field: CompressedField) -> dict[str, int]:
    """Return the rows and codewords of the compression that all updates of a field go back to."""
    found: dict[str, int] = field.record.get(
        "first", {"rows": field.n_rows, "codewords": field.n_codewords}
    )
    return found


def _plan(field: CompressedField, table: TableField) -> FieldPlan:
    """Return the plan of a field that was compressed before and has the rows of `table` now."""
    if field.encoding == "identity":
        return FieldPlan(table.n_rows, "float32", whole=True)
    if not field.n_codewords:
        return FieldPlan(max(1, field.record.get("codewords_asked", 1)), "float32", whole=False)
    first = _first(field)
    grown = min(first["codewords"] * table.n_rows // first["rows"], MOST_CODEWORDS)
    codewords = max(field.n_codewords, grown)
    dtype = next(dtype for dtype in CODEWORDS_DTYPES if dtype == field.codewords_dtype)
    selected = rows_to_cluster(table, codewords, None) or table.n_rows
    return FieldPlan(codewords, dtype, whole=False, selected=selected)


def _last_field(field: CompressedField, previous: WeightSource | None, margin: float) -> LastField:
    """Return what is kept of a field."""

    def same_numbers(start: int, stop: int) -> Int64:
        codes = np.full(stop - start, NO_CODE, np.int64)
        known = min(stop, field.n_rows)
        if start < known:
            codes[: known - start] = field.codes_between(start, known)
        return codes

    def by_previous(start: int, stop: int) -> Int64:
        assert previous is not None
        given = np.empty(stop - start)
        previous.read(field.name, start, given)
        allowed = (given == np.rint(given)) & (given >= NO_CODE) & (given < field.n_rows)
        if not allowed.all():
            row = int(allowed.argmin())
            raise ParamError(
                f'previous_rows of field "{field.name}" is {given[row]!r} at row {start + row}; a '
                f"number from 0 to {field.n_rows - 1}, or -1 for a new row, is needed"
            )
        codes = np.full(stop - start, NO_CODE, np.int64)
        known = given >= 0
        codes[known] = field.codes_of(given[known].astype(np.int64))
        return codes

    moved = previous is not None and field.name in previous.fields
    return LastField(
        field.codebook, by_previous if moved else same_numbers, field.n_rows,
        field.record.get("sse"), margin,
    )  # fmt: skip
