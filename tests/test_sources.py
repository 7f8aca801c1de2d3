"""Every format, every dtype: what is read is what was written."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from numpy.typing import NDArray

from saec_gpu.sources import TableSource, open_tables, open_weights, stored

Arrays = dict[str, NDArray[Any]]  # bfloat16 as that of ml_dtypes

# Names out of order, with dots, beyond ASCII; rows and dims are odd. Code points: "B" < "a" < "é".
SHAPES = {"user.é": (97, 3), "a": (31, 17), "B": (1, 64), "user": (1025, 1)}

# Bits that rounding, flushing or a lost sign would change: ±0, subnormals, the largest, one ulp.
SPECIAL_BITS = {
    "float16": ([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x3C01, 0xFBFF], np.uint16),
    "bfloat16": ([0x0000, 0x8000, 0x0001, 0x807F, 0x7F7F, 0x3F81, 0xFF7F], np.uint16),
    "float32": ([0, 1 << 31, 1, 0x807FFFFF, 0x7F7FFFFF, 0x3F800001], np.uint32),
    # Halves between two float32 (to even, down and up), a float32 subnormal, one below all of them.
    "float64": (
        [
            0,
            1 << 63,
            0x3FF0000010000000,
            0x3FF0000030000000,
            0x3690000000000001,
            0x0000000000000001,
        ],
        np.uint64,
    ),
}
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


def planted(rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> NDArray[Any]:
    """Return values of a dtype that begin and end with the special ones."""
    values = rng.standard_normal(shape).astype(DTYPES[dtype])
    bits, unsigned = SPECIAL_BITS[dtype]
    special = np.array(bits, unsigned).view(DTYPES[dtype])
    count = min(len(special), values.size)
    values.reshape(-1)[:count] = special[:count]
    values.reshape(-1)[-count:] = special[-count:]
    return values


def widened(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values as float32, one by one, by other means than the sources use."""
    flat = values.reshape(-1)
    if values.dtype == ml_dtypes.bfloat16:
        return np.frombuffer(
            b"".join(b"\0\0" + struct.pack("<H", bits) for bits in flat.view(np.uint16)), np.float32
        ).reshape(values.shape)
    return np.array(
        [struct.unpack("<f", struct.pack("<f", float(x)))[0] for x in flat], np.float32
    ).reshape(values.shape)


def bits_of(values: NDArray[Any]) -> NDArray[Any]:
    """Return the bits, so that -0.0 is not 0.0."""
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")


def as_torch(values: NDArray[Any]) -> torch.Tensor:
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def write_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.serialize_file(
        {
            name: safetensors.TensorSpec(
                dtype=array.dtype.name,
                shape=list(array.shape),
                data_ptr=array.ctypes.data,
                data_len=array.nbytes,
            )
            for name, array in kept.items()
        },
        str(path),
    )
    return path


def write_npy_folder(path: Path, arrays: Arrays) -> Path:
    path = path / "tables"
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


def write_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path / "t.npz", **arrays)  # type: ignore[arg-type]
    return path / "t.npz"


def write_deflated_npz(path: Path, arrays: Arrays) -> Path:
    np.savez_compressed(path / "t.npz", **arrays)  # type: ignore[arg-type]
    return path / "t.npz"


def write_shards(path: Path, arrays: Arrays) -> Path:
    weight_map = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(arrays)}
    for shard in set(weight_map.values()):
        write_safetensors(path / shard, {n: a for n, a in arrays.items() if weight_map[n] == shard})
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def write_torch(path: Path, arrays: Arrays) -> Path:
    torch.save({name: as_torch(array) for name, array in arrays.items()}, path / "t.pt")
    return path / "t.pt"


def parquet_lists(arrays: Arrays, list_type: Callable[[Any, int], Any]) -> pa.Table:
    """Return a table with a column of lists an array; all have as many rows as the shortest."""
    n_rows = min(len(array) for array in arrays.values())
    columns = {}
    for name, array in arrays.items():
        values = pa.array(array[:n_rows].reshape(-1))
        columns[name] = pa.array(
            [
                values[i * array.shape[1] : (i + 1) * array.shape[1]].to_pylist()
                for i in range(n_rows)
            ],
            list_type(values.type, array.shape[1]),
        )
    return pa.table(columns)


