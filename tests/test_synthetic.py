"""Planted tables: what they promise, and that they leave the process as they found it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from saec_gpu.errors import ParamError
from saec_gpu.synthetic import CRITEO_VOCABULARIES, planted, recommender_tables, zipf_counts


@pytest.mark.parametrize(
    ("n_rows", "dim", "n_clusters"),
    [(1, 1, 1), (97, 1, 31), (97, 3, 97), (1025, 17, 2), (1025, 64, 257), (31, 130, 5)],
)
def test_planted_centres_are_nearest(n_rows: int, dim: int, n_clusters: int) -> None:
    rows, centres, labels = planted(n_rows, dim, n_clusters, spread=0.45, seed=3)
    assert rows.shape == (n_rows, dim)
    assert rows.dtype == np.float32
    assert centres.shape == (n_clusters, dim)
    assert centres.dtype == np.float32
    assert labels.shape == (n_rows,)
    assert labels.dtype == np.int64
    differences = rows[:, None].astype(np.float64) - centres
    distances = np.square(differences).sum(axis=2)
    assert np.array_equal(distances.argmin(axis=1), labels)
    assert distances.min(axis=1).max() > 0
    sizes = np.bincount(labels, minlength=n_clusters)
    assert {*sizes.tolist()} <= {n_rows // n_clusters, -(-n_rows // n_clusters)}


def test_planted_clusters_are_well_separated() -> None:
    rows, _, labels = planted(310, 5, 31, spread=0.2, seed=1)
    distances = np.square(rows[:, None].astype(np.float64) - rows).sum(axis=2)
    same = labels[:, None] == labels
    assert distances[same].max() < distances[~same].min()


def test_planted_without_spread_repeats_the_centres() -> None:
    rows, centres, labels = planted(97, 3, 7, spread=0.0, seed=0)
    assert np.array_equal(rows, centres[labels])
    assert len(np.unique(rows, axis=0)) == 7
    assert np.array_equal(centres, np.rint(centres))


def test_zipf_counts() -> None:
    counts = zipf_counts(1025, 1.05, 1_000_000, seed=2)
    assert counts.dtype == np.float64
    assert np.array_equal(counts, np.rint(counts))
    assert counts.sum() == 1_000_000
    assert counts.min() >= 0
    # By hand: sum of r**-1.05 for r of 1 to 1025 is 6.440, so the first row has a share of 0.1553;
    # the second has 2**-1.05 of that. The margins are ten standard deviations of the draws.
    first, second = np.sort(counts)[::-1][:2]
    assert abs(first - 155_290) < 3_700
    assert abs(second - 75_000) < 2_700
    assert not np.array_equal(counts, np.sort(counts)[::-1]), "popular rows lie anywhere"


@pytest.mark.parametrize("total", [0, 1, 2**53])
def test_zipf_counts_sum_exactly(total: int) -> None:
    assert sum(int(count) for count in zipf_counts(31, 0.7, total, seed=0)) == total


def test_recommender_tables_have_the_proportions_of_criteo() -> None:
    tables, counts = recommender_tables(100_000, 26, 3, seed=0)
    assert list(tables) == [f"C{i:02}" for i in range(1, 27)]
    assert list(tables) == sorted(tables)
    assert list(counts) == list(tables)
    n_rows = [len(table) for table in tables.values()]
    total = sum(CRITEO_VOCABULARIES)
    assert n_rows == [max(1, round(size * 100_000 / total)) for size in CRITEO_VOCABULARIES]
    assert abs(sum(n_rows) - 100_000) <= 26
    for name, table in tables.items():
        assert table.dtype == np.float32
        assert table.shape == (len(counts[name]), 3)
        assert np.isfinite(table).all()
    assert {table.sum() for table in counts.values()} == {135_773.0}


def test_recommender_tables_repeat_the_vocabularies() -> None:
    tables, _ = recommender_tables(1_000, 101, 2, seed=0)
    assert list(tables) == sorted(tables)
    assert len(tables) == 101
    assert len(tables["C003"]) == len(tables["C029"])
    assert not np.array_equal(tables["C003"], tables["C029"])


def _arrays(result: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(result, dict):
        return list(result.values())
    if isinstance(result, tuple):
        return [array for part in result for array in _arrays(part)]
    return [result]


MAKERS: list[Callable[[int], Any]] = [
    lambda seed: planted(97, 3, 31, spread=0.1, seed=seed),
    lambda seed: zipf_counts(97, 1.0, 1000, seed),
    lambda seed: recommender_tables(1000, 3, 2, seed),
]


@pytest.mark.parametrize("make", MAKERS, ids=["planted", "zipf_counts", "recommender_tables"])
def test_seed_decides_everything(make: Callable[[int], Any]) -> None:  # RELIABILITY 44
    np.random.seed(5)  # the global state is what must stay
    before = np.random.get_state(legacy=False)
    one, again, other = _arrays(make(1)), _arrays(make(1)), _arrays(make(2))
    after = np.random.get_state(legacy=False)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert str(before) == str(after)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: planted(0, 1, 1, spread=0, seed=0), "n_rows is 0"),
        (lambda: planted(1, 0, 1, spread=0, seed=0), "dim is 0"),
        (lambda: planted(3, 1, 0, spread=0, seed=0), "n_clusters is 0"),
        (lambda: planted(3, 1, 4, spread=0, seed=0), "4 clusters were asked for of 3 rows"),
        (lambda: planted(3, 1, 2, spread=0.5, seed=0), "spread is 0.5"),
        (lambda: planted(3, 1, 2, spread=float("nan"), seed=0), "spread is nan"),
        (lambda: zipf_counts(0, 1.0, 1, seed=0), "n_rows is 0"),
        (lambda: zipf_counts(1, 1.0, -1, seed=0), "total is -1"),
        (lambda: zipf_counts(1, 1.0, 2**53 + 1, seed=0), "total is 9007199254740993"),
        (lambda: zipf_counts(1, -0.5, 1, seed=0), "exponent is -0.5"),
        (lambda: zipf_counts(1, float("inf"), 1, seed=0), "exponent is inf"),
        (lambda: recommender_tables(0, 1, 1, seed=0), "n_rows_total is 0"),
        (lambda: recommender_tables(1, 0, 1, seed=0), "n_fields is 0"),
        (lambda: recommender_tables(1, 1, 0, seed=0), "dim is 0"),
    ],
)
def test_wrong_parameters(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ParamError, match=message):
        make()
