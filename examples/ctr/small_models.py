"""Models that are trained from scratch in fewer bytes: the arms that compress before training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .arms import ROW_BYTES
from .data import ClickData, Clicks
from .model import COLUMNS, FIRST_SPREAD, DeepFM

HASH_FACTOR = 2_654_435_761  # an odd number near 2³² / golden ratio; Knuth, TAOCP 3, section 6.4


def hashed(data: ClickData, n_bytes: int) -> ClickData:
    """Return the clicks with values hashed to fewer rows, whose tables take at most n_bytes.

    Fields of up to a certain number of rows are left whole, all larger ones get that number of
    rows: the largest for which the bytes suffice. Their values then share rows.

    Raises
    ------
    ValueError
        The bytes do not suffice for one row a field.
    """
    sizes = np.array(list(data.vocabularies.values()))
    affordable = n_bytes // ROW_BYTES
    if affordable < len(sizes):
        raise ValueError(f"{n_bytes} bytes are less than a row for each of {len(sizes)} fields")
    most = _largest(lambda most: int(np.minimum(sizes, most).sum()) <= affordable, int(sizes.max()))
    buckets = np.minimum(sizes, most)

    def rows_of(clicks: Clicks) -> Clicks:
        mixed = (clicks.ids.astype(np.uint64) * np.uint64(HASH_FACTOR)) % np.uint64(2**32)
        shared = (mixed % buckets.astype(np.uint64)).astype(np.int32)
        return Clicks(np.where(buckets < sizes, shared, clicks.ids), clicks.labels)

    return ClickData(
        {field: int(rows) for field, rows in zip(data.vocabularies, buckets, strict=True)},
        *(rows_of(part) for part in (data.train, data.valid, data.test)),
    )


class QuotientRemainder(nn.Module):
    """An embedding whose rows are sums: one row of the quotient's table, one of the remainder's.

    Shi, Mudigere, Naumov, Yang, Compositional embeddings using complementary partitions, KDD 2020,
    doi 10.1145/3394486.3403059. They also multiply; that has no small rows to begin with, and rows
    that L2 draws to zero.

    Parameters
    ----------
    n_rows : int
        Of the table that it replaces.
    n_remainders : int
        What rows are divided by.
    """

    def __init__(self, n_rows: int, n_remainders: int) -> None:
        super().__init__()
        self.quotients = nn.Embedding(-(-n_rows // n_remainders), COLUMNS)
        self.remainders = nn.Embedding(n_remainders, COLUMNS)
        for table in (self.quotients, self.remainders):
            nn.init.normal_(table.weight, std=FIRST_SPREAD)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the vectors of rows, integer (n,), as float32 (n, COLUMNS)."""
        by = self.remainders.num_embeddings
        found: Tensor = self.quotients(rows // by) + self.remainders(rows % by)
        return found


def quotient_remainder(data: ClickData, n_bytes: int) -> DeepFM:
    """Return a new model, large tables of which are replaced by `QuotientRemainder`.

    What rows are divided by is the same number in all fields, but the root of a field's rows at
    least, where its tables are smallest; it is the largest for which the bytes suffice. Where they
    do not suffice with all tables smallest, those are taken. Tables that would not shrink stay.
    """
    sizes = np.array(list(data.vocabularies.values()))
    roots = np.ceil(np.sqrt(sizes)).astype(np.int64)

    def rows_with(divisors: NDArray[np.int64]) -> NDArray[np.int64]:
        fewer: NDArray[np.int64] = np.minimum(sizes, divisors - -sizes // divisors)
        return fewer

    least = _largest(
        lambda least: int(rows_with(np.maximum(roots, least)).sum()) <= n_bytes // ROW_BYTES,
        int(sizes.max()),
    )
    divisors = np.maximum(roots, least)
    shrunk = rows_with(divisors) < sizes
    model = DeepFM(data.vocabularies)
    for field, rows, divisor, shrinks in zip(
        data.vocabularies, sizes, divisors, shrunk, strict=True
    ):
        if shrinks:
            model.embedding[field] = QuotientRemainder(int(rows), int(divisor))
    return model


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that fits, 1 if none does; smaller ones fit, too."""
    low, high = 1, most + 1  # low is taken, high need not be tried
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
