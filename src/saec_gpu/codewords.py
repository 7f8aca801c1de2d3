"""How codewords are stored: as float32, as float16, or as int8 with one scale a codeword.

Of a codeword c stored as int8, each operation rounded to nearest even unless said otherwise:

    scale = the least bfloat16 not below f64(max_j |c_j|) / 127    (the division in float64)
    q_j   = rint(f64(c_j) / f64(scale)), within −127 … 127
    value = f32(q_j) · f32(scale)

A codeword of zeros has scale 0 and q 0. A bfloat16 has the range of float32 and 8 significant bits,
q has 7, so the product is exact in float32, subnormal scales included, and everybody decodes the
same bits. Rounding the scale up keeps |q| ≤ 127; it makes the step of a codeword longer by 2⁻⁷ of
it at most, unless the codeword is as small as 2⁻¹¹⁹.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import ParamError
from saec_gpu.sources.stored import widened_bfloat16

CodewordsDtype = Literal["float32", "float16", "int8"]
CODEWORDS_DTYPES: tuple[CodewordsDtype, ...] = get_args(CodewordsDtype)

SCALE_BYTES = 2  # a bfloat16
_GREATEST = 127  # −128 is left out, so that a codeword and its negative are stored alike
_LOWER_BITS = 16  # a bfloat16 is the upper half of a float32


@dataclass(frozen=True, eq=False)
class StoredCodewords:
    """The codewords of one field as they are stored.

    Attributes
    ----------
    values : float32, float16 or int8 (k, dim)
    scales : uint16 (k,) or None
        The bits of a bfloat16 for each codeword of an int8 codebook; None for the other dtypes.
    """

    values: NDArray[Any]
    scales: NDArray[np.uint16] | None = None

    @property
    def dtype(self) -> str:
        """Name of the dtype in which the values are stored."""
        return str(self.values.dtype)

    def decoded(self) -> NDArray[np.float32]:
        """Return the codewords that they stand for, float32 (k, dim), exactly."""
        return decode(self.values, self.scales)


def codebook_bytes(n_codewords: int, dim: int, dtype: str) -> int:
    """Return the counted bytes of a codebook, scales included.

    >>> [codebook_bytes(256, 16, dtype) for dtype in CODEWORDS_DTYPES]
    [16384, 8192, 4608]
    """
    scale = SCALE_BYTES if dtype == "int8" else 0
    return n_codewords * (dim * np.dtype(dtype).itemsize + scale)


def store(codewords: NDArray[np.float32], dtype: str, *, field: str) -> StoredCodewords:
    """Return codewords as they are stored in a dtype.

    Parameters
    ----------
    codewords : float32 (k, dim)
        Finite.
    dtype : {"float32", "float16", "int8"}
    field : str
        Whose codewords they are, for messages.

    Raises
    ------
    ParamError
        A value is beyond float16. Names the first such codeword.

    Examples
    --------
    The scales are 127 / 127 = 1 and 1 / 127 rounded up, which is 2⁻⁷ · 1.015625:

    >>> stored = store(np.float32([[127, -31.4], [1, 0.25]]), "int8", field="x")
    >>> stored.values.tolist(), stored.decoded().tolist()
    ([[127, -31], [126, 32]], [[127.0, -31.0], [0.999755859375, 0.25390625]])
    """
    if dtype == "float32":
        return StoredCodewords(codewords)
    if dtype == "float16":
        with np.errstate(over="ignore"):  # an overflow becomes infinity, refused below
            halves = codewords.astype(np.float16)
        beyond = ~np.isfinite(halves).all(axis=1)
        if beyond.any():
            codeword = int(np.flatnonzero(beyond)[0])
            greatest = float(np.abs(codewords[codeword]).max())
            raise ParamError(
                f'codeword {codeword} of field "{field}" holds a value of magnitude {greatest!r}, '
                "which float16 does not hold (65504 at most); "
                'store codewords as "int8" or "float32"'
            )
        return StoredCodewords(halves)
    wide = codewords.astype(np.float64)
    scales = _bfloat16_from_above(np.abs(wide).max(axis=1, initial=0.0) / _GREATEST)
    # A codeword of zeros is divided by 1 instead of by its scale 0.
    divisor = np.where(scales == 0, 1.0, widened_bfloat16(scales).astype(np.float64))
    return StoredCodewords(np.rint(wide / divisor[:, None]).astype(np.int8), scales)


def decode(values: NDArray[Any], scales: NDArray[np.uint16] | None) -> NDArray[np.float32]:
    """Return the float32 codewords of stored ones, exactly.

    Parameters
    ----------
    values : float32, float16 or int8 (…, dim)
    scales : uint16 (…), bits of bfloat16, or None
        Of each codeword; only with int8.

    Returns
    -------
    codewords : float32 (…, dim)
        `values` itself if that is float32.
    """
    wide: NDArray[np.float32] = values.astype(np.float32, copy=False)
    return wide if scales is None else wide * widened_bfloat16(scales)[..., None]


def most_central(
    codewords: NDArray[np.float32], uses: NDArray[np.int64] | None = None
) -> int | None:
    """Return the codeword that stands for rows nobody has seen: the one nearest to their mean.

    Parameters
    ----------
    codewords : float32 (k, dim)
    uses : int64 (k,), optional
        Rows of each; 1 each if not given.

    Returns
    -------
    code : int or None
        None without codewords. m_j = f32(Σ_c f64(uses_c) f64(c_j) / Σ_c uses_c), sums ascending;
        then the least squared distance to m, ties to the lower index (DESIGN.md 1 and 2).

    Examples
    --------
    >>> most_central(np.float32([[0], [2], [10]]), np.array([7, 2, 1]))
    1
    """
    if not len(codewords):
        return None
    rows = np.ones(len(codewords)) if uses is None else uses.astype(np.float64)
    total = np.cumsum(rows)[-1]
    mean = np.array(
        [np.cumsum(rows * column.astype(np.float64))[-1] / total for column in codewords.T]
    ).astype(np.float32)
    distances = np.zeros(len(codewords))
    for column, middle in zip(codewords.T, mean.astype(np.float64), strict=True):
        apart = column.astype(np.float64) - middle
        distances += apart * apart
    return int(distances.argmin())


def _bfloat16_from_above(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Return the bits of the least bfloat16 that is not below each value ≥ 0."""
    single = values.astype(np.float32)
    single = np.where(single < values, np.nextafter(single, np.float32(np.inf)), single)
    # Numbers from 0 on are ordered as their bits are: whatever is cut off below adds one above.
    upper = (single.view(np.uint32) + np.uint32((1 << _LOWER_BITS) - 1)) >> _LOWER_BITS
    return upper.astype(np.uint16)
