"""Whole models: compressed, trained, back into an artifact; and what their loss depends on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

import saec_gpu as saec
from saec_gpu.artifact_writer import EncodedField, write_artifact
from saec_gpu.cli import app
from saec_gpu.errors import ArtifactError, NonFiniteRowError, ParamError
from saec_gpu.nn import (
    CompressedEmbedding,
    CompressedEmbeddingBag,
    compress_module,
    sensitivity,
    to_artifact,
)

Tables = dict[str, NDArray[Any]]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Clicks(nn.Module):
    """A click model: the tables of items, of tags in bags, and of a small field."""

    embedding: Any
    top: Any
    out: Any

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.ModuleDict(
            {
                "brand": nn.Embedding(5, 4),
                "item": nn.Embedding(300, 4, padding_idx=2),
                "tag": nn.EmbeddingBag(200, 4, mode="sum", sparse=True, include_last_offset=True),
            }
        )
        self.top = nn.Linear(12, 1)

    def forward(self, brand: Tensor, item: Tensor, tags: Tensor, offsets: Tensor) -> Tensor:
        found = [
            self.embedding["brand"](brand),
            self.embedding["item"](item),
            self.embedding["tag"](tags, offsets),
        ]
        logits: Tensor = self.top(torch.cat(found, dim=1)).squeeze(1)
        return logits


FIELDS = ("embedding.brand.weight", "embedding.item.weight", "embedding.tag.weight")


@pytest.fixture
def model() -> Clicks:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Clicks()


@pytest.fixture
def tables(model: Clicks) -> Tables:
    return {name: model.state_dict()[name].numpy().copy() for name in FIELDS}


@pytest.fixture
def artifact(tmp_path: Path, tables: Tables) -> saec.Artifact:
    counts = {name: np.arange(len(table)) % 7 for name, table in tables.items()}
    return saec.compress(tables, weights=counts, codewords=16, out=tmp_path / "a.saec")


BATCH = (
    torch.tensor([4, 0, 4]),
    torch.tensor([299, 2, 17]),
    torch.tensor([199, 0, 3, 3]),
    torch.tensor([0, 1, 1, 4]),
)


def train(model: nn.Module) -> None:
    """Train all parameters of a model for a few steps, so that the codewords met move."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(*BATCH).square().sum().backward()
        optimizer.step()


def whole(table: NDArray[Any], dtype: str = "float32") -> EncodedField:
    """Return a field "x.weight" that is kept whole."""
    record = {"sse": 0.0, "weighted_sse": None}
    n_rows, dim = table.shape
    return EncodedField("x.weight", n_rows, dim, dtype, "identity", table, None, record)


# One module.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("codewords", [16, 300])
def test_from_artifact(tmp_path: Path, dtype: str, codewords: int) -> None:
    rows = np.random.default_rng(3).standard_normal((300, 4)).astype(dtype)
    artifact = saec.compress({"x": rows}, codewords=codewords, out=tmp_path / "x.saec")
    kept_whole = codewords == 300 and dtype != "float64"  # float32 codewords are smaller than that
    assert (artifact["x"].encoding == "identity") == kept_whole
    numbers = torch.tensor([[299, 0], [7, 7]])
    expected = torch.tensor(artifact["x"].lookup(numbers.numpy()))
    for given in (artifact, artifact.path, str(artifact.path)):
        module = CompressedEmbedding.from_artifact(given, "x", padding_idx=-1, sparse=True)
        assert torch.equal(module(numbers), expected)
        assert (module.padding_idx, module.sparse, module.field) == (299, True, "x")
        assert (module.codes is None) == kept_whole
    bag = CompressedEmbeddingBag.from_artifact(artifact, "x", mode="sum", dtype=torch.float64)
    assert torch.equal(bag(numbers), expected.double().sum(dim=1))
    meta = CompressedEmbedding.from_artifact(artifact, "x", device="meta")
    assert meta.codebook.is_meta
    assert kept_whole or (meta.codes is not None and meta.codes.is_meta)


def test_from_artifact_of_an_unknown_field(artifact: saec.Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"no field 'x'.*embedding\.item"):
        CompressedEmbedding.from_artifact(artifact, "x")
    with pytest.raises(ArtifactError, match="there is no artifact"):
        CompressedEmbedding.from_artifact("nowhere.saec", "x")


