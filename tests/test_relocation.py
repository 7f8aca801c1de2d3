"""Idle codewords begin anew where an update needs them: as the oracle has it, by hand, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from saec_gpu.backends import open_backend
from saec_gpu.clustering import relocation
from saec_gpu.clustering.relocation import relocate
from saec_gpu.clustering.selection import Selection
from saec_gpu.data import Float32, Float64, Int64

CPU = open_backend("cpu")


def relocated(
    rows: Any, weights: Any, codewords: Any, codes: Any, added: int = 0
) -> tuple[Float32, Int64, Float64]:
    """Return codewords, codes and distances after `relocate`."""
    table, w = np.asarray(rows, np.float32), np.asarray(weights, np.float64)
    words = np.asarray(codewords, np.float32)
    n_before, dim = words.shape
    words = np.concatenate([words, np.zeros((added, dim), np.float32)])
    own = np.array(codes, np.int64)
    distances = np.array(
        [reference.dist(x, words[c].tolist()) for x, c in zip(table.tolist(), own, strict=True)]
    )
    index, ones = np.arange(len(table)), np.ones(len(table))
    sample = Selection(index, table, w, ones, True, 0).statistics("x", len(words), 0).sample
    relocate(
        CPU, words, n_before, table, w, own, distances, sample, np.zeros(dim, np.float32)
    )  # fmt: skip
    return words, own, distances


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[Any], list[float], NDArray[Any], list[int], int]:
    """Rows, weights, codewords, codes and codewords to add; values meet, and so do distances."""
    dim, k = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([2, 5, 1000]))
    rows = rng.integers(-spread, spread + 1, (n, dim))
    codewords = rng.integers(-spread, spread + 1, (k, dim))
    weights = rng.choice(draw(st.sampled_from([[1.0], [0.0, 1.0, 3.0], [0.1, 0.7, 500.0]])), n)
    weights[rng.integers(n)] = 2.0
    if draw(st.booleans()):
        codes = reference.assign(rows, codewords)[0]
    else:
        codes = rng.integers(0, k, n).tolist()
    return rows, weights.tolist(), codewords, codes, draw(st.integers(0, 3))


@given(problems())
def test_as_the_oracle_has_it(
    problem: tuple[NDArray[Any], list[float], NDArray[Any], list[int], int],
) -> None:
    rows, weights, codewords, codes, added = problem
    words, own, distances = relocated(rows, weights, codewords, codes, added)
    k = len(codewords)
    expected = np.zeros((k + added, rows.shape[1]), np.float32)
    expected[:k] = codewords
    table = reference.as_rows(rows)
    served = [
        reference.dist(x, expected[c].tolist()) for x, c in zip(table.tolist(), codes, strict=True)
    ]
    drawn = reference.sample(table, weights, k + added, 0, "x")
    found = list(codes)
    reference.relocate(table, weights, drawn, expected, k, found, served)
    assert words.tobytes() == expected.tobytes()
    assert own.tolist() == found
    assert distances.tolist() == served


# Codewords at 0, 1, 10 and 20 with a row each, and a heavy row that came to 16.
ROWS = [[0.0], [1.0], [10.0], [20.0], [16.0]]
CODEWORDS = [[0.0], [1.0], [10.0], [20.0]]
CODES = [0, 1, 2, 3, 3]


def test_by_hand() -> None:
    # The lightest, 1, is a step from its neighbour: it is worth 3, and the heavy row 5 · 16.
    words, codes, distances = relocated(ROWS, [4, 3, 4, 4, 5], CODEWORDS, CODES)
    assert words[:, 0].tolist() == [0, 16, 10, 20]
    assert codes.tolist() == [0, 0, 2, 3, 1]
    assert distances.tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(("weight", "moves"), [(5.0, False), (5.25, True)])
def test_what_a_move_must_be_worth(weight: float, moves: bool) -> None:
    # Its row would cost 20 · 1 more, four times that is 5 · 16.
    words, _, _ = relocated(ROWS, [99, 20, 99, 99, weight], CODEWORDS, CODES)
    assert words[1, 0] == (16 if moves else 1)


def test_codewords_without_weight_all_begin_anew() -> None:
    rows = [[0.0], [5.0], [6.0], [7.0], [8.0]]
    words, codes, _ = relocated(rows, [1, 1, 2, 3, 4], np.arange(5)[:, None] * 0.01, [0] * 5)
    assert sorted(words[1:, 0].tolist()) == [5, 6, 7, 8]
    assert words[codes, 0].tolist() == [0, 5, 6, 7, 8]


def test_added_codewords_begin_at_rows_and_others_stay() -> None:
    words, codes, _ = relocated([[0.0], [1.0], [9.0]], [9, 9, 1], [[0.0], [1.0]], [0, 1, 1], 1)
    assert words[:, 0].tolist() == [0, 1, 9]
    assert codes.tolist() == [0, 1, 2]


def test_one_codeword_has_nowhere_to_go() -> None:
    words, codes, distances = relocated([[0.0], [3.0]], [1, 1], [[0.0]], [0, 0])
    assert (words.tolist(), codes.tolist(), distances.tolist()) == ([[0]], [0, 0], [0, 9])


def test_rows_that_are_met_call_nobody() -> None:
    words, codes, _ = relocated([[1.0], [2.0]], [1, 1], [[1.0], [2.0], [3.0]], [0, 1], 1)
    assert words[:, 0].tolist() == [1, 2, 3, 0]
    assert codes.tolist() == [0, 1]


@pytest.mark.parametrize(("most", "moved"), [(1, 1), (2, 2), (4096, 3)])
def test_no_more_than_so_many_are_idle(
    monkeypatch: pytest.MonkeyPatch, most: int, moved: int
) -> None:
    # Six pairs of codewords a thousandth apart, and far from all five heavy rows.
    words = np.repeat(np.arange(6.0), 2)[:, None] + np.tile([[0.0], [0.001]], (6, 1))
    rows = np.concatenate([words, [[100.0], [200.0], [300.0], [400.0], [500.0]]])
    assert relocation.MOST_IDLE == 4096
    monkeypatch.setattr(relocation, "MOST_IDLE", most)
    codes = [*range(12), *[11] * 5]
    new, _, _ = relocated(rows, [1.0] * 12 + [50.0] * 5, words, codes)
    assert int((new[:, 0] >= 100).sum()) == moved
