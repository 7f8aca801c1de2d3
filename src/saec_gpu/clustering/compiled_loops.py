"""The loops of statistics, seeding, repair and stopping.

Each is a plain loop in ascending order, because DEFINITIONS fixes the order of every float64 sum;
np.sum adds in pairs and would give other bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saec_gpu.compiled import compiled


@compiled
def column_ranges(
    rows: Any,  # IN  float32 (n, dim)
    minimum: Any,  # INOUT float32 (dim)
    maximum: Any,  # INOUT float32 (dim)
) -> int:
    """Widen the columns' ranges by these rows; return the first row that is not finite, or −1."""
    n_rows, dim = rows.shape
    for i in range(n_rows):
        finite = np.float32(0.0)
        for j in range(dim):
            x = rows[i, j]
            finite += x * np.float32(0.0)  # NaN for NaN and for infinity, else 0
            if x < minimum[j]:
                minimum[j] = x
            if x > maximum[j]:
                maximum[j] = x
        if finite != np.float32(0.0):
            return i
    return -1


@compiled
def first_not_finite(rows: Any) -> int:
    """Return the first row of float32 (n, dim) that holds NaN or infinity, or −1."""
    n_rows, dim = rows.shape
    for i in range(n_rows):
        finite = np.float32(0.0)
        for j in range(dim):
            finite += rows[i, j] * np.float32(0.0)  # NaN for NaN and for infinity, else 0
        if finite != np.float32(0.0):
            return i
    return -1


@compiled
def collect_distinct(
    rows: Any,  # IN  float32 (n, dim)
    bits: Any,  # IN  uint32 (n, dim): bits of the rows, −0.0 written as 0.0
    limit: int,
    found: Any,  # INOUT float32 (at least limit + 1, dim): distinct rows, first bits seen
    n_found: int,
    places: Any,  # INOUT int64 (power of two, over 2 (limit + 1)): place in found, or −1
) -> int:
    """Return the number of distinct rows so far; stops once there are more than limit."""
    mask = len(places) - 1
    n_rows, dim = rows.shape
    for i in range(n_rows):
        hashed = np.uint64(14695981039346656037)  # FNV-1a, on words instead of bytes
        for j in range(dim):
            hashed = (hashed ^ np.uint64(bits[i, j])) * np.uint64(1099511628211)
        place = np.int64((hashed ^ (hashed >> np.uint64(32))) & np.uint64(mask))
        while places[place] >= 0:
            equal = True
            for j in range(dim):
                if found[places[place], j] != rows[i, j]:
                    equal = False
                    break
            if equal:
                break
            place = (place + 1) & mask
        if places[place] < 0:
            places[place] = n_found
            for j in range(dim):
                found[n_found, j] = rows[i, j]
            n_found += 1
            if n_found > limit:
                return n_found
    return n_found


SEED_BLOCK = 512  # distances of one block of sample rows stay in the first cache


@compiled
def lower_distances(
    columns: Any,  # IN  float32 (dim, m): the sample, transposed
    codeword: Any,  # IN  float32 (dim)
    least: Any,  # INOUT float64 (m)
) -> None:
    """Lower each sample row's least distance by its distance to one more codeword."""
    dim, n_rows = columns.shape
    distances = np.empty(SEED_BLOCK)
    for first in range(0, n_rows, SEED_BLOCK):
        size = n_rows - first
        if size > SEED_BLOCK:
            size = SEED_BLOCK
        for i in range(size):
            distances[i] = 0.0
        for j in range(dim):
            c = np.float64(codeword[j])
            for i in range(size):
                difference = np.float64(columns[j, first + i]) - c
                distances[i] += difference * difference
        for i in range(size):
            if distances[i] < least[first + i]:
                least[first + i] = distances[i]


@compiled
def worst_served(weights: Any, least: Any) -> int:
    """Return the sample row of the greatest ω·least (lowest if several), −1 if that is 0."""
    worst, row = 0.0, -1
    for i in range(len(weights)):
        badness = weights[i] * least[i]
        if badness > worst:
            worst, row = badness, i
    return row


@compiled
def add_by_exponent(
    bits: Any,  # IN    int64 (n): bits of float64 numbers, finite and at least 0
    limbs: Any,  # INOUT int64 (2048, 2): for each exponent the sum of significands, high and low
) -> None:
    """Add the significands of numbers to the sums of their exponents, 32 bits a limb."""
    for i in range(len(bits)):
        exponent = bits[i] >> 52
        significand = bits[i] & 0xFFFFFFFFFFFFF
        if exponent > 0:
            significand |= 1 << 52
        limbs[exponent, 0] += significand >> 32
        limbs[exponent, 1] += significand & 0xFFFFFFFF


@compiled
def limbs_to_float(high: Any, low: Any, out: Any) -> None:
    """Write float64(high·2³² + low), rounded once, to nearest even; 0 ≤ low < 2³²."""
    for i in range(len(high)):
        negative = high[i] < 0
        # magnitude in three 32-bit words: upper (of 64 bits) and lower
        upper, lower = high[i], low[i]
        if negative:
            upper, lower = -upper - (1 if lower else 0), (4294967296 - lower if lower else 0)
        top = np.uint64(upper)
        if top >> np.uint64(32) == np.uint64(0):
            value = np.float64((top << np.uint64(32)) | np.uint64(lower))
        else:
            # 64 leading bits decide the rounding; what is below them only tells ties apart
            spare = np.uint64(0)
            while (top << spare) >> np.uint64(63) == np.uint64(0):
                spare += np.uint64(1)
            rest = np.uint64(32) - spare if spare < np.uint64(32) else np.uint64(0)
            leading = (top << spare) | (np.uint64(lower) >> rest)
            if np.uint64(lower) & ((np.uint64(1) << rest) - np.uint64(1)):
                leading |= np.uint64(1)
            value = np.ldexp(np.float64(leading), 32 - np.int64(spare))
        out[i] = -value if negative else value
