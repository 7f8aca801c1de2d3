"""Every kernel of the CUDA backend once, on small fields: what compute-sanitizer watches.

    python -m saec_gpu.bench.device.small_shapes
    compute-sanitizer --tool racecheck python -m saec_gpu.bench.device.small_shapes

All classes of dims, dtypes of rows, and ways to find and add; results are held against the CPU
backend, bit for bit. With --planted a kernel with a fault runs instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.clustering.statistics import StatisticsBuilder, fixed_point
from saec_gpu.data import Chunk, Codebook, FixedPoint, Float32, Float64, Partial
from saec_gpu.layout import Layout, lay_out

from .machine import Machine, open_machine

# (rows, dim, codewords) of fields: every class of dims, a field that needs two windows of
# codewords, sums too many for shared memory, one row, rows that end within a tile
FIELDS = (
    (150, 3, 20), (97, 8, 1100), (65, 16, 40), (1, 16, 1), (130, 17, 33), (70, 50, 257),
    (66, 100, 130), (40, 200, 35), (35, 300, 9),
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS = ("none", "whole", "wide")
FAULTS = ("outside", "race", "uninitialised")


@dataclass(frozen=True, eq=False)
class Fields:
    """Rows of all fields as stored and as float32, and their codebooks.

    Attributes
    ----------
    layout : Layout
    stored : array (n_values,)
        float32, float16, or the bits of bfloat16.
    widened : float32 (n_values,)
    weights : float64 (n_rows,) or None
    codebooks : dict of str to Codebook
    """

    layout: Layout
    stored: NDArray[Any]
    widened: Float32
    weights: Float64 | None
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


def make_fields(dtype: str, weighting: str) -> Fields:
    """Return fields of all FIELDS; "wide" weights need sums of two limbs."""
    rng = np.random.default_rng([7, *dtype.encode(), *weighting.encode()])
    layout = lay_out((f"field {i}", 0, n, dim) for i, (n, dim, _) in enumerate(FIELDS))
    values = rng.standard_normal(layout.n_values).astype(np.float32)
    stored, widened = stored_as(dtype, values)
    weights: Float64 | None = None
    if weighting == "whole":
        weights = rng.integers(0, 100, layout.n_rows).astype(np.float64)
    elif weighting == "wide":
        weights = np.exp2(rng.integers(-60, 60, layout.n_rows))
    codebooks = {}
    for segment, (_, dim, k) in zip(layout.segments, FIELDS, strict=True):
        rows = widened[segment.values].reshape(-1, dim)
        own = None if weights is None else weights[segment.rows]
        codewords = rng.standard_normal((k, dim)).astype(np.float32)
        codewords[: min(k, len(rows)) // 3] = rows[: min(k, len(rows)) // 3]
        exponents = exponents_of(segment.field, rows, own, k)
        codebooks[segment.field] = Codebook(codewords, exponents)
    return Fields(layout, stored, widened, weights, codebooks)


def differences(machine: Machine, dtype: str, weighting: str) -> Iterator[str]:
    """Yield where the device's results are not those of the CPU backend."""
    fields = make_fields(dtype, weighting)
    ours, reference = CudaBackend(machine.device), CpuBackend(1)
    # the protocol's rows are float32; this backend takes those of a table's own dtype too
    given: Any = fields.stored
    rows = ours.load_rows(Chunk(fields.layout, given, fields.weights))
    wanted_rows = reference.load_rows(Chunk(fields.layout, fields.widened, fields.weights))
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
    wrong = 0
    for dtype in DTYPES:
        for weighting in WEIGHTS:
            found = list(differences(machine, dtype, weighting))
            wrong += len(found)
            print(f"{dtype}, weights {weighting}: {'; '.join(found) or 'as the CPU backend'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