def test_the_memory_of_an_artifact_is_not_trained(artifact: saec.Artifact) -> None:
    module = CompressedEmbedding.from_artifact(artifact, FIELDS[1])
    with torch.no_grad():
        module.codebook.add_(1)
    artifact.check_files()


# A whole model.


def test_compress_module(model: Clicks, artifact: saec.Artifact) -> None:
    reference = copy.deepcopy(model)
    for name in FIELDS:
        table = torch.tensor(artifact[name].lookup(np.arange(artifact[name].n_rows)))
        reference.get_parameter(name).data = table
    model.embedding["item"].eval()
    model.embedding["tag"].requires_grad_(False)
    generator = torch.get_rng_state()
    assert compress_module(model, artifact) is model
    assert torch.equal(torch.get_rng_state(), generator)  # RELIABILITY 44
    assert torch.equal(model(*BATCH), reference(*BATCH))
    brand, item, tag = model.embedding.values()
    assert [type(one) for one in (brand, item, tag)] == [
        CompressedEmbedding,
        CompressedEmbedding,
        CompressedEmbeddingBag,
    ]
    assert brand.codes is None  # 5 rows: kept whole
    assert [one.field for one in (brand, item, tag)] == list(FIELDS)
    assert [one.padding_idx for one in (brand, item, tag)] == [None, 2, None]
    assert [one.sparse for one in (brand, item, tag)] == [False, False, True]
    assert [one.training for one in (brand, item, tag)] == [True, False, True]
    assert [one.codebook.requires_grad for one in (brand, item, tag)] == [True, True, False]
    assert (tag.mode, tag.include_last_offset) == ("sum", True)


def test_dtype_and_device_are_kept(model: Clicks, artifact: saec.Artifact) -> None:
    compress_module(model.to(torch.bfloat16), artifact)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(*BATCH).dtype == torch.bfloat16


def test_tables_that_never_existed(artifact: saec.Artifact) -> None:
    with torch.device("meta"):
        model = Clicks()
    compress_module(
        model.embedding, artifact, fields=dict(zip(model.embedding, FIELDS, strict=True))
    )
    for one in model.embedding.values():
        assert one.codebook.device.type == "cpu"
        assert torch.equal(one.codebook, torch.tensor(artifact[one.field].codebook))
    assert model.top.weight.is_meta


def test_some_modules(model: Clicks, artifact: saec.Artifact) -> None:
    before = dict(model.embedding.items())
    compress_module(model, artifact, fields={"embedding.item": FIELDS[1]})
    assert isinstance(model.embedding["item"], CompressedEmbedding)
    assert [model.embedding[name] is before[name] for name in before] == [True, False, True]


def test_a_module_at_two_places_is_replaced_by_one(model: Clicks, artifact: saec.Artifact) -> None:
    model.embedding["again"] = model.embedding["item"]
    compress_module(model, artifact)
    assert model.embedding["again"] is model.embedding["item"]
    assert isinstance(model.embedding["item"], CompressedEmbedding)
    state = model.state_dict()
    assert torch.equal(state["embedding.again.codes"], state["embedding.item.codes"])


def test_a_model_that_is_an_embedding(tmp_path: Path) -> None:
    model = nn.Embedding(300, 4)
    rows = {"weight": model.weight.detach().numpy()}
    artifact = saec.compress(rows, codewords=16, out=tmp_path / "a.saec")
    made = compress_module(model, artifact)
    assert isinstance(made, CompressedEmbedding)
    assert isinstance(compress_module(model, artifact, fields={"": "weight"}), CompressedEmbedding)


def refused(model: nn.Module, artifact: saec.Artifact, message: str, **options: Any) -> None:
    """Check that compressing a model is an error and that nothing was replaced then."""
    before = [id(module) for module in model.modules()]
    with pytest.raises(ParamError, match=message):
        compress_module(model, artifact, **options)
    assert [id(module) for module in model.modules()] == before


def test_names_that_do_not_match(model: Clicks, artifact: saec.Artifact) -> None:
    model.embedding["user"] = model.embedding.pop("item")
    refused(
        model,
        artifact,
        r"without a field: embedding\.user; fields without an embedding: embedding\.item\.weight\.",
    )
    refused(model.embedding, artifact, r"without a field: brand, tag, user; fields without")
    refused(
        model.top, artifact, r"without a field: nothing; fields without an embedding: embedding"
    )
    refused(
        model,
        artifact,
        r"fields names item, .* it has embedding\.brand, embedding\.tag, embedding\.user",
        fields={"item": FIELDS[1]},
    )
    with pytest.raises(ArtifactError, match="no field 'item'"):
        compress_module(model, artifact, fields={"embedding.user": "item"})


