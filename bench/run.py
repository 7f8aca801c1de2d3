"""The runner: contestants in processes of their own, checked, then timed in turns.

    python -m saec_gpu.bench.run fields26-d16 4m-64-16 --peers faiss,sklearn --out records.jsonl

Times are compared only within a record: its contestants took turns on one machine at one time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from saec_gpu.errors import ParamError, SaecError

from .cases import CASES, Case, CaseData, find_case, load_case, write_case
from .peers import PEERS, find_contestant
from .records import SCHEMA, append_record, circumstances, spread

OURS = "saec"
TOLERANCE = 1e-3  # of the inertia: libraries refill empty codewords in ways of their own
PAUSE_SECONDS = 0.1  # threads of the one before may spin for a while after their work
QUIT_SECONDS = 30.0

ProgressLine = Callable[[str], Any]


class Process:
    """A worker process and the lines exchanged with it.

    Parameters
    ----------
    folder : path
        Where its standard error is kept until the end.
    threads : int
    """

    def __init__(self, folder: Path, threads: int) -> None:
        libraries = ("OMP", "OPENBLAS", "MKL", "NUMBA")
        limits = {f"{library}_NUM_THREADS": str(threads) for library in libraries}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "saec_gpu.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | limits,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        try:
            self._process.communicate('{"do": "quit"}\n', timeout=QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        except BrokenPipeError:
            self._process.wait()
        self._errors.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the worker's answer.

        Raises
        ------
        SaecError
            It reported an error, or died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process died"}
        if "error" in answer:
            self._errors.seek(0)
            said = self._errors.read().strip()[-2000:]
            raise SaecError(f"{do}: {answer['error']}{said and f'; it wrote: {said}'}")
        return answer


@dataclass(eq=False)
class Entrant:
    """One contestant of one record.

    Attributes
    ----------
    key : str
        Its name in the record.
    process : Process
    threads : int
    about : dict
        What the worker said of it at setup.
    reference : Entrant or None
        Whose inertia its own is held against; None: nobody's.
    answers : list of dict
        One a round, without the warm-up.
    """

    key: str
    process: Process
    threads: int
    about: dict[str, Any]
    reference: Entrant | None = None
    check: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clusters(self) -> bool:
        """Return whether it clusters at all, or only shows what the machine can do."""
        return not self.key.startswith("fma-peak")

    def judge(self) -> None:
        """Let it run once and note what its result is worth."""
        found = self.process.ask("check")
        inertia = found["inertia"]
        reference = inertia if self.reference is None else self.reference.check["inertia"]
        agrees = not self.clusters or (
            inertia is not None and abs(inertia - reference) <= TOLERANCE * reference
        )
        self.check = {
            "inertia": inertia,
            "reference": reference,
            "checked_rows": found["checked_rows"],
            "wrong_codes": found["wrong_codes"],
            "ok": agrees and found["wrong_codes"] == 0,
        }

    def rates(self, clock: str) -> list[float]:
        """Return useful flop a second of each round, by the "cpu" or "wall" clock."""
        return [answer["flop"] / answer[f"{clock}_seconds"] for answer in self.answers]


def run_case(
    case: Case,
    *,
    peers: Sequence[str],
    iterations: int = 10,
    repeats: int = 5,
    threads: int = 1,
    weighted: bool = False,
    size: float = 1.0,
    progress: ProgressLine | None = None,
) -> dict[str, Any]:
    """Return the record of one case: who does how much in what time, and how right.

    Parameters
    ----------
    case : Case
    peers : sequence of str
        Who runs beside this package: "faiss", "sklearn", "fastkmeans", or "module:Class".
    iterations : int
        Passes over the rows.
    repeats : int
        Timed rounds, in each of which everyone runs once, after a warm-up round.
    threads : int
        Of each contestant. With 1 CPU time is compared, with more wall time.
    weighted : bool
        Rows weigh as often as they are looked up. Who takes no weights runs without.
    size : float
        Share of the case's rows, in (0, 1].
    progress : function of str, optional
        Called with a line now and then.

    Returns
    -------
    record : dict
        Can be written as JSON; the keys of records stand in one order. Rates relative to another
        contestant are medians over rounds, so that a machine that slows down slows both.

    Raises
    ------
    ParamError
        A number is out of range, or a peer unknown.
    MissingExtraError
        A peer's library is not installed.
    SaecError
        This package's own result is wrong, or a contestant's process failed.

    Notes
    -----
    A contestant whose inertia is not within 1e-3 of this package's is not timed: its entry says
    `ok: false` and its seconds are null.
    """
    for name, value in (("iterations", iterations), ("repeats", repeats), ("threads", threads)):
        if value < 1:
            raise ParamError(f"{name}={value} was given; give 1 or more")
    kinds = {
        name: find_contestant(name)
        for name in dict.fromkeys(peers)
        if name not in ("saec", "fma-peak")  # they always run
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saec-bench-")))
        race = _Race(case, folder, iterations, threads, weighted, progress or (lambda _: None))
        race.say("making rows")
        write_case(case, folder / "case", size=size, weighted=weighted)
        ours = race.enter(stack, OURS, "saec")
        _must_be_right(case, ours)
        unweighted = ours
        if weighted and not all(kind.takes_weights for kind in kinds.values()):
            with ExitStack() as briefly:
                unweighted = race.enter(briefly, OURS, "saec unweighted", weighted=False)
            _must_be_right(case, unweighted)
        entrants = [ours]
        for name, kind in kinds.items():
            reference = ours if kind.takes_weights else unweighted
            entrants.append(race.enter(stack, name, name, reference=reference))
        if case.beside is not None:
            write_case(CASES[case.beside], folder / "beside", size=size, weighted=weighted)
            entrants.append(race.enter(stack, OURS, f"saec on {case.beside}", rows="beside"))
            _must_be_right(case, entrants[-1])
        entrants.append(race.enter(stack, "fma-peak", "fma-peak"))
        if threads > 1:
            entrants.append(race.enter(stack, "fma-peak", "fma-peak of one thread", threads=1))
        race.take_turns([one for one in entrants if one.check["ok"]], repeats)
        data = load_case(folder / "case")
    return _record(
        case, data, entrants,
        {
            "size": size, "threads": threads, "weighted": weighted, "iterations": iterations,
            "repeats": repeats, "warmup": 1,
        },
    )  # fmt: skip


@dataclass(frozen=True)
class _Race:
    """What all contestants of one record share."""

    case: Case
    folder: Path
    iterations: int
    threads: int
    weighted: bool
    progress: ProgressLine

    def say(self, line: str) -> None:
        self.progress(f"{self.case.name}: {line}")

    def enter(
        self,
        stack: ExitStack,
        peer: str,
        key: str,
        *,
        rows: str = "case",
        threads: int | None = None,
        weighted: bool | None = None,
        reference: Entrant | None = None,
    ) -> Entrant:
        """Start a contestant's process, which ends with the stack, and judge its result."""
        cores = self.threads if threads is None else threads
        process = stack.enter_context(Process(self.folder, cores))
        try:
            about = process.ask(
                "setup",
                folder=str(self.folder / rows),
                peer=peer,
                threads=cores,
                iterations=self.iterations,
                weighted=self.weighted if weighted is None else weighted,
            )
            entrant = Entrant(key, process, cores, about, reference)
            entrant.judge()
        except SaecError as err:
            raise SaecError(f"{self.case.name}: {key}: {err}") from err
        if entrant.clusters:
            verdict = "ok" if entrant.check["ok"] else "wrong, not timed"
            self.say(f"{key}: inertia {entrant.check['inertia']}: {verdict}")
        return entrant

    def take_turns(self, entrants: Sequence[Entrant], repeats: int) -> None:
        """Run everyone once a round, each round from another one on; the first does not count."""
        for turn in range(repeats + 1):
            self.say(f"round {turn} of {repeats}" if turn else "warm-up round")
            first = turn % len(entrants)
            for entrant in [*entrants[first:], *entrants[:first]]:
                if entrant.threads > 1:
                    time.sleep(PAUSE_SECONDS)
                answer = entrant.process.ask("run")
                if turn:
                    entrant.answers.append(answer)


