"""Clicks from files: Criteo's text format, and NumPy archives of ids that are ready for use."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N_INTEGERS, N_CATEGORIES = 13, 26
CRITEO_FIELDS = (
    *(f"I{i + 1}" for i in range(N_INTEGERS)),
    *(f"C{i + 1}" for i in range(N_CATEGORIES)),
)
SPLIT_SEED = 2014  # of the one random split of a text file; a model's seed leaves it alone
SHARES = (0.8, 0.9)  # up to the first: training; up to the second: validation; the rest: test


@dataclass(frozen=True)
class Clicks:
    """Samples of a click log.

    Attributes
    ----------
    ids : int32 (n, n_fields)
        The row of each field's table that a sample looks up.
    labels : float32 (n,)
        1 where it was clicked, else 0.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)


@dataclass(frozen=True)
class ClickData:
    """A click log in three parts, and the rows of every field's table."""

    vocabularies: dict[str, int]
    train: Clicks
    valid: Clicks
    test: Clicks

    def counts(self) -> dict[str, NDArray[np.float32]]:
        """Return how often each row is looked up in training, float32 (rows,) by field."""
        return lookup_counts(self.train, self.vocabularies)


def lookup_counts(clicks: Clicks, vocabularies: dict[str, int]) -> dict[str, NDArray[np.float32]]:
    """Return how often some clicks look each row up, float32 (rows,) by field."""
    return {
        field: np.bincount(clicks.ids[:, i], minlength=rows).astype(np.float32)
        for i, (field, rows) in enumerate(vocabularies.items())
    }


def load_npz(path: Path) -> ClickData:
    """Return the clicks of a NumPy archive.

    Its members: `X` integer (n, n_fields), ids from 0 within each field; `y` (n,), 0 or 1; `split`
    (n,), 0 training, 1 validation, 2 test; `vocab` integer (n_fields,), rows a field; `fields`
    (n_fields,), their names.

    Raises
    ------
    ValueError
        A member is missing, or an id is outside its field's rows. Names it.
    """
    with np.load(path, allow_pickle=False) as members:
        missing = sorted({"X", "y", "split", "vocab", "fields"} - set(members.files))
        if missing:
            raise ValueError(f'"{path}" lacks {missing}; it must hold X, y, split, vocab, fields')
        ids = members["X"].astype(np.int32)
        labels = members["y"].astype(np.float32)
        split = members["split"]
        rows = members["vocab"]
        fields = [str(name) for name in members["fields"]]
    for i, field in enumerate(fields):
        low, high = int(ids[:, i].min()), int(ids[:, i].max())
        if low < 0 or high >= rows[i]:
            raise ValueError(
                f'"{path}": ids of field "{field}" go from {low} to {high}, but it has '
                f"{rows[i]} rows"
            )
    parts = [Clicks(ids[split == part], labels[split == part]) for part in range(3)]
    vocabularies = {field: int(n) for field, n in zip(fields, rows, strict=True)}
    return ClickData(vocabularies, *parts)


def load_criteo(path: Path, min_count: int) -> ClickData:
    """Return the clicks of a text file in Criteo's format, in a random split of 80, 10 and 10 %.

    A line holds, separated by tabs, the label, 13 integers and 26 categories of eight hexadecimal
    digits; any of them but the label may be missing, which is a value like another.

    Parameters
    ----------
    path : Path
        For samples of up to a few million lines: it is read by Python, into memory.
    min_count : int
        A value that training holds fewer times than this shares row 0 with all such values of its
        field.

    Raises
    ------
    ValueError
        A line has not 40 columns, or its label or an integer is none. Names the line.

    Notes
    -----
    An integer v above 2 becomes floor(log(v)²), as Juan, Zhuang and Chin did, the winners of the
    contest on these data (https://www.kaggle.com/c/criteo-display-ad-challenge, 2014).
    """
    labels = array("b")
    columns = [array("i") for _ in CRITEO_FIELDS]
    seen: list[dict[str, int]] = [{} for _ in CRITEO_FIELDS]
    with path.open(encoding="ascii") as lines:
        for number, line in enumerate(lines, 1):
            label, *values = line.rstrip("\n").split("\t")
            if len(values) != len(CRITEO_FIELDS) or label not in {"0", "1"}:
                raise ValueError(
                    f'"{path}", line {number}: label {label!r} and {len(values)} values; '
                    f"needed are 0 or 1 and {len(CRITEO_FIELDS)} values, separated by tabs"
                )
            labels.append(int(label))
            for i, value in enumerate(values):
                try:
                    key = bucket(value) if i < N_INTEGERS else value
                except ValueError as err:
                    raise ValueError(
                        f'"{path}", line {number}: {value!r} stands where an integer must'
                    ) from err
                columns[i].append(seen[i].setdefault(key, len(seen[i])))
    part = np.random.default_rng(SPLIT_SEED).random(len(labels))
    train = part < SHARES[0]
    ids = np.empty((len(labels), len(columns)), np.int32)
    vocabularies = {}
    for i, (field, column) in enumerate(zip(CRITEO_FIELDS, columns, strict=True)):
        values_of_rows = np.frombuffer(column, np.int32)
        kept = np.bincount(values_of_rows[train], minlength=len(seen[i])) >= min_count
        row = np.where(kept, np.cumsum(kept), 0)
        ids[:, i] = row[values_of_rows]
        vocabularies[field] = 1 + int(np.count_nonzero(kept))
    target = np.frombuffer(labels, np.int8).astype(np.float32)
    chosen = (train, ~train & (part < SHARES[1]), part >= SHARES[1])
    return ClickData(vocabularies, *(Clicks(ids[rows], target[rows]) for rows in chosen))


def bucket(value: str) -> str:
    """Return the bucket of an integer of Criteo's as text; empty where it is missing.

    Raises
    ------
    ValueError
        It is neither an integer nor missing.
    """
    if not value:
        return ""
    number = int(value)
    return str(number) if number <= 2 else f"log² {math.floor(math.log(number) ** 2)}"
