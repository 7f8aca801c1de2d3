"""Which rows are read when: sets of fields that fit in memory, and rows read ahead of their use.

A field that fits is read once: fields are grouped into sets that fit the budget, and each set is
fitted to its end before the next is read. Of a field larger than the budget the first rows stay;
the others are read anew in each pass. The memory is the backend's: a device's own where it has one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saec_gpu.backends.protocol import Backend, StorePlan
from saec_gpu.clustering.sampling import sample_size
from saec_gpu.data import Chunk, Float32, Float64
from saec_gpu.errors import ParamError
from saec_gpu.layout import Layout, Segment, lay_out
from saec_gpu.sources import TableSource, WeightSource
from saec_gpu.sources.stored import as_float32, storage_dtype

READ_BYTES = 32 * 2**20  # one read: long enough for any disk, short beside any budget
LEAST_READ_ROWS = 1024
MOST_CHUNK_ROWS = 2**30
WEIGHT_BYTES = 8  # float64
READ_SHARE = 16  # of what the budget leaves for rows, one part is the most that one read takes
FLOAT32 = np.dtype(np.float32)
READS_HELD = 2  # one in use, one being read: what a backend on the host needs


def row_dtype(table_dtype: str, backend: Backend) -> np.dtype[Any]:
    """Return the dtype in which a backend holds rows of a table (bfloat16: uint16)."""
    return storage_dtype(table_dtype if table_dtype in backend.row_dtypes else "float32")


@dataclass(frozen=True)
class FieldWork:
    """What planning needs to know of a field.

    Attributes
    ----------
    name : str
    n_rows, dim : int
    weighted : bool
    n_codewords : int
    dtype : numpy dtype
        Of its rows while it is clustered.
    selected : int
        Rows that stand for all while it is clustered, so that all are read but once; 0: none do.
    """

    name: str
    n_rows: int
    dim: int
    weighted: bool
    n_codewords: int
    dtype: np.dtype[Any] = FLOAT32
    selected: int = 0

    @property
    def n_kept(self) -> int:
        """Return the rows that are kept for the next pass, where the memory allows it."""
        return 0 if self.selected else self.n_rows

    @property
    def row_bytes(self) -> int:
        """Return the bytes a row takes while it is clustered: values, weight, code."""
        return self.dtype.itemsize * self.dim + WEIGHT_BYTES * self.weighted + 4

    @property
    def piece_row_bytes(self) -> int:
        """Return the bytes a row of a read takes at most: with draws, priorities and distances."""
        return self.dtype.itemsize * self.dim + WEIGHT_BYTES * self.weighted + 48

    def working_bytes(self, threads: int) -> int:
        """Return the bytes of everything but rows: sample, distinct rows, codebooks, partials."""
        values = self.n_codewords * self.dim
        sample = sample_size(self.selected or self.n_rows, self.n_codewords)
        # codewords, words, panels and their making in float64; two limbs a thread, and their sum
        codebooks = values * (4 * 6 + 8 * 4 + 16 * (threads + 2)) + self.n_codewords * 64
        # candidates up to twice the sample, joined, thinned; its transpose and distances
        samples = sample * (5 * (4 * self.dim + 24) + 24)
        distinct = min(self.n_codewords + 1, self.n_rows) * 2 * (4 * self.dim + 48)
        # rows and weights, in memory and, for the time of the fit, where the backend works
        selected = self.selected * 2 * (4 * self.dim + 24)
        return codebooks + samples + distinct + selected

    def resident_bytes(self, threads: int) -> int:
        """Return the bytes of a field whose rows stay in memory, without those of a read."""
        return self.working_bytes(threads) + self.n_kept * self.row_bytes

    def streamed_bytes(self, threads: int, reads_held: int) -> int:
        """Return the least bytes with which a field can be clustered."""
        reading = reads_held * min(LEAST_READ_ROWS, self.n_rows) * self.piece_row_bytes
        return self.working_bytes(threads) + reading


@dataclass(frozen=True)
class ResidencySet:
    """Fields that are clustered together, all of one dtype.

    Attributes
    ----------
    fields : tuple of FieldWork
        One alone, where it is larger than the memory.
    resident_rows : int
        Rows that are read once and stay: all that are kept, or the first ones of one large field,
        whose others are read anew each pass.
    read_rows : int
        Rows of one read.
    spare : int
        Bytes of the memory that are left.
    """

    fields: tuple[FieldWork, ...]
    resident_rows: int
    read_rows: int
    spare: int = 0

    @property
    def resident(self) -> bool:
        """Return whether every row is read once."""
        return self.resident_rows == sum(work.n_kept for work in self.fields)

    def bytes_held(self, threads: int, reads_held: int) -> int:
        """Return the bytes that clustering the set takes at most."""
        working = sum(work.working_bytes(threads) for work in self.fields)
        reads = max(min(self.read_rows, work.n_rows) * work.piece_row_bytes for work in self.fields)
        return working + reads_held * reads + self.rows_held()

    def rows_held(self) -> int:
        """Return the bytes of all rows that stay; if any field is weighted, each has a weight."""
        weighted = any(work.weighted for work in self.fields)
        if not self.resident:
            return self.fields[0].row_bytes * self.resident_rows
        return sum(replace(work, weighted=weighted).row_bytes * work.n_kept for work in self.fields)

    def resident_layout(self) -> Layout:
        """Return where the rows that stay lie."""
        if self.resident:
            kept = [work for work in self.fields if work.n_kept]
            return lay_out((work.name, 0, work.n_rows, work.dim) for work in kept)
        (work,) = self.fields
        return lay_out([(work.name, 0, self.resident_rows, work.dim)])

    def store_plan(self) -> StorePlan:
        """Return what a store of the rows must have room for."""
        reads = [(min(self.read_rows, work.n_rows), work.dim) for work in self.fields]
        return StorePlan(
            self.resident_layout(),
            self.fields[0].dtype,
            max(n_rows for n_rows, _ in reads),
            max(n_rows * dim for n_rows, dim in reads),
            any(work.weighted for work in self.fields),
            self.spare,
        )

    def reads(self, fields: Collection[str]) -> Iterator[Read]:
        """Yield the reads that one pass over these fields is made of, each row once, in order."""
        for work in self.fields:
            if work.name not in fields:
                continue
            stay = work.n_kept if self.resident else self.resident_rows
            for start, stop, stays in ((0, stay, True), (stay, work.n_rows, False)):
                for first in range(start, stop, self.read_rows):
                    n_rows = min(self.read_rows, stop - first)
                    yield Read(work.name, first, n_rows, work.dim, stays)


@dataclass(frozen=True)
class Read:
    """Rows of one field that are read at once; `stays`: they are read in the first pass only."""

    field: str
    start: int
    n_rows: int
    dim: int
    stays: bool


def plan_sets(
    fields: Iterable[FieldWork],
    *,
    memory: int,
    threads: int,
    chunk_rows: int | None,
    reads_held: int = READS_HELD,
) -> tuple[ResidencySet, ...]:
    """Return the sets, each as large as the memory allows, in the order of dtypes and of fields.

    A launch of a kernel, and so a set, takes rows of one dtype.

    Parameters
    ----------
    fields : iterable of FieldWork
    memory : int
        Bytes for rows and everything made from them.
    threads : int
    chunk_rows : int or None
        Rows of one read; None chooses.
    reads_held : int
        Reads that are in memory at once.

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
            n_kept = sum(work.n_kept for work in together)
            sets.append(ResidencySet(tuple(together), n_kept, read_rows, memory - held.total))
        together.clear()
        held = _Held()

    for work in sorted(fields, key=lambda work: work.dtype.name):
        read_rows = chunk_rows or _read_rows(work, memory)
        if together and together[0].dtype != work.dtype:
            close()
        if held.plus(work, read_rows, reads_held, threads).total > memory:
            close()
        if held.plus(work, read_rows, reads_held, threads).total <= memory:
            held = held.plus(work, read_rows, reads_held, threads)
            together.append(work)
        else:
            sets.append(_streamed(work, memory, threads, chunk_rows, reads_held))
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

    def plus(self, work: FieldWork, read_rows: int, reads_held: int, threads: int) -> _Held:
        reads = reads_held * min(read_rows, work.n_rows) * work.piece_row_bytes
        return _Held(
            self.working + work.working_bytes(threads),
            self.rows + work.n_kept * replace(work, weighted=False).row_bytes,
            self.weights + work.n_kept * WEIGHT_BYTES,
            self.weighted or work.weighted,
            max(self.reads, reads),
        )


