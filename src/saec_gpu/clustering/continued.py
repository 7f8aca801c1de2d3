"""Codewords of an update: each moves to the mean of its rows, most of which are known.

That is the update step of Lloyd's iterations, of which the last codes are the assignment step, so
that few rows are held against all codewords. A row has stayed with codeword l, its code from
before, where l still wins against the first `RIVALS` codewords (or all, if there are no more):

    dist(x, c_l) ≤ dist(x, c_b), b the nearest of them        (DESIGN.md 2, float64)

A row that became another one passes that by chance only, where codewords are far from each other;
where they are not, it does little harm. Rows that have not stayed, and new ones, count for the
nearest codeword.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saec_gpu.backends.protocol import Assignment, Backend
from saec_gpu.clustering.lloyd import FieldFit, repaired, updated, without_weight
from saec_gpu.clustering.margin import LastField, distances_of
from saec_gpu.clustering.sampling import first_of
from saec_gpu.clustering.selection import Selection
from saec_gpu.data import Codebook, Float32, chunk_of

RIVALS = 32
ROWS_A_REFILL = 16  # of the sample, among which the worst served are found


def continued(
    backend: Backend, fit: FieldFit, last: LastField, selection: Selection, n_codewords: int
) -> Float32:
    """Return the codewords of now, float32 (n_codewords, dim); the last ones keep their numbers.

    Codewords for which no row of weight counts, and then those that are added, begin at rows
    that are served worst, as `repaired` chooses them among the rows of greatest priority in the
    sample, `ROWS_A_REFILL` for each.

    Parameters
    ----------
    backend : Backend
    fit : FieldFit
        Statistics of the selection, and the exponents of their sums.
    last : LastField
    selection : Selection
        The rows that are clustered.
    n_codewords : int
        At least as many as there were.
    """
    before, dim = last.codewords.shape
    rows, weights = selection.rows, selection.weights
    codebook = Codebook(last.codewords, fit.fixed_point, fit.middle)
    codes = last.codes_at(selection.index)
    own = np.full(len(codes), np.inf)  # of a row without a code
    distances_of(rows, codes, last.codewords, own)
    rivals = replace(codebook, codewords=last.codewords[:RIVALS])
    moved_away = np.flatnonzero(own > assigned(backend, rows, rivals).distances)
    if len(moved_away):
        codes[moved_away] = assigned(backend, rows[moved_away], codebook).codes
    loaded = backend.load_codebooks({"rows": codebook})
    backend.accumulate(
        backend.load_rows(chunk_of("rows", rows, weights)), codes.astype(np.uint32), loaded
    )
    partial = backend.partials(loaded)["rows"]
    moved = updated(last.codewords, partial, fit.fixed_point, fit.statistics)
    added = np.arange(before, n_codewords)
    refilled = np.concatenate([np.flatnonzero(without_weight(partial)), added])
    if not len(refilled):
        return moved
    return repaired(
        backend, np.concatenate([moved, np.zeros((len(added), dim), np.float32)]), refilled,
        first_of(fit.statistics.sample, ROWS_A_REFILL * len(refilled)), fit.middle,
    )  # fmt: skip


def assigned(backend: Backend, rows: Float32, codebook: Codebook) -> Assignment:
    """Return the nearest codewords of rows in the host's memory, with distances."""
    return backend.assign(
        backend.load_rows(chunk_of("rows", rows)),
        backend.load_codebooks({"rows": replace(codebook, fixed_point=None)}),
        distances=True,
    )
