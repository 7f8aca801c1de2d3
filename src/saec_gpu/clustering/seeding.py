"""First codewords, drawn from the sample (DEFINITIONS D).

Up to 4096 they are drawn one by one, by k-means++ (Arthur and Vassilvitskii, SODA 2007): `Seeds`.
More come in rounds, each of as many as there are: a priority sample of the rows, a row's weight
being ω·(least distance so far). It is k-means|| (Bahmani, Moseley, Vattani, Kumar, Vassilvitskii,
"Scalable k-means++", PVLDB 5(7), 2012) with rounds that grow and nothing left over to be clustered:
`further_seeds`. In round r = 0, 1, … row i of m has raw draw r·m + i of stream("rounds").
"""

from __future__ import annotations

import numpy as np

from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.lloyd import assigned
from saec_gpu.clustering.sampling import priorities, random_stream, uniforms
from saec_gpu.clustering.seeding_loops import BLOCK, NEVER_SUMMED, draw_seeds
from saec_gpu.data import Float32, Float64, Sample

MOST_DRAWN = 4096  # one by one; each draw looks at all rows of the sample


def seed_codewords(
    backend: Backend, sample: Sample, n_codewords: int, seed: int, field: str
) -> Float32:
    """Return the first codewords of a field.

    Parameters
    ----------
    backend : Backend
    sample : Sample
    n_codewords : int
        Codewords asked for.
    seed : int
    field : str
        The field's name; keys the draws.

    Returns
    -------
    codewords : float32 (k, dim)
        Rows of the sample, bit for bit. k < n_codewords where it holds no more rows that differ, or
        no more rows at all.
    """
    drawn = Seeds(sample, seed, field).first(min(n_codewords, MOST_DRAWN))
    return further_seeds(backend, sample, drawn, n_codewords, seed, field)


def further_seeds(
    backend: Backend,
    sample: Sample,
    codewords: Float32,
    n_codewords: int,
    seed: int,
    field: str,
    middle: Float32 | None = None,
) -> Float32:
    """Return the codewords that were drawn one by one, and those of the rounds behind them.

    `middle`, float32 (dim,), is where most of the weight is, if that is known.
    """
    if len(codewords) < MOST_DRAWN:  # all that were asked, or they meet all rows
        return codewords
    draws = random_stream("rounds", seed, field)
    least: Float64 = np.full(len(sample.rows), np.inf)
    first = 0
    while first < len(codewords) < n_codewords:
        nearest = assigned(backend, sample.rows, codewords[first:], middle).distances
        assert nearest is not None
        least = np.minimum(least, nearest)
        chances = sample.weights * least
        order = np.argsort(-priorities(chances, draws.random_raw(len(chances))), kind="stable")
        first = len(codewords)
        added = order[: min(first, n_codewords - first)]
        added = added[chances[added] > 0.0]
        codewords = np.concatenate([codewords, sample.rows[added]])
    return codewords


class Seeds:
    """k-means++ on a sample, drawn as far as somebody asks: fewer codewords are the first of more.

    Parameters
    ----------
    sample : Sample
    seed : int
    field : str
        The field's name; keys the draws.
    """

    def __init__(self, sample: Sample, seed: int, field: str) -> None:
        n_rows, dim = sample.rows.shape
        n_blocks = -(-n_rows // BLOCK)
        room = n_blocks, BLOCK
        self._rows = sample.rows
        self._draws = random_stream("seed", seed, field)
        padded = np.zeros((n_blocks * BLOCK, dim), np.float32)
        padded[:n_rows] = sample.rows
        self._columns = np.ascontiguousarray(padded.reshape(*room, dim).transpose(0, 2, 1))
        self._weights = np.zeros(room)
        self._weights.reshape(-1)[:n_rows] = sample.weights
        self._least = np.full(room, np.inf)
        self._limits = np.full(room, np.inf, np.float32)
        self._limits.reshape(-1)[n_rows:] = -1.0
        self._chances = self._weights.copy()
        self._floors = np.full(n_blocks, NEVER_SUMMED)
        self._added = np.zeros(n_blocks)
        self._chosen = np.zeros(0, np.int64)
        self._all_met = False

    def first(self, n_codewords: int) -> Float32:
        """Return the first codewords, float32 (n_codewords or fewer, dim)."""
        missing = n_codewords - len(self._chosen)
        if missing > 0 and not self._all_met:
            chosen = np.empty(missing, np.int64)
            found = draw_seeds(
                uniforms(self._draws.random_raw(missing)), self._rows, self._columns,
                self._weights, self._least, self._limits, self._chances, self._floors,
                self._added, chosen,
            )  # fmt: skip
            self._chosen = np.concatenate([self._chosen, chosen[:found]])
            self._all_met = found < missing
        return self._rows[self._chosen[:n_codewords]]
