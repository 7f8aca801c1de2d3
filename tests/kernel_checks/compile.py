"""Compile the CUDA kernels for every architecture, and check what became of them.

    PYTHONPATH=src:tests .venv-kernels/bin/python -m kernel_checks.compile [--full] [--update]

Needs no GPU and no CUDA toolkit, only an environment with what requirements.txt lists. Checked are,
of each kernel: NVRTC's registers, stack and shared memory, against budget.json, and that nothing is
spilled; in its machine code, the matrix instruction that is meant, no local memory, no float
atomics, and ALU instructions per pair of row and codeword; in its PTX, no contraction in float64,
no flushing to zero on the way to or from it, and the size of the parameters. Before that, the same
checks must find what is planted in planted.py.

By default every kernel is compiled for sm_90, and kernels in turn for the other architectures;
--full compiles all of them for all, and so does --update, which writes the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from kernel_checks import planted
from kernel_checks.budget import FIGURES, Budget, Figures, Place
from kernel_checks.machine_code import (
    Loop,
    disassembled,
    hot_loop,
    is_narrow,
    matrix_instruction,
    parameter_complaints,
    ptx_complaints,
    sass_complaints,
)
from kernel_checks.nvrtc import CompileError, compiled, version
from saec_gpu.backends.kernel_sources import KernelSource, kernels_of, sources_folder

BUDGET = Path(__file__).with_name("budget.json")
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
ALWAYS = "90"  # the one that is tuned for
PROCESSES = 2


@dataclass(frozen=True)
class Job:
    """A kernel to compile for an architecture, and what its machine code must hold.

    Attributes
    ----------
    kernel, unit, architecture : str
    folders : tuple of Path
        Where the unit's files are.
    needs_matrix : bool
        A matrix instruction must be there.
    products : int or None
        How many of them, of 16 columns each, make one key.
    parameter_bytes : int or None
        What a launch gives the kernel; None where nothing launches it.
    """

    kernel: str
    unit: str
    architecture: str
    folders: tuple[Path, ...] = ()
    needs_matrix: bool = False
    products: int | None = None
    parameter_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: figures to compare, the loop they come from, and complaints."""

    job: Job
    figures: Figures = field(default_factory=dict)
    loop: Loop | None = None
    seconds: float = 0.0
    complaints: tuple[str, ...] = ()

    @property
    def place(self) -> Place:
        """Return the place in the table."""
        return self.job.kernel, self.job.architecture


def outcome(job: Job) -> Outcome:
    """Return what becomes of a job; nothing that a kernel does wrong raises."""
    try:
        made = compiled(job.kernel, job.unit, job.architecture, job.folders)
    except CompileError as err:
        return Outcome(job, complaints=(str(err),))
    code = disassembled(made.cubin)
    products = job.products and job.products * (2 if is_narrow(job.architecture) else 1)
    loop = hot_loop(code, products)
    complaints = [f"spills {made.spill_bytes} bytes"] if made.spill_bytes else []
    needed = matrix_instruction(job.architecture) if job.needs_matrix else None
    complaints += [*sass_complaints(code, needed), *ptx_complaints(made.ptx)]
    if job.parameter_bytes is not None:
        complaints += parameter_complaints(made.ptx, job.parameter_bytes)
    figures: dict[str, float] = {
        "registers": made.registers,
        "stack_bytes": made.stack_bytes,
        "shared_bytes": made.shared_bytes,
    }
    if loop is not None and loop.pairs:
        figures["alu_per_pair"] = round(loop.pipes["alu"] / loop.pairs, 3)
    return Outcome(job, figures, loop, made.seconds, tuple(complaints))


