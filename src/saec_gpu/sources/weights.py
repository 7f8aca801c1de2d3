"""Weight sources: how often each row of a field is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import WeightError
from saec_gpu.sources.stored import (
    NUMBER_DTYPES,
    StoredArray,
    describe,
    listed,
    read_converted,
)
from saec_gpu.sources.tables import TableSource, fingerprint


class WeightSource:
    """One vector of numbers a field, read by ranges. Fields without one are unweighted.

    Attributes
    ----------
    fields : mapping of name to int
        The number of rows, in code-point order of the names.

    Notes
    -----
    Values are not judged here: negative and non-finite weights are found where they are used. Reads
    may come from any thread, one at a time (see StoredArray).
    """

    def __init__(self, arrays: Mapping[str, StoredArray]) -> None:
        self._arrays = dict(sorted(arrays.items()))
        self.fields: Mapping[str, int] = MappingProxyType(
            {name: array.shape[0] for name, array in self._arrays.items()}
        )

    @property
    def arrays(self) -> Mapping[str, StoredArray]:
        """Return the vectors themselves."""
        return MappingProxyType(self._arrays)

    def read(self, field: str, start: int, out: NDArray[np.float64]) -> None:
        """Fill out with weights of a field as float64.

        Parameters
        ----------
        field : str
            A name in `fields`.
        start : int
            The first row.
        out : float64 (rows,), C order
            Receives the weights of the rows start .. start + rows, integers beyond 2**53 rounded.

        Raises
        ------
        WeightError
            The field has no weights.
        SourceError
            It has not all these rows, or its file is damaged.
        """
        array = self._arrays.get(field)
        if array is None:
            raise WeightError(
                f"field {field!r} has no weights; there are some of {listed(self.fields)}"
            )
        view = out.reshape(len(out), *array.shape[1:])
        read_converted(array, start, view, f"the weights of field {field!r}")

    def fingerprint(self) -> dict[str, Any]:
        """Return what changes when the source does, as JSON-able data (as for TableSource)."""
        return fingerprint(self._arrays)


def fit_weights(
    arrays: Mapping[str, StoredArray], tables: TableSource, *, where: str, strict: bool
) -> WeightSource:
    """Return the weights that belong to the fields of a table source.

    Parameters
    ----------
    arrays : mapping of name to StoredArray
        Vectors (n_rows,) or (n_rows, 1) of numbers. Those of fields that `tables` left out are left
        out too. A single vector fits a single field, whatever the names.
    tables : TableSource
        The fields.
    where : str
        What the arrays are, for messages.
    strict : bool
        Every array must be a vector of weights. Otherwise arrays that are none, and are not named
        like a field, are ignored: a file may hold more than weights.

    Raises
    ------
    WeightError
        A name is no field, an array is no vector of numbers or of another length than its field, or
        there is none at all.
    """
    weights = {
        name: array
        for name, array in arrays.items()
        if name not in tables.left_out and (strict or name in tables.fields or _is_vector(array))
    }
    if len(weights) == len(tables.fields) == 1:
        weights = dict(zip(tables.fields, weights.values(), strict=True))
    unknown = [name for name in weights if name not in tables.fields]
    if unknown:
        raise WeightError(
            f"{where}: has weights for {listed(unknown)}, which are no fields; "
            f"the fields are {listed(tables.fields)}"
        )
    if not weights and not (arrays.keys() & tables.left_out):
        raise WeightError(
            f"{where}: holds no weights; needed are vectors of numbers named like the fields "
            f"{listed(tables.fields)}"
        )
    for name, array in weights.items():
        n_rows = tables.fields[name].n_rows
        if not _is_vector(array):
            raise WeightError(
                f"{where}: the weights of field {name!r} are {describe(array)}; needed is a vector "
                f"of {n_rows} numbers"
            )
        if array.shape[0] != n_rows:
            raise WeightError(
                f"{where}: field {name!r} has {n_rows} rows but {array.shape[0]} weights; "
                "give one weight a row"
            )
    return WeightSource(weights)


def _is_vector(array: StoredArray) -> bool:
    return array.dtype in NUMBER_DTYPES and (
        len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)
    )
