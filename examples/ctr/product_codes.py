"""Several codes a row: each table as parts of its turned columns, clustered one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saec_gpu as saec

from .arms import table_bytes
from .data import ClickData
from .loss_metric import Errors, metrics_of, root
from .model import COLUMNS, DeepFM, table_name, tables, with_tables

TURN_BYTES = 4 * COLUMNS**2  # float32, of the matrix that turns decoded rows back


def in_product_codes(
    model: DeepFM,
    data: ClickData,
    parts: int,
    ratio: float,
    out: Path,
    errors: Errors,
    **asked: Any,
) -> tuple[DeepFM, int]:
    """Return the model with tables of several codes a row, and the bytes of these.

    Rows are taken to where errors count as asked (`compress_in_metric`) and turned to their
    principal axes. These are shared out so that the parts vary alike; each part is a field of the
    artifact, so one budget decides how many codewords each gets.

    Parameters
    ----------
    parts : int
        Of each table, from 2 to COLUMNS.
    ratio : float
        How many times smaller the tables shall be, counted bytes and turning matrices together.
    out : Path
        Where the artifact of the parts goes; what is there is replaced.
    errors : {"rows", "sensitivity", "metric"}
        What is made small, see `metrics_of`.
    **asked
        Further arguments of `compress`.

    Returns
    -------
    changed : DeepFM
    n_bytes : int

    Notes
    -----
    The parametric solution of Ge, He, Ke, Sun, Optimized product quantization, IEEE TPAMI 36 (4),
    2014, doi 10.1109/TPAMI.2013.240: principal axes, each given to the part with the least product
    of variances among those with room.
    """
    metrics = metrics_of(model, data.train, errors)
    counts = {table_name(field): seen for field, seen in data.counts().items()}
    turns, columns, fields, weights = {}, {}, {}, {}
    for name, rows in tables(model).items():
        bend = root(metrics[name])
        variances, axes = np.linalg.eigh(np.cov((rows @ bend).T, aweights=counts[name]))
        turns[name] = bend @ axes
        columns[name] = shared_out(variances, parts)
        for part, chosen in enumerate(columns[name]):
            fields[f"{name}/{part}"] = (rows @ turns[name][:, chosen]).astype(np.float32)
            weights[f"{name}/{part}"] = counts[name]
    of_turns = len(turns) * TURN_BYTES
    artifact = saec.compress(
        fields, weights=weights, budget=int(table_bytes(model) / ratio) - of_turns,
        out=out, overwrite=True, **asked,
    )  # fmt: skip
    decoded = {}
    for name, rows in tables(model).items():
        turned = np.empty(rows.shape)
        for part, chosen in enumerate(columns[name]):
            turned[:, chosen] = artifact[f"{name}/{part}"].lookup(np.arange(len(rows)))
        decoded[name] = np.linalg.solve(turns[name].T, turned.T).T.astype(np.float32)
    return with_tables(model, decoded), artifact.counted_bytes + of_turns


def shared_out(variances: NDArray[np.float64], parts: int) -> list[list[int]]:
    """Return which axes go to which part, so that the products of their variances are alike.

    Parameters
    ----------
    variances : float64 (n,)
        Those of fields with few rows may be 0, or below by rounding.
    """
    logs = np.log(np.maximum(variances, np.finfo(np.float64).tiny))
    logs -= logs.min()
    room = -(-len(variances) // parts)
    chosen: list[list[int]] = [[] for _ in range(parts)]
    for axis in np.argsort(-variances, kind="stable"):
        open_parts = [part for part in chosen if len(part) < room]
        min(open_parts, key=lambda part: logs[part].sum()).append(int(axis))
    return chosen
