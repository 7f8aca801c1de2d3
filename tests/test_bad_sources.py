"""Sources that are wrong: an error that names the file and says what to do, and no harm done."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from saec_gpu.errors import MissingExtraError, SourceError, WeightError
from saec_gpu.sources import TableSource, open_tables, open_weights, parquet
from test_sources import (
    WRITERS,
    Arrays,
    parquet_lists,
    planted,
    write_safetensors,
    write_torch,
)


def read_all(tables: TableSource) -> None:
    for field in tables.fields.values():
        tables.read_stored(field.name, 0, field.n_rows)


def for_each_chunk(tables: TableSource, name: str, step: int) -> None:
    n_rows = tables.fields[name].n_rows
    for start in range(0, n_rows, step):
        tables.read_stored(name, start, min(start + step, n_rows))


def write_fbin(path: Path, arrays: Arrays) -> Path:
    (array,) = arrays.values()
    file = path / "t.fbin"
    file.write_bytes(struct.pack("<II", *array.shape) + array.tobytes())
    return file


def write_parquet_file(path: Path, arrays: Arrays) -> Path:
    pq.write_table(parquet_lists(arrays, pa.list_), path / "t.parquet")
    return path / "t.parquet"


def write_npy(path: Path, arrays: Arrays) -> Path:
    (array,) = arrays.values()
    np.save(path / "t.npy", array)
    return path / "t.npy"


SINGLE_FILES: dict[str, Callable[[Path, Arrays], Path]] = {
    "npy": write_npy,
    "fbin": write_fbin,
    "parquet": write_parquet_file,
    **{name: WRITERS[name] for name in ("npz", "npz_deflated", "safetensors", "torch")},
}


# Files that are cut short or altered


@pytest.mark.parametrize("format_name", list(SINGLE_FILES))
def test_truncated_file_is_an_error_that_names_it(
    rng: np.random.Generator, tmp_path: Path, format_name: str
) -> None:
    path = SINGLE_FILES[format_name](tmp_path, {"t": planted(rng, "float32", (97, 5))})
    whole = path.read_bytes()
    read_all(open_tables(path))
    cuts = {0, 1, 3, 4, 7, 8, 9, 60, 130, len(whole) // 2, len(whole) - 4, len(whole) - 1}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=path.name):
            read_all(open_tables(path))


@pytest.mark.parametrize("format_name", list(SINGLE_FILES))
def test_file_cut_after_it_was_opened_is_an_error(
    rng: np.random.Generator, tmp_path: Path, format_name: str
) -> None:
    path = SINGLE_FILES[format_name](tmp_path, {"t": planted(rng, "float32", (97, 5))})
    tables = open_tables(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SourceError, match=path.name):
        read_all(tables)
    path.unlink()
    with pytest.raises(SourceError, match=path.name):
        read_all(tables)
    with pytest.raises(SourceError, match=path.name):
        tables.fingerprint()


@pytest.mark.parametrize("format_name", ["npy", "fbin", "safetensors"])
def test_bytes_after_the_data_are_an_error(
    rng: np.random.Generator, tmp_path: Path, format_name: str
) -> None:
    path = SINGLE_FILES[format_name](tmp_path, {"t": planted(rng, "float32", (97, 5))})
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(SourceError, match=rf"{path.name}: has {size + 4} bytes, but .*{size}"):
        open_tables(path)


@pytest.mark.parametrize("format_name", ["npy", "fbin", "npz", "npz_deflated", "safetensors"])
def test_altered_bytes_never_give_another_error_than_source_error(
    rng: np.random.Generator, tmp_path: Path, format_name: str
) -> None:
    # Only what is parsed here: torch and pyarrow are native code that other tests must outlive.
    path = SINGLE_FILES[format_name](tmp_path, {"t": planted(rng, "float32", (7, 3))})
    whole = path.read_bytes()
    refused = 0
    for _ in range(100):
        altered = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            altered[position] = rng.integers(0, 256)
        path.write_bytes(altered)
        try:
            read_all(open_tables(path))
        except SourceError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("step", [1, 5000, 9999])  # the end may be met in any way
def test_altered_deflated_member_fails_its_checksum(
    rng: np.random.Generator, tmp_path: Path, step: int
) -> None:
    path = WRITERS["npz_deflated"](tmp_path, {"t": planted(rng, "float32", (9999, 5))})
    tables = open_tables(path)
    data = bytearray(path.read_bytes())
    data[-200] ^= 1  # in the last numbers
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"t\.npz: cannot be read as a zip archive"):
        for_each_chunk(tables, "t", step)


def test_npz_member_of_another_size_than_its_header_says(tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.zeros((4, 2), np.float32))
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("t.npy", data.getvalue()[:-8])
    with pytest.raises(SourceError, match=r"t\.npz: member 't\.npy' has 152 bytes, but .* 160"):
        open_tables(tmp_path / "t.npz")


def write_header(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "a JSON object is needed, not list"),
        (b"{", "JSON in it cannot be read"),
        (b"\xff\xff", "JSON in it cannot be read"),
        (b"[" * 100_000, "JSON in it cannot be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON in it cannot be read"),
        ({"a": 1}, "'a' is no tensor"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}, "'a' is no tensor"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 8]}}, "'a' is no tensor"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "'a' is no tensor"),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}, "takes 16 bytes"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "begins at byte 4"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} | {
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        }, "begins at byte 0 of the data, not at 8"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "'dtype' occurs twice"),
    ],
)  # fmt: skip
def test_safetensors_header_that_makes_no_sense(tmp_path: Path, header: Any, message: str) -> None:
    path = write_header(tmp_path / "t.safetensors", header, bytes(8))
    with pytest.raises(SourceError, match=r"t\.safetensors: .*" + message):
        open_tables(path)


# What is never unpickled


class _Harm:
    """A pickle of it creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    harm = np.array([[_Harm(tmp_path / "harmed")]], object)
    table = np.zeros((2, 3), np.float32)
    np.save(tmp_path / "a.npy", harm)
    with pytest.raises(SourceError, match=r"'a' \(is \(1, 1\) pickled objects \(never loaded\)\)"):
        open_tables(tmp_path / "a.npy")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", harm=harm, table=table)
        tables = open_tables(tmp_path / "a.npz")
        read_all(tables)
        assert dict(tables.skipped) == {"harm": "is (1, 1) pickled objects (never loaded)"}
        with pytest.raises(WeightError, match="pickled objects"):
            open_weights(tmp_path / "a.npz", open_tables({"harm": table}))
    torch.save({"t": torch.zeros(2, 3), "harm": _Harm(tmp_path / "harmed")}, tmp_path / "a.pt")
    with pytest.raises(SourceError, match=r"a\.pt: holds more than tensors.*state_dict\(\)"):
        open_tables(tmp_path / "a.pt")
    assert not (tmp_path / "harmed").exists()


