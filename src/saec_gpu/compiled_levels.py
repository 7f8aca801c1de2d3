"""The loop that looks codes up in levels (levels.py).

Rows are taken in steps, level by level. Which rows go on is written without a branch, because a
branch on a random bit costs more than all else; and what a level reads is prefetched, because the
memory is slow for one row and quick for many at once. Numbers of rows and places are uint64:
Numba has nothing to do for indices that cannot be negative, and a count that is too great stays too
great.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from saec_gpu.compiled import compiled, inlined

STEP_BITS = np.uint64(10)
STEP = 1 << 10  # rows at once: what is read for them stays in the second cache
IN_STEP = np.uint64(STEP - 1)

# A bitmap lies in blocks of 64 bytes, a line of the cache: a counter of the ones before the middle,
# then bits (levels.py).
COUNTER_BITS = np.uint64(16)
COUNTER = np.uint64(0xFFFF)
BLOCK_WORDS = np.uint64(8)
MIDDLE = np.uint64(4)  # the word that begins there
BLOCK_ROWS = np.uint64(496)
BLOCKS_OF_SUPER = np.uint64(128)
WINDOW_BYTES = np.uint64(4)  # a payload of up to 25 bits lies in them, wherever it begins

ZERO, ONE, THREE, SIX, SEVEN = (np.uint64(n) for n in (0, 1, 3, 6, 7))
LOW_SIX = SIGN = np.uint64(63)


@intrinsic  # type: ignore[untyped-decorator]
def _ones(typing_context: Any, word: Any) -> Any:
    """Return how many bits of a uint64 are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the line of the cache in which array[index] lies. Any index does: nothing is read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = context.make_array(array)(context, builder, arguments[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer],
            ir.FunctionType(ir.VoidType(), [pointer, number, number, number]),
        )
        place = builder.bitcast(builder.gep(found.data, [arguments[1]]), pointer)
        to_read, into_all_caches, data = number(0), number(3), number(1)
        builder.call(prefetch, [place, to_read, into_all_caches, data])
        return context.get_dummy_value()

    return types.none(array, index), generate


@inlined
def _either(first: Any, one: Any, other: Any) -> Any:
    """Return one if first is 1, the other if it is 0, without a branch."""
    mask = ZERO - first
    return (one & mask) | (other & ~mask)


@inlined
def _ones_before(words: Any, first: Any, bit: Any, word: Any) -> Any:
    """Return the ones before a bit of the block that begins at words[first]; `word` holds the bit.

    Counted from where the block's counter counts from. From the middle of the block, or the end of
    a shorter one, the words up to that of the bit are added, or those down to it subtracted.
    """
    middle = min(MIDDLE, np.uint64(len(words)) - first)
    from_middle = (bit >> SIX) - middle
    down = ZERO - (from_middle >> SIGN)  # all bits 1 where the bit is before the middle, else 0
    between = from_middle ^ down  # words, 0 … 3
    ones = _ones(word & (((ONE << (bit & LOW_SIX)) - ONE) ^ down))
    for j in range(ZERO, THREE):
        # The others as 0: j − between is negative or not.
        counted = ZERO - ((j - between) >> SIGN)
        ones += _ones(words[first + middle + (min(j, between) ^ down)] & counted)
    return (words[first] & COUNTER) + ((ones ^ down) - down)


@inlined
def _read_payloads(
    ended: Any, bits: Any, first_code: Any, payloads: Any, n_codewords: Any, codes: Any
) -> Any:
    """Write the codes of rows that end in a level; return the place of one without, or −1."""
    mask = (ONE << bits) - ONE
    for row in ended:
        _prefetch(payloads, (row >> STEP_BITS) * bits >> THREE)
    for row in ended:
        bit, who = (row >> STEP_BITS) * bits, row & IN_STEP
        at = bit >> THREE
        window = np.uint64(payloads[at])
        for j in range(ONE, WINDOW_BYTES):
            window |= np.uint64(payloads[at + j]) << (j << THREE)
        code = first_code + ((window >> (bit & SEVEN)) & mask)
        if code >= n_codewords:
            return np.int64(who)
        codes[who] = code
    return np.int64(-1)


@compiled
def find_codes(
    rows: Any,  # IN  int64 (m), each 0 … rows of the first level − 1
    level_rows: Any,  # IN  uint64 (L): rows that reach each level, below 2^54
    first_codes: Any,  # IN  uint64 (L): least code of each level's class
    first_bytes: Any,  # IN  uint64 (L): where the payloads of each level begin
    level_bits: Any,  # IN  uint64 (L): of one payload, at most 25
    words: Any,  # IN  uint64: the bitmaps of all levels but the last, one after another
    first_words: Any,  # IN  int64 (L): where each begins, and where the last ends
    supers: Any,  # IN  uint64: ones before every 128th block, none above the rows of its level
    first_supers: Any,  # IN  int64 (L − 1)
    payloads: Any,  # IN  uint8: of every level, and three bytes more
    n_codewords: Any,  # uint64
    codes: Any,  # OUT uint32 (m)
) -> Any:
    """Write the codes of rows; return the first place in rows where there is none, or −1.

    Counters and bitmaps that contradict each other lead to rows that their level does not have:
    nothing is read there.
    """
    n_levels = len(level_rows)
    # The rows that are left, and those that end in a level: where each stands in the level, above
    # its place in the step.
    left, ended = np.empty(STEP, np.uint64), np.empty(STEP, np.uint64)
    for begin in range(0, len(rows), STEP):
        n_left = np.uint64(min(STEP, len(rows) - begin))
        for t in range(ZERO, n_left):
            left[t] = np.uint64(rows[np.uint64(begin) + t]) << STEP_BITS | t
        for level in range(n_levels):
            n_going, n_ended = ZERO, ZERO
            if level == n_levels - 1:
                for t in range(ZERO, n_left):
                    ended[t] = left[t]
                n_ended = n_left
            else:
                n_next = level_rows[level + 1]
                n_ending = level_rows[level] - n_next
                bitmap = words[first_words[level] : first_words[level + 1]]
                counted = supers[first_supers[level] :]
                for t in range(ZERO, n_left):
                    _prefetch(bitmap, (left[t] >> STEP_BITS) // BLOCK_ROWS * BLOCK_WORDS)
                for t in range(ZERO, n_left):
                    i, who = left[t] >> STEP_BITS, left[t] & IN_STEP
                    block = i // BLOCK_ROWS
                    bit = i - block * BLOCK_ROWS + COUNTER_BITS
                    word = bitmap[block * BLOCK_WORDS + (bit >> SIX)]
                    ones = _ones_before(bitmap, block * BLOCK_WORDS, bit, word)
                    ones += counted[block // BLOCKS_OF_SUPER]
                    goes = (word >> (bit & LOW_SIX)) & ONE
                    place = _either(goes, ones, i - ones)
                    if place >= _either(goes, n_next, n_ending):
                        return begin + np.int64(who)
                    left[n_going] = ended[n_ended] = place << STEP_BITS | who
                    n_going += goes
                    n_ended += ONE - goes
            n_left = n_going
            wrong = _read_payloads(
                ended[:n_ended],
                level_bits[level],
                first_codes[level],
                payloads[first_bytes[level] :],
                n_codewords,
                codes[begin:],
            )
            if wrong >= 0:
                return begin + wrong
    return np.int64(-1)
