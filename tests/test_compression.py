"""From rows to artifact: the oracle's answer, in the same bytes however the run is done."""

from __future__ import annotations

import itertools
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import reference
import saec_gpu as saec
from builders import opened, weights_of
from saec_gpu import levels
from saec_gpu.clustering.curves import Point
from saec_gpu.clustering.selection import coreset
from saec_gpu.codewords import CODEWORDS_DTYPES, CodewordsDtype, codebook_bytes
from saec_gpu.compression import parse_bytes
from saec_gpu.errors import (
    ArtifactError,
    NonFiniteRowError,
    ParamError,
    SourceError,
    WeightError,
)
from saec_gpu.packing import packed_size

pytestmark = pytest.mark.usefixtures("small_coresets")

Tables = dict[str, NDArray[Any]]
FIELDS = (("brand", 12, 3), ("item", 1025, 17), ("shop", 97, 1), ("user", 700, 8))


def make_tables(generator: np.random.Generator) -> tuple[Tables, Tables]:
    tables: Tables = {}
    weights: Tables = {}
    for name, n_rows, dim in FIELDS:
        tables[name] = generator.standard_normal((n_rows, dim)).astype(np.float32)
        weights[name] = generator.zipf(1.5, n_rows).clip(0, 10**6).astype(np.float64) - 1
    return tables, weights


