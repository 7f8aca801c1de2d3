"""Whole models: their embeddings replaced by compressed ones, and back into an artifact."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

import torch
from torch import nn

from saec_gpu.artifact import Artifact, CompressedField, load, loaded
from saec_gpu.artifact_writer import EncodedField, check_out, write_artifact
from saec_gpu.codewords import StoredCodewords, store
from saec_gpu.errors import ArtifactError, NonFiniteRowError, ParamError
from saec_gpu.manifest import codes_name, has_codes
from saec_gpu.nn.modules import (
    CompressedEmbedding,
    CompressedEmbeddingBag,
    CompressedModule,
    stored_codes,
)
from saec_gpu.sources.stored import listed
from saec_gpu.sources.torch import tensor_bits

Model = TypeVar("Model", bound=nn.Module)


def compress_module(
    model: Model,
    artifact: Artifact | str | os.PathLike[str],
    *,
    fields: Mapping[str, str] | None = None,
) -> Model:
    """Return the model with its embeddings replaced by the fields of an artifact, in place.

    Parameters
    ----------
    model : Module
    artifact : Artifact or path
    fields : mapping of str to str, optional
        Path of an embedding in the model, by name of its field; others stay. Without, all
        `nn.Embedding` and `nn.EmbeddingBag` are replaced, each by the field named like its weight
        in the state_dict ("embedding.item.weight"), and every field must have one.

    Returns
    -------
    model : Module
        The same one; if it is an embedding itself, what replaces it.

    Raises
    ------
    ParamError
        Names do not match (lists them), shapes do not, a weight is tied to another parameter, a
        module is of a subclass, or has max_norm or scale_grad_by_freq. Nothing was replaced then.
    ArtifactError
        The artifact cannot be read, or lacks a field of `fields`.

    Notes
    -----
    padding_idx, mode, include_last_offset, sparse, dtype, device, requires_grad and the training
    flag are kept; hooks are not. A module that stands at several places is replaced by one at all
    of them. Tables on the "meta" device become real on the CPU: the full ones need never exist.

    Examples
    --------
    >>> import numpy as np, tempfile, torch, saec_gpu as saec
    >>> rows = np.arange(400, dtype=np.float32).reshape(100, 4)
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 4), torch.nn.Linear(4, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = saec.compress({"0.weight": rows}, codewords=4, out=f"{folder}/a.saec")
    ...     compress_module(model, artifact)[0]
    CompressedEmbedding(100, 4, codewords=4)
    """
    opened = loaded(artifact)
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            paths.setdefault(module, []).append(path)
    chosen = _by_name(paths, opened) if fields is None else _by_mapping(paths, fields)
    _check_untied(model, chosen)
    made = {
        module: _replacement(module, paths[module][0], opened, name)
        for module, name in chosen.items()
    }
    if model in made:
        return cast("Model", made[model])
    for module, replacement in made.items():
        for path in paths[module]:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replacement)
    return model


def to_artifact(
    model: nn.Module,
    artifact: Artifact | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Artifact:
    """Return a new artifact with the codewords of a trained model and the codes of the old one.

    Parameters
    ----------
    model : Module
        With modules made from fields of the artifact; their attribute `field` names them.
    artifact : Artifact or path
        What they were made from. Its other fields are taken over.
    out : path
        Where the new one is written; may be the old one's place.
    overwrite : bool
        Whether an artifact at out is replaced.

    Raises
    ------
    ParamError
        The model has no such module, two of one field, or one that does not have the field's codes;
        a codeword that is stored as float16 has grown beyond it.
    NonFiniteRowError
        A codeword is NaN or infinite, in the dtype in which it is stored. Names the first.
    ArtifactError
        The artifact cannot be read or was replaced; the new one cannot be written.

    Notes
    -----
    Codewords are stored in the dtype they had, rows of a field kept whole in the table's. A field
    whose codewords changed has `sse` and `weighted_sse` null in the manifest and "retrained" at the
    end of its `history`: its codes are no longer those of the nearest codewords, so `verify` does
    not check them. A field whose codewords are as they were loaded stays what it was, to the bit.
    Files of codes are linked where the file system can, else copied.

    Examples
    --------
    >>> import numpy as np, tempfile, torch, saec_gpu as saec
    >>> from saec_gpu.nn import CompressedEmbedding
    >>> rows = np.float32([[1, 2]] * 90 + [[3, 4]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = saec.compress({"item": rows}, codewords=2, out=f"{folder}/a.saec")
    ...     item = CompressedEmbedding.from_artifact(artifact, "item")
    ...     with torch.no_grad():
    ...         _ = item.codebook.mul_(10)
    ...     to_artifact(item, artifact, f"{folder}/b.saec")["item"].lookup([0, 90])
    array([[10., 20.],
           [30., 40.]], dtype=float32)
    """
    opened = loaded(artifact)
    check_out(out, overwrite=overwrite)
    if load(opened.path).manifest != opened.manifest:
        raise ArtifactError(
            f'"{opened.path}" was replaced since it was loaded; load it again, and make the model '
            "from it"
        )
    trained = _trained(model, opened)
    encoded = [_encoded(opened, name, trained.get(name)) for name in opened.names]
    run = opened.run | {"retrained": {"torch": torch.__version__, "fields": sorted(trained)}}
    return write_artifact(
        out, encoded, parameters=opened.manifest["parameters"], run=run, overwrite=overwrite
    )


Paths = Mapping[nn.Module, list[str]]  # of each embedding in a model


def _by_name(paths: Paths, artifact: Artifact) -> dict[nn.Module, str]:
    """Return the field of each embedding: the one that is named like its weight."""
    found = {
        module: [name for name in map(weight_name, own) if name in artifact]
        for module, own in paths.items()
    }
    lacking = [paths[module][0] for module, names in found.items() if not names]
    unused = sorted(set(artifact).difference(*found.values()))
    if lacking or unused:
        raise ParamError(
            f"embeddings of the model without a field: {listed(lacking)}; fields without an "
            f'embedding: {listed(unused)}. The field of a module "x" must be named "x.weight"; '
            "otherwise give fields={path of the module: name of its field, …}"
        )
    for module, names in found.items():
        if len(names) > 1:
            raise ParamError(
                f"one embedding stands at {listed(paths[module])}, but the artifact has the fields "
                f"{listed(names)}; give fields={{path: name}} with one of them"
            )
    return {module: name for module, (name,) in found.items()}


def _by_mapping(paths: Paths, fields: Mapping[str, str]) -> dict[nn.Module, str]:
    """Return the field of each embedding that is named, by its path."""
    at = {path: module for module, own in paths.items() for path in own}
    unknown = sorted(set(fields) - set(at))
    if unknown:
        raise ParamError(
            f"fields names {listed(unknown)}, where the model has no embedding; it has {listed(at)}"
        )
    chosen: dict[nn.Module, str] = {}
    for path, name in fields.items():
        if chosen.setdefault(at[path], name) != name:
            raise ParamError(
                f"one embedding stands at {listed(paths[at[path]])}, but fields gives it two "
                f"fields, {chosen[at[path]]!r} and {name!r}; give one"
            )
    return chosen


def _check_untied(model: nn.Module, embeddings: Iterable[nn.Module]) -> None:
    """Raise ParamError if the weight of one is a parameter of another module, too."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for module in embeddings:
        names = owners[id(module.weight)]
        if len(names) > 1:
            raise ParamError(
                f"the weight {names[0]!r} is tied to {listed(names[1:])}, which needs all of its "
                "rows; give each module a weight of its own, or leave it out of fields"
            )


def _replacement(module: nn.Module, path: str, artifact: Artifact, name: str) -> CompressedModule:
    """Return the compressed module that takes the place of an embedding."""
    where = f"the module {path!r}"
    field = artifact[name]
    if type(module) is nn.Embedding:
        kind: type[CompressedModule] = CompressedEmbedding
        options = {}
    elif type(module) is nn.EmbeddingBag:
        kind = CompressedEmbeddingBag
        options = {"mode": module.mode, "include_last_offset": module.include_last_offset}
    else:
        raise ParamError(
            f"{where} is a {type(module).__name__}, whose own behaviour would be lost; "
            "leave it out of fields, or make its replacement by from_artifact"
        )
    if (module.num_embeddings, module.embedding_dim) != (field.n_rows, field.dim):
        raise ParamError(
            f"{where} has {module.num_embeddings} rows of {module.embedding_dim}, field {name!r} "
            f"{field.n_rows} of {field.dim}; give the artifact of this model's tables"
        )
    weight = module.weight
    try:
        made = kind.from_artifact(
            artifact, name, dtype=weight.dtype, device=None if weight.is_meta else weight.device,
            padding_idx=module.padding_idx, max_norm=module.max_norm,
            scale_grad_by_freq=module.scale_grad_by_freq, sparse=module.sparse, **options,
        )  # fmt: skip
    except ParamError as err:
        raise ParamError(f"{where}: {err}") from err
    made.codebook.requires_grad_(weight.requires_grad)
    return made.train(module.training)


def _trained(model: nn.Module, artifact: Artifact) -> dict[str, CompressedModule]:
    """Return the compressed modules of a model by their fields."""
    found: dict[str, CompressedModule] = {}
    for path, module in model.named_modules():
        if not isinstance(module, CompressedModule):
            continue
        name = module.field
        if name is None or name not in artifact:
            raise ParamError(
                f"the module {path!r} was made from field {name!r}, which the artifact does not "
                f"have; it has {listed(artifact.names)}"
            )
        if name in found:
            raise ParamError(
                f"two modules were made from field {name!r}, one of them {path!r}; the artifact "
                "has room for one: use one module at both places"
            )
        found[name] = module
    if not found:
        raise ParamError(
            "the model has no compressed module, so nothing to write; compress_module makes them"
        )
    return found


def _encoded(artifact: Artifact, name: str, module: CompressedModule | None) -> EncodedField:
    """Return a field as it is written, with the codewords of a module if these were trained."""
    field = artifact[name]
    record = dict(field.record)
    stored = field.stored
    if module is not None and _was_trained(field, module):
        # The dtype by which the artifact's format goes; its names are torch's, too.
        whole = field.encoding == "identity"
        dtype = field.dtype if whole else "float32"
        rounded = module.codebook.detach().to(getattr(torch, dtype))
        broken = torch.nonzero(~rounded.isfinite().all(dim=1))
        if len(broken):
            raise NonFiniteRowError(
                f'codeword {int(broken[0])} of field "{name}" holds NaN or infinity in {dtype}; '
                "train with a smaller step"
            )
        trained = tensor_bits(rounded)
        stored = StoredCodewords(trained) if whole else store(trained, stored.dtype, field=name)
        record["sse"] = record["weighted_sse"] = None
        record["history"] = [*record.get("history", ()), "retrained"]
    coded = has_codes(field.encoding, field.n_rows)
    number = artifact.names.index(name)
    return EncodedField(
        name=name,
        n_rows=field.n_rows,
        dim=field.dim,
        dtype=field.dtype,
        encoding=field.encoding,
        codebook=stored.values,
        scales=stored.scales,
        levels=field.levels,
        codes=artifact.path / codes_name(number) if coded else None,
        record=record,
    )


def _was_trained(field: CompressedField, module: CompressedModule) -> bool:
    """Return whether codewords differ from those that were loaded; ParamError if codes do."""
    loaded = torch.tensor(field.codebook, dtype=module.codebook.dtype)
    if loaded.shape != module.codebook.shape or not _same_codes(field, module):
        raise ParamError(
            f"the module of field {field.name!r} has other codes, or another number of codewords, "
            "than the artifact; give the artifact that it was made from"
        )
    return not torch.equal(loaded, module.codebook.detach().cpu())


def _same_codes(field: CompressedField, module: CompressedModule) -> bool:
    """Return whether a module has the codes of a field with as many codewords."""
    whole = field.encoding == "identity"
    if module.codes is None or whole:
        return module.codes is None and whole
    return torch.equal(stored_codes(field.codes, field.n_codewords), module.codes.cpu())


def weight_name(path: str) -> str:
    """Return the name of a module's weight in the state_dict of the model."""
    return f"{path}.weight" if path else "weight"
