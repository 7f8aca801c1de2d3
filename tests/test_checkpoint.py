"""A killed run continues to the same bytes; a checkpoint never serves another run."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saec_gpu as saec
from saec_gpu import pipeline
from saec_gpu.checkpoint import ALLOCATION, Checkpoint
from saec_gpu.clustering import seeding
from saec_gpu.errors import CheckpointError, ParamError
from saec_gpu.pipeline import Pipeline

KILLS = {"codewords": 20, "budget": 8}  # of a run by what it is asked, with --full
KILLS_A_FULL_ONE = 4  # so many times fewer without
# A child that compresses, slowed down at every progress report so that a kill can fall anywhere.
CHILD = """
import json, sys, time
import saec_gpu as saec

def slow(progress):
    time.sleep(0.004)

folder = sys.argv[1]
saec.compress(
    f"{folder}/tables", weights=f"{folder}/weights", **json.loads(sys.argv[4]),
    out=f"{folder}/out.saec", checkpoint=f"{folder}/checkpoint", chunk_rows=int(sys.argv[2]),
    threads=int(sys.argv[3]), progress=slow,
)
"""


def make_tables(folder: Path, *, smaller: int = 1) -> None:
    generator = np.random.default_rng(7)
    (folder / "tables").mkdir()
    (folder / "weights").mkdir()
    for name, n_rows, dim in (("brand", 97, 3), ("item", 3001, 17), ("user", 2050, 8)):
        rows = generator.standard_normal((n_rows // smaller, dim)).astype(np.float32)
        counts = generator.zipf(1.3, len(rows)).clip(0, 10**6)
        np.save(folder / "tables" / f"{name}.npy", rows)
        np.save(folder / "weights" / f"{name}.npy", counts)


def interrupted_at(number: int) -> Callable[[saec.Progress], None]:
    """Return a function that takes so many reports and interrupts at the last."""
    reports = itertools.count(1)

    def interrupt(progress: saec.Progress) -> None:
        if next(reports) == number:
            raise KeyboardInterrupt

    return interrupt


NO_CODEWORDS: dict[str, Any] = {"codewords": None}


def artifact_bytes(artifact: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(artifact)): path.read_bytes()
        for path in sorted(artifact.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def compress(folder: Path, **changes: Any) -> saec.Artifact:
    parameters: dict[str, Any] = {
        "weights": folder / "weights",
        "codewords": 20,
        "out": folder / "out.saec",
        "checkpoint": folder / "checkpoint",
    } | changes
    return saec.compress(parameters.pop("tables", folder / "tables"), **parameters)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tables(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "asked", [{"codewords": 20}, {"budget": "30kB"}], ids=lambda one: next(iter(one))
)
def test_killed_at_random_moments_ends_in_the_same_bytes(
    folder: Path, rng: np.random.Generator, asked: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    # RELIABILITY 50
    undisturbed = compress(
        folder, **NO_CODEWORDS | asked, out=folder / "undisturbed.saec", checkpoint=None
    )
    expected = artifact_bytes(undisturbed.path)
    child = [sys.executable, "-c", CHILD, str(folder)]
    whole = time.monotonic()
    subprocess.run([*child, "700", "1", json.dumps(asked)], check=True)
    whole = time.monotonic() - whole
    assert artifact_bytes(folder / "out.saec") == expected
    share = 1 if request.config.getoption("--full") else KILLS_A_FULL_ONE
    for _ in range(KILLS[next(iter(asked))] // share):
        for path in (folder / "out.saec", folder / "checkpoint"):
            subprocess.run(["rm", "-rf", str(path)], check=True)
        process = subprocess.Popen([*child, "700", "1", json.dumps(asked)])
        time.sleep(float(rng.uniform(0.2, 1.0)) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # another chunk size and thread count: both may change on resume
        subprocess.run([*child, "501", "2", json.dumps(asked)], check=True)
        assert artifact_bytes(folder / "out.saec") == expected
        assert sorted(path.name for path in folder.iterdir()) == [
            "checkpoint", "out.saec", "tables", "undisturbed.saec", "weights",
        ]  # fmt: skip


@pytest.mark.parametrize("drawn", [4096, 4])
def test_interrupted_between_any_two_reports_continues_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, drawn: int
) -> None:
    monkeypatch.setattr(pipeline, "MOST_DRAWN", drawn)  # seeds: also some that come in rounds
    monkeypatch.setattr(seeding, "MOST_DRAWN", drawn)
    expected = artifact_bytes(
        compress(folder, out=folder / "undisturbed.saec", checkpoint=None).path
    )
    reports = 0

    def count(progress: saec.Progress) -> None:
        nonlocal reports
        reports += 1

    counted = {"out": folder / "counted.saec", "checkpoint": folder / "counted"}
    compress(folder, **counted, progress=count, chunk_rows=500)
    assert reports > 20
    for stop_at in range(1, reports + 1, 3):
        place = folder / f"stopped-{stop_at}"
        out = folder / f"stopped-{stop_at}.saec"
        with pytest.raises(KeyboardInterrupt):
            compress(
                folder, out=out, checkpoint=place, progress=interrupted_at(stop_at), chunk_rows=500
            )
        assert artifact_bytes(compress(folder, out=out, checkpoint=place).path) == expected


def test_one_thread_reads_what_was_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The headers of .npy are parsed by `ast`, which may fail in two threads at a time.
    def interrupt(progress: saec.Progress) -> None:
        if progress.stage == "codes":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(folder, progress=interrupt, threads=2)
    read_by: list[threading.Thread] = []
    read = np.load

    def load(*args: Any, **kwargs: Any) -> Any:
        read_by.append(threading.current_thread())
        return read(*args, **kwargs)

    monkeypatch.setattr(np, "load", load)
    compress(folder, threads=2)
    assert len(read_by) > 2
    assert set(read_by) == {threading.main_thread()}


def test_killed_without_checkpoint_leaves_nothing_after_the_next_run(folder: Path) -> None:
    (folder / "out.saec.working").mkdir()
    for name in ("3.codes.npy", "2.codes.npy.levels"):
        (folder / "out.saec.working" / name).write_bytes(b"left by a killed run")
    compress(folder, checkpoint=None)
    assert sorted(path.name for path in folder.iterdir()) == ["out.saec", "tables", "weights"]


def test_finished_run_repeated_changes_nothing(folder: Path) -> None:
    first = compress(folder)
    written = (first.path / "manifest.json").stat().st_mtime_ns
    again = compress(folder)
    assert (again.path / "manifest.json").stat().st_mtime_ns == written


def test_artifact_removed_after_the_end_is_written_again(folder: Path) -> None:
    expected = artifact_bytes(compress(folder).path)
    subprocess.run(["rm", "-rf", str(folder / "out.saec")], check=True)
    assert artifact_bytes(compress(folder).path) == expected


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 1}, "parameters"),
        ({"max_iter": 3}, "parameters"),
        ({"tol": 0.5}, "parameters"),
        ({"codewords_dtype": "int8"}, "parameters"),
        ({"codes": "planes"}, "parameters"),
        ({"codewords": 21}, "codewords"),
        ({"weights": None}, "weights"),
    ],
)
def test_other_parameters_are_refused(folder: Path, change: dict[str, Any], word: str) -> None:
    compress(folder)
    with pytest.raises(CheckpointError, match=rf"belongs to another run: .*{word} was"):
        compress(folder, **change)


def test_changed_source_is_refused(folder: Path) -> None:
    compress(folder)
    rows = np.load(folder / "tables" / "user.npy")
    rows[0] += 1
    np.save(folder / "tables" / "user.npy", rows)
    os.utime(folder / "tables" / "user.npy", ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"tables was .* now"):
        compress(folder)


def test_changed_array_in_memory_is_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    keep = {"codewords": 4, "checkpoint": tmp_path / "checkpoint", "overwrite": True}
    saec.compress(rows, out=tmp_path / "a.saec", **keep)  # type: ignore[arg-type]
    rows[50, 1] = 0
    with pytest.raises(CheckpointError, match="tables was"):
        saec.compress(rows, out=tmp_path / "a.saec", **keep)  # type: ignore[arg-type]


def test_folder_of_something_else_is_refused(folder: Path) -> None:
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        compress(folder)
    assert (folder / "checkpoint" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("name", ["run.json", "1.statistics.npz", "2.done.npz"])
def test_altered_checkpoint_is_an_error_in_words(folder: Path, name: str) -> None:
    compress(folder)
    subprocess.run(["rm", "-rf", str(folder / "out.saec")], check=True)
    place = folder / "checkpoint" / name
    if name.endswith("npz"):
        (folder / "checkpoint" / "1.done.npz").unlink()
    place.write_bytes(place.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="altered"):
        compress(folder)


def test_checkpoint_says_what_it_holds(folder: Path) -> None:
    compress(folder)
    run = json.loads((folder / "checkpoint" / "run.json").read_text())
    assert run["codewords"] == {"brand": 20, "item": 20, "user": 20}
    assert str(folder) not in json.dumps(run["parameters"])


# Under a budget: curves, then rounds of clustering.

BUDGET: dict[str, Any] = {"codewords": None, "budget": "2.1kB", "max_iter": 3}


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    make_tables(tmp_path, smaller=16)
    return tmp_path


@pytest.fixture
def off_the_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fields take up to an eighth more than estimated, so that rounds are needed."""
    plain = Pipeline.counted_bytes

    def more(self: Pipeline, name: str) -> int:
        counted = plain(self, name)
        codewords = len(self.codebooks[name].values) if name in self.codebooks else 0
        return counted + counted * (codewords % 5) // 32

    monkeypatch.setattr(Pipeline, "counted_bytes", more)


