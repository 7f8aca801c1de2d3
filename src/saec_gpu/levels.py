"""Codes in levels: fewer bits than ceil(log2 k) where some codewords serve many more rows.

Directly addressable codes (Brisaboa, Ladra, Navarro, Inf. Process. Manag. 49(1), 2013, doi
10.1016/j.ipm.2012.08.003), cut by value instead of by digits. Codewords are numbered by how many
rows use them, most first. Level l holds the class of the 2^b_l codes that come next, b_l ≥ 0; the
last level takes all that are left. Of each row that reaches a level but the last, a bitmap says
whether it goes on (1) or stays (0); a row that stays has b_l payload bits there, its code less the
first of the class, and pays nothing at the levels it passed. A row's place in the next level is the
number of ones before its bit, its place among the payloads of its own level the number of zeros.
Any row takes one count a level and no decompression. As in the paper (section 5), the cheapest
classes are found by dynamic programming; here over exact bytes, counters included.

A file holds, little-endian, without gaps, for the levels 1 … L−1 in order

    the bitmaps, in blocks of 496 rows and 64 bytes, one line of a cache: 16 bits with the ones
    before the middle of the block (so that a count passes half a block at most), counted from the
    last 128th block on, then the bits of the rows; bit i of a block is bit i mod 64 of its word of
    64 bits i // 64, and of the last block only the words with a row are there;
    uint64, the ones before every 128th block;

and then for all levels 1 … L the payloads, ceil(n·b_l / 8) bytes each, row i in the bits i·b_l and
up, low bits first, across bytes, so that one is found in one line of a cache (in planes it would
be in two or three); and three bytes 0, so that any of them can be read as four bytes. The counters
take 3.2 % of a bitmap.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saec_gpu.durable import flush, write_error
from saec_gpu.errors import ArtifactError
from saec_gpu.packing import (
    HEADER_BYTES,
    code_bits,
    code_dtype,
    npy_header,
    open_packed,
    open_planes,
    packed_size,
    row_numbers,
    unpack,
)

# On trained tables a sixth level would save half a percent; each one more is a count in a bitmap.
MOST_LEVELS = 5

MOST_BITS = 25  # of a payload: it is read as four bytes, from the byte that it begins in

WORD_BYTES, WORD_BITS = 8, 64
BLOCK_BYTES, COUNTER_BITS = 64, 16
HALF_BLOCK_ROWS = 4 * BLOCK_BYTES - COUNTER_BITS  # the first half
BLOCK_ROWS = 8 * BLOCK_BYTES - COUNTER_BITS
SPARE_BYTES = 3
SUPER_ROWS = 128 * BLOCK_ROWS  # 16 bits count the ones of so many and a half block

LEVELS_ENDING = ".levels"  # of a file that is being made

# Codes are encoded and decoded in steps of this many rows, so that temporaries stay small.
_STEP_ROWS = 1 << 18


@dataclass(frozen=True)
class Levels:
    """How the codes of one field are cut into levels.

    Attributes
    ----------
    bits : tuple of int
        b_l, the payload bits of each level.
    rows : tuple of int
        Rows that reach each level, those that stay there included.
    """

    bits: tuple[int, ...]
    rows: tuple[int, ...]

    def check(self, n_rows: int, codewords: int) -> None:
        """Refuse levels that no `choose_levels` of so many rows and codewords could return.

        Raises
        ------
        ArtifactError
            Fewer than two levels, numbers of another type, more codes than codewords, other bits at
            the last level than the codes that are left need, or a level with more rows than the one
            before it.
        """
        numbers = (*self.bits, *self.rows)
        if (
            all(type(number) is int and number >= 0 for number in numbers)
            and len(self.bits) == len(self.rows) >= 2
            and max(self.bits) <= MOST_BITS
            and self.first_codes[-1] < codewords
            and self.bits[-1] == code_bits(codewords - self.first_codes[-1])
            and self.rows[0] == n_rows > 0
            and min(self.staying) >= 0
        ):
            return
        raise ArtifactError(
            f"{n_rows} rows with {codewords} codewords cannot have levels of {list(self.bits)} "
            f"bits that {list(self.rows)} rows reach"
        )

    @property
    def first_codes(self) -> tuple[int, ...]:
        """The least code of each class."""
        starts = [0]
        for bits in self.bits[:-1]:
            starts.append(starts[-1] + (1 << bits))
        return tuple(starts)

    @property
    def staying(self) -> tuple[int, ...]:
        """How many rows end in each level."""
        return tuple(
            rows - later for rows, later in zip(self.rows, (*self.rows[1:], 0), strict=True)
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Bits of a code of each class: one of each bitmap that it is in, and its payload."""
        bitmaps = (*range(1, len(self.bits)), len(self.bits) - 1)
        return tuple(passed + own for passed, own in zip(bitmaps, self.bits, strict=True))

    def of(self, uses: NDArray[np.int64]) -> Levels:
        """Return the same classes with other rows of each code, int64 (k,)."""
        return Levels(self.bits, tuple(int(uses[first:].sum()) for first in self.first_codes))

    @property
    def size(self) -> int:
        """Bytes of the codes: bitmaps, counters, payloads."""
        return _places(self).end


