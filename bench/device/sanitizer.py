"""NVIDIA's compute-sanitizer over every kernel: memcheck, racecheck, synccheck, initcheck.

    python -m saec_gpu.bench.device.sanitizer --out sanitizer.jsonl

A tool is believed only where it finds what planted.cu plants for it. On the emulator the kernels
run bare: its own sanitizers belong to the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import EMULATOR, open_machine
from .part import Part, arguments_of, run_part

# options of each tool, and the fault that it must find
TOOLS: dict[str, tuple[tuple[str, ...], str | None]] = {
    # without what CuPy asks the driver in vain: what fails in earnest raises
    "memcheck": (("--padding", "256", "--report-api-errors", "no"), "outside"),
    "racecheck": ((), "race"),
    "synccheck": ((), None),
    "initcheck": ((), "uninitialised"),
}
FOUND = 86  # the exit status that a tool gives where it finds something
SHOWN = 1500  # characters of what a tool wrote
_SUMMARY = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)")


@dataclass(frozen=True)
class Run:
    """A tool on its way, or the kernels without one."""

    tool: str
    fault: str | None
    process: subprocess.Popen[str]
    log: Path
    began: float


def sanitizer() -> str | None:
    """Return the tool's path; None where it is not installed."""
    beside = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(beside))


def begin(folder: Path, tool: str, command: Sequence[str], fault: str | None, dry: bool) -> Run:
    """Start the kernels, or a faulty one, under a command."""
    arguments = [*(["--dry-run"] if dry else []), *(["--planted", fault] if fault else [])]
    log = folder / f"{tool}-{fault or 'kernels'}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", "saec_gpu.bench.device.small_shapes", *arguments],
            stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    return Run(tool, fault, process, log, time.perf_counter())


def finish(part: Part, run: Run) -> None:
    """Wait for a run and judge it."""
    status = run.process.wait()
    seconds = time.perf_counter() - run.began
    said = run.log.read_text(encoding="utf-8", errors="replace")
    print(f"---- {run.tool}, {run.fault or 'all kernels'}: status {status}\n{said}", flush=True)
    summary = _SUMMARY.findall(said)
    findings = int(summary[-1]) if summary else None
    # a kernel that memcheck stops fails the program too, and then the status is the program's
    ok = bool(findings) if run.fault else status == 0 and not findings
    part.add(
        "sanitize", tool=run.tool, planted=run.fault, status=status, findings=findings,
        seconds=round(seconds, 3), ok=ok, said=None if ok else said[-SHOWN:],
    )  # fmt: skip
    if ok:
        return
    if run.fault:
        part.fault(f"{run.tool} does not find the planted fault {run.fault}: status {status}")
    else:
        part.fault(f"{run.tool}: status {status}; {said[-300:].strip()}")


def watch(part: Part, *, dry: bool) -> None:
    """Run all kernels under each tool; all tools at once, because nothing is timed."""
    part.describe(**open_machine(dry=dry).about())
    path = None if dry else sanitizer()
    if path is None and not dry:
        part.add(
            "sanitize", tool="compute-sanitizer", planted=None, status=None, findings=None,
            seconds=0.0, ok=True, said="not installed: nothing was checked",
        )  # fmt: skip
        part.say("compute-sanitizer is not installed: the kernels run without it")
    with tempfile.TemporaryDirectory(prefix="saec-sanitizer-") as name:
        folder = Path(name)
        if path is None:
            runs = [begin(folder, EMULATOR if dry else "none", (), None, dry)]
        else:
            # compiles what is not in the cache yet, so that no tool waits for a compiler
            finish(part, begin(folder, "none", (), None, dry))
            runs = []
            for tool, (options, fault) in TOOLS.items():
                command = (path, "--tool", tool, *options, "--error-exitcode", str(FOUND))
                runs.append(begin(folder, tool, command, None, dry))
                if fault is not None:
                    runs.append(begin(folder, tool, command, fault, dry))
        for run in runs:
            finish(part, run)


def main(given: list[str] | None = None) -> Any:
    """Run from the command line."""
    options = arguments_of("sanitizer", "Watch every kernel with compute-sanitizer.").parse_args(
        given
    )
    run_part("sanitizer", options, lambda part: watch(part, dry=options.dry_run))


if __name__ == "__main__":
    main()
