"""An artifact is written whole or not at all, reads back the same, and notices any change."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saec_gpu import durable
from saec_gpu.artifact import Artifact, load
from saec_gpu.artifact_writer import EncodedField, check_out, write_artifact
from saec_gpu.codewords import StoredCodewords, store
from saec_gpu.errors import ArtifactError
from saec_gpu.levels import Levels, choose_levels, encode_in_levels
from saec_gpu.manifest import sealed
from saec_gpu.packing import PlaneWriter

ODD_NAMES = [
    "../../etc/passwd",
    "a/b",
    "/",
    "..",
    "",
    "Ünïcode 表 \U0001f600",
    'quote"\\\n',
    "x" * 300,
]


def planes(
    folder: Path, name: str, codebook: NDArray[np.float32], codes: Any, **record: Any
) -> EncodedField:
    """Return a field with packed codes, written to a file of its own below folder."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    with PlaneWriter(path, len(codes), len(codebook)) as writer:
        writer.append(np.asarray(codes))
    return EncodedField(
        name, len(codes), codebook.shape[1], "float32", "planes", codebook, path, record
    )


def identity(name: str, rows: NDArray[Any], dtype: str) -> EncodedField:
    return EncodedField(name, len(rows), rows.shape[1], dtype, "identity", rows)


def codebook(n_codewords: int, dim: int, start: float = 0) -> NDArray[np.float32]:
    numbers = (np.arange(n_codewords * dim) + start).reshape(n_codewords, dim)
    return (numbers / 7).astype(np.float32)


def three_fields(folder: Path, start: float = 0) -> list[EncodedField]:
    """Return a field of each kind: packed codes, kept whole, and empty. Not in order of name."""
    codes = np.arange(1025) * 7 % 300
    half = np.array([[1, -2, 0.5], [6e4, 6e-8, -0.0]], np.float16)
    return [
        planes(folder, "user", codebook(300, 5, start), codes, rule="nearest", sse=0.1 + 0.2),
        identity("brand", half, "float16"),
        EncodedField(
            "item", 0, 4, "float64", "planes", np.zeros((0, 4), np.float32), folder / "no"
        ),
    ]