def bitmap_bytes(n_rows: Any) -> Any:
    """Return the bytes of a bitmap of so many rows, an int or an array of them.

    >>> [bitmap_bytes(n_rows) for n_rows in (0, 1, 48, 49, 496)]
    [0, 8, 8, 16, 64]
    """
    bits = n_rows % BLOCK_ROWS + COUNTER_BITS  # of the last block, which may have no rows
    words = (bits + (WORD_BITS - 1)) // WORD_BITS - (bits == COUNTER_BITS)
    return n_rows // BLOCK_ROWS * BLOCK_BYTES + words * WORD_BYTES


def super_bytes(n_rows: Any) -> Any:
    """Return the bytes of the 64-bit counters of a bitmap, likewise.

    >>> super_bytes(0), super_bytes(1), super_bytes(63489)
    (0, 8, 16)
    """
    return (n_rows + (SUPER_ROWS - 1)) // SUPER_ROWS * 8


def payload_bytes(n_rows: Any, bits: int) -> Any:
    """Return the bytes of the payloads of so many rows, likewise.

    >>> payload_bytes(1000, 11), payload_bytes(3, 2)
    (1375, 1)
    """
    return (n_rows * bits + 7) // 8


def shorter_levels(uses: NDArray[np.int64]) -> Levels | None:
    """Return the levels that take the fewest bytes, None if planes take no more.

    `uses` are the rows of each code, int64 (k,).
    """
    levels = choose_levels(uses)
    if levels is None or levels.size >= packed_size(levels.rows[0], len(uses)):
        return None
    return levels


