"""Codes by error and length: by the plain loops, in the same bytes however it is done, verified."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference
import saec_gpu as saec
from builders import (
    ROW_KINDS,
    Piece,
    bits,
    chunk_of_pieces,
    column,
    opened,
    rows_of,
    weights_of,
)
from saec_gpu import compression, pipeline
from saec_gpu.clustering import rules as rules_module
from saec_gpu.clustering.budget import FieldCurve, price_of_a_byte
from saec_gpu.clustering.curves import MOST_MEASURED, Point
from saec_gpu.clustering.rules import CostRule, RuledCodebooks, constrained, rule_of
from saec_gpu.clustering.selection import Selection, chunk_of_selections, coreset
from saec_gpu.data import Codebook
from saec_gpu.errors import ArtifactError, ParamError
from saec_gpu.levels import Levels, shorter_levels
from saec_gpu.manifest import sealed
from saec_gpu.sources import TableField

Arrays = dict[str, NDArray[Any]]


def classes(*own: int) -> Levels:
    return Levels(own, (1,) * len(own))


def test_lengths_count_a_bit_of_each_bitmap_and_the_payload() -> None:
    assert classes(0, 2, 3).lengths == (1, 4, 5)
    assert classes(2, 0).lengths == (3, 1)
    uses = np.array([7, 5, 1, 1, 0, 2, 0])
    assert classes(0, 1, 2).of(uses) == Levels((0, 1, 2), (16, 9, 3))


def test_hand_computed() -> None:
    # Codes of 1, 3 and 3 bits. At a price of 2 a bit the first takes a row that is 1 away from it
    # and met by the second, unless its weight is above (6 − 2) / 1.
    rows = column(0, 1, 1, 1, 1, 2)
    weights = np.array([1.0, 1.0, 3.9, 4.0, 4.1, 0.0])
    words = {"x": Codebook(column(0, 1, 2))}
    backend = opened("cpu", threads=1)
    rules = {"x": CostRule(2.0, Levels((0, 1), (6, 2)), weighted=True)}
    assert rules["x"].prices() == [2.0, 4.0]
    chunk = backend.load_rows(chunk_of_pieces([Piece("x", rows, weights)]))
    found = RuledCodebooks(backend, words, rules).assign(chunk, weights)
    # lengths are 1 and 2: the step is worth 2
    assert found.codes.tolist() == [0, 0, 1, 1, 1, 0]
    assert found.distances is not None
    assert found.distances.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 4.0]
    unweighted = {"x": CostRule(2.0, Levels((0, 1), (6, 2)), weighted=False)}
    found = RuledCodebooks(backend, words, unweighted).assign(chunk, weights)
    assert found.codes.tolist() == [0, 0, 0, 0, 0, 2]  # 1 + 2 and 4 + 2 against 0 + 4


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_codes_are_those_of_the_plain_loops(
    rng: np.random.Generator, kind: str, backend_name: str
) -> None:
    backend = opened(backend_name, threads=1)
    own_bits: dict[str, tuple[int, ...]] = {"a": (0, 1, 3), "b": (2, 0, 1), "c": (0, 3)}
    pieces = [
        Piece("a", rows_of(kind, rng, 97, 3), weights_of("whole", rng, 97)),
        Piece("nearest", rows_of("normal", rng, 31, 2)),
        Piece("b", rows_of(kind, rng, 40, 5), weights_of("wide", rng, 40)),
        Piece("a", rows_of(kind, rng, 30, 3), weights_of("sparse", rng, 30), 97),
        Piece("c", rows_of(kind, rng, 64, 3)),
    ]
    chunk = chunk_of_pieces(pieces)
    assert chunk.weights is not None
    words: Arrays = {}
    rules: dict[str, CostRule] = {}
    for p in pieces:
        k = {"a": 9, "b": 7, "c": 8, "nearest": 6}[p.field]
        words.setdefault(p.field, p.rows[:k].copy())
        if p.field in own_bits:
            spread = float(np.median(((p.rows.astype(np.float64) - p.rows[0]) ** 2).sum(axis=1)))
            price = max(spread, 1e-300)  # so that some rows go either way
            rules[p.field] = CostRule(price, classes(*own_bits[p.field]), weighted=True)
    books = {name: Codebook(own) for name, own in words.items()}
    rows = backend.load_rows(chunk)
    found = RuledCodebooks(backend, books, rules).assign(rows, chunk.weights)
    assert found.distances is not None
    for p, segment in zip(pieces, chunk.layout.segments, strict=True):
        if p.field == "nearest":
            codes, distances = reference.assign(p.rows, words[p.field])
        else:
            codes, distances = reference.assign_by_cost(
                p.rows, p.weights, words[p.field], own_bits[p.field], rules[p.field].bit_price
            )
        assert found.codes[segment.rows].tolist() == codes
        assert found.distances[segment.rows].tolist() == distances


def test_ties_go_to_the_lower_level(rng: np.random.Generator) -> None:
    backend = opened("cpu", threads=1)
    rows, words = rows_of("grid", rng, 200, 2), rows_of("grid", rng, 9, 2)
    price, own = 0.5, (1, 0, 3)
    rule = CostRule(price, classes(*own), weighted=False)
    chunk = backend.load_rows(chunk_of_pieces([Piece("x", rows)]))
    found = RuledCodebooks(backend, {"x": Codebook(words)}, {"x": rule}).assign(chunk, None)
    codes, _ = reference.assign_by_cost(rows, None, words, own, price)
    assert found.codes.tolist() == codes


def shorter_bits(uses: list[int]) -> tuple[int, ...] | None:
    levels = shorter_levels(np.array(uses))
    return None if levels is None else levels.bits


@pytest.mark.parametrize("weights", ["none", "whole", "zero"])
@pytest.mark.parametrize(("n", "k"), [(700, 12), (1025, 40)])
def test_training_is_that_of_the_plain_loops(
    rng: np.random.Generator, backend_name: str, weights: str, n: int, k: int
) -> None:
    backend = opened(backend_name, threads=1)
    tables = {"x": rows_of("heavy", rng, n, 2), "y": rows_of("normal", rng, 90, 3)}
    own = {"x": weights_of(weights, rng, n)}
    source = saec.open_tables(dict(tables))
    given = {name: one for name, one in own.items() if one is not None}
    vectors = saec.open_weights(given, source) if given else None
    selections = {
        name: coreset(source, vectors, field, n, 3) for name, field in source.fields.items()
    }
    numbers = {"x": k, "y": 5}
    words = {name: rows[: numbers[name]].copy() for name, rows in tables.items()}
    prices = {"x": 3.0, "y": 0.01}
    found = constrained(
        backend, backend.load_rows(chunk_of_selections(selections)), words, prices, selections,
        {name: one.statistics(name, numbers[name], 3) for name, one in selections.items()},
        {name: len(rows) for name, rows in tables.items()},
    )  # fmt: skip
    for name, (codewords, rule) in found.items():
        expected, own_bits = reference.constrained(
            tables[name], own.get(name), words[name], prices[name], name, 3,
            rules_module.ROUNDS, shorter_bits,
        )  # fmt: skip
        assert bits(codewords) == bits(expected)
        assert (None if rule is None else rule.levels.bits) == own_bits
    assert found["x"][1] is not None


def test_rows_of_weight_0_that_were_not_sampled_have_the_shortest_code() -> None:
    rule = CostRule(1.0, classes(2, 0, 1), weighted=True)
    assert rule.levels.lengths == (3, 2, 3)
    one = Selection(
        np.arange(4), np.zeros((4, 1), np.float32), np.ones(4), np.full(4, 25.0), True, 900
    )
    codes = np.array([0, 0, 4, 6], np.uint32)
    found = rules_module.estimated_uses(codes, 7, one, 1000, rule)
    assert found.tolist() == [50, 0, 0, 0, 25 + 900, 0, 25]
    # By the nearest codeword they are taken to be as the others.
    found = rules_module.estimated_uses(codes, 7, one, 1000, None)
    assert found.tolist() == [500, 0, 0, 0, 250, 0, 250]


def test_coresets_count_rows_of_weight_0(rng: np.random.Generator) -> None:
    tables = {"x": rows_of("normal", rng, 500, 2)}
    weights = {"x": np.where(np.arange(500) % 5 == 0, 2.0, 0.0)}
    source = saec.open_tables(dict(tables))
    vectors = saec.open_weights(dict(weights), source)
    field = source.fields["x"]
    found = [coreset(source, vectors, field, size, 0) for size in (50, 500)]
    assert [(one.weighted, one.weightless) for one in found] == [(True, 400), (True, 0)]
    zero = saec.open_weights({"x": np.zeros(500)}, source)
    found = [coreset(source, zero, field, size, 0) for size in (50, 500)]
    assert [(one.weighted, one.weightless) for one in found] == [(False, 0), (False, 0)]


def test_price_is_what_the_next_byte_spares() -> None:
    table = TableField("x", 1000, 4, "float32")

    def curve(*points: tuple[int, float], sensitivity: float = 1.0) -> FieldCurve:
        made = tuple(Point(n + 1, "float32", d, size, 0) for n, (size, d) in enumerate(points))
        return FieldCurve(table, made, sensitivity)

    curves = {"a": curve((10, 100.0), (20, 60.0), (40, 40.0)), "b": curve((10, 30.0), (20, 0.0))}
    # Steps: 4 a byte for 10 bytes, 3 for 10, 1 for 20, and all of table a for 40 / 15,960.
    for budget, price in ((20, 4.0), (29, 4.0), (30, 3.0), (39, 3.0), (40, 1.0), (59, 1.0)):
        assert price_of_a_byte(curves, budget) == price
    assert price_of_a_byte(curves, 60) == 40 / 15_960
    assert price_of_a_byte(curves, 16_020) == 0.0
    curves["b"] = curve((10, 30.0), (20, 0.0), sensitivity=2.0)
    assert price_of_a_byte(curves, 20) == 6.0


# From rows to artifact.


def made_tables() -> tuple[Arrays, Arrays]:
    generator = np.random.default_rng(8)
    tables: Arrays = {}
    weights: Arrays = {}
    for name, n_rows, dim in (("item", 1500, 4), ("plain", 400, 2), ("user", 900, 3)):
        tables[name] = generator.standard_normal((n_rows, dim)).astype(np.float32)
        weights[name] = np.sort(generator.zipf(1.3, n_rows).clip(0, 10**4).astype(float) - 1)
    weights["user"][:] = 0.0
    del weights["plain"]
    tables["none"] = np.zeros((0, 3), np.float32)
    tables["same"] = np.repeat(tables["item"][:3], 30, axis=0)
    return tables, weights


ASKED: dict[str, Any] = {
    "ratio": 8, "sensitivity": {"plain": 2.0}, "seed": 2, "codes": "entropy", "max_iter": 4,
}  # fmt: skip


def artifact_bytes(artifact: saec.Artifact) -> dict[str, bytes]:
    return {
        str(path.relative_to(artifact.path)): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


@pytest.fixture(scope="module")
def entropy(tmp_path_factory: pytest.TempPathFactory) -> saec.Artifact:
    tables, weights = made_tables()
    out = tmp_path_factory.mktemp("entropy") / "e.saec"
    return saec.compress(tables, weights=weights, **ASKED, out=out, backend="cpu")


def ruled(artifact: saec.Artifact) -> list[str]:
    return [name for name in artifact if artifact[name].record.get("rule") == "cost"]


def test_codes_and_errors_are_the_oracles(entropy: saec.Artifact) -> None:
    tables, weights = made_tables()
    assert {"item", "user"} <= set(ruled(entropy))
    prices = {name: entropy[name].record["bit_price"] for name in ruled(entropy)}
    assert prices["item"] == prices["user"]  # one price, divided by sensitivity
    assert prices.get("plain", prices["item"] / 2) == prices["item"] / 2
    for name in ruled(entropy):
        field = entropy[name]
        own = weights[name] if name == "item" else None  # of `user` all are zero
        assert field.levels is not None
        codes, _ = reference.assign_by_cost(
            tables[name], own, field.codebook, field.levels.bits, prices[name]
        )
        assert field.codes.tolist() == codes
        assert field.levels == field.levels.of(np.bincount(codes, minlength=field.n_codewords))
        sse, weighted_sse = reference.errors(tables[name], own, field.codebook, codes)
        assert field.record["sse"] == sse
        assert field.record["weighted_sse"] == (weighted_sse if name == "item" else None)


def test_less_weighted_error_in_as_many_bytes(tmp_path: Path, entropy: saec.Artifact) -> None:
    tables, weights = made_tables()
    asked = {**ASKED, "codes": "auto"}
    nearest = saec.compress(tables, weights=weights, **asked, out=tmp_path / "n.saec")

    def error(artifact: saec.Artifact) -> float:
        return math.fsum(
            ASKED["sensitivity"].get(name, 1.0)
            * (record["sse"] if record["weighted_sse"] is None else record["weighted_sse"])
            for name, record in ((n, artifact[n].record) for n in tables if len(tables[n]))
        )

    budget = sum(rows.nbytes for rows in tables.values()) / 8
    for artifact in (nearest, entropy):
        assert 0.98 * budget <= artifact.counted_bytes <= budget
    assert error(entropy) < error(nearest)


def test_more_codewords_than_are_measured_can_still_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The curves by cost begin late; still they hold the doubling by which what follows is told.
    monkeypatch.setattr(rules_module, "ROUNDS", 1)
    rows = np.random.default_rng(21).standard_normal((6000, 2)).astype(np.float32)
    artifact = saec.compress(
        rows, ratio=1.5, codes="entropy", codewords_dtype="int8", out=tmp_path / "a.saec",
        max_iter=1,
    )  # fmt: skip
    assert artifact["x"].n_codewords > MOST_MEASURED
    assert 0.98 * rows.nbytes / 1.5 <= artifact.counted_bytes <= rows.nbytes / 1.5


def test_the_same_bytes_however_it_is_done(tmp_path: Path, entropy: saec.Artifact) -> None:
    tables, weights = made_tables()
    ways: list[dict[str, Any]] = [
        {"chunk_rows": 7, "threads": 1},
        {"memory": "1.2MB", "threads": 1},
        {"chunk_rows": 1000, "threads": 2, "checkpoint": tmp_path / "checkpoint"},
    ]
    for number, options in enumerate(ways):
        out = tmp_path / f"{number}.saec"
        artifact = saec.compress(tables, weights=weights, **ASKED, **options, out=out)
        assert artifact_bytes(artifact) == artifact_bytes(entropy)


def test_the_same_bytes_on_any_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend_name: str
) -> None:
    monkeypatch.setattr(rules_module, "ROUNDS", 2)
    tables, weights = made_tables()
    tables = {"item": tables["item"][-500:]}
    asked: dict[str, Any] = {
        **ASKED, "sensitivity": None, "weights": {"item": weights["item"][-500:]},
        "codewords_dtype": "int8",
    }  # fmt: skip
    expected = saec.compress(tables, **asked, out=tmp_path / "e.saec", backend="cpu")
    assert ruled(expected) == ["item"]
    backend = opened(backend_name, threads=2)
    found = saec.compress(tables, **asked, out=tmp_path / "a.saec", backend=backend)
    assert artifact_bytes(found) == artifact_bytes(expected)
    assert found.verify(tables, weights=asked["weights"], backend=backend).ok


def test_continued_to_the_same_bytes(tmp_path: Path, entropy: saec.Artifact) -> None:
    tables, weights = made_tables()
    stages = ["curves", "statistics", "fit", "codes", "levels", "write"]
    for stage in stages:
        asked = {**ASKED, "weights": weights, "checkpoint": tmp_path / stage}

        def stop(one: saec.Progress, stage: str = stage) -> None:
            if one.stage == stage and one.done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            saec.compress(tables, **asked, out=tmp_path / f"{stage}.saec", progress=stop)
        again = saec.compress(tables, **asked, out=tmp_path / f"{stage}.saec")
        assert artifact_bytes(again) == artifact_bytes(entropy)


def test_of_fields_larger_than_the_coreset_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # rows of weight 0 are not in the coreset
    tables, weights = made_tables()
    for module in (compression, pipeline):
        monkeypatch.setattr(module, "CORESET_ROWS", 200)
    monkeypatch.setattr(pipeline, "ROWS_A_CODEWORD", 4)
    ways: list[dict[str, Any]] = [{"chunk_rows": 97, "threads": 2}, {"threads": 1}]
    made = [
        saec.compress(tables, weights=weights, **ASKED, **options, out=tmp_path / f"{n}.saec")
        for n, options in enumerate(ways)
    ]
    assert artifact_bytes(made[0]) == artifact_bytes(made[1])
    assert "item" in ruled(made[0])
    assert made[0].verify(tables, weights=weights).ok
    budget = sum(rows.nbytes for rows in tables.values()) / 8
    assert made[0].counted_bytes <= budget


# What verification finds.


def with_record(artifact: saec.Artifact, out: Path, field: str, **changes: Any) -> saec.Artifact:
    """Return a copy with other statements of a field in its manifest."""
    for name, content in artifact_bytes(artifact).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    (out / "run.json").write_bytes((artifact.path / "run.json").read_bytes())
    manifest = json.loads((out / "manifest.json").read_bytes())
    for entry in manifest["fields"]:
        if entry["name"] == field:
            entry.update(changes)
    (out / "manifest.json").write_bytes(sealed(manifest))
    return saec.load(out)


def wrong(found: saec.Verification) -> Mapping[str, int]:
    return {one.name: one.wrong_codes for one in found.fields if one.wrong_codes}


def test_verification_checks_codes_by_their_rule(tmp_path: Path, entropy: saec.Artifact) -> None:
    tables, weights = made_tables()
    assert entropy.verify(tables, weights=weights).ok
    assert entropy.verify(tables, weights=weights, chunk_rows=7, threads=1).ok
    item = entropy["item"]
    assert item.levels is not None
    price = item.record["bit_price"]
    expected: dict[str, list[int]] = {
        "price": reference.assign_by_cost(
            tables["item"], weights["item"], item.codebook, item.levels.bits, 2 * price
        )[0],
        "nearest": reference.assign(tables["item"], item.codebook)[0],
    }
    changes: dict[str, dict[str, Any]] = {
        "price": {"bit_price": 2 * price},
        "nearest": {"rule": "nearest"},
    }
    for what, codes in expected.items():
        altered = with_record(entropy, tmp_path / what, "item", **changes[what])
        differing = int((np.array(codes) != item.codes).sum())
        assert differing > 0
        assert wrong(altered.verify(tables, weights=weights)) == {"item": differing}
    with pytest.raises(ParamError, match=r'"item" were chosen by weighted error .* give the weig'):
        entropy.verify(tables)


@pytest.mark.parametrize("price", [0.0, -1.0, 1, "1", None, True])
def test_a_price_that_cannot_be_is_refused(
    tmp_path: Path, entropy: saec.Artifact, price: Any
) -> None:
    tables, weights = made_tables()
    altered = with_record(entropy, tmp_path / "a.saec", "item", bit_price=price)
    with pytest.raises(ArtifactError, match=r"a finite number above 0 and levels are needed"):
        altered.verify(tables, weights=weights)


def test_a_rule_without_levels_is_refused() -> None:
    assert rule_of({"rule": "nearest"}, None) is None
    with pytest.raises(ArtifactError, match="levels None"):
        rule_of({"rule": "cost", "bit_price": 1.0}, None)


def test_needs_a_budget(tmp_path: Path) -> None:
    with pytest.raises(ParamError, match="needs a budget; give budget or ratio"):
        saec.compress(np.eye(8), codewords=2, codes="entropy", out=tmp_path / "a.saec")
