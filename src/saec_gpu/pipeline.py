"""One compression on its way: each residency set from rows to codes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import numpy as np

from saec_gpu.artifact_writer import EncodedField
from saec_gpu.backends.protocol import Assignment, Backend
from saec_gpu.checkpoint import Checkpoint, codes_path
from saec_gpu.clustering.asked import FieldPlan, kept_whole
from saec_gpu.clustering.continued import continued
from saec_gpu.clustering.curves import CORESET_ROWS
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.lloyd import FieldFit, fit, sample_variance
from saec_gpu.clustering.margin import Changes, LastField
from saec_gpu.clustering.rules import CostRule, RuledCodebooks, constrained
from saec_gpu.clustering.seeding import MOST_DRAWN, Seeds, further_seeds
from saec_gpu.clustering.selection import (
    ROWS_A_CODEWORD,
    Selection,
    chunk_of_selections,
    coreset,
    stored_selections,
)
from saec_gpu.clustering.statistics import StatisticsBuilder, check_rows, fixed_point
from saec_gpu.codewords import StoredCodewords, codebook_bytes, most_central, store
from saec_gpu.data import Codebook, Float32, Int64, Progress, ProgressFunction, Statistics
from saec_gpu.errors import ParamError
from saec_gpu.levels import Levels, encode_in_levels, shorter_levels
from saec_gpu.packing import PlaneWriter, packed_size
from saec_gpu.sources import TableSource, WeightSource
from saec_gpu.sources.stored import as_float32
from saec_gpu.stream import FieldWork, Piece, ResidencySet, RowStream, row_dtype
from saec_gpu.threads import in_threads

logger = logging.getLogger(__name__)

CodesParam = Literal["auto", "planes", "entropy"]
CODES_PARAMS: tuple[CodesParam, ...] = get_args(CodesParam)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Params:
    """What decides the result; recorded in the manifest and held against a checkpoint."""

    seed: int
    max_iter: int
    tol: float
    codewords_dtype: str
    codes: CodesParam = "auto"
    fast: bool | None = None
    budget: int | None = None
    sensitivity: Mapping[str, float] | None = None
    margin: float | None = None
    last: str | None = None

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest records beside the fields."""
        asked = {
            "seed": self.seed,
            "max_iter": self.max_iter,
            "tol": self.tol,
            "codewords_dtype": self.codewords_dtype,
            "codes": self.codes,
            "fast": self.fast,
        }
        if self.budget is not None:
            asked |= {"budget": self.budget, "sensitivity": dict(self.sensitivity or {})}
        if self.last is not None:
            asked |= {"last": self.last, "margin": self.margin}
        return asked


class _Selections(dict[str, Selection]):
    """The coresets of fields, each read when it is asked for first."""

    def __init__(self, run: Pipeline) -> None:
        super().__init__()
        self._run = run

    def __missing__(self, name: str) -> Selection:
        run = self._run
        self[name] = coreset(
            run.source, run.weights, run.source.fields[name], run.plans[name].selected,
            run.params.seed,
        )  # fmt: skip
        return self[name]


