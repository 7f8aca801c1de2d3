"""What runs on each new GPU runs on the emulator too, finds what is planted, and resumes.

The dry run of bench/on_device.sh is done once, for all tests of this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from saec_gpu.bench.cases import find_case, load_case, write_case
from saec_gpu.bench.device import (
    contestants,
    contract,
    limits,
    machine,
    probes,
    sanitizer,
    small_shapes,
    table,
    timings,
)
from saec_gpu.bench.device.part import Part, arguments_of, run_part
from saec_gpu.bench.device.rows import KINDS, LIMIT_EXPONENT, initial_rows, load_fields, make_rows
from saec_gpu.bench.records import SCHEMA, read_records

from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.kernel_sources import kernel_sources, sources_folder

CHECKOUT = Path(__file__).parents[1]
SCRIPT = CHECKOUT / "bench" / "on_device.sh"
PARTS = list(table.PARTS)


def on_device(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # as a user would, from any folder
    clean = {k: v for k, v in os.environ.items() if k not in ("OUT", "PYTHONPATH")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd="/", capture_output=True, text=True, check=False,
        env=clean | {"PYTHON": sys.executable} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one dry run of all parts."""
    folder = tmp_path_factory.mktemp("on_device")
    done = on_device("--dry-run", "--out", str(folder))
    log = folder / "log.txt"
    assert done.returncode == 0, done.stdout + (log.read_text() if log.is_file() else done.stderr)
    return folder, done.stdout


@pytest.fixture(scope="module")
def emulator() -> machine.Machine:
    return machine.open_machine(dry=True)


# ---- the script


def test_dry_run_leaves_records_of_every_part(dry_run: tuple[Path, str]) -> None:
    folder, _ = dry_run
    files = {path.name for path in folder.iterdir()}
    assert files == {"log.txt", "table.md", *(f"{name}.jsonl" for name in PARTS)}
    for name in PARTS:
        records = read_records([folder / f"{name}.jsonl"])
        for record in records:
            assert (record["part"], record["device"], record["dry"]) == (name, "emulator", True)
            assert {"versions", "commit", "utc", "argv", "host"} <= record.keys()
            assert record.get("ok", True) is True
        assert [one["op"] for one in records].count("part") == 1
        assert records[-1]["op"] == "part"
        assert records[-1]["status"] == "passed"
        assert str(folder) not in (folder / f"{name}.jsonl").read_text(encoding="utf-8")