def rounds_in(checkpoint: Path) -> int:
    return len(json.loads((checkpoint / ALLOCATION).read_text())["rounds"])


def test_budget_interrupted_between_any_two_reports_continues_to_the_same_bytes(
    small_folder: Path, off_the_estimates: None
) -> None:
    reports: list[saec.Progress] = []
    counted = {"out": small_folder / "counted.saec", "checkpoint": small_folder / "counted"}
    compress(small_folder, **BUDGET, **counted, progress=reports.append, chunk_rows=200)
    assert rounds_in(small_folder / "counted") > 1
    expected = artifact_bytes(small_folder / "counted.saec")
    undisturbed = compress(
        small_folder, **BUDGET, out=small_folder / "undisturbed.saec", checkpoint=None
    )
    assert artifact_bytes(undisturbed.path) == expected
    stages = [one.stage for one in reports]
    assert stages.count("curves") > 1
    for stop_at in range(1, len(reports) + 1, 4):
        place, out = small_folder / f"stopped-{stop_at}", small_folder / f"stopped-{stop_at}.saec"
        with pytest.raises(KeyboardInterrupt):
            compress(
                small_folder,
                **BUDGET,
                out=out,
                checkpoint=place,
                progress=interrupted_at(stop_at),
                chunk_rows=200,
            )
        again = compress(small_folder, **BUDGET, out=out, checkpoint=place, threads=1)
        assert artifact_bytes(again.path) == expected


