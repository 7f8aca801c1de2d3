"""Rows that stay: what is known of them from the last pass changes no code and no sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from builders import definition, fixed_points, rows_of, whole
from saec_gpu.backends import cpu, cpu_kept
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cpu_filter import PANEL
from saec_gpu.backends.cpu_kept import KeptRows, kept_rows
from saec_gpu.backends.protocol import StorePlan
from saec_gpu.clustering.lloyd import updated
from saec_gpu.clustering.statistics import StatisticsBuilder, fixed_point
from saec_gpu.data import Chunk, Codebook, FixedPoint, Float32, Float64, Statistics, chunk_of
from saec_gpu.layout import lay_out

N_ROWS, K = 531, 67  # a last tile, block and panel that are not full; the fewest bounds are of 4
ROOM = 2**24
KINDS = ("normal", "offset", "repeated", "heavy", "huge", "tiny", "grid")


def statistics_of(rows: Float32, weights: Float64 | None, k: int) -> Statistics:
    builder = StatisticsBuilder("x", len(rows), rows.shape[1], k, 0, weighted=weights is not None)
    builder.add(0, rows, weights)
    return builder.statistics()


def passes_agree(
    rows: Float32,
    weights: Float64 | None,
    codebooks: Iterator[Float32],
    *,
    threads: int = 1,
    first_pass: bool | None = None,
) -> KeptRows:
    """Pass over kept rows with each codebook; codes are the definition's, sums those of plain rows.

    Codebooks may be made from the partials that are sent back.
    """
    backend = CpuBackend(threads, first_pass=first_pass)
    ours, _ = fixed_points(rows, weights)
    chunk = chunk_of("x", rows, weights)
    kept = kept_rows(chunk, ROOM)
    codewords = next(codebooks, None)
    while codewords is not None:
        found = []
        for passed in (chunk, kept):
            loaded = backend.load_codebooks({"x": Codebook(codewords, ours)})
            backend.assign_accumulate(passed, loaded)
            found.append(backend.partials(loaded)["x"])
        assert kept.memory.codes.tolist() == definition(rows, codewords).argmin(axis=1).tolist()
        assert whole(found[0]) == whole(found[1])
        assert_bounds_hold(kept, rows, codewords)
        try:
            codewords = codebooks.send(found[1])  # type: ignore[attr-defined]
        except StopIteration:
            return kept
    return kept


def assert_bounds_hold(kept: KeptRows, rows: Float32, codewords: Float32) -> None:
    """No bound is above the distance to any codeword of its panel but the row's own."""
    (segment,) = kept.layout.segments
    memory = kept.memory
    bounds = memory._kept.get(segment)
    if bounds is None or bounds.frame is None:
        return
    distances = np.sqrt(definition(rows, codewords)) * np.float64(bounds.frame.scale)
    distances[np.arange(len(rows)), memory.codes] = np.inf
    n_panels = len(bounds.drifts)
    for first, n_rows in segment.tiles():
        at = bounds.start + first * n_panels
        stored = memory.bounds()[at : at + n_panels * n_rows].reshape(n_panels, n_rows)
        for panel, drift in enumerate(bounds.drifts):
            words = bounds.order[panel * PANEL : (panel + 1) * PANEL]
            own = distances[first : first + n_rows, words]
            assert (stored[panel] - drift.astype(np.float64) <= own.min(axis=1)).all()


def lloyds(rows: Float32, weights: Float64 | None, start: Float32, n: int) -> Iterator[Float32]:
    """Yield the codebooks of n passes; each takes the partial of the one before."""
    statistics = statistics_of(rows, weights, 1)
    codewords = start
    for _ in range(n):
        partial = yield codewords
        codewords = updated(codewords, partial, fixed_point(statistics), statistics)  # type: ignore[arg-type]


@pytest.mark.parametrize("first_pass", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 16, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_fits_are_the_definition_s(
    rng: np.random.Generator, kind: str, dim: int, first_pass: bool
) -> None:
    rows = rows_of(kind, rng, N_ROWS, dim)
    weights = rng.pareto(1.0, N_ROWS)
    start = np.ascontiguousarray(rows[rng.choice(N_ROWS, K, replace=False)])
    passes_agree(rows, weights, lloyds(rows, weights, start, 9), first_pass=first_pass)


@pytest.mark.parametrize("first_pass", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5, 48, 49, 56, 57, 64, 65, 200])
def test_no_number_of_codewords_is_special(
    rng: np.random.Generator, k: int, first_pass: bool
) -> None:
    rows = rows_of("normal", rng, N_ROWS, 5)
    start = rows[:k].copy()
    passes_agree(rows, None, lloyds(rows, None, start, 7), first_pass=first_pass)


