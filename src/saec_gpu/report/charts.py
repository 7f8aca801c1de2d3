"""The charts of a report: SVG that stands inside the page and takes its colours from there.

Text stays text, in the page's fonts. Equal numbers give equal bytes with one version of Matplotlib.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

from saec_gpu import console
from saec_gpu.report.text import shortened
from saec_gpu.sources.stored import import_extra

# Drawn in these, so that they can be told from all other colours and replaced by the page's own.
INK, LINE = "#010203", "#040506"
PAGE_COLOURS = {INK: "currentColor", LINE: "var(--line)"}
# Okabe and Ito's colours: to be told apart by the colour-blind, on white and on black.
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"
LINE_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

MOST_BARS = 30  # fields of a chart; more are named by the table alone
MOST_PANELS = 12
LEAST_BARS = 9  # for which the chart beside has room
MOST_LINES = len(LINE_COLOURS)
PANEL_COLUMNS = 3
WIDTH_INCHES, BAR_INCHES, MARGIN_INCHES, PANEL_INCHES = 8.0, 0.22, 0.9, 1.9
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "saec_gpu",
    "text.parse_math": False,  # a field's name may hold $
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
}
_NAMESPACE = re.compile(r"\{[^}]*\}")
_REFERENCE = re.compile(r"(?<=url\(#)")

Section = Sequence[Mapping[str, Any]]


def bytes_chart(fields: Section) -> str:
    """Return bytes before and after: the fields given, of `fields` of the data, as dots."""
    shown, others = fields[:MOST_BARS], fields[MOST_BARS:]
    rows = [(shortened(f["name"]), f["table_bytes"], f["counted_bytes"]) for f in shown]
    if others:
        name = f"{console.counted(len(others), 'other field')} together"
        sums = [sum(f[key] for f in others) for key in ("table_bytes", "counted_bytes")]
        rows.append((name, sums[0], sums[1]))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _name_bars(axes, [name for name, _, _ in rows])
        axes.set_xscale("log")
        for place, (_, before, after) in enumerate(rows):
            axes.plot([before, after], [place, place], color=GREY, linewidth=1.5)
            if after:
                axes.annotate(
                    f"{before / after:.3g}×", (max(before, after), place), xytext=(6, 0),
                    textcoords="offset points", va="center", color=INK,
                )  # fmt: skip
        places = range(len(rows))
        axes.plot([row[1] for row in rows], places, "o", color=GREY, label="before")
        axes.plot([row[2] for row in rows], places, "o", color=BLUE, label="after")
        axes.margins(x=0.1)
        _label_axis(axes.xaxis, console.human_bytes)
        axes.set_xlabel("bytes, logarithmic")
        figure.legend(loc="outside upper right", ncols=2)

    return _svg(
        "bytes-chart", draw, height=_bars_height(len(rows)),
        title="Bytes of each field before and after",
        description="A dot for the table and one for codebook and codes, and their ratio.",
    )  # fmt: skip


def curves_chart(curves: Section) -> str:
    """Return distortion against bytes, a panel a field, with what came of it."""
    shown = curves[:MOST_PANELS]
    n_lines = -(-len(shown) // PANEL_COLUMNS)

    def draw(figure: Any) -> None:
        panels = figure.subplots(n_lines, PANEL_COLUMNS, squeeze=False).flat
        for curve, axes in zip(shown, panels, strict=False):
            points = curve["points"]
            sizes = [point["codebook_bytes"] + point["code_bytes"] for point in points]
            worst = max(point["distortion"] for point in points) or 1.0
            shares = [point["distortion"] / worst for point in points]
            axes.plot(sizes, shares, "o-", color=GREY, markersize=4, label="estimated")
            if curve["chosen"] is not None:
                at = curve["chosen"]
                axes.plot(sizes[at], shares[at], "o", color=ORANGE, markersize=9, label="chosen")
            if curve["distortion"] is not None:
                axes.plot(
                    curve["bytes"], curve["distortion"] / worst, "D", color=BLUE, label="made"
                )
            axes.set_title(shortened(curve["name"]), loc="left")
            axes.set_ylim(bottom=0)
            axes.set_xscale("log")
            _label_axis(axes.xaxis, console.human_bytes)
            axes.tick_params(labelsize=7)
        for axes in panels:
            axes.set_axis_off()
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=3)
        figure.supxlabel("bytes, logarithmic")
        figure.supylabel("distortion, relative to the greatest")

    return _svg(
        "curves-chart", draw, height=MARGIN_INCHES + PANEL_INCHES * n_lines,
        title="Distortion against bytes",
        description="The curve from which the budget was shared out, the point chosen for each "
        "field, and what came of it.",
    )  # fmt: skip


def use_chart(use: Section) -> str:
    """Return bits carried and bits stored a row by field, and rows by codeword of the largest."""
    shown, lines = use[:MOST_BARS], use[:MOST_LINES]

    def draw(figure: Any) -> None:
        bits, ranks = figure.subplots(1, 2, width_ratios=(3, 2))
        _name_bars(bits, [shortened(one["name"]) for one in shown])
        places = range(len(shown))
        stored, carried = ([one[key] for one in shown] for key in ("bits_per_row", "entropy"))
        bits.barh(places, stored, color=GREY, height=0.7, alpha=0.5, label="stored")
        bits.barh(places, carried, color=BLUE, height=0.4, label="carried (entropy)")
        bits.set_xlabel("bits a row")
        bits.legend(loc="lower left", bbox_to_anchor=(0, 1))
        for one, colour in zip(lines, LINE_COLOURS, strict=False):
            x, y = zip(*one["ranks"], strict=True)
            ranks.plot(x, y, color=colour, label=shortened(one["name"]))
        ranks.set_xscale("log")
        ranks.set_yscale("symlog", linthresh=1)  # a codeword without rows is drawn, too
        ranks.set_ylim(bottom=0)
        for axis in (ranks.xaxis, ranks.yaxis):
            _label_axis(axis, console.human_number)
        ranks.set_xlabel("codewords by rows")
        ranks.set_ylabel("rows of the codeword")
        ranks.legend(loc="lower left", bbox_to_anchor=(0, 1))

    return _svg(
        "use-chart", draw, height=_bars_height(max(len(shown), LEAST_BARS) + len(lines)),
        title="How evenly the codewords are used",
        description="Left: bits a row that codes take and that they carry. Right: rows of each "
        "codeword, the most used one first.",
    )  # fmt: skip


def seconds_chart(seconds: Mapping[str, float]) -> str:
    """Return a bar for the seconds of each stage."""
    stages = list(seconds)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _name_bars(axes, stages)
        bars = axes.barh(range(len(stages)), list(seconds.values()), color=BLUE, height=0.7)
        axes.bar_label(bars, [f"{value:.3g} s" for value in seconds.values()], padding=4, color=INK)
        axes.margins(x=0.1)
        axes.set_xlabel("seconds")

    return _svg(
        "seconds-chart", draw, height=_bars_height(len(stages)),
        title="Seconds of each stage", description="A bar a stage; the table has the numbers.",
    )  # fmt: skip


def _bars_height(n_bars: int) -> float:
    return MARGIN_INCHES + BAR_INCHES * n_bars


def _name_bars(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.grid(visible=False, axis="y")


def _label_axis(axis: Any, text: Callable[[float], str]) -> None:
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(lambda _value, _place: "")


def _svg(
    name: str, draw: Callable[[Any], None], *, height: float, title: str, description: str
) -> str:
    """Return a chart as an element of HTML, all whose ids begin with its name.

    Raises
    ------
    MissingExtraError
        Matplotlib is not installed.
    """
    matplotlib = import_extra("matplotlib", "report", "a report")
    figures = import_extra("matplotlib.figure", "report", "a report")
    file = BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # The page's fonts draw the text: what Matplotlib's own font lacks tells nothing.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = figures.Figure((WIDTH_INCHES, height), layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg")
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        # What tells of the maker, and a style that would hold for all of the page.
        for left_out in [*parent.findall("{*}metadata"), *parent.findall("{*}style")]:
            parent.remove(left_out)
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {
            _NAMESPACE.sub("", key): _belonging(name, key, value)
            for key, value in element.attrib.items()
        }
    texts = {"title": title, "desc": description}
    for place, (tag, text) in enumerate(texts.items()):
        told = ElementTree.Element(tag, id=f"{name}-{tag}")
        told.text = text
        root.insert(place, told)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{name}-title",
        "aria-describedby": f"{name}-desc",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _belonging(chart: str, key: str, value: str) -> str:
    """Return an attribute's value with ids that no other chart has and the colours of the page."""
    if key == "id":
        return f"{chart}-{value}"
    if key.endswith("href"):
        return f"#{chart}-{value.removeprefix('#')}"
    for drawn, wanted in PAGE_COLOURS.items():
        value = value.replace(drawn, wanted)
    return _REFERENCE.sub(f"{chart}-", value)
