"""Rows made on demand: tables of any size without storage, the same bits in any order of reading.

Every number follows from (seed, field, row, column) by counters, so that any range of rows can be
made alone. All draws are outputs of SplitMix64: draw(key, i) is the i-th one, from 0, of the state
`key`,

    x = key + (i + 1) · 0x9E3779B97F4A7C15
    x = (x ^ x >> 30) · 0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) · 0x94D049BB133111EB
    draw = x ^ x >> 31                                          all modulo 2^64

(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014,
doi 10.1145/2660193.2660195; the finalizer and the constants are those of their reference code.) For
the field of number f (from 0), its row i and column j,

    key   = draw(seed, f)
    parts(b) = sum of the four 16-bit parts of b, less their mean 131070
    centre(c, j) = parts(draw(draw(draw(key, 0), c), j))
    r     = draw(draw(key, 1), i)
    u     = r >> 32
    c     = (((u·u >> 32)·u >> 32) · components) >> 32
    value = (5·centre(c, j) + 3·parts(draw(r, j))) · 2^-20      exact in float32
    b     = draw(draw(key, 2), i)
    rank  = 1 + n_rows · ((b >> 32) · 2^-32)
    most  = n_lookups / ln(n_rows + 1)
    count = floor(most / rank + (b mod 2^32) · 2^-32)           in float64, one by one

The sums of four are nearly normal: excess kurtosis -0.3. Centres have standard deviation 0.180 a
column, rows 0.108 around their centre. c is floor(components · u³) for u in [0, 1), so the first k
centres have a share of (k / components)^(1/3) of the rows: Zipf's law with exponent 2/3, and no
power function of some library decides a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Float32, Float64
from saec_gpu.errors import ParamError
from saec_gpu.sources.generated_loops import fill_centres, fill_rows, fill_weights
from saec_gpu.sources.tables import TableSource
from saec_gpu.sources.weights import WeightSource
from saec_gpu.synthetic import mixture_components, recommender_sizes

RECIPE = "SplitMix64 mixture 1"  # the number changes when the same parameters give other bits
SEED_LIMIT = 2**64
ROW_LIMIT = 2**63  # of all fields together: row numbers are int64
# Decimal's logarithm is rounded correctly, so that it does not depend on a library of the machine.
LOGARITHMS = Context(prec=28)


@dataclass(frozen=True, eq=False)
class _Generated:
    """What the arrays of a field follow from, beside their shape."""

    seed: int
    field: int

    @property
    def origin(self) -> None:
        """Return None: there is no file."""
        return None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Return what stands for the content in a fingerprint."""
        return {"recipe": RECIPE, "seed": self.seed, "field": self.field}

    @property
    def counters(self) -> tuple[np.uint64, np.uint64]:
        """Return seed and field as the loops take them."""
        return np.uint64(self.seed), np.uint64(self.field)


@dataclass(frozen=True, eq=False)
class _Rows(_Generated):
    """The rows of one field, a StoredArray; `centres` is what `fill_centres` writes."""

    shape: tuple[int, int]
    centres: NDArray[np.int32]
    dtype: str = "float32"

    def read(self, start: int, out: Float32) -> None:
        """Fill out with the rows start .. start + len(out)."""
        fill_rows(*self.counters, start, self.centres, out)


