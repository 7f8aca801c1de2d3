"""The records that travel between the parts: chunks, statistics, codebooks, partials, progress.

All are frozen; their arrays are not written to after they were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import LayoutError
from saec_gpu.layout import Layout, Segment, lay_out

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

LIMB_BITS = 32


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows read at once, of one field or of many.

    Attributes
    ----------
    layout : Layout
        Where each field's rows lie in the flat buffers.
    values : float32 (layout.n_values,)
        All rows, one after another. For a backend that takes rows as they are stored also float16,
        or uint16: the bits of bfloat16.
    weights : float64 (layout.n_rows,) or None
        How often each row is looked up; None where no field of the chunk is weighted.
    """

    layout: Layout
    values: NDArray[Any]
    weights: Float64 | None

    def rows(self, segment: Segment) -> NDArray[Any]:
        """Return the segment's rows as an (n_rows, dim) view of the values."""
        return self.values[segment.values].reshape(segment.n_rows, segment.dim)


def chunk_of(field: str, rows: Float32, weights: Float64 | None = None) -> Chunk:
    """Return a chunk of all `rows`, float32 (n, dim) in C order, of one field."""
    n_rows, dim = rows.shape
    return Chunk(lay_out([(field, 0, n_rows, dim)]), rows.reshape(-1), weights)


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows that seeding, repair and the stopping rule look at (DEFINITIONS C).

    Attributes
    ----------
    index : int64 (m,)
        Row numbers, ascending.
    rows : float32 (m, dim)
        These rows.
    priority : float64 (m,)
        q of each row.
    weights : float64 (m,)
        ω = max(w, τ): an unbiased stand-in for the rows that were not taken.
    """

    index: Int64
    rows: Float32
    priority: Float64
    weights: Float64


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """The exponents with which sums of one field are kept as integers (DEFINITIONS B).

    Attributes
    ----------
    bits : 62 or 94
        Room of every total; 94 takes two limbs.
    weight_shift : int
        t: a weight w adds rint(w 2^t).
    column_exponents : int64 (dim,)
        a_j: every |x_j| < 2^a_j.
    weighted : bool
        False: every weight is 1.
    """

    bits: int
    weight_shift: int
    column_exponents: Int64
    weighted: bool

    @property
    def wide(self) -> bool:
        """Return whether a sum takes two limbs."""
        return self.bits > 62

    @property
    def column_shifts(self) -> Int64:
        """Return s_j = t − a_j: a term is rint(w x_j 2^s_j)."""
        return self.weight_shift - self.column_exponents


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one reading of a field tells (DEFINITIONS B and C).

    Attributes
    ----------
    n_rows : int
    minimum, maximum : float32 (dim,)
        Per column.
    exponents : dict of int to int
        How often each binary exponent (as of frexp) of a positive weight occurs.
    weighted : bool
        False where no weights were given or all were zero.
    distinct : float32 (at most k, dim) or None
        The distinct rows by first row number; None where there are more than k.
    sample : Sample
    """

    n_rows: int
    minimum: Float32
    maximum: Float32
    exponents: dict[int, int]
    weighted: bool
    distinct: Float32 | None
    sample: Sample


@dataclass(frozen=True, eq=False)
class Codebook:
    """The codewords of one field.

    Attributes
    ----------
    codewords : float32 (k, dim)
    fixed_point : FixedPoint or None
        How its sums are scaled, if it is fitted.
    middle : float32 (dim,) or None
        Where most rows are. Filters see rows from there; it decides only how often they prove one.
        None: the median of the codewords.
    """

    codewords: Float32
    fixed_point: FixedPoint | None = None
    middle: Float32 | None = None

    def sum_factors(self) -> tuple[Float64, float]:
        """Return 2^s_j, float64 (dim,), and 2^t; zeros where there is no fixed point."""
        if self.fixed_point is None:
            return np.zeros(self.codewords.shape[1]), 0.0
        return (
            np.ldexp(1.0, self.fixed_point.column_shifts),
            math.ldexp(1.0, self.fixed_point.weight_shift),
        )


@dataclass(frozen=True, eq=False)
class Partial:
    """Sums over the rows seen so far, per codeword. Partials add, in any order, to the same bits.

    Attributes
    ----------
    sums : int64 (k, dim)
        Σ rint(w x_j 2^s_j); the high limbs where `sums_low` is given.
    weight_sums : int64 (k,)
        Σ rint(w 2^t); likewise.
    counts : int64 (k,)
        Rows.
    sums_low, weight_sums_low : int64, same shapes, or None
        Low limbs, 0 ≤ low < 2³²: the value is high·2³² + low.
    """

    sums: Int64
    weight_sums: Int64
    counts: Int64
    sums_low: Int64 | None = None
    weight_sums_low: Int64 | None = None

    def __add__(self, other: Partial) -> Partial:
        """Return the partial of the rows of both."""
        if self.sums.shape != other.sums.shape or (self.sums_low is None) != (
            other.sums_low is None
        ):
            raise LayoutError(
                f"partials of shapes {self.sums.shape} and {other.sums.shape}, or of one and two "
                "limbs, were added; both must belong to one fit of one field"
            )
        sums, sums_low = _add_limbs(self.sums, self.sums_low, other.sums, other.sums_low)
        weight_sums, weight_sums_low = _add_limbs(
            self.weight_sums, self.weight_sums_low, other.weight_sums, other.weight_sums_low
        )
        return Partial(sums, weight_sums, self.counts + other.counts, sums_low, weight_sums_low)


def _add_limbs(
    high: Int64, low: Int64 | None, other_high: Int64, other_low: Int64 | None
) -> tuple[Int64, Int64 | None]:
    if low is None or other_low is None:
        return high + other_high, None
    return carry(high + other_high, low + other_low)


def carry(high: Int64, low: Int64) -> tuple[Int64, Int64]:
    """Return the limbs with 0 ≤ low < 2³² and the same value high·2³² + low."""
    return high + (low >> LIMB_BITS), low & ((1 << LIMB_BITS) - 1)


@dataclass(frozen=True)
class Progress:
    """How far a long run is: handed to the caller's `progress` function, never printed.

    Attributes
    ----------
    stage : str
        "curves", "statistics", "seeding", "fit", "codes", "levels" or "write". In "levels" the
        codes of a field are brought into fewer bits, between the "codes" of two fields.
    done, total : int
        Rows (curves, seeding and write: fields) of this stage; of this pass in "fit", of this field
        in "levels".
    unit : str
        "rows" or "fields".
    iteration : int
        Pass of the fit, from 1; 0 outside it.
    active : int
        Fields that still move.
    """

    stage: Literal["curves", "statistics", "seeding", "fit", "codes", "levels", "write"]
    done: int
    total: int
    unit: Literal["rows", "fields"] = "rows"
    iteration: int = 0
    active: int = 0


ProgressFunction = Callable[[Progress], Any]
