"""The loops of `generated`: rows and weights from counters, each value by itself.

All arithmetic is of integers, of float32 and float64 that hold them exactly, or one IEEE operation
after the other, so that the bits are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saec_gpu.compiled import compiled, inlined

# What a field's draws are for; each purpose has a stream of its own.
CENTRES, ROWS, WEIGHTS = np.uint64(0), np.uint64(1), np.uint64(2)

# Of a value: a centre's part and the row's own, in whole steps of 2**-20. Both are sums of four
# 16-bit numbers less their mean, within ±131070, so that a value is less than 2**20 steps from 0:
# it is exact in float32, and lies in (-1, 1).
CENTRE_STEPS, OWN_STEPS = 5, 3
MEAN_OF_PARTS = 4 * 65535 // 2
STEP = np.float32(2.0**-20)


@inlined
def draw(key: Any, i: Any) -> Any:
    """Return the i-th output (from 0) of SplitMix64 whose state was `key`, all uint64."""
    x = key + (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def sum_of_parts(bits: Any) -> Any:
    """Return the sum of the four 16-bit parts of a uint64: nearly normal, int32."""
    part = np.uint64(0xFFFF)
    return (
        np.int32(bits & part)
        + np.int32((bits >> np.uint64(16)) & part)
        + np.int32((bits >> np.uint64(32)) & part)
        + np.int32(bits >> np.uint64(48))
    )


@compiled
def fill_centres(
    seed: Any,  # uint64
    field: Any,  # uint64
    out: Any,  # OUT int32 (components, dim): steps, less the mean of the row's own part
) -> None:
    """Write the centres of a field."""
    key = draw(draw(seed, field), CENTRES)
    components, dim = out.shape
    mean = np.int32((CENTRE_STEPS + OWN_STEPS) * MEAN_OF_PARTS)
    for c in range(components):
        of_centre = draw(key, np.uint64(c))
        for j in range(dim):
            parts = sum_of_parts(draw(of_centre, np.uint64(j)))
            out[c, j] = np.int32(CENTRE_STEPS) * parts - mean


@compiled
def fill_rows(
    seed: Any,  # uint64
    field: Any,  # uint64
    start: Any,  # int64: number of the first row
    centres: Any,  # IN  int32 (components, dim), of fill_centres
    out: Any,  # OUT float32 (n, dim)
) -> None:
    """Write rows of a field."""
    key = draw(draw(seed, field), ROWS)
    n_rows, dim = out.shape
    components = np.uint64(len(centres))
    half = np.uint64(32)
    for i in range(n_rows):
        of_row = draw(key, np.uint64(start + i))
        u = of_row >> half
        c = np.int64((((((u * u) >> half) * u) >> half) * components) >> half)
        for j in range(dim):
            own = np.int32(OWN_STEPS) * sum_of_parts(draw(of_row, np.uint64(j)))
            out[i, j] = np.float32(centres[c, j] + own) * STEP


@compiled
def fill_weights(
    seed: Any,  # uint64
    field: Any,  # uint64
    start: Any,  # int64: number of the first row
    n_rows: Any,  # float64: rows of the field
    most: Any,  # float64: expected lookups of a row of rank 1
    out: Any,  # OUT float64 (n)
) -> None:
    """Write lookups of rows of a field."""
    key = draw(draw(seed, field), WEIGHTS)
    for i in range(len(out)):
        bits = draw(key, np.uint64(start + i))
        rank = 1.0 + n_rows * (np.float64(bits >> np.uint64(32)) * 2.0**-32)
        out[i] = np.floor(most / rank + np.float64(bits & np.uint64(0xFFFFFFFF)) * 2.0**-32)
