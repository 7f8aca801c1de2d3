"""What single formats have that others lack: byte orders, Fortran order, offsets, nested names."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from saec_gpu.sources import open_tables, parquet
from saec_gpu.sources.arrays import open_arrays
from saec_gpu.sources.npz import open_npz
from saec_gpu.sources.raw import RawArray
from saec_gpu.sources.safetensors import open_safetensors
from saec_gpu.sources.torch import TorchArray, open_torch
from test_sources import as_torch, bits_of, check_reads, planted, write_torch

# NumPy


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_of_any_order_and_version(
    rng: np.random.Generator, tmp_path: Path, order: Any, byteorder: str, version: tuple[int, int]
) -> None:
    array = planted(rng, "float32", (97, 5))
    with (tmp_path / "t.npy").open("wb") as file:
        np.lib.format.write_array(file, array.astype(byteorder + "f4", order=order), version)
    check_reads(open_tables(tmp_path / "t.npy"), {"t": array})


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_of_any_order_and_zip64(
    rng: np.random.Generator, tmp_path: Path, compressed: bool
) -> None:
    array = planted(rng, "float64", (97, 5))
    data = io.BytesIO()
    np.save(data, array.astype(">f8"))
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "t.npz", "w", method) as archive:
        with archive.open("t.npy", "w", force_zip64=True) as member:
            member.write(data.getvalue())
        if not compressed:
            with archive.open("turned.npy", "w") as member:
                np.save(member, array.T)
    arrays = {"t": array} if compressed else {"t": array, "turned": array.T.copy()}
    check_reads(open_tables(tmp_path / "t.npz"), arrays)


def test_deflated_member_is_decompressed_once_when_read_forward(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "t.npz", t=rng.standard_normal((1000, 8)))
    array = open_npz(tmp_path / "t.npz")["t"]
    opened = []
    original = zipfile.ZipFile.open

    def counted(self: zipfile.ZipFile, *args: Any, **options: Any) -> Any:
        opened.append(args)
        return original(self, *args, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", counted)
    out = np.empty((10, 8))
    for start in range(0, 1000, 20):  # with gaps
        array.read(start, out)
    assert len(opened) == 1
    array.read(0, out)
    assert len(opened) == 2


def test_memory_map_is_read_from_its_file(rng: np.random.Generator, tmp_path: Path) -> None:
    array = planted(rng, "float32", (97, 5))
    np.save(tmp_path / "t.npy", array)
    whole = np.load(tmp_path / "t.npy", mmap_mode="r")
    views = {"whole": whole, "tail": whole[13:], "plain": np.asarray(whole)[13:20]}
    opened = open_arrays(views)
    assert all(isinstance(found, RawArray) for found in opened.values())
    check_reads(open_tables(views), {name: np.array(view) for name, view in views.items()})
    # These stay memory: a strided view, a private copy of pages, a file that is another by now.
    private = np.load(tmp_path / "t.npy", mmap_mode="c")
    private[3, 3] = 7
    check_reads(
        open_tables({"columns": whole[:, 1:3], "private": private}),
        {"columns": array[:, 1:3].copy(), "private": np.array(private)},
    )
    other = tmp_path / "other.npy"
    np.save(other, array + 1)
    other.replace(tmp_path / "t.npy")
    check_reads(open_tables({"whole": whole}), {"whole": array})
    (tmp_path / "t.npy").unlink()
    check_reads(open_tables({"whole": whole}), {"whole": array})


# torch


def nested(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    return {
        "epoch_tables.0": planted(rng, "float32", (7, 3)),
        "epoch_tables.1": planted(rng, "bfloat16", (9, 2)),
        "state_dict.emb.user.weight": planted(rng, "float64", (31, 5)),
        "state_dict.7": planted(rng, "float16", (5, 5)),
    }


def test_torch_names_are_the_path_through_the_containers(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    arrays = nested(rng)
    user = torch.nn.Parameter(as_torch(arrays["state_dict.emb.user.weight"]))
    checkpoint = {
        "epoch": 3,
        "note": "text",
        "lr": None,
        "epoch_tables": [
            as_torch(arrays["epoch_tables.0"]),
            as_torch(arrays["epoch_tables.1"]),
        ],
        "state_dict": {"emb.user.weight": user, 7: as_torch(arrays["state_dict.7"])},
    }
    torch.save(checkpoint, tmp_path / "t.ckpt")
    check_reads(open_tables(tmp_path / "t.ckpt"), arrays)


def test_torch_file_of_one_tensor_has_the_stem_as_name(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    array = planted(rng, "float32", (7, 3))
    torch.save(torch.from_numpy(array), tmp_path / "emb.pth")
    check_reads(open_tables(tmp_path / "emb.pth"), {"emb": array})


def test_torch_tensors_lie_in_the_file_where_the_source_says(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    arrays = {f"t{i}": planted(rng, "float32", (i + 1, 3)) for i in range(20)}
    opened = open_torch(write_torch(tmp_path, arrays))
    data = (tmp_path / "t.pt").read_bytes()
    for name, array in arrays.items():
        found = opened[name]
        assert isinstance(found, RawArray)  # read without torch
        assert data[found.offset : found.offset + array.nbytes] == array.tobytes()


def test_torch_tensors_that_do_not_lie_in_rows(rng: np.random.Generator, tmp_path: Path) -> None:
    array = planted(rng, "bfloat16", (40, 6))
    tensor = as_torch(array)
    complex_numbers = torch.from_numpy(rng.standard_normal((8, 2)) + 1j)
    torch.save(
        {
            "turned": tensor.T,
            "every_other": tensor[::2, ::3],
            "slice": tensor[5:9],
            "repeated": tensor[:1].expand(5, 6),
            "negated": complex_numbers.conj().imag,
        },
        tmp_path / "t.pt",
    )
    opened = open_torch(tmp_path / "t.pt")
    assert isinstance(opened["slice"], RawArray)
    assert isinstance(opened["turned"], TorchArray)
    assert isinstance(opened["negated"], TorchArray)
    check_reads(
        open_tables(tmp_path / "t.pt"),
        {
            "turned": array.T.copy(),
            "every_other": array[::2, ::3].copy(),
            "slice": array[5:9],
            "repeated": np.repeat(array[:1], 5, axis=0),
            "negated": np.full((8, 2), -1.0),
        },
    )


def test_torch_without_offsets_is_read_through_torch(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before 2.6 or so torch notes no offsets; a wrong one must not be believed either.
    arrays = {"a": planted(rng, "bfloat16", (31, 3)), "b": planted(rng, "float32", (7, 2))}
    path = write_torch(tmp_path, arrays)
    load = torch.load

    def load_with(change: Any) -> Any:
        def changed(*args: Any, **options: Any) -> Any:
            tensors = load(*args, **options)
            if options["map_location"] == "meta":
                for tensor in tensors.values():
                    change(tensor.untyped_storage())
            return tensors

        return changed

    def without(storage: Any) -> None:
        del storage._checkpoint_offset

    def wrong(storage: Any) -> None:
        storage._checkpoint_offset += 64

    for change in (without, wrong):
        monkeypatch.setattr(torch, "load", load_with(change))
        assert all(isinstance(array, TorchArray) for array in open_torch(path).values())
        check_reads(open_tables(path), arrays)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # torch deprecates what is saved here
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_torch_tensors_that_are_no_arrays_are_skipped(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    array = planted(rng, "float32", (7, 3))
    tensor = torch.from_numpy(array)
    torch.save(
        {
            "t": tensor,
            "sparse": torch.eye(3).to_sparse(),
            "float8": tensor.to(torch.float8_e4m3fn),
            "flags": tensor > 0,
        },
        tmp_path / "t.pt",
    )
    tables = open_tables(tmp_path / "t.pt")
    check_reads(tables, {"t": array})
    assert dict(tables.skipped) == {
        "flags": "is (7, 3) bool",
        "float8": "is (7, 3) float8_e4m3fn",
        "sparse": "is (3, 3) sparse_coo float32",
    }


def test_torch_file_that_has_no_meta_form_is_read_through_the_map(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Quantized tensors have none; torch deprecates making them, so its refusal is imitated.
    arrays = {"a": planted(rng, "float32", (31, 3))}
    path = write_torch(tmp_path, arrays)
    load = torch.load

    def without_meta(*args: Any, **options: Any) -> Any:
        if options["map_location"] == "meta":
            raise NotImplementedError("Could not run 'aten::_empty_affine_quantized'")
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", without_meta)
    check_reads(open_tables(path), arrays)


# safetensors


def test_safetensors_offsets_and_metadata(rng: np.random.Generator, tmp_path: Path) -> None:
    import safetensors.numpy

    arrays = {f"t{i}": rng.standard_normal((i + 1, 3)) for i in range(5)}
    arrays["empty"] = np.zeros((0, 3))
    safetensors.numpy.save_file(arrays, tmp_path / "t.safetensors", metadata={"format": "np"})
    opened = open_safetensors(tmp_path / "t.safetensors")
    assert set(opened) == set(arrays)
    data = (tmp_path / "t.safetensors").read_bytes()
    for name, array in arrays.items():
        found = opened[name]
        assert isinstance(found, RawArray)
        assert data[found.offset : found.offset + array.nbytes] == array.tobytes()


def test_safetensors_dtypes_without_a_numpy_name_are_skipped(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    table = torch.ones(3, 2)
    save_file(
        {"t": table, "f8": table.to(torch.float8_e5m2), "b": table > 0}, tmp_path / "t.safetensors"
    )
    tables = open_tables(tmp_path / "t.safetensors")
    assert list(tables.fields) == ["t"]
    assert dict(tables.skipped) == {"b": "is (3, 2) BOOL", "f8": "is (3, 2) F8_E5M2"}


def test_safetensors_index_decides_what_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3, 2), "b": torch.ones(3, 2)}, tmp_path / "s.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "s.safetensors"}}')
    assert list(open_tables(index).fields) == ["a"]
    assert list(open_tables(tmp_path).fields) == ["a"]


# Parquet


def write_lists(path: Path, array: NDArray[Any], **options: Any) -> None:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    pq.write_table(pa.table({"rows": rows}), path, **options)


def test_parquet_read_forward_decodes_once_and_skips_row_groups(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = rng.standard_normal((10_000, 4)).astype(np.float32)
    write_lists(tmp_path / "t.parquet", array, row_group_size=1000)
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 16 * 300)
    groups: list[list[int]] = []
    original = pq.ParquetFile.iter_batches

    def counted(self: Any, **options: Any) -> Any:
        groups.append(list(options["row_groups"]))
        return original(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    tables = open_tables(tmp_path / "t.parquet")
    for start in range(0, 10_000, 77):
        rows = tables.read_stored("rows", start, min(start + 77, 10_000))
        np.testing.assert_array_equal(bits_of(rows), bits_of(array[start : start + 77]))
    assert groups == [list(range(10))]
    # Back: from the row group that holds the row. Far ahead: likewise. Near ahead: no new start.
    for start, opened in ((5500, 1), (5400, 1), (3210, 2), (8000, 3), (8500, 3)):
        rows = tables.read_stored("rows", start, start + 10)
        np.testing.assert_array_equal(bits_of(rows), bits_of(array[start : start + 10]))
        assert len(groups) == 1 + opened
    assert [first for first, *_ in groups] == [0, 5, 3, 8]


def test_parquet_takes_the_one_column_of_lists_of_a_file_in_a_folder(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    array = planted(rng, "float32", (31, 3))
    rows = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), 3)
    pq.write_table(pa.table({"id": range(31), "v": rows}), tmp_path / "user.parquet")
    check_reads(open_tables(tmp_path), {"user": array})


def test_parquet_holds_one_batch_however_large_the_row_group_is(tmp_path: Path) -> None:
    # RELIABILITY 23. In a process of its own: the pool's peak counts from its start.
    n_rows, dim = 1 << 19, 32  # 64 MiB in one row group
    write_lists(
        tmp_path / "t.parquet",
        np.arange(n_rows * dim, dtype=np.float32).reshape(n_rows, dim),
        row_group_size=n_rows,
        use_dictionary=False,
    )
    program = """
import sys, numpy as np, pyarrow as pa
from saec_gpu.sources import open_tables
tables = open_tables(sys.argv[1])
out = np.empty((10_000, tables.fields["rows"].dim), np.float32)
rows, total = tables.fields["rows"].n_rows, 0
for start in range(0, rows, len(out)):
    part = out[: min(len(out), rows - start)]
    tables.read("rows", start, part)
    assert part[0, 0] == np.float32(start * 32)
print(pa.default_memory_pool().max_memory(), pa.total_allocated_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "t.parquet")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    peak, kept = (int(number) for number in done.stdout.split())
    assert peak < 32 << 20
    assert kept == 0
