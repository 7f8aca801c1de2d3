"""Clustering in the metric of the loss: errors count by what they change in the predictions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import saec_gpu as saec
from saec_gpu.artifact import Artifact
from saec_gpu.nn import CompressedEmbedding, compress_module

from .data import ClickData, Clicks
from .model import COLUMNS, DeepFM, table_name, tables
from .runs import written_back
from .training import PREDICT_ROWS, sensitivities

Errors = Literal["rows", "sensitivity", "metric"]

LEAST_SHARE = 1e-4  # of the mean eigenvalue, added to all: a metric that ignores nothing


def metrics_of(model: DeepFM, clicks: Clicks, errors: Errors) -> dict[str, NDArray[np.float64]]:
    """Return how errors of each table's rows count, as quadratic forms (COLUMNS, COLUMNS) by name.

    "rows": squared errors, of all tables alike; "sensitivity": these times the table's sensitivity;
    "metric": by what they change in the loss.
    """
    if errors == "metric":
        return loss_metrics(model, clicks)
    scales = dict.fromkeys(tables(model), 1.0)
    if errors == "sensitivity":
        scales = sensitivities(model, clicks)
    return {name: scale * np.eye(COLUMNS) for name, scale in scales.items()}


def loss_metrics(model: DeepFM, clicks: Clicks) -> dict[str, NDArray[np.float64]]:
    """Return how much errors of each table's rows raise the log loss, as a quadratic form.

    An error e of the row that a sample looks up changes the mean log loss by eᵀMe / 2, to second
    order and with the model's curvature left out; M is the mean of p(1 - p)·ggᵀ over samples, with
    p the predicted probability and g the gradient of its logit in the row.

    Returns
    -------
    metrics : dict of str to float64 (COLUMNS, COLUMNS)
        By name of the table.

    Notes
    -----
    The Gauss-Newton matrix: Martens, New insights and perspectives on the natural gradient method,
    JMLR 21 (146), 2020.
    """
    model.eval()
    sums = np.zeros((len(model.embedding), COLUMNS, COLUMNS))
    for ids in torch.split(torch.from_numpy(clicks.ids), PREDICT_ROWS):
        rows = model.rows(ids).detach().requires_grad_()
        logits = model.logits(rows)
        (gradients,) = torch.autograd.grad(logits.sum(), rows)
        chances = torch.sigmoid(logits.detach())
        scaled = gradients * (chances * (1 - chances))[:, None, None]
        sums += torch.einsum("nfi,nfj->fij", scaled, gradients).double().numpy()
    return {
        table_name(field): total / len(clicks)
        for field, total in zip(model.embedding, sums, strict=True)
    }


def compress_in_metric(model: DeepFM, data: ClickData, out: Path, **asked: Any) -> Artifact:
    """Return the artifact of the model's tables, clustered in the metrics of the training part.

    Rows x are clustered as M^½·x, where errors of all fields compare with each other; the codewords
    are then taken back. So the artifact holds codewords of the rows as they are.

    Parameters
    ----------
    out : Path
        Where the artifact goes; what is there is replaced.
    **asked
        Further arguments of `compress`.
    """
    roots = {name: root(metric) for name, metric in loss_metrics(model, data.train).items()}
    artifact = saec.compress(
        {name: (rows @ roots[name]).astype(np.float32) for name, rows in tables(model).items()},
        weights={table_name(field): seen for field, seen in data.counts().items()},
        out=out, overwrite=True, **asked,
    )  # fmt: skip
    small = compress_module(copy.deepcopy(model), artifact)
    with torch.no_grad():
        for field, table in small.embedding.items():
            assert isinstance(table, CompressedEmbedding)  # all tables are in the artifact
            bent = table.codebook.numpy().astype(np.float64)
            table.codebook.copy_(
                torch.from_numpy(np.linalg.solve(roots[table_name(field)], bent.T).T)
            )
    written_back(small, artifact, out)
    return saec.load(out)


def root(metric: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric square root of a metric that has been made positive."""
    values, vectors = np.linalg.eigh(
        metric + LEAST_SHARE * np.eye(COLUMNS) * np.trace(metric) / COLUMNS
    )
    root: NDArray[np.float64] = (vectors * np.sqrt(values)) @ vectors.T
    return root
