"""What each command does: it prints figures, and keeps them as JSON in the run's folder."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from saec_gpu.bench.records import SCHEMA, append_record, circumstances, read_records

import saec_gpu as saec
from saec_gpu.nn import compress_module

from . import study_figure
from .arms import decoded, judged, mean_frequency, rounded, table_bytes
from .cycle import hours
from .data import ClickData
from .figures import draw
from .model import DeepFM
from .runs import (
    ARTIFACT,
    COUNTS,
    MODEL,
    RETRAINED,
    RETRAINED_DENSE,
    TRAIN,
    DataChoice,
    load_run,
    load_state,
    read_json,
    save_counts,
    save_state,
    write_json,
    written_back,
)
from .small_models import hashed
from .study import ROUNDED_BITS, Choices, compressed, differences, study
from .training import Training, fit, measure


def train(options: argparse.Namespace) -> None:
    """Train a model on full tables and save it."""
    choice = DataChoice(options.data, options.min_count, options.clicks, options.stream_seed)
    data = choice.load()
    how = Training(options.learning_rate, options.l2, options.epochs, options.batch)
    begun = time.perf_counter()
    torch.manual_seed(options.seed)
    model = DeepFM(data.vocabularies)
    history = fit(model, data, how, options.seed, _print_epoch)
    seconds = time.perf_counter() - begun
    options.run.mkdir(parents=True, exist_ok=True)
    save_state(options.run / MODEL, model)
    save_counts(options.run / COUNTS, data)
    noted = {
        "data": dataclasses.asdict(choice),
        "vocabularies": data.vocabularies,
        "seed": options.seed,
        "training": dataclasses.asdict(how),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "valid": measure(model, data.valid),
        "test": measure(model, data.test),
        "history": history,
    }
    write_json(options.run / TRAIN, noted)
    print(f"test: {_quality(noted['test'])}; {seconds:.0f} s")


def compress(options: argparse.Namespace) -> None:
    """Compress the tables of a trained model."""
    begun = time.perf_counter()
    if options.artifact is None:
        shutil.rmtree(options.run / RETRAINED, ignore_errors=True)  # of the artifact before
    model, data, _ = load_run(options.run)
    artifact = compressed(
        options.run, model, data, _artifact(options), options.errors,
        ratio=options.ratio, budget=options.budget, codewords=options.codewords,
        codewords_dtype=options.codewords_dtype, fast=options.fast, seed=options.seed,
        threads=options.threads,
    )  # fmt: skip
    found = {
        "seconds": time.perf_counter() - begun,
        "table_bytes": artifact.table_bytes,
        "counted_bytes": artifact.counted_bytes,
        "rows": sum(artifact[name].n_rows for name in artifact),
        "codewords": sum(artifact[name].n_codewords for name in artifact),
        "parameters": artifact.manifest["parameters"],
    }
    write_json(options.run / "compress.json", found)
    print(f"{_artifact(options)}: {artifact.ratio:.1f} times smaller; {found['seconds']:.1f} s")


def retrain(options: argparse.Namespace) -> None:
    """Train codewords and dense layers on, codes frozen."""
    model, data, noted = load_run(options.run)
    artifact = saec.load(_artifact(options))
    small = compress_module(model, artifact)
    how = dataclasses.replace(
        Training(**noted["training"]),
        learning_rate=options.learning_rate,
        epochs=options.epochs,
    )
    begun = time.perf_counter()
    history = fit(small, data, how, noted["seed"], _print_epoch)
    save_state(options.run / RETRAINED_DENSE, small)
    written_back(small, artifact, options.run / RETRAINED)
    found: dict[str, Any] = {
        "training": dataclasses.asdict(how),
        "seconds": time.perf_counter() - begun,
        "valid": measure(small, data.valid),
        "test": measure(small, data.test),
        "history": history,
    }
    write_json(options.run / "retrain.json", found)
    print(f"test: {_quality(found['test'])}; {found['seconds']:.0f} s")


def evaluate(options: argparse.Namespace) -> None:
    """Measure all arms on validation and test clicks.

    Full tables, rows in few bits, and of what there is: the artifact with the dense layers
    as they were, and retrained. Hashing to the artifact's bytes is trained from scratch.
    """
    model, data, noted = load_run(options.run)
    frequency = mean_frequency(data.test, data.counts())
    arms = {}
    for name, arm, its_data, n_bytes in _arms(options, model, data, noted):
        arms[name] = judged(arm, its_data, n_bytes, frequency)
        print(
            f"{name:10} {arms['full']['bytes'] / n_bytes:6.1f}x  "
            f"validation: {_quality(arms[name]['valid'])}  test: {_quality(arms[name]['test'])}",
            flush=True,
        )
    write_json(options.json or options.run / "evaluate.json", {"seed": noted["seed"], "arms": arms})


def _arms(
    options: argparse.Namespace, model: DeepFM, data: ClickData, noted: dict[str, Any]
) -> Iterator[tuple[str, DeepFM, ClickData, int]]:
    """Yield name, model, clicks and bytes of the tables of each arm, full tables first."""
    yield "full", model, data, table_bytes(model)
    for bits in ROUNDED_BITS:
        few, n_bytes = rounded(model, bits)
        yield f"int{bits} rows", few, data, n_bytes
    if options.artifact is None and not _artifact(options).exists():
        return
    artifact = saec.load(_artifact(options))
    yield "post", decoded(model, artifact), data, artifact.counted_bytes
    if options.artifact is None and (options.run / RETRAINED).exists():
        retrained = saec.load(options.run / RETRAINED)
        small = compress_module(DeepFM(data.vocabularies), retrained)
        load_state(options.run / RETRAINED_DENSE, small)
        yield "retrained", small, data, retrained.counted_bytes
    if options.hashing:
        fewer = hashed(data, artifact.counted_bytes)
        torch.manual_seed(noted["seed"])
        small = DeepFM(fewer.vocabularies)
        fit(small, fewer, Training(**noted["training"]), noted["seed"], _print_epoch)
        yield "hashing", small, fewer, table_bytes(small)


def compare(options: argparse.Namespace) -> None:
    """Print the arms of several seeds: mean, and mean and spread of differences to full tables."""
    runs = [read_json(path)["arms"] for path in options.results]
    found = differences(runs)
    _print_differences(found)
    if options.json is not None:
        write_json(options.json, found)


def study_runs(options: argparse.Namespace) -> None:
    """Judge all arms at several ratios, of trained runs that differ in their seeds alone.

    Prints means of the paired differences to full tables, with their spread.
    """
    made = circumstances()  # now: the checkout may change while this runs
    choices = Choices(
        ratios=options.ratios,
        retrain_rates=options.retrain_rates,
        retrain_epochs=options.retrain_epochs,
        also=options.also,
        parts=options.parts,
        fast=options.fast,
        compress={"codewords_dtype": options.codewords_dtype},
        errors=options.errors,
    )
    noted = [read_json(run / TRAIN) for run in options.runs]
    asked = [(one["data"], one["training"]) for one in noted]
    if any(other != asked[0] for other in asked):
        raise ValueError("the runs differ in more than their seeds; study them one by one")
    results = []
    for run in options.runs:
        arms = {}
        for name, figures in study(run, choices):
            arms[name] = figures
            print(
                f"{run.name}: {name:20} validation: {_quality(figures['valid'])}  "
                f"test: {_quality(figures['test'])}",
                flush=True,
            )
        results.append(arms)
    found = differences(results)
    _print_differences(found)
    if options.append is None:
        return
    record = {
        "schema": SCHEMA,
        "op": "ctr",
        "data": Path(noted[0]["data"]["data"]).name,
        "training": noted[0]["training"],
        "seeds": [one["seed"] for one in noted],
        "training_seconds": [one["seconds"] for one in noted],
        "rows": sum(noted[0]["vocabularies"].values()),
        "choices": dataclasses.asdict(choices),
        "arms": found,
        "runs": [
            {
                name: {key: part for key, part in figures.items() if key != "test_deciles"}
                for name, figures in arms.items()
            }
            for arms in results
        ],
        **made,
        "versions": made["versions"] | {"torch": torch.__version__},
    }
    append_record(options.append, record)


def draw_studies(options: argparse.Namespace) -> None:
    """Draw the latest studies, a panel each: what is lost, how much smaller tables are."""
    records = read_records(options.records)
    study_figure.draw(records, options.out)
    for studied, record in study_figure.latest(records).items():
        print(f"{studied}, seeds {record['seeds']}")
        _print_differences(record["arms"])


def serve_hours(options: argparse.Namespace) -> None:
    """Run the cycle on the stream, hour by hour, and draw what it cost and saved."""
    options.run.mkdir(parents=True, exist_ok=True)
    records = []
    for record in hours(
        options.hours, seed=options.seed, clicks=options.clicks, ratio=options.ratio,
        folder=options.run, anew=options.anew,
    ):  # fmt: skip
        records.append(record)
        smaller = record["table_bytes"] / record["counted_bytes"]
        changed = "" if record["churn"] is None else f", {record['churn']:.1%} of codes changed"
        print(
            f"hour {record['hour']:2}: AUC {record['full']['auc']:.4f} full, "
            f"{record['post']['auc']:.4f} compressed, {record['retrained']['auc']:.4f} retrained; "
            f"{smaller:.1f} times smaller{changed}; {sum(record['seconds'].values()):.1f} s"
        )
    write_json(
        options.run / "hours.json",
        {
            "seed": options.seed,
            "clicks": options.clicks,
            "ratio": options.ratio,
            "anew": options.anew,
            "hours": records,
        },
    )
    for path in draw(records, options.run):
        print(path)


def _print_differences(found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, row in found.items():
        print(
            f"{name:20} {row['ratio']:6.1f}x  AUC {row['auc']:.4f} "
            f"({row['auc_difference']:+.4f} ± {row['auc_difference_spread']:.4f})  "
            f"log loss {row['log_loss']:.4f} "
            f"({row['log_loss_difference']:+.4f} ± {row['log_loss_difference_spread']:.4f})"
        )


def _artifact(options: argparse.Namespace) -> Path:
    given: Path | None = options.artifact
    return given or Path(options.run) / ARTIFACT


def _print_epoch(epoch: dict[str, Any]) -> None:
    print(
        f"epoch {epoch['epoch']:2}: validation AUC {epoch['valid_auc']:.4f}, "
        f"log loss {epoch['valid_log_loss']:.4f}, rate {epoch['learning_rate']:.0e}, "
        f"{epoch['seconds']:.0f} s",
        flush=True,
    )


def _quality(measured: dict[str, float]) -> str:
    return f"AUC {measured['auc']:.4f}, log loss {measured['log_loss']:.4f}"
