"""The latest records as a picture and as a table.

python -m saec_gpu.bench.plot bench/results/*.jsonl --out docs/bench.svg
python -m saec_gpu.bench.plot bench/results/*.jsonl --table
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saec_gpu.errors import MissingExtraError, SaecError, SourceError

from .records import read_records

# Okabe and Ito's colours differ for the colour-blind too, and in brightness when printed grey
COLOURS = {
    "saec": "#0072B2",
    "faiss": "#E69F00",
    "sklearn": "#009E73",
    "fastkmeans": "#CC79A7",
}
OTHER_COLOUR = "#999999"
LABELS = {"saec": "saec_gpu", "sklearn": "scikit-learn"}
WIDTH_INCHES, BAR_INCHES, MARGIN_INCHES = 10.0, 0.2, 1.5
BARS_APART = 1.0  # between cases, in bars


def latest(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the last record of each case as it was run, in the order in which cases first came."""
    kept: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for record in records:
        if record["op"] == "fit":
            asked = ("case", "size", "threads", "weighted", "iterations")
            kept[tuple(record[key] for key in asked)] = record
    return list(kept.values())


def draw(records: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write an SVG of bars: speed relative to faiss, and share of the machine's FMA peak.

    Equal records give equal bytes with one version of matplotlib: the picture holds no date and no
    random names.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    SourceError
        There is no record of a fit.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingExtraError.for_extra("matplotlib", "bench", "the picture") from err
    if not records:
        raise SourceError("no record of a fit was given; run saec_gpu.bench.run with --out first")
    bars, labels = _places(records)
    height = MARGIN_INCHES + BAR_INCHES * (max(labels) + 1)
    with matplotlib.rc_context({"svg.hashsalt": "saec_gpu", "font.size": 9}):
        figure = Figure((WIDTH_INCHES, height), layout="constrained")
        speed, peak = figure.subplots(1, 2, sharey=True)
        _panel(
            speed, bars, "speed_relative_to_faiss", scale=1,
            label="speed relative to faiss (faiss = 1)", text="{:.2f}×",
        )  # fmt: skip
        _panel(
            peak, bars, "share_of_fma_peak", scale=100,
            label="useful flop, % of the machine's FMA peak", text="{:.0f} %",
        )  # fmt: skip
        speed.axvline(1, color="black", linewidth=0.8)
        speed.set_yticks(list(labels), list(labels.values()))
        speed.invert_yaxis()
        names = list(dict.fromkeys(bar.name for bar in bars))
        figure.legend(
            [matplotlib.patches.Patch(color=_colour(name)) for name in names],
            [_label(name) for name in names],
            loc="outside upper center", ncols=len(names), frameon=False,
        )  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="svg", metadata={"Date": None})


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records as a Markdown table, a line a contestant."""
    head = (
        "case", "contestant", "seconds (p20–p80)", "GFLOP/s", "of FMA peak", "against faiss",
        "against plain rows", "rechecked", "inertia",
    )  # fmt: skip
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for record in records:
        clock = record["compared_by"].removesuffix("_seconds")
        for name, entry in record["contestants"].items():
            seconds = entry["seconds"] and entry["seconds"][clock]
            times = "not timed: wrong"
            if seconds is not None:
                times = f"{seconds['p50']:.3g} ({seconds['p20']:.3g}–{seconds['p80']:.3g})"
            lines.append(
                _line(
                    [
                        _case_label(record).replace("\n", ", "),
                        _label(name) + _unweighted(record, entry),
                        times,
                        _text(entry["gflops"], "{:.1f}"),
                        _text(entry["share_of_fma_peak"], "{:.1%}"),
                        _text(entry["speed_relative_to_faiss"], "{:.2f}×"),
                        _text(entry["time_relative_to_plain"], "{:.2f}×"),
                        _text(entry["rechecked_share"], "{:.3%}"),
                        _text(entry["check"]["inertia"], "{:.7g}"),
                    ]
                )
            )
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Bar:
    place: float
    name: str
    entry: Mapping[str, Any]
    remark: str


def _places(records: Sequence[Mapping[str, Any]]) -> tuple[list[_Bar], dict[float, str]]:
    """Return the bars from the top, and the label of every case by its place."""
    bars = []
    labels: dict[float, str] = {}
    place = 0.0
    for record in records:
        first = place
        for name, entry in record["contestants"].items():
            if entry["share_of_fma_peak"] is not None and not name.startswith("saec on "):
                bars.append(_Bar(place, name, entry, _unweighted(record, entry)))
                place += 1
        labels[(first + place - 1) / 2] = _case_label(record)
        place += BARS_APART
    return bars, labels


def _panel(
    axes: Any, bars: Sequence[_Bar], key: str, *, scale: float, label: str, text: str
) -> None:
    for bar in bars:
        if bar.entry[key] is None:
            continue
        value = bar.entry[key] * scale
        axes.barh(bar.place, value, height=0.85, color=_colour(bar.name))
        axes.annotate(
            text.format(value) + bar.remark, (value, bar.place), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.margins(x=0.15)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _case_label(record: Mapping[str, Any]) -> str:
    cores = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    size = "" if record["size"] == 1 else f", size {record['size']:g}"
    weighted = ", weighted" if record["weighted"] else ""
    return f"{record['case']}, {record['iterations']} passes\n{cores}{weighted}{size}"


def _unweighted(record: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Return the remark on a contestant that ran without the weights of the others."""
    clusters = entry["check"]["inertia"] is not None
    return " (unweighted)" if record["weighted"] and clusters and not entry["weighted"] else ""


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER_COLOUR)


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _text(number: float | None, form: str) -> str:
    return "" if number is None else form.format(number)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Draw or print from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.plot", description="The latest records, drawn or as a table."
    )
    parser.add_argument("results", nargs="+", type=Path, help="files of JSON lines")
    parser.add_argument("--out", type=Path, help="the picture, *.svg")
    parser.add_argument("--table", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    if options.out is None and not options.table:
        parser.error("nothing to do: give --out, --table or both")
    try:
        records = latest(read_records(options.results))
        if options.table:
            print(table(records), end="")
        if options.out is not None:
            draw(records, options.out)
    except SaecError as err:
        sys.exit(f"error: {err}")


if __name__ == "__main__":
    main()
