"""Codebooks laid out for the CUDA kernels: one slot a field, flat arrays for all. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cuda_plan import (
    GROUP,
    MAGNITUDE,
    SLOT_FIELDS,
    SLOT_GROUP,
    SLOT_GROUPS,
    STEP_WORDS,
    steps_of,
    sums_are_shared,
)
from saec_gpu.backends.filter_frame import filter_frame, repeated_codewords
from saec_gpu.data import Codebook, Float32, Float64, Int64


@dataclass(frozen=True, eq=False)
class HostCodebooks:
    """What the kernels take of codebooks, in the host's memory; what they pack comes from this.

    Attributes
    ----------
    slots : int64 (n_slots, SLOT_FIELDS)
        Sizes of each field, and where its part of each flat array begins (fields.cuh).
    scales : float32 (n_slots,)
        Power of two by which rows and codewords are scaled.
    centres : float32 (n_columns,)
        Subtracted from scaled rows and codewords.
    words : float32 (n_words,)
        All codewords.
    order : int32 (n_groups * GROUP,)
        Codeword at each place of a group, −1 for none.
    groups : int64 (n_groups, 2)
        Slot of each group, and its number within the slot.
    column_scales : float64 (n_columns,)
        2^s_j; 0 where nothing is added up.
    weight_scales : float64 (n_slots,)
        2^t; likewise.
    """

    slots: Int64
    scales: Float32
    centres: Float32
    words: Float32
    order: NDArray[np.int32]
    groups: Int64
    column_scales: Float64
    weight_scales: Float64


def lay_out_codebooks(codebooks: Sequence[Codebook], shared_bytes: int) -> HostCodebooks:
    """Return the codebooks as the kernels take them, slots in this order.

    `shared_bytes` is the most shared memory of one block: it decides where sums are gathered.
    """
    frames = [filter_frame(codebook, MAGNITUDE) for codebook in codebooks]
    orders = [_order(c, *frame) for c, frame in zip(codebooks, frames, strict=True)]
    slots = _slots(codebooks, orders, shared_bytes)
    slot_of_group = np.repeat(np.arange(len(slots)), slots[:, SLOT_GROUPS])
    within = np.arange(len(slot_of_group)) - slots[slot_of_group, SLOT_GROUP]
    factors = [codebook.sum_factors() for codebook in codebooks]
    return HostCodebooks(
        slots=slots,
        scales=np.array([scale for scale, _ in frames], np.float32),
        centres=np.concatenate([np.zeros(0, np.float32), *(centre for _, centre in frames)]),
        words=np.concatenate(
            [np.zeros(0, np.float32), *(c.codewords.reshape(-1) for c in codebooks)]
        ),
        order=np.concatenate([np.zeros(0, np.int32), *orders]),
        groups=np.stack([slot_of_group, within], axis=1),
        column_scales=np.concatenate([np.zeros(0), *(columns for columns, _ in factors)]),
        weight_scales=np.array([weight for _, weight in factors], np.float64),
    )


def _order(codebook: Codebook, scale: np.float32, centre: Float32) -> NDArray[np.int32]:
    """Return the codeword at each place, −1 for none: by norm, repeated ones left out.

    Chunks of codewords share a bound, which is tight where their norms are alike.
    """
    codewords = codebook.codewords
    centred = codewords.astype(np.float64) * np.float64(scale) - centre
    norms = np.einsum("kj,kj->k", centred, centred)
    by_norm = np.argsort(norms, kind="stable").astype(np.int32)
    if len(np.unique(norms)) < len(norms):
        by_norm = by_norm[~repeated_codewords(codewords)[by_norm]]
    order = np.full(-(-len(by_norm) // GROUP) * GROUP, -1, np.int32)
    order[: len(by_norm)] = by_norm
    return order


def _slots(
    codebooks: Sequence[Codebook], orders: Sequence[NDArray[np.int32]], shared_bytes: int
) -> Int64:
    """Return the table of slots."""
    slots = np.zeros((len(codebooks), SLOT_FIELDS), np.int64)
    word = code = column = group = fragment = 0
    for slot, codebook, order in zip(slots, codebooks, orders, strict=True):
        n_codewords, dim = codebook.codewords.shape
        n_groups, steps = len(order) // GROUP, steps_of(dim)
        wide = codebook.fixed_point is not None and codebook.fixed_point.wide
        shared = sums_are_shared(n_codewords, dim, n_groups, wide=wide, shared_bytes=shared_bytes)
        slot[:] = [
            dim, n_codewords, word, code, column, group, n_groups, fragment, wide, shared, steps
        ]  # fmt: skip
        word += n_codewords * dim
        code += n_codewords
        column += dim
        group += n_groups
        fragment += n_groups * steps * STEP_WORDS
    return slots