def test_fields_of_two_names_of_one_module(tmp_path: Path, model: Clicks, tables: Tables) -> None:
    model.embedding["again"] = model.embedding["item"]
    again = {"embedding.again.weight": tables[FIELDS[1]]}
    artifact = saec.compress(tables | again, codewords=16, out=tmp_path / "two.saec")
    refused(
        model, artifact, r"at embedding\.item, embedding\.again, but .* the fields embedding\.it"
    )
    every = {name.removesuffix(".weight"): name for name in artifact}
    refused(model, artifact, "gives it two fields", fields=every)
    del every["embedding.again"]
    compress_module(model, artifact, fields=every)
    assert model.embedding["again"] is model.embedding["item"]


def test_tied_weights(model: Clicks, artifact: saec.Artifact) -> None:
    model.out = nn.Linear(4, 300, bias=False)
    model.out.weight = model.embedding["item"].weight
    refused(model, artifact, r"'embedding\.item\.weight' is tied to out\.weight")
    model.out = nn.Embedding(300, 4, _weight=model.embedding["item"].weight)
    model.out.weight = model.embedding["item"].weight
    both = {"embedding.item": FIELDS[1], "out": FIELDS[1]}
    refused(model, artifact, r"'embedding\.item\.weight' is tied to out\.weight", fields=both)
    compress_module(model, artifact, fields={"embedding.brand": FIELDS[0]})


class Positions(nn.Embedding):
    pass


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Embedding(300, 4, max_norm=1.0), r"'embedding\.item': max_norm=1\.0 cannot be kept"),
        (nn.Embedding(300, 4, scale_grad_by_freq=True), r"scale_grad_by_freq=True cannot be kept"),
        (nn.Embedding(299, 4), r"'embedding\.item' has 299 rows of 4, field .* 300 of 4"),
        (nn.Embedding(300, 3), r"has 300 rows of 3"),
        (Positions(300, 4), "is a Positions, whose own behaviour would be lost"),
    ],
)
def test_modules_that_are_refused(
    model: Clicks, artifact: saec.Artifact, module: nn.Module, message: str
) -> None:
    model.embedding["item"] = module
    refused(model, artifact, message)


# Back into an artifact.


def test_compress_train_write_load(
    tmp_path: Path, model: Clicks, artifact: saec.Artifact, tables: Tables
) -> None:
    compress_module(model, artifact)
    train(model)
    made = to_artifact(model, artifact, tmp_path / "b.saec")
    made.check_files()
    assert made.names == artifact.names
    assert made.manifest["parameters"] == artifact.manifest["parameters"]
    assert (made.counted_bytes, made.table_bytes) == (artifact.counted_bytes, artifact.table_bytes)
    assert made.run["backend"] == artifact.run["backend"]
    assert made.run["retrained"] == {"torch": torch.__version__, "fields": list(FIELDS)}
    again = compress_module(Clicks(), tmp_path / "b.saec")
    again.top = model.top
    assert torch.equal(again(*BATCH), model(*BATCH))
    for name, module in zip(FIELDS, model.embedding.values(), strict=True):
        new, old = made[name], artifact[name]
        assert np.array_equal(new.codebook, module.codebook.detach().numpy())
        assert not np.array_equal(new.codebook, old.codebook)
        assert np.array_equal(new.codes, old.codes)
        assert new.encoding == old.encoding
        assert new.record["history"] == ["retrained"]
        unknown = {"history", "sse", "weighted_sse"}
        kept = {key: value for key, value in new.record.items() if key not in unknown}
        assert kept == {key: value for key, value in old.record.items() if key not in unknown}
    assert artifact.verify(tables).ok


