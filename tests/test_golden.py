"""What version 1 of the format wrote is read for ever, and made again to the same bytes.

The files in tests/golden were made once, by make.py there. From the first release on, where a test
fails, the code is wrong, or it wants a new version of the format with golden files of its own;
these stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import saec_gpu as saec
from golden import make
from saec_gpu.codewords import CODEWORDS_DTYPES

GOLDEN = Path(__file__).parent / "golden"
MANIFESTS = {  # each states the SHA-256 of the other files of its artifact
    "v1": "f877d3daeecae628e805b8cc6588b33f9fc5e01272fcc637c56287b17933d1ba",
    "v1-float16": "d21d952412738ba048d935f89ab0f12df9e7368e9dfc0f9d1790837485533f1d",
    "v1-int8": "8f11ee67746c7e14dc6dca3c4da6b8e28563cc8bfb22ced970ed51781b2fd3f7",
    "v1-budget": "e329787e7d1c3c11d772810d4d9ee7e2c398305cdd77455f967b45e378924a14",
}
FILES = {
    "tables.safetensors": "e95b637e70d0f2de6301de48db5ba50ad261ffadc7b8edd8a80c7d923ecc86ff",
    "weights.npz": "30667f67812d104cfc856dce77ef6f43b4f4043d40b606f87f30410db29cbbca",
} | {f"{name}.saec/manifest.json": digest for name, digest in MANIFESTS.items()}
DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "I8": "i1"}
EVERY_FIELD = [(name, field) for name, (_, _, fields) in make.ARTIFACTS.items() for field in fields]


def artifact_of(name: str) -> Path:
    return GOLDEN / f"{name}.saec"


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that the promise covers, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json" and path.suffix not in (".py", ".pyc")
    }


def entries(artifact: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((artifact / "manifest.json").read_bytes())["fields"]
    return found


def read_tensor(path: Path, name: str) -> NDArray[np.float32]:
    """Return a tensor as float32, read with nothing but docs/how-it-works.md at hand."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    tensor = json.loads(content[8 : 8 + length])[name]
    start, stop = (8 + length + offset for offset in tensor["data_offsets"])
    values = np.frombuffer(content[start:stop], DTYPES[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float32).reshape(tensor["shape"])


def read_codebook(artifact: Path, entry: dict[str, Any]) -> NDArray[np.float32]:
    """Return a codebook, read likewise."""
    values = read_tensor(artifact / "codebooks.safetensors", entry["name"])
    if entry["codewords_dtype"] == "int8":
        values *= read_tensor(artifact / "scales.safetensors", entry["name"])[:, None]
    return values


def read_levels(packed: list[int], bits: list[int], rows: list[int]) -> list[int]:
    """Return codes that are in levels, read likewise: row after row, without the counters."""
    last = len(bits) - 1
    staying = [n - after for n, after in zip(rows, [*rows[1:], 0], strict=True)]
    bitmaps, starts, byte = [], [], 0
    for n in rows[:last]:
        bitmaps.append([
            packed[byte + i // 496 * 64 + (i % 496 + 16) // 8] >> (i % 496 + 16) % 8 & 1
            for i in range(n)
        ])  # fmt: skip
        byte += n // 496 * 64 + (-(-(n % 496 + 16) // 64) * 8 if n % 496 else 0)
    byte += sum(-(-n // (128 * 496)) * 8 for n in rows[:last])
    for n, width in zip(staying, bits, strict=True):
        starts.append(byte * 8)
        byte += -(-n * width // 8)
    assert byte + 3 == len(packed)
    codes, row_of, payload_of = [], [0] * len(bits), [0] * len(bits)
    for _ in range(rows[0]):
        level = code = 0
        while level < last:
            goes = bitmaps[level][row_of[level]]
            row_of[level] += 1
            if not goes:
                break
            code += 1 << bits[level]
            level += 1
        for bit in range(bits[level]):
            at = starts[level] + payload_of[level] * bits[level] + bit
            code += (packed[at // 8] >> at % 8 & 1) << bit
        payload_of[level] += 1
        codes.append(code)
    return codes


def read_codes(artifact: Path, entry: dict[str, Any]) -> list[int]:
    """Return the codes of all rows, read likewise."""
    if entry["encoding"] == "identity" or not entry["rows"]:
        return list(range(entry["rows"]))
    packed = np.load(artifact / "codes" / f"{entry['number']}.npy").tolist()
    if entry["encoding"] == "levels":
        return read_levels(packed, entry["level_bits"], entry["level_rows"])
    codes = [0] * entry["rows"]
    first_byte = first_bit = 0
    for width in entry["planes"]:
        for row in range(entry["rows"]):
            byte = packed[first_byte + row * width // 8]
            codes[row] |= (byte >> row * width % 8 & (1 << width) - 1) << first_bit
        first_byte += -(-entry["rows"] * width // 8)
        first_bit += width
    assert first_byte == len(packed)
    return codes


def test_files_are_there_and_as_they_were() -> None:
    found = digests(GOLDEN)
    assert {name: found[name] for name in FILES} == FILES
    for name in make.ARTIFACTS:
        saec.load(artifact_of(name)).check_files()
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 250_000


def test_every_kind_of_field_is_among_them() -> None:
    found = entries(artifact_of("v1"))
    assert {tuple(entry["planes"]) for entry in found} == {
        (), (2,), (2, 1), (4,), (4, 2), (4, 2, 1), (8, 1), (8, 4, 1),
    }  # fmt: skip
    assert {entry["encoding"] for entry in found} == {"planes", "identity"}
    assert {len(entry["level_bits"]) for entry in entries(artifact_of("v1-int8"))} == {0, 2, 5}
    assert {entry["dtype"] for entry in found if entry["encoding"] == "identity"} == {
        "bfloat16", "float16", "float32",
    }  # fmt: skip
    assert {entry["dtype"] for entry in found} > {"float64"}
    assert 0 in {entry["rows"] for entry in found}
    assert {entry.get("weights") for entry in found} == {"none", "given", "all zero", None}
    for name, (dtype, _, _) in make.ARTIFACTS.items():
        dtypes = {
            entry["codewords_dtype"]
            for entry in entries(artifact_of(name))
            if entry["encoding"] != "identity"
        }
        assert dtypes == (set(CODEWORDS_DTYPES) if dtype == "auto" else {dtype})
    budget = entries(artifact_of("v1-budget"))
    assert {entry["encoding"] for entry in budget} == {"planes", "levels"}
    assert {entry["rule"] for entry in budget if "rule" in entry} == {"nearest", "cost"}


@pytest.mark.parametrize(("name", "field_name"), EVERY_FIELD)
def test_codes_codebooks_and_vectors_are_read(name: str, field_name: str) -> None:
    path = artifact_of(name)
    (entry,) = (entry for entry in entries(path) if entry["name"] == field_name)
    field = saec.load(path)[field_name]
    codes, codebook = read_codes(path, entry), read_codebook(path, entry)
    assert (field.n_rows, field.dim, field.dtype) == make.FIELDS[field_name][:3]
    assert field.codes.tolist() == codes
    assert np.array_equal(field.codebook.view(np.uint32), codebook.view(np.uint32))
    rows = np.arange(field.n_rows)[::-1]
    assert field.codes_of(rows).tolist() == codes[::-1]
    vectors = codebook[codes][::-1] if codes else codebook
    assert np.array_equal(field.lookup(rows).view(np.uint32), vectors.view(np.uint32))


def test_vectors_that_stand_here() -> None:
    artifact = saec.load(artifact_of("v1"))
    assert artifact["ad"].codes_of([0, 1899]).tolist() == [54, 127]
    assert artifact["ad"].lookup([0, 1899]).tolist() == [
        [0.484375, 0.4600694477558136, 0.0329861119389534],
        [-0.1741071492433548, 0.3392857015132904, 0.3370535671710968],
    ]
    assert artifact["item"].codes_of([0, 6000]).tolist() == [422, 18]
    assert artifact["item"].lookup([0, 6000]).tolist() == [
        [0.4643787145614624, -0.0844029039144516],
        [-0.18836279213428497, -0.012865973636507988],
    ]
    assert artifact["kept/bfloat16"].codes_of([0, 4]).tolist() == [0, 4]
    assert artifact["kept/bfloat16"].lookup([0, 4]).tolist() == [
        [-0.0, 6.103515625e-05],
        [-0.640625, 0.546875],
    ]
    assert artifact["shop größe"].codes_of([499]).tolist() == [72]
    assert artifact["shop größe"].lookup([499]).tolist() == [[-0.875]]
    assert artifact["tag"].codes_of([300]).tolist() == [0]
    assert artifact["tag"].lookup([300]).tolist() == [
        [1.0048828125, 0.45703125, -0.599609375, 0.974609375, -0.142578125]
    ]


@pytest.mark.parametrize("name", make.ARTIFACTS)
def test_verified_against_its_tables(name: str) -> None:
    artifact = saec.load(artifact_of(name))
    found = artifact.verify(GOLDEN / "tables.safetensors", weights=GOLDEN / "weights.npz")
    assert found.problems == ()
    assert [one.name for one in found.fields] == sorted(make.ARTIFACTS[name][2])


@pytest.mark.parametrize("name", make.ARTIFACTS)
@pytest.mark.parametrize("chunk_rows", [None, 97])
def test_compressed_today_to_the_same_bytes(
    tmp_path: Path, name: str, chunk_rows: int | None
) -> None:
    # RELIABILITY 43
    artifact = make.compress(GOLDEN, name, tmp_path / "today.saec", chunk_rows=chunk_rows)
    assert digests(artifact.path) == digests(artifact_of(name))


def test_the_maker_still_makes_the_tables() -> None:
    assert make.tables() == (GOLDEN / "tables.safetensors").read_bytes()
    with np.load(GOLDEN / "weights.npz") as weights:
        assert set(weights.files) == set(make.weights())
        for name, vector in make.weights().items():
            assert np.array_equal(weights[name], vector)
