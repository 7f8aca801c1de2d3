"""Sums of kept rows from those of the last pass: only rows whose code changed are added up.

Sums are of integers, so that taking a row off one codeword's and adding it to another's leaves what
adding all rows anew would give, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from saec_gpu.backends.cpu_skipping import COLUMNS
from saec_gpu.backends.cpu_tiles import (
    SLOT_COLUMNS,
    SLOT_DIM,
    SLOT_SCORES,
    SLOT_WORDS,
    TILE_CODES,
    TILE_ROWS,
    TILE_SLOT,
    TILE_VALUES,
    TILE_WEIGHTS,
)
from saec_gpu.backends.simd import (
    add_int,
    broadcast,
    load,
    mul,
    rounded,
    store,
    sub_int,
    take_next,
    widen,
)
from saec_gpu.compiled import compiled
from saec_gpu.data import FixedPoint, Int64


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of one field's kept rows by codeword, in one limb.

    Attributes
    ----------
    fixed_point : FixedPoint
        Of these sums, and of no other.
    sums : int64 (k * dim,)
    weight_sums, counts : int64 (k,)
    """

    fixed_point: FixedPoint
    sums: Int64
    weight_sums: Int64
    counts: Int64

    def fits(self, fixed_point: FixedPoint | None, n_codewords: int) -> bool:
        """Return whether the next pass can go on from these sums."""
        return fixed_point is self.fixed_point and n_codewords == len(self.counts)


@compiled
def run_changes(
    counter: Any,  # INOUT int64 (1): tiles handed out so far, shared by all threads
    tiles: Any,  # IN  int64 (n_tiles, TILE_COLUMNS)
    slots: Any,  # IN  int64 (n_slots, SLOT_FIELDS)
    values: Any,  # IN  float32, flat
    weights: Any,  # IN  float64
    column_scales: Any,  # IN  float64: 2^s_j
    weight_scales: Any,  # IN  float64 (n_slots): 2^t
    codes: Any,  # IN  uint32
    former: Any,  # IN  uint32: codes of the last pass
    sums: Any,  # INOUT int64, flat as words; this thread's own, as all that follows
    weight_sums: Any,  # INOUT int64, flat as scores
    counts: Any,  # INOUT int64, flat as scores
) -> None:
    """Take tiles until none is left: bring rows whose code changed from one sum to another."""
    while True:
        tile = take_next(counter)
        if tile >= len(tiles):
            return
        slot, first_code = tiles[tile, TILE_SLOT], tiles[tile, TILE_CODES]
        dim, column = slots[slot, SLOT_DIM], slots[slot, SLOT_COLUMNS]
        first_word, first_score = slots[slot, SLOT_WORDS], slots[slot, SLOT_SCORES]
        first_weight = tiles[tile, TILE_WEIGHTS]
        weighted = first_weight >= 0
        by_columns = dim - dim % COLUMNS
        for i in range(tiles[tile, TILE_ROWS]):
            code, before = np.int64(codes[first_code + i]), np.int64(former[first_code + i])
            if code == before:
                continue
            counts[first_score + code] += 1
            counts[first_score + before] -= 1
            weight = 1.0
            if weighted:
                weight = weights[first_weight + i]
                term = np.int64(np.rint(weight * weight_scales[slot]))
                weight_sums[first_score + code] += term
                weight_sums[first_score + before] -= term
            row = tiles[tile, TILE_VALUES] + i * dim
            to, off = first_word + code * dim, first_word + before * dim
            for j in range(0, by_columns, COLUMNS):
                x = widen(load(COLUMNS, values, row + j))
                if weighted:
                    x = mul(x, broadcast(COLUMNS, weights, first_weight + i))
                terms = rounded(mul(x, load(COLUMNS, column_scales, column + j)))
                store(sums, to + j, add_int(load(COLUMNS, sums, to + j), terms))
                store(sums, off + j, sub_int(load(COLUMNS, sums, off + j), terms))
            for j in range(by_columns, dim):
                x_of_column = np.float64(values[row + j])
                if weighted:
                    x_of_column *= weight
                term = np.int64(np.rint(x_of_column * column_scales[column + j]))
                sums[to + j] += term
                sums[off + j] -= term
