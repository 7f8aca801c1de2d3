"""Rows that stand for a field, chosen by weights and row numbers before any row is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.protocol import Backend, StorePlan
from saec_gpu.clustering.compiled_loops import first_not_finite
from saec_gpu.clustering.sampling import Sampler
from saec_gpu.clustering.statistics import (
    GREATEST_WEIGHT,
    StatisticsBuilder,
    check_weights,
    not_finite,
)
from saec_gpu.data import Chunk, Float32, Float64, Int64, Statistics
from saec_gpu.layout import lay_out
from saec_gpu.sources import TableField, TableSource, WeightSource

BLOCK_ROWS = 1 << 16  # weights of one read
# With so many rows of a coreset the weighted error is within 2 % of that of all rows. A few
# codewords need more each, for there is less to even out, and they are quickly clustered.
ROWS_A_CODEWORD = 64
LEAST_ROWS = 8192
PAYS_FROM = 4  # times as many rows in the field as in its coreset
PAYS_PRODUCTS = 1 << 30  # of all rows and codewords: all passes over fewer take less than a second
RUN_VALUES = 1 << 19  # of rows read at once: 2 MiB
GAP_VALUES = 1 << 12  # 16 KiB, also of a file, are read over as quickly as a new read begins


@dataclass(frozen=True, eq=False)
class Selection:
    """Some rows of a field, with weights that make them stand for all.

    Attributes
    ----------
    index : int64 (m,)
        Row numbers, ascending.
    rows : float32 (m, dim)
    weights : float64 (m,)
        With these, sums over the selection estimate weighted sums over the field.
    multiplicity : float64 (m,)
        How many rows each stands for: with these, they estimate sums over rows, unweighted.
    weighted : bool
        False: all weights that were given are 0, and each row counts as 1.
    weightless : int
        Rows of weight 0 that are not in the selection.
    """

    index: Int64
    rows: Float32
    weights: Float64
    multiplicity: Float64
    weighted: bool
    weightless: int

    def statistics(self, field: str, n_codewords: int, seed: int) -> Statistics:
        """Return the statistics of these rows, taken as a table of their own."""
        n_rows, dim = self.rows.shape
        builder = StatisticsBuilder(field, n_rows, dim, n_codewords, seed, weighted=True)
        builder.add(0, self.rows, self.weights)
        return builder.statistics()


def rows_to_cluster(table: TableField, n_codewords: int, fast: bool | None) -> int:
    """Return the size of the coreset that is clustered in place of all rows, 0 for none.

    Parameters
    ----------
    table : TableField
    n_codewords : int
    fast : bool or None
        False: never; None: where it pays; True: wherever it is smaller than the field.
    """
    size = max(ROWS_A_CODEWORD * n_codewords, LEAST_ROWS)
    if fast is None:
        products = table.n_rows * table.dim * n_codewords
        fast = table.n_rows >= PAYS_FROM * size and products >= PAYS_PRODUCTS
    return size if fast and table.n_rows > size else 0


def coreset(
    tables: TableSource, weights: WeightSource | None, field: TableField, size: int, seed: int
) -> Selection:
    """Return a priority sample (DEFINITIONS C) of `size` rows of a field, or all its rows.

    Raises
    ------
    WeightError, NonFiniteRowError
        A weight is not allowed, or a row that was chosen is not finite. Names field and row.

    Notes
    -----
    Reads all weights, but of the rows only those that it returns. A sample has no row of weight 0,
    unless all weights are zero, which counts as if none had been given. Its weights are held at
    the greatest that is allowed.
    """
    if field.n_rows <= size:
        index = np.arange(field.n_rows)
        own = np.concatenate([np.ones(0), *(part for _, part in _weights(weights, field))])
        weighted = bool(own.any())
        if not weighted:
            own = np.ones(field.n_rows)
        rows = _rows_of(tables, field, index)
        return Selection(index, rows, own, np.ones(field.n_rows), weighted, 0)
    sampler, unweighted = (Sampler(size, 0, seed, field.name) for _ in range(2))
    weightless = 0
    weighted = False
    for start, own in _weights(weights, field):
        numbers = np.empty((len(own), 0), np.float32)
        weighted = weighted or bool(own.any())
        weightless += int((own == 0).sum())
        sampler.add(start, numbers, own)
        if not weighted:
            unweighted.add(start, numbers, None)
    sample = (sampler if weighted else unweighted).sample()
    own = _weights_of(weights, field, sample.index) if weighted else np.ones(len(sample.index))
    standing = np.minimum(sample.weights, GREATEST_WEIGHT)
    rows = _rows_of(tables, field, sample.index)
    left_out = weightless if weighted else 0
    return Selection(sample.index, rows, standing, standing / own, weighted, left_out)


def _weights(weights: WeightSource | None, field: TableField) -> Iterator[tuple[int, Float64]]:
    """Yield (first row, weights) block by block, checked; ones for a field without."""
    if weights is not None and field.name in weights.fields:
        yield from weights_by_parts(weights, field.name)
        return
    for start in range(0, field.n_rows, BLOCK_ROWS):
        yield start, np.ones(min(BLOCK_ROWS, field.n_rows - start))


def weights_by_parts(weights: WeightSource, name: str) -> Iterator[tuple[int, Float64]]:
    """Yield the weights of one field part by part, checked: the first row, float64 (n,).

    Raises
    ------
    WeightError
        A weight is not allowed. Names field and row.
    """
    n_rows = weights.fields[name]
    for start in range(0, n_rows, BLOCK_ROWS):
        part = np.empty(min(BLOCK_ROWS, n_rows - start))
        weights.read(name, start, part)
        check_weights(name, start, part)
        yield start, part


def _weights_of(weights: WeightSource | None, field: TableField, index: Int64) -> Float64:
    own = np.ones((len(index), 1))
    if weights is not None and field.name in weights.fields:
        gather(lambda start, out: weights.read(field.name, start, out[:, 0]), index, own)
    return own[:, 0]


def _rows_of(tables: TableSource, field: TableField, index: Int64) -> Float32:
    rows = np.empty((len(index), field.dim), np.float32)
    gather(lambda start, out: tables.read(field.name, start, out), index, rows)
    bad = first_not_finite(rows)
    if bad >= 0:
        raise not_finite(field.name, int(index[bad]))
    return rows


def chunk_of_selections(selections: Mapping[str, Selection]) -> Chunk:
    """Return the rows and weights of the selections of fields, one after another."""
    layout = lay_out((name, 0, *one.rows.shape) for name, one in selections.items())
    values = np.concatenate([one.rows.reshape(-1) for one in selections.values()])
    weights = np.concatenate([one.weights for one in selections.values()])
    return Chunk(layout, values, weights)


def stored_selections(backend: Backend, selections: Mapping[str, Selection], spare: int) -> Any:
    """Return the rows of the selections where a backend makes many passes over them.

    Parameters
    ----------
    backend : Backend
    selections : mapping of field to Selection
    spare : int
        Bytes in which it may keep what a pass tells it for the next one.
    """
    layout = lay_out((name, 0, *one.rows.shape) for name, one in selections.items())
    most = max(min(len(one.rows), BLOCK_ROWS) for one in selections.values())
    widest = max(min(len(one.rows), BLOCK_ROWS) * one.rows.shape[1] for one in selections.values())
    store = backend.open_store(
        StorePlan(layout, np.dtype(np.float32), most, widest, weighted=True, spare=spare)
    )
    for name, one in selections.items():
        for start in range(0, len(one.rows), BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, len(one.rows)))
            n_rows, dim = one.rows[part].shape
            room = store.room(lay_out([(name, start, n_rows, dim)]), stays=True)
            assert room.weights is not None
            room.values[:] = one.rows[part].reshape(-1)
            room.weights[:] = one.weights[part]
            store.put(room, stays=True)
    return store.whole()


def gather(read: Callable[[int, NDArray[Any]], None], index: Int64, out: NDArray[Any]) -> None:
    """Fill `out`, (m, columns), with the rows of the numbers `index`, int64 (m,), ascending.

    `read` fills a matrix with the rows from a number on. Rows that lie near each other are read
    together with what is between them.
    """
    columns = out.shape[1]
    apart = np.diff(index) * columns > GAP_VALUES
    most = max(1, RUN_VALUES // columns)
    first = 0
    for stop in [*(np.flatnonzero(apart) + 1).tolist(), len(index)]:
        while first < stop:
            start = int(index[first])
            last = int(np.searchsorted(index[first:stop], start + most)) + first
            block = np.empty((int(index[last - 1]) + 1 - start, columns), out.dtype)
            read(start, block)
            out[first:last] = block[index[first:last] - start]
            first = last
