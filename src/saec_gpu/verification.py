"""Does an artifact hold what its tables say? Everything is computed again from the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from saec_gpu.artifact import Artifact, CompressedField
from saec_gpu.backends import open_backend
from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.statistics import StatisticsBuilder
from saec_gpu.compression import parse_bytes
from saec_gpu.data import Codebook, Progress, ProgressFunction, Statistics
from saec_gpu.errors import SourceError
from saec_gpu.sources import TableSource, WeightSource, open_tables, open_weights
from saec_gpu.stream import FieldWork, RowStream, plan_sets


@dataclass(frozen=True)
class FieldVerification:
    """What was found of one field.

    Attributes
    ----------
    name : str
    wrong_codes : int
        Rows whose stored code is not that of their nearest codeword (kept whole: rows that differ).
    sse, stored_sse : float
        Σ squared distance, computed now and in the manifest.
    weighted_sse, stored_weighted_sse : float or None
        Σ weight × squared distance; None without weights.
    """

    name: str
    wrong_codes: int
    sse: float
    stored_sse: float
    weighted_sse: float | None
    stored_weighted_sse: float | None

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what does not agree, in words."""
        found = []
        if self.wrong_codes:
            found.append(
                f'field "{self.name}": {self.wrong_codes} rows have another nearest codeword'
            )
        if self.sse != self.stored_sse:
            found.append(f'field "{self.name}": sse is {self.sse!r}, stored {self.stored_sse!r}')
        if self.weighted_sse is not None and self.weighted_sse != self.stored_weighted_sse:
            found.append(
                f'field "{self.name}": weighted sse is {self.weighted_sse!r}, stored '
                f"{self.stored_weighted_sse!r}"
            )
        return tuple(found)


@dataclass(frozen=True)
class Verification:
    """What was found of all fields; `ok` if everything agrees to the last bit."""

    fields: tuple[FieldVerification, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what does not agree, in words."""
        return tuple(problem for field in self.fields for problem in field.problems)

    @property
    def ok(self) -> bool:
        """Return whether everything agrees."""
        return not self.problems


def verify(
    artifact: Artifact,
    tables: Any,
    *,
    weights: Any = None,
    backend: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    chunk_rows: int | None = None,
    progress: ProgressFunction | None = None,
) -> Verification:
    """Return what comes of checking an artifact against the tables it was made from.

    The SHA-256 of its files, then each row's code against the nearest stored codeword, then the
    errors, as the manifest has them: equal to the last bit or a problem.

    Parameters
    ----------
    artifact : Artifact
    tables, weights
        As for `compress`; without weights the weighted errors are not checked.
    backend, threads, memory, chunk_rows, progress
        As for `compress`.

    Raises
    ------
    ArtifactError
        A file of the artifact was altered.
    SourceError
        The tables have other fields, rows or dims than the artifact.
    """
    artifact.check_files()
    source = open_tables(tables, fields=None)
    _check_shapes(artifact, source)
    weight_source = None if weights is None else open_weights(weights, source)
    engine = open_backend(backend, threads=threads)
    budget = engine.memory_budget() if memory is None else parse_bytes(memory)
    coded = [artifact[name] for name in artifact.names if artifact[name].n_rows]
    works = [
        FieldWork(
            one.name, one.n_rows, one.dim,
            weight_source is not None and one.name in weight_source.fields, max(1, one.n_codewords),
        )
        for one in coded
    ]  # fmt: skip
    found: dict[str, FieldVerification] = {}
    report = progress or (lambda _: None)
    for planned in plan_sets(works, memory=budget, threads=engine.threads, chunk_rows=chunk_rows):
        stream = RowStream(source, weight_source, planned, by_piece=True)
        for work in planned.fields:
            found[work.name] = _verify_field(
                artifact[work.name], work, source, stream, weight_source, engine, report
            )
    for name in artifact.names:
        if artifact[name].n_rows == 0:
            found[name] = FieldVerification(name, 0, 0.0, 0.0, None, None)
    return Verification(tuple(found[name] for name in artifact.names))


def _check_shapes(artifact: Artifact, source: TableSource) -> None:
    for name in artifact.names:
        one = artifact[name]
        table = source.fields.get(name)
        if table is None:
            raise SourceError(
                f'the artifact has a field "{name}", the tables have not; they have {sorted(source.fields)}'
            )
        if (table.n_rows, table.dim, table.dtype) != (one.n_rows, one.dim, one.dtype):
            raise SourceError(
                f'field "{name}" is {one.n_rows} × {one.dim} {one.dtype} in the artifact and '
                f"{table.n_rows} × {table.dim} {table.dtype} in the tables; give the tables it was made from"
            )


def _verify_field(
    one: CompressedField,
    work: FieldWork,
    source: TableSource,
    stream: RowStream,
    weights: WeightSource | None,
    engine: Backend,
    report: ProgressFunction,
) -> FieldVerification:
    stored: Mapping[str, Any] = one.record
    if one.encoding == "identity":
        wrong = 0
        for chunk in stream.pieces([one.name]):
            (segment,) = chunk.layout.segments
            rows = slice(segment.start, segment.start + segment.n_rows)
            kept = np.ascontiguousarray(one.codebook[rows])
            differ = chunk.rows(segment).view(np.uint32) != kept.view(np.uint32)
            wrong += int(differ.any(axis=1).sum())
            report(Progress("codes", rows.stop, one.n_rows))
        return FieldVerification(one.name, wrong, 0.0, stored["sse"], None, None)
    statistics = _statistics(one, work, stream, report)
    errors = ErrorSums(statistics)
    codebooks = engine.load_codebooks({one.name: Codebook(one.codebook)})
    wrong = 0
    for chunk in stream.pieces([one.name]):
        (segment,) = chunk.layout.segments
        found = engine.assign(engine.load_rows(chunk), codebooks, distances=True)
        assert found.distances is not None
        errors.add(found.distances, chunk.weights)
        stored_codes = one.codes_between(segment.start, segment.start + segment.n_rows)
        wrong += int((found.codes != stored_codes).sum())
        report(Progress("codes", segment.start + segment.n_rows, one.n_rows))
    weighted = errors.weighted_sse if statistics.weighted else None
    return FieldVerification(
        one.name, wrong, errors.sse, stored["sse"], weighted, stored["weighted_sse"]
    )


def _statistics(
    one: CompressedField, work: FieldWork, stream: RowStream, report: ProgressFunction
) -> Statistics:
    builder = StatisticsBuilder(one.name, one.n_rows, one.dim, 1, 0, weighted=work.weighted)
    for chunk in stream.pieces([one.name]):
        (segment,) = chunk.layout.segments
        builder.add(segment.start, chunk.rows(segment), chunk.weights if work.weighted else None)
        report(Progress("statistics", segment.start + segment.n_rows, one.n_rows))
    return builder.statistics()
