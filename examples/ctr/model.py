"""A DeepFM: first-order weights, pairwise products of the fields' vectors, and an MLP over them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

DIM = 16  # of a value's vector
COLUMNS = DIM + 1  # of a table: the vector, then the first-order weight
HIDDEN = (128, 64)
FIRST_SPREAD = 1e-4  # standard deviation of new rows, small beside the 1e-3 of trained ones


class DeepFM(nn.Module):
    """A click model over one embedding table a field, named `embedding.<field>.weight`.

    Guo, Tang, Ye, Li, He, DeepFM, IJCAI 2017, doi 10.24963/ijcai.2017/239. First-order weights
    are the last column of the tables, so that compressing a table compresses all that is kept of a
    value.

    Parameters
    ----------
    vocabularies : mapping of field to number of rows
        In the order of the columns of `ids`.
    dim : int
        Of a value's vector. Only models that are trained in fewer bytes have another than `DIM`.
    """

    def __init__(self, vocabularies: Mapping[str, int], dim: int = DIM) -> None:
        super().__init__()
        self.embedding = nn.ModuleDict(
            {field: nn.Embedding(rows, dim + 1) for field, rows in vocabularies.items()}
        )
        for table in full_tables(self).values():
            nn.init.normal_(table.weight, std=FIRST_SPREAD)
        layers: list[nn.Module] = []
        n_inputs = len(vocabularies) * dim
        for n_outputs in HIDDEN:
            layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
            n_inputs = n_outputs
        self.mlp = nn.Sequential(*layers, nn.Linear(n_inputs, 1))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of a click, float32 (n,).

        Parameters
        ----------
        ids : int32 (n, n_fields)
            Row of each field's table.
        """
        return self.logits(self.rows(ids))

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows that samples look up, float32 (n, n_fields, dim + 1)."""
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.embedding.values())], 1)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits of a click, float32 (n,), of rows (n, n_fields, dim + 1)."""
        vectors, weights = rows[..., :-1], rows[..., -1]
        # the sum of <v_f, v_g> over all pairs of fields, in one pass: (|Σ v|² − Σ |v|²) / 2
        pairs = (vectors.sum(1).square() - vectors.square().sum(1)).sum(1) / 2
        deep: Tensor = self.mlp(vectors.flatten(1)).squeeze(1)
        return self.bias + weights.sum(1) + pairs + deep


def table_name(field: str) -> str:
    """Return the name of a field's table in the model's state and in every file made from it."""
    return f"embedding.{field}.weight"


def full_tables(model: DeepFM) -> dict[str, nn.Embedding]:
    """Return the modules of the fields that are not compressed, by field."""
    return {
        field: table for field, table in model.embedding.items() if isinstance(table, nn.Embedding)
    }


def tables(model: DeepFM) -> dict[str, NDArray[np.float32]]:
    """Return the model's tables, float32 (rows, COLUMNS) by name; they share its memory."""
    return {
        table_name(field): table.weight.detach().numpy()
        for field, table in full_tables(model).items()
    }


def with_tables(model: DeepFM, others: Mapping[str, NDArray[np.float32]]) -> DeepFM:
    """Return a copy of the model with other tables, float32 (rows, COLUMNS) by name."""
    changed = copy.deepcopy(model)
    for name, rows in others.items():
        changed.get_parameter(name).data = torch.from_numpy(rows.copy())
    return changed


def grow(model: DeepFM, optimizer: torch.optim.Optimizer, vocabularies: Mapping[str, int]) -> None:
    """Append new rows to the tables, and zeros to what the optimizer keeps of each row."""
    for field, table in full_tables(model).items():
        weight, rows = table.weight, vocabularies[field]
        n_new = rows - len(weight)
        if n_new > 0:
            # The parameter stays the same object, so that the optimizer goes on with it.
            weight.data = torch.cat([weight.data, torch.randn(n_new, COLUMNS) * FIRST_SPREAD])
            weight.grad = None
            table.num_embeddings = rows
            state = optimizer.state[weight]
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    state[key] = torch.cat([state[key], torch.zeros(n_new, COLUMNS)])
