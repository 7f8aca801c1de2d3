"""What the command line shows: progress while it works, tables and JSON when it is done.

Rich is imported when something is shown, not before: `saec --help` does without.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from saec_gpu.data import Progress

PLAIN_SECONDS = 5.0  # between plain lines
UNBOUNDED = 100_000  # columns of a file or a pipe
STAGES = {
    "curves": "measuring",
    "statistics": "reading",
    "seeding": "seeding",
    "fit": "clustering",
    "codes": "encoding",
    "levels": "shortening codes",
    "write": "writing",
}
VERIFY_STAGES = {"codes": "checking"}
REPORT_STAGES = {"statistics": "reading", "codes": "counting codes"}


@cache
def err() -> Console:
    """Return the console on standard error, on which bars and log lines do not meet."""
    from rich.console import Console

    return Console(stderr=True)


def complain(text: str) -> None:
    """Print an error or a warning in words to standard error."""
    err().print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a line to standard error, above a bar."""
    err().print(text, markup=False, highlight=False, soft_wrap=True)


class _LogHandler(logging.Handler):
    """Shows what the library logs, above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record))


class ProgressDisplay:
    """Shows a run's progress: a bar with rate and remaining time on a terminal, else plain lines.

    Use as a context manager; the object is the `progress` function to hand over. Meanwhile what the
    package logs is shown too. Quiet, nothing but warnings is.
    """

    def __init__(self, *, quiet: bool, stages: dict[str, str] = STAGES) -> None:
        self._quiet = quiet
        self._stages = stages
        self._stage = ""
        self._reports: dict[str, Progress] = {}  # the last of each stage
        self._before = 0  # done when the stage was begun, or gone on with
        self._begun = self._last = self._said = time.monotonic()
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._logger = logging.getLogger("saec_gpu")
        self._level = self._logger.level
        self._handler = _LogHandler()

    def __enter__(self) -> ProgressDisplay:
        self._logger.addHandler(self._handler)
        self._logger.setLevel(logging.WARNING if self._quiet else logging.INFO)
        if not self._quiet and err().is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars
            from rich.table import Column

            self._bars = Bars(
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None, table_column=Column(max_width=40)),
                TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
                console=err(),
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._level)
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, at: Progress) -> None:
        """Show where the run is."""
        if self._quiet:
            return
        stage = self._stages[at.stage]
        if at.iteration:
            stage += f" {counted(at.active, 'field')}, pass {at.iteration}"
        if stage != self._stage:
            # It began with the last report: a pass over rows in memory reports its end alone.
            self._stage, self._begun = stage, self._last
            # Encoding goes on where it was when the codes of a field were to be shortened.
            last = self._reports.get(stage, at)
            self._before = last.done if last.total == at.total and last.done < at.done else 0
            if self._bars is not None:
                if self._task is not None:
                    self._bars.remove_task(self._task)
                self._task = self._bars.add_task(stage, state="")
        self._reports[stage] = at
        now = self._last = time.monotonic()
        if self._bars is not None and self._task is not None:
            state = _state(at, self._before, now - self._begun)
            self._bars.update(self._task, completed=at.done, total=at.total, state=state)
        elif now - self._said >= PLAIN_SECONDS:
            self._said = now
            note(f"{stage}: {_state(at, self._before, now - self._begun)}")


def _state(at: Progress, before: int, seconds: float) -> str:
    """Return how much is done, how fast it was beyond what was before, and what the rest takes."""
    done = f"{at.done:,}/{at.total:,} {at.unit}"
    if not at.done or seconds <= 0:
        return done
    rate = (at.done - before) / seconds
    left = f" · {duration((at.total - at.done) / rate)} left" if at.done < at.total else ""
    return f"{done} · {rate:,.0f}/s{left}"


def print_json(value: Any) -> None:
    """Print one JSON document, for machines."""
    print(json.dumps(value, indent=1, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> None:
    """Print a table; the first `left` columns hold text, the others numbers. Nothing is cut.

    Where the terminal is too narrow, each row becomes a paragraph.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=UNBOUNDED)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    options = console.options.update(width=UNBOUNDED)
    if Measurement.get(console, options, table).maximum <= console.width:
        console.print(table)
        return
    for first, *others in rows:
        items = [f"{column} {cell}" for column, cell in zip(columns[1:], others, strict=True)]
        print(first)
        print("    " + ", ".join(item for item in items if not item.endswith(" ")))


def counted(number: int, thing: str) -> str:
    """Return a number of things: 1 field, 2 fields, 1,000 passes."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:,} {thing}{ending}"


def human_bytes(size: float) -> str:
    """Return a size in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 999.5 else f"{size:,.0f} TB"


def human_number(value: float) -> str:
    """Return a number with its thousands parted; digits behind the point only where they tell."""
    if value == int(value) or value >= 1000:
        return f"{value:,.0f}" if value < 1e15 else f"{value:.4g}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return a time as people say it: 12 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