def test_dry_run_prints_one_table_last(dry_run: tuple[Path, str]) -> None:
    folder, printed = dry_run
    kept = (folder / "table.md").read_text(encoding="utf-8")
    assert kept in printed
    rows = [line for line in kept.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {7}
    for name in PARTS:
        assert any(row.startswith(f"| {name} | the whole part |  | **passed** |") for row in rows)
    assert "error of 32 products" in kept
    assert "| timings | peer | flash-kmeans | missing | " in kept
    assert "kernels" in kept
    assert "dry run: the times mean nothing" in kept


def test_what_has_passed_is_not_done_again(dry_run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = dry_run
    before = (folder / "probes.jsonl").read_bytes()
    done = on_device("--dry-run", OUT=str(folder))
    assert done.returncode == 0
    assert done.stdout.count("has passed here before") == len(PARTS)
    assert (folder / "probes.jsonl").read_bytes() == before


def test_again_does_a_part_anew_and_commit_is_named(tmp_path: Path) -> None:
    for _ in range(2):
        done = on_device("--dry-run", "--parts", "limits", "--again", "--out", str(tmp_path))
        assert done.returncode == 0
        assert "limits passed" in done.stdout
    ended = [r for r in read_records([tmp_path / "limits.jsonl"]) if r["op"] == "part"]
    assert len(ended) == 1


def test_a_part_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    # without --dry-run there is no device here: every part must say so
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "cupy.py").write_text("raise ImportError('no driver in this test')\n")
    out = tmp_path / "out"
    done = on_device("--parts", "probes,limits", "--out", str(out), PYTHONPATH=str(hidden))
    assert done.returncode == 1
    assert "== probes FAILED" in done.stdout
    assert "== limits FAILED" in done.stdout
    for name in ("probes", "limits"):
        (record,) = read_records([out / f"{name}.jsonl"])
        assert (record["op"], record["status"]) == ("part", "failed")
        assert "no driver in this test" in record["faults"][0]
    assert "| probes | the whole part |  | **failed** |" in done.stdout


def test_a_part_that_dies_leaves_a_record(tmp_path: Path) -> None:
    fatal = tmp_path / "fatal"
    fatal.mkdir()
    (fatal / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'saec_gpu.bench.device.probes' in sys.orig_argv:\n"
        "    open(sys.orig_argv[4], 'w').write('{\"half\": ')\n"
        "    os._exit(9)\n"
    )
    out = tmp_path / "out"
    done = on_device("--dry-run", "--parts", "probes", "--out", str(out), PYTHONPATH=str(fatal))
    assert done.returncode == 1
    (record,) = read_records([out / "probes.jsonl"])
    assert record["status"] == "failed"
    assert record["faults"] == ["ended with status 9, see log.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--parts", "probes,speed"), "unknown part 'speed'; the parts are probes contract"),
        (("--fast",), "unknown argument --fast"),
        (("--parts",), "--parts needs a value"),
        (("--wheels", "/nowhere"), "--wheels /nowhere is no folder"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    done = on_device(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_another_checkout_is_refused(tmp_path: Path) -> None:
    # as an editable install does it, whose finder comes before every path
    (tmp_path / "elsewhere.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, elsewhere\nsys.modules['saec_gpu'] = elsewhere\n"
    )
    done = on_device("--dry-run", "--out", str(tmp_path / "out"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "has another saec_gpu" in done.stderr
    assert "elsewhere.py; take a Python without it" in done.stderr


def test_help_tells_the_parts() -> None:
    done = on_device("--help")
    assert done.returncode == 0
    for name in PARTS:
        assert f"  {name} " in done.stdout


def test_limits_of_time_stay_within_nine_minutes() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    (line,) = [one for one in text.splitlines() if one.startswith("declare -A LIMIT=")]
    seconds = [int(one.partition("]=")[2].rstrip(")")) for one in line.split()[2:]]
    assert len(seconds) == len(PARTS)
    assert sum(seconds) + 5 * len(PARTS) <= 9 * 60  # 5: to be ended in


# ---- the probes


Multiply = Callable[..., Any]


def exact(_: Any, a: Any, b: Any, c: Any) -> Any:
    products = np.einsum("nsik,nskj->nij", a.astype(np.float64), b.astype(np.float64))
    return (c + products).astype(np.float32)


def cutting(lost_bits: int, *, normalises: bool = True) -> Multiply:
    """A matrix unit that cuts addends off so many bits below the last of the greatest one."""
    least = 0.0 if normalises else 2.0**-14

    def multiplied(_: Any, a: Any, b: Any, c: Any) -> Any:
        d = c.astype(np.float64)
        for s in range(a.shape[1]):
            first, second = a[:, s].astype(np.float64), b[:, s].astype(np.float64)
            terms = np.concatenate([first[..., None] * second[:, None], d[:, :, None]], axis=2)
            counted = [np.maximum(np.abs(one), least) for one in (first, second)]
            sizes = [counted[0][..., None] * counted[1][:, None], np.abs(d[:, :, None])]
            exponents = np.frexp(np.concatenate(sizes, axis=2).max(axis=2, keepdims=True))[1]
            unit = np.ldexp(1.0, exponents - 24 - lost_bits)
            d = (np.trunc(terms / unit) * unit).sum(axis=2).astype(np.float32).astype(np.float64)
        return d.astype(np.float32)

    return multiplied


@pytest.mark.parametrize(
    ("multiply", "pattern", "least", "most"),
    [
        (exact, "one leads", 0.0, 1.0),
        # 16 addends, each cut by just less than a unit, or by less than a quarter of it
        (cutting(0), "one leads", 15.0, 18.0),
        (cutting(2), "one leads", 4.0, 6.0),
        (cutting(0), "subnormal", 7.0, 18.0),
        (cutting(0, normalises=False), "subnormal", 14.5, 18.0),
    ],
)
def test_search_finds_what_a_matrix_unit_loses(
    multiply: Multiply, pattern: str, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "multiplied", multiply)
    found = probes.search(None, probes.Search(160, 3, (1,)), 1)
    assert least <= max(units for name, units, _ in found if name == pattern) <= most


def test_units_of_error_by_hand() -> None:
    a = np.zeros((1, 1, 16, 16), np.float16)
    b = np.zeros((1, 1, 16, 8), np.float16)
    a[0, 0, 0, 3], b[0, 0, 3, 1] = 2.0, -0.5
    c = np.full((1, 16, 8), 3.0, np.float32)
    d = c.copy()
    d[0, 0, 1] = 2.0 + 2.0**-20
    units = probes.units_of_error(a, b, c, d)
    # zeros count as the least normal number: 15 columns of nothing
    assert units[0, 0, 1] == 2.0**-20 / ((3 + 2 * 0.5 + 15 * 2.0**-28) * 2.0**-23)
    assert np.count_nonzero(units) == 1
    # a subnormal counts as the least normal one
    a[0, 0, 0, 3], d[0, 0, 1] = 2.0**-24, 3.0
    units = probes.units_of_error(a, b, c, d)
    assert units[0, 0, 1] == 2.0**-25 / ((3 + 2.0**-14 * 0.5 + 15 * 2.0**-28) * 2.0**-23)


def test_constants_are_those_of_the_kernels() -> None:
    text = (sources_folder() / "bound.cuh").read_text(encoding="utf-8")
    assert f"float({probes.BOUND_A_COLUMN:.0f} * padded_columns(dim) + 72) * 0x1p-23f" in text
    assert probes.ASSUMED_A_COLUMN * probes.STEP == 32  # and 4 for the rest of what keys may err by
    assert "(float(padded_columns(dim)) / 32.0f + 36.0f) * 0x1p-23f" in text


def test_numbers_of_the_search_stay_whole(rng: np.random.Generator) -> None:
    for steps in (1, 16):
        parents = probes.first_operands(rng, 16, steps)
        units = rng.random((16, 16, 8))
        for operands in (parents, probes.children(rng, parents, units, 16)):
            for step in range(steps):
                exact_products = (
                    operands.a[:, step].astype(np.float64)[..., None]
                    * operands.b[:, step].astype(np.float64)[:, None]
                )
                scaled = np.ldexp(exact_products, probes.SCALE)
                assert np.array_equal(scaled, np.rint(scaled))
                assert np.abs(exact_products).max() * 256 < 2.0 ** (63 - probes.SCALE)


def test_probe_of_the_layout_sees_a_wrong_one(
    emulator: machine.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probes.probe_layout(emulator, 8) == 0
    right = probes.from_fragments
    monkeypatch.setattr(probes, "from_fragments", lambda d: right(d[:, ::-1]))
    assert probes.probe_layout(emulator, 8) > 0


def test_a_bound_that_does_not_hold_fails_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "multiplied", lambda *args: 1.001 * exact(*args))
    part = Part("probes", None)
    probes.probe_accumulation(SimpleNamespace(), probes.Search(16, 0, (1,)), part)
    assert "the filter's bound does not hold on this device" in part.faults[0]
    assert part.records[0]["ok"] is False


# ---- contract and sanitizer


def test_verdict_of_tests_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="1" skipped="0">'
        '<testcase name="test_a"/><testcase name="test_b"><failure/></testcase>'
        '<testcase name="test_c"><error/></testcase></testsuite></testsuites>'
    )
    counts, failures = contract._read(report)
    assert counts == {"tests": 3, "failures": 1, "errors": 1, "skipped": 0}
    assert failures == ["test_b", "test_c"]


def test_kernels_are_compiled_in_processes_that_report_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contract, "kernel_sources", lambda: {"no_kernel": None})
    part = Part("contract", None)
    contract.compile_all(part)
    assert part.faults[0].startswith("kernel no_kernel does not compile: ")
    assert part.records[0]["ok"] is False
    assert "| contract | 1 kernels compiled |" in table.table(part.records)


def test_contract_of_an_unknown_backend_fails_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = contract.Verdict(4, {}, [], 0.1)
    monkeypatch.setattr(contract, "run_tests", lambda *_: verdict)
    part = Part("contract", None)
    contract.hold(part, ["emulated"], dry=True)
    assert "backend emulated: pytest ends with status 4 after 0 tests" in part.faults[0]


def test_small_shapes_see_a_wrong_backend(
    emulator: machine.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CudaBackend(emulator.device)
    rng = np.random.default_rng(0)
    fields = small_shapes.make_fields([16], "float16", "wide", rng)
    assert list(small_shapes.differences(backend, fields)) == []

    class OffByOne(CpuBackend):
        def assign(self, *args: Any, **kwargs: Any) -> Any:
            right = super().assign(*args, **kwargs)
            return type(right)(right.codes ^ np.uint32(1), right.distances)

        def accumulate(self, rows: Any, codes: Any, codebooks: Any) -> None:
            return None

    monkeypatch.setattr(small_shapes, "CpuBackend", OffByOne)
    monkeypatch.setattr(small_shapes, "sizes_of", lambda dim: ((40, 8, "plain"),))
    fields = small_shapes.make_fields([16], "float32", "wide", rng)
    found = list(small_shapes.differences(backend, fields))
    assert found[0] == "assign: 40 codes"
    assert "accumulate: sums of 16 plain 8" in found


@pytest.mark.parametrize(
    ("fault", "status", "said", "ok"),
    [
        (None, 0, "========= ERROR SUMMARY: 0 errors", True),
        (None, 0, "========= ERROR SUMMARY: 2 errors", False),
        (None, 1, "Traceback", False),
        ("race", 86, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error)", True),
        ("race", 0, "========= RACECHECK SUMMARY: 0 hazards displayed", False),
        ("outside", 1, "========= ERROR SUMMARY: 5 errors", True),
    ],
)
def test_judgement_of_a_sanitizer(
    fault: str | None, status: int, said: str, ok: bool, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text(said)
    process: Any = SimpleNamespace(wait=lambda: status)
    part = Part("sanitizer", None)
    sanitizer.finish(part, sanitizer.Run("racecheck", fault, process, log, 0.0))
    assert part.records[0]["ok"] is ok
    assert bool(part.faults) is not ok


def test_sanitizers_run_at_once_and_each_must_find_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a stand-in that finds something only in planted kernels, as a sound tool does in sound kernels
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *--planted*) n=1;; *) n=0;; esac\n'
        'echo "========= ERROR SUMMARY: $n errors"\n[ $n = 0 ] || exit 86\n'
    )
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer, "sanitizer", lambda: str(tool))
    monkeypatch.setattr(sanitizer, "open_machine", lambda dry: machine.open_machine(dry=True))
    monkeypatch.setattr(sanitizer.sys, "executable", "true")
    part = Part("sanitizer", None)
    sanitizer.watch(part, dry=False)
    assert part.faults == []
    ran = [(r["tool"], r["planted"], r["findings"]) for r in part.records]
    assert ran == [
        ("none", None, None), ("memcheck", None, 0), ("memcheck", "outside", 1),
        ("racecheck", None, 0), ("racecheck", "race", 1), ("synccheck", None, 0),
        ("initcheck", None, 0), ("initcheck", "uninitialised", 1),
    ]  # fmt: skip


