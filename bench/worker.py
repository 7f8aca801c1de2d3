"""One contestant in a process of its own: `python -m saec_gpu.bench.worker`, JSON lines in and out.

Commands, each a line {"do": …} and answered by one line:

setup  folder, peer, threads, iterations, weighted → version, weighted, note
check  codewords (a folder to write them to) → inertia, checked_rows, wrong_codes
run    → cpu_seconds, wall_seconds, flop, rechecked
quit

An error is answered by {"error": text}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .agreement import defined_codes, inertia
from .cases import load_case
from .peers import Contestant, find_contestant

CHECKED_ROWS = 256  # of each field: distances to all codewords by plain NumPy take long


class Worker:
    """Answers commands for one contestant."""

    def __init__(self) -> None:
        self._contestant: Contestant | None = None

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one command."""
        if command["do"] == "setup":
            return self._setup(command)
        contestant = self._contestant
        if contestant is None:
            raise ValueError(f"{command['do']} was asked for before setup")
        return self._check(contestant) if command["do"] == "check" else self._run(contestant)

    def _setup(self, command: Mapping[str, Any]) -> dict[str, Any]:
        kind = find_contestant(command["peer"])
        weighted = bool(command["weighted"]) and kind.takes_weights
        self._contestant = kind(
            load_case(Path(command["folder"])),
            threads=command["threads"],
            iterations=command["iterations"],
            weighted=weighted,
        )
        return {"version": kind.version(), "weighted": weighted, "note": kind.note}

    def _check(self, contestant: Contestant) -> dict[str, Any]:
        """Judge what one run returns: its error, and its codes where they are promised."""
        data = contestant.data
        codewords = contestant.run().codewords
        if not codewords:
            return {"inertia": None, "checked_rows": 0, "wrong_codes": 0}
        checked = wrong = 0
        for field, words in zip(data.fields, codewords, strict=True):
            rows = np.ascontiguousarray(field.rows[:: -(-len(field.rows) // CHECKED_ROWS)])
            codes = contestant.codes(rows, words)
            if codes is not None:
                checked += len(rows)
                wrong += int(np.count_nonzero(codes != defined_codes(rows, words)))
        error = inertia(data, codewords, weighted=contestant.weighted)
        return {
            "inertia": error if np.isfinite(error) else None,
            "checked_rows": checked,
            "wrong_codes": wrong,
        }

    def _run(self, contestant: Contestant) -> dict[str, Any]:
        gc.collect()
        cpu, wall = time.process_time(), time.perf_counter()
        outcome = contestant.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "flop": outcome.flop,
            "rechecked": outcome.rechecked,
        }


def serve(commands: TextIO, answers: TextIO) -> None:
    """Answer commands until "quit" or the end of the input."""
    worker = Worker()
    for line in commands:
        command = json.loads(line)
        if command["do"] == "quit":
            return
        try:
            answer = worker.answer(command)
        except Exception as err:  # the runner raises it again: it must not be lost with the process
            answer = {"error": f"{type(err).__name__}: {err}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