@pytest.mark.parametrize("n", [49, 63, 64, 65, 4096, 4097, 4111])
@pytest.mark.parametrize(("threads", "first_pass"), [(1, False), (1, True), (3, True)])
def test_no_number_of_rows_is_special(
    rng: np.random.Generator, n: int, threads: int, first_pass: bool
) -> None:
    rows = rows_of("normal", rng, n, 2)
    fits = lloyds(rows, None, rows[:49].copy(), 6)
    passes_agree(rows, None, fits, threads=threads, first_pass=first_pass)


def ties(rng: np.random.Generator, words: Float32) -> Float32:
    """Two codewords of different panels change places."""
    changed = words.copy()
    changed[[0, -1]] = words[[-1, 0]]
    return changed


def repeated(rng: np.random.Generator, words: Float32) -> Float32:
    changed = words.copy()
    changed[rng.integers(0, len(words), 9)] = words[rng.integers(0, len(words))]
    return changed


def refilled(rng: np.random.Generator, words: Float32) -> Float32:
    changed = words.copy()
    changed[rng.integers(0, len(words), 3)] *= np.float32(-3.0)
    return changed


def far(rng: np.random.Generator, words: Float32) -> Float32:
    changed = words.copy()
    changed[7] = np.float32(1e30)  # the filter's scale changes
    return changed


def shaken(rng: np.random.Generator, words: Float32) -> Float32:
    step = rng.standard_normal(words.shape) * rng.choice([0.0, 1e-7, 1e-3, 0.05], (len(words), 1))
    moved: Float32 = (words + step).astype(np.float32)
    return moved


def fewer(rng: np.random.Generator, words: Float32) -> Float32:
    return words[:-1].copy() if len(words) > K - 20 else words[: len(words) - 17].copy()


MOVES: tuple[Callable[[np.random.Generator, Float32], Float32], ...] = (
    ties, repeated, refilled, far, shaken, fewer,
)  # fmt: skip


@pytest.mark.parametrize("first_pass", [False, True])
@pytest.mark.parametrize("dim", [2, 8, 17])
@pytest.mark.parametrize("move", MOVES)
def test_codewords_may_move_in_any_way(
    rng: np.random.Generator,
    move: Callable[[np.random.Generator, Float32], Float32],
    dim: int,
    first_pass: bool,
) -> None:
    words = rows_of("normal", rng, K, dim)
    # rows on the planes between codewords of different panels, and codewords themselves
    first, second = words[rng.integers(0, K, N_ROWS)], words[rng.integers(0, K, N_ROWS)]
    rows = (first + (second - first) * np.float32(0.5)).astype(np.float32)

    def codebooks() -> Iterator[Float32]:
        now = words
        for number in range(12):
            yield now
            now = move(rng, words) if number % 2 else shaken(rng, words)

    passes_agree(rows, None, codebooks(), first_pass=first_pass)


def wrong_codes(rows: Float32, codebooks: list[Float32]) -> int:
    """Wrong codes after the last pass, with whatever was planted."""
    backend, kept = CpuBackend(1), kept_rows(chunk_of("x", rows), ROOM)
    for codewords in codebooks:
        backend.assign_accumulate(kept, backend.load_codebooks({"x": Codebook(codewords)}))
    wrong = kept.memory.codes != definition(rows, codebooks[-1]).argmin(axis=1)
    return int(np.count_nonzero(wrong))


