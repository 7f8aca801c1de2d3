"""The kernels of the Numba backend: DESIGN.md 1, 2 and 4 as they stand, with nothing in between.

A block takes one tile: up to TILE rows of one field. The tile table says where the tile lies in
the flat buffers, the slot table where its field's codebook and sums lie, so that fields of any dim
and number of codewords run in one launch. All positions are int64.

What keeps the bits: codes follow from float64 distances whose every operation is rounded on its
own. The compiler would contract `s += t * t` into one fused multiply-add, which rounds once, so
products and sums are spelled `times` and `plus`: CUDA's __dmul_rn and __dadd_rn, which it leaves as
they are. Sums are integers and added by atomics, so that it does not matter who comes first.

In Numba's simulator (NUMBA_ENABLE_CUDASIM=1) the same text runs as Python, one thread a CUDA
thread.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, cuda, float64, int64
from numba.cuda import libdevice

from saec_gpu.data import LIMB_BITS

SIMULATED = bool(config.ENABLE_CUDASIM)

# Threads of a block, and rows that each of them assigns. In the simulator a thread is a thread of
# Python's and a barrier takes milliseconds, so there few of them take many rows.
THREADS, ROWS = (4, 8) if SIMULATED else (128, 2)
TILE = THREADS * ROWS
GROUP = 8  # codewords compared at once: a value of a row is read and widened once for all of them
COLUMNS = 128  # columns of them in shared memory at once

# Columns of the tile table. TILE_WEIGHTS is −1 where the field is not weighted.
TILE_SLOT, TILE_ROWS, TILE_VALUES, TILE_WEIGHTS, TILE_FIRST = range(5)
TILE_COLUMNS = 5
# Columns of the slot table. One slot is one field's codebook. SLOT_COUNTS says where its counts and
# weight sums begin, SLOT_WORDS its codewords and sums, SLOT_SCALES its column scales.
SLOT_DIM, SLOT_CODEWORDS, SLOT_COUNTS, SLOT_WORDS, SLOT_SCALES, SLOT_WIDE = range(6)
SLOT_FIELDS = 6

LIMB = 2.0**LIMB_BITS
PER_LIMB = 2.0**-LIMB_BITS
LOW_MASK = 2**LIMB_BITS - 1

# Python fuses nothing: in the simulator its own operators do.
plus: Any = operator.add if SIMULATED else libdevice.dadd_rn
times: Any = operator.mul if SIMULATED else libdevice.dmul_rn
rint: Any = np.rint if SIMULATED else libdevice.rint
floor: Any = np.floor if SIMULATED else libdevice.floor


def _kernel(function: Callable[..., None]) -> Any:
    """Return the function to be launched as `function[blocks, threads](...)`."""
    return cuda.jit(function)


def _device(function: Callable[..., None]) -> Any:
    """Return the function to be called by kernels."""
    return function if SIMULATED else cuda.jit(device=True)(function)


@_kernel
def assign_f32(  # noqa: PLR0912  # loops over a thread's few rows count as branches
    tiles: Any,  # IN  int64 (n_tiles, TILE_COLUMNS)
    slots: Any,  # IN  int64 (n_slots, SLOT_FIELDS)
    values: Any,  # IN  float32, flat: rows
    words: Any,  # IN  float32, flat: codewords
    codes: Any,  # OUT uint32 (n_rows)
    distances: Any,  # OUT float64 (n_rows); empty when not asked for
) -> None:
    """Write the nearest codeword of each row, ties to the lower, and its distance when asked.

    One thread owns ROWS rows. Codewords pass by in groups, which the whole block widens once into
    shared memory; each thread then reads the same place at the same time, once for all its rows.
    """
    staged = cuda.shared.array((COLUMNS, GROUP), float64)
    totals = cuda.local.array((ROWS, GROUP), float64)
    nearest = cuda.local.array(ROWS, float64)
    found = cuda.local.array(ROWS, int64)
    start = cuda.local.array(ROWS, int64)
    tile = np.int64(cuda.blockIdx.x)
    if tile >= len(tiles):
        return
    slot = tiles[tile, TILE_SLOT]
    n_rows = tiles[tile, TILE_ROWS]
    dim = slots[slot, SLOT_DIM]
    n_codewords = slots[slot, SLOT_CODEWORDS]
    thread = np.int64(cuda.threadIdx.x)
    for r in range(ROWS):
        # Beyond the tile's last row threads repeat it, because all of them must reach the barriers.
        row = min(thread + r * THREADS, n_rows - 1)
        start[r] = tiles[tile, TILE_VALUES] + row * dim
        nearest[r] = np.inf
        found[r] = 0
    for first in range(0, n_codewords, GROUP):
        for r in range(ROWS):
            for k in range(GROUP):
                totals[r, k] = 0.0
        for column in range(0, dim, COLUMNS):
            width = min(COLUMNS, dim - column)
            cuda.syncthreads()  # nobody reads the codewords before these any more
            _stage(words, slots[slot, SLOT_WORDS], dim, n_codewords, first, column, width, staged)
            cuda.syncthreads()
            for j in range(width):
                for r in range(ROWS):
                    x = np.float64(values[start[r] + column + j])
                    for k in range(GROUP):
                        difference = x - staged[j, k]
                        totals[r, k] = plus(totals[r, k], times(difference, difference))
        for r in range(ROWS):
            for k in range(GROUP):
                if totals[r, k] < nearest[r]:
                    nearest[r] = totals[r, k]
                    found[r] = first + k
    for r in range(ROWS):
        row = thread + r * THREADS
        if row < n_rows:
            codes[tiles[tile, TILE_FIRST] + row] = found[r]
            if len(distances) > 0:
                distances[tiles[tile, TILE_FIRST] + row] = nearest[r]


@_device
def _stage(
    words: Any,
    first_word: Any,
    dim: Any,
    n_codewords: Any,
    first: Any,
    column: Any,
    width: Any,
    staged: Any,  # OUT float64 (COLUMNS, GROUP), shared
) -> None:
    """Write `width` columns of a group of codewords.

    Places beyond the last codeword repeat it: that is a tie, which the higher place loses.
    """
    for j in range(np.int64(cuda.threadIdx.x), width, THREADS):
        for k in range(GROUP):
            word = min(first + k, n_codewords - 1)
            staged[j, k] = np.float64(words[first_word + word * dim + column + j])


@_kernel
def accumulate_f32(
    tiles: Any,  # IN  int64 (n_tiles, TILE_COLUMNS)
    slots: Any,  # IN  int64 (n_slots, SLOT_FIELDS)
    values: Any,  # IN  float32, flat: rows
    weights: Any,  # IN  float64 (n_rows); empty where no field is weighted
    column_scales: Any,  # IN  float64, flat: 2^s_j
    weight_scales: Any,  # IN  float64 (n_slots): 2^t
    codes: Any,  # IN  uint32 (n_rows)
    sums: Any,  # INOUT int64 (n_copies, words); high limbs of wide slots
    sums_low: Any,  # INOUT int64 (n_copies, words); (1, 1) where no slot is wide
    weight_sums: Any,  # INOUT int64 (n_copies, codewords)
    weight_sums_low: Any,  # INOUT int64 (n_copies, codewords); (1, 1) where no slot is wide
    counts: Any,  # INOUT int64 (n_copies, codewords)
) -> None:
    """Add rint(w x_j 2^s_j) and rint(w 2^t) of each row to the sums of its codeword.

    Neighbouring threads take neighbouring values, which are read and added side by side. Blocks
    spread over copies of the sums, because additions to one place wait for each other.
    """
    tile = np.int64(cuda.blockIdx.x)
    if tile >= len(tiles):
        return
    copy = tile % len(sums)
    slot = tiles[tile, TILE_SLOT]
    n_rows = tiles[tile, TILE_ROWS]
    first_weight = tiles[tile, TILE_WEIGHTS]
    first_row = tiles[tile, TILE_FIRST]
    dim = slots[slot, SLOT_DIM]
    wide = slots[slot, SLOT_WIDE]
    thread = np.int64(cuda.threadIdx.x)
    for i in range(thread, n_rows, THREADS):
        at = slots[slot, SLOT_COUNTS] + np.int64(codes[first_row + i])
        weight = weights[first_weight + i] if first_weight >= 0 else 1.0
        term = rint(times(weight, weight_scales[slot]))
        cuda.atomic.add(counts, (copy, at), 1)
        if wide:
            _add_limbs(term, weight_sums, weight_sums_low, copy, at)
        else:
            cuda.atomic.add(weight_sums, (copy, at), np.int64(term))
    for element in range(thread, n_rows * dim, THREADS):
        i = element // dim
        j = element - i * dim
        at = slots[slot, SLOT_WORDS] + np.int64(codes[first_row + i]) * dim + j
        weight = weights[first_weight + i] if first_weight >= 0 else 1.0
        x = np.float64(values[tiles[tile, TILE_VALUES] + element])
        term = rint(times(times(x, weight), column_scales[slots[slot, SLOT_SCALES] + j]))
        if wide:
            _add_limbs(term, sums, sums_low, copy, at)
        else:
            cuda.atomic.add(sums, (copy, at), np.int64(term))


@_device
def _add_limbs(term: Any, high: Any, low: Any, copy: Any, at: Any) -> None:
    """Add a whole float64 to the limbs high·2³² + low, 0 ≤ low term < 2³²."""
    limb = floor(times(term, PER_LIMB))
    cuda.atomic.add(high, (copy, at), np.int64(limb))
    cuda.atomic.add(low, (copy, at), np.int64(plus(term, -times(limb, LIMB))))


@_kernel
def carry_limbs(
    high: Any,  # INOUT int64 (n_copies, n)
    low: Any,  # INOUT int64 (n_copies, n)
) -> None:
    """Bring the low limbs below 2³² again, the values high·2³² + low being the same."""
    at = np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)
    if at < low.shape[1]:
        for copy in range(low.shape[0]):
            high[copy, at] += low[copy, at] >> LIMB_BITS
            low[copy, at] &= LOW_MASK


# Every kernel, with the types of its arguments, so that all can be compiled before they are needed.
KERNELS: tuple[tuple[Any, str], ...] = (
    (
        assign_f32,
        "void(int64[:, ::1], int64[:, ::1], float32[::1], float32[::1], uint32[::1], float64[::1])",
    ),
    (
        accumulate_f32,
        "void(int64[:, ::1], int64[:, ::1], float32[::1], float64[::1], float64[::1], float64[::1],"
        " uint32[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[:, ::1])",
    ),
    (carry_limbs, "void(int64[:, ::1], int64[:, ::1])"),
)
