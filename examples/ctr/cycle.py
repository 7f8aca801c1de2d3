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

RATIO_KEPT = 0.9  # of what was asked; below it, tables are clustered anew


def hours(
    n: int, *, seed: int, clicks: int, ratio: float, folder: Path, anew: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield what each of n hours costs and reaches, when it is served the hour after.

    The full model goes on training from hour to hour. The compressed one is made of it each hour:
    the last artifact, codewords trained, is updated to its tables (see `cluster`); the
    codewords and dense layers are then trained on that hour's clicks once more, codes frozen.

    Parameters
    ----------
    ratio : float
        How many times smaller the tables shall be, counted bytes.
    folder : Path
        The artifact of the current hour lies there, as `hour.saec`.
    anew : bool
        Cluster anew each hour, not in the first alone.

    Yields
    ------
    record : dict
        `hour` from 1; `full`, `post` and `retrained`, each AUC and log loss on the next hour's
        clicks; `rows` and `codewords` of all fields; `table_bytes` and `counted_bytes`; `seconds`
        of `train`, `cluster` and `retrain`; after an update `churn`, the share of all rows that
        stayed whose code changed.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, optimizer = None, None
    stream = islice(click_hours(seed, clicks=clicks), n + 1)
    seen: dict[str, NDArray[np.float32]] = {}
    place, last = folder / "hour.saec", None
    for hour, ((vocabularies, now), (_, later)) in enumerate(pairwise(stream), 1):
        begun = time.perf_counter()
        if model is None or optimizer is None:
            model = DeepFM(vocabularies)
            optimizer = adam(model, HOURLY.learning_rate)
        grow(model, optimizer, vocabularies)
        run_epoch(model, now, optimizer, HOURLY, generator)
        trained = time.perf_counter()
        seen = added(seen, lookup_counts(now, vocabularies))
        artifact = cluster(model, seen, ratio, place, None if anew else last)
        clustered = time.perf_counter()
        small = compress_module(copy.deepcopy(model), artifact)
        served = known(later, vocabularies)
        post = measure(small, served)
        before_retraining = time.perf_counter()
        optimizer_of_small = adam(small, HOURLY_RETRAINING.learning_rate)
        run_epoch(small, now, optimizer_of_small, HOURLY_RETRAINING, generator)
        written_back(small, artifact, place)
        last = saec.load(place)
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
            "churn": churn(artifact),
            "seconds": {
                "train": trained - begun,
                "cluster": clustered - trained,
                "retrain": retrained - before_retraining,
            },
        }


def cluster(
    model: DeepFM,
    counts: Mapping[str, NDArray[np.float32]],
    ratio: float,
    out: Path,
    last: Artifact | None,
) -> Artifact:
    """Return the artifact of the model's tables; it replaces the one at `out`.

    The last one is updated, unless the codes have become too long by that: they are short where
    codewords are in order of use, and these keep their numbers while uses change.
    """
    weights = {table_name(field): seen for field, seen in counts.items()}
    if last is not None:
        updated = saec.update(last, tables(model), weights=weights, out=out, overwrite=True)
        if updated.ratio >= RATIO_KEPT * ratio:
            return updated
    return saec.compress(tables(model), weights=weights, ratio=ratio, out=out, overwrite=True)


def churn(artifact: Artifact) -> float | None:
    """Return the share of rows whose code an update changed, of all that stayed."""
    changed = stayed = 0
    for name in artifact:
        record = artifact[name].record
        if record["rule"] == "margin":
            changed += record["codes_changed"]
            stayed += artifact[name].n_rows - record["rows_added"]
    return changed / stayed if stayed else None


def added(
    counts: Mapping[str, NDArray[np.float32]], more: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Return the sums of counts (rows,) by field, where the later ones may have more rows."""
    sums = {field: seen.copy() for field, seen in more.items()}
    for field, seen in counts.items():
        sums[field][: len(seen)] += seen
    return sums
