"""The codes of kept rows, tile by tile: what one CPU thread does before it adds them up.

Apart from cpu_tiles, so that a machine compiles this only when a fit has passes enough for it.
"""

from __future__ import annotations

from typing import Any

from saec_gpu.backends.cpu_skipping import list_rows, rank_listed
from saec_gpu.backends.cpu_tiles import (
    EVERY,
    SLOT_CODEWORDS,
    SLOT_COLUMNS,
    SLOT_DIM,
    SLOT_PANEL,
    SLOT_SCORES,
    SLOT_WORDS,
    TILE_BOUNDS,
    TILE_CODES,
    TILE_DRIFTS,
    TILE_FOUND,
    TILE_KNOWN,
    TILE_LISTED,
    TILE_ROWS,
    TILE_SLOT,
    TILE_VALUES,
)
from saec_gpu.backends.simd import take_next
from saec_gpu.compiled import compiled


@compiled
def run_kept_tiles(
    counter: Any,  # INOUT int64 (1): tiles handed out so far, shared by all threads
    tiles: Any,  # INOUT int64 (n_tiles, TILE_COLUMNS)
    slots: Any,  # IN  int64 (n_slots, SLOT_FIELDS)
    factors: Any,  # IN  float32 (n_slots, 2): scale of the filter, A
    values: Any,  # IN  float32, flat
    panels: Any,  # IN  float32, flat: codewords as `order` has them
    scores: Any,  # IN  float32: likewise
    order: Any,  # IN  int64, flat as scores: which codeword stands at a place
    place: Any,  # IN  int64, flat as scores: where a codeword stands
    centres: Any,  # IN  float32
    words: Any,  # IN  float32, flat: the codewords themselves
    codes: Any,  # INOUT uint32
    bounds: Any,  # INOUT float32, flat: bounds of rows from the tile's TILE_BOUNDS
    drifts: Any,  # IN  float32, one a panel, from the tile's TILE_DRIFTS
    with_first: Any,  # IN  bool (n_slots): whether rows that are left go to the first pass
    waiting: Any,  # OUT int32, flat as codes: which rows of a tile these are
    rechecked: Any,  # INOUT int64 (n_slots): rows the filter did not prove; this thread's own
    block: Any,  # scratch float32 (max dim * ROW_LANES)
    lane_codes: Any,  # scratch int32 (ROW_LANES)
    leads: Any,  # scratch float32 (LEADS * ROW_LANES)
    tops: Any,  # scratch float32 (max groups * ROW_LANES)
    centred: Any,  # scratch float32 (max values of a tile)
    own: Any,  # scratch float32 (max rows of a tile + PANEL)
    norms: Any,  # scratch float32 (max rows of a tile + PANEL)
    places: Any,  # scratch int32 (max rows of a tile)
    needs: Any,  # scratch int32 (max rows of a tile + PANEL)
    found: Any,  # scratch int32 (max rows of a tile + PANEL)
    best: Any,  # scratch float32 (max rows of a tile + PANEL)
    lines: Any,  # scratch float32 (2 * (max rows of a tile + PANEL))
) -> None:
    """Take tiles until none is left: bring codes and bounds of kept rows up to date."""
    while True:
        tile = take_next(counter)
        if tile >= len(tiles):
            return
        if tiles[tile, TILE_BOUNDS] < 0:
            continue
        slot, n_rows = tiles[tile, TILE_SLOT], tiles[tile, TILE_ROWS]
        known = tiles[tile, TILE_KNOWN] != 0
        listed = waiting[tiles[tile, TILE_CODES] :]
        n_listed = n_rows
        if known:
            n_listed = list_rows(
                values, tiles[tile, TILE_VALUES], n_rows, slots[slot, SLOT_DIM], factors[slot, 0],
                factors[slot, 1], centres, slots[slot, SLOT_COLUMNS], panels,
                slots[slot, SLOT_PANEL], scores, slots[slot, SLOT_SCORES], place, words,
                slots[slot, SLOT_WORDS], slots[slot, SLOT_CODEWORDS], codes,
                tiles[tile, TILE_CODES], bounds, tiles[tile, TILE_BOUNDS], drifts,
                tiles[tile, TILE_DRIFTS], centred, own, norms, places, needs, found, best, lines,
                listed,
            )  # fmt: skip
        if with_first[slot] and n_listed > 0:
            tiles[tile, TILE_FOUND] = 0
            tiles[tile, TILE_LISTED] = n_listed if known else EVERY
            continue
        rechecked[slot] += rank_listed(
            listed, n_listed, known, values, tiles[tile, TILE_VALUES], n_rows,
            slots[slot, SLOT_DIM], factors[slot, 0], factors[slot, 1], centres,
            slots[slot, SLOT_COLUMNS], panels, slots[slot, SLOT_PANEL], scores,
            slots[slot, SLOT_SCORES], order, words, slots[slot, SLOT_WORDS],
            slots[slot, SLOT_CODEWORDS], codes, tiles[tile, TILE_CODES], bounds,
            tiles[tile, TILE_BOUNDS], drifts, tiles[tile, TILE_DRIFTS], block, lane_codes, leads,
            tops,
        )  # fmt: skip
