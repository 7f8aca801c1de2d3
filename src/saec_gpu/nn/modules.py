"""Modules that look rows up in a compressed table: a codebook and a code for each row.

The codebook is a parameter and is trained like any other; the codes stay as they are. The gradient
of a codeword is the sum of the gradients of the rows that have its code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name in every torch program
from numpy.typing import NDArray
from torch import Tensor, nn

from saec_gpu.artifact import Artifact, loaded
from saec_gpu.errors import ParamError
from saec_gpu.packing import code_bits

_DECODED_ROWS = 1 << 18  # by materialize at once: its int64 codes take 2 MB


class CompressedModule(nn.Module):
    """What both modules share: codebook, codes and where they come from."""

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    sparse: bool
    field: str | None
    codebook: nn.Parameter
    codes: Tensor | None

    def __init__(
        self,
        codebook: Tensor,
        codes: Tensor | NDArray[Any] | None,
        *,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if codebook.dim() != 2 or not codebook.is_floating_point():
            raise ParamError(
                f"the codebook is {codebook.dtype} {tuple(codebook.shape)}; "
                "give floating numbers of shape (codewords, dim)"
            )
        if max_norm is not None:
            raise ParamError(
                f"max_norm={max_norm!r} cannot be kept: it shortens rows in the table when they "
                "are looked up, and rows that share their codeword would change with them; train "
                "without it"
            )
        if scale_grad_by_freq:
            raise ParamError(
                "scale_grad_by_freq=True cannot be kept: it divides a row's gradient by how often "
                "the row was looked up, but a codeword's is the sum over many rows; train without "
                "it"
            )
        n_codewords, self.embedding_dim = codebook.shape
        stored = None if codes is None else stored_codes(codes, n_codewords).to(codebook.device)
        self.num_embeddings = n_codewords if stored is None else stored.shape[1]
        self.padding_idx = _row_number(padding_idx, self.num_embeddings)
        self.sparse = sparse
        self.field = None
        self.codebook = nn.Parameter(codebook.detach())
        self.register_buffer("codes", stored)

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact | str | os.PathLike[str],
        field: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Self:
        """Return the module of one field of an artifact.

        Parameters
        ----------
        artifact : Artifact or path
        field : str
            Its name in the artifact.
        dtype, device : optional
            Of the codebook; float32 and the CPU if they are not given.
        **options
            As the class takes them: padding_idx, sparse, …

        Raises
        ------
        ArtifactError
            The artifact cannot be read, or has no such field.
        ParamError
            An option is not allowed; see the class.

        Notes
        -----
        Holds whole bytes a row, not the packed bits of the artifact. A field kept whole has no
        codes; its rows are read as float32.

        Examples
        --------
        >>> import numpy as np, tempfile, saec_gpu as saec
        >>> rows = np.float32([[1, 2]] * 90 + [[3, 4]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = saec.compress({"item": rows}, codewords=2, out=f"{folder}/a.saec")
        ...     item = CompressedEmbedding.from_artifact(f"{folder}/a.saec", "item")
        >>> item(torch.tensor([0, 90])).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
        """
        one = loaded(artifact)[field]
        codebook = torch.tensor(one.codebook, dtype=dtype, device=device)
        made = cls(codebook, None if one.encoding == "identity" else one.codes, **options)
        made.field = field
        return made

    def codes_of(self, rows: Tensor) -> Tensor:
        """Return the codes of rows.

        Parameters
        ----------
        rows : int32 or int64 Tensor, any shape

        Returns
        -------
        codes : int64 Tensor, shape of rows
            For a module without codes the rows themselves.

        Raises
        ------
        IndexError
            A row is negative or not below num_embeddings (on a GPU, an assertion of the device).
        """
        if self.codes is None:
            return rows
        flat = rows.reshape(-1)
        codes: Tensor = self.codes[0].index_select(0, flat).long()
        for number, plane in enumerate(self.codes[1:], start=1):
            codes = codes | plane.index_select(0, flat).long() << 8 * number
        return codes.view(rows.shape)

    def extra_repr(self) -> str:
        """Return the sizes and what was set."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}, codewords={len(self.codebook)}"]
        if self.padding_idx is not None:
            parts.append(f"padding_idx={self.padding_idx}")
        if self.sparse:
            parts.append("sparse=True")
        return ", ".join(parts)

    def _decoded(self) -> Tensor:
        """Return the whole table."""
        codebook = self.codebook.detach()
        table = codebook.new_empty(self.num_embeddings, self.embedding_dim)
        for start in range(0, self.num_embeddings, _DECODED_ROWS):
            stop = min(start + _DECODED_ROWS, self.num_embeddings)
            rows = torch.arange(start, stop, device=table.device)
            table[start:stop] = codebook[self.codes_of(rows)]
        return table

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move or convert the module: `Module.type` would make codes floating numbers."""
        codes = self.codes
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if codes is not None and self.codes is not None and self.codes.dtype != codes.dtype:
            self.codes = codes.to(self.codes.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load a state: torch would copy codes of another dtype and cut off what does not fit."""
        found = state_dict.get(f"{prefix}codes")
        if self.codes is not None and found is not None and found.dtype != self.codes.dtype:
            error_msgs.append(
                f"{prefix}codes has {found.dtype} in the state, {self.codes.dtype} in the module; "
                "save the state_dict() of the module as it is"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class CompressedEmbedding(CompressedModule):
    """`nn.Embedding` of a compressed table: rows in, the codewords of their codes out.

    Parameters
    ----------
    codebook : floating Tensor (k, dim)
        The codewords. Becomes a parameter that shares its memory.
    codes : integer Tensor or array (n,), or None
        Code of each row, below k. None: a field kept whole, whose rows are the codewords.
    padding_idx : int, optional
        A row whose look-ups add nothing to the gradient. Its codeword may still move, by other rows
        that have it.
    max_norm : None
        Refused with the reason if it is given: it would shorten codewords, and so rows that were
        not looked up.
    scale_grad_by_freq : False
        Refused with the reason if it is set: it counts how often a row was looked up, but a
        codeword has many rows.
    sparse : bool
        Whether the gradient of the codebook is a sparse tensor.

    Attributes
    ----------
    num_embeddings, embedding_dim : int
        n and dim.
    codebook : Parameter (k, dim)
    codes : uint8 Tensor (bytes, n), or None
        Buffer: the lowest byte of every code, then the next one, … One byte up to 256 codewords,
        two up to 65,536, three up to 16,777,216. `codes_of` puts them together. (Bytes, because
        much of torch does not take uint16, and its process groups no int16.)
    field : str or None
        Field of the artifact it was made from.

    Raises
    ------
    ParamError
        Shapes or dtypes do not fit, a code is not below k, padding_idx is no row, or an option is
        refused.

    Notes
    -----
    The state_dict holds `codebook` and `codes`. A look-up widens the codes it meets, never all.
    Moves and dtypes change the codebook; codes change their device only. With both padding_idx and
    sparse, the gradient may hold a row of zeros for the codeword of the padding row.

    `DistributedDataParallel` sends all buffers around before each step. Codes do not change, so let
    it leave them (`broadcast_buffers=False`, in newer versions `forward_sync_buffers=False`).

    Examples
    --------
    >>> import torch
    >>> codebook = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> item = CompressedEmbedding(codebook, torch.tensor([1, 0, 1, 1]))
    >>> item
    CompressedEmbedding(4, 2, codewords=2)
    >>> item(torch.tensor([0, 2, 1])).sum().backward()
    >>> item.codebook.grad.tolist()
    [[1.0, 1.0], [2.0, 2.0]]
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the compressed rows.

        Parameters
        ----------
        input : int32 or int64 Tensor, any shape
            Row numbers.

        Returns
        -------
        vectors : Tensor, shape of input and dim, in the dtype of the codebook

        Raises
        ------
        IndexError
            A row is negative or not below num_embeddings (on a GPU, an assertion of the device).
        """
        return looked_up(self, input, self.codes_of(input), self.codebook)

    def materialize(self) -> nn.Embedding:
        """Return an `nn.Embedding` of all decoded rows, with the same settings."""
        made: nn.Embedding = nn.Embedding.from_pretrained(
            self._decoded(), freeze=not self.codebook.requires_grad, padding_idx=self.padding_idx,
            sparse=self.sparse,
        )  # fmt: skip
        return made.train(self.training)


class CompressedEmbeddingBag(CompressedModule):
    """`nn.EmbeddingBag` of a compressed table: bags of rows in, their pooled codewords out.

    Parameters
    ----------
    codebook, codes, sparse, max_norm, scale_grad_by_freq
        As for `CompressedEmbedding`.
    mode : {"mean", "sum", "max"}
        How the rows of a bag become one.
    include_last_offset : bool
        Whether offsets end with the number of all entries.
    padding_idx : int, optional
        A row that is left out of every bag.

    Raises
    ------
    ParamError
        As for `CompressedEmbedding`; or an unknown mode.

    Notes
    -----
    As for `CompressedEmbedding`.

    Examples
    --------
    >>> import torch
    >>> codebook = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> tags = CompressedEmbeddingBag(codebook, torch.tensor([1, 0, 1, 1]), mode="sum")
    >>> tags(torch.tensor([0, 2, 1]), offsets=torch.tensor([0, 2])).tolist()
    [[6.0, 8.0], [1.0, 2.0]]
    """

    def __init__(
        self,
        codebook: Tensor,
        codes: Tensor | NDArray[Any] | None,
        *,
        mode: str = "mean",
        include_last_offset: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(codebook, codes, **options)
        if mode not in ("mean", "sum", "max"):
            raise ParamError(f'mode={mode!r} was given; give "mean", "sum" or "max"')
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the pooled rows of each bag.

        Parameters
        ----------
        input : int32 or int64 Tensor (entries,) or (bags, entries of a bag)
            Row numbers.
        offsets : integer Tensor (bags,), or (bags + 1,) with include_last_offset
            Where each bag begins in a one-dimensional input.
        per_sample_weights : Tensor, shape of input, optional
            Factor of each entry, with mode "sum".

        Returns
        -------
        vectors : Tensor (bags, dim), in the dtype of the codebook
            Zeros for a bag without entries.

        Raises
        ------
        IndexError
            A row is negative or not below num_embeddings (on a GPU, an assertion of the device).
        ValueError, RuntimeError, NotImplementedError
            As `nn.EmbeddingBag`: shapes or dtypes do not fit; weights with another mode.
        """
        return pooled(self, input, self.codes_of(input), self.codebook, offsets, per_sample_weights)

    def extra_repr(self) -> str:
        """Return the sizes and what was set."""
        last = ", include_last_offset=True" if self.include_last_offset else ""
        return f"{super().extra_repr()}, mode={self.mode!r}{last}"

    def materialize(self) -> nn.EmbeddingBag:
        """Return an `nn.EmbeddingBag` of all decoded rows, with the same settings."""
        made = nn.EmbeddingBag.from_pretrained(
            self._decoded(), freeze=not self.codebook.requires_grad, mode=self.mode,
            sparse=self.sparse, include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )  # fmt: skip
        return made.train(self.training)


def looked_up(
    module: nn.Embedding | CompressedEmbedding, input: Tensor, places: Tensor, table: Tensor
) -> Tensor:
    """Return table[places]; where the input is padding, without gradient."""
    found = F.embedding(places, table, sparse=module.sparse)
    if module.padding_idx is None:
        return found
    # Not F.embedding's padding_idx: other rows may stand at the place of the padding row.
    padding = (input == module.padding_idx).unsqueeze(-1)
    return torch.where(padding, found.detach(), found)


def pooled(
    module: nn.EmbeddingBag | CompressedEmbeddingBag,
    input: Tensor,
    places: Tensor,
    table: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    """Return the bags of table[places], pooled; entries whose input is padding are left out."""
    well_formed = (
        input.dim() in (1, 2)
        and (input.dim() == 1) == (offsets is not None)
        and (weights is None or weights.shape == input.shape)
    )
    if module.padding_idx is None or not well_formed:  # what is not, torch refuses
        return F.embedding_bag(
            places, table, offsets, mode=module.mode, sparse=module.sparse,
            per_sample_weights=weights, include_last_offset=module.include_last_offset,
        )  # fmt: skip
    # Padding entries are moved behind all others, into a bag of their own that is thrown away: all
    # shapes stay known to torch.compile. F.embedding_bag's padding_idx would leave out other rows
    # at the same place, too.
    if offsets is None:
        offsets = torch.arange(0, input.numel(), input.shape[1], device=input.device)
    elif module.include_last_offset:
        offsets = offsets[:-1]
    padding = input.reshape(-1) == module.padding_idx
    order = torch.argsort(padding, stable=True)
    kept_before = F.pad((~padding).cumsum(0), (1, 0))
    # The first offset goes through as it is: torch refuses it unless it is 0.
    starts = torch.cat(
        [offsets[:1].long(), kept_before.index_select(0, offsets[1:]), kept_before[-1:]]
    )
    ordered = None if weights is None else weights.reshape(-1).index_select(0, order)
    pooled = F.embedding_bag(
        places.reshape(-1).index_select(0, order), table, starts, mode=module.mode,
        sparse=module.sparse, per_sample_weights=ordered,
    )  # fmt: skip
    return pooled[:-1]


def stored_codes(codes: Tensor | NDArray[Any], n_codewords: int) -> Tensor:
    """Return the bytes of codes as a module keeps them, uint8 (bytes, n), after checking them."""
    numbers = np.asarray(codes.cpu() if isinstance(codes, Tensor) else codes)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ParamError(
            f"the codes are {numbers.dtype} {numbers.shape}; give one integer for each row"
        )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n_codewords:
        row = int(np.flatnonzero((numbers < 0) | (numbers >= n_codewords))[0])
        raise ParamError(
            f"row {row} has code {numbers[row]}, but there are {n_codewords} codewords; "
            "give codes from 0 and below that"
        )
    n_bytes = max(1, -(-code_bits(n_codewords) // 8))
    planes = np.empty((n_bytes, len(numbers)), np.uint8)
    for number, plane in enumerate(planes):
        plane[:] = numbers >> 8 * number  # the bits above are cut off
    return torch.from_numpy(planes)


def _row_number(row: int | None, n_rows: int) -> int | None:
    """Return the row, counted from the end if it is negative."""
    if row is None:
        return None
    if not -n_rows <= row < n_rows:
        raise ParamError(f"padding_idx={row} is none of {n_rows} rows")
    return row % n_rows
