"""Nearest codewords on the CPU: a float32 filter that proves its winners, and the definition.

A block of ROW_LANES rows is scaled, centred and transposed, so that one vector holds one column of
the block. With y and e the centred row and codeword (float32), codewords are ranked by

    score_k = h_k + Σ_j y_j e_kj,   h_k = −|e_k|²/2 + A |e_k|²,   A = SLACK (d + 10) 2⁻²⁴

whose first part is largest for the nearest codeword. Let u = 2⁻²⁴, Y and E the exact scaled and
centred row and codeword, T_k = Y·E_k − |E_k|²/2. The scale is a power of two and `fma` rounds once,
so |y − Y| ≤ u|y| and |e − E| ≤ u|e|, and

    |y·e − Y·E| ≤ 2.01 u|y||e|            ||e|²/2 − |E|²/2| ≤ 1.01 u|e|²
    rounding of h_k and of the d fma:      (d + 1) u (|e|²/2 + |y||e|)(1 + du)
    the tag in the two lowest bits:        6 u (|e|²/2 + |y||e|)

Together, with 2|y||e| ≤ |y|² + |e|²:  |score_k − A|e_k|² − T_k| ≤ A (|e_k|² + |y|²/2). The float64
distance of the definition differs from the real one by at most (d + 3) 2⁻⁵³ of itself, 2²⁹ times
less; SLACK holds that too. A |e_k|² is already in the score; so, for the best score's codeword w,

    T_k ≤ score_k + A|y|²/2      T_w ≥ score_w − 2A|e_w|² − A|y|²/2

and w is proved when score_w − score_k > 2A|e_w|² + A|y|² for every other k. Each codeword carries
its own share of the bound in its score: far and large codewords do not blur rows near the centre,
and one comparison with the second best score does it. |e_w| is not looked up: |e_w|² ≤ 2|y|² +
2|y − e_w|² and |y − e_w|² = |y|² − 2T_w give

    2A|e_w|² + A|y|² ≤ A (9|y|² − 8 score_w)

FLOOR stands for what falls below the smallest float32: d products of at most 2⁻¹⁴⁹ each and centred
values rounded to multiples of 2⁻¹⁴⁹, times values of order one. Centred codewords are of order one,
so a score can overflow only where |y|² does too; then the bound is infinite or NaN and nothing is
above it.

A row that is not proved is decided by the definition among the codewords that the same bound cannot
exclude. Their scores are computed again, by the same operations in the same order: the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saec_gpu.backends.simd import (
    ROW_LANES,
    TRANSPOSE,
    add_int,
    broadcast,
    centre_transposed,
    fma,
    greater,
    larger,
    load,
    lowest_bit,
    pick,
    smaller,
    splat,
    store,
    sub,
    tagged,
    tags,
    unproved_lanes,
)
from saec_gpu.compiled import inlined

PANEL = 16  # codewords that stand side by side in memory
LEADS = 4  # what `rank` tells of each row
GROUP = 4  # codewords between two updates of the best one's place: as many as a tag tells apart
# Two codewords of 64 rows are 8 sums in wide registers, as many as a fused multiply-add takes long,
# and the products of the next two are found while the maxima of these are taken; of 16 rows two are
# 4, which wait for each other.
FOUR_AT_ONCE = ROW_LANES < 64
WORST = np.float32(-3e38)  # below every score
SLACK = 1.02  # the terms of higher order, and the roundings of the bound itself
UNIT_ROUNDOFF = 2.0**-24
FLOOR = np.float32(2.0**-120)


def bound_factor(dim: int) -> float:
    """Return A of the filter's bound."""
    return SLACK * (dim + 10) * UNIT_ROUNDOFF


@inlined
def _score_two(block: Any, dim: Any, panels: Any, at: Any, scores: Any, score: Any) -> Any:
    """Return the scores of two neighbouring codewords for every row of the block."""
    s0 = broadcast(ROW_LANES, scores, score)
    s1 = broadcast(ROW_LANES, scores, score + 1)
    for j in range(dim):
        y = load(ROW_LANES, block, j * ROW_LANES)
        s0 = fma(y, broadcast(ROW_LANES, panels, at), s0)
        s1 = fma(y, broadcast(ROW_LANES, panels, at + 1), s1)
        at += PANEL
    return s0, s1


