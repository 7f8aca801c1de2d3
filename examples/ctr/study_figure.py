"""What compression costs against how much smaller the tables are: a panel for each study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Okabe and Ito's colours differ for the colour-blind too, and in brightness when printed grey;
# a grey and a brown join them. An arm's name begins with one of these.
COLOURS = {
    "post": "#E69F00",
    "coreset": "#7F4F24",
    "retrained": "#0072B2",
    "random codes": "#999999",
    "product": "#D55E00",
    "most frequent": "#009E73",
    "hashing": "#CC79A7",
    "quotient-remainder": "#F0E442",
    "dim": "#000000",
    "int": "#56B4E9",
}
LABELS = {
    "post": "compressed",
    "coreset": "compressed, coresets clustered",
    "retrained": "compressed, retrained",
    "random codes": "random codes, retrained",
    "product": "product codes",
    "dim": "shorter vectors",
    "int": "rows in 8, 4, 2 bits",
}
PANEL_INCHES = (4.2, 3.6)
MOST_COLUMNS = 2  # of panels
LEGEND_COLUMNS = 3
RATIO_TICKS = (3, 10, 30, 100)
LINEAR_TO = 1e-3  # of AUC; differences beyond are shown on a logarithmic axis
BEYOND = 1.5  # factor from the greatest loss to the end of the axis


def latest(records: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the last record of a study of each data set, L2 and kind of errors, by these."""
    found = {}
    for record in records:
        if record["op"] == "ctr":
            errors = record["choices"].get("errors", "rows")  # the first records knew no other
            l2 = record["training"]["l2"]
            found[f"{record['data']}, L2 {l2:g}, errors of {errors}"] = record
    return found


def series(record: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return what each arm of a study reached, smallest ratio first, by the arm's name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, figures in record["arms"].items():
        for arm in COLOURS:
            if name.startswith(arm):
                found.setdefault(arm, []).append(figures)
    return {arm: sorted(points, key=lambda one: one["ratio"]) for arm, points in found.items()}


def draw(records: Iterable[Mapping[str, Any]], out: Path) -> None:
    """Write an SVG of the latest studies; bars are the spread over seeds.

    Studies of one ratio are left to the table, unless there are no others. Equal records give equal
    bytes with one version of matplotlib.

    Raises
    ------
    ValueError
        There is no record of a study.
    """
    import matplotlib
    from matplotlib.figure import Figure

    found = latest(records)
    curves = {name: one for name, one in found.items() if len(one["choices"]["ratios"]) > 1}
    studies = curves or found
    if not studies:
        raise ValueError("there is no record of a study; make one with `study --append`")
    width, height = PANEL_INCHES
    n_columns = min(len(studies), MOST_COLUMNS)
    n_lines = -(-len(studies) // n_columns)
    with matplotlib.rc_context({"svg.hashsalt": "saec_gpu", "font.size": 9}):
        figure = Figure((width * n_columns, height * n_lines), layout="constrained")
        panels = figure.subplots(n_lines, n_columns, squeeze=False).ravel()
        shown = {}
        for axes, (studied, record) in zip(panels, studies.items(), strict=False):
            worst = LINEAR_TO
            for arm, points in series(record).items():
                losses = [-point["auc_difference"] for point in points]
                worst = max(worst, *losses)
                shown[LABELS.get(arm, arm)] = axes.errorbar(
                    [point["ratio"] for point in points], losses,
                    [point["auc_difference_spread"] for point in points], color=COLOURS[arm],
                    marker="o", markersize=3, linewidth=1.2, capsize=2,
                )  # fmt: skip
            full = record["arms"]["full"]["auc"]
            axes.set_title(f"{studied}\nAUC {full:.4f} with full tables")
            axes.set_xscale("log")
            axes.set_xticks(RATIO_TICKS, [str(ratio) for ratio in RATIO_TICKS])
            axes.minorticks_off()
            axes.set_yscale("symlog", linthresh=LINEAR_TO)
            axes.set_ylim(-LINEAR_TO, worst * BEYOND)
            axes.set_xlabel("times smaller, counted bytes")
            axes.set_ylabel("AUC lost")
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in panels[len(studies) :]:
            axes.set_axis_off()
        figure.legend(
            shown.values(), shown.keys(), loc="outside lower center", ncols=LEGEND_COLUMNS,
            frameon=False,
        )  # fmt: skip
        figure.savefig(out, format="svg", metadata={"Date": None})
