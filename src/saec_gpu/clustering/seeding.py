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
    draws = uniforms(random_stream("seed", seed, field).random_raw(n_codewords))
    columns = np.ascontiguousarray(sample.rows.T)
    least = np.full(len(sample.index), np.inf)
    chosen: list[int] = []
    chances = sample.weights
    for draw in draws:
        cumulative = np.cumsum(chances)  # one after another, as DEFINITIONS asks of every sum
        if cumulative[-1] == 0.0:
            break
        row = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
        chosen.append(row)
        lower_distances(columns, sample.rows[row], least)
        chances = sample.weights * least
    return sample.rows[chosen]
