"""How work is cut for the CUDA kernels: classes of dims, runs of rows, shared memory. Pure numbers.

The constants mirror those of `kernels/*.cuh`, where each is explained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from saec_gpu.data import Int64
from saec_gpu.layout import Segment

# fields.cuh
(
    SLOT_DIM, SLOT_CODEWORDS, SLOT_WORD, SLOT_CODE, SLOT_COLUMN, SLOT_GROUP, SLOT_GROUPS,
    SLOT_FRAGMENT, SLOT_WIDE, SLOT_SHARED, SLOT_STEPS,
) = range(11)  # fmt: skip
SLOT_FIELDS = 11
RUN_FIELDS = 5
WARP = 32
GROUP = 32
KEYS = 64
STEP = 16
STEP_WORDS = GROUP * STEP // 2
FOLDED_DIM = 8
# bound.cuh: codewords are brought to this order, so that float16 keeps small ones too
MAGNITUDE = 6
WINDOW_GROUPS = 32
# assign_update.cu, looped.cuh and recheck.cu
ASSIGN_WARPS = 8
ASSIGN_CODES = ASSIGN_WARPS * 4 * 16
TILE = 16
LOOPED_WARPS = 4
TILE_STEP_WORDS = WARP * 4  # of one step of 16 rows, for each half
WORD_BYTES = 4
CHUNK_BOUNDS = 4 * 2  # floats of a group
# Shared memory that is not counted here, at most: assign_update keeps its run and field, recheck
# lists 4096 rows.
ASSIGN_STATIC = 1024
RECHECK_STATIC = 17 * 1024

# A block takes long runs, so that what it loads and adds up at its end costs little beside its
# rows, and there are enough of them that the last ones to finish leave few processors idle. Set by
# counting instructions; to be measured.
RUNS_A_PROCESSOR = 8
LEAST_RUN_ROWS = 2048
ROWS_A_CODEWORD = 8  # where sums are shared: to add them up takes as long as a row for each
MOST_RUN_ROWS = 1 << 20  # a block numbers its rows with 32 bits


@dataclass(frozen=True)
class DimClass:
    """Fields that one variant of assign_update serves.

    Attributes
    ----------
    name : str
        As in the kernel's name.
    steps : int
        Products of 16 columns that every row takes; 0: as many as the dim needs.
    """

    name: str
    steps: int

    @property
    def folded(self) -> bool:
        """Return whether high and low halves stand side by side in one step."""
        return self.name == "d8"

    @property
    def looped(self) -> bool:
        """Return whether rows wait in shared memory instead of registers."""
        return self.steps == 0


LOOPED = DimClass("any", 0)
CLASSES: Sequence[tuple[int, DimClass]] = (
    (FOLDED_DIM, DimClass("d8", 1)),
    (16, DimClass("d16", 1)),
    (32, DimClass("d32", 2)),
    (64, DimClass("d64", 4)),
    (128, DimClass("d128", 8)),
    (256, DimClass("d256", 16)),
)


def dim_class(dim: int) -> DimClass:
    """Return the class that serves fields of this dim."""
    return next((one for most, one in CLASSES if dim <= most), LOOPED)


def steps_of(dim: int) -> int:
    """Return the products of 16 columns that a row of this dim takes."""
    return dim_class(dim).steps or -(-dim // STEP)


def sums_words(n_codewords: int, dim: int) -> int:
    """Return the words of shared memory that one field's sums take (accumulate.cuh)."""
    return 2 * n_codewords * dim + 3 * n_codewords


def _fixed_bytes(one: DimClass) -> int:
    return WORD_BYTES * (one.steps * STEP + ASSIGN_CODES)


def _group_bytes(one: DimClass) -> int:
    """Return the bytes of shared memory that a group of codewords takes in a window."""
    words = one.steps * STEP_WORDS + STEP_WORDS * one.folded + KEYS + CHUNK_BOUNDS
    return WORD_BYTES * words


