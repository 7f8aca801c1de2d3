"""What a source holds, told before anything is clustered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from saec_gpu.clustering.budget import encoded_bytes
from saec_gpu.sources import TableField, TableSource, WeightSource
from saec_gpu.stream import FieldWork

READ_ROWS = 1 << 20


@dataclass(frozen=True)
class WeightSummary:
    """How often the rows of a field are looked up.

    Attributes
    ----------
    total, largest : float
    unseen : int
        Rows of weight 0.
    head_rows : int
        The fewest rows that carry half of the total.
    """

    total: float
    largest: float
    unseen: int
    head_rows: int


@dataclass(frozen=True)
class FieldInspection:
    """One field and what compressing it would take.

    Attributes
    ----------
    table : TableField
    weights : WeightSummary or None
    codewords : int
        As asked.
    bytes_after : int
        Counted bytes of codebook and codes, if all codewords are used.
    memory_resident, memory_streamed : int
        Bytes of memory to read the rows once, and least bytes to read them in each pass.
    """

    table: TableField
    weights: WeightSummary | None
    codewords: int
    bytes_after: int
    memory_resident: int
    memory_streamed: int


def inspect_fields(
    source: TableSource,
    weights: WeightSource | None,
    codewords: Mapping[str, int],
    *,
    threads: int,
) -> tuple[FieldInspection, ...]:
    """Return what is known of each field without reading its rows; weights are read."""
    found = []
    for name, table in source.fields.items():
        weighted = weights is not None and name in weights.fields
        asked = min(codewords[name], max(1, table.n_rows))
        work = FieldWork(name, table.n_rows, table.dim, weighted, asked)
        summary = summarise(weights, name) if weighted and weights is not None else None
        found.append(
            FieldInspection(
                table,
                summary,
                asked,
                encoded_bytes(table, asked),
                work.resident_bytes(threads),
                work.streamed_bytes(threads),
            )
        )
    return tuple(found)


def summarise(weights: WeightSource, name: str) -> WeightSummary:
    """Return a summary of one field's weights; nothing is checked here."""
    values = np.empty(weights.fields[name])
    for start in range(0, len(values), READ_ROWS):
        weights.read(name, start, values[start : start + READ_ROWS])
    if not len(values):
        return WeightSummary(0.0, 0.0, 0, 0)
    descending = np.sort(values)[::-1]
    cumulative = np.cumsum(descending)
    total = float(cumulative[-1])
    head = int(np.searchsorted(cumulative, total / 2)) + 1 if total > 0 else 0
    return WeightSummary(total, float(descending[0]), int((values == 0).sum()), head)


def as_json(one: FieldInspection) -> dict[str, Any]:
    """Return the inspection as JSON-able values."""
    return {
        "name": one.table.name,
        "rows": one.table.n_rows,
        "dim": one.table.dim,
        "dtype": one.table.dtype,
        "bytes": one.table.nbytes,
        "codewords": one.codewords,
        "bytes_after": one.bytes_after,
        "memory_resident": one.memory_resident,
        "memory_streamed": one.memory_streamed,
        "weights": None if one.weights is None else vars(one.weights),
    }
