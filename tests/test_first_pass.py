"""The first pass in bytes: codes are the definition's, whether this host would use it or not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from builders import definition, fixed_points, rows_of, whole
from saec_gpu.backends import cpu_first_pass, simd
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cpu_first_pass import (
    BLUR,
    LEAST_CODEWORDS,
    LEAST_SEEN,
    LOWEST,
    MOST_DISTANCES,
    REACH_SQUARE,
    SHIFT,
    STEP,
    first_form,
)
from saec_gpu.backends.cpu_kept import kept_rows
from saec_gpu.backends.simd import ROW_LANES, dot_bytes, load, narrow, nearest, paired, store
from saec_gpu.compiled import compiled
from saec_gpu.data import Chunk, Codebook, Float32, chunk_of
from test_filter import CASES, N_ROWS, near_ties


def looked_at(rows: Float32, codewords: Float32) -> tuple[int, int]:
    """Fail unless codes are the definition's; return rows seen by the pass, distances for them.

    These are float32 distances, found where bytes do not tell.
    """
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
        assert 1000 <= distances < 4000


def test_bytes_and_float32_leave_little_to_the_definition(rng: np.random.Generator) -> None:
    rows = rows_of("normal", rng, 5000, 16)
    backend = CpuBackend(1, first_pass=True)
    loaded = backend.load_codebooks({"x": Codebook(rows[:200])})
    backend.assign(chunk_of("x", rows), loaded)
    assert backend.rechecked(loaded)["x"] < 10


# The bound is what does it: with the same data and a smaller one, codes are wrong.


def wrong_codes(rows: Float32, codewords: Float32, taken_off: float) -> int:
    """Return how many codes are wrong where H is smaller by some steps."""
    backend = CpuBackend(1, first_pass=True)
    loaded = backend.load_codebooks({"x": Codebook(codewords)})
    loaded.first.numbers[:, BLUR] -= np.float32(taken_off)
    codes = backend.assign(chunk_of("x", rows), loaded).codes
    return int((codes != definition(rows, codewords).argmin(axis=1)).sum())


@pytest.mark.parametrize("dim", [3, 16, 64])
def test_without_its_bound_the_pass_fails(rng: np.random.Generator, dim: int) -> None:
    rows, codewords = near_ties(rng, 2000, dim, 5)
    # of both roundings, of √(d/12) steps each
    assert wrong_codes(rows, codewords, 1.8 * np.sqrt(dim / 12)) > 20
    assert wrong_codes(rows, codewords, 0.0) == 0


def test_roundings_that_point_one_way(rng: np.random.Generator) -> None:
    # a row halfway between two codewords, all roundings of all three towards the wrong one
    wrong = 0
    for _ in range(20):
        apart = rng.choice([-1.0, 1.0], 16)
        step = 1 / 64
        words = np.zeros((3, 16))
        words[0] = (30 * apart + 0.45 * apart) * step
        words[1] = (-30 * apart + 0.45 * apart) * step
        words[2, 0] = 2.0  # sets the step
        codewords = words.astype(np.float32)
        backend = CpuBackend(1, first_pass=True)
        loaded = backend.load_codebooks({"x": Codebook(codewords)})
        frame = loaded.frame(0)
        own_step = np.float64(loaded.first.numbers[0, STEP]) / np.float64(frame.scale)
        # the same in steps of this codebook
        words[:2] = np.stack([30.45 * apart, -29.55 * apart]) * own_step
        along = rng.uniform(-0.49, 0.49, (500, 1))
        rows = ((0.45 + along) * apart * own_step).astype(np.float32)
        codewords = words.astype(np.float32)
        wrong += wrong_codes(rows, codewords, 3.0)
        assert wrong_codes(rows, codewords, 0.0) == 0
    assert wrong > 0


@pytest.mark.parametrize("dim", [1, 16, 17, 64])
def test_distances_are_within_what_rounding_leaves(rng: np.random.Generator, dim: int) -> None:
    codewords = rng.standard_normal((67, dim))
    form = first_form(codewords, np.zeros(67, bool))
    assert form is not None
    step, _, blur, reach_square, shift = (float(number) for number in form.numbers)
    words = form.words.astype(np.int64)
    rows = 0.9 * rng.standard_normal((500, dim))
    whole_rows = np.zeros((500, words.shape[1]), np.int64)
    whole_rows[:, :dim] = np.clip(np.rint(rows / step), -127, 127)
    squares = (whole_rows**2).sum(axis=1)
    rows, whole_rows, squares = (a[squares <= reach_square] for a in (rows, whole_rows, squares))
    assert len(rows) > 100
    # what the kernel adds up, modulo 2^16: rows without a sign
    scores = (whole_rows + 128) @ words.T + form.biases
    scores = ((scores + 2**15) % 2**16 - 2**15) - int(shift)
    rounded = squares[:, None] - 2 * scores
    assert set((rounded - ((whole_rows[:, None] - words) ** 2).sum(axis=2)).ravel()) <= {0, -1}
    exact = np.sqrt(((rows[:, None] - codewords) ** 2).sum(axis=2)) / step
    left = np.linalg.norm(rows / step - whole_rows[:, :dim], axis=1)[:, None] + blur
    least, most = np.sqrt(np.maximum(rounded, 0)), np.sqrt(rounded + 1)
    assert (least - left <= exact).all()
    assert (exact <= most + left).all()
    assert (np.abs(exact - least) / left).max() > 0.3


def test_rows_out_of_reach_are_not_trusted(rng: np.random.Generator) -> None:
    # sums of these overflow, so that any codeword may seem to lead
    codewords = rows_of("normal", rng, 67, 16)
    rows = codewords[rng.integers(0, 67, 500)] * np.float32(2.0) ** rng.integers(0, 12, (500, 1))
    seen, distances = looked_at(rows.astype(np.float32), codewords)
    assert seen == 500
    assert distances > 67 * 100


def test_codewords_of_the_next_field_are_not_looked_at(rng: np.random.Generator) -> None:
    # 67 leave room in the last group, and of rows out of reach every codeword is measured
    codewords = rows_of("normal", rng, 67, 16)
    far = codewords[:9] * np.float32(1000)
    backend = CpuBackend(1, first_pass=True)
    loaded = backend.load_codebooks({"x": Codebook(codewords), "y": Codebook(far)})
    codes = backend.assign(chunk_of("x", far), loaded).codes
    assert codes.tolist() == definition(far, codewords).argmin(axis=1).tolist()


@pytest.mark.parametrize("dim", [1, 2, 16, 17, 4096])
def test_scores_and_pairs_do_not_overflow(rng: np.random.Generator, dim: int) -> None:
    for farthest in (1.0, 3.0, 30.0):
        codewords = rng.standard_normal((67, dim))
        codewords[0] *= farthest
        codewords[1] = np.abs(codewords).max()  # all columns of one sign
        form = first_form(codewords, np.zeros(67, bool))
        assert form is not None
        words = form.words.astype(np.int64)
        shift, reach_square = int(form.numbers[SHIFT]), form.numbers[REACH_SQUARE]
        assert np.abs(words).max() <= 127
        assert (255 * np.maximum(words, 0).reshape(67, -1, 2).sum(axis=2)).max() < 2**15
        assert (255 * np.minimum(words, 0).reshape(67, -1, 2).sum(axis=2)).min() >= -(2**15)
        # rows as far out as they are trusted, towards codewords and away from them
        norms = np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1.0)
        for sign in (1, -1):
            rows = np.clip(np.trunc(sign * words / norms * np.sqrt(reach_square)), -127, 127)
            scores = rows.astype(np.int64) @ words.T - (words**2).sum(axis=1) // 2 + shift
            assert scores.max() < 2**15
            assert scores.min() > LOWEST


def test_codewords_left_out_never_lead(rng: np.random.Generator) -> None:
    codewords = np.repeat(rows_of("normal", rng, 40, 16), 2, axis=0)
    rows = codewords[rng.integers(0, 80, 300)]
    assert looked_at(rows, codewords)[1] == 300


def test_a_field_that_proves_little_goes_on_without(rng: np.random.Generator) -> None:
    codewords = rows_of("normal", rng, 64, 16)
    codewords[0] *= 1000  # the others are within few steps of each other
    rows = rows_of("normal", rng, 12_000, 16)
    seen, distances = looked_at(rows, codewords)
    assert distances > MOST_DISTANCES * 64 * seen
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
    rows = np.eye(LEAST_CODEWORDS, dtype=np.float32)
    for bits in (0, 256):
        monkeypatch.setattr(cpu_first_pass, "PAIR_BITS", bits)
        places = CpuBackend(1).load_codebooks({"x": Codebook(rows)}).first.places
        assert (places[0] >= 0) == (bits > 0)
        few = CpuBackend(1).load_codebooks({"x": Codebook(rows[:3])}).first.places
        assert few[0] < 0


def test_little_work_goes_without(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(cpu_first_pass, "PAIR_BITS", 256)
    rows = rows_of("normal", rng, 300, 16)
    work = 300 * 16 * LEAST_CODEWORDS
    for least, seen in ((work + 1, 0), (work, 300)):
        monkeypatch.setattr(cpu_first_pass, "LEAST_PRODUCTS", least)
        backend = CpuBackend(1)
        loaded = backend.load_codebooks({"x": Codebook(rows[:LEAST_CODEWORDS].copy())})
        backend.assign(chunk_of("x", rows), loaded)
        assert loaded.accumulators(1)[0].looked_at[0, 0] == seen


def test_kept_rows_remember_that_it_left_too_much(rng: np.random.Generator) -> None:
    # fields of a kind that it serves well, and of one that it does not
    codewords = rows_of("normal", rng, 64, 16)
    words = {"well": codewords, "ill": codewords * np.float32(1.0)}
    words["ill"][0] *= 1000
    rows = {name: rows_of("normal", rng, 3000, 16) for name in words}
    backend = CpuBackend(2, first_pass=True)
    chunks = {name: kept_rows(chunk_of(name, one), 2**24) for name, one in rows.items()}
    for number in range(6):
        for name, chunk in chunks.items():
            loaded = backend.load_codebooks({name: Codebook(words[name])})
            backend.assign_accumulate(chunk, loaded)
            seen = sum(int(thread.looked_at[0, 0]) for thread in loaded.accumulators(1))
            if number == 0:
                assert seen > 0
            if number > 0 and name == "ill":
                assert seen == 0
            expected = definition(rows[name], words[name]).argmin(axis=1)
            assert chunk.memory.codes.tolist() == expected.tolist()
    assert {name: chunk.memory.slow for name, chunk in chunks.items()} == {
        "well": set(), "ill": {"ill"},
    }  # fmt: skip


# The operations on bytes.


@compiled
def pair_rows(x: Float32, y: Float32, out: NDArray[np.int16]) -> None:
    a, b = nearest(load(ROW_LANES, x, 0)), nearest(load(ROW_LANES, y, 0))
    store(out, 0, paired(a, b))
    store(out, ROW_LANES, narrow(b))


def test_pairs_are_rounded_to_nearest(rng: np.random.Generator) -> None:
    x, y = rng.uniform(0, 255, (2, ROW_LANES)).astype(np.float32)
    x[:6] = [0.5, 1.5, 2.5, 254.5, 0.0, 255.0]  # ties go to even
    out = np.zeros(2 * ROW_LANES, np.int16)
    pair_rows(x, y, out)
    assert out[:ROW_LANES].view(np.uint8).tolist() == np.rint(np.stack([x, y], 1)).ravel().tolist()
    assert out[ROW_LANES:].tolist() == np.rint(y).tolist()
    y = rng.uniform(-(2**15), 2**15 - 1, ROW_LANES).astype(np.float32)
    pair_rows(x, y, out)
    assert out[ROW_LANES:].tolist() == np.rint(y).tolist()


Halves = NDArray[np.int16]


def dots(x: Halves, y: Halves, z: Halves) -> Halves:
    """Return what `dot_bytes` makes of 64 lanes, and of their first eight."""

    @compiled  # anew for every call: what it becomes depends on the host it is told of
    def run(x: Halves, y: Halves, z: Halves, out: Halves) -> None:
        store(out, 0, dot_bytes(load(64, x, 0), load(64, y, 0), load(64, z, 0)))
        store(out, 64, dot_bytes(load(8, x, 0), load(8, y, 0), load(8, z, 0)))

    out = np.zeros(64 + 8, np.int16)
    run(x, y, z, out)
    return out


@pytest.mark.parametrize("instruction", [True, False], ids=["instruction", "text"])
def test_dots_of_bytes(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, instruction: bool
) -> None:
    if not instruction:  # what a host without one would do
        monkeypatch.setattr(simd, "PAIR_BITS", 0)
    x = rng.integers(0, 2**8, (64, 2)).astype(np.uint8)
    y = rng.integers(-(2**7), 2**7, (64, 2)).astype(np.int8)
    x[:2], y[0], y[1] = 255, 127, -128  # held at the greatest and the least
    z = rng.integers(-(2**15), 2**15, 64).astype(np.int16)
    sums = np.clip((x.astype(np.int64) * y).sum(axis=1), -(2**15), 2**15 - 1)
    expected = (sums + z).astype(np.int16).tolist()
    found = dots(x.view(np.int16).reshape(-1), y.view(np.int16).reshape(-1), z)
    assert found.tolist() == expected + expected[:8]
