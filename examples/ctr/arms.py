"""The arms made of a trained model: compressed tables, few bits, fewer rows, random codes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saec_gpu.artifact import Artifact
from saec_gpu.nn import CompressedEmbedding, compress_module

from .data import ClickData, Clicks
from .metrics import by_frequency
from .model import COLUMNS, DeepFM, tables, with_tables
from .training import measure, predict

ROW_BYTES = 4 * COLUMNS  # float32
SCALE_BYTES = 4  # a float32 a row
LEAST_WEIGHT = 1e-6  # of a row never seen, beside 1 of a row seen once


def table_bytes(model: DeepFM) -> int:
    """Return the bytes of the tables that a model was trained with."""
    return sum(weight.nbytes for weight in model.embedding.parameters())


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


def in_random_codes(model: DeepFM, data: ClickData, artifact: Artifact, seed: int) -> DeepFM:
    """Return the model with an artifact's codes shuffled among the rows of each field.

    What takes as many bytes as the artifact, and knows nothing of the rows. A codeword is the mean
    of its rows, by how often each is looked up in training; it is kept in float32, in whatever
    dtype the artifact stores and counts it.
    """
    random = np.random.default_rng(seed)
    small = compress_module(copy.deepcopy(model), artifact)
    for (name, rows), (field, seen) in zip(
        tables(model).items(), data.counts().items(), strict=True
    ):
        whole = artifact[name].encoding == "identity"
        if not whole:
            codes = random.permutation(artifact[name].codes)
            codebook = means_of_codes(rows, seen, codes, artifact[name].n_codewords)
            small.embedding[field] = CompressedEmbedding(torch.from_numpy(codebook), codes)
    return small


def means_of_codes(
    rows: NDArray[np.float32], seen: NDArray[np.float32], codes: NDArray[Any], n_codewords: int
) -> NDArray[np.float32]:
    """Return the weighted mean of the rows with each code, float32 (n_codewords, dim).

    Rows never seen count so little that they decide only where all of a code are such; a code
    without rows gets zeros.
    """
    weights = np.maximum(seen, LEAST_WEIGHT).astype(np.float64)
    total = np.bincount(codes, weights, n_codewords)
    sums = np.stack([np.bincount(codes, weights * column, n_codewords) for column in rows.T], 1)
    return (sums / np.where(total > 0, total, 1)[:, None]).astype(np.float32)


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
