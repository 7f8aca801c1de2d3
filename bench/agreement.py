"""What is held against every contestant before it is timed: NumPy in float64, nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Float32

from .cases import CaseData

SCORES_AT_ONCE = 2**22  # 32 MiB of float64


def inertia(data: CaseData, codewords: Sequence[Float32], *, weighted: bool) -> float:
    """Return Σ w |x − c|² over all rows and the codeword nearest to each; w is 1 if not weighted.

    The nearest codeword is found by |c|² − 2xc about the codewords' mean, which may err between
    codewords that are equally near; the distance that is added is that of the difference itself.
    """
    total = 0.0
    for field, words in zip(data.fields, codewords, strict=True):
        centre = words.mean(axis=0, dtype=np.float64)
        centred = words - centre
        norms = np.einsum("kj,kj->k", centred, centred)
        step = max(1, SCORES_AT_ONCE // len(words))
        for start in range(0, len(field.rows), step):
            rows = field.rows[start : start + step] - centre
            nearest = np.argmin(norms - 2 * (rows @ centred.T), axis=1)
            rows -= centred[nearest]
            squares = np.einsum("nj,nj->n", rows, rows)
            weights = field.weights[start : start + step]
            total += float(squares @ weights if weighted else squares.sum())
    return total


def defined_codes(rows: Float32, codewords: Float32) -> NDArray[np.int64]:
    """Return the index of each row's nearest codeword, ties to the lower.

    Σ_j (x_j − c_j)² in float64, j ascending, every operation rounded on its own.
    """
    distances = np.zeros((len(rows), len(codewords)))
    for j in range(rows.shape[1]):
        difference = rows[:, j, None].astype(np.float64) - codewords[None, :, j]
        distances += difference * difference
    codes: NDArray[np.int64] = np.argmin(distances, axis=1)
    return codes
