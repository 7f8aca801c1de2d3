"""From table source to artifact: the only file that knows every part."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saec_gpu.artifact import Artifact, load
from saec_gpu.artifact_writer import EncodedField, check_out, write_artifact
from saec_gpu.backends import open_backend
from saec_gpu.backends.protocol import Backend
from saec_gpu.checkpoint import Checkpoint
from saec_gpu.clustering.budget import (
    CodewordsParam,
    codewords_by_field,
    codewords_for_ratio,
    kept_whole,
)
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.lloyd import FieldFit, fit, sample_variance
from saec_gpu.clustering.seeding import seed_codewords
from saec_gpu.clustering.statistics import StatisticsBuilder, fixed_point
from saec_gpu.data import Codebook, Float32, Progress, ProgressFunction, Statistics
from saec_gpu.errors import ArtifactError, ParamError
from saec_gpu.packing import PlaneWriter
from saec_gpu.sources import TableField, TableSource, WeightSource, open_tables, open_weights
from saec_gpu.stream import FieldWork, ResidencySet, RowStream, plan_sets
from saec_gpu.version import __version__

logger = logging.getLogger(__name__)

DEFAULT_CODEWORDS = 0.01  # a hundred rows a codeword, as the Saec poster's tables
BYTE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    BYTE_UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}


@dataclass(frozen=True)
class _Params:
    """What decides the result; recorded in the manifest and held against a checkpoint."""

    codewords: Mapping[str, int]
    seed: int
    max_iter: int
    tol: float

    def manifest(self) -> dict[str, Any]:
        return {"seed": self.seed, "max_iter": self.max_iter, "tol": self.tol}


def compress(
    tables: Any,
    *,
    weights: Any = None,
    codewords: CodewordsParam | None = None,
    ratio: float | None = None,
    out: str | os.PathLike[str],
    backend: str = "auto",
    seed: int = 0,
    max_iter: int = 25,
    tol: float = 1e-4,
    chunk_rows: int | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    fields: str | Sequence[str] | None = None,
    progress: ProgressFunction | None = None,
) -> Artifact:
    """Return the artifact written to `out`: a codebook per field and a code per row.

    The same rows, weights, codewords, seed, max_iter and tol give the same bytes, whatever the
    format, backend, chunk_rows, memory and threads, and also after a kill and resume.

    Parameters
    ----------
    tables : TableSource, path, mapping of name to array, or 2-D array
        What to compress; see `open_tables`.
    weights : path, mapping or vector, optional
        How often each row is looked up, float ≥ 0, one vector a field; fields without are unweighted.
    codewords : int, fraction in (0, 1] or mapping of field to either, optional
        Codewords per field; a fraction is of its rows and at most 65,536. 0.01 if neither this nor
        `ratio` is given.
    ratio : float, optional
        How many times smaller the tables shall be, counted bytes; instead of `codewords`.
    out : path
        Folder to write, customarily `*.saec`.
    backend : {"auto", "cpu"}
        Where to compute.
    seed : int
        Keys every random draw.
    max_iter : int
        Most passes of the fit.
    tol : float
        A field stops when its codewords moved by at most tol times the mean variance of a column.
    chunk_rows : int, optional
        Rows of one read; chosen from the memory if not given.
    memory : int or str, optional
        Bytes ("500MB", "2GiB") for rows and all that is made of them; half of what is free if not
        given. A table that does not fit is read again in each pass.
    threads : int, optional
        Cores to use; all if not given.
    checkpoint : path, optional
        Folder from which the same call continues after an interrupt or a kill.
    overwrite : bool
        Replace an artifact that is at `out`, in one step.
    fields : str or sequence of str, optional
        Patterns (`fnmatch`) of the fields to take.
    progress : function of Progress, optional
        Called often, from this thread.

    Raises
    ------
    ParamError, SourceError, WeightError, NonFiniteRowError, ArtifactError, CheckpointError
        Each names what was given, what is needed and where.

    Notes
    -----
    Saec-style compression: Wu, Xu, Zhang, Chen, Wang, arXiv 1903.00103. Fields that fit the memory
    are read once; memory held is `memory` and the codebooks.

    Examples
    --------
    >>> import numpy as np, tempfile, saec_gpu as saec
    >>> rows = np.repeat(np.eye(4, dtype=np.float32), 100, axis=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = saec.compress({"item": rows}, codewords=4, out=f"{folder}/item.saec")
    ...     bool((artifact["item"].lookup([0, 399]) == rows[[0, 399]]).all())
    True
    """
    begun = time.time()
    source = open_tables(tables, fields=fields)
    weight_source = None if weights is None else open_weights(weights, source)
    params = _checked_params(source, codewords, ratio, seed, max_iter, tol, chunk_rows)
    engine = open_backend(backend, threads=threads)
    identity = {
        "parameters": params.manifest(),
        "codewords": dict(params.codewords),
        "tables": source.fingerprint() if checkpoint is not None else None,
        "weights": weight_source.fingerprint() if checkpoint and weight_source else None,
    }
    kept = None
    with ExitStack() as stack:
        if checkpoint is not None:
            folder = Path(checkpoint)
            kept = Checkpoint(folder, identity)
            finished = _finished(kept, Path(out))
            if finished is not None:
                return finished
        check_out(out, overwrite=overwrite)
        if checkpoint is None:
            folder = Path(stack.enter_context(_scratch_beside(Path(out))))
        run = _Run(
            source, weight_source, params, engine, folder, kept, progress or (lambda _: None),
            by_piece=chunk_rows is not None,
        )  # fmt: skip
        sets = _plan(run, memory, chunk_rows)
        for planned in sets:
            run.cluster(planned)
        encoded = [run.encoded(name) for name in source.fields]
        run.progress(Progress("write", 0, len(encoded), "fields"))
        artifact = write_artifact(
            Path(out),
            encoded,
            parameters=params.manifest(),
            run=_run_record(run, begun, sets, chunk_rows, memory),
            overwrite=overwrite,
        )
        run.progress(Progress("write", len(encoded), len(encoded), "fields"))
    return artifact


def _scratch_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder on the file system that the artifact will be on."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f".{out.name}.codes-", dir=parent)


def _checked_params(
    source: TableSource,
    codewords: CodewordsParam | None,
    ratio: float | None,
    seed: int,
    max_iter: int,
    tol: float,
    chunk_rows: int | None,
) -> _Params:
    for name, value, least in (("seed", seed, 0), ("max_iter", max_iter, 1), ("chunk_rows", chunk_rows, 1)):  # fmt: skip
        if value is None and name == "chunk_rows":
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ParamError(f"{name}={value!r} was given; give a whole number from {least}")
    if not (isinstance(tol, int | float) and np.isfinite(tol) and tol >= 0):
        raise ParamError(f"tol={tol!r} was given; give a finite number from 0")
    by_field = asked_codewords(source.fields, codewords, ratio)
    return _Params(by_field, int(seed), int(max_iter), float(tol))


def asked_codewords(
    fields: Mapping[str, TableField], codewords: CodewordsParam | None, ratio: float | None
) -> dict[str, int]:
    """Return the codewords of each field from what `compress` was given; a hundredth by default.

    Raises
    ------
    ParamError
        Both were given, or one is outside what it may be.
    """
    if codewords is not None and ratio is not None:
        raise ParamError(
            f"codewords={codewords!r} and ratio={ratio!r} were both given; each decides the number "
            "of codewords: give one"
        )
    if ratio is not None:
        return codewords_for_ratio(fields, ratio)
    return codewords_by_field(fields, DEFAULT_CODEWORDS if codewords is None else codewords)


def parse_bytes(text: int | str) -> int:
    """Return a number of bytes from an int or from text such as "500MB", "2GB" or "1.5GiB".

    Raises
    ------
    ParamError
        It is not a positive size.
    """
    number, unit = str(text).strip(), ""
    while number and not number[-1].isdigit():
        unit = number[-1] + unit
        number = number[:-1]
    try:
        size = int(float(number) * BYTE_UNITS[unit.strip().lower()])
    except (ValueError, KeyError, OverflowError) as err:
        raise ParamError(
            f"memory={text!r} was given; give bytes, or a size such as 500MB, 2GB or 1.5GiB"
        ) from err
    if size < 1:
        raise ParamError(f"memory={text!r} was given; give at least one byte")
    return size


def _finished(kept: Checkpoint, out: Path) -> Artifact | None:
    """Return the artifact at `out` if this very run has already written it."""
    try:
        artifact = load(out)
    except ArtifactError:
        return None  # missing, or not ours: writing decides what to say of it
    return artifact if artifact.run.get("run_id") == kept.run_id else None


def _plan(run: _Run, memory: int | str | None, chunk_rows: int | None) -> tuple[ResidencySet, ...]:
    budget = run.backend.memory_budget() if memory is None else parse_bytes(memory)
    works = [run.work(name) for name in run.unfinished()]
    sets = plan_sets(works, memory=budget, threads=run.backend.threads, chunk_rows=chunk_rows)
    for planned in sets:
        logger.info(
            "%d fields of %d rows are %s",
            len(planned.fields),
            sum(work.n_rows for work in planned.fields),
            "read once and kept in memory" if planned.resident else "larger than the memory: read each pass",
        )  # fmt: skip
    return sets


@dataclass(eq=False)
class _Run:
    """One compression: what it works on, and what came of each field."""

    source: TableSource
    weights: WeightSource | None
    params: _Params
    backend: Backend
    folder: Path
    checkpoint: Checkpoint | None
    progress: ProgressFunction
    by_piece: bool
    codebooks: dict[str, Float32] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    rechecked: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = {name: number for number, name in enumerate(self.source.fields)}
        for name, number in self.numbers.items():
            if self.source.fields[name].n_rows == 0:
                self.codebooks[name] = np.zeros((0, self.source.fields[name].dim), np.float32)
                self.records[name] = {"codewords_asked": self.params.codewords[name]}
            elif self.checkpoint is not None and (found := self.checkpoint.done(number)) is not None:
                self.codebooks[name], self.records[name] = found

    def unfinished(self) -> list[str]:
        return [name for name in self.source.fields if name not in self.records]

    def weighted(self, name: str) -> bool:
        return self.weights is not None and name in self.weights.fields

    def work(self, name: str) -> FieldWork:
        table = self.source.fields[name]
        codewords = min(self.params.codewords[name], table.n_rows)
        return FieldWork(name, table.n_rows, table.dim, self.weighted(name), codewords)

    def codes_path(self, name: str) -> Path:
        return self.folder / f"{self.numbers[name]}.codes.npy"

    def cluster(self, planned: ResidencySet) -> None:
        """Take the fields of one set from rows to codes."""
        stream = RowStream(self.source, self.weights, planned, by_piece=self.by_piece)
        names = [work.name for work in planned.fields]
        statistics = self._timed("statistics", self._statistics, stream, names)
        whole = {
            name
            for name in names
            if kept_whole(self.source.fields[name], self._codewords(name, statistics[name]))
        }
        fits = self._timed(
            "seeding",
            self._seeds,
            {
                name: one
                for name, one in statistics.items()
                if name not in whole and one.distinct is None
            },
        )
        self._timed("fit", self._fit, stream, fits)
        final = {name: one.ordered() for name, one in fits.items()}
        for name in names:
            distinct = statistics[name].distinct
            if name not in whole and distinct is not None:
                final[name] = distinct
        for name in whole:
            self.records[name] = self._record(name, statistics[name], None)
        self._timed("codes", self._encode, stream, statistics, fits, final)

    def _timed(self, stage: str, work: Any, *args: Any) -> Any:
        begun = time.perf_counter()
        result = work(*args)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun
        return result

    def _codewords(self, name: str, statistics: Statistics) -> int:
        """Return how many codewords the field can have at most."""
        distinct = statistics.distinct
        return self.params.codewords[name] if distinct is None else len(distinct)

    def _statistics(self, stream: RowStream, names: Collection[str]) -> dict[str, Statistics]:
        known: dict[str, Statistics] = {}
        for name in names:
            kept = self.checkpoint and self.checkpoint.statistics(self.numbers[name])
            if kept:
                known[name] = kept
        missing = [name for name in names if name not in known]
        total = stream.rows_of(missing)
        done = 0
        builder: StatisticsBuilder | None = None
        for chunk in stream.pieces(missing):
            (segment,) = chunk.layout.segments
            name = segment.field
            table = self.source.fields[name]
            if builder is None:
                builder = StatisticsBuilder(
                    name, table.n_rows, table.dim, self.params.codewords[name], self.params.seed,
                    weighted=self.weighted(name),
                )  # fmt: skip
            builder.add(
                segment.start, chunk.rows(segment), chunk.weights if self.weighted(name) else None
            )
            done += segment.n_rows
            self.progress(Progress("statistics", done, total))
            if segment.start + segment.n_rows == table.n_rows:
                known[name] = builder.statistics()
                builder = None
                if self.weighted(name) and not known[name].weighted:
                    logger.info('field "%s": all weights are zero; it is clustered unweighted', name)
                if self.checkpoint is not None:
                    self.checkpoint.save_statistics(self.numbers[name], known[name])
        return known

    def _seeds(self, statistics: Mapping[str, Statistics]) -> dict[str, FieldFit]:
        fits: dict[str, FieldFit] = {}
        for done, (name, one) in enumerate(statistics.items()):
            self.progress(Progress("seeding", done, len(statistics), "fields"))
            fits[name] = FieldFit(
                one, fixed_point(one), sample_variance(one.sample), np.zeros((0, 0), np.float32)
            )
            restored = self.checkpoint is not None and self.checkpoint.restore_fit(
                self.numbers[name], fits[name]
            )
            if not restored:
                fits[name].codewords = seed_codewords(
                    one.sample, self.params.codewords[name], self.params.seed, name
                )
        return fits

    def _fit(self, stream: RowStream, fits: Mapping[str, FieldFit]) -> None:
        def chunks(active: Collection[str]) -> Iterator[Any]:
            total, done = stream.rows_of(active), 0
            iteration = 1 + max(fits[name].iterations for name in active)
            for chunk in stream.chunks(active):
                yield chunk
                done += sum(s.n_rows for s in chunk.layout.segments if s.field in active)
                self.progress(Progress("fit", done, total, "rows", iteration, len(active)))

        def after_pass(rechecked: Mapping[str, int]) -> None:
            for name, rows in rechecked.items():
                self.rechecked.setdefault(name, []).append(rows)
            if self.checkpoint is not None:
                self.checkpoint.save_fits({self.numbers[n]: fits[n] for n in rechecked})

        fit(
            self.backend, chunks, fits, tol=self.params.tol, max_iter=self.params.max_iter,
            after_pass=after_pass,
        )  # fmt: skip

    def _encode(
        self,
        stream: RowStream,
        statistics: Mapping[str, Statistics],
        fits: Mapping[str, FieldFit],
        final: Mapping[str, Float32],
    ) -> None:
        """Write the codes of all rows against the final codebooks, and sum their errors."""
        codebooks = self.backend.load_codebooks({n: Codebook(c) for n, c in final.items()})
        total, done = stream.rows_of(final.keys()), 0
        writer: PlaneWriter | None = None
        with ExitStack() as stack:
            for chunk in stream.pieces(final.keys()):
                (segment,) = chunk.layout.segments
                name = segment.field
                if writer is None:
                    writer = stack.enter_context(
                        PlaneWriter(self.codes_path(name), segment_rows(self.source, name), len(final[name]))
                    )  # fmt: skip
                    errors = ErrorSums(statistics[name])
                    used = np.zeros(len(final[name]), bool)
                found = self.backend.assign(
                    self.backend.load_rows(chunk), codebooks, distances=True
                )
                writer.append(found.codes)
                assert found.distances is not None
                errors.add(found.distances, chunk.weights)
                used[found.codes] = True
                done += segment.n_rows
                self.progress(Progress("codes", done, total))
                if segment.start + segment.n_rows == self.source.fields[name].n_rows:
                    stack.pop_all().close()
                    writer = None
                    self._finish(name, statistics[name], fits.get(name), final[name], errors, used)

    def _finish(
        self,
        name: str,
        statistics: Statistics,
        fitted: FieldFit | None,
        codebook: Float32,
        errors: ErrorSums,
        used: np.ndarray[tuple[int], np.dtype[np.bool_]],
    ) -> None:
        record = self._record(name, statistics, fitted)
        record["sse"] = errors.sse
        record["weighted_sse"] = errors.weighted_sse if statistics.weighted else None
        record["unused_codewords"] = [int(code) for code in np.flatnonzero(~used)]
        self.codebooks[name] = codebook
        self.records[name] = record
        if self.checkpoint is not None:
            self.checkpoint.save_done(self.numbers[name], codebook, record)

    def _record(
        self, name: str, statistics: Statistics, fitted: FieldFit | None
    ) -> dict[str, Any]:
        """Return what the manifest says of a field beside its sizes."""
        weights = "none"
        if self.weighted(name):
            weights = "given" if statistics.weighted else "all zero"
        record: dict[str, Any] = {
            "codewords_asked": self.params.codewords[name],
            "weights": weights,
            "rule": "nearest",
            "iterations": 0,
            "stopped": "distinct rows",
            "sse": 0.0,
            "weighted_sse": 0.0 if statistics.weighted else None,
        }
        if fitted is not None:
            record["iterations"] = fitted.iterations
            record["stopped"] = fitted.stopped
            record["sample"] = {"rows": len(statistics.sample.index), "of": statistics.n_rows}
        return record

    def encoded(self, name: str) -> EncodedField:
        """Return the field as the artifact takes it."""
        table = self.source.fields[name]
        if name in self.codebooks:
            codes = self.codes_path(name) if table.n_rows else None
            return _encoded(table, "planes", self.codebooks[name], codes, self.records[name])
        rows = self.source.read_stored(name, 0, table.n_rows)
        record = {k: v for k, v in self.records[name].items() if k not in ("iterations", "stopped")}
        return _encoded(table, "identity", rows, None, record)


def segment_rows(source: TableSource, name: str) -> int:
    """Return the rows of a field."""
    return source.fields[name].n_rows


def _encoded(
    table: TableField, encoding: Any, codebook: Any, codes: Path | None, record: Mapping[str, Any]
) -> EncodedField:
    return EncodedField(
        name=table.name,
        n_rows=table.n_rows,
        dim=table.dim,
        dtype=table.dtype,
        encoding=encoding,
        codebook=codebook,
        codes=codes,
        record=record,
    )


def _run_record(
    run: _Run,
    begun: float,
    sets: Sequence[ResidencySet],
    chunk_rows: int | None,
    memory: int | str | None,
) -> dict[str, Any]:
    """Return what is worth knowing of a run and outside the promise."""
    rows = {name: run.source.fields[name].n_rows for name in run.rechecked}
    return {
        "run_id": None if run.checkpoint is None else run.checkpoint.run_id,
        "backend": run.backend.name,
        "threads": run.backend.threads,
        "chunk_rows": chunk_rows,
        "memory": memory,
        "residency_sets": [
            {"fields": len(s.fields), "resident": s.resident, "read_rows": s.read_rows} for s in sets
        ],
        "source": run.source.path,
        "seconds": {**run.seconds, "total": time.time() - begun},
        "rechecked_rows": run.rechecked,
        "rechecked_share": {
            name: sum(found) / (rows[name] * len(found)) for name, found in run.rechecked.items()
        },
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
        "versions": {
            "saec_gpu": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
