"""The CUDA kernels on the emulator: every variant, in every mode, and faults that must be seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import build, environment

DRIVER = Path(__file__).with_name("every_kernel.py")
KERNELS = Path(__file__).parents[1] / "kernels"
# One dim of each way through the kernels: folded, in registers, in shared memory. Each dtype once,
# each kind of weights once, and each size of shared memory.
SOME_DIMS = "3,40,300"
FEW = ("--dims", SOME_DIMS, "--few")


def every_kernel(*options: str, sanitize: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program; with a sanitizer, in the environment that it needs."""
    folders = os.pathsep.join([str(DRIVER.parent), str(KERNELS / "emulation")])
    build(sanitize)  # in this environment: the sanitizer's would slow down the compiler
    return subprocess.run(
        [sys.executable, str(DRIVER), "--sanitize", sanitize, *options],
        env={**os.environ, **environment(sanitize), "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("seed", [3, pytest.param(0, marks=pytest.mark.full)])
def test_every_kernel_agrees_with_the_cpu(seed: int) -> None:
    result = every_kernel("--seed", str(seed))
    assert result.returncode == 0, result.stderr
    assert "of 25 kernels agree" in result.stdout


@pytest.mark.parametrize("sanitize", ["racecheck", "address,undefined", "thread"])
@pytest.mark.parametrize("options", [FEW, pytest.param((), marks=pytest.mark.full)])
@pytest.mark.timeout(600)
def test_sanitizers_have_nothing_to_say(sanitize: str, options: tuple[str, ...]) -> None:
    result = every_kernel("--seed", "3", *options, sanitize=sanitize)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kernels agree" in result.stdout
    assert "Sanitizer" not in result.stderr


# Faults planted in the sources: file, what stands there, what takes its place, mode that sees it
# (none: the codes or sums are wrong), and what is said.
FAULTS = {
    "no bound": (
        "filter.cuh", "reach = SLACK * (slope", "reach = 0.0f * (slope", "", "AssertionError",
    ),
    "bound of roundings lost": (
        "bound.cuh", "b.slant = SLACK * 2.0f * norm;", "b.slant = 0.0f; b.slope = 0.0f;", "",
        "AssertionError",
    ),
    "window overwritten while it is read": (
        "assign_update.cu", "__syncthreads();  // the window before this one is done with", "",
        "racecheck", "in dynamic shared memory",
    ),
    "codes read before they are written": (
        "assign_update.cu",
        "__syncwarp();\n      for (int32 i = lane; i < rows; i += WARP) p.codes",
        "for (int32 i = lane; i < rows; i += WARP) p.codes", "racecheck",
        "in dynamic shared memory",
    ),
    "carry lost": ("accumulate.cuh", "< before ? 1u : 0u)", "< before ? 0u : 0u)", "",
                   "AssertionError"),
    "ties to the higher": ("exact.cuh", "its_code < code", "its_code > code", "",
                           "AssertionError"),
    "one row too many": (
        "assign_update.cu", "min(run_rows - int32(first), WARP_ROWS)",
        "min(run_rows - int32(first) + 1, WARP_ROWS)", "address,undefined", "AddressSanitizer",
    ),
}  # fmt: skip


# One that only a bound catches and one that only the race check sees each time, all with --full.
EACH_TIME = ("no bound", "window overwritten while it is read")


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=[] if f in EACH_TIME else [pytest.mark.full]) for f in FAULTS],
)
@pytest.mark.timeout(600)
def test_planted_faults_are_seen(fault: str, tmp_path: Path) -> None:
    file, there, instead, sanitize, said = FAULTS[fault]
    sources = tmp_path / "kernels"
    shutil.copytree(KERNELS, sources)
    text = (sources / file).read_text(encoding="utf-8")
    assert text.count(there) == 1
    (sources / file).write_text(text.replace(there, instead), encoding="utf-8")
    build(sanitize, sources=sources)  # a fault is not seen by the compiler
    result = every_kernel("--sources", str(sources), "--dims", SOME_DIMS, sanitize=sanitize)
    assert result.returncode != 0, result.stdout
    assert said in result.stderr
