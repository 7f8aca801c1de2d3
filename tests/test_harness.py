"""The rules of conftest.py can fail a run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conftest import LONG

MARKERS = "allowed_skip(reason): may be skipped\n  full: long"


UNEXPECTED = {
    "call": "def test_a(): pytest.skip('no device')",
    "mark": "@pytest.mark.skip(reason='no device')\ndef test_a(): pass",
    "condition": "@pytest.mark.skipif(True, reason='no device')\ndef test_a(): pass",
    "no_reason": "@pytest.mark.allowed_skip()\ndef test_a(): pytest.skip('no device')",
    "fixture": "@pytest.fixture\ndef f(): pytest.skip('no device')\ndef test_a(f): pass",
    "module": "pytest.skip('no device', allow_module_level=True)",
    "importorskip": "pytest.importorskip('no_such_package')\ndef test_a(): pass",
}
EXPECTED = {
    "keyword": "@pytest.mark.allowed_skip(reason='peer')\ndef test_a(): pytest.skip('absent')",
    "positional": "@pytest.mark.allowed_skip('peer')\ndef test_a(): pytest.skip('absent')",
    "xfail": "@pytest.mark.xfail(strict=True)\ndef test_a(): assert False",
    "plain": "def test_a(): pass",
}


def run_pytest(
    folder: Path, tests: Mapping[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run one test file for each entry under our conftest.py, in a Python of its own."""
    conftest = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    (folder / "pytest.ini").write_text(f"[pytest]\nmarkers = {MARKERS}\n", encoding="utf-8")
    for name, test in tests.items():
        (folder / f"test_{name}.py").write_text("import pytest\n" + test, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options, str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_unexpected_skips_fail_the_run(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, UNEXPECTED, "--continue-on-collection-errors")
    assert result.returncode == 1
    assert "2 failed, 5 errors in" in result.stdout
    for name in UNEXPECTED:
        assert re.search(rf"unexpected skip.*test_{name}\.py:\d+: Skipped", result.stdout)


def test_expected_outcomes_pass(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, EXPECTED)
    assert result.returncode == 0, result.stdout
    assert "1 passed, 2 skipped, 1 xfailed" in result.stdout


def test_unknown_backend_fails_the_run(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, {}, "--backends", "cpu,abacus")
    assert result.returncode != 0
    assert "'abacus'; known are: cpu, cupy, numba, emulated" in result.stderr


def test_backend_name_takes_each_name(tmp_path: Path) -> None:
    test = "def test_a(backend_name): assert backend_name in ('cpu', 'emulated')"
    result = run_pytest(tmp_path, {"one": test})
    assert result.returncode == 0, result.stdout
    assert "2 passed" in result.stdout
    result = run_pytest(tmp_path, {"one": test}, "--backends", "cpu")
    assert "1 passed" in result.stdout
    result = run_pytest(tmp_path, {"one": test}, "--full")
    assert "2 passed" in result.stdout
    assert "4 failed" in result.stdout


def test_what_is_marked_full_runs_when_asked(tmp_path: Path) -> None:
    tests = {"one": "@pytest.mark.full\ndef test_a(): pass\ndef test_b(): pass"}
    assert "1 passed, 1 deselected" in run_pytest(tmp_path, tests).stdout
    assert "2 passed" in run_pytest(tmp_path, tests, "--full").stdout


def test_long_files_come_first(tmp_path: Path) -> None:
    assert all(Path(__file__).with_name(name).is_file() for name in LONG)
    tests = {name[len("test_") : -len(".py")]: "def test_a(): pass" for name in LONG[:2]}
    tests |= {f"short_{number}": "def test_a(): pass" for number in range(9)}
    result = run_pytest(tmp_path, tests, "-v", "-n0")
    run = re.findall(r"(test_\w+\.py)::test_a PASSED", result.stdout)
    assert run[:2] == [*LONG[:2]]
    assert len(run) == 11


def test_failure_prints_the_seed(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, {"one": "def test_a(rng): assert rng is None"})
    assert result.returncode == 1
    header = next(line for line in result.stdout.splitlines() if line.startswith("Using --"))
    assert f"repeat with: {header.removeprefix('Using ')}" in result.stdout


def test_rng_follows_from_the_seed_and_the_test(tmp_path: Path) -> None:
    test = (
        "def test_a(rng): print('drawn', rng.integers(1 << 60))\n"
        "def test_b(rng): print('drawn', rng.integers(1 << 60))\n"
    )

    def drawn(seed: int) -> set[str]:
        result = run_pytest(tmp_path, {"one": test}, "-s", "--randomly-seed", str(seed))
        return {word for word in result.stdout.split() if word.isdigit() and len(word) > 12}

    one = drawn(1)
    assert len(one) == 2
    assert one == drawn(1)
    assert one.isdisjoint(drawn(2))


def test_rng_is_a_generator(rng: np.random.Generator) -> None:
    assert 0 <= rng.random() < 1
