"""AUC and log loss, over all samples and by how often their values were seen in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DECILES = 10


def auc(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the probability that a click scores above a non-click; a tie counts half.

    Parameters
    ----------
    labels : float or int (n,)
        1 for a click, 0 for none.
    scores : float (n,)
        The higher, the likelier a click.

    Raises
    ------
    ValueError
        The labels are all alike: there is no pair to compare.

    Notes
    -----
    The Mann-Whitney statistic: the sum of the clicks' ranks, less what it is at least. Tied scores
    share the mean of their ranks.

    Examples
    --------
    >>> auc(np.array([1, 0, 1, 0]), np.array([0.9, 0.5, 0.5, 0.1]))
    0.875
    """
    clicked = labels > 0
    n_clicks = int(np.count_nonzero(clicked))
    n_others = len(labels) - n_clicks
    if n_clicks == 0 or n_others == 0:
        raise ValueError(f"AUC needs clicks and others, but got {n_clicks} and {n_others}")
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(ties) - (ties - 1) / 2
    above = rank[place[clicked]].sum() - n_clicks * (n_clicks + 1) / 2
    return float(above / (n_clicks * n_others))


def log_loss(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """Return the mean of -log of the probability that was given to what happened.

    Parameters
    ----------
    labels : float or int (n,)
        1 for a click, 0 for none.
    logits : float (n,)
        log(p / (1 - p)) of the predicted probability p of a click.

    Examples
    --------
    >>> round(log_loss(np.array([1, 0]), np.array([0.0, 0.0])), 6)
    0.693147
    """
    logits = logits.astype(np.float64)
    # -log p = log(1 + exp(-logit)), and no exponential of a large number is taken
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def by_frequency(
    labels: NDArray[Any], logits: NDArray[Any], frequency: NDArray[Any]
) -> list[dict[str, Any]]:
    """Return AUC and log loss of each tenth of the samples, the rarest first.

    Parameters
    ----------
    labels, logits : (n,)
        As for `auc` and `log_loss`.
    frequency : float (n,)
        How often the values of a sample were seen in training.

    Returns
    -------
    deciles : list of dict
        `samples`, their largest `frequency`, `auc` and `log_loss` of each; `auc` is None of a tenth
        that has clicks only, or none.

    Raises
    ------
    ValueError
        There are fewer than ten samples.
    """
    if len(labels) < DECILES:
        raise ValueError(f"{len(labels)} samples are too few for {DECILES} parts")
    order = np.argsort(frequency, kind="stable")
    found = []
    for chosen in np.array_split(order, DECILES):
        here = labels[chosen]
        found.append(
            {
                "samples": len(chosen),
                "frequency": float(frequency[chosen].max()),
                "auc": auc(here, logits[chosen]) if here.min() != here.max() else None,
                "log_loss": log_loss(here, logits[chosen]),
            }
        )
    return found