def write_parquet_folder(path: Path, arrays: Arrays) -> Path:
    """Write one file a field: the dims as columns, or one column of lists, in small row groups."""
    path = path / "tables"
    path.mkdir()
    for number, (name, array) in enumerate(arrays.items()):
        if number % 2:
            table = pa.table({f"dim{j}": array[:, j] for j in range(array.shape[1])})
        else:
            table = parquet_lists({"rows": array}, pa.list_)
        pq.write_table(table, path / f"{name}.parquet", row_group_size=40)
    return path


WRITERS: dict[str, Callable[[Path, Arrays], Path]] = {
    "npy": write_npy_folder,
    "npz": write_npz,
    "npz_deflated": write_deflated_npz,
    "safetensors": lambda path, arrays: write_safetensors(path / "t.safetensors", arrays),
    "safetensors_shards": write_shards,
    "torch": write_torch,
    "parquet": write_parquet_folder,
}
CASES = [
    (name, dtype)
    for name in WRITERS
    for dtype in DTYPES
    if dtype != "bfloat16" or name.startswith(("safetensors", "torch"))
]


def check_reads(tables: TableSource, arrays: Arrays) -> None:
    """Compare all fields of a source with the arrays, whole, in chunks, and back again."""
    assert list(tables.fields) == sorted(arrays)
    for name, array in arrays.items():
        field = tables.fields[name]
        assert (field.name, field.n_rows, field.dim) == (name, *array.shape)
        assert field.dtype == array.dtype.name
        assert field.nbytes == array.nbytes
        expected = bits_of(widened(array))
        own = tables.read_stored(name, 0, len(array))
        assert own.itemsize == array.itemsize
        np.testing.assert_array_equal(bits_of(own), bits_of(array))
        for step in (1, 7, 64, len(array)):
            out = np.full(array.shape, np.nan, np.float32)
            # The last chunk is shorter: RELIABILITY 59
            for start in range(0, len(array), step):
                tables.read(name, start, out[start : start + step])
            np.testing.assert_array_equal(bits_of(out), expected)
            kept = np.zeros_like(own)
            for start in range(0, len(array), step):
                tables.read(name, start, kept[start : start + step])
            np.testing.assert_array_equal(bits_of(kept), bits_of(array))
        for start in range(len(array) - 1, -1, -13):  # backwards
            one = np.empty((1, array.shape[1]), np.float32)
            tables.read(name, start, one)
            np.testing.assert_array_equal(bits_of(one), expected[start : start + 1])
        tables.read(name, len(array), np.empty((0, array.shape[1]), np.float32))


@pytest.mark.parametrize(("format_name", "dtype"), CASES)
def test_format_reads_back_every_bit(
    rng: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format_name: str,
    dtype: str,
) -> None:
    # RELIABILITY 29, 30
    monkeypatch.setattr(stored, "BLOCK_BYTES", 100)  # so that conversion goes through many blocks
    arrays = {name: planted(rng, dtype, shape) for name, shape in SHAPES.items()}
    path = WRITERS[format_name](tmp_path, arrays)
    tables = open_tables(path)
    assert tables.path == str(path)
    assert not tables.skipped
    check_reads(tables, arrays)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_arrays_in_memory_read_back_every_bit(rng: np.random.Generator, dtype: str) -> None:
    arrays = {name: planted(rng, dtype, shape) for name, shape in SHAPES.items()}
    check_reads(open_tables(arrays), arrays)
    check_reads(open_tables({name: as_torch(array) for name, array in arrays.items()}), arrays)