def artifact_bytes(artifact: saec.Artifact) -> dict[str, bytes]:
    return {
        str(path.relative_to(artifact.path)): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def write_npy(folder: Path, tables: Tables) -> Path:
    folder.mkdir()
    for name, rows in tables.items():
        np.save(folder / f"{name}.npy", rows)
    return folder


def write_safetensors(folder: Path, tables: Tables) -> Path:
    save_file(tables, folder.with_suffix(".safetensors"))
    return folder.with_suffix(".safetensors")


def write_parquet(folder: Path, tables: Tables) -> Path:
    folder.mkdir()
    for name, rows in tables.items():
        values = pa.array(rows.reshape(-1))
        lists = rows.ndim == 2
        column = pa.FixedSizeListArray.from_arrays(values, rows.shape[1]) if lists else values
        pq.write_table(pa.table({name: column}), folder / f"{name}.parquet", row_group_size=300)
    return folder


def in_memory(folder: Path, tables: Tables) -> Tables:
    return tables


Writer = Callable[[Path, Tables], Any]
FORMATS: list[Writer] = [write_npy, write_safetensors, write_parquet, in_memory]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", CODEWORDS_DTYPES)
def test_every_field_is_the_oracles(
    tmp_path: Path, rng: np.random.Generator, weighted: bool, dtype: CodewordsDtype
) -> None:
    tables, weights = make_tables(rng)
    tables["user"][:, 2] += 1000  # the step of int8 is longer than the range of the rows
    artifact = saec.compress(
        tables, weights=weights if weighted else None, codewords=20, codewords_dtype=dtype,
        out=tmp_path / "a.saec", seed=3,
    )  # fmt: skip
    assert artifact.verify(tables, weights=weights if weighted else None).ok
    for name, rows in tables.items():
        field = artifact[name]
        if field.encoding == "identity":
            assert np.array_equal(field.codebook, rows)
            continue
        own = weights[name] if weighted else None
        assert field.codewords_dtype == dtype
        expected = reference.fit(rows, own, 20, seed=3, field=name, codewords_dtype=dtype)
        assert np.array_equal(field.codebook.view(np.uint32), expected.codewords.view(np.uint32))
        assert field.codes.tolist() == expected.codes
        sse, weighted_sse = reference.errors(rows, own, expected.codewords, expected.codes)
        assert field.record["sse"] == sse
        assert field.record["weighted_sse"] == (weighted_sse if weighted else None)
        assert field.record["iterations"] == expected.iterations
        assert field.record["unused_codewords"] == expected.without_rows


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_narrow_codewords_are_the_same_bytes_however_it_is_done(
    tmp_path: Path, dtype: CodewordsDtype
) -> None:
    tables, weights = make_tables(np.random.default_rng(5))
    tables["none"] = np.zeros((0, 3), np.float32)
    tables["few"] = np.repeat(tables["brand"], 20, axis=0)  # as many codewords as distinct rows
    asked: dict[str, Any] = {"weights": weights, "codewords": 20, "codewords_dtype": dtype}
    expected = saec.compress(tables, **asked, out=tmp_path / "e.saec", backend="cpu")
    ways: list[dict[str, Any]] = [
        {"chunk_rows": 7, "threads": 1},
        {"chunk_rows": 1000, "threads": 2, "checkpoint": tmp_path / "checkpoint"},
        {"backend": opened("emulated", threads=2)},
        {"memory": "650kB", "threads": 1},
    ]
    for number, options in enumerate(ways):
        artifact = saec.compress(tables, **asked, **options, out=tmp_path / f"{number}.saec")
        assert artifact_bytes(artifact) == artifact_bytes(expected)
        assert artifact.verify(tables, weights=weights).ok
    # Continued when all is done but the writing.
    (tmp_path / "1.saec").rename(tmp_path / "kept.saec")
    again = saec.compress(
        tables, **asked, checkpoint=tmp_path / "checkpoint", out=tmp_path / "1.saec"
    )
    assert artifact_bytes(again) == artifact_bytes(expected)


def skewed_tables(generator: np.random.Generator) -> Tables:
    """Tables most of whose rows lie near each other, as those of rows that were seen once do."""
    return {
        name: (
            generator.standard_normal((n, 4)) * np.exp(2 * generator.standard_normal((n, 1)))
        ).astype(np.float32)
        for name, n in (("item", 5000), ("shop", 600), ("user", 70_001))
    }


def test_levels_hold_the_codes_of_planes_in_fewer_bytes(tmp_path: Path) -> None:
    tables = skewed_tables(np.random.default_rng(3))
    asked: dict[str, Any] = {"codewords": 40, "max_iter": 4}
    planes = saec.compress(tables, **asked, codes="planes", out=tmp_path / "planes.saec")
    levels = saec.compress(tables, **asked, out=tmp_path / "levels.saec")
    assert {planes[name].encoding for name in planes} == {"planes"}
    assert {levels[name].encoding for name in levels} == {"levels"}
    assert [p.manifest["parameters"]["codes"] for p in (planes, levels)] == ["planes", "auto"]
    rows = np.random.default_rng(4).integers(0, 600, 1000)
    for name in tables:
        assert np.array_equal(levels[name].codes, planes[name].codes)
        assert np.array_equal(levels[name].lookup(rows), planes[name].lookup(rows))
        assert levels[name].record == planes[name].record
    assert levels.counted_bytes < planes.counted_bytes
    assert levels.verify(tables).ok
    files = {name: entry["bytes"] for name, entry in levels.manifest["files"].items()}
    for entry in levels.manifest["fields"]:
        assert files[f"codes/{entry['number']}.npy"] == 128 + entry["code_bytes"]
    # Codes that all serve as many rows stay in planes.
    even = np.repeat(np.eye(32, dtype=np.float32), 100, axis=0)
    assert saec.compress(even, codewords=32, out=tmp_path / "even.saec")["x"].encoding == "planes"


def test_levels_are_the_same_bytes_however_it_is_done(tmp_path: Path) -> None:
    # RELIABILITY 39
    tables = skewed_tables(np.random.default_rng(5))
    asked: dict[str, Any] = {"codewords": 40, "max_iter": 3}
    expected = saec.compress(tables, **asked, out=tmp_path / "e.saec", backend="cpu")
    ways: list[dict[str, Any]] = [
        {"chunk_rows": 4999, "threads": 1},
        {"chunk_rows": 65_536, "threads": 2, "checkpoint": tmp_path / "checkpoint"},
        {"backend": opened("emulated", threads=2)},
    ]
    for number, options in enumerate(ways):
        artifact = saec.compress(tables, **asked, **options, out=tmp_path / f"{number}.saec")
        assert artifact_bytes(artifact) == artifact_bytes(expected)
    (tmp_path / "1.saec").rename(tmp_path / "kept.saec")
    again = saec.compress(
        tables, **asked, checkpoint=tmp_path / "checkpoint", out=tmp_path / "1.saec"
    )
    assert artifact_bytes(again) == artifact_bytes(expected)


def test_distinct_rows_are_stored_in_the_dtype_that_was_asked(tmp_path: Path) -> None:
    few = np.array([[1.0, 0.3], [2.0, -0.7], [2049.0, 0.0]], np.float32)
    rows = few[np.random.default_rng(1).integers(0, 3, 400)]
    artifact = saec.compress(rows, codewords=9, codewords_dtype="float16", out=tmp_path / "a.saec")
    field = artifact["x"]
    assert field.record["stopped"] == "distinct rows"
    assert field.record["sse"] > 0.0
    expected = few.astype(np.float16).astype(np.float32)
    assert sorted(field.codebook.tolist()) == sorted(expected.tolist())
    assert np.abs(field.lookup(range(400)) - rows).max() == 1.0  # 2049 is between two float16


def test_beyond_float16_is_an_error_in_words(tmp_path: Path) -> None:
    rows = np.full((400, 2), 1e5, np.float32)
    asked: dict[str, Any] = {"codewords": 4, "codewords_dtype": "float16"}
    with pytest.raises(ParamError, match=r'codeword 0 of field "x" holds .* 100000\.0'):
        saec.compress(rows, **asked, out=tmp_path / "a.saec")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(("chunk_rows", "threads"), [(1000, 1), (65_536, 2), (None, 2), (7, 1)])
def test_same_bytes_from_every_format_chunk_size_and_thread_count(
    tmp_path: Path,
    write: Writer,
    chunk_rows: int | None,
    threads: int,
) -> None:
    # RELIABILITY 4, 39
    tables, weights = make_tables(np.random.default_rng(5))
    expected = saec.compress(tables, weights=weights, codewords=0.05, out=tmp_path / "e.saec")
    artifact = saec.compress(
        write(tmp_path / "tables", tables),
        weights=write(tmp_path / "weights", weights),
        codewords=0.05,
        out=tmp_path / "a.saec",
        chunk_rows=chunk_rows,
        threads=threads,
    )
    assert artifact_bytes(artifact) == artifact_bytes(expected)


def test_same_bytes_when_nothing_fits_in_memory(tmp_path: Path) -> None:
    # RELIABILITY 17, 18
    tables, weights = make_tables(np.random.default_rng(6))
    expected = saec.compress(tables, weights=weights, codewords=9, out=tmp_path / "expected.saec")
    streamed = saec.compress(
        tables, weights=weights, codewords=9, out=tmp_path / "a.saec", memory=450_000, threads=1
    )
    assert not all(s["resident"] for s in streamed.run["residency_sets"])
    assert artifact_bytes(streamed) == artifact_bytes(expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_dtype_is_clustered_as_its_float32(tmp_path: Path, dtype: str) -> None:
    # RELIABILITY 27, 29, 30: widened exactly, or rounded once
    rows = np.random.default_rng(8).standard_normal((300, 5)).astype(dtype)
    artifact = saec.compress(rows, codewords=10, out=tmp_path / "a.saec")
    expected = reference.fit(rows.astype(np.float32), None, 10)
    assert np.array_equal(artifact["x"].codebook, expected.codewords)
    assert artifact["x"].codes.tolist() == expected.codes
    assert artifact.table_bytes == rows.nbytes


def test_a_field_is_the_same_alone_and_among_others(tmp_path: Path) -> None:
    tables, _ = make_tables(np.random.default_rng(9))
    together = saec.compress(tables, codewords=16, out=tmp_path / "together.saec")
    for name in ("item", "user"):
        alone = saec.compress({name: tables[name]}, codewords=16, out=tmp_path / f"{name}.saec")
        assert np.array_equal(alone[name].codebook, together[name].codebook)
        assert np.array_equal(alone[name].codes, together[name].codes)


def test_as_many_codewords_as_distinct_rows_is_lossless(tmp_path: Path) -> None:
    # RELIABILITY 33, 38
    few = np.arange(15, dtype=np.float32).reshape(5, 3)
    rows = few[np.random.default_rng(1).integers(0, 5, 400)]
    artifact = saec.compress(rows, codewords=256, out=tmp_path / "a.saec")
    assert artifact["x"].n_codewords == 5
    assert artifact["x"].record["stopped"] == "distinct rows"
    assert artifact["x"].record["sse"] == 0.0
    assert np.array_equal(artifact["x"].lookup(np.arange(400)), rows)


@pytest.mark.parametrize("rows", [np.ones((1, 3), np.float32), np.zeros((50, 2), np.float32)])
def test_one_row_and_equal_rows(tmp_path: Path, rows: NDArray[np.float32]) -> None:
    artifact = saec.compress(rows, codewords=4, out=tmp_path / "a.saec")
    assert np.array_equal(artifact["x"].lookup(np.arange(len(rows))), rows)
    assert artifact["x"].record["sse"] == 0.0


def test_all_zero_weights_are_unweighted_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.random.default_rng(2).standard_normal((200, 3)).astype(np.float32)
    with caplog.at_level(logging.INFO, "saec_gpu"):
        zero = saec.compress(rows, weights=np.zeros(200), codewords=8, out=tmp_path / "zero.saec")
    plain = saec.compress(rows, codewords=8, out=tmp_path / "plain.saec")
    assert np.array_equal(zero["x"].codebook, plain["x"].codebook)
    assert np.array_equal(zero["x"].codes, plain["x"].codes)
    assert zero["x"].record["weights"] == "all zero"
    assert "all weights are zero" in caplog.text


def test_empty_field_is_kept(tmp_path: Path) -> None:
    # RELIABILITY 37
    rows = np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32)
    artifact = saec.compress({"none": rows[:0], "some": rows}, codewords=4, out=tmp_path / "a.saec")
    assert artifact["none"].codes.shape == (0,)
    assert artifact["none"].codebook.shape == (0, 3)
    assert artifact["some"].n_codewords == 4


def test_no_rows_at_all_is_an_error(tmp_path: Path) -> None:
    # RELIABILITY 62
    with pytest.raises(SourceError):
        saec.compress({"none": np.zeros((0, 3), np.float32)}, codewords=4, out=tmp_path / "a.saec")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("chunk_rows", [None, 10])
def test_a_row_that_is_not_finite_names_field_and_row(
    tmp_path: Path, bad: float, chunk_rows: int | None
) -> None:
    # RELIABILITY 24
    rows = np.ones((100, 3))
    rows[57, 2] = bad
    with pytest.raises(NonFiniteRowError, match='row 57 of field "item"'):
        saec.compress({"item": rows}, codewords=4, out=tmp_path / "a.saec", chunk_rows=chunk_rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 2.0**-401, 2.0**401])
