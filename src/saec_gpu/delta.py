"""What changed from one artifact to the next, in one file that a server applies.

A delta is a zip file, deflated. In it lie

    delta.json             format, version, and the SHA-256 that the two manifests state
    manifest.json, run.json, codebooks.safetensors, scales.safetensors
                           of the new artifact, as they are
    changed/<number>       of each field with codes, by its number in the new artifact: bit i mod 8
                           of byte i // 8 (low bits first) says whether row i has another code; of
                           the rows that both artifacts have
    codes/<number>         the codes of these rows and of the added ones, in row order, in the least
                           unsigned dtype, little-endian

The old artifact and the delta give the new one, byte for byte: all files that are written are held
against the SHA-256 of the new manifest before they are put in place.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.artifact import Artifact, CompressedField, load, loaded
from saec_gpu.artifact_writer import file_entry, staged_artifact
from saec_gpu.durable import flush, write_error
from saec_gpu.errors import ArtifactError
from saec_gpu.levels import encode_in_levels
from saec_gpu.manifest import (
    CODEBOOKS,
    CODES,
    MANIFEST,
    RUN,
    SCALES,
    codes_name,
    has_codes,
    json_bytes,
    levels_of,
    parse,
)
from saec_gpu.packing import PlaneWriter, code_dtype

FORMAT = "saec-delta"
FORMAT_VERSION = 1
DELTA = "delta.json"
STEP_ROWS = 1 << 20  # a multiple of 8, so that bits of steps are whole bytes
COPY_BYTES = 1 << 22
COMPRESSIONS = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)
ENCRYPTED = 1  # of a member's flags


def write_delta(
    last: Artifact | str | os.PathLike[str],
    new: Artifact | str | os.PathLike[str],
    out: str | os.PathLike[str],
) -> Path:
    """Return the file `out`, which makes the new artifact of the last one (`apply_delta`).

    Parameters
    ----------
    last, new : Artifact or path
        Any two; it is small where the new one comes of an update of the last one.
    out : path
        Replaced if it is there, in one step.

    Raises
    ------
    ArtifactError
        An artifact cannot be read, or the file cannot be written.

    Notes
    -----
    Reads all codes of both. Holds a few MB.
    """
    before, now = loaded(last), loaded(new)
    place = Path(out)
    beside = place.with_name(place.name + ".writing")
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as file:
            states = {"last": before.manifest["sha256"], "new": now.manifest["sha256"]}
            head = {"format": FORMAT, "format_version": FORMAT_VERSION, **states}
            _write_member(file, DELTA, [json_bytes(head)])
            for name in now.files:
                if not name.startswith(f"{CODES}/"):
                    _write_member(file, name, _parts(now.open_file(name)))
            fields = {name: before[name] for name in before}
            for name in now:
                field = now[name]
                if has_codes(field.encoding, field.n_rows):
                    _write_changes(file, fields.get(name), field)
        flush(beside)
        beside.replace(place)
    except OSError as err:
        raise write_error(place, err) from err
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return place


def _write_changes(
    file: zipfile.ZipFile, last: CompressedField | None, new: CompressedField
) -> None:
    """Write which rows of a field have another code, and the codes of these and of new rows."""
    number, dtype = new.number, code_dtype(new.n_codewords)
    common = 0 if last is None else min(last.n_rows, new.n_rows)

    def codes_by_steps() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        for start, stop in _steps(common):
            codes = new.codes_between(start, stop)
            assert last is not None
            yield codes, codes != last.codes_between(start, stop)

    bits = (np.packbits(differ, bitorder="little") for _, differ in codes_by_steps())
    _write_member(file, _changed_name(number), bits)
    changed = (codes[differ] for codes, differ in codes_by_steps())
    added = (new.codes_between(*step) for step in _steps(new.n_rows, common))
    little = dtype.newbyteorder("<")
    _write_member(
        file, _codes_name(number), (codes.astype(little) for codes in chain(changed, added))
    )


def apply_delta(
    last: Artifact | str | os.PathLike[str],
    delta: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Artifact:
    """Return the artifact that a delta makes of the last one, byte for byte the one it was made of.

    Parameters
    ----------
    last : Artifact or path
        That which the delta begins at. Where the delta has been applied already, nothing is done.
    delta : path
        A file of `write_delta`.
    out : path, optional
        Folder to write; in place of the last artifact if not given, in one step: who has loaded it
        keeps it, who loads later gets the new one.
    overwrite : bool
        Replace an artifact at `out`.

    Raises
    ------
    ArtifactError
        The delta begins at another artifact, is damaged, or the artifact cannot be written. What
        was there still is.

    Examples
    --------
    >>> import numpy as np, tempfile, saec_gpu as saec
    >>> rows = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     last = saec.compress({"item": rows}, codewords=8, out=f"{folder}/served.saec")
    ...     now = saec.update(last, {"item": rows + 1}, out=f"{folder}/now.saec")
    ...     delta = saec.write_delta(last, now, f"{folder}/now.delta")
    ...     served = saec.apply_delta(last, delta)
    ...     served.path.name, served.manifest == now.manifest
    ('served.saec', True)
    """
    before = loaded(last)
    path = Path(delta)
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                if member.flag_bits & ENCRYPTED or member.compress_type not in COMPRESSIONS:
                    raise zipfile.BadZipFile(f"{member.filename} is not deflated")
            head = _head(file, path)
            state = before.manifest["sha256"]
            if out is None and state == head["new"]:
                return before
            if state != head["last"]:
                raise ArtifactError(
                    f'"{path}" begins at the artifact {head["last"][:12]}…, but "{before.path}" '
                    f"is {state[:12]}…; apply the deltas in between first, or copy the artifact"
                )
            text = file.read(MANIFEST)
            manifest = parse(text, path / MANIFEST)
            coded = [one for one in manifest["fields"] if has_codes(one["encoding"], one["rows"])]
            _check_names(file, [one["number"] for one in coded])
            place = before.path if out is None else Path(out)
            with staged_artifact(place, overwrite=overwrite or out is None) as folder:
                for name in {CODEBOOKS, SCALES, RUN} & set(file.namelist()):
                    with file.open(name) as source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
                fields = {name: before[name] for name in before}
                for entry in coded:
                    _write_codes(folder, file, fields.get(entry["name"]), entry)
                (folder / MANIFEST).write_bytes(text)
                for name, stated in manifest["files"].items():
                    if not (folder / name).exists() or file_entry(folder / name) != stated:
                        raise ArtifactError(
                            f'"{path}" is damaged: {name} comes out otherwise than it should; '
                            "copy the delta again"
                        )
    except FileNotFoundError as err:
        raise ArtifactError(f'there is no delta at "{path}"') from err
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError) as err:
        # EINVAL: an altered place in the file lies before its beginning
        if isinstance(err, OSError) and err.errno != errno.EINVAL:
            raise
        raise ArtifactError(f'"{path}" is no delta, or it is damaged: {err}') from err
    return load(place)


def _head(file: zipfile.ZipFile, path: Path) -> dict[str, str]:
    """Return what a delta says of itself, checked."""
    try:
        head = json.loads(file.read(DELTA))
        version = head["format_version"]
        known = head["format"] == FORMAT and type(version) is int
        states = {key: head[key] for key in ("last", "new")}
    except (ValueError, TypeError) as err:
        raise ArtifactError(f'"{path}" is no delta of saec: {err}') from err
    if not known or any(type(state) is not str for state in states.values()):
        raise ArtifactError(f'"{path}" is no delta of saec')
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f'"{path}" has format version {version}; this saec_gpu reads up to {FORMAT_VERSION}: '
            "upgrade it (pip install --upgrade saec_gpu)"
        )
    return states


def _write_codes(
    folder: Path, file: zipfile.ZipFile, last: CompressedField | None, entry: dict[str, Any]
) -> None:
    """Write the codes of a field of the new artifact."""
    number, n_rows = entry["number"], entry["rows"]
    common = 0 if last is None else min(last.n_rows, n_rows)
    little = code_dtype(entry["codewords"]).newbyteorder("<")
    path = folder / codes_name(number)
    with (
        file.open(_changed_name(number)) as bits,
        file.open(_codes_name(number)) as codes,
        PlaneWriter(path, n_rows, entry["codewords"]) as writer,
    ):
        for start, stop in _steps(common):
            assert last is not None
            packed = np.frombuffer(_read(bits, (stop - start + 7) // 8), np.uint8)
            differ = np.unpackbits(packed, count=stop - start, bitorder="little").view(np.bool_)
            found = last.codes_between(start, stop).astype(little)
            found[differ] = np.frombuffer(_read(codes, int(differ.sum()) * little.itemsize), little)
            writer.append(found)
        for start, stop in _steps(n_rows, common):
            writer.append(np.frombuffer(_read(codes, (stop - start) * little.itemsize), little))
    levels = levels_of(entry)
    if levels is not None:
        encode_in_levels(path, entry["codewords"], levels)


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"{stream.name} ends early")
    return data


def _write_member(file: zipfile.ZipFile, name: str, parts: Iterable[Any]) -> None:
    info = zipfile.ZipInfo(name)  # with the date that it has by itself, so that bytes repeat
    info.compress_type = zipfile.ZIP_DEFLATED
    with file.open(info, "w", force_zip64=True) as member:
        for part in parts:
            member.write(memoryview(part).cast("B"))


def _parts(source: IO[bytes]) -> Iterator[bytes]:
    with source:
        while part := source.read(COPY_BYTES):
            yield part


def _steps(stop: int, start: int = 0) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, STEP_ROWS):
        yield first, min(first + STEP_ROWS, stop)


def _check_names(file: zipfile.ZipFile, coded: Iterable[int]) -> None:
    """Fail on a name that no part has: an altered one of RUN, which has no SHA-256, shows no more.

    `coded` are the numbers of the fields with codes.
    """
    parts = {DELTA, MANIFEST, RUN, CODEBOOKS, SCALES}
    for number in coded:
        parts |= {_changed_name(number), _codes_name(number)}
    for name in file.namelist():
        if name not in parts:
            raise zipfile.BadZipFile(f"{name} is no part of it")


def _changed_name(number: int) -> str:
    return f"changed/{number}"


def _codes_name(number: int) -> str:
    return f"codes/{number}"
