"""The click model of examples/ctr: its measures, its data, and every command on a tiny stream."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saec_gpu.bench.records import read_records
from safetensors.numpy import load_file

import saec_gpu as saec
from examples.ctr.__main__ import main
from examples.ctr.arms import (
    decoded,
    in_few_bits,
    in_random_codes,
    means_of_codes,
    most_frequent,
    table_bytes,
)
from examples.ctr.data import (
    CRITEO_FIELDS,
    ClickData,
    Clicks,
    bucket,
    load_criteo,
    load_npz,
    lookup_counts,
)
from examples.ctr.loss_metric import Errors, compress_in_metric, loss_metrics
from examples.ctr.metrics import auc, by_frequency, log_loss
from examples.ctr.model import DIM, DeepFM, grow, tables
from examples.ctr.product_codes import in_product_codes, shared_out
from examples.ctr.small_models import QuotientRemainder, hashed, quotient_remainder
from examples.ctr.stream import click_hours, known
from examples.ctr.study import DIMS, FURTHER_ARMS, differences
from examples.ctr.study_figure import series
from examples.ctr.training import (
    Training,
    adam,
    fit,
    predict,
    rows_of_weights,
    run_epoch,
    sensitivities,
)
from saec_gpu.artifact import Artifact
from saec_gpu.nn import CompressedEmbedding, compress_module

TINY = ["--clicks", "300"]  # an hour


def auc_by_definition(labels: Any, scores: Any) -> float:
    wins = [
        (mine > other) + (mine == other) / 2
        for mine, label in zip(scores, labels, strict=True)
        for other, other_label in zip(scores, labels, strict=True)
        if label == 1 and other_label == 0
    ]
    return float(np.mean(wins))


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_auc_is_its_definition(levels: int, rng: np.random.Generator) -> None:
    labels = np.append(rng.integers(0, 2, 95), [0, 1])
    scores = rng.integers(0, levels, 97) / levels
    assert auc(labels, scores) == pytest.approx(auc_by_definition(labels, scores), abs=1e-12)


def test_auc_by_hand() -> None:
    labels = np.array([0, 1, 1, 0])
    assert auc(labels, np.array([1, 2, 3, 1])) == 1
    assert auc(labels, np.array([3, 2, 2, 2.5])) == 0
    assert auc(labels, np.zeros(4)) == 0.5
    with pytest.raises(ValueError, match="got 2 and 0"):
        auc(np.ones(2), np.zeros(2))


def test_log_loss_is_its_definition(rng: np.random.Generator) -> None:
    labels, logits = rng.integers(0, 2, 31), rng.standard_normal(31)
    chances = [1 / (1 + math.exp(-logit)) for logit in logits]
    of_labels = [p if label else 1 - p for p, label in zip(chances, labels, strict=True)]
    expected = -sum(math.log(p) for p in of_labels) / 31
    assert log_loss(labels, logits) == pytest.approx(expected, rel=1e-12)


def test_log_loss_of_a_sure_error_is_its_logit() -> None:
    assert log_loss(np.array([0, 1]), np.array([800, 800], np.float32)) == 400


def test_deciles_go_from_rare_to_frequent() -> None:
    frequency = np.arange(40)[::-1]
    labels = (frequency % 4 == 0).astype(np.float32)
    labels[frequency < 4] = 1
    found = by_frequency(labels, np.where(labels > 0, 1.0, -1.0), frequency)
    assert [decile["frequency"] for decile in found] == list(range(3, 40, 4))
    assert [decile["samples"] for decile in found] == [4] * 10
    assert [decile["auc"] for decile in found] == [None, *[1.0] * 9]
    with pytest.raises(ValueError, match="9 samples"):
        by_frequency(labels[:9], labels[:9], frequency[:9])


def test_stream_repeats_and_depends_on_its_seed() -> None:
    once, again, other = (list(islice(click_hours(seed, clicks=500), 3)) for seed in (3, 3, 4))
    for (vocabularies, clicks), (same, likewise) in zip(once, again, strict=True):
        assert vocabularies == same
        np.testing.assert_array_equal(clicks.ids, likewise.ids)
        np.testing.assert_array_equal(clicks.labels, likewise.labels)
    assert (once[0][1].ids != other[0][1].ids).any()


def test_stream_grows_and_drifts() -> None:
    hours = list(islice(click_hours(0, clicks=20_000, first_rows={"a": 1000, "b": 60}), 11))
    assert [vocabularies["a"] for vocabularies, _ in hours] == [
        int(1000 * 1.02**hour) for hour in range(11)
    ]
    assert hours[-1][0]["b"] == int(60 * 1.02**10)
    for vocabularies, clicks in hours:
        assert clicks.ids.min() >= 1  # row 0 is for what a model does not know
        assert (clicks.ids.max(0) < list(vocabularies.values())).all()
    assert hours[-1][1].ids[:, 0].max() >= 1000
    assert 0.05 < np.mean([clicks.labels.mean() for _, clicks in hours]) < 0.6
    counts = lookup_counts(hours[0][1], hours[0][0])["a"]
    assert np.sort(counts)[-10:].sum() > 0.3 * counts.sum()  # Zipf's head


def test_unknown_values_are_row_0() -> None:
    clicks = Clicks(np.array([[1, 7], [5, 6]], np.int32), np.zeros(2, np.float32))
    assert known(clicks, {"a": 5, "b": 7}).ids.tolist() == [[1, 0], [0, 6]]


def write_npz(path: Path, **changed: Any) -> Path:
    members: dict[str, Any] = {
        "X": np.array([[0, 1], [1, 2], [0, 0], [1, 1]], np.int32),
        "y": np.array([0, 1, 1, 0], np.int8),
        "split": np.array([0, 2, 1, 0], np.int8),
        "vocab": np.array([2, 3]),
        "fields": np.array(["user", "item"]),
    }
    kept: dict[str, Any] = {
        name: value for name, value in (members | changed).items() if value is not None
    }
    np.savez(path, **kept)
    return path


def test_npz(tmp_path: Path) -> None:
    data = load_npz(write_npz(tmp_path / "clicks.npz"))
    assert data.vocabularies == {"user": 2, "item": 3}
    assert data.train.ids.tolist() == [[0, 1], [1, 1]]
    assert data.train.labels.tolist() == [0, 0]
    assert (data.valid.ids.tolist(), data.valid.labels.tolist()) == ([[0, 0]], [1])
    assert (data.test.ids.tolist(), data.test.labels.tolist()) == ([[1, 2]], [1])
    counts = data.counts()
    assert {field: seen.tolist() for field, seen in counts.items()} == {
        "user": [1, 1],
        "item": [0, 2, 0],
    }


def test_npz_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'split'"):
        load_npz(write_npz(tmp_path / "a.npz", split=None))
    with pytest.raises(ValueError, match='"item" go from 0 to 2, but it has 2 rows'):
        load_npz(write_npz(tmp_path / "b.npz", vocab=np.array([2, 2])))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", ""), ("-3", "-3"), ("2", "2"), ("3", "log² 1"), ("10", "log² 5"), ("1000", "log² 47")],
)
def test_buckets_of_integers(value: str, expected: str) -> None:
    assert bucket(value) == expected


def criteo_line(label: int, integer: str, category: str) -> str:
    return "\t".join([str(label), integer, *["1"] * 12, category, *["00000000"] * 25])


def test_criteo_text(tmp_path: Path) -> None:
    path = tmp_path / "clicks.txt"
    often = [criteo_line(i % 2, "5", "aaaaaaaa") for i in range(100)]
    often += [criteo_line(0, "", "bbbbbbbb") for _ in range(100)]
    path.write_text("\n".join([*often, criteo_line(1, "6", "cccccccc")]) + "\n")
    data = load_criteo(path, min_count=2)
    assert list(data.vocabularies) == list(CRITEO_FIELDS)
    # the rows of "rare" and of what is seen often; log(5)² and log(6)² differ
    assert (data.vocabularies["I1"], data.vocabularies["C1"], data.vocabularies["I2"]) == (3, 3, 2)
    parts = [data.train, data.valid, data.test]
    assert sum(len(part) for part in parts) == 201
    assert len(data.train) > 100 > len(data.valid) + len(data.test)
    ids = np.concatenate([part.ids for part in parts])
    first_category = CRITEO_FIELDS.index("C1")
    assert sorted(np.bincount(ids[:, first_category])) == [1, 100, 100]
    assert np.bincount(ids[:, first_category])[0] == 1
    np.testing.assert_array_equal(ids[:, 0], ids[:, first_category])
    assert load_criteo(path, min_count=201).vocabularies == dict.fromkeys(CRITEO_FIELDS, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2", "line 2: label '1' and 1 values"),
        (criteo_line(2, "5", "a"), "line 2: label '2'"),
        (criteo_line(1, "five", "a"), "line 2: 'five' stands where an integer must"),
    ],
)
def test_criteo_text_with_a_fault_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "clicks.txt"
    path.write_text(criteo_line(1, "5", "a") + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_criteo(path, min_count=1)


def tiny_data() -> ClickData:
    (vocabularies, clicks), (_, later) = islice(
        click_hours(0, clicks=400, first_rows={"user": 60, "item": 30}), 2
    )
    later = known(later, vocabularies)
    return ClickData(vocabularies, clicks, later, later)


def random_model(data: ClickData) -> DeepFM:
    torch.manual_seed(0)
    model = DeepFM(data.vocabularies)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_model_is_its_formula() -> None:
    torch.manual_seed(0)
    model = DeepFM({"a": 3, "b": 4, "c": 5})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    rows = [
        tables(model)[f"embedding.{field}.weight"][i] for field, i in (("a", 2), ("b", 0), ("c", 4))
    ]
    vectors = [row[:DIM] for row in rows]
    pairs = sum(float(vectors[f] @ vectors[g]) for f, g in ((0, 1), (0, 2), (1, 2)))
    deep = model.mlp(torch.from_numpy(np.concatenate(vectors))).item()
    expected = model.bias.item() + sum(float(row[DIM]) for row in rows) + pairs + deep
    ids = Clicks(np.array([[2, 0, 4]], np.int32), np.zeros(1, np.float32))
    assert predict(model, ids)[0] == pytest.approx(expected, rel=1e-4)


def test_training_repeats_and_keeps_the_best() -> None:
    data = tiny_data()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        model = DeepFM(data.vocabularies)
        history = fit(model, data, Training(epochs=3, batch=50), 1, lambda _: None)
        found.append(predict(model, data.valid))
    np.testing.assert_array_equal(found[0], found[1])
    best = max(epoch["valid_auc"] for epoch in history)
    assert auc(data.valid.labels, found[0]) == best


def test_l2_shrinks_unseen_rows_too() -> None:
    data = tiny_data()
    model = DeepFM(data.vocabularies)
    before = np.abs(tables(model)["embedding.user.weight"][0]).sum()  # row 0 is never drawn
    how = Training(l2=1.0, batch=50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run_epoch(model, data.train, optimizer, how, torch.Generator().manual_seed(0))
    after = np.abs(tables(model)["embedding.user.weight"][0]).sum()
    assert after == pytest.approx(before * 0.9 ** (len(data.train) // 50), rel=1e-4)


def test_growing_keeps_rows_and_what_the_optimizer_knows() -> None:
    data = tiny_data()
    model = DeepFM(data.vocabularies)
    optimizer = adam(model, 1e-3)
    grow(model, optimizer, {"user": 61, "item": 30})  # before the first step there is no state
    run_epoch(model, data.train, optimizer, Training(), torch.Generator())
    before = {name: rows.copy() for name, rows in tables(model).items()}
    grow(model, optimizer, {"user": 63, "item": 30})
    after = tables(model)
    assert {name: len(rows) for name, rows in after.items()} == {
        "embedding.user.weight": 63,
        "embedding.item.weight": 30,
    }
    for name, rows in before.items():
        np.testing.assert_array_equal(after[name][: len(rows)], rows)
    run_epoch(model, data.train, optimizer, Training(), torch.Generator())
    assert (
        tables(model)["embedding.user.weight"][:60] != before["embedding.user.weight"][:60]
    ).any()


def test_compressed_model_is_the_decoded_one_with_frozen_codes(tmp_path: Path) -> None:
    data = tiny_data()
    model = random_model(data)
    artifact = saec.compress(tables(model), codewords=0.2, out=tmp_path / "a.saec")
    other = decoded(model, artifact)
    small = compress_module(model, artifact)
    np.testing.assert_array_equal(predict(small, data.test), predict(other, data.test))
    of_weights = {len(weight): rows for weight, rows in rows_of_weights(small)}
    assert {k: float(rows.sum()) for k, rows in of_weights.items()} == {12: 60, 6: 30}
    user = small.embedding["user"]
    assert isinstance(user, CompressedEmbedding)
    rows = torch.arange(60)
    codes, codebook = user.codes_of(rows), user.codebook.detach().clone()
    run_epoch(small, data.train, adam(small, 1e-3), Training(), torch.Generator())
    assert torch.equal(user.codes_of(rows), codes)
    assert not torch.equal(user.codebook, codebook)


def test_rows_in_few_bits(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((7, 17)).astype(np.float32)
    rows[3] = 0
    few, n_bytes = in_few_bits(rows, 4)
    assert n_bytes == math.ceil(7 * 17 * 4 / 8) + 7 * 4
    largest = np.abs(rows).max(1, keepdims=True)
    assert (np.abs(few - rows) <= largest / 7 / 2 * 1.0001).all()
    assert (few != rows).any()
    assert all(len(np.unique(row)) <= 15 for row in few)


def test_hashing_keeps_small_fields_and_its_bytes() -> None:
    ids = np.stack([np.arange(100) % 4, np.arange(100), np.arange(100)[::-1]], 1).astype(np.int32)
    clicks = Clicks(ids, np.zeros(100, np.float32))
    data = ClickData({"a": 4, "b": 100, "c": 101}, clicks, clicks, clicks)
    fewer = hashed(data, 68 * 45)
    assert fewer.vocabularies == {"a": 4, "b": 20, "c": 20}
    np.testing.assert_array_equal(fewer.train.ids[:, 0], ids[:, 0])
    for i in (1, 2):
        assert fewer.train.ids[:, i].max() < 20
        assert len(np.unique(fewer.train.ids[:, i])) > 10
    with pytest.raises(ValueError, match="less than a row for each of 3 fields"):
        hashed(data, 68 * 2)


def test_rows_of_quotients_and_remainders_add_up() -> None:
    ids = np.zeros((2, 3), np.int32)
    clicks = Clicks(ids, np.zeros(2, np.float32))
    data = ClickData({"a": 4, "b": 100, "c": 37}, clicks, clicks, clicks)
    # field a stays; by 10 and by 7 the tables of b and c are smallest: 10 + 10 and 7 + 6 rows
    assert table_bytes(quotient_remainder(data, 68)) == 68 * (4 + 20 + 13)
    # by 24, 25 and 25 remainders: 24 + 5 and 24 + 2, 25 + 4 and 25 + 2 rows
    assert table_bytes(quotient_remainder(data, 68 * 59)) == 68 * (4 + 29 + 26)
    model = quotient_remainder(data, 68 * 60)
    assert table_bytes(model) == 68 * (4 + 29 + 27)
    b = model.embedding["b"]
    assert isinstance(b, QuotientRemainder)
    rows = b.quotients.weight[[0, 3, 3]] + b.remainders.weight[[24, 0, 24]]
    assert torch.equal(b(torch.tensor([24, 75, 99])), rows)
    assert sum(len(weight) for weight, _ in rows_of_weights(model)) == 60


def test_random_codes_are_shuffled_and_their_codewords_means(tmp_path: Path) -> None:
    data = tiny_data()
    model = random_model(data)
    artifact = saec.compress(tables(model), codewords=4, out=tmp_path / "a.saec")
    small = in_random_codes(model, data, artifact, 0)
    for (name, rows), seen, table in zip(
        tables(model).items(), data.counts().values(), small.embedding.values(), strict=True
    ):
        assert isinstance(table, CompressedEmbedding)
        codes = table.codes_of(torch.arange(len(rows))).numpy()
        assert (codes != artifact[name].codes).any()
        np.testing.assert_array_equal(np.bincount(codes), np.bincount(artifact[name].codes))
        np.testing.assert_array_equal(
            table.codebook.detach().numpy(), means_of_codes(rows, seen, codes, 4)
        )


def test_means_of_codes_by_hand() -> None:
    rows = np.array([[1, 10], [4, 40], [2, 20], [6, 60]], np.float32)
    seen = np.array([1, 2, 0, 0], np.float32)
    means = means_of_codes(rows, seen, np.array([0, 0, 2, 2]), 4)
    np.testing.assert_array_equal(means, np.array([[3, 30], [0, 0], [4, 40], [0, 0]], np.float32))


def test_most_frequent_rows_stay_and_the_others_share_their_mean() -> None:
    ids = np.array([[0, 0], [0, 0], [0, 0], [1, 0], [1, 1], [2, 3]], np.int32)
    clicks = Clicks(ids, np.zeros(6, np.float32))
    data = ClickData({"a": 4, "b": 4}, clicks, clicks, clicks)
    model = DeepFM(data.vocabularies)
    a, b = tables(model).values()
    a[:], b[:] = np.arange(4)[:, None], [[0], [1], [1], [4]]
    fewer, n_bytes = most_frequent(model, data, 68 * 4 + 67)
    assert n_bytes == 68 * 4  # two rows that stay and one shared in each field
    a, b = tables(fewer).values()
    # row 0 of both is seen most; the means are of rows seen 2, 1, 0 and 1, 0, 1 times
    np.testing.assert_array_equal(a[:, 0], np.array([0, 4 / 3, 4 / 3, 4 / 3], np.float32))
    np.testing.assert_array_equal(b[:, 0], np.array([0, 2.5, 2.5, 2.5], np.float32))
    all_rows, n_bytes = most_frequent(model, data, 68 * 10)
    assert n_bytes == 68 * 10
    np.testing.assert_array_equal(predict(all_rows, clicks), predict(model, clicks))
    with pytest.raises(ValueError, match="less than a row for each of 2 fields"):
        most_frequent(model, data, 68)


def test_most_frequent_rows_where_the_others_are_never_seen() -> None:
    clicks = Clicks(np.zeros((2, 1), np.int32), np.zeros(2, np.float32))
    data = ClickData({"a": 3}, clicks, clicks, clicks)
    model = DeepFM(data.vocabularies)
    (rows,) = tables(model).values()
    rows[:] = np.array([[7], [1], [2]])
    fewer, _ = most_frequent(model, data, 68 * 2)
    np.testing.assert_array_equal(
        tables(fewer)["embedding.a.weight"][:, 0], np.array([7, 1.5, 1.5], np.float32)
    )


def test_sensitivity_of_first_order_weights_alone() -> None:
    # all else is 0: the gradient of the loss is p - y in the last column, and 0 in the vectors
    model = DeepFM({"a": 2})
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    clicks = Clicks(np.zeros((3, 1), np.int32), np.array([0, 1, 1], np.float32))
    assert sensitivities(model, clicks) == {"embedding.a.weight": 0.25 / 17}


def test_metric_of_first_order_weights_alone() -> None:
    # all else is 0: p is 1/2, the gradient of the logit 1 in the last column and 0 in the vectors
    model = DeepFM({"a": 2})
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    clicks = Clicks(np.zeros((3, 1), np.int32), np.array([0, 1, 1], np.float32))
    (metric,) = loss_metrics(model, clicks).values()
    expected = np.zeros((17, 17))
    expected[DIM, DIM] = 0.25
    np.testing.assert_array_equal(metric, expected)


def test_errors_in_the_metric_are_less_than_without_it(tmp_path: Path) -> None:
    data = tiny_data()
    model = random_model(data)
    metrics = loss_metrics(model, data.train)
    counts = {f"embedding.{field}.weight": seen for field, seen in data.counts().items()}
    codewords = {name: 8 for name in counts}
    plain = saec.compress(
        tables(model), weights=counts, codewords=codewords, out=tmp_path / "plain.saec"
    )
    ours = compress_in_metric(model, data, tmp_path / "metric.saec", codewords=codewords)

    def error(artifact: Artifact) -> float:
        found = 0.0
        for name, rows in tables(model).items():
            lost = artifact[name].lookup(np.arange(len(rows))) - rows
            found += np.einsum("n,ni,ij,nj->", counts[name], lost, metrics[name], lost)
        return found

    assert error(ours) < error(plain)


def test_codewords_of_the_metric_are_of_the_rows_as_they_are(tmp_path: Path) -> None:
    data = tiny_data()
    model = random_model(data)
    whole = compress_in_metric(model, data, tmp_path / "a.saec", codewords=1.0)
    for name, rows in tables(model).items():
        again = whole[name].lookup(np.arange(len(rows)))
        # there and back through the root of a metric whose least share is 1e-4
        np.testing.assert_allclose(again, rows, rtol=0, atol=1e-3)


def test_axes_are_shared_out_by_their_variances() -> None:
    # 64 to one part, 32 and 8 to the other; its product is then greater, 2 and 1 go to the first
    assert shared_out(np.array([1.0, 64.0, 8.0, 32.0, 2.0]), 2) == [[1, 4, 0], [3, 2]]
    # a part that is full gets no more
    assert shared_out(np.array([1.0, 64.0, 1.0, 2.0]), 2) == [[1, 2], [3, 0]]
    # ties go to the lower axis and the first part
    assert shared_out(np.array([0.0, -1e-20, 0.0]), 2) == [[0, 2], [1]]


@pytest.mark.parametrize("errors", ["rows", "metric"])
def test_product_codes_keep_rows_where_bytes_are_plenty(tmp_path: Path, errors: Errors) -> None:
    data = tiny_data()
    model = random_model(data)
    changed, n_bytes = in_product_codes(model, data, 2, 0.5, tmp_path / "a.saec", errors)
    assert n_bytes <= 2 * table_bytes(model)
    for (name, rows), seen in zip(tables(changed).items(), data.counts().values(), strict=True):
        # there and back through the root of a metric whose least share is 1e-4
        np.testing.assert_allclose(rows[seen > 0], tables(model)[name][seen > 0], rtol=0, atol=1e-3)


def test_differences_are_paired() -> None:
    def arm(n_bytes: int, auc: float, decile: float | None) -> dict[str, Any]:
        return {
            "bytes": n_bytes,
            "test": {"auc": auc, "log_loss": -auc},
            "test_deciles": [{"auc": decile}],
        }

    runs = [
        {"full": arm(100, 0.5, 0.25), "post": arm(10, 0.25, 0.5), "other": arm(1, 0, None)},
        {"full": arm(100, 0.75, None), "post": arm(10, 0.75, 0.5)},
    ]
    found = differences(runs)
    assert list(found) == ["full", "post"]
    assert found["post"] == {
        "ratio": 10,
        "auc": 0.5,
        "auc_difference": -0.125,
        "auc_difference_spread": pytest.approx(0.125 * 2**0.5),
        "log_loss": -0.5,
        "log_loss_difference": 0.125,
        "log_loss_difference_spread": pytest.approx(0.125 * 2**0.5),
        "auc_difference_deciles": [None],
    }
    assert differences(runs[:1])["post"]["auc_difference_deciles"] == [0.25]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_commands_from_training_to_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["train", "--run", str(run), "--epochs", "2", "--batch", "256", *TINY])
    noted = read(run / "train.json")
    stored, counts = load_file(run / "model.safetensors"), load_file(run / "counts.safetensors")
    assert {name: len(stored[name]) for name in counts} == {
        f"embedding.{field}.weight": rows for field, rows in noted["vocabularies"].items()
    }
    assert all(seen.sum() == 8 * 300 for seen in counts.values())
    main(["compress", "--run", str(run), "--ratio", "20"])
    sizes = read(run / "compress.json")
    assert sizes["table_bytes"] / sizes["counted_bytes"] >= 20
    main(["retrain", "--run", str(run), "--epochs", "1"])
    main(["evaluate", "--run", str(run), "--hashing"])
    arms = read(run / "evaluate.json")["arms"]
    assert list(arms) == [
        "full",
        "int8 rows",
        "int4 rows",
        "int2 rows",
        "post",
        "retrained",
        "hashing",
    ]
    assert arms["full"]["test"] == noted["test"]
    assert arms["retrained"]["test"] == read(run / "retrain.json")["test"]
    assert arms["retrained"]["valid"]["auc"] >= arms["post"]["valid"]["auc"]
    assert arms["hashing"]["bytes"] <= arms["post"]["bytes"] < arms["int4 rows"]["bytes"]
    elsewhere = tmp_path / "elsewhere.json"
    given = ["--artifact", str(run / "model.saec"), "--json", str(elsewhere)]
    main(["evaluate", "--run", str(run), *given])
    assert read(elsewhere)["arms"]["post"] == arms["post"]
    assert "retrained" not in read(elsewhere)["arms"]
    capsys.readouterr()
    main(
        ["compare", str(run / "evaluate.json"), str(elsewhere), "--json", str(tmp_path / "c.json")]
    )
    compared = read(tmp_path / "c.json")
    assert list(compared) == ["full", "int8 rows", "int4 rows", "int2 rows", "post"]
    lost = arms["post"]["test"]["auc"] - arms["full"]["test"]["auc"]
    assert compared["post"]["auc_difference"] == pytest.approx(lost)
    assert compared["post"]["auc_difference_spread"] == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    # a new artifact does not go with the codewords that were trained for the old one
    main(["compress", "--run", str(run), "--codewords", "0.5"])
    main(["evaluate", "--run", str(run)])
    assert "retrained" not in read(run / "evaluate.json")["arms"]


@pytest.mark.usefixtures("small_coresets")
def test_study_of_two_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    # 80 clicks look up at most 80 rows, so no more codewords: a coreset of 64 times as many rows
    # is smaller than the first field, whatever the random clicks
    vocabularies = [6000, 400]
    data = write_npz(
        tmp_path / "clicks.npz", X=rng.integers(0, vocabularies, (240, 2)), vocab=vocabularies,
        y=np.arange(240) % 2, split=np.repeat([0, 1, 2], 80),
    )  # fmt: skip
    runs = [str(tmp_path / f"run-{seed}") for seed in (0, 1)]
    for seed, run in enumerate(runs):
        main(["train", "--run", run, "--seed", str(seed), "--epochs", "1", "--data", str(data)])
    out = tmp_path / "records.jsonl"
    main(
        ["study", *runs, "--ratios", "70", "--retrain-rates", "3e-4", "--retrain-epochs", "1",
         "--errors", "metric", "--full", "--parts", "2", "--also", ",".join(FURTHER_ARMS),
         "--append", str(out)]
    )  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    (record,) = read_records([out])
    codes = ["post", "coreset", "retrained", "random codes", "product"]
    at_70 = [f"{arm} 70x" for arm in [*codes, "most frequent", "hashing"]]
    of_no_ratio = ["full", "int8 rows", "int4 rows", "int2 rows", *(f"dim {dim}" for dim in DIMS)]
    arms = [*of_no_ratio, *at_70, "quotient-remainder 70x"]
    assert list(record["arms"]) == arms
    assert [list(run) for run in record["runs"]] == [arms] * 2
    assert record["seeds"] == [0, 1]
    assert "torch" in record["versions"]
    assert len(record["arms"]["full"]["auc_difference_deciles"]) == 10
    for run, arms_of_run in zip(runs, record["runs"], strict=True):
        full = arms_of_run["full"]
        assert full["test"] == read(Path(run) / "train.json")["test"]
        assert all(full["bytes"] / arms_of_run[name]["bytes"] >= 70 for name in at_70)
        assert arms_of_run["retrained 70x"]["bytes"] == arms_of_run["post 70x"]["bytes"]
        assert arms_of_run["random codes 70x"]["bytes"] == arms_of_run["post 70x"]["bytes"]
        assert arms_of_run["retrained 70x"]["learning_rate"] == 3e-4
        assert [full["bytes"] / arms_of_run[f"dim {dim}"]["bytes"] for dim in DIMS] == [3.4, 8.5]
        assert (
            arms_of_run["coreset 70x"]["clustered_rows"]
            < arms_of_run["post 70x"]["clustered_rows"]
            == record["rows"]
        )
    main(["compress", "--run", runs[1], "--ratio", "70", "--errors", "metric", "--full"])
    main(["evaluate", "--run", runs[1]])
    alone = read(Path(runs[1]) / "evaluate.json")["arms"]["post"]
    del alone["test_deciles"]
    post = record["runs"][1]["post 70x"]
    clustering = {key: post[key] for key in ("seconds", "clustered_rows")}
    assert post == alone | clustering
    lost = [run["post 70x"]["test"]["auc"] - run["full"]["test"]["auc"] for run in record["runs"]]
    assert record["arms"]["post 70x"]["auc_difference"] == pytest.approx(np.mean(lost))
    capsys.readouterr()
    pictures = [tmp_path / name for name in ("once.svg", "again.svg")]
    for picture in pictures:
        main(["draw", str(out), "--out", str(picture)])
        assert capsys.readouterr().out.splitlines()[1:] == printed[-len(arms) :]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert b"</svg>" in pictures[0].read_bytes()


def test_series_of_a_figure_go_from_small_to_large() -> None:
    ratios = {"full": 1, "int8 rows": 3, "int4 rows": 5, "post 50x": 50, "post 9x": 9}
    record = {"arms": {name: {"ratio": ratio} for name, ratio in ratios.items()}}
    assert series(record) == {
        "post": [{"ratio": 9}, {"ratio": 50}],
        "int": [{"ratio": 3}, {"ratio": 5}],
    }


def test_a_figure_needs_a_study(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"schema": "saec-bench/1", "op": "startup"}\n')
    with pytest.raises(SystemExit, match="no record of a study"):
        main(["draw", str(path), "--out", str(tmp_path / "x.svg")])


def test_runs_that_differ_in_more_than_seeds_are_not_studied_together(tmp_path: Path) -> None:
    runs = [str(tmp_path / name) for name in ("a", "b")]
    for run, l2 in zip(runs, ("0.1", "0.2"), strict=True):
        main(["train", "--run", run, "--epochs", "1", "--l2", l2, *TINY])
    with pytest.raises(SystemExit, match="differ in more than their seeds"):
        main(["study", *runs])


def test_compress_by_budget_and_dtype(tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["train", "--run", str(run), "--epochs", "1", *TINY])
    given = ["--budget", "20KB", "--codewords-dtype", "float32", "--fast", "--errors"]
    main(["compress", "--run", str(run), *given, "sensitivity"])
    sizes = read(run / "compress.json")
    assert sizes["counted_bytes"] <= 20_000 < 1.1 * sizes["counted_bytes"]
    assert sizes["parameters"]["fast"] is True
    main(["compress", "--run", str(run), "--codewords", "0.1", "--full"])
    assert read(run / "compress.json")["parameters"]["fast"] is False


def test_hours(tmp_path: Path) -> None:
    for run in ("once", "again"):
        main(["hours", "2", "--run", str(tmp_path / run), "--ratio", "20", *TINY])
    once, again = (read(tmp_path / run / "hours.json")["hours"] for run in ("once", "again"))
    assert [record["hour"] for record in once] == [1, 2]
    for record, same in zip(once, again, strict=True):
        assert record["table_bytes"] / record["counted_bytes"] >= 20
        assert (record["churn"] is None) == (record["hour"] == 1)
        assert record["table_bytes"] == record["rows"] * 17 * 4
        assert record["codewords"] < record["rows"]
        del record["seconds"], same["seconds"]
        assert record == same
    for figure in ("figure1.svg", "figure2.svg"):
        drawn = (tmp_path / "once" / figure).read_bytes()
        assert drawn == (tmp_path / "again" / figure).read_bytes()
        assert b"</svg>" in drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "--ratio", "9"], "train.json"),
        (["retrain"], "train.json"),
        (["train", "--data", "missing.txt"], "missing.txt"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--run", str(tmp_path)])


def test_other_clicks_than_those_of_training_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "clicks.npz", split=np.array([0, 0, 1, 1]))
    # every part needs a click and another
    write_npz(
        path, X=np.zeros((6, 2), np.int32), y=np.tile([0, 1], 3), split=np.repeat([0, 1, 2], 2)
    )
    main(["train", "--data", str(path), "--run", str(tmp_path / "run"), "--epochs", "1"])
    write_npz(path, vocab=np.array([2, 4]))
    with pytest.raises(SystemExit, match="other fields or rows"):
        main(["evaluate", "--run", str(tmp_path / "run")])
