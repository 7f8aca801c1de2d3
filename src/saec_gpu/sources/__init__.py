"""Where rows and weights come from: files of many formats and arrays in memory.

`open_tables` and `open_weights` are the front doors. Each format has a module with one function
that returns its arrays as `StoredArray`s by name; `TableSource` and `WeightSource` choose among
them and convert what they read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saec_gpu.errors import SourceError
from saec_gpu.sources.arrays import open_arrays
from saec_gpu.sources.fbin import open_fbin
from saec_gpu.sources.npy import open_npy
from saec_gpu.sources.npz import open_npz
from saec_gpu.sources.parquet import open_parquet, open_parquet_field
from saec_gpu.sources.safetensors import (
    open_safetensors,
    open_safetensors_folder,
    open_safetensors_index,
)
from saec_gpu.sources.stored import StoredArray, listed, open_each
from saec_gpu.sources.tables import TableField, TableSource, select_names
from saec_gpu.sources.torch import open_torch
from saec_gpu.sources.weights import WeightSource, fit_weights

__all__ = [
    "StoredArray",
    "TableField",
    "TableSource",
    "WeightSource",
    "open_tables",
    "open_weights",
]

_Opener = Callable[[Path], Mapping[str, StoredArray]]

_FILES: Mapping[str, _Opener] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".fbin": open_fbin,
    ".f16bin": open_fbin,
    ".safetensors": open_safetensors,
    ".index.json": open_safetensors_index,
    ".pt": open_torch,
    ".pth": open_torch,
    ".bin": open_torch,
    ".ckpt": open_torch,
    ".parquet": open_parquet,
}
# How the files of a folder are opened together.
_FOLDERS: Mapping[str, Callable[[Path, list[Path]], Mapping[str, StoredArray]]] = {
    ".npy": lambda folder, files: open_each(files, open_npy, folder),
    ".safetensors": open_safetensors_folder,
    ".parquet": lambda folder, files: open_each(files, open_parquet_field, folder),
}
_SUPPORTED = (
    f"a file {', '.join('*' + suffix for suffix in _FILES)}; "
    f"a folder of {', '.join('*' + suffix for suffix in _FOLDERS)} files; "
    "or arrays in memory"
)


def open_tables(source: Any, *, fields: str | Sequence[str] | None = None) -> TableSource:
    """Return the embedding tables of a file, a folder or arrays in memory.

    Parameters
    ----------
    source : path, mapping of name to array, array or TableSource
        A path is opened by its suffix. Arrays are (n_rows, dim): NumPy, torch, or with `__dlpack__`
        or `__array__`; a single one becomes the field "x". A TableSource is returned as it is.
    fields : str or sequence of str, optional
        Names or `fnmatch` patterns of the fields to have; all without it.

    Returns
    -------
    tables : TableSource
        The matrices of float16, bfloat16, float32 and float64; other arrays of a file are listed in
        `skipped`.

    Raises
    ------
    SourceError
        The source is none of these, damaged, without a table or without a row; a pattern matches
        nothing; an array given in memory is no table.
    MissingExtraError
        The package that reads the format is not installed.

    Notes
    -----
    Reads headers only. Files are read by ranges later and must stay as they are meanwhile.

    Examples
    --------
    >>> import numpy
    >>> tables = open_tables({"user": numpy.zeros((3, 2), "float16"), "item": numpy.ones((5, 4))})
    >>> [(field.name, field.n_rows, field.dim, field.dtype) for field in tables.fields.values()]
    [('item', 5, 4, 'float64'), ('user', 3, 2, 'float16')]
    """
    if isinstance(source, TableSource):
        return source if fields is None else source.select(fields)
    arrays, path = _open(source)
    left_out: list[str] = []
    if fields is not None:
        chosen, left_out = select_names(arrays, fields, path or "arrays in memory")
        arrays = {name: arrays[name] for name in chosen}
    return TableSource(arrays, path=path, strict=path is None, left_out=left_out)


def open_weights(weights: Any, tables: TableSource) -> WeightSource:
    """Return the weights of the rows of a table source.

    Parameters
    ----------
    weights : path, mapping of name to array, array or WeightSource
        The formats of `open_tables`; vectors (n_rows,) or (n_rows, 1) of any type of number, named
        like their fields. A single vector fits a source of a single field, whatever its name.
    tables : TableSource
        The fields; those without a vector are unweighted.

    Raises
    ------
    WeightError
        A name is no field, or a vector has another length than its field.
    SourceError
        The source is none of these, or damaged.
    MissingExtraError
        The package that reads the format is not installed.

    Examples
    --------
    >>> import numpy
    >>> tables = open_tables(numpy.zeros((3, 2), "float32"))
    >>> dict(open_weights([5, 0, 1], tables).fields)
    {'x': 3}
    """
    if isinstance(weights, WeightSource):
        return fit_weights(weights.arrays, tables, where="weights", strict=True)
    arrays, path = _open(weights)
    return fit_weights(arrays, tables, where=path or "weights", strict=path is None)


def _open(source: Any) -> tuple[Mapping[str, StoredArray], str | None]:
    """Return the arrays of a source by name, and its path if it has one."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        try:
            return _open_path(path), str(path)
        except OSError as err:
            raise SourceError(f"{path}: cannot be read: {err}") from err
    if isinstance(source, Mapping):
        if not source:
            raise SourceError("the mapping of arrays is empty; give at least one field")
        return open_arrays(source), None
    return open_arrays({"x": source}), None


def _open_path(path: Path) -> Mapping[str, StoredArray]:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise SourceError(f"{path}: there is no such file or folder; needed is {_SUPPORTED}")
    for suffix, open_file in _FILES.items():
        if path.is_file() and path.name.lower().endswith(suffix):
            return open_file(path)
    raise SourceError(f"{path}: is of no format that is known; needed is {_SUPPORTED}")


def _open_folder(path: Path) -> Mapping[str, StoredArray]:
    if path.suffix == ".saec":
        raise SourceError(
            f"{path}: is a compressed artifact, not a table; open it with saec_gpu.load"
        )
    files = sorted(
        file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")
    )
    found = {
        suffix: matching
        for suffix in _FOLDERS
        if (matching := [file for file in files if file.suffix.lower() == suffix])
    }
    if not found:
        raise SourceError(f"{path}: holds no file of a known format; needed is {_SUPPORTED}")
    if len(found) > 1:
        raise SourceError(
            f"{path}: holds files of several formats ({listed('*' + suffix for suffix in found)}); "
            "give the path of one file, or a folder of one format"
        )
    ((suffix, matching),) = found.items()
    return _FOLDERS[suffix](path, matching)