@dataclass(frozen=True, eq=False)
class _Weights(_Generated):
    """The lookups of the rows of one field, a StoredArray."""

    shape: tuple[int]
    n_lookups: int
    dtype: str = "float64"

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Return what stands for the content in a fingerprint."""
        return {**super().recipe, "n_lookups": self.n_lookups}

    @property
    def most(self) -> float:
        """Return the expected lookups of rank 1: n_lookups / ln(n_rows + 1)."""
        (n_rows,) = self.shape
        lookups, logarithm = Decimal(self.n_lookups), LOGARITHMS.ln(n_rows + 1)
        return float(LOGARITHMS.divide(lookups, logarithm))

    def read(self, start: int, out: Float64) -> None:
        """Fill out with the lookups of the rows start .. start + len(out)."""
        fill_weights(*self.counters, start, float(self.shape[0]), self.most, out)


def generated_tables(
    n_rows: int = 10**9, dim: int = 16, n_fields: int = 26, seed: int = 0
) -> TableSource:
    """Return embedding tables whose rows are made when they are read.

    Fields have the names and proportions of `recommender_sizes`; each is a mixture of
    `mixture_components` clusters, whose shares follow Zipf's law with exponent 2/3.

    Parameters
    ----------
    n_rows : int
        Rows of all fields together, up to rounding, in [1, 2**63).
    dim, n_fields : int
        Sizes, each at least 1.
    seed : int
        What every value follows from, in [0, 2**64).

    Returns
    -------
    tables : TableSource
        float32; all values are multiples of 2**-20 in (-1, 1).

    Raises
    ------
    ParamError
        A parameter is outside its range.

    Notes
    -----
    Holds the centres: at most 8 KiB a field and column. A row of 16 takes about 9 ns on one core
    with AVX-512, twice the time of copying it. The formulas stand at the top of the module.

    Examples
    --------
    >>> import numpy
    >>> tables = generated_tables(10**9, dim=2)
    >>> rows = numpy.empty((2, 2), numpy.float32)
    >>> tables.read("C03", 300_000_000, rows)
    >>> rows.tolist()
    [[0.0687255859375, -0.0430908203125], [0.4340963363647461, -0.25171566009521484]]
    """
    if dim < 1:
        raise ParamError(f"dim is {dim}; give at least 1")
    sizes, _ = _sizes(n_rows, n_fields, seed)
    arrays = {}
    for field, (name, rows) in enumerate(sizes.items()):
        centres = np.empty((mixture_components(rows), dim), np.int32)
        fill_centres(np.uint64(seed), np.uint64(field), centres)
        arrays[name] = _Rows(seed, field, (rows, dim), centres)
    path = f"generated_tables({n_rows}, dim={dim}, n_fields={n_fields}, seed={seed})"
    return TableSource(arrays, path=path)


def generated_weights(n_rows: int = 10**9, n_fields: int = 26, seed: int = 0) -> WeightSource:
    """Return the lookups of the rows of `generated_tables`, made when they are read.

    Every field has the same expected total, Criteo's samples in proportion to `n_rows`. A row draws
    its rank among the rows of its field, evenly and by itself, so that popular rows lie anywhere
    and several may have one rank; its expected lookups are most / rank, Zipf's law with exponent 1.
    Rounding is up or down at random, so that rare rows are looked up once or never.

    Parameters
    ----------
    n_rows, n_fields, seed : int
        As of the tables.

    Returns
    -------
    weights : WeightSource
        float64, whole numbers.

    Raises
    ------
    ParamError
        A parameter is outside its range.

    Examples
    --------
    >>> import numpy
    >>> weights = generated_weights(10**9)
    >>> counts = numpy.empty(8)
    >>> weights.read("C03", 300_000_000, counts)
    >>> counts.tolist()
    [0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0]
    """
    sizes, n_lookups = _sizes(n_rows, n_fields, seed)
    return WeightSource(
        {
            name: _Weights(seed, field, (rows,), n_lookups)
            for field, (name, rows) in enumerate(sizes.items())
        }
    )


def _sizes(n_rows: int, n_fields: int, seed: int) -> tuple[dict[str, int], int]:
    """Return `recommender_sizes` once the parameters are checked."""
    for name, value, least, limit in (
        ("n_rows", n_rows, 1, ROW_LIMIT),
        ("seed", seed, 0, SEED_LIMIT),
    ):
        if not least <= value < limit:
            raise ParamError(f"{name} is {value}; give a whole number in [{least}, {limit})")
    return recommender_sizes(n_rows, n_fields)
