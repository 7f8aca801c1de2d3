"""Codes of rows whose codes of the last pass are known: only what can have changed is looked at.

A row keeps, beside its code, one number for each panel of PANEL codewords: a lower bound of the
distance to every codeword of the panel but its own, as in Yinyang k-means (Ding et al., ICML 2015)
with panels for groups. When codewords move, no bound is touched: it holds the sum of the distances
by which its panel's farthest mover had moved until then (`drifts`), and is compared with what that
sum is now. A row's own distance is computed anew; a panel whose bound is still above it cannot win,
and is passed over. Panels are of codewords near each other (cpu_kept.neighbours_together), so that
few of them are near a row: codeword order[k] stands at place k of the panels. What is left is
looked at panel by panel, and a row for which that does not suffice is looked at as if nothing were
known of it: by the first pass where the field has one (cpu_first_pass), else here (`rank_listed`).

All distances are those of scaled rows, as in cpu_filter; u = 2⁻²⁴, A, y, e, Y, E and T_k are as
there. A code that is kept is the one that the definition gives, because

    D_k² = |Y − E_k|² = |Y|² − 2T_k        T_k ≤ score_k + A|y|²/2 + FLOOR

and, with N the computed |y|², |Y|² ≥ N − (d + 4)uN ≥ N − AN and |y|² ≤ N(1 + A), so that

    D_k² ≥ (N − 2 score_k) − 3AN − 4 FLOOR                               (`lower_distance`)

where SHRINK takes the four roundings of that, each at most u. The distance to the own codeword c is
found from the row as it is: products by the scale are exact, or what is below the smallest float32
is within FLOOR; each difference is rounded once; so the float32 sum of their squares is within A of
itself (`squared_distance`). A panel is passed over only if its bound is above the own distance by
more than SHRINK or GROW leave, 2⁻²² of itself: that is 2³¹ times what the definition's float64
distances of d columns differ from the real ones, divided by d + 3. Sums of drifts are rounded up,
each from the one before, so that the difference of two is not below what was moved between.

No comparison with NaN proves anything, and where |y|² overflows a bound is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saec_gpu.backends.cpu_filter import FLOOR, GROUP, PANEL, WORST, decide, fill_block, rank
from saec_gpu.backends.simd import (
    BITS_SET,
    BYTE,
    N_SET,
    ROW_LANES,
    add,
    add_int,
    broadcast,
    fma,
    greater,
    lanes_maxima,
    lanes_sum,
    larger,
    load,
    lowest_bit,
    mul,
    pick,
    splat,
    square_root,
    store,
    sub,
    unproved_lanes,
    with_lane,
)
from saec_gpu.compiled import inlined

SHRINK = np.float32(1.0 - 2.0**-21)
GROW = np.float32(1.0 + 2.0**-21)
GROUPS = PANEL // GROUP
TOGETHER = 4  # rows whose scores are found at once: they share a panel's loads
COLUMNS = 8  # columns of a row that are taken at once
NOWHERE = np.float32(-np.inf)  # an own distance below every bound: no panel is looked at
MOST_PANELS = 0.5  # of a row's panels; beyond, looking at all of them is faster


def _lower_distance(lanes: int) -> Any:
    """Return a function that bounds distances to codewords of at most these scores from below."""

    @inlined
    def lower_distance(norms: Any, scores: Any, factor: Any) -> Any:
        apart = mul(fma(splat(lanes, np.float32(-2.0)), scores, norms), splat(lanes, SHRINK))
        blur = fma(
            splat(lanes, np.float32(3.0) * factor), norms, splat(lanes, np.float32(4.0) * FLOOR)
        )
        nothing = splat(lanes, np.float32(0.0))
        square = larger(sub(apart, blur), nothing)
        return mul(square_root(square), splat(lanes, SHRINK))

    return lower_distance


_block_lower_distance = _lower_distance(ROW_LANES)
_panel_lower_distance = _lower_distance(PANEL)


@inlined
def squared_distance(values: Any, row: Any, words: Any, word: Any, dim: Any, scale: Any) -> Any:
    """Return the squared distance of a scaled row and codeword, in float32."""
    by_columns = dim - dim % COLUMNS
    squares = splat(COLUMNS, np.float32(0.0))
    for j in range(0, by_columns, COLUMNS):
        # scaled before they are subtracted: the difference of two large ones may overflow
        x = mul(load(COLUMNS, values, row + j), splat(COLUMNS, scale))
        apart = fma(load(COLUMNS, words, word + j), splat(COLUMNS, -scale), x)
        squares = fma(apart, apart, squares)
    total = lanes_sum(squares)
    for j in range(by_columns, dim):
        difference = values[row + j] * scale - words[word + j] * scale
        total += difference * difference
    return total


@inlined
def _upper_distance(
    values: Any, row: Any, words: Any, word: Any, dim: Any, scale: Any, factor: Any
) -> Any:
    """Return a float32 not below the distance of a row to a codeword."""
    total = squared_distance(values, row, words, word, dim, scale)
    return np.sqrt((total + factor * total) + FLOOR) * GROW


@inlined
def _centre_row(
    values: Any, row: Any, dim: Any, scale: Any, centres: Any, column: Any, centred: Any, at: Any
) -> Any:
    """Write a row as the filter sees it, to the bit of `fill_block`; return its |y|²."""
    by_columns = dim - dim % COLUMNS
    squares = splat(COLUMNS, np.float32(0.0))
    for j in range(0, by_columns, COLUMNS):
        shift = sub(splat(COLUMNS, np.float32(0.0)), load(COLUMNS, centres, column + j))
        y = fma(load(COLUMNS, values, row + j), splat(COLUMNS, scale), shift)
        store(centred, at + j, y)
        squares = fma(y, y, squares)
    norm = lanes_sum(squares)
    for j in range(by_columns, dim):
        scaled = np.float64(values[row + j]) * np.float64(scale)
        y_of_column = np.float32(scaled - np.float64(centres[column + j]))
        centred[at + j] = y_of_column
        norm += y_of_column * y_of_column
    return norm


@inlined
def _score_rows(
    centred: Any,
    found: Any,
    i: Any,
    dim: Any,
    panels: Any,
    place: Any,
    scores: Any,
    score: Any,
    places: Any,
    first: Any,
    best: Any,
) -> None:
    """Write the best scores of the codewords of one panel but their own for TOGETHER rows."""
    r0, r1, r2, r3 = found[i], found[i + 1], found[i + 2], found[i + 3]
    s0 = load(PANEL, scores, score)
    s1 = s0
    s2 = s0
    s3 = s0
    for j in range(dim):
        e = load(PANEL, panels, place + j * PANEL)
        s0 = fma(broadcast(PANEL, centred, r0 * dim + j), e, s0)
        s1 = fma(broadcast(PANEL, centred, r1 * dim + j), e, s1)
        s2 = fma(broadcast(PANEL, centred, r2 * dim + j), e, s2)
        s3 = fma(broadcast(PANEL, centred, r3 * dim + j), e, s3)
    c0 = places[r0] - first
    c1 = places[r1] - first
    c2 = places[r2] - first
    c3 = places[r3] - first
    # one unsigned comparison tells whether any of the four has its own codeword here
    if min(np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)) < PANEL:
        s0, s1 = with_lane(s0, c0, WORST), with_lane(s1, c1, WORST)
        s2, s3 = with_lane(s2, c2, WORST), with_lane(s3, c3, WORST)
    store(best, i, lanes_maxima(s0, s1, s2, s3))


@inlined
def _measure_rows(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    factor: Any,
    words: Any,
    first_word: Any,
    codes: Any,
    first_code: Any,
    place: Any,
    first_score: Any,
    own: Any,  # OUT float32 (n_rows)
    places: Any,  # OUT int32 (n_rows): where their codewords stand
    needs: Any,  # OUT int32 (n_rows): zeros
) -> None:
    """Write how far rows are from their own codewords, at most."""
    for i in range(n_rows):
        code = np.int64(codes[first_code + i])
        places[i] = place[first_score + code]
        word = first_word + code * dim
        own[i] = _upper_distance(values, row + i * dim, words, word, dim, scale, factor)
        needs[i] = 0


@inlined
def _passed(own: Any, first: Any, drift: Any, bounds: Any, at: Any) -> Any:
    """Return, of PANEL rows, the mask of those whose bound holds in spite of the drift."""
    limit = mul(add(load(PANEL, own, first), drift), splat(PANEL, GROW))
    return greater(load(PANEL, bounds, at + first), limit)


@inlined
def _list_far_rows(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    centres: Any,
    column: Any,
    n_panels: Any,
    bounds: Any,
    first_bound: Any,
    drifts: Any,
    first_drift: Any,
    centred: Any,  # OUT float32 (n_rows, dim), flat: rows of which a panel is to be looked at
    own: Any,  # INOUT float32 (n_rows)
    norms: Any,  # OUT float32 (n_rows): their |y|²
    needs: Any,  # INOUT int32 (n_rows), zeros at first: bounds that fail
    listed: Any,  # OUT int32 (n_rows)
) -> Any:
    """List rows of which most bounds fail; make the others ready; return how many are listed."""
    for p in range(n_panels):
        drift = splat(PANEL, drifts[first_drift + p])
        at = first_bound + p * n_rows
        for first in range(0, n_rows, PANEL):
            passed = _passed(own, first, drift, bounds, at)
            more = pick(passed, splat(PANEL, np.int32(0)), splat(PANEL, np.int32(1)))
            store(needs, first, add_int(load(PANEL, needs, first), more))
    n_listed = 0
    for i in range(n_rows):
        if needs[i] > MOST_PANELS * n_panels:
            listed[n_listed] = i
            n_listed += 1
            own[i] = NOWHERE
        elif needs[i] > 0:
            at = row + i * dim
            norms[i] = _centre_row(values, at, dim, scale, centres, column, centred, i * dim)
    return n_listed


@inlined
def _find_rows(
    own: Any,
    n_rows: Any,
    drift: Any,
    bounds: Any,
    at: Any,
    found: Any,  # OUT int32 (n_rows + PANEL)
) -> Any:
    """Write which rows one panel's bound fails for, the last one repeated; return how many."""
    n_found = 0
    for first in range(0, n_rows, PANEL):
        possible = unproved_lanes(_passed(own, first, drift, bounds, at))
        for byte in range(0, PANEL, BYTE):
            bits = np.int64((possible >> np.uint64(byte)) & np.uint64(2**BYTE - 1))
            rows = add_int(load(BYTE, BITS_SET, bits * BYTE), splat(BYTE, np.int32(first + byte)))
            store(found, n_found, rows)
            n_found += N_SET[bits]
    while n_found and found[n_found - 1] >= n_rows:
        n_found -= 1
    if n_found:
        for i in range(n_found, n_found + TOGETHER):
            found[i] = found[n_found - 1]
    return n_found


