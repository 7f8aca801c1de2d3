"""What compression costs at several ratios: all arms of some trained runs, seed by seed."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saec_gpu as saec
from saec_gpu.artifact import Artifact
from saec_gpu.nn import compress_module

from .arms import (
    decoded,
    in_random_codes,
    judged,
    mean_frequency,
    most_frequent,
    rounded,
    table_bytes,
)
from .data import ClickData
from .loss_metric import Errors, compress_in_metric
from .model import DeepFM
from .product_codes import in_product_codes
from .runs import COUNTS, MODEL, load_run, written_back
from .small_models import hashed, quotient_remainder
from .training import Training, fit, sensitivities

ROUNDED_BITS = (8, 4, 2)  # of the arms that round rows
DIMS = (4, 1)  # of the arms with shorter vectors: 3.4 and 8.5 times fewer bytes
FURTHER_ARMS = ("coreset", "random", "dims", "hashing", "quotient-remainder")
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
    also : sequence of str
        Further arms: "coreset", clustered with `fast`; "random", codes drawn at random in the same
        bytes, retrained; and trained from scratch "dims", shorter vectors; at the same bytes
        "hashing", hashed values, and "quotient-remainder", sums of two rows.
    parts : int
        Codes of a row in an arm of product codes; without that arm below 2.
    fast : bool, optional
        Whether coresets are clustered, of all arms but "coreset".
    compress : mapping
        Further arguments of `compress`.
    errors : str
        What is made small, see `compressed`.
    """

    ratios: Sequence[float]
    retrain_rates: Sequence[float]
    retrain_epochs: int
    also: Sequence[str]
    parts: int
    fast: bool | None
    compress: Mapping[str, Any]
    errors: Errors


def study(run: Path, choices: Choices) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and figures of each arm of a trained run, full tables first.

    Yields
    ------
    name : str
        "full", "int8 rows", "int4 rows", "int2 rows", "dim 4" and "dim 1"; and of each ratio
        "post 27.7x", "coreset 27.7x", "retrained 27.7x", "random codes 27.7x", "product 27.7x",
        "most frequent 27.7x", "hashing 27.7x", "quotient-remainder 27.7x".
    figures : dict
        As of `judged`; of "post" and "coreset" also the `seconds` of clustering and how many rows
        were clustered, `clustered_rows`; of what is retrained its `learning_rate`.
    """
    studied = _StudiedRun(run, choices)
    yield from studied.arms()
    for ratio in choices.ratios:
        with tempfile.TemporaryDirectory(prefix="saec-study-") as folder:
            for arm, figures in studied.arms_at(ratio, Path(folder)):
                yield f"{arm} {ratio:g}x", figures


class _StudiedRun:
    """A trained run, and the arms that are made of it."""

    def __init__(self, run: Path, choices: Choices) -> None:
        self.run, self.choices = run, choices
        self.model, self.data, noted = load_run(run)
        self.seed: int = noted["seed"]
        self.training = Training(**noted["training"])
        self.frequency = mean_frequency(self.data.test, self.data.counts())

    def arms(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and figures of the arms that no ratio is asked of."""
        yield "full", self._figures(self.model, table_bytes(self.model))
        for bits in ROUNDED_BITS:
            yield f"int{bits} rows", self._figures(*rounded(self.model, bits))
        if "dims" in self.choices.also:
            for dim in DIMS:
                yield f"dim {dim}", self._from_scratch(partial(DeepFM, self.data.vocabularies, dim))

    def arms_at(self, ratio: float, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and figures of the arms at a ratio; artifacts go to the folder."""
        model, data, choices = self.model, self.data, self.choices
        artifact, found = self._clustered(ratio, choices.fast, folder / "post.saec")
        yield "post", found
        n_bytes = artifact.counted_bytes
        if "coreset" in choices.also:
            yield "coreset", self._clustered(ratio, True, folder / "coreset.saec")[1]
        if choices.retrain_rates:
            small, rate = self._retrained(compress_module(copy.deepcopy(model), artifact))
            written_back(small, artifact, folder / "retrained.saec")
            yield "retrained", self._figures(small, n_bytes) | {"learning_rate": rate}
        if "random" in choices.also:
            small, rate = self._retrained(in_random_codes(model, data, artifact, self.seed))
            yield "random codes", self._figures(small, n_bytes) | {"learning_rate": rate}
        if choices.parts > 1:
            changed, its_bytes = in_product_codes(
                model, data, choices.parts, ratio, folder / "product.saec", choices.errors,
                fast=choices.fast, threads=torch.get_num_threads(), **choices.compress,
            )  # fmt: skip
            yield "product", self._figures(changed, its_bytes)
        yield "most frequent", self._figures(*most_frequent(model, data, n_bytes))
        if "hashing" in choices.also:
            fewer = hashed(data, n_bytes)
            yield "hashing", self._from_scratch(partial(DeepFM, fewer.vocabularies), fewer)
        if "quotient-remainder" in choices.also:
            new = partial(quotient_remainder, data, n_bytes)
            yield "quotient-remainder", self._from_scratch(new)

    def _figures(
        self, model: DeepFM, n_bytes: int, data: ClickData | None = None
    ) -> dict[str, Any]:
        """Return the figures of an arm, on clicks of its own where it has them."""
        return judged(model, data or self.data, n_bytes, self.frequency)

    def _clustered(
        self, ratio: float, fast: bool | None, out: Path
    ) -> tuple[Artifact, dict[str, Any]]:
        """Return an artifact and the figures of the model with its rows."""
        begun = time.perf_counter()
        artifact = compressed(
            self.run, self.model, self.data, out, self.choices.errors, ratio=ratio, fast=fast,
            threads=torch.get_num_threads(), **self.choices.compress,
        )  # fmt: skip
        taken = {
            "seconds": time.perf_counter() - begun,
            "clustered_rows": clustered_rows(artifact),
        }
        return artifact, self._figures(
            decoded(self.model, artifact), artifact.counted_bytes
        ) | taken

    def _retrained(self, small: DeepFM) -> tuple[DeepFM, float]:
        """Return a compressed model, retrained, and the learning rate that was best."""
        how = dataclasses.replace(self.training, epochs=self.choices.retrain_epochs)
        return retrained(small, self.data, how, self.choices.retrain_rates, self.seed)

    def _from_scratch(
        self, new: Callable[[], DeepFM], data: ClickData | None = None
    ) -> dict[str, Any]:
        """Return the figures of a new model, trained as the full one was."""
        torch.manual_seed(self.seed)
        model = new()
        fit(model, data or self.data, self.training, self.seed, lambda _: None)
        return self._figures(model, table_bytes(model), data)


def clustered_rows(artifact: Artifact) -> int:
    """Return how many rows were clustered: all of a field, or its coreset."""
    return sum(
        artifact[name].record.get("clustered_rows", artifact[name].n_rows) for name in artifact
    )


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
    small: DeepFM, data: ClickData, how: Training, rates: Iterable[float], seed: int
) -> tuple[DeepFM, float]:
    """Return a compressed model, retrained at the rate that validation prefers, and that rate."""
    best: tuple[DeepFM, float] | None = None
    best_auc = -np.inf
    for rate in rates:
        trained = copy.deepcopy(small)
        history = fit(
            trained, data, dataclasses.replace(how, learning_rate=rate), seed, lambda _: None
        )
        reached = max(epoch["valid_auc"] for epoch in history)
        if reached > best_auc:
            best, best_auc = (trained, rate), reached
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
