"""What compression costs at several ratios: all arms of some trained runs, seed by seed."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import saec_gpu as saec
from saec_gpu.artifact import Artifact
from saec_gpu.nn import compress_module

from .arms import decoded, hashed, judged, mean_frequency, most_frequent, rounded, table_bytes
from .data import ClickData
from .loss_metric import compress_in_metric
from .model import DeepFM
from .product_codes import in_product_codes
from .runs import COUNTS, MODEL, load_run, written_back
from .training import Training, fit, sensitivities

Errors = Literal["rows", "sensitivity", "metric"]
ROUNDED_BITS = (8, 4)  # of the arms that round rows
QUALITIES = ("auc", "log_loss")


@dataclass(frozen=True)
class Choices:
    """What a study does at each ratio.

    Attributes
    ----------
    ratios : sequence of float
        How many times smaller the tables shall be, counted bytes.
    retrain_rates : sequence of float
        Learning rates of retraining; the best by AUC on the validation part is taken. Without any,
        nothing is retrained.
    retrain_epochs : int
        At most.
    hashing : bool
        Also train tables of hashed values at the same bytes.
    parts : int
        Codes of a row in an arm of product codes; without that arm below 2.
    compress : mapping
        Further arguments of `compress`.
    errors : str
        What is made small, see `compressed`.
    """

    ratios: Sequence[float]
    retrain_rates: Sequence[float]
    retrain_epochs: int
    hashing: bool
    parts: int
    compress: Mapping[str, Any]
    errors: Errors


def study(run: Path, choices: Choices) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and figures of each arm of a trained run, full tables first.

    Yields
    ------
    name : str
        "full", "int8 rows", "int4 rows"; and of each ratio "post 27.7x", "retrained 27.7x",
        "product 27.7x", "most frequent 27.7x", "hashing 27.7x".
    figures : dict
        As of `judged`; of "post" also the `seconds` of clustering, of "retrained" its
        `learning_rate`.
    """
    model, data, noted = load_run(run)
    frequency = mean_frequency(data.test, data.counts())

    def figures(arm: DeepFM, n_bytes: int, its_data: ClickData = data) -> dict[str, Any]:
        return judged(arm, its_data, n_bytes, frequency)

    yield "full", figures(model, table_bytes(model))
    for bits in ROUNDED_BITS:
        yield f"int{bits} rows", figures(*rounded(model, bits))
    training = Training(**noted["training"])
    for ratio in choices.ratios:
        with tempfile.TemporaryDirectory(prefix="saec-study-") as folder:
            begun = time.perf_counter()
            artifact = compressed(
                run, model, data, Path(folder) / "post.saec", choices.errors, ratio=ratio,
                threads=torch.get_num_threads(), **choices.compress,
            )  # fmt: skip
            seconds = time.perf_counter() - begun
            n_bytes = artifact.counted_bytes
            post = figures(decoded(model, artifact), n_bytes)
            yield f"post {ratio:g}x", post | {"seconds": seconds}
            if choices.retrain_rates:
                how = dataclasses.replace(training, epochs=choices.retrain_epochs)
                small, rate = retrained(
                    model, artifact, data, how, choices.retrain_rates, noted["seed"]
                )
                written_back(small, artifact, Path(folder) / "retrained.saec")
                yield f"retrained {ratio:g}x", figures(small, n_bytes) | {"learning_rate": rate}
            if choices.parts > 1:
                product = in_product_codes(
                    model, data, choices.parts, ratio, Path(folder) / "product.saec",
                    threads=torch.get_num_threads(), **choices.compress,
                )  # fmt: skip
                yield f"product {ratio:g}x", figures(*product)
        yield f"most frequent {ratio:g}x", figures(*most_frequent(model, data, n_bytes))
        if choices.hashing:
            fewer = hashed(data, n_bytes)
            torch.manual_seed(noted["seed"])
            small = DeepFM(fewer.vocabularies)
            fit(small, fewer, training, noted["seed"], lambda _: None)
            yield f"hashing {ratio:g}x", figures(small, table_bytes(small), fewer)


def compressed(
    run: Path, model: DeepFM, data: ClickData, out: Path, errors: Errors, **asked: Any
) -> Artifact:
    """Return the artifact of a run's tables, written to `out`, in place of what is there.

    Parameters
    ----------
    errors : {"rows", "sensitivity", "metric"}
        Squared errors of rows; these times each field's sensitivity, when bytes are split; or
        errors in the metric of the loss. The two latter are measured on the training part.
    **asked
        Further arguments of `compress`.
    """
    if errors == "metric":
        return compress_in_metric(model, data, out, **asked)
    return saec.compress(
        run / MODEL, weights=run / COUNTS, fields="embedding.*", out=out, overwrite=True,
        sensitivity=sensitivities(model, data.train) if errors == "sensitivity" else None, **asked,
    )  # fmt: skip


def retrained(
    model: DeepFM,
    artifact: Artifact,
    data: ClickData,
    how: Training,
    rates: Iterable[float],
    seed: int,
) -> tuple[DeepFM, float]:
    """Return the compressed model, retrained at the rate that validation prefers, and that rate."""
    best: tuple[DeepFM, float] | None = None
    best_auc = -np.inf
    for rate in rates:
        small = compress_module(copy.deepcopy(model), artifact)
        history = fit(
            small, data, dataclasses.replace(how, learning_rate=rate), seed, lambda _: None
        )
        reached = max(epoch["valid_auc"] for epoch in history)
        if reached > best_auc:
            best, best_auc = (small, rate), reached
    if best is None:
        raise ValueError("retraining needs a learning rate; give one at least")
    return best


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return means over runs, and means and spreads of their paired differences to full tables.

    Parameters
    ----------
    runs : sequence of mapping
        Of each run, the figures of its arms by name, "full" among them.

    Returns
    -------
    found : dict of dict
        For each arm that all runs have: `ratio`; of `auc` and `log_loss` on the test part the mean,
        the mean of the `…_difference` and its `…_difference_spread`, the standard deviation (0 of
        one run); `auc_difference_deciles`, by frequency, None where an arm has no AUC.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        if not all(name in arms for arms in runs):
            continue
        n_bytes = float(np.mean([arms[name]["bytes"] for arms in runs]))
        found[name] = {"ratio": runs[0]["full"]["bytes"] / n_bytes}
        for key in QUALITIES:
            reached = np.array([arms[name]["test"][key] for arms in runs])
            lost = reached - [arms["full"]["test"][key] for arms in runs]
            found[name] |= {
                key: float(reached.mean()),
                f"{key}_difference": float(lost.mean()),
                f"{key}_difference_spread": float(lost.std(ddof=1)) if len(runs) > 1 else 0.0,
            }
        found[name]["auc_difference_deciles"] = [
            _mean_difference(
                [arms[name]["test_deciles"][decile]["auc"] for arms in runs],
                [full["auc"] for full in fulls],
            )
            for decile, fulls in enumerate(
                zip(*(arms["full"]["test_deciles"] for arms in runs), strict=True)
            )
        ]
    return found


def _mean_difference(
    reached: Sequence[float | None], before: Sequence[float | None]
) -> float | None:
    pairs = list(zip(reached, before, strict=True))
    lost = [after - full for after, full in pairs if after is not None and full is not None]
    return float(np.mean(lost)) if len(lost) == len(pairs) else None
