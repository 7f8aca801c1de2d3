"""One compression on its way: each residency set from rows to codes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from saec_gpu.artifact_writer import EncodedField
from saec_gpu.backends.protocol import Assignment, Backend
from saec_gpu.checkpoint import Checkpoint, codes_path
from saec_gpu.clustering.budget import kept_whole
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.lloyd import FieldFit, fit, sample_variance
from saec_gpu.clustering.seeding import seed_codewords
from saec_gpu.clustering.statistics import StatisticsBuilder, fixed_point
from saec_gpu.data import Codebook, Float32, Int64, Progress, ProgressFunction, Statistics
from saec_gpu.packing import PlaneWriter
from saec_gpu.sources import TableSource, WeightSource
from saec_gpu.stream import FieldWork, Piece, ResidencySet, RowStream, row_dtype

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Params:
    """What decides the result; recorded in the manifest and held against a checkpoint."""

    codewords: Mapping[str, int]
    seed: int
    max_iter: int
    tol: float

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest records beside the fields."""
        return {"seed": self.seed, "max_iter": self.max_iter, "tol": self.tol}


@dataclass(eq=False)
class Pipeline:
    """One compression: what it works on, and what came of each field."""

    source: TableSource
    weights: WeightSource | None
    params: Params
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
            elif (
                self.checkpoint is not None and (found := self.checkpoint.done(number)) is not None
            ):
                self.codebooks[name], self.records[name] = found

    def unfinished(self) -> list[str]:
        """Return the fields that are still to be clustered."""
        return [name for name in self.source.fields if name not in self.records]

    def weighted(self, name: str) -> bool:
        """Return whether weights were given for the field."""
        return self.weights is not None and name in self.weights.fields

    def work(self, name: str) -> FieldWork:
        """Return what planning needs to know of the field."""
        table = self.source.fields[name]
        codewords = min(self.params.codewords[name], table.n_rows)
        return FieldWork(
            name, table.n_rows, table.dim, self.weighted(name), codewords,
            row_dtype(table.dtype, self.backend),
        )  # fmt: skip

    def codes_path(self, name: str) -> Path:
        """Return where the field's packed codes are written."""
        return codes_path(self.folder, self.numbers[name])

    def cluster(self, planned: ResidencySet) -> None:
        """Take the fields of one set from rows to codes."""
        stream = RowStream(self.source, self.weights, planned, self.backend, by_piece=self.by_piece)
        names = [work.name for work in planned.fields]
        for name in names:
            self.rechecked.pop(name, None)  # of a try that ended for want of memory
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

    def _timed(self, stage: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        begun = time.perf_counter()
        result = work(*args, **kwargs)
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
        for piece in stream.pieces(missing):
            segment = piece.segment
            name = segment.field
            table = self.source.fields[name]
            if builder is None:
                builder = StatisticsBuilder(
                    name, table.n_rows, table.dim, self.params.codewords[name], self.params.seed,
                    weighted=self.weighted(name),
                )  # fmt: skip
            builder.add(
                segment.start, piece.rows_read(), piece.weights if self.weighted(name) else None
            )
            done += segment.n_rows
            self.progress(Progress("statistics", done, total))
            if segment.start + segment.n_rows == table.n_rows:
                known[name] = builder.statistics()
                builder = None
                if self.weighted(name) and not known[name].weighted:
                    logger.info(
                        'field "%s": all weights are zero; it is clustered unweighted', name
                    )
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
        def passes(active: Collection[str]) -> Iterator[Any]:
            total, done = stream.rows_of(active), 0
            iteration = 1 + max(fits[name].iterations for name in active)
            for rows in stream.passed(active):
                yield rows
                done += sum(s.n_rows for s in rows.layout.segments if s.field in active)
                self.progress(Progress("fit", done, total, "rows", iteration, len(active)))

        def after_pass(rechecked: Mapping[str, int]) -> None:
            for name, rows in rechecked.items():
                self.rechecked.setdefault(name, []).append(rows)
            if self.checkpoint is not None:
                self.checkpoint.save_fits({self.numbers[n]: fits[n] for n in rechecked})

        fit(
            self.backend, passes, fits, tol=self.params.tol, max_iter=self.params.max_iter,
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
        codebooks = self.backend.load_codebooks(
            {
                name: Codebook(words, middle=fits[name].middle if name in fits else None)
                for name, words in final.items()
            }
        )
        total, done = stream.rows_of(final.keys()), 0
        writer: PlaneWriter | None = None
        with ExitStack() as stack:
            for piece, found in self._assigned(stream, final.keys(), codebooks):
                segment = piece.segment
                name = segment.field
                if writer is None:
                    writer = stack.enter_context(
                        PlaneWriter(
                            self.codes_path(name),
                            self.source.fields[name].n_rows,
                            len(final[name]),
                        )
                    )
                    errors = ErrorSums(statistics[name])
                    uses = np.zeros(len(final[name]), np.int64)
                writer.append(found.codes)
                assert found.distances is not None
                errors.add(found.distances, piece.weights)
                uses += np.bincount(found.codes, minlength=len(uses))
                done += segment.n_rows
                self.progress(Progress("codes", done, total))
                if segment.start + segment.n_rows == self.source.fields[name].n_rows:
                    stack.pop_all().close()
                    writer = None
                    self._finish(name, statistics[name], fits.get(name), final[name], errors, uses)

    def _assigned(
        self, stream: RowStream, fields: Collection[str], codebooks: Any
    ) -> Iterator[tuple[Piece, Assignment]]:
        """Yield pieces and what became of their rows; the backend is at work on later ones."""
        # of the reads that a store holds one is in the making and one was just handed out
        later = self.backend.reads_held - 2
        waiting: deque[tuple[Piece, Callable[[], Assignment]]] = deque()
        for piece in stream.pieces(fields):
            begun = self.backend.assign_later(piece.rows, codebooks, distances=True)
            waiting.append((piece, begun))
            if len(waiting) > later:
                first, finished = waiting.popleft()
                yield first, finished()
        for last, finished in waiting:
            yield last, finished()

    def _finish(
        self,
        name: str,
        statistics: Statistics,
        fitted: FieldFit | None,
        codebook: Float32,
        errors: ErrorSums,
        uses: Int64,
    ) -> None:
        record = self._record(name, statistics, fitted)
        record["sse"] = errors.sse
        record["weighted_sse"] = errors.weighted_sse if statistics.weighted else None
        record["unused_codewords"] = [int(code) for code in np.flatnonzero(uses == 0)]
        record["most_rows_of_a_codeword"] = int(uses.max())
        self.codebooks[name] = codebook
        self.records[name] = record
        if self.checkpoint is not None:
            self.checkpoint.save_done(self.numbers[name], codebook, record)

    def _record(self, name: str, statistics: Statistics, fitted: FieldFit | None) -> dict[str, Any]:
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
        coded = name in self.codebooks
        return EncodedField(
            name=table.name,
            n_rows=table.n_rows,
            dim=table.dim,
            dtype=table.dtype,
            encoding="planes" if coded else "identity",
            codebook=self.codebooks[name]
            if coded
            else self.source.read_stored(name, 0, table.n_rows),
            codes=self.codes_path(name) if coded and table.n_rows else None,
            record=self.records[name],
        )