def test_a_retrained_field_is_not_checked(
    tmp_path: Path, model: Clicks, artifact: saec.Artifact, tables: Tables
) -> None:
    compress_module(model, artifact)
    model.embedding["tag"].requires_grad_(False)
    model.embedding["brand"].requires_grad_(False)
    train(model)
    made = to_artifact(model, artifact, tmp_path / "b.saec")
    counts = {name: np.arange(len(table)) % 7 for name, table in tables.items()}
    for options in ({}, {"weights": counts}):
        found = made.verify(tables, **options)
        assert found.ok
        assert found.notes == (
            'field "embedding.item.weight" was retrained: its codes and errors are not checked',
        )
        assert [one.retrained for one in found.fields] == [False, True, False]
    item = made["embedding.item.weight"]
    assert (item.record["sse"], item.record["weighted_sse"]) == (None, None)
    # the others are what they were, and checked
    assert made[FIELDS[2]].record == artifact[FIELDS[2]].record
    tables[FIELDS[2]][0] += 1
    found = made.verify(tables)
    assert [one.ok for one in found.fields] == [True, True, False]
    tables[FIELDS[1]] = tables[FIELDS[1]][1:]
    with pytest.raises(saec.SourceError, match="300 × 4"):
        made.verify(tables)


def test_commands_say_that_it_was_retrained(
    tmp_path: Path, model: Clicks, artifact: saec.Artifact, tables: Tables
) -> None:
    torch.save(tables_of(tables), tmp_path / "model.pt")
    compress_module(model, artifact)
    train(model)
    out, source = str(tmp_path / "b.saec"), str(tmp_path / "model.pt")
    to_artifact(model, artifact, out)
    told = CliRunner().invoke(app, ["verify", out, source])
    assert told.exit_code == 0, told.output
    assert told.output.count("was retrained") == 3
    assert "verified" not in told.output
    told = CliRunner().invoke(app, ["verify", out, source, "--json"])
    found = json.loads(told.output)
    assert found["ok"] is True
    assert len(found["notes"]) == 3
    told = CliRunner().invoke(app, ["inspect", out])
    assert told.output.count("retrained") == 4
    assert "3 retrained fields aside" in told.output
    del model.embedding["tag"], model.embedding["brand"]
    to_artifact(model, artifact, out, overwrite=True)
    told = CliRunner().invoke(app, ["verify", out, source])
    assert "verified: 2 fields" in told.output
    assert "item.weight" in told.output


def tables_of(tables: Tables) -> dict[str, Tensor]:
    return {name: torch.tensor(table) for name, table in tables.items()}


def test_what_was_not_trained_stays_to_the_bit(
    tmp_path: Path, model: Clicks, artifact: saec.Artifact, tables: Tables
) -> None:
    compress_module(model.to(torch.bfloat16), artifact)
    made = to_artifact(model, artifact, tmp_path / "b.saec")
    assert made.manifest == artifact.manifest
    assert made.verify(tables).notes == ()


def test_codes_are_linked(tmp_path: Path, model: Clicks, artifact: saec.Artifact) -> None:
    compress_module(model, artifact)
    made = to_artifact(model, artifact, tmp_path / "b.saec")
    assert (made.path / "codes" / "1.npy").samefile(artifact.path / "codes" / "1.npy")


def test_in_place_and_again(model: Clicks, artifact: saec.Artifact) -> None:
    compress_module(model, artifact)
    train(model)
    with pytest.raises(ArtifactError, match="exists"):
        to_artifact(model, artifact, artifact.path)
    once = to_artifact(model, artifact, artifact.path, overwrite=True)
    assert once.path == artifact.path
    with pytest.raises(ArtifactError, match="was replaced since it was loaded"):
        to_artifact(model, artifact, artifact.path, overwrite=True)
    same = to_artifact(model, once, artifact.path, overwrite=True)
    assert same[FIELDS[1]].record["history"] == ["retrained"]
    train(model)
    twice = to_artifact(model, str(artifact.path), artifact.path, overwrite=True)
    assert twice[FIELDS[1]].record["history"] == ["retrained", "retrained"]


def test_fields_that_the_model_has_not_are_taken_over(
    tmp_path: Path, artifact: saec.Artifact
) -> None:
    module = CompressedEmbedding.from_artifact(artifact, FIELDS[1])
    with torch.no_grad():
        module.codebook.add_(1)
    made = to_artifact(module, artifact, tmp_path / "b.saec")
    assert np.array_equal(made[FIELDS[1]].codebook, artifact[FIELDS[1]].codebook + 1)
    for name in (FIELDS[0], FIELDS[2]):
        assert np.array_equal(made[name].codebook, artifact[name].codebook)
        assert made[name].record == artifact[name].record


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_kept_whole_stay_in_their_dtype(tmp_path: Path, dtype: str) -> None:
    table = np.random.default_rng(4).standard_normal((5, 3)).astype(dtype)
    stored = table.view(np.uint16) if table.dtype == ml_dtypes.bfloat16 else table
    artifact = write_artifact(
        tmp_path / "a.saec", [whole(stored, dtype)], parameters={}, run={}, overwrite=False
    )
    module = CompressedEmbedding.from_artifact(artifact, "x.weight")
    same = to_artifact(module, artifact, tmp_path / "same.saec")
    assert same.verify({"x.weight": table}).ok  # float64 too, though the module holds float32
    assert same.manifest == artifact.manifest
    with torch.no_grad():
        module.codebook.add_(1)
    made = to_artifact(module, artifact, tmp_path / "b.saec")
    expected = module.codebook.detach().numpy().astype(dtype)
    assert (made["x.weight"].dtype, made["x.weight"].encoding) == (dtype, "identity")
    assert np.array_equal(made["x.weight"].codebook, expected.astype(np.float32))


