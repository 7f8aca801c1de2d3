"""Fast clustering: the coreset is clustered as a table of its own, every row is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import saec_gpu as saec
from builders import opened
from saec_gpu.clustering.selection import ROWS_A_CODEWORD, coreset, rows_to_cluster
from saec_gpu.errors import NonFiniteRowError, WeightError
from saec_gpu.sources import TableField, TableSource
from saec_gpu.stream import FieldWork, plan_sets

Arrays = dict[str, NDArray[Any]]
pytestmark = pytest.mark.usefixtures("small_coresets")

CODEWORDS = 5
SELECTED = CODEWORDS * ROWS_A_CODEWORD
FILES = ("manifest.json", "codebooks.safetensors", "codes/0.npy", "codes/1.npy")


@pytest.fixture
def tables() -> Arrays:
    generator = np.random.default_rng(6)
    return {
        "item": generator.standard_normal((4 * SELECTED + 3, 3)).astype(np.float32),
        "brand": generator.standard_normal((4 * SELECTED - 1, 2)).astype(np.float32),
    }


@pytest.fixture
def weights(tables: Arrays) -> Arrays:
    generator = np.random.default_rng(7)
    return {name: generator.zipf(1.3, len(rows)) * 1.0 for name, rows in tables.items()}


def files_of(artifact: saec.Artifact) -> list[bytes]:
    return [(artifact.path / name).read_bytes() for name in FILES]


@pytest.mark.parametrize(
    ("n_rows", "fast", "rows"),
    [
        (4 * SELECTED, None, SELECTED),
        (4 * SELECTED - 1, None, 0),
        (4 * SELECTED, False, 0),
        (SELECTED + 1, True, SELECTED),
        (SELECTED, True, 0),
    ],
)
def test_how_many_rows_are_clustered(n_rows: int, fast: bool | None, rows: int) -> None:
    table = TableField("item", n_rows, 3, "float32")
    assert rows_to_cluster(table, CODEWORDS, fast) == rows


def test_a_field_is_clustered_by_its_coreset_alone(
    tables: Arrays, weights: Arrays, tmp_path: Path
) -> None:
    artifact = saec.compress(tables, weights=weights, codewords=CODEWORDS, out=tmp_path / "a.saec")
    source = saec.open_tables(tables)
    chosen = coreset(source, saec.open_weights(weights, source), source.fields["item"], SELECTED, 0)
    drawn = reference.sample(tables["item"], weights["item"], SELECTED // 32, 0, "item")
    assert chosen.index.tolist() == list(drawn.index)
    assert chosen.weights.tolist() == list(drawn.omega)
    fitted = reference.fit(chosen.rows, chosen.weights, CODEWORDS, field="item")
    assert artifact["item"].codebook.tobytes() == fitted.codewords.tobytes()
    codes, _ = reference.assign(tables["item"], fitted.codewords)
    assert artifact["item"].codes.tolist() == codes
    assert artifact["item"].record["clustered_rows"] == SELECTED
    assert artifact["item"].record["iterations"] == fitted.iterations
    # the other field has too few rows for it
    whole = reference.fit(tables["brand"], weights["brand"], CODEWORDS, field="brand")
    assert artifact["brand"].codebook.tobytes() == whole.codewords.tobytes()
    assert artifact["brand"].record["clustered_rows"] == len(tables["brand"])
    assert artifact.verify(tables, weights=weights).ok


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_rows": 7},
        {"chunk_rows": 1000},
        {"threads": 2},
        {"memory": 400_000},
        {"backend": "emulated"},
    ],
    ids=str,
)
def test_the_same_bytes_however_it_runs(
    tables: Arrays, weights: Arrays, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = dict(options)
    asked: dict[str, Any] = {"weights": weights, "codewords": CODEWORDS, "fast": True}
    once = saec.compress(tables, **asked, threads=1, out=tmp_path / "once.saec")
    backend = opened(options.pop("backend", "cpu"), threads=options.pop("threads", 1))
    again = saec.compress(tables, **asked, **options, backend=backend, out=tmp_path / "again.saec")
    assert files_of(again) == files_of(once)


def test_every_row_is_read_once_and_its_coreset_before(
    tables: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    plain = TableSource.read

    def counted(self: TableSource, field: str, start: int, out: NDArray[np.float32]) -> None:
        read.append((start, len(out)))
        plain(self, field, start, out)

    monkeypatch.setattr(TableSource, "read", counted)
    rows = np.random.default_rng(8).standard_normal((40_000, 40)).astype(np.float32)
    artifact = saec.compress(
        {"x": rows}, codewords=CODEWORDS, chunk_rows=9000, out=tmp_path / "a.saec"
    )
    assert artifact["x"].record["clustered_rows"] == SELECTED
    passes = [(0, 9000), (9000, 9000), (18000, 9000), (27000, 9000), (36000, 4000)]
    assert read[-len(passes) :] == passes
    before = sum(n_rows for _, n_rows in read[: -len(passes)])
    assert SELECTED <= before < len(rows) // 2  # rows between those that lie near each other


def test_a_row_that_is_not_finite_is_found_outside_the_coreset(
    tables: Arrays, tmp_path: Path
) -> None:
    source = saec.open_tables(tables)
    chosen = coreset(source, None, source.fields["item"], SELECTED, 0)
    outside = int(np.setdiff1d(np.arange(len(tables["item"])), chosen.index)[-1])
    for row in (outside, int(chosen.index[-1])):
        broken = {name: rows.copy() for name, rows in tables.items()}
        broken["item"][row, 1] = np.nan
        with pytest.raises(NonFiniteRowError, match=f'row {row} of field "item"'):
            saec.compress(broken, codewords=CODEWORDS, out=tmp_path / "a.saec")


def test_a_wrong_weight_is_found_before_any_row_is_read(tables: Arrays, tmp_path: Path) -> None:
    weights = np.ones(len(tables["item"]))
    weights[77] = -1.0
    with pytest.raises(WeightError, match=r'row 77 of field "x" has weight -1\.0'):
        saec.compress(tables["item"], weights=weights, codewords=CODEWORDS, out=tmp_path / "a.saec")


@pytest.mark.parametrize("zero", [False, True])
def test_weights_that_are_all_zero_are_none(tables: Arrays, tmp_path: Path, zero: bool) -> None:
    weights = {"item": np.zeros(len(tables["item"]))} if zero else None
    artifact = saec.compress(
        {"item": tables["item"]}, weights=weights, codewords=CODEWORDS, out=tmp_path / "a.saec"
    )
    record = artifact["item"].record
    assert record["clustered_rows"] == SELECTED
    assert record["weights"] == ("all zero" if zero else "none")
    assert record["weighted_sse"] is None
    plain = saec.compress(tables, codewords=CODEWORDS, out=tmp_path / "b.saec")
    assert artifact["item"].codebook.tobytes() == plain["item"].codebook.tobytes()


def test_a_coreset_of_few_distinct_rows(tmp_path: Path) -> None:
    # Row 3 alone is another one; with no weight it is in no coreset, but gets a code.
    rows = np.zeros((1000, 2), np.float32)
    rows[3] = 1.0
    weights = np.ones(1000)
    weights[3] = 0.0
    artifact = saec.compress(rows, weights=weights, codewords=2, out=tmp_path / "a.saec")
    record = artifact["x"].record
    assert (record["clustered_rows"], artifact["x"].n_codewords) == (128, 1)
    assert (record["sse"], record["weighted_sse"]) == (2.0, 0.0)
    assert artifact.verify(rows, weights=weights).ok


def test_rows_of_such_a_field_take_no_memory_beyond_a_read() -> None:
    work = FieldWork("x", 10**9, 16, True, 256, selected=256 * ROWS_A_CODEWORD)
    (planned,) = plan_sets([work, FieldWork("y", 1000, 16, True, 10)], memory=10**9, threads=2,
                           chunk_rows=None)  # fmt: skip
    assert planned.resident
    assert planned.resident_rows == 1000
    assert [s.field for s in planned.resident_layout().segments] == ["y"]
    reads = list(planned.reads(["x", "y"]))
    assert [read.stays for read in reads] == [False] * (len(reads) - 1) + [True]
    assert sum(read.n_rows for read in reads) == 10**9 + 1000
    assert planned.bytes_held(2, 2) < 400_000_000
