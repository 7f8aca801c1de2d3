"""Make a small model to try saec_gpu on: a safetensors checkpoint and its lookup counts.

The checkpoint holds what a click model has: one embedding table per field, under the name
"embedding.<field>.weight", and the layers of a small MLP, "mlp.<number>.weight" and ".bias". The
counts are one vector per embedding table, under the same name. Needs no torch.

    python examples/make_checkpoint.py --out model.safetensors --counts counts.safetensors

With --later it is the same model an hour later: each table has grown, and some rows are other ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from saec_gpu.synthetic import recommender_tables

FIELDS = ("user", "item", "tag", "brand", "shop", "city", "category", "hour")  # most rows first
HIDDEN = (64, 32, 1)
CHANGED, GROWTH, NOISE = 0.1, 0.02, 0.1  # an hour, of rows; of values


def layers(n_inputs: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Return the weights (outputs, inputs) and biases (outputs,) of an MLP, by name."""
    rng = np.random.default_rng(seed)
    found = {}
    for number, n_outputs in enumerate(HIDDEN):
        weight = rng.standard_normal((n_outputs, n_inputs), dtype=np.float32)
        found[f"mlp.{number}.weight"] = weight / np.float32(n_inputs**0.5)
        found[f"mlp.{number}.bias"] = np.zeros(n_outputs, np.float32)
        n_inputs = n_outputs
    return found


def later(
    rows: NDArray[np.float32], counts: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a table and its lookups an hour later; rows that change become like others."""
    n_rows, dim = rows.shape
    n_new = round(GROWTH * n_rows)
    changed = rng.choice(n_rows, round(CHANGED * n_rows), replace=False)
    models = rng.integers(n_rows, size=len(changed) + n_new)
    made = rows[models] + np.float32(NOISE) * rng.standard_normal((len(models), dim), np.float32)
    moved = rows.copy()
    moved[changed] = made[: len(changed)]
    new = slice(len(changed), None)
    return np.concatenate([moved, made[new]]), np.concatenate([counts, counts[models[new]]])


def main() -> None:
    """Write both files and say what is in them."""
    parser = argparse.ArgumentParser(
        description="Make a small model checkpoint and its lookup counts, both as safetensors."
    )
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--counts", type=Path, help="the lookup counts to write")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of all fields together")
    parser.add_argument("--dim", type=int, default=16, help="columns of every embedding table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--later", action="store_true", help="an hour later")
    options = parser.parse_args()

    made, lookups = recommender_tables(options.rows, len(FIELDS), options.dim, options.seed)
    by_size = sorted(made, key=lambda name: (-len(made[name]), name))
    rng = np.random.default_rng([options.seed, options.later])
    tables, counts = {}, {}
    for field, name in zip(FIELDS, by_size, strict=True):
        table, seen = made[name], lookups[name]
        if options.later:
            table, seen = later(table, seen, rng)
        tables[f"embedding.{field}.weight"] = table
        counts[f"embedding.{field}.weight"] = seen
    save_file({**tables, **layers(len(FIELDS) * options.dim, options.seed)}, options.out)
    n_bytes = sum(table.nbytes for table in tables.values())
    print(f"{options.out}: {len(tables)} embedding tables, {n_bytes:,} bytes, and an MLP")
    if options.counts is not None:
        save_file(counts, options.counts)
        n_lookups = int(counts["embedding.user.weight"].sum())
        print(f"{options.counts}: {n_lookups:,} lookups of each table")


if __name__ == "__main__":
    main()
