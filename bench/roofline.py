"""The least time that one pass over a table can take on a device, and what was measured of it.

    python -m saec_gpu.bench.roofline --shape 8000000x1024x128 --dtype f16 --device h200

Four limits, each as if the others were not: rows read and codes written once; products of float16
on the matrix unit; the arg-min of all pairs on the ALU; and, if rows come from the host, the bus.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saec_gpu.errors import ParamError, SaecError

from .records import read_records

ITEM_BYTES = {"f16": 2, "bf16": 2, "f32": 4}
RECORDED_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
CODE_BYTES = 4  # written for each row
STEP = 16  # columns of one matrix instruction
FOLDED_DIM = 8  # up to here high and low halves of rows are multiplied both: two steps
# Minimum, bound and place: 13 operations on the ALU for the 8 keys that a lane sees of a group.
ALU_A_PAIR = 1.625
MINIMA_A_CLOCK = 64  # ALU lanes of a processor, sm_75 to sm_120: CUDA C++ programming guide, 8.4.1
# flash-kmeans: time = a + b·dim a pair, fitted to the tables its authors publish for an H200
# (arXiv 2603.09229): arg-min after the products, not beside them.
FLASH_PAIR_SECONDS = 0.361e-12
FLASH_FLOPS = 803e12


@dataclass(frozen=True)
class Gpu:
    """What limits a device.

    Attributes
    ----------
    name : str
    pattern : str
        What the driver's name of it holds.
    matrix_flops : float
        Flop a second of float16 products with float32 sums, no sparsity.
    copy_bytes : float
        Bytes a second of device memory, read and written.
    processors : int
    clock : float
        Hz, of the ALU.
    bus_bytes : float
        Bytes a second from pinned host memory.
    source : str
        Where the numbers are from; "measured" ones are what is reached, others the greatest.
    """

    name: str
    pattern: str
    matrix_flops: float
    copy_bytes: float
    processors: int
    clock: float
    bus_bytes: float
    source: str


_PCIE5, _PCIE4, _PCIE3 = 50e9, 25e9, 12e9  # of x16, what pinned copies reach

GPUS = {
    "h200": Gpu(
        "H200", r"H200", 790e12, 4.3e12, 132, 1.755e9, _PCIE5,
        "measured: matrix product of 8192³ and copy on one H200; sustained clock",
    ),
    "h100": Gpu(
        "H100 SXM", r"H100 80GB HBM3|H100.*SXM", 798e12, 3.0e12, 132, 1.755e9, _PCIE5,
        "measured: matrix product of 8192³ and copy on one H100; clock as the H200's",
    ),
    "a100": Gpu(
        "A100 SXM 80 GB", r"A100", 312e12, 2.039e12, 108, 1.41e9, _PCIE4,
        "NVIDIA A100 datasheet; GA100 whitepaper",
    ),
    "l40s": Gpu(
        "L40S", r"L40S", 362e12, 0.864e12, 142, 2.52e9, _PCIE4,
        "NVIDIA L40S datasheet",
    ),
    "rtx4090": Gpu(
        "RTX 4090", r"RTX 4090", 165.2e12, 1.008e12, 128, 2.52e9, _PCIE4,
        "NVIDIA Ada whitepaper, appendix A: float16 with float32 sums, half of that with float16",
    ),
    "t4": Gpu(
        "T4", r"\bT4\b", 65e12, 0.32e12, 40, 1.59e9, _PCIE3,
        "NVIDIA T4 datasheet; TU102 whitepaper",
    ),
    "b200": Gpu(
        "B200", r"B200", 2250e12, 8.0e12, 148, 1.965e9, _PCIE5,
        "NVIDIA HGX B200 datasheet; mma.sync reaches less than its tcgen05",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A pass over one field."""

    n_rows: int
    n_codewords: int
    dim: int
    dtype: str

    @property
    def pairs(self) -> int:
        """Return the pairs of row and codeword."""
        return self.n_rows * self.n_codewords

    @property
    def row_bytes(self) -> int:
        """Return the bytes of all rows."""
        return self.n_rows * self.dim * ITEM_BYTES[self.dtype]

    @property
    def multiplied_columns(self) -> int:
        """Return the columns that the matrix unit multiplies a pair."""
        steps = -(-self.dim // STEP)
        return STEP * (2 * steps if self.dim <= FOLDED_DIM else steps)


def shape_of(text: str, dtype: str) -> Shape:
    """Return the shape that "rows x codewords x dim" names.

    Raises
    ------
    ParamError
        The text or the dtype is none of a shape.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.replace("_", "").replace(" ", ""))
    if found is None or not all(int(number) for number in found.groups()):
        raise ParamError(
            f'shape "{text}" was given; give ROWSxCODEWORDSxDIM, e.g. 8000000x1024x128'
        )
    if dtype not in ITEM_BYTES:
        raise ParamError(f'dtype "{dtype}" was given; give one of {", ".join(ITEM_BYTES)}')
    n_rows, n_codewords, dim = map(int, found.groups())
    return Shape(n_rows, n_codewords, dim, dtype)


def find_gpu(name: str) -> Gpu:
    """Return the device of this name.

    Raises
    ------
    ParamError
        It is not in the table.
    """
    if name.lower() not in GPUS:
        raise ParamError(f'device "{name}" was given; the table holds {", ".join(GPUS)}')
    return GPUS[name.lower()]


def limits(shape: Shape, gpu: Gpu, alu_a_pair: float = ALU_A_PAIR) -> dict[str, float]:
    """Return the seconds of a pass by "memory", "matrix" and "arg-min"."""
    return {
        "memory": (shape.row_bytes + CODE_BYTES * shape.n_rows) / gpu.copy_bytes,
        "matrix": 2 * shape.pairs * shape.multiplied_columns / gpu.matrix_flops,
        "arg-min": alu_a_pair * shape.pairs / (MINIMA_A_CLOCK * gpu.processors * gpu.clock),
    }


def bound(shape: Shape, gpu: Gpu, alu_a_pair: float = ALU_A_PAIR) -> tuple[str, float]:
    """Return which limit is the greatest of rows on the device, and its seconds."""
    found = limits(shape, gpu, alu_a_pair)
    name = max(found, key=found.__getitem__)
    return name, found[name]


def bus_seconds(shape: Shape, gpu: Gpu) -> float:
    """Return the seconds of bringing the rows from the host."""
    return shape.row_bytes / gpu.bus_bytes


def flash_seconds(shape: Shape) -> float:
    """Return the seconds of flash-kmeans's assignment on an H200 by its authors' tables."""
    return shape.pairs * FLASH_PAIR_SECONDS + 2 * shape.pairs * shape.dim / FLASH_FLOPS


# ---- measured


def as_measured(gpu: Gpu, records: Iterable[Mapping[str, Any]]) -> Gpu:
    """Return the device with the rates that bench/device/limits.py last measured on one."""
    for record in records:
        if record["op"] != "limit" or record.get("dry") or not _is(gpu, record):
            continue
        limit = str(record["limit"])
        if limit == "device copy":
            gpu = replace(gpu, copy_bytes=1e9 * record["gb_per_s"])
        elif limit == "mma.sync f16":
            gpu = replace(gpu, matrix_flops=1e12 * record["tflop_per_s"])
        elif limit == "minimum_f32" and record.get("giga_per_s"):
            rate = 1e9 * record["giga_per_s"] / (MINIMA_A_CLOCK * gpu.processors)
            gpu = replace(gpu, clock=rate)
        elif limit == "host to device, pinned":
            gpu = replace(gpu, bus_bytes=1e9 * record["gb_per_s"])
        else:
            continue
        gpu = replace(gpu, source="measured by bench/device/limits.py")
    return gpu


def measured(
    shape: Shape, gpu: Gpu, records: Iterable[Mapping[str, Any]]
) -> list[tuple[str, str, float]]:
    """Return (kind of rows, contestant, seconds an iteration), scaled to the shape's rows.

    A record matches that has this device, dim, dtype and number of codewords in one field.
    """
    found: dict[tuple[str, str], float] = {}
    for record in records:
        wanted = (1, shape.dim, shape.n_codewords, RECORDED_DTYPES[shape.dtype])
        if record["op"] != "iterate" or record.get("dry") or not _is(gpu, record):
            continue
        if wanted != tuple(record[k] for k in ("n_fields", "dim", "n_codewords", "dtype")):
            continue
        scale = shape.n_rows / record["n_rows"] / 1e3
        for name, entry in record["contestants"].items():
            if entry["ms_an_iteration"] is not None:
                found[record["rows"], name] = scale * entry["ms_an_iteration"]
            kernels = entry.get("kernel_ms_an_iteration")
            if kernels:
                found[record["rows"], f"{name}, kernels alone"] = scale * sum(kernels.values())
    return [(rows, name, seconds) for (rows, name), seconds in found.items()]


def _is(gpu: Gpu, record: Mapping[str, Any]) -> bool:
    return re.search(gpu.pattern, str(record["device"])) is not None


# ---- printed


def table(
    shape: Shape, gpu: Gpu, records: Sequence[Mapping[str, Any]], sass: float | None = None
) -> str:
    """Return limits and measured times as a Markdown table.

    Parameters
    ----------
    shape : Shape
    gpu : Gpu
    records : sequence of dict
        Of bench/device, of any devices.
    sass : float, optional
        ALU instructions a pair that the compiled kernel has.
    """
    least = limits(shape, gpu)
    name, seconds = bound(shape, gpu)
    lines = [
        f"{shape.n_rows:,} rows × {shape.n_codewords} codewords × {shape.dim} {shape.dtype} on a "
        f"{gpu.name} ({gpu.source})",
        "",
        "| limit of one pass | ms | of the bound |",
        "| --- | ---: | ---: |",
    ]
    rows = [
        (f"memory, {gpu.copy_bytes / 1e12:.3g} TB/s", least["memory"]),
        (f"matrix unit, {gpu.matrix_flops / 1e12:.3g} TFLOP/s", least["matrix"]),
        (f"arg-min, {ALU_A_PAIR} ALU a pair", least["arg-min"]),
    ]
    if sass is not None:
        rows.append((f"arg-min, {sass} ALU a pair in SASS", limits(shape, gpu, sass)["arg-min"]))
    rows += [
        (f"**bound** ({name})", seconds),
        (f"bus, {gpu.bus_bytes / 1e9:.3g} GB/s, if streamed", bus_seconds(shape, gpu)),
    ]
    if gpu.pattern == GPUS["h200"].pattern:
        rows.append(("flash-kmeans's assignment, by its tables", flash_seconds(shape)))
    for kind, contestant, taken in measured(shape, gpu, records):
        rows.append((f"measured, {kind}: {contestant}", taken))
    for what, taken in rows:
        # of what was measured the share that the limit is; of limits their share of the greatest
        share = seconds / taken if what.startswith("measured") else taken / seconds
        lines.append(f"| {what} | {1e3 * taken:.3g} | {share:.0%} |")
    return "\n".join(lines) + "\n"


def find_records(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the records of all JSON lines within some folders."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*.jsonl"))]
    return read_records(paths)


def main(given: Sequence[str] | None = None) -> None:
    """Print from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.roofline", description="The least time of one pass."
    )
    parser.add_argument("--shape", default="8000000x1024x128", help="ROWSxCODEWORDSxDIM")
    parser.add_argument("--dtype", default="f16", help=", ".join(ITEM_BYTES))
    parser.add_argument("--device", default="h200", help=", ".join(GPUS))
    parser.add_argument("--sass", type=float, help="ALU instructions a pair of the compiled kernel")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="of records")
    parser.add_argument("--measured-limits", action="store_true", help="rates as measured there")
    options = parser.parse_args(given)
    try:
        records = find_records([options.results])
        gpu = find_gpu(options.device)
        if options.measured_limits:
            gpu = as_measured(gpu, records)
        print(table(shape_of(options.shape, options.dtype), gpu, records, options.sass), end="")
    except SaecError as err:
        sys.exit(f"error: {err}")


if __name__ == "__main__":
    main()
