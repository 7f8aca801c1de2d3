"""One part of a run on a device: its command line, and the file of records that it leaves."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..records import SCHEMA, append_record, circumstances
from .machine import library_versions

Add = Callable[..., None]


class Part:
    """Records of one part, each written as soon as it is known.

    The last one has `"op": "part"` and tells how the part ended. A part that a time limit ended has
    none: on_device.sh writes one in its place.

    Parameters
    ----------
    name : str
    out : Path or None
        File of JSON lines; None: nothing is kept.
    commit : str or None
        What the records shall name where git does not know the files.
    """

    def __init__(self, name: str, out: Path | None, commit: str | None = None) -> None:
        self.name = name
        self.faults: list[str] = []
        self.records: list[dict[str, Any]] = []
        self._out = out
        self._began = time.perf_counter()
        about = circumstances()
        about["host"] = about.pop("device")
        about["versions"] |= library_versions()
        about["commit"] = about["commit"] or commit
        self._about = about

    def describe(self, **facts: Any) -> None:
        """Let all later records say this too."""
        self._about |= facts

    def add(self, op: str, **content: Any) -> None:
        """Keep one record."""
        record = {"schema": SCHEMA, "op": op, "part": self.name, **content, **self._about}
        self.records.append(record)
        if self._out is not None:
            append_record(self._out, record)

    def fault(self, text: str) -> None:
        """Note that something is wrong; the part goes on and ends as failed."""
        self.faults.append(text)
        self.say(f"WRONG {text}")

    def say(self, line: str) -> None:
        """Print a line with the seconds since the beginning."""
        print(f"{self.name} {time.perf_counter() - self._began:6.1f} s: {line}", flush=True)

    def end(self) -> int:
        """Keep how the part ended and return the exit status."""
        status = "failed" if self.faults else "passed"
        seconds = time.perf_counter() - self._began
        self.add("part", status=status, seconds=round(seconds, 3), faults=self.faults)
        self.say(status)
        return 1 if self.faults else 0


def arguments_of(name: str, description: str) -> argparse.ArgumentParser:
    """Return the command line that all parts share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m saec_gpu.bench.device.{name}", description=description
    )
    parser.add_argument("--out", type=Path, help="file of JSON lines to append the records to")
    parser.add_argument("--dry-run", action="store_true", help="on the emulator, tiny shapes")
    parser.add_argument("--commit", help="what records shall name where git knows nothing")
    return parser


def run_part(name: str, options: argparse.Namespace, work: Callable[[Part], None]) -> None:
    """Do a part's work, keep how it ended, and exit."""
    part = Part(name, options.out, options.commit)
    part.describe(dry=bool(options.dry_run))
    try:
        work(part)
    except Exception as err:  # whatever it was, the part's file must say so
        traceback.print_exc()
        part.fault(f"{type(err).__name__}: {err}")
    sys.exit(part.end())
