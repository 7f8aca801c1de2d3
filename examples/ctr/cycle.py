"""The cycle: train on, cluster, retrain, serve; each hour, on the clicks of that hour."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import saec_gpu as saec
from saec_gpu.artifact import Artifact
from saec_gpu.nn import compress_module

from .data import lookup_counts
from .model import DeepFM, grow, table_name, tables
from .runs import written_back
from .stream import click_hours, known
from .training import Training, adam, measure, run_epoch

# Chosen by log loss on a stream of another seed: larger batches learn too little of an hour, and
# retraining, whose clicks the tables have learned from already, soon learns them by heart.
HOURLY = Training(l2=5e-4, batch=512)
HOURLY_RETRAINING = Training(learning_rate=1e-4, l2=5e-4, batch=2048)


def hours(
    n: int, *, seed: int, clicks: int, ratio: float, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield what each of n hours costs and reaches, when it is served the hour after.

    The full model goes on training from hour to hour. The compressed one is made of it each hour:
    its tables clustered, the codewords and dense layers then trained on that hour's clicks once
    more, codes frozen.

    Parameters
    ----------
    ratio : float
        How many times smaller the tables shall be, counted bytes.
    folder : Path
        The artifact of the current hour lies there, as `hour.saec`.

    Yields
    ------
    record : dict
        `hour` from 1; `full`, `post` and `retrained`, each AUC and log loss on the next hour's
        clicks; `rows` and `codewords` of all fields; `table_bytes` and `counted_bytes`; `seconds`
        of `train`, `cluster` and `retrain`.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, optimizer = None, None
    stream = islice(click_hours(seed, clicks=clicks), n + 1)
    seen: dict[str, NDArray[np.float32]] = {}
    for hour, ((vocabularies, now), (_, later)) in enumerate(pairwise(stream), 1):
        begun = time.perf_counter()
        if model is None or optimizer is None:
            model = DeepFM(vocabularies)
            optimizer = adam(model, HOURLY.learning_rate)
        grow(model, optimizer, vocabularies)
        run_epoch(model, now, optimizer, HOURLY, generator)
        trained = time.perf_counter()
        seen = added(seen, lookup_counts(now, vocabularies))
        artifact = cluster(model, seen, ratio, folder / "hour.saec")
        clustered = time.perf_counter()
        small = compress_module(copy.deepcopy(model), artifact)
        served = known(later, vocabularies)
        post = measure(small, served)
        before_retraining = time.perf_counter()
        optimizer_of_small = adam(small, HOURLY_RETRAINING.learning_rate)
        run_epoch(small, now, optimizer_of_small, HOURLY_RETRAINING, generator)
        written_back(small, artifact, folder / "hour.saec")
        retrained = time.perf_counter()
        yield {
            "hour": hour,
            "full": measure(model, served),
            "post": post,
            "retrained": measure(small, served),
            "rows": sum(vocabularies.values()),
            "codewords": sum(artifact[name].n_codewords for name in artifact),
            "table_bytes": artifact.table_bytes,
            "counted_bytes": artifact.counted_bytes,
            "seconds": {
                "train": trained - begun,
                "cluster": clustered - trained,
                "retrain": retrained - before_retraining,
            },
        }


def cluster(
    model: DeepFM, counts: Mapping[str, NDArray[np.float32]], ratio: float, out: Path
) -> Artifact:
    """Return the artifact of the model's tables, clustered anew; it replaces the one at `out`."""
    weights = {table_name(field): seen for field, seen in counts.items()}
    return saec.compress(tables(model), weights=weights, ratio=ratio, out=out, overwrite=True)


def added(
    counts: Mapping[str, NDArray[np.float32]], more: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Return the sums of counts (rows,) by field, where the later ones may have more rows."""
    sums = {field: seen.copy() for field, seen in more.items()}
    for field, seen in counts.items():
        sums[field][: len(seen)] += seen
    return sums
