"""Times on the device: this package beside its peers, on the same rows, checked.

    python -m saec_gpu.bench.device.timings --out timings.jsonl [--only f16] [--seconds 150]

Everybody starts from the same codewords and does the same iterations; the first run of each, which
compiles, stands apart; then all take turns. Times are of the wall, from an idle device to an idle
device; those of this package's kernels alone are between events. After the clock, labels and
inertia of everybody's result are checked in float64 on some rows.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from saec_gpu.data import Float32, Float64

from ..agreement import defined_codes
from ..cases import find_case, load_case, write_case
from ..records import spread
from .contestants import CONTESTANTS, Contestant, Saec
from .machine import Machine, open_machine
from .part import Part, arguments_of, run_part
from .rows import KINDS, FieldRows, TableRows, load_fields, make_rows

OURS = "saec"
FAST = ("saec", "flash-kmeans")
COMPILES_EACH_SIZE = "flash-kmeans"  # for each of 26 fields: it runs on them last, if time is left
EVERYBODY = tuple(CONTESTANTS)
RAGGED, N_RAGGED = "fields26-d16-4m", 26
DEFINED_ROWS = 256  # of a field: our codes are held against the definition itself
SHARE_OF_MEMORY = 1 / 8  # of what is free, for rows: peers hold copies and tables of their own


@dataclass(frozen=True)
class Shape:
    """One size of problem: GPU.md section 2, as many rows as are quickly made."""

    name: str
    n_rows: int
    dim: int
    n_codewords: int
    dtype: str


@dataclass(frozen=True)
class Plan:
    """What is timed and how often.

    Attributes
    ----------
    shapes : tuple of Shape
    ragged_size : float
        Share of the rows of RAGGED.
    everybody, others : tuple of str
        Kinds of rows on which all contestants run, and on which FAST alone do.
    iterations, repeats : int
    samples : int
        Rows of a field that are checked.
    most_seconds : float
        Who takes longer for a run is not asked to run again: its one run is its time.
    """

    shapes: tuple[Shape, ...]
    ragged_size: float
    everybody: tuple[str, ...]
    others: tuple[str, ...]
    iterations: int
    repeats: int
    samples: int
    most_seconds: float


FULL = Plan(
    shapes=(
        Shape("8M x 1024 x 128 f16", 8_000_000, 128, 1024, "float16"),
        Shape("32M x 1024 x 16 f32", 2**25, 16, 1024, "float32"),
        Shape("8M x 1024 x 64 f32", 2**23, 64, 1024, "float32"),
        Shape("32M x 256 x 16 f32", 2**25, 16, 256, "float32"),
        Shape("32M x 4096 x 16 f32", 2**25, 16, 4096, "float32"),
    ),
    ragged_size=1.0, everybody=("clustered",), others=("random", "offset", "heavy", "skewed"),
    iterations=10, repeats=5, samples=4096, most_seconds=1.0,
)  # fmt: skip
DRY = Plan(
    shapes=(
        Shape("500 x 40 x 128 f16", 500, 128, 40, "float16"),
        Shape("1300 x 12 x 16 f32", 1300, 16, 12, "float32"),
    ),
    ragged_size=3e-4, everybody=("random",), others=("skewed",),
    iterations=2, repeats=1, samples=64, most_seconds=10.0,
)  # fmt: skip


@dataclass(eq=False)
class Entrant:
    """One contestant in one record."""

    name: str
    contestant: Contestant | None = None
    why_not: str | None = None
    first_seconds: float | None = None
    seconds: list[float] = field(default_factory=list)
    codewords: list[Float32] = field(default_factory=list)
    check: dict[str, Any] = field(default_factory=dict)

    def time_once(self) -> float:
        """Run once and return the seconds from an idle device to an idle device."""
        assert self.contestant is not None
        machine = self.contestant.machine
        machine.settle()
        began = time.perf_counter()
        found = self.contestant.run()
        machine.settle()
        seconds = time.perf_counter() - began
        if not self.codewords:
            self.codewords = self.contestant.codewords(found)
        return seconds


def attempt(entrant: Entrant, what: str, work: Callable[[], Any]) -> Any:
    """Return what the work returns; a peer that fails is out, and the record says why."""
    try:
        return work()
    except Exception as err:  # a peer's errors are its own
        if entrant.name == OURS:
            raise
        traceback.print_exc()
        entrant.why_not = f"{what}: {type(err).__name__}: {err}"[:300]
        entrant.contestant = None
        return None


def enter(name: str, machine: Machine, table: TableRows, plan: Plan) -> Entrant:
    """Return a contestant that has run once, or why it has not."""
    kind = CONTESTANTS[name]
    entrant = Entrant(name, why_not=kind.missing(dry=machine.dry))
    if entrant.why_not is None:
        entrant.contestant = attempt(
            entrant, "preparing", lambda: kind(machine, table, plan.iterations)
        )
    if entrant.contestant is not None:
        entrant.first_seconds = attempt(entrant, "first run", entrant.time_once)
    return entrant


def take_turns(entrants: Sequence[Entrant], plan: Plan) -> None:
    """Time everybody once a round, each round from another one on, after a round that warms up."""
    running = [one for one in entrants if one.contestant is not None]
    slow = []
    for one in running:
        seconds = attempt(one, "warm-up", one.time_once)
        if seconds is not None and seconds > plan.most_seconds:
            one.seconds.append(seconds)
            slow.append(one)
    racing = [one for one in running if one not in slow]
    for turn in range(plan.repeats):
        first = turn % max(1, len(racing))
        for one in [*racing[first:], *racing[:first]]:
            if one.contestant is not None:
                seconds = attempt(one, "timed run", one.time_once)
                if seconds is not None:
                    one.seconds.append(seconds)


# ---- what a result is worth


def nearest(rows: Float64, codewords: Float32) -> tuple[np.ndarray[Any, Any], Float64]:
    """Return the nearest codeword of each row, float64, and the squared distance to it."""
    centre = codewords.mean(axis=0, dtype=np.float64)
    centred = codewords - centre
    scores = np.einsum("kj,kj->k", centred, centred) - 2 * ((rows - centre) @ centred.T)
    codes = np.argmin(scores, axis=1)
    return codes, distances(rows, codewords, codes)


def distances(rows: Float64, codewords: Float32, codes: np.ndarray[Any, Any]) -> Float64:
    """Return the squared distance of each row to the codeword of its code."""
    apart = rows - codewords[codes]
    squares: Float64 = np.einsum("nj,nj->n", apart, apart)
    return squares


def judge(entrant: Entrant, table: TableRows) -> None:
    """Check labels and inertia of one result on every field's sample, in float64."""
    contestant = entrant.contestant
    if contestant is None:
        return
    inertia = lost = 0.0
    wrong = checked = undefined = 0
    for one, words in zip(table.fields, entrant.codewords, strict=True):
        rows = one.sample.astype(np.float64)
        _, least = nearest(rows, words)
        labels = attempt(entrant, "labels", partial(contestant.labels, one, words))
        if labels is None:
            return
        given = distances(rows, words, labels)
        wrong += int(np.count_nonzero(given > least))
        inertia += float(least.sum())
        lost += float(np.maximum(given - least, 0).sum())
        checked += len(rows)
        if isinstance(contestant, Saec):
            undefined += _undefined(one, words, labels)
    entrant.check = {
        "checked_rows": checked,
        "wrong_labels": wrong,
        "inertia": inertia,
        "lost_by_labels": lost / inertia if inertia else 0.0,
        "undefined_codes": undefined if isinstance(contestant, Saec) else None,
    }


