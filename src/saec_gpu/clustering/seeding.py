"""First codewords, drawn from the sample (DEFINITIONS D)."""

from __future__ import annotations

import numpy as np

from saec_gpu.clustering.compiled_loops import lower_distances
from saec_gpu.clustering.sampling import random_stream, uniforms
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
        self._sample = sample
        self._draws = random_stream("seed", seed, field)
        self._columns = np.ascontiguousarray(sample.rows.T)
        self._least = np.full(len(sample.index), np.inf)
        self._chances = sample.weights
        self._chosen: list[int] = []
        self._all_met = False

    def first(self, n_codewords: int) -> Float32:
        """Return the first codewords, float32 (n_codewords or fewer, dim)."""
        while len(self._chosen) < n_codewords and not self._all_met:
            (draw,) = uniforms(self._draws.random_raw(1))
            cumulative = np.cumsum(self._chances)  # one after another, as DEFINITIONS asks
            self._all_met = bool(cumulative[-1] == 0.0)
            if not self._all_met:
                row = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
                self._chosen.append(row)
                lower_distances(self._columns, self._sample.rows[row], self._least)
                self._chances = self._sample.weights * self._least
        return self._sample.rows[self._chosen[:n_codewords]]
