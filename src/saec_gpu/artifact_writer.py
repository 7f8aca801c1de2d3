"""The compressed table on disk (`*.saec/`), for writing. artifact.py says what lies in there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from saec_gpu.artifact import Artifact, load
from saec_gpu.durable import finish_swap, staged, write_error
from saec_gpu.errors import ArtifactError
from saec_gpu.levels import Levels, open_levels
from saec_gpu.manifest import (
    CODEBOOKS,
    CODES,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    RUN,
    SCALES,
    claims_format,
    codes_name,
    field_entry,
    file_names,
    has_codes,
    json_bytes,
    sealed,
    totals,
)
from saec_gpu.packing import open_planes
from saec_gpu.sources.stored import storage_dtype

_NAMES = frozenset({CODEBOOKS, SCALES, CODES, MANIFEST, RUN})
_SAFETENSORS_DTYPES = {
    "int8": "I8",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class EncodedField:
    """One compressed field, ready to be written.

    Attributes
    ----------
    name : str
    n_rows, dim : int
    dtype : str
        Of the table: "float16", "bfloat16", "float32" or "float64".
    encoding : str
        "planes", "levels" or "identity".
    codebook : float32, float16 or int8 (k, dim)
        The codewords as they are stored. With "identity": the rows, (n_rows, dim), in the table's
        dtype (bfloat16: uint16).
    codes : path, optional
        A finished file of a `PlaneWriter`, or of `encode_in_levels`; None with "identity". It is
        linked if it lies on the file system of the artifact, else copied, and stays where it is: it
        must not be changed in place. Not looked at for a field without rows.
    scales : uint16 (k,), optional
        Of int8 codewords, bits of bfloat16.
    levels : Levels, optional
        With "levels".
    record : mapping
        What the manifest shall state beside that: rule, sse, iterations, …
    """

    name: str
    n_rows: int
    dim: int
    dtype: str
    encoding: str
    codebook: NDArray[Any]
    codes: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    scales: NDArray[np.uint16] | None = None
    levels: Levels | None = None

    @property
    def codewords_dtype(self) -> str:
        """Name of the dtype in which the codebook is stored."""
        return self.dtype if self.encoding == "identity" else str(self.codebook.dtype)


def check_out(out: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return where an artifact can be written, without symbolic links; call it before a long run.

    Raises
    ------
    ArtifactError
        The folder that it, or a parent folder that is missing, would be made in cannot be written
        to; or something is at out that is no artifact, or that is one while overwrite is False.
    """
    place = Path(os.path.realpath(out))
    try:
        finish_swap(place)
        parent = next(folder for folder in place.parents if os.path.lexists(folder))
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise ArtifactError(
                f'"{place}" cannot be written: "{parent}" is no folder that can be written to; '
                "give another path, or change its permissions"
            )
        if os.path.lexists(place):
            if not _is_artifact(place):
                raise ArtifactError(
                    f'"{place}" exists and is no saec artifact, so it is not replaced; '
                    "give another path, or remove it"
                )
            if not overwrite:
                raise ArtifactError(
                    f'"{place}" exists; give another path, or ask for it to be replaced '
                    "(overwrite=True, --overwrite)"
                )
    except OSError as err:
        raise write_error(place, err) from err
    return place


def write_artifact(
    out: str | os.PathLike[str],
    fields: Sequence[EncodedField],
    *,
    parameters: Mapping[str, Any],
    run: Mapping[str, Any],
    overwrite: bool,
) -> Artifact:
    """Return the artifact written at out: whole, flushed, and put in place in one step.

    Parameters
    ----------
    out : path
        Parent folders that are missing are made.
    fields : sequence of EncodedField
        In any order.
    parameters : mapping
        Of the run, as far as they decide the answer (seed, tol, …); JSON values.
    run : mapping
        How the run went (backend, times, versions, …); JSON values.
    overwrite : bool
        Whether an artifact at out is replaced.

    Raises
    ------
    ArtifactError
        As `check_out`; a field does not fit its codebook or codes; there are no rows at all; the
        disk is full or fails. What was at out is intact then, and nothing else is left there.

    Notes
    -----
    A process that is killed leaves the old artifact or the new one, and maybe a folder
    `<out>.writing` that the next writing of the same out removes. Holds a few MB beside the
    codebooks.
    """
    check_out(out, overwrite=overwrite)
    ordered = sorted(fields, key=lambda encoded: encoded.name)
    entries = _entries(ordered)
    run_bytes = json_bytes(run)
    json_bytes(parameters)  # now, not after the codes were copied
    with staged_artifact(out, overwrite=overwrite) as folder:
        for number, encoded in enumerate(ordered):
            if encoded.codes is not None and has_codes(encoded.encoding, encoded.n_rows):
                _link_or_copy(encoded.codes, folder / codes_name(number))
        for name, tensors in _tensors(ordered).items():
            with (folder / name).open("wb") as file:
                _write_tensors(file, tensors)
        (folder / RUN).write_bytes(run_bytes)
        # Last, because only a folder with a manifest counts as an artifact.
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "parameters": parameters,
            "fields": entries,
            "totals": totals(entries),
            "files": {name: file_entry(folder / name) for name in file_names(entries)},
        }
        # Through JSON once: keys that were numbers become text before they are sorted.
        (folder / MANIFEST).write_bytes(sealed(json.loads(json_bytes(manifest))))
    return load(out)