def choose_levels(uses: NDArray[np.int64]) -> Levels | None:
    """Return the levels that take the fewest bytes; None if one level does.

    Parameters
    ----------
    uses : int64 (k,)
        Rows of each code.

    Notes
    -----
    Of levels with the same bytes the fewest, of these the ones with the smallest first class.
    Time O(L·k·log k), a second for 2^20 codewords.

    Examples
    --------
    Of a thousand rows nine hundred have code 0, which is then told by one bit:

    >>> choose_levels(np.array([900, 30, 30, 20, 20]))
    Levels(bits=(0, 2), rows=(1000, 100))
    """
    codewords = len(uses)
    reaching = np.append(np.cumsum(uses[::-1], dtype=np.int64)[::-1], 0)  # rows from a code on
    bitmaps = bitmap_bytes(reaching) + super_bytes(reaching)
    last = np.zeros(codewords, np.int64)  # bytes of all codes from one on, in one level
    for bits in range(1, code_bits(codewords) + 1):
        here = slice(max(codewords - (1 << bits), 0), codewords - (1 << (bits - 1)))
        last[here] = payload_bytes(reaching[here], bits)
    # best[c]: bytes of the codes from c on, in as many levels as there were rounds, at most
    best = last
    chosen: list[NDArray[np.int8]] = []
    for _ in range(MOST_LEVELS - 1):
        least = best.copy()
        widths = chosen[-1].copy() if chosen else np.full(codewords, -1, np.int8)
        for bits in range(code_bits(codewords)):
            later = 1 << bits  # first code of the next level, from the first of this one
            here = slice(0, codewords - later)
            staying = reaching[here] - reaching[later:-1]
            cost = bitmaps[here] + payload_bytes(staying, bits) + best[later:]
            fewer = cost < least[here]
            least[here][fewer] = cost[fewer]
            widths[here][fewer] = bits
        best = least
        chosen.append(widths)
    classes: list[int] = []
    code = 0
    starts = [0]
    for widths in reversed(chosen):
        if widths[code] < 0:
            break
        classes.append(int(widths[code]))
        code += 1 << classes[-1]
        starts.append(code)
    if not classes:
        return None
    classes.append(code_bits(codewords - code))
    return Levels(tuple(classes), tuple(int(reaching[start]) for start in starts))


class _Places(NamedTuple):
    """Where the parts of each level begin, in bytes from the first bitmap, and where all end."""

    bitmaps: tuple[int, ...]
    supers: tuple[int, ...]
    payloads: tuple[int, ...]
    end: int


def _places(levels: Levels) -> _Places:
    found, start = [], 0
    for sizes in (
        map(bitmap_bytes, levels.rows[:-1]),
        map(super_bytes, levels.rows[:-1]),
        map(payload_bytes, levels.staying, levels.bits),
    ):
        *starts, start = accumulate(sizes, initial=start)
        found.append(tuple(starts))
    bitmaps, supers, payloads = found
    return _Places(bitmaps, supers, payloads, start + SPARE_BYTES)


