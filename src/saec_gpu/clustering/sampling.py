"""Random bits and the priority sample (DEFINITIONS A and C)."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Float32, Float64, Int64, Sample

DRAWS_A_COUNTER = 4  # Philox makes four 64-bit draws of each counter value
UNIT = 2.0**-53


def random_stream(purpose: str, seed: int, field: str) -> np.random.Philox:
    """Return the bit generator of one purpose, keyed by seed and field name.

    Only its raw bits are used: distributions may change between NumPy versions.
    """
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{field}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def uniforms(raw: NDArray[np.uint64]) -> Float64:
    """Return U(r) = (r >> 11)·2⁻⁵³, in [0, 1)."""
    return (raw >> np.uint64(11)).astype(np.float64) * UNIT


def priorities(weights: Float64, raw: NDArray[np.uint64]) -> Float64:
    """Return q = w / ((f64(r >> 11) + 1)·2⁻⁵³)."""
    return weights / (((raw >> np.uint64(11)).astype(np.float64) + 1.0) * UNIT)


def sample_size(n_rows: int, n_codewords: int) -> int:
    """Return m, the most rows that a field's sample holds."""
    return min(n_rows, max(32 * min(n_codewords, 4096), 2 * n_codewords))


def first_of(sample: Sample, size: int) -> Sample:
    """Return the sample that would have been drawn with at most `size` rows."""
    if len(sample.index) <= size:
        return sample
    by_priority = np.lexsort((sample.index, -sample.priority))
    places = np.sort(by_priority[:size])
    threshold = sample.priority[by_priority[size]]
    return Sample(
        sample.index[places], sample.rows[places], sample.priority[places],
        np.maximum(sample.weights[places], threshold),
    )  # fmt: skip


class Sampler:
    """Keeps the rows of greatest priority while a field is read in order.

    Priority sampling (Duffield, Lund, Thorup, "Priority sampling for estimation of arbitrary subset
    sums", J. ACM 54(6), 2007, doi 10.1145/1314690.1314696): q = w / uniform; the m rows of greatest
    q, each weighing max(w, τ) with τ the next q, estimate every subset's weight without bias. Each
    row's draw depends on its number alone, so neither order nor size of chunks matters.

    Parameters
    ----------
    size : int
        m, the most rows that are kept.
    dim : int
        Columns of the rows; 0 where only their numbers are wanted.
    seed : int
    field : str
        Its name keys the draws.
    """

    def __init__(self, size: int, dim: int, seed: int, field: str) -> None:
        self._size = size
        self._seed = seed
        self._field = field
        self._threshold = 0.0
        self._n_kept = 0
        self._parts: list[tuple[Int64, Float64, Float64, Float32]] = [
            (np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros((0, dim), np.float32))
        ]

    def add(self, start: int, rows: Float32, weights: Float64 | None) -> None:
        """Look at rows `start` and following; weights None means 1 each."""
        generator = random_stream("sample", self._seed, self._field)
        generator.advance(start // DRAWS_A_COUNTER)
        skip = start % DRAWS_A_COUNTER
        raw = generator.random_raw(skip + len(rows))[skip:]
        priority = priorities(np.ones(len(rows)) if weights is None else weights, raw)
        # rows come in order, so a row that equals the threshold loses the tie to those before it
        taken = np.flatnonzero(priority > self._threshold)
        own = np.ones(len(taken)) if weights is None else weights[taken]
        self._parts.append((start + taken, priority[taken], own, rows[taken]))
        self._n_kept += len(taken)
        if self._n_kept > 2 * (self._size + 1):
            self._threshold = self._shrink()

    def _shrink(self) -> float:
        """Keep the size + 1 rows of greatest priority, in row order; return the least of them."""
        index = np.concatenate([part[0] for part in self._parts])
        priority = np.concatenate([part[1] for part in self._parts])
        weights = np.concatenate([part[2] for part in self._parts])
        rows = np.concatenate([part[3] for part in self._parts])
        kept = self._size + 1
        threshold = 0.0
        if len(index) >= kept:
            threshold = float(np.partition(priority, -kept)[-kept])
            above = np.flatnonzero(priority > threshold)
            ties = np.flatnonzero(priority == threshold)[: kept - len(above)]
            places = np.sort(np.concatenate([above, ties]))
            index, priority = index[places], priority[places]
            weights, rows = weights[places], rows[places]
        self._parts = [(index, priority, weights, rows)]
        self._n_kept = len(index)
        return threshold

    def sample(self) -> Sample:
        """Return the sample of all rows seen, in row order."""
        threshold = self._shrink()
        index, priority, weights, rows = self._parts[0]
        if len(index) > self._size:
            # the last of the rows with the threshold's priority only marks τ
            places = np.delete(np.arange(len(index)), np.flatnonzero(priority == threshold)[-1])
            index, priority = index[places], priority[places]
            weights, rows = weights[places], rows[places]
        return Sample(index, rows, priority, np.maximum(weights, threshold))