def jobs(
    kernels: Sequence[KernelSource], folder: Path, budget: Budget, full: bool
) -> Iterator[Job]:
    """Yield what to compile: all for the architecture ALWAYS, for others in turn or --full."""
    by_file: dict[str, list[KernelSource]] = {}
    for kernel in kernels:
        by_file.setdefault(kernel.file, []).append(kernel)
    for file, sisters in sorted(by_file.items()):
        # a file that needs features of one architecture alone says so in its header
        own = "sm_90a" in (folder / file).read_text(encoding="utf-8").split("#", 1)[0]
        architectures = ("90a",) if own else ARCHITECTURES
        others = [a for a in architectures if a != ALWAYS]
        for architecture in architectures:
            chosen = sisters
            if not full and architecture in others and len(others) > 1:
                # a different sister for each architecture, so that all kinds are tried somewhere
                chosen = [sisters[others.index(architecture) * len(sisters) // len(others)]]
            for kernel in chosen:
                yield Job(
                    kernel.name,
                    kernel.unit,
                    architecture,
                    (folder,),
                    needs_matrix=budget.needs_matrix(kernel.name),
                    products=budget.products(kernel.name),
                    parameter_bytes=kernel.dtype.itemsize,
                )


def checked_planted(pool: ProcessPoolExecutor) -> list[str]:
    """Return which planted defects were not found, and which sound kernels were complained of."""
    budgets = [Budget("", {p.name: p.limits}) for p in planted.PLANTED]
    tasks = [
        Job(
            p.name,
            p.unit,
            p.architecture,
            needs_matrix=b.needs_matrix(p.name),
            products=b.products(p.name),
            parameter_bytes=p.parameter_bytes,
        )
        for p, b in zip(planted.PLANTED, budgets, strict=True)
    ]
    missed = []
    outcomes = pool.map(outcome, tasks)
    for plant, budget, found in zip(planted.PLANTED, budgets, outcomes, strict=True):
        complaints = [*found.complaints]
        if found.figures:
            row = found.figures if plant.row is None else plant.row
            with_row = replace(budget, table={found.place: row})
            complaints += with_row.complaints(found.place, found.figures)
        heard = "; ".join(complaints) or "nothing"
        if plant.complaint is None and complaints:
            missed.append(f"planted {plant.name} is sound, but: {heard}")
        elif plant.complaint is not None and plant.complaint not in heard:
            missed.append(f"planted {plant.name}: wanted is {plant.complaint!r}, heard {heard}")
    return missed


def main() -> int:
    """Compile, check, print; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full", action="store_true", help="every kernel for every architecture")
    parser.add_argument("--update", action="store_true", help="write what is found to the table")
    parser.add_argument("--only", default="", help="kernels whose name holds this, nothing else")
    parser.add_argument("--kernels", type=Path, help="another folder of kernels")
    parser.add_argument("--budget", type=Path, default=BUDGET, help="another table")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    given = parser.parse_args()
    full = given.full or given.update
    began = time.perf_counter()
    folder = given.kernels or sources_folder()
    wrong: list[str] = []
    kernels: list[KernelSource] = []
    for path in sorted(folder.glob("*.cu")):
        held = kernels_of(path.name, path.read_text(encoding="utf-8"))
        wrong += [] if held else [f"{path.name} holds no kernel"]
        kernels += held
    names = [kernel.name for kernel in kernels]
    budget = Budget.read(given.budget)
    if budget.nvrtc != version() and not given.update:
        print(f"the table was made with NVRTC {budget.nvrtc}, this one is {version()}")
        return 1
    found: dict[Place, Figures] = {}
    with ProcessPoolExecutor(given.processes) as pool:
        if not given.only:
            missed = checked_planted(pool)
            wrong += missed
            print(f"{len(planted.PLANTED)} planted kernels, {len(missed)} judged wrongly")
        tasks = [j for j in jobs(kernels, folder, budget, full) if given.only in j.kernel]
        print(_HEAD)
        for done in pool.map(outcome, tasks):
            complaints = list(done.complaints)
            if done.figures:
                found[done.place] = done.figures
                if given.update:
                    limits = replace(budget, table={done.place: done.figures})
                    complaints += limits.complaints(done.place, done.figures)
                else:
                    complaints += budget.complaints(done.place, done.figures)
            print(_line(done, bool(complaints)), flush=True)
            wrong += [f"{done.job.kernel} sm_{done.job.architecture}: {c}" for c in complaints]
    if given.update:
        budget.updated(version(), found, names).write(given.budget)
    elif not given.only:
        wrong += [f"{kernel} stands in the table and is no more" for kernel in budget.gone(names)]
    for complaint in wrong:
        print(f"WRONG {complaint}", file=sys.stderr)
    seconds = time.perf_counter() - began
    print(f"{len(found)} of {len(tasks)} compiled, {len(wrong)} complaints, {seconds:.1f} s")
    return 1 if wrong or not tasks else 0


# Of the loop: pairs an iteration, and instructions per pair by pipe; `issue` is all of them.
_HEAD = (
    f"{'kernel':<28} {'sm':>4} {'regs':>4} {'stack':>5} {'shared':>6} {'pairs':>5}"
    f" {'alu':>5} {'fma':>5} {'mma':>5} {'mem':>5} {'other':>5} {'issue':>5} {'s':>5}"
)


def _line(done: Outcome, wrong: bool) -> str:
    kernel, architecture = done.place
    line = f"{kernel:<28} {architecture:>4}"
    if done.figures:
        registers, stack, shared = (int(done.figures[name]) for name in FIGURES[:3])
        line += f" {registers:>4} {stack:>5} {shared:>6}"
    loop = done.loop
    if loop is not None and loop.pairs:
        shown = [loop.pipes[pipe] for pipe in ("alu", "fma", "tensor", "memory")]
        shown += [loop.pipes.total() - sum(shown), loop.pipes.total()]
        per_pair = "".join(f" {n / loop.pairs:>5.2f}" for n in shown)
        line += f" {loop.pairs:>5.0f}{per_pair}"
    else:
        line += " " * 42
    return f"{line} {done.seconds:>5.1f}{'  WRONG' if wrong else ''}"


if __name__ == "__main__":
    sys.exit(main())
