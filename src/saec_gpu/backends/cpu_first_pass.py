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

What is left is measured in float32 (cpu_skipping.squared_distance): each square of a distance is
within A of itself, so that the nearest codeword is proved where the next one is farther by 3A. Else
the definition decides among what is left. A field of which too much is left goes on with cpu_filter
alone.

Of kept rows (cpu_skipping), the pass takes those whose codes may change. With M the best S_k of a
panel without the row's own codeword, √(|q|² − 2M) − H is their new bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cpu_filter import FLOOR, PANEL, exact_distance, fill_block
from saec_gpu.backends.cpu_layout import aligned, panels_of
from saec_gpu.backends.cpu_skipping import COLUMNS, SHRINK, squared_distance
from saec_gpu.backends.cpu_tiles import (
    EVERY,
    SLOT_CODEWORDS,
    SLOT_COLUMNS,
    SLOT_DIM,
    SLOT_SCORES,
    SLOT_WORDS,
    TILE_BOUNDS,
    TILE_CODES,
    TILE_DRIFTS,
    TILE_FOUND,
    TILE_LISTED,
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
    lanes_maximum,
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
    with_lane,
)
from saec_gpu.compiled import compiled, inlined
from saec_gpu.data import Float32, Float64, Int64

# one step, steps a unit, H without |Y − q|, the greatest |q|² that is known of, C²/2
STEP, PER_STEP, BLUR, REACH_SQUARE, SHIFT = range(5)
NUMBERS = 5
ROWS = 64  # of a block
GROUP = 8  # codewords that are looked at together
MOST_LISTED = 512  # codewords between two times that distances are found
LOWEST = np.int16(-(2**15))  # below every score
REACH = 1.25  # rows up to this many times as far from the centre as the farthest codeword
MOST_SCORE = 2.0**15 - 8
MOST_BYTE, MOST_PAIR = 127, 128
ROUNDED = 2.0**-12
GROW = 1.0 + 2.0**-18
MOST_DIM = 4096
LEAST_NORM = 2.0**-20  # of the farthest codeword, which is of order one unless all but vanish
LEAST_CODEWORDS, LEAST_DIM = 96, 8  # with fewer, the products are not most of the time
LEAST_PRODUCTS = 2**27  # of a chunk, a hundredth of a second: it takes seconds to compile this
MOST_DISTANCES = 1 / 32  # as a share of all, that may be left to find
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


class FirstForms(NamedTuple):
    """All codebooks as the first pass reads them, one slot a field.

    Attributes
    ----------
    places : int64 (n_slots,)
        Where the pairs of a slot begin; -1 where it has no first pass.
    numbers : float32 (n_slots, NUMBERS)
    pairs : int16, flat
        w_k, two columns each: [codewords / PANEL][pairs of columns][PANEL].
    biases : int16, flat as the filter's scores
    """

    places: Int64
    numbers: Float32
    pairs: NDArray[np.int16]
    biases: NDArray[np.int16]


class Scratch(NamedTuple):
    """What one thread's first pass notes of a block of ROWS rows.

    Attributes
    ----------
    gathered : float32 (ROWS, dim), flat
        The rows.
    gathered_rows : int32 (ROWS,)
        Which rows of the tile these are.
    block : float32 (dim, ROW_LANES), flat
        ROW_LANES of them, centred and transposed.
    pairs : int16 (pairs of columns, ROWS), flat
        q + 128, two columns each.
    squares, blurs : float32 (ROWS,)
        |q|², H.
    tops : int16 (groups, ROWS), flat
        C²/2 + the best S_k of each group.
    best, least : int16 (ROWS,)
        C²/2 + B, and what a score may not be below.
    rows, listed : int32 (MOST_LISTED,)
        Rows, and where codewords stand that can be their nearest.
    measured : float32 (MOST_LISTED,)
        Their squared distances.
    near, next_near : float32 (ROWS,)
        The least of these of each row, and the one after it.
    codes : int32 (ROWS,)
        Where the nearest codeword stands.
    """

    gathered: Float32
    gathered_rows: NDArray[np.int32]
    block: Float32
    pairs: NDArray[np.int16]
    squares: Float32
    blurs: Float32
    tops: NDArray[np.int16]
    best: NDArray[np.int16]
    least: NDArray[np.int16]
    rows: NDArray[np.int32]
    listed: NDArray[np.int32]
    measured: Float32
    near: Float32
    next_near: Float32
    codes: NDArray[np.int32]