def encode_in_levels(
    path: Path,
    codewords: int,
    levels: Levels,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Replace a file of a field's codes in planes by one in levels, in one step and flushed.

    Parameters
    ----------
    path : Path
        A finished file of a `PlaneWriter`. The new one is made beside it, under a name that ends in
        `LEVELS_ENDING`; a hard link to the old one keeps its bytes.
    codewords : int
    levels : Levels
        Of these codes, as `choose_levels` returns them.
    progress : function
        Called with the number of rows that were encoded so far, after each 2^18 and at the end.

    Raises
    ------
    ArtifactError
        The file cannot be written. What was at path is intact then, and nothing is left beside it.

    Notes
    -----
    Holds a few arrays of 2^18 rows.
    """
    beside = path.with_name(path.name + LEVELS_ENDING)
    try:
        with path.open("rb") as planes:
            packed = open_planes(planes, levels.rows[0], codewords)
        with beside.open("wb") as file:
            file.write(npy_header(levels.size))
            file.truncate(HEADER_BYTES + levels.size)  # the spare bytes are zero
            _write_sections(file, packed, codewords, levels, progress)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        flush(path.parent)
    except OSError as err:
        raise write_error(path, err) from err
    finally:
        beside.unlink(missing_ok=True)


def _write_sections(
    file: BinaryIO,
    packed: NDArray[np.uint8],
    codewords: int,
    levels: Levels,
    progress: Callable[[int], None],
) -> None:
    def at(start: int) -> Callable[[int, memoryview], None]:
        def write(place: int, data: memoryview) -> None:
            file.seek(HEADER_BYTES + start + place)
            file.write(data)

        return write

    places = _places(levels)
    bitmaps = [
        _BitmapWriter(at(bitmap), at(supers))
        for bitmap, supers in zip(places.bitmaps, places.supers, strict=True)
    ]
    payloads = [
        _PayloadWriter(bits, at(start))
        for bits, start in zip(levels.bits, places.payloads, strict=True)
    ]
    n_rows, first_codes = levels.rows[0], levels.first_codes
    for first in range(0, n_rows, _STEP_ROWS):
        last = min(first + _STEP_ROWS, n_rows)
        codes = unpack(packed, n_rows, codewords, first, last)
        for level, next_code in enumerate(first_codes[1:]):
            goes = codes >= next_code
            bitmaps[level].append(goes)
            payloads[level].append(codes[~goes] - first_codes[level])
            codes = codes[goes]
        payloads[-1].append(codes - first_codes[-1])
        progress(last)
    for bitmap in bitmaps:
        bitmap.finish()
    for section in payloads:
        section.finish()


class _PayloadWriter:
    """Turns the payloads of a level that come chunk after chunk into bytes."""

    def __init__(self, bits: int, write: Callable[[int, memoryview], None]) -> None:
        self._bits = bits
        self._write_bytes = write
        self._rows = 0  # written
        self._waiting = np.empty(0, np.uint8)  # up to 7 rows, until they fill whole bytes

    def append(self, payloads: NDArray[Any]) -> None:
        payloads = np.concatenate([self._waiting, payloads])
        whole = len(payloads) - len(payloads) % 8
        self._write(payloads[:whole])
        self._waiting = payloads[whole:]

    def finish(self) -> None:
        self._write(self._waiting)

    def _write(self, payloads: NDArray[Any]) -> None:
        bits = (payloads[:, None] >> np.arange(self._bits, dtype=payloads.dtype)) & 1
        packed = np.packbits(bits.astype(np.bool_), bitorder="little")
        self._write_bytes(self._rows * self._bits // 8, packed.data)
        self._rows += len(payloads)


class _BitmapWriter:
    """Turns the bits of a bitmap that come chunk after chunk into blocks with their counters."""

    def __init__(
        self,
        write_blocks: Callable[[int, memoryview], None],
        write_supers: Callable[[int, memoryview], None],
    ) -> None:
        self._write_blocks = write_blocks
        self._write_supers = write_supers
        self._blocks = 0  # written
        self._ones = 0  # in them
        self._ones_of_super = 0  # of these, before the last 128th
        self._waiting = np.empty(0, np.bool_)  # rows that do not fill a block yet

    def append(self, goes: NDArray[np.bool_]) -> None:
        goes = np.concatenate([self._waiting, goes])
        whole = len(goes) - len(goes) % BLOCK_ROWS
        self._write(goes[:whole].reshape(-1, BLOCK_ROWS))
        self._waiting = goes[whole:]

    def finish(self) -> None:
        if len(self._waiting):
            self._write(self._waiting[None])

    def _write(self, goes: NDArray[np.bool_]) -> None:
        """Write blocks of the same number of rows, (blocks, rows)."""
        until = self._ones + np.cumsum(goes.sum(axis=1, dtype=np.int64))
        ones = np.concatenate([[self._ones], until])[:-1]
        before_middle = ones + goes[:, :HALF_BLOCK_ROWS].sum(axis=1, dtype=np.int64)
        per_super = SUPER_ROWS // BLOCK_ROWS
        is_super = (self._blocks + np.arange(len(goes))) % per_super == 0
        # Counts never fall, so the greatest so far is that of the last super.
        supers = np.maximum.accumulate(np.where(is_super, ones, self._ones_of_super))
        bits = np.zeros((len(goes), bitmap_bytes(goes.shape[1]) * 8), np.bool_)
        bits[:, COUNTER_BITS : COUNTER_BITS + goes.shape[1]] = goes
        blocks = np.packbits(bits, axis=1, bitorder="little")
        counters = (before_middle - supers).astype("<u2")
        blocks[:, : COUNTER_BITS // 8] = counters[:, None].view(np.uint8)
        self._write_blocks(self._blocks * BLOCK_BYTES, blocks.reshape(-1).data)
        first_super = -(-self._blocks // per_super)
        self._write_supers(first_super * 8, ones[is_super].astype("<u8").data)
        if len(goes):
            self._blocks += len(goes)
            self._ones = int(until[-1])
            self._ones_of_super = int(supers[-1])


def open_levels(file: BinaryIO, levels: Levels) -> NDArray[np.uint8]:
    """Return the codes of a file opened for reading; it may be closed afterwards.

    Returns
    -------
    packed : uint8 (levels.size,), read-only
        Memory-mapped unless small.

    Raises
    ------
    ArtifactError
        The file is no finished file of these levels. Names it.
    """
    return open_packed(file, levels.size, f"codes of {levels.rows[0]} rows in levels")


class LevelCodes:
    """The codes of a field in levels, for reading.

    Parameters
    ----------
    packed : uint8 (levels.size,)
        As `open_levels` returns it.
    levels : Levels
        Checked by `Levels.check`.
    codewords : int
    field : str
        Whose codes they are, for messages.

    Raises
    ------
    ArtifactError
        The counters contradict the levels: the file was altered.

    Notes
    -----
    Reads the 64-bit counters at once, and of each row asked for what its levels need: a block of 64
    bytes each, then its payload.
    """

    def __init__(
        self, packed: NDArray[np.uint8], levels: Levels, codewords: int, field: str
    ) -> None:
        self._levels = levels
        self._codewords = codewords
        self._field = field
        places = _places(levels)
        self._words = packed[: places.supers[0]].view("<u8")
        self._supers = packed[places.supers[0] : places.payloads[0]].view("<u8")
        self._payloads = packed[places.payloads[0] :]
        bitmaps = (*places.bitmaps, places.supers[0])
        self._first_words = np.array(bitmaps, np.int64) // WORD_BYTES
        self._first_supers = (np.array(places.supers, np.int64) - places.supers[0]) // 8
        for rows, first in zip(levels.rows, self._first_supers, strict=False):
            if (self._supers[first : first + super_bytes(rows) // 8] > rows).any():
                raise self._altered()
        self._first_bytes = np.array(places.payloads, np.uint64) - np.uint64(places.payloads[0])
        self._bits = np.array(levels.bits, np.uint64)
        self._rows = np.array(levels.rows, np.uint64)
        self._first_codes = np.array(levels.first_codes, np.uint64)

    def take(self, rows: ArrayLike) -> NDArray[Any]:
        """Return the codes of given rows, integers of any shape: least unsigned dtype, same shape.

        ArtifactError as from `row_numbers`, or where the codes were altered.
        """
        numbers = row_numbers(rows, self._levels.rows[0], field=self._field)
        found = self._found(np.ascontiguousarray(numbers).reshape(-1))
        return found.reshape(numbers.shape)

    def between(self, start: int, stop: int) -> NDArray[Any]:
        """Return the codes of the rows start .. stop of 0 .. n_rows, least unsigned dtype.

        ArtifactError where the codes were altered.
        """
        codes = np.empty(stop - start, code_dtype(self._codewords))
        for first in range(start, stop, _STEP_ROWS):
            last = min(first + _STEP_ROWS, stop)
            codes[first - start : last - start] = self._found(np.arange(first, last))
        return codes

    def _found(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        from saec_gpu.compiled_levels import find_codes

        codes = np.empty(len(rows), np.uint32)
        wrong = find_codes(
            rows,
            self._rows,
            self._first_codes,
            self._first_bytes,
            self._bits,
            self._words,
            self._first_words,
            self._supers,
            self._first_supers,
            self._payloads,
            np.uint64(self._codewords),
            codes,
        )
        if wrong >= 0:
            raise self._altered(f" of row {rows[wrong]}")
        return codes.astype(code_dtype(self._codewords))

    def _altered(self, where: str = "") -> ArtifactError:
        return ArtifactError(
            f'the code{where or "s"} of field "{self._field}" cannot be: counters, bitmaps and '
            "payloads of its levels do not hold together; the codes were altered"
        )
