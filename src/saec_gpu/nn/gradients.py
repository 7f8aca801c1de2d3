"""How much a model's loss depends on the rows of each field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from saec_gpu.errors import ParamError
from saec_gpu.nn.models import weight_name
from saec_gpu.nn.modules import CompressedEmbedding, CompressedModule, looked_up, pooled

Batch = TypeVar("Batch")


def sensitivity(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], Tensor]
) -> dict[str, float]:
    """Return how much the loss depends on the rows of each field.

    Of a field with look-ups l = 1 … L in all batches, of rows of dim d:

        sensitivity = Σ_l Σ_j (∂loss / ∂x_lj)² / (L·d)

    x_l is the row as it is looked up at l, before pooling. Errors that are independent and centred
    change the loss, to first order, by a term of variance sensitivity × Σ_l |error of x_l|²: so a
    field's distortion, weighted by look-ups and scaled by its sensitivity, compares with another's
    in a budget of bytes.

    Parameters
    ----------
    model : Module
        Its `nn.Embedding`, `nn.EmbeddingBag` and compressed modules are the fields.
    batches : iterable
        Each is given to loss; of one size, if loss is a mean over its batch.
    loss : function
        Of the model and a batch: a scalar that was computed by calling the model.

    Returns
    -------
    sensitivities : dict of str to float
        By the field a compressed module was made from, else by the weight's name in the
        state_dict. 0 for a field that was not looked up.

    Raises
    ------
    ParamError
        There is no batch, or a loss is no scalar.

    Notes
    -----
    Look-ups of padding_idx do not count. No parameter and no `.grad` changes; frozen tables are
    seen, too. Training mode is left as it is: call `model.eval()` for a result without dropout.
    Holds the looked-up rows of one batch.

    Squared gradients as weights of distortion are from Choi, El-Khamy, Lee, "Towards the limit of
    network quantization", ICLR 2017 (a weight for each parameter); here it is one mean a field.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(5, 2))
    >>> sensitivity(model, [torch.tensor([0, 3])], lambda model, batch: 3 * model(batch).sum())
    {'0.weight': 9.0}
    """
    seen: list[_Lookups] = []
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    hooks = []
    n_batches = 0
    try:
        for path, module in model.named_modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag | CompressedModule):
                field = getattr(module, "field", None) or weight_name(path)
                sums[field], counts[field] = 0.0, 0
                hooks.append(
                    module.register_forward_hook(_watch(field, seen.append), with_kwargs=True)
                )
        for batch in batches:
            n_batches += 1
            seen.clear()
            with torch.enable_grad():
                value = loss(model, batch)
            if value.numel() != 1:
                raise ParamError(f"loss gave a tensor {tuple(value.shape)}; it must give a scalar")
            rows = [one.rows for one in seen]
            gradients = torch.autograd.grad(value, rows, allow_unused=True) if rows else ()
            for one, gradient in zip(seen, gradients, strict=True):
                counts[one.field] += one.n_values
                if gradient is not None:
                    sums[one.field] += float(gradient.to_dense().double().square().sum())
    finally:
        for hook in hooks:
            hook.remove()
    if not n_batches:
        raise ParamError("there is no batch; give at least one")
    return {field: total / counts[field] if total else 0.0 for field, total in sums.items()}


@dataclass(frozen=True)
class _Lookups:
    """The rows of one call of a module, one for each look-up, and how many values count."""

    field: str
    rows: Tensor
    n_values: int


def _watch(field: str, report: Callable[[_Lookups], None]) -> Callable[..., Tensor]:
    """Return a forward hook: it computes the output again, from a copy of each row looked up."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Tensor) -> Tensor:
        input, *others = _arguments(*args, **kwargs)
        whole = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        table = module.weight if whole else module.codebook
        places = input if whole else module.codes_of(input)
        rows = table.detach()[places.reshape(-1)].requires_grad_()
        numbers = torch.arange(input.numel(), device=input.device).view(input.shape)
        counted = input.numel()
        if module.padding_idx is not None:
            counted -= int((input == module.padding_idx).sum())
        report(_Lookups(field, rows, counted * rows.shape[1]))
        if isinstance(module, nn.Embedding | CompressedEmbedding):
            return looked_up(module, input, numbers, rows)
        return pooled(module, input, numbers, rows, *others)

    return hook


def _arguments(
    input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the arguments of a call of any of the modules, in order."""
    return input, offsets, per_sample_weights
