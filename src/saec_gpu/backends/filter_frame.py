"""How filters see a field: scaled and centred, so that their rounding is small beside distances."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Float32

CENTRE_CODEWORDS = 256  # as many codewords place the median well; more only take time


def filter_frame(codewords: Float32, magnitude: int) -> tuple[np.float32, Float32]:
    """Return the scale and the centre with which a filter sees rows: x·scale − centre.

    The centre is the median, which far codewords do not move, and the scale a power of two. Both
    decide only how often a filter proves a row.

    Parameters
    ----------
    codewords : float32 (k, dim)
    magnitude : int
        Centred codewords are brought below 2^magnitude in every column, and near it.

    Returns
    -------
    scale : float32
    centre : float32 (dim,)
        Of scaled rows.
    """
    step = -(-len(codewords) // CENTRE_CODEWORDS)
    some = codewords[::step]
    middle = np.partition(some, len(some) // 2, axis=0)[len(some) // 2].astype(np.float64)
    above, below = codewords.max(axis=0) - middle, middle - codewords.min(axis=0)
    reach = max(above.max(), below.max()) or np.abs(middle).max()
    most = 127 - math.frexp(np.abs(middle).max())[1]  # the scaled centre stays in float32
    exponent = max(min(magnitude - math.frexp(reach)[1], most, 127), -126)
    scale = np.float32(np.ldexp(1.0, exponent))
    return scale, (middle * scale).astype(np.float32)


def repeated_codewords(codewords: Float32) -> NDArray[np.bool_]:
    """Return which codewords equal an earlier one, −0.0 = 0.0.

    These never win a tie. A filter leaves them out, or it could prove no row of either.
    """
    n_codewords, dim = codewords.shape
    values = np.ascontiguousarray(codewords + np.float32(0.0))
    _, first = np.unique(values.view(f"V{4 * dim}").reshape(-1), return_index=True)
    repeated = np.ones(n_codewords, bool)
    repeated[first] = False
    return repeated
