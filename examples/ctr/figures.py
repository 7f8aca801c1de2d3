"""The cycle in two figures: what compression costs hour by hour, and what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAST_HOURS = 24  # that the second figure shows
# Okabe and Ito's colours differ for the colour-blind too, and in brightness when printed grey
ARMS = {
    "full": ("full tables", "#000000"),
    "post": ("compressed", "#E69F00"),
    "retrained": ("compressed, retrained", "#0072B2"),
}
BYTES_COLOUR, VECTORS_COLOUR = "#009E73", "#CC79A7"
SIZE_INCHES = (9.0, 3.6)


def draw(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the figures of `cycle.hours` as SVG, and return their paths.

    Equal records give equal bytes with one version of matplotlib.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "saec_gpu", "font.size": 9}):
        quality = Figure(SIZE_INCHES, layout="constrained")
        for axes, key, label in zip(
            quality.subplots(1, 2), ("auc", "log_loss"), ("AUC", "log loss"), strict=True
        ):
            for arm, (name, colour) in ARMS.items():
                values = [record[arm][key] for record in records]
                axes.plot(_hours(records), values, label=name, color=colour, linewidth=1.2)
            axes.set_ylabel(f"{label} on the next hour's clicks")
            _finish(axes)
        saved = Figure(SIZE_INCHES, layout="constrained")
        axes = saved.subplots()
        last = records[-LAST_HOURS:]
        for name, colour, before, after in (
            ("vectors: rows / codewords", VECTORS_COLOUR, "rows", "codewords"),
            ("counted bytes", BYTES_COLOUR, "table_bytes", "counted_bytes"),
        ):
            reduction = [record[before] / record[after] for record in last]
            axes.plot(_hours(last), reduction, label=name, color=colour, linewidth=1.2)
        axes.set_ylabel("times smaller")
        axes.set_ylim(bottom=0)
        _finish(axes)
        paths = [folder / "figure1.svg", folder / "figure2.svg"]
        for figure, path in zip((quality, saved), paths, strict=True):
            figure.savefig(path, format="svg", metadata={"Date": None})
    return paths


def _hours(records: Sequence[dict[str, Any]]) -> list[int]:
    return [record["hour"] for record in records]


def _finish(axes: Any) -> None:
    axes.set_xlabel("hour")
    axes.legend(frameon=False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
