"""The error of a compressed field, summed as integers (DEFINITIONS H)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from saec_gpu.clustering.statistics import WIDE_BITS, total_bits, unit_exponents
from saec_gpu.data import LIMB_BITS, Float32, Float64, Statistics


class ErrorSums:
    """Sums of squared distances, unweighted and weighted, over rows that come in any order.

    Parameters
    ----------
    statistics : Statistics
        Of all rows that will be added.
    codewords : float32 (k, dim), optional
        To which the distances are, where they may lie outside the range of the rows: those stored
        in fewer bits do.

    Attributes
    ----------
    sse, weighted_sse : float
        Σ dist and Σ w·dist of the rows added, float64 of an exact integer.
    """

    def __init__(self, statistics: Statistics, codewords: Float32 | None = None) -> None:
        reach = distance_bits(statistics, codewords)
        self._shift = WIDE_BITS - total_bits(unit_exponents(statistics.n_rows)) - reach
        self._weighted_shift = WIDE_BITS - total_bits(statistics.exponents) - reach
        self._weighted = statistics.weighted
        self._total = 0
        self._weighted_total = 0

    def add(self, distances: Float64, weights: Float64 | None) -> None:
        """Add rows' float64 distances; weights are looked at only if the field is weighted."""
        self._total += _whole_sum(distances, self._shift)
        if self._weighted and weights is not None:
            self._weighted_total += _whole_sum(weights * distances, self._weighted_shift)

    @property
    def sse(self) -> float:
        """Return Σ dist."""
        return math.ldexp(float(self._total), -self._shift)

    @property
    def weighted_sse(self) -> float:
        """Return Σ w·dist; `sse` for a field without weights."""
        if not self._weighted:
            return self.sse
        return math.ldexp(float(self._weighted_total), -self._weighted_shift)


def distance_bits(statistics: Statistics, codewords: Float32 | None = None) -> int:
    """Return D, the least integer with 2^D ≥ Σ_j 4^(r_j + 1), which no distance reaches; exact.

    r_j is the frexp exponent of the range of column j, over the rows and the codewords.
    """
    minimum, maximum = statistics.minimum, statistics.maximum
    if codewords is not None:
        minimum = np.minimum(minimum, codewords.min(axis=0))
        maximum = np.maximum(maximum, codewords.max(axis=0))
    ranges = maximum.astype(np.float64) - minimum.astype(np.float64)
    return _least_power([2 * (int(e) + 1) for e in np.frexp(ranges[ranges > 0])[1]])


def _least_power(exponents: Iterable[int]) -> int:
    """Return the least D with 2^D ≥ Σ 2^e, 0 for no e at all."""
    exponents = list(exponents)
    if not exponents:
        return 0
    return total_bits({e: exponents.count(e) for e in set(exponents)})


def _whole_sum(values: Float64, shift: int) -> int:
    """Return Σ rint(v·2^shift) exactly."""
    terms = np.rint(np.ldexp(values, shift))
    high = np.floor(np.ldexp(terms, -LIMB_BITS))
    low = terms - np.ldexp(high, LIMB_BITS)
    return (int(high.astype(np.int64).sum()) << LIMB_BITS) + int(low.astype(np.int64).sum())
