"""Compressed modules do what torch's own do with the decoded table, to the last bit.

Values are small whole numbers and bags have 0, 1, 2 or 4 entries, so that every sum and mean is
exact and does not depend on its order.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from saec_gpu.errors import ParamError
from saec_gpu.nn import CompressedEmbedding, CompressedEmbeddingBag
from saec_gpu.nn import modules as nn_modules

N_ROWS, N_CODEWORDS, DIM = 9, 4, 3
PADDING = 6
CODES = torch.tensor([1, 0, 2, 2, 3, 1, 2, 0, 2])  # the padding row shares its code with 2, 3, 8

# Of lists of rows: without the padding row they have 0, 1, 2 or 4 entries.
BAGS = [[3, PADDING, 1], [PADDING], [5], [0, 2, PADDING, 2, 4], [], [8, 7]]
# Likewise in a rectangle.
RECTANGLE = [[1, 8, 3, 0], [PADDING, 2, 2, PADDING], [PADDING] * 4, [PADDING, PADDING, PADDING, 7]]

Modules = tuple[Any, Any]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def whole_numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).float()


def embeddings(codes: Tensor = CODES, n_codewords: int = N_CODEWORDS, **options: Any) -> Modules:
    """Return the compressed module and torch's of the decoded table."""
    codebook = whole_numbers(n_codewords, DIM)
    reference = nn.Embedding.from_pretrained(codebook[codes], freeze=False, **options)
    return CompressedEmbedding(codebook, codes, **options), reference


def bags(**options: Any) -> Modules:
    codebook = whole_numbers(N_CODEWORDS, DIM)
    reference = nn.EmbeddingBag.from_pretrained(codebook[CODES], freeze=False, **options)
    return CompressedEmbeddingBag(codebook, CODES, **options), reference


def by_codeword(rows: Tensor, codes: Tensor = CODES, n_codewords: int = N_CODEWORDS) -> Tensor:
    """Return the sums of the rows of each codeword."""
    return torch.zeros(n_codewords, rows.shape[1]).index_add(0, codes, rows)


def train(module: Callable[..., Any], *arguments: Any, **named: Any) -> Tensor:
    """Call the module, and send whole numbers back through it."""
    output: Tensor = module(*arguments, **named)
    # Multiples of 4: means over bags of up to 4 send back whole numbers, too.
    output.backward(4 * whole_numbers(*output.shape, seed=1))
    return output


def dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.to_dense()


# Look-ups.


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("padding_idx", [None, PADDING, PADDING - N_ROWS, 0])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "rows", [[6, 2, 0, 6, 8, 8], [], [[1, 6], [6, 6]], [[[0], [8]], [[3], [3]]]], ids=str
)
def test_embedding(rows: Any, dtype: torch.dtype, padding_idx: int | None, sparse: bool) -> None:
    ours, reference = embeddings(padding_idx=padding_idx, sparse=sparse)
    given = torch.tensor(rows, dtype=dtype)
    assert torch.equal(train(ours, given), train(reference, given))
    assert ours.codebook.grad.is_sparse == sparse
    expected = by_codeword(dense(reference.weight.grad))
    assert torch.equal(dense(ours.codebook.grad), expected)
    assert (ours.num_embeddings, ours.embedding_dim) == (N_ROWS, DIM)
    assert ours.padding_idx == reference.padding_idx


@pytest.mark.parametrize("row", [4, PADDING])
def test_one_row_without_a_dimension(row: int) -> None:
    ours, reference = embeddings(padding_idx=PADDING)
    found = train(ours, torch.tensor(row))
    assert found.shape == (DIM,)
    assert torch.equal(found, train(reference, torch.tensor(row)))
    assert torch.equal(ours.codebook.grad, by_codeword(reference.weight.grad))


def test_the_gradient_of_other_rows_of_the_paddings_codeword_is_kept() -> None:
    ours, _ = embeddings(padding_idx=PADDING)
    ours(torch.tensor([PADDING, 2, PADDING])).sum().backward()
    assert ours.codebook.grad[CODES[2]].tolist() == [1.0] * DIM


