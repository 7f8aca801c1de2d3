"""The loops of k-means++: exact draws that look closely at few rows (DEFINITIONS D).

Rows lie in blocks of BLOCK, transposed, so that a vector holds one column of several rows. Each
draw needs two things of all rows, and gets both to the bit of the plain loops without doing all of
their work.

*Which rows come nearer to a new seed?* Distances in float32 rule out nearly all. With v = 2⁻²⁴ and
u = 2⁻⁵³, D a row's true squared distance to the new seed, a the distance found in float32 and d the
one that DEFINITIONS asks for, in float64: rows are float32, so d neither overflows nor underflows,
and a and d each take a difference, a square and up to dim − 1 additions of terms that are at least
0. Hence, but for underflow, which takes or adds at most dim·2⁻¹⁴⁹ in all,

    a ≤ D·(1 + v)^(dim + 2)        d ≥ D·(1 − u)^(dim + 2)

`slack` is 1 + (dim + 4)·2v, at least (1 + v)^(dim + 4) up to dim = 2²², and a row's limit is
float32(least·slack), at least 2⁻¹⁰⁰. Then a > limit says a > least·slack·(1 − v), and that a's
underflow is below a·dim·2⁻⁴⁹, far less than the factor (1 + v) that is left over with
(1 − v)(1 + v)² > 1: d ≥ least, the row keeps what it has. An a that overflowed is greater than a
finite limit also without overflow; no a is greater than a limit of infinity. All other rows get d.

*What is the ascending sum of the chances, each addition rounded?* While the sum s stays in
[g, 2g), g a power of two, it is a multiple of g's unit in the last place, and adding p ≥ 0 adds p
rounded to such a multiple, (p + g) − g, whatever s is; only where p is midway between two does s
decide. So a block adds the same to every such s, and that is kept until a chance in it, or g,
changes. Blocks that end at 2g or beyond, or hold a p that is midway, are added one by one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from saec_gpu.compiled import compiled

BLOCK = 64  # rows: fewer make more sums of blocks, more are looked at again for one that changed
SLACK_A_COLUMN = 2.0**-23
LEAST_LIMIT = 2.0**-100
MOST_COLUMNS = 1 << 22  # of the proof above; beyond them no row is ruled out
NEVER_SUMMED = -1.0  # in place of g


@compiled
def draw_seeds(
    uniforms: Any,  # IN  float64 (n): U of each draw
    rows: Any,  # IN  float32 (m, dim): the sample
    columns: Any,  # IN  float32 (n_blocks, dim, BLOCK): its rows, transposed by blocks
    weights: Any,  # IN  float64 (n_blocks, BLOCK): ω; 0 beyond the last row
    least: Any,  # INOUT float64 (n_blocks, BLOCK): to the seeds so far; infinity before
    limits: Any,  # INOUT float32 (n_blocks, BLOCK): as above; infinity before, −1 beyond
    chances: Any,  # INOUT float64 (n_blocks, BLOCK): ω·least; ω before
    floors: Any,  # INOUT float64 (n_blocks): g of which `added` holds, or NEVER_SUMMED
    added: Any,  # INOUT float64 (n_blocks): what a block adds; infinity if it depends on s
    chosen: Any,  # OUT   int64 (n): rows drawn
) -> int:
    """Draw as many seeds as there are uniforms; return how many were found before all rows met."""
    ends = np.empty(len(floors))
    nearby = np.empty(BLOCK, np.float32)
    for number in range(len(uniforms)):
        total = add_blocks(chances, floors, added, ends)
        if total == 0.0:
            return number
        row = first_above(uniforms[number] * total, chances, ends)
        chosen[number] = row
        lower_blocks(rows[row], columns, weights, least, limits, chances, floors, nearby)
    return len(uniforms)


@compiled
def add_blocks(
    chances: Any,  # IN    float64 (n_blocks, BLOCK): at least 0
    floors: Any,  # INOUT float64 (n_blocks)
    added: Any,  # INOUT float64 (n_blocks)
    ends: Any,  # OUT   float64 (n_blocks): the ascending sum up to the end of each block
) -> float:
    """Return the ascending sum of all chances."""
    total, floor = 0.0, 0.0
    for block in range(len(ends)):
        if floors[block] != floor:
            floors[block] = floor
            added[block] = added_above(floor, chances[block])
        if total + added[block] < 2.0 * floor:
            total += added[block]
        else:
            for i in range(BLOCK):
                total += chances[block, i]
            floor = math.ldexp(1.0, math.frexp(total)[1] - 1) if total > 0.0 else 0.0
        ends[block] = total
    return total


@compiled
def added_above(floor: float, chances: Any) -> float:
    """Return what the chances add to any sum in [floor, 2·floor); infinity if that depends on it.

    Exact where the sum stays in there; where it does not, the result shows that.
    """
    midway = floor * 2.0**-53  # half a unit in the last place
    total = 0.0
    for i in range(BLOCK):
        multiple = (chances[i] + floor) - floor
        if abs(chances[i] - multiple) == midway:
            return np.inf
        total += multiple
    return total


@compiled
def first_above(target: float, chances: Any, ends: Any) -> int:
    """Return the first row at whose end the ascending sum is greater than target, below its end."""
    block, total = 0, 0.0
    while ends[block] <= target:
        total = ends[block]
        block += 1
    i = 0
    total += chances[block, 0]
    while total <= target:
        i += 1
        total += chances[block, i]
    return block * BLOCK + i


@compiled
def lower_blocks(
    seed: Any,  # IN    float32 (dim)
    columns: Any,  # IN    float32 (n_blocks, dim, BLOCK)
    weights: Any,  # IN    float64 (n_blocks, BLOCK)
    least: Any,  # INOUT float64 (n_blocks, BLOCK)
    limits: Any,  # INOUT float32 (n_blocks, BLOCK)
    chances: Any,  # INOUT float64 (n_blocks, BLOCK)
    floors: Any,  # INOUT float64 (n_blocks)
    nearby: Any,  # room for float32 (BLOCK)
) -> None:
    """Lower least distances, and what follows from them, by the distances to one more seed."""
    n_blocks, dim, _ = columns.shape
    slack = 1.0 + (dim + 4) * SLACK_A_COLUMN if dim <= MOST_COLUMNS else np.inf
    for block in range(n_blocks):
        for i in range(BLOCK):
            nearby[i] = np.float32(0.0)
        for j in range(dim):
            column, x = columns[block, j], seed[j]
            for i in range(BLOCK):
                difference = column[i] - x
                nearby[i] += difference * difference
        own_limits = limits[block]
        n_close = 0
        for i in range(BLOCK):
            n_close += not nearby[i] > own_limits[i]  # so that a limit that is NaN proves nothing
        if n_close == 0:
            continue
        for i in range(BLOCK):
            if nearby[i] > own_limits[i]:
                continue
            distance = 0.0
            for j in range(dim):
                wide = np.float64(columns[block, j, i]) - np.float64(seed[j])
                distance += wide * wide
            if distance < least[block, i]:
                least[block, i] = distance
                limit = distance * slack
                own_limits[i] = np.float32(limit if limit > LEAST_LIMIT else LEAST_LIMIT)
                chances[block, i] = weights[block, i] * distance
                floors[block] = NEVER_SUMMED
