"""Lloyd's iterations over many fields at once: update, repair, stop (DEFINITIONS E, F, G).

The loop is written against a backend and a function that yields rows, so it serves rows that stay
in memory, rows that are read anew each pass, and any device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.filter_frame import median
from saec_gpu.backends.protocol import Assignment, Backend
from saec_gpu.clustering.compiled_loops import (
    limbs_to_float,
    lower_distances,
    worst_served,
)
from saec_gpu.data import (
    Codebook,
    FixedPoint,
    Float32,
    Float64,
    Int64,
    Partial,
    Sample,
    Statistics,
    chunk_of,
)

StopRule = Literal["shift", "max_iter"]
STOP_RULES: tuple[StopRule, ...] = get_args(StopRule)

# Given names of fields: their rows, where the backend works on them.
Passes = Callable[[Collection[str]], Iterable[Any]]


@dataclass(eq=False)
class FieldFit:
    """One field on its way from seeds to codewords.

    Attributes
    ----------
    statistics : Statistics
    fixed_point : FixedPoint
    variance : float
        V, mean weighted variance of a column over the sample.
    codewords : float32 (k, dim)
    iterations : int
        Passes done.
    stopped : "shift", "max_iter" or None
        The rule that froze the field; None while it moves.
    counts : int64 (k,) or None
        Rows per codeword in the last pass.
    """

    statistics: Statistics
    fixed_point: FixedPoint
    variance: float
    codewords: Float32
    iterations: int = 0
    stopped: StopRule | None = None
    counts: Int64 | None = None

    @cached_property
    def middle(self) -> Float32:
        """Return the median of the sample, float32 (dim,): where most of the weight is."""
        return median(self.statistics.sample.rows)

    def ordered(self) -> Float32:
        """Return the codewords by rows in the last pass, descending; ties to the lower index."""
        if self.counts is None:
            return self.codewords
        order = np.lexsort((np.arange(len(self.counts)), -self.counts))
        return self.codewords[order]


def sample_variance(sample: Sample) -> float:
    """Return V = Σ_j Σ_i ω_i (x_ij − m_j)² / Σ_i ω_i / dim, the mean m_j weighted (DEFINITIONS G).

    Every sum ascends: np.cumsum adds one after another, where np.sum would add in pairs.
    """
    weight = _ascending_sum(sample.weights)
    by_column = np.empty(sample.rows.shape[1])
    for j, column in enumerate(sample.rows.T):
        x = column.astype(np.float64)
        centred = x - _ascending_sum(sample.weights * x) / weight
        by_column[j] = _ascending_sum(sample.weights * (centred * centred))
    return _ascending_sum(by_column) / weight / len(by_column)


def squared_shift(new: Float32, old: Float32) -> float:
    """Return Σ_c Σ_j (f64(new) − f64(old))², the sum over columns first (DEFINITIONS G)."""
    moved = new.astype(np.float64) - old
    return _ascending_sum(np.cumsum(moved * moved, axis=1)[:, -1])


def _ascending_sum(values: Float64) -> float:
    return float(np.cumsum(values)[-1])


def fit_pass(
    backend: Backend, passed: Iterable[Any], fits: Mapping[str, FieldFit]
) -> tuple[Mapping[str, Partial], Mapping[str, int]]:
    """Return the partials of all rows under the present codewords, and the rows rechecked.

    `passed` must hold every row of the fields once, as the backend loads them.
    """
    codebooks = backend.load_codebooks(
        {name: Codebook(fit.codewords, fit.fixed_point, fit.middle) for name, fit in fits.items()}
    )
    for rows in passed:
        backend.assign_accumulate(rows, codebooks)
    return backend.partials(codebooks), backend.rechecked(codebooks)


def finish_pass(
    backend: Backend, fit: FieldFit, partial: Partial, *, tol: float, max_iter: int
) -> None:
    """Move a field's codewords by one update and repair, and freeze it if a rule says so."""
    codewords = moved_codewords(
        backend, fit.codewords, partial, fit.fixed_point, fit.statistics, fit.middle
    )
    shift = squared_shift(codewords, fit.codewords)
    fit.codewords = codewords
    fit.counts = partial.counts
    fit.iterations += 1
    if shift <= tol * fit.variance:
        fit.stopped = "shift"
    elif fit.iterations >= max_iter:
        fit.stopped = "max_iter"


def moved_codewords(
    backend: Backend,
    codewords: Float32,
    partial: Partial,
    fixed_point: FixedPoint,
    statistics: Statistics,
    middle: Float32 | None = None,
) -> Float32:
    """Return the codewords after update and repair."""
    moved = updated(codewords, partial, fixed_point, statistics)
    empty = np.flatnonzero(without_weight(partial))
    return repaired(backend, moved, empty, statistics.sample, middle) if len(empty) else moved