def window_groups(one: DimClass, shared_bytes: int) -> int:
    """Return the groups of a window: at most half of a block's shared memory, so that two fit."""
    room = shared_bytes // 2 - ASSIGN_STATIC - _fixed_bytes(one)
    return max(1, min(WINDOW_GROUPS, room // _group_bytes(one)))


def sums_are_shared(
    n_codewords: int, dim: int, n_groups: int, *, wide: bool, shared_bytes: int
) -> bool:
    """Return whether a field's sums are gathered in shared memory before they are added up."""
    one = dim_class(dim)
    if one.looped or wide:
        return False
    groups = min(n_groups, window_groups(one, shared_bytes))
    own = _fixed_bytes(one) + groups * _group_bytes(one) + ASSIGN_STATIC
    return own + WORD_BYTES * sums_words(n_codewords, dim) <= shared_bytes


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: groups of a window, warps of a block, bytes of shared memory.

    `warps` is 0 where not even one warp's rows fit; the memory is then for LOOPED_WARPS without.
    """

    window: int
    warps: int
    shared_bytes: int


def assign_launch(one: DimClass, slots: Int64, shared_bytes: int, *, accumulate: bool) -> Launch:
    """Return how assign_update runs over the fields of one class, given their rows of `slots`."""
    if one.looped:
        return _tiled(slots, shared_bytes - ASSIGN_STATIC, halves=1)
    sums = 0
    if accumulate:
        shared = slots[slots[:, SLOT_SHARED] != 0]
        sums = max(
            (sums_words(int(s[SLOT_CODEWORDS]), int(s[SLOT_DIM])) for s in shared), default=0
        )
    fixed = _fixed_bytes(one) + WORD_BYTES * sums
    # the largest sums of any field fit beside a window of its own, so there is room for a group
    room = (shared_bytes - ASSIGN_STATIC - fixed) // _group_bytes(one)
    window = min(int(slots[:, SLOT_GROUPS].max()), window_groups(one, shared_bytes), room)
    return Launch(window, ASSIGN_WARPS, fixed + window * _group_bytes(one))


def recheck_launch(slots: Int64, shared_bytes: int) -> Launch:
    """Return how recheck runs over fields, with finer products where their rows fit."""
    return _tiled(slots, shared_bytes - RECHECK_STATIC, halves=2)


def _tiled(slots: Int64, room: int, halves: int) -> Launch:
    """Return a launch whose warps hold codes of 16 rows and, where there is room, these rows."""
    steps = int(slots[:, SLOT_STEPS].max())
    codes, tile = WORD_BYTES * TILE, WORD_BYTES * halves * steps * TILE_STEP_WORDS
    warps = min(LOOPED_WARPS, room // (codes + tile))
    return Launch(0, warps, warps * (codes + tile) if warps else LOOPED_WARPS * codes)


def cut_runs(segments: Iterable[tuple[int, Segment, bool]], slots: Int64, processors: int) -> Int64:
    """Return the runs table of segments given as (slot, segment, weighted), costliest first.

    Each run is rows of one segment (fields.cuh). Rows keep their order within a segment, but
    nothing depends on it.
    """
    work = [one for one in segments if one[1].n_rows]
    costs = {slot: _row_cost(slots[slot]) for slot, _, _ in work}
    total = sum(costs[slot] * segment.n_rows for slot, segment, _ in work)
    share = total / (processors * RUNS_A_PROCESSOR)
    runs: list[tuple[int, list[int]]] = []
    for slot, segment, weighted in work:
        least = LEAST_RUN_ROWS
        if slots[slot, SLOT_SHARED]:
            # but rather more to add up than idle processors
            fair = -(-segment.n_rows // processors)
            least = max(least, min(ROWS_A_CODEWORD * int(slots[slot, SLOT_CODEWORDS]), fair))
        step = min(MOST_RUN_ROWS, max(least, int(share / costs[slot])))
        for first in range(0, segment.n_rows, step):
            n_rows = min(step, segment.n_rows - first)
            row = segment.first_row + first
            value = segment.first_value + first * segment.dim
            run = [slot, n_rows, value, row if weighted else -1, row]
            runs.append((costs[slot] * n_rows, run))
    runs.sort(key=lambda one: -one[0])
    return np.array([run for _, run in runs], np.int64).reshape(-1, RUN_FIELDS)


def _row_cost(slot: Int64) -> int:
    """Return what a row takes, in lane cycles of an H100, about.

    A pair takes 1.5 on 64 lanes of ALU, or 16 columns of a product; a value of the sums some eight
    operations.
    """
    pairs = int(slot[SLOT_GROUPS]) * GROUP
    return pairs * max(4, int(slot[SLOT_STEPS])) + 8 * int(slot[SLOT_DIM])
