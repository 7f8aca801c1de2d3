"""The next hour: codewords go on, codes change only where they must, the same bytes every way."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
import saec_gpu as saec
from builders import opened
from conftest import EMULATED
from saec_gpu.clustering import continued, relocation
from saec_gpu.clustering.margin import NO_CODE
from saec_gpu.clustering.selection import PAYS_FROM, ROWS_A_CODEWORD
from saec_gpu.errors import (
    ArtifactError,
    CheckpointError,
    NonFiniteRowError,
    ParamError,
    SourceError,
    WeightError,
)
from test_checkpoint import artifact_bytes, interrupted_at
from test_cli import run

pytestmark = pytest.mark.usefixtures("small_coresets")

Arrays = dict[str, NDArray[Any]]

FIELDS = {"brand": (210, 3), "item": (900, 5), "user": (601, 2)}


def hour(rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Return tables and lookups."""
    tables = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in FIELDS.items()}
    return tables, {name: rng.zipf(1.4, len(rows)) * 1.0 for name, rows in tables.items()}


def moved_on(tables: Arrays, lookups: Arrays, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Return what an hour makes of them: rows changed in all, added to item, removed from user."""
    now = {name: rows.copy() for name, rows in tables.items()}
    for rows in now.values():
        rows[rng.random(len(rows)) < 0.1] += 1
    now["item"] = np.concatenate([now["item"], rng.standard_normal((300, 5)).astype(np.float32)])
    now["user"] = now["user"][:-77]
    counts = {name: rng.zipf(1.4, len(rows)) * 1.0 for name, rows in now.items()}
    return now, counts


@pytest.fixture
def last(rng: np.random.Generator, tmp_path: Path) -> tuple[saec.Artifact, Arrays, Arrays]:
    tables, lookups = hour(rng)
    artifact = saec.compress(
        tables, weights=lookups, codewords={"brand": 5, "item": 40, "user": 8}, fast=False,
        codewords_dtype="int8", out=tmp_path / "last.saec",
    )  # fmt: skip
    return artifact, tables, lookups


@pytest.mark.parametrize(("margin", "max_iter"), [(0.0, 4), (0.2, 0), (0.2, 1), (3.0, 0)])
def test_an_update_is_that_of_the_oracle(
    last: tuple[saec.Artifact, Arrays, Arrays],
    rng: np.random.Generator,
    tmp_path: Path,
    margin: float,
    max_iter: int,
) -> None:
    before, tables, lookups = last
    now, counts = moved_on(tables, lookups, rng)
    made = saec.update(
        before, now, weights=counts, margin=margin, max_iter=max_iter, out=tmp_path / "now.saec"
    )
    for name, rows in now.items():
        field, record = made[name], made[name].record
        n_before = len(tables[name])
        codes_before = [int(code) for code in before[name].codes[: len(rows)]]
        codes_before += [NO_CODE] * (len(rows) - n_before)
        k = before[name].n_codewords
        if name == "item":
            k = k * len(rows) // n_before
        codewords, codes = reference.next_hour(
            rows, counts[name], before[name].codebook, codes_before, k, margin=margin,
            max_iter=max_iter, field=name, codewords_dtype="int8",
        )  # fmt: skip
        assert field.codebook.tobytes() == codewords.tobytes()
        assert field.codes.tolist() == codes
        sse, weighted_sse = reference.errors(rows, counts[name], codewords, codes)
        assert (record["sse"], record["weighted_sse"]) == (sse, weighted_sse)
        kept = min(n_before, len(rows))
        changed = sum(a != b for a, b in zip(codes[:kept], codes_before, strict=False))
        assert record["codes_changed"] == changed
        assert record["churn"] == changed / kept
        assert record["rows_added"] == len(rows) - kept
        assert record["rows_removed"] == n_before - kept
        assert record["drift"] == sse / len(rows) / (before[name].record["sse"] / n_before)
        _, left = reference.errors(
            rows[:kept], counts[name][:kept], before[name].codebook, codes_before[:kept]
        )
        _, here = reference.errors(rows[:kept], counts[name][:kept], codewords, codes[:kept])
        assert record["staleness"] == left / here
        uses = np.bincount(codes, minlength=len(codewords)).tolist()
        assert field.out_of_vocabulary == reference.most_central(codewords, uses)
    assert made.verify(now, weights=counts).ok


def assert_held(
    module: ModuleType,
    constant: str,
    value: int,
    before: saec.Artifact,
    rows: NDArray[Any],
    k: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An update of field x has the oracle's codebook, and other ones if a constant is one off."""
    codes = [int(code) for code in before["x"].codes[: len(rows)]]
    codes += [NO_CODE] * (len(rows) - len(codes))
    codewords, _ = reference.next_hour(
        rows, None, before["x"].codebook, codes, k, margin=0.25, max_iter=0, field="x",
        codewords_dtype="float32",
    )  # fmt: skip

    def updated(name: str) -> bytes:
        return saec.update(before, {"x": rows}, out=folder / name)["x"].codebook.tobytes()

    assert getattr(module, constant) == value
    assert updated("now.saec") == codewords.tobytes()
    for other in (value - 1, value + 1):
        monkeypatch.setattr(module, constant, other)
        assert updated(f"{other}.saec") != codewords.tobytes()


def test_how_many_codewords_are_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # codeword c stands at c, and fewer rows are there than at c - 1
    places = np.repeat(np.arange(40), 60 - np.arange(40))
    before = saec.compress(
        {"x": places[:, None].astype(np.float32)}, codewords=40, codewords_dtype="float32",
        out=tmp_path / "last.saec",
    )  # fmt: skip
    assert before["x"].codebook[:, 0].tolist() == list(range(40))
    # of 32 and 33 some rows go one to the left: as near to their own as to the last but one rival
    now = places.copy()
    for code in (32, 33):
        now[np.flatnonzero(places == code)[:9]] -= 1
    rows = now[:, None].astype(np.float32)
    assert_held(continued, "RIVALS", 32, before, rows, 40, tmp_path, monkeypatch)


def test_among_how_many_rows_added_codewords_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(14)  # one of few: the worst served are seldom the last of all
    rows = rng.standard_normal((600, 2)).astype(np.float32)
    before = saec.compress(
        {"x": rows[:450]}, codewords=10, codewords_dtype="float32", out=tmp_path / "last.saec"
    )
    assert_held(relocation, "ROWS_A_PLACE", 16, before, rows, 13, tmp_path, monkeypatch)


def test_what_an_update_changes_least(
    last: tuple[saec.Artifact, Arrays, Arrays], tmp_path: Path
) -> None:
    """Nothing has changed: no code does, whatever the codewords still move."""
    before, tables, lookups = last
    made = saec.update(before, tables, weights=lookups, margin=1e9, out=tmp_path / "now.saec")
    for name in before:
        assert made[name].codes.tolist() == before[name].codes.tolist()
        assert made[name].record["churn"] == 0.0


def test_the_error_is_within_the_margin(
    last: tuple[saec.Artifact, Arrays, Arrays], rng: np.random.Generator, tmp_path: Path
) -> None:
    before, tables, lookups = last
    now, counts = moved_on(tables, lookups, rng)
    made = saec.update(before, now, weights=counts, margin=0.3, out=tmp_path / "now.saec")
    for name, rows in now.items():
        _, least = reference.assign(rows, made[name].codebook)
        served = [
            reference.dist(x, c)
            for x, c in zip(
                rows.tolist(), made[name].lookup(range(len(rows))).tolist(), strict=True
            )
        ]
        assert all(d <= (1.0 + 0.3) * b for d, b in zip(served, least, strict=True))
        assert made[name].record["sse"] > sum(least)  # the margin was used


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_way_gives_the_same_bytes(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("ways")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tables, lookups = hour(rng)
    asked: dict[str, Any] = data.draw(
        st.sampled_from([{"ratio": 4.0}, {"codewords": 7}, {"codewords": 3, "fast": True}])
    )
    before = saec.compress(tables, weights=lookups, **asked, out=folder / "last.saec")
    now, counts = moved_on(tables, lookups, rng)
    expected = artifact_bytes(
        saec.update(before, now, weights=counts, out=folder / "now.saec").path
    )
    other = saec.update(
        before.path, now, weights=counts, out=folder / "other.saec",
        chunk_rows=data.draw(st.integers(1, 700)), threads=data.draw(st.integers(1, 3)),
        memory=data.draw(st.sampled_from([None, "3MB"])),
    )  # fmt: skip
    assert artifact_bytes(other.path) == expected


@pytest.mark.parametrize("name", EMULATED)
def test_every_backend_gives_the_same_bytes(
    last: tuple[saec.Artifact, Arrays, Arrays], tmp_path: Path, name: str
) -> None:
    before, tables, _ = last
    now = {field: rows[:64] + np.float32(0.25) for field, rows in tables.items()}
    one = saec.update(before, now, backend="cpu", out=tmp_path / "1.saec")
    two = saec.update(before, now, backend=opened(name), out=tmp_path / "2.saec")
    assert artifact_bytes(one.path) == artifact_bytes(two.path)


def test_a_large_field_is_updated_by_its_coreset(rng: np.random.Generator, tmp_path: Path) -> None:
    n_rows = PAYS_FROM * ROWS_A_CODEWORD * 3
    rows = rng.standard_normal((n_rows, 2)).astype(np.float32)
    before = saec.compress({"x": rows}, codewords=3, out=tmp_path / "last.saec")
    made = saec.update(before, {"x": rows + 1}, out=tmp_path / "now.saec")
    assert made["x"].record["clustered_rows"] == ROWS_A_CODEWORD * 3
    smaller = saec.update(before, {"x": rows[:-1] + 1}, out=tmp_path / "less.saec")
    assert smaller["x"].record["clustered_rows"] == n_rows - 1


def test_codewords_grow_with_rows_over_many_hours(rng: np.random.Generator, tmp_path: Path) -> None:
    """Two per cent an hour is not lost to rounding, and codewords never get fewer."""
    rows = rng.standard_normal((1000, 2)).astype(np.float32)
    artifact = saec.compress({"x": rows}, codewords=10, out=tmp_path / "0.saec")
    for number, n_rows in enumerate([1050, 1099, 1100, 1210, 500, 1300], 1):
        rows = rng.standard_normal((n_rows, 2)).astype(np.float32)
        artifact = saec.update(artifact, {"x": rows}, out=tmp_path / f"{number}.saec")
        expected = {1: 10, 2: 10, 3: 11, 4: 12, 5: 12, 6: 13}[number]
        assert artifact["x"].n_codewords == expected
        assert artifact["x"].record["first"] == {"rows": 1000, "codewords": 10}


def test_rows_under_other_numbers_keep_their_codes(
    last: tuple[saec.Artifact, Arrays, Arrays], rng: np.random.Generator, tmp_path: Path
) -> None:
    before, tables, _ = last
    order = rng.permutation(len(tables["item"]) + 20)
    previous = np.where(order < len(tables["item"]), order, NO_CODE)
    rows = np.concatenate([tables["item"], np.ones((20, 5), np.float32)])[order]
    now = tables | {"item": rows}
    made = saec.update(
        before, now, previous_rows={"item": previous}, margin=1e9, out=tmp_path / "now.saec"
    )
    kept = previous >= 0
    assert made["item"].codes[kept].tolist() == before["item"].codes[previous[kept]].tolist()
    assert made["item"].record["rows_added"] == 20
    assert made["item"].record["rows_removed"] == 0
    assert made["brand"].record["churn"] == 0.0


@pytest.mark.parametrize("wrong", [900, -2, 0.5, np.nan])
def test_previous_rows_must_be_rows(
    last: tuple[saec.Artifact, Arrays, Arrays], tmp_path: Path, wrong: float
) -> None:
    before, tables, _ = last
    previous = np.arange(900.0)
    previous[17] = wrong
    with pytest.raises(ParamError, match=r'field "item" is .* at row 17; a number from 0 to 899'):
        saec.update(before, tables, previous_rows={"item": previous}, out=tmp_path / "x.saec")
    assert not (tmp_path / "x.saec").exists()


def test_fields_kept_whole_empty_and_grown_from_nothing(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    few = rng.standard_normal((3, 4)).astype(np.float32)
    rows = rng.standard_normal((500, 4)).astype(np.float32)
    tables: Arrays = {"empty": rows[:0], "filled": rows[:0], "few": few, "x": rows}
    before = saec.compress(tables, codewords=6, out=tmp_path / "last.saec")
    tables |= {"filled": rows, "few": np.concatenate([few, few + 1]), "x": rows[:0]}
    made = saec.update(before, tables, out=tmp_path / "now.saec")
    assert (made["few"].lookup(range(6)) == tables["few"]).all()
    assert made["few"].encoding == "identity"
    assert made["empty"].n_codewords == made["x"].n_codewords == 0
    assert made["filled"].n_codewords == 6
    assert made["filled"].record["rule"] == "nearest"
    assert made.verify(tables).ok


def test_few_different_rows_do_not_renumber_codewords(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)
    before = saec.compress({"x": rows}, codewords=6, fast=False, out=tmp_path / "last.saec")
    rows[:] = rows[0]
    made = saec.update(before, {"x": rows}, out=tmp_path / "now.saec")
    assert made["x"].n_codewords == 6
    assert made["x"].record["sse"] == 0.0
    assert made["x"].record["staleness"] is None


def test_after_retraining_there_is_no_drift(
    last: tuple[saec.Artifact, Arrays, Arrays], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from saec_gpu.nn import CompressedEmbedding, to_artifact

    before, tables, _ = last
    model = torch.nn.ModuleDict({"item": CompressedEmbedding.from_artifact(before, "item")})
    with torch.no_grad():
        model["item"].codebook += 0.25
    trained = to_artifact(model, before, tmp_path / "trained.saec")
    made = saec.update(trained, tables, max_iter=1, out=tmp_path / "now.saec")
    assert made["item"].record["drift"] is None
    assert made["item"].record["staleness"] > 1
    assert made["brand"].record["drift"] is not None
    assert "history" not in made["item"].record


def test_a_killed_update_continues_to_the_same_bytes(
    last: tuple[saec.Artifact, Arrays, Arrays], rng: np.random.Generator, tmp_path: Path
) -> None:
    before, tables, lookups = last
    now, counts = moved_on(tables, lookups, rng)
    expected = artifact_bytes(
        saec.update(before, now, weights=counts, out=tmp_path / "now.saec").path
    )
    reports = 0

    def count(progress: saec.Progress) -> None:
        nonlocal reports
        reports += 1

    saec.update(
        before, now, weights=counts, chunk_rows=150, progress=count, out=tmp_path / "n.saec"
    )
    assert reports > 15
    for stop_at in range(1, reports + 1, 4):
        asked: dict[str, Any] = {
            "weights": counts, "out": tmp_path / f"{stop_at}.saec", "chunk_rows": 150,
            "checkpoint": tmp_path / f"kept{stop_at}",
        }  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            saec.update(before, now, **asked, progress=interrupted_at(stop_at))
        assert artifact_bytes(saec.update(before, now, **asked).path) == expected


def test_in_place_and_once_more_with_its_checkpoint(
    last: tuple[saec.Artifact, Arrays, Arrays], rng: np.random.Generator, tmp_path: Path
) -> None:
    before, tables, lookups = last
    now, counts = moved_on(tables, lookups, rng)
    asked: dict[str, Any] = {
        "weights": counts, "out": before.path, "overwrite": True,
        "checkpoint": tmp_path / "kept",
    }  # fmt: skip
    made = saec.update(before.path, now, **asked)
    assert made.manifest["parameters"]["last"] == before.manifest["sha256"]
    again = saec.update(before.path, now, **asked)
    assert again.manifest == made.manifest
    with pytest.raises(CheckpointError, match="belongs to another run"):
        saec.update(before.path, now, **asked | {"out": tmp_path / "other.saec"})


def test_what_is_refused(
    last: tuple[saec.Artifact, Arrays, Arrays], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, tables, lookups = last
    out = tmp_path / "now.saec"
    for margin in (-0.1, float("nan"), float("inf"), "0.1"):
        with pytest.raises(ParamError, match="margin"):
            saec.update(before, tables, margin=margin, out=out)  # type: ignore[arg-type]
    with pytest.raises(ParamError, match="max_iter"):
        saec.update(before, tables, max_iter=-1, out=out)
    with pytest.raises(SourceError, match='has a field "user", but the tables have not'):
        saec.update(before, {"brand": tables["brand"], "item": tables["item"]}, out=out)
    with pytest.raises(SourceError, match="give tables of the same kind"):
        saec.update(before, tables | {"user": tables["user"][:, :1]}, out=out)
    broken = tables["user"].copy()
    broken[9, 1] = np.nan
    with pytest.raises(NonFiniteRowError, match='row 9 of field "user"'):
        saec.update(before, tables | {"user": broken}, out=out)
    weights = lookups | {"user": np.where(np.arange(601) == 3, -1.0, 1.0)}
    with pytest.raises(WeightError, match='row 3 of field "user"'):
        saec.update(before, tables, weights=weights, out=out)
    with pytest.raises(ArtifactError, match="exists"):
        saec.update(before, tables, out=before.path)
    with pytest.raises(ArtifactError, match="no artifact"):
        saec.update(tmp_path / "none.saec", tables, out=out)
    assert not out.exists()
    caplog.set_level(logging.INFO, "saec_gpu")
    saec.update(before, tables | {"new": tables["user"]}, out=out)
    assert "left out, for the artifact does not have them: new" in caplog.text


def test_a_code_that_the_margin_does_not_allow_is_found(
    last: tuple[saec.Artifact, Arrays, Arrays], rng: np.random.Generator, tmp_path: Path
) -> None:
    before, tables, lookups = last
    now, counts = moved_on(tables, lookups, rng)
    made = saec.update(before, now, weights=counts, out=tmp_path / "now.saec")
    far = now["item"].copy()
    far[5] = made["item"].codebook[made["item"].codes[5].item() - 1] + np.float32(1e-3)
    found = made.verify(now | {"item": far}, weights=counts)
    assert [(one.name, one.wrong_codes) for one in found.fields] == [
        ("brand", 0), ("item", 1), ("user", 0),
    ]  # fmt: skip


def test_codes_of_rows_never_seen(
    last: tuple[saec.Artifact, Arrays, Arrays], rng: np.random.Generator
) -> None:
    before, _, _ = last
    rows = rng.standard_normal((50, 5)).astype(np.float32)
    codes, _ = reference.assign(rows, before["item"].codebook)
    assert before.assign("item", rows).tolist() == codes
    assert before.assign("item", rows[3]) == codes[3]
    with pytest.raises(SourceError, match="rows have dim 5"):
        before.assign("item", rows[:, :4])
    rows[7, 2] = np.inf
    with pytest.raises(NonFiniteRowError, match='row 7 of field "item"'):
        before.assign("item", rows)
    with pytest.raises(ArtifactError, match="no field"):
        before.assign("nobody", rows)


def test_look_up_of_rows_out_of_the_vocabulary(
    last: tuple[saec.Artifact, Arrays, Arrays],
) -> None:
    field = last[0]["item"]
    found = field.lookup([[2, 900], [-1, 10**12]], out_of_vocabulary=True)
    assert found.shape == (2, 2, 5)
    assert (found[0, 0] == field.lookup(2)).all()
    assert (found[[0, 1, 1], [1, 0, 1]] == field.codebook[field.out_of_vocabulary]).all()
    with pytest.raises(ArtifactError, match="900"):
        field.lookup([900])


def test_the_command(
    last: tuple[saec.Artifact, Arrays, Arrays], rng: np.random.Generator, tmp_path: Path
) -> None:
    before, tables, lookups = last
    now, counts = moved_on(tables, lookups, rng)
    for folder, arrays in (("tables", now), ("counts", counts)):
        (tmp_path / folder).mkdir()
        for name, values in arrays.items():
            np.save(tmp_path / folder / f"{name}.npy", values)
    ended = run(
        "update", before.path, tmp_path / "tables", "--weights", tmp_path / "counts", "--out",
        tmp_path / "now.saec", "--delta", tmp_path / "now.delta",
    )  # fmt: skip
    assert ended.exit_code == 0
    made = saec.load(tmp_path / "now.saec")
    assert f"{made['item'].record['churn']:.2%}" in ended.stdout
    assert "what changed is in" in ended.stdout
    assert artifact_bytes(made.path) == artifact_bytes(
        saec.update(before, now, weights=counts, out=tmp_path / "same.saec").path
    )
    assert "every file" in run("apply", before.path, tmp_path / "now.delta").stdout
    assert artifact_bytes(before.path) == artifact_bytes(made.path)
    assert run("update", before.path, "nowhere.npy", "--out", tmp_path / "x.saec").exit_code == 1
    assert run("update", before.path, tmp_path / "tables").exit_code == 2