@inlined
def _renew_bounds(
    found: Any,
    n_found: Any,
    best: Any,
    norms: Any,
    factor: Any,
    drift: Any,
    bounds: Any,
    at: Any,
    own: Any,
    lines: Any,
    listed: Any,
    n_listed: Any,
) -> Any:
    """Write one panel's bounds from best scores; list the rows that it may win."""
    # gathered for all rows before any are loaded as vectors: a load of many small stores that have
    # not yet reached the cache has to wait for them
    half = len(lines) // 2
    for i in range(n_found):
        lines[i] = norms[found[i]]
        lines[half + i] = own[found[i]]
    for first in range(0, n_found, PANEL):
        norm = load(PANEL, lines, first)
        lower = _panel_lower_distance(norm, load(PANEL, best, first), factor)
        failed = unproved_lanes(greater(lower, load(PANEL, lines, half + first)))
        store(best, first, mul(add(lower, drift), splat(PANEL, SHRINK)))
        while failed:
            i = first + lowest_bit(failed)
            failed &= failed - np.uint64(1)
            if i < n_found:
                listed[n_listed] = found[i]
                n_listed += 1
                own[found[i]] = NOWHERE
    for i in range(n_found):
        bounds[at + found[i]] = best[i]
    return n_listed


@inlined
def _gather_block(
    values: Any,
    row: Any,
    listed: Any,
    start: Any,
    lanes: Any,
    dim: Any,
    scale: Any,
    centres: Any,
    column: Any,
    block: Any,
) -> None:
    """Do what `fill_block` does, for listed rows."""
    for lane in range(ROW_LANES):
        at = row + listed[start + min(lane, lanes - 1)] * dim
        for j in range(dim):
            scaled = np.float64(values[at + j]) * np.float64(scale)
            block[j * ROW_LANES + lane] = np.float32(scaled - np.float64(centres[column + j]))