@contextmanager
def staged_artifact(out: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to fill with an artifact's files, its manifest last; put it in place at out.

    There is an empty folder for codes in it. Raises what `write_artifact` does.
    """
    place = check_out(out, overwrite=overwrite)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with staged(
            place, replace=os.path.lexists(place), is_ours=_is_artifact, names=_NAMES
        ) as folder:
            (folder / CODES).mkdir()
            yield folder
    except OSError as err:
        raise write_error(place, err) from err


def _is_artifact(path: Path) -> bool:
    try:
        return not path.is_symlink() and claims_format((path / MANIFEST).read_bytes())
    except OSError:
        return False


def _entries(fields: Sequence[EncodedField]) -> list[dict[str, Any]]:
    """Return the manifest's entries of the fields, in order, after checking each."""
    entries: list[dict[str, Any]] = []
    for number, encoded in enumerate(fields):
        where = f'field {number} ("{encoded.name}")'
        if number and encoded.name == fields[number - 1].name:
            raise ArtifactError(f"two fields have the name {encoded.name!r}; names must differ")
        if encoded.name == "__metadata__":
            raise ArtifactError(
                'no field can have the name "__metadata__": safetensors reserves it; rename it'
            )
        entry = field_entry(
            number,
            encoded.name,
            rows=encoded.n_rows,
            dim=encoded.dim,
            dtype=encoded.dtype,
            encoding=encoded.encoding,
            codewords=len(encoded.codebook),
            codewords_dtype=encoded.codewords_dtype,
            levels=encoded.levels,
        )
        needed = (len(encoded.codebook), encoded.dim), storage_dtype(encoded.codewords_dtype)
        if (encoded.codebook.shape, encoded.codebook.dtype) != needed:
            raise ArtifactError(
                f"the codebook of {where} is {encoded.codebook.dtype} {encoded.codebook.shape}; "
                f"it must be {needed[1]} {needed[0]}"
            )
        scales = encoded.scales
        if (scales is None) != (encoded.codewords_dtype != "int8") or (
            scales is not None
            and (scales.shape, scales.dtype) != ((len(encoded.codebook),), np.dtype(np.uint16))
        ):
            raise ArtifactError(
                f"{where} has codewords of {encoded.codewords_dtype} and "
                f"{'no scales' if scales is None else f'scales {scales.dtype} {scales.shape}'}; "
                "int8 codewords need one uint16 each, others have none"
            )
        if (encoded.codes is None) != (encoded.encoding == "identity") and encoded.n_rows:
            raise ArtifactError(
                f"{where} has encoding {encoded.encoding!r} and codes {encoded.codes}; "
                "planes and levels need a file of codes, identity has none"
            )
        if encoded.codes is not None and has_codes(encoded.encoding, encoded.n_rows):
            try:
                with encoded.codes.open("rb") as file:
                    if encoded.levels is not None:
                        open_levels(file, encoded.levels)
                    else:
                        open_planes(file, encoded.n_rows, len(encoded.codebook))
            except OSError as err:
                raise ArtifactError(f"the codes of {where} cannot be read: {err}") from err
        taken = sorted(entry.keys() & encoded.record.keys())
        if taken:
            raise ArtifactError(
                f"the record of {where} holds {taken[0]!r}, which has a fixed meaning; rename it"
            )
        json_bytes({encoded.name: dict(encoded.record)})
        entries.append(entry | dict(encoded.record))
    if not totals(entries)["rows"]:
        raise ArtifactError("there are no rows in any field, so nothing to write")
    return entries


def _link_or_copy(source: Path, target: Path) -> None:
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(real, target)


def _tensors(fields: Sequence[EncodedField]) -> dict[str, dict[str, tuple[str, NDArray[Any]]]]:
    """Return dtype and values of each tensor by its name, for each file of tensors."""
    files = {CODEBOOKS: {one.name: (one.codewords_dtype, one.codebook) for one in fields}}
    scales = {one.name: ("bfloat16", one.scales) for one in fields if one.scales is not None}
    return files | ({SCALES: scales} if scales else {})


def _write_tensors(file: BinaryIO, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    """Write tensors in the format safetensors, in the order its own writer chooses.

    Wider numbers come first, so that each tensor is aligned, then names. Its own writer is not
    used: the promise of equal bytes would then hold within one version of it only.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1][1].itemsize, item[0]))
    header: dict[str, Any] = {}
    stop = 0
    for name, (dtype, values) in ordered:
        start, stop = stop, stop + values.nbytes
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": list(values.shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, (_, values) in ordered:
        step = max(1, _BLOCK_BYTES * len(values) // max(1, values.nbytes))
        for first in range(0, len(values), step):
            block = np.ascontiguousarray(values[first : first + step])
            file.write(block.reshape(-1).view(np.uint8).data)


def file_entry(path: Path) -> dict[str, Any]:
    """Return what a manifest states of a file: its bytes and their SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}
