"""The loops of statistics, seeding, repair and stopping.

Each is a plain loop in ascending order, because DEFINITIONS fixes the order of every float64 sum;
np.sum adds in pairs and would give other bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saec_gpu.compiled import compiled, inlined

EXPONENT_BIAS = 1022  # frexp writes a positive normal number as m·2^e, 1/2 ≤ m < 1


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
            minimum[j] = min(minimum[j], x)
            maximum[j] = max(maximum[j], x)
        if finite != np.float32(0.0):
            return i
    return -1


@compiled
def count_exponents(
    weights: Any,  # IN  float64 (n)
    bits: Any,  # IN  int64 (n): the same memory
    least: float,
    greatest: float,
    counts: Any,  # INOUT int64: number of positive weights by exponent + EXPONENT_BIAS
) -> int:
    """Count the weights' exponents; return the first row whose weight is not allowed, or −1."""
    for i in range(len(weights)):
        weight = weights[i]
        if weight == 0.0:
            continue
        if not least <= weight <= greatest:
            return i
        counts[bits[i] >> 52] += 1
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


@compiled
def weighted_mean(rows: Any, weights: Any, mean: Any) -> None:
    """Write m_j = Σ_i ω_i x_ij / Σ_i ω_i; both sums ascend."""
    n_rows, dim = rows.shape
    total = 0.0
    for i in range(n_rows):
        total += weights[i]
    for j in range(dim):
        mean[j] = 0.0
    for i in range(n_rows):
        for j in range(dim):
            mean[j] += weights[i] * np.float64(rows[i, j])
    for j in range(dim):
        mean[j] /= total


@compiled
def weighted_variance(rows: Any, weights: Any, mean: Any) -> Any:
    """Return V = Σ_j Σ_i ω_i (x_ij − m_j)² / Σ_i ω_i / dim (DEFINITIONS G)."""
    n_rows, dim = rows.shape
    total = 0.0
    for i in range(n_rows):
        total += weights[i]
    columns = np.zeros(dim)
    for i in range(n_rows):
        for j in range(dim):
            difference = np.float64(rows[i, j]) - mean[j]
            columns[j] += weights[i] * (difference * difference)
    spread = 0.0
    for j in range(dim):
        spread += columns[j]
    return spread / total / dim


@compiled
def squared_shift(new: Any, old: Any) -> float:
    """Return Σ_c Σ_j (f64(new) − f64(old))²; the sum over j is its own (DEFINITIONS G)."""
    total = 0.0
    for c in range(new.shape[0]):
        moved = 0.0
        for j in range(new.shape[1]):
            difference = np.float64(new[c, j]) - np.float64(old[c, j])
            moved += difference * difference
        total += moved
    return total


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
        size = min(SEED_BLOCK, n_rows - first)
        for i in range(size):
            distances[i] = 0.0
        for j in range(dim):
            c = np.float64(codeword[j])
            for i in range(size):
                difference = np.float64(columns[j, first + i]) - c
                distances[i] += difference * difference
        for i in range(size):
            least[first + i] = min(least[first + i], distances[i])


@inlined
def _first_above(ascending: Any, bound: float) -> Any:
    """Return the first place above the bound, as np.searchsorted, which takes 3 s to compile."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] > bound:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def draw_seeds(
    columns: Any,  # IN  float32 (dim, m)
    weights: Any,  # IN  float64 (m): ω
    uniforms: Any,  # IN  float64 (k): U(r) of each draw
    chosen: Any,  # OUT int64 (k): sample rows
) -> int:
    """Draw k-means++ seeds, one uniform each; return how many there are (DEFINITIONS D)."""
    dim, n_rows = columns.shape
    least = np.empty(n_rows)
    for i in range(n_rows):
        least[i] = np.inf
    cumulative = np.empty(n_rows)
    codeword = np.empty(dim, np.float32)
    for number in range(len(uniforms)):
        total = 0.0
        for i in range(n_rows):
            total += weights[i] if number == 0 else weights[i] * least[i]
            cumulative[i] = total
        if total == 0.0:
            return number
        row = _first_above(cumulative, uniforms[number] * total)
        chosen[number] = row
        for j in range(dim):
            codeword[j] = columns[j, row]
        lower_distances(columns, codeword, least)
    return len(uniforms)


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