@pytest.mark.parametrize(
    ("mode", "sparse", "weighted"),
    [
        ("sum", False, False),
        ("sum", False, True),
        ("sum", True, False),
        ("sum", True, True),
        ("mean", False, False),
        ("mean", True, False),
        ("max", False, False),  # torch refuses the others: test_what_torch_refuses
    ],
)
@pytest.mark.parametrize("padding_idx", [None, PADDING, PADDING - N_ROWS])
@pytest.mark.parametrize("form", ["offsets", "last offset", "int32", "rectangle"])
def test_embedding_bag(
    form: str, mode: str, padding_idx: int | None, sparse: bool, weighted: bool
) -> None:
    ours, reference = bags(
        mode=mode,
        padding_idx=padding_idx,
        sparse=sparse,
        include_last_offset=form == "last offset",
    )
    rows, offsets = bag_arguments(form, padded=padding_idx is not None)
    weights = [whole_numbers(*rows.shape, seed=2).requires_grad_() for _ in (ours, reference)]
    found, expected = (
        train(module, rows, offsets, per_sample_weights=own if weighted else None)
        for module, own in zip((ours, reference), weights, strict=True)
    )
    assert torch.equal(found, expected)
    assert ours.codebook.grad.is_sparse == sparse
    assert torch.equal(dense(ours.codebook.grad), by_codeword(dense(reference.weight.grad)))
    if weighted:
        gradient, expected = (dense(own.grad) for own in weights)
        assert torch.equal(gradient, expected)
        assert gradient.any()


def bag_arguments(form: str, *, padded: bool) -> tuple[Tensor, Tensor | None]:
    """Return rows and offsets of bags that have 0, 1, 2 or 4 entries beside the padding row."""
    if form == "rectangle":
        return torch.tensor(RECTANGLE), None
    dtype = torch.int32 if form == "int32" else torch.int64
    chosen = BAGS if padded else [[row for row in bag if row != PADDING] for bag in BAGS]
    lengths = [0, *map(len, chosen)]
    offsets = torch.tensor(lengths).cumsum(0)
    if form != "last offset":
        offsets = offsets[:-1]
    rows = [row for bag in chosen for row in bag]
    return torch.tensor(rows, dtype=dtype), offsets.to(dtype)


@pytest.mark.parametrize("padding_idx", [None, PADDING])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_no_bags_and_only_empty_bags(mode: str, padding_idx: int | None) -> None:
    ours, reference = bags(mode=mode, padding_idx=padding_idx)
    nothing = torch.tensor([], dtype=torch.int64)
    for offsets in (nothing, torch.tensor([0, 0, 0])):
        found = train(ours, nothing, offsets)
        assert torch.equal(found, train(reference, nothing, offsets))
        assert found.shape == (len(offsets), DIM)
    assert not ours.codebook.grad.any()


@pytest.mark.parametrize("row", [N_ROWS, -1, 2**40])
def test_rows_out_of_range(row: int) -> None:
    rows = torch.tensor([0, row])
    whole = whole_numbers(N_ROWS, DIM)
    for codebook, codes in ((whole[:N_CODEWORDS], CODES), (whole, None)):
        with pytest.raises(IndexError, match="out of range"):
            CompressedEmbedding(codebook, codes)(rows)
    with pytest.raises(IndexError, match="out of range"):
        bags()[0](rows, torch.tensor([0]))
    with pytest.raises(RuntimeError, match="not in the valid range"):
        CompressedEmbeddingBag(whole, None)(rows, torch.tensor([0]))