def _undefined(one: FieldRows, words: Float32, labels: np.ndarray[Any, Any]) -> int:
    """Return how many of our codes are not those of the definition."""
    some = one.sample[:DEFINED_ROWS].astype(np.float32)
    return int(np.count_nonzero(labels[: len(some)] != defined_codes(some, words)))


# ---- records


def entry(entrant: Entrant, reference: Entrant, plan: Plan) -> dict[str, Any]:
    """Return what a record says of one contestant."""
    kind = CONTESTANTS[entrant.name]
    found: dict[str, Any] = {
        "why_not": entrant.why_not,
        "note": kind.note,
        "first_seconds": entrant.first_seconds,
        "runs": len(entrant.seconds),
        "seconds": spread(entrant.seconds) if entrant.seconds else None,
        "ms_an_iteration": None,
        "time_relative_to_saec": None,
        "check": entrant.check or None,
    }
    if entrant.seconds:
        found["ms_an_iteration"] = 1e3 * statistics.median(entrant.seconds) / plan.iterations
    if entrant.seconds and reference.seconds and entrant is not reference:
        found["time_relative_to_saec"] = statistics.median(entrant.seconds) / statistics.median(
            reference.seconds
        )
    if entrant.check and reference.check:
        found["inertia_relative_to_saec"] = entrant.check["inertia"] / (
            reference.check["inertia"] or 1.0
        )
    return found


def kernels_of(ours: Saec, plan: Plan) -> dict[str, Any]:
    """Return the times of our kernels alone, milliseconds an iteration."""
    iterated, assigned = ours.kernel_seconds()
    rechecked, exact = ours.rechecked()
    return {
        "kernel_ms_an_iteration": {k: 1e3 * s / plan.iterations for k, s in iterated.items()},
        "assign_kernel_ms": {k: 1e3 * s for k, s in assigned.items()},
        "rechecked_share": rechecked / max(1, ours.table.n_rows),
        "exact_share": exact / max(1, ours.table.n_rows),
    }


