"""Which rows are read when: within the memory, as often as they must be, and never mixed up."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import saec_gpu as saec
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.data import Chunk, Float32
from saec_gpu.errors import LayoutError, ParamError, SourceError
from saec_gpu.layout import TILE_ROWS, lay_out
from saec_gpu.sources import TableSource, WeightSource, open_tables, open_weights
from saec_gpu.stream import READS_HELD, FieldWork, ResidencySet, RowStream, plan_sets

MIB = 2**20


class CountingArray:
    """A table in memory that counts the rows read of it, and fails or dawdles when told to."""

    def __init__(
        self, rows: Float32, *, fails_at: int | None = None, seconds: Sequence[float] = (0.0,)
    ) -> None:
        self.rows = rows
        self.shape: tuple[int, ...] = rows.shape
        self.dtype = "float32"
        self.origin: Path | None = None
        self.reads: list[tuple[int, int]] = []
        self._fails_at = rows.shape[0] if fails_at is None else fails_at
        self._seconds = seconds

    @property
    def rows_read(self) -> int:
        return sum(n for _, n in self.reads)

    def read(self, start: int, out: NDArray[Any]) -> None:
        time.sleep(self._seconds[len(self.reads) % len(self._seconds)])
        if start <= self._fails_at < start + len(out):
            raise SourceError(f"row {self._fails_at} cannot be read")
        self.reads.append((start, len(out)))
        out[...] = self.rows[start : start + len(out)]


def numbered(n: int, dim: int, first: int = 0) -> Float32:
    """Rows whose values tell where they are from."""
    return (np.arange(n * dim, dtype=np.float32) + np.float32(first)).reshape(n, dim)


def work_of(source: TableSource, weights: WeightSource | None = None) -> list[FieldWork]:
    return [
        FieldWork(f.name, f.n_rows, f.dim, weights is not None and f.name in weights.fields, 2)
        for f in source.fields.values()
    ]


def stream_of(
    source: TableSource,
    weights: WeightSource | None = None,
    *,
    resident: bool,
    read_rows: int,
    by_piece: bool = False,
) -> RowStream:
    works = tuple(work_of(source, weights))
    stay = sum(work.n_rows for work in works) if resident else 0
    planned = ResidencySet(works, stay, read_rows)
    return RowStream(source, weights, planned, CpuBackend(1), by_piece=by_piece)


def copied(chunk: Chunk) -> list[tuple[str, int, list[list[float]], list[float] | None]]:
    """Field, first row, rows and weights of each segment, copied before the chunk is given back."""
    return [
        (
            segment.field,
            segment.start,
            chunk.rows(segment).tolist(),
            None if chunk.weights is None else chunk.weights[segment.rows].tolist(),
        )
        for segment in chunk.layout.segments
    ]


# Plans: pure functions of sizes


def planned_bytes(planned: ResidencySet, threads: int) -> int:
    """What a set takes: working memory of all, the largest reads, and values, weights, codes."""
    (item_bytes,) = {work.dtype.itemsize for work in planned.fields}
    working = sum(work.working_bytes(threads) for work in planned.fields)
    reads = [min(planned.read_rows, w.n_rows) * w.piece_row_bytes for w in planned.fields]
    weight = 8 * any(work.weighted for work in planned.fields)  # one buffer for all fields
    if planned.resident:
        rows = sum(work.n_rows * (item_bytes * work.dim + weight + 4) for work in planned.fields)
    else:
        rows = planned.resident_rows * (item_bytes * planned.fields[0].dim + weight + 4)
    return working + READS_HELD * max(reads) + rows


def test_fields_that_fit_are_one_set() -> None:
    works = [FieldWork(name, 1000, 16, False, 10) for name in "abc"]
    (planned,) = plan_sets(works, memory=100 * MIB, threads=2, chunk_rows=None)
    assert planned.fields == tuple(works)
    assert planned.resident


def test_no_field_needs_no_set() -> None:
    assert plan_sets([], memory=1, threads=1, chunk_rows=None) == ()


def test_a_field_larger_than_the_memory_is_streamed_alone() -> None:
    small, large = FieldWork("a", 1000, 16, False, 10), FieldWork("b", 10**7, 64, True, 10)
    last = FieldWork("c", 1000, 16, False, 10)
    sets = plan_sets([small, large, last], memory=64 * MIB, threads=2, chunk_rows=None)
    assert [planned.fields for planned in sets] == [(small,), (large,), (last,)]
    assert [planned.resident for planned in sets] == [True, False, True]


def test_sets_are_filled_in_order_and_closed_when_full() -> None:
    works = [FieldWork(str(number), 100_000, 16, False, 1) for number in range(7)]
    three = 3 * works[0].resident_bytes(1) + works[0].resident_bytes(1) // 2
    sets = plan_sets(works, memory=three, threads=1, chunk_rows=1024)
    assert [len(planned.fields) for planned in sets] == [3, 3, 1]
    assert [work for planned in sets for work in planned.fields] == works


def test_sets_hold_rows_of_one_dtype() -> None:
    f16, f32, bf16 = (np.dtype(name) for name in ("float16", "float32", "uint16"))
    works = [
        FieldWork(f"{number}", 100, 8, False, 2, dtype)
        for number, dtype in enumerate([f32, f16, bf16, f32, f16])
    ]
    sets = plan_sets(works, memory=100 * MIB, threads=1, chunk_rows=None)
    assert [[work.name for work in planned.fields] for planned in sets] == [
        ["1", "4"], ["0", "3"], ["2"]
    ]  # fmt: skip
    assert [planned.store_plan().dtype for planned in sets] == [f16, f32, bf16]


def test_rows_of_half_the_bytes_stay_twice_as_often() -> None:
    stay = {}
    for dtype in ("float32", "float16"):
        work = FieldWork("x", 10**7, 1024, False, 10, np.dtype(dtype))
        (planned,) = plan_sets([work], memory=2**30, threads=1, chunk_rows=1000)
        stay[dtype] = planned.resident_rows
    assert stay["float16"] >= 2 * stay["float32"] > 400_000


@pytest.mark.parametrize("chunk_rows", [None, 100])
def test_sets_stay_within_the_memory(rng: np.random.Generator, chunk_rows: int | None) -> None:
    # RELIABILITY 16
    streamed = resident = 0
    for _ in range(3000):
        memory = int(rng.choice([4 * MIB, 16 * MIB, 256 * MIB, 1024 * MIB]))
        works = [
            FieldWork(
                str(number), n := int(2 ** rng.uniform(0, 24)), int(rng.choice([1, 8, 64])),
                bool(rng.integers(2)), min(n, int(rng.choice([1, 16, 256]))),
                np.dtype(str(rng.choice(["float32", "float16", "uint16"], p=[0.8, 0.1, 0.1]))),
            )
            for number in range(rng.integers(1, 9))
        ]  # fmt: skip
        try:
            sets = plan_sets(works, memory=memory, threads=2, chunk_rows=chunk_rows)
        except ParamError:
            assert max(work.streamed_bytes(2, READS_HELD) for work in works) > memory
            continue
        by_dtype = sorted(works, key=lambda work: work.dtype.name)
        assert [work for planned in sets for work in planned.fields] == by_dtype
        for planned in sets:
            assert planned_bytes(planned, 2) <= memory
            if not planned.resident:
                (work,) = planned.fields
                # even with all rows read at once it would not have fitted
                whole = READS_HELD * work.n_rows * work.piece_row_bytes
                assert work.resident_bytes(2) + whole > memory
                # what stays is whole reads, and one more would not have fitted
                assert planned.resident_rows % planned.read_rows == 0
                assert planned.resident_rows < work.n_rows
                more = planned.resident_rows + planned.read_rows
                if more < work.n_rows:
                    assert planned_bytes(replace(planned, resident_rows=more), 2) > memory
            resident += planned.resident
            streamed += not planned.resident
    assert min(resident, streamed) > 100


def test_reads_of_every_field_of_a_set_fit_beside_its_rows() -> None:
    # the first field's read is much larger than those of what is put beside it
    works = [
        FieldWork("0", 11, 8, False, 11),
        FieldWork("1", 818, 64, False, 256),
        FieldWork("2", 1771, 1, False, 256),
        FieldWork("3", 165, 64, True, 1),
    ]
    for planned in plan_sets(works, memory=4 * MIB, threads=2, chunk_rows=None):
        assert planned_bytes(planned, 2) <= 4 * MIB


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_take_what_the_plan_says(weighted: bool) -> None:
    # RELIABILITY 16. A field without weights beside one with weights takes memory for them, too.
    source = open_tables({"a": numbered(1000, 1), "b": numbered(10, 1)})
    weights = open_weights({"b": np.ones(10)}, source) if weighted else None
    works = work_of(source, weights)
    (planned,) = plan_sets(works, memory=64 * MIB, threads=1, chunk_rows=None)
    (chunk,) = RowStream(source, weights, planned, CpuBackend(1), by_piece=False).passed(["a", "b"])
    taken = chunk.values.nbytes + (0 if chunk.weights is None else chunk.weights.nbytes)
    codes = 4 * chunk.layout.n_rows
    assert taken + codes == planned.rows_held()


@pytest.mark.parametrize("chunk_rows", [1, 97, 1024, 10**6])
def test_chunk_rows_are_honoured(chunk_rows: int) -> None:
    works = [FieldWork("a", 1000, 16, False, 10), FieldWork("b", 10**8, 64, True, 10)]
    sets = plan_sets(works, memory=2**30, threads=2, chunk_rows=chunk_rows)
    assert [planned.read_rows for planned in sets] == [chunk_rows] * len(sets)


def test_too_little_memory_names_what_is_needed() -> None:
    work = FieldWork("item", 10**8, 64, False, 65_536)
    needed = work.streamed_bytes(4, READS_HELD)
    message = rf'memory of 1000000 bytes .* "item" with 65536 codewords .* needs {needed} .*threads'
    with pytest.raises(ParamError, match=message):
        plan_sets([work], memory=1_000_000, threads=4, chunk_rows=None)
    with pytest.raises(ParamError, match=str(needed)):
        plan_sets([work], memory=needed - 1, threads=4, chunk_rows=None)
    (planned,) = plan_sets([work], memory=needed, threads=4, chunk_rows=None)
    assert not planned.resident
    assert planned_bytes(planned, 4) <= needed


def test_chunk_rows_that_do_not_fit_the_memory_are_refused() -> None:
    work = FieldWork("item", 10**8, 64, False, 10)
    with pytest.raises(ParamError, match=r"chunk_rows of 1000000, but at most \d+ rows of field"):
        plan_sets([work], memory=4 * MIB, threads=1, chunk_rows=10**6)


SIZES = [2**31 - 1, 2**31, 2**31 + 1, 2**32 + 1, 2**40 + 3]


@pytest.mark.parametrize("n", SIZES)
def test_plans_of_sizes_near_and_above_32_bits(n: int) -> None:
    # RELIABILITY 9, 10
    work = FieldWork("x", n, 1024, True, 2**20)
    rows = n * (4 * 1024 + 8 + 4)
    assert work.resident_bytes(4) - work.working_bytes(4) == rows
    assert work.working_bytes(4) > 2**20 * 1024 * 4
    (planned,) = plan_sets([work], memory=work.resident_bytes(4) * 2, threads=4, chunk_rows=None)
    assert planned.resident
    (planned,) = plan_sets([work], memory=work.resident_bytes(4) - 1, threads=4, chunk_rows=None)
    assert not planned.resident
    sets = plan_sets([work] * 3, memory=rows * 4, threads=4, chunk_rows=2**31)
    assert [planned.read_rows for planned in sets] == [2**31] * len(sets)


@pytest.mark.parametrize("n", SIZES)
def test_layouts_of_sizes_near_and_above_32_bits(n: int) -> None:
    # RELIABILITY 9, 10, 11
    layout = lay_out([("a", 0, n, 4096), ("b", 2**41, 3, 7), ("c", n, n, 1)])
    a, b, c = layout.segments
    assert (a.rows, a.values) == (slice(0, n), slice(0, n * 4096))
    assert (b.rows, b.values) == (slice(n, n + 3), slice(n * 4096, n * 4096 + 21))
    assert (c.rows, c.values) == (
        slice(n + 3, 2 * n + 3),
        slice(n * 4096 + 21, n * 4097 + 21),
    )
    assert (layout.n_rows, layout.n_values) == (2 * n + 3, n * 4097 + 21)
    if n < 2**32:
        ((start, size),) = deque(c.tiles(), maxlen=1)
        assert start + size == n
        assert 1 <= size <= TILE_ROWS


@pytest.mark.parametrize("dim", [1, 3, 64, 2048, 10**6])
@pytest.mark.parametrize("n", [0, 1, 97, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 3 * TILE_ROWS])
def test_tiles_cover_each_row_once(n: int, dim: int) -> None:
    (segment,) = lay_out([("x", 5, n, dim)]).segments
    tiles = list(segment.tiles())
    assert [row for first, size in tiles for row in range(first, first + size)] == list(range(n))
    assert len({size for _, size in tiles[:-1]}) <= 1
    assert all(1 <= size <= TILE_ROWS for _, size in tiles)


@pytest.mark.parametrize("run", [("x", -1, 2, 3), ("x", 0, -1, 3), ("x", 0, 1, 0)])
def test_runs_that_cannot_be_are_refused(run: tuple[str, int, int, int]) -> None:
    with pytest.raises(LayoutError, match=r'field "x".*starts at 0 or later'):
        lay_out([run])


# Reading


def test_resident_rows_are_read_once_for_all_passes() -> None:
    # DESIGN.md: a field that fits is read once
    arrays = {"a": CountingArray(numbered(97, 3)), "b": CountingArray(numbered(31, 2, 5000))}
    stream = stream_of(TableSource(arrays), resident=True, read_rows=10)
    for piece in stream.pieces(["a", "b"]):
        assert piece.segment.n_rows <= 10
    for _ in range(3):
        (chunk,) = stream.passed(["a", "b"])
        assert copied(chunk) == [
            ("a", 0, arrays["a"].rows.tolist(), None),
            ("b", 0, arrays["b"].rows.tolist(), None),
        ]
        list(stream.pieces(["b"]))
    for array in arrays.values():
        assert array.rows_read == len(array.rows)
        assert max(n for _, n in array.reads) == 10


def test_resident_fields_are_read_when_they_are_first_asked_for() -> None:
    arrays = {name: CountingArray(numbered(20, 2, first)) for first, name in enumerate("abc")}
    stream = stream_of(TableSource(arrays), resident=True, read_rows=7)
    for fields in (["b"], ["b", "c"], ["c"]):
        (chunk,) = stream.passed(fields)
        for segment in chunk.layout.segments:
            if segment.field in fields:
                expected = arrays[segment.field].rows.tolist()
                assert chunk.rows(segment).tolist() == expected
    assert [array.rows_read for array in arrays.values()] == [0, 20, 20]
    assert stream.rows_of(["a", "c"]) == 40


def test_resident_rows_come_by_piece_when_asked() -> None:
    array = CountingArray(numbered(97, 3))
    stream = stream_of(TableSource({"x": array}), resident=True, read_rows=10, by_piece=True)
    for _ in range(3):
        chunks = list(stream.passed(["x"]))  # kept: resident pieces stay as they are
        assert [chunk.layout.n_rows for chunk in chunks] == [10] * 9 + [7]
        found = np.concatenate([chunk.rows(chunk.layout.segments[0]) for chunk in chunks])
        assert found.tolist() == array.rows.tolist()
    assert array.rows_read == 97


@pytest.mark.parametrize("read_rows", [1, 7, 96, 97, 98, 10**9])
def test_streamed_rows_are_read_once_a_pass(read_rows: int) -> None:
    # RELIABILITY 59
    array = CountingArray(numbered(97, 3))
    stream = stream_of(TableSource({"x": array}), resident=False, read_rows=read_rows)
    for _ in range(3):
        array.reads.clear()
        found = [row for chunk in stream.passed(["x"]) for row in copied(chunk)[0][2]]
        assert found == array.rows.tolist()
        assert array.reads == [(i, min(read_rows, 97 - i)) for i in range(0, 97, read_rows)]


@pytest.mark.parametrize("resident_rows", [0, 7, 14, 91])
def test_the_first_rows_of_a_large_field_stay(resident_rows: int) -> None:
    array, weights = CountingArray(numbered(97, 3)), np.arange(97) + 0.5
    source = TableSource({"x": array})
    own = open_weights({"x": weights}, source)
    planned = ResidencySet(tuple(work_of(source, own)), resident_rows, 7)
    stream = RowStream(source, own, planned, CpuBackend(1), by_piece=False)
    reads = [(i, min(7, 97 - i)) for i in range(0, 97, 7)]
    assert [(r.start, r.n_rows) for r in planned.reads(["x"])] == reads
    for first in (True, False):
        array.reads.clear()
        for piece in stream.pieces(["x"]):
            part = slice(piece.segment.start, piece.segment.start + piece.segment.n_rows)
            expected = ("x", part.start, array.rows[part].tolist(), weights[part].tolist())
            assert copied(piece.rows) == [expected]
            assert piece.weights is not None
            assert piece.weights.tolist() == expected[3]
        assert array.reads == (reads if first else reads[resident_rows // 7 :])
    for _ in range(2):
        array.reads.clear()
        found = [copied(chunk)[0] for chunk in stream.passed(["x"])]
        assert [row for _, _, rows, _ in found for row in rows] == array.rows.tolist()
        assert array.reads == reads[resident_rows // 7 :]


@pytest.mark.parametrize("slow", ["reader", "user", "either"])
def test_a_chunk_keeps_its_values_while_the_next_is_read(slow: str) -> None:
    # RELIABILITY 17, in part: two buffers, whatever the field's size
    pauses = {"reader": ([0.004], 0.0), "user": ([0.0], 0.004), "either": ([0.0, 0.006], 0.003)}
    seconds, wait = pauses[slow]
    rows, weights = numbered(200, 3), np.arange(200) + 0.5
    source = TableSource({"x": CountingArray(rows, seconds=seconds)})
    own = open_weights({"x": weights}, source)
    stream = stream_of(source, own, resident=False, read_rows=7)
    buffers = set()
    for number, piece in enumerate(stream.pieces(["x"])):
        chunk = piece.rows
        for _ in range(2):  # before and after the reader had time to go on
            part = slice(7 * number, 7 * number + 7)
            expected = ("x", 7 * number, rows[part].tolist(), weights[part].tolist())
            assert copied(chunk) == [expected]
            time.sleep(wait)
        buffers.add(chunk.values.ctypes.data)
    assert number == 28
    assert len(buffers) == 2


def test_fields_without_weights_weigh_one_beside_others() -> None:
    source = open_tables({"a": numbered(5, 2), "b": numbered(6, 2), "c": numbered(7, 2)})
    own = open_weights({"b": np.arange(6)}, source)
    (chunk,) = stream_of(source, own, resident=True, read_rows=4).passed(["a", "b", "c"])
    assert [weights for *_, weights in copied(chunk)] == [[1.0] * 5, [*range(6)], [1.0] * 7]
    (chunk,) = stream_of(source, resident=True, read_rows=4).passed(["a"])
    assert chunk.weights is None


def test_a_field_without_rows_yields_nothing() -> None:
    source = open_tables({"a": numbered(5, 2), "b": np.zeros((0, 2), np.float32)})
    stream = stream_of(source, resident=True, read_rows=4)
    assert list(stream.pieces(["b"])) == []
    assert [piece.segment.n_rows for piece in stream.pieces(["a", "b"])] == [4, 1]
    assert [chunk.layout.n_rows for chunk in stream.passed(["b"])] == [5]


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("fails_at", [0, 6, 7, 50, 96])
def test_an_error_of_the_reading_thread_reaches_the_user(resident: bool, fails_at: int) -> None:
    # RELIABILITY 48, in part: one part that fails stops the rest, and no thread stays behind
    before = threading.active_count()
    source = TableSource({"x": CountingArray(numbered(97, 3), fails_at=fails_at)})
    stream = stream_of(source, resident=resident, read_rows=7)
    pieces = iter(stream.pieces(["x"]))
    for _ in range(fails_at // 7):
        assert next(pieces).segment.n_rows == 7
    with pytest.raises(SourceError, match=f"row {fails_at} cannot be read"):
        next(pieces)
    with pytest.raises(SourceError, match=f"row {fails_at} cannot be read"):
        list(stream.passed(["x"]))  # what was not read is not taken for read
    assert threading.active_count() == before


def test_a_user_may_stop_early() -> None:
    before = threading.active_count()
    array = CountingArray(numbered(97, 3))
    for resident in (True, False):
        stream = stream_of(TableSource({"x": array}), resident=resident, read_rows=7)
        pieces = stream.pieces(["x"])
        next(iter(pieces))
        pieces.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
        found = [row for chunk in stream.passed(["x"]) for row in copied(chunk)[0][2]]
        assert found == array.rows.tolist()


class NumbersOnDemand:
    """A field of any length: the first value of a read says where it started."""

    def read(self, field: str, start: int, out: Float32) -> None:
        out[0] = start // 2**20
        out[-1] = (start + len(out)) % 2**20


def test_rows_above_32_bits_are_asked_for() -> None:
    # RELIABILITY 9, 11, 12
    n = 2**32 + 5
    planned = ResidencySet((FieldWork("x", n, 1, False, 2),), 0, 2**20)
    source = cast("TableSource", NumbersOnDemand())
    chunks = 0
    for piece in RowStream(source, None, planned, CpuBackend(1), by_piece=True).pieces(["x"]):
        segment, chunk = piece.segment, piece.rows
        assert segment.start == chunks * 2**20
        assert chunk.values[-1] == (segment.start + segment.n_rows) % 2**20
        if segment.n_rows > 1 and chunks < 2**12:
            assert chunk.values[0] == chunks
        chunks += 1
    assert chunks == 4097
    assert segment.start + segment.n_rows == n


def test_compress_reads_a_field_that_fits_once(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((3000, 4)).astype(np.float32)
    many = rng.standard_normal((60_000, 4)).astype(np.float32)
    arrays = {"fits": CountingArray(rows), "too large": CountingArray(many)}
    artifact = saec.compress(
        TableSource(arrays), codewords=4, out=tmp_path / "a.saec", memory="600kB", threads=1,
        max_iter=3, tol=0.0, fast=False,
    )  # fmt: skip
    assert arrays["fits"].rows_read == 3000
    # statistics, each pass of the fit, codes: each reads what does not stay
    assert artifact["too large"].record["iterations"] == 3
    (_, planned) = artifact.run["residency_sets"]
    stay = planned["resident_rows"]
    assert 0 < stay < 60_000
    assert arrays["too large"].rows_read == stay + 5 * (60_000 - stay)