def _must_be_right(case: Case, ours: Entrant) -> None:
    if not ours.check["ok"]:
        raise SaecError(
            f"{case.name}: this package's own result is wrong, so nothing is timed: "
            f"{ours.check['wrong_codes']} of {ours.check['checked_rows']} codes differ from the "
            f"definition, inertia {ours.check['inertia']}"
        )


def _record(
    case: Case, data: CaseData, entrants: Sequence[Entrant], run: Mapping[str, Any]
) -> dict[str, Any]:
    n_rows = sum(len(one.rows) for one in data.fields)
    clock = "cpu" if run["threads"] == 1 else "wall"
    return {
        "schema": SCHEMA,
        "op": "fit",
        "backend": "cpu",
        "case": case.name,
        "n_rows": n_rows,
        "dim": case.dim,
        "n_fields": len(data.fields),
        "n_codewords": sum(len(one.initial) for one in data.fields),
        "dtype": "float32",
        **run,
        "compared_by": f"{clock}_seconds",
        "flop_a_pass": sum(one.flop_a_pass for one in data.fields),
        "contestants": {
            one.key: _entry(case, one, entrants, clock, n_rows * run["iterations"])
            for one in entrants
        },
        **circumstances(),
    }


def _entry(
    case: Case, entrant: Entrant, entrants: Sequence[Entrant], clock: str, row_passes: int
) -> dict[str, Any]:
    by_key = {one.key: one for one in entrants}

    def relative(other: str | None) -> float | None:
        """Return the median over rounds of the rate against another contestant's."""
        if other not in by_key or not entrant.answers or not by_key[other].answers:
            return None
        pairs = zip(entrant.rates(clock), by_key[other].rates(clock), strict=True)
        return statistics.median(own / theirs for own, theirs in pairs)

    seconds = {
        one: spread([answer[f"{one}_seconds"] for answer in entrant.answers])
        for one in ("cpu", "wall")
        if entrant.answers
    }
    rechecked = [
        answer["rechecked"] for answer in entrant.answers if answer["rechecked"] is not None
    ]
    hardness = relative(f"saec on {case.beside}") if entrant.key == "saec" else None
    rates = entrant.rates(clock)
    return {
        "version": entrant.about["version"],
        "weighted": entrant.about["weighted"],
        "threads": entrant.threads,
        "seconds": seconds or None,
        "gflops": statistics.median(rates) / 1e9 if rates else None,
        "share_of_fma_peak": relative("fma-peak") if entrant.clusters else None,
        "speed_relative_to_faiss": relative("faiss") if entrant.clusters else None,
        "time_relative_to_plain": None if hardness is None else 1 / hardness,
        "rechecked_share": statistics.median(rechecked) / row_passes if rechecked else None,
        "check": entrant.check,
        "note": entrant.about["note"],
    }


def main() -> None:
    """Run cases from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.run", description="Time k-means on one machine, checked."
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which; all if none is named")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma list; '' for none")
    parser.add_argument("--iterations", type=int, default=10, help="passes over the rows")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weighted", action="store_true", help="rows weigh as often as looked up")
    parser.add_argument("--size", type=float, default=1.0, help="share of the rows, e.g. 0.01")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append the records to")
    options = parser.parse_args()
    if options.list:
        for case in CASES.values():
            print(f"{case.name:16} {case.line}")
        return
    try:
        for name in [find_case(name).name for name in options.cases] or CASES:
            record = run_case(
                CASES[name],
                peers=[peer for peer in options.peers.split(",") if peer],
                iterations=options.iterations,
                repeats=options.repeats,
                threads=options.threads,
                weighted=options.weighted,
                size=options.size,
                progress=lambda line: print(line, file=sys.stderr),
            )
            if options.out is not None:
                append_record(options.out, record)
            print(json.dumps(record, allow_nan=False))
    except SaecError as err:
        sys.exit(f"error: {err}")


if __name__ == "__main__":
    main()
