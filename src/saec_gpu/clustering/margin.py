"""The rule `margin`: a row keeps its last code where no other codeword is much nearer.

Of a row x with a code from before, l, and the nearest codeword b of now (DESIGN.md 2):

    the code is l where dist(x, c_l) ≤ (1 + m) · dist(x, c_b), else b

in float64, the sum and the product each rounded on their own. So no row is served with more than
1 + m times its least squared distance, and neither is the sum over all rows. A row without a code
from before gets b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from saec_gpu.backends.cpu_filter import exact_distance
from saec_gpu.backends.protocol import Assignment
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.compiled import compiled
from saec_gpu.data import Float32, Float64, Int64

NO_CODE = -1


@dataclass(frozen=True, eq=False)
class LastField:
    """What an update knows of a field from before.

    Attributes
    ----------
    codewords : float32 (k, dim)
        As they were served; the first k codewords now are these ones, moved.
    codes_between : function
        Given start and stop, the codes that these rows of now had, int64; `NO_CODE`: a new row.
    n_rows : int
        Rows that there were.
    sse : float or None
        Their sum of squared distances; None where it is not known.
    margin : float
    """

    codewords: Float32
    codes_between: Callable[[int, int], Int64]
    n_rows: int
    sse: float | None
    margin: float


class Changes:
    """Decides the codes of a field by the rule, row by row in order, and tells what changed."""

    def __init__(self, last: LastField, codewords: Float32, *, weighted: bool) -> None:
        self._last = last
        self._codewords = codewords
        self._weighted = weighted
        self._kept = self._changed = 0
        self._left, self._now = ErrorSums(), ErrorSums()

    def decide(
        self, start: int, rows: Float32, weights: Float64 | None, nearest: Assignment
    ) -> Assignment:
        """Return codes and distances of the rows from `start` on, given the nearest codewords."""
        last = self._last.codes_between(start, start + len(rows))
        assert nearest.distances is not None
        codes, distances = nearest.codes.copy(), nearest.distances.copy()
        keep_codes(rows, last, self._codewords, 1.0 + self._last.margin, codes, distances)
        had = last != NO_CODE
        self._kept += int(had.sum())
        self._changed += int((codes[had] != last[had]).sum())
        left = np.zeros(len(rows))
        distances_of(rows, last, self._last.codewords, left)
        own = weights[had] if self._weighted and weights is not None else None
        self._left.add(left[had], own)
        self._now.add(distances[had], own)
        return Assignment(codes, distances)

    def record(self, n_rows: int, sse: float) -> dict[str, Any]:
        """Return what the manifest says of the change.

        Returns
        -------
        record : dict
            rows_added, rows_removed; codes_changed, of the rows that stayed, and `churn`, their
            share (None without such rows); `drift`, mean squared distance of a row relative to the
            one before (None where that is 0 or not known); `staleness`, weighted error of the rows
            that stayed if they were served as before, relative to the one now (None if that is 0).
        """
        last, now = self._last, self._now.weighted_sse
        before = None if not last.sse else last.sse / last.n_rows
        return {
            "rule": "margin",
            "margin": last.margin,
            "rows_added": n_rows - self._kept,
            "rows_removed": last.n_rows - self._kept,
            "codes_changed": self._changed,
            "churn": self._changed / self._kept if self._kept else None,
            "drift": None if before is None else sse / n_rows / before,
            "staleness": self._left.weighted_sse / now if now else None,
        }


@compiled
def keep_codes(
    rows: Any,  # IN  float32 (n, dim)
    last: Any,  # IN  int64 (n): codes from before, NO_CODE for none
    codewords: Any,  # IN  float32 (k, dim)
    factor: float,  # 1 + margin
    codes: Any,  # INOUT uint32 (n): nearest, then by the rule
    distances: Any,  # INOUT float64 (n): to the codeword of the code
) -> None:
    """Give rows back their last code where its codeword is not much farther than the nearest."""
    n_rows, dim = rows.shape
    values, words = rows.reshape(-1), codewords.reshape(-1)
    for i in range(n_rows):
        code = last[i]
        if code >= 0 and code != codes[i]:
            distance = exact_distance(values, i * dim, words, code * dim, dim)
            if distance <= factor * distances[i]:
                codes[i] = code
                distances[i] = distance


@compiled
def distances_of(
    rows: Any,  # IN  float32 (n, dim)
    codes: Any,  # IN  int64 (n); below 0: none
    codewords: Any,  # IN  float32 (k, dim)
    distances: Any,  # OUT float64 (n); untouched without a code
) -> None:
    """Write the distance of each row to the codeword of its code, as DESIGN.md 1 defines it."""
    n_rows, dim = rows.shape
    values, words = rows.reshape(-1), codewords.reshape(-1)
    for i in range(n_rows):
        code = codes[i]
        if code >= 0:
            distances[i] = exact_distance(values, i * dim, words, code * dim, dim)
