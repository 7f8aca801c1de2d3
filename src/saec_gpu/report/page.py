"""The page of a report: what each section says, shows and lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saec_gpu import console
from saec_gpu.artifact import Artifact
from saec_gpu.report import charts
from saec_gpu.report.sections import report_data
from saec_gpu.report.text import shown
from saec_gpu.sources.stored import import_extra

TEMPLATE = Path(__file__).with_name("page.html")
NONE = "–"
DARKEST = 0.45  # opacity of a cell's tint: text on it stays readable on white and on black


@dataclass(frozen=True)
class Cell:
    """A cell of a table whose tint, 0 to 1, tells its number apart from the others."""

    text: str
    tint: float


@dataclass(frozen=True)
class Table:
    """A table: its caption, the names of its columns, its rows; the first column names the row.

    The first `left` columns hold text, the others numbers.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    left: int = 1


@dataclass(frozen=True)
class Section:
    """A part of the page: its id, heading, paragraphs, an SVG (or none) and a table (or none)."""

    name: str
    heading: str
    paragraphs: Sequence[str]
    chart: str | None = None
    table: Table | None = None


def check_installed() -> None:
    """Return if all that a page needs is installed, so that no rows are read in vain.

    Raises
    ------
    MissingExtraError
        Jinja2 or Matplotlib is not.
    """
    for package in ("jinja2", "matplotlib"):
        import_extra(package, "report", "a report")


def report(artifact: Artifact, tables: Any = None, weights: Any = None) -> str:
    """Return a report of an artifact: one page of HTML that needs no other file and no network.

    Parameters
    ----------
    artifact : Artifact
    tables, weights : optional
        As for `report_data`, which also tells the errors raised and the cost.

    Returns
    -------
    html : str
        Equal artifacts at equal paths give equal pages with one version of Matplotlib.

    Raises
    ------
    MissingExtraError
        Jinja2 or Matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np, tempfile, saec_gpu as saec
    >>> rows = np.repeat(np.eye(4, dtype=np.float32), 100, axis=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = saec.compress({"item": rows}, codewords=4, out=f"{folder}/item.saec")
    ...     report(artifact).splitlines()[0]
    '<!doctype html>'
    """
    check_installed()
    return page(report_data(artifact, tables, weights))


def page(data: Mapping[str, Any]) -> str:
    """Return the page that shows what `report_data` found.

    Raises
    ------
    MissingExtraError
        Jinja2 or Matplotlib is not installed.
    """
    jinja2 = import_extra("jinja2", "report", "a report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html: str = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=shown(Path(data["head"]["path"]).name),
        facts=list(_facts(data["head"], data["run"]["seconds"])),
        sections=list(sections(data)),
        darkest=DARKEST,
    )
    return html


def sections(data: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the sections for which there are numbers, in the order of the page."""
    yield _bytes(data["fields"])
    if data["curves"]:
        yield _curves(data["curves"])
    if data["errors"]:
        yield _errors(data["errors"])
    if data["use"]:
        yield _use(data["use"])
    if data["run"]["seconds"]:
        yield _seconds(data["run"]["seconds"])
    if data["run"]["fields"]:
        yield _rechecked(data["run"]["fields"])
    if data["update"]:
        yield _update(data["update"])


def _facts(head: Mapping[str, Any], seconds: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield what the page begins with: names and values."""
    before, after = (console.human_bytes(head[key]) for key in ("table_bytes", "counted_bytes"))
    yield "smaller", f"{head['ratio']:.2f} times"
    yield "bytes", f"{before} → {after} ({console.human_bytes(head['disk_bytes'])} on disk)"
    yield "fields", f"{head['fields']:,}"
    yield "rows", f"{head['rows']:,}"
    yield "artifact", shown(head["path"])
    for name, value in head["parameters"].items():
        yield name.replace("_", " "), _value(value)
    for name, value in head["run"].items():
        yield name, _value(value)
    if "total" in seconds:
        yield "made in", console.duration(seconds["total"])


def _value(value: Any) -> str:
    """Return a parameter or a part of a run's record in words."""
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(name)} {_value(one)}" for name, one in value.items()) or NONE
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return shown(value if isinstance(value, str) else json.dumps(value))


def _bytes(fields: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            shown(one["name"]),
            one["dtype"],
            one["encoding"],
            one["codewords_dtype"],
            f"{one['rows']:,}",
            str(one["dim"]),
            f"{one['codewords']:,}",
            console.human_number(one["bits_per_row"]),
            console.human_bytes(one["table_bytes"]),
            console.human_bytes(one["codebook_bytes"]),
            console.human_bytes(one["code_bytes"]),
            f"{one['table_bytes'] / one['counted_bytes']:.2f}" if one["counted_bytes"] else NONE,
            _number(one["mean_sq_error"]),
        )
        for one in fields
    ]
    columns = (
        "field", "dtype", "encoding", "codewords in", "rows", "dim", "codewords", "bits a row",
        "before", "codebook", "codes", "times smaller", "mean squared error",
    )  # fmt: skip
    drawn = [one for one in fields if one["rows"]]
    return Section(
        "bytes",
        "Bytes by field",
        [
            "The table's rows in their own dtype against codebook and packed codes. A field with "
            "encoding identity is kept whole."
            + _cut(len(drawn), charts.MOST_BARS, "the others together are its last line"),
        ],
        charts.bytes_chart(drawn),
        Table("Sizes and errors of all fields", columns, rows, left=4),
    )


