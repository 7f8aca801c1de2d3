"""The first pass in integers: codes are the definition's, whether this host would use it or not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from builders import definition, fixed_points, rows_of, whole
from saec_gpu.backends import cpu_first_pass, simd
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cpu_first_pass import (
    BLUR,
    DISTANCE,
    GROW,
    LEAST_BLUR,
    LEAST_SEEN,
    LOWEST,
    MOST_SHARE,
    MOST_TIME,
    REACH,
    SCALE,
    first_form,
)
from saec_gpu.backends.simd import ROW_LANES, dot_pairs, load, paired, store
from saec_gpu.compiled import compiled
from saec_gpu.data import Chunk, Codebook, Float32, chunk_of
from test_filter import CASES, N_ROWS, near_ties, one_ulp_apart


def looked_at(rows: Float32, codewords: Float32) -> tuple[int, int]:
    """Fail unless codes are the definition's; return rows seen by the pass, distances for them."""
    backend = CpuBackend(1, first_pass=True)
    loaded = backend.load_codebooks({"x": Codebook(codewords)})
    found = backend.assign(chunk_of("x", rows), loaded)
    assert found.codes.tolist() == definition(rows, codewords).argmin(axis=1).tolist()
    seen, distances = loaded.accumulators(1)[0].looked_at[0].tolist()
    return seen, distances


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 15, 16, 17, 33, 64, 130])
@pytest.mark.parametrize("kind", CASES)
def test_codes_are_the_definition_s(rng: np.random.Generator, kind: str, dim: int) -> None:
    for k in (2, 5, 33, 67):
        looked_at(*CASES[kind](rng, N_ROWS, dim, k))


@pytest.mark.parametrize("kind", ["normal", "near ties", "grid", "repeated codewords", "outlier"])
@pytest.mark.parametrize("k", range(1, 21))
def test_no_number_of_codewords_is_special(rng: np.random.Generator, k: int, kind: str) -> None:
    looked_at(*CASES[kind](rng, N_ROWS, 17, k))


def test_most_rows_are_seen_and_proved(rng: np.random.Generator) -> None:
    # the other way round: a pass that sees no row, or proves none, would pass all of the above
    rows = rows_of("normal", rng, 1000, 16)
    for offset in (0.0, 1024.0):
        moved = (rows + np.float32(offset)).astype(np.float32)
        seen, distances = looked_at(moved, moved[:64])
        assert seen == 1000
        assert distances < 100


# The bound is what does it: with the same data and no bound, codes are wrong.


def wrong_codes(rows: Float32, codewords: Float32, without: list[int]) -> int:
    """Return how many codes are wrong where some numbers of the bound are 0."""
    backend = CpuBackend(1, first_pass=True)
    loaded = backend.load_codebooks({"x": Codebook(codewords)})
    loaded.first.numbers[:, without] = 0.0
    if MOST_SHARE in without:
        loaded.first.shares[:] = 0.0
    codes = backend.assign(chunk_of("x", rows), loaded).codes
    return int((codes != definition(rows, codewords).argmin(axis=1)).sum())


@pytest.mark.parametrize("dim", [3, 16, 64])
def test_without_its_bound_the_pass_fails(rng: np.random.Generator, dim: int) -> None:
    rows, codewords = near_ties(rng, 1000, dim, 5)
    assert wrong_codes(rows, codewords, [BLUR, LEAST_BLUR, MOST_SHARE]) > 50
    assert wrong_codes(rows, codewords, []) == 0


def test_roundings_of_rows_that_point_one_way(rng: np.random.Generator) -> None:
    # all columns are just below half a step, and add up along the difference of two codewords
    wrong = 0
    for _ in range(20):
        codewords = rows_of("normal", rng, 2, 16)
        backend = CpuBackend(1, first_pass=True)
        loaded = backend.load_codebooks({"x": Codebook(codewords)})
        step = 1 / loaded.first.numbers[0, SCALE].astype(np.float64)
        frame = loaded.frame(0)
        centred = codewords * np.float64(frame.scale) - frame.centre
        apart = centred[0] - centred[1]
        rows = centred.mean(axis=0) + 0.1 * rng.standard_normal((500, 16))
        rows -= np.outer((rows - centred.mean(axis=0)) @ apart / (apart @ apart), apart)
        rows = np.rint(rows / step) * step + 0.49 * step * np.sign(apart)
        rows = ((rows + frame.centre) / frame.scale).astype(np.float32)
        wrong += wrong_codes(rows, codewords, [MOST_SHARE])
        assert wrong_codes(rows, codewords, []) == 0
    assert wrong > 0


