"""The seam to saec_gpu: a model whose tables are those of an artifact, codes frozen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from saec_gpu.artifact import Artifact, CompressedField

from .model import DeepFM, table_name


class CompressedEmbedding(nn.Module):
    """A table of codewords, looked up through a code a row; in place of an `nn.Embedding`.

    Attributes
    ----------
    codebook : parameter, float32 (k, dim)
    codes : buffer, int64 (n_rows,)
        Which codeword each row is; never trained.
    """

    def __init__(self, codebook: Tensor, codes: Tensor) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codebook)
        self.register_buffer("codes", codes)
        self.codes: Tensor

    @classmethod
    def from_artifact(cls, artifact: Artifact, field: str) -> CompressedEmbedding:
        """Return the module of one field of an artifact."""
        stored: CompressedField = artifact[field]
        codes = np.asarray(stored.codes, np.int64)
        return cls(torch.from_numpy(stored.codebook.copy()), torch.from_numpy(codes))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the codewords of some rows, float32 (…, dim)."""
        return functional.embedding(self.codes[rows], self.codebook)


def compress_module(model: DeepFM, artifact: Artifact) -> DeepFM:
    """Return the model with its tables replaced by the artifact's fields, in place.

    Raises
    ------
    ArtifactError
        The artifact lacks a field of the model. Names it.
    """
    for field in list(model.embedding):
        name = table_name(field)
        model.embedding[field] = CompressedEmbedding.from_artifact(artifact, name)
    return model