def updated(
    codewords: Float32, partial: Partial, fixed_point: FixedPoint, statistics: Statistics
) -> Float32:
    """Return the weighted means of the codewords' rows; codewords without weight as they are.

    c_j = f32(ldexp(f64(S_cj) / f64(W_c), a_j)), held within the column's range: where weights span
    many binary orders a mean of few integer units could fall outside, up to infinity.
    """
    moved = codewords.copy()
    used = ~without_weight(partial)
    sums = _to_float(partial.sums[used], _part(partial.sums_low, used))
    weight_sums = _to_float(partial.weight_sums[used], _part(partial.weight_sums_low, used))
    means = np.ldexp(sums / weight_sums[:, None], fixed_point.column_exponents)
    means = np.clip(
        means, statistics.minimum.astype(np.float64), statistics.maximum.astype(np.float64)
    )
    moved[used] = means.astype(np.float32) + np.float32(0.0)
    return moved


def repaired(
    backend: Backend,
    codewords: Float32,
    empty: Int64,
    sample: Sample,
    middle: Float32 | None = None,
) -> Float32:
    """Return the codewords with the empty ones refilled, ascending, from the worst-served rows.

    Worst served is the sample row of greatest ω·(least distance to the codewords that are not empty
    or already refilled). Where every row is met exactly, a codeword keeps its value.
    """
    repaired_words = codewords.copy()
    live = np.delete(codewords, empty, axis=0)
    least: Float64 = np.array(assigned(backend, sample.rows, live, middle).distances)
    begin_anew(repaired_words, empty, sample, least, np.zeros(len(empty)))
    return repaired_words


def begin_anew(
    codewords: Float32, order: Int64, sample: Sample, least: Float64, worth: Float64
) -> int:
    """Move codewords, in place, to the rows of a sample that are served worst, one after another.

    Parameters
    ----------
    codewords : float32 (k, dim)
    order : int64 (m,)
        Which of them, the first one first.
    sample : Sample
    least : float64 (rows of the sample,)
        Their distances; lowered in place by those to codewords that were moved.
    worth : float64 (m,)
        What the row's ω·dist must exceed. The first that does not ends it.

    Returns
    -------
    moved : int
    """
    columns = np.ascontiguousarray(sample.rows.T)
    for moved, code in enumerate(order):
        row = worst_served(sample.weights, least)
        if row < 0 or sample.weights[row] * least[row] <= worth[moved]:
            return moved
        codewords[code] = sample.rows[row]
        lower_distances(columns, sample.rows[row], least)
    return len(order)


def assigned(
    backend: Backend, rows: Float32, codewords: Float32, middle: Float32 | None
) -> Assignment:
    """Return the nearest codewords of rows in the host's memory, with distances."""
    loaded = backend.load_rows(chunk_of("rows", rows))
    codebooks = backend.load_codebooks({"rows": Codebook(codewords, middle=middle)})
    return backend.assign(loaded, codebooks, distances=True)


def without_weight(partial: Partial) -> NDArray[np.bool_]:
    """Return which codewords have no weight."""
    empty: NDArray[np.bool_] = partial.weight_sums == 0
    if partial.weight_sums_low is not None:
        empty &= partial.weight_sums_low == 0
    return empty


def _part(array: Int64 | None, places: NDArray[np.bool_]) -> Int64 | None:
    return None if array is None else array[places]


def _to_float(high: Int64, low: Int64 | None) -> Float64:
    """Return the sums as float64, each rounded once."""
    if low is None:
        return high.astype(np.float64)
    out = np.empty(high.size)
    limbs_to_float(high.reshape(-1), low.reshape(-1), out)
    return out.reshape(high.shape)


def fit(
    backend: Backend,
    passes: Passes,
    fits: Mapping[str, FieldFit],
    *,
    tol: float,
    max_iter: int,
    after_pass: Callable[[Mapping[str, int]], None],
) -> None:
    """Iterate until every field has stopped.

    Parameters
    ----------
    passes : function
        Given the names of fields, yields each of their rows once, as the backend loads them.
    fits : mapping of name to FieldFit
        Moved in place; fields already stopped are left alone.
    after_pass : function
        Called after each pass with the rows rechecked per field; the place for checkpoints.
    """
    while active := {name: one for name, one in fits.items() if one.stopped is None}:
        partials, rechecked = fit_pass(backend, passes(active.keys()), active)
        for name, one in active.items():
            finish_pass(backend, one, partials[name], tol=tol, max_iter=max_iter)
        after_pass(rechecked)
