"""The work of one CPU thread: tiles of every field, in the order in which threads come for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from saec_gpu.backends.cpu_filter import exact_distance, find_codes
from saec_gpu.backends.cpu_sums import add_rows, add_rows_wide
from saec_gpu.backends.simd import take_next
from saec_gpu.compiled import compiled, inlined

# columns of the tile table
(
    TILE_SLOT,
    TILE_ROWS,
    TILE_VALUES,
    TILE_WEIGHTS,
    TILE_CODES,
    TILE_BOUNDS,  # of kept rows: their bounds, else -1
    TILE_DRIFTS,
    TILE_KNOWN,
    TILE_FOUND,  # whether the codes are there already
    TILE_LISTED,  # of kept rows: how many are left to the first pass, if not EVERY row
) = range(10)
TILE_COLUMNS = 10
EVERY = -1
# columns of the slot table: one slot is one field's codebook
(
    SLOT_DIM,
    SLOT_CODEWORDS,
    SLOT_PANEL,
    SLOT_SCORES,
    SLOT_WORDS,
    SLOT_COLUMNS,
    SLOT_WIDE,
) = range(7)
SLOT_FIELDS = 7


@inlined
def _measure(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    words: Any,
    first_word: Any,
    codes: Any,
    first_code: Any,
    distances: Any,  # OUT float64, at first_code
) -> None:
    """Write the exact distance of each row to the codeword of its code."""
    for i in range(n_rows):
        word = first_word + np.int64(codes[first_code + i]) * dim
        distances[first_code + i] = exact_distance(values, row + i * dim, words, word, dim)


@compiled
def run_tiles(
    counter: Any,  # INOUT int64 (1): tiles handed out so far, shared by all threads
    tiles: Any,  # IN  int64 (n_tiles, TILE_COLUMNS)
    slots: Any,  # IN  int64 (n_slots, SLOT_FIELDS)
    factors: Any,  # IN  float32 (n_slots, 2): scale of the filter, A
    values: Any,  # IN  float32, flat
    weights: Any,  # IN  float64
    panels: Any,  # IN  float32, flat
    scores: Any,  # IN  float32
    order: Any,  # IN  int64, flat as scores: codewords stand by number
    centres: Any,  # IN  float32
    words: Any,  # IN  float32, flat: the codewords themselves
    column_scales: Any,  # IN  float64: 2^s_j
    weight_scales: Any,  # IN  float64 (n_slots): 2^t
    codes: Any,  # OUT uint32, IN where found
    distances: Any,  # OUT float64; empty when not asked for
    accumulate: Any,
    sums: Any,  # INOUT int64, flat as words; this thread's own, as all that follows
    sums_low: Any,  # INOUT int64, flat as words: low limbs of wide slots
    weight_sums: Any,  # INOUT int64, flat as scores
    weight_sums_low: Any,  # INOUT int64, flat as scores
    counts: Any,  # INOUT int64, flat as scores
    rechecked: Any,  # INOUT int64 (n_slots): rows the filter did not prove
    block: Any,  # scratch float32 (max dim * ROW_LANES)
    lane_codes: Any,  # scratch int32 (ROW_LANES)
    leads: Any,  # scratch float32 (LEADS * ROW_LANES)
) -> None:
    """Take tiles until none is left: find codes, then distances and sums as asked."""
    while True:
        tile = take_next(counter)
        if tile >= len(tiles):
            return
        slot = tiles[tile, TILE_SLOT]
        n_rows = tiles[tile, TILE_ROWS]
        first_value = tiles[tile, TILE_VALUES]
        first_weight = tiles[tile, TILE_WEIGHTS]
        first_code = tiles[tile, TILE_CODES]
        dim = slots[slot, SLOT_DIM]
        n_codewords = slots[slot, SLOT_CODEWORDS]
        panel = slots[slot, SLOT_PANEL]
        first_score = slots[slot, SLOT_SCORES]
        first_word = slots[slot, SLOT_WORDS]
        column = slots[slot, SLOT_COLUMNS]
        wide = slots[slot, SLOT_WIDE]
        if not tiles[tile, TILE_FOUND]:
            rechecked[slot] += find_codes(
                values, first_value, n_rows, dim, factors[slot, 0], factors[slot, 1], centres,
                column, panels, panel, scores, first_score, order, words, first_word, n_codewords,
                codes, first_code, block, lane_codes, leads,
            )  # fmt: skip
        if len(distances):
            _measure(
                values, first_value, n_rows, dim, words, first_word, codes, first_code, distances
            )  # fmt: skip
        if accumulate and not wide:
            add_rows(
                values, first_value, n_rows, dim, first_weight >= 0, weights, first_weight,
                column_scales, column, weight_scales[slot], codes, first_code, first_word,
                first_score, sums, weight_sums, counts,
            )  # fmt: skip
        elif accumulate:
            add_rows_wide(
                values, first_value, n_rows, dim, first_weight >= 0, weights, first_weight,
                column_scales, column, weight_scales[slot], codes, first_code, first_word,
                first_score, sums, sums_low, weight_sums, weight_sums_low, counts,
            )  # fmt: skip
