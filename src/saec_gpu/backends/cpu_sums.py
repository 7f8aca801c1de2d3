"""Fixed-point sums of rows on the CPU, in one int64 limb or in two (DEFINITIONS B)."""

from __future__ import annotations

from typing import Any

import numpy as np

from saec_gpu.backends.simd import add_int, broadcast, load, mul, rounded, store, widen
from saec_gpu.compiled import inlined

LIMB = 4294967296.0  # 2³²


def _add_columns(lanes: int) -> Any:
    """Return a function that adds `lanes` columns of rows to the sums of their codewords.

    Rows are its inner loop: what belongs to the columns stays in registers.
    """

    @inlined
    def add_columns(
        values: Any,
        row: Any,
        n_rows: Any,
        dim: Any,
        weighted: Any,
        weights: Any,
        first_weight: Any,
        column_scales: Any,
        column: Any,
        codes: Any,
        first_code: Any,
        first_word: Any,
        sums: Any,
        j: Any,
    ) -> None:
        scales = load(lanes, column_scales, column + j)
        for i in range(n_rows):
            at = first_word + np.int64(codes[first_code + i]) * dim + j
            x = widen(load(lanes, values, row + i * dim + j))
            if weighted:
                x = mul(x, broadcast(lanes, weights, first_weight + i))
            store(sums, at, add_int(load(lanes, sums, at), rounded(mul(x, scales))))

    return add_columns


WIDE_SUMS, NARROW_SUMS = 32, 8
_add_columns_wide = _add_columns(WIDE_SUMS)
_add_columns_narrow = _add_columns(NARROW_SUMS)


@inlined
def add_rows(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    weighted: Any,
    weights: Any,
    first_weight: Any,
    column_scales: Any,  # IN  float64, flat: 2^s_j at column + j
    column: Any,
    weight_scale: Any,  # 2^t
    codes: Any,
    first_code: Any,
    first_word: Any,
    first_score: Any,
    sums: Any,  # INOUT int64, flat
    weight_sums: Any,
    counts: Any,
) -> None:
    """Add rint(w x_j 2^s_j) of rows to the sums of their codewords, and rint(w 2^t) if weighted."""
    for i in range(n_rows):
        code = first_score + np.int64(codes[first_code + i])
        counts[code] += 1
        if weighted:
            weight_sums[code] += np.int64(np.rint(weights[first_weight + i] * weight_scale))
    done = 0
    while dim - done >= WIDE_SUMS:
        _add_columns_wide(
            values, row, n_rows, dim, weighted, weights, first_weight, column_scales, column,
            codes, first_code, first_word, sums, done,
        )  # fmt: skip
        done += WIDE_SUMS
    while dim - done >= NARROW_SUMS:
        _add_columns_narrow(
            values, row, n_rows, dim, weighted, weights, first_weight, column_scales, column,
            codes, first_code, first_word, sums, done,
        )  # fmt: skip
        done += NARROW_SUMS
    for j in range(done, dim):
        scale = column_scales[column + j]
        for i in range(n_rows):
            x = np.float64(values[row + i * dim + j])
            if weighted:
                x *= weights[first_weight + i]
            at = first_word + np.int64(codes[first_code + i]) * dim + j
            sums[at] += np.int64(np.rint(x * scale))


@inlined
def _add_limbs(term: Any, high: Any, low: Any, at: Any) -> None:
    """Add a whole float64 to the limbs high[at]·2³² + low[at], 0 ≤ low term < 2³²."""
    limb = np.floor(term / LIMB)
    high[at] += np.int64(limb)
    low[at] += np.int64(term - limb * LIMB)


@inlined
def add_rows_wide(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    weighted: Any,
    weights: Any,
    first_weight: Any,
    column_scales: Any,
    column: Any,
    weight_scale: Any,
    codes: Any,
    first_code: Any,
    first_word: Any,
    first_score: Any,
    sums: Any,  # INOUT int64, flat: high limbs
    sums_low: Any,
    weight_sums: Any,
    weight_sums_low: Any,
    counts: Any,
) -> None:
    """Do what `add_rows` does, in two limbs."""
    for i in range(n_rows):
        code = np.int64(codes[first_code + i])
        counts[first_score + code] += 1
        weight = weights[first_weight + i] if weighted else 1.0
        term = np.rint(weight * weight_scale)
        _add_limbs(term, weight_sums, weight_sums_low, first_score + code)
        for j in range(dim):
            term = np.float64(values[row + i * dim + j]) * weight * column_scales[column + j]
            _add_limbs(np.rint(term), sums, sums_low, first_word + code * dim + j)
