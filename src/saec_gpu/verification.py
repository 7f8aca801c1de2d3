"""Does an artifact hold what its tables say? Everything is computed again from the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.artifact import Artifact, CompressedField
from saec_gpu.backends import open_backend
from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.margin import keep_codes
from saec_gpu.clustering.rules import RuledCodebooks, rule_of
from saec_gpu.clustering.statistics import check_rows, check_weights
from saec_gpu.compression import parse_bytes
from saec_gpu.data import Codebook, Progress, ProgressFunction
from saec_gpu.errors import ArtifactError, ParamError, SourceError
from saec_gpu.sources import TableSource, open_tables, open_weights
from saec_gpu.stream import FieldWork, RowStream, plan_sets, row_dtype


@dataclass(frozen=True)
class FieldVerification:
    """What was found of one field.

    Attributes
    ----------
    name : str
    wrong_codes : int
        Rows whose stored code is not that of their nearest codeword, or by error and length where
        that is the field's rule. Of a field kept whole: rows that differ in any bit.
    sse, stored_sse : float or None
        Σ squared distance, computed now and in the manifest. None: retrained.
    weighted_sse, stored_weighted_sse : float or None
        Σ weight × squared distance. None: not checked; stored as a field without weights.
    retrained : bool
        Codewords were trained on after codes were chosen (`saec_gpu.nn.to_artifact`), so that codes
        are no longer those of the nearest and no error is stored: nothing was checked.
    """

    name: str
    wrong_codes: int
    sse: float | None
    stored_sse: float | None
    weighted_sse: float | None
    stored_weighted_sse: float | None
    retrained: bool = False

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
    def notes(self) -> tuple[str, ...]:
        """Return what was not checked, in words."""
        return tuple(
            f'field "{field.name}" was retrained: its codes and errors are not checked'
            for field in self.fields
            if field.retrained
        )

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

    The SHA-256 of its files, then each row's code against that which its field's rule gives it with
    the codewords as stored, then the errors, as the manifest has them: equal to the last bit or a
    problem. Of a field that was retrained, the file alone.

    Parameters
    ----------
    artifact : Artifact
    tables : TableSource, path, mapping of name to array, or 2-D array
        Fields that the artifact has not (`fields` of `compress`) are not read.
    weights : path, mapping or vector, optional
        As for `compress`; without, the weighted errors are not checked. Needed where codes were
        chosen by weighted error and length (`codes="entropy"`).
    backend, threads, memory, chunk_rows, progress
        As for `compress`.

    Raises
    ------
    ArtifactError
        A file of the artifact was altered.
    SourceError
        The tables lack a field of the artifact, or it has other rows, dims or dtype there.
    ParamError
        As for `compress`; weights are needed and none were given.
    WeightError, NonFiniteRowError
        As for `compress`.

    Notes
    -----
    Reads every row once; of a field kept whole, twice.

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
    source = tables_of(artifact, open_tables(tables))
    weight_source = None if weights is None else open_weights(weights, source)
    artifact.check_files()
    works = []
    for name in artifact.names:
        field = artifact[name]
        weighted = weight_source is not None and name in weight_source.fields
        codewords = field.n_codewords if field.encoding != "identity" else 1
        if field.n_rows and field.record["sse"] is not None:
            rule = rule_of(field.record, field.levels)
            if rule is not None and rule.weighted and not weighted:
                raise ParamError(
                    f'the codes of field "{name}" were chosen by weighted error and length; give '
                    "the weights that it was compressed with"
                )
            dtype = row_dtype(field.dtype, engine)
            works.append(FieldWork(name, field.n_rows, field.dim, weighted, codewords, dtype))
    total = sum(work.n_rows for work in works)
    done = 0

    def report(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(Progress("codes", done, total))

    found: dict[str, FieldVerification] = {}
    for planned in plan_sets(
        works, memory=budget, threads=engine.threads, chunk_rows=chunk_rows,
        reads_held=engine.reads_held,
    ):  # fmt: skip
        stream = RowStream(source, weight_source, planned, engine, by_piece=True)
        for work in planned.fields:
            one = artifact[work.name]
            wrong, errors = _check_field(one, work, source, stream, engine, report)
            stored = one.record["weighted_sse"]
            # Weights may be given for other fields only: then this one must have had none, too.
            checked = weight_source is not None and (errors.weighted or stored is not None)
            found[work.name] = FieldVerification(
                work.name, wrong, errors.sse, one.record["sse"],
                errors.weighted_sse if checked else None, stored,
            )  # fmt: skip
    return Verification(
        tuple(found.get(name) or _unread(artifact[name]) for name in artifact.names)
    )


def _unread(field: CompressedField) -> FieldVerification:
    """Return what is known of a field whose rows were not read: it has none, or was retrained."""
    retrained = field.record.get("sse", 0.0) is None
    error = None if retrained else 0.0
    return FieldVerification(field.name, 0, error, error, None, None, retrained=retrained)


def tables_of(artifact: Artifact, source: TableSource, *, same_rows: bool = True) -> TableSource:
    """Return the artifact's fields of a source, which may have other numbers of rows if so said.

    Raises
    ------
    SourceError
        The source lacks one, or it has other rows, dims or dtype there.
    """
    for name in artifact.names:
        one = artifact[name]
        table = source.fields.get(name)
        if table is None:
            raise SourceError(
                f'the artifact has a field "{name}", but the tables have not; they have '
                f"{sorted(source.fields)}"
            )
        same = (table.dim, table.dtype) == (one.dim, one.dtype)
        if not same or (same_rows and table.n_rows != one.n_rows):
            given = "the tables it was made from" if same_rows else "tables of the same kind"
            raise SourceError(
                f'field "{name}" is {one.n_rows} × {one.dim} {one.dtype} in the artifact and '
                f"{table.n_rows} × {table.dim} {table.dtype} in the tables; give {given}"
            )
    # Among more tables than were compressed, weights are told from unknown names as they were then.
    return source if len(source.fields) == len(artifact) else source.select(artifact.names)


def _check_field(
    one: CompressedField,
    work: FieldWork,
    source: TableSource,
    stream: RowStream,
    engine: Backend,
    report: Callable[[int], None],
) -> tuple[int, ErrorSums]:
    """Return how many rows of a field are stored wrong, and the errors of all."""
    whole = one.encoding == "identity"
    if not whole and not np.isfinite(one.codebook).all():
        raise ArtifactError(
            f'the codebook of field "{one.name}" holds a value that is not finite; it was altered: '
            "copy the artifact again or make it anew"
        )
    codebooks = None
    if not whole:
        rule = rule_of(one.record, one.levels)
        rules = {} if rule is None else {one.name: rule}
        codebooks = RuledCodebooks(engine, {one.name: Codebook(one.codebook)}, rules)
    wrong = 0
    errors = ErrorSums()
    for piece in stream.pieces([one.name]):
        segment = piece.segment
        rows = slice(segment.start, segment.start + segment.n_rows)
        check_rows(one.name, segment.start, piece.rows_read())
        if work.weighted and piece.weights is not None:
            check_weights(one.name, segment.start, piece.weights)
        distances = np.zeros(segment.n_rows)
        if codebooks is None:
            # In the table's own dtype: float64 rows may differ and be one row in float32.
            given = source.read_stored(one.name, rows.start, rows.stop)
            differ = _bytes_of_rows(given) != _bytes_of_rows(one._stored[rows])
            wrong += int(differ.any(axis=1).sum())
        else:
            assigned = codebooks.assign(piece.rows, piece.weights)
            assert assigned.distances is not None
            codes, distances = assigned.codes, assigned.distances
            stored = one.codes_between(rows.start, rows.stop)
            if one.record["rule"] == "margin":
                # every row that the rule could have left at its last code is given the stored one
                keep_codes(
                    piece.rows_read(), stored.astype(np.int64), one.codebook,
                    1.0 + one.record["margin"], codes, distances,
                )  # fmt: skip
            wrong += int((codes != stored).sum())
        errors.add(distances, piece.weights if work.weighted else None)
        report(segment.n_rows)
    return wrong, errors


def _bytes_of_rows(rows: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
