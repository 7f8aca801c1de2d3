"""How many rows the CUDA filter proves: the filter in NumPy, at full size, without a GPU.

    python -m saec_gpu.bench.filter_model --tables FOLDER --rows 20000 --append records.jsonl

The model follows kernels/filter.cuh and looped.cuh number by number: chunks of 8 codewords ordered
by norm, float16 products, a lower bound for each chunk, tags, best and second best, the winner
within its chunk, and the bound of kernels/BOUND.md. What it does not follow is the order in which
the matrix unit adds up products, which the bound does not depend on, and the flush of subnormal
float32 to zero.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends import open_backend
from saec_gpu.backends.cuda_plan import (
    FOLDED_DIM,
    GROUP,
    MAGNITUDE,
    STEP,
    WINDOW_GROUPS,
    dim_class,
)
from saec_gpu.backends.filter_frame import filter_frame, median, repeated_codewords
from saec_gpu.clustering.lloyd import FieldFit, fit
from saec_gpu.clustering.seeding import seed_codewords
from saec_gpu.clustering.statistics import StatisticsBuilder, fixed_point
from saec_gpu.data import Codebook, Float32, Float64, chunk_of
from saec_gpu.errors import ParamError, SaecError
from saec_gpu.sources import open_tables

from .cases import CASES, load_case, write_case
from .records import SCHEMA, append_record, circumstances

Int32 = NDArray[np.int32]
Codes = NDArray[np.uint32]
# units a column, and units besides
Units = tuple[float, float]
# start (n, k) or (k), rows (n, dim), codewords (k, dim): start + rows · codewords, float32 (n, k)
Products = Callable[[Float32, Float32, Float32], Float32]

# bound.cuh, fields.cuh
UNIT = np.float32(2.0**-24)
SLACK = np.float32(1 + 2.0**-12)
TWICE = np.float32(2) * SLACK
NORM_FLOOR = np.float32(2.0**-56)
WORST = np.float32(3e38)
CHUNK, LANES = 8, 4
EARLIER = WINDOW_GROUPS
TAG_MASK = 2 * WINDOW_GROUPS - 1
UNPROVED = np.uint32(0xFFFFFFFF)

PAIRS_AT_ONCE = 2**22  # scores that a block of rows has at most: 16 MiB
SEED = 26
DRAWN_ROWS = 100_000
MOST_FIT_ROWS = 2**18
FIT_ITERATIONS = 3
LEAST_TABLE_ROWS, ROWS_A_CODEWORD, MOST_CODEWORDS = 2000, 16, 1024


@dataclass(frozen=True)
class Bound:
    """The constants of the bound that a measurement may vary; as they are, those of the kernels.

    Attributes
    ----------
    chained, stepwise, winner : (float, float)
        The kappas of a key that is one sum from its start, of one that is a sum of steps, and of
        one that the vector unit adds up: units of 2⁻²³ a column, and besides.
    stepwise_key : float
        Units of n² for a sum of steps.
    subnormals : bool
        Whether the bound knows what the matrix unit cuts off beside a subnormal float16.
    share : float
        What is kept of the whole bound: 0 takes any lead of a key for a proof.
    """

    chained: Units = (3, 72)
    stepwise: Units = (1 / 32, 36)
    stepwise_key: float = 4
    winner: Units = (1 / 8, 8)
    subnormals: bool = True
    share: float = 1.0

    def kappa(self, units: Units, dim: int) -> np.float32:
        """Return one of the kappas, a share of 2(N + ρ)n."""
        a_column, besides = units
        return np.float32(self.share * (a_column * _columns(dim) + besides) * 2.0**-23)

    def cut(self, dim: int, exponent: int) -> float:
        """Return columns · 2^exponent, what subnormal operands may add; 0 without them."""
        return self.share * self.subnormals * _columns(dim) * 2.0**exponent

    def floor(self, slant: Float32, dim: int) -> Float32:
        """Return what the definition's own roundings may add, and what subnormal operands do."""
        rounding = np.float32(self.share * (dim + 4) * 2.0**-54) * slant * slant
        return rounding + np.float32(self.cut(dim, -49))