@pytest.mark.parametrize("dim", [16, 17, 64])
def test_roundings_of_codewords_are_within_their_bound(rng: np.random.Generator, dim: int) -> None:
    # rows without rounding, along what a codeword's rounding left: the bound is met, not passed
    codewords = rng.standard_normal((67, dim))
    form = first_form(codewords, np.zeros(67, bool))
    assert form is not None
    scale, unit, reach_square, blur, least_blur, _ = form.numbers
    word_scale = 1 / (unit * scale)
    left = codewords - form.words[:, :dim] / word_scale
    share = form.shares / (2 * GROW)  # δ|E_k|
    rows = left * (np.sqrt(reach_square / np.einsum("kj,kj->k", left, left))[:, None] * 0.99)
    whole_rows = np.rint(rows * scale).astype(np.int64)
    rows = whole_rows / scale
    scores = whole_rows @ form.words[:, :dim].T.astype(np.int64) + form.biases
    exact = rows @ codewords.T - np.einsum("kj,kj->k", codewords, codewords) / 2
    moved = np.abs(scores * unit - exact - share)
    bound = blur * np.linalg.norm(rows, axis=1)[:, None] + least_blur
    assert (moved <= bound).all()
    assert (moved / bound).max() > 0.9


def test_rows_out_of_reach_are_not_trusted(rng: np.random.Generator) -> None:
    # sums of these overflow, so that any codeword may seem to lead
    codewords = rows_of("normal", rng, 67, 16)
    rows = codewords[rng.integers(0, 67, 500)] * np.float32(2.0) ** rng.integers(0, 12, (500, 1))
    seen, distances = looked_at(rows.astype(np.float32), codewords)
    assert seen == 500
    assert distances > 67 * 100


def test_scores_do_not_overflow(rng: np.random.Generator) -> None:
    for dim in (1, 16, 17, 4096):
        codewords = rng.standard_normal((67, dim))
        codewords[0] = np.abs(codewords).max() * (1.0 if dim > 1 else 3.0)  # the farthest by far
        form = first_form(codewords, np.zeros(67, bool))
        assert form is not None
        scale = form.numbers[0]
        most = np.linalg.norm(codewords, axis=1).max()
        # the row of the greatest score and of the least: as far as they are trusted
        for row in (codewords[0], -codewords[0]):
            whole_row = np.rint(scale * row * (REACH * most / np.linalg.norm(row))).astype(np.int64)
            assert np.abs(whole_row).max() < 2**15
            scores = form.words[:, :dim].astype(np.int64) @ whole_row + form.biases
            assert np.abs(scores).max() < 2**30
            assert scores.min() > LOWEST + 2**4


def test_codewords_left_out_never_lead(rng: np.random.Generator) -> None:
    codewords = np.repeat(rows_of("normal", rng, 40, 16), 2, axis=0)
    rows = codewords[rng.integers(0, 80, 300)]
    assert looked_at(rows, codewords)[1] < 300


def test_a_field_that_proves_little_goes_on_without(rng: np.random.Generator) -> None:
    rows, codewords = one_ulp_apart(rng, 3 * LEAST_SEEN, 16, 64)
    seen, distances = looked_at(rows, codewords)
    assert distances * DISTANCE > MOST_TIME * 64 * seen
    assert LEAST_SEEN <= seen < len(rows)


