"""The compressed table on disk (`*.saec/`), for reading: codebooks, codes, lookup, bytes, checks.

What lies in the folder, by invariants:

1. `manifest.json` names all fields in code-point order of their names; a field's number is its
   place.
2. `codebooks.safetensors` holds one tensor a field under its name, (codewords, dim) in the dtype
   that its entry names: float32, float16 or int8; of a field with encoding "identity" its rows in
   the table's dtype. `scales.safetensors` holds the scales of the int8 ones under the same names,
   bfloat16 (codewords,) (codewords.py); without any there is no such file.
3. `codes/<number>.npy` holds the codes of a field with encoding "planes" (packing.py) or "levels"
   (levels.py), whichever takes fewer bytes; class widths and rows of the levels, from which all
   sizes follow, stand in the entry. A field kept whole (identity) or without rows (0 codewords) has
   no such file.
4. The manifest states size and SHA-256 of each of these files and of itself. It holds no times and
   no paths: the same answer is the same bytes in all of them.
5. `run.json` tells how the run went. Nothing depends on it; it may be missing.
6. Nothing in the folder is changed once it is in place: it is replaced as a whole (durable.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saec_gpu.codewords import StoredCodewords, decode
from saec_gpu.durable import OpenFolder, finish_swap
from saec_gpu.errors import ArtifactError, SourceError
from saec_gpu.levels import LevelCodes, open_levels
from saec_gpu.manifest import (
    CODEBOOKS,
    MANIFEST,
    RUN,
    SCALES,
    codes_name,
    field_entry,
    has_codes,
    levels_of,
    parse,
    sealed,
)
from saec_gpu.packing import code_dtype, open_planes, row_numbers, take, unpack
from saec_gpu.sources.raw import RawArray
from saec_gpu.sources.safetensors import open_safetensors
from saec_gpu.sources.stored import as_float32, listed, storage_dtype

if TYPE_CHECKING:
    from saec_gpu.verification import Verification

_LOAD_ATTEMPTS = 10


def load(path: str | os.PathLike[str]) -> Artifact:
    """Return the artifact in a folder; its arrays are mapped when they are first used.

    A replacement of the artifact that was interrupted halfway is completed.

    Raises
    ------
    ArtifactError
        There is no artifact, it is of a newer format, or a file is missing, has another size or
        another header than the manifest states. Names the file.

    Notes
    -----
    Reads the manifest and the header of the codebooks. `Artifact.check_files` reads everything.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from saec_gpu.artifact_writer import EncodedField, write_artifact
    >>> field = EncodedField("user", 2, 1, "float32", "identity", np.float32([[3], [4]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_artifact(f"{folder}/x.saec", [field], parameters={}, run={}, overwrite=False)
    ...     load(f"{folder}/x.saec")["user"].lookup([1, 0, 1])
    array([[4.],
           [3.],
           [4.]], dtype=float32)
    """
    given = Path(os.path.abspath(path))
    for _ in range(_LOAD_ATTEMPTS):
        try:
            finish_swap(Path(os.path.realpath(given)))
            folder = OpenFolder(given)
        except OSError as err:
            raise ArtifactError(
                f'there is no artifact at "{given}" that can be read: {err.strerror or err}'
            ) from err
        try:
            artifact = Artifact(folder)
        except ArtifactError:
            if folder.in_place():
                raise
        else:
            if folder.in_place():
                return artifact
        # The artifact was replaced while it was read: what was read may be of both.
    raise ArtifactError(f'"{given}" is replaced faster than it can be read; try again')


def loaded(artifact: Artifact | str | os.PathLike[str]) -> Artifact:
    """Return an artifact as it is, or the one at a path, with the errors of `load`."""
    return artifact if isinstance(artifact, Artifact) else load(artifact)


class Artifact:
    """A compressed table: its fields by name. Made by `load` and by `compress`.

    Threads may share one; it can be pickled (its path is, and it is loaded again). It stays what it
    was when another artifact is put in its place: a file that was not in use by then is an
    ArtifactError, never one of the other artifact.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    manifest : dict
        What the promise covers: fields, parameters, sizes, SHA-256.
    names : tuple of str
        Field names in code-point order.
    """

    def __init__(self, folder: OpenFolder) -> None:
        self._folder = folder
        self.path = folder.path
        with folder.open(MANIFEST) as file:
            self.manifest = parse(file.read(), self.path / MANIFEST)
        self._check_sizes()
        entries = self.manifest["fields"]
        tensors = self._tensors(
            CODEBOOKS,
            {e["name"]: ((e["codewords"], e["dim"]), e["codewords_dtype"]) for e in entries},
        )
        scaled = {
            e["name"]: ((e["codewords"],), "bfloat16")
            for e in entries
            if e["codewords_dtype"] == "int8"
        }
        scales = self._tensors(SCALES, scaled) if scaled else {}
        self._fields = {
            entry["name"]: CompressedField(
                self, entry, tensors[entry["name"]], scales.get(entry["name"])
            )
            for entry in entries
        }
        self.names = tuple(self._fields)

    def _check_sizes(self) -> None:
        for name, stated in self.manifest["files"].items():
            found = self._folder.size(name)
            if found != stated["bytes"]:
                raise ArtifactError(
                    f'"{self.path / name}" has {found} bytes, but the manifest states '
                    f"{stated['bytes']}; the file is truncated or altered: copy the artifact again"
                )

    def _tensors(
        self, file: str, needed: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> dict[str, RawArray]:
        """Return where the tensors of some fields, given by shape and dtype, lie in a file."""
        path = self.path / file
        try:
            found = open_safetensors(path)
        except (SourceError, OSError) as err:
            raise ArtifactError(f"the codebooks cannot be read: {err}") from err
        tensors = {name: array for name, array in found.items() if isinstance(array, RawArray)}
        for name, (shape, dtype) in needed.items():
            array = tensors.get(name)
            if array is None or (array.shape, array.dtype) != (shape, dtype):
                raise ArtifactError(
                    f'"{path}" must hold a tensor {shape} {dtype} of field "{name}", '
                    f"but holds {'none' if array is None else f'{array.shape} {array.dtype}'}; "
                    "it was altered"
                )
        return tensors

    def __getitem__(self, name: str) -> CompressedField:
        """Return a field.

        Raises
        ------
        ArtifactError
            There is none of that name. Lists the known names.
        """
        if name not in self._fields:
            raise ArtifactError(
                f'"{self.path}" has no field {name!r}; its fields are {listed(self.names)}'
            )
        return self._fields[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a field of that name."""
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the field names."""
        return iter(self.names)

    def __len__(self) -> int:
        """Return the number of fields."""
        return len(self.names)

    def __repr__(self) -> str:
        """Return path, fields and ratio in one line."""
        return f"<Artifact {str(self.path)!r}: {len(self)} fields, {self.ratio:.1f}x smaller>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to load it again in another process."""
        return load, (str(self.path),)

    @cached_property
    def run(self) -> dict[str, Any]:
        """How the run went, from `run.json`: backend, times, versions; empty if that is missing."""
        if not self._folder.has(RUN):
            return {}
        with self._folder.open(RUN) as file:
            try:
                content: dict[str, Any] = json.loads(file.read())
            except (ValueError, RecursionError) as err:
                raise ArtifactError(f'"{self.path / RUN}" is no JSON: {err}') from err
        return content

    @property
    def table_bytes(self) -> int:
        """Bytes of the table's rows in its own dtypes."""
        return int(self.manifest["totals"]["table_bytes"])

    @property
    def counted_bytes(self) -> int:
        """Bytes of the codebooks and the packed codes, without headers and JSON."""
        return int(self.manifest["totals"]["counted_bytes"])

    @property
    def ratio(self) -> float:
        """How many times smaller: table_bytes / counted_bytes."""
        return self.table_bytes / self.counted_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files of the artifact, headers and JSON included."""
        return sum(self._folder.size(name) for name in self.files)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files of the artifact, relative to its folder."""
        run = (RUN,) if self._folder.has(RUN) else ()
        return (*self.manifest["files"], MANIFEST, *run)

    def open_file(self, name: str) -> BufferedReader:
        """Return one of `files`, opened for reading: that of the artifact which was loaded.

        Raises
        ------
        ArtifactError
            It is not there any more or cannot be read.
        """
        return self._folder.open(name)

    def check_files(self) -> None:
        """Read every file that the promise covers and compare it with its SHA-256.

        Raises
        ------
        ArtifactError
            A file is missing or was altered. Names it.
        """
        with self._folder.open(MANIFEST) as file:
            if file.read() != sealed(self.manifest):
                raise ArtifactError(f'"{self.path / MANIFEST}" was altered since it was loaded')
        self._check_sizes()
        for name, stated in self.manifest["files"].items():
            with self._folder.open(name) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != stated["sha256"]:
                raise ArtifactError(
                    f'"{self.path / name}" was altered: its SHA-256 is {digest}, the manifest '
                    f"states {stated['sha256']}; copy the artifact again or make it anew"
                )

    def assign(self, field: str, rows: ArrayLike) -> NDArray[Any]:
        """Return the codes of rows that the artifact has not: of each the nearest codeword.

        Parameters
        ----------
        field : str
        rows : float32, or what becomes it, (n, dim) or (dim,)
            Vectors such as a model has trained for new ids since.

        Returns
        -------
        codes : least unsigned dtype (n,), or a scalar of it
            As clustering would give them (ties to the lower); of a field kept whole the number of
            the nearest row.

        Raises
        ------
        ArtifactError
            There is no such field, or it has no codewords.
        SourceError
            The rows have another dim.
        NonFiniteRowError
            A row holds NaN or infinity. Names it.
        """
        from saec_gpu.assignment import nearest_codewords

        one = self[field]
        given = np.asarray(rows, np.float32)
        codes = nearest_codewords(one, np.atleast_2d(given))
        return codes if given.ndim > 1 else codes[0]

    def verify(self, tables: Any, **options: Any) -> Verification:
        """Return what `saec_gpu.verify` finds: codes and errors recomputed from the tables."""
        from saec_gpu.verification import verify

        return verify(self, tables, **options)

    @cached_property
    def _codebook_bytes(self) -> NDArray[np.uint8]:
        """All of `codebooks.safetensors`: one map, whatever the number of fields."""
        return self._mapped(CODEBOOKS)

    @cached_property
    def _scale_bytes(self) -> NDArray[np.uint8]:
        """All of `scales.safetensors`, likewise."""
        return self._mapped(SCALES)

    def _mapped(self, name: str) -> NDArray[np.uint8]:
        with self._folder.open(name) as file:
            return np.memmap(file, np.uint8, "r").view(np.ndarray)


class CompressedField:
    """One field of an artifact.

    Attributes
    ----------
    name : str
    number : int
        Its place among the names of all fields, in code-point order.
    n_rows, dim : int
    dtype : str
        Of the table: "float16", "bfloat16", "float32" or "float64".
    encoding : str
        "planes" (codebook, and codes in ceil(log2 k) bits), "levels" (codebook, and shorter codes
        where codewords differ much in how many rows they serve) or "identity" (kept whole). All
        methods serve all of them; looking vectors up takes about twice as long in levels as in
        planes (bench/codes.py).
    n_codewords : int
        Rows of the codebook.
    codewords_dtype : str
        In which they are stored: "float32", "float16" or "int8"; of a field kept whole the table's.
    levels : Levels or None
        How codes in levels are cut.
    record : dict
        What else the manifest states of the field: rule, sse, iterations, …
    """

    def __init__(
        self,
        artifact: Artifact,
        entry: dict[str, Any],
        tensor: RawArray,
        scales: RawArray | None,
    ) -> None:
        self._artifact = artifact
        self.number: int = entry["number"]
        self._tensor = tensor
        self._scales_tensor = scales
        self.name: str = entry["name"]
        self.n_rows: int = entry["rows"]
        self.dim: int = entry["dim"]
        self.dtype: str = entry["dtype"]
        self.encoding: str = entry["encoding"]
        self.n_codewords: int = entry["codewords"]
        self.codewords_dtype: str = entry["codewords_dtype"]
        self.levels = levels_of(entry)
        derived = field_entry(
            self.number,
            self.name,
            rows=self.n_rows,
            dim=self.dim,
            dtype=self.dtype,
            encoding=self.encoding,
            codewords=self.n_codewords,
            codewords_dtype=self.codewords_dtype,
            levels=self.levels,
        )
        self.record = {key: value for key, value in entry.items() if key not in derived}

    def __repr__(self) -> str:
        """Return name, shape and encoding in one line."""
        return (
            f"<CompressedField {self.name!r}: ({self.n_rows}, {self.dim}) {self.dtype}, "
            f"{self.encoding}, {self.n_codewords} codewords>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to load it again in another process."""
        return _load_field, (str(self._artifact.path), self.name)

    @property
    def stored(self) -> StoredCodewords:
        """The codewords as they are stored, memory-mapped; of a field kept whole its rows.

        bfloat16 as uint16.
        """
        scales = self._scales_tensor
        of_scales = None if scales is None else _part(self._artifact._scale_bytes, scales)
        return StoredCodewords(self._stored, of_scales)

    @property
    def codebook(self) -> NDArray[np.float32]:
        """The codewords, float32 (n_codewords, dim), read-only.

        Of a field kept whole its rows. Memory-mapped if they are stored as float32, else a copy.
        """
        codewords = self._decoded(slice(None))
        codewords.flags.writeable = False
        return codewords

    @property
    def codes(self) -> NDArray[Any]:
        """The code of every row, least unsigned dtype (n_rows,).

        Of a field kept whole the row numbers.
        """
        return self.codes_between(0, self.n_rows)

    def codes_between(self, start: int, stop: int) -> NDArray[Any]:
        """Return the codes of the rows start .. stop.

        Returns
        -------
        codes : least unsigned dtype (stop - start,)

        Raises
        ------
        ArtifactError
            The range is not one of 0 .. n_rows; the codes were altered or cannot be read.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise ArtifactError(
                f'rows {start} to {stop} of field "{self.name}" were asked for; '
                f"it has {self.n_rows} rows"
            )
        if self.encoding == "identity":
            return np.arange(start, stop, dtype=code_dtype(self.n_codewords))
        if self._level_codes is not None:
            return self._level_codes.between(start, stop)
        return unpack(self._packed, self.n_rows, self.n_codewords, start, stop)

    def codes_of(self, rows: ArrayLike) -> NDArray[Any]:
        """Return the codes of given rows.

        Parameters
        ----------
        rows : integers, any shape
            Row numbers from 0.

        Returns
        -------
        codes : least unsigned dtype, shape of rows

        Raises
        ------
        ArtifactError
            The numbers are not integers, or one is not below n_rows (names it); the codes were
            altered or cannot be read.
        """
        if self.encoding == "identity":
            numbers = row_numbers(rows, self.n_rows, field=self.name)
            return numbers.astype(code_dtype(self.n_codewords))
        if self._level_codes is not None:
            return self._level_codes.take(rows)
        return take(self._packed, self.n_rows, self.n_codewords, rows, field=self.name)

    @property
    def out_of_vocabulary(self) -> int | None:
        """The code that stands for rows nobody has seen: its codeword is nearest to the mean.

        Of a field kept whole a row number. None of a field without rows.
        """
        code: int | None = self.record.get("out_of_vocabulary")
        return code

    def lookup(self, rows: ArrayLike, *, out_of_vocabulary: bool = False) -> NDArray[np.float32]:
        """Return the compressed rows: of each the codeword of its code.

        Parameters
        ----------
        rows : integers, any shape
            Row numbers from 0.
        out_of_vocabulary : bool
            Whether numbers that are no rows get the codeword for those; else they are an error.

        Returns
        -------
        vectors : float32, shape of rows and dim

        Raises
        ------
        ArtifactError
            As `codes_of`.

        Notes
        -----
        O(1) a row: a few bytes of codes, in levels a line of the cache for each of at most five,
        and one codeword. The first look-up in levels compiles a loop, once a machine.
        """
        if out_of_vocabulary:
            code = self.out_of_vocabulary
            if code is None:
                raise ArtifactError(
                    f'field "{self.name}" has no codeword for rows out of its vocabulary: it has '
                    "no rows, or was not made by compress or update"
                )
            numbers = np.asarray(rows)
            known = (numbers >= 0) & (numbers < self.n_rows)
            return self._decoded(np.where(known, self.codes_of(np.where(known, numbers, 0)), code))
        if self.encoding == "identity":
            return self._decoded(row_numbers(rows, self.n_rows, field=self.name))
        return self._decoded(self.codes_of(rows))

    @cached_property
    def _packed(self) -> NDArray[np.uint8]:
        if not has_codes(self.encoding, self.n_rows):
            return np.zeros(0, np.uint8)
        with self._artifact._folder.open(codes_name(self.number)) as file:
            if self.levels is not None:
                return open_levels(file, self.levels)
            return open_planes(file, self.n_rows, self.n_codewords)

    @cached_property
    def _level_codes(self) -> LevelCodes | None:
        if self.levels is None:
            return None
        return LevelCodes(self._packed, self.levels, self.n_codewords, self.name)

    @cached_property
    def _stored(self) -> NDArray[Any]:
        """The codebook as it is stored, memory-mapped."""
        return _part(self._artifact._codebook_bytes, self._tensor)

    def _decoded(self, codewords: Any) -> NDArray[np.float32]:
        """Return some codewords, by index, as float32: exactly, but float64 is rounded once."""
        values, scales = self.stored.values[codewords], self.stored.scales
        return as_float32(values) if scales is None else decode(values, scales[codewords])


def _load_field(path: str, name: str) -> CompressedField:
    return load(path)[name]


def _part(file: NDArray[np.uint8], tensor: RawArray) -> NDArray[Any]:
    """Return one tensor of a file."""
    dtype = storage_dtype(tensor.dtype)
    stop = tensor.offset + math.prod(tensor.shape) * dtype.itemsize
    return file[tensor.offset : stop].view(dtype).reshape(tensor.shape)
