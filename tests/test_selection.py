"""A coreset is the sample of the definition, and of the rows no more is read than it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import reference
import saec_gpu as saec
from builders import WEIGHT_KINDS, rows_of, weights_of
from saec_gpu.clustering import selection
from saec_gpu.clustering.selection import GAP_VALUES, Selection, coreset, gather, rows_to_cluster
from saec_gpu.errors import NonFiniteRowError, WeightError
from saec_gpu.sources import TableField, TableSource

CODEWORDS = 3  # whose sample of DEFINITIONS C holds 96 rows
SIZE = reference.sample_size(10**9, CODEWORDS)


def selected(
    rows: NDArray[Any], weights: NDArray[Any] | None, size: int = SIZE, seed: int = 5
) -> Selection:
    source = saec.open_tables({"item": rows})
    vectors = None if weights is None else saec.open_weights({"item": weights}, source)
    return coreset(source, vectors, source.fields["item"], size, seed)


# How many rows.


@pytest.mark.parametrize(
    ("n_rows", "dim", "codewords", "fast", "rows"),
    [
        (8192, 16, 1, True, 0),
        (8193, 16, 1, True, 8192),  # a few codewords have as many rows as 128
        (8193, 16, 128, True, 8192),
        (8257, 16, 129, True, 8256),
        (4 * 8192 - 1, 1 << 12, 20, None, 0),
        (4 * 8192, 1 << 12, 20, None, 8192),
        (4 * 8192, 1 << 12, 20, False, 0),
        (4 * 64 * 500, 64, 500, None, 32_000),
        (1 << 20, 16, 64, None, 8192),  # 2³⁰ products, the least
        ((1 << 20) - 1, 16, 64, None, 0),
        ((1 << 20) - 1, 16, 64, True, 8192),
    ],
)
def test_how_many_rows_are_clustered(
    n_rows: int, dim: int, codewords: int, fast: bool | None, rows: int
) -> None:
    table = TableField("item", n_rows, dim, "float32")
    assert rows_to_cluster(table, codewords, fast) == rows


# What is chosen.


@pytest.mark.parametrize("kind", [kind for kind in WEIGHT_KINDS if kind != "widest"])
@pytest.mark.parametrize("block_rows", [7, 64, 1 << 20])
def test_it_is_the_sample_of_the_definition(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str, block_rows: int
) -> None:
    monkeypatch.setattr(selection, "BLOCK_ROWS", block_rows)
    rows, weights = rows_of("normal", rng, 1025, 3), weights_of(kind, rng, 1025)
    found = selected(rows, weights)
    expected = reference.sample(rows, weights, CODEWORDS, 5, "item")
    assert found.index.tolist() == expected.index
    assert found.weights.tolist() == expected.omega
    assert found.rows.tobytes() == rows[expected.index].tobytes()
    own = reference.field_weights(weights, 1025)
    assert found.multiplicity.tolist() == [
        omega / own[i] for i, omega in zip(expected.index, expected.omega, strict=True)
    ]


@pytest.mark.parametrize("kind", ["none", "zero", "sparse", "wide"])
@pytest.mark.parametrize("n_rows", [1, SIZE - 1, SIZE])
def test_a_field_that_is_not_larger_is_taken_whole(
    rng: np.random.Generator, kind: str, n_rows: int
) -> None:
    rows, weights = rows_of("normal", rng, n_rows, 2), weights_of(kind, rng, n_rows)
    found = selected(rows, weights)
    assert found.index.tolist() == list(range(n_rows))
    assert found.rows.tobytes() == rows.tobytes()
    # rows of weight 0 among others stay; all of weight 0 count as one each
    assert found.weights.tolist() == reference.field_weights(weights, n_rows)
    assert found.multiplicity.tolist() == [1.0] * n_rows


def test_rows_of_weight_0_are_left_out_of_a_sample() -> None:
    rows = np.arange(1000, dtype=np.float32).reshape(-1, 1)
    weights = np.zeros(1000)
    weights[[3, 500, 999]] = 2.0
    found = selected(rows, weights)
    assert found.index.tolist() == [3, 500, 999]
    assert found.weights.tolist() == [2.0] * 3
    assert found.multiplicity.tolist() == [1.0] * 3


def test_weights_that_begin_late_are_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first blocks hold nothing but zeros.
    monkeypatch.setattr(selection, "BLOCK_ROWS", 100)
    weights = np.zeros(1000)
    weights[850:] = np.arange(150) + 1.0
    rows = np.zeros((1000, 1), np.float32)
    assert selected(rows, weights).index.min() >= 850


def test_greatest_weights_stay_allowed() -> None:
    # The threshold of a sample is above every weight: a priority is a weight over less than 1.
    weights = np.full(1000, 2.0**400)
    assert reference.sample(np.zeros((1000, 1)), weights, CODEWORDS, 5, "item").tau > 2.0**400
    assert selected(np.zeros((1000, 1), np.float32), weights).weights.tolist() == [2.0**400] * SIZE


def test_sums_are_those_of_all_rows_on_average() -> None:
    # Unbiased, for weights and for rows: within five standard errors of 200 seeds.
    generator = np.random.default_rng(8)
    rows = generator.standard_normal((2000, 1)).astype(np.float32)
    weights = generator.zipf(1.4, 2000).clip(0, 10**4).astype(np.float64)
    values = rows[:, 0].astype(np.float64) ** 2
    for of, expected in (
        ("weights", float((weights * values).sum())), ("multiplicity", float(values.sum())),
    ):  # fmt: skip
        estimates = []
        for seed in range(200):
            found = selected(rows, weights, seed=seed)
            estimates.append(float((getattr(found, of) * values[found.index]).sum()))
        error = np.std(estimates) / np.sqrt(len(estimates))
        assert abs(np.mean(estimates) - expected) < 5 * error


def test_a_row_that_is_not_finite_is_named_if_it_was_chosen() -> None:
    rows = np.zeros((1000, 2))
    chosen = int(selected(rows, None).index[40])
    rows[chosen, 1] = 1e300  # float64 beyond float32
    with pytest.raises(NonFiniteRowError, match=f'row {chosen} of field "item"'):
        selected(rows, None)
    other = next(i for i in range(1000) if i not in selected(np.zeros((1000, 2)), None).index)
    rows[chosen], rows[other] = 0.0, np.nan
    assert np.isfinite(selected(rows, None).rows).all()


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 2.0**-401, 2.0**401])
@pytest.mark.parametrize("n_rows", [50, 1000])
def test_a_weight_that_is_not_allowed_is_named(bad: float, n_rows: int) -> None:
    weights = np.zeros(n_rows)
    weights[41] = bad
    with pytest.raises(WeightError, match='row 41 of field "item" has weight'):
        selected(np.zeros((n_rows, 2), np.float32), weights)


# What is read.


def write_npy(folder: Path, rows: NDArray[np.float32]) -> Path:
    np.save(folder / "item.npy", rows)
    return folder / "item.npy"


def write_safetensors(folder: Path, rows: NDArray[np.float32]) -> Path:
    save_file({"item": rows}, folder / "item.safetensors")
    return folder / "item.safetensors"


def write_parquet(folder: Path, rows: NDArray[np.float32]) -> Path:
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    pq.write_table(pa.table({"item": column}), folder / "item.parquet", row_group_size=700)
    return folder / "item.parquet"


def hostile_indices(generator: np.random.Generator, n_rows: int) -> dict[str, list[int]]:
    gap = GAP_VALUES // 16  # of rows of 16: the greatest that is read over
    return {
        "none": [],
        "first": [0],
        "last": [n_rows - 1],
        "ends": [0, n_rows - 1],
        "all": list(range(n_rows)),
        "even": list(range(0, n_rows, 2)),
        "just read over": list(range(3, n_rows, gap)),
        "just too far apart": list(range(3, n_rows, gap + 1)),
        "clumps": [i for i in range(n_rows) if i // 40 % 5 == 2],
        "random": np.flatnonzero(generator.random(n_rows) < 0.03).tolist(),
    }


@pytest.mark.parametrize("write", [write_npy, write_safetensors, write_parquet])
@pytest.mark.parametrize("run_values", [1, 16 * 33, 1 << 22])
def test_gathered_rows_are_those_of_the_numbers(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, NDArray[np.float32]], Path],
    run_values: int,
) -> None:
    monkeypatch.setattr(selection, "RUN_VALUES", run_values)
    rows = rng.standard_normal((3001, 16)).astype(np.float32)
    source = saec.open_tables(write(tmp_path, rows))
    for numbers in hostile_indices(rng, len(rows)).values():
        index = np.array(numbers, np.int64)
        out = np.full((len(index), 16), np.nan, np.float32)
        gather(lambda start, into: source.read("item", start, into), index, out)
        assert out.tobytes() == rows[index].tobytes()


@pytest.mark.parametrize("columns", [1, 16, GAP_VALUES + 1])
def test_reads_are_short_and_join_what_is_near(columns: int) -> None:
    reads: list[tuple[int, int]] = []

    def read(start: int, out: NDArray[Any]) -> None:
        reads.append((start, len(out)))
        out[:] = np.arange(start, start + len(out))[:, None]

    near = GAP_VALUES // columns  # rows apart that are still read together
    index = np.cumsum([5, max(near, 1), near + 1, near + 1, 1])
    out = np.zeros((5, columns))
    gather(read, index.astype(np.int64), out)
    assert out[:, 0].tolist() == index.tolist()
    if near:
        assert reads == [(5, near + 1), (int(index[2]), 1), (int(index[3]), 2)]
    else:
        assert reads == [(i, 1) for i in index.tolist()]  # rows longer than a gap: each alone


def test_of_a_sparse_coreset_only_its_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros((2_000, GAP_VALUES // 2), np.float32)
    source = saec.open_tables({"item": rows})
    reads: list[tuple[int, int]] = []
    plain = TableSource.read

    def counted(self: TableSource, field: str, start: int, out: NDArray[Any]) -> None:
        reads.append((start, len(out)))
        plain(self, field, start, out)

    monkeypatch.setattr(TableSource, "read", counted)
    found = coreset(source, None, source.fields["item"], 100, 0)
    # rows between two that lie within a gap of each other are read with them
    beside = sum(np.diff(found.index) == 2)
    assert sum(n_rows for _, n_rows in reads) == 100 + beside
