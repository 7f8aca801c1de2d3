"""Which rows are read when: sets of fields that fit in memory, and rows read ahead of their use.

A field that fits is read once: fields are grouped into sets that fit the budget, and each set is
fitted to its end before the next is read. A field larger than the budget is read in chunks, in each
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from saec_gpu.clustering.sampling import sample_size
from saec_gpu.data import Chunk, Float32, Float64
from saec_gpu.errors import ParamError
from saec_gpu.layout import Segment, lay_out
from saec_gpu.sources import TableSource, WeightSource

READ_BYTES = 32 * 2**20  # one read: long enough for any disk, short beside any budget
LEAST_READ_ROWS = 1024
MOST_CHUNK_ROWS = 2**30
WEIGHT_BYTES = 8  # float64
READ_SHARE = 16  # of what the budget leaves for rows, one part is the most that one read takes
READS_HELD = 2  # one in use, one being read


@dataclass(frozen=True)
class FieldWork:
    """What planning needs to know of a field."""

    name: str
    n_rows: int
    dim: int
    weighted: bool
    n_codewords: int

    @property
    def row_bytes(self) -> int:
        """Return the bytes a row takes while it is clustered: values, weight, code."""
        return 4 * self.dim + WEIGHT_BYTES * self.weighted + 4

    @property
    def piece_row_bytes(self) -> int:
        """Return the bytes a row of a read takes at most: with draws, priorities and distances."""
        return 4 * self.dim + WEIGHT_BYTES * self.weighted + 48

    def working_bytes(self, threads: int) -> int:
        """Return the bytes of everything but rows: sample, distinct rows, codebooks, partials."""
        values = self.n_codewords * self.dim
        sample = sample_size(self.n_rows, self.n_codewords)
        # codewords, words, panels and their making in float64; two limbs a thread, and their sum
        codebooks = values * (4 * 6 + 8 * 4 + 16 * (threads + 2)) + self.n_codewords * 64
        # candidates up to twice the sample, joined, thinned; its transpose and distances
        samples = sample * (5 * (4 * self.dim + 24) + 24)
        distinct = min(self.n_codewords + 1, self.n_rows) * 2 * (4 * self.dim + 48)
        return codebooks + samples + distinct

    def resident_bytes(self, threads: int) -> int:
        """Return the bytes of a field whose rows stay in memory, without those of a read."""
        return self.working_bytes(threads) + self.n_rows * self.row_bytes

    def streamed_bytes(self, threads: int) -> int:
        """Return the least bytes with which a field can be clustered."""
        reading = READS_HELD * LEAST_READ_ROWS * self.piece_row_bytes
        return self.working_bytes(threads) + reading


@dataclass(frozen=True)
class ResidencySet:
    """Fields that are clustered together.

    Attributes
    ----------
    fields : tuple of FieldWork
    resident : bool
        Rows are read once and stay; else the one field is read anew each pass.
    read_rows : int
        Rows of one read.
    """

    fields: tuple[FieldWork, ...]
    resident: bool
    read_rows: int

    def bytes_held(self, threads: int) -> int:
        """Return the bytes that clustering the set takes at most."""
        working = sum(work.working_bytes(threads) for work in self.fields)
        reads = max(min(self.read_rows, work.n_rows) * work.piece_row_bytes for work in self.fields)
        return working + READS_HELD * reads + (self.rows_held() if self.resident else 0)

    def rows_held(self) -> int:
        """Return the bytes of all rows; if any field is weighted, each row has a weight."""
        weighted = any(work.weighted for work in self.fields)
        return sum(replace(work, weighted=weighted).row_bytes * work.n_rows for work in self.fields)


def plan_sets(
    fields: Iterable[FieldWork], *, memory: int, threads: int, chunk_rows: int | None
) -> tuple[ResidencySet, ...]:
    """Return the sets, in the order of the fields, each as large as the memory allows.

    Parameters
    ----------
    fields : iterable of FieldWork
    memory : int
        Bytes for rows and everything made from them.
    threads : int
    chunk_rows : int or None
        Rows of one read; None chooses.

    Raises
    ------
    ParamError
        The memory does not hold what one field needs beside its rows.
    """
    sets: list[ResidencySet] = []
    together: list[FieldWork] = []
    held = _Held()

    def close() -> None:
        nonlocal held
        if together:
            read_rows = chunk_rows or min(_read_rows(work, memory) for work in together)
            sets.append(ResidencySet(tuple(together), True, read_rows))
        together.clear()
        held = _Held()

    for work in fields:
        read_rows = chunk_rows or _read_rows(work, memory)
        if held.plus(work, read_rows, threads).total > memory:
            close()
        if held.plus(work, read_rows, threads).total <= memory:
            held = held.plus(work, read_rows, threads)
            together.append(work)
        else:
            sets.append(_streamed(work, memory, threads, chunk_rows))
    close()
    return tuple(sets)


@dataclass(frozen=True)
class _Held:
    """Bytes that a resident set takes at most, field by field, so that planning stays linear."""

    working: int = 0
    rows: int = 0  # without weights
    weights: int = 0  # of all rows
    weighted: bool = False
    reads: int = 0

    @property
    def total(self) -> int:
        return self.working + self.rows + self.reads + (self.weights if self.weighted else 0)

    def plus(self, work: FieldWork, read_rows: int, threads: int) -> _Held:
        reads = READS_HELD * min(read_rows, work.n_rows) * work.piece_row_bytes
        return _Held(
            self.working + work.working_bytes(threads),
            self.rows + work.n_rows * replace(work, weighted=False).row_bytes,
            self.weights + work.n_rows * WEIGHT_BYTES,
            self.weighted or work.weighted,
            max(self.reads, reads),
        )


def _streamed(work: FieldWork, memory: int, threads: int, chunk_rows: int | None) -> ResidencySet:
    """Return the set of a field that is read anew in each pass."""
    least = work.streamed_bytes(threads)
    if least > memory:
        raise ParamError(
            f'memory of {memory} bytes was given, but field "{work.name}" with '
            f"{work.n_codewords} codewords of dim {work.dim} needs {least} beside its rows; "
            "give more memory, fewer codewords or fewer threads"
        )
    room = (memory - work.working_bytes(threads)) // (READS_HELD * work.piece_row_bytes)
    if chunk_rows is not None and min(chunk_rows, work.n_rows) > room:
        raise ParamError(
            f"memory of {memory} bytes was given with chunk_rows of {chunk_rows}, but at most "
            f'{room} rows of field "{work.name}" fit at once; give fewer rows, or more memory'
        )
    return ResidencySet((work,), False, chunk_rows or min(_read_rows(work, memory), room))


def _read_rows(work: FieldWork, memory: int) -> int:
    """Return the rows of one read of a field."""
    room = min(READ_BYTES, memory // READ_SHARE)
    return min(MOST_CHUNK_ROWS, max(LEAST_READ_ROWS, room // work.piece_row_bytes))


PieceFunction = Callable[[Segment, int, int], Chunk]


class RowStream:
    """The rows of one residency set, yielded in chunks as often as asked.

    Parameters
    ----------
    tables : TableSource
    weights : WeightSource or None
    planned : ResidencySet
    by_piece : bool
        Yield reads one by one also where all rows are resident.
    """

    def __init__(
        self,
        tables: TableSource,
        weights: WeightSource | None,
        planned: ResidencySet,
        *,
        by_piece: bool,
    ) -> None:
        self._tables = tables
        self._weights = weights
        self._planned = planned
        self._works = {work.name: work for work in planned.fields}
        self._layout = lay_out((w.name, 0, w.n_rows, w.dim) for w in planned.fields)
        self._by_piece = by_piece or not planned.resident or self._layout.n_rows > MOST_CHUNK_ROWS
        self._weighted = any(work.weighted for work in planned.fields)
        self._values: Float32 | None = None
        self._row_weights: Float64 | None = None
        self._loaded: set[str] = set()

    def rows_of(self, fields: Collection[str]) -> int:
        """Return the rows of these fields."""
        return sum(self._works[name].n_rows for name in fields)

    def chunks(self, fields: Collection[str]) -> Iterator[Chunk]:
        """Yield each row of the fields once, all in one chunk where they are resident.

        A chunk may also hold rows of the set's other fields.
        """
        if self._by_piece:
            yield from self.pieces(fields)
            return
        missing = [name for name in fields if name not in self._loaded]
        for _ in self.pieces(missing):
            pass
        assert self._values is not None or not self._layout.n_values
        values = self._values if self._values is not None else np.zeros(0, np.float32)
        yield Chunk(self._layout, values, self._row_weights)

    def pieces(self, fields: Collection[str]) -> Iterator[Chunk]:
        """Yield each row of the fields once, in order, one field and at most one read a chunk.

        A chunk that is not resident holds only until the next one is asked for.
        """
        if self._planned.resident:
            yield from self._resident_pieces(fields)
        else:
            yield from self._streamed_pieces(fields)

    def _runs(self, fields: Collection[str]) -> Iterator[tuple[Segment, int, int]]:
        step = self._planned.read_rows
        for segment in self._layout.segments:
            if segment.field in fields:
                for start in range(0, segment.n_rows, step):
                    yield segment, start, min(step, segment.n_rows - start)

    def _resident_pieces(self, fields: Collection[str]) -> Iterator[Chunk]:
        if self._values is None:
            self._values = np.empty(self._layout.n_values, np.float32)
            self._row_weights = np.ones(self._layout.n_rows) if self._weighted else None
        values, row_weights = self._values, self._row_weights

        def piece(segment: Segment, start: int, n_rows: int) -> Chunk:
            first = segment.first_value + start * segment.dim
            row = segment.first_row + start
            chunk = Chunk(
                lay_out([(segment.field, start, n_rows, segment.dim)]),
                values[first : first + n_rows * segment.dim],
                None if row_weights is None else row_weights[row : row + n_rows],
            )
            if segment.field not in self._loaded:
                self._read(chunk)
            return chunk

        yield from self._ahead(fields, piece)
        self._loaded.update(fields)

    def _streamed_pieces(self, fields: Collection[str]) -> Iterator[Chunk]:
        (work,) = self._planned.fields
        step = min(self._planned.read_rows, work.n_rows)
        slots = [np.empty(step * work.dim, np.float32) for _ in range(READS_HELD)]
        weight_slots = [np.empty(step if work.weighted else 0) for _ in range(READS_HELD)]

        def piece(segment: Segment, start: int, n_rows: int) -> Chunk:
            slot = start // step % READS_HELD
            chunk = Chunk(
                lay_out([(segment.field, start, n_rows, segment.dim)]),
                slots[slot][: n_rows * segment.dim],
                weight_slots[slot][:n_rows] if work.weighted else None,
            )
            self._read(chunk)
            return chunk

        yield from self._ahead(fields, piece)

    def _ahead(self, fields: Collection[str], piece: PieceFunction) -> Iterator[Chunk]:
        """Yield pieces, the next one being read while one is used."""
        runs = list(self._runs(fields))
        with ThreadPoolExecutor(1) as reader:
            waiting = [reader.submit(piece, *run) for run in runs[:1]]
            for number in range(len(runs)):
                chunk = waiting.pop().result()
                if number + 1 < len(runs):
                    waiting.append(reader.submit(piece, *runs[number + 1]))
                yield chunk

    def _read(self, chunk: Chunk) -> None:
        (segment,) = chunk.layout.segments
        self._tables.read(segment.field, segment.start, chunk.rows(segment))
        if chunk.weights is not None and self._works[segment.field].weighted:
            assert self._weights is not None
            self._weights.read(segment.field, segment.start, chunk.weights)