def test_a_pass_over_many_fields_agrees(rng: np.random.Generator) -> None:
    # fields with and without a first form, threads, sums
    tables = {"many": (5000, 16, 100), "small": (300, 16, 3), "thin": (2000, 1, 70)}
    rows = {name: rows_of("normal", rng, n, dim) for name, (n, dim, _) in tables.items()}
    codebooks = {
        name: Codebook(rows[name][:k].copy(), fixed_points(rows[name], None)[0])
        for name, (_, _, k) in tables.items()
    }
    codebooks["small"] = Codebook(np.zeros((3, 16), np.float32), codebooks["small"].fixed_point)
    chunks = [chunk_of(name, one) for name, one in rows.items()]
    expected = passed(CpuBackend(1, first_pass=False), chunks, codebooks)
    for threads in (1, 2):
        assert passed(CpuBackend(threads, first_pass=True), chunks, codebooks) == expected


def passed(
    backend: CpuBackend, chunks: list[Chunk], codebooks: dict[str, Codebook]
) -> tuple[object, object]:
    """Return the sums of a pass, and the codes of another."""
    loaded = backend.load_codebooks(codebooks)
    for chunk in chunks:
        backend.assign_accumulate(chunk, loaded)
    codes = [backend.assign(chunk, loaded).codes.tolist() for chunk in chunks]
    return {name: whole(partial) for name, partial in backend.partials(loaded).items()}, codes


def test_the_host_decides_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.eye(64, dtype=np.float32)
    for fast in (False, True):
        monkeypatch.setattr(cpu_first_pass, "FAST_PAIRS", fast)
        places = CpuBackend(1).load_codebooks({"x": Codebook(rows)}).first.places
        assert (places[0] >= 0) == fast
        few = CpuBackend(1).load_codebooks({"x": Codebook(rows[:3])}).first.places
        assert few[0] < 0


# The two operations on pairs.


@compiled
def pair_rows(x: Float32, y: Float32, scale: np.float32, out: NDArray[np.int32]) -> None:
    store(out, 0, paired(load(ROW_LANES, x, 0), load(ROW_LANES, y, 0), scale))


def test_pairs_are_rounded_to_nearest(rng: np.random.Generator) -> None:
    x, y = rng.uniform(-1, 1, (2, ROW_LANES)).astype(np.float32)
    x[:6] = [0.5 / 64, 1.5 / 64, -0.5 / 64, -1.5 / 64, 0.0, -0.0]  # ties go to even
    for scale in (64.0, 32767.0 / 2):
        out = np.zeros(ROW_LANES, np.int32)
        pair_rows(x, y, np.float32(scale), out)
        halves = out.view(np.int16).reshape(-1, 2)
        exact = np.stack([x, y], axis=1).astype(np.float64) * scale
        assert halves.tolist() == np.rint(exact).astype(np.int16).tolist()


def dots(x: NDArray[np.int32], y: NDArray[np.int32], z: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return what `dot_pairs` makes of ROW_LANES lanes, and of their first four."""

    @compiled  # anew for every call: what it becomes depends on the host it is told of
    def run(
        x: NDArray[np.int32], y: NDArray[np.int32], z: NDArray[np.int32], out: NDArray[np.int32]
    ) -> None:
        n = ROW_LANES
        store(out, 0, dot_pairs(load(n, x, 0), load(n, y, 0), load(n, z, 0)))
        store(out, n, dot_pairs(load(4, x, 0), load(4, y, 0), load(4, z, 0)))

    out = np.zeros(ROW_LANES + 4, np.int32)
    run(x, y, z, out)
    return out


@pytest.mark.parametrize("instruction", [True, False], ids=["instruction", "text"])
def test_dots_of_pairs(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, instruction: bool
) -> None:
    if not instruction:  # what a host without one would do
        monkeypatch.setattr(simd, "PAIR_BITS", 0)
    halves = rng.integers(-(2**15) + 1, 2**15, (2, ROW_LANES, 2)).astype(np.int16)
    z = rng.integers(-(2**31), 2**31, ROW_LANES).astype(np.int32)
    x, y = (np.ascontiguousarray(half).view(np.int32).reshape(-1) for half in halves)
    exact = (halves[0].astype(np.int64) * halves[1]).sum(axis=1) + z
    expected = ((exact + 2**31) % 2**32 - 2**31).tolist()
    assert dots(x, y, z).tolist() == expected + expected[:4]
