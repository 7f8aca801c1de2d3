"""The command line: what it prints, how it ends, and that it always ends in words."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

import saec_gpu as saec
from saec_gpu import cli, console, doctor
from saec_gpu.cli import machine
from saec_gpu.cli.command import Command

COMMANDS = ("demo", "compress", "inspect", "verify", "report", "lookup", "bench", "doctor")
MAIN = "from saec_gpu.cli import main; main()"
# The same, slowed down at every report of progress so that a signal meets a run in the middle.
SLOW_MAIN = """
import signal, time
from saec_gpu import cli, console

class Slow(console.ProgressDisplay):
    def __call__(self, at):
        time.sleep(0.01)

# a shell makes what it runs in the background deaf to interrupts, and we inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
console.ProgressDisplay = Slow
cli.main()
"""


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(cli.app, [str(one) for one in arguments], prog_name="saec")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def output(*arguments: object) -> str:
    """Return what a command that succeeds prints to standard output."""
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def document(*arguments: object, status: int = 0) -> Any:
    """Return the JSON document that is all that a command prints."""
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (status, ""), result.output
    return json.loads(result.stdout)


def start(*arguments: object, code: str = MAIN, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *(str(one) for one in arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def in_terminal(columns: int, *arguments: object) -> str:
    """Return what a command shows on a terminal, without colours and movements."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *(str(one) for one in arguments)],
        stdin=terminal, stdout=terminal, stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(screen, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(screen)
    assert process.wait(60) == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")


@pytest.fixture
def tables() -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(2)
    return {
        "brand": generator.standard_normal((12, 3)).astype(np.float32),
        "item[0]": generator.standard_normal((1025, 5)).astype(np.float32),
        "user": generator.standard_normal((700, 4)).astype(np.float32),
    }


@pytest.fixture
def counts() -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(3)
    return {
        "item[0]": generator.integers(0, 10**6, 1025),
        "user": generator.integers(0, 50, 700),
    }


@pytest.fixture
def model(tmp_path: Path, tables: dict[str, NDArray[Any]]) -> Path:
    save_file(tables, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def weights(tmp_path: Path, counts: dict[str, NDArray[Any]]) -> Path:
    save_file(counts, tmp_path / "counts.safetensors")
    return tmp_path / "counts.safetensors"


@pytest.fixture
def artifact(tmp_path: Path, model: Path, weights: Path) -> Path:
    run("compress", model, "--weights", weights, "--codewords", 20, "--out", tmp_path / "m.saec")
    return tmp_path / "m.saec"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


# Help.


def test_help_teaches() -> None:
    told = output("--help")
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", told, re.MULTILINE)
    assert "Exit status:\n    0    done\n    1    an error in words" in told
    assert "\n    2    wrong usage\n    130  interrupted" in told
    assert '{"error": {"type": ..., "message": ...}}' in told


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_parse(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = output(command, "--help")
    examples = re.findall(r"^    saec (.*)$", told.partition("Examples:")[2], re.MULTILINE)
    assert examples
    assert told == output(command, "-h")
    monkeypatch.setattr(Command, "invoke", lambda self, ctx: None)
    for example in examples:
        words = [word.strip("'") for word in example.split()]
        assert words[0] == command
        assert run(*words).exit_code == 0


def test_version() -> None:
    assert output("--version") == f"saec {saec.__version__}\n"


def test_help_is_quick() -> None:
    code = MAIN.replace("main()", "") + (
        "import sys\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    process = start("--help", code=code)
    _, loaded = process.communicate(timeout=60)
    assert process.returncode == 0
    names = {name.partition(".")[0] for name in loaded.split()}
    assert "typer" in names
    assert names.isdisjoint({"numba", "llvmlite", "rich", "safetensors", "torch", "pyarrow"})


# The way of the README.


def test_compress_inspect_verify_lookup(
    tmp_path: Path, model: Path, weights: Path, tables: dict[str, NDArray[Any]]
) -> None:
    told = output("inspect", model, "--weights", weights, "--codewords", 20)
    assert re.search(r"item\[0\] +float32 +1,025 +5 +20.5 kB +20 +1.04 kB", told)
    assert "memory: " in told
    out = tmp_path / "m.saec"
    result = run("compress", model, "--weights", weights, "--codewords", 20, "--out", out)
    assert result.exit_code == 0
    assert result.stderr == "fields: 3, rows: 1,737: read once and kept in memory\n"
    assert re.search(
        r"item\[0\] +1,025 +5 +1,025 +20 +float32 +4\.\d\d levels +\d+ +20.5 kB +\d+ B +[\d,.]+\n",
        result.stdout,
    )
    assert " times smaller (" in result.stdout
    assert output("inspect", out).splitlines()[:5] == result.stdout.splitlines()[:5]
    assert "verified: 3 fields" in run("verify", out, model, "--weights", weights).stdout
    assert "no file was altered" in output("verify", out)
    lines = output("lookup", out, "item[0]", "3", "1020:1022").splitlines()
    loaded = saec.load(out)["item[0]"]
    assert len(lines) == 3
    for line, row in zip(lines, (3, 1020, 1021), strict=True):
        head, _, vector = line.partition(": ")
        assert head == f"row {row} code {loaded.codes_of([row])[0]}"
        assert np.array_equal(np.array(vector.split(), np.float32), loaded.lookup([row])[0])


def test_long_lines_and_tables_are_not_wrapped_in_a_file(tmp_path: Path) -> None:
    name = "x" * 200
    np.save(tmp_path / f"{name}.npy", np.zeros((10, 3), np.float32))
    told = output("inspect", tmp_path / f"{name}.npy")
    assert re.search(rf"^{name} +float32 +10 +3 +120 B", told, re.MULTILINE)


def test_lookup_writes_a_file(tmp_path: Path, artifact: Path) -> None:
    out = tmp_path / "vectors"  # no ending is added
    told = output("lookup", artifact, "user", "0:700", "3", "--out", out)
    assert told == f"701 vectors of dim 4 are in {out}\n"
    rows = [*range(700), 3]
    assert np.array_equal(np.load(out), saec.load(artifact)["user"].lookup(rows))


def test_report_writes_a_page(tmp_path: Path, artifact: Path, model: Path, weights: Path) -> None:
    out = tmp_path / "page.html"
    told = output("report", artifact, "--out", out)
    assert re.fullmatch(rf"{out}: 3 fields, [\d.]+ kB; open it in a browser\n", told)
    without = out.read_text(encoding="utf-8")
    assert "Error by frequency" not in without
    told = document("report", artifact, model, "--weights", weights, "--out", out)
    assert told["out"] == str(out)
    assert [one["name"] for one in told["errors"]] == ["item[0]", "user"]
    assert sum(group["rows"] for group in told["errors"][1]["groups"]) <= 700
    assert told["errors"][1]["all"]["rows"] == 700
    assert "Error by frequency" in out.read_text(encoding="utf-8")


def test_report_goes_to_the_folder_where_it_is_asked_for(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert output("report", artifact).startswith("report.html: ")
    assert (tmp_path / "report.html").exists()


def test_fields_and_codewords_of_each(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "m.saec"
    given = ["--fields", "user", "--fields", "item*", "--codewords", "7"]
    run("compress", model, *given, "--codewords", "item[0]=0.02", "--out", out)
    loaded = saec.load(out)
    assert {name: loaded[name].n_codewords for name in loaded} == {"item[0]": 20, "user": 7}
    assert run("verify", out, model).exit_code == 0


def test_every_option_reaches_compress(
    tmp_path: Path, model: Path, weights: Path, artifact: Path
) -> None:
    result = run(
        "compress", model, "--weights", weights, "--codewords", 20, "--out", artifact,
        "--overwrite", "--memory", "400kB", "--threads", 1, "--backend", "cpu", "--seed", 5,
        "--max-iter", 3, "--tol", 0, "--codewords-dtype", "int8", "--full", "--chunk-rows", 100,
        "--codes", "planes",
        "--checkpoint", tmp_path / "work",
    )  # fmt: skip
    assert result.exit_code == 0
    loaded = saec.load(artifact)
    assert loaded.manifest["parameters"] == {
        "seed": 5, "max_iter": 3, "tol": 0.0, "codewords_dtype": "int8", "codes": "planes",
        "fast": False,
    }  # fmt: skip
    assert loaded["user"].record["iterations"] == 3
    assert (loaded.run["threads"], loaded.run["memory"]) == (1, "400kB")
    assert loaded.run["chunk_rows"] == 100
    assert (tmp_path / "work" / "run.json").exists()


def test_budget_and_sensitivity(
    tmp_path: Path, model: Path, weights: Path, tables: dict[str, NDArray[Any]]
) -> None:
    asked = ["--weights", weights, "--budget", "5kB"]
    scales = ["--sensitivity", "user=1e5", "--sensitivity", "item[0]=0.5"]
    plain, scaled = tmp_path / "plain.saec", tmp_path / "scaled.saec"
    run("compress", model, *asked, "--out", plain)
    run("compress", model, *asked, *scales, "--out", scaled)
    for out, sensitivity in ((plain, {}), (scaled, {"user": 1e5, "item[0]": 0.5})):
        made = saec.load(out).manifest
        assert made["parameters"]["budget"] == 5000
        assert made["parameters"]["sensitivity"] == sensitivity
        assert 4900 <= made["totals"]["counted_bytes"] <= 5000
        assert run("verify", out, model, "--weights", weights).exit_code == 0
    user = [saec.load(out)["user"].record["weighted_sse"] for out in (plain, scaled)]
    assert user[1] < user[0]
    by_python = saec.compress(
        model, weights=weights, budget=5000, sensitivity={"user": 10**5, "item[0]": 0.5},
        out=tmp_path / "python.saec",
    )  # fmt: skip
    assert contents(by_python.path) == contents(scaled)


@pytest.mark.parametrize(
    "asked", [("--ratio", 9), ("--budget", "4kB"), ("--budget", "4kB", "--codewords-dtype", "int8")]
)
def test_what_inspect_estimates_comes_of_it(
    tmp_path: Path, model: Path, weights: Path, asked: tuple[object, ...]
) -> None:
    given = ("--weights", weights, "--sensitivity", "brand=3", *asked)
    told = document("inspect", model, *given)
    made = document("compress", model, *given, "--out", tmp_path / "m.saec")
    # estimated from fewer passes, so that codes in levels take a few bytes more or less
    assert abs(told["bytes_after"] - made["counted_bytes"]) <= 0.01 * made["counted_bytes"]
    for before, after in zip(told["fields"], made["fields"], strict=True):
        assert before["codewords"] == after["codewords"]
    text = output("inspect", model, *given)
    assert re.search(r"^31.8 kB → 3.\d+ kB, about, [89].\d+ times smaller$", text, re.MULTILINE)


def test_inspect_refuses_what_compress_does(model: Path) -> None:
    for arguments, message in (
        (("--ratio", 1e6), "already takes 18 of the tables' 31,844"),
        (("--budget", "5kB", "--sensitivity", "users=2"), 'names the field "users"'),
        (("--sensitivity", "user=2"), "give budget or ratio too"),
    ):
        result = run("inspect", model, *arguments)
        assert result.exit_code == 1
        assert message in re.sub(r"\s+", " ", result.stderr)


def test_demo(tmp_path: Path) -> None:
    result = run("demo", "--rows", 3000, "--out", tmp_path / "demo.saec")
    assert result.exit_code == 0
    assert "times smaller" in result.stdout
    assert "verified: 26 fields, every code and every error, weighted too" in result.stdout
    assert len(saec.load(tmp_path / "demo.saec")) == 26


# JSON.


def test_json_of_every_command(tmp_path: Path, model: Path, weights: Path) -> None:
    out = tmp_path / "m.saec"
    told = document("inspect", model, "--weights", weights, "--codewords", 20)
    assert [field["name"] for field in told["fields"]] == ["brand", "item[0]", "user"]
    assert told["fields"][2]["weights"]["total"] > 0
    asked = ("--weights", weights, "--codewords", 20, "--codes", "planes", "--out", out)
    made = document("compress", model, *asked)
    assert made["counted_bytes"] == told["bytes_after"]
    assert made["fields"] == saec.load(out).manifest["fields"]
    assert made["run"]["backend"] == "cpu"
    assert document("inspect", out) == made
    narrow = ("--codewords", 20, "--codewords-dtype", "int8")
    assert document("inspect", model, *narrow)["bytes_after"] < told["bytes_after"]
    assert document("verify", out)["ok"] is True
    found = document("verify", out, model, "--weights", weights)
    assert (found["ok"], found["problems"]) == (True, [])
    assert [field["ok"] for field in found["fields"]] == [True] * 3
    vectors = document("lookup", out, "user", "3", "5:7")
    assert vectors["rows"] == [3, 5, 6]
    assert vectors["vectors"] == saec.load(out)["user"].lookup([3, 5, 6]).tolist()
    written = document("lookup", out, "user", "3", "--out", tmp_path / "v.npy")
    assert written["out"] == str(tmp_path / "v.npy")
    assert document("demo", "--rows", 1000, "--ratio", 4)["verified"] is True
    assert {"what", "state", "ok", "advice"} == set(document("doctor")[0])
    assert document("bench", "--list")[0].keys() == {"name", "line"}


def test_json_of_an_artifact_that_is_wrong(
    artifact: Path, model: Path, tables: dict[str, NDArray[Any]]
) -> None:
    save_file(tables | {"user": tables["user"] + np.float32(1e6)}, model)
    told = document("verify", artifact, model, status=1)
    assert told["ok"] is False
    assert told["problems"]
    assert told["fields"][2]["sse"] > told["fields"][2]["stored_sse"]


# Wrong usage.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unheard"], "No such command"),
        (["compress", "x.npy"], "--out"),
        (["compress", "x.npy", "--out", "a", "--unheard"], "--unheard"),
        (["compress", "x.npy", "--out", "a", "--threads", "0"], "--threads"),
        (["compress", "x.npy", "--out", "a", "--max-iter", "0"], "--max-iter"),
        (["compress", "x.npy", "--out", "a", "--backend", "abacus"], "abacus"),
        (["compress", "x.npy", "--out", "a", "--codewords", "many"], "'many': give a whole number"),
        (["compress", "x.npy", "--out", "a", "--codewords", "x="], "'x=': give a whole number"),
        (["inspect", "x.npy", "--codewords", "3", "--ratio", "2"], "give one of them"),
        (["inspect", "x.npy", "--budget", "3kB", "--ratio", "2"], "give one of them"),
        (["inspect", "x.npy", "--ratio", "2", "--sensitivity", "x"], "'x': give FIELD=number"),
        (["verify", "x.saec", "--weights", "w.npy"], "give SOURCE too"),
        (["report", "x.saec", "--weights", "w.npy"], "needs both TABLES and --weights"),
        (["report", "x.saec", "t.npy"], "needs both TABLES and --weights"),
        (["lookup", "x.saec", "user"], "ROWS"),
        (["lookup", "x.saec", "user", "first"], "'first' is no row number"),
        (["lookup", "x.saec", "user", "5:5"], "'5:5' is no row number"),
        (["lookup", "x.saec", "user", "--jsn"], "'--jsn' is an option unknown here"),
        (["bench", "--threads", "none"], "--threads"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in re.sub(r"\s+", " ", result.stderr)


def test_options_of_tables_do_not_fit_an_artifact(artifact: Path) -> None:
    result = run("inspect", artifact, "--ratio", 3)
    assert result.exit_code == 2
    assert "an artifact is shown as it is" in result.stderr


# Errors in words: the table of docs/how-it-works.md, once each.


def fails(message: str, *arguments: object) -> None:
    """Assert that a command ends with status 1 and a message, as text and as JSON."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    words = re.sub(r"\s+", " ", result.stderr)
    assert "saec: " in words
    assert message in words
    assert "Traceback" not in words
    error = document(*arguments, status=1)["error"]
    assert message in error["message"]
    assert error["type"].endswith("Error")


def test_rows_and_weights_that_are_not_allowed(
    tmp_path: Path, model: Path, weights: Path, tables: dict[str, NDArray[Any]]
) -> None:
    out = tmp_path / "m.saec"
    asked = ("--weights", weights, "--codewords", 20, "--out", out)
    save_file({"user": np.where(np.arange(700) == 7, -1.0, 1.0)}, weights)
    fails('row 7 of field "user" has weight -1.0', "compress", model, *asked)
    fails('row 7 of field "user" has weight -1.0', "inspect", model, "--weights", weights)
    save_file({"user": np.ones(699)}, weights)
    fails("699", "compress", model, *asked)
    save_file({"usr": np.ones(700)}, weights)
    fails("usr", "compress", model, *asked)
    tables["user"][57, 2] = np.nan
    save_file(tables, model)
    fails('row 57 of field "user"', "compress", model, "--out", out)
    assert not out.exists()


def test_weights_all_zero_and_fields_without_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(4).standard_normal((200, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=rows, none=rows[:0])
    np.savez(tmp_path / "w.npz", x=np.zeros(200))
    arguments = ("compress", tmp_path / "x.npz", "--weights", tmp_path / "w.npz")
    result = run(*arguments, "--codewords", 4, "--out", tmp_path / "x.saec")
    assert result.exit_code == 0
    assert 'field "x": all weights are zero' in result.stderr
    assert re.search(r"^none +0 +3 +0 ", result.stdout, re.MULTILINE)
    np.savez(tmp_path / "x.npz", none=rows[:0])
    fails("no field has a row", "compress", tmp_path / "x.npz", "--out", tmp_path / "y.saec")


def test_unknown_names(tmp_path: Path, model: Path, artifact: Path) -> None:
    out = ("--out", tmp_path / "n.saec")
    fails('the field "usr"', "compress", model, "--codewords", "usr=3", *out)
    fails("brand, item[0], user", "compress", model, "--codewords", "usr=3", *out)
    fails("but not brand, item[0]", "compress", model, "--codewords", "user=3", *out)
    fails("'usr*'", "compress", model, "--fields", "usr*", *out)
    fails("its fields are brand, item[0], user", "lookup", artifact, "usr", "0")


@pytest.mark.parametrize("row", ["-1", "700", "-3:2", "0:701", "1000000000000"])
def test_rows_that_are_not_there(artifact: Path, row: str) -> None:
    fails('of field "user" is out of range', "lookup", artifact, "user", "0", row)


def test_truncated_and_altered_files(tmp_path: Path, model: Path, artifact: Path) -> None:
    codes = artifact / "codes" / "2.npy"
    content = codes.read_bytes()
    codes.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    fails("codes/2.npy", "verify", artifact)
    fails("codes/2.npy", "verify", artifact, model)
    codes.write_bytes(content[:-1])
    fails("codes/2.npy", "lookup", artifact, "user", "0")
    os.truncate(model, model.stat().st_size - 1)
    fails("model.safetensors", "compress", model, "--out", tmp_path / "n.saec")
    fails("no such file", "compress", tmp_path / "none.npy", "--out", tmp_path / "n.saec")
    fails("no artifact", "verify", tmp_path / "none.saec")


def test_verify_says_what_differs(
    artifact: Path, model: Path, tables: dict[str, NDArray[Any]]
) -> None:
    tables["user"][0] += 1
    save_file(tables, model)
    result = run("verify", artifact, model)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert 'field "user": sse is' in result.stderr


def test_source_or_parameter_changed_before_a_resume(
    tmp_path: Path, model: Path, tables: dict[str, NDArray[Any]]
) -> None:
    arguments = ("compress", model, "--checkpoint", tmp_path / "work", "--codewords", 20)
    out = tmp_path / "m.saec"
    assert run(*arguments, "--out", out).exit_code == 0
    before = contents(out)
    assert run(*arguments, "--out", out).exit_code == 0  # finished: nothing is done again
    assert contents(out) == before
    fails("parameters was", *arguments, "--seed", 1, "--out", tmp_path / "n.saec")
    save_file(tables | {"user": tables["user"][:-1]}, model)
    fails("tables was", *arguments, "--out", tmp_path / "n.saec")


def test_what_is_there_is_not_replaced(tmp_path: Path, model: Path, artifact: Path) -> None:
    fails("--overwrite", "compress", model, "--out", artifact)
    (tmp_path / "mine").mkdir()
    fails("is no saec artifact", "compress", model, "--out", tmp_path / "mine", "--overwrite")
    fails("cannot be written", "compress", model, "--out", model / "below")


def test_missing_package(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    fails("pip install 'saec_gpu[parquet]'", "inspect", tmp_path / "x.parquet")


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}, {}], object), allow_pickle=True)
    fails("x.npy", "compress", tmp_path / "x.npy", "--out", tmp_path / "x.saec")


def test_system_errors_are_words_too(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere" / "v.npy"
    fails(
        f'No such file or directory: "{nowhere}"', "lookup", artifact, "user", 0, "--out", nowhere
    )
    fails("No space left on device", "lookup", artifact, "user", 0, "--out", "/dev/full")

    def no_memory(*arguments: Any) -> Any:
        raise MemoryError("1 TB wanted")

    monkeypatch.setattr("saec_gpu.artifact.load", no_memory)
    fails("the memory is not enough (1 TB wanted)", "verify", artifact)


def test_full_disk_leaves_the_old_artifact(
    tmp_path: Path, model: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    fails("the disk is full", "compress", model, "--codewords", 9, "--out", artifact, "--overwrite")
    assert contents(tmp_path) == before


# Interrupts and pipes.


@pytest.fixture
def long_run(tmp_path: Path) -> list[Any]:
    rows = np.random.default_rng(7).standard_normal((3000, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", a=rows[:2000], b=rows)
    return ["compress", tmp_path / "x.npz", "--codewords", 20, "--chunk-rows", 500, "--tol", 0]


def interrupted(arguments: list[Any], when: Callable[[], bool]) -> tuple[str, str]:
    """Return what a command printed that was interrupted at a certain time."""
    process = start(*arguments, code=SLOW_MAIN)
    until = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    return told


def test_interrupted_and_resumed(tmp_path: Path, long_run: list[Any]) -> None:
    # RELIABILITY 51
    work, out = tmp_path / "work", tmp_path / "x.saec"
    arguments = [*long_run, "--out", out, "--checkpoint", work]
    stdout, stderr = interrupted(arguments, (work / "0.fit.npz").exists)
    assert stdout == ""
    assert stderr.splitlines()[-1] == f'saec: interrupted; the same command continues from "{work}"'
    assert "Traceback" not in stderr
    assert not out.exists()
    assert run(*arguments).exit_code == 0
    assert run(*long_run, "--out", tmp_path / "straight.saec").exit_code == 0
    assert contents(out) == contents(tmp_path / "straight.saec")


def test_interrupted_without_checkpoint(tmp_path: Path, long_run: list[Any]) -> None:
    before = contents(tmp_path)
    arguments = [*long_run, "--out", tmp_path / "x.saec"]
    working = tmp_path / "x.saec.working"
    stdout, stderr = interrupted([*arguments, "--json"], working.exists)
    assert json.loads(stdout)["error"] == {
        "type": "Interrupted",
        "message": "interrupted; with --checkpoint FOLDER the same command would continue",
    }
    assert stderr == ""
    assert contents(tmp_path) == before
    assert not working.exists()


def test_closed_pipe_is_silent(artifact: Path) -> None:
    process = start("lookup", artifact, "user", *["0:700"] * 100)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("row 0 code ")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
    process.stderr.close()


# What is shown while it works.


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    result = run(
        "compress", model, "--codewords", 20, "--chunk-rows", 500, "--out", tmp_path / "m.saec"
    )
    lines = result.stderr.splitlines()
    assert lines[0] == "fields: 3, rows: 1,737: read once and kept in memory"
    stages = r"reading|seeding|clustering \d fields?, pass \d+|encoding|shortening codes|writing"
    shape = rf"({stages}): [\d,]+/[\d,]+ "
    for line in lines[1:]:
        assert re.match(shape + r"(rows|fields)( · [\d,]+/s( · [\d hmins]+ left)?)?$", line), line
    assert any(" s left" in line for line in lines)
    assert any(line.startswith("encoding: 1,725/1,725 rows") for line in lines)


def test_rate_is_of_the_stage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = 0.0, list[str]()
    monkeypatch.setattr(console, "time", types.SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(console, "note", lines.append)
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    display = console.ProgressDisplay(quiet=False)
    for second, stage, done, total in (
        (10, "codes", 100, 400),
        (20, "levels", 60, 200),
        (30, "levels", 200, 200),
        (40, "codes", 300, 400),  # 200 rows since the last report
        (50, "codes", 400, 400),
        (60, "levels", 50, 50),
        (70, "codes", 30, 40),  # of other fields
    ):
        now = float(second)
        display(saec.Progress(stage, done, total))  # type: ignore[arg-type]
    assert lines == [
        "encoding: 100/400 rows · 10/s · 30 s left",
        "shortening codes: 60/200 rows · 6/s · 23 s left",
        "shortening codes: 200/200 rows · 10/s",
        "encoding: 300/400 rows · 20/s · 5 s left",
        "encoding: 400/400 rows · 15/s",
        "shortening codes: 50/50 rows · 5/s",
        "encoding: 30/40 rows · 3/s · 3 s left",
    ]


def test_bar_on_a_terminal(tmp_path: Path, model: Path) -> None:
    arguments = ("compress", model, "--codewords", 20, "--chunk-rows", 500)
    shown = in_terminal(120, *arguments, "--out", tmp_path / "m.saec")
    assert "━" in shown
    assert re.search(r"writing +━+ +\d/3 fields", shown)
    assert re.search(r"item\[0\] +1,025 +5 +1,025 +20 +float32 +4\.\d\d levels ", shown)


def test_numbers_are_whole_on_a_narrow_terminal(artifact: Path) -> None:
    whole = r"item\[0\] +1,025 +5 +1,025 +20 +float32 +4\.\d\d levels "
    assert re.search(whole, in_terminal(110, "inspect", artifact))
    shown = in_terminal(40, "inspect", artifact)
    assert "item[0]\n" in shown
    assert re.search(
        r"rows 1,025, dim 5, clustered 1,025, codewords 20, dtype float32, bits 4\.\d\d levels, ",
        shown,
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1234567, "1,234,567"), (0.25, "0.25"), (1234.5, "1,234"), (3e20, "3e+20")],
)
def test_numbers(number: float, text: str) -> None:
    assert console.human_number(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"),
     (4_460_000_000, "4.46 GB"), (360 * 10**9, "360 GB"), (5 * 10**15, "5,000 TB")],
)  # fmt: skip
def test_sizes(size: int, text: str) -> None:
    assert console.human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_times(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


# Bench and doctor.


def test_bench(tmp_path: Path) -> None:
    assert re.search(r"^plain +400k rows", output("bench", "--list"), re.MULTILINE)
    arguments = ("--size", 0.001, "--iterations", 1, "--repeats", 1, "--peers", "saec")
    result = run("bench", "--case", "plain", *arguments, "--append", tmp_path / "r.jsonl")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("plain: 400 rows of 16 in 1 field, ")
    assert re.search(r"^saec +[\d.]+ ", result.stdout, re.MULTILINE)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1


def test_bench_names_what_is_unknown_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fails('case "none" was asked for; the cases are', "bench", "--case", "none")
    fails('peer "none" was asked for; the peers are', "bench", "--peers", "none")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "faiss" else found(name)
    )
    fails("pip install 'saec_gpu[bench]'", "bench", "--peers", "saec,faiss")
    assert "faiss" not in machine._installed_peers()


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    # RELIABILITY 56
    told = output("doctor", "--warm")
    for what in (
        "Numba",
        "processor",
        "kernel cache",
        "backend auto +takes cpu",
        "kernels +ready after",
    ):
        assert re.search(rf"^{what}\b", told, re.MULTILINE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = output("doctor")
    assert re.search(
        r"pyarrow +not installed +to read Parquet: pip install 'saec_gpu\[parquet\]'", told
    )
    ill = doctor.Finding("subnormal numbers", "flushed to zero", False, "drop it")
    monkeypatch.setattr(doctor, "_subnormals", lambda: ill)
    result = run("doctor")
    assert result.exit_code == 1
    assert re.search(r"NOT WELL: flushed to zero +drop it", result.stdout)
