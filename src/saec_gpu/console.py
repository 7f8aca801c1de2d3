"""What the command line shows: progress while it works, tables and JSON when it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from saec_gpu.data import Progress

PLAIN_SECONDS = 5.0  # between plain lines
STAGES = {
    "statistics": "reading",
    "seeding": "seeding",
    "fit": "clustering",
    "codes": "encoding",
    "write": "writing",
}

out = Console()
err = Console(stderr=True)


class ProgressDisplay:
    """Shows a run's progress: bars with rate and remaining time on a terminal, else plain lines.

    Use as a context manager; the object is the `progress` function to hand over.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._stage = ""
        self._begun = self._said = time.monotonic()
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        if not quiet and err.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]} · {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )

    def __enter__(self) -> ProgressDisplay:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, at: Progress) -> None:
        """Show where the run is."""
        if self._quiet:
            return
        now = time.monotonic()
        stage = STAGES[at.stage]
        if at.iteration:
            stage = f"{stage}, pass {at.iteration}, {at.active} fields"
        if stage != self._stage:
            self._stage, self._begun = stage, now
            if self._bars is not None:
                if self._task is not None:
                    self._bars.remove_task(self._task)
                self._task = self._bars.add_task(stage, unit=at.unit, rate="")
        seconds = now - self._begun
        rate = f"{at.done / seconds:,.0f}/s" if seconds > 0 else ""
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, completed=at.done, total=at.total, unit=at.unit, rate=rate
            )
        elif self._bars is None and now - self._said >= PLAIN_SECONDS:
            self._said = now
            left = seconds * (at.total - at.done) / at.done if at.done else float("nan")
            err.print(
                f"{stage}: {at.done:,} of {at.total:,} {at.unit}, {rate}, {left:.0f} s left",
                highlight=False,
            )


def print_json(value: Any) -> None:
    """Print one JSON document, for machines."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1
) -> None:
    """Print a table; the first `left` columns hold text, the others numbers."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out.print(table)


def human_bytes(size: float) -> str:
    """Return a size in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
