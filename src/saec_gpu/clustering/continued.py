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

import numpy as np

from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.lloyd import FieldFit, assigned, repaired, updated, without_weight
from saec_gpu.clustering.margin import LastField, distances_of
from saec_gpu.clustering.sampling import first_of
from saec_gpu.clustering.selection import Selection, gather
from saec_gpu.data import Codebook, Float32, Int64, chunk_of

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
    codebook = Codebook(last.codewords, fit.fixed_point, fit.middle)
    rivals = Codebook(last.codewords[:RIVALS], middle=fit.middle)
    loaded = backend.load_rows(chunk_of("rows", selection.rows, selection.weights))
    against = backend.assign(loaded, backend.load_codebooks({"rows": rivals}), distances=True)
    codes = codes_at(last, selection.index)
    own = np.full(len(codes), np.inf)  # of a row without a code
    distances_of(selection.rows, codes, last.codewords, own)
    moved_away = np.flatnonzero(own > against.distances)
    if len(moved_away):
        rows = selection.rows[moved_away]
        codes[moved_away] = assigned(backend, rows, last.codewords, fit.middle).codes
    codebooks = backend.load_codebooks({"rows": codebook})
    backend.accumulate(loaded, codes.astype(np.uint32), codebooks)
    partial = backend.partials(codebooks)["rows"]
    moved = updated(last.codewords, partial, fit.fixed_point, fit.statistics)
    added = np.arange(before, n_codewords)
    refilled = np.concatenate([np.flatnonzero(without_weight(partial)), added])
    if not len(refilled):
        return moved
    return repaired(
        backend, np.concatenate([moved, np.zeros((len(added), dim), np.float32)]), refilled,
        first_of(fit.statistics.sample, ROWS_A_REFILL * len(refilled)), fit.middle,
    )  # fmt: skip


def codes_at(last: LastField, index: Int64) -> Int64:
    """Return the codes that rows of now had, int64 (m,); `index`, int64 (m,), ascends."""

    def read(start: int, out: Int64) -> None:
        out[:, 0] = last.codes_between(start, start + len(out))

    codes = np.empty((len(index), 1), np.int64)
    gather(read, index, codes)
    return codes[:, 0]