def test_a_weight_that_is_not_allowed_names_field_and_row(tmp_path: Path, bad: float) -> None:
    rows = np.random.default_rng(3).standard_normal((100, 3)).astype(np.float32)
    weights = np.ones(100)
    weights[41] = bad
    with pytest.raises(WeightError, match='row 41 of field "item" has weight'):
        saec.compress(
            {"item": rows}, weights={"item": weights}, codewords=4, out=tmp_path / "a.saec"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"codewords": 0}, "0 codewords were asked"),
        ({"codewords": 2**20 + 1}, "codewords were asked"),
        ({"codewords": 1.5}, "fraction"),
        ({"codewords": True}, "fraction"),
        ({"codewords": "many"}, "fraction"),
        ({"codewords": {"y": 3}}, r"unknown: \['y'\], missing: \['x'\]"),
        ({"codewords": 3, "ratio": 2}, "codewords=3 and ratio=2 were given; .* give one"),
        ({"budget": "1kB", "ratio": 2}, "ratio=2 and budget='1kB' were given"),
        ({"budget": 0}, "budget=0 was given; give at least one byte"),
        ({"budget": "small"}, "budget='small' was given; give bytes, or a size"),
        ({"budget": 4}, r"4 bytes were given .* takes 5 of the tables' 1,200; .* ratio=240\.0"),
        ({"ratio": 2, "sensitivity": {"y": 2}}, r'sensitivity names the field "y", .* \[.x.\]'),
        ({"ratio": 2, "sensitivity": {"x": 0}}, 'sensitivity of field "x" is 0; give a finite'),
        ({"ratio": 2, "sensitivity": {"x": np.nan}}, "is nan; give a finite number above 0"),
        ({"ratio": 2, "sensitivity": {"x": "high"}}, "is 'high'; give a finite number above 0"),
        ({"sensitivity": {"x": 2.0}}, "sensitivity was given, which splits a budget"),
        ({"codewords": 3, "sensitivity": {"x": 2.0}}, "give budget or ratio too"),
        ({"ratio": 1}, "above 1"),
        ({"ratio": float("nan")}, "above 1"),
        ({"ratio": 1e9}, "the most that can be asked here is"),
        ({"codewords_dtype": "int4"}, "give one of auto, float32, float16, int8"),
        ({"codes": "levels"}, "codes='levels' was given; give one of auto, planes"),
        ({"seed": -1}, "seed=-1"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"chunk_rows": 0}, "chunk_rows=0"),
        ({"threads": 0}, "threads=0"),
        ({"memory": "lots"}, "500MB"),
        ({"memory": 10}, "needs .* beside its rows"),
        ({"backend": "abacus"}, "abacus"),
    ],
)
def test_wrong_parameters_say_what_to_give(
    tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    rows = np.random.default_rng(3).standard_normal((100, 3)).astype(np.float32)
    with pytest.raises(ParamError, match=message):
        saec.compress(rows, out=tmp_path / "a.saec", **parameters)
    assert list(tmp_path.iterdir()) == []


def test_existing_artifact_is_refused_before_any_work(tmp_path: Path) -> None:
    rows = np.ones((10, 2), np.float32)
    saec.compress(rows, codewords=2, out=tmp_path / "a.saec")
    reports: list[saec.Progress] = []
    with pytest.raises(ArtifactError, match="overwrite"):
        saec.compress(rows, codewords=2, out=tmp_path / "a.saec", progress=reports.append)
    assert reports == []
    saec.compress(rows, codewords=2, out=tmp_path / "a.saec", overwrite=True)


@pytest.mark.parametrize(
    ("ratio", "dtype"),
    [
        (2.0, "float32"), (8.0, "float32"), (27.7, "float32"), (8.0, "float16"), (4.0, "int8"),
        (27.7, "int8"),
    ],
)  # fmt: skip
def test_ratio_is_met_from_above_and_nearly(
    tmp_path: Path, ratio: float, dtype: CodewordsDtype
) -> None:
    generator = np.random.default_rng(4)
    tables = {
        name: generator.standard_normal((n, 16)).astype(np.float32)
        for name, n in (("a", 20_000), ("b", 5000), ("tiny", 3))
    }
    artifact = saec.compress(
        tables, ratio=ratio, codewords_dtype=dtype, codes="planes", out=tmp_path / "a.saec",
        max_iter=1,
    )  # fmt: skip
    assert ratio <= artifact.ratio <= ratio * 1.02


def test_fraction_is_capped_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    from saec_gpu.clustering.asked import codewords_by_field
    from saec_gpu.sources import TableField

    fields = {"user": TableField("user", 10**9, 16, "float32")}
    with caplog.at_level(logging.INFO, "saec_gpu"):
        assert codewords_by_field(fields, 0.01) == {"user": 65_536}
    assert "65536 are taken" in caplog.text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("500MB", 500_000_000),
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("3 kb", 3000),
    ],
)
def test_sizes_as_people_write_them(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


def test_nothing_is_printed_and_no_random_state_is_touched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # RELIABILITY 44
    tables, weights = make_tables(np.random.default_rng(5))
    before = pickle.dumps(np.random.get_state(legacy=False))
    saec.compress(tables, weights=weights, codewords=8, out=tmp_path / "a.saec")
    assert pickle.dumps(np.random.get_state(legacy=False)) == before
    assert capfd.readouterr() == ("", "")


def test_progress_counts_every_row(tmp_path: Path) -> None:
    tables, _ = make_tables(np.random.default_rng(5))
    reports: list[saec.Progress] = []
    saec.compress(
        tables, codewords=8, out=tmp_path / "a.saec", progress=reports.append, chunk_rows=100
    )
    stages = [stage for stage, _ in itertools.groupby(one.stage for one in reports)]
    assert stages == ["statistics", "seeding", "fit", "codes", "write"]
    for one in reports:
        assert 0 <= one.done <= one.total
    last = {one.stage: one for one in reports}
    for stage in ("statistics", "fit", "codes", "write"):
        assert last[stage].done == last[stage].total


def test_progress_counts_the_rows_whose_codes_are_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "_STEP_ROWS", 600)
    rows = np.zeros((1700, 2), np.float32)
    rows[:900] = np.random.default_rng(5).standard_normal((900, 2))  # others have one code
    reports: list[saec.Progress] = []
    saec.compress(
        {"a": rows[:400], "b": rows}, codewords=200, out=tmp_path / "a.saec", codes="auto",
        progress=reports.append,
    )  # fmt: skip
    found = [(one.done, one.total, one.unit) for one in reports if one.stage == "levels"]
    assert found == [(600, 1700, "rows"), (1200, 1700, "rows"), (1700, 1700, "rows")]
    (ended,) = [i for i, one in enumerate(reports) if one.stage == "codes" and one.done == 2100]
    assert reports[ended + 1].stage == "levels"


