"""The contract of all backends, held by the tests of the checkout, on the device.

python -m saec_gpu.bench.device.contract --out contract.jsonl --backends cupy,numba
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from saec_gpu.backends.cupy_device import CupyDevice
from saec_gpu.backends.kernel_sources import kernel_sources
from saec_gpu.errors import SourceError

from .machine import open_machine
from .part import Part, arguments_of, run_part

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS: tuple[str, ...] = ("tests/test_backend_contract.py", "tests/test_filter.py")
# a dry run shows that the tests are run and read; they run on the emulator by themselves
DRY_TESTS = (TESTS[0], "-k", "ties_go or partials_are")
COMPILERS = 8  # processes, each with a context of its own on the device
SHOWN_FAILURES = 10


@dataclass(frozen=True)
class Verdict:
    """What a run of tests said."""

    status: int
    counts: dict[str, int]
    failures: list[str]
    seconds: float


def run_tests(backend: str, tests: Sequence[str], arguments: Sequence[str] = ()) -> Verdict:
    """Return the verdict of pytest, run in the checkout, for one backend.

    Raises
    ------
    SourceError
        There are no tests beside the package.
    """
    for name in tests:
        if name.endswith(".py") and not (CHECKOUT / name).is_file():
            raise SourceError(
                f"{name} is not in {CHECKOUT.name}/: the contract is tested from a checkout, "
                "run bench/on_device.sh of one"
            )
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    with tempfile.TemporaryDirectory(prefix="saec-contract-") as folder:
        report = Path(folder) / "report.xml"
        command = [
            *(sys.executable, "-m", "pytest", *tests, "--backends", backend, "-q", "--tb=short"),
            *("-o", "addopts=", "-p", "no:cacheprovider", f"--junit-xml={report}", *arguments),
        ]
        if importlib.util.find_spec("pytest_timeout") is None:
            # the project's limit a test is then an option that nobody knows
            command += ["-o", "strict_config=false", "-W", "ignore:Unknown config option"]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, check=False)
        seconds = time.perf_counter() - began
        counts, failures = _read(report) if report.is_file() else ({}, [])
    return Verdict(done.returncode, counts, failures, seconds)


def _read(report: Path) -> tuple[dict[str, int], list[str]]:
    """Return how many tests ended how, and the first that failed."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    failures = []
    for suite in ET.parse(report).iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, 0))
    for case in ET.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(case.get("name", "?"))
    return counts, failures[:SHOWN_FAILURES]


def compile_kernel(name: str) -> tuple[str, float, str]:
    """Compile one of the project's kernels into CuPy's cache; return name, seconds and error."""
    began = time.perf_counter()
    try:
        CupyDevice().compiled(name)  # as a launch does it, without a launch
    except Exception as err:  # CuPy's have no common base; told by the caller
        return name, time.perf_counter() - began, f"{type(err).__name__}: {err}"
    return name, time.perf_counter() - began, ""


def compile_all(part: Part) -> None:
    """Compile all kernels, several at a time, so that no test and no time holds a compiler."""
    began = time.perf_counter()
    names = sorted(kernel_sources())
    with ProcessPoolExecutor(
        min(COMPILERS, os.cpu_count() or 1), mp_context=get_context("spawn")
    ) as pool:
        done = list(pool.map(compile_kernel, names))
    wall = time.perf_counter() - began
    part.add(
        "compile", kernels=len(done), seconds=round(wall, 3),
        seconds_by_kernel={name: round(seconds, 3) for name, seconds, _ in done},
        ok=not any(error for *_, error in done),
    )  # fmt: skip
    part.say(f"{len(done)} kernels compiled or found in the cache")
    for name, _, error in done:
        if error:
            part.fault(f"kernel {name} does not compile: {error}")


def hold(part: Part, backends: Sequence[str], *, dry: bool) -> None:
    """Run the tests for each backend."""
    part.describe(**open_machine(dry=dry).about())
    if not dry:
        compile_all(part)
    for backend in backends:
        verdict = run_tests(backend, DRY_TESTS if dry else TESTS)
        ran = verdict.counts.get("tests", 0)
        ok = verdict.status == 0 and ran > 0
        part.add(
            "contract", backend=backend, tests=list(DRY_TESTS if dry else TESTS),
            status=verdict.status, **{"ran": ran, "failed": verdict.counts.get("failures", 0)},
            errors=verdict.counts.get("errors", 0), skipped=verdict.counts.get("skipped", 0),
            failures=verdict.failures, seconds=round(verdict.seconds, 3), ok=ok,
        )  # fmt: skip
        if not ok:
            part.fault(
                f"backend {backend}: pytest ends with status {verdict.status} after {ran} tests; "
                f"first that failed: {', '.join(verdict.failures) or 'none, see the log'}"
            )


def main(given: list[str] | None = None) -> Any:
    """Run from the command line."""
    parser = arguments_of("contract", "Hold the contract of all backends on the device.")
    parser.add_argument("--backends", help="comma list; default cupy,numba, dry: emulated")
    options = parser.parse_args(given)
    names = options.backends or ("emulated" if options.dry_run else "cupy,numba")
    run_part("contract", options, lambda part: hold(part, names.split(","), dry=options.dry_run))


if __name__ == "__main__":
    main()
