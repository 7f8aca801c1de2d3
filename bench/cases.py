"""What is timed: named tables with their codewords to start from, as files that processes share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from saec_gpu.data import Float32, Float64, Int64
from saec_gpu.errors import ParamError
from saec_gpu.synthetic import recommender_tables, zipf_counts

SEED = 26
LOOKUP_EXPONENT, COMPONENT_EXPONENT, COMPONENT_SIGMA = 1.05, 0.7, 0.6  # as of recommender_tables
LOOKUPS_A_ROW = 10
LEAST_ROWS_A_CODEWORD = 32  # where a case is made smaller, codewords go with the rows


@dataclass(frozen=True)
class Case:
    """One workload by name.

    Attributes
    ----------
    name, line : str
        What it is called, and what it is in one line.
    n_rows, dim, n_fields : int
        Rows of all fields together, their columns, and over how many fields they spread.
    n_codewords : int or None
        Codewords of the one field; None: clip(rows / 100, 1, 1024) of each field.
    rows : str
        "mixture", or what is done to make a mixture hard: "heavy", "tiny", "offset".
    beside : str or None
        The case whose rows show what this one's hardness costs.
    """

    name: str
    line: str
    n_rows: int
    dim: int
    n_fields: int = 1
    n_codewords: int | None = None
    rows: Literal["mixture", "heavy", "tiny", "offset"] = "mixture"
    beside: str | None = None


CASES = {
    case.name: case
    for case in (
        Case("fields26-d16", "26 ragged fields, 1M rows of 16", 1_000_000, 16, 26),
        Case("fields26-d64", "26 ragged fields, 1M rows of 64", 1_000_000, 64, 26),
        Case("fields26-d16-4m", "26 ragged fields, 4M rows of 16", 4_000_000, 16, 26),
        Case("1m-256-64", "1M rows of 64, 256 codewords", 1_000_000, 64, 1, 256),
        Case("1m-1024-64", "1M rows of 64, 1024 codewords", 1_000_000, 64, 1, 1024),
        Case("200k-4096-128", "200k rows of 128, 4096 codewords", 200_000, 128, 1, 4096),
        Case("4m-64-16", "4M rows of 16, 64 codewords", 4_000_000, 16, 1, 64),
        Case("plain", "400k rows of 16, 256 codewords", 400_000, 16, 1, 256),
        Case(
            "heavy", "plain, each row times e^(3N): norms over many orders",
            400_000, 16, 1, 256, "heavy", "plain",
        ),
        Case(
            "tiny", "plain, times 1e-18: squares below the least normal float32",
            400_000, 16, 1, 256, "tiny", "plain",
        ),
        Case(
            "offset", "plain, moved away from 0 by 1000 spreads",
            400_000, 16, 1, 256, "offset", "plain",
        ),
    )
}  # fmt: skip


def cases() -> list[tuple[str, str]]:
    """Return name and one-line description of every case, in the order in which they run."""
    return [(case.name, case.line) for case in CASES.values()]


def find_case(name: str) -> Case:
    """Return the case of this name.

    Raises
    ------
    ParamError
        There is none.
    """
    if name not in CASES:
        raise ParamError(f'case "{name}" was asked for; the cases are {", ".join(CASES)}')
    return CASES[name]


@dataclass(frozen=True, eq=False)
class FieldData:
    """One field of a case.

    Attributes
    ----------
    name : str
    rows : float32 (n, dim)
    weights : float64 (n,)
    initial : int64 (k,)
        The rows that are the first codewords: distinct numbers, ascending.
    """

    name: str
    rows: Float32
    weights: Float64
    initial: Int64

    @property
    def codewords(self) -> Float32:
        """Return the first codewords, float32 (k, dim)."""
        return self.rows[self.initial]

    @property
    def flop_a_pass(self) -> float:
        """Return the useful flop of one pass, 2·n·k·d."""
        n_rows, dim = self.rows.shape
        return float(2 * n_rows * len(self.initial) * dim)


@dataclass(frozen=True, eq=False)
class CaseData:
    """The fields of a case, and the flat arrays of which theirs are parts."""

    fields: tuple[FieldData, ...]
    values: Float32
    weights: Float64


def write_case(case: Case, folder: Path, *, size: float, weighted: bool) -> None:
    """Make the case's arrays and write them to a folder, for `load_case`.

    Parameters
    ----------
    case : Case
    folder : path
        Made if it is not there.
    size : float
        Share of the case's rows to make, in (0, 1].
    weighted : bool
        First codewords are then drawn from rows that are looked up at all.

    Raises
    ------
    ParamError
        `size` is outside (0, 1].
    """
    if not 0 < size <= 1:
        raise ParamError(f"size={size} was given; give a share of the rows in (0, 1]")
    tables, counts = _tables(case, max(case.n_fields, round(case.n_rows * size)))
    rng = np.random.default_rng(SEED)
    entries, initial = [], []
    for name, rows in tables.items():
        n_codewords = _n_codewords(case, len(rows))
        places = np.arange(len(rows))
        if weighted:
            # rows without weight come last, for fields that have fewer others than codewords
            places = np.argsort(counts[name] == 0, kind="stable")
            places = places[: max(n_codewords, np.count_nonzero(counts[name]))]
        initial.append(np.sort(rng.choice(places, n_codewords, replace=False)))
        entries.append({"name": name, "n_rows": len(rows), "n_codewords": n_codewords})
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "values.npy", np.concatenate([rows.reshape(-1) for rows in tables.values()]))
    np.save(folder / "weights.npy", np.concatenate(list(counts.values())))
    np.save(folder / "initial.npy", np.concatenate(initial))
    text = json.dumps({"dim": case.dim, "fields": entries})
    (folder / "case.json").write_text(text, encoding="utf-8")


def load_case(folder: Path) -> CaseData:
    """Return the arrays that `write_case` wrote, mapped so that processes share their pages.

    The arrays may be written to, as those of a user: a process that does keeps its own copy.
    """
    described = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    values, weights, initial = (
        np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c"))
        for name in ("values", "weights", "initial")
    )
    dim, row, word = described["dim"], 0, 0
    fields = []
    for entry in described["fields"]:
        last_row, last_word = row + entry["n_rows"], word + entry["n_codewords"]
        rows = values[row * dim : last_row * dim].reshape(-1, dim)
        fields.append(
            FieldData(entry["name"], rows, weights[row:last_row], initial[word:last_word])
        )
        row, word = last_row, last_word
    return CaseData(tuple(fields), values, weights)


def useful_flop(data: CaseData, passes: Sequence[int]) -> float:
    """Return Σ 2·n·k·d·passes over the fields."""
    return sum(field.flop_a_pass * done for field, done in zip(data.fields, passes, strict=True))


def _n_codewords(case: Case, n_rows: int) -> int:
    if case.n_codewords is None:
        return int(np.clip(n_rows // 100, 1, 1024))
    return min(case.n_codewords, max(1, n_rows // LEAST_ROWS_A_CODEWORD))


def _tables(case: Case, n_rows: int) -> tuple[dict[str, Float32], dict[str, Float64]]:
    if case.n_codewords is None:
        return recommender_tables(n_rows, case.n_fields, case.dim, SEED)
    rng = np.random.default_rng(SEED)
    rows = _mixture(n_rows, case.dim, 2 * _n_codewords(case, n_rows), rng)
    if case.rows == "heavy":
        rows *= np.exp(3 * rng.standard_normal((n_rows, 1), np.float32))
    elif case.rows == "tiny":
        rows *= np.float32(1e-18)
    elif case.rows == "offset":
        rows += np.float32(1000) * rows.std()
    counts = zipf_counts(n_rows, LOOKUP_EXPONENT, LOOKUPS_A_ROW * n_rows, SEED)
    return {"x": rows}, {"x": counts}


def _mixture(n_rows: int, dim: int, n_components: int, rng: np.random.Generator) -> Float32:
    """Return rows as of recommender_tables, but with as many components as are wanted."""
    shares = np.arange(1, n_components + 1) ** -COMPONENT_EXPONENT
    labels = rng.choice(n_components, n_rows, p=shares / shares.sum())
    means = rng.standard_normal((n_components, dim), np.float32)
    rows = rng.standard_normal((n_rows, dim), np.float32)
    rows *= np.float32(COMPONENT_SIGMA)
    rows += means[labels]
    return rows
