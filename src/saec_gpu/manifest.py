"""`manifest.json` of an artifact: what stands in it, and the checks that it holds together.

The text is canonical (sorted keys, one spelling) and carries its own SHA-256 and that of each file
it lists, so one answer is one sequence of bytes and any alteration is found. File names are made of
a field's number, never of its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saec_gpu.codewords import CODEWORDS_DTYPES, codebook_bytes
from saec_gpu.errors import ArtifactError
from saec_gpu.levels import Levels
from saec_gpu.packing import code_bits, packed_size, plane_widths
from saec_gpu.sources.stored import TABLE_DTYPES, storage_dtype

FORMAT = "saec"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RUN = "run.json"
CODEBOOKS = "codebooks.safetensors"
SCALES = "scales.safetensors"
CODES = "codes"
ENCODINGS = ("planes", "levels", "identity")


def field_entry(
    number: int,
    name: str,
    *,
    rows: int,
    dim: int,
    dtype: str,
    encoding: str,
    codewords: int,
    codewords_dtype: str,
    levels: Levels | None = None,
) -> dict[str, Any]:
    """Return the manifest's entry of a field, without its record.

    Parameters
    ----------
    number : int
        Position of the name among the names of all fields, in code-point order.
    name : str
    rows, dim : int
    dtype : str
        Of the table; one of `TABLE_DTYPES`.
    encoding : str
        "planes": codewords and packed codes (packing.py). "levels": codewords and codes in levels
        (levels.py). "identity": the rows themselves in their own dtype, no codes.
    codewords : int
        Rows of the codebook.
    codewords_dtype : str
        In which they are stored; one of `CODEWORDS_DTYPES`, with "identity" the table's.
    levels : Levels, optional
        Of the encoding of that name.

    Returns
    -------
    entry : dict
        The arguments (of the levels level_bits and level_rows) and what follows from them: bits
        (ceil(log2 codewords)), planes (their widths in bits), table_bytes, codebook_bytes and
        code_bytes.

    Raises
    ------
    ArtifactError
        The values do not fit each other.
    """
    where = f'field {number} ("{name}")'
    if encoding not in ENCODINGS or dtype not in TABLE_DTYPES:
        raise ArtifactError(
            f"{where} has encoding {encoding!r} and dtype {dtype!r}; known are "
            f"{', '.join(ENCODINGS)} and {', '.join(TABLE_DTYPES)}"
        )
    if rows < 0 or dim < 1 or codewords < 0:
        raise ArtifactError(f"{where} cannot have {rows} rows, dim {dim} and {codewords} codewords")
    if (levels is None) != (encoding != "levels"):
        raise ArtifactError(f"{where} has encoding {encoding!r} and levels {levels}")
    stored_as = (dtype,) if encoding == "identity" else CODEWORDS_DTYPES
    if codewords_dtype not in stored_as:
        raise ArtifactError(
            f"{where} has encoding {encoding!r}, so its codewords are stored as "
            f"{' or '.join(stored_as)}, not as {codewords_dtype!r}"
        )
    table_bytes = rows * dim * storage_dtype(dtype).itemsize
    if encoding == "identity":
        if codewords != rows:
            raise ArtifactError(
                f"{where} is kept whole, but {codewords} of its {rows} rows are there"
            )
        bits, bytes_of_codebook, code_bytes = 0, table_bytes, 0
    else:
        bits, code_bytes = code_bits(codewords), packed_size(rows, codewords)
        if levels is not None:
            levels.check(rows, codewords)
            code_bytes = levels.size
        bytes_of_codebook = codebook_bytes(codewords, dim, codewords_dtype)
    return {
        "number": number,
        "name": name,
        "rows": rows,
        "dim": dim,
        "dtype": dtype,
        "encoding": encoding,
        "codewords": codewords,
        "codewords_dtype": codewords_dtype,
        "bits": bits,
        "planes": list(plane_widths(bits)) if encoding == "planes" else [],
        "level_bits": [] if levels is None else list(levels.bits),
        "level_rows": [] if levels is None else list(levels.rows),
        "table_bytes": table_bytes,
        "codebook_bytes": bytes_of_codebook,
        "code_bytes": code_bytes,
    }


def levels_of(entry: Mapping[str, Any]) -> Levels | None:
    """Return the levels that an entry names, if its codes are in levels; unchecked."""
    if entry["encoding"] != "levels":
        return None
    return Levels(tuple(entry["level_bits"]), tuple(entry["level_rows"]))


def has_codes(encoding: str, rows: int) -> bool:
    """Return whether such a field has a file of codes."""
    return encoding != "identity" and rows > 0


def codes_name(number: int) -> str:
    """Return the file of a field's codes, relative to the artifact."""
    return f"{CODES}/{number}.npy"


