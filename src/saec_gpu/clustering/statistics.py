"""What one reading of a field tells before it is clustered (DEFINITIONS B)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from saec_gpu.clustering.compiled_loops import (
    collect_distinct,
    column_ranges,
    first_not_finite,
)
from saec_gpu.clustering.sampling import Sampler, sample_size
from saec_gpu.data import FixedPoint, Float32, Float64, Statistics
from saec_gpu.errors import NonFiniteRowError, WeightError

LEAST_WEIGHT, GREATEST_WEIGHT = 2.0**-400, 2.0**400
NARROW_BITS, WIDE_BITS = 62, 94
# a weight keeps at least 62 − 38 = 24 bits beside the total of all, as many as float32 has
NARROW_SPAN = 38


class _Distinct:
    """The distinct rows of a field, by first row number, until there are more than `limit`."""

    def __init__(self, limit: int, dim: int) -> None:
        self._limit = limit
        self._rows: Float32 = np.zeros((64, dim), np.float32)
        self._count = 0
        self._places = np.full(256, -1, np.int64)

    def add(self, rows: Float32) -> None:
        while self._count <= self._limit and len(rows):
            # at most one new row each: take as many as there is room for
            room = min(len(self._rows) - self._count, len(rows))
            self._count = self._collect(rows[:room], self._limit)
            rows = rows[room:]
            if self._count == len(self._rows):
                self._grow()

    def _grow(self) -> None:
        """Double the room; the table is filled anew, so that it stays at most half full."""
        kept = self._rows
        self._rows = np.zeros((2 * len(kept), kept.shape[1]), np.float32)
        self._places = np.full(2 * len(self._places), -1, np.int64)
        self._count = 0
        self._count = self._collect(kept, len(kept))

    def _collect(self, rows: Float32, limit: int) -> int:
        bits = (rows + np.float32(0.0)).view(np.uint32)
        return collect_distinct(rows, bits, limit, self._rows, self._count, self._places)

    def rows(self) -> Float32 | None:
        """Return the distinct rows, or None where there are more than the limit."""
        return None if self._count > self._limit else self._rows[: self._count].copy()


class StatisticsBuilder:
    """Gathers a field's statistics from its rows, read in order.

    Parameters
    ----------
    field : str
        Its name; keys the random draws and names the field in errors.
    n_rows, dim, n_codewords, seed : int
    weighted : bool
        Whether weights come with the rows.
    """

    def __init__(
        self, field: str, n_rows: int, dim: int, n_codewords: int, seed: int, *, weighted: bool
    ) -> None:
        self._field = field
        self._n_rows = n_rows
        self._minimum: Float32 = np.full(dim, np.inf, np.float32)
        self._maximum: Float32 = np.full(dim, -np.inf, np.float32)
        self._exponents: Counter[int] = Counter()
        self._distinct = _Distinct(n_codewords, dim)
        size = sample_size(n_rows, n_codewords)
        self._sampler = Sampler(size, dim, seed, field)
        # Weights that turn out to be all zero count as all one, which is known only at the end.
        self._unweighted = Sampler(size, dim, seed, field) if weighted else None

    def add(self, start: int, rows: Float32, weights: Float64 | None) -> None:
        """Take rows `start` and following, float32 (n, dim), and their float64 weights if any.

        Raises
        ------
        NonFiniteRowError
            A row holds NaN or infinity (also a float64 that float32 cannot hold).
        WeightError
            A weight is negative, not finite, or positive outside [2⁻⁴⁰⁰, 2⁴⁰⁰].
        """
        bad = column_ranges(rows, self._minimum, self._maximum)
        if bad >= 0:
            raise not_finite(self._field, start + bad)
        if weights is not None:
            self._add_weights(start, weights)
        if weights is not None and self._unweighted is not None and not self._exponents:
            self._unweighted.add(start, rows, None)
        elif self._unweighted is not None:
            self._unweighted = None
        self._distinct.add(rows)
        self._sampler.add(start, rows, weights)

    def _add_weights(self, start: int, weights: Float64) -> None:
        check_weights(self._field, start, weights)
        exponents, counts = np.unique(np.frexp(weights[weights > 0])[1], return_counts=True)
        self._exponents.update(dict(zip(exponents.tolist(), counts.tolist(), strict=True)))

    def statistics(self) -> Statistics:
        """Return the statistics of all rows taken."""
        exponents = dict(sorted(self._exponents.items()))
        weighted = bool(exponents)
        sampler = self._sampler
        if not weighted:
            exponents = unit_exponents(self._n_rows)
            sampler = self._unweighted or self._sampler
        return Statistics(
            self._n_rows,
            self._minimum,
            self._maximum,
            exponents,
            weighted,
            self._distinct.rows(),
            sampler.sample(),
        )


def check_weights(field: str, start: int, weights: Float64) -> None:
    """Raise WeightError unless weights, float64 (n,), of the rows from `start` on are allowed."""
    allowed = (weights == 0.0) | ((weights >= LEAST_WEIGHT) & (weights <= GREATEST_WEIGHT))
    bad = np.flatnonzero(~allowed)
    if len(bad):
        row = int(bad[0])
        raise WeightError(
            f'row {start + row} of field "{field}" has weight {float(weights[row])!r}; a '
            "weight is 0 or a finite number from 2^-400 to 2^400"
        )


def check_rows(field: str, start: int, rows: Float32) -> None:
    """Raise NonFiniteRowError unless rows, float32 (n, dim), from `start` on are finite."""
    bad = first_not_finite(rows)
    if bad >= 0:
        raise not_finite(field, start + bad)


def not_finite(field: str, row: int) -> NonFiniteRowError:
    """Return the error of a row that is not finite."""
    return NonFiniteRowError(
        f'row {row} of field "{field}" holds a value that is not finite in '
        "float32; every row must be finite: mend or drop that row"
    )


def unit_exponents(n_rows: int) -> dict[int, int]:
    """Return the exponents of n weights of 1 = 1/2·2¹."""
    return {1: n_rows}


def total_bits(exponents: dict[int, int]) -> int:
    """Return b, the least integer with 2^b ≥ P = Σ_e count_e·2^e ≥ Σ w; exact."""
    least = min(exponents)
    total = sum(count << (exponent - least) for exponent, count in exponents.items())
    return least + (total - 1).bit_length()


def fixed_point(statistics: Statistics) -> FixedPoint:
    """Return the exponents with which no total of the field can overflow (DEFINITIONS B)."""
    bits_of_total = total_bits(statistics.exponents)
    spread = bits_of_total - min(statistics.exponents)
    bits = WIDE_BITS if spread > NARROW_SPAN else NARROW_BITS
    reach = np.maximum(np.abs(statistics.minimum), np.abs(statistics.maximum))
    exponents = np.frexp(reach.astype(np.float64))[1].astype(np.int64)
    return FixedPoint(bits, bits - bits_of_total, exponents, statistics.weighted)
