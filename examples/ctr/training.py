"""How a click model is trained, and what it predicts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from saec_gpu.nn import CompressedEmbedding, sensitivity

from .data import ClickData, Clicks
from .metrics import auc, log_loss
from .model import DeepFM

LEAST_GAIN = 3e-4  # of AUC; an epoch that gains less does not count as progress
SLOWER = 0.1  # factor of the learning rate after an epoch without progress
PATIENCE = 2  # epochs without progress in a row, after which training ends
PREDICT_ROWS = 16_384  # samples at a time, for the sake of memory


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes
    ----------
    learning_rate : float
        Of Adam, at first.
    l2 : float
        The loss is mean log loss + l2/2 · the sum of squares of all tables. *All* rows shrink with
        every batch, not only those of the batch: with these alone, the AUC on Criteo's sample is
        0.012 lower.
    epochs : int
        At most.
    batch : int
        Samples a step.
    """

    learning_rate: float = 1e-3
    l2: float = 0.05
    epochs: int = 30
    batch: int = 2048


def fit(
    model: DeepFM,
    data: ClickData,
    how: Training,
    seed: int,
    progress: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Train the model, which ends as it was when its AUC on the validation part was best.

    The learning rate falls after an epoch without progress. What the model is at first counts too:
    training never leaves it worse on the validation part.

    Returns
    -------
    history : list of dict
        Of each epoch, from 0, which is before the first: `learning_rate` it was trained with,
        `valid_auc`, `valid_log_loss` and `seconds` from the beginning.
    """
    begun = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    optimizer = adam(model, how.learning_rate)
    history: list[dict[str, Any]] = []
    best_auc, best_state = -np.inf, dict[str, Any]()
    reached, idle = -np.inf, 0
    for epoch in range(how.epochs + 1):
        if epoch > 0:
            run_epoch(model, data.train, optimizer, how, generator)
        found = measure(model, data.valid)
        history.append(
            {
                "epoch": epoch,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "valid_auc": found["auc"],
                "valid_log_loss": found["log_loss"],
                "seconds": time.perf_counter() - begun,
            }
        )
        progress(history[-1])
        if found["auc"] > best_auc:
            best_auc, best_state = found["auc"], copy.deepcopy(model.state_dict())
        if found["auc"] > reached + LEAST_GAIN:
            reached, idle = found["auc"], 0
        else:
            idle += 1
            if idle == PATIENCE:
                break
            optimizer.param_groups[0]["lr"] *= SLOWER
    model.load_state_dict(best_state)
    return history


def adam(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer of all that the model trains."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)


def run_epoch(
    model: DeepFM,
    clicks: Clicks,
    optimizer: torch.optim.Optimizer,
    how: Training,
    generator: torch.Generator,
) -> None:
    """Train on every sample once, in random order."""
    ids, labels = torch.from_numpy(clicks.ids), torch.from_numpy(clicks.labels)
    shrinking = [(weight, how.l2 * rows) for weight, rows in rows_of_weights(model)]
    model.train()
    order = torch.randperm(len(clicks), generator=generator)
    for chosen in torch.split(order, how.batch):
        loss = functional.binary_cross_entropy_with_logits(model(ids[chosen]), labels[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for weight, factor in shrinking:
                assert weight.grad is not None  # of the loss, on which every table has a part
                weight.grad.addcmul_(weight, factor)
        optimizer.step()


def rows_of_weights(model: DeepFM) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights of every table and how many rows each of theirs stands for, (k, 1).

    That is 1 in a table, and in a codebook the number of rows with that code: so the sum of squares
    over all rows, and its gradient, are the same before and after compression.
    """
    for table in model.embedding.modules():
        if isinstance(table, nn.Embedding):
            yield table.weight, torch.ones(1, 1)
        elif isinstance(table, CompressedEmbedding):
            of_codes = torch.bincount(
                table.codes_of(torch.arange(table.num_embeddings)), minlength=len(table.codebook)
            )
            yield table.codebook, of_codes.float().unsqueeze(1)


def predict(model: DeepFM, clicks: Clicks) -> NDArray[np.float32]:
    """Return the logits of some samples, float32 (n,)."""
    model.eval()
    with torch.inference_mode():
        parts = [model(ids) for ids in torch.split(torch.from_numpy(clicks.ids), PREDICT_ROWS)]
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def measure(model: DeepFM, clicks: Clicks) -> dict[str, float]:
    """Return `auc` and `log_loss` of the model on some samples."""
    logits = predict(model, clicks)
    return {"auc": auc(clicks.labels, logits), "log_loss": log_loss(clicks.labels, logits)}


def sensitivities(model: DeepFM, clicks: Clicks) -> dict[str, float]:
    """Return how much the log loss of some samples depends on each table, by name."""

    def total(model: nn.Module, rows: slice) -> Tensor:
        labels = torch.from_numpy(clicks.labels[rows])
        logits = model(torch.from_numpy(clicks.ids[rows]))
        # the sum, so that batches need not be of one size
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")

    model.eval()
    starts = range(0, len(clicks), PREDICT_ROWS)
    return sensitivity(model, (slice(start, start + PREDICT_ROWS) for start in starts), total)
