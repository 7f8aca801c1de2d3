"""Does an artifact hold what its tables say? Everything is computed again from the rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saec_gpu.artifact import Artifact, CompressedField
from saec_gpu.backends import open_backend
from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.error import ErrorSums, distance_bits
from saec_gpu.clustering.statistics import StatisticsBuilder
from saec_gpu.compression import parse_bytes
from saec_gpu.data import Codebook, Progress, ProgressFunction, Statistics
from saec_gpu.errors import ArtifactError, ParamError, SourceError
from saec_gpu.sources import TableSource, open_tables, open_weights
from saec_gpu.stream import FieldWork, RowStream, plan_sets, row_dtype

Stage = Literal["statistics", "codes"]
Report = Callable[[Stage, int], None]


@dataclass(frozen=True)
class FieldVerification:
    """What was found of one field.

    Attributes
    ----------
    name : str
    wrong_codes : int
        Rows whose stored code is not that of their nearest codeword. Of a field kept whole: rows
        that differ in any bit.
    sse, stored_sse : float
        Σ squared distance, computed now and in the manifest; infinite where it is out of all
        proportion to the spread of the rows, so that these cannot be the rows.
    weighted_sse, stored_weighted_sse : float or None
        Σ weight × squared distance. None: not checked; stored as a field without weights.
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
            found.append(f"{self.wrong_codes:,} rows are stored with another code than their own")
        if self.sse != self.stored_sse:
            found.append(f"sse is {self.sse!r}, stored {self.stored_sse!r}")
        if self.weighted_sse is not None and self.weighted_sse != self.stored_weighted_sse:
            stored = self.stored_weighted_sse
            found.append(
                f"weighted sse is {self.weighted_sse!r} with the weights given, "
                + ("it was compressed without weights" if stored is None else f"stored {stored!r}")
            )
        return tuple(f'field "{self.name}": {problem}' for problem in found)

    @property
    def ok(self) -> bool:
        """Return whether everything agrees."""
        return not self.problems


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
    backend: str | Backend = "auto",
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
    tables : TableSource, path, mapping of name to array, or 2-D array
        Fields that the artifact has not (`fields` of `compress`) are not read.
    weights : path, mapping or vector, optional
        As for `compress`; without, the weighted errors are not checked.
    backend, threads, memory, chunk_rows, progress
        As for `compress`.

    Raises
    ------
    ArtifactError
        A file of the artifact was altered.
    SourceError
        The tables lack a field of the artifact, or it has other rows, dims or dtype there.
    ParamError, WeightError, NonFiniteRowError
        As for `compress`.

    Notes
    -----
    Reads the rows once where they fit the memory, else twice.

    Examples
    --------
    >>> import numpy as np, tempfile, saec_gpu as saec
    >>> rows = np.arange(400, dtype=np.float32).reshape(100, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = saec.compress({"item": rows}, codewords=4, out=f"{folder}/item.saec")
    ...     saec.verify(artifact, {"item": rows}).ok, saec.verify(artifact, {"item": -rows}).ok
    (True, False)
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ParamError(f"chunk_rows={chunk_rows!r} was given; give a whole number from 1")
    engine = open_backend(backend, threads=threads) if isinstance(backend, str) else backend
    budget = engine.memory_budget() if memory is None else parse_bytes(memory)
    source = _tables_of(artifact, open_tables(tables))
    weight_source = None if weights is None else open_weights(weights, source)
    artifact.check_files()
    works = []
    for name in artifact.names:
        field = artifact[name]
        weighted = weight_source is not None and name in weight_source.fields
        codewords = field.n_codewords if field.encoding == "planes" else 1
        if field.n_rows:
            dtype = row_dtype(field.dtype, engine)
            works.append(FieldWork(name, field.n_rows, field.dim, weighted, codewords, dtype))
    total = sum(work.n_rows for work in works)
    seen = {"statistics": 0, "codes": 0}

    def report(stage: Stage, rows: int) -> None:
        seen[stage] += rows
        if progress is not None:
            progress(Progress(stage, seen[stage], total))

    found: dict[str, FieldVerification] = {}
    for planned in plan_sets(
        works, memory=budget, threads=engine.threads, chunk_rows=chunk_rows,
        reads_held=engine.reads_held,
    ):  # fmt: skip
        stream = RowStream(source, weight_source, planned, engine, by_piece=True)
        statistics = {work.name: _statistics(work, stream, report) for work in planned.fields}
        for name, one in statistics.items():
            stored = artifact[name].record
            wrong, sse, weighted_sse = _check_rows(
                artifact[name], one, source, stream, engine, report
            )
            # Weights may be given for other fields only: then this one must have had none, too.
            checked = weight_source is not None and (
                one.weighted or stored["weighted_sse"] is not None
            )
            found[name] = FieldVerification(
                name, wrong, sse, stored["sse"],
                weighted_sse if checked else None, stored["weighted_sse"],
            )  # fmt: skip
    return Verification(
        tuple(
            found.get(name) or FieldVerification(name, 0, 0.0, 0.0, None, None)  # without rows
            for name in artifact.names
        )
    )


def _tables_of(artifact: Artifact, source: TableSource) -> TableSource:
    """Return the artifact's fields of a source, after checking their shapes."""
    for name in artifact.names:
        one = artifact[name]
        table = source.fields.get(name)
        if table is None:
            raise SourceError(
                f'the artifact has a field "{name}", but the tables have not; they have '
                f"{sorted(source.fields)}"
            )
        if (table.n_rows, table.dim, table.dtype) != (one.n_rows, one.dim, one.dtype):
            raise SourceError(
                f'field "{name}" is {one.n_rows} × {one.dim} {one.dtype} in the artifact and '
                f"{table.n_rows} × {table.dim} {table.dtype} in the tables; give the tables it was "
                "made from"
            )
    # Among more tables than were compressed, weights are told from unknown names as they were then.
    return source if len(source.fields) == len(artifact) else source.select(artifact.names)


def _statistics(work: FieldWork, stream: RowStream, report: Report) -> Statistics:
    builder = StatisticsBuilder(work.name, work.n_rows, work.dim, 1, 0, weighted=work.weighted)
    for piece in stream.pieces([work.name]):
        segment = piece.segment
        builder.add(segment.start, piece.rows_read(), piece.weights if work.weighted else None)
        report("statistics", segment.n_rows)
    return builder.statistics()


def _check_rows(
    one: CompressedField,
    statistics: Statistics,
    source: TableSource,
    stream: RowStream,
    engine: Backend,
    report: Report,
) -> tuple[int, float, float]:
    """Return how many rows of a field are stored wrong, and the errors of all, weighted last."""
    wrong = 0
    if one.encoding == "identity":
        for piece in stream.pieces([one.name]):
            segment = piece.segment
            rows = slice(segment.start, segment.start + segment.n_rows)
            # In the table's own dtype: float64 rows may differ and be one row in float32.
            given = source.read_stored(one.name, rows.start, rows.stop)
            differ = _bytes_of_rows(given) != _bytes_of_rows(one._stored[rows])
            wrong += int(differ.any(axis=1).sum())
            report("codes", segment.n_rows)
        return wrong, 0.0, 0.0
    if not np.isfinite(one.codebook).all():
        raise ArtifactError(
            f'the codebook of field "{one.name}" holds a value that is not finite; it was altered: '
            "copy the artifact again or make it anew"
        )
    codebooks = engine.load_codebooks({one.name: Codebook(one.codebook)})
    errors = ErrorSums(statistics)
    reach = math.ldexp(1.0, distance_bits(statistics))
    within_reach = True
    for piece in stream.pieces([one.name]):
        segment = piece.segment
        found = engine.assign(piece.rows, codebooks, distances=True)
        assert found.distances is not None
        within_reach = within_reach and bool((found.distances < reach).all())
        if within_reach:  # the sums of others would overflow
            errors.add(found.distances, piece.weights)
        stored = one.codes_between(segment.start, segment.start + segment.n_rows)
        wrong += int((found.codes != stored).sum())
        report("codes", segment.n_rows)
    if not within_reach:
        return wrong, math.inf, math.inf
    return wrong, errors.sse, errors.weighted_sse


def _bytes_of_rows(rows: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
