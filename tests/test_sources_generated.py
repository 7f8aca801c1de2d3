"""Rows made on demand are those of the recipe, whatever is read, and distributed as it says."""

from __future__ import annotations

import json
import math
from decimal import Context, Decimal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import saec_gpu as saec
from saec_gpu.errors import CheckpointError, ParamError, SourceError
from saec_gpu.sources import TableSource
from saec_gpu.sources.generated import generated_tables, generated_weights
from saec_gpu.synthetic import recommender_sizes

# Rows 300,000,000 and the next of field C03 of 10^9 rows, in steps of 2**-20.
GOLDEN_STEPS = [
    [
        72064, -45184, 204574, 184514, -607890, -101600, 561561, 125343,
        -156209, -186107, -387973, -82277, -181158, -180594, 418523, -272207,
    ],
    [
        455183, -263943, -120123, -142803, 461463, 150725, -56372, -163334,
        294048, -251536, 314782, 157949, 112694, -130405, -146421, -5278,
    ],
]  # fmt: skip
GOLDEN_COUNTS = [6520720, 37807737, 4637679, 19420458, 10999177, 40951768]  # row 50 of C09 and on

# The oracle: the formulas of the module's docstring on Python's integers, which never overflow.


def draw(key: int, i: int) -> int:
    x = (key + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def parts(bits: int) -> int:
    return sum(bits >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 131070


def components(n_rows: int) -> int:
    return 2 * min(max(n_rows // 100, 1), 1024)


def component(seed: int, field: int, n_rows: int, row: int) -> int:
    u = draw(draw(draw(seed, field), 1), row) >> 32
    return ((u * u >> 32) * u >> 32) * components(n_rows) >> 32


def row_by_hand(seed: int, field: int, n_rows: int, row: int, dim: int) -> list[float]:
    key = draw(seed, field)
    of_row = draw(draw(key, 1), row)
    of_centre = draw(draw(key, 0), component(seed, field, n_rows, row))
    steps = (5 * parts(draw(of_centre, j)) + 3 * parts(draw(of_row, j)) for j in range(dim))
    return [step * 2.0**-20 for step in steps]


def count_by_hand(seed: int, field: int, n_rows: int, row: int, n_lookups: int) -> float:
    bits = draw(draw(draw(seed, field), 2), row)
    context = Context(prec=28)
    most = float(context.divide(Decimal(n_lookups), Decimal(n_rows + 1).ln(context)))
    rank = 1.0 + float(n_rows) * ((bits >> 32) * 2.0**-32)
    return float(math.floor(most / rank + bits % 2**32 * 2.0**-32))


def table(tables: TableSource, name: str) -> NDArray[np.float32]:
    field = tables.fields[name]
    rows = np.empty((field.n_rows, field.dim), np.float32)
    tables.read(name, 0, rows)
    return rows


@pytest.mark.parametrize("dim", [1, 3, 17, 64])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_rows_are_those_of_the_recipe(dim: int, seed: int) -> None:
    n_rows, n_fields = 1025, 4
    sizes, n_lookups = recommender_sizes(n_rows, n_fields)
    tables = generated_tables(n_rows, dim, n_fields, seed)
    weights = generated_weights(n_rows, n_fields, seed)
    assert {name: field.n_rows for name, field in tables.fields.items()} == sizes
    assert weights.fields == sizes
    for field, (name, size) in enumerate(sizes.items()):
        rows = [row_by_hand(seed, field, size, row, dim) for row in range(size)]
        assert table(tables, name).tolist() == rows
        counts = np.empty(size)
        weights.read(name, 0, counts)
        assert counts.tolist() == [
            count_by_hand(seed, field, size, row, n_lookups) for row in range(size)
        ]


def test_any_range_gives_the_same_bits() -> None:
    tables, weights = generated_tables(4001, 5, 1, 7), generated_weights(4001, 1, 7)
    rows, counts = table(tables, "C01"), np.empty(4001)
    weights.read("C01", 0, counts)
    for step in (1, 31, 1025):
        for start in reversed(range(0, 4001, step)):  # the order of reading does not matter either
            size = min(step, 4001 - start)
            some, some_counts = np.full((size, 5), np.nan, np.float32), np.full(size, np.nan)
            tables.read("C01", start, some)
            weights.read("C01", start, some_counts)
            assert np.array_equal(some, rows[start : start + size])
            assert np.array_equal(some_counts, counts[start : start + size])
    with pytest.raises(SourceError, match="rows 4000 to 4002"):
        tables.read("C01", 4000, np.empty((2, 5), np.float32))


def test_row_numbers_beyond_32_bits() -> None:
    n_rows, start = 6 * 10**9, 5 * 10**9
    tables, weights = generated_tables(n_rows, 3, 1, 11), generated_weights(n_rows, 1, 11)
    n_lookups = recommender_sizes(n_rows, 1)[1]
    assert tables.fields["C01"].n_rows == n_rows
    rows, counts = np.empty((7, 3), np.float32), np.empty(7)
    tables.read("C01", start, rows)
    weights.read("C01", start, counts)
    assert rows.tolist() == [row_by_hand(11, 0, n_rows, start + i, 3) for i in range(7)]
    assert counts.tolist() == [count_by_hand(11, 0, n_rows, start + i, n_lookups) for i in range(7)]
    again = np.empty((7, 3), np.float32)
    tables.read("C01", start - 2**32, again)
    assert not np.array_equal(rows, again)


def test_golden_values() -> None:
    """Compare with written numbers, which also tell when recipe and oracle change together."""
    tables, weights = generated_tables(10**9), generated_weights(10**9)
    rows, counts = np.empty((2, 16), np.float32), np.empty(6)
    tables.read("C03", 300_000_000, rows)
    weights.read("C09", 50, counts)
    assert (rows.astype(np.float64) * 2**20).tolist() == GOLDEN_STEPS
    assert counts.tolist() == GOLDEN_COUNTS
    # What Vigna's splitmix64.c gives from the states 0 and 1234567.
    assert draw(0, 0) == 0xE220A8397B1DCDAF
    assert [draw(1234567, i) for i in range(2)] == [6457827717110365317, 3203168211198807973]


def test_distribution_is_that_of_the_law() -> None:
    """Hold moments against those of the law, with margins of six standard deviations of a mean."""
    n_rows, dim = 400_000, 4
    rows = table(generated_tables(n_rows, dim, 1, 3), "C01").astype(np.float64)
    assert np.array_equal(rows * 2**20, np.rint(rows * 2**20))
    assert np.abs(rows).max() < 1
    labels = np.array([component(3, 0, n_rows, row) for row in range(n_rows)])
    assert labels.min() == 0
    assert labels.max() == 2047
    for first in (1, 8, 64, 512):  # the first k of K components have (k / K)^(1/3) of the rows
        share = (first / 2048) ** (1 / 3)
        margin = 6 * math.sqrt(share * (1 - share) / n_rows)
        assert abs((labels < first).mean() - share) < margin
    # A sum of four uniform numbers of 16 bits has variance (2**32 - 1) / 3.
    part = (2**32 - 1) / 3 * 2.0**-40
    heavy = rows[labels == 0]
    own = heavy - heavy.mean(axis=0)
    assert abs(own.var() / (9 * part) - 1) < 6 * math.sqrt(2 / own.size)
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(2048)])
    # Means of some hundred rows each: their own spread comes on top, one part in 200 at most.
    assert abs(means.var() / (25 * part) - 1) < 6 * math.sqrt(2 / means.size) + 0.005
    assert abs(means.mean()) < 6 * math.sqrt(25 * part / means.size)


def test_weights_follow_zipf() -> None:
    """Hold counts against the law, with margins of six standard deviations."""
    sizes, n_lookups = recommender_sizes(1_000_000, 26)
    n_rows = sizes["C03"]
    counts = np.empty(n_rows)
    generated_weights(1_000_000, 26, 5).read("C03", 0, counts)
    assert np.array_equal(counts, np.rint(counts))
    most = n_lookups / math.log(n_rows + 1)
    assert counts.min() == 0
    assert counts.max() <= most + 1
    # Ranks are drawn evenly from [1, n + 1), so most / x - 1 rows expect x lookups or more;
    # rounding up adds rows that expect more than x - 1.
    for least in (10, 100, 1000):
        margin = 6 * math.sqrt(most / least)
        found = np.count_nonzero(counts >= least)
        assert most / least - 1 - margin < found < most / (least - 1) - 1 + margin
    # Of the sum, few rows decide. Without what the first hundred ranks have above rank 100, whose
    # count is `cap`, it is 99 cap + most · ln((n + 1) / 100), and its variance below 200 cap².
    cap = math.floor(most / 100)
    expected = 99 * cap + most * math.log((n_rows + 1) / 100)
    assert abs(np.minimum(counts, cap).sum() - expected) < 6 * math.sqrt(200) * cap
    assert abs(counts.sum() - n_lookups) < 6 * most


def test_same_artifact_as_from_memory(tmp_path: Path) -> None:
    tables, weights = generated_tables(20_000, 4, 5, 2), generated_weights(20_000, 5, 2)
    arrays = {name: table(tables, name) for name in tables.fields}
    counts = {name: np.empty(n_rows) for name, n_rows in weights.fields.items()}
    for name, values in counts.items():
        weights.read(name, 0, values)
    made = saec.compress(tables, weights=weights, out=tmp_path / "a.saec", max_iter=3)
    stored = saec.compress(arrays, weights=counts, out=tmp_path / "b.saec", max_iter=3)
    assert made.manifest == stored.manifest
    assert made.verify(tables, weights=weights).ok
    assert made.run["source"] == "generated_tables(20000, dim=4, n_fields=5, seed=2)"


def test_resume_goes_by_the_recipe(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: saec.Progress) -> None:
        if progress.stage == "codes":
            raise StopError

    def run(seed: int, weights_seed: int, name: str, **options: object) -> saec.Artifact:
        return saec.compress(
            generated_tables(20_000, 3, 2, seed),
            weights=generated_weights(20_000, 2, weights_seed),
            out=tmp_path / name,
            max_iter=2,
            **options,  # type: ignore[arg-type]
        )

    kept = tmp_path / "kept"
    with pytest.raises(StopError):
        run(0, 0, "a.saec", checkpoint=kept, progress=stop)
    with pytest.raises(CheckpointError, match="tables was"):
        run(1, 0, "a.saec", checkpoint=kept)
    with pytest.raises(CheckpointError, match="weights was"):
        run(0, 1, "a.saec", checkpoint=kept)
    resumed = run(0, 0, "a.saec", checkpoint=kept)
    assert resumed.manifest == run(0, 0, "b.saec").manifest


def test_fingerprint_reads_nothing() -> None:
    tables, weights = generated_tables(10**15), generated_weights(10**15)
    first = tables.fingerprint()
    assert json.loads(json.dumps(first)) == first
    assert first == generated_tables(10**15).fingerprint()
    assert first["files"] == []
    others = [
        generated_tables(10**15, seed=1),
        generated_tables(10**15, dim=17),
        generated_tables(10**15 + 10**9),
    ]
    assert all(other.fingerprint() != first for other in others)
    assert weights.fingerprint() != generated_weights(10**15, seed=1).fingerprint()
    assert tables.select("C03").fingerprint()["arrays"] == {"C03": first["arrays"]["C03"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_rows": 0}, r"n_rows is 0; give a whole number in \[1, 9223372036854775808\)"),
        ({"n_rows": 2**63}, "n_rows is 9223372036854775808"),
        ({"seed": -1}, r"seed is -1; give a whole number in \[0, 18446744073709551616\)"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"n_fields": 0}, "n_fields is 0"),
    ],
)
def test_wrong_parameters(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ParamError, match=message):
        generated_tables(**arguments)
    with pytest.raises(ParamError, match=message):
        generated_weights(**arguments)


def test_wrong_dim() -> None:
    with pytest.raises(ParamError, match="dim is 0; give at least 1"):
        generated_tables(dim=0)
