"""First codewords, drawn from the sample (DEFINITIONS D)."""

from __future__ import annotations

import numpy as np

from saec_gpu.clustering.sampling import random_stream, uniforms
from saec_gpu.clustering.seeding_loops import BLOCK, NEVER_SUMMED, draw_seeds
from saec_gpu.data import Float32, Sample

MOST_DRAWN = 4096  # above it, k-means++ would cost more than the fit


def seed_codewords(sample: Sample, n_codewords: int, seed: int, field: str) -> Float32:
    """Return the first codewords of a field.

    Parameters
    ----------
    sample : Sample
    n_codewords : int
        Codewords asked for.
    seed : int
    field : str
        The field's name; keys the draws.

    Returns
    -------
    codewords : float32 (k, dim)
        Rows of the sample, bit for bit. k-means++ (Arthur and Vassilvitskii, SODA 2007) up to
        4096 codewords, above it the rows of greatest priority. k < n_codewords where the sample
        holds no more rows that differ, or no more rows at all.
    """
    if n_codewords > MOST_DRAWN:
        order = np.lexsort((sample.index, -sample.priority))[:n_codewords]
        return sample.rows[order]
    return Seeds(sample, seed, field).first(n_codewords)


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
