"""The loop that looks codes up in levels (levels.py).

Rows are taken in steps, level by level. Which rows go on is written without a branch, because a
branch on a random bit costs more than all else. Numbers of rows and places are uint64: Numba has
nothing to do for indices that cannot be negative, and a count that is too great stays too great.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from saec_gpu.compiled import compiled, inlined

STEP = 1024  # rows at once: what is read for them stays in the second cache

# A bitmap lies in blocks of 64 bytes, a line of the cache: a counter, then bits (levels.py).
COUNTER_BITS = np.uint64(16)
COUNTER = np.uint64(0xFFFF)
BLOCK_WORDS = np.uint64(8)
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


@inlined
def _either(first: Any, one: Any, other: Any) -> Any:
    """Return one if first is 1, the other if it is 0, without a branch."""
    mask = ZERO - first
    return (one & mask) | (other & ~mask)


@inlined
def _ones_before(words: Any, first: Any, bit: Any, word: Any) -> Any:
    """Return the ones before a bit of the block that begins at words[first]; `word` holds the bit.

    Counted from where the block's counter counts from.
    """
    inside = bit >> SIX
    counter = words[first] & COUNTER
    ones = counter - _ones(counter) + _ones(word & ((ONE << (bit & LOW_SIX)) - ONE))
    for j in range(ZERO, BLOCK_WORDS - ONE):
        # The words before that of the bit, the others as 0: j − inside is negative or not.
        counted = ZERO - ((j - inside) >> SIGN)
        ones += _ones(words[first + min(j, inside)] & counted)
    return ones


@compiled
def find_codes(
    rows: Any,  # IN  int64 (m), each 0 … rows of the first level − 1
    level_rows: Any,  # IN  uint64 (L): rows that reach each level
    first_codes: Any,  # IN  uint64 (L): least code of each level's class
    first_bytes: Any,  # IN  uint64 (L): where the payloads of each level begin
    level_bits: Any,  # IN  uint64 (L): of one payload, at most 25
    words: Any,  # IN  uint64: the bitmaps of all levels but the last, one after another
    first_words: Any,  # IN  int64 (L − 1): where each begins
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
    # Where the rows that are left stand in a level and their places in rows; the same of those that
    # end in it.
    here, which = np.empty(STEP, np.uint64), np.empty(STEP, np.uint64)
    ended, which_ended = np.empty(STEP, np.uint64), np.empty(STEP, np.uint64)
    found, before = np.empty(STEP, np.uint64), np.empty(STEP, np.uint64)
    for begin in range(0, len(rows), STEP):
        left = np.uint64(min(STEP, len(rows) - begin))
        for t in range(ZERO, left):
            here[t] = np.uint64(rows[np.uint64(begin) + t])
            which[t] = np.uint64(begin) + t
        for level in range(n_levels):
            going, ending = ZERO, ZERO
            if level == n_levels - 1:
                for t in range(ZERO, left):
                    ended[t], which_ended[t] = here[t], which[t]
                ending = left
            else:
                n_next = level_rows[level + 1]
                n_ending = level_rows[level] - n_next
                bitmap, counted = words[first_words[level] :], supers[first_supers[level] :]
                # So short a loop waits for many rows at once, where the memory is slow.
                for t in range(ZERO, left):
                    block = here[t] // BLOCK_ROWS
                    bit = here[t] - block * BLOCK_ROWS + COUNTER_BITS
                    found[t] = bitmap[block * BLOCK_WORDS + (bit >> SIX)]
                    before[t] = counted[block // BLOCKS_OF_SUPER]
                for t in range(ZERO, left):
                    i, who = here[t], which[t]
                    block = i // BLOCK_ROWS
                    bit = i - block * BLOCK_ROWS + COUNTER_BITS
                    ones = before[t] + _ones_before(bitmap, block * BLOCK_WORDS, bit, found[t])
                    goes = (found[t] >> (bit & LOW_SIX)) & ONE
                    place = _either(goes, ones, i - ones)
                    if place >= _either(goes, n_next, n_ending):
                        return np.int64(who)
                    here[going], which[going] = place, who
                    ended[ending], which_ended[ending] = place, who
                    going += goes
                    ending += ONE - goes
            left = going
            first_byte, bits = first_bytes[level], level_bits[level]
            mask = (ONE << bits) - ONE
            for t in range(ZERO, ending):
                bit = ended[t] * bits
                at = first_byte + (bit >> THREE)
                window = np.uint64(payloads[at])
                for j in range(ONE, WINDOW_BYTES):
                    window |= np.uint64(payloads[at + j]) << (j << THREE)
                code = first_codes[level] + ((window >> (bit & SEVEN)) & mask)
                if code >= n_codewords:
                    return np.int64(which_ended[t])
                codes[which_ended[t]] = code
    return np.int64(-1)