@pytest.mark.parametrize("padding_idx", [None, PADDING])
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"mode": "mean"}, ([[1, 6]], None, [[1.0, 2.0]])),  # weights with a mean
        ({"mode": "max"}, ([[1, 6]], None, [[1.0, 2.0]])),
        ({"mode": "max", "sparse": True}, ([[1, 6]],)),
        ({"mode": "sum"}, ([[1, 6]], [0, 1])),  # two forms at once
        ({"mode": "sum"}, ([1, 6],)),  # neither
        ({"mode": "sum"}, ([[[1]], [[6]]],)),  # three dimensions
        ({"mode": "sum"}, ([[[1]], [[6]]], [0])),
        ({"mode": "sum"}, ([1, 6], [[0]])),
        ({"mode": "sum"}, ([1, 6], [0], [1.0, 2.0, 3.0])),  # one weight more
        ({"mode": "sum"}, ([1, 6], [0], [[1.0, 2.0]])),
        ({"mode": "sum"}, ([[1, 6]], None, [1.0, 2.0])),
        ({"mode": "sum"}, ([6, 1], [1])),  # does not begin at 0
        ({"mode": "sum"}, ([6, 1], [0, 3])),  # ends behind the rows
    ],
)
def test_what_torch_refuses(
    options: dict[str, Any], arguments: tuple[Any, ...], padding_idx: int | None
) -> None:
    ours, reference = bags(padding_idx=padding_idx, **options)
    given = [None if one is None else torch.tensor(one) for one in arguments]
    refused = (ValueError, RuntimeError, IndexError, NotImplementedError)
    for module in (reference, ours):
        with pytest.raises(refused):
            module(*given)


def test_rows_that_are_no_integers() -> None:
    for module in embeddings():
        for dtype in (torch.float32, torch.uint8):
            with pytest.raises(RuntimeError, match=r"[Ii]nt"):
                module(torch.tensor([1], dtype=dtype))


# Codes.