def test_codewords_that_are_no_numbers(
    tmp_path: Path, model: Clicks, artifact: saec.Artifact
) -> None:
    compress_module(model, artifact)
    model.embedding["item"].codebook.data[3, 1] = torch.nan
    with pytest.raises(NonFiniteRowError, match=r'codeword 3 of field "embedding\.item\.weight"'):
        to_artifact(model, artifact, tmp_path / "b.saec")
    assert not (tmp_path / "b.saec").exists()


def test_rows_that_do_not_fit_their_dtype(tmp_path: Path) -> None:
    field = whole(np.ones((2, 2), np.float16), "float16")
    artifact = write_artifact(tmp_path / "a.saec", [field], parameters={}, run={}, overwrite=False)
    module = CompressedEmbedding.from_artifact(artifact, "x.weight")
    module.codebook.data[1, 0] = 1e6
    with pytest.raises(NonFiniteRowError, match=r"codeword 1 .* in float16"):
        to_artifact(module, artifact, tmp_path / "b.saec")


def test_models_that_do_not_fit_the_artifact(
    tmp_path: Path, model: Clicks, artifact: saec.Artifact, tables: Tables
) -> None:
    out = tmp_path / "b.saec"
    with pytest.raises(ParamError, match="no compressed module"):
        to_artifact(model, artifact, out)
    compress_module(model, artifact)
    item = model.embedding["item"]
    copies = nn.ModuleList([item, item, copy.deepcopy(item)])
    with pytest.raises(ParamError, match=r"two modules .* one of them '2'"):
        to_artifact(copies, artifact, out)
    other = saec.compress({"x": tables[FIELDS[1]]}, codewords=16, out=tmp_path / "x.saec")
    with pytest.raises(ParamError, match=r"field 'embedding\.brand\.weight', which .* it has x"):
        to_artifact(model, other, out)
    own = item.codes_of(torch.arange(300))
    with pytest.raises(ParamError, match="field None"):
        to_artifact(CompressedEmbedding(item.codebook, own), artifact, out)
    for codebook, codes in (
        (item.codebook, own.flip(0)),
        (item.codebook[:-1], own.clamp(max=14)),
        (item.codebook, None),
        (torch.zeros(300, 4), own),
        (torch.zeros(300, 4), None),
    ):
        changed = CompressedEmbedding(codebook, codes)
        changed.field = item.field
        with pytest.raises(ParamError, match="other codes, or another number of codewords"):
            to_artifact(changed, artifact, out)
    brand = CompressedEmbedding(model.embedding["brand"].codebook, torch.arange(5))
    brand.field = FIELDS[0]
    with pytest.raises(ParamError, match="other codes"):
        to_artifact(brand, artifact, out)
    assert not out.exists()


# Sensitivity.