def test_seed_is_0_unless_given_and_recorded(tmp_path: Path) -> None:
    # RELIABILITY 42
    rows = np.random.default_rng(5).standard_normal((500, 4)).astype(np.float32)
    default = saec.compress(rows, codewords=8, out=tmp_path / "default.saec")
    zero = saec.compress(rows, codewords=8, seed=0, out=tmp_path / "zero.saec")
    one = saec.compress(rows, codewords=8, seed=1, out=tmp_path / "one.saec")
    assert [a.manifest["parameters"]["seed"] for a in (default, zero, one)] == [0, 0, 1]
    assert artifact_bytes(default) == artifact_bytes(zero)
    assert not np.array_equal(one["x"].codebook, zero["x"].codebook)


def test_sampling_is_recorded_and_every_row_is_fitted(tmp_path: Path) -> None:
    # RELIABILITY 58: the sample seeds and repairs; means and codes are of all rows
    rows = np.random.default_rng(5).standard_normal((1000, 4)).astype(np.float32)
    artifact = saec.compress(rows, codewords=4, out=tmp_path / "a.saec", tol=0)
    assert artifact["x"].record["sample"] == {"rows": 128, "of": 1000}
    expected = reference.fit(rows, None, 4, tol=0)  # its partials are of all rows
    assert np.array_equal(artifact["x"].codebook, expected.codewords)


