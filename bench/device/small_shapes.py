"""Every kernel of the CUDA backend on small fields: what compute-sanitizer watches.

    python -m saec_gpu.bench.device.small_shapes
    compute-sanitizer --tool racecheck python -m saec_gpu.bench.device.small_shapes

All classes of dims, dtypes of rows, and ways to find and add; results are held against the CPU
backend, bit for bit. With --planted a kernel with a fault runs instead. The tests run the same
fields on the emulator, under its sanitizers (`tests/every_kernel.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.clustering.statistics import StatisticsBuilder, fixed_point
from saec_gpu.data import Chunk, Codebook, FixedPoint, Float32, Float64, Partial
from saec_gpu.layout import lay_out

from .machine import Machine, open_machine

# one dim of every class
DIMS = (3, 16, 20, 40, 100, 200, 300)
DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS = ("none", "whole", "wide")
FAULTS = ("outside", "race", "uninitialised")


@dataclass(frozen=True, eq=False)
class Fields:
    """Rows of all fields as stored and as float32, and their codebooks."""

    stored: Chunk
    widened: Chunk
    codebooks: dict[str, Codebook]


def stored_as(dtype: str, values: Float32) -> tuple[NDArray[Any], Float32]:
    """Return values as they are stored, and what that widens to."""
    if dtype == "bfloat16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    stored = values.astype(dtype)
    return stored, stored.astype(np.float32)


def exponents_of(name: str, rows: Float32, weights: Float64 | None, k: int) -> FixedPoint:
    """Return the exponents of a field's sums, as a fit would choose them."""
    n_rows, dim = rows.shape
    builder = StatisticsBuilder(name, n_rows, dim, k, 0, weighted=weights is not None)
    builder.add(0, rows, weights)
    return fixed_point(builder.statistics())


def sizes_of(dim: int) -> Sequence[tuple[int, int, str]]:
    """Return (rows, codewords, kind of rows) of the fields of one dim."""
    many = 1100 if dim <= 64 else 450  # more than a window holds, whatever the shared memory
    return ((1, 1, "plain"), (150, 37, "plain"), (20, many, "plain"), (70, 40, "ties"),
            (140, 20, "near ties"))  # fmt: skip


def rows_and_codewords(
    n_rows: int, n_codewords: int, kind: str, dim: int, rng: np.random.Generator
) -> tuple[Float32, Float32]:
    """Return rows, float32 (n_rows, dim), and codewords of one field."""
    codewords = rng.standard_normal((n_codewords, dim)).astype(np.float32)
    if kind == "plain":
        rows = rng.standard_normal((n_rows, dim)).astype(np.float32)
        rows[::7] = rows[0]
        return rows, codewords
    if kind == "ties":
        codewords = 2 * rng.integers(-1, 2, codewords.shape).astype(np.float32)
    first, second = rng.integers(0, n_codewords, (2, n_rows))
    return (codewords[first] + codewords[second]) / 2, codewords


def make_fields(
    dims: Iterable[int], dtype: str, weighting: str, rng: np.random.Generator
) -> Fields:
    """Return all fields of some dims in one chunk; "wide" weights need sums of two limbs."""
    made = [
        (f"{dim} {kind} {k}", *rows_and_codewords(n_rows, k, kind, dim, rng))
        for dim in dims
        for n_rows, k, kind in sizes_of(dim)
    ]
    layout = lay_out((name, 0, *rows.shape) for name, rows, _ in made)
    values = np.concatenate([rows.reshape(-1) for _, rows, _ in made])
    stored, widened = stored_as(dtype, values)
    weights: Float64 | None = None
    if weighting == "whole":
        weights = rng.integers(0, 100, layout.n_rows).astype(np.float64)
    elif weighting == "wide":
        weights = np.exp2(rng.integers(-60, 60, layout.n_rows))
    codebooks = {}
    for segment, (name, _, codewords) in zip(layout.segments, made, strict=True):
        rows = widened[segment.values].reshape(-1, segment.dim)
        own = None if weights is None else weights[segment.rows]
        codebooks[name] = Codebook(codewords, exponents_of(name, rows, own, len(codewords)))
    return Fields(Chunk(layout, stored, weights), Chunk(layout, widened, weights), codebooks)


def differences(ours: CudaBackend, fields: Fields) -> Iterator[str]:
    """Yield where the device's results are not those of the CPU backend."""
    reference = CpuBackend(1)
    rows, wanted_rows = ours.load_rows(fields.stored), reference.load_rows(fields.widened)
    wanted = reference.load_codebooks(fields.codebooks)
    found = ours.load_codebooks(fields.codebooks)
    one = ours.assign(rows, found, distances=True)
    two = reference.assign(wanted_rows, wanted, distances=True)
    if not np.array_equal(one.codes, two.codes):
        yield f"assign: {np.count_nonzero(one.codes != two.codes)} codes"
    if _bits(one.distances) != _bits(two.distances):
        yield "assign: distances"
    ours.assign_accumulate(rows, found)
    reference.assign_accumulate(wanted_rows, wanted)
    yield from _partials(ours.partials(found), reference.partials(wanted), "assign_accumulate")
    ours.accumulate(rows, two.codes, found)
    reference.accumulate(wanted_rows, two.codes, wanted)
    yield from _partials(ours.partials(found), reference.partials(wanted), "accumulate")


def _partials(
    found: Mapping[str, Partial], wanted: Mapping[str, Partial], operation: str
) -> Iterator[str]:
    for name, one in wanted.items():
        for part in ("sums", "weight_sums", "counts", "sums_low", "weight_sums_low"):
            mine, theirs = getattr(found[name], part), getattr(one, part)
            if (mine is None) != (theirs is None) or not np.array_equal(mine, theirs):
                yield f"{operation}: {part} of {name}"


def _bits(values: Float64 | None) -> bytes | None:
    return None if values is None else values.tobytes()


def run_planted(machine: Machine, fault: str) -> None:
    """Run one kernel with a fault."""
    stream = machine.own.stream()
    words = 64
    given = {name: machine.own.empty(words, np.uint32) for name in ("from", "to")}
    machine.own.launch(
        f"planted_{fault}", 1, 64, {**given, "words": words}, shared_bytes=0, stream=stream
    )
    machine.own.synchronize(stream)


def main(given: list[str] | None = None) -> None:
    """Run from the command line; exit status 1 where a result is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.device.small_shapes",
        description="Run every kernel on small fields.",
    )
    parser.add_argument("--dry-run", action="store_true", help="on the emulator")
    parser.add_argument("--planted", choices=FAULTS, help="a faulty kernel instead")
    options = parser.parse_args(given)
    if not options.dry_run:
        import cupy

        # without CuPy's pool each array is an allocation of its own, with an end of its own
        cupy.cuda.set_allocator(None)
    machine = open_machine(dry=options.dry_run)
    if options.planted is not None:
        run_planted(machine, options.planted)
        return
    rng = np.random.default_rng(0)
    wrong = 0
    for number, dtype in enumerate(DTYPES):
        # a dry run shows that all is run and compared; on the emulator the tests run the others
        for weighting in WEIGHTS[number : number + 1] if options.dry_run else WEIGHTS:
            fields = make_fields(DIMS, dtype, weighting, rng)
            found = list(differences(CudaBackend(machine.device), fields))
            wrong += len(found)
            print(f"{dtype}, weights {weighting}: {'; '.join(found) or 'as the CPU backend'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
