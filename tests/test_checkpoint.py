"""A killed run continues to the same bytes; a checkpoint never serves another run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saec_gpu as saec
from saec_gpu.errors import CheckpointError

KILLS = 20
# A child that compresses, slowed down at every progress report so that a kill can fall anywhere.
CHILD = """
import sys, time
import saec_gpu as saec

def slow(progress):
    time.sleep(0.004)

folder = sys.argv[1]
saec.compress(
    f"{folder}/tables", weights=f"{folder}/weights", codewords=20, out=f"{folder}/out.saec",
    checkpoint=f"{folder}/checkpoint", chunk_rows=int(sys.argv[2]), threads=int(sys.argv[3]),
    progress=slow,
)
"""


def make_tables(folder: Path) -> None:
    generator = np.random.default_rng(7)
    (folder / "tables").mkdir()
    (folder / "weights").mkdir()
    for name, n_rows, dim in (("brand", 97, 3), ("item", 3001, 17), ("user", 2050, 8)):
        rows = generator.standard_normal((n_rows, dim)).astype(np.float32)
        np.save(folder / "tables" / f"{name}.npy", rows)
        np.save(folder / "weights" / f"{name}.npy", generator.zipf(1.3, n_rows).clip(0, 10**6))


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


def test_killed_at_twenty_random_moments_ends_in_the_same_bytes(
    folder: Path, rng: np.random.Generator
) -> None:
    # RELIABILITY 50
    undisturbed = compress(folder, out=folder / "undisturbed.saec", checkpoint=None)
    expected = artifact_bytes(undisturbed.path)
    child = [sys.executable, "-c", CHILD, str(folder)]
    whole = time.monotonic()
    subprocess.run([*child, "700", "1"], check=True)
    whole = time.monotonic() - whole
    assert artifact_bytes(folder / "out.saec") == expected
    for _ in range(KILLS):
        for path in (folder / "out.saec", folder / "checkpoint"):
            subprocess.run(["rm", "-rf", str(path)], check=True)
        process = subprocess.Popen([*child, "700", "1"])
        time.sleep(float(rng.uniform(0.2, 1.0)) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # another chunk size and thread count: both may change on resume
        subprocess.run([*child, "501", "2"], check=True)
        assert artifact_bytes(folder / "out.saec") == expected
        assert sorted(path.name for path in folder.iterdir()) == [
            "checkpoint", "out.saec", "tables", "undisturbed.saec", "weights",
        ]  # fmt: skip


def test_interrupted_between_any_two_reports_continues_to_the_same_bytes(folder: Path) -> None:
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
        seen = 0

        def interrupt(progress: saec.Progress, stop_at: int = stop_at) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_at:
                raise KeyboardInterrupt

        place = folder / f"stopped-{stop_at}"
        out = folder / f"stopped-{stop_at}.saec"
        with pytest.raises(KeyboardInterrupt):
            compress(folder, out=out, checkpoint=place, progress=interrupt, chunk_rows=500)
        assert artifact_bytes(compress(folder, out=out, checkpoint=place).path) == expected


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