def write(
    out: Path, fields: list[EncodedField], *, overwrite: bool = False, **run: Any
) -> Artifact:
    parameters = {"seed": 0, "tol": 1e-4}
    return write_artifact(out, fields, parameters=parameters, run=run, overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make flushing free: what a kill leaves does not depend on it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def codes_at(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return where to write: in a folder of its own, so that nothing else is beside it."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "model.saec"


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir())


# What is written is read back.


def test_hand_computed(out: Path, codes_at: Path) -> None:
    words = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    artifact = write(out, [planes(codes_at, "user", words, [2, 0, 1, 1, 2])])
    field = artifact["user"]
    assert field.codes.tolist() == [2, 0, 1, 1, 2]
    assert field.codes.dtype == np.uint8
    assert field.lookup([4, 0, 1]).tolist() == [[5, 6], [5, 6], [1, 2]]
    assert field.codes_of([[1], [2]]).tolist() == [[0], [1]]
    assert field.codes_between(1, 4).tolist() == [0, 1, 1]
    # Five codes of two bits are two bytes; three codewords of two float32 are 24.
    assert (out / "codes" / "0.npy").read_bytes()[128:] == bytes([0b01_01_00_10, 0b10])
    assert artifact.table_bytes == 5 * 2 * 4
    assert artifact.counted_bytes == 2 + 24
    assert artifact.ratio == 40 / 26
    assert artifact.disk_bytes == sum(map(len, contents(out).values()))
    (entry,) = artifact.manifest["fields"]
    assert entry == {
        "number": 0, "name": "user", "rows": 5, "dim": 2, "dtype": "float32", "encoding": "planes",
        "codewords": 3, "codewords_dtype": "float32", "bits": 2, "planes": [2], "level_bits": [],
        "level_rows": [], "table_bytes": 40, "codebook_bytes": 24, "code_bytes": 2,
    }  # fmt: skip


def test_three_kinds_of_fields(out: Path, codes_at: Path) -> None:
    given_fields = three_fields(codes_at)
    artifact = write(out, given_fields, backend="cpu")
    assert artifact.names == ("brand", "item", "user")
    assert list(artifact) == list(artifact.names)
    assert len(artifact) == 3
    assert "item" in artifact
    assert "other" not in artifact
    assert artifact.run == {"backend": "cpu"}
    assert artifact.manifest["parameters"] == {"seed": 0, "tol": 1e-4}

    user = artifact["user"]
    assert (user.n_rows, user.dim, user.dtype, user.encoding) == (1025, 5, "float32", "planes")
    assert user.n_codewords == 300
    assert user.record == {"rule": "nearest", "sse": 0.1 + 0.2}
    assert user.codes.dtype == np.uint16
    assert np.array_equal(user.codes, np.arange(1025) * 7 % 300)
    assert np.array_equal(user.codebook, codebook(300, 5))
    rows = np.array([[3, 1024], [0, 3]])
    assert np.array_equal(user.lookup(rows), codebook(300, 5)[rows * 7 % 300])

    brand = artifact["brand"]
    assert brand.codes.tolist() == [0, 1]
    assert brand.codes_of([1, 1]).tolist() == [1, 1]
    assert brand.codes_between(1, 2).tolist() == [1]
    assert np.array_equal(brand.codebook, given_fields[1].codebook.astype(np.float32))
    assert brand.codebook.dtype == np.float32

    empty = artifact["item"]
    assert (empty.n_rows, empty.n_codewords, empty.record) == (0, 0, {})
    assert empty.codes.shape == (0,)
    assert empty.codebook.shape == (0, 4)
    assert empty.lookup([]).shape == (0, 4)
    with pytest.raises(ArtifactError, match=r"row 0 .* there are 0 rows"):
        empty.lookup([0])

    assert sorted(contents(out)) == [
        "codebooks.safetensors", "codes/2.npy", "manifest.json", "run.json",
    ]  # fmt: skip
    assert artifact.table_bytes == 1025 * 5 * 4 + 2 * 3 * 2
    # 300 codewords: nine bits, a byte and an eighth.
    assert artifact.counted_bytes == (300 * 5 * 4 + 1025 + 129) + 2 * 3 * 2
    artifact.check_files()
    assert repr(artifact).endswith("3 fields, 2.9x smaller>")
    assert repr(brand) == "<CompressedField 'brand': (2, 3) float16, identity, 2 codewords>"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_identity_in_every_dtype(out: Path, dtype: str) -> None:  # RELIABILITY 29, 30
    exact = np.array([[1.5, -0.0], [3e38, 1e-45], [0.1, 7]])
    if dtype == "bfloat16":
        typed = exact.astype(ml_dtypes.bfloat16)
        stored, wide = typed.view(np.uint16), typed.astype(np.float32)
    else:
        with np.errstate(over="ignore"):
            stored = exact.astype(dtype)
        wide = stored.astype(np.float32)
    field = write(out, [identity("x", stored, dtype)])["x"]
    assert field.codebook.tobytes() == wide.tobytes()
    assert field.lookup([2, 0]).tobytes() == wide[[2, 0]].tobytes()
    assert field.lookup([2, 0]).dtype == np.float32
    assert not field.codebook.flags.writeable
    assert load(out).counted_bytes == load(out).table_bytes == stored.nbytes


def test_codebooks_are_safetensors(out: Path, codes_at: Path) -> None:
    bits = np.array([[1.5, 2.5, -3]], ml_dtypes.bfloat16)
    fields = [
        *three_fields(codes_at),
        identity("bf", bits.view(np.uint16), "bfloat16"),
        identity("f8", np.array([[0.1]]), "float64"),
        *(identity(name, codebook(1, 3), "float32") for name in ODD_NAMES),
    ]
    write(out, fields)
    found = safetensors.numpy.load_file(out / "codebooks.safetensors")
    assert sorted(found) == sorted(field.name for field in fields)
    for field in fields:
        assert found[field.name].tobytes() == field.codebook.tobytes()
    # Byte for byte what its own writer makes of it.
    typed = {field.name: field.codebook for field in fields} | {"bf": bits}
    own = out.parent / "own.safetensors"
    safetensors.numpy.save_file(typed, own)
    assert own.read_bytes() == (out / "codebooks.safetensors").read_bytes()


def narrow_fields(folder: Path) -> tuple[list[EncodedField], dict[str, StoredCodewords]]:
    """Return fields of every dtype of codewords, and their codebooks."""
    stored = {
        name: store(codebook(n, 3, start), dtype, field=name)
        for name, n, start, dtype in (
            ("a", 4, -5, "int8"), ("b", 9, 0, "float16"), ("c", 4, 1, "float32"),
            ("d", 2, 9, "int8"),
        )
    }  # fmt: skip
    fields = [
        replace(planes(folder, name, one.decoded(), [1, 0, 1]), codebook=one.values,
                scales=one.scales)
        for name, one in stored.items()
    ]  # fmt: skip
    none = store(np.zeros((0, 3), np.float32), "int8", field="e")
    stored["e"] = none
    fields.append(EncodedField("e", 0, 3, "float32", "planes", none.values, scales=none.scales))
    return fields, stored


def test_codewords_of_every_dtype(out: Path, codes_at: Path) -> None:
    fields, stored = narrow_fields(codes_at)
    artifact = write(out, fields)
    for name, one in stored.items():
        field = artifact[name]
        assert field.codewords_dtype == one.dtype
        assert field.codebook.tobytes() == one.decoded().tobytes()
        assert not field.codebook.flags.writeable
        rows = [2, 1, 0] if field.n_rows else []
        assert field.lookup(rows).tobytes() == one.decoded()[[1, 0, 1] if rows else []].tobytes()
        assert field.lookup(rows).dtype == np.float32
    # int8: three bytes and a scale of two a codeword; codes of three rows: one, two, one, one byte.
    assert artifact.counted_bytes == (4 + 2) * 5 + 9 * 6 + 4 * 12 + (1 + 2 + 1 + 1)
    assert sorted(artifact.manifest["files"]) == [
        "codebooks.safetensors", *(f"codes/{number}.npy" for number in range(4)),
        "scales.safetensors",
    ]  # fmt: skip
    artifact.check_files()
    # Byte for byte what the format's own writer makes of them.
    own = out.parent / "own.safetensors"
    safetensors.numpy.save_file({name: one.values for name, one in stored.items()}, own)
    assert own.read_bytes() == (out / "codebooks.safetensors").read_bytes()
    scales = {name: one.scales for name, one in stored.items() if one.scales is not None}
    safetensors.numpy.save_file(
        {name: bits.view(ml_dtypes.bfloat16) for name, bits in scales.items()}, own
    )
    assert own.read_bytes() == (out / "scales.safetensors").read_bytes()


def test_scales_are_missing_or_altered(tmp_path: Path, out: Path, codes_at: Path) -> None:
    fields, _ = narrow_fields(codes_at)
    artifact = write(out, fields)
    path = out / "scales.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"scales\.safetensors.* was altered"):
        artifact.check_files()
    path.write_bytes(whole.replace(b'"d"', b'"x"'))
    with pytest.raises(ArtifactError, match=r'\(2,\) bfloat16 of field "d", but holds none'):
        load(out)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"scales\.safetensors"):
        load(out)


def in_levels(folder: Path, name: str = "user") -> tuple[EncodedField, NDArray[np.int64]]:
    """Return a field whose codes are in levels, and its codes."""
    codes = np.minimum(np.arange(2000) * 7 % 60, np.arange(2000) % 300)
    field = planes(folder, name, codebook(300, 2), codes)
    levels = choose_levels(np.bincount(codes, minlength=300))
    assert levels is not None
    assert field.codes is not None
    encode_in_levels(field.codes, 300, levels)
    return replace(field, encoding="levels", levels=levels), codes


