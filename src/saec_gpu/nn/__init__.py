"""Compressed tables in PyTorch models: for retraining and for serving.

>>> import torch
>>> from saec_gpu.nn import CompressedEmbedding
>>> codebook = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
>>> item = CompressedEmbedding(codebook, torch.tensor([1, 0, 1, 1]))
>>> item(torch.tensor([0, 1])).tolist()
[[3.0, 4.0], [1.0, 2.0]]

Needs the extra `torch`; `import saec_gpu` does not load it.
"""

from __future__ import annotations

from saec_gpu.errors import MissingExtraError

try:
    from saec_gpu.nn.gradients import sensitivity
    from saec_gpu.nn.models import compress_module, to_artifact
    from saec_gpu.nn.modules import CompressedEmbedding, CompressedEmbeddingBag
except ModuleNotFoundError as err:
    if err.name != "torch":
        raise
    raise MissingExtraError.for_extra("torch", "torch", "saec_gpu.nn") from err

__all__ = [
    "CompressedEmbedding",
    "CompressedEmbeddingBag",
    "compress_module",
    "sensitivity",
    "to_artifact",
]