@inlined
def _keep_bounds(
    listed: Any,
    start: Any,
    lanes: Any,
    known: Any,  # the rows are listed; else they lie one behind another
    n_codewords: Any,
    factor: Any,
    tops: Any,
    leads: Any,
    drifts: Any,
    first_drift: Any,
    bounds: Any,
    first_bound: Any,
    n_rows: Any,
) -> None:
    """Write the bounds of all panels of a block's rows."""
    n_groups = (n_codewords + GROUP - 1) // GROUP
    norms = load(ROW_LANES, leads, 3 * ROW_LANES)
    for p in range((n_codewords + PANEL - 1) // PANEL):
        top = splat(ROW_LANES, WORST)
        for group in range(p * GROUPS, min(p * GROUPS + GROUPS, n_groups)):
            top = larger(top, load(ROW_LANES, tops, group * ROW_LANES))
        drift = splat(ROW_LANES, drifts[first_drift + p])
        lower = add(_block_lower_distance(norms, top, factor), drift)
        lower = mul(lower, splat(ROW_LANES, SHRINK))
        at = first_bound + p * n_rows
        if not known and lanes == ROW_LANES:
            store(bounds, at + start, lower)
        else:
            store(leads, 0, lower)
            for lane in range(lanes):
                i = listed[start + lane] if known else start + lane
                bounds[at + i] = leads[lane]


@inlined
def list_rows(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    factor: Any,
    centres: Any,
    column: Any,
    panels: Any,
    panel: Any,
    scores: Any,
    first_score: Any,
    place: Any,
    words: Any,
    first_word: Any,
    n_codewords: Any,
    codes: Any,  # IN  uint32: codes of the rows from first_code
    first_code: Any,
    bounds: Any,  # INOUT float32 (panels, n_rows), flat, from first_bound
    first_bound: Any,
    drifts: Any,  # IN  float32: of panel p at first_drift + p
    first_drift: Any,
    centred: Any,  # scratch float32 (rows of a tile * dim)
    own: Any,  # scratch float32 (rows of a tile + PANEL)
    norms: Any,  # scratch float32 (rows of a tile + PANEL)
    places: Any,  # scratch int32 (rows of a tile)
    needs: Any,  # scratch int32 (rows of a tile + PANEL)
    found: Any,  # scratch int32 (rows of a tile + PANEL)
    best: Any,  # scratch float32 (rows of a tile + PANEL)
    lines: Any,  # scratch float32 (2 * (rows of a tile + PANEL))
    listed: Any,  # OUT int32 (rows of a tile)
) -> Any:
    """List rows whose codes may change, and bring the bounds of the others up to date."""
    n_panels = (n_codewords + PANEL - 1) // PANEL
    _measure_rows(
        values, row, n_rows, dim, scale, factor, words, first_word, codes, first_code, place,
        first_score, own, places, needs,
    )  # fmt: skip
    n_listed = _list_far_rows(
        values, row, n_rows, dim, scale, centres, column, n_panels, bounds, first_bound, drifts,
        first_drift, centred, own, norms, needs, listed,
    )  # fmt: skip
    for p in range(n_panels):
        drift = splat(PANEL, drifts[first_drift + p])
        at = first_bound + p * n_rows
        n_found = _find_rows(own, n_rows, drift, bounds, at, found)
        for i in range(0, n_found, TOGETHER):
            _score_rows(
                centred, found, i, dim, panels, panel + p * PANEL * dim, scores,
                first_score + p * PANEL, places, np.int32(p * PANEL), best,
            )  # fmt: skip
        n_listed = _renew_bounds(
            found, n_found, best, norms, factor, drift, bounds, at, own, lines, listed, n_listed
        )
    return n_listed


@inlined
def rank_listed(
    listed: Any,
    n_listed: Any,
    known: Any,  # the rows are listed; else they are the first n_listed
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    factor: Any,
    centres: Any,
    column: Any,
    panels: Any,
    panel: Any,
    scores: Any,
    first_score: Any,
    order: Any,
    words: Any,
    first_word: Any,
    n_codewords: Any,
    codes: Any,  # OUT uint32: codes of the rows from first_code
    first_code: Any,
    bounds: Any,  # OUT float32 (panels, n_rows), flat, from first_bound
    first_bound: Any,
    drifts: Any,
    first_drift: Any,
    block: Any,  # scratch
    lane_codes: Any,  # scratch
    leads: Any,  # scratch
    tops: Any,  # scratch float32 (max groups * ROW_LANES)
) -> Any:
    """Write codes and bounds of rows; return how many rows the filter did not prove."""
    rechecked = 0
    for start in range(0, n_listed, ROW_LANES):
        lanes = min(n_listed - start, ROW_LANES)
        if known:
            _gather_block(
                values, row, listed, start, lanes, dim, scale, centres, column, block
            )  # fmt: skip
        else:
            fill_block(values, row + start * dim, lanes, dim, scale, centres, column, block)
        unproved = rank(
            block, dim, panels, panel, scores, first_score, n_codewords, factor, lane_codes, leads,
            True, tops,
        )  # fmt: skip
        for lane in range(lanes):
            i = listed[start + lane] if known else start + lane
            if (unproved >> np.uint64(lane)) & np.uint64(1):
                # its own codeword may be any: `tops` stays as it is, not below the others' scores
                at = row + i * dim
                codes[first_code + i] = decide(
                    block, lane, leads[lane], leads[ROW_LANES + lane], values, at, dim, panels,
                    panel, scores, first_score, order, words, first_word, n_codewords,
                )  # fmt: skip
                rechecked += 1
            else:
                group = lane_codes[lane] // GROUP
                tops[group * ROW_LANES + lane] = leads[2 * ROW_LANES + lane]
                codes[first_code + i] = order[first_score + lane_codes[lane]]
        _keep_bounds(
            listed, start, lanes, known, n_codewords, factor, tops, leads, drifts, first_drift,
            bounds, first_bound, n_rows,
        )  # fmt: skip
    return rechecked