def test_torch_files_that_are_no_plain_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save({"a": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(SourceError, match=r"t\.pt: is no zip archive.*save it again"):
        open_tables(path)
    torch.save(torch.nn.Linear(2, 3), path)
    with pytest.raises(SourceError, match=r"t\.pt: holds more than tensors.*state_dict\(\)"):
        open_tables(path)
    itself: dict[str, Any] = {"a": torch.zeros(2, 3)}
    itself["self"] = itself
    torch.save(itself, path)
    with pytest.raises(SourceError, match=r"t\.pt: .*self contains itself"):
        open_tables(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t/constants.pkl", b"")
    with pytest.raises(SourceError, match=r"t\.pt: is a TorchScript archive.*state_dict\(\)"):
        open_tables(path)


def test_torch_file_of_another_byte_order_is_refused(tmp_path: Path) -> None:
    little = write_torch(tmp_path, {"a": np.zeros((2, 3), np.float32)})
    with zipfile.ZipFile(little) as source, zipfile.ZipFile(tmp_path / "big.pt", "w") as target:
        for member in source.infolist():
            data = b"big" if member.filename.endswith("byteorder") else source.read(member)
            target.writestr(member.filename, data)
    with pytest.raises(SourceError, match=r"big\.pt: was written on a machine of another byte"):
        open_tables(tmp_path / "big.pt")


def test_torch_storages_that_are_too_short(tmp_path: Path) -> None:
    whole = write_torch(tmp_path, {"a": np.zeros((20, 3), np.float32)})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "s.pt", "w") as target:
        for member in source.infolist():
            data = source.read(member)
            target.writestr(
                member.filename, data[:-4] if member.filename.endswith("data/0") else data
            )
    with pytest.raises(SourceError, match=r"s\.pt: the storage of tensor 'a' has 236 bytes"):
        open_tables(tmp_path / "s.pt")


# Names


TABLE = np.zeros((2, 3), np.float32)


def test_one_name_in_two_shards(tmp_path: Path) -> None:
    for shard in ("1.safetensors", "2.safetensors"):
        write_safetensors(tmp_path / shard, {"a": TABLE})
    with pytest.raises(SourceError, match="'a' occurs twice"):
        open_tables(tmp_path)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    with pytest.raises(SourceError, match="'a' occurs twice"):
        open_tables(index)
    index.write_text('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}')
    with pytest.raises(SourceError, match="'a' occurs twice"):
        open_tables(index)


def test_one_name_in_two_files_of_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    (tmp_path / "a.NPY").write_bytes((tmp_path / "a.npy").read_bytes())
    with pytest.raises(SourceError, match="'a' occurs twice"):
        open_tables(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice_in_an_archive(tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, TABLE)
    for second in ("a.npy", "a"):
        with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
            for name in ("a.npy", second):
                archive.writestr(name, data.getvalue())
        with pytest.raises(SourceError, match=r"t\.npz: the name 'a' occurs twice"):
            open_tables(tmp_path / "t.npz")


def test_one_name_twice_in_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": {"b": torch.zeros(2, 3)}, "a.b": torch.zeros(2, 3)}, tmp_path / "t.pt")
    with pytest.raises(SourceError, match=r"t\.pt: the name 'a\.b' occurs twice"):
        open_tables(tmp_path / "t.pt")


def test_one_name_twice_in_parquet(tmp_path: Path) -> None:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(TABLE.reshape(-1)), 3)
    pq.write_table(pa.Table.from_arrays([rows, rows], names=["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet: the name 'a' occurs twice"):
        open_tables(tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet: the name 'a' occurs twice"):
        open_tables(tmp_path)


NAMES = ["../up", "/abs", "a/../../b", "..", "C:\\x", "nul\0byte"]


def test_names_never_become_paths(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    arrays: Arrays = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(NAMES)}
    paths = [
        write_safetensors(folder / "t.safetensors", arrays),
        write_torch(folder, arrays),
        WRITERS["npz"](folder, {name: a for name, a in arrays.items() if "\0" not in name}),
    ]
    before = sorted(tmp_path.rglob("*"))
    for path in paths:
        tables = open_tables(path)
        assert set(tables.fields) >= {"../up", "/abs", ".."}
        for name in tables.fields:
            np.testing.assert_array_equal(tables.read_stored(name, 0, 2), arrays[name])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_index_reaches_only_files_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    write_safetensors(tmp_path / "s.safetensors", {"a": TABLE})
    index = folder / "m.safetensors.index.json"
    for shard in ("../s.safetensors", str(tmp_path / "s.safetensors"), "none.safetensors", ""):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(SourceError, match=r"index\.json: lists the shard .* beside it"):
            open_tables(index)
    write_safetensors(folder / "s.safetensors", {"a": TABLE})
    index.write_text(json.dumps({"weight_map": {"b": "s.safetensors"}}))
    with pytest.raises(SourceError, match=r"lists 'b' in 's\.safetensors', but that file has no"):
        open_tables(index)
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        with pytest.raises(SourceError, match=r"m\.safetensors\.index\.json: "):
            open_tables(index)
    index.write_text(json.dumps({"weight_map": {"a": "s.safetensors"}}))
    (folder / "n.safetensors.index.json").write_text("{}")
    with pytest.raises(SourceError, match="several indexes"):
        open_tables(folder)


def test_names_that_are_no_text() -> None:
    with pytest.raises(SourceError, match="name 7 is no string"):
        open_tables({7: TABLE})
    with pytest.raises(SourceError, match=r"'\\udcff' is no Unicode text"):
        open_tables({"\udcff": TABLE})


# Nothing to read


def test_path_of_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.npy").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.npy")
    for name, message in (
        ("none.npy", "there is no such file or folder"),
        ("t.csv", "is of no format that is known"),
        ("empty", "holds no file of a known format"),
        ("pipe.npy", "is of no format that is known"),
    ):
        with pytest.raises(SourceError, match=rf"{name}: {message}") as caught:
            open_tables(tmp_path / name)
        for known in ("*.npy", "*.npz", "*.fbin", "*.safetensors", "*.pt", "*.parquet"):
            assert known in str(caught.value)


def test_folder_of_two_formats_is_not_guessed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TABLE)
    write_safetensors(tmp_path / "b.safetensors", {"b": TABLE})
    with pytest.raises(SourceError, match=r"several formats \(\*\.npy, \*\.safetensors\)"):
        open_tables(tmp_path)


def test_artifact_is_no_table(tmp_path: Path) -> None:
    folder = tmp_path / "m.saec"
    folder.mkdir()
    write_safetensors(folder / "codebooks.safetensors", {"a": TABLE})
    with pytest.raises(SourceError, match=r"m\.saec: is a compressed artifact.*saec_gpu\.load"):
        open_tables(folder)


@pytest.mark.allowed_skip(reason="the superuser reads every file")
def test_file_without_permission(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", TABLE)
    (tmp_path / "t.npy").chmod(0)
    if os.access(tmp_path / "t.npy", os.R_OK):
        pytest.skip("the superuser reads every file")
    with pytest.raises(SourceError, match=r"t\.npy: cannot be read"):
        open_tables(tmp_path / "t.npy")


@pytest.mark.parametrize("format_name", [name for name in WRITERS if name != "parquet"])
def test_file_without_a_table_lists_what_it_has(tmp_path: Path, format_name: str) -> None:
    path = WRITERS[format_name](tmp_path, {"a": np.arange(5), "b": np.zeros((2, 2), np.int8)})
    with pytest.raises(
        SourceError, match=r"no table found.*'a' \(is \(5,\) int64\), 'b' \(is \(2, 2\) int8\)"
    ):
        open_tables(path)


@pytest.mark.parametrize("format_name", [name for name in WRITERS if name != "parquet"])
def test_no_rows_at_all_is_an_error(tmp_path: Path, format_name: str) -> None:
    # RELIABILITY 62
    empty = np.zeros((0, 4), np.float32)
    path = WRITERS[format_name](tmp_path, {"a": empty, "b": empty})
    with pytest.raises(SourceError, match="no field has a row"):
        open_tables(path)


def test_no_rows_in_parquet_is_an_error(tmp_path: Path) -> None:
    # RELIABILITY 62
    fixed = pa.array([], pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"a": fixed}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="no field has a row"):
        open_tables(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.list_(pa.float32()))}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"'a' has shape \(0, 0\)"):
        open_tables(tmp_path / "t.parquet")


def test_no_dims_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"'a' has shape \(5, 0\).*at least one dim"):
        open_tables({"a": np.zeros((5, 0), np.float32), "b": TABLE})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the mapping of arrays is empty"),
        ({"a": np.zeros((2, 3), np.int64)}, r"'a' is \(2, 3\) int64"),
        ({"a": np.zeros((2, 3), np.complex64)}, r"'a' is \(2, 3\) complex64"),
        ({"a": np.zeros((2, 3), object)}, r"'a' is \(2, 3\) object"),
        ({"a": np.zeros((2, 3), np.longdouble)}, r"'a' is \(2, 3\) float\d+"),
        ({"a": np.zeros(3, np.float32), "b": TABLE}, r"'a' is \(3,\) float32"),
        ({"a": torch.zeros(2, 3, dtype=torch.int8)}, r"'a' is \(2, 3\) int8"),
        ({"a": torch.zeros(2, 3).to(torch.float8_e4m3fn)}, "'a' is a tensor of float8_e4m3fn"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is a tensor of sparse_coo float32"),
        ({"a": [[1.0], [2.0, 3.0]]}, "'a' is a list, which does not give an array"),
        (None, "'x' is a NoneType, which does not give an array"),
        (3.5, "'x' is a float, which does not give an array"),
    ],
)
def test_arrays_that_are_no_tables(given: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_tables(given)


def test_deflated_fortran_order_is_refused_with_advice(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "t.npz", a=np.asfortranarray(np.zeros((3, 4), np.float32)))
    with pytest.raises(SourceError, match=r"t\.npz: member 'a\.npy' .*ascontiguousarray"):
        open_tables(tmp_path / "t.npz")


# Asking for what is not there


def test_unknown_names_and_patterns_list_the_known_ones() -> None:
    tables = open_tables({"a": TABLE, "b": TABLE})
    with pytest.raises(SourceError, match=r"no field 'c'; it has a, b"):
        tables.read("c", 0, np.empty((1, 3), np.float32))
    with pytest.raises(SourceError, match=r"no field matches 'c\*'; it has a, b"):
        open_tables({"a": TABLE, "b": TABLE}, fields=["a", "c*"])
    with pytest.raises(SourceError, match=r"no field matches 'c\*'; it has a, b"):
        open_tables(tables, fields="c*")
    with pytest.raises(SourceError, match="fields is empty"):
        open_tables(tables, fields=[])


@pytest.mark.parametrize("format_name", list(WRITERS))
def test_reading_past_the_end_is_never_a_short_read(tmp_path: Path, format_name: str) -> None:
    # RELIABILITY 59
    path = WRITERS[format_name](tmp_path, {"a": np.ones((5, 3), np.float32), "b": TABLE})
    tables = open_tables(path)
    for start, rows in ((0, 6), (5, 1), (4, 2), (-1, 1), (6, 0)):
        with pytest.raises(SourceError, match=rf"rows {start} to .* of field 'a'.*5 rows"):
            tables.read("a", start, np.empty((rows, 3), np.float32))
        with pytest.raises(SourceError, match=rf"rows {start} to .* of field 'a'.*5 rows"):
            tables.read_stored("a", start, start + rows)


def test_out_that_does_not_fit() -> None:
    tables = open_tables({"a": TABLE})
    for out in (
        np.empty((2, 4), np.float32),
        np.empty(6, np.float32)[:2],
        np.empty((2, 6), np.float32)[:, ::2],
        np.empty((2, 3), np.float32, order="F"),
    ):
        with pytest.raises(SourceError, match="out has shape"):
            tables.read("a", 0, out)


# Parquet


def parquet_rows(path: Path, rows: list[Any], kind: Any) -> TableSource:
    table = pa.table({"a": pa.array(rows, kind)})
    pq.write_table(table, path / "t.parquet", row_group_size=4)
    return open_tables(path / "t.parquet")


@pytest.mark.parametrize("fixed", [False, True])
def test_parquet_nulls_and_unequal_lists_name_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 8)  # a row at a time
    kind = pa.list_(pa.float32(), 2) if fixed else pa.list_(pa.float32())
    good = [[1.0, 2.0]] * 6
    cases: list[tuple[Any, str]] = [
        (None, "column 'a' is null in row 6"),
        ([None, 1.0], "column 'a' holds a null in row 6"),
    ]
    if not fixed:
        cases.append(([1.0], "column 'a' has 1 values in row 6 and 2 in row 0"))
    for bad, message in cases:
        tables = parquet_rows(tmp_path, [*good, bad, *good], kind)
        for start in (0, 6, 5):  # an error does not put the place out of step
            with pytest.raises(SourceError, match=rf"t\.parquet: {message}"):
                tables.read_stored("a", start, 7)
        assert tables.read_stored("a", 8, 13).tolist() == [[1.0, 2.0]] * 5