def test_no_codeword_takes_nearly_all_rows(tmp_path: Path) -> None:
    # RELIABILITY 34: seeds are spread, and the manifest tells how rows are
    from saec_gpu.synthetic import planted

    rows, _, labels = planted(10_000, 8, 10, spread=0.2, seed=0)
    artifact = saec.compress(rows, codewords=10, out=tmp_path / "a.saec")
    record = artifact["x"].record
    assert record["unused_codewords"] == []
    assert record["most_rows_of_a_codeword"] == np.bincount(artifact["x"].codes).max()
    assert record["most_rows_of_a_codeword"] <= 3 * np.bincount(labels).max()


# Under a budget.


def budget_tables() -> tuple[Tables, Tables]:
    tables, weights = make_tables(np.random.default_rng(15))
    tables["half"] = tables["user"][:90].astype(np.float16)
    tables["none"] = np.zeros((0, 3), np.float32)
    tables["row"] = tables["item"][:1]
    tables["same"] = np.repeat(tables["item"][:3], 30, axis=0)
    weights["user"][:] = 0.0
    return tables, weights


ASKED: dict[str, Any] = {"budget": "15kB", "sensitivity": {"shop": 3.0}, "seed": 2}


@pytest.fixture(scope="module")
def under_budget(tmp_path_factory: pytest.TempPathFactory) -> saec.Artifact:
    tables, weights = budget_tables()
    out = tmp_path_factory.mktemp("budget") / "e.saec"
    return saec.compress(tables, weights=weights, **ASKED, out=out, backend="cpu")