def file_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the files that the fields need, relative to the artifact."""
    coded = [entry["number"] for entry in entries if has_codes(entry["encoding"], entry["rows"])]
    scales = [SCALES] if any(entry["codewords_dtype"] == "int8" for entry in entries) else []
    return [CODEBOOKS, *scales, *map(codes_name, coded)]


def totals(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return rows and bytes of all fields; counted_bytes is what stands against table_bytes."""
    sums = {
        key: sum(entry[key] for entry in entries)
        for key in ("rows", "table_bytes", "codebook_bytes", "code_bytes")
    }
    return sums | {"counted_bytes": sums["codebook_bytes"] + sums["code_bytes"]}


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the one spelling of a JSON object that this package writes.

    Raises
    ------
    ArtifactError
        It holds what JSON cannot: another type, NaN, infinity, or text that is no Unicode.
    """
    try:
        text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode("utf-8")
    except (TypeError, ValueError) as err:
        raise ArtifactError(
            f"a value cannot be written as JSON ({err}); give plain numbers that are finite, text "
            "that is Unicode, lists and dicts"
        ) from err


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest with the SHA-256 of that text without it."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return json_bytes(content | {"sha256": hashlib.sha256(json_bytes(content)).hexdigest()})


def claims_format(data: bytes) -> bool:
    """Return whether the text is a manifest of this format, of any version, valid or not."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """Return the manifest of a text, checked.

    Raises
    ------
    ArtifactError
        The text, read from `path`, is no manifest, is of a newer format, was altered, or its parts
        do not fit each other.
    """
    if not claims_format(data):
        raise ArtifactError(
            f'"{path}" is no manifest of a saec artifact; it was altered or never was one'
        )
    manifest: dict[str, Any] = json.loads(data)
    version = manifest.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise ArtifactError(
            f'"{path}" has format version {version}; this saec_gpu reads up to {FORMAT_VERSION}: '
            "upgrade it (pip install --upgrade saec_gpu)"
        )
    if type(version) is not int or version < 1 or _seal_broken(manifest, data):
        raise ArtifactError(
            f'"{path}" was altered: it does not have the SHA-256 that it states; '
            "copy the artifact again or make it anew"
        )
    try:
        _check(manifest)
    except (KeyError, TypeError, AttributeError) as err:
        raise ArtifactError(f'"{path}" lacks an entry or has one of a wrong type: {err}') from err
    except ArtifactError as err:
        raise ArtifactError(f'"{path}" is not valid: {err}') from err
    return manifest


def _seal_broken(manifest: dict[str, Any], data: bytes) -> bool:
    try:
        return sealed(manifest) != data
    except ArtifactError:
        return True  # NaN and the like are read, but never written


def _check(manifest: dict[str, Any]) -> None:
    """Compare all that follows from the fields with what the manifest says.

    The text may come from anywhere, so no number or name of a file is taken from it: only equality
    with the ones that this package would write is accepted.
    """
    entries = manifest["fields"]
    previous: str | None = None
    for number, entry in enumerate(entries):
        name = entry["name"]
        counts = {key: entry[key] for key in ("rows", "dim", "codewords")}
        if type(name) is not str or any(type(count) is not int for count in counts.values()):
            raise ArtifactError(f"the name or a count of field {number} has a wrong type")
        expected = field_entry(
            number, name, dtype=entry["dtype"], encoding=entry["encoding"],
            codewords_dtype=entry["codewords_dtype"], levels=levels_of(entry), **counts,
        )  # fmt: skip
        differing = sorted(key for key, value in expected.items() if entry[key] != value)
        if differing:
            raise ArtifactError(
                f'{differing[0]} of field {number} ("{name}") is {entry[differing[0]]!r}; '
                f"it must be {expected[differing[0]]!r}"
            )
        if previous is not None and name <= previous:
            raise ArtifactError(f"the fields {previous!r} and {name!r} are not in order of name")
        previous = name
    if sorted(manifest["files"]) != sorted(file_names(entries)):
        raise ArtifactError(
            f"the files {sorted(manifest['files'])} are listed, "
            f"but the fields need {sorted(file_names(entries))}"
        )
    for name, stated in manifest["files"].items():
        if type(stated["bytes"]) is not int or type(stated["sha256"]) is not str:
            raise ArtifactError(f"bytes or sha256 of the file {name!r} has a wrong type")
    if manifest["totals"] != totals(entries) or not manifest["totals"]["rows"]:
        raise ArtifactError("its totals are not those of its fields, or it has no rows at all")