def test_parquet_null_in_row_0_of_lists(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"t\.parquet: column 'a' is null in row 0"):
        parquet_rows(tmp_path, [None, [1.0]], pa.list_(pa.float32()))


def test_parquet_weights_with_nulls(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, None, 3.0]}), tmp_path / "w.parquet")
    weights = open_weights(tmp_path / "w.parquet", open_tables(np.zeros((3, 2), np.float32)))
    with pytest.raises(SourceError, match=r"w\.parquet: column 'x' is null in row 1"):
        weights.read("x", 0, np.empty(3))


@pytest.mark.parametrize(
    "columns",
    [
        {"d0": pa.array([1.0], pa.float32()), "d1": pa.array([1.0], pa.float64())},
        {"id": pa.array(["x"]), "d0": pa.array([1.0])},
        {"name": pa.array(["x"])},
        {"v": pa.array([[1.0]]), "w": pa.array([[1.0]])},
    ],
)
def test_parquet_file_of_a_folder_that_is_not_one_field(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet: one file of a folder is one field"):
        open_tables(tmp_path)


# Weights


def tables_ab() -> TableSource:
    return open_tables({"a": np.zeros((2, 3), np.float32), "b": np.zeros((5, 1), np.float32)})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": [1, 2], "c": [1]}, r"weights for c, which are no fields; the fields are a, b"),
        ([1, 2], r"weights for x, which are no fields; the fields are a, b"),
        ({"b": [1, 2]}, r"field 'b' has 5 rows but 2 weights"),
        ({"b": np.zeros((5, 2))}, r"weights of field 'b' are \(5, 2\) float64; .* 5 numbers"),
        ({"b": 3.0 * np.ones(())}, r"weights of field 'b' are \(\) float64"),
        ({"b": ["1", "2", "3", "4", "5"]}, r"weights of field 'b' are \(5,\) str\d+"),
        ({"b": [True] * 5}, r"weights of field 'b' are \(5,\) bool"),
    ],
)
def test_weights_that_do_not_fit(weights: Any, message: str) -> None:
    with pytest.raises(WeightError, match=message):
        open_weights(weights, tables_ab())


