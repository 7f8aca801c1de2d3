"""The certified filter: whatever float32 makes of the input, codes are the definition's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import reference
from builders import HUGE, ROW_KINDS, TINY, column, definition, opened, rows_of
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.data import Codebook, Float32, chunk_of

N_ROWS = 131  # two full blocks of 64 lanes, or eight of 16, and a rest

# rows and codewords of a case
Case = tuple[Float32, Float32]
CaseKind = Callable[[np.random.Generator, int, int, int], Case]


def drawn(kind: str) -> CaseKind:
    """Rows of one kind; the codewords are rows, as after seeding."""

    def build(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
        rows = rows_of(kind, rng, n, dim)
        return rows, rows[rng.integers(0, n, k)]

    return build


def near_ties(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
    """Rows on the plane between two codewords, rounded: what is left of the difference is noise."""
    codewords = rows_of("normal", rng, k, dim)
    first, second = codewords[rng.integers(0, k, n)], codewords[rng.integers(0, k, n)]
    apart = first.astype(np.float64) - second
    along = rng.standard_normal((n, dim))
    squares = np.maximum((apart * apart).sum(axis=1, keepdims=True), 1e-30)
    along -= apart * ((apart * along).sum(axis=1, keepdims=True) / squares)
    return (second + apart / 2 + along / 4).astype(np.float32), codewords


def one_ulp_apart(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
    """Codewords in pairs that differ by one unit in the last place of one value."""
    codewords = np.repeat(rows_of("normal", rng, -(-k // 2), dim), 2, axis=0)[:k]
    pairs, at = np.arange(1, k, 2), rng.integers(0, dim, k // 2)
    codewords[pairs, at] = np.nextafter(codewords[pairs, at], np.float32(np.inf))
    rows = codewords[rng.integers(0, k, n)] + 0.1 * rng.standard_normal((n, dim))
    return rows.astype(np.float32), codewords


def repeated_codewords(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
    """Codewords several times over, also with −0.0 where the first has 0.0."""
    rows = rows_of("normal", rng, n, dim)
    rows[:, 0] = 0.0
    codewords = rows[rng.integers(0, max(1, k // 3), k)]
    codewords[:, 0] *= rng.choice([-1.0, 1.0], k).astype(np.float32)
    return rows, codewords


def mixed_codewords(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
    """Codewords and rows of every magnitude that float32 has."""
    rows = rows_of("normal", rng, n, dim) * np.float32(0.5)
    codewords = rows_of("normal", rng, k, dim) * np.float32(0.5)
    with np.errstate(under="ignore"):
        rows = np.ldexp(rows, rng.integers(-148, 126, (n, 1)))
        codewords = np.ldexp(codewords, rng.integers(-148, 126, (k, 1)))
    # every second row lies next to a codeword, however small that is
    rows[::2] = codewords[rng.integers(0, k, len(rows[::2]))] * np.float32(1.0 + 2.0**-20)
    return rows, codewords


def far_rows(scale: float) -> CaseKind:
    """Rows far outside the codebook's range, up to where the filter overflows."""

    def build(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
        exponents = rng.integers(0, 127, (n, 1)) if scale >= 1 else rng.integers(-60, 127, (n, 1))
        rows = np.ldexp(rng.uniform(-1, 1, (n, dim)), exponents).astype(np.float32)
        rows[:3] = [[HUGE], [-HUGE], [0.0]]
        return rows, (rows_of("normal", rng, k, dim) * scale).astype(np.float32)

    return build


def constant_column(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
    """A large constant beside subnormals: what makes these of order one takes it out of float32."""
    rows = rows_of("subnormal", rng, n, dim)
    rows[:, 0] = -HUGE
    return rows, rows[rng.integers(0, n, k)]


def offset_by_column(rng: np.random.Generator, n: int, dim: int, k: int) -> Case:
    """Columns with means of a thousand times their spread: uncentred scores fail on a quarter."""
    rows = rows_of("normal", rng, n, dim)
    rows = (rows + 1000 * rng.standard_normal(dim)).astype(np.float32)
    return rows, rows[rng.integers(0, n, k)]


CASES: Mapping[str, CaseKind] = {
    **{kind: drawn(kind) for kind in ROW_KINDS},
    "near ties": near_ties,
    "one ulp apart": one_ulp_apart,
    "repeated codewords": repeated_codewords,
    "mixed codewords": mixed_codewords,
    "far rows, codewords of one": far_rows(1.0),
    "far rows, tiny codewords": far_rows(1e-18),
    "far rows, subnormal codewords": far_rows(1e-42),
    "constant column": constant_column,
    "offset by column": offset_by_column,
}
DIMS = [1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 130, 1024]


def assert_defined(backend_name: str, rows: Float32, codewords: Float32) -> None:
    """Fail unless codes and distances are the definition's."""
    backend = opened(backend_name, threads=1)
    codebooks = backend.load_codebooks({"x": Codebook(codewords)})
    found = backend.assign(backend.load_rows(chunk_of("x", rows)), codebooks, distances=True)
    exact = definition(rows, codewords)
    assert found.distances is not None
    assert found.codes.tolist() == exact.argmin(axis=1).tolist()  # argmin takes the lowest of ties
    assert found.distances.tolist() == exact.min(axis=1).tolist()


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("dim", [1, 3, 17])
def test_the_definition_in_columns_is_the_oracle_s(
    rng: np.random.Generator, kind: str, dim: int
) -> None:
    rows, codewords = CASES[kind](rng, 9, dim, 5)
    expected = [[reference.dist(x, c) for c in codewords.tolist()] for x in rows.tolist()]
    assert definition(rows, codewords).tolist() == expected
    codes, _ = reference.assign(rows, codewords)
    assert definition(rows, codewords).argmin(axis=1).tolist() == codes


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", CASES)
def test_codes_are_the_definition_s(
    backend_name: str, rng: np.random.Generator, kind: str, dim: int
) -> None:
    # RELIABILITY 31, 36
    for k in (2, 5, 33):
        assert_defined(backend_name, *CASES[kind](rng, N_ROWS, dim, k))


@pytest.mark.parametrize("dim", [1, 3, 17])
@pytest.mark.parametrize("k", range(1, 21))
def test_no_number_of_codewords_is_special(
    backend_name: str, rng: np.random.Generator, k: int, dim: int
) -> None:
    # groups and panels are filled up with codewords that must never win, not even for far rows
    for kind in ("normal", "grid", "near ties", "repeated codewords", "far rows, tiny codewords"):
        assert_defined(backend_name, *CASES[kind](rng, N_ROWS, dim, k))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 63, 64, 65])
