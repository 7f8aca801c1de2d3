"""A first pass in bytes: it tells, for a fraction of the work, which codewords can be the nearest.

Rows and codewords, scaled and centred as in cpu_filter, are rounded to whole steps of one size;
one instruction multiplies and adds two columns where a fused multiply-add takes one, in lanes half
as wide. With Y and E_k the exact scaled and centred row and codeword, y the float32 row, and one
step as the unit of length,

    q = rint(y), held at ±127    w_k = rint(E_k)    S_k = q·w_k − ⌊|w_k|²/2⌋

S_k is an exact integer, and so is what it tells of the distance between the rounded ones:

    |q − w_k|² = |q|² − 2 S_k + (0 or 1)        | |Y − E_k| − |q − w_k| | ≤ |Y − q| + |E_k − w_k|

the latter by the triangle inequality. Let H = |Y − q| + max_k |E_k − w_k| and B the best S_k: the
nearest codeword is at most √(|q|² − 2B + 1) + H away. Codeword k is farther, and need not be looked
at, if √(|q|² − 2 S_k) − H is above that:

    S_k < (|q|² − G²) / 2        G = √(|q|² − 2B + 1) + 2H

|Y − q| is found row by row from r = y − q, of one rounding a column, and ROUNDED, for |Y − y| ≤
2⁻²⁴|y| and |q| ≤ REACH·|w|, below 2¹². GROW holds the float32 roundings of G, and that the float64
distances of the definition differ by (d + 3) 2⁻⁵³ of themselves from the real ones. The 2 that are
taken off the limit hold the roundings of its own last steps, for |q|² and G² below 2²⁴.

Sums are kept modulo 2¹⁶. Rows are stored as q + 128, without a sign: 128 Σ_j w_kj are taken off
S_k. With C the largest |w_k|, C²/2 are added to every S_k: it is within ±|q| C then, for |q| ≥ C,
and in 16 bits as long as |q| C < MOST_SCORE. Of a row farther out nothing is known; all codewords
are looked at. The step is such that rows REACH times as far out as the farthest codeword are not,
and that the products of two columns are within 16 bits: 255 times the sum of what two w_kj of a
pair, of one sign, come to.

Codewords are looked at in groups of GROUP, by the float32 scores of cpu_filter, and its bound
proves the winner among them, or `decide` finds it. Where too many groups are left, a thread goes on
with cpu_filter alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cpu_filter import FLOOR, PANEL, exact_distance, fill_block
from saec_gpu.backends.cpu_layout import aligned, panels_of
from saec_gpu.backends.cpu_tiles import (
    SLOT_CODEWORDS,
    SLOT_COLUMNS,
    SLOT_DIM,
    SLOT_SCORES,
    SLOT_WORDS,
    TILE_CODES,
    TILE_FOUND,
    TILE_ROWS,
    TILE_SLOT,
    TILE_VALUES,
)
from saec_gpu.backends.simd import (
    BITS_SET,
    N_SET,
    PAIR_BITS,
    ROW_LANES,
    add,
    add_int,
    as_float,
    broadcast,
    dot_bytes,
    fma,
    greater,
    lanes_sum,
    larger,
    load,
    lowest_bit,
    mul,
    narrow,
    nearest,
    paired,
    pick,
    smaller,
    splat,
    square_root,
    store,
    sub,
    take_next,
    unproved_lanes,
)
from saec_gpu.compiled import compiled, inlined
from saec_gpu.data import Float32, Float64, Int64

# one step, steps a unit, H without |Y − q|, the greatest |q|² that is known of, C²/2
STEP, PER_STEP, BLUR, REACH_SQUARE, SHIFT = range(5)
NUMBERS = 5
ROWS = 64  # of a block
GROUP = 8  # codewords that are looked at together
MOST_LISTED = 512  # codewords between two times that distances are found
COLUMNS = 8  # columns of a row that are taken at once
LOWEST = np.int16(-(2**15))  # below every score
REACH = 1.25  # rows up to this many times as far from the centre as the farthest codeword
MOST_SCORE = 2.0**15 - 8
MOST_BYTE, MOST_PAIR = 127, 128
ROUNDED = 2.0**-12
GROW = 1.0 + 2.0**-18
MOST_DIM = 4096
LEAST_NORM = 2.0**-20  # of the farthest codeword, which is of order one unless all but vanish
LEAST_CODEWORDS, LEAST_DIM = 96, 8  # with fewer, the products are not most of the time
MOST_GROUPS = 1 / 3  # of all that may be left to look at
LEAST_SEEN = 1024  # rows that tell of it


@dataclass(frozen=True, eq=False)
class FirstForm:
    """A codebook as the first pass reads it.

    Attributes
    ----------
    words : int8 (k, dim rounded up to pairs)
        w_k.
    biases : int16 (k,)
        What S_k is without q·w_k, modulo 2¹⁶.
    numbers : tuple of NUMBERS float
    """

    words: NDArray[np.int8]
    biases: NDArray[np.int16]
    numbers: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class FirstForms:
    """All codebooks as the first pass reads them, one slot a field; see `run_first_pass`."""

    places: Int64
    numbers: Float32
    pairs: NDArray[np.int16]
    biases: NDArray[np.int16]


def laid_out(forms: Sequence[FirstForm | None], first_scores: Int64, n_scores: int) -> FirstForms:
    """Return forms one behind another, biases where the filter has its scores."""
    by_panel = [None if form is None else panels_of(form.words.view(np.int16)) for form in forms]
    found = [np.zeros(0, np.int16), *(one for one in by_panel if one is not None)]
    all_forms = FirstForms(
        np.full(len(forms), -1),
        np.zeros((len(forms), NUMBERS), np.float32),
        aligned(sum(len(one) for one in found), np.int16),
        np.full(n_scores, LOWEST, np.int16),
    )
    place = 0
    for number, (form, own_pairs) in enumerate(zip(forms, by_panel, strict=True)):
        if form is not None and own_pairs is not None:
            own = slice(first_scores[number], first_scores[number] + len(form.biases))
            all_forms.places[number] = place
            all_forms.numbers[number] = form.numbers
            all_forms.pairs[place : place + len(own_pairs)] = own_pairs
            all_forms.biases[own] = form.biases
            place += len(own_pairs)
    return all_forms


def pays(n_codewords: int, dim: int) -> bool:
    """Return whether this host finds codes of such a codebook faster with a first pass."""
    return PAIR_BITS > 0 and n_codewords >= LEAST_CODEWORDS and dim >= LEAST_DIM


def first_form(codewords: Float64, left_out: NDArray[np.bool_]) -> FirstForm | None:
    """Return the first pass's form of scaled and centred codewords; None if they have none.

    Parameters
    ----------
    codewords : float64 (k, dim)
        E_k.
    left_out : bool (k,)
        Codewords that equal an earlier one.
    """
    n_codewords, dim = codewords.shape
    farthest = np.sqrt(np.einsum("kj,kj->k", codewords, codewords).max())
    if dim > MOST_DIM or not LEAST_NORM < farthest < 1 / LEAST_NORM:
        return None
    by_pairs = np.zeros((n_codewords, dim + dim % 2))
    by_pairs[:, :dim] = codewords
    by_pairs = by_pairs.reshape(n_codewords, -1, 2)
    of_one_sign = max(np.maximum(sign * by_pairs, 0).sum(axis=2).max() for sign in (1, -1))
    # rounding adds √d/2 at most to a norm, and 1 to a pair
    most_norm = np.sqrt(MOST_SCORE / REACH) - np.sqrt(dim) / 2
    step = np.float32(max(farthest / most_norm, of_one_sign / (MOST_PAIR - 1)) * GROW)
    words = np.rint(by_pairs / np.float64(step))
    words[left_out] = 0
    norms = np.einsum("kij,kij->k", words, words)
    shift = norms.max() // 2
    apart = by_pairs[~left_out] / np.float64(step) - words[~left_out]
    blur = np.sqrt(np.einsum("kij,kij->k", apart, apart).max()) * GROW + ROUNDED
    biases = (shift - norms // 2 - (MOST_BYTE + 1) * words.sum(axis=(1, 2))).astype(np.int64)
    biases[left_out] = LOWEST
    reach_square = MOST_SCORE**2 / max(norms.max(), 1)
    return FirstForm(
        words.reshape(n_codewords, -1).astype(np.int8),
        biases.astype(np.int16),
        (step, 1 / step, blur, reach_square, shift),
    )


@inlined
def _is_worth(
    looked_at: Any,  # IN  int64 (n_slots, 2): rows, and groups of codewords for them
    slot: Any,
    n_codewords: Any,
) -> Any:
    """Return whether the pass leaves few enough groups of a field to go on with it."""
    n_rows, n_groups = looked_at[slot, 0], looked_at[slot, 1]
    return n_rows < LEAST_SEEN or GROUP * n_groups <= MOST_GROUPS * n_codewords * n_rows


@inlined
def _whole_steps(y: Any, per_step: Any) -> Any:
    """Return rint(y), held at ±127, as int32 lanes."""
    most = np.float32(MOST_BYTE)
    held = larger(mul(y, splat(ROW_LANES, per_step)), splat(ROW_LANES, -most))
    return nearest(smaller(held, splat(ROW_LANES, most)))


@inlined
def _round_block(
    block: Any,  # IN  float32 (dim, ROW_LANES), flat: centred rows, transposed
    dim: Any,
    numbers: Any,
    slot: Any,
    first: Any,  # of the ROW_LANES of ROWS
    pairs: Any,  # OUT int16 (pairs of columns, ROWS), flat: q + 128
    squares: Any,  # OUT float32 (ROWS): |q|²
    blurs: Any,  # OUT float32 (ROWS): H
) -> None:
    """Write a block's rows in whole steps, and what that leaves of them."""
    step, per_step = splat(ROW_LANES, -numbers[slot, STEP]), numbers[slot, PER_STEP]
    nothing = splat(ROW_LANES, np.float32(0.0))
    offset = splat(ROW_LANES, np.int32(MOST_BYTE + 1))
    square, left = nothing, nothing
    for j in range(0, dim, 2):
        y = load(ROW_LANES, block, j * ROW_LANES)
        z = load(ROW_LANES, block, (j + 1) * ROW_LANES) if j + 1 < dim else nothing
        p, q = _whole_steps(y, per_step), _whole_steps(z, per_step)
        store(pairs, (j // 2) * ROWS + first, paired(add_int(p, offset), add_int(q, offset)))
        p, q = as_float(p), as_float(q)
        square = fma(q, q, fma(p, p, square))
        y, z = fma(p, step, y), fma(q, step, z)
        left = fma(z, z, fma(y, y, left))
    left = mul(square_root(left), splat(ROW_LANES, np.float32(GROW) * per_step))
    store(squares, first, square)
    store(blurs, first, add(left, splat(ROW_LANES, numbers[slot, BLUR])))


@inlined
def _least_scores(
    best: Any,  # IN  int16 (ROWS): B + C²/2
    first: Any,
    numbers: Any,
    slot: Any,
    squares: Any,
    blurs: Any,
    least: Any,  # OUT int16 (ROWS)
) -> None:
    """Write the scores, C²/2 with them, below which a codeword cannot be the nearest."""
    shift = splat(ROW_LANES, numbers[slot, SHIFT])
    square, blur = load(ROW_LANES, squares, first), load(ROW_LANES, blurs, first)
    score = sub(as_float(load(ROW_LANES, best, first)), shift)
    apart = fma(splat(ROW_LANES, np.float32(-2.0)), score, square)
    apart = square_root(add(apart, splat(ROW_LANES, np.float32(1.0))))
    reach = mul(add(apart, add(blur, blur)), splat(ROW_LANES, np.float32(GROW)))
    limit = mul(sub(square, mul(reach, reach)), splat(ROW_LANES, np.float32(0.5)))
    limit = add(limit, sub(shift, splat(ROW_LANES, np.float32(2.0))))
    # no comparison with NaN holds
    lowest = splat(ROW_LANES, np.float32(LOWEST))
    limit = pick(greater(limit, lowest), limit, lowest)
    limit = pick(greater(square, splat(ROW_LANES, numbers[slot, REACH_SQUARE])), lowest, limit)
    store(least, first, narrow(nearest(limit)))


@inlined
def _score_two(pairs: Any, n_pairs: Any, words: Any, at: Any, biases: Any, bias: Any) -> Any:
    """Return the better score of two neighbouring codewords for every row of the block."""
    s0 = broadcast(ROWS, biases, bias)
    s1 = broadcast(ROWS, biases, bias + 1)
    for j in range(n_pairs):
        y = load(ROWS, pairs, j * ROWS)
        s0 = dot_bytes(y, broadcast(ROWS, words, at), s0)
        s1 = dot_bytes(y, broadcast(ROWS, words, at + 1), s1)
        at += PANEL
    return larger(s0, s1)


@inlined
def _group_place(first: Any, columns: Any) -> Any:
    """Return where a group of codewords begins in panels of so many columns."""
    return (first // PANEL) * PANEL * columns + first % PANEL


@inlined
def _rank_bytes(
    pairs: Any,
    n_pairs: Any,
    words: Any,  # IN  int16, flat: [codewords / PANEL][pairs of columns][PANEL] from `place`
    place: Any,
    biases: Any,  # IN  int16: of codeword k at first_bias + k
    first_bias: Any,
    n_codewords: Any,
    best: Any,  # OUT int16 (ROWS)
    tops: Any,  # OUT int16 (groups, ROWS), flat: best score of each group
) -> None:
    """Write each row's best scores, of all codewords and of each group."""
    most = splat(ROWS, LOWEST)
    for first in range(0, n_codewords, GROUP):
        at = place + _group_place(first, n_pairs)
        bias = first_bias + first
        top = _score_two(pairs, n_pairs, words, at, biases, bias)
        for more in range(2, GROUP, 2):
            top = larger(top, _score_two(pairs, n_pairs, words, at + more, biases, bias + more))
        store(tops, (first // GROUP) * ROWS, top)
        most = larger(most, top)
    store(best, 0, most)


@inlined
def _possible(
    pairs: Any,
    n_pairs: Any,
    row: Any,  # of the block
    words: Any,
    at: Any,
    biases: Any,
    bias: Any,
    least: Any,
) -> Any:
    """Return the bit set of a group's codewords that can be a row's nearest."""
    score = load(GROUP, biases, bias)
    for j in range(n_pairs):
        y = broadcast(GROUP, pairs, j * ROWS + row)
        score = dot_bytes(y, load(GROUP, words, at), score)
        at += PANEL
    return unproved_lanes(greater(splat(GROUP, least), score))


@inlined
def _distance(values: Any, row: Any, words: Any, word: Any, dim: Any, scale: Any) -> Any:
    """Return the squared distance of a scaled row and codeword, in float32."""
    by_columns = dim - dim % COLUMNS
    squares = splat(COLUMNS, np.float32(0.0))
    for j in range(0, by_columns, COLUMNS):
        apart = sub(load(COLUMNS, values, row + j), load(COLUMNS, words, word + j))
        apart = mul(apart, splat(COLUMNS, scale))
        squares = fma(apart, apart, squares)
    total = lanes_sum(squares)
    for j in range(by_columns, dim):
        difference = (values[row + j] - words[word + j]) * scale
        total += difference * difference
    return total


@inlined
def _measure_listed(
    listed_rows: Any,
    listed: Any,
    n_listed: Any,
    values: Any,
    row: Any,
    dim: Any,
    scale: Any,
    words: Any,
    first_word: Any,
    near: Any,
    next_near: Any,
    codes: Any,
    measured: Any,  # scratch float32 (MOST_LISTED)
) -> None:
    """Measure how far rows are from the codewords that are listed for them."""
    for n in range(n_listed):
        at = row + np.intp(listed_rows[n]) * dim
        word = first_word + np.intp(listed[n]) * dim
        measured[n] = _distance(values, at, words, word, dim, scale)
    for n in range(n_listed):
        i, distance = np.intp(listed_rows[n]), measured[n]
        nearest_yet = near[i]
        nearer = distance < nearest_yet
        next_near[i] = min(next_near[i], nearest_yet if nearer else distance)
        near[i] = distance if nearer else nearest_yet
        codes[i] = listed[n] if nearer else codes[i]


@inlined
def _measure_possible(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    words: Any,
    first_word: Any,
    n_codewords: Any,
    pairs: Any,
    word_pairs: Any,
    place: Any,
    biases: Any,
    first_bias: Any,
    least: Any,
    tops: Any,
    near: Any,  # OUT float32 (ROWS): least distance
    next_near: Any,  # OUT float32 (ROWS): the one after it
    codes: Any,  # OUT int32 (ROWS)
    listed_rows: Any,
    listed: Any,
    measured: Any,
) -> Any:
    """Measure how far rows are from what can be their nearest; return how often."""
    store(near, 0, splat(ROWS, np.float32(np.inf)))
    store(next_near, 0, splat(ROWS, np.float32(np.inf)))
    limit = load(ROWS, least, 0)
    present = ~np.uint64(0) >> np.uint64(ROWS - n_rows)
    n_pairs = (dim + 1) // 2
    n_listed, n_measured = 0, 0
    for first in range(0, n_codewords, GROUP):
        top = load(ROWS, tops, (first // GROUP) * ROWS)
        rows = unproved_lanes(greater(limit, top)) & present
        at = place + _group_place(first, n_pairs)
        there = ~np.uint64(0) >> np.uint64(max(0, 64 - (n_codewords - first)))
        while rows:
            i = lowest_bit(rows)
            rows &= rows - np.uint64(1)
            possible = there & _possible(
                pairs, n_pairs, i, word_pairs, at, biases, first_bias + first, least[i]
            )  # fmt: skip
            found = load(GROUP, BITS_SET, np.intp(possible) * GROUP)
            store(listed, n_listed, add_int(found, splat(GROUP, np.int32(first))))
            store(listed_rows, n_listed, splat(GROUP, np.int32(i)))
            n_listed += N_SET[np.intp(possible)]
            if n_listed > MOST_LISTED - GROUP:
                _measure_listed(
                    listed_rows, listed, n_listed, values, row, dim, scale, words, first_word,
                    near, next_near, codes, measured,
                )  # fmt: skip
                n_measured += n_listed
                n_listed = 0
    _measure_listed(
        listed_rows, listed, n_listed, values, row, dim, scale, words, first_word, near, next_near,
        codes, measured,
    )  # fmt: skip
    return n_measured + n_listed


@inlined
def _decide_possible(
    values: Any,
    row: Any,
    dim: Any,
    words: Any,
    first_word: Any,
    n_codewords: Any,
    pairs: Any,
    i: Any,
    word_pairs: Any,
    place: Any,
    biases: Any,
    first_bias: Any,
    least: Any,
    tops: Any,
) -> Any:
    """Return one row's code by the definition."""
    nearest_yet, code = np.inf, 0
    n_pairs = (dim + 1) // 2
    for first in range(0, n_codewords, GROUP):
        if tops[(first // GROUP) * ROWS + i] >= least:
            at = place + _group_place(first, n_pairs)
            possible = _possible(
                pairs, n_pairs, i, word_pairs, at, biases, first_bias + first, least
            )  # fmt: skip
            while possible:
                k = first + lowest_bit(possible)
                possible &= possible - np.uint64(1)
                if k < n_codewords:
                    distance = exact_distance(values, row, words, first_word + k * dim, dim)
                    if distance < nearest_yet:
                        nearest_yet, code = distance, k
    return code


@inlined
def _find_codes(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    factor: Any,
    centres: Any,
    column: Any,
    numbers: Any,
    slot: Any,
    word_pairs: Any,
    place: Any,
    biases: Any,
    first_bias: Any,
    words: Any,
    first_word: Any,
    n_codewords: Any,
    codes: Any,  # OUT uint32: codes of the rows from first_code
    first_code: Any,
    block: Any,  # scratch, from here on as of `scratch`
    squares: Any,
    blurs: Any,
    near: Any,
    next_near: Any,
    lane_codes: Any,
    pairs: Any,
    top: Any,
    least: Any,
    tops: Any,
    listed_rows: Any,
    listed: Any,
    measured: Any,
    looked_at: Any,  # INOUT int64 (n_slots, 2)
) -> Any:
    """Write the codes of rows, block by block; return how many float32 did not prove."""
    rechecked = 0
    n_pairs = (dim + 1) // 2
    looked_at[slot, 0] += n_rows
    for start in range(0, n_rows, ROWS):
        n_here = min(n_rows - start, ROWS)
        here = row + start * dim
        for first in range(0, n_here, ROW_LANES):
            lanes = min(n_here - first, ROW_LANES)
            fill_block(values, here + first * dim, lanes, dim, scale, centres, column, block)
            _round_block(block, dim, numbers, slot, first, pairs, squares, blurs)
        _rank_bytes(
            pairs, n_pairs, word_pairs, place, biases, first_bias, n_codewords, top, tops
        )  # fmt: skip
        for first in range(0, ROWS, ROW_LANES):
            _least_scores(top, first, numbers, slot, squares, blurs, least)
        looked_at[slot, 1] += _measure_possible(
            values, here, n_here, dim, scale, words, first_word, n_codewords, pairs, word_pairs,
            place, biases, first_bias, least, tops, near, next_near, lane_codes,
            listed_rows, listed, measured,
        )  # fmt: skip
        for i in range(n_here):
            if not next_near[i] > near[i] + (np.float32(3.0) * factor * near[i] + FLOOR):
                lane_codes[i] = _decide_possible(
                    values, here + i * dim, dim, words, first_word, n_codewords, pairs, i,
                    word_pairs, place, biases, first_bias, least[i], tops,
                )  # fmt: skip
                rechecked += 1
            codes[first_code + start + i] = lane_codes[i]
    return rechecked


def scratch(dim: int, n_codewords: int) -> tuple[NDArray[Any], ...]:
    """Return what a thread needs for fields of so many columns and codewords at most."""
    n_groups = -(-n_codewords // GROUP)
    return (
        aligned(dim * ROW_LANES, np.float32),  # rows, centred and transposed
        aligned(ROWS, np.float32),  # |q|²
        aligned(ROWS, np.float32),  # H
        aligned(ROWS, np.float32),  # least distance
        aligned(ROWS, np.float32),  # the one after it
        aligned(ROWS, np.int32),  # codes
        aligned((dim + 1) // 2 * ROWS, np.int16),  # q + 128, in pairs
        aligned(ROWS, np.int16),  # B + C²/2
        aligned(ROWS, np.int16),  # limits of scores
        aligned(n_groups * ROWS, np.int16),  # best score of each group
        aligned(MOST_LISTED, np.int32),  # rows
        aligned(MOST_LISTED, np.int32),  # codewords that can be their nearest
        aligned(MOST_LISTED, np.float32),  # how far these are
    )


@compiled
def run_first_pass(
    counter: Any,  # INOUT int64 (1): tiles handed out so far, shared by all threads
    tiles: Any,  # INOUT int64 (n_tiles, TILE_COLUMNS)
    slots: Any,  # IN  int64 (n_slots, SLOT_FIELDS)
    factors: Any,  # IN  float32 (n_slots, 2): scale of the filter, A
    values: Any,  # IN  float32, flat
    centres: Any,  # IN  float32
    words: Any,  # IN  float32, flat: the codewords themselves
    places: Any,  # IN  int64 (n_slots): where a slot's word_pairs begin; -1 where it has none
    numbers: Any,  # IN  float32 (n_slots, NUMBERS)
    word_pairs: Any,  # IN  int16, flat
    biases: Any,  # IN  int16, flat as scores
    codes: Any,  # OUT uint32
    rechecked: Any,  # INOUT int64 (n_slots): rows the filter did not prove; this thread's own
    looked_at: Any,  # INOUT int64 (n_slots, 2): see `_is_worth`; this thread's own
    block: Any,  # scratch, as all that follows: see `scratch`
    squares: Any,
    blurs: Any,
    near: Any,
    next_near: Any,
    lane_codes: Any,
    pairs: Any,
    top: Any,
    least: Any,
    tops: Any,
    listed_rows: Any,
    listed: Any,
    measured: Any,
) -> None:
    """Take tiles until none is left: find the codes of those whose field has a first pass."""
    while True:
        tile = take_next(counter)
        if tile >= len(tiles):
            return
        slot = tiles[tile, TILE_SLOT]
        n_codewords = slots[slot, SLOT_CODEWORDS]
        if (
            tiles[tile, TILE_FOUND]
            or places[slot] < 0
            or not _is_worth(looked_at, slot, n_codewords)
        ):
            continue
        tiles[tile, TILE_FOUND] = 1
        rechecked[slot] += _find_codes(
            values, tiles[tile, TILE_VALUES], tiles[tile, TILE_ROWS], slots[slot, SLOT_DIM],
            factors[slot, 0], factors[slot, 1], centres, slots[slot, SLOT_COLUMNS], numbers, slot,
            word_pairs, places[slot], biases, slots[slot, SLOT_SCORES], words,
            slots[slot, SLOT_WORDS], n_codewords, codes, tiles[tile, TILE_CODES], block, squares,
            blurs, near, next_near, lane_codes, pairs, top, least, tops, listed_rows, listed,
            measured, looked_at,
        )  # fmt: skip
