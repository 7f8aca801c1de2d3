"""What is told of a source before compression is what compression then finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import saec_gpu as saec
from saec_gpu.codewords import CODEWORDS_DTYPES, CodewordsDtype
from saec_gpu.compression import plans_by_number
from saec_gpu.errors import ParamError, WeightError
from saec_gpu.inspection import Inspection, WeightSummary, as_json, inspect_tables

pytestmark = pytest.mark.usefixtures("small_coresets")

Arrays = dict[str, NDArray[Any]]


def tables_of(**shapes: tuple[int, int]) -> Arrays:
    generator = np.random.default_rng(3)
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def inspected(
    tables: Arrays,
    weights: Arrays | None = None,
    codewords: Any = 9,
    codewords_dtype: CodewordsDtype = "float32",
    fast: bool | None = None,
) -> Inspection:
    source = saec.open_tables(tables)
    vectors = None if weights is None else saec.open_weights(weights, source)
    plans = plans_by_number(source.fields, codewords, codewords_dtype, fast)
    return inspect_tables(source, vectors, plans, threads=1)


def test_hand_computed_weights() -> None:
    rows = tables_of(x=(6, 2))
    (found,) = inspected(rows, {"x": np.array([1, 0, 5, 0, 3, 1])}).fields
    assert found.weights == WeightSummary(total=10.0, largest=5.0, unseen=2, head_rows=1)
    (found,) = inspected(rows, {"x": np.array([2, 2, 2, 2, 2, 1])}).fields
    assert found.weights == WeightSummary(total=11.0, largest=2.0, unseen=0, head_rows=3)
    (found,) = inspected(rows, {"x": np.zeros(6)}).fields
    assert found.weights == WeightSummary(total=0.0, largest=0.0, unseen=6, head_rows=0)


def test_fields_without_weights_and_without_rows() -> None:
    found = inspected(
        tables_of(a=(0, 3), b=(50, 3), c=(20, 2)), {"b": np.ones(50), "a": np.ones(0)}
    )
    assert [one.table.name for one in found.fields] == ["a", "b", "c"]
    assert found.fields[0].weights == WeightSummary(0.0, 0.0, 0, 0)
    assert found.fields[2].weights is None
    assert [one.codewords for one in found.fields] == [0, 9, 9]
    assert found.fields[0].bytes_after == 0


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 2.0**-401, 2.0**401])
def test_weights_that_compress_would_refuse(tmp_path: Path, bad: float) -> None:
    rows, weights = tables_of(item=(100, 3)), {"item": np.ones(100)}
    weights["item"][41] = bad
    with pytest.raises(WeightError, match='row 41 of field "item" has weight') as found:
        inspected(rows, weights)
    with pytest.raises(WeightError) as refused:
        saec.compress(rows, weights=weights, codewords=9, out=tmp_path / "a.saec")
    assert str(found.value) == str(refused.value)


@pytest.mark.parametrize("codewords", [1, 9, 0.2, 1.0])
@pytest.mark.parametrize("dtype", CODEWORDS_DTYPES)
def test_bytes_are_those_of_the_artifact(
    tmp_path: Path, codewords: float, dtype: CodewordsDtype
) -> None:
    tables = tables_of(brand=(12, 3), item=(1025, 17), shop=(97, 1), user=(700, 8))
    found = inspected(tables, codewords=codewords, codewords_dtype=dtype)
    artifact = saec.compress(
        tables, codewords=codewords, codewords_dtype=dtype, codes="planes", max_iter=1,
        out=tmp_path / "a.saec",
    )  # fmt: skip
    assert found.bytes_before == artifact.table_bytes
    assert found.bytes_after == artifact.counted_bytes


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fast", [None, False])
def test_memory_is_what_compress_needs(tmp_path: Path, weighted: bool, fast: bool | None) -> None:
    # RELIABILITY 16
    tables = tables_of(brand=(12, 3), item=(20_000, 7), shop=(970, 1), user=(7000, 8))
    weights = {"item": np.ones(20_000)} if weighted else None
    found = inspected(tables, weights, fast=fast)
    assert found.memory_least < found.memory_once

    def sets(memory: int) -> list[Any]:
        artifact = saec.compress(
            tables, weights=weights, codewords=9, max_iter=1, memory=memory, threads=1, fast=fast,
            out=tmp_path / "a.saec", overwrite=True,
        )  # fmt: skip
        planned: list[Any] = artifact.run["residency_sets"]
        return planned

    assert [one["resident"] for one in sets(found.memory_once)] == [True]
    assert len(sets(found.memory_once * 98 // 100)) > 1
    # coresets stand for the large fields, unless all rows were asked for
    assert all(one["resident"] for one in sets(found.memory_least)) == (fast is None)
    with pytest.raises(ParamError, match="give more memory"):
        sets(found.memory_least * 98 // 100)


def test_as_json() -> None:
    found = inspected(tables_of(a=(50, 3), b=(20, 2)), {"a": np.ones(50)})
    told = json.loads(json.dumps(as_json(found)))
    assert list(told) == ["fields", "bytes", "bytes_after", "memory_once", "memory_least"]
    assert told["bytes"] == (50 * 3 + 20 * 2) * 4
    assert told["fields"][0] == {
        "name": "a", "rows": 50, "dim": 3, "dtype": "float32", "bytes": 600, "codewords": 9,
        "bytes_after": 9 * 3 * 4 + 25,
        "weights": {"total": 50.0, "largest": 1.0, "unseen": 0, "head_rows": 25},
    }  # fmt: skip
    assert told["fields"][1]["weights"] is None