def test_codes_in_levels(out: Path, codes_at: Path, rng: np.random.Generator) -> None:
    given_field, codes = in_levels(codes_at)
    artifact = write(out, [given_field, *three_fields(codes_at)[1:]])
    field = artifact["user"]
    assert (field.encoding, field.n_codewords, field.record) == ("levels", 300, {})
    assert field.codes.dtype == np.uint16
    assert np.array_equal(field.codes, codes)
    assert np.array_equal(field.codes_between(77, 1999), codes[77:1999])
    rows = rng.integers(0, 2000, (3, 50))
    assert np.array_equal(field.codes_of(rows), codes[rows])
    assert np.array_equal(field.lookup(rows), codebook(300, 2)[codes[rows]])
    assert field.lookup([]).shape == (0, 2)
    (entry,) = (entry for entry in artifact.manifest["fields"] if entry["name"] == "user")
    assert given_field.levels is not None
    assert entry["level_bits"] == list(given_field.levels.bits)
    assert entry["level_rows"] == list(given_field.levels.rows)
    assert (entry["bits"], entry["planes"]) == (9, [])
    assert entry["code_bytes"] == given_field.levels.size < 2000 * 9 // 8
    assert len((out / "codes" / "2.npy").read_bytes()) == 128 + given_field.levels.size
    with pytest.raises(ArtifactError, match='row 2000 of field "user" is out of range'):
        field.lookup([2000])
    with pytest.raises(ArtifactError, match="it has 2000 rows"):
        field.codes_between(0, 2001)
    assert np.array_equal(pickle.loads(pickle.dumps(field)).codes, codes)
    artifact.check_files()


WRONG_LEVELS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "as planes": lambda e: e.update(encoding="planes"),
    "none": lambda e: e.update(level_bits=[], level_rows=[]),
    "other bits": lambda e: e["level_bits"].__setitem__(0, e["level_bits"][0] + 1),
    "bits negative": lambda e: e["level_bits"].__setitem__(0, -1),
    "bits huge": lambda e: e["level_bits"].__setitem__(0, 10**9),
    "bits as bool": lambda e: e["level_bits"].__setitem__(0, True),
    "bits as text": lambda e: e.update(level_bits="12"),
    "bits a number": lambda e: e.update(level_bits=3),
    "fewer rows": lambda e: e["level_rows"].__setitem__(1, e["level_rows"][1] - 496),
    "more rows": lambda e: e["level_rows"].__setitem__(1, 2001),
    "rows as float": lambda e: e["level_rows"].__setitem__(0, 2000.0),
    "a level more": lambda e: (e["level_bits"].append(1), e["level_rows"].append(0)),
    "missing": lambda e: e.pop("level_rows"),
}