def scratch(dim: int, n_codewords: int) -> Scratch:
    """Return room for fields of so many columns and codewords at most."""
    return Scratch(
        gathered=aligned(dim * ROWS, np.float32),
        gathered_rows=aligned(ROWS, np.int32),
        block=aligned(dim * ROW_LANES, np.float32),
        pairs=aligned((dim + 1) // 2 * ROWS, np.int16),
        squares=aligned(ROWS, np.float32),
        blurs=aligned(ROWS, np.float32),
        tops=aligned(-(-n_codewords // GROUP) * ROWS, np.int16),
        best=aligned(ROWS, np.int16),
        least=aligned(ROWS, np.int16),
        rows=aligned(MOST_LISTED, np.int32),
        listed=aligned(MOST_LISTED, np.int32),
        measured=aligned(MOST_LISTED, np.float32),
        near=aligned(ROWS, np.float32),
        next_near=aligned(ROWS, np.float32),
        codes=aligned(ROWS, np.int32),
    )


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


def pays_for(tiles: Int64, slots: Int64, forms: FirstForms) -> bool:
    """Return whether tiles are so much work that a first pass is worth being compiled."""
    slot = tiles[:, TILE_SLOT]
    products = tiles[:, TILE_ROWS] * slots[slot, SLOT_DIM] * slots[slot, SLOT_CODEWORDS]
    return bool(products[forms.places[slot] >= 0].sum() >= LEAST_PRODUCTS)


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
    farthest = np.sqrt(_squares(codewords).max())
    if dim > MOST_DIM or not LEAST_NORM < farthest < 1 / LEAST_NORM:
        return None
    if dim % 2:
        codewords = np.pad(codewords, ((0, 0), (0, 1)))
    even, odd = codewords[:, 0::2], codewords[:, 1::2]
    above = (np.maximum(even, 0) + np.maximum(odd, 0)).max()
    below = (np.minimum(even, 0) + np.minimum(odd, 0)).min()
    # rounding adds √d/2 at most to a norm, and 1 to the sum of a pair
    most_norm = np.sqrt(MOST_SCORE / REACH) - np.sqrt(dim) / 2
    step = np.float32(max(farthest / most_norm, max(above, -below) / (MOST_PAIR - 1)) * GROW)
    in_steps = codewords / np.float64(step)
    words = np.rint(in_steps)
    words[left_out] = 0
    squares = _squares(words)
    shift = squares.max() // 2
    blur = np.sqrt(_squares(in_steps - words)[~left_out].max()) * GROW + ROUNDED
    # modulo 2¹⁶, as sums are kept
    biases = (shift - squares // 2 - (MOST_BYTE + 1) * words.sum(axis=1)).astype(np.int64)
    biases[left_out] = LOWEST
    reach_square = MOST_SCORE**2 / max(squares.max(), 1)
    numbers = tuple(float(number) for number in (step, 1 / step, blur, reach_square, shift))
    return FirstForm(words.astype(np.int8), biases.astype(np.int16), numbers)


def _squares(rows: Float64) -> Float64:
    squares: Float64 = np.einsum("kj,kj->k", rows, rows)
    return squares


def is_worth(n_rows: Any, n_distances: Any, n_codewords: Any) -> Any:
    """Return whether the pass leaves so few distances to find that a field should go on with it."""
    return n_rows < LEAST_SEEN or n_distances <= MOST_DISTANCES * n_codewords * n_rows


_is_worth = inlined(is_worth)


@inlined
def _whole_steps(y: Any, per_step: Any) -> Any:
    """Return rint(y), held at ±127, as int32 lanes."""
    most = np.float32(MOST_BYTE)
    held = larger(mul(y, splat(ROW_LANES, per_step)), splat(ROW_LANES, -most))
    return nearest(smaller(held, splat(ROW_LANES, most)))


@inlined
def _round_block(dim: Any, numbers: Any, slot: Any, first: Any, own: Any) -> None:
    """Write a block's rows in whole steps, and what that leaves of them; `first`: of ROWS."""
    step, per_step = splat(ROW_LANES, -numbers[slot, STEP]), numbers[slot, PER_STEP]
    nothing = splat(ROW_LANES, np.float32(0.0))
    offset = splat(ROW_LANES, np.int32(MOST_BYTE + 1))
    square, left = nothing, nothing
    for j in range(0, dim, 2):
        y = load(ROW_LANES, own.block, j * ROW_LANES)
        z = load(ROW_LANES, own.block, (j + 1) * ROW_LANES) if j + 1 < dim else nothing
        p, q = _whole_steps(y, per_step), _whole_steps(z, per_step)
        store(own.pairs, (j // 2) * ROWS + first, paired(add_int(p, offset), add_int(q, offset)))
        p, q = as_float(p), as_float(q)
        square = fma(q, q, fma(p, p, square))
        y, z = fma(p, step, y), fma(q, step, z)
        left = fma(z, z, fma(y, y, left))
    left = mul(square_root(left), splat(ROW_LANES, np.float32(GROW) * per_step))
    store(own.squares, first, square)
    store(own.blurs, first, add(left, splat(ROW_LANES, numbers[slot, BLUR])))


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
def _rank(dim: Any, forms: Any, slot: Any, first_score: Any, n_codewords: Any, own: Any) -> None:
    """Write each row's best scores, of all codewords and of each group."""
    n_pairs = (dim + 1) // 2
    best = splat(ROWS, LOWEST)
    for first in range(0, n_codewords, GROUP):
        at = forms.places[slot] + _group_place(first, n_pairs)
        bias = first_score + first
        top = _score_two(own.pairs, n_pairs, forms.pairs, at, forms.biases, bias)
        for more in range(2, GROUP, 2):
            two = _score_two(own.pairs, n_pairs, forms.pairs, at + more, forms.biases, bias + more)
            top = larger(top, two)
        store(own.tops, (first // GROUP) * ROWS, top)
        best = larger(best, top)
    store(own.best, 0, best)


@inlined
def _limit_scores(first: Any, numbers: Any, slot: Any, own: Any) -> None:
    """Write the scores, C²/2 with them, below which a codeword cannot be the nearest."""
    shift = splat(ROW_LANES, numbers[slot, SHIFT])
    square, blur = load(ROW_LANES, own.squares, first), load(ROW_LANES, own.blurs, first)
    score = sub(as_float(load(ROW_LANES, own.best, first)), shift)
    apart = fma(splat(ROW_LANES, np.float32(-2.0)), score, square)
    apart = square_root(add(apart, splat(ROW_LANES, np.float32(1.0))))
    reach = mul(add(apart, add(blur, blur)), splat(ROW_LANES, np.float32(GROW)))
    limit = mul(sub(square, mul(reach, reach)), splat(ROW_LANES, np.float32(0.5)))
    limit = add(limit, sub(shift, splat(ROW_LANES, np.float32(2.0))))
    # no comparison with NaN holds
    lowest = splat(ROW_LANES, np.float32(LOWEST))
    limit = pick(greater(limit, lowest), limit, lowest)
    limit = pick(greater(square, splat(ROW_LANES, numbers[slot, REACH_SQUARE])), lowest, limit)
    store(own.least, first, narrow(nearest(limit)))


@inlined
def _group_scores(
    row: Any,  # of the block
    dim: Any,
    forms: Any,
    slot: Any,
    first_score: Any,
    first: Any,  # of the group's codewords
    own: Any,
) -> Any:
    """Return the scores of a group's codewords for one row."""
    n_pairs = (dim + 1) // 2
    at = forms.places[slot] + _group_place(first, n_pairs)
    score = load(GROUP, forms.biases, first_score + first)
    for j in range(n_pairs):
        y = broadcast(GROUP, own.pairs, j * ROWS + row)
        score = dot_bytes(y, load(GROUP, forms.pairs, at), score)
        at += PANEL
    return score


@inlined
def _possible(
    row: Any,
    dim: Any,
    forms: Any,
    slot: Any,
    first_score: Any,
    first: Any,
    n_codewords: Any,
    own: Any,
) -> Any:
    """Return the bit set of a group's codewords that can be a row's nearest."""
    score = _group_scores(row, dim, forms, slot, first_score, first, own)
    there = ~np.uint64(0) >> np.uint64(max(0, 64 - (n_codewords - first)))
    return there & unproved_lanes(greater(splat(GROUP, own.least[row]), score))


@inlined
def _measure_listed(
    n_listed: Any,
    dim: Any,
    scale: Any,
    words: Any,
    first_word: Any,
    order: Any,
    first_score: Any,
    own: Any,
) -> None:
    """Measure how far rows are from the codewords that are listed for them."""
    # without a branch: which is nearer could not be predicted
    for n in range(n_listed):
        at = np.intp(own.rows[n]) * dim
        word = first_word + order[first_score + np.intp(own.listed[n])] * dim
        own.measured[n] = squared_distance(own.gathered, at, words, word, dim, scale)
    for n in range(n_listed):
        i, distance = np.intp(own.rows[n]), own.measured[n]
        near = own.near[i]
        nearer = distance < near
        own.next_near[i] = min(own.next_near[i], near if nearer else distance)
        own.near[i] = distance if nearer else near
        own.codes[i] = own.listed[n] if nearer else own.codes[i]


@inlined
def _measure_possible(
    n_rows: Any,
    dim: Any,
    scale: Any,
    forms: Any,
    slot: Any,
    words: Any,
    first_word: Any,
    order: Any,
    first_score: Any,
    n_codewords: Any,
    own: Any,
) -> Any:
    """Find of what can be a row's nearest codeword the nearest; return how many are measured."""
    store(own.near, 0, splat(ROWS, np.float32(np.inf)))
    store(own.next_near, 0, splat(ROWS, np.float32(np.inf)))
    least = load(ROWS, own.least, 0)
    present = ~np.uint64(0) >> np.uint64(ROWS - n_rows)
    n_listed, n_measured = 0, 0
    for first in range(0, n_codewords, GROUP):
        top = load(ROWS, own.tops, (first // GROUP) * ROWS)
        rows = unproved_lanes(greater(least, top)) & present
        while rows:
            i = lowest_bit(rows)
            rows &= rows - np.uint64(1)
            possible = np.intp(
                _possible(i, dim, forms, slot, first_score, first, n_codewords, own)
            )  # fmt: skip
            found = load(GROUP, BITS_SET, possible * GROUP)
            store(own.listed, n_listed, add_int(found, splat(GROUP, np.int32(first))))
            store(own.rows, n_listed, splat(GROUP, np.int32(i)))
            n_listed += N_SET[possible]
            if n_listed > MOST_LISTED - GROUP:
                _measure_listed(n_listed, dim, scale, words, first_word, order, first_score, own)
                n_measured += n_listed
                n_listed = 0
    _measure_listed(n_listed, dim, scale, words, first_word, order, first_score, own)
    return n_measured + n_listed


@inlined
def _decide(
    i: Any,  # of the block's rows
    dim: Any,
    forms: Any,
    slot: Any,
    words: Any,
    first_word: Any,
    order: Any,
    first_score: Any,
    n_codewords: Any,
    own: Any,
) -> Any:
    """Return where one row's nearest codeword stands, by the definition."""
    least, code, place = np.inf, np.int64(0), 0
    for first in range(0, n_codewords, GROUP):
        if own.tops[(first // GROUP) * ROWS + i] >= own.least[i]:
            possible = _possible(i, dim, forms, slot, first_score, first, n_codewords, own)
            while possible:
                at = first + lowest_bit(possible)
                possible &= possible - np.uint64(1)
                k = order[first_score + at]
                distance = exact_distance(own.gathered, i * dim, words, first_word + k * dim, dim)
                if distance < least or (distance == least and k < code):
                    least, code, place = distance, k, at
    return place


@inlined
def _find_block(
    n_rows: Any,  # that are gathered
    dim: Any,
    scale: Any,
    factor: Any,  # A
    centres: Any,
    column: Any,
    forms: Any,
    slot: Any,
    words: Any,  # IN  float32, flat: the codewords themselves
    first_word: Any,
    order: Any,  # IN  int64: which codeword stands at place k, at first_score + k
    first_score: Any,
    n_codewords: Any,
    looked_at: Any,  # INOUT int64 (n_slots, 2): rows, and distances that were found for them
    own: Any,  # INOUT Scratch: IN gathered; OUT codes, tops, squares, blurs
) -> Any:
    """Find where the rows' nearest codewords stand; return for how many it took the definition."""
    for first in range(0, n_rows, ROW_LANES):
        lanes = min(n_rows - first, ROW_LANES)
        fill_block(own.gathered, first * dim, lanes, dim, scale, centres, column, own.block)
        _round_block(dim, forms.numbers, slot, first, own)
    _rank(dim, forms, slot, first_score, n_codewords, own)
    for first in range(0, ROWS, ROW_LANES):
        _limit_scores(first, forms.numbers, slot, own)
    looked_at[slot, 0] += n_rows
    looked_at[slot, 1] += _measure_possible(
        n_rows, dim, scale, forms, slot, words, first_word, order, first_score, n_codewords, own
    )
    decided = 0
    for i in range(n_rows):
        near = own.near[i]
        if not own.next_near[i] > near + (np.float32(3.0) * factor * near + FLOOR):
            own.codes[i] = _decide(
                i, dim, forms, slot, words, first_word, order, first_score, n_codewords, own
            )
            decided += 1
    return decided


@inlined
def _leave_out(
    i: Any,
    place: Any,
    dim: Any,
    forms: Any,
    slot: Any,
    first_score: Any,
    own: Any,
) -> None:
    """Make a row's best score of the group of a codeword that of the others."""
    first = place - place % GROUP
    score = _group_scores(i, dim, forms, slot, first_score, first, own)
    others = with_lane(score, np.int32(place - first), LOWEST)
    own.tops[(first // GROUP) * ROWS + i] = lanes_maximum(others)


@inlined
def _lower_distances(
    first: Any, panel: Any, n_codewords: Any, numbers: Any, slot: Any, own: Any
) -> Any:
    """Return lower bounds of the distances of ROW_LANES rows to the codewords of a panel."""
    shift = splat(ROW_LANES, numbers[slot, SHIFT])
    nothing = splat(ROW_LANES, np.float32(0.0))
    top = splat(ROW_LANES, LOWEST)
    for k in range(panel * PANEL, min((panel + 1) * PANEL, n_codewords), GROUP):
        top = larger(top, load(ROW_LANES, own.tops, (k // GROUP) * ROWS + first))
    square = load(ROW_LANES, own.squares, first)
    score = sub(as_float(top), shift)
    apart = larger(fma(splat(ROW_LANES, np.float32(-2.0)), score, square), nothing)
    apart = larger(sub(square_root(apart), load(ROW_LANES, own.blurs, first)), nothing)
    lower = mul(apart, splat(ROW_LANES, numbers[slot, STEP] * SHRINK))
    within = greater(splat(ROW_LANES, numbers[slot, REACH_SQUARE]), square)
    return pick(within, lower, nothing)


@inlined
def _keep_bounds(
    lanes: Any,
    dim: Any,
    forms: Any,
    slot: Any,
    first_score: Any,
    n_codewords: Any,
    rows: Any,  # IN  int32 (lanes): which rows of the tile these are
    in_order: Any,  # whether they lie one behind another
    drifts: Any,
    first_drift: Any,
    bounds: Any,  # OUT float32 (panels, n_rows), flat, from first_bound
    first_bound: Any,
    n_rows: Any,
    own: Any,
) -> None:
    """Write the bounds of all panels of a block's rows (cpu_skipping)."""
    for lane in range(lanes):
        _leave_out(lane, own.codes[lane], dim, forms, slot, first_score, own)
    for p in range((n_codewords + PANEL - 1) // PANEL):
        drift = splat(ROW_LANES, drifts[first_drift + p])
        at = first_bound + p * n_rows
        for first in range(0, lanes, ROW_LANES):
            lower = _lower_distances(first, p, n_codewords, forms.numbers, slot, own)
            lower = mul(add(lower, drift), splat(ROW_LANES, SHRINK))
            if in_order and first + ROW_LANES <= lanes:
                store(bounds, at + rows[first], lower)
            else:
                store(own.near, 0, lower)
                for lane in range(min(lanes - first, ROW_LANES)):
                    bounds[at + rows[first + lane]] = own.near[lane]


@inlined
def _gather_rows(
    values: Any,
    first_value: Any,
    dim: Any,
    listed: Any,
    first_listed: Any,
    start: Any,
    lanes: Any,
    in_order: Any,
    own: Any,
) -> None:
    """Write rows of a tile one behind another, and which these are: listed ones, or in order."""
    by_columns = dim - dim % COLUMNS
    for lane in range(lanes):
        i = np.int32(start + lane) if in_order else listed[first_listed + start + lane]
        own.gathered_rows[lane] = i
        at = first_value + i * dim
        for j in range(0, by_columns, COLUMNS):
            store(own.gathered, lane * dim + j, load(COLUMNS, values, at + j))
        for j in range(by_columns, dim):
            own.gathered[lane * dim + j] = values[at + j]


@compiled
def run_first_pass(
    counter: Any,  # INOUT int64 (1): tiles handed out so far, shared by all threads
    tiles: Any,  # INOUT int64 (n_tiles, TILE_COLUMNS)
    slots: Any,  # IN  int64 (n_slots, SLOT_FIELDS)
    factors: Any,  # IN  float32 (n_slots, 2): scale of the filter, A
    values: Any,  # IN  float32, flat
    centres: Any,  # IN  float32
    words: Any,  # IN  float32, flat: the codewords themselves
    order: Any,  # IN  int64, flat as scores: which codeword stands at a place
    forms: Any,  # IN  FirstForms
    codes: Any,  # OUT uint32
    waiting: Any,  # IN  int32, flat as codes: of a tile with TILE_LISTED rows, which these are
    bounds: Any,  # OUT float32, flat: bounds of kept rows from the tile's TILE_BOUNDS
    drifts: Any,  # IN  float32, one a panel, from the tile's TILE_DRIFTS
    rechecked: Any,  # INOUT int64 (n_slots): rows that took the definition; this thread's own
    looked_at: Any,  # INOUT int64 (n_slots, 2): see `is_worth`; this thread's own
    own: Any,  # Scratch
) -> None:
    """Take tiles until none is left: find the codes of those whose field has a first pass."""
    while True:
        tile = take_next(counter)
        if tile >= len(tiles):
            return
        slot = tiles[tile, TILE_SLOT]
        n_codewords, dim = slots[slot, SLOT_CODEWORDS], slots[slot, SLOT_DIM]
        kept = tiles[tile, TILE_BOUNDS] >= 0
        if (
            tiles[tile, TILE_FOUND]
            or forms.places[slot] < 0
            or not (kept or _is_worth(looked_at[slot, 0], looked_at[slot, 1], n_codewords))
        ):
            continue
        tiles[tile, TILE_FOUND] = 1
        first_score, first_code = slots[slot, SLOT_SCORES], tiles[tile, TILE_CODES]
        n_rows, n_listed = tiles[tile, TILE_ROWS], tiles[tile, TILE_LISTED]
        in_order = n_listed == EVERY
        if in_order:
            n_listed = n_rows
        for start in range(0, n_listed, ROWS):
            lanes = min(n_listed - start, ROWS)
            _gather_rows(
                values, tiles[tile, TILE_VALUES], dim, waiting, first_code, start, lanes,
                in_order, own,
            )  # fmt: skip
            rechecked[slot] += _find_block(
                lanes, dim, factors[slot, 0], factors[slot, 1], centres,
                slots[slot, SLOT_COLUMNS], forms, slot, words, slots[slot, SLOT_WORDS], order,
                first_score, n_codewords, looked_at, own,
            )  # fmt: skip
            for lane in range(lanes):
                code = order[first_score + own.codes[lane]]
                codes[first_code + own.gathered_rows[lane]] = code
            if kept:
                _keep_bounds(
                    lanes, dim, forms, slot, first_score, n_codewords, own.gathered_rows, in_order,
                    drifts, tiles[tile, TILE_DRIFTS], bounds, tiles[tile, TILE_BOUNDS], n_rows,
                    own,
                )  # fmt: skip