def test_sensitivity_by_hand() -> None:
    """Loss Σ w·row over look-ups, so that the gradient of each is its w."""
    model = nn.ModuleDict({"a": nn.Embedding(4, 2), "b": nn.Embedding(9, 1, padding_idx=0)})
    batches = [
        (torch.tensor([3, 3]), torch.tensor([0, 1, 0])),
        (torch.tensor([0]), torch.tensor([[8, 1, 2]])),
    ]

    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Any:
        weights = torch.tensor([3.0, 1.0])
        return (model["a"](batch[0]) * weights).sum() + 2 * model["b"](batch[1]).sum()

    # a: (9 + 1)·3 over 3 look-ups of 2; b: 4 each of 4 look-ups, without the padding
    assert sensitivity(model, batches, loss) == {"a.weight": 5.0, "b.weight": 4.0}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sum", (4 + 4 + 4 + 4) / 4),
        ("mean", (4 / 9 * 3 + 4) / 4),
        ("max", (4 + 4) / 4),
    ],
)
def test_sensitivity_of_bags(mode: str, expected: float) -> None:
    """Gradient 2 of each bag, of 3 and 1 rows without the padding row."""
    table = torch.tensor([[1.0], [2.0], [3.0], [4.0], [9.0]])
    codes = torch.tensor([0, 1, 2, 3, 3])
    bags = torch.tensor([4, 0, 1, 4, 2, 0, 4]), torch.tensor([0, 5])
    for model in (
        nn.EmbeddingBag.from_pretrained(table, mode=mode, padding_idx=4),
        CompressedEmbeddingBag(table[:4], codes, mode=mode, padding_idx=4),
    ):
        (found,) = sensitivity(model, [bags], lambda model, batch: 2 * model(*batch).sum()).values()
        assert found == pytest.approx(expected, rel=1e-6)  # 2/3 is not exact


def test_sensitivity_of_weighted_bags() -> None:
    model = nn.EmbeddingBag(3, 2, mode="sum")
    batch = torch.tensor([[0, 1]]), torch.tensor([[3.0, -1.0]])

    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Any:
        return model(batch[0], per_sample_weights=batch[1]).sum()

    assert sensitivity(model, [batch], loss) == {"weight": 5.0}


def square(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    loss: Tensor = model(*batch).square().sum()
    return loss


def test_sensitivity_is_that_of_the_decoded_tables(model: Clicks, artifact: saec.Artifact) -> None:
    reference = copy.deepcopy(compress_module(model, artifact))
    for name, module in reference.embedding.items():
        reference.embedding[name] = module.materialize()
    found = sensitivity(model, [BATCH, BATCH], square)
    assert list(found) == list(FIELDS)
    assert found == sensitivity(reference, [BATCH], square)
    assert min(found.values()) > 0


def test_sensitivity_is_named_by_the_field(artifact: saec.Artifact) -> None:
    module = CompressedEmbedding.from_artifact(artifact, FIELDS[1])
    found = sensitivity(
        nn.Sequential(module), [torch.tensor([1])], lambda one, batch: one(batch).sum()
    )
    assert found == {FIELDS[1]: 1.0}


def test_sensitivity_changes_nothing(model: Clicks) -> None:
    model.embedding.requires_grad_(False)
    model(*BATCH).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = gradients_of(model)
    generator = torch.get_rng_state()
    with torch.no_grad():
        found = sensitivity(model, iter([BATCH]), square)
    assert min(found.values()) > 0  # of frozen tables
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert gradients_of(model) == gradients
    assert torch.equal(torch.get_rng_state(), generator)  # RELIABILITY 44
    assert hooks(model) == 0


def gradients_of(model: nn.Module) -> list[Any]:
    gradients = [parameter.grad for parameter in model.parameters()]
    return [None if gradient is None else gradient.tolist() for gradient in gradients]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_fields_that_were_not_looked_up(model: Clicks) -> None:
    def loss(model: Any, batch: int) -> Any:
        unused = model.embedding["tag"](torch.tensor([[1]]))
        assert unused.requires_grad
        if batch == 0:
            return model.top.weight.sum()
        return model.embedding["item"](torch.tensor([batch])).sum()

    # the second batch looks one row of item up, the first none at all
    assert sensitivity(model, [0, 1], loss) == dict(zip(FIELDS, (0.0, 1.0, 0.0), strict=True))
    assert sensitivity(model.top, [0], lambda model, batch: next(model.parameters()).sum()) == {}


def test_a_module_that_is_called_twice() -> None:
    model = nn.Embedding(4, 1)

    def loss(model: Any, batch: Tensor) -> Any:
        return 3 * model(batch).sum() + 4 * model(batch[:1]).sum() + 5 * model(batch[:1]).sum()

    found = sensitivity(model, [torch.tensor([1, 2])], loss)
    assert found == {"weight": (9 + 9 + 16 + 25) / 4}


def test_sensitivity_without_a_batch_or_a_scalar(model: Clicks) -> None:
    with pytest.raises(ParamError, match="no batch"):
        sensitivity(model, [], square)
    with pytest.raises(ParamError, match=r"a tensor \(3,\); it must give a scalar"):
        sensitivity(model, [BATCH], lambda model, batch: model(*batch))
    assert hooks(model) == 0