@pytest.mark.parametrize("edit", WRONG_LEVELS.values(), ids=WRONG_LEVELS.keys())
def test_levels_that_do_not_hold_together(
    out: Path, codes_at: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    write(out, [in_levels(codes_at)[0]])
    edited(out, lambda manifest: edit(manifest["fields"][0]))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load(out)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, tuple[int, int, list[int]]]:
    name = st.text(max_size=8).filter(lambda name: name != "__metadata__")
    table = st.tuples(st.integers(1, 300), st.integers(1, 3), st.lists(st.integers(0), max_size=40))
    drawn = draw(st.dictionaries(name, table, min_size=1, max_size=4))
    first = next(iter(drawn))
    return drawn | {first: (*drawn[first][:2], [*drawn[first][2], 5])}


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_load_returns_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, tuple[int, int, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("artifact")
    fields, codes = [], {}
    for number, (name, (n_codewords, dim, draws)) in enumerate(drawn.items()):
        codes[name] = np.array([draw % n_codewords for draw in draws], np.int64)
        words = codebook(n_codewords, dim, number)
        if draws:
            fields.append(planes(folder / "scratch", name, words, codes[name]))
        else:
            fields.append(EncodedField(name, 0, dim, "float32", "planes", words))
    artifact = write(folder / "x.saec", fields)
    assert artifact.names == tuple(sorted(drawn))
    for field in fields:
        found = artifact[field.name]
        assert np.array_equal(found.codes, codes[field.name])
        assert found.codebook.tobytes() == field.codebook.tobytes()
        rows = np.arange(field.n_rows)[::-1]
        assert np.array_equal(found.lookup(rows), field.codebook[codes[field.name]][::-1])
    artifact.check_files()


def test_same_answer_same_bytes(tmp_path: Path, codes_at: Path) -> None:  # RELIABILITY 39
    fields = three_fields(codes_at)
    write(tmp_path / "one.saec", fields, seconds=1.5)
    write(tmp_path / "two.saec", fields[::-1], seconds=2.5)
    one, two = contents(tmp_path / "one.saec"), contents(tmp_path / "two.saec")
    assert one.pop("run.json") != two.pop("run.json")
    assert one == two
    assert str(tmp_path).encode() not in b"".join(one.values())


def test_numbers_as_keys_and_floats_survive(out: Path) -> None:
    counts = {10: 1e-300, 9: 0.1, 2: -0.0}
    field = EncodedField(
        "x", 1, 1, "float32", "identity", codebook(1, 1), record={"counts": counts, "of": (1, 2)}
    )
    record = write(out, [field])["x"].record
    assert record == {"counts": {"10": 1e-300, "9": 0.1, "2": -0.0}, "of": [1, 2]}


def test_codes_are_left_where_they_are(out: Path, codes_at: Path) -> None:
    fields = three_fields(codes_at)
    assert fields[0].codes is not None
    before = fields[0].codes.read_bytes()
    write(out, fields)
    assert fields[0].codes.read_bytes() == before
    # The caller may remove them afterwards, or write others under the name.
    with PlaneWriter(fields[0].codes, 1025, 300) as writer:
        writer.append(np.zeros(1025, np.uint8))
    load(out).check_files()


def test_codes_from_another_file_system(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    write(out, three_fields(codes_at)).check_files()


# Names and rows.


def test_field_names_never_become_paths(out: Path, codes_at: Path) -> None:
    fields = [planes(codes_at, name, codebook(3, 1), [0, 2, 1]) for name in ODD_NAMES]
    artifact = write(out, fields)
    assert set(artifact) == set(ODD_NAMES)
    assert all(artifact[name].codes.tolist() == [0, 2, 1] for name in ODD_NAMES)
    assert beside(out) == ["model.saec"]
    numbers = [f"codes/{number}.npy" for number in range(len(ODD_NAMES))]
    assert sorted(contents(out)) == sorted(
        [*numbers, "manifest.json", "run.json", "codebooks.safetensors"]
    )


def test_fields_are_in_code_point_order(out: Path) -> None:
    names = ["b", "Z", "é", "a10", "a2", "\U0001f600", "\uffee"]
    artifact = write(out, [identity(name, codebook(1, 1), "float32") for name in names])
    assert artifact.names == ("Z", "a10", "a2", "b", "é", "\uffee", "\U0001f600")


def test_unknown_field(out: Path, codes_at: Path) -> None:
    artifact = write(out, three_fields(codes_at))
    with pytest.raises(ArtifactError, match="no field 'usr'; its fields are brand, item, user"):
        artifact["usr"]


@pytest.mark.parametrize("name", ["user", "brand"])
def test_rows_out_of_range(out: Path, codes_at: Path, name: str) -> None:
    field = write(out, three_fields(codes_at))[name]
    for wrong in (-1, field.n_rows, 2**40):
        for read in (field.lookup, field.codes_of):
            with pytest.raises(
                ArtifactError,
                match=rf'row {wrong} of field "{name}" is out of range.* {field.n_rows} rows',
            ):
                read([0, wrong, 1])
    for rows in ([0.0], np.zeros(2, bool)):
        for read in (field.lookup, field.codes_of):
            with pytest.raises(ArtifactError, match="must be integers"):
                read(rows)
    for start, stop in ((-1, 1), (1, 0), (0, field.n_rows + 1)):
        with pytest.raises(ArtifactError, match=f"it has {field.n_rows} rows"):
            field.codes_between(start, stop)


def test_arrays_are_read_only(out: Path, codes_at: Path) -> None:
    artifact = write(out, three_fields(codes_at))
    with pytest.raises(ValueError, match="read-only"):
        artifact["user"].codebook[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        artifact["brand"].codebook[0, 0] = 1


# What does not fit is refused before anything is written.


def wrong_fields(folder: Path) -> Iterator[tuple[str, list[EncodedField]]]:
    good = planes(folder, "x", codebook(3, 2), [0, 1, 2, 2])

    def but(**changes: Any) -> list[EncodedField]:
        return [EncodedField(**{**vars(good), **changes})]

    yield "two fields have the name 'x'", [good, good]
    yield "no rows in any field", []
    yield "no rows in any field", but(n_rows=0, codes=None)
    yield "safetensors reserves it", but(name="__metadata__")
    yield "cannot be written as JSON", but(name="\ud800")
    yield "encoding 'huffman'", but(encoding="huffman")
    yield "dtype 'int8'", but(dtype="int8")
    yield "dim 0", but(dim=0)
    yield "float32 or float16 or int8, not as 'float64'", but(codebook=np.zeros((3, 2)))
    yield "must be float32", but(codebook=np.zeros((3, 1), np.float32))
    yield "int8 and no scales", but(codebook=np.zeros((3, 2), np.int8))
    for scales in (np.zeros(2, np.uint16), np.zeros(3, np.int16)):
        yield "need one uint16 each", but(codebook=np.zeros((3, 2), np.int8), scales=scales)
    yield "others have none", but(scales=np.zeros(3, np.uint16))
    yield "planes and levels need a file of codes", but(codes=None)
    yield "identity has none", but(encoding="identity", n_rows=3)
    yield "encoding 'levels' and levels None", but(encoding="levels")
    two = Levels((0, 1), (4, 3))
    yield "encoding 'planes' and levels Levels", but(levels=two)
    yield "codes of 4 rows in levels", but(encoding="levels", levels=two)
    yield "cannot have levels", but(encoding="levels", levels=Levels((0, 1), (5, 3)))
    yield "3 of its 4 rows", but(encoding="identity", codes=None)
    yield "must be uint16", but(encoding="identity", codes=None, n_rows=3, dtype="bfloat16")
    yield "does not hold the codes of 5 rows", but(n_rows=5)
    yield "does not hold the codes of 4 rows for 9", but(codebook=np.zeros((9, 2), np.float32))
    yield "codes of field 0 .* cannot be read", but(codes=folder / "missing.npy")
    yield "holds 'rows', which has a fixed meaning", but(record={"rows": 4})
    yield "cannot be written as JSON", but(record={"sse": float("nan")})
    yield "cannot be written as JSON", but(record={"sse": np.float32(1)})


def test_fields_that_do_not_fit(out: Path, codes_at: Path) -> None:  # RELIABILITY 62
    for message, fields in wrong_fields(codes_at):
        with pytest.raises(ArtifactError, match=message):
            write(out, fields)
        assert beside(out) == []


def test_parameters_that_are_no_json(out: Path, codes_at: Path) -> None:
    fields = three_fields(codes_at)
    with pytest.raises(ArtifactError, match="cannot be written as JSON"):
        write(out, fields, when=object())
    with pytest.raises(ArtifactError, match="cannot be written as JSON"):
        write_artifact(out, fields, parameters={"seed": {1}}, run={}, overwrite=False)
    assert beside(out) == []


# What was altered is noticed.


def artifact_files() -> list[str]:
    return ["codebooks.safetensors", "codes/2.npy", "manifest.json"]


@pytest.mark.parametrize("name", artifact_files())
def test_every_altered_byte_is_found(out: Path, codes_at: Path, name: str) -> None:
    artifact = write(out, three_fields(codes_at))
    path = out / name
    whole = path.read_bytes()
    for place in {0, 9, len(whole) // 2, len(whole) - 1}:
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ArtifactError, match=name):
            artifact.check_files()
        if name == "manifest.json":
            with pytest.raises(ArtifactError, match=name):
                load(out)
    path.write_bytes(whole)
    load(out).check_files()


@pytest.mark.parametrize("name", artifact_files())
@pytest.mark.parametrize("change", ["cut", "lengthened", "removed"])
def test_files_of_another_size_are_found_by_load(
    out: Path, codes_at: Path, name: str, change: str
) -> None:
    write(out, three_fields(codes_at))
    path = out / name
    whole = path.read_bytes()
    path.unlink()
    if change != "removed":
        path.write_bytes(whole[:-1] if change == "cut" else whole + b"\n")
    with pytest.raises(ArtifactError, match=name):
        load(out)


def test_run_is_outside_the_promise(out: Path, codes_at: Path) -> None:
    write(out, three_fields(codes_at))
    (out / "run.json").write_text("{")
    artifact = load(out)
    artifact.check_files()
    with pytest.raises(ArtifactError, match=r"run\.json"):
        _ = artifact.run
    (out / "run.json").unlink()
    assert load(out).run == {}
    assert load(out).disk_bytes == sum(map(len, contents(out).values()))


def edited(out: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the manifest and seal it again, as one who knows the format would."""
    path = out / "manifest.json"
    manifest = json.loads(path.read_bytes())
    edit(manifest)
    path.write_bytes(sealed(manifest))


def test_newer_format(out: Path, codes_at: Path) -> None:  # RELIABILITY 43
    write(out, three_fields(codes_at))
    edited(out, lambda manifest: manifest.update(format_version=2, fields="of another kind"))
    with pytest.raises(
        ArtifactError, match="format version 2; this saec_gpu reads up to 1: upgrade"
    ):
        load(out)


def test_entries_of_later_writers_are_kept(out: Path, codes_at: Path) -> None:
    write(out, three_fields(codes_at))
    edited(out, lambda manifest: manifest.update(more=[1]))
    assert load(out).manifest["more"] == [1]


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "file elsewhere": lambda m: m["files"].update({"../x": {"bytes": 0, "sha256": ""}}),
    "file renamed": lambda m: m["files"].update({"codes/../2.npy": m["files"].pop("codes/2.npy")}),
    "file missing": lambda m: m["files"].pop("codes/2.npy"),
    "number as path": lambda m: m["fields"][2].update(number="../../2"),
    "other number": lambda m: m["fields"][2].update(number=0),
    "order": lambda m: m["fields"][0].update(name="user", number=0),
    "rows": lambda m: m["fields"][2].update(rows=1026),
    "rows negative": lambda m: m["fields"][2].update(rows=-1),
    "rows as text": lambda m: m["fields"][2].update(rows="1025"),
    "rows as float": lambda m: m["fields"][2].update(rows=1025.0),
    "dim as bool": lambda m: m["fields"][2].update(dim=True),
    "codewords": lambda m: m["fields"][2].update(codewords=299),
    "bits": lambda m: m["fields"][2].update(bits=8),
    "planes": lambda m: m["fields"][2].update(planes=[1, 8]),
    "bytes": lambda m: m["fields"][2].update(code_bytes=1),
    "encoding": lambda m: m["fields"][2].update(encoding=["planes"]),
    "levels of planes": lambda m: m["fields"][2].update(level_bits=[0, 9], level_rows=[1025, 0]),
    "codewords dtype": lambda m: m["fields"][2].update(codewords_dtype="float16"),
    "codewords dtype of the whole": lambda m: m["fields"][0].update(codewords_dtype="float32"),
    "codewords dtype unknown": lambda m: m["fields"][2].update(codewords_dtype={}),
    "dtype": lambda m: m["fields"][2].update(dtype={}),
    "entry missing": lambda m: m["fields"][2].pop("planes"),
    "name missing": lambda m: m["fields"][2].pop("name"),
    "name null": lambda m: m["fields"][2].update(name=None),
    "no fields": lambda m: m.update(fields=[], files={"codebooks.safetensors": {}}),
    "fields null": lambda m: m.update(fields=None),
    "field a number": lambda m: m["fields"].append(3),
    "totals": lambda m: m["totals"].update(counted_bytes=1),
    "totals missing": lambda m: m.pop("totals"),
    "files a list": lambda m: m.update(files=[]),
    "file a number": lambda m: m["files"].update({"codes/2.npy": 3}),
    "size as text": lambda m: m["files"]["codes/2.npy"].update(bytes="1282"),
    "version as text": lambda m: m.update(format_version="1"),
    "version zero": lambda m: m.update(format_version=0),
    "format": lambda m: m.update(format="other"),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE.keys())
def test_manifests_that_do_not_hold_together(
    out: Path, codes_at: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    write(out, three_fields(codes_at))
    edited(out, edit)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load(out)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": "saec"}'])
def test_manifests_that_are_none(out: Path, codes_at: Path, text: bytes) -> None:
    write(out, three_fields(codes_at))
    (out / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load(out)


def test_codebooks_of_another_artifact(tmp_path: Path, codes_at: Path) -> None:
    write(tmp_path / "a.saec", three_fields(codes_at))
    other = three_fields(codes_at)
    other[1] = identity("brnad", other[1].codebook, "float16")
    write(tmp_path / "b.saec", other)
    shutil.copy(tmp_path / "b.saec" / "codebooks.safetensors", tmp_path / "a.saec")
    with pytest.raises(ArtifactError, match=r'tensor \(2, 3\) float16 of field "brand".* none'):
        load(tmp_path / "a.saec")


def test_codes_of_another_shape_are_found_when_used(out: Path, codes_at: Path) -> None:
    write(out, three_fields(codes_at))
    path = out / "codes" / "2.npy"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(1154,)", b"(1153,)"))
    artifact = load(out)
    assert artifact["brand"].codes.tolist() == [0, 1]
    with pytest.raises(ArtifactError, match=r"2\.npy"):
        artifact["user"].lookup([0])


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name, message in [("none", "No such file"), ("file", "Not a dir"), ("folder", "manifest")]:
        with pytest.raises(ArtifactError, match=message):
            load(tmp_path / name)


# One artifact in many hands.


def test_copied_moved_and_pickled(tmp_path: Path, out: Path, codes_at: Path) -> None:
    artifact = write(out, three_fields(codes_at))
    want = artifact["user"].lookup([7, 1])
    again = pickle.loads(pickle.dumps(artifact))
    assert np.array_equal(again["user"].lookup([7, 1]), want)
    field = pickle.loads(pickle.dumps(artifact["user"]))
    assert np.array_equal(field.lookup([7, 1]), want)
    fresh = load(out)
    out.rename(tmp_path / "elsewhere")
    # Loaded before the move, and not yet mapped.
    assert np.array_equal(fresh["user"].lookup([7, 1]), want)
    fresh.check_files()
    assert np.array_equal(load(tmp_path / "elsewhere")["user"].lookup([7, 1]), want)


def test_relative_paths(out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = three_fields(codes_at)
    monkeypatch.chdir(out.parent)
    artifact = write(Path(out.name), fields)
    monkeypatch.chdir("/")
    assert artifact.path == out
    assert pickle.loads(pickle.dumps(artifact))["user"].codes_of([1]).tolist() == [7]


def test_threads_share_an_artifact(out: Path, codes_at: Path) -> None:
    artifact = write(out, three_fields(codes_at))
    found: list[bytes] = []
    start = threading.Barrier(8)

    def read() -> None:
        start.wait()
        found.append(artifact["user"].lookup(np.arange(1025)).tobytes())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [codebook(300, 5)[np.arange(1025) * 7 % 300].tobytes()] * 8


def test_replaced_while_open(out: Path, codes_at: Path) -> None:
    old, unused = write(out, three_fields(codes_at)), load(out)
    before = old["user"].lookup([7])
    new = write(out, three_fields(codes_at, start=1), overwrite=True)
    assert not np.array_equal(new["user"].lookup([7]), before)
    # What was mapped stays; what was not is never taken from the other artifact.
    assert np.array_equal(old["user"].lookup([7]), before)
    with pytest.raises(ArtifactError, match="load it again"):
        unused["user"].lookup([7])


@pytest.mark.parametrize("step", ["_check_sizes", "_tensors"])
@pytest.mark.parametrize("before", [True, False])
def test_replaced_while_it_is_loaded(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    fields = [three_fields(codes_at), three_fields(codes_at, start=1)]
    write(out, fields[0])
    real = getattr(Artifact, step)
    calls = []

    def replace() -> None:
        calls.append(1)
        if len(calls) == 1:
            with monkeypatch.context() as inner:
                inner.setattr(Artifact, step, real)
                write(out, fields[1], overwrite=True)

    def replaced(self: Artifact, *arguments: Any) -> Any:
        if before:
            replace()
        result = real(self, *arguments)
        if not before:
            replace()
        return result

    monkeypatch.setattr(Artifact, step, replaced)
    assert np.array_equal(load(out)["user"].codebook, codebook(300, 5, 1))
    assert len(calls) == 2


# What may be replaced.


def test_existing_artifact_needs_overwrite(out: Path, codes_at: Path) -> None:
    write(out, three_fields(codes_at))
    before = contents(out)
    with pytest.raises(ArtifactError, match=r"overwrite=True, --overwrite"):
        write(out, three_fields(codes_at, start=1))
    assert contents(out) == before
    write(out, three_fields(codes_at, start=1), overwrite=True)
    assert contents(out) != before
    assert beside(out) == ["model.saec"]


def test_artifact_of_a_newer_format_may_be_replaced(out: Path, codes_at: Path) -> None:
    write(out, three_fields(codes_at))
    edited(out, lambda manifest: manifest.update(format_version=2))
    write(out, three_fields(codes_at), overwrite=True).check_files()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "empty folder", "folder", "other manifest", "link"])
def test_what_is_no_artifact_is_never_replaced(
    out: Path, codes_at: Path, kind: str, overwrite: bool
) -> None:
    target = out
    if kind == "link":
        target = out.parent / "precious"
        out.symlink_to(target)
    if kind == "file":
        target.write_text("precious")
    else:
        target.mkdir()
    if kind in {"folder", "link"}:
        (target / "codebooks.safetensors").write_text("precious")
    if kind == "other manifest":
        (target / "manifest.json").write_text('{"format": "other"}')
    before = contents(out.parent), beside(out)
    with pytest.raises(ArtifactError, match="exists and is no saec artifact"):
        write(out, three_fields(codes_at), overwrite=overwrite)
    assert (contents(out.parent), beside(out)) == before


def test_through_a_symbolic_link(out: Path, codes_at: Path) -> None:
    write(out, three_fields(codes_at))
    link = out.parent / "current"
    link.symlink_to(out.name)
    write(link, three_fields(codes_at, start=1), overwrite=True)
    assert beside(out) == ["current", "model.saec"]
    assert link.is_symlink()
    assert np.array_equal(load(out)["user"].codebook, codebook(300, 5, 1))
    assert np.array_equal(load(link)["user"].codebook, codebook(300, 5, 1))


def test_missing_parents_are_made(out: Path, codes_at: Path) -> None:
    deep = out / "a" / "b.saec"
    assert check_out(deep, overwrite=False) == deep
    assert not out.exists()
    write(deep, three_fields(codes_at)).check_files()


def test_parent_that_is_a_file(out: Path, codes_at: Path) -> None:
    out.write_text("precious")
    with pytest.raises(ArtifactError, match="is no folder that can be written to"):
        check_out(out / "a" / "b.saec", overwrite=True)


# Interrupted at any step.

# Also what removing a folder calls: one who is killed there leaves a half of it.
CLEANUP = [(os, "open"), (os, "unlink"), (os, "rmdir"), (durable, "_drop_previous")]
STEPS: list[tuple[Any, str]] = [
    (os, "link"),
    (os, "fsync"),
    (durable, "flush"),
    (durable, "_locked"),
    (durable, "_replace"),
    (Path, "mkdir"),
    (Path, "open"),
    (Path, "write_bytes"),
    (Path, "touch"),
    (hashlib, "file_digest"),
]
RENAMES = [(os, "rename"), (durable, "_exchange")]


class Crash(BaseException):
    """What no code of the package catches, like an interrupt."""


def fail_at(
    patch: pytest.MonkeyPatch, step: int, fail: Callable[[], Any], functions: list[tuple[Any, str]]
) -> Callable[[], int]:
    """Let one of the steps fail: each call of a function is one, and each rename done is another.

    Returns the number of steps that were taken.
    """
    steps = 0

    def wrap(real: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                fail()
            result = real(*args, **kwargs)
            steps += after
            if after and steps == step:
                fail()
            return result

        return wrapped

    for owner, name in functions:
        patch.setattr(owner, name, wrap(getattr(owner, name), (owner, name) in RENAMES))
    return lambda: steps


def exchange_fails(patch: pytest.MonkeyPatch) -> None:
    """Make folders change names as where `renameat2` is missing."""
    patch.setattr(durable, "_exchange", lambda folder, out: False)


def crash() -> None:
    raise Crash


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("fail", [crash, disk_full])
def test_failure_at_any_step_leaves_old_or_new_and_no_trace(  # RELIABILITY 51
    out: Path,
    codes_at: Path,
    monkeypatch: pytest.MonkeyPatch,
    exchange: bool,
    there: bool,
    fail: Callable[[], Any],
) -> None:
    old, new = three_fields(codes_at), three_fields(codes_at, start=1)
    if not exchange:
        exchange_fails(monkeypatch)
    write(out, new)
    new_bytes = contents(out)
    shutil.rmtree(out)
    if there:
        write(out, old)
    old_bytes = contents(out)
    ends: set[str] = set()
    for step in range(1, 1000):
        failed = False
        with monkeypatch.context() as patch:
            steps = fail_at(patch, step, fail, STEPS + RENAMES)
            try:
                write(out, new, overwrite=there)
            except (Crash, ArtifactError):
                failed = True
        if step > steps():
            break
        found = contents(out)
        assert found in (old_bytes, new_bytes)
        assert beside(out) == (["model.saec"] if found else [])
        ends.add(f"{'failed' if failed else 'done'}, {'old' if found == old_bytes else 'new'}")
        if found != old_bytes:
            shutil.rmtree(out)
            if there:
                write(out, old)
    assert {"failed, old", "failed, new"} <= ends
    assert contents(out) == new_bytes


def killed_at_any_step(folder: Path, exchange: bool, there: bool) -> None:
    """Check, in a process without threads, what writers leave that are killed at each step."""
    out = folder / "model.saec"
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda descriptor: None)
    if not exchange:
        exchange_fails(patch)
    old = three_fields(folder.parent / "scratch")
    new = three_fields(folder.parent / "scratch", start=1)
    write(out, new)
    new_bytes = contents(out)
    shutil.rmtree(out)
    if there:
        write(out, old)
    old_bytes = contents(out)
    killed, ends = True, set()
    for step in range(1, 1000):
        child = os.fork()
        if not child:
            functions = STEPS + RENAMES + CLEANUP
            fail_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGKILL), functions)
            write(out, new, overwrite=there)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = beside(out)
        assert {*left} <= {"model.saec", "model.saec.writing", "model.saec.previous"}, left
        if there or out.exists():
            load(out).check_files()  # completes what was half done
        found = {name: data for name, data in contents(out).items() if name != durable.MARKER}
        assert found in (old_bytes, new_bytes), (step, left)
        ends.add((*left, found == new_bytes))
        if not killed:
            break
        write(out, new, overwrite=out.exists())
        assert contents(out) == new_bytes
        assert beside(out) == ["model.saec"], (step, left)
        shutil.rmtree(out)
        if there:
            write(out, old)
    assert not killed
    assert ("model.saec.writing", False) in ends or there
    assert ("model.saec", "model.saec.writing", False) in ends or not there
    assert ("model.saec", "model.saec.writing", True) in ends or not (there and exchange)
    # Between the two renames; and with the old one not yet removed.
    assert ("model.saec.previous", "model.saec.writing", True) in ends or not there or exchange
    assert ("model.saec", "model.saec.previous", True) in ends or not there or exchange
    patch.undo()


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_killed_at_any_step(  # RELIABILITY 50, 51
    tmp_path: Path, exchange: bool, there: bool
) -> None:
    (tmp_path / "place").mkdir()
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_artifact import killed_at_any_step
        killed_at_any_step(Path({str(tmp_path / "place")!r}), {exchange}, {there})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_all_is_flushed_before_it_is_put_in_place(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, there: bool
) -> None:
    if not exchange:
        exchange_fails(monkeypatch)
    fields = three_fields(codes_at)
    if there:
        write(out, fields)
    flushed: list[tuple[int, int]] = []
    moves: list[str] = []

    def identify(stat: os.stat_result) -> tuple[int, int]:
        return stat.st_dev, stat.st_ino

    def watch(real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(source: Path, target: Path) -> Any:
            everything = {identify(path.stat()) for path in (source, *source.rglob("*"))}
            moved = real(source, target) is not False
            if moved and target == out:
                assert everything <= set(flushed)
                flushed.clear()
                moves.append(source.name)
            return moved

        return watched

    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(identify(os.fstat(number))))
    monkeypatch.setattr(os, "rename", watch(os.rename))
    monkeypatch.setattr(durable, "_exchange", watch(durable._exchange))
    write(out, fields, overwrite=there)
    assert moves == ["model.saec.writing"]
    assert identify(out.parent.stat()) in flushed


def test_swap_that_cannot_be_taken_back_is_completed_by_load(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(out, three_fields(codes_at))
    fields = three_fields(codes_at, start=1)
    exchange_fails(monkeypatch)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if target == out:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(ArtifactError, match="could not be written"):
            write(out, fields, overwrite=True)
        assert beside(out) == ["model.saec.previous", "model.saec.writing"]
        with pytest.raises(ArtifactError, match=r"no artifact at .* that can be read"):
            load(out)
    assert np.array_equal(load(out)["user"].codebook, codebook(300, 5, 1))
    assert beside(out) == ["model.saec"]
    assert durable.MARKER not in contents(out)


def test_disk_full_says_so(out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(out, three_fields(codes_at))
    before = contents(out)
    fields = three_fields(codes_at, start=1)

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match=r'model\.saec" could not be written: the disk is full'):
        write(out, fields, overwrite=True)
    assert contents(out) == before
    assert beside(out) == ["model.saec"]


def test_rename_that_is_refused_says_so(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(
        ArtifactError, match="could not be written: Invalid cross-device link"
    ) as info:
        write(out, three_fields(codes_at))
    assert isinstance(info.value.__cause__, OSError)
    assert beside(out) == []


def test_two_writers_of_one_artifact(out: Path, codes_at: Path) -> None:
    fields = three_fields(codes_at)
    staging = durable.staged(out, replace=False, is_ours=lambda _: False, names=frozenset({"x"}))
    with staging as folder:
        (folder / "x").mkdir()
        with pytest.raises(ArtifactError, match=r'another process is writing ".*\.writing"'):
            write(out, fields)
    assert (out / "x").is_dir()
    assert beside(out) == ["model.saec"]


def test_old_artifact_is_locked_until_it_is_removed(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = three_fields(codes_at)
    write(out, fields)
    real, refused = shutil.rmtree, []

    def rmtree(path: Path, **kwargs: Any) -> None:
        monkeypatch.setattr(shutil, "rmtree", real)
        # After the exchange the old artifact has the name under which a second writer would work.
        with pytest.raises(ArtifactError, match="another process is writing"):
            write(out, fields, overwrite=True)
        refused.append(path.name)
        real(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    write(out, fields, overwrite=True)
    assert refused == ["model.saec.writing"]
    assert beside(out) == ["model.saec"]


def test_out_that_appears_meanwhile_is_not_replaced(out: Path) -> None:
    staging = durable.staged(out, replace=False, is_ours=lambda _: False, names=frozenset())
    folder = staging.__enter__()
    out.mkdir()
    with pytest.raises(ArtifactError, match=r'model\.saec" is in the way'):
        staging.__exit__(None, None, None)
    assert not folder.exists()
    assert beside(out) == ["model.saec"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_writing_folder_that_is_not_ours_is_left_alone(
    out: Path, codes_at: Path, kind: str
) -> None:
    precious = out.with_name("model.saec.writing")
    if kind == "file":
        precious.write_text("precious")
    else:
        target = precious if kind == "folder" else out.parent / "target"
        target.mkdir()
        (target / "manifest.txt").write_text("precious")
        if kind == "link":
            precious.symlink_to(target)
    before = contents(out.parent), beside(out)
    with pytest.raises(ArtifactError, match=r"model\.saec\.writing"):
        write(out, three_fields(codes_at))
    assert (contents(out.parent), beside(out)) == before


@pytest.mark.parametrize("exchange", [True, False])
def test_previous_made_by_hand_is_left_alone(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    write(out, three_fields(codes_at))
    previous = out.with_name("model.saec.previous")
    shutil.copytree(out, previous)
    before, kept = contents(out), contents(previous)
    new = three_fields(codes_at, start=1)
    if exchange:
        write(out, new, overwrite=True)
    else:
        exchange_fails(monkeypatch)
        with pytest.raises(ArtifactError, match=r'previous" is in the way'):
            write(out, new, overwrite=True)
        assert contents(out) == before
    assert contents(previous) == kept
    assert beside(out) == ["model.saec", "model.saec.previous"]
    # Nor does a missing artifact make it one.
    shutil.rmtree(out)
    with pytest.raises(ArtifactError, match="No such file"):
        load(out)
    assert contents(previous) == kept


def test_reader_waits_for_a_swap_under_way(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(out, three_fields(codes_at))
    fields = three_fields(codes_at, start=1)
    between, go_on = threading.Event(), threading.Event()
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if target == out:
            between.set()
            assert go_on.wait(60)
        real(source, target)

    exchange_fails(monkeypatch)
    monkeypatch.setattr(os, "rename", rename)
    loaded: list[Artifact] = []
    writer = threading.Thread(target=lambda: write(out, fields, overwrite=True))
    reader = threading.Thread(target=lambda: loaded.append(load(out)))
    writer.start()
    assert between.wait(60)
    assert beside(out) == ["model.saec.previous", "model.saec.writing"]
    reader.start()
    reader.join(0.2)
    assert reader.is_alive()
    go_on.set()
    writer.join()
    reader.join()
    assert np.array_equal(loaded[0]["user"].codebook, codebook(300, 5, 1))
    assert beside(out) == ["model.saec"]


def test_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "1").touch()
    swapped = durable._exchange(one, two)
    assert (two / "1").exists() is swapped
    assert (one / "1").exists() is not swapped
    if swapped:
        with pytest.raises(FileNotFoundError):
            durable._exchange(one, tmp_path / "three")

    class Library:
        def __init__(self, *_: Any, **__: Any) -> None: ...

    monkeypatch.setattr("ctypes.CDLL", Library)
    assert not durable._exchange(one, two)
    Library.renameat2 = lambda *_: -1  # type: ignore[attr-defined]
    for number in (errno.ENOSYS, errno.EINVAL):
        monkeypatch.setattr("ctypes.get_errno", lambda number=number: number)
        assert not durable._exchange(one, two)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EIO)
    with pytest.raises(OSError, match="two"):
        durable._exchange(one, two)


def test_locks_that_the_file_system_lacks(
    out: Path, codes_at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> Callable[..., None]:
        def flock(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    fields = three_fields(codes_at)
    monkeypatch.setattr("fcntl.flock", refuse(errno.ENOLCK))
    write(out, fields).check_files()
    monkeypatch.setattr("fcntl.flock", refuse(errno.EIO))
    with pytest.raises(ArtifactError, match="could not be written"):
        write(out, fields, overwrite=True)
    load(out).check_files()
