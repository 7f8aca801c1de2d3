"""Codewords of an update: each moves to the mean of its rows, most of which are known.

That is the update step of Lloyd's iterations, of which the last codes are the assignment step, so
that few rows are held against all codewords. A row has stayed with codeword l, its code from
before, where l still wins against the first `RIVALS` codewords (or all, if there are no more):

    dist(x, c_l) ≤ dist(x, c_b), b the nearest of them        (DESIGN.md 2, float64)

A row that became another one passes that by chance only, where codewords are far from each other;
where they are not, it does little harm. Rows that have not stayed, and new ones, count for the
nearest codeword. Codewords that do little then, and those that are added, begin anew where rows are
served worst (relocation.py), before all move.
"""

from __future__ import annotations

import numpy as np

from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.lloyd import FieldFit, assigned, updated
from saec_gpu.clustering.margin import LastField, distances_of
from saec_gpu.clustering.relocation import relocate
from saec_gpu.clustering.selection import Selection, gather
from saec_gpu.data import Codebook, Float32, Int64, chunk_of

RIVALS = 32


def continued(
    backend: Backend, fit: FieldFit, last: LastField, selection: Selection, n_codewords: int
) -> Float32:
    """Return the codewords of now, float32 (n_codewords, dim); the last ones keep their numbers.

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
    rivals = Codebook(last.codewords[:RIVALS], middle=fit.middle)
    loaded = backend.load_rows(chunk_of("rows", selection.rows, selection.weights))
    against = backend.assign(loaded, backend.load_codebooks({"rows": rivals}), distances=True)
    codes = codes_at(last, selection.index)
    own = np.full(len(codes), np.inf)  # of a row without a code
    distances_of(selection.rows, codes, last.codewords, own)
    moved_away = np.flatnonzero(own > against.distances)
    if len(moved_away):
        nearest = assigned(backend, selection.rows[moved_away], last.codewords, fit.middle)
        codes[moved_away], own[moved_away] = nearest.codes, nearest.distances
    codewords = np.concatenate([last.codewords, np.zeros((n_codewords - before, dim), np.float32)])
    relocate(
        backend, codewords, before, selection.rows, selection.weights, codes, own,
        fit.statistics.sample, fit.middle,
    )  # fmt: skip
    codebooks = backend.load_codebooks({"rows": Codebook(codewords, fit.fixed_point, fit.middle)})
    backend.accumulate(loaded, codes.astype(np.uint32), codebooks)
    partial = backend.partials(codebooks)["rows"]
    return updated(codewords, partial, fit.fixed_point, fit.statistics)


def codes_at(last: LastField, index: Int64) -> Int64:
    """Return the codes that rows of now had, int64 (m,); `index`, int64 (m,), ascends."""

    def read(start: int, out: Int64) -> None:
        out[:, 0] = last.codes_between(start, start + len(out))

    codes = np.empty((len(index), 1), np.int64)
    gather(read, index, codes)
    return codes[:, 0]
