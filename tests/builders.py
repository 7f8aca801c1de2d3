"""What several test files build: hostile tables, chunks, and one field's whole way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import reference
from conftest import EMULATED
from saec_gpu.backends import open_backend
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.protocol import Backend
from saec_gpu.clustering.error import ErrorSums
from saec_gpu.clustering.lloyd import FieldFit, fit, sample_variance
from saec_gpu.clustering.seeding import seed_codewords
from saec_gpu.clustering.statistics import StatisticsBuilder, fixed_point
from saec_gpu.data import (
    Chunk,
    Codebook,
    FixedPoint,
    Float32,
    Float64,
    Int64,
    Partial,
    Statistics,
)
from saec_gpu.layout import lay_out

HUGE = 3.4e38  # just below the greatest float32
TINY = 2.0**-149  # the least positive float32

RowKind = Callable[[np.random.Generator, int, int], NDArray[np.floating]]
WeightKind = Callable[[np.random.Generator, int], NDArray[np.floating] | None]


def _normal(rng: np.random.Generator, n: int, dim: int) -> Float64:
    return rng.standard_normal((n, dim))


def _huge(rng: np.random.Generator, n: int, dim: int) -> Float64:
    return (_normal(rng, n, dim) * 1e38).clip(-HUGE, HUGE)


def _outlier(rng: np.random.Generator, n: int, dim: int) -> Float64:
    rows = np.ones((n, dim))
    rows[-1] = 100.0  # two distinct rows: nearly every codeword runs empty
    return rows


ROW_KINDS: Mapping[str, RowKind] = {
    "normal": _normal,
    "offset": lambda rng, n, dim: _normal(rng, n, dim) + 1e6,
    "repeated": lambda rng, n, dim: _normal(rng, max(1, n // 3), dim)[
        rng.integers(0, max(1, n // 3), n)
    ],
    "heavy": lambda rng, n, dim: _normal(rng, n, dim) * np.exp(3 * rng.standard_normal((n, 1))),
    "tiny": lambda rng, n, dim: _normal(rng, n, dim) * 1e-18,
    "subnormal": lambda rng, n, dim: _normal(rng, n, dim) * 1e-44,
    "huge": _huge,
    "columns": lambda rng, n, dim: _normal(rng, n, dim) * np.where(np.arange(dim) % 2, 1e6, 1e-4),
    # the sign makes -0.0 of half of the zeros
    "grid": lambda rng, n, dim: rng.integers(-1, 2, (n, dim)) * rng.choice([-1.0, 1.0], (n, dim)),
    "outlier": _outlier,
}

WEIGHT_KINDS: Mapping[str, WeightKind] = {
    "none": lambda rng, n: None,
    "zero": lambda rng, n: np.zeros(n),
    "whole": lambda rng, n: rng.integers(0, 100, n).astype(np.float64),
    "sparse": lambda rng, n: (rng.random(n) < 0.2).astype(np.float64),
    "one in ten 2^40": lambda rng, n: np.where(rng.random(n) < 0.1, 2.0**40, rng.random(n)),
    "wide": lambda rng, n: np.exp2(rng.integers(-60, 60, n)),
    "widest": lambda rng, n: np.exp2(rng.choice([-400.0, -1.0, 0.0, 399.0, 400.0], n)),
}


def rows_of(kind: str, rng: np.random.Generator, n: int, dim: int) -> Float32:
    """Return float32 (n, dim) rows of one of ROW_KINDS."""
    return ROW_KINDS[kind](rng, n, dim).astype(np.float32)


def weights_of(kind: str, rng: np.random.Generator, n: int) -> Float64 | None:
    """Return float64 (n,) weights of one of WEIGHT_KINDS, or None."""
    weights = WEIGHT_KINDS[kind](rng, n)
    return None if weights is None else weights.astype(np.float64)


def as_table(dtype: str, rows: NDArray[np.floating]) -> NDArray[Any]:
    """Rows as a table of this dtype has them, "bfloat16" included."""
    return rows.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def column(*values: float) -> Float32:
    """Return rows of one column."""
    return np.array(values, np.float32).reshape(-1, 1)


def bits(values: NDArray[np.float32]) -> list[list[int]]:
    """Return the bits of each float32, so that −0.0 and 0.0 differ."""
    found: list[list[int]] = np.ascontiguousarray(values).view(np.uint32).tolist()
    return found


def definition(rows: Float32, codewords: Float32) -> Float64:
    """Return DESIGN.md 1's distance of every row to every codeword, float64 (n, k)."""
    total = np.zeros((len(rows), len(codewords)))
    for j in range(rows.shape[1]):  # columns ascending; NumPy neither fuses nor reassociates these
        difference = rows[:, j, None].astype(np.float64) - codewords[None, :, j].astype(np.float64)
        total = total + difference * difference
    return total


def fixed_points(rows: Float32, weights: Float64 | None) -> tuple[FixedPoint, reference.FixedPoint]:
    """Return the oracle's exponents of a field, as the package's record and as the oracle's."""
    found = reference.statistics(rows, weights, 0)
    oracle = reference.fixed_point(found.exponents, found.minimum, found.maximum)
    weighted = weights is not None and bool((weights > 0).any())
    ours = FixedPoint(oracle.bits, oracle.t, np.array(oracle.a, np.int64), weighted)
    return ours, oracle


