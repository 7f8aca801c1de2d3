"""Each point of a curve is what clustering the coreset in plain loops gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import saec_gpu as saec
from builders import opened
from saec_gpu.backends import open_backend
from saec_gpu.clustering import curves
from saec_gpu.clustering.curves import Point, grid, measure
from saec_gpu.clustering.rules import estimated_uses
from saec_gpu.clustering.selection import Selection, coreset
from saec_gpu.codewords import CODEWORDS_DTYPES, CodewordsDtype, codebook_bytes
from saec_gpu.errors import ParamError
from saec_gpu.packing import packed_size
from saec_gpu.sources import TableField

Arrays = Mapping[str, NDArray[Any]]
SEED = 3


def measured(
    tables: Arrays,
    weights: Arrays | None = None,
    *,
    size: int = 10**6,
    dtypes: Sequence[CodewordsDtype] = CODEWORDS_DTYPES,
    backend: str = "cpu",
    in_levels: bool = False,
) -> dict[str, tuple[Point, ...]]:
    source = saec.open_tables(dict(tables))
    vectors = None if weights is None else saec.open_weights(dict(weights), source)
    fields = list(source.fields.values())

    def select(field: TableField) -> Selection:
        return coreset(source, vectors, field, size, SEED)

    return measure(
        opened(backend, threads=1), fields, select, dtypes=dtypes, in_levels=in_levels,
        bit_prices={}, least={}, seed=SEED, wanted=lambda points: points, progress=lambda _: None,
    )  # fmt: skip


@pytest.fixture
def tables(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    return {
        "item": rng.standard_normal((97, 3)).astype(np.float32),
        "shop": rng.standard_normal((31, 1)).astype(np.float32) + 100,
        "user": rng.standard_normal((300, 2)).astype(np.float64),
    }


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    return {"item": rng.integers(0, 50, 97), "user": rng.integers(1, 10**6, 300)}


def test_points_are_those_of_the_plain_loops(
    tables: Arrays, weights: Arrays, backend_name: str
) -> None:
    source = saec.open_tables(dict(tables))
    vectors = saec.open_weights(dict(weights), source)
    for size in (40, 10**6):
        found = measured(tables, weights, size=size, backend=backend_name)
        assert list(found) == ["item", "shop", "user"]
        for name, points in found.items():
            table = source.fields[name]
            numbers = grid(table.n_rows)
            one = coreset(source, vectors, table, size, SEED)
            at = iter(points)
            for k in numbers:
                for dtype in CODEWORDS_DTYPES:
                    point = next(at)
                    assert point.dtype == dtype
                    assert point.codebook_bytes == codebook_bytes(point.codewords, table.dim, dtype)
                    assert point.code_bytes == packed_size(table.n_rows, point.codewords)
                    if k in (1, 3, 12):  # for which the plain loops are soon done
                        distortion, counts = reference.curve_point(
                            one.rows, one.weights, k, numbers[-1], SEED, name, dtype
                        )
                        assert (point.codewords, point.distortion) == (len(counts), distortion)
            assert next(at, None) is None


def test_the_error_is_that_of_the_codes_and_of_the_codewords_as_stored(
    tables: Arrays, weights: Arrays
) -> None:
    source = saec.open_tables(dict(tables))
    vectors = saec.open_weights(dict(weights), source)
    table = source.fields["item"]
    one = coreset(source, vectors, table, 97, SEED)
    own = curves._Measured(open_backend("cpu", threads=1), [table], {"item": one}, SEED)
    found = {(p.codewords, p.dtype): p.distortion for p in measured(tables, weights)["item"]}
    for k in (1, 4, 32):
        words = own.fitted(["item"], k)["item"]
        codes, _ = reference.assign(tables["item"], words)
        for dtype in CODEWORDS_DTYPES:
            stored = reference.as_stored(words, dtype)
            _, error = reference.errors(tables["item"], weights["item"], stored, codes)
            assert found[len(words), dtype] == error


def test_of_a_sample_rows_are_estimated_and_add_up_nearly() -> None:
    # Half of the rows lie at 0, looked up a hundred times as often as those at 10.
    generator = np.random.default_rng(5)
    rows = np.repeat([0.0, 10.0], 10_000)[:, None] + generator.uniform(-1, 1, (20_000, 1))
    weights = np.repeat([100.0, 1.0], 10_000)
    source = saec.open_tables({"item": rows})
    vectors = saec.open_weights({"item": weights}, source)
    one = coreset(source, vectors, source.fields["item"], 2000, SEED)
    far = (one.rows[:, 0] > 5).astype(np.uint32)
    assert far.sum() < 100  # in the coreset they are few
    counts = estimated_uses(far, 2, one, 20_000, None)
    assert np.abs(counts - 10_000).max() < 3000
    assert abs(int(counts.sum()) - 20_000) <= 1
    assert counts.dtype == np.int64


def test_fields_are_measured_alike_together_and_alone(
    tables: Arrays, weights: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = measured(tables, weights)
    monkeypatch.setattr(curves, "GROUP_BYTES", 1)
    assert measured(tables, weights) == together
    alone = {"user": tables["user"]}
    assert measured(alone, {"user": weights["user"]})["user"] == together["user"]


def test_distinct_rows_are_met_exactly_and_no_more_codewords_come_of_them() -> None:
    rows = np.repeat(np.eye(5, dtype=np.float32), 20, axis=0)
    points = measured({"item": rows}, dtypes=["float32"])["item"]
    assert [(p.codewords, p.distortion > 0) for p in points] == [
        (1, True), (2, True), (3, True), (4, True), *[(5, False)] * (len(grid(100)) - 4),
    ]  # fmt: skip


@pytest.mark.parametrize("n_rows", [1, 2])
def test_few_rows(n_rows: int) -> None:
    rows = np.arange(n_rows, dtype=np.float32)[:, None]
    points = measured({"item": rows}, dtypes=["float32"])["item"]
    assert [p.codewords for p in points] == list(range(1, n_rows + 1))
    assert points[-1].distortion == 0.0


def test_no_weight_at_all_counts_as_none_given(tables: Arrays) -> None:
    zero = {"item": np.zeros(97)}
    for size in (40, 97):
        alike = {"item": tables["item"]}
        assert measured(alike, zero, size=size) == measured(alike, size=size)


def test_rows_of_weight_0_have_no_part_in_the_distortion() -> None:
    rows = np.array([[0.0]] * 5 + [[1.0]] * 5 + [[50.0]], np.float32)
    weights = np.array([1.0] * 10 + [0.0])
    points = measured({"item": rows}, {"item": weights}, dtypes=["float32"])["item"]
    assert {p.codewords: p.distortion for p in points} == {1: 2.5, 2: 0.0}


def test_what_float16_does_not_hold_is_no_point_of_its_curve() -> None:
    rows = np.concatenate([np.zeros((50, 2)), np.full((50, 2), 1e5)]).astype(np.float32)
    found = measured({"item": rows})["item"]
    # one codeword, the mean, is 50,000, which float16 holds
    assert [p.codewords for p in found if p.dtype == "float16"] == [1]
    assert {p.codewords for p in found if p.dtype == "int8"} == {1, 2}
    with pytest.raises(ParamError, match=r'codeword . of field "item" holds a value .* float16'):
        measured({"item": rows}, dtypes=["float16"])


def test_every_field_is_counted_once(tables: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "GROUP_BYTES", 6000)
    source = saec.open_tables(dict(tables))
    counts: list[int] = []
    measure(
        open_backend("cpu", threads=1), list(source.fields.values()),
        lambda field: coreset(source, None, field, 100, SEED),
        dtypes=["int8"], in_levels=False, bit_prices={}, least={}, seed=SEED,
        wanted=lambda points: points, progress=counts.append,
    )  # fmt: skip
    assert (sum(counts), len(counts)) == (3, 2)


def test_codes_count_as_they_will_be_stored(rng: np.random.Generator) -> None:
    rows = np.exp(3 * rng.standard_normal((5000, 1))).astype(np.float32)
    (planes,) = measured({"x": rows}).values()
    (found,) = measured({"x": rows}, in_levels=True).values()
    fewer = 0
    for one, plane in zip(found, planes, strict=True):
        assert (one.codewords, one.dtype, one.distortion) == (
            plane.codewords, plane.dtype, plane.distortion,
        )  # fmt: skip
        fewer += one.code_bytes < plane.code_bytes
        assert one.code_bytes <= plane.code_bytes
    assert fewer > len(found) // 2


def test_a_curve_ends_where_nobody_wants_more(tables: Arrays) -> None:
    source = saec.open_tables(dict(tables))
    asked: list[dict[str, int]] = []

    def wanted(points: Mapping[str, Sequence[Point]]) -> set[str]:
        asked.append({name: own[-1].codewords for name, own in points.items()})
        return {"item"} if len(asked) == 1 else set()

    found = measure(
        open_backend("cpu", threads=1), list(source.fields.values()),
        lambda field: coreset(source, None, field, 1000, SEED),
        dtypes=["int8"], in_levels=False, bit_prices={}, least={}, seed=SEED,
        wanted=wanted, progress=lambda _: None,
    )  # fmt: skip
    assert asked[0] == {"item": 24, "shop": 31, "user": 24}
    assert {name: points[-1].codewords for name, points in found.items()} == {
        "item": 48, "shop": 31, "user": 24,
    }  # fmt: skip