def _streamed(
    work: FieldWork, memory: int, threads: int, chunk_rows: int | None, reads_held: int
) -> ResidencySet:
    """Return the set of a field of which only the first rows stay."""
    least = work.streamed_bytes(threads, reads_held)
    if least > memory:
        raise ParamError(
            f'memory of {memory} bytes was given, but field "{work.name}" with '
            f"{work.n_codewords} codewords of dim {work.dim} needs {least} beside its rows; "
            "give more memory, fewer codewords or fewer threads"
        )
    free = memory - work.working_bytes(threads)
    room = free // (reads_held * work.piece_row_bytes)
    if chunk_rows is not None and min(chunk_rows, work.n_rows) > room:
        raise ParamError(
            f"memory of {memory} bytes was given with chunk_rows of {chunk_rows}, but at most "
            f'{room} rows of field "{work.name}" fit at once; give fewer rows, or more memory'
        )
    read_rows = min(chunk_rows or min(_read_rows(work, memory), room), work.n_rows)
    stay = max(0, free - reads_held * read_rows * work.piece_row_bytes) // work.row_bytes
    stay = min(stay, max(work.n_kept - 1, 0)) // read_rows * read_rows
    return ResidencySet((work,), stay, read_rows)


def _read_rows(work: FieldWork, memory: int) -> int:
    """Return the rows of one read of a field."""
    room = min(READ_BYTES, memory // READ_SHARE)
    return min(MOST_CHUNK_ROWS, max(LEAST_READ_ROWS, room // work.piece_row_bytes))


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of one field, at most one read of them.

    Attributes
    ----------
    segment : Segment
        Which rows; the one segment of `layout`.
    rows : rows of the backend
        Where the backend works on them.
    weights : float64 (n_rows,) or None
        In the host's memory.
    chunk : Chunk or None
        The rows as they were read just now; None where they were read before.
    """

    segment: Segment
    rows: Any
    weights: Float64 | None
    chunk: Chunk | None

    def rows_read(self) -> Float32:
        """Return the rows that were read just now, float32 (n_rows, dim) in the host's memory."""
        assert self.chunk is not None  # asked for where nothing was read before
        return as_float32(self.chunk.rows(self.segment))


class RowStream:
    """The rows of one residency set, yielded as often as asked, where a backend works on them.

    Parameters
    ----------
    tables : TableSource
    weights : WeightSource or None
    planned : ResidencySet
    backend : Backend
    by_piece : bool
        Yield reads one by one also where all rows are resident.
    """

    def __init__(
        self,
        tables: TableSource,
        weights: WeightSource | None,
        planned: ResidencySet,
        backend: Backend,
        *,
        by_piece: bool,
    ) -> None:
        self._tables = tables
        self._weights = weights
        self._planned = planned
        self._works = {work.name: work for work in planned.fields}
        self._by_piece = by_piece or planned.resident_rows > MOST_CHUNK_ROWS
        self._store = backend.open_store(planned.store_plan())
        self._held: set[str] = set()

    @property
    def spare(self) -> int:
        """Return the bytes of the memory that are left."""
        return self._planned.spare

    def rows_of(self, fields: Collection[str]) -> int:
        """Return the rows of these fields."""
        return sum(self._works[name].n_rows for name in fields)

    def passed(self, fields: Collection[str]) -> Iterator[Any]:
        """Yield the backend's rows of the fields, each row once, as few at a time as it takes.

        What is resident comes at once, and may hold rows of the set's other fields.
        """
        if self._by_piece:
            for piece in self.pieces(fields):
                yield piece.rows
            return
        missing = [name for name in fields if name not in self._held]
        for _ in self._ahead([read for read in self._planned.reads(missing) if read.stays]):
            pass
        self._held.update(missing)
        if self._planned.resident_rows:
            yield self._store.whole()
        for piece in self._ahead([read for read in self._planned.reads(fields) if not read.stays]):
            yield piece.rows

    def pieces(self, fields: Collection[str]) -> Iterator[Piece]:
        """Yield each row of the fields once, in order, one field and at most one read a piece.

        A piece that is not resident holds only until the next one is asked for.
        """
        yield from self._ahead(list(self._planned.reads(fields)))
        self._held.update(fields)

    def _ahead(self, reads: Sequence[Read]) -> Iterator[Piece]:
        """Yield pieces, the next one being read while one is used."""
        with ThreadPoolExecutor(1) as reader:
            waiting = [reader.submit(self._piece, read) for read in reads[:1]]
            for number in range(len(reads)):
                piece = waiting.pop().result()
                if number + 1 < len(reads):
                    waiting.append(reader.submit(self._piece, reads[number + 1]))
                yield piece

    def _piece(self, read: Read) -> Piece:
        layout = lay_out([(read.field, read.start, read.n_rows, read.dim)])
        (segment,) = layout.segments
        if read.stays and read.field in self._held:
            return Piece(segment, self._store.part(layout), self._store.weights(layout), None)
        chunk = self._store.room(layout, stays=read.stays)
        self._tables.read(read.field, read.start, chunk.rows(segment))
        if chunk.weights is not None:
            if self._works[read.field].weighted:
                assert self._weights is not None
                self._weights.read(read.field, read.start, chunk.weights)
            else:
                chunk.weights.fill(1.0)
        return Piece(segment, self._store.put(chunk, stays=read.stays), chunk.weights, chunk)