def test_bounds_that_forget_how_far_codewords_moved_give_wrong_codes(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of("normal", rng, 2000, 4)
    words = rows[:K].copy()
    codebooks = [words] * 3
    for _ in range(6):
        codebooks.append(codebooks[-1] + np.float32(0.1) * rows_of("normal", rng, K, 4))
    assert wrong_codes(rows, codebooks) == 0
    monkeypatch.setattr(cpu_kept.Bounds, "bring_to", lambda self, now: None)
    assert wrong_codes(rows, codebooks) > 20


@pytest.mark.parametrize("forgotten", [0.0, 0.1])
def test_a_tenth_of_a_drift_is_needed(forgotten: float) -> None:
    # rows on the line between two codewords, of which one comes nearer, straight
    offsets = np.linspace(-1.0, 1.0, 4001).astype(np.float32)
    rows = np.stack([offsets, np.zeros_like(offsets)], axis=1)
    words = np.full((K, 2), 50.0, np.float32)
    words[:, 1] += np.arange(K)
    words[0], words[-1] = (-4.0, 0.0), (4.0, 0.0)
    moved = words.copy()
    moved[-1, 0] = 3.0
    backend, kept = CpuBackend(1), kept_rows(chunk_of("x", rows), ROOM)
    for _ in range(4):
        backend.assign_accumulate(kept, backend.load_codebooks({"x": Codebook(words)}))
    (bounds,) = kept.memory._kept.values()
    # as if the codeword had gone a part of its way before
    loaded = backend.load_codebooks({"x": Codebook(moved)})
    before = (words + np.float32(forgotten) * (moved - words)).astype(np.float32)
    frame = loaded.frame(0)
    bounds.frame = cpu_kept.Frame(before, frame.scale, frame.centre)
    backend.assign_accumulate(kept, loaded)
    wrong = int(np.count_nonzero(kept.memory.codes != definition(rows, moved).argmin(axis=1)))
    assert wrong > 50 if forgotten else wrong == 0


def test_most_rows_are_passed_over_once_codewords_rest(rng: np.random.Generator) -> None:
    rows = rows_of("normal", rng, 4096, 4)
    words = rows[:K].copy()
    backend, kept = CpuBackend(1), kept_rows(chunk_of("x", rows), ROOM)
    for _ in range(4):
        loaded = backend.load_codebooks({"x": Codebook(words)})
        backend.assign_accumulate(kept, loaded)
    # a filter that ranks every row by nothing proves none; rows that are passed over need no proof
    loaded = backend.load_codebooks({"x": Codebook(words)})
    loaded.scores[:] = 0.0
    loaded.panels[:] = 0.0
    loaded.factors[:, 1] = 0.0
    backend.assign_accumulate(kept, loaded)
    assert backend.rechecked(loaded)["x"] < len(rows) // 20


def test_bounds_that_bytes_leave_are_of_use(rng: np.random.Generator) -> None:
    rows = rows_of("normal", rng, 4096, 4)
    words = rows[:K].copy()
    backend, kept = CpuBackend(1, first_pass=True), kept_rows(chunk_of("x", rows), ROOM)
    for _ in range(cpu_kept.FIRST_PASSES + 1):
        backend.assign_accumulate(kept, backend.load_codebooks({"x": Codebook(words)}))
    (bounds,) = kept.memory._kept.values()
    assert bounds.frame is not None
    n_panels = len(bounds.drifts)
    stored = kept.memory.bounds()[: n_panels * len(rows)].reshape(n_panels, -1)
    own = np.sqrt(definition(rows, words).min(axis=1)) * np.float64(bounds.frame.scale)
    assert (stored > own).mean() > 0.6
    # also of the panel with the own codeword: the bound is that of the others
    own_panels = np.argsort(bounds.order)[kept.memory.codes] // PANEL
    assert (stored[own_panels, np.arange(len(rows))] > own).mean() > 0.6


def test_rows_without_room_are_looked_at_in_full(rng: np.random.Generator) -> None:
    rows = rows_of("normal", rng, N_ROWS, 4)
    kept = kept_rows(chunk_of("x", rows), 4 * N_ROWS)
    backend = CpuBackend(1)
    for _ in range(4):
        backend.assign_accumulate(kept, backend.load_codebooks({"x": Codebook(rows[:K].copy())}))
    assert len(kept.memory.bounds()) == PANEL
    assert kept.memory.codes.tolist() == definition(rows, rows[:K]).argmin(axis=1).tolist()


@pytest.mark.parametrize("by_piece", [False, True])
def test_a_store_remembers_its_rows_and_fields_may_stop(
    rng: np.random.Generator, by_piece: bool
) -> None:
    runs = [("a", 0, 300, 3), ("b", 0, 200, 5), ("c", 0, 150, 3)]
    layout = lay_out(runs)
    tables = {name: rows_of("normal", rng, n, dim) for name, _, n, dim in runs}
    backend = CpuBackend(2)
    store = backend.open_store(StorePlan(layout, np.dtype(np.float32), 300, 1000, False, ROOM))
    pieces = [lay_out([run]) for run in runs]
    for piece in pieces:
        (segment,) = piece.segments
        room = store.room(piece, stays=True)
        room.rows(segment)[:] = tables[segment.field]
        store.put(room, stays=True)
    words = {name: tables[name][:60].copy() for name in tables}
    for number in range(8):
        active = [name for name in tables if not (name == "b" and 3 <= number < 6)]
        for name in active:
            words[name] = shaken(rng, words[name])
        loaded = backend.load_codebooks({name: Codebook(words[name]) for name in active})
        passed: list[Chunk] = (
            [store.part(piece) for piece in pieces] if by_piece else [store.whole()]
        )
        for rows in passed:
            assert isinstance(rows, KeptRows)
            backend.assign_accumulate(rows, loaded)
            for segment in rows.layout.segments:
                if segment.field in active:
                    codes = definition(tables[segment.field], words[segment.field]).argmin(axis=1)
                    assert rows.memory.codes[segment.rows].tolist() == codes.tolist()


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_go_on_from_those_of_the_last_pass(rng: np.random.Generator, weighted: bool) -> None:
    rows = rows_of("normal", rng, N_ROWS, 11)
    weights = rng.pareto(1.0, N_ROWS) if weighted else None
    ours, _ = fixed_points(rows, weights)
    backend, kept = CpuBackend(2), kept_rows(chunk_of("x", rows, weights), ROOM)

    def counted(kind: FixedPoint, k: int) -> int:
        loaded = backend.load_codebooks({"x": Codebook(shaken(rng, rows[:k].copy()), kind)})
        backend.assign_accumulate(kept, loaded)
        return int(backend.partials(loaded)["x"].counts.sum())

    assert counted(ours, 20) == N_ROWS
    assert counted(ours, 20) == N_ROWS
    # what is wrong in the last sums is wrong in the next: rows whose codes stay are not added anew
    kept.memory.sums["x"].counts[7] += 5
    assert counted(ours, 20) == N_ROWS + 5
    # other numbers of codewords, other fixed points and two limbs begin anew
    assert counted(ours, 19) == N_ROWS
    kept.memory.sums["x"].counts[7] += 5
    assert counted(replace(ours), 19) == N_ROWS
    assert counted(replace(ours, bits=94), 19) == N_ROWS
    assert kept.memory.sums == {}


def test_a_pass_that_failed_leaves_no_sums(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of("normal", rng, N_ROWS, 4)
    ours, _ = fixed_points(rows, None)
    backend, kept = CpuBackend(1), kept_rows(chunk_of("x", rows), ROOM)
    backend.assign_accumulate(kept, backend.load_codebooks({"x": Codebook(rows[:20].copy(), ours)}))
    assert kept.memory.sums
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "run_tiles", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backend.assign_accumulate(
                kept, backend.load_codebooks({"x": Codebook(rows[20:40].copy(), ours)})
            )
    assert kept.memory.sums == {}


def test_drifts_never_fall_short(rng: np.random.Generator) -> None:
    scale, centre = np.float32(0.5), np.zeros(3, np.float32)
    books = [rows_of("normal", rng, K, 3)]
    for step in (1.0, 1e-3, 1e-9, 0.0, 1e-20):
        books.append((books[-1] + step * rng.standard_normal((K, 3))).astype(np.float32))
    order = rng.permutation(K)
    frame = cpu_kept.Frame(books[0], scale, centre)
    bounds = cpu_kept.Bounds(0, np.zeros(5, np.float32), order, frame)
    for before, after in pairwise(books):
        then = bounds.drifts.astype(np.longdouble)
        now = cpu_kept.Frame(after, scale, centre)
        bounds.bring_to(now)
        bounds.frame = now
        apart = (after.astype(np.longdouble) - before) * scale
        moved = np.sqrt((apart * apart).sum(axis=1))
        farthest = [moved[order[first : first + PANEL]].max() for first in range(0, K, PANEL)]
        assert (bounds.drifts.astype(np.longdouble) - then >= farthest).all()


def test_panels_are_of_codewords_near_each_other(rng: np.random.Generator) -> None:
    for k in (1, 15, 16, 17, 64, 67, 200):
        order = cpu_kept.neighbours_together(rows_of("normal", rng, k, 3))
        assert sorted(order.tolist()) == list(range(k))
    # heaps of 16, far apart, in any order
    heaps = 1000 * rng.standard_normal((8, 3)).astype(np.float32)
    heap_of = rng.permutation(np.repeat(np.arange(8), PANEL))
    order = cpu_kept.neighbours_together(heaps[heap_of] + rows_of("normal", rng, 8 * PANEL, 3))
    assert (heap_of[order].reshape(8, PANEL) == heap_of[order][::PANEL, None]).all()