def test_weights_in_files_that_do_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", c=np.arange(2))
    with pytest.raises(WeightError, match=r"w\.npz: has weights for c, .* fields are a, b"):
        open_weights(tmp_path / "w.npz", tables_ab())
    np.savez(tmp_path / "w.npz", b=np.arange(4))
    with pytest.raises(WeightError, match=r"w\.npz: field 'b' has 5 rows but 4 weights"):
        open_weights(tmp_path / "w.npz", tables_ab())
    np.savez(tmp_path / "w.npz", cube=np.zeros((2, 2, 2)))
    with pytest.raises(WeightError, match=r"w\.npz: holds no weights; .* a, b"):
        open_weights(tmp_path / "w.npz", tables_ab())
    with pytest.raises(SourceError, match="there is no such file"):
        open_weights(tmp_path / "none.npz", tables_ab())


def test_weights_of_a_single_field_must_have_its_length() -> None:
    with pytest.raises(WeightError, match="field 'x' has 2 rows but 3 weights"):
        open_weights([1, 2, 3], open_tables(TABLE))


def test_weights_that_are_not_there() -> None:
    weights = open_weights({"a": [1, 2]}, tables_ab())
    with pytest.raises(WeightError, match="field 'b' has no weights; there are some of a"):
        weights.read("b", 0, np.empty(1))
    with pytest.raises(SourceError, match="rows 1 to 3 of the weights of field 'a'"):
        weights.read("a", 1, np.empty(2))


# Extras


@pytest.mark.parametrize(
    ("package", "name", "extra"), [("pyarrow", "t.parquet", "parquet"), ("torch", "t.pt", "torch")]
)
def test_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str, extra: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.parquet", None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'saec_gpu\[{extra}\]'") as caught:
        open_tables(tmp_path / name)
    assert isinstance(caught.value, ImportError)


def test_arrays_need_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    array: NDArray[Any] = open_tables(TABLE).read_stored("x", 0, 2)
    np.testing.assert_array_equal(array, TABLE)