@pytest.mark.parametrize(
    ("write", "chunk_rows", "threads"),
    [(write_npy, 7, 1), (write_safetensors, 1000, 2), (write_parquet, None, 2), (in_memory, 97, 1)],
)
def test_budget_gives_the_same_bytes_from_every_format_chunk_size_and_thread_count(
    tmp_path: Path,
    under_budget: saec.Artifact,
    write: Writer,
    chunk_rows: int | None,
    threads: int,
) -> None:
    tables, weights = budget_tables()
    artifact = saec.compress(
        write(tmp_path / "tables", tables), weights=write(tmp_path / "weights", weights),
        **ASKED, chunk_rows=chunk_rows, threads=threads, out=tmp_path / "a.saec",
    )  # fmt: skip
    assert artifact_bytes(artifact) == artifact_bytes(under_budget)


def test_budget_gives_the_same_bytes_in_any_memory_and_on_any_backend(
    tmp_path: Path, under_budget: saec.Artifact
) -> None:
    tables, weights = budget_tables()
    asked: dict[str, Any] = {"weights": weights, **ASKED}
    small = saec.compress(tables, **asked, memory="2.2MB", threads=1, out=tmp_path / "small.saec")
    assert len(small.run["residency_sets"]) > 1
    assert artifact_bytes(small) == artifact_bytes(under_budget)
    device = opened("emulated", threads=2)
    emulated = saec.compress(tables, **asked, backend=device, out=tmp_path / "emulated.saec")
    assert artifact_bytes(emulated) == artifact_bytes(under_budget)


def test_budget_is_kept_and_told(under_budget: saec.Artifact) -> None:
    tables, weights = budget_tables()
    assert 0.98 * 15_000 <= under_budget.counted_bytes <= 15_000
    assert under_budget.verify(tables, weights=weights).ok
    asked = under_budget.manifest["parameters"]
    assert (asked["budget"], asked["sensitivity"]) == (15_000, {"shop": 3.0})
    for entry in under_budget.manifest["fields"]:
        if not entry["rows"]:
            assert "curve" not in entry
            continue
        # What became of the field lies between the ends of its curve, where it costs what it says.
        curve = [(one["codewords"], one["dtype"]) for one in entry["curve"]]
        sizes = [one["codebook_bytes"] + one["code_bytes"] for one in entry["curve"]]
        distortions = [one["distortion"] for one in entry["curve"]]
        assert sizes == sorted(set(sizes))
        assert distortions == sorted(set(distortions), reverse=True)
        counted = entry["codebook_bytes"] + entry["code_bytes"]
        assert sizes[0] <= counted <= sizes[-1]
        dtype = "whole" if entry["encoding"] == "identity" else entry["codewords_dtype"]
        if (entry["codewords"], dtype) in curve:
            assert counted == sizes[curve.index((entry["codewords"], dtype))]


def test_what_a_budget_chooses_is_clustered_as_the_oracle_does(
    tmp_path: Path, under_budget: saec.Artifact
) -> None:
    tables, weights = budget_tables()
    coded = [f for f in under_budget.manifest["fields"] if f["encoding"] == "planes" and f["rows"]]
    assert len({entry["codewords_dtype"] for entry in coded}) > 1
    for entry in coded:
        if entry["clustered_rows"] < entry["rows"]:
            continue
        name = entry["name"]
        expected = reference.fit(
            tables[name].astype(np.float32), weights.get(name), entry["codewords_asked"], seed=2,
            field=name, codewords_dtype=entry["codewords_dtype"],
        )  # fmt: skip
        assert np.array_equal(under_budget[name].codebook, expected.codewords)
        assert under_budget[name].codes.tolist() == expected.codes