def _cut(n_fields: int, most: int, others: str = "the table has all") -> str:
    """Return the words for a chart that has not all fields; nothing where it has."""
    if n_fields <= most:
        return ""
    return f" The chart shows the {most} largest of {n_fields:,} fields; {others}."


def _curves(curves: Sequence[Mapping[str, Any]]) -> Section:
    rows = []
    for curve in curves:
        chosen = None if curve["chosen"] is None else curve["points"][curve["chosen"]]
        rows.append(
            (
                shown(curve["name"]),
                NONE if chosen is None else chosen["dtype"],
                str(len(curve["points"])),
                NONE if chosen is None else f"{chosen['codewords']:,}",
                NONE
                if chosen is None
                else console.human_bytes(chosen["codebook_bytes"] + chosen["code_bytes"]),
                console.human_bytes(curve["bytes"]),
                NONE if chosen is None else _number(chosen["distortion"]),
                _number(curve["distortion"]),
            )
        )
    columns = (
        "field", "chosen dtype", "points", "chosen codewords", "bytes estimated", "bytes",
        "distortion estimated", "distortion",
    )  # fmt: skip
    return Section(
        "curves",
        "Distortion curves",
        [
            "The byte budget was shared out along these curves: each point is a number of "
            "codewords in one dtype, its distortion (sum of weight × squared distance) estimated "
            "from a sample." + _cut(len(curves), charts.MOST_PANELS),
        ],
        charts.curves_chart(curves),
        Table("Points chosen, and what came of them", columns, rows, left=2),
    )


def _errors(errors: Sequence[Mapping[str, Any]]) -> Section:
    groups = [[*one["groups"], one["unseen"], one["all"]] for one in errors]
    most = max((g["relative"] or 0.0 for line in groups for g in line), default=0.0) or 1.0

    def cell(group: Mapping[str, Any]) -> str | Cell:
        value = group["relative"]
        return NONE if value is None else Cell(f"{value:.3f}", value / most)

    rows = [
        (shown(one["name"]), *map(cell, line)) for one, line in zip(errors, groups, strict=True)
    ]
    n_groups = len(errors[0]["groups"])
    columns = ("field", *map(str, range(1, n_groups + 1)), "never looked up", "all rows")
    return Section(
        "errors",
        "Error by frequency",
        [
            "Mean squared error relative to the mean squared norm of the same rows: 0 is no error, "
            "1 is that of zeros. Rows are in ten groups of equal look-ups, the most looked up "
            f"first. {NONE}: no row, because one row before has more look-ups than a group.",
        ],
        table=Table("Relative error of ten groups of equal look-ups", columns, rows),
    )


def _use(use: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            shown(one["name"]),
            f"{one['codewords']:,}",
            f"{one['used']:,}",
            console.human_number(round(one["even"], 1)),
            f"{one['bits_per_row']:.2f}",
            f"{one['entropy']:.2f}",
            f"{one['most']:,}",
            console.human_number(one["median"]),
        )
        for one in use
    ]
    columns = (
        "field", "codewords", "with rows", "as good as", "bits stored", "bits carried",
        "most rows", "median rows",
    )  # fmt: skip
    return Section(
        "use",
        "Use of the codewords",
        [
            "Bits carried are the entropy of the codes: what a row would take at best. As good as: "
            "so many codewords, all used alike, would carry as much."
            + _cut(len(use), charts.MOST_BARS),
            f"Lines are drawn of the {charts.MOST_LINES} largest fields."
            if len(use) > charts.MOST_LINES
            else "Lines are drawn of all fields.",
        ],
        charts.use_chart(use),
        Table("Rows of the codewords", columns, rows),
    )


def _seconds(seconds: Mapping[str, float]) -> Section:
    stages = [*console.STAGES, *(stage for stage in seconds if stage not in console.STAGES)]
    ordered = {stage: seconds[stage] for stage in stages if stage in seconds}
    rows = [(stage, f"{value:.3f}") for stage, value in ordered.items()]
    return Section(
        "seconds",
        "Seconds by stage",
        ["Wall time of the run that made the artifact; the total has also what is no stage."],
        charts.seconds_chart(ordered),
        Table("Seconds of each stage", ("stage", "seconds"), rows),
    )


def _rechecked(fields: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            shown(one["name"]),
            one["stopped"] or NONE,
            NONE if one["passes"] is None else str(one["passes"]),
            f"{one['rechecked_share']:.3%}",
        )
        for one in fields
    ]
    return Section(
        "rechecked",
        "Rows rechecked",
        [
            "The share of rows, over all passes, whose nearest codeword the fast filter could not "
            "prove; the float64 definition decided them. Fields without a fit are not listed.",
        ],
        table=Table("Passes and rows rechecked", ("field", "stopped", "passes", "rechecked"), rows,
                    left=2),
    )  # fmt: skip


def _update(update: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            shown(one["name"]),
            NONE if one["churn"] is None else f"{one['churn']:.3%}",
            NONE if one["drift"] is None else f"{one['drift']:.4f}",
            NONE if one["staleness"] is None else f"{one['staleness']:.4f}",
        )
        for one in update
    ]
    return Section(
        "update",
        "Since the last artifact",
        [
            "Churn is the share of the rows that stayed whose code changed; drift is the mean "
            "squared distance of a row relative to the artifact before (1: as large); staleness is "
            "the error of serving that one on, relative to the new one.",
        ],
        table=Table("What an update changed", ("field", "churn", "drift", "staleness"), rows),
    )


def _number(value: float | None) -> str:
    return NONE if value is None else console.human_number(value)
