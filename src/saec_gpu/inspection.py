"""What a source holds, told before anything is clustered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saec_gpu.clustering.asked import FieldPlan, encoded_bytes
from saec_gpu.clustering.selection import weights_by_parts
from saec_gpu.errors import ParamError
from saec_gpu.sources import TableField, TableSource, WeightSource
from saec_gpu.stream import READS_HELD, FieldWork, ResidencySet, plan_sets


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
        As asked, at most one a row.
    bytes_after : int
        Counted bytes of codebook and codes: at most, or as estimated of a budget.
    """

    table: TableField
    weights: WeightSummary | None
    codewords: int
    bytes_after: int


@dataclass(frozen=True)
class Inspection:
    """What a source holds and what compressing it would take.

    Attributes
    ----------
    fields : tuple of FieldInspection
    memory_once, memory_least : int
        Bytes of memory, to a hundredth: the least with which every row is read once, and the least
        with which it can be done at all, reading some rows again in each pass.
    """

    fields: tuple[FieldInspection, ...]
    memory_once: int
    memory_least: int

    @property
    def bytes_before(self) -> int:
        """Return the bytes of all tables in their own dtypes."""
        return sum(one.table.nbytes for one in self.fields)

    @property
    def bytes_after(self) -> int:
        """Return the counted bytes of all codebooks and codes, if all codewords are used."""
        return sum(one.bytes_after for one in self.fields)


def inspect_tables(
    source: TableSource,
    weights: WeightSource | None,
    plans: Mapping[str, FieldPlan],
    *,
    estimates: Mapping[str, int] | None = None,
    threads: int,
) -> Inspection:
    """Return what is known of a source without reading its rows; weights are read.

    Parameters
    ----------
    source : TableSource
    weights : WeightSource or None
    plans : mapping of field to FieldPlan
    estimates : mapping of field to int, optional
        Counted bytes after, where better is known than what codebook and planes take at most.
    threads : int

    Raises
    ------
    WeightError
        A weight is negative, not finite or out of range.

    Notes
    -----
    Holds the weights of one field at a time, 16 bytes a row.
    """
    fields, works = [], []
    for name, table in source.fields.items():
        weighted = weights is not None and name in weights.fields
        asked = min(plans[name].codewords, table.n_rows)
        if table.n_rows:
            made = 1 if plans[name].whole else asked
            selected = plans[name].selected
            works.append(
                FieldWork(name, table.n_rows, table.dim, weighted, made, selected=selected)
            )
        summary = summarise(weights, name) if weighted and weights is not None else None
        after = encoded_bytes(table, asked, plans[name].dtype)
        after = (estimates or {}).get(name, after)
        fields.append(FieldInspection(table, summary, asked, after))

    def plan(memory: int) -> Sequence[ResidencySet]:
        try:
            return plan_sets(works, memory=memory, threads=threads, chunk_rows=None)
        except ParamError:
            return ()

    n_rows = sum(work.n_kept for work in works)
    together = ResidencySet(tuple(works), n_rows, 1).bytes_held(threads, READS_HELD)
    return Inspection(
        tuple(fields),
        _least(lambda memory: [one.resident for one in plan(memory)] == [True], above=together),
        _least(lambda memory: len(plan(memory)) > 0, above=1),
    )


def _least(enough: Callable[[int], bool], *, above: int) -> int:
    """Return the least memory that is enough, to a hundredth, from a number that is not more."""
    low, high = above, 2 * above
    while not enough(high):
        low, high = high, 2 * high
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def summarise(weights: WeightSource, name: str) -> WeightSummary:
    """Return a summary of one field's weights.

    Raises
    ------
    WeightError
        A weight is not allowed. Names field and row, as `compress` would.
    """
    values = np.empty(weights.fields[name])
    for start, part in weights_by_parts(weights, name):
        values[start : start + len(part)] = part
    if not len(values):
        return WeightSummary(0.0, 0.0, 0, 0)
    values.sort()
    cumulative = np.cumsum(values[::-1])
    total = float(cumulative[-1])
    head = int(np.searchsorted(cumulative, total / 2)) + 1 if total > 0 else 0
    return WeightSummary(total, float(values[-1]), int((values == 0).sum()), head)


def as_json(found: Inspection) -> dict[str, Any]:
    """Return the inspection as JSON-able values."""
    return {
        "fields": [
            {
                "name": one.table.name,
                "rows": one.table.n_rows,
                "dim": one.table.dim,
                "dtype": one.table.dtype,
                "bytes": one.table.nbytes,
                "codewords": one.codewords,
                "bytes_after": one.bytes_after,
                "weights": None if one.weights is None else vars(one.weights),
            }
            for one in found.fields
        ],
        "bytes": found.bytes_before,
        "bytes_after": found.bytes_after,
        "memory_once": found.memory_once,
        "memory_least": found.memory_least,
    }
