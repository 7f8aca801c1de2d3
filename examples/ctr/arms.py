"""The arms of the comparison: compressed tables, rows in few bits, fewer rows by hashing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.artifact import Artifact

from .data import ClickData, Clicks
from .metrics import by_frequency
from .model import COLUMNS, DeepFM, tables, with_tables
from .training import measure, predict

ROW_BYTES = 4 * COLUMNS  # float32
SCALE_BYTES = 4  # a float32 a row
HASH_FACTOR = 2_654_435_761  # an odd number near 2³² / golden ratio; Knuth, TAOCP 3, section 6.4


def table_bytes(model: DeepFM) -> int:
    """Return the bytes of the model's full tables."""
    return sum(rows.nbytes for rows in tables(model).values())


def decoded(model: DeepFM, artifact: Artifact) -> DeepFM:
    """Return the model with the rows that an artifact gives; the dense layers stay."""
    fields = {name: artifact[name] for name in tables(model)}
    return with_tables(
        model, {name: field.lookup(np.arange(field.n_rows)) for name, field in fields.items()}
    )


def in_few_bits(rows: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float32], int]:
    """Return rows as they are after rounding to integers of a scale a row, and the bytes of these.

    Parameters
    ----------
    rows : float32 (n, dim)
    bits : int
        Of an integer; the largest magnitude of a row is the largest integer, 127 for 8 bits.

    Returns
    -------
    rounded : float32 (n, dim)
    n_bytes : int
        Integers, packed, and scales.
    """
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(rows).max(1, keepdims=True, initial=0) / np.float32(largest)
    steps = np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)
    n_rows, dim = rows.shape
    return np.rint(steps) * scale, -(-n_rows * dim * bits // 8) + n_rows * SCALE_BYTES


def rounded(model: DeepFM, bits: int) -> tuple[DeepFM, int]:
    """Return the model with all rows in few bits, and their bytes."""
    made = {name: in_few_bits(rows, bits) for name, rows in tables(model).items()}
    changed = with_tables(model, {name: rows for name, (rows, _) in made.items()})
    return changed, sum(n_bytes for _, n_bytes in made.values())


def most_frequent(model: DeepFM, data: ClickData, n_bytes: int) -> tuple[DeepFM, int]:
    """Return the model with its most frequent rows only, all others of a field being one, shared.

    The shared row is the mean of those it stands for, by how often each is looked up in training.
    Ids would have to be renumbered by frequency; that is not counted.

    Returns
    -------
    changed : DeepFM
    n_bytes : int
        Of the rows that are left; at most those given.

    Raises
    ------
    ValueError
        The bytes do not suffice for one row a field.
    """
    counts = list(data.counts().values())
    n_kept = n_bytes // ROW_BYTES - len(counts)
    if n_kept < 0:
        raise ValueError(f"{n_bytes} bytes are less than a row for each of {len(counts)} fields")
    everywhere = np.concatenate(counts)
    kept = np.zeros(len(everywhere), bool)
    kept[np.argsort(-everywhere, kind="stable")[:n_kept]] = True
    changed = {}
    starts = np.cumsum([len(seen) for seen in counts])[:-1]
    for (name, rows), seen, stays in zip(
        tables(model).items(), counts, np.split(kept, starts), strict=True
    ):
        changed[name] = rows.copy()
        if not stays.all():
            shared = seen[~stays] if seen[~stays].any() else None
            changed[name][~stays] = np.average(rows[~stays], axis=0, weights=shared)
    return with_tables(model, changed), (min(n_kept, len(kept)) + len(counts)) * ROW_BYTES


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
    low, high = 1, int(sizes.max()) + 1  # low fits, high need not be tried
    while high - low > 1:
        middle = (low + high) // 2
        fits = int(np.minimum(sizes, middle).sum()) <= affordable
        low, high = (middle, high) if fits else (low, middle)
    buckets = np.minimum(sizes, low)

    def rows_of(clicks: Clicks) -> Clicks:
        mixed = (clicks.ids.astype(np.uint64) * np.uint64(HASH_FACTOR)) % np.uint64(2**32)
        shared = (mixed % buckets.astype(np.uint64)).astype(np.int32)
        return Clicks(np.where(buckets < sizes, shared, clicks.ids), clicks.labels)

    return ClickData(
        {field: int(rows) for field, rows in zip(data.vocabularies, buckets, strict=True)},
        *(rows_of(part) for part in (data.train, data.valid, data.test)),
    )


def mean_frequency(clicks: Clicks, counts: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return how often the values of each sample were seen in training: geometric mean, (n,).

    One more is added to each count, so that a single unseen value does not decide.
    """
    logs = [np.log1p(seen[clicks.ids[:, i]]) for i, seen in enumerate(counts.values())]
    found: NDArray[np.float64] = np.expm1(np.mean(logs, axis=0, dtype=np.float64))
    return found


def judged(
    model: DeepFM, data: ClickData, n_bytes: int, frequency: NDArray[np.float64]
) -> dict[str, Any]:
    """Return what an arm costs and what it reaches.

    Parameters
    ----------
    frequency : float64 (n,)
        Of the test part's samples, see `mean_frequency`.

    Returns
    -------
    found : dict
        `bytes` of the tables, `valid` and `test` AUC and log loss, `test_deciles` by frequency.
    """
    deciles = by_frequency(data.test.labels, predict(model, data.test), frequency)
    return {
        "bytes": n_bytes,
        "valid": measure(model, data.valid),
        "test": measure(model, data.test),
        "test_deciles": deciles,
    }
