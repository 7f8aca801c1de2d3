"""Parquet: one column a field in a file, or a folder with one file a field. Needs pyarrow."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import SourceError
from saec_gpu.sources.stored import (
    StoredArray,
    UnreadableArray,
    import_extra,
    listed,
    named_once,
    row_bytes,
)

Layout = Literal["numbers", "lists", "columns"]

# Decoded at once. With a buffer size pyarrow reads a column of a row group page by page; without,
# as a whole, however large the row group is.
_BATCH_BYTES = 4 << 20
_BUFFER_BYTES = 1 << 20


class ParquetArray:
    """Rows in the columns of a Parquet file.

    Layouts: "numbers", a column of numbers, one axis; "lists", a column of lists of equal length, a
    list a row; "columns", several columns of numbers, a column a dim.

    The decoder stands where the last read ended, so that reading forward decodes each page once;
    going back decodes from the beginning of the row group.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...],
        layout: Layout,
        shape: tuple[int, ...],
        dtype: str,
    ) -> None:
        self.origin = path
        self.shape = shape
        self.dtype = dtype
        self._columns = columns
        self._layout = layout
        self._batches: Iterator[Any] | None = None
        self._group_stops: list[int] = []  # the row after the last one of each row group
        self._next = 0  # the first row that is not decoded
        self._rows: NDArray[Any] = np.empty((0, *shape[1:]), dtype)  # those before it

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill out (C order, storage dtype) with the rows start .. start + len(out)."""
        done = 0
        while done < len(out):
            row = start + done
            if not self._next - len(self._rows) <= row < self._next:
                self._decode(row)
            first = row - (self._next - len(self._rows))
            part = self._rows[first : first + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
        if start + len(out) == self.shape[0]:
            self._batches, self._next, self._rows = None, 0, self._rows[:0].copy()

    def _decode(self, row: int) -> None:
        """Decode batches until one holds the row."""
        with _arrow_errors(self.origin):
            # Put back on success only: after an error the next read starts anew.
            batches, self._batches = self._batches, None
            if batches is None or not self._next <= row < self._group_stop(self._next):
                batches = self._batches_from_group_of(row)
            for batch in batches:
                self._rows = self._values(batch, self._next)
                self._next += len(self._rows)
                if row < self._next:
                    self._batches = batches
                    return
        raise SourceError(
            f"{self.origin}: ends after {self._next} rows, but its footer says {self.shape[0]}; "
            "the file is altered: write it again"
        )

    def _group_stop(self, row: int) -> int:
        group = bisect.bisect_right(self._group_stops, row)
        return self._group_stops[min(group, len(self._group_stops) - 1)]

    def _batches_from_group_of(self, row: int) -> Iterator[Any]:
        """Return the batches from the row group that holds the row."""
        file = _open(self.origin)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._group_stops = list(itertools.accumulate(sizes))
        group = bisect.bisect_right(self._group_stops, row)
        self._next = self._group_stops[group - 1] if group else 0
        self._rows = self._rows[:0]
        batches: Iterator[Any] = file.iter_batches(
            batch_size=max(1, _BATCH_BYTES // max(1, row_bytes(self))),
            row_groups=range(group, len(sizes)),
            columns=list(self._columns),
        )
        return batches

    def _values(self, batch: Any, first: int) -> NDArray[Any]:
        """Return the rows of a batch, `first` being the number of its first one."""
        # By name: pyarrow also selects columns that the name is a dotted beginning of.
        parts = [
            self._column_values(name, batch.column(batch.schema.get_field_index(name)), first)
            for name in self._columns
        ]
        return np.stack(parts, axis=1) if self._layout == "columns" else parts[0]

    def _column_values(self, name: str, column: Any, first: int) -> NDArray[Any]:
        if column.null_count:
            row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise SourceError(
                f"{self.origin}: column {name!r} is null in row {row}; give every row a value"
            )
        if self._layout != "lists":
            numbers: NDArray[Any] = column.to_numpy()
            return numbers
        dim = self.shape[1]
        if hasattr(column, "offsets"):  # lists of no fixed size
            lengths = np.diff(column.offsets.to_numpy())
            if (lengths != dim).any():
                row = int(np.argmax(lengths != dim))
                raise SourceError(
                    f"{self.origin}: column {name!r} has {lengths[row]} values in row "
                    f"{first + row} and {dim} in row 0; all rows of a field need the same number"
                )
        values = column.flatten()
        if values.null_count:
            at = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
            raise SourceError(
                f"{self.origin}: column {name!r} holds a null in row {first + at // dim}; "
                "give every dim a value"
            )
        rows: NDArray[Any] = values.to_numpy().reshape(len(column), dim)
        return rows


class _Column(NamedTuple):
    """What the schema says of a column; `dim` is -1 for lists of no fixed size."""

    name: str
    layout: Layout | None  # None: not numbers
    dtype: str
    dim: int = 0


def open_parquet(path: Path) -> dict[str, StoredArray]:
    """Return the columns of a Parquet file: lists as matrices, numbers as vectors.

    Raises
    ------
    SourceError
        The file is damaged, or two columns have one name.
    MissingExtraError
        pyarrow is not installed.
    """
    with _arrow_errors(path):
        file = _open(path)
        columns = named_once(((column.name, column) for column in _columns(file)), path)
        return {name: _array(path, file, column) for name, column in columns.items()}


def open_parquet_field(path: Path) -> dict[str, StoredArray]:
    """Return the one matrix of a Parquet file that holds one field, under the file's stem.

    It is the one column of lists; without one, all columns are its dims, in their order.

    Raises
    ------
    SourceError
        As open_parquet; several columns of lists; columns that are no numbers or of several types.
    """
    with _arrow_errors(path):
        file = _open(path)
        columns = list(named_once(((c.name, c) for c in _columns(file)), path).values())
        lists = [column for column in columns if column.layout == "lists"]
        if len(lists) == 1:
            return {path.stem: _array(path, file, lists[0])}
        dtypes = {column.dtype for column in columns}
        if lists or len(dtypes) != 1 or columns[0].layout is None:
            raise SourceError(
                f"{path}: one file of a folder is one field, so it needs one column of lists, or "
                "columns of one type of number (its dims); it has "
                + listed(f"{column.name} {column.dtype}" for column in columns)
            )
        names = tuple(column.name for column in columns)
        shape = (file.metadata.num_rows, len(names))
        return {path.stem: ParquetArray(path, names, "columns", shape, columns[0].dtype)}


def _array(path: Path, file: Any, column: _Column) -> StoredArray:
    n_rows = file.metadata.num_rows
    if column.layout is None:
        return UnreadableArray(path, (n_rows,), column.dtype)
    if column.layout == "numbers":
        return ParquetArray(path, (column.name,), "numbers", (n_rows,), column.dtype)
    dim = column.dim if column.dim >= 0 else _first_length(path, file, column.name)
    return ParquetArray(path, (column.name,), "lists", (n_rows, dim), column.dtype)


def _first_length(path: Path, file: Any, name: str) -> int:
    """Return the length of the list in row 0, which all others must have; 0 without rows."""
    for batch in file.iter_batches(batch_size=1, columns=[name]):
        if batch.num_rows:
            first = batch.column(batch.schema.get_field_index(name))[0]
            if not first.is_valid:
                raise SourceError(
                    f"{path}: column {name!r} is null in row 0; give every row a value"
                )
            return len(first)
    return 0


def _columns(file: Any) -> Iterator[_Column]:
    """Yield the columns of a file."""
    types = import_extra("pyarrow", "parquet", "").types
    for field in file.schema_arrow:
        fixed = types.is_fixed_size_list(field.type)
        is_list = fixed or types.is_list(field.type) or types.is_large_list(field.type)
        numbers = field.type.value_type if is_list else field.type
        if types.is_floating(numbers) or types.is_integer(numbers):
            dtype = np.dtype(numbers.to_pandas_dtype()).name
            dim = field.type.list_size if fixed else -1
            yield _Column(field.name, "lists" if is_list else "numbers", dtype, dim)
        else:
            yield _Column(field.name, None, str(field.type))


def _open(path: Path) -> Any:
    """Return a pyarrow ParquetFile that reads page by page."""
    parquet = import_extra("pyarrow.parquet", "parquet", f"reading {path.name}")
    return parquet.ParquetFile(
        path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
    )


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into a SourceError that names the file."""
    arrow = import_extra("pyarrow", "parquet", f"reading {path.name}")
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as err:
        raise SourceError(
            f"{path}: cannot be read as Parquet ({err!s:.300}); "
            "the file is cut short or altered: copy or write it again"
        ) from err
