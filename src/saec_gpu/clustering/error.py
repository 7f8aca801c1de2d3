"""The error of a compressed field: exact sums, rounded once (DEFINITIONS H)."""

from __future__ import annotations

import numpy as np

from saec_gpu.clustering.compiled_loops import add_by_exponent
from saec_gpu.data import LIMB_BITS, Float64

_EXPONENTS = 2048  # of a float64
_LEAST_BIT = 1074  # 2⁻¹⁰⁷⁴ is the least float64, and every one is a multiple of it


class ExactSum:
    """The exact sum of float64 numbers that come in any order, rounded once, to nearest even."""

    def __init__(self) -> None:
        self._total = 0  # in units of the least float64

    def add(self, values: Float64) -> None:
        """Add numbers, float64 (n,), each finite and at least 0; fewer than 2³¹ at once."""
        limbs = np.zeros((_EXPONENTS, 2), np.int64)
        add_by_exponent(np.ascontiguousarray(values).view(np.int64), limbs)
        for exponent in np.flatnonzero(limbs.any(axis=1)).tolist():
            high, low = limbs[exponent].tolist()
            self._total += ((high << LIMB_BITS) + low) << max(exponent - 1, 0)

    @property
    def value(self) -> float:
        """Return the float64 nearest to the sum.

        >>> total = ExactSum()
        >>> total.add(np.array([1e300, 1.0, 1e-300]))
        >>> total.value
        1e+300
        """
        return self._total / (1 << _LEAST_BIT)


class ErrorSums:
    """Sums of squared distances over rows that come in any order.

    Attributes
    ----------
    weighted : bool
        Whether a row had a weight above zero.
    """

    def __init__(self) -> None:
        self._plain, self._weighted = ExactSum(), ExactSum()
        self.weighted = False

    def add(self, distances: Float64, weights: Float64 | None) -> None:
        """Add rows' float64 distances (n,), and their weights."""
        self._plain.add(distances)
        if weights is not None:
            self._weighted.add(weights * distances)
            self.weighted = self.weighted or bool(weights.any())

    @property
    def sse(self) -> float:
        """Return Σ dist."""
        return self._plain.value

    @property
    def weighted_sse(self) -> float:
        """Return Σ f64(w·dist); `sse` where no row has a weight."""
        return (self._weighted if self.weighted else self._plain).value
