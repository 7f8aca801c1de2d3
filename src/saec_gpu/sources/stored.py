"""What every format gives: arrays readable by ranges of rows, their dtypes and their conversion."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import MissingExtraError, SourceError

TABLE_DTYPES = ("float16", "bfloat16", "float32", "float64")
NUMBER_DTYPES = (
    *TABLE_DTYPES,
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)

# Rows are converted through a block of this size, which no memory that is given counts; widening
# bfloat16 doubles it once more.
BLOCK_BYTES = 1 << 18

T = TypeVar("T")


class StoredArray(Protocol):
    """One array of a source, readable by ranges along its first axis.

    Callers read within the array only: 0 <= start and start + len(out) <= shape[0]. `TableSource`
    and `WeightSource` check that for their callers. Reads may come from any thread, one at a time:
    the formats that must be decoded in order (deflated `.npz`, Parquet) keep their place between
    reads, so that reading forward never starts again from the beginning.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the lengths of the axes."""

    @property
    def dtype(self) -> str:
        """Return the NumPy name of the dtype, or "bfloat16"; other words for what has no dtype."""

    @property
    def origin(self) -> Path | None:
        """Return the file that holds the array, or None for an array in memory."""

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill out (C order, storage dtype) with the rows start .. start + len(out)."""


@runtime_checkable
class MadeArray(Protocol):
    """A StoredArray that is made when it is read, so that its content follows from its recipe."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Return, JSON-able, what stands for the content in a fingerprint."""


@dataclass(frozen=True)
class UnreadableArray:
    """An array that a file holds and that is not read; its dtype says what it is."""

    origin: Path
    shape: tuple[int, ...]
    dtype: str

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Refuse."""
        raise SourceError(f"{self.origin}: an array of {self.dtype} cannot be read as numbers")


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype in which an array of that dtype is read (bfloat16: uint16)."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def byte_view(values: NDArray[Any]) -> memoryview:
    """Return the bytes of an array in C order, as a view."""
    return values.reshape(-1).view(np.uint8).data


def row_bytes(array: StoredArray) -> int:
    """Return the bytes of one row of the array."""
    size = storage_dtype(array.dtype).itemsize
    for length in array.shape[1:]:
        size *= length
    return size


def total_bytes(array: StoredArray) -> int:
    """Return the bytes of the whole array."""
    return row_bytes(array) * array.shape[0] if array.shape else row_bytes(array)


def describe(array: StoredArray) -> str:
    """Return the shape and dtype in words for messages."""
    return f"{array.shape} {array.dtype}"


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Return the names in one line, at most `limit` of them and the count of the others."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more if every else "nothing"


def named_once(pairs: Iterable[tuple[str, T]], where: str | Path) -> dict[str, T]:
    """Return the pairs as a dict.

    Raises
    ------
    SourceError
        A name occurs twice. Names it and `where`.
    """
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise SourceError(f"{where}: the name {name!r} occurs twice; field names must differ")
        found[name] = value
    return found


def check_file_size(path: Path, needed: int, what: str) -> None:
    """Raise SourceError unless the file has exactly `needed` bytes for `what` it should hold."""
    found = path.stat().st_size
    if found != needed:
        raise SourceError(
            f"{path}: has {found} bytes, but {what} takes {needed}; "
            "the file is cut short or altered: copy or write it again"
        )


def check_rows(array: StoredArray, start: int, stop: int, label: str) -> None:
    """Raise SourceError unless 0 <= start <= stop <= rows of the array."""
    if not 0 <= start <= stop <= array.shape[0]:
        raise SourceError(
            f"rows {start} to {stop} of {label} were asked for; it has {array.shape[0]} rows"
        )


def read_stored(array: StoredArray, start: int, stop: int, label: str) -> NDArray[Any]:
    """Return the rows start .. stop in their storage dtype (bfloat16: uint16)."""
    check_rows(array, start, stop, label)
    rows = np.empty((stop - start, *array.shape[1:]), storage_dtype(array.dtype))
    array.read(start, rows)
    return rows


def read_converted(array: StoredArray, start: int, out: NDArray[Any], label: str) -> None:
    """Fill out with the rows start .. start + len(out), as they are stored or converted.

    Parameters
    ----------
    array : StoredArray
        Any of NUMBER_DTYPES.
    start : int
        First row.
    out : storage dtype, float32 or float64 (rows, …), C order
        Widened exactly; float64 into float32, and integers of more than 53 bits into float64, are
        rounded to nearest even.
    label : str
        What is read, for messages.

    Raises
    ------
    SourceError
        The rows are not all there, or out does not fit them.

    Notes
    -----
    Holds at most 3 * BLOCK_BYTES beside out (or three rows, if they are larger); nothing where out
    has the storage dtype.
    """
    check_rows(array, start, start + len(out), label)
    if out.shape[1:] != array.shape[1:] or not out.flags.c_contiguous:
        raise SourceError(
            f"out has shape {out.shape}, C order {out.flags.c_contiguous}; {label} needs "
            f"{(len(out), *array.shape[1:])} in C order"
        )
    if storage_dtype(array.dtype) == out.dtype:
        array.read(start, out)
        return
    step = max(1, BLOCK_BYTES // max(1, row_bytes(array)))
    block = np.empty((min(step, len(out)), *array.shape[1:]), storage_dtype(array.dtype))
    for done in range(0, len(out), step):
        part = block[: min(step, len(out) - done)]
        array.read(start + done, part)
        # A value too large for float32 becomes infinite, which is an error where rows are used.
        with np.errstate(all="ignore"):
            np.copyto(
                out[done : done + len(part)],
                widened_bfloat16(part) if array.dtype == "bfloat16" else part,
                casting="same_kind",
            )


def widened_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 values, given as bits, as float32: the same bits with sixteen zeros below."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values of a table, in their storage dtype, as float32.

    Widened exactly, uint16 being the bits of bfloat16; float64 rounded once. No copy of float32.
    """
    if values.dtype == np.uint16:
        return widened_bfloat16(values)
    return values.astype(np.float32, copy=False)


def file_tag(path: Path) -> dict[str, Any]:
    """Return name, size and modification time of a file: what tells that it changed."""
    try:
        stat = os.stat(path)
    except OSError as err:
        raise SourceError(f"{path}: cannot be read any more: {err}") from err
    return {"file": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def import_extra(module: str, extra: str, what: str) -> Any:
    """Return an optional module.

    Raises
    ------
    MissingExtraError
        It is not installed. Names the package and the extra that brings it; `what` needed it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        package = module.partition(".")[0]
        if err.name is None or err.name.partition(".")[0] != package:
            raise
        raise MissingExtraError.for_extra(package, extra, what) from err


def open_each(
    paths: Iterable[Path], open_one: Callable[[Path], Mapping[str, StoredArray]], where: Path
) -> dict[str, StoredArray]:
    """Return the arrays of several files together; a name in two of them is a SourceError."""
    return named_once((pair for path in paths for pair in open_one(path).items()), where)
