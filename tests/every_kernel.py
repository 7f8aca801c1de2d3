"""Runs every kernel in every mode on the emulator, each result compared with the CPU backend's.

A program of its own, because a sanitizer must be in its process from the start; see
`test_cuda_kernels.py`. Prints how many launches of how many kernels agreed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from access_table import access_table
from emulated_device import LIMITS, EmulatedDevice
from emulator import Library, build
from numpy.typing import NDArray

from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.kernel_sources import kernel_sources
from saec_gpu.data import Chunk, Codebook, FixedPoint, Float32, Partial
from saec_gpu.layout import lay_out

# One dim of every class, then (rows, codewords) of fields: less than a group, more than a window.
DIMS = (3, 16, 20, 40, 100, 200, 300)
SIZES = ((70, 1), (150, 37), (33, 1100), (90, 40), (300, 20))
# shared memory of sm_75, of sm_86 and of sm_90
SHARED_BYTES = (64 * 1024, 99 * 1024, 227 * 1024)
KINDS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Case:
    """Fields of one dim and one dtype in one chunk, and their codebooks."""

    rows: Chunk
    widened: Chunk
    codebooks: dict[str, Codebook]


class CountingDevice(EmulatedDevice):
    """Counts the launches of each kernel."""

    def __init__(self, launches: Counter[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._launches = launches

    def launch(self, kernel: str, *args: Any, **kwargs: Any) -> None:
        """Count, then run."""
        self._launches[kernel] += 1
        super().launch(kernel, *args, **kwargs)


def stored(rows: Float32, kind: str) -> tuple[NDArray[Any], Float32]:
    """Return rows as a table of this dtype stores them, and what they are in float32."""
    if kind == "float16":
        half = rows.astype(np.float16)
        return half, half.astype(np.float32)
    if kind == "bfloat16":
        bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    return rows, rows


def fields(
    number: int, n_rows: int, n_codewords: int, dim: int, rng: np.random.Generator
) -> tuple[Float32, Float32]:
    """Return rows and codewords of one field: three are plain, one has ties, one near ties."""
    words = rng.standard_normal((n_codewords, dim)).astype(np.float32)
    first, second = rng.integers(0, n_codewords, (2, n_rows))
    if number < 3:
        rows = rng.standard_normal((n_rows, dim)).astype(np.float32)
        rows[::7] = rows[0]
    elif number == 3:
        words = 2 * rng.integers(-1, 2, words.shape).astype(np.float32)
        rows = (words[first] + words[second]) / 2
    else:
        rows = (words[first] + words[second]) / 2
    return rows, words


def cases(dim: int, kind: str, rng: np.random.Generator) -> Iterator[Case]:
    """Yield weighted and unweighted fields, in one limb and in two."""
    for weighted, wide in ((False, False), (True, False), (True, True)):
        given, widened, codebooks, runs = [], [], {}, []
        for number, (n_rows, n_codewords) in enumerate(SIZES):
            rows, words = fields(number, n_rows, n_codewords, dim, rng)
            one, other = stored(rows, kind)
            given.append(one.reshape(-1))
            widened.append(other.reshape(-1))
            fixed = FixedPoint(94 if wide else 62, 40, np.full(dim, 4, np.int64), weighted)
            codebooks[f"field {number}"] = Codebook(words, fixed)
            runs.append((f"field {number}", 0, n_rows, dim))
        layout = lay_out(runs)
        weights = rng.integers(0, 9, layout.n_rows).astype(np.float64) if weighted else None
        yield Case(
            Chunk(layout, np.concatenate(given), weights),
            Chunk(layout, np.concatenate(widened), weights),
            codebooks,
        )


def equal(one: Partial, other: Partial) -> bool:
    """Return whether two partials are the same."""
    return all(
        np.array_equal(a, b) if a is not None and b is not None else a is b
        for a, b in (
            (one.sums, other.sums),
            (one.sums_low, other.sums_low),
            (one.weight_sums, other.weight_sums),
            (one.weight_sums_low, other.weight_sums_low),
            (one.counts, other.counts),
        )
    )


def check(backend: CudaBackend, case: Case) -> None:
    """Raise unless codes, distances and sums are those of the CPU backend."""
    cpu = CpuBackend(1)
    expected = cpu.load_codebooks(case.codebooks)
    wanted = cpu.assign(case.widened, expected, distances=True)
    cpu.assign_accumulate(case.widened, expected)
    codebooks = backend.load_codebooks(case.codebooks)
    rows = backend.load_rows(case.rows)
    found = backend.assign(rows, codebooks, distances=True)
    assert found.distances is not None
    assert wanted.distances is not None
    assert np.array_equal(found.codes, wanted.codes)
    assert np.array_equal(found.distances, wanted.distances)
    backend.assign_accumulate(rows, codebooks)
    partials = backend.partials(codebooks)
    given = backend.load_codebooks(case.codebooks)
    backend.accumulate(rows, wanted.codes, given)
    sums_of_given = backend.partials(given)
    for name, partial in cpu.partials(expected).items():
        assert equal(partials[name], partial)
        assert equal(sums_of_given[name], partial)


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", default="", help="how the kernels are built")
    parser.add_argument("--seed", type=int, default=0, help="order of threads, copies and sums")
    parser.add_argument("--sources", type=Path, help="folder of the kernels, if not the project's")
    parser.add_argument("--dims", default=",".join(map(str, DIMS)), help="which dims")
    parser.add_argument(
        "--accesses",
        action="store_true",
        help="print what memory takes for the accesses of each line; with --sanitize racecheck",
    )
    args = parser.parse_args()
    sources = {} if args.sources is None else {"sources": args.sources}
    library = Library(build(args.sanitize, **sources), count_accesses=args.accesses)
    rng = np.random.default_rng(args.seed)
    launches: Counter[str] = Counter()
    for dim in map(int, args.dims.split(",")):
        for number, kind in enumerate(KINDS):
            limits = replace(LIMITS, shared_bytes=SHARED_BYTES[(dim + number) % 3])
            device = CountingDevice(launches, limits, seed=args.seed, library=library)
            for case in cases(dim, kind, rng):
                check(CudaBackend(device), case)
    if args.dims == ",".join(map(str, DIMS)):
        assert launches.keys() == kernel_sources().keys(), launches
    if args.accesses:
        print(access_table(library.accesses()))
    print(f"{launches.total()} launches of {len(launches)} kernels agree")


if __name__ == "__main__":
    main()