SHAPES: dict[str, dict[str, tuple[int, int, str]]] = {
    "one": {"x": (3000, 5, "float32")},
    "halves": {"a": (2500, 16, "float16"), "b": (40, 3, "float16")},
    "doubles": {"a": (900, 3, "float64"), "b": (1100, 3, "float32")},
    "many small": {f"f{n}": (1 + 7 * n % 50, 1 + n % 5, "float32") for n in range(120)},
    "large and small": {"a": (9000, 8, "float32"), "b": (5, 8, "float32"), "c": (1, 1, "float16")},
    "beyond what is measured": {"x": (6000, 2, "float32"), "y": (5000, 3, "float32")},
}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("share", [0.7, 0.4, 0.2])
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_budget_is_used(
    tmp_path: Path, shapes: str, share: float, dtype: Literal["auto", "int8"]
) -> None:
    generator = np.random.default_rng(21)
    tables = {
        name: generator.standard_normal((n_rows, dim)).astype(kind)
        for name, (n_rows, dim, kind) in SHAPES[shapes].items()
    }
    weights = {name: generator.zipf(1.5, len(rows)) * 1.0 for name, rows in tables.items()}
    total = sum(rows.nbytes for rows in tables.values())
    budget = int(share * total)
    artifact = saec.compress(
        tables, weights=weights, budget=budget, codewords_dtype=dtype, out=tmp_path / "a.saec",
        max_iter=1,
    )  # fmt: skip
    assert artifact.counted_bytes <= budget
    assert artifact.verify(tables, weights=weights).ok
    left = budget - artifact.counted_bytes
    # A codeword more of a field with many rows may take a bit of all its codes.
    a_bit_more = max(len(rows) for rows in tables.values()) // 8
    assert left <= max(0.02 * budget, a_bit_more) or _has_all(artifact)


def _has_all(artifact: saec.Artifact) -> bool:
    """Return whether every field has as many codewords as rows that differ."""
    return all(
        entry["codewords"] == entry["rows"] or entry["weighted_sse"] == 0.0
        for entry in artifact.manifest["fields"]
    )


def test_sensitivity_moves_bytes_towards_a_field(tmp_path: Path) -> None:
    tables, weights = make_tables(np.random.default_rng(17))
    made: list[saec.Artifact] = []
    values: list[Any] = [None, 50.0, np.float32(50), 50]
    for number, value in enumerate(values):
        scales = None if value is None else {"user": value}
        out = tmp_path / f"{number}.saec"
        made.append(saec.compress(tables, weights=weights, ratio=8, sensitivity=scales, out=out))
    plain, sensitive, *others = made
    assert sensitive["user"].record["weighted_sse"] < plain["user"].record["weighted_sse"]
    assert sensitive["item"].record["weighted_sse"] > plain["item"].record["weighted_sse"]
    for other in others:  # one number, however it is given
        assert artifact_bytes(other) == artifact_bytes(sensitive)


