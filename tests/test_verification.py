"""Verification finds what was altered, by a bit, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import saec_gpu as saec
from saec_gpu.artifact_writer import EncodedField, write_artifact
from saec_gpu.errors import (
    ArtifactError,
    NonFiniteRowError,
    ParamError,
    SourceError,
    WeightError,
)
from saec_gpu.manifest import sealed

Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def tables() -> Arrays:
    generator = np.random.default_rng(11)
    return {
        "brand": generator.standard_normal((9, 3)).astype(np.float16),  # kept whole
        "item": generator.standard_normal((1025, 5)).astype(np.float32),
        "none": np.zeros((0, 4), np.float32),
        "user": generator.standard_normal((700, 3)),
    }


@pytest.fixture
def weights() -> Arrays:
    generator = np.random.default_rng(12)
    return {
        "item": generator.integers(0, 50, 1025),
        "user": np.exp2(generator.integers(-60, 60, 700)),
    }


@pytest.fixture
def artifact(tmp_path: Path, tables: Arrays, weights: Arrays) -> saec.Artifact:
    return saec.compress(
        tables, weights=weights, codewords=20, codes="planes", out=tmp_path / "a.saec"
    )


def altered(artifact: saec.Artifact, name: str, place: int, mask: int = 1) -> saec.Artifact:
    """Flip bits of a byte of a file and mend the manifest, as if nothing had happened."""
    path = artifact.path / name
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)
    manifest = json.loads((artifact.path / "manifest.json").read_bytes())
    manifest["files"][name]["sha256"] = hashlib.sha256(content).hexdigest()
    (artifact.path / "manifest.json").write_bytes(sealed(manifest))
    return saec.load(artifact.path)


def with_record(artifact: saec.Artifact, field: str, **changes: Any) -> saec.Artifact:
    """Change what the manifest states of a field."""
    manifest = json.loads((artifact.path / "manifest.json").read_bytes())
    for entry in manifest["fields"]:
        if entry["name"] == field:
            entry.update(changes)
    (artifact.path / "manifest.json").write_bytes(sealed(manifest))
    return saec.load(artifact.path)


def place_in_codebooks(artifact: saec.Artifact, field: str) -> int:
    """Return where a field's codebook begins in its file."""
    content = (artifact.path / "codebooks.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length + int(json.loads(content[8 : 8 + length])[field]["data_offsets"][0])


def found_of(verification: saec.Verification, field: str) -> Any:
    (found,) = (found for found in verification.fields if found.name == field)
    return found


def test_what_was_compressed_is_right(
    artifact: saec.Artifact, tables: Arrays, weights: Arrays
) -> None:
    assert artifact["brand"].encoding == "identity"
    found = artifact.verify(tables, weights=weights)
    assert found.ok
    assert found.problems == ()
    assert [field.name for field in found.fields] == ["brand", "item", "none", "user"]
    for field in found.fields:
        assert (field.wrong_codes, field.ok) == (0, True)
    item = found_of(found, "item")
    assert item.sse == artifact["item"].record["sse"] > 0
    assert item.weighted_sse == artifact["item"].record["weighted_sse"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"threads": 2, "chunk_rows": 97},
        {"chunk_rows": 1},
        {"memory": "340kB", "threads": 1},
        {"backend": "cpu"},
    ],
)
def test_however_it_is_done(
    artifact: saec.Artifact, tables: Arrays, weights: Arrays, options: dict[str, Any]
) -> None:
    assert saec.verify(artifact, tables, weights=weights, **options) == artifact.verify(
        tables, weights=weights
    )


def test_from_files(
    artifact: saec.Artifact, tmp_path: Path, tables: Arrays, weights: Arrays
) -> None:
    save_file(tables, tmp_path / "tables.safetensors")
    np.savez(tmp_path / "weights.npz", **weights)  # type: ignore[arg-type]
    loaded = saec.load(artifact.path)
    assert loaded.verify(tmp_path / "tables.safetensors", weights=tmp_path / "weights.npz").ok


def test_an_altered_file_is_named(artifact: saec.Artifact, tables: Arrays) -> None:
    path = artifact.path / "codes" / "1.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"codes/1\.npy.*altered"):
        artifact.verify(tables)


@pytest.mark.parametrize(("field", "number"), [("item", 1), ("user", 3)])
def test_one_bit_of_a_code(
    artifact: saec.Artifact, tables: Arrays, field: str, number: int
) -> None:
    before = artifact[field].codes
    mended = altered(artifact, f"codes/{number}.npy", 128 + 7)  # behind the header
    differ = int((mended[field].codes != before).sum())
    assert differ == 1
    found = mended.verify(tables)
    assert not found.ok
    assert [one.name for one in found.fields if not one.ok] == [field]
    assert found_of(found, field).wrong_codes == 1
    assert found.problems == (
        f'field "{field}": 1 rows are stored with another code than their own',
    )