@pytest.mark.parametrize(("suffix", "dtype"), [(".fbin", "float32"), (".f16bin", "float16")])
def test_fbin_reads_back_every_bit(
    rng: np.random.Generator, tmp_path: Path, suffix: str, dtype: str
) -> None:
    array = planted(rng, dtype, (97, 5))
    path = tmp_path / f"items{suffix}"
    path.write_bytes(struct.pack("<II", *array.shape) + array.tobytes())
    check_reads(open_tables(path), {"items": array})


@pytest.mark.parametrize(
    "list_type", [pa.list_, lambda kind, _: pa.list_(kind), lambda kind, _: pa.large_list(kind)]
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_parquet_file_has_a_field_a_column_of_lists(
    rng: np.random.Generator, tmp_path: Path, list_type: Callable[[Any, int], Any], dtype: str
) -> None:
    # "user" is a dotted beginning of "user.é": pyarrow selects both when asked for the first.
    arrays = {n: planted(rng, dtype, (97, d)) for n, d in (("user", 3), ("user.é", 1), ("B", 17))}
    table = parquet_lists(arrays, list_type).append_column("id", pa.array(range(97)))
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=30)
    tables = open_tables(tmp_path / "t.parquet")
    assert dict(tables.skipped) == {"id": "is (97,) int64"}
    check_reads(tables, arrays)