@inlined
def _score_four(block: Any, dim: Any, panels: Any, at: Any, scores: Any, score: Any) -> Any:
    """Return the scores of four neighbouring codewords for every row of the block."""
    s0 = broadcast(ROW_LANES, scores, score)
    s1 = broadcast(ROW_LANES, scores, score + 1)
    s2 = broadcast(ROW_LANES, scores, score + 2)
    s3 = broadcast(ROW_LANES, scores, score + 3)
    for j in range(dim):
        y = load(ROW_LANES, block, j * ROW_LANES)
        s0 = fma(y, broadcast(ROW_LANES, panels, at), s0)
        s1 = fma(y, broadcast(ROW_LANES, panels, at + 1), s1)
        s2 = fma(y, broadcast(ROW_LANES, panels, at + 2), s2)
        s3 = fma(y, broadcast(ROW_LANES, panels, at + 3), s3)
        at += PANEL
    return s0, s1, s2, s3


@inlined
def _bound(norms: Any, best: Any, factor: Any) -> Any:
    """Return the lead over the second best score that proves a winner (see the module's text)."""
    n_lanes = ROW_LANES
    by_score = fma(splat(n_lanes, np.float32(-8.0) * factor), best, splat(n_lanes, FLOOR))
    return fma(splat(n_lanes, np.float32(9.0) * factor), norms, by_score)


