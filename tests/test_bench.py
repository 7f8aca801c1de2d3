"""The benchmarks run, check before they time, and keep records that can be read again."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saec_gpu.bench import billion, fast, hours
from saec_gpu.bench import run as runner
from saec_gpu.bench.agreement import defined_codes, inertia
from saec_gpu.bench.cases import CASES, CaseData, FieldData, cases, find_case, load_case, write_case
from saec_gpu.bench.codes import entropy_bytes
from saec_gpu.bench.codes import main as measure_codes
from saec_gpu.bench.peers import Outcome, Saec, find_contestant
from saec_gpu.bench.plot import draw, latest, main, table
from saec_gpu.bench.records import SCHEMA, append_record, read_records, without_folders
from saec_gpu.bench.startup import measure_startup
from saec_gpu.bench.worker import serve
from safetensors.numpy import save_file

from saec_gpu.clustering.selection import LEAST_ROWS
from saec_gpu.data import Progress
from saec_gpu.errors import CheckpointError, MissingExtraError, ParamError, SaecError, SourceError
from saec_gpu.sources import open_tables, open_weights

RECORD_KEYS = [
    "schema", "op", "backend", "case", "n_rows", "dim", "n_fields", "n_codewords", "dtype", "size",
    "threads", "weighted", "iterations", "repeats", "warmup", "compared_by", "flop_a_pass",
    "contestants", "device", "versions", "commit", "dirty", "utc", "argv",
]  # fmt: skip
ENTRY_KEYS = [
    "version", "weighted", "threads", "seconds", "gflops", "share_of_fma_peak",
    "speed_relative_to_faiss", "time_relative_to_plain", "rechecked_share", "check", "note",
]  # fmt: skip
CHECK_KEYS = ["inertia", "reference", "checked_rows", "wrong_codes", "ok"]


class Planted(Saec):  # type: ignore[misc]  # mypy does not find bench/ under this name
    """What the contestants below are: this package's own, with a fault."""


class Shifted(Planted):
    """A contestant whose codewords are not where they should be."""

    def run(self) -> Outcome:
        right = super().run()
        return Outcome(right.flop, tuple(words + np.float32(1) for words in right.codewords))


class OffByOne(Planted):
    """A contestant that returns good codewords and wrong codes."""

    def codes(self, rows: Any, codewords: Any) -> Any:
        right = super().codes(rows, codewords)
        assert right is not None
        return (right + 1) % len(codewords)


class Unweighted(Planted):
    """A contestant that takes no weights."""

    takes_weights = False


class Failing(Planted):
    """A contestant that breaks, after it has printed to standard output."""

    def run(self) -> Outcome:
        print("so far so good")
        raise ValueError("out of luck")