@pytest.mark.parametrize(
    ("n_codewords", "n_bytes"), [(1, 1), (256, 1), (257, 2), (65536, 2), (65537, 3), (2**24 + 1, 4)]
)
@pytest.mark.parametrize("given", [torch.int64, torch.int32, np.uint32, np.uint64], ids=str)
def test_codes_take_the_least_bytes(n_codewords: int, n_bytes: int, given: Any) -> None:
    numbers = np.array([n_codewords - 1, 0, n_codewords // 2])
    codes: Any = torch.tensor(numbers)
    codes = codes.to(given) if isinstance(given, torch.dtype) else numbers.astype(given)
    codebook = torch.arange(n_codewords, dtype=torch.int32).double()[:, None]
    module = CompressedEmbedding(codebook, codes)
    assert module.codes is not None
    assert (module.codes.dtype, module.codes.shape) == (torch.uint8, (n_bytes, 3))
    found = module.codes_of(torch.tensor([[0, 1, 2]]))
    assert found.tolist() == [numbers.tolist()]
    assert module(torch.tensor([0, 1, 2]))[:, 0].tolist() == numbers.tolist()
    assert module.materialize().weight[:, 0].tolist() == numbers.tolist()


@pytest.mark.parametrize(
    "codes",
    [
        *(np.arange(3, dtype=dtype) for dtype in (np.uint8, np.int8, np.uint16, np.int16)),
        torch.arange(3).to(torch.uint16),
    ],
)
def test_codes_of_narrow_dtypes(codes: Any) -> None:
    module = CompressedEmbedding(torch.zeros(300, 1), codes)
    assert module.codes_of(torch.arange(3)).tolist() == [0, 1, 2]


class WidestInteger(TorchDispatchMode):
    """Remembers how many int64 values were made at once at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype == torch.int64:
            self.n_values = max(self.n_values, made.numel())
        return made


def test_a_look_up_widens_only_the_codes_that_it_meets() -> None:
    codebook, codes = whole_numbers(300, DIM), torch.arange(3000) % 300
    embedding = CompressedEmbedding(codebook, codes, padding_idx=1)
    bag = CompressedEmbeddingBag(codebook, codes, padding_idx=1)
    rows = torch.tensor([[4, 1], [2999, 4]])
    with WidestInteger() as widest:
        embedding(rows).sum().backward()
        bag(rows).sum().backward()
    assert 4 <= widest.n_values <= 8


def test_decoding_goes_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn_modules, "_DECODED_ROWS", 4)
    ours, reference = embeddings()
    with WidestInteger() as widest:
        assert torch.equal(ours.materialize().weight, reference.weight)
    assert widest.n_values == 4


@pytest.mark.parametrize(
    ("codebook", "codes", "message"),
    [
        (torch.zeros(4), CODES, "the codebook is"),
        (torch.zeros(4, 2, dtype=torch.int64), CODES, "the codebook is"),
        (torch.zeros(3, 2), CODES, "row 4 has code 3, but there are 3 codewords"),
        (torch.zeros(4, 2), CODES - 1, "row 1 has code -1"),
        (torch.zeros(40000, 2), torch.tensor([-1], dtype=torch.int16), "row 0 has code -1"),
        (torch.zeros(4, 2), CODES[None], "the codes are"),
        (torch.zeros(4, 2), CODES.float(), "the codes are"),
    ],
)
def test_codes_and_codebooks_that_do_not_fit(codebook: Any, codes: Any, message: str) -> None:
    for kind in (CompressedEmbedding, CompressedEmbeddingBag):
        with pytest.raises(ParamError, match=message):
            kind(codebook, codes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 1.0}, "max_norm=1.0 cannot be kept: .*share their codeword"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq=True cannot be kept"),
        ({"padding_idx": N_ROWS}, "padding_idx=9 is none of 9 rows"),
        ({"padding_idx": -N_ROWS - 1}, "padding_idx=-10"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    for kind in (CompressedEmbedding, CompressedEmbeddingBag):
        with pytest.raises(ParamError, match=message):
            kind(torch.zeros(4, 2), CODES, **options)
    with pytest.raises(ParamError, match="mode='median'"):
        CompressedEmbeddingBag(torch.zeros(4, 2), CODES, mode="median")


def test_a_field_kept_whole_has_no_codes() -> None:
    table = whole_numbers(N_ROWS, DIM)
    ours, reference = CompressedEmbedding(table, None), nn.Embedding.from_pretrained(table)
    rows = torch.tensor([8, 0, 8], dtype=torch.int32)
    assert torch.equal(train(ours, rows), reference(rows))
    assert ours.codes is None
    assert list(ours.state_dict()) == ["codebook"]
    assert torch.equal(ours.materialize().weight, table)
    assert ours.num_embeddings == N_ROWS


# Training.


def sgd(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter], lr=0.5, momentum=0.5)


def adam(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.Adam([parameter], lr=0.5)


def sparse_adam(parameter: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SparseAdam([parameter], lr=0.5)


@pytest.mark.parametrize("kind", ["embedding", "sum", "mean"])
@pytest.mark.parametrize(
    ("optimizer", "sparse"), [(sgd, False), (sgd, True), (adam, False), (sparse_adam, True)]
)
def test_optimizers(
    optimizer: Callable[[nn.Parameter], torch.optim.Optimizer], sparse: bool, kind: str
) -> None:
    ours, reference = (
        embeddings(sparse=sparse) if kind == "embedding" else bags(mode=kind, sparse=sparse)
    )
    plain = nn.Parameter(ours.codebook.detach().clone())
    steps = [optimizer(plain), optimizer(ours.codebook)]
    for rows in (torch.tensor([[8, 0], [3, 2]]), torch.tensor([[2, 2], [2, 3]])):
        for step in steps:
            step.zero_grad()
        reference.zero_grad()
        train(reference, rows)
        plain.grad = by_codeword(dense(reference.weight.grad))
        if sparse:
            met = CODES[rows].unique()
            plain.grad = torch.sparse_coo_tensor(
                met[None], plain.grad[met], plain.shape, check_invariants=True
            )
        train(ours, rows)
        for step in steps:
            step.step()
        assert torch.equal(ours.codebook, plain)
        reference.weight.data = plain.detach()[CODES]


@pytest.mark.parametrize("padding_idx", [None, PADDING])
@pytest.mark.parametrize("kind", ["embedding", "sum", "mean", "max"])
def test_compiled_in_one_graph(kind: str, padding_idx: int | None) -> None:
    # aot_eager traces forward and backward like the default backend, which then would spend most of
    # a minute in a C++ compiler.
    torch.compiler.reset()
    ours, reference = (
        embeddings(padding_idx=padding_idx)
        if kind == "embedding"
        else bags(mode=kind, padding_idx=padding_idx)
    )
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    if kind == "embedding":
        calls: list[tuple[Any, ...]] = [(torch.tensor([6, 2, 0]),), (torch.tensor([[8, 1]]),)]
    else:
        forms = ("rectangle", "offsets")
        calls = [bag_arguments(form, padded=padding_idx is not None) for form in forms]
    for arguments in calls:
        assert torch.equal(train(compiled, *arguments), train(reference, *arguments))
    assert torch.equal(ours.codebook.grad, by_codeword(dense(reference.weight.grad)))


@pytest.mark.parametrize("padding_idx", [None, PADDING])
@pytest.mark.parametrize("kind", ["embedding", "bag"])
def test_exported(kind: str, padding_idx: int | None) -> None:
    ours, reference = (embeddings if kind == "embedding" else bags)(padding_idx=padding_idx)
    program = torch.export.export(ours, (torch.tensor(RECTANGLE),))
    assert torch.equal(
        program.module()(torch.tensor(RECTANGLE)), reference(torch.tensor(RECTANGLE))
    )


@pytest.mark.parametrize("make", [embeddings, bags])
def test_autocast(make: Callable[..., Modules]) -> None:
    rows = torch.tensor(RECTANGLE)
    layer = nn.Linear(DIM, 2)
    outputs, gradients = [], []
    for module in make():
        with torch.autocast("cpu", torch.bfloat16):
            found = module(rows)
            outputs.append((found.detach(), layer(found).detach()))
            layer(found).sum().backward()
        gradients.append(next(module.parameters()).grad)
    for ours, reference in zip(*outputs, strict=True):
        assert ours.dtype == reference.dtype
        assert torch.equal(ours, reference)
    assert gradients[0].dtype == gradients[1].dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    rows, offsets = bag_arguments("offsets", padded=False)
    for make, arguments in ((embeddings, (rows,)), (bags, (rows, offsets))):
        ours, reference = (module.to(dtype) for module in make())
        found = ours(*arguments)
        assert found.dtype == dtype
        assert torch.equal(found, reference(*arguments))
        assert ours.codes.dtype == torch.uint8
        assert ours.materialize().weight.dtype == dtype


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.half(),
        lambda module: module.to("cpu", torch.float64),
        lambda module: module.type(torch.float16),
        lambda module: module.to("meta"),
        lambda module: module.to(torch.device("meta"), torch.float16),
        lambda module: module.to_empty(device="meta"),
    ],
)
def test_moves_leave_codes_whole(move: Callable[[Any], Any]) -> None:
    module = CompressedEmbedding(whole_numbers(40000, DIM), torch.arange(39990, 40000))
    before = module.codes
    assert before is not None
    model = nn.Sequential(module)
    move(model)
    assert module.codes is not None
    assert module.codes.dtype == torch.uint8
    assert module.codes.device == module.codebook.device
    if module.codes.is_meta:
        assert module(torch.tensor([[1, 2]], device="meta")).shape == (1, 2, DIM)
        assert module.materialize().weight.is_meta
    else:
        assert torch.equal(module.codes, before)
        assert module.codes_of(torch.tensor([9])).item() == 39999


# States and copies.


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", [embeddings, bags])
def test_state_dict(make: Callable[..., Modules], assign: bool) -> None:  # RELIABILITY 61
    ours, reference = make()
    state = nn.ModuleDict({"item": ours}).state_dict()
    assert list(state) == ["item.codebook", "item.codes"]
    other = type(ours)(torch.zeros(4, DIM), CODES * 0)
    nn.ModuleDict({"item": other}).load_state_dict(copy.deepcopy(state), assign=assign)
    rows = torch.tensor(RECTANGLE)
    assert torch.equal(train(other, rows), train(reference, rows))
    assert torch.equal(other.codes, ours.codes)
    assert torch.equal(other.codebook.grad, by_codeword(reference.weight.grad))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("codes"), "Missing key.*codes"),
        (lambda state: state.pop("codebook"), "Missing key.*codebook"),
        (lambda state: state.update(weight=torch.zeros(9, 3)), "Unexpected key.*weight"),
        (lambda state: state.update(codes=state["codes"][:, 1:]), "size mismatch for codes"),
        (lambda state: state.update(codebook=torch.zeros(5, 3)), "size mismatch for codebook"),
        (lambda state: state.update(codes=CODES + 256), "codes has torch.int64 in the state"),
        (lambda state: state.update(codes=CODES.half()), "codes has torch.float16 in the state"),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_states_that_do_not_fit(  # RELIABILITY 61
    change: Callable[[dict[str, Any]], Any], message: str, assign: bool
) -> None:
    ours, _ = embeddings()
    state = dict(ours.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=message):
        ours.load_state_dict(state, assign=assign)
    assert ours.codes.dtype == torch.uint8


def test_a_state_for_another_kind_of_field_is_refused() -> None:
    coded, whole = embeddings()[0], CompressedEmbedding(whole_numbers(N_CODEWORDS, DIM), None)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*codes"):
        whole.load_state_dict(coded.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*codes"):
        coded.load_state_dict(whole.state_dict())


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("make", [embeddings, bags])
def test_copies(make: Callable[..., Modules], copied: Callable[[Any], Any]) -> None:
    ours, reference = make(padding_idx=PADDING, sparse=True)
    ours.field = "item"
    other = copied(ours.eval())
    assert repr(other) == repr(ours)
    assert (other.field, other.training) == ("item", False)
    rows = torch.tensor(RECTANGLE)
    assert torch.equal(train(other, rows), train(reference, rows))
    assert ours.codebook.grad is None
    assert other.codes.data_ptr() != ours.codes.data_ptr()


def test_a_saved_state_loads_without_pickles(tmp_path: Path) -> None:
    ours, _ = embeddings()
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True, mmap=True)
    other, _ = embeddings(CODES.flip(0))
    other.load_state_dict(state)
    assert torch.equal(other.codes, ours.codes)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_materialize(training: bool, requires_grad: bool) -> None:
    embedding, _ = embeddings(padding_idx=PADDING, sparse=True)
    bag, _ = bags(mode="sum", padding_idx=PADDING, sparse=True, include_last_offset=True)
    for ours in (embedding, bag):
        ours.train(training).codebook.requires_grad_(requires_grad)
        made = ours.materialize()
        assert torch.equal(made.weight, ours.codebook[CODES])
        assert (made.padding_idx, made.sparse) == (PADDING, True)
        assert (made.training, made.weight.requires_grad) == (training, requires_grad)
    assert (made.mode, made.include_last_offset) == ("sum", True)
    assert type(embedding.materialize()) is nn.Embedding
    assert type(made) is nn.EmbeddingBag


def test_repr() -> None:
    assert repr(embeddings(padding_idx=PADDING)[0]) == (
        "CompressedEmbedding(9, 3, codewords=4, padding_idx=6)"
    )
    assert repr(bags(mode="sum", include_last_offset=True, sparse=True)[0]) == (
        "CompressedEmbeddingBag(9, 3, codewords=4, sparse=True, mode='sum', "
        "include_last_offset=True)"
    )


def test_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`DistributedDataParallel` sends the codes around, two bytes each here."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed: Any = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        ours, reference = embeddings(CODES * 99, 300)
        found = train(nn.parallel.DistributedDataParallel(ours), torch.tensor(RECTANGLE))
    finally:
        distributed.destroy_process_group()
    assert torch.equal(found, train(reference, torch.tensor(RECTANGLE)))
    expected = by_codeword(reference.weight.grad, CODES * 99, 300)
    assert torch.equal(ours.codebook.grad, expected)


def test_random_numbers_are_not_drawn() -> None:  # RELIABILITY 44
    before = torch.get_rng_state()
    for ours in (embeddings()[0], bags()[0]):
        train(ours.materialize(), torch.tensor(RECTANGLE))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import saec_gpu.nn"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.stderr.splitlines()[-1] == (
        "saec_gpu.errors.MissingExtraError: saec_gpu.nn needs the package torch, which is not "
        "installed; run: pip install 'saec_gpu[torch]'"
    )
