"""Make the golden artifacts of format version 1 and the tables and weights they are made from.

    python tests/golden/make.py FOLDER

writes `tables.safetensors`, `weights.npz` and the artifacts. They were committed once and are read
and made anew by tests/test_golden.py for ever; from the first release on they are never made again
to please it. Values come from raw Philox bits and exact arithmetic, not from distributions, which
NumPy may change.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import saec_gpu as saec
from saec_gpu.codewords import CodewordsDtype
from saec_gpu.pipeline import CodesParam

PARAMETERS: Mapping[str, Any] = {"seed": 3, "max_iter": 12, "tol": 1e-4}

# Name: rows, dim, dtype, codewords asked. Code bits follow from the codewords that come of it.
FIELDS: Mapping[str, tuple[int, int, str, int]] = {
    "ad": (1900, 3, "float16", 300),  # 9 bits: planes of 8 and 1
    "brand": (700, 3, "bfloat16", 40),  # 6 bits: 4 and 2; weights of one limb
    "city": (31, 4, "float32", 1),  # no bits: one codeword
    "day": (97, 2, "float32", 5),  # all rows equal: no bits either
    "hour": (0, 4, "float32", 7),  # no rows
    "item": (6001, 2, "float32", 4097),  # 13 bits: 8, 4 and 1; the last seed is of a round
    "kept/float16": (7, 3, "float16", 7),  # as many codewords as rows: kept whole
    "kept/bfloat16": (5, 2, "bfloat16", 5),
    "kept/float32": (1, 3, "float32", 1),
    "six": (6, 2, "float64", 6),  # as many codewords as rows, but smaller in float32
    "shop größe": (500, 1, "float64", 100),  # 7 bits: 4, 2 and 1; weights of two limbs
    "tag": (301, 5, "float32", 16),  # three distinct rows: 2 bits, no error
    "user": (400, 4, "float32", 11),  # 4 bits; all weights zero
}

# Name: dtype of the codewords ("auto": under a budget), codes, fields.
ARTIFACTS: Mapping[
    str, tuple[CodewordsDtype | Literal["auto"], CodesParam, tuple[str, ...]]
] = {
    "v1": ("float32", "planes", tuple(FIELDS)),
    "v1-float16": ("float16", "auto", ("ad", "hour", "kept/bfloat16", "shop größe", "tag")),
    "v1-int8": ("int8", "auto", ("brand", "hour", "item", "kept/float16", "six", "tag", "user")),
    "v1-budget": (
        "auto", "entropy",
        ("ad", "brand", "city", "hour", "item", "kept/float16", "shop größe", "tag"),
    ),
}  # fmt: skip
RATIO = 14.0  # of the budget


def bits(name: str, count: int) -> NDArray[np.uint64]:
    """Return raw Philox bits that belong to a name."""
    key = int.from_bytes(name.encode()[:16].ljust(16, b"\0"), "little")
    generator = np.random.Philox(key=[key & (2**64 - 1), key >> 64])
    return np.asarray(generator.random_raw(count), np.uint64)


def rows_of(name: str) -> NDArray[np.float64]:
    """Return float64 (n, dim) rows that the field's dtype holds exactly."""
    n_rows, dim, dtype, _ = FIELDS[name]
    raw = bits(name, n_rows * dim).reshape(n_rows, dim)
    # Twelve small numbers added, near a bell curve: multiples of 1/64 that 8 bits hold.
    values = sum((raw >> np.uint64(5 * part)) & np.uint64(31) for part in range(12))
    rows = (np.asarray(values, np.float64) - 186) / 64
    if dtype in ("float32", "float64"):  # and four bits more where there is room for them
        rows += np.ldexp(
            (raw >> np.uint64(60)).astype(np.float64), -10 if dtype == "float32" else -40
        )
    if name == "day":
        rows[:] = rows[0]
    if name == "tag":
        rows = rows[np.arange(n_rows) * 7 % 3]
    if name.startswith("kept"):
        rows[0, :2] = -0.0, 2.0**-14
    return rows


def data_of(name: str) -> bytes:
    """Return a field's rows as little-endian bytes of its own dtype."""
    dtype, rows = FIELDS[name][2], rows_of(name)
    if dtype == "bfloat16":
        wide = rows.astype("<f4").view("<u4")
        assert not (wide & 0xFFFF).any()
        return (wide >> 16).astype("<u2").tobytes()
    data = rows.astype(np.dtype(dtype).newbyteorder("<"))
    assert np.array_equal(data.astype(np.float64), rows)
    return data.tobytes()


def tables() -> bytes:
    """Return the tables as a file in the format safetensors."""
    header, parts, stop = {}, [], 0
    for name, (n_rows, dim, dtype, _) in FIELDS.items():
        parts.append(data_of(name))
        start, stop = stop, stop + len(parts[-1])
        tag = dtype.upper().replace("LOAT", "")
        header[name] = {"dtype": tag, "shape": [n_rows, dim], "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def weights() -> dict[str, NDArray[Any]]:
    """Return weights of some fields: counts, numbers far apart, and zeros."""
    counts = bits("weights of brand", 700) % 1000
    far = np.ldexp(1.0, (bits("weights of shop", 500) % 90).astype(np.int64) - 45)
    return {
        "brand": counts.astype(np.int64) * (counts % 3 == 0),
        "city": np.arange(31, dtype=np.int64),
        "item": (bits("weights of item", 6001) % 50).astype(np.uint8),
        "kept/bfloat16": np.ones(5, np.uint8),
        "shop größe": far,
        "user": np.zeros(400, np.uint8),
    }


def compress(folder: Path, name: str, out: Path, **options: Any) -> saec.Artifact:
    """Return what compressing the tables of a folder gives: the artifact of a name in ARTIFACTS."""
    dtype, codes, fields = ARTIFACTS[name]
    under_budget = dtype == "auto"
    return saec.compress(
        folder / "tables.safetensors",
        weights=folder / "weights.npz",
        codewords=None if under_budget else {field: FIELDS[field][3] for field in fields},
        ratio=RATIO if under_budget else None,
        codewords_dtype=dtype,
        codes=codes,
        fields=[*map(glob.escape, fields)],
        out=out,
        **PARAMETERS,
        **options,
    )


def main() -> None:
    """Write everything."""
    (given,) = sys.argv[1:]
    folder = Path(given)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.safetensors").write_bytes(tables())
    np.savez_compressed(folder / "weights.npz", **weights())  # type: ignore[arg-type]
    for name in ARTIFACTS:
        artifact = compress(folder, name, folder / f"{name}.saec")
        (artifact.path / "run.json").unlink()  # it tells of the machine


if __name__ == "__main__":
    main()