def test_one_bit_of_a_code_in_levels(tmp_path: Path, tables: Arrays) -> None:
    artifact = saec.compress(tables, codewords=20, fields="item", out=tmp_path / "levels.saec")
    assert artifact["item"].encoding == "levels"
    size = (artifact.path / "codes" / "0.npy").stat().st_size
    mended = altered(artifact, "codes/0.npy", size - 4)  # the last payloads, before spare bytes
    found = found_of(mended.verify({"item": tables["item"]}), "item")
    assert found.wrong_codes == 1
    assert found.sse == found.stored_sse


def test_one_bit_of_a_codeword(artifact: saec.Artifact, tables: Arrays) -> None:
    # the lowest bit of one float32: it moves no row to another codeword, but the error by a bit
    mended = altered(artifact, "codebooks.safetensors", place_in_codebooks(artifact, "item"))
    found = found_of(mended.verify(tables), "item")
    assert found.sse != found.stored_sse
    assert "sse is" in found.problems[0]


@pytest.mark.parametrize("mask", [0x40, 0x20])
def test_a_codeword_far_from_all_rows(artifact: saec.Artifact, tables: Arrays, mask: int) -> None:
    place = place_in_codebooks(artifact, "item") + 3  # the byte with sign and exponent
    found = found_of(altered(artifact, "codebooks.safetensors", place, mask).verify(tables), "item")
    assert found.wrong_codes > 0
    assert found.sse != found.stored_sse


def test_a_codeword_that_is_no_number(artifact: saec.Artifact, tables: Arrays) -> None:
    place = place_in_codebooks(artifact, "item")
    altered(artifact, "codebooks.safetensors", place + 2, 0xFF)
    path = artifact.path / "codebooks.safetensors"
    byte = path.read_bytes()[place + 3]
    mended = altered(artifact, "codebooks.safetensors", place + 3, byte ^ 0x7F)
    byte = path.read_bytes()[place + 2]
    mended = altered(artifact, "codebooks.safetensors", place + 2, byte ^ 0xC0)
    assert np.isnan(mended["item"].codebook[0, 0])
    with pytest.raises(ArtifactError, match=r'codebook of field "item".*not finite'):
        mended.verify(tables)


@pytest.mark.parametrize("change", [lambda x: x + 1e30, lambda x: x * 1e-30, lambda x: -x])
def test_other_rows(artifact: saec.Artifact, tables: Arrays, change: Callable[[Any], Any]) -> None:
    other = tables | {"item": change(tables["item"].astype(np.float64)).astype(np.float32)}
    found = artifact.verify(other)
    assert [one.name for one in found.fields if not one.ok] == ["item"]
    assert found_of(found, "item").sse != found_of(found, "item").stored_sse