def test_ratio_is_a_budget(tmp_path: Path) -> None:
    tables, _ = make_tables(np.random.default_rng(17))
    total = sum(rows.nbytes for rows in tables.values())
    by_ratio = saec.compress(tables, ratio=6, out=tmp_path / "ratio.saec")
    by_budget = saec.compress(tables, budget=total // 6, out=tmp_path / "budget.saec")
    assert artifact_bytes(by_ratio) == artifact_bytes(by_budget)


@pytest.mark.parametrize("budget", ["least", "all", "more"])
def test_budget_at_its_ends(tmp_path: Path, budget: str) -> None:
    tables, weights = budget_tables()
    total = sum(rows.nbytes for rows in tables.values())
    # a codeword of int8 and its scale, or of float16, for each field with rows
    dims = [rows.shape[1] for rows in tables.values() if len(rows)]
    least = sum(min(dim + 2, 2 * dim) for dim in dims)
    asked = {"least": least, "all": total, "more": 2 * total}[budget]
    artifact = saec.compress(tables, weights=weights, budget=asked, out=tmp_path / "a.saec")
    assert artifact.counted_bytes <= asked
    assert artifact.verify(tables, weights=weights).ok
    if budget == "least":
        assert artifact.counted_bytes == least
    else:  # rows of weight 0 need not be met
        assert all(
            entry.get("weighted_sse") in (0.0, None) for entry in artifact.manifest["fields"]
        )
        assert artifact["half"].record["sse"] == 0.0
    with pytest.raises(ParamError, match=f"already takes {least:,} of the tables' {total:,}"):
        saec.compress(tables, weights=weights, budget=least - 1, out=tmp_path / "b.saec")


def test_a_budget_out_of_reach_is_told_of_all_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saec_gpu.clustering import curves

    monkeypatch.setattr(curves, "GROUP_BYTES", 1)  # each field is measured alone
    tables, _ = make_tables(np.random.default_rng(15))
    least = sum(min(rows.shape[1] + 2, 2 * rows.shape[1]) for rows in tables.values())
    with pytest.raises(ParamError, match=f"3 bytes were given .* takes {least} of the tables'"):
        saec.compress(tables, budget=3, out=tmp_path / "a.saec")


def hostile_tables() -> Tables:
    generator = np.random.default_rng(19)
    normal = generator.standard_normal((400, 3))
    return {
        "equal": np.full((300, 4), 0.1, np.float32),
        "huge": (normal * 1e38).clip(-3.4e38, 3.4e38).astype(np.float32),
        "offset": (normal + 1e6).astype(np.float32),
        "outlier": np.where(np.arange(400)[:, None] == 399, 1e5, normal).astype(np.float32),
        "signs": np.where(normal > 0, 0.0, -0.0).astype(np.float16),
        "subnormal": (normal * 1e-44).astype(np.float32),
        "tail": np.repeat(normal[:2], [399, 1], axis=0),
    }


@pytest.mark.parametrize("weighting", ["none", "zero", "sparse", "widest"])
def test_hostile_tables_keep_the_budget_and_verify(tmp_path: Path, weighting: str) -> None:
    tables = hostile_tables()
    generator = np.random.default_rng(20)
    weights = {
        name: weights_of(weighting, generator, len(rows)) for name, rows in tables.items()
    }  # fmt: skip
    given = None if weighting == "none" else weights
    for number, ratio in enumerate((2, 9, 40)):
        out = tmp_path / f"{number}.saec"
        artifact = saec.compress(tables, weights=given, ratio=ratio, out=out, max_iter=2)
        assert artifact.ratio >= ratio
        assert artifact.verify(tables, weights=given).ok


def test_codewords_that_float16_turns_out_not_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The curve is of 2,000 rows; of a few others float16 holds no value.
    from saec_gpu import compression

    monkeypatch.setattr(compression, "CORESET_ROWS", 2000)
    generator = np.random.default_rng(22)
    rows = np.round(generator.standard_normal((40_000, 8)) * 200).astype(np.float32)
    source = saec.open_tables(rows)
    seen = coreset(source, None, source.fields["x"], 2000, 0).index
    unseen = np.setdiff1d(np.arange(40_000), seen)[:20]
    rows[unseen] = 1e5 + np.arange(20)[:, None]
    point = Point(300, "float16", 1.0, codebook_bytes(300, 8, "float16"), packed_size(40_000, 300))
    monkeypatch.setattr(compression, "measure", lambda *_, **__: {"x": (point,)})
    asked: dict[str, Any] = {"budget": 60_000, "fast": False, "max_iter": 3}
    artifact = saec.compress(rows, **asked, out=tmp_path / "a.saec")
    assert artifact["x"].codewords_dtype == "int8"
    assert artifact.counted_bytes <= 60_000
    assert artifact.verify(rows).ok
    with pytest.raises(ParamError, match="float16 does not hold"):
        saec.compress(rows, **asked, codewords_dtype="float16", out=tmp_path / "b.saec")


def test_a_dtype_that_cannot_hold_a_field_is_an_error_in_words(tmp_path: Path) -> None:
    rows = np.full((400, 2), 1e5, np.float32)
    with pytest.raises(ParamError, match=r'codeword 0 of field "x" holds .* 100000\.0'):
        saec.compress(rows, ratio=4, codewords_dtype="float16", out=tmp_path / "a.saec")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", [True, False])
def test_under_a_budget_a_row_that_is_not_finite_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    from saec_gpu import compression

    monkeypatch.setattr(compression, "CORESET_ROWS", 200)
    rows = np.random.default_rng(3).standard_normal((3000, 3)).astype(np.float32)
    source = saec.open_tables({"item": rows})
    seen = coreset(source, None, source.fields["item"], 200, 0).index
    row = int(seen[50] if chosen else np.setdiff1d(np.arange(3000), seen)[50])
    rows[row, 1] = np.nan
    with pytest.raises(NonFiniteRowError, match=f'row {row} of field "item"'):
        saec.compress({"item": rows}, ratio=8, out=tmp_path / "a.saec")
    assert list(tmp_path.iterdir()) == []


def test_progress_of_a_budget_begins_with_curves(tmp_path: Path) -> None:
    tables, _ = make_tables(np.random.default_rng(5))
    reports: list[saec.Progress] = []
    saec.compress(tables, ratio=8, out=tmp_path / "a.saec", progress=reports.append)
    curves = [(one.done, one.total, one.unit) for one in reports if one.stage == "curves"]
    assert (curves[0], curves[-1]) == ((0, 4, "fields"), (4, 4, "fields"))
    assert [one.stage for one in reports[: len(curves)]] == ["curves"] * len(curves)