class Dying(Planted):
    """A contestant that takes its process along."""

    def run(self) -> Outcome:
        os.abort()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let workers import this file, and return the start of the names of its contestants."""
    path = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return f"{__name__}:"


@pytest.mark.parametrize("name", list(CASES))
def test_case_runs(name: str) -> None:
    lines: list[str] = []
    record = runner.run_case(
        CASES[name], peers=["saec"], iterations=2, repeats=1, size=0.001, progress=lines.append
    )
    assert list(record) == RECORD_KEYS
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    case = CASES[name]
    assert (record["case"], record["dim"], record["n_fields"]) == (name, case.dim, case.n_fields)
    entries = record["contestants"]
    beside = [] if case.beside is None else [f"saec on {case.beside}"]
    assert list(entries) == ["saec", *beside, "fma-peak"]
    for key, entry in entries.items():
        assert list(entry) == ENTRY_KEYS
        assert list(entry["check"]) == CHECK_KEYS
        assert entry["check"]["ok"]
        assert list(entry["seconds"]) == ["cpu", "wall"]
        for spread in entry["seconds"].values():
            assert list(spread) == ["p20", "p50", "p80"]
            assert min(spread.values()) > 0
        assert entry["gflops"] > 0
        assert (entry["share_of_fma_peak"] is None) == (key == "fma-peak")
    ours = entries["saec"]
    assert ours["check"]["inertia"] == ours["check"]["reference"]
    assert ours["check"]["checked_rows"] > 0
    assert 0 <= ours["rechecked_share"] <= 1
    assert (ours["time_relative_to_plain"] is None) == (case.beside is None)
    assert any(line.startswith(f"{name}: saec: inertia") for line in lines)


def test_weights_and_threads(planted: str) -> None:
    peer = f"{planted}Unweighted"
    record = runner.run_case(
        CASES["4m-64-16"],
        peers=[peer],
        iterations=3,
        repeats=2,
        threads=2,
        weighted=True,
        size=0.001,
    )
    entries = record["contestants"]
    assert list(entries) == ["saec", peer, "fma-peak", "fma-peak of one thread"]
    assert (entries["saec"]["weighted"], entries[peer]["weighted"]) == (True, False)
    assert (entries["saec"]["threads"], entries["fma-peak of one thread"]["threads"]) == (2, 1)
    # Held against an unweighted run of this package, whose inertia is another.
    assert entries[peer]["check"]["ok"]
    assert entries[peer]["check"]["reference"] != entries["saec"]["check"]["inertia"]
    assert record["compared_by"] == "wall_seconds"


@pytest.mark.parametrize("wrong", ["Shifted", "OffByOne"])
def test_wrong_contestant_is_not_timed(planted: str, wrong: str) -> None:
    peer = planted + wrong
    record = runner.run_case(CASES["plain"], peers=[peer], iterations=2, repeats=1, size=0.001)
    entry = record["contestants"][peer]
    assert entry["check"]["ok"] is False
    for key in ("seconds", "gflops", "share_of_fma_peak", "speed_relative_to_faiss"):
        assert entry[key] is None
    assert (entry["check"]["wrong_codes"] > 0) == (wrong == "OffByOne")
    assert record["contestants"]["saec"]["seconds"] is not None
    assert f"| {peer} | not timed: wrong |" in table([record])


def test_nothing_is_timed_if_ours_is_wrong(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "OURS", f"{planted}OffByOne")
    with pytest.raises(
        SaecError, match=r"own result is wrong, .* codes differ from the definition"
    ):
        runner.run_case(CASES["plain"], peers=[], iterations=1, repeats=1, size=0.001)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", r"plain: .*Failing: check: ValueError: out of luck; it wrote: so far so good"),
        ("Dying", r"plain: .*Dying: check: the process died"),
    ],
)
def test_broken_contestant_is_named(planted: str, name: str, message: str) -> None:
    with pytest.raises(SaecError, match=message):
        runner.run_case(CASES["plain"], peers=[planted + name], iterations=1, repeats=1, size=0.001)


@pytest.mark.parametrize(
    ("name", "module", "distribution"),
    [
        ("faiss", "faiss", "faiss-cpu"),
        ("sklearn", "sklearn", "scikit-learn"),
        ("fastkmeans", "fastkmeans", "fastkmeans"),
    ],
)
def test_missing_peer_names_the_extra(
    name: str, module: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=rf"{distribution}.*saec_gpu\[bench\]"):
        runner.run_case(CASES["plain"], peers=[name], size=0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"peers": ["kmeans"]}, 'peer "kmeans" was asked for; the peers are saec, faiss'),
        ({"peers": [], "iterations": 0}, "iterations=0"),
        ({"peers": [], "repeats": 0}, "repeats=0"),
        ({"peers": [], "threads": 0}, "threads=0"),
        ({"peers": [], "size": 0.0}, r"size=0\.0"),
        ({"peers": [], "size": 1.5}, r"size=1\.5"),
    ],
)
def test_wrong_parameters(arguments: Any, message: str) -> None:
    with pytest.raises(ParamError, match=message):
        runner.run_case(CASES["plain"], **arguments)


def test_cases_are_listed() -> None:
    assert [name for name, _ in cases()] == list(CASES)
    assert all(line for _, line in cases())
    assert find_case("plain") is CASES["plain"]
    with pytest.raises(ParamError, match='case "fast" was asked for; the cases are fields26-d16'):
        find_case("fast")


@pytest.mark.parametrize("weighted", [False, True])
def test_written_case_is_loaded(tmp_path: Path, weighted: bool) -> None:
    write_case(CASES["fields26-d16"], tmp_path, size=0.01, weighted=weighted)
    data = load_case(tmp_path)
    assert len(data.fields) == 26
    assert np.array_equal(np.concatenate([f.rows.reshape(-1) for f in data.fields]), data.values)
    assert np.array_equal(np.concatenate([f.weights for f in data.fields]), data.weights)
    for field in data.fields:
        n_rows = len(field.rows)
        assert len(field.initial) == min(max(n_rows // 100, 1), 1024)
        assert np.array_equal(np.unique(field.initial), field.initial)
        assert np.array_equal(field.codewords, field.rows[field.initial])
        assert field.flop_a_pass == 2 * n_rows * 16 * len(field.initial)
        if weighted:
            assert field.weights[field.initial].all()


def test_inertia_by_hand() -> None:
    rows = np.array([[-1, 0], [1, 0], [4, 4], [4, 7]], np.float32)
    weights = np.array([1, 2, 10, 100], np.float64)
    field = FieldData("x", rows, weights, np.array([0, 2]))
    data = CaseData((field,), rows.reshape(-1), weights)
    words = np.array([[0, 0], [4, 5]], np.float32)
    assert inertia(data, [words], weighted=False) == 1 + 1 + 1 + 4
    assert inertia(data, [words], weighted=True) == 1 + 2 + 10 + 400


def test_defined_codes_by_hand() -> None:
    rows = np.array([[-1], [0], [0.4], [0.6], [9]], np.float32)
    words = np.array([[1], [0], [0], [-1]], np.float32)
    assert defined_codes(rows, words).tolist() == [3, 1, 1, 0, 0]


def test_worker_answers_lines(tmp_path: Path) -> None:
    write_case(CASES["plain"], tmp_path, size=0.001, weighted=False)
    setup = {
        "do": "setup", "folder": str(tmp_path), "peer": "saec", "threads": 1, "iterations": 3,
        "weighted": False,
    }  # fmt: skip
    commands = [{"do": "run"}, setup, {"do": "run"}, {"do": "quit"}, {"do": "run"}]
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(command) + "\n" for command in commands)), answers)
    early, ready, ran = (json.loads(line) for line in answers.getvalue().splitlines())
    assert early == {"error": "ValueError: run was asked for before setup"}
    assert list(ready) == ["version", "weighted", "note"]
    assert ran["flop"] == 3 * 2 * 400 * 12 * 16
    assert ran["cpu_seconds"] > 0


def test_custom_contestant_is_found(planted: str) -> None:
    assert find_contestant(f"{planted}Shifted").__name__ == "Shifted"


def entry(speed: float | None, share: float | None, **others: Any) -> dict[str, Any]:
    spread = {"p20": 0.5, "p50": 1.0, "p80": 2.0}
    values = {
        "version": "1", "weighted": False, "threads": 1, "seconds": {"cpu": spread, "wall": spread},
        "gflops": 50.0, "share_of_fma_peak": share, "speed_relative_to_faiss": speed,
        "time_relative_to_plain": None, "rechecked_share": None,
        "check": {"inertia": 3.0, "reference": 3.0, "ok": True}, "note": "",
    }  # fmt: skip
    return values | others


def synthetic_record(case: str, speed: float, weighted: bool = False) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "op": "fit", "case": case, "size": 1.0, "threads": 1,
        "weighted": weighted, "iterations": 10, "compared_by": "cpu_seconds",
        "contestants": {
            "saec": entry(speed, 0.8, rechecked_share=0.00009, weighted=weighted),
            "faiss": entry(1.0, 0.5, weighted=weighted),
            "fastkmeans": entry(0.25, 0.1),
            "fma-peak": entry(None, None, check={"inertia": None}),
        },
    }  # fmt: skip


def test_plot_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    append_record(results, synthetic_record("fields26-d16", 1.25))
    append_record(results, {"schema": SCHEMA, "op": "startup"})
    append_record(results, synthetic_record("4m-64-16", 2.5, weighted=True))
    append_record(results, synthetic_record("fields26-d16", 1.75))
    out = tmp_path / "docs" / "bench.svg"
    monkeypatch.setattr(sys, "argv", ["plot", str(results), "--out", str(out), "--table"])
    main()
    printed = capsys.readouterr().out
    assert "1.75×" in printed
    assert "1.25×" not in printed, "an older record of the case"
    assert "| 4m-64-16, 10 passes, 1 thread, weighted | fastkmeans (unweighted) |" in printed
    assert "0.009%" in printed
    first = out.read_bytes()
    assert first.lstrip().startswith(b"<?xml")
    assert b"</svg>" in first
    draw(latest(read_records([results])), out)
    assert out.read_bytes() == first


def test_plot_needs_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no record of a fit"):
        draw([], tmp_path / "x.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*saec_gpu\[bench\]"):
        draw([synthetic_record("plain", 1.0)], tmp_path / "x.svg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: no JSON"),
        ('{"schema": "other/1"}', "line 1: no record of schema"),
        ("[]", "line 1: no record of schema"),
    ],
)
def test_wrong_records(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(SourceError, match="cannot be read"):
        read_records([path])
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        read_records([path])


def test_arguments_lose_their_folders() -> None:
    given = ["/opt/x/run.py", "--out=/home/me/r.jsonl", "--out", "/home/me/r.jsonl", "a/b", "--n=3"]
    kept = ["run.py", "--out=r.jsonl", "--out", "r.jsonl", "a/b", "--n=3"]
    assert without_folders(given) == kept


def test_startup_record() -> None:
    record = measure_startup(repeats=1)
    assert record["op"] == "startup"
    names = ["import_numpy", "import_saec_gpu", "first_compress", "later_compress"]
    assert list(record["seconds"]) == names
    medians = {name: spread["p50"] for name, spread in record["seconds"].items()}
    assert medians["later_compress"] < medians["first_compress"]
    json.dumps(record, allow_nan=False)
    with pytest.raises(ParamError, match="repeats=0"):
        measure_startup(repeats=0)


def test_billion_record() -> None:
    record = billion.measure_compression(
        3000, dim=3, n_fields=3, weighted=True, memory="20MB", threads=1, max_iter=2
    )
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["op"], record["case"], record["backend"]) == ("compress", "billion", "cpu")
    assert (record["n_rows"], record["dim"], record["n_fields"]) == (3001, 3, 3)
    # Two fields of one row, and C03 with a codeword for a hundred rows.
    assert record["n_codewords"] == 1 + 1 + 29
    assert record["iterations"] == {"C01": 0, "C02": 0, "C03": 2}
    assert record["encoding"]["flop"] == 2 * 2999 * 29 * 3
    assert 0 < record["encoding"]["share_of_fma_peak"] < 1
    assert record["options"] == {"max_iter": 2}
    assert (record["weighted"], record["resumed"]) == (True, False)
    seconds = record["seconds"]
    assert {"statistics", "seeding", "fit", "codes", "total"} == set(seconds)
    assert min(seconds.values()) > 0
    assert record["rows_per_s"] == 3001 / seconds["total"]
    assert record["peak_bytes"] >= record["before_bytes"] > 0
    unweighted = billion.measure_compression(3000, dim=3, n_fields=3, max_iter=2)
    assert unweighted["manifest_sha256"] != record["manifest_sha256"]


def test_billion_resumes(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "codes":
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {"dim": 3, "n_fields": 2, "max_iter": 2}
    kept = tmp_path / "deep" / "kept"
    with pytest.raises(KeyboardInterrupt):
        billion.measure_compression(3000, checkpoint=kept, progress=interrupt, **arguments)
    assert list(kept.parent.iterdir()) == [kept], "no artifact is left beside"
    resumed = billion.measure_compression(3000, checkpoint=kept, **arguments)
    assert resumed["resumed"]
    assert resumed["rows_per_s"] is None
    assert resumed["encoding"]["share_of_fma_peak"] is None
    whole = billion.measure_compression(3000, **arguments)
    assert resumed["manifest_sha256"] == whole["manifest_sha256"]
    with pytest.raises(CheckpointError, match="tables was"):
        billion.measure_compression(4000, checkpoint=kept, **arguments)


def test_billion_command_line(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "saec_gpu.bench.billion", "--rows", "3e3", "--dim", "3"]
    options = ["--fields", "2", "--max-iter", "1", "--threads", "1", "--append", str(out)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    (record,) = read_records([out])
    assert json.loads(done.stdout) == record
    assert record["n_rows"] == 3000
    assert record["options"] == {"backend": "auto", "fast": None, "max_iter": 1}
    failed = subprocess.run(
        [*command, "--memory", "many"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "error: memory='many' was given" in failed.stderr


@pytest.mark.parametrize(("kept", "said"), [(["--checkpoint", "kept"], True), ([], False)])
def test_billion_interrupted(
    kept: list[str],
    said: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(billion, "measure_compression", interrupted)
    monkeypatch.setattr(sys, "argv", ["billion", *kept])
    with pytest.raises(SystemExit) as ended:
        billion.main()
    assert ended.value.code == 130
    assert ("the same command continues" in capsys.readouterr().err) == said


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "saec_gpu.bench.run"]
    options = ["plain", "--peers", "", "--iterations", "1", "--repeats", "1", "--size", "0.001"]
    done = subprocess.run(
        [*command, *options, "--out", str(out)], capture_output=True, text=True, check=True
    )
    (record,) = read_records([out])
    assert json.loads(done.stdout) == record
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(CASES)
    failed = subprocess.run([*command, "fast"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith('error: case "fast"')


def test_fast_record(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    rows = np.random.default_rng(5).standard_normal((40_000, 4)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    command = [sys.executable, "-m", "saec_gpu.bench.fast", "--append", str(out)]
    options = ["--tables", str(tmp_path / "rows.npy"), "--codewords", "0.003", "--everywhere"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    (record,) = read_records([out])
    assert json.loads(done.stdout) == record
    assert (record["n_rows"], record["n_codewords"], record["weighted"]) == (40_000, 120, False)
    assert record["clustered_rows"] == {"fast": LEAST_ROWS, "full": 40_000}
    assert [len(record["seconds"][kind]) for kind in ("fast", "full")] == [2, 1]
    assert 1.0 < record["error"] < 2.0  # full clustering sees all rows
    brute = fast.compare(*fast.opened(options[1], None, 0.003, None), fast=True, brute=True)
    assert (brute["brute"], record["brute"]) == (True, False)
    assert brute["error"] == record["error"]  # the same codes, found otherwise
    failed = subprocess.run([*command, "--rows", "0"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "error: n_rows is 0" in failed.stderr


def test_hours_are_as_they_are_told() -> None:
    n_hours = 4
    made = list(hours.hours(4000, n_hours, seed=3))
    assert len(made) == 1 + n_hours
    for (tables, counts), (later, later_counts) in itertools.pairwise(made):
        for name, rows in tables.items():
            stayed = later[name][: len(rows)]
            changed = (stayed != rows).any(axis=1)
            assert changed.sum() == int(hours.CHANGED * len(rows))
            assert len(later_counts[name]) == len(later[name]) >= len(rows)
            assert (later_counts[name][: len(rows)] == counts[name]).all()
    first, last = (sum(len(rows) for rows in made[at][0].values()) for at in (0, -1))
    assert first == pytest.approx(4000, rel=0.05)
    assert last == pytest.approx(first * 1.02**n_hours, rel=0.01)


def test_hours_record(tmp_path: Path) -> None:
    hours.main(["--rows", "3000", "--hours", "2", "--append", str(tmp_path / "records.jsonl")])
    (record,) = read_records([tmp_path / "records.jsonl"])
    assert record["op"] == "hours"
    assert len(record["hours"]) == 2
    for one in record["hours"]:
        assert one["delta_bytes"] > 0
        assert one["seconds"].keys() == {"update", "anew"}
    for key in ("churn", "error", "weighted_error", "speed"):
        assert record[key]["least"] <= record[key]["median"] <= record[key]["greatest"]


def test_selection_record() -> None:
    rows = np.random.default_rng(5).standard_normal((900, 3)).astype(np.float32)
    tables = open_tables({"x": rows, "y": rows[:9]})
    weights = open_weights({"x": np.arange(1.0, 901.0), "y": np.ones(9)}, tables)
    record = fast.compare_selections(tables, weights, {"x": 4, "y": 2}, [10, 225])
    assert (record["field"], record["n_rows"], record["n_codewords"]) == ("x", 900, 4)
    # 225 rows a codeword are all rows
    assert record["head"][225] == record["coreset"][225] == 1.0
    assert record["head"][10] > 1.0
    assert record["coreset"][10] > 1.0


# Codes.


def test_codes_are_measured(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rng.standard_normal((1000, 4)) * np.exp(2 * rng.standard_normal((1000, 1)))
    save_file({"item": rows.astype(np.float32)}, tmp_path / "t.safetensors")
    arguments = (
        "--table", tmp_path / "t.safetensors", "--rows", 1000, "--ratio", 10,
        "--lookup-rows", 5000, "--lookups", 100,
    )  # fmt: skip
    measure_codes([*map(str, arguments), "--repeats", "2", "--append", str(tmp_path / "r.jsonl")])
    records = read_records([tmp_path / "r.jsonl"])
    assert [record["op"] for record in records] == [*["code_bytes"] * 4, "entropy_codes", "lookup"]
    for record in records[:4]:
        assert 1.0 <= record["levels_of_entropy"] <= record["planes_of_entropy"]
    assert records[4]["error_ratio"] > 0.0
    assert records[-1]["vectors_ratio"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_entropy_of_codes() -> None:
    assert entropy_bytes(np.array([8, 4, 2, 2, 0])) == 16 * 1.75 / 8