def test_a_missing_sanitizer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "sanitizer", lambda: None)
    monkeypatch.setattr(sanitizer, "open_machine", lambda dry: machine.open_machine(dry=True))
    monkeypatch.setattr(sanitizer.sys, "executable", "true")
    part = Part("sanitizer", None)
    sanitizer.watch(part, dry=False)
    assert part.faults == []
    assert part.records[0]["said"] == "not installed: nothing was checked"
    assert "not installed: nothing was checked" in table.table(part.records)


# ---- limits and timings


def test_skewed_addresses(rng: np.random.Generator) -> None:
    drawn = limits.addresses_of(rng, 10_000, 64, 0.99)
    assert 0.98 < np.mean(drawn == 32) < 1
    assert drawn.max() < 64


def test_lost_additions_fail_the_part(
    emulator: machine.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = machine.Machine.downloaded

    def losing(self: machine.Machine, source: Any, stream: Any) -> Any:
        found = right(self, source, stream)
        if source.dtype == np.uint64:
            found[0] += 1
        return found

    monkeypatch.setattr(machine.Machine, "downloaded", losing)
    part = Part("limits", None)
    bench = limits.Bench(emulator, limits.DRY, emulator.own.stream())
    limits.measure_atomics(bench, part)
    assert len(part.faults) == 4
    assert "were counted" in part.faults[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_made_rows(emulator: machine.Machine, kind: str, dtype: str) -> None:
    one = KINDS[kind]
    made = make_rows(emulator, one, 2000, 16, 8, dtype, 2000)
    (field,) = made.fields
    rows = field.sample.astype(np.float64)
    assert rows.shape == (2000, 16)
    assert field.initial.shape == (8, 16)
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= 2.0**LIMIT_EXPONENT
    assert len(np.unique(rows, axis=0)) > 1900
    assert {row.tobytes() for row in field.initial} <= {
        row.tobytes() for row in field.sample.astype(np.float32)
    }
    norms = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
    if kind == "random":
        assert abs(rows.std() - 1) < 0.05
    elif kind == "offset":
        assert abs(rows.mean() - 10) < 0.5
    elif kind == "heavy":
        assert np.median(norms) * 5 < norms.max()
    elif kind == "skewed":
        near = np.linalg.norm(rows - rows[1], axis=1) < 1
        assert near.sum() == 1980
        assert near[1::100].all()
        assert np.count_nonzero(np.linalg.norm(field.initial - rows[1], axis=1) < 1) == 1


def test_first_codewords_are_distinct_rows(rng: np.random.Generator) -> None:
    for n_rows, k, crowd in ((100, 100, 0), (1000, 11, 100), (500, 40, 100)):
        chosen = initial_rows(rng, n_rows, k, crowd)
        assert len(np.unique(chosen)) == len(chosen)
        assert chosen.max() < n_rows
        assert np.count_nonzero(chosen % (crowd or 1)) == (1 if crowd else 0)


@pytest.fixture
def ragged(emulator: machine.Machine, tmp_path: Path) -> Any:
    write_case(find_case(timings.RAGGED), tmp_path, size=2e-4, weighted=False)
    return load_fields(emulator, load_case(tmp_path), 40)


def test_contestants_agree_on_every_field(emulator: machine.Machine, ragged: Any) -> None:
    ours = contestants.Saec(emulator, ragged, 3)
    theirs = contestants.Torch(emulator, ragged, 3)
    found = [one.codewords(one.run()) for one in (ours, theirs)]
    for mine, other in zip(*found, strict=True):
        # the other adds up in float32, in an order of its own: the promise is not its
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-5)
    moved = zip(found[0], ragged.fields, strict=True)
    assert any(not np.array_equal(words, field.initial) for words, field in moved)


def test_a_wrong_result_fails_the_part(
    emulator: machine.Machine, ragged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = contestants.Saec.labels
    monkeypatch.setattr(contestants.Saec, "labels", lambda *args: np.maximum(right(*args) - 1, 0))
    part = Part("timings", None)
    timings.time_table(part, emulator, ragged, timings.DRY, ["saec"], case="x", rows="mixture")
    assert "of our codes are not those of the definition" in part.faults[0]
    (record,) = part.records
    check = record["contestants"]["saec"]["check"]
    assert check["wrong_labels"] > 0
    assert check["lost_by_labels"] > 0
    assert record["ok"] is False


def test_a_peer_that_breaks_is_out_and_says_why(
    emulator: machine.Machine, ragged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(contestants.Torch):  # type: ignore[misc]  # mypy does not find bench/
        def run(self) -> Any:
            raise ValueError("no such size")

    monkeypatch.setitem(contestants.CONTESTANTS, "breaking", Breaking)
    part = Part("timings", None)
    timings.time_table(
        part, emulator, ragged, timings.DRY, ["saec", "breaking"], case="x", rows="mixture"
    )
    assert part.faults == []
    entry = part.records[0]["contestants"]["breaking"]
    assert entry["why_not"] == "first run: ValueError: no such size"
    assert entry["seconds"] is None
    assert "| x, mixture | breaking | not timed | first run: ValueError" in table.table(
        part.records
    )


def test_who_is_slow_runs_once_more_and_no_more(
    emulator: machine.Machine, ragged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = timings.Plan(**{**vars(timings.DRY), "repeats": 3, "most_seconds": 0.0})
    entrant = timings.enter("torch", emulator, ragged, plan)
    timings.take_turns([entrant], plan)
    assert len(entrant.seconds) == 1


def test_no_case_is_begun_without_time(
    emulator: machine.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "open_machine", lambda dry: emulator)
    part = Part("timings", None)
    timings.time_all(part, dry=True, only="", seconds=-1.0)
    left_out = [record for record in part.records if record["op"] == "left_out"]
    assert len(left_out) == 5
    assert not [record for record in part.records if record["op"] == "iterate"]


def test_nearest_by_hand() -> None:
    rows = np.array([[0.0, 1.0], [9.0, 0.0]])
    words = np.array([[0, 0], [0, 2], [10, 0]], np.float32)
    codes, squares = timings.nearest(rows, words)
    assert codes.tolist() == [0, 2]
    assert squares.tolist() == [1.0, 1.0]
    assert timings.distances(rows, words, np.array([1, 0])).tolist() == [1.0, 81.0]


# ---- records and table


def test_a_part_keeps_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.jsonl"
    options = arguments_of("x", "").parse_args(["--out", str(out), "--commit", "abc"])

    def work(part: Part) -> None:
        part.add("thing", ok=True)
        raise ValueError("out of luck")

    with pytest.raises(SystemExit) as ended:
        run_part("x", options, work)
    assert ended.value.code == 1
    thing, end = read_records([out])
    assert thing["op"] == "thing"
    assert end["status"] == "failed"
    assert end["faults"] == ["ValueError: out of luck"]
    assert thing["commit"]
    assert "out of luck" in capsys.readouterr().err


def test_table_tells_bounds_and_what_did_not_run() -> None:
    ours = {
        "ms_an_iteration": 5.3092455, "time_relative_to_saec": None, "first_seconds": 1.0,
        "runs": 5, "check": {"inertia": 2.0, "wrong_labels": 0, "checked_rows": 7},
        "inertia_relative_to_saec": 1.0, "why_not": None,
        "kernel_ms_an_iteration": {"assign": 2.65462}, "assign_kernel_ms": {"assign": 2.0},
        "rechecked_share": 0.01, "exact_share": 0.0,
    }  # fmt: skip
    slow = {**ours, "time_relative_to_saec": 2.5, "runs": 1}
    del slow["kernel_ms_an_iteration"]
    record = {
        "schema": SCHEMA, "op": "iterate", "part": "timings", "device": "NVIDIA H200",
        "dry": False, "case": "big", "rows": "random", "n_fields": 1, "n_rows": 8_000_000,
        "dim": 128, "n_codewords": 1024, "dtype": "float16", "repeats": 5,
        "contestants": {"saec": ours, "peer": slow},
    }  # fmt: skip
    printed = table.table([record])
    assert "**NVIDIA H200**" in printed
    assert "| big, random | saec | 5.309 ms an iteration | 50% of the bound" in printed
    assert "| saec, kernels | 2.655 ms an iteration, 100% of the bound" in printed
    assert "2.50× the time of saec, 50% of the bound, first 1.00 s, one run" in printed
    assert "| probes | the whole part |  | **not run** |" in printed
    assert not table.passed([record], ["timings"])


def test_own_kernels_know_what_they_include() -> None:
    source = machine.own_kernels()["limit_copies"]
    assert source.folders == (machine.FOLDER, sources_folder())
    assert source.digest != kernel_sources()["pack_codebook"].digest
    assert '#include "limit_copies.cu"' in source.unit


def test_records_are_json(dry_run: tuple[Path, str]) -> None:
    folder, _ = dry_run
    for name in PARTS:
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["schema"] == SCHEMA
