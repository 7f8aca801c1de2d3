"""Rows to be timed on, made on the device in milliseconds, never zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.device import DeviceArray
from saec_gpu.data import Float32

from ..cases import COMPONENT_EXPONENT, COMPONENT_SIGMA, SEED, CaseData
from .machine import Machine

LIMIT_EXPONENT = 12  # every value is at most 2^12 in magnitude, which float16 holds too
CROWD = 100  # one row in so many is not of the crowd
THREADS = 256
BLOCKS_A_PROCESSOR = 16


@dataclass(frozen=True)
class RowsKind:
    """How hard rows are.

    Attributes
    ----------
    line : str
        What they are, in one line.
    mixed : bool
        A mixture of twice as many components as codewords; else one Gaussian.
    offset : float
        Added to every value.
    heavy : float
        Sigma of the logarithm of a row's gain.
    crowd : int
        0, or one row in so many does not belong to a single tight component.
    """

    line: str
    mixed: bool = True
    offset: float = 0.0
    heavy: float = 0.0
    crowd: int = 0


KINDS = {
    "clustered": RowsKind("a mixture, Zipf-weighted"),
    "random": RowsKind("one Gaussian: no codeword is much nearer than others", mixed=False),
    "offset": RowsKind("clustered, moved away from 0 by 10 spreads", offset=10.0),
    "heavy": RowsKind("clustered, each row times e^N: norms over many orders", heavy=1.0),
    "skewed": RowsKind("99 % of rows belong to one codeword", crowd=CROWD),
}


@dataclass(frozen=True, eq=False)
class FieldRows:
    """One field's rows on the device, and the codewords that everybody starts from.

    Attributes
    ----------
    name : str
    values : DeviceArray
        (n_rows · dim,) float32 or float16.
    n_rows, dim : int
    initial : float32 (k, dim)
    sample : array (m, dim)
        Rows on the host, as they are stored: float32 or float16.
    """

    name: str
    values: DeviceArray
    n_rows: int
    dim: int
    initial: Float32
    sample: NDArray[Any]


@dataclass(frozen=True, eq=False)
class TableRows:
    """Fields whose rows lie one after another in one array of the device."""

    values: DeviceArray
    dtype: str
    fields: tuple[FieldRows, ...]

    @property
    def n_rows(self) -> int:
        """Return the rows of all fields."""
        return sum(field.n_rows for field in self.fields)


def make_rows(
    machine: Machine, kind: RowsKind, n_rows: int, dim: int, n_codewords: int, dtype: str,
    samples: int,
) -> TableRows:  # fmt: skip
    """Return one field of rows, made on the device.

    Parameters
    ----------
    machine : Machine
    kind : RowsKind
    n_rows, dim, n_codewords : int
    dtype : {"float32", "float16"}
    samples : int
        Rows of the sample.
    """
    rng = np.random.default_rng([SEED, n_codewords, dim])
    components = 2 * n_codewords if kind.mixed else 1
    means = rng.standard_normal((components, dim)).astype(np.float32)
    shares = np.arange(1, components + 1) ** -COMPONENT_EXPONENT
    edges = np.cumsum(shares / shares.sum())
    edges[-1] = 1.0
    if not kind.mixed:
        means[:] = 0.0
    own, stream = machine.own, machine.own.stream()
    values = own.empty(n_rows * dim, np.dtype(dtype))
    own.launch(
        "make_rows_f16" if dtype == "float16" else "make_rows_f32",
        machine.device.limits.processors * BLOCKS_A_PROCESSOR, THREADS,
        {
            "means": machine.uploaded(means, stream),
            "edges": machine.uploaded(edges.astype(np.float32), stream),
            "values": values, "first_row": 0, "n_rows": n_rows,
            "sigma": COMPONENT_SIGMA if kind.mixed else 1.0, "offset": kind.offset,
            "heavy": kind.heavy, "limit": 2.0**LIMIT_EXPONENT, "seed": SEED, "dim": dim,
            "components": components, "crowd": kind.crowd,
        },
        shared_bytes=0, stream=stream,
    )  # fmt: skip
    own.synchronize(stream)
    chosen = initial_rows(rng, n_rows, n_codewords, kind.crowd)
    initial = gathered(machine, values, dim, chosen).astype(np.float32)
    spaced = np.linspace(0, n_rows - 1, min(samples, n_rows)).astype(np.int64)
    sample = gathered(machine, values, dim, spaced)
    return TableRows(values, dtype, (FieldRows("x", values, n_rows, dim, initial, sample),))


def initial_rows(
    rng: np.random.Generator, n_rows: int, n_codewords: int, crowd: int
) -> NDArray[np.int64]:
    """Return the rows that are the first codewords, fewer of few rows; of a crowd exactly one."""
    if not crowd:
        return np.sort(rng.choice(n_rows, min(n_codewords, n_rows), replace=False))
    outside = -(-n_rows // crowd)
    others = rng.choice(outside, min(n_codewords - 1, outside), replace=False) * crowd
    return np.sort(np.append(others, 1))


def gathered(
    machine: Machine, values: DeviceArray, dim: int, rows: Sequence[int] | NDArray[np.int64]
) -> NDArray[Any]:
    """Return some rows on the host, as stored."""
    stream = machine.own.stream()
    out = np.empty((len(rows), dim), values.dtype)
    for place, row in enumerate(rows):
        machine.own.download(values[int(row) * dim : (int(row) + 1) * dim], out[place], stream)
    machine.own.synchronize(stream)
    return out


def load_fields(machine: Machine, data: CaseData, samples: int) -> TableRows:
    """Return the fields of a case of bench/cases.py, copied to the device."""
    stream = machine.own.stream()
    values = machine.uploaded(data.values, stream)
    fields, first = [], 0
    for field in data.fields:
        n_rows, dim = field.rows.shape
        spaced = np.linspace(0, n_rows - 1, min(samples, n_rows)).astype(np.int64)
        own = values[first : first + n_rows * dim]
        fields.append(FieldRows(field.name, own, n_rows, dim, field.codewords, field.rows[spaced]))
        first += n_rows * dim
    return TableRows(values, "float32", tuple(fields))