def whole(partial: Partial) -> reference.Partial:
    """Return a partial's sums as Python integers."""

    def joined(high: Int64, low: Int64 | None) -> NDArray[np.object_]:
        exact = high.astype(object)
        if low is not None:
            assert low.min() >= 0
            assert low.max() < 2**32
            exact = exact * 2**32 + low.astype(object)
        return exact

    return reference.Partial(
        joined(partial.sums, partial.sums_low).tolist(),
        joined(partial.weight_sums, partial.weight_sums_low).tolist(),
        partial.counts.tolist(),
    )


def opened(name: str, *, threads: int | None = None) -> Backend:
    """Return a backend by its name, those of EMULATED among them."""
    if name not in EMULATED:
        return open_backend(name, threads=threads)
    from emulated_device import EmulatedDevice

    return CudaBackend(EmulatedDevice(seed=EMULATED[name]), threads)


@dataclass(frozen=True)
class Piece:
    """A run of rows of one field, for a chunk."""

    field: str
    rows: Float32
    weights: Float64 | None = None
    start: int = 0


def chunk_of_pieces(pieces: Sequence[Piece]) -> Chunk:
    """Return one chunk of all pieces; pieces without weights get ones where others have some."""
    layout = lay_out((p.field, p.start, *p.rows.shape) for p in pieces)
    values = np.concatenate([np.zeros(0, np.float32), *(p.rows.reshape(-1) for p in pieces)])
    if all(p.weights is None for p in pieces):
        return Chunk(layout, values, None)
    weights = [np.ones(len(p.rows)) if p.weights is None else p.weights for p in pieces]
    return Chunk(layout, values, np.concatenate(weights))


def chunks_of(pieces: Iterable[Piece], step: int | None = None) -> Iterator[Chunk]:
    """Yield chunks of `step` rows of one field each; all pieces in one chunk without a step."""
    if step is None:
        yield chunk_of_pieces(list(pieces))
        return
    for p in pieces:
        for first in range(0, len(p.rows), step):
            part = slice(first, first + step)
            weights = None if p.weights is None else p.weights[part]
            yield chunk_of_pieces([Piece(p.field, p.rows[part], weights, p.start + first)])


def statistics_of(
    rows: Float32,
    weights: Float64 | None,
    n_codewords: int,
    *,
    seed: int = 0,
    field: str = "x",
    step: int | None = None,
) -> Statistics:
    """Return the package's statistics of a field that is read `step` rows at a time."""
    n_rows, dim = rows.shape
    weighted = weights is not None
    builder = StatisticsBuilder(field, n_rows, dim, n_codewords, seed, weighted=weighted)
    for chunk in chunks_of([Piece(field, rows, weights)], step):
        (segment,) = chunk.layout.segments
        builder.add(segment.start, chunk.rows(segment), chunk.weights)
    return builder.statistics()


def start_fit(statistics: Statistics, codewords: Float32) -> FieldFit:
    """Return a fit about to begin at these codewords."""
    return FieldFit(
        statistics, fixed_point(statistics), sample_variance(statistics.sample), codewords.copy()
    )


@dataclass(frozen=True)
class Clustered:
    """What became of one field."""

    codewords: Float32
    codes: NDArray[np.uint32]
    iterations: int
    stopped: str | None
    sse: float
    weighted_sse: float


def cluster(
    rows: Float32,
    weights: Float64 | None,
    n_codewords: int,
    *,
    seed: int = 0,
    field: str = "x",
    tol: float = 1e-4,
    max_iter: int = 25,
    initial: Float32 | None = None,
    step: int | None = None,
    backend: Backend | None = None,
) -> Clustered:
    """Return what the package makes of one field, with the arguments of `reference.fit`."""
    engine = backend or open_backend("cpu", threads=1)
    pieces = [Piece(field, rows, weights)]
    statistics = statistics_of(rows, weights, n_codewords, seed=seed, field=field, step=step)

    def chunks(active: Collection[str]) -> Iterator[Chunk]:
        assert list(active) == [field]
        return chunks_of(pieces, step)

    iterations, stopped = 0, "distinct"
    if statistics.distinct is not None:
        codewords = statistics.distinct
    else:
        if initial is None:
            initial = seed_codewords(engine, statistics.sample, n_codewords, seed, field)
        one = start_fit(statistics, initial)
        fit(engine, chunks, {field: one}, tol=tol, max_iter=max_iter, after_pass=lambda _: None)
        assert one.stopped is not None
        codewords, iterations, stopped = one.ordered(), one.iterations, one.stopped
    codebooks = engine.load_codebooks({field: Codebook(codewords)})
    errors, codes = ErrorSums(), [np.zeros(0, np.uint32)]
    for chunk in chunks([field]):
        found = engine.assign(engine.load_rows(chunk), codebooks, distances=True)
        assert found.distances is not None
        errors.add(found.distances, chunk.weights)
        codes.append(found.codes)
    return Clustered(
        codewords, np.concatenate(codes), iterations, stopped, errors.sse, errors.weighted_sse
    )


def assert_clustered_alike(one: Clustered, other: Clustered) -> None:
    """Fail unless both are the same, bit for bit."""
    assert bits(one.codewords) == bits(other.codewords)
    assert one.codes.tolist() == other.codes.tolist()
    assert (one.iterations, one.stopped) == (other.iterations, other.stopped)
    assert (one.sse, one.weighted_sse) == (other.sse, other.weighted_sse)