def test_no_number_of_rows_is_special(backend_name: str, rng: np.random.Generator, n: int) -> None:
    for kind in ("normal", "near ties", "mixed codewords"):
        assert_defined(backend_name, *CASES[kind](rng, n, 33, 7))


@pytest.mark.parametrize("k", [1, 2, 16, 17])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -HUGE, TINY])
def test_codewords_that_are_all_equal(backend_name: str, value: float, k: int) -> None:
    rows = column(0.0, -0.0, 1.0, TINY, -TINY, HUGE, -HUGE)
    assert_defined(backend_name, rows, np.full((k, 1), value, np.float32))


def test_many_codewords(backend_name: str, rng: np.random.Generator) -> None:
    # 5000: more than place the centre
    for kind in ("heavy", "near ties", "one ulp apart"):
        rows, _ = CASES[kind](rng, N_ROWS, 3, 2)
        _, codewords = CASES[kind](rng, 5000, 3, 5000)
        assert_defined(backend_name, rows, codewords)


@hypothesis.settings(max_examples=300)
@hypothesis.given(data=st.data())
def test_any_finite_values(backend_name: str, data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 5), "dim")
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    near = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2.0**-23, 1.0 - 2.0**-24, -1.0, TINY, HUGE])
    values = st.one_of(number, near)
    n, k = data.draw(st.integers(1, 20), "n"), data.draw(st.integers(1, 9), "k")
    rows = data.draw(arrays(np.float32, (n, dim), elements=values), "rows")
    words = data.draw(arrays(np.float32, (k, dim), elements=values), "codewords")
    # codewords that are rows make ties and zeros
    assert_defined(backend_name, rows, words)
    assert_defined(backend_name, rows, np.concatenate([words, rows]))


# The bound is what does it: with the same data and no bound, codes are wrong.


def without_bound(rows: Float32, codewords: Float32) -> tuple[int, int]:
    """Number of wrong codes, and of rows rechecked, when any lead of a score counts as a proof."""
    backend = CpuBackend(1)
    loaded = backend.load_codebooks({"x": Codebook(codewords)})
    loaded.factors[:, 1] = 0.0  # A: what is left of the bound is FLOOR, below any lead here
    codes = backend.assign(chunk_of("x", rows), loaded).codes
    wrong = int((codes != definition(rows, codewords).argmin(axis=1)).sum())
    return wrong, backend.rechecked(loaded)["x"]


@pytest.mark.parametrize("dim", [3, 7, 17, 64, 130])
def test_without_its_bound_the_filter_fails(rng: np.random.Generator, dim: int) -> None:
    rows, codewords = near_ties(rng, 1000, dim, 5)
    wrong, rechecked = without_bound(rows, codewords)
    assert wrong > 100
    assert rechecked < 100
    assert_defined("cpu", rows, codewords)


def test_one_ulp_makes_a_filter_without_bound_fail(rng: np.random.Generator) -> None:
    rows, codewords = one_ulp_apart(rng, 5000, 7, 33)
    assert without_bound(rows, codewords)[0] > 0
    assert_defined("cpu", rows, codewords)


def test_plain_rows_are_proved(rng: np.random.Generator) -> None:
    # the other way round: a bound so wide that every row is rechecked would pass all of the above
    rows = rows_of("normal", rng, 1000, 16)
    backend = CpuBackend(1)
    for offset in (0.0, 1024.0):
        moved = (rows + np.float32(offset)).astype(np.float32)
        loaded = backend.load_codebooks({"x": Codebook(moved[:64])})
        backend.assign(chunk_of("x", moved), loaded)
        assert backend.rechecked(loaded)["x"] < 20