def test_folder_with_one_safetensors_file_or_an_index_is_a_source(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    arrays = {name: planted(rng, "float32", shape) for name, shape in SHAPES.items()}
    write_shards(tmp_path, arrays)
    check_reads(open_tables(tmp_path), arrays)
    (tmp_path / "model.safetensors.index.json").unlink()
    check_reads(open_tables(tmp_path), arrays)


def test_one_array_is_the_field_x(rng: np.random.Generator) -> None:
    array = planted(rng, "float32", (31, 3))
    check_reads(open_tables(array), {"x": array})


def test_source_is_returned_as_it_is(rng: np.random.Generator) -> None:
    tables = open_tables(planted(rng, "float32", (31, 3)))
    assert open_tables(tables) is tables


class _Wrapped:
    """Gives its array by one protocol only."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class _ByArray(_Wrapped):
    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return self.array


class _ByDlpack(_Wrapped):
    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class _ByFailingDlpack(_ByArray):
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("bfloat16 is not in DLPack here")

    def __dlpack_device__(self) -> Any:
        return (1, 0)


@pytest.mark.parametrize("wrap", [_ByArray, _ByDlpack, _ByFailingDlpack])
def test_objects_give_arrays_by_protocol(rng: np.random.Generator, wrap: type[_Wrapped]) -> None:
    arrays = {"a": planted(rng, "float32", (31, 3)), "b": planted(rng, "float64", (7, 2))}
    check_reads(open_tables({name: wrap(array) for name, array in arrays.items()}), arrays)


def test_views_in_memory_are_read_in_their_order(rng: np.random.Generator) -> None:
    array = planted(rng, "float32", (40, 6))
    views = {
        "every other": array[::2, ::3],
        "fortran": np.asfortranarray(array),
        "turned": array.T,
        "big-endian": array.astype(">f4"),
    }
    tables = open_tables(views)
    for name, view in views.items():
        out = np.empty(view.shape, np.float32)
        tables.read(name, 0, out)
        np.testing.assert_array_equal(bits_of(out), bits_of(view.astype(np.float32)))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_torch_parameters_and_views_in_memory(
    rng: np.random.Generator, requires_grad: bool
) -> None:
    array = planted(rng, "bfloat16", (31, 4))
    tensor = torch.nn.Parameter(as_torch(array), requires_grad=requires_grad)
    tables = open_tables({"p": tensor, "t": tensor.T})
    np.testing.assert_array_equal(tables.read_stored("p", 0, 31), array.view(np.uint16))
    np.testing.assert_array_equal(tables.read_stored("t", 0, 4), array.view(np.uint16).T)


@pytest.mark.parametrize("format_name", [name for name in WRITERS if name != "parquet"])
def test_other_arrays_of_a_file_are_skipped_with_the_reason(
    rng: np.random.Generator, tmp_path: Path, format_name: str
) -> None:
    arrays: Arrays = {
        "table": planted(rng, "float32", (31, 3)),
        "counts": np.arange(31),
        "cube": np.zeros((2, 3, 4), np.float32),
        "ids": np.zeros((31, 3), np.int8),
    }
    tables = open_tables(WRITERS[format_name](tmp_path, arrays))
    check_reads(tables, {"table": arrays["table"]})
    assert dict(tables.skipped) == {
        "counts": "is (31,) int64",
        "cube": "is (2, 3, 4) float32",
        "ids": "is (31, 3) int8",
    }


def test_fields_are_chosen_by_name_or_pattern() -> None:
    arrays = {name: np.zeros((2, 1), np.float32) for name in ("user.a", "user.b", "item", "e[0].w")}
    assert list(open_tables(arrays, fields="user.*").fields) == ["user.a", "user.b"]
    assert list(open_tables(arrays, fields=["item", "*.b"]).fields) == ["item", "user.b"]
    assert list(open_tables(arrays, fields="e[0].w").fields) == ["e[0].w"]
    assert list(open_tables(open_tables(arrays), fields="i*").fields) == ["item"]


def test_empty_field_beside_others_is_kept(tmp_path: Path) -> None:
    arrays = {"full": np.ones((3, 2), np.float32), "empty": np.ones((0, 5), np.float32)}
    for format_name, write in WRITERS.items():
        if format_name != "parquet":
            (tmp_path / format_name).mkdir()
            path = write(tmp_path / format_name, dict(arrays))
            assert open_tables(path).fields["empty"].n_rows == 0
            assert open_tables(path).read_stored("empty", 0, 0).shape == (0, 5)


def test_float64_beyond_float32_becomes_infinite_without_a_warning() -> None:
    out = np.empty((1, 2), np.float32)
    open_tables(np.array([[1e300, -1e300]])).read("x", 0, out)
    assert out.tolist() == [[np.inf, -np.inf]]


@pytest.mark.parametrize("format_name", list(WRITERS))
def test_reads_come_from_any_thread(
    rng: np.random.Generator, tmp_path: Path, format_name: str
) -> None:
    array = planted(rng, "float32", (1025, 3))
    tables = open_tables(WRITERS[format_name](tmp_path, {"t": array}))
    out = np.empty(array.shape, np.float32)
    for start in range(0, 1025, 100):
        reader = threading.Thread(target=tables.read, args=("t", start, out[start : start + 100]))
        reader.start()
        reader.join()
    np.testing.assert_array_equal(bits_of(out), bits_of(array))


# Weights


@pytest.mark.parametrize(
    "dtype",
    [
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    ],
)
@pytest.mark.parametrize("format_name", list(WRITERS))
def test_weights_of_every_type_of_number(
    rng: np.random.Generator, tmp_path: Path, format_name: str, dtype: str
) -> None:
    tables = open_tables({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    arrays: Arrays = {
        name: rng.integers(0, 100, n_rows).astype(dtype) for name, (n_rows, _) in SHAPES.items()
    }
    del arrays["a"]  # unweighted
    arrays["user"] = arrays["user"].reshape(-1, 1)
    if format_name == "parquet":  # a folder holds matrices
        arrays = {name: array.reshape(-1, 1) for name, array in arrays.items()}
    for weights in (
        open_weights(WRITERS[format_name](tmp_path, arrays), tables),
        open_weights(arrays, tables),
    ):
        assert dict(weights.fields) == {name: len(arrays[name]) for name in sorted(arrays)}
        for name, array in arrays.items():
            out = np.empty(len(array), np.float64)
            for start in range(0, len(array), 50):
                weights.read(name, start, out[start : start + 50])
            assert out.tolist() == [float(x) for x in array.reshape(-1)]


def test_weights_in_a_parquet_file_are_its_numeric_columns(tmp_path: Path) -> None:
    tables = open_tables({"a": np.zeros((3, 2), np.float32), "b": np.zeros((3, 1), np.float32)})
    table = pa.table({"b": pa.array([1, 2, 3], pa.uint32()), "note": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "w.parquet")
    weights = open_weights(tmp_path / "w.parquet", tables)
    out = np.empty(3)
    weights.read("b", 0, out)
    assert (dict(weights.fields), out.tolist()) == ({"b": 3}, [1.0, 2.0, 3.0])


def test_bfloat16_weights_widen() -> None:
    tables = open_tables(np.zeros((3, 2), np.float32))
    weights = open_weights(torch.tensor([1.0, 3.0, 0.5], dtype=torch.bfloat16), tables)
    out = np.empty(3)
    weights.read("x", 0, out)
    assert out.tolist() == [1.0, 3.0, 0.5]


def test_large_integers_round_to_even() -> None:
    tables = open_tables(np.zeros((3, 2), np.float32))
    numbers = np.array([2**53 + 1, 2**53 + 3, 2**64 - 1], np.uint64)
    out = np.empty(3)
    open_weights(numbers, tables).read("x", 0, out)
    assert out.tolist() == [float(int(number)) for number in numbers]


def test_single_vector_fits_a_single_field(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.array([1.0, 2.0]))
    tables = open_tables({"item": np.zeros((2, 3), np.float32)})
    for given in (tmp_path / "counts.npy", [1.0, 2.0], {"other": [1.0, 2.0]}):
        assert dict(open_weights(given, tables).fields) == {"item": 2}


def test_weights_are_checked_against_other_tables_too() -> None:
    tables = open_tables({"a": np.zeros((2, 3), np.float32)})
    weights = open_weights([1, 2], tables)
    assert dict(open_weights(weights, tables).fields) == {"a": 2}


def test_weights_of_fields_that_were_left_out_are_left_out() -> None:
    arrays = {name: np.zeros((2, 1), np.float32) for name in ("a", "b", "c")}
    given = {"a": [1, 2], "b": [3, 4]}
    for tables in (open_tables(arrays, fields="a"), open_tables(open_tables(arrays), fields="a")):
        assert dict(open_weights(given, tables).fields) == {"a": 2}
    # "b" is not taken for the single vector of "c".
    assert dict(open_weights({"b": [3, 4]}, open_tables(arrays, fields="c")).fields) == {}


# Fingerprints


@pytest.mark.parametrize("format_name", list(WRITERS))
def test_fingerprint_changes_with_the_file_and_survives_json(
    rng: np.random.Generator, tmp_path: Path, format_name: str
) -> None:
    arrays = {name: planted(rng, "float32", shape) for name, shape in SHAPES.items()}
    path = WRITERS[format_name](tmp_path, arrays)
    before = open_tables(path).fingerprint()
    assert json.loads(json.dumps(before)) == before
    assert open_tables(path).fingerprint() == before
    assert open_tables(path, fields="a").fingerprint() != before
    opened = open_tables(path)
    changed = next(file for file in sorted(tmp_path.rglob("*")) if file.suffix not in {".json", ""})
    assert changed.name in {tag["file"] for tag in before["files"]}
    stat = changed.stat()
    import os

    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert open_tables(path).fingerprint() != before
    assert opened.fingerprint() != before


def test_fingerprint_of_memory_is_of_its_content(rng: np.random.Generator) -> None:
    array = planted(rng, "float32", (1025, 3))
    before = open_tables({"a": array}).fingerprint()
    assert json.loads(json.dumps(before)) == before
    for same in (np.asfortranarray(array), array.astype(">f4"), torch.from_numpy(array)):
        assert open_tables({"a": same}).fingerprint() == before
    changed = array.copy()
    changed.view(np.uint32)[1024, 2] ^= 1
    for other in (changed, array.astype(np.float64), array[:-1], array.reshape(-1, 1)):
        assert open_tables({"a": other}).fingerprint() != before


def test_fingerprint_of_weights_changes_with_them() -> None:
    tables = open_tables(np.zeros((3, 2), np.float32))
    tags = [open_weights([1, 2, last], tables).fingerprint() for last in (3, 3, 4)]
    assert tags[0] == tags[1]
    assert tags[0] != tags[2]