@inlined
def rank(
    block: Any,  # IN  float32 (dim, ROW_LANES), flat: centred rows, transposed
    dim: Any,
    panels: Any,  # IN  float32, flat: [codewords / PANEL][dim][PANEL] from `panel`
    panel: Any,
    scores: Any,  # IN  float32, flat: h of codeword k at first_score + k
    first_score: Any,
    n_codewords: Any,
    factor: Any,  # A
    codes: Any,  # OUT int32 (ROW_LANES)
    leads: Any,  # OUT float32 (LEADS, ROW_LANES), flat: best score, bound, second best score, |y|²
    keep: Any,  # whether `tops` is written
    tops: Any,  # OUT float32 (codewords / GROUP, ROW_LANES), flat: best score of each group
) -> Any:
    """Write the best codeword of each row; return the bit set of rows where it is not proved."""
    best = splat(ROW_LANES, WORST)
    second = splat(ROW_LANES, WORST)
    index = splat(ROW_LANES, np.int32(0))
    # Each score carries its place in its group in its lowest bits, so that maxima and minima move
    # both at once: a comparison takes the place of a fused multiply-add, a maximum does not.
    for first in range(0, n_codewords, GROUP):
        score = first_score + first
        at = panel + (first // PANEL) * PANEL * dim + first % PANEL
        if FOUR_AT_ONCE:
            s0, s1, s2, s3 = _score_four(block, dim, panels, at, scores, score)
        else:
            s0, s1 = _score_two(block, dim, panels, at, scores, score)
        s0, s1 = tagged(s0, 0), tagged(s1, 1)
        left = larger(s0, s1)
        second = larger(second, smaller(s0, s1))
        if not FOUR_AT_ONCE:
            s2, s3 = _score_two(block, dim, panels, at + 2, scores, score + 2)
        s2, s3 = tagged(s2, 2), tagged(s3, 3)
        right = larger(s2, s3)
        second = larger(second, smaller(s2, s3))
        top = larger(left, right)
        second = larger(second, smaller(left, right))
        second = larger(second, smaller(best, top))
        index = pick(greater(top, best), splat(ROW_LANES, np.int32(first)), index)
        best = larger(best, top)
        if keep:
            store(tops, (first // GROUP) * ROW_LANES, top)
    norms = splat(ROW_LANES, np.float32(0.0))
    for j in range(dim):
        y = load(ROW_LANES, block, j * ROW_LANES)
        norms = fma(y, y, norms)
    bound = _bound(norms, best, factor)
    store(codes, 0, add_int(index, tags(best)))
    store(leads, 0, best)
    store(leads, ROW_LANES, bound)
    store(leads, 2 * ROW_LANES, second)
    store(leads, 3 * ROW_LANES, norms)
    return unproved_lanes(greater(sub(best, second), bound))


@inlined
def exact_distance(values: Any, row: Any, words: Any, word: Any, dim: Any) -> Any:
    """Return Σ_j (f64(x_j) − f64(c_j))², j ascending, every operation rounded on its own."""
    total = 0.0
    for j in range(dim):
        difference = np.float64(values[row + j]) - np.float64(words[word + j])
        total += difference * difference
    return total


@inlined
def decide(
    block: Any,
    lane: Any,
    best: Any,
    bound: Any,
    values: Any,
    row: Any,
    dim: Any,
    panels: Any,
    panel: Any,
    scores: Any,
    first_score: Any,
    order: Any,  # IN  int64: which codeword stands at place k of the panels, at first_score + k
    words: Any,
    word: Any,
    n_codewords: Any,
) -> Any:
    """Return one row's code by the definition, among the codewords its bound cannot exclude."""
    nearest, code = np.inf, np.int64(0)
    lead = splat(PANEL, bound)
    top = splat(PANEL, best)
    for first in range(0, n_codewords, PANEL):
        score = load(PANEL, scores, first_score + first)
        at = panel + first * dim
        for j in range(dim):
            y = broadcast(PANEL, block, j * ROW_LANES + lane)
            score = fma(y, load(PANEL, panels, at), score)
            at += PANEL
        possible = unproved_lanes(greater(sub(top, score), lead))
        while possible:
            k = first + lowest_bit(possible)
            possible &= possible - np.uint64(1)
            if k < n_codewords:
                k = order[first_score + k]
                distance = exact_distance(values, row, words, word + k * dim, dim)
                if distance < nearest or (distance == nearest and k < code):
                    nearest, code = distance, k
    return code


@inlined
def fill_block(
    values: Any,  # IN  float32, flat: rows of `dim` from `row`
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    centres: Any,  # IN  float32, flat: scaled centre of column j at column + j
    column: Any,
    block: Any,  # OUT float32 (dim, ROW_LANES), flat
) -> None:
    """Write up to ROW_LANES rows, scaled, centred and transposed; missing rows repeat the last."""
    by_squares = dim - dim % TRANSPOSE if n_rows == ROW_LANES else 0
    for j in range(0, by_squares, TRANSPOSE):
        for i in range(0, ROW_LANES, TRANSPOSE):
            start = row + i * dim + j
            at = j * ROW_LANES + i
            centre_transposed(values, start, dim, scale, centres, column + j, block, at)
    for j in range(by_squares, dim):
        shift = centres[column + j]
        for i in range(ROW_LANES):
            lane = i if i < n_rows else n_rows - 1
            value = values[row + lane * dim + j]
            # exact: the product is by a power of two, and the sum of two float32 in float64 is
            # rounded again only by the cast, as in fma (53 ≥ 2·24 + 2 bits)
            block[j * ROW_LANES + i] = np.float32(
                np.float64(value) * np.float64(scale) - np.float64(shift)
            )


@inlined
def find_codes(
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
    order: Any,  # IN  int64: codewords stand by number
    words: Any,
    first_word: Any,
    n_codewords: Any,
    codes: Any,  # OUT uint32: codes of the rows from first_code
    first_code: Any,
    block: Any,  # scratch
    lane_codes: Any,  # scratch
    leads: Any,  # scratch
) -> Any:
    """Write the codes of rows, block by block; return how many the filter did not prove."""
    rechecked = 0
    for start in range(0, n_rows, ROW_LANES):
        lanes = n_rows - start
        if lanes > ROW_LANES:
            lanes = ROW_LANES
        at = row + start * dim
        fill_block(values, at, lanes, dim, scale, centres, column, block)
        unproved = rank(
            block, dim, panels, panel, scores, first_score, n_codewords, factor, lane_codes, leads,
            False, leads,
        )  # fmt: skip
        while unproved:
            lane = lowest_bit(unproved)
            unproved &= unproved - np.uint64(1)
            if lane < lanes:
                lane_codes[lane] = decide(
                    block, lane, leads[lane], leads[ROW_LANES + lane], values, at + lane * dim,
                    dim, panels, panel, scores, first_score, order, words, first_word, n_codewords,
                )  # fmt: skip
                rechecked += 1
        for lane in range(lanes):
            codes[first_code + start + lane] = lane_codes[lane]
    return rechecked
