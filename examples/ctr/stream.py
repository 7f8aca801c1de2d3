"""A stream of made-up clicks, hour by hour: growing vocabularies and drifting preferences.

Everything follows from the seed. What is true of the stream is only what is planted here: it shows
the cycle at work, not what compression costs on real clicks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .data import ClickData, Clicks

FIRST_ROWS = {
    "user": 16_000, "item": 8_000, "advertiser": 2_000, "site": 1_000,
    "region": 300, "category": 100, "device": 20, "position": 8,
}  # fmt: skip
CLICKS_AN_HOUR = 40_000
GROWTH = 0.02  # of every vocabulary, an hour
DRIFT = 0.10  # of every vocabulary's rows get other preferences, an hour
EXPONENT = 1.05  # of Zipf's law: the r-th most popular row is looked up in proportion to r**-1.05

LATENT = 4  # numbers that make up a preference
ROWS_A_KIND = 50  # rows are of a few kinds, as users and items are
WITHIN_KIND = 0.5  # standard deviation of rows around their kind; of kinds it is 1
FIRST_ORDER, PAIRS = 0.3, 0.1  # how much rows alone, and pairs of rows, move the logit
BASE_LOGIT = -1.5  # a fifth to a third is clicked, and the truth itself has an AUC of about 0.8

TRAIN_HOURS = 8  # of the stream as a fixed data set; one more is for validation, one for testing


class Field:
    """The truth about one field as it is in the current hour.

    Row 0 is never drawn: it stands for the values that a model does not know yet.

    Attributes
    ----------
    popularity : float64 (rows,)
        In proportion to it a row is drawn.
    preferences : float64 (rows, LATENT + 1)
        The last column moves the logit by itself, the others with those of other fields.
    """

    def __init__(self, rows: int, rng: np.random.Generator) -> None:
        n_kinds = max(2, rows // ROWS_A_KIND)
        self._kinds = rng.standard_normal((n_kinds, LATENT + 1))
        ranks = rng.permutation(np.arange(1, rows, dtype=np.float64))
        self.popularity = np.append(0.0, (ranks / rows) ** -EXPONENT)
        self.preferences = self._new_preferences(rows, rng)
        self._exact_rows = float(rows)

    def advance(self, rng: np.random.Generator) -> None:
        """Let an hour pass: some rows change their preferences, and some are new."""
        rows = len(self.popularity)
        changed = rng.choice(rows, round(DRIFT * rows), replace=False)
        self.preferences[changed] = self._new_preferences(len(changed), rng)
        self._exact_rows *= 1 + GROWTH
        n_new = int(self._exact_rows) - rows
        # a new row takes any rank but the first, whose lookups would be most of the field's
        quantiles = rng.uniform(2 / rows, 1, n_new)
        self.popularity = np.append(self.popularity, quantiles**-EXPONENT)
        self.preferences = np.concatenate([self.preferences, self._new_preferences(n_new, rng)])

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return n rows, int64 (n,), drawn by popularity."""
        edges = np.cumsum(self.popularity)
        # below 1, yet a product that rounds up to the last edge would fall off the end
        places = rng.random(n) * edges[-1]
        drawn: NDArray[np.int64] = np.searchsorted(edges[:-1], places, side="right")
        return drawn

    def _new_preferences(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        kinds = self._kinds[rng.integers(len(self._kinds), size=n)]
        return kinds + WITHIN_KIND * rng.standard_normal((n, LATENT + 1))


def click_hours(
    seed: int, *, clicks: int = CLICKS_AN_HOUR, first_rows: Mapping[str, int] = FIRST_ROWS
) -> Iterator[tuple[dict[str, int], Clicks]]:
    """Yield the vocabularies and the clicks of hour after hour, without end.

    Parameters
    ----------
    seed : int
        Everything drawn follows from it.
    clicks : int
        Samples an hour.
    first_rows : mapping of field to int
        Rows of each field in the first hour, at least 2.

    Examples
    --------
    >>> hours = click_hours(0, clicks=3, first_rows={"user": 100, "item": 50})
    >>> [vocabularies for vocabularies, _ in islice(hours, 2)]
    [{'user': 100, 'item': 50}, {'user': 102, 'item': 51}]
    """
    rng = np.random.default_rng(seed)
    fields = {name: Field(rows, rng) for name, rows in first_rows.items()}
    while True:
        ids = np.stack([field.draw(clicks, rng) for field in fields.values()], 1)
        chance = 1 / (1 + np.exp(-true_logits(list(fields.values()), ids)))
        labels = (rng.random(clicks) < chance).astype(np.float32)
        vocabularies = {name: len(field.popularity) for name, field in fields.items()}
        yield vocabularies, Clicks(ids.astype(np.int32), labels)
        for field in fields.values():
            field.advance(rng)


def true_logits(fields: list[Field], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the logits of a click that the planted preferences give, float64 (n,)."""
    found = np.stack([field.preferences[ids[:, i]] for i, field in enumerate(fields)], 1)
    latent, alone = found[..., :LATENT], found[..., LATENT]
    pairs = (np.square(latent.sum(1)) - np.square(latent).sum(1)).sum(1) / 2
    logits: NDArray[np.float64] = BASE_LOGIT + FIRST_ORDER * alone.sum(1) + PAIRS * pairs
    return logits


def stream_data(seed: int, clicks: int) -> ClickData:
    """Return the first hours of the stream as one data set; the last hour is for testing.

    Values that come up only after training are row 0.
    """
    hours = list(islice(click_hours(seed, clicks=clicks), TRAIN_HOURS + 2))
    vocabularies = hours[TRAIN_HOURS - 1][0]
    train = [hour for _, hour in hours[:TRAIN_HOURS]]
    return ClickData(
        vocabularies,
        Clicks(
            np.concatenate([hour.ids for hour in train]),
            np.concatenate([hour.labels for hour in train]),
        ),
        *(known(later, vocabularies) for _, later in hours[TRAIN_HOURS:]),
    )


def known(clicks: Clicks, vocabularies: Mapping[str, int]) -> Clicks:
    """Return the clicks as a model of these vocabularies sees them: row 0 for what it lacks."""
    rows = np.array(list(vocabularies.values()), np.int32)
    return Clicks(np.where(clicks.ids < rows, clicks.ids, 0), clicks.labels)
