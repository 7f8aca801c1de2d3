"""Table sources: named matrices of floats, read by ranges of rows."""

from __future__ import annotations

import fnmatch
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from saec_gpu.errors import SourceError
from saec_gpu.sources.stored import (
    BLOCK_BYTES,
    TABLE_DTYPES,
    MadeArray,
    StoredArray,
    describe,
    file_tag,
    listed,
    read_converted,
    read_stored,
    row_bytes,
    storage_dtype,
)


@dataclass(frozen=True)
class TableField:
    """One field of a table source: n_rows rows of dim values of one dtype."""

    name: str
    n_rows: int
    dim: int
    dtype: str

    @property
    def nbytes(self) -> int:
        """Return the bytes of the field's rows in its own dtype."""
        return self.n_rows * self.dim * storage_dtype(self.dtype).itemsize


class TableSource:
    """Named fields, in code-point order of their names, each a matrix read by ranges of rows.

    Parameters
    ----------
    arrays : mapping of name to StoredArray
        Matrices of float16, bfloat16, float32 or float64 become fields, whatever else is in
        `skipped`.
    path : str or None
        Where the arrays come from, for messages and logs.
    strict : bool
        Every array must be a field; nothing is skipped.
    left_out : iterable of str
        Names that the caller chose not to have, so that their weights are not unknown names.

    Attributes
    ----------
    fields : mapping of name to TableField
    skipped : mapping of name to str
        Why an array is not a field.
    path, left_out
        As given.

    Raises
    ------
    SourceError
        There is no field, no field has a row, a field has no dims, a name is no Unicode text; or
        strict, and an array is no field.

    Notes
    -----
    Reads may come from any thread, one at a time (see StoredArray).
    """

    def __init__(
        self,
        arrays: Mapping[str, StoredArray],
        *,
        path: str | None = None,
        strict: bool = False,
        left_out: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.left_out = frozenset(left_out)
        reasons = {name: _not_a_table(array) for name, array in sorted(arrays.items())}
        skipped = {name: reason for name, reason in reasons.items() if reason}
        if strict and skipped:
            raise SourceError(
                f"{self._where}: not a table: "
                + listed(f"{name!r} {reason}" for name, reason in skipped.items())
                + f"; a table is a matrix of {', '.join(TABLE_DTYPES)}"
            )
        self.skipped: Mapping[str, str] = MappingProxyType(skipped)
        self._arrays = {name: arrays[name] for name, reason in reasons.items() if not reason}
        self.fields: Mapping[str, TableField] = MappingProxyType(
            {
                name: TableField(name, array.shape[0], array.shape[1], array.dtype)
                for name, array in self._arrays.items()
            }
        )
        self._check_fields()

    @property
    def _where(self) -> str:
        return self.path or "arrays in memory"

    def _check_fields(self) -> None:
        if not self.fields:
            raise SourceError(
                f"{self._where}: no table found; a table is a matrix of {', '.join(TABLE_DTYPES)}; "
                "there is " + listed(f"{name!r} ({why})" for name, why in self.skipped.items())
            )
        for field in self.fields.values():
            if field.dim == 0:
                raise SourceError(
                    f"{self._where}: field {field.name!r} has shape {(field.n_rows, 0)}; a field "
                    "needs at least one dim"
                )
            try:
                field.name.encode()
            except UnicodeEncodeError as err:
                raise SourceError(
                    f"{self._where}: the field name {field.name!r} is no Unicode text; rename it"
                ) from err
        if not any(field.n_rows for field in self.fields.values()):
            raise SourceError(
                f"{self._where}: no field has a row ({listed(self.fields)}); "
                "was the table written before it was filled?"
            )

    def _array(self, field: str) -> StoredArray:
        try:
            return self._arrays[field]
        except KeyError:
            raise SourceError(
                f"{self._where}: has no field {field!r}; it has {listed(self.fields)}"
            ) from None

    def read(self, field: str, start: int, out: NDArray[Any]) -> None:
        """Fill out with rows of a field, as float32 or as they are stored.

        Parameters
        ----------
        field : str
            A name in `fields`.
        start : int
            The first row.
        out : float32, or the field's storage dtype (bfloat16: uint16), (rows, dim), C order
            Receives the rows start .. start + rows; in float32 widened exactly, float64 rounded
            once.

        Raises
        ------
        SourceError
            The field is unknown, has not all these rows, or its file is damaged.
        """
        read_converted(self._array(field), start, out, f"field {field!r}")

    def read_stored(self, field: str, start: int, stop: int) -> NDArray[Any]:
        """Return the rows start .. stop of a field in its own dtype (bfloat16: uint16).

        Raises
        ------
        SourceError
            The field is unknown, has not all these rows, or its file is damaged.
        """
        return read_stored(self._array(field), start, stop, f"field {field!r}")

    def select(self, patterns: str | Sequence[str]) -> TableSource:
        """Return the source with the fields that match any of the patterns (see `select_names`)."""
        chosen, left_out = select_names(self.fields, patterns, self._where)
        return TableSource(
            {name: self._arrays[name] for name in chosen},
            path=self.path,
            left_out=[*self.left_out, *left_out],
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what changes when the source does, as JSON-able data.

        For each file: name, size, modification time. For each array in memory: shape, dtype and
        SHA-256 of the values in C order, which reads the array once. For each array that is made
        when it is read: its recipe.
        """
        return fingerprint(self._arrays)


def fingerprint(arrays: Mapping[str, StoredArray]) -> dict[str, Any]:
    """Return shapes, files, and the content of what is in memory, as JSON-able data."""
    files = sorted({array.origin for array in arrays.values() if array.origin is not None})
    return {
        "arrays": {
            name: {"shape": list(array.shape), "dtype": array.dtype} | _content(array)
            for name, array in arrays.items()
        },
        "files": [file_tag(file) for file in files],
    }


def _content(array: StoredArray) -> dict[str, Any]:
    """Return what stands for the content of an array that no file has, or nothing."""
    if isinstance(array, MadeArray):
        return dict(array.recipe)
    return {"sha256": _sha256(array)} if array.origin is None else {}


def _sha256(array: StoredArray) -> str:
    digest = hashlib.sha256()
    for block in _blocks(array):
        # Little-endian, so that the same values have one tag on every machine.
        digest.update((block if sys.byteorder == "little" else block.byteswap()).data)
    return digest.hexdigest()


def _blocks(array: StoredArray) -> Iterator[NDArray[Any]]:
    step = max(1, BLOCK_BYTES // max(1, row_bytes(array)))
    for start in range(0, array.shape[0], step):
        yield read_stored(array, start, min(start + step, array.shape[0]), "an array")


def _not_a_table(array: StoredArray) -> str:
    """Return why an array is no field, or nothing."""
    is_table = len(array.shape) == 2 and array.dtype in TABLE_DTYPES
    return "" if is_table else f"is {describe(array)}"


def select_names(
    names: Mapping[str, Any], patterns: str | Sequence[str], where: str
) -> tuple[list[str], list[str]]:
    """Return the names that match any pattern, and the others.

    Patterns are those of `fnmatch`, case-sensitive; a name also matches itself, brackets and all.

    Raises
    ------
    SourceError
        A pattern matches nothing. Names it and the known names.
    """
    asked = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for pattern in asked:
        matching = {n for n in names if n == pattern or fnmatch.fnmatchcase(n, pattern)}
        if not matching:
            raise SourceError(f"{where}: no field matches {pattern!r}; it has {listed(names)}")
        chosen |= matching
    if not chosen:
        raise SourceError(f"{where}: fields is empty; name at least one of {listed(names)}")
    return [n for n in names if n in chosen], [n for n in names if n not in chosen]
