"""Codewords are stored as codewords.py defines it, bit for bit, whatever their values."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import reference
from builders import HUGE, TINY, bits
from saec_gpu.codewords import CODEWORDS_DTYPES, codebook_bytes, decode, store
from saec_gpu.errors import ParamError
from saec_gpu.sources.stored import widened_bfloat16

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT16_MAX = 65504.0
FLOAT16_TIE = 65520.0  # halfway to 2^16, the first that float16 does not hold

Codewords = NDArray[np.float32]


def any_codewords(greatest: float) -> st.SearchStrategy[Any]:
    numbers = st.floats(-greatest, greatest, width=32)
    shapes = st.tuples(st.integers(0, 6), st.integers(1, 5))
    return hnp.arrays(np.float32, shapes, elements=numbers)


def tight_codewords() -> st.SearchStrategy[Any]:
    """Codewords of one binary order, where rounding the scale up matters most."""
    return st.tuples(
        st.integers(-149, 120), hnp.arrays(np.float32, (3, 4), elements=st.floats(-2, 2, width=32))
    ).map(lambda drawn: np.ldexp(drawn[1], drawn[0]))


@given(st.one_of(any_codewords(FLOAT32_MAX), any_codewords(1.0), tight_codewords()))
def test_int8_is_the_oracles(codewords: Codewords) -> None:
    stored = store(codewords, "int8", field="x")
    assert stored.dtype == "int8"
    assert stored.scales is not None
    assert (str(stored.values.dtype), str(stored.scales.dtype)) == ("int8", "uint16")
    assert (stored.values.shape, stored.scales.shape) == (codewords.shape, codewords.shape[:1])
    expected = [reference.int8_codeword(codeword) for codeword in codewords.tolist()]
    assert stored.values.tolist() == [q for q, _ in expected]
    assert widened_bfloat16(stored.scales).tolist() == [scale for _, scale in expected]
    decoded = stored.decoded()
    assert decoded.dtype == np.float32
    for row, (q, scale) in zip(decoded.tolist(), expected, strict=True):
        assert [Fraction(x) for x in row] == [q_j * Fraction(scale) for q_j in q]
    nbytes = stored.values.nbytes + stored.scales.nbytes
    assert codebook_bytes(len(codewords), codewords.shape[1], "int8") == nbytes


@given(any_codewords(FLOAT16_MAX))
def test_float16_is_the_oracles(codewords: Codewords) -> None:
    stored = store(codewords, "float16", field="x")
    assert (stored.dtype, stored.scales) == ("float16", None)
    expected = reference.as_stored(codewords, "float16")
    assert bits(stored.decoded()) == bits(expected)
    assert codebook_bytes(len(codewords), codewords.shape[1], "float16") == stored.values.nbytes


@given(any_codewords(FLOAT32_MAX))
def test_float32_is_what_it_was(codewords: Codewords) -> None:
    stored = store(codewords, "float32", field="x")
    assert (stored.dtype, stored.scales) == ("float32", None)
    assert stored.decoded() is codewords
    assert codebook_bytes(len(codewords), codewords.shape[1], "float32") == codewords.nbytes


def test_hand_computed_scales() -> None:
    codewords = np.array(
        [
            [127.0, -0.5, 1.5],  # scale 1: ties to even, and −0.5 to 0
            [-0.0, 0.0, 0.0],  # zeros: scale 0
            [1.0, -1.0, 0.0],  # 1/127 = 2^-7 · 1.00787…, of which 1 + 2/128 is the least above
            [127 * 2.0**-133, 2.0**-134, 0.0],  # the least scale
            [TINY, 0.0, -TINY],  # below it: nothing is left
        ],
        np.float32,
    )
    stored = store(codewords, "int8", field="x")
    assert stored.scales is not None
    assert widened_bfloat16(stored.scales).tolist() == [
        1.0, 0.0, 2.0**-7 * (1 + 2 / 128), 2.0**-133, 2.0**-133,
    ]  # fmt: skip
    assert stored.values.tolist() == [
        [127, 0, 2], [0, 0, 0], [126, -126, 0], [127, 0, 0], [0, 0, 0],
    ]  # fmt: skip


def test_the_greatest_float32_stays_finite() -> None:
    # 127 · scale may exceed the greatest codeword; it never leaves float32
    for greatest in (FLOAT32_MAX, HUGE, 2.0**127):
        for below in range(200):
            value = np.float32(greatest) * np.float32(1 - below / 256)
            stored = store(np.array([[value, -value]], np.float32), "int8", field="x")
            assert np.isfinite(stored.decoded()).all()
            assert np.abs(stored.values).max() in (126, 127)


def test_a_codeword_and_its_negative_are_stored_alike(rng: np.random.Generator) -> None:
    codewords = rng.standard_normal((50, 7)).astype(np.float32)
    for dtype in CODEWORDS_DTYPES:
        one, other = store(codewords, dtype, field="x"), store(-codewords, dtype, field="x")
        assert bits(one.decoded()) == bits(0 - other.decoded())


@pytest.mark.parametrize("value", [FLOAT16_TIE, -FLOAT16_TIE, 1e30])
def test_beyond_float16(value: float) -> None:
    codewords = np.array([[1.0, 2.0], [FLOAT16_MAX, value]], np.float32)
    with pytest.raises(ParamError, match=r'codeword 1 of field "item" holds .*65504 at most'):
        store(codewords, "float16", field="item")
    below = np.nextafter(np.float32(FLOAT16_TIE), np.float32(0))
    assert store(np.array([[below]]), "float16", field="x").values.tolist() == [[FLOAT16_MAX]]


def test_some_codewords_are_decoded_as_all_of_them(rng: np.random.Generator) -> None:
    codewords = rng.standard_normal((20, 3)).astype(np.float32)
    which = rng.integers(0, 20, (4, 5))
    for dtype in CODEWORDS_DTYPES:
        stored = store(codewords, dtype, field="x")
        scales = None if stored.scales is None else stored.scales[which]
        found = decode(stored.values[which], scales)
        assert found.shape == (4, 5, 3)
        assert np.array_equal(found, stored.decoded()[which])