@dataclass(eq=False)
class Pipeline:
    """One compression: what it works on, and what came of each field."""

    source: TableSource
    weights: WeightSource | None
    params: Params
    plans: Mapping[str, FieldPlan]
    backend: Backend
    folder: Path
    checkpoint: Checkpoint | None
    progress: ProgressFunction
    by_piece: bool
    last: Mapping[str, LastField] = field(default_factory=dict)
    codebooks: dict[str, StoredCodewords] = field(default_factory=dict)
    levels: dict[str, Levels | None] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    rechecked: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = {name: number for number, name in enumerate(self.source.fields)}
        for name, number in self.numbers.items():
            if self.source.fields[name].n_rows == 0:
                none = np.zeros((0, self.source.fields[name].dim), np.float32)
                self.codebooks[name] = self._stored(name, none)
                self.records[name] = {"codewords_asked": self.plans[name].codewords}
            elif (
                self.checkpoint is not None and (found := self.checkpoint.done(number)) is not None
            ):
                self.codebooks[name], self.levels[name], self.records[name] = found

    def replan(self, plans: Mapping[str, FieldPlan]) -> None:
        """Forget what came of the fields whose plans are other ones now."""
        for name in [name for name in self.records if plans[name] != self.plans[name]]:
            del self.records[name]
            self.codebooks.pop(name, None)
            self.levels.pop(name, None)
            self.rechecked.pop(name, None)
            self.codes_path(name).unlink(missing_ok=True)
            if self.checkpoint is not None:
                self.checkpoint.forget(self.numbers[name])
        self.plans = plans

    def unfinished(self) -> list[str]:
        """Return the fields that are still to be clustered."""
        return [name for name in self.source.fields if name not in self.records]

    def weighted(self, name: str) -> bool:
        """Return whether weights were given for the field."""
        return self.weights is not None and name in self.weights.fields

    def work(self, name: str) -> FieldWork:
        """Return what planning needs to know of the field."""
        table = self.source.fields[name]
        codewords = min(self._limit(name), table.n_rows)
        return FieldWork(
            name, table.n_rows, table.dim, self.weighted(name), codewords,
            row_dtype(table.dtype, self.backend), self.plans[name].selected,
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
        selections = _Selections(self)
        statistics = self._timed("statistics", self._statistics, stream, names, selections)
        for name in self.last.keys() & statistics.keys():
            # its codewords of before go on, however few rows differ now
            statistics[name] = replace(statistics[name], distinct=None)
        whole = {name for name in names if self._kept_whole(name, statistics[name])}
        fits = self._timed(
            "seeding",
            self._seeds,
            {
                name: one
                for name, one in statistics.items()
                if name not in whole and one.distinct is None
            },
            selections,
        )
        self._timed("fit", self._fit, stream, fits, selections)
        # of an update codewords keep their numbers
        final = {n: one.codewords if n in self.last else one.ordered() for n, one in fits.items()}
        for name in names:
            distinct = statistics[name].distinct
            if name not in whole and distinct is not None:
                final[name] = distinct
        for name in whole:
            weighted = statistics[name].weighted
            self.records[name] = self._record(name, statistics[name], None, weighted=weighted)
        rules: dict[str, CostRule] = {}
        for name in fits:
            if self.plans[name].bit_price > 0.0:
                final[name], rule = self._timed("constraint", self._constrained, name, final[name])
                if rule is not None:
                    rules[name] = rule
        stored = {name: self._stored(name, words) for name, words in final.items()}
        self._timed("codes", self._encode, stream, statistics, fits, stored, rules)

    def _timed(self, stage: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        begun = time.perf_counter()
        result = work(*args, **kwargs)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun
        return result

    def _stored(self, name: str, codewords: Float32) -> StoredCodewords:
        try:
            return store(codewords, self.plans[name].dtype, field=name)
        except ParamError:
            if self.params.codewords_dtype != "auto":
                raise
            # a curve tells nothing of values outside its coreset; int8 takes fewer bytes
            return store(codewords, "int8", field=name)

    def _limit(self, name: str) -> int:
        """Return the most codewords that the field can get."""
        return 1 if self.plans[name].whole else self.plans[name].codewords

    def _kept_whole(self, name: str, statistics: Statistics) -> bool:
        plan, distinct = self.plans[name], statistics.distinct
        if plan.whole is not None:
            return plan.whole
        codewords = plan.codewords if distinct is None else len(distinct)
        return kept_whole(self.source.fields[name], codewords, plan.dtype)

    def _statistics(
        self, stream: RowStream, names: Collection[str], selections: _Selections
    ) -> dict[str, Statistics]:
        known: dict[str, Statistics] = {}
        for name in names:
            kept = self.checkpoint and self.checkpoint.statistics(self.numbers[name])
            if kept:
                known[name] = kept
            elif self.plans[name].selected:
                known[name] = selections[name].statistics(name, self._limit(name), self.params.seed)
                if self.checkpoint is not None:
                    self.checkpoint.save_statistics(self.numbers[name], known[name])
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
                    name, table.n_rows, table.dim, self._limit(name), self.params.seed,
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

    def _seeds(
        self, statistics: Mapping[str, Statistics], selections: _Selections
    ) -> dict[str, FieldFit]:
        # the costliest first, so that no thread ends on a long one
        names = sorted(
            statistics,
            key=lambda name: -statistics[name].sample.rows.size * self.plans[name].codewords,
        )
        with closing(
            in_threads(
                lambda name: self._started(name, statistics[name]), names, self.backend.threads
            )
        ) as started:
            fits: dict[str, FieldFit] = {}
            for done, name in enumerate(names):
                self.progress(Progress("seeding", done, len(names), "fields"))
                one = fits[name] = next(started)
                n_codewords = self.plans[name].codewords
                if self.checkpoint is not None and self.checkpoint.has_fit(self.numbers[name]):
                    self.checkpoint.restore_fit(self.numbers[name], one)
                elif name in self.last:
                    one.codewords = continued(
                        self.backend, one, self.last[name], selections[name], n_codewords
                    )
                    one.stopped = None if self.params.max_iter else "max_iter"
                else:
                    one.codewords = further_seeds(
                        self.backend, statistics[name].sample, one.codewords, n_codewords,
                        self.params.seed, name, one.middle,
                    )  # fmt: skip
        return {name: fits[name] for name in statistics}

    def _started(self, name: str, statistics: Statistics) -> FieldFit:
        """Return the fit of a field at the seeds that are drawn one by one.

        Where the codewords come from elsewhere, it has none.
        """
        sample = statistics.sample
        kept = self.checkpoint is not None and self.checkpoint.has_fit(self.numbers[name])
        if kept or name in self.last:
            seeds = np.zeros((0, 0), np.float32)
        else:
            drawn = min(self.plans[name].codewords, MOST_DRAWN)
            seeds = Seeds(sample, self.params.seed, name).first(drawn)
        return FieldFit(statistics, fixed_point(statistics), sample_variance(sample), seeds)

    def _fit(
        self, stream: RowStream, fits: Mapping[str, FieldFit], selections: _Selections
    ) -> None:
        moving = [name for name, one in fits.items() if one.stopped is None]
        coresets = {name: selections[name] for name in moving if self.plans[name].selected}
        loaded = stored_selections(self.backend, coresets, stream.spare) if coresets else None

        def rows_of(active: Collection[str]) -> Iterator[Any]:
            if loaded is not None and not coresets.keys().isdisjoint(active):
                yield loaded
            yield from stream.passed([name for name in active if name not in coresets])

        def passes(active: Collection[str]) -> Iterator[Any]:
            total, done = sum(fits[name].statistics.n_rows for name in active), 0
            iteration = 1 + max(fits[name].iterations for name in active)
            for rows in rows_of(active):
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

    def _constrained(self, name: str, codewords: Float32) -> tuple[Float32, CostRule | None]:
        """Return codewords trained on for codes by cost, in order, and the rule, on a coreset."""
        table, price = self.source.fields[name], self.plans[name].bit_price
        size = max(CORESET_ROWS, ROWS_A_CODEWORD * len(codewords))
        own = coreset(self.source, self.weights, table, size, self.params.seed)
        found = constrained(
            self.backend, self.backend.load_rows(chunk_of_selections({name: own})),
            {name: codewords}, {name: price}, {name: own},
            {name: own.statistics(name, len(codewords), self.params.seed)}, {name: table.n_rows},
        )  # fmt: skip
        return found[name]

    def _encode(
        self,
        stream: RowStream,
        statistics: Mapping[str, Statistics],
        fits: Mapping[str, FieldFit],
        stored: Mapping[str, StoredCodewords],
        rules: Mapping[str, CostRule],
    ) -> None:
        """Write the codes of all rows against the codewords as stored, and sum their errors."""
        final = {name: words.decoded() for name, words in stored.items()}
        codebooks = RuledCodebooks(
            self.backend,
            {
                name: Codebook(words, middle=fits[name].middle if name in fits else None)
                for name, words in final.items()
            },
            rules,
        )
        total, done = stream.rows_of(final.keys()), 0
        writer: PlaneWriter | None = None
        with ExitStack() as stack:
            for piece, nearest in self._assigned(stream, final.keys(), codebooks):
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
                    changes = self._changes(name, final[name])
                    errors = ErrorSums()
                    uses = np.zeros(len(final[name]), np.int64)
                weights = piece.weights if self.weighted(name) else None
                found = nearest
                if changes is not None:
                    found = changes.decide(segment.start, piece.rows_read(), weights, nearest)
                writer.append(found.codes)
                assert found.distances is not None
                errors.add(found.distances, weights)
                uses += np.bincount(found.codes, minlength=len(uses))
                done += segment.n_rows
                self.progress(Progress("codes", done, total))
                if segment.start + segment.n_rows == self.source.fields[name].n_rows:
                    stack.pop_all().close()
                    writer = None
                    self._finish(
                        name, statistics[name], fits.get(name), stored[name], rules.get(name),
                        errors, uses, changes,
                    )  # fmt: skip

    def _changes(self, name: str, codewords: Float32) -> Changes | None:
        """Return what decides the codes of an updated field; None where the nearest is the code."""
        if name not in self.last:
            return None
        return Changes(self.last[name], codewords, weighted=self.weighted(name))

    def _assigned(
        self, stream: RowStream, fields: Collection[str], codebooks: RuledCodebooks
    ) -> Iterator[tuple[Piece, Assignment]]:
        """Yield pieces and what became of their rows; the backend is at work on later ones."""
        # of the reads that a store holds one is in the making and one was just handed out
        later = self.backend.reads_held - 2
        waiting: deque[tuple[Piece, Callable[[], Assignment]]] = deque()
        for piece in stream.pieces(fields):
            if self.plans[piece.segment.field].selected:  # others were looked at before
                check_rows(piece.segment.field, piece.segment.start, piece.rows_read())
            begun = codebooks.assign_later(piece.rows, piece.weights)
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
        codebook: StoredCodewords,
        rule: CostRule | None,
        errors: ErrorSums,
        uses: Int64,
        changes: Changes | None,
    ) -> None:
        record = self._record(name, statistics, fitted, weighted=errors.weighted)
        if changes is not None:
            record |= changes.record(self.source.fields[name].n_rows, errors.sse)
        if rule is not None:
            record |= {"rule": "cost", "bit_price": rule.bit_price}
        record["sse"] = errors.sse
        record["weighted_sse"] = errors.weighted_sse if errors.weighted else None
        record["unused_codewords"] = [int(code) for code in np.flatnonzero(uses == 0)]
        record["most_rows_of_a_codeword"] = int(uses.max())
        record["out_of_vocabulary"] = most_central(codebook.decoded(), uses)
        self.codebooks[name] = codebook
        self.levels[name] = levels = self._in_levels(name, uses, rule)
        self.records[name] = record
        if self.checkpoint is not None:
            self.checkpoint.save_done(self.numbers[name], codebook, levels, record)

    def _in_levels(self, name: str, uses: Int64, rule: CostRule | None) -> Levels | None:
        """Bring the field's codes from planes into levels: its rule's, or if they take less."""
        if self.params.codes == "planes":
            return None
        levels = shorter_levels(uses) if rule is None else rule.levels.of(uses)
        if levels is not None:
            encode_in_levels(
                self.codes_path(name), len(uses), levels,
                lambda done: self.progress(Progress("levels", done, levels.rows[0])),
            )  # fmt: skip
        return levels

    def _record(
        self, name: str, statistics: Statistics, fitted: FieldFit | None, *, weighted: bool
    ) -> dict[str, Any]:
        """Return what the manifest says of a field beside its sizes."""
        weights = "none"
        if self.weighted(name):
            weights = "given" if weighted else "all zero"
        record: dict[str, Any] = {
            "codewords_asked": self.plans[name].codewords,
            "weights": weights,
            "rule": "nearest",
            "iterations": 0,
            "stopped": "distinct rows",
            "sse": 0.0,
            "weighted_sse": 0.0 if weighted else None,
            "clustered_rows": statistics.n_rows,
        }
        if fitted is not None:
            record["iterations"] = fitted.iterations
            record["stopped"] = fitted.stopped
            record["sample"] = {"rows": len(statistics.sample.index), "of": statistics.n_rows}
        return record

    def counted_bytes(self, name: str) -> int:
        """Return the bytes of a finished field's codebook and codes, or of its rows if kept."""
        table, stored = self.source.fields[name], self.codebooks.get(name)
        if stored is None:
            return table.nbytes
        codewords, levels = len(stored.values), self.levels.get(name)
        codes = packed_size(table.n_rows, codewords) if levels is None else levels.size
        return codebook_bytes(codewords, table.dim, stored.dtype) + codes

    def encoded(self, name: str) -> EncodedField:
        """Return the field as the artifact takes it."""
        table = self.source.fields[name]
        stored = self.codebooks.get(name)
        if stored is None:
            values, scales = self.source.read_stored(name, 0, table.n_rows), None
        else:
            values, scales = stored.values, stored.scales
        levels, record = self.levels.get(name), self.records[name]
        if stored is None:
            record = record | {"out_of_vocabulary": most_central(as_float32(values))}
        return EncodedField(
            name=table.name,
            n_rows=table.n_rows,
            dim=table.dim,
            dtype=table.dtype,
            encoding="identity" if stored is None else "planes" if levels is None else "levels",
            codebook=values,
            codes=None if stored is None or not table.n_rows else self.codes_path(name),
            record=record,
            scales=scales,
            levels=levels,
        )