def time_table(
    part: Part, machine: Machine, table: TableRows, plan: Plan, names: Sequence[str], **about: Any
) -> list[Entrant]:
    """Time the contestants on one table, record and return them."""
    entrants = [enter(name, machine, table, plan) for name in names]
    take_turns(entrants, plan)
    for one in entrants:
        judge(one, table)
    ours = entrants[0]
    assert isinstance(ours.contestant, Saec)
    details = kernels_of(ours.contestant, plan)
    contestants = {one.name: entry(one, ours, plan) for one in entrants}
    contestants[OURS] |= details
    part.add(
        "iterate", backend="cupy", **about, n_fields=len(table.fields), n_rows=table.n_rows,
        dim=table.fields[0].dim, n_codewords=sum(len(one.initial) for one in table.fields),
        pairs=sum(one.n_rows * len(one.initial) for one in table.fields), dtype=table.dtype,
        iterations=plan.iterations, repeats=plan.repeats, warmup=1, contestants=contestants,
        ok=not ours.check["undefined_codes"],
    )  # fmt: skip
    for one in entrants:
        said = contestants[one.name]
        ms = said["ms_an_iteration"]
        told = said["why_not"] if ms is None else f"{ms:.3f} ms an iteration, {said['check']}"
        part.say(f"{about['case']}, {about['rows']}: {one.name}: {told}")
    if ours.check["undefined_codes"]:
        part.fault(
            f"{about['case']}, {about['rows']}: {ours.check['undefined_codes']} of our codes are "
            "not those of the definition"
        )
    return entrants


def tables(machine: Machine, plan: Plan, only: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield name, kind of rows, maker of the table, and who runs; the most telling first."""

    def made(shape: Shape, kind: str) -> Callable[[], TableRows]:
        row_bytes = shape.dim * np.dtype(shape.dtype).itemsize
        fitting = int(SHARE_OF_MEMORY * machine.device.free_bytes()) // row_bytes
        return lambda: make_rows(
            machine, KINDS[kind], min(shape.n_rows, fitting), shape.dim, shape.n_codewords,
            shape.dtype, plan.samples,
        )  # fmt: skip

    for kind in plan.everybody:
        for shape in plan.shapes:
            if only in shape.name:
                yield shape.name, kind, made(shape, kind), EVERYBODY
    if only in RAGGED:
        patient = tuple(name for name in EVERYBODY if name != COMPILES_EACH_SIZE)
        yield RAGGED, "mixture", lambda: _ragged(machine, plan), patient
    for kind in plan.others:
        for shape in plan.shapes:
            if only in shape.name:
                yield shape.name, kind, made(shape, kind), FAST
    if only in RAGGED and CONTESTANTS[COMPILES_EACH_SIZE].missing(dry=machine.dry) is None:
        yield RAGGED, "mixture", lambda: _ragged(machine, plan), FAST


def _ragged(machine: Machine, plan: Plan) -> TableRows:
    with tempfile.TemporaryDirectory(prefix="saec-bench-") as folder:
        write_case(find_case(RAGGED), Path(folder), size=plan.ragged_size, weighted=False)
        return load_fields(machine, load_case(Path(folder)), plan.samples)


def time_all(part: Part, *, dry: bool, only: str, seconds: float) -> None:
    """Time all tables, until no time is left for another one."""
    machine = open_machine(dry=dry)
    part.describe(**machine.about())
    plan = DRY if dry else FULL
    for name in CONTESTANTS:
        missing = CONTESTANTS[name].missing(dry=dry)
        part.add("peer", peer=name, missing=missing)
        if missing is not None:
            part.say(f"{name}: {missing}")
    began, longest, compiling = time.perf_counter(), 0.0, 0.0
    for case, kind, make, names in tables(machine, plan, only):
        spent = time.perf_counter() - began
        sizes = N_RAGGED if case == RAGGED and COMPILES_EACH_SIZE in names else 0
        if spent + longest + sizes * compiling > seconds:
            part.add("left_out", case=case, rows=kind, contestants=list(names), spent=spent)
            part.say(f"{case}, {kind}: left out, no time")
            continue
        table = make()
        entrants = time_table(part, machine, table, plan, names, case=case, rows=kind)
        longest = max(longest, time.perf_counter() - began - spent)
        for one in entrants:
            if one.name == COMPILES_EACH_SIZE and one.seconds and one.first_seconds:
                compiling = max(compiling, one.first_seconds - min(one.seconds))
        del table, entrants
        gc.collect()
        machine.release()


def main(given: list[str] | None = None) -> Any:
    """Run from the command line."""
    parser: argparse.ArgumentParser = arguments_of("timings", "Time this package and its peers.")
    parser.add_argument("--only", default="", help="cases whose name holds this, nothing else")
    parser.add_argument("--seconds", type=float, default=150.0, help="begin nothing after that")
    options = parser.parse_args(given)
    run_part(
        "timings",
        options,
        lambda part: time_all(
            part, dry=options.dry_run, only=options.only, seconds=options.seconds
        ),
    )


if __name__ == "__main__":
    main()
