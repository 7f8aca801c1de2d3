"""Rows in groups of equal look-ups, the most looked up first, without sorting a field.

Weights fall into bins of nearly equal ones: exponent and leading bits of the float64. Bins are in
order of weight, and the rows of one bin in order of row number. Whole numbers below 2^11 have bins
of their own, so the order among them is exact; of greater weights it is to a part in 1024.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from saec_gpu.clustering.statistics import GREATEST_WEIGHT, LEAST_WEIGHT
from saec_gpu.data import Float64, Int64

GROUPS = 10
UNSEEN = GROUPS  # the group of the rows that are never looked up

_LEADING_BITS = 10
_DROPPED_BITS = np.finfo(np.float64).nmant - _LEADING_BITS


def _bits(weights: Float64) -> Int64:
    # Positive floats are in the order of their bits.
    return np.ascontiguousarray(weights).view(np.int64) >> _DROPPED_BITS


_LOWEST = int(_bits(np.array([LEAST_WEIGHT]))[0])
_BINS = int(_bits(np.array([GREATEST_WEIGHT]))[0]) - _LOWEST + 1


class LookupGroups:
    """Ten groups of the rows of one field, each with about a tenth of its look-ups.

    A row belongs where the middle of its look-ups falls when the rows stand in order of weight,
    greatest first. A group is empty where one row has more than a tenth.

    Parameters
    ----------
    parts : iterable of float64 (n,)
        All weights of the field, part after part: 0, or from 2^-400 to 2^400.

    Attributes
    ----------
    total : float
        All look-ups.

    Notes
    -----
    Holds 13 MB, whatever the number of rows.

    Examples
    --------
    >>> weights = np.array([1.0, 50.0, 0.0, 30.0, 19.0])
    >>> LookupGroups([weights]).assign(weights).tolist()
    [9, 2, 10, 6, 8]
    """

    def __init__(self, parts: Iterable[Float64]) -> None:
        lookups = np.zeros(_BINS)
        for part in parts:
            seen = part[part > 0]
            lookups += np.bincount(_bits(seen) - _LOWEST, seen, _BINS)
        self.total = float(lookups.sum())
        # Look-ups of the rows that stand before the next one of each bin.
        self._before = np.cumsum(lookups[::-1])[::-1] - lookups

    def assign(self, weights: Float64) -> Int64:
        """Return the groups of the next rows: 0 (most looked up) to 9, or `UNSEEN`.

        Parameters
        ----------
        weights : float64 (n,)
            Of the rows that follow those of the last call, in the order of rows.

        Returns
        -------
        groups : int64 (n,)
        """
        groups = np.full(len(weights), UNSEEN)
        seen = np.flatnonzero(weights > 0)
        if not len(seen):
            return groups
        bins = _bits(weights[seen]) - _LOWEST
        order = np.argsort(bins, kind="stable")
        ordered = weights[seen[order]]
        until = np.cumsum(ordered)
        found, first, counts = np.unique(bins[order], return_index=True, return_counts=True)
        in_bin = until - np.repeat((until - ordered)[first], counts)
        middle = np.repeat(self._before[found], counts) + in_bin - ordered / 2
        tenth = np.floor(middle * (GROUPS / self.total))
        groups[seen[order]] = np.minimum(tenth, GROUPS - 1).astype(np.int64)
        self._before[found] += np.add.reduceat(ordered, first)
        return groups