def test_rows_far_outside_their_former_range(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((300, 3)).astype(np.float32)
    artifact = saec.compress({"x": rows}, codewords=4, out=tmp_path / "a.saec")
    (found,) = artifact.verify({"x": rows + np.float32(1e6)}).fields
    assert found.sse is not None
    assert found.sse > 1e14
    assert not found.ok


def test_two_rows_that_changed_places(artifact: saec.Artifact, tables: Arrays) -> None:
    codes = artifact["item"].codes
    other = int(np.flatnonzero(codes != codes[0])[0])
    tables["item"][[0, other]] = tables["item"][[other, 0]]
    found = found_of(artifact.verify(tables), "item")
    assert found.wrong_codes == 2
    assert found.sse == found.stored_sse


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"item": np.zeros((1024, 5), np.float32)},
            "1025 × 5 float32 in the artifact and 1024 × 5",
        ),
        ({"item": np.zeros((1025, 4), np.float32)}, "1025 × 4 float32 in the tables"),
        ({"user": np.zeros((700, 3), np.float32)}, "700 × 3 float64 in the artifact and 700 × 3"),
        ({"none": np.zeros((1, 4), np.float32)}, "0 × 4"),
    ],
)
def test_tables_of_another_shape(
    artifact: saec.Artifact, tables: Arrays, change: Arrays, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        artifact.verify(tables | change)


def test_a_field_that_the_tables_lack(artifact: saec.Artifact, tables: Arrays) -> None:
    del tables["item"]
    with pytest.raises(SourceError, match=r'has a field "item".*brand'):
        artifact.verify(tables)


def test_fields_that_were_not_compressed_are_left_out(
    tmp_path: Path, tables: Arrays, weights: Arrays
) -> None:
    artifact = saec.compress(
        tables, weights=weights, codewords=20, fields="i*", out=tmp_path / "some.saec"
    )
    tables["user"][:] = np.nan  # not even read
    assert artifact.verify(tables, weights=weights).ok
    assert artifact.verify(tables, weights={"item": weights["item"]}).ok
    assert artifact.verify(tables, weights=weights["item"]).ok  # one vector, one field
    assert artifact.verify(saec.open_tables(tables), weights=weights).ok


def test_a_row_that_is_not_finite(artifact: saec.Artifact, tables: Arrays) -> None:
    tables["item"][3, 1] = np.nan
    with pytest.raises(NonFiniteRowError, match='row 3 of field "item"'):
        artifact.verify(tables)


# Weights.


def test_without_weights_their_error_is_not_checked(
    artifact: saec.Artifact, tables: Arrays
) -> None:
    found = with_record(artifact, "item", weighted_sse=1.0).verify(tables)
    assert found.ok
    assert {one.weighted_sse for one in found.fields} == {None}


def test_an_altered_weighted_error(
    artifact: saec.Artifact, tables: Arrays, weights: Arrays
) -> None:
    found = with_record(artifact, "item", weighted_sse=1.0).verify(tables, weights=weights)
    assert not found.ok
    assert "with the weights given, stored 1.0" in found.problems[0]


def test_one_weight_more(artifact: saec.Artifact, tables: Arrays, weights: Arrays) -> None:
    weights["item"][17] += 1
    found = artifact.verify(tables, weights=weights)
    assert [one.name for one in found.fields if not one.ok] == ["item"]
    assert found_of(found, "item").wrong_codes == 0


def test_weights_for_fewer_or_more_fields_than_it_was_compressed_with(
    tmp_path: Path, artifact: saec.Artifact, tables: Arrays, weights: Arrays
) -> None:
    found = artifact.verify(tables, weights={"user": weights["user"]})
    assert [one.name for one in found.fields if not one.ok] == ["item"]
    plain = saec.compress(tables, codewords=20, out=tmp_path / "plain.saec")
    found = plain.verify(tables, weights={"user": weights["user"]})
    assert [one.name for one in found.fields if not one.ok] == ["user"]
    assert "compressed without weights" in found.problems[0]
    assert plain.verify(tables, weights={"user": np.zeros(700)}).ok  # all zero is none


def test_weights_that_are_not_allowed(artifact: saec.Artifact, tables: Arrays) -> None:
    with pytest.raises(WeightError, match='row 5 of field "item"'):
        artifact.verify(tables, weights={"item": np.where(np.arange(1025) == 5, -1, 1)})
    with pytest.raises(WeightError, match='row 2 of field "brand"'):
        artifact.verify(tables, weights={"brand": np.where(np.arange(9) == 2, -1, 1)})
    with pytest.raises(WeightError, match="1024"):
        artifact.verify(tables, weights={"item": np.ones(1024)})


def test_weights_of_a_field_kept_whole(tmp_path: Path, tables: Arrays) -> None:
    counts = {"brand": np.arange(9)}
    artifact = saec.compress(tables, weights=counts, codewords=20, out=tmp_path / "w.saec")
    found = artifact.verify(tables, weights=counts)
    assert found.ok
    assert found_of(found, "brand").weighted_sse == 0.0


# Fields kept whole.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_kept_whole_are_compared_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    exact = np.random.default_rng(5).standard_normal((31, 3))
    exact[0, 0] = 0.0
    if dtype == "bfloat16":
        rows = exact.astype(ml_dtypes.bfloat16)
        kept = rows.view(np.uint16)
    else:
        rows = kept = exact.astype(dtype)
    record = {"sse": 0.0, "weighted_sse": None, "weights": "none"}
    artifact = write_artifact(
        tmp_path / "a.saec",
        [EncodedField("x", 31, 3, dtype, "identity", kept, None, record)],
        parameters={},
        run={},
        overwrite=False,
    )
    assert artifact.verify({"x": rows}).ok
    assert artifact.verify({"x": rows}, chunk_rows=7).ok
    width = rows.dtype.itemsize
    for row, byte, mask in ((0, width - 1, 0x80), (30, 0, 1)):  # 0.0 and −0.0; the lowest bit
        other = rows.copy()
        other.view(np.uint8).reshape(31, -1)[row, byte] ^= mask
        (found,) = artifact.verify({"x": other}).fields
        assert (found.wrong_codes, found.ok) == (1, False)


def test_a_field_kept_whole_needs_little_memory(tmp_path: Path) -> None:
    rows = np.random.default_rng(6).standard_normal((5000, 8)).astype(np.float32)
    artifact = saec.compress({"x": rows}, codewords=5000, out=tmp_path / "a.saec")
    assert artifact["x"].encoding == "identity"
    assert artifact.verify({"x": rows}, memory=300_000, threads=1).ok


def test_an_altered_error_of_a_field_kept_whole(artifact: saec.Artifact, tables: Arrays) -> None:
    assert not with_record(artifact, "brand", sse=1.0).verify(tables).ok


# Parameters and progress.


@pytest.mark.parametrize(
    "options",
    [{"chunk_rows": 0}, {"threads": 0}, {"memory": "lots"}, {"memory": 10}, {"backend": "x"}],
)
def test_wrong_parameters(artifact: saec.Artifact, tables: Arrays, options: dict[str, Any]) -> None:
    with pytest.raises(ParamError):
        artifact.verify(tables, **options)


def test_progress_counts_every_row_once(artifact: saec.Artifact, tables: Arrays) -> None:
    reports: list[saec.Progress] = []
    artifact.verify(tables, chunk_rows=100, progress=reports.append)
    done = [one.done for one in reports]
    assert done == sorted(done)
    assert done[-1] == 9 + 1025 + 700
    assert {one.total for one in reports} == {9 + 1025 + 700}
