"""Codewords that do little go where more is to be done: the part of an update that Lloyd lacks.

Lloyd's update step moves a codeword to the mean of its rows and no farther. Where a row of great
weight becomes another one, the codeword that it had for itself stays behind, and the next one is
drawn from its own rows. So before that step some codewords begin anew:

1. Idle are every codeword without weight and the quarter of least weight (rounded up, at most
   `MOST_IDLE`, not all), ties to the lower index. The price of one is what its rows would cost more
   with the nearest codeword that is not idle, Σ f64(w · f64(dist there − dist now)), row after row.
   Codewords that are added have no rows and are idle too.
2. The cheapest first, ties to the lower index, each begins at the row that is served worst: the one
   of greatest ω·dist among the first rows of the sample, `ROWS_A_PLACE` for each idle codeword,
   dist to the codeword of its code or to one that began anew, whichever is less. The first that
   would gain no more than `WORTH` times its price ends it, and so does ω·dist = 0.
3. The rows of these go to the nearest codeword that is not idle; then every row goes to a codeword
   that began anew where that is nearer.
"""

from __future__ import annotations

import numpy as np

from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.lloyd import assigned, begin_anew
from saec_gpu.clustering.sampling import first_of
from saec_gpu.data import Float32, Float64, Int64, Sample

IDLE_SHARE = 4
MOST_IDLE = 4096  # of those with weight: finding places takes time with the square of it
ROWS_A_PLACE = 16
# A row of the sample stands for others, which gain less than it does. At 2 the codes of so many
# rows change that an hour's churn grows; at 8 the error does (bench/hours.py).
WORTH = 4.0


def relocate(
    backend: Backend,
    codewords: Float32,
    n_before: int,
    rows: Float32,
    weights: Float64,
    codes: Int64,
    distances: Float64,
    sample: Sample,
    middle: Float32,
) -> None:
    """Move idle codewords to rows that are served badly, in place, and give rows their codes.

    Parameters
    ----------
    backend : Backend
    codewords : float32 (k, dim)
        Changed in place.
    n_before : int
        The codewords from this index on are added: they have no rows and no value.
    rows : float32 (m, dim)
    weights : float64 (m,)
    codes : int64 (m,)
        Below n_before. Changed in place.
    distances : float64 (m,)
        Of rows to the codewords of their codes. Changed in place.
    sample : Sample
        Of these rows, numbered by their places.
    middle : float32 (dim,)
        As `Codebook` takes it.
    """
    idle = _idle(codes, weights, n_before, len(codewords))
    if not len(idle):
        return
    is_idle = np.zeros(len(codewords), np.bool_)
    is_idle[idle] = True
    busy = np.flatnonzero(~is_idle)
    theirs = np.flatnonzero(is_idle[codes])
    elsewhere = assigned(backend, rows[theirs], codewords[busy], middle)
    assert elsewhere.distances is not None
    dearer = weights[theirs] * (elsewhere.distances - distances[theirs])
    # of no rows np.bincount returns integers
    prices: Float64 = np.bincount(codes[theirs], dearer, len(codewords)).astype(np.float64)
    cheapest = idle[np.lexsort((idle, prices[idle]))]
    few = first_of(sample, ROWS_A_PLACE * len(idle))
    least = distances[few.index]
    moved = cheapest[: begin_anew(codewords, cheapest, few, least, WORTH * prices[cheapest])]
    if not len(moved):
        return
    left = np.isin(codes[theirs], moved)
    codes[theirs[left]] = busy[elsewhere.codes[left]]
    distances[theirs[left]] = elsewhere.distances[left]
    anew = assigned(backend, rows, codewords[moved], middle)
    assert anew.distances is not None
    nearer = anew.distances < distances
    codes[nearer] = moved[anew.codes[nearer]]
    distances[nearer] = anew.distances[nearer]


def _idle(codes: Int64, weights: Float64, n_before: int, n_codewords: int) -> Int64:
    """Return the codewords that may move, ascending."""
    mass = np.bincount(codes, weights, n_before)
    share = min(-(-n_before // IDLE_SHARE), MOST_IDLE, n_before - 1)
    by_mass = np.lexsort((np.arange(n_before), mass))
    idle = by_mass[: max(share, int((mass == 0).sum()))]
    return np.concatenate([np.sort(idle), np.arange(n_before, n_codewords)])