AS_IT_IS = Bound()


def _columns(dim: int) -> int:
    return FOLDED_DIM if dim <= FOLDED_DIM else -(-dim // STEP) * STEP


@dataclass(frozen=True, eq=False)
class PackedCodebook:
    """A codebook as the filter reads it (pack_codebook.cu), places before chunks.

    Attributes
    ----------
    bound : Bound
    scale : float32
    centre : float32 (dim,)
        Of scaled rows.
    order : int32 (8, chunks)
        Codeword at each place, −1 for none.
    high, low : float32 (8, chunks, dim)
        −2 ê and −2 times the float16 of what that leaves.
    keys : float32 (8, chunks)
        |e|² − lowered · n².
    norms, roundings, roundings_low : float32 (chunks,)
        n, and δ for one half and for both.
    """

    bound: Bound
    scale: np.float32
    centre: Float32
    order: Int32
    high: Float32
    low: Float32
    keys: Float32
    norms: Float32
    roundings: Float32
    roundings_low: Float32

    @property
    def dim(self) -> int:
        """Return the number of columns."""
        return len(self.centre)

    @property
    def n_chunks(self) -> int:
        """Return the number of chunks, a multiple of 4."""
        return len(self.norms)

    @property
    def lowered(self) -> np.float32:
        """Return the share of n² by which keys start lower: kappa of a key that is one sum."""
        return self.bound.kappa(self.bound.chained, self.dim)

    @property
    def winner(self) -> np.float32:
        """Return kappa of a key that the vector unit adds up."""
        return self.bound.kappa(self.bound.winner, self.dim)

    def rounding(self, halves: bool) -> Float32:
        """Return δ of each chunk for one half or for both."""
        return self.roundings_low if halves else self.roundings


def pack_codebook(
    codewords: Float32, bound: Bound = AS_IT_IS, middle: Float32 | None = None
) -> PackedCodebook:
    """Return codewords as the filter reads them.

    Parameters
    ----------
    codewords : float32 (k, dim)
    bound : Bound
    middle : float32 (dim,), optional
        What rows are centred on; without it what the backend takes, the median of the codewords.
    """
    dim = codewords.shape[1]
    scale, centre = _frame(codewords, MAGNITUDE, middle)
    order = _order(codewords, middle)
    real = order >= 0
    e = np.where(real[:, :, None], _framed(codewords[order], scale, centre), np.float32(0))
    high = _half(e)
    left = e - high
    low = _half(left)
    squares, low_norms = _squares(e), np.sqrt(_squares(low))
    norms = np.sqrt(np.maximum(np.maximum(squares, _squares(high)), _squares(high + low)))
    centring = bound.share * (2.0**-24 * norms + 2.0**-50) + bound.cut(dim, -36)
    rounding = bound.share * np.sqrt(_squares(left)) + centring
    rest = bound.share * (np.sqrt(_squares(left - low)) + 2.0**-11 * low_norms) + centring
    reach = np.where(real, norms, 0.0).max(axis=0)
    lowered = float(bound.kappa(bound.chained, dim))
    keys = (squares - lowered * reach * reach).astype(np.float32)
    return PackedCodebook(
        bound,
        scale,
        centre,
        order,
        np.float32(-2) * high,
        np.float32(-2) * low,
        np.where(real, keys, WORST),
        _rounded_up(reach),
        _rounded_up(np.where(real, rounding, 0.0).max(axis=0)),
        _rounded_up(np.where(real, rest, 0.0).max(axis=0)),
    )


def _frame(
    codewords: Float32, magnitude: int, middle: Float32 | None
) -> tuple[np.float32, Float32]:
    return filter_frame(Codebook(codewords, middle=middle), magnitude)


def _order(codewords: Float32, middle: Float32 | None) -> Int32:
    """Return the codeword at each place, −1 for none: by norm, repeated ones left out."""
    scale, centre = _frame(codewords, 0, middle)
    centred = codewords.astype(np.float64) * scale - centre
    by_norm = np.argsort(np.einsum("kj,kj->k", centred, centred), kind="stable")
    by_norm = by_norm[~repeated_codewords(codewords)[by_norm]]
    order = np.full(-(-len(by_norm) // GROUP) * GROUP, -1, np.int32)
    order[: len(by_norm)] = by_norm
    return np.ascontiguousarray(order.reshape(-1, CHUNK).T)


def _framed(values: Float32, scale: np.float32, centre: Float32) -> Float32:
    """Return fma(values, scale, −centre): of two float32 float64 keeps enough to round once."""
    exact = values.astype(np.float64) * np.float64(scale) - centre
    return exact.astype(np.float32)


def _half(values: Float32) -> Float32:
    return values.astype(np.float16).astype(np.float32)


def _squares(values: Float32) -> Float64:
    wide = values.astype(np.float64)
    squares: Float64 = np.einsum("...j,...j->...", wide, wide)
    return squares


def _rounded_up(values: Float64) -> Float32:
    near = values.astype(np.float32)
    return np.where(near < values, np.nextafter(near, np.float32(np.inf)), near)


def _fma(a: Float32 | np.float32, b: Float32, c: Float32) -> Float32:
    exact: Float64 = a.astype(np.float64) * b + c
    return exact.astype(np.float32)


def plain_products(start: Float32, rows: Float32, codewords: Float32) -> Float32:
    """Return start + rows · codewords in float32, added up as the installed BLAS does."""
    return start + rows @ codewords.T


@dataclass(frozen=True, eq=False)
class FramedRows:
    """Rows as a filter sees them.

    Attributes
    ----------
    halves : bool
        Whether the filter multiplies both halves.
    stepwise : bool
        Whether each step of 16 columns is added up by itself, and no bound holds a tag, as in
        looped.cuh.
    kappa : float32
        Of keys that are added up so.
    high, low : float32 (n, dim)
        float16 of the row, and of what that leaves; 0 without `halves`.
    slope, slant : float32 (n,)
        A chunk's bound is slope · n + slant · δ.
    """

    halves: bool
    stepwise: bool
    kappa: np.float32
    high: Float32
    low: Float32
    slope: Float32
    slant: Float32


def frame_rows(rows: Float32, packed: PackedCodebook, *, finer: bool) -> FramedRows:
    """Return float32 (n, dim) rows scaled, centred and split, with their bounds.

    Parameters
    ----------
    rows : float32 (n, dim)
    packed : PackedCodebook
    finer : bool
        For the filter of recheck.cu.
    """
    halves = finer or packed.dim <= FOLDED_DIM
    stepwise = finer or dim_class(packed.dim).looped
    y = _framed(rows, packed.scale, packed.centre)
    high = _half(y)
    left = y - high
    low = _half(left) if halves else np.zeros_like(left)
    norm: Float32 = _root(_squares(y)) * SLACK + NORM_FLOOR
    residual: Float32 = _root(_squares(left - low)) * SLACK
    bound = packed.bound
    kappa = bound.kappa(bound.stepwise if stepwise else bound.chained, packed.dim)
    rounding: Float32 = np.float32(bound.share) * (residual + UNIT * norm + NORM_FLOOR)
    slope: Float32 = rounding + kappa * (norm + rounding)
    slope *= TWICE
    slope += np.float32(bound.cut(packed.dim, -34))
    return FramedRows(halves, stepwise, kappa, high, low, slope, TWICE * norm)


def _root(squares: Float64) -> Float32:
    root: Float32 = np.sqrt(squares.astype(np.float32))
    return root


def row_keys(
    framed: FramedRows, packed: PackedCodebook, products: Products = plain_products
) -> Float32:
    """Return the key of every codeword, float32 (n, 8, chunks)."""
    high, low = packed.high.reshape(-1, packed.dim), packed.low.reshape(-1, packed.dim)
    start = packed.keys.reshape(-1)
    zeros = np.zeros_like(start)

    def small(columns: slice) -> Float32:
        """Return the products with a low half, which are added up first."""
        if not framed.halves:
            return zeros
        one = products(zeros, framed.high[:, columns], low[:, columns])
        return products(one, framed.low[:, columns], high[:, columns])

    def added(start: Float32, columns: slice) -> Float32:
        return products(start, framed.high[:, columns], high[:, columns])

    if framed.stepwise:
        keys = np.zeros((len(framed.high), len(start)), np.float32)
        for first in range(0, packed.dim, STEP):
            step = slice(first, first + STEP)
            keys += added(small(step), step)
        keys += start
    else:
        whole = slice(None)
        keys = added(small(whole) + start, whole)
    return keys.reshape(-1, CHUNK, packed.n_chunks)


def lower_bounds(framed: FramedRows, packed: PackedCodebook, keys: Float32) -> Float32:
    """Return for every chunk what no T of its codewords is below, float32 (n, chunks)."""
    bound, slope = packed.bound, -framed.slope[:, None]
    if framed.stepwise:
        start = np.float32(bound.share * bound.stepwise_key * 2.0**-23)
        slope = _fma(packed.lowered - start, packed.norms, slope)
    bounds = _fma(slope, packed.norms, np.fmin.reduce(keys, axis=1))
    bounds = _fma(-framed.slant[:, None], packed.rounding(framed.halves), bounds)
    if framed.stepwise:
        return bounds
    return _tagged(bounds, np.arange(packed.n_chunks, dtype=np.uint32) // LANES % WINDOW_GROUPS)


def _tagged(keys: Float32, tag: int | NDArray[np.uint32]) -> Float32:
    bits = np.ascontiguousarray(keys).view(np.uint32)
    return ((bits & np.uint32(~TAG_MASK & 0xFFFFFFFF)) | np.uint32(tag)).view(np.float32)


def best_two(bounds: Float32, *, tags: bool) -> tuple[NDArray[np.intp], Float32]:
    """Return the chunk of each row's least bound, and the least of the others.

    Parameters
    ----------
    bounds : float32 (n, chunks)
    tags : bool
        Whether bounds hold tags, as they do in windows of 32 groups.
    """
    n_rows, n_chunks = bounds.shape
    by_lane = bounds.reshape(n_rows, -1, LANES)
    best = np.full((n_rows, 1, LANES), _tagged(np.full(1, WORST), EARLIER))
    second = np.full((n_rows, LANES), WORST)
    group = np.zeros((n_rows, LANES), np.intp)
    for first in range(0, n_chunks // LANES, WINDOW_GROUPS):
        seen = np.concatenate([best, by_lane[:, first : first + WINDOW_GROUPS]], axis=1)
        nearest = seen.argmin(axis=1)
        group = np.where(nearest > 0, first + nearest - 1, group)
        two = np.partition(seen, 1, axis=1)
        best, second = two[:, :1], np.fmin(second, two[:, 1])
        if tags:
            best = _tagged(best, EARLIER)
    # the four lanes of a quad; a row whose bounds are no numbers gets any chunk
    lanes = best[:, 0]
    chunk = np.where(
        lanes == lanes.min(axis=1, keepdims=True), group * LANES + np.arange(LANES), n_chunks
    ).min(axis=1)
    others = np.partition(np.concatenate([lanes, second], axis=1), 1, axis=1)[:, 1]
    return np.minimum(chunk, n_chunks - 1), others


def decide(
    framed: FramedRows, packed: PackedCodebook, chunk: NDArray[np.intp], others: Float32
) -> Codes:
    """Return the codes of the rows, UNPROVED where two codewords are too close.

    Parameters
    ----------
    framed : FramedRows
    packed : PackedCodebook
    chunk : int (n,)
        The best chunk of each row.
    others : float32 (n,)
        The least bound of the other chunks.
    """
    y, e = framed.high, packed.high[:, chunk]
    if framed.halves:
        y, e = y + framed.low, e + packed.low[:, chunk]
    keys = (_added_by_lanes(y, e) + packed.keys[:, chunk]).T
    place = keys.argmin(axis=1)
    two = np.partition(keys, 1, axis=1)
    norm = packed.norms[chunk]
    slope = framed.slope - (framed.kappa - packed.winner) * framed.slant
    rest = packed.winner * norm * norm
    reach = SLACK * (slope * norm + framed.slant * packed.rounding(framed.halves)[chunk] + rest)
    upper = two[:, 0] + reach + TWICE * packed.bound.floor(framed.slant, packed.dim)
    above_others = upper + SLACK * (packed.lowered * norm * norm)
    proved = (above_others < others) & (upper < two[:, 1] - reach)
    return np.where(proved, packed.order[place, chunk].astype(np.uint32), UNPROVED)


def _added_by_lanes(y: Float32, e: Float32) -> Float32:
    """Return y · e as code_of adds it up: in four lanes, each of every fourth pair of columns.

    Parameters
    ----------
    y : float32 (n, dim)
    e : float32 (8, n, dim)
    """
    sums = np.zeros((*e.shape[:2], LANES), np.float32)
    dim = y.shape[1]
    for first in range(0, dim, 2 * LANES):
        for column in (first, first + 1):
            own = slice(column, min(column + 2 * LANES, dim), 2)
            lanes = slice(0, y[:, own].shape[1])
            sums[..., lanes] = _fma(y[:, own], e[..., own], sums[..., lanes])
    pairs = sums[..., :2] + sums[..., 2:]
    whole: Float32 = pairs[..., 0] + pairs[..., 1]
    return whole


def filter_codes(
    rows: Float32,
    packed: PackedCodebook,
    *,
    finer: bool = False,
    products: Products = plain_products,
) -> tuple[Codes, Codes]:
    """Return what a filter makes of rows.

    Parameters
    ----------
    rows : float32 (n, dim)
    packed : PackedCodebook
    finer : bool
        The filter of recheck.cu, with both halves, instead of that of assign_update.cu. Up to 8
        columns there is only one, with both halves.
    products : function
        How keys are accumulated.

    Returns
    -------
    codes : uint32 (n,)
        Codes that are proved, UNPROVED elsewhere.
    unverified : uint32 (n,)
        The codeword of each row's least key.
    """
    codes, unverified = np.empty(len(rows), np.uint32), np.empty(len(rows), np.uint32)
    lowered = packed.lowered * packed.norms * packed.norms
    step = max(1, PAIRS_AT_ONCE // packed.order.size)
    # what leaves float32 or float16 becomes infinite or NaN, and proves nothing
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            framed = frame_rows(rows[part], packed, finer=finer)
            keys = row_keys(framed, packed, products)
            bounds = lower_bounds(framed, packed, keys)
            two = best_two(bounds, tags=not framed.stepwise)
            codes[part] = decide(framed, packed, *two)
            places = (keys + lowered).reshape(len(keys), -1).argmin(axis=1)
            unverified[part] = packed.order.reshape(-1)[places]
    return codes, unverified


@dataclass(frozen=True)
class Setting:
    """What a measurement varies.

    Attributes
    ----------
    first, finer : Bound
        Of the filter of assign_update.cu, and of that of recheck.cu.
    centred_on_codewords : bool
        The frame is centred on the median of the codewords instead of that of the rows.
    """

    first: Bound = AS_IT_IS
    finer: Bound = AS_IT_IS
    centred_on_codewords: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of some rows, in numbers of rows.

    Attributes
    ----------
    rows : int
    first : int
        Not proved by the first filter.
    both : int
        Not proved by either: the definition decides.
    unverified : int
        Whose code would be wrong if the first filter needed no proof.
    wrong : int
        Proved, and wrong. 0.
    """

    rows: int
    first: int
    both: int
    unverified: int
    wrong: int

    def shares(self) -> tuple[float, float, float]:
        """Return what SHARES names."""
        return self.first / self.rows, self.both / self.rows, self.unverified / self.rows


def outcome(
    rows: Float32, codewords: Float32, exact: Codes, setting: Setting | None = None
) -> Outcome:
    """Return what both filters make of rows.

    Parameters
    ----------
    rows : float32 (n, dim)
    codewords : float32 (k, dim)
    exact : uint32 (n,)
        The rows' codes by the definition.
    setting : Setting, optional
        As it is without it.
    """
    setting = setting or Setting()
    middle = None if setting.centred_on_codewords else median(rows)
    packed = pack_codebook(codewords, setting.first, middle)
    codes, unverified = filter_codes(rows, packed)
    open_rows = np.flatnonzero(codes == UNPROVED)
    if packed.dim > FOLDED_DIM:
        packed = pack_codebook(codewords, setting.finer, middle)
        codes[open_rows], _ = filter_codes(rows[open_rows], packed, finer=True)
    proved = codes != UNPROVED
    return Outcome(
        len(rows),
        len(open_rows),
        int(np.count_nonzero(~proved)),
        int(np.count_nonzero(unverified != exact)),
        int(np.count_nonzero(codes[proved] != exact[proved])),
    )


# what is asked of every field, and again with other constants: what each of them costs
SHARES = ("unproved_first", "unproved_both", "wrong_unverified")
NO_KAPPA = Bound(chained=(0, 0), stepwise=(0, 0), stepwise_key=0, winner=(0, 0))
VARIANTS: Mapping[str, Setting] = {
    "chained: 2 a column": Setting(first=Bound(chained=(2, 72))),
    "steps of 8 columns": Setting(finer=Bound(stepwise=(1 / 16, 20))),
    "kappa=0": Setting(NO_KAPPA, NO_KAPPA),
    "centred on codewords": Setting(centred_on_codewords=True),
}


@dataclass(frozen=True, eq=False)
class Field:
    """One field to measure: its rows, and how many codewords it gets."""

    name: str
    rows: Float32
    n_codewords: int


@dataclass(frozen=True)
class Workload:
    """Rows by name.

    Attributes
    ----------
    name, line : str
    fields : function of float, returns iterator of Field
        Makes a share of the rows.
    """

    name: str
    line: str
    fields: Callable[[float], Iterator[Field]]


def _gaussian(rng: np.random.Generator, n_rows: int, dim: int) -> Float64:
    return rng.standard_normal((n_rows, dim))


def _spectrum(rng: np.random.Generator, n_rows: int, dim: int) -> Float64:
    return rng.standard_normal((n_rows, dim)) / np.arange(1, dim + 1)


def _heavy_tailed(rng: np.random.Generator, n_rows: int, dim: int) -> Float64:
    return rng.standard_normal((n_rows, dim)) * np.exp(rng.standard_normal((n_rows, 1)))


def _offset(rng: np.random.Generator, n_rows: int, dim: int) -> Float64:
    return rng.standard_normal((n_rows, dim)) + 10.0


def _drawn(
    name: str,
    line: str,
    draw: Callable[[np.random.Generator, int, int], Float64],
    dim: int,
    n_codewords: int,
) -> Workload:
    def make(size: float) -> Iterator[Field]:
        n_rows = max(1, round(size * DRAWN_ROWS))
        rows = draw(np.random.default_rng(SEED), n_rows, dim).astype(np.float32)
        yield Field("x", rows, min(n_codewords, max(1, n_rows // ROWS_A_CODEWORD)))

    return Workload(name, f"{line}: {n_codewords} codewords of {dim}", make)


def _of_case(name: str) -> Workload:
    def make(size: float) -> Iterator[Field]:
        with tempfile.TemporaryDirectory(prefix="saec-bench-") as folder:
            write_case(CASES[name], Path(folder), size=size, weighted=False)
            for field in load_case(Path(folder)).fields:
                yield Field(field.name, field.rows, len(field.initial))

    return Workload(name, CASES[name].line, make)


WORKLOADS: Mapping[str, Workload] = {
    one.name: one
    for one in (
        _drawn("gaussian-16", "Gaussian", _gaussian, 16, 1024),
        _drawn("gaussian-64", "Gaussian", _gaussian, 64, 1024),
        _drawn("spectrum-16", "Gaussian, σ of column i 1/i", _spectrum, 16, 1024),
        _drawn("spectrum-64", "Gaussian, σ of column i 1/i", _spectrum, 64, 4096),
        _drawn("heavy-tailed-16", "Gaussian, each row times e^N", _heavy_tailed, 16, 1024),
        _drawn("heavy-tailed-64", "Gaussian, each row times e^N", _heavy_tailed, 64, 1024),
        _drawn("offset-16", "Gaussian, mean of 10 σ", _offset, 16, 1024),
        _drawn("offset-64", "Gaussian, mean of 10 σ", _offset, 64, 1024),
        *(
            _of_case(name)
            for name in (
                "fields26-d16", "fields26-d64", "heavy", "tiny", "offset", "4m-64-16", "1m-256-64",
                "1m-1024-64", "200k-4096-128",
            )
        ),
    )
}  # fmt: skip


def table_workloads(folder: Path) -> Iterator[Workload]:
    """Yield the embedding tables of a folder's safetensors files, but for those of counts."""
    for path in sorted(folder.glob("*.safetensors")):
        if not path.name.endswith(".counts.safetensors"):
            yield _of_tables(path)


def _of_tables(path: Path) -> Workload:
    def make(size: float) -> Iterator[Field]:
        tables = open_tables(path)
        for field in tables.fields.values():
            if field.n_rows < LEAST_TABLE_ROWS:
                continue
            rows = np.empty((max(1, round(size * field.n_rows)), field.dim), np.float32)
            tables.read(field.name, 0, rows)
            n_codewords = min(MOST_CODEWORDS, max(1, len(rows) // ROWS_A_CODEWORD))
            yield Field(field.name, rows, n_codewords)

    line = f"tables of {path.name}, fields of {LEAST_TABLE_ROWS} rows and more"
    return Workload(path.stem, line, make)


def fitted_codewords(field: Field) -> tuple[Float32, int]:
    """Return codewords after a few iterations of the package's own fit, and to how many rows."""
    rows = _some(field.rows, MOST_FIT_ROWS)
    n_rows, dim = rows.shape
    builder = StatisticsBuilder(field.name, n_rows, dim, field.n_codewords, 0, weighted=False)
    builder.add(0, rows, None)
    statistics = builder.statistics()
    if statistics.distinct is not None:
        return statistics.distinct, len(rows)
    backend = open_backend("cpu", threads=1)
    seeds = seed_codewords(backend, statistics.sample, field.n_codewords, 0, field.name)
    # a variance above 0 and a tolerance below it, so that nothing stops early
    one = FieldFit(statistics, fixed_point(statistics), 1.0, seeds)
    chunk = chunk_of(field.name, rows)
    fit(
        backend, lambda _: [chunk], {field.name: one}, tol=-1.0, max_iter=FIT_ITERATIONS,
        after_pass=lambda _: None,
    )  # fmt: skip
    return one.codewords, len(rows)


def defined_codes(rows: Float32, codewords: Float32) -> Codes:
    """Return the rows' codes by the definition, which is what the CPU backend promises."""
    backend = open_backend("cpu", threads=1)
    loaded = backend.load_codebooks({"x": Codebook(codewords)})
    return backend.assign(backend.load_rows(chunk_of("x", rows)), loaded).codes


def _some(rows: Float32, most: int) -> Float32:
    """Return at most so many of the rows, drawn, in order."""
    if len(rows) <= most:
        return np.ascontiguousarray(rows)
    places = np.random.default_rng(SEED).choice(len(rows), most, replace=False)
    return rows[np.sort(places)]


def measure(workload: Workload, *, rows: int, size: float = 1.0) -> dict[str, Any]:
    """Return the record of one workload.

    Parameters
    ----------
    workload : Workload
    rows : int
        Rows of each field to filter, at most.
    size : float
        Share of the workload's rows to make, in (0, 1].

    Returns
    -------
    record : dict
        Can be written as JSON. Shares are of all rows: those of the fields, weighted by their rows.

    Raises
    ------
    ParamError
        A number is out of range, or no field is long enough.
    """
    if rows < 1:
        raise ParamError(f"rows={rows} was given; give 1 or more")
    if not 0 < size <= 1:
        raise ParamError(f"size={size} was given; give a share of the rows in (0, 1]")
    entries = [_measure_field(field, rows) for field in workload.fields(size)]
    if not entries:
        raise ParamError(f"{workload.name}: no field has {LEAST_TABLE_ROWS} rows")
    n_rows = sum(entry["n_rows"] for entry in entries)

    def whole(key: str) -> float:
        return float(sum(entry["n_rows"] * entry[key] for entry in entries) / n_rows)

    return {
        "schema": SCHEMA,
        "op": "filter_model",
        "case": workload.name,
        "line": workload.line,
        "size": size,
        "n_rows": n_rows,
        "dim": entries[0]["dim"],
        "n_fields": len(entries),
        "n_codewords": sum(entry["n_codewords"] for entry in entries),
        "tested_rows": sum(entry["tested_rows"] for entry in entries),
        "fit": {
            "iterations": FIT_ITERATIONS,
            "rows": sum(entry["fit_rows"] for entry in entries),
        },
        "bound": asdict(AS_IT_IS),
        **{key: whole(key) for key in SHARES},
        "wrong_proved": sum(entry["wrong_proved"] for entry in entries),
        "with": {name: {key: whole(f"{key}/{name}") for key in SHARES[:2]} for name in VARIANTS},
        "fields": [
            {key: value for key, value in entry.items() if "/" not in key} for entry in entries
        ],
        **circumstances(),
    }


def _measure_field(field: Field, rows: int) -> dict[str, Any]:
    codewords, fit_rows = fitted_codewords(field)
    tested = _some(field.rows, rows)
    exact = defined_codes(tested, codewords)
    found = outcome(tested, codewords, exact)
    entry = {
        "field": field.name,
        "n_rows": len(field.rows),
        "dim": field.rows.shape[1],
        "n_codewords": len(codewords),
        "tested_rows": found.rows,
        "fit_rows": fit_rows,
        **dict(zip(SHARES, found.shares(), strict=True)),
        "wrong_proved": found.wrong,
    }
    for name, setting in VARIANTS.items():
        shares = outcome(tested, codewords, exact, setting).shares()
        entry |= {f"{key}/{name}": share for key, share in zip(SHARES, shares, strict=True)}
    return entry


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the records as a Markdown table."""
    head = ["case", "d", "codewords", "unproved", "after both halves", "wrong if unverified"]
    head += [f"with {name}" for name in VARIANTS]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for record in records:
        cells = [record["case"], str(record["dim"]), str(record["n_codewords"])]
        cells += [f"{record[key]:.3%}" for key in SHARES]
        cells += [
            f"{one['unproved_first']:.3%}, {one['unproved_both']:.3%}"
            for one in record["with"].values()
        ]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.filter_model",
        description="How many rows the CUDA filter proves, by a model of it in NumPy.",
    )
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(WORKLOADS)}; all of them without")
    parser.add_argument("--tables", type=Path, help="folder of *.safetensors tables to measure too")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of each field to filter")
    parser.add_argument("--size", type=float, default=1.0, help="share of the rows to make")
    parser.add_argument("--append", type=Path, help="append the records to this file")
    options = parser.parse_args()
    records = []
    try:
        for workload in _asked_for(options.cases, options.tables):
            record = measure(workload, rows=options.rows, size=options.size)
            records.append(record)
            if options.append is not None:
                append_record(options.append, record)
            print(f"{workload.name}: {record['unproved_first']:.3%} unproved", file=sys.stderr)
            if record["wrong_proved"]:
                raise SaecError(
                    f"{workload.name}: {record['wrong_proved']} rows were proved to be nearest to "
                    f"a codeword that is not: {json.dumps(record['fields'])}"
                )
    except SaecError as err:
        sys.exit(f"error: {err}")
    print(table(records), end="")


def _asked_for(names: Sequence[str], tables: Path | None) -> Iterator[Workload]:
    for name in names or WORKLOADS:
        if name not in WORKLOADS:
            raise ParamError(f'case "{name}" was asked for; the cases are {", ".join(WORKLOADS)}')
        yield WORKLOADS[name]
    if tables is not None:
        yield from table_workloads(tables)


if __name__ == "__main__":
    main()