@pytest.mark.parametrize("method", ["save_allocation", "forget", "save_done", "save_fits"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_budget_killed_around_any_change_of_its_checkpoint(
    small_folder: Path,
    off_the_estimates: None,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    when: str,
) -> None:
    expected = artifact_bytes(
        compress(
            small_folder, **BUDGET, out=small_folder / "undisturbed.saec", checkpoint=None
        ).path
    )
    plain = getattr(Checkpoint, method)
    calls = 0

    def stopping(self: Checkpoint, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if when == "after":
            plain(self, *arguments)
        if calls == stop_at:
            raise KeyboardInterrupt
        if when == "before":
            plain(self, *arguments)

    interrupted = 0
    for stop_at in (1, 2, 3, 5, 8, 13, 21, 34):
        place, out, calls = small_folder / f"{stop_at}", small_folder / f"{stop_at}.saec", 0
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, method, stopping)
            try:
                compress(small_folder, **BUDGET, out=out, checkpoint=place)
            except KeyboardInterrupt:
                interrupted += 1
        assert (
            artifact_bytes(compress(small_folder, **BUDGET, out=out, checkpoint=place).path)
            == expected
        )
        if calls < stop_at:
            break
    assert interrupted > 1


def test_curves_are_measured_once(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: saec.Progress) -> None:
        if progress.stage == "statistics":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(small_folder, **BUDGET, progress=interrupt)
    reports: list[saec.Progress] = []
    compress(small_folder, **BUDGET, progress=reports.append)
    assert "curves" not in {one.stage for one in reports}


@pytest.mark.parametrize(
    "change", [{"budget": "5kB"}, {"sensitivity": {"user": 2}}, {"budget": None, "ratio": 9}]
)
def test_another_budget_is_refused(small_folder: Path, change: dict[str, Any]) -> None:
    compress(small_folder, **BUDGET)
    with pytest.raises(CheckpointError, match="belongs to another run: parameters was"):
        compress(small_folder, **BUDGET | change)


def test_altered_allocation_is_an_error_in_words(small_folder: Path) -> None:
    compress(small_folder, **BUDGET)
    subprocess.run(["rm", "-rf", str(small_folder / "out.saec")], check=True)
    place = small_folder / "checkpoint" / ALLOCATION
    place.write_bytes(place.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="altered"):
        compress(small_folder, **BUDGET)


def test_wrong_sensitivity_leaves_no_checkpoint(small_folder: Path) -> None:
    with pytest.raises(ParamError, match="give a finite number above 0"):
        compress(small_folder, **BUDGET, sensitivity={"user": float("nan")})
    assert not (small_folder / "checkpoint").exists()
