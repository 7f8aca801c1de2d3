"""A first pass in integers: twice the products an instruction, and most winners proved by it.

Rows and codewords, scaled and centred as in cpu_filter, are rounded to int16, by one step for the
rows of a field and one for its codewords; one instruction multiplies and adds two columns of a row
where a fused multiply-add takes one. With Y, E_k and T_k = Y·E_k − |E_k|²/2 exact and y the float32
row, as in cpu_filter,

    ŷ = rint(s y) / s     ê_k = rint(t E_k) / t     U = 1 / (s t)
    S_k = Σ_j (s ŷ_j)(t ê_kj) + H_k                 H_k = rint((δ|E_k| − |E_k|²/2) / U)

The sums are of integers, exact; only the roundings to int16 count:

    Y·E_k − ŷ·ê_k = (Y − ŷ)·E_k + ŷ·(E_k − ê_k)
    |Y − ŷ| ≤ δ = 1.02 √d / 2s     |E_k − ê_k| ≤ η, found when a codebook is loaded

where the 2 % of δ hold |y − Y| ≤ 2⁻²⁴|Y|, for |y| s < 2¹⁵. The tag in the two lowest bits moves S_k
by 3 at most, and H_k is rounded by 1/2. So, with R = η|ŷ| + 4U,

    T_k ≤ U S_k + R          T_w ≥ U S_w − 2δ|E_w| − R

and w is the nearest codeword when U (S_w − S_k) > 2δ|E_w| + 2R for every other k. The float64
distances of the definition differ from the real ones by (d + 3) 2⁻⁵³ of at most (2·1.5² + 2) M²,
M the largest |E_k|: less than U, which is 2⁻²⁹ M² at least. ROUNDED holds that too; |ŷ| ≤ |y| + δ,
and GROW holds the float32 roundings of R and of the comparison.

All this needs |y| ≤ REACH·M: then |y_j| s < 2¹⁵ and |S_k| < 2³⁰. Of a row farther out nothing is
proved, and what its sums overflow to is of no interest. A row that is not proved is decided by the
definition among the codewords that the same bound cannot exclude; of a far row these are all. Where
that takes too long, a thread goes on with cpu_filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cpu_filter import (
    GROUP,
    PANEL,
    best_so_far,
    exact_distance,
    fill_block,
    first_two,
    last_two,
    two_scores,
)
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
    FAST_PAIRS,
    ROW_LANES,
    TAG_BITS,
    add,
    add_int,
    as_float,
    broadcast,
    dot_pairs,
    fma,
    greater,
    load,
    lowest_bit,
    mul,
    paired,
    pick,
    splat,
    square_root,
    store,
    sub,
    sub_int,
    tags,
    take_next,
    unproved_lanes,
)
from saec_gpu.compiled import compiled, inlined
from saec_gpu.data import Float32, Float64, Int64

# s, U, (REACH M)², R = BLUR|y| + LEAST_BLUR, 2δM
SCALE, UNIT, REACH_SQUARE, BLUR, LEAST_BLUR, MOST_SHARE = range(6)
NUMBERS = 6
LOWEST = np.int32(-(2**30))  # below every score
REACH = 1.5  # rows up to this many times as far from the centre as the farthest codeword
MOST_ROW, MOST_WORD, MOST_SCORE = 0.99 * 2**15, 2**15 - 1, 0.99 * 2**30
ROUNDED = 8.0  # 4 for tag and H_k, 1 for float64, and as much again
GROW = 1.0 + 2.0**-6
MOST_DIM = 4096  # GROW holds the roundings of sums of so many squares
LEAST_NORM = 2.0**-20  # of the farthest codeword, which is of order one unless all but vanish
MOST_BLUR = 0.01  # η as a share of M
LEAST_CODEWORDS, LEAST_DIM = 64, 16  # with fewer, the products are not most of the time
DISTANCE = 160  # one distance of the definition takes as long as so many scores
MOST_TIME = 0.25  # what these distances may take, as a share of the time of the scores
LEAST_SEEN = 4096  # rows that tell of it


@dataclass(frozen=True, eq=False)
class FirstForm:
    """A codebook as the first pass reads it.

    Attributes
    ----------
    words : int16 (k, dim rounded up to pairs)
        t ê_k.
    biases : int32 (k,)
        H_k.
    shares : float32 (k,)
        2δ|E_k|.
    numbers : tuple of NUMBERS float
    """

    words: NDArray[np.int16]
    biases: NDArray[np.int32]
    shares: Float32
    numbers: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class FirstForms:
    """All codebooks as the first pass reads them, one slot a field; see `run_first_pass`."""

    places: Int64
    numbers: Float32
    word_pairs: NDArray[np.int32]
    biases: NDArray[np.int32]
    shares: Float32


def laid_out(forms: Sequence[FirstForm | None], first_scores: Int64, n_scores: int) -> FirstForms:
    """Return forms one behind another, biases and shares where the filter has its scores."""
    by_panel = [None if form is None else panels_of(form.words.view(np.int32)) for form in forms]
    found = [np.zeros(0, np.int32), *(one for one in by_panel if one is not None)]
    all_forms = FirstForms(
        np.full(len(forms), -1),
        np.zeros((len(forms), NUMBERS), np.float32),
        aligned(sum(len(one) for one in found), np.int32),
        np.full(n_scores, LOWEST, np.int32),
        np.zeros(n_scores, np.float32),
    )
    place = 0
    for number, (form, own_pairs) in enumerate(zip(forms, by_panel, strict=True)):
        if form is not None and own_pairs is not None:
            own = slice(first_scores[number], first_scores[number] + len(form.biases))
            all_forms.places[number] = place
            all_forms.numbers[number] = form.numbers
            all_forms.word_pairs[place : place + len(own_pairs)] = own_pairs
            all_forms.biases[own] = form.biases
            all_forms.shares[own] = form.shares
            place += len(own_pairs)
    return all_forms


def pays(n_codewords: int, dim: int) -> bool:
    """Return whether this host finds codes of such a codebook faster with a first pass."""
    return FAST_PAIRS and n_codewords >= LEAST_CODEWORDS and dim >= LEAST_DIM


def first_form(codewords: Float64, left_out: NDArray[np.bool_]) -> FirstForm | None:
    """Return the first pass's form of scaled and centred codewords; None if they have none.

    Parameters
    ----------
    codewords : float64 (k, dim)
        E_k.
    left_out : bool (k,)
        Codewords that equal an earlier one.
    """
    dim = codewords.shape[1]
    norms = np.sqrt(np.einsum("kj,kj->k", codewords, codewords))
    most = norms.max()
    if dim > MOST_DIM or not LEAST_NORM < most < 1 / LEAST_NORM:
        return None
    scale = 2.0 ** np.floor(np.log2(MOST_ROW / (REACH * most)))  # products with it are exact
    rounding = 1.02 * np.sqrt(dim) / (2 * scale)  # δ
    # |S_k| ≤ ((REACH M + δ)(M + η) + M²/2 + δM) / U
    reach = (REACH * most + rounding) * (1 + MOST_BLUR) * most + most**2 / 2 + rounding * most
    word_scale = min(MOST_SCORE / reach / scale, MOST_WORD / np.abs(codewords).max())
    unit = 1 / (scale * word_scale)
    words = np.zeros((len(codewords), dim + dim % 2), np.int16)
    words[:, :dim] = np.rint(codewords * word_scale)
    words[left_out] = 0
    apart = (codewords - words[:, :dim] / word_scale)[~left_out]
    blur = np.sqrt(np.einsum("kj,kj->k", apart, apart).max())  # η
    if blur > MOST_BLUR * most:
        return None
    biases = np.rint((rounding * norms - norms**2 / 2) / unit)
    biases[left_out] = LOWEST
    shares = (2 * GROW * rounding * norms).astype(np.float32)
    least_blur = GROW * (blur * rounding + ROUNDED * unit)
    numbers = scale, unit, (REACH * most) ** 2, GROW * blur, least_blur, shares.max()
    return FirstForm(words, biases.astype(np.int32), shares, numbers)


@inlined
def _is_worth(
    looked_at: Any,  # IN  int64 (n_slots, 2): rows, and distances of the definition for them
    slot: Any,
    n_codewords: Any,
) -> Any:
    """Return whether the pass proves enough rows of a field to go on with it."""
    n_rows, n_distances = looked_at[slot, 0], looked_at[slot, 1]
    return n_rows < LEAST_SEEN or DISTANCE * n_distances <= MOST_TIME * n_codewords * n_rows


@inlined
def _row_blur(norms: Any, numbers: Any, slot: Any) -> Any:
    """Return R of rows with these |y|², infinite where nothing can be proved."""
    least = splat(ROW_LANES, numbers[slot, LEAST_BLUR])
    near = fma(splat(ROW_LANES, numbers[slot, BLUR]), square_root(norms), least)
    within = greater(splat(ROW_LANES, numbers[slot, REACH_SQUARE]), norms)
    return pick(within, near, splat(ROW_LANES, np.float32(np.inf)))


@inlined
def _pair_block(block: Any, dim: Any, scale: Any, pairs: Any) -> Any:
    """Write a block's rows as pairs of int16; return their |y|²."""
    norms = splat(ROW_LANES, np.float32(0.0))
    for j in range(0, dim - 1, 2):
        y = load(ROW_LANES, block, j * ROW_LANES)
        z = load(ROW_LANES, block, (j + 1) * ROW_LANES)
        norms = fma(z, z, fma(y, y, norms))
        store(pairs, (j // 2) * ROW_LANES, paired(y, z, scale))
    if dim % 2:
        y = load(ROW_LANES, block, (dim - 1) * ROW_LANES)
        norms = fma(y, y, norms)
        nothing = splat(ROW_LANES, np.float32(0.0))
        store(pairs, (dim // 2) * ROW_LANES, paired(y, nothing, scale))
    return norms


_score_two = two_scores(dot_pairs)


@inlined
def _rank_pairs(
    block: Any,  # IN  float32 (dim, ROW_LANES), flat: centred rows, transposed
    dim: Any,
    numbers: Any,  # IN  float32 (n_slots, NUMBERS)
    slot: Any,
    word_pairs: Any,  # IN  int32, flat: [codewords / PANEL][pairs of columns][PANEL] from `panel`
    panel: Any,
    biases: Any,  # IN  int32: H of codeword k at first_bias + k
    first_bias: Any,
    n_codewords: Any,
    pairs: Any,  # OUT int32 (pairs of columns, ROW_LANES), flat: the rows
    codes: Any,  # OUT int32 (ROW_LANES)
    best_scores: Any,  # OUT int32 (ROW_LANES)
    leads: Any,  # OUT float32 (2, ROW_LANES), flat: U (best - second best) - 2R, and R
    tops: Any,  # OUT int32 (codewords / GROUP, ROW_LANES), flat: best score of each group
) -> Any:
    """Write each row's codeword of the best score; return the bit set of rows where it may not be.

    A row of the set is proved if its lead is above its codeword's share.
    """
    norms = _pair_block(block, dim, numbers[slot, SCALE], pairs)
    n_pairs = (dim + 1) // 2
    best = splat(ROW_LANES, LOWEST)
    second = splat(ROW_LANES, LOWEST)
    index = splat(ROW_LANES, np.int32(0))
    for first in range(0, n_codewords, GROUP):
        bias = first_bias + first
        at = panel + (first // PANEL) * PANEL * n_pairs + first % PANEL
        s0, s1 = _score_two(pairs, n_pairs, word_pairs, at, biases, bias)
        left, second = first_two(s0, s1, second)
        s2, s3 = _score_two(pairs, n_pairs, word_pairs, at + 2, biases, bias + 2)
        right, second = last_two(s2, s3, second)
        top, best, second, index = best_so_far(left, right, best, second, index, first)
        store(tops, (first // GROUP) * ROW_LANES, top)
    blur = _row_blur(norms, numbers, slot)
    lead = mul(as_float(sub_int(best, second)), splat(ROW_LANES, numbers[slot, UNIT]))
    lead = sub(lead, add(blur, blur))
    store(codes, 0, add_int(index, tags(best)))
    store(leads, 0, lead)
    store(leads, ROW_LANES, blur)
    store(best_scores, 0, best)
    return unproved_lanes(greater(lead, splat(ROW_LANES, numbers[slot, MOST_SHARE])))


@inlined
def _decide_pairs(
    pairs: Any,
    dim: Any,
    lane: Any,
    least: Any,  # scores below cannot be of the nearest codeword
    tops: Any,
    values: Any,
    row: Any,
    word_pairs: Any,
    panel: Any,
    biases: Any,
    first_bias: Any,
    words: Any,
    word: Any,
    n_codewords: Any,
) -> Any:
    """Return one row's code by the definition, and how many codewords it was asked about."""
    nearest, code, n_distances = np.inf, 0, 0
    n_pairs = (dim + 1) // 2
    for first in range(0, n_codewords, GROUP):
        if tops[(first // GROUP) * ROW_LANES + lane] >= least:
            score = load(GROUP, biases, first_bias + first)
            at = panel + (first // PANEL) * PANEL * n_pairs + first % PANEL
            for j in range(n_pairs):
                y = broadcast(GROUP, pairs, j * ROW_LANES + lane)
                score = dot_pairs(y, load(GROUP, word_pairs, at), score)
                at += PANEL
            possible = unproved_lanes(greater(splat(GROUP, least), score))
            while possible:
                k = first + lowest_bit(possible)
                possible &= possible - np.uint64(1)
                if k < n_codewords:
                    distance = exact_distance(values, row, words, word + k * dim, dim)
                    n_distances += 1
                    if distance < nearest:
                        nearest, code = distance, k
    return code, n_distances


@inlined
def _least_score(best: Any, blur: Any, share: Any, unit: Any) -> Any:
    """Return the least score that the nearest codeword of a row can have, whatever its tag."""
    if blur == np.inf:
        return np.int32(-(2**31))
    return np.int32(best - np.int32((blur + blur + share) / unit) - 2 * (1 << TAG_BITS))


@inlined
def _find_codes(
    values: Any,
    row: Any,
    n_rows: Any,
    dim: Any,
    scale: Any,
    centres: Any,
    column: Any,
    numbers: Any,
    slot: Any,
    word_pairs: Any,
    panel: Any,
    biases: Any,
    shares: Any,  # IN  float32: of codeword k at first_bias + k
    first_bias: Any,
    words: Any,
    first_word: Any,
    n_codewords: Any,
    codes: Any,  # OUT uint32: codes of the rows from first_code
    first_code: Any,
    block: Any,  # scratch
    pairs: Any,  # scratch
    lane_codes: Any,  # scratch
    best_scores: Any,  # scratch
    leads: Any,  # scratch
    tops: Any,  # scratch
    looked_at: Any,  # INOUT int64 (n_slots, 2)
) -> Any:
    """Write the codes of rows, block by block; return how many the pass did not prove."""
    rechecked = 0
    looked_at[slot, 0] += n_rows
    for start in range(0, n_rows, ROW_LANES):
        lanes = min(n_rows - start, ROW_LANES)
        fill_block(values, row + start * dim, lanes, dim, scale, centres, column, block)
        unproved = _rank_pairs(
            block, dim, numbers, slot, word_pairs, panel, biases, first_bias, n_codewords, pairs,
            lane_codes, best_scores, leads, tops,
        )  # fmt: skip
        while unproved:
            lane = lowest_bit(unproved)
            unproved &= unproved - np.uint64(1)
            share = shares[first_bias + lane_codes[lane]]
            if lane < lanes and not leads[lane] > share:
                blur = leads[ROW_LANES + lane]
                least = _least_score(best_scores[lane], blur, share, numbers[slot, UNIT])
                lane_codes[lane], n_distances = _decide_pairs(
                    pairs, dim, lane, least, tops, values, row + (start + lane) * dim, word_pairs,
                    panel, biases, first_bias, words, first_word, n_codewords,
                )  # fmt: skip
                looked_at[slot, 1] += n_distances
                rechecked += 1
        for lane in range(lanes):
            codes[first_code + start + lane] = lane_codes[lane]
    return rechecked


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
    word_pairs: Any,  # IN  int32, flat
    biases: Any,  # IN  int32, flat as scores
    shares: Any,  # IN  float32, flat as scores
    codes: Any,  # OUT uint32
    rechecked: Any,  # INOUT int64 (n_slots): rows the pass did not prove; this thread's own
    looked_at: Any,  # INOUT int64 (n_slots, 2): see `_is_worth`; this thread's own
    block: Any,  # scratch float32 (max dim * ROW_LANES)
    pairs: Any,  # scratch int32 (max pairs of columns * ROW_LANES)
    lane_codes: Any,  # scratch int32 (ROW_LANES)
    best_scores: Any,  # scratch int32 (ROW_LANES)
    leads: Any,  # scratch float32 (2 * ROW_LANES)
    tops: Any,  # scratch int32 (max groups * ROW_LANES)
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
            factors[slot, 0], centres, slots[slot, SLOT_COLUMNS], numbers, slot, word_pairs,
            places[slot], biases, shares, slots[slot, SLOT_SCORES], words,
            slots[slot, SLOT_WORDS], n_codewords, codes, tiles[tile, TILE_CODES], block, pairs,
            lane_codes, best_scores, leads, tops, looked_at,
        )  # fmt: skip
