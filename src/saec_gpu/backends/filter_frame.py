"""How filters see a field: scaled and centred, so that their rounding is small beside distances."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Codebook, Float32

CENTRE_CODEWORDS = 256  # as many codewords place the median well; more only take time


def filter_frame(codebook: Codebook, magnitude: int) -> tuple[np.float32, Float32]:
    """Return the scale and the centre with which a filter sees rows: x·scale − centre.

    The centre is the codebook's middle, else the median of its codewords, which far ones do not
    move; the scale is a power of two. Both decide only how often a filter proves a row.

    Parameters
    ----------
    codebook : Codebook
    magnitude : int
        Centred codewords are brought below 2^magnitude in every column, and near it.

    Returns
    -------
    scale : float32
    centre : float32 (dim,)
        Of scaled rows.
    """
    codewords = codebook.codewords
    found = codebook.middle
    if found is None:
        found = median(codewords[:: -(-len(codewords) // CENTRE_CODEWORDS)])
    middle = found.astype(np.float64)
    above, below = codewords.max(axis=0) - middle, middle - codewords.min(axis=0)
    reach = max(above.max(), below.max()) or np.abs(middle).max()
    most = 127 - math.frexp(np.abs(middle).max())[1]  # the scaled centre stays in float32
    exponent = max(min(magnitude - math.frexp(reach)[1], most, 127), -126)
    scale = np.float32(np.ldexp(1.0, exponent))
    return scale, (middle * scale).astype(np.float32)


def median(rows: Float32) -> Float32:
    """Return the median of each column, the upper one of two."""
    half = len(rows) // 2
    middle: Float32 = np.partition(rows, half, axis=0)[half]
    return middle


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
