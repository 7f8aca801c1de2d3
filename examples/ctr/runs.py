"""A run's folder: what `train` leaves for the commands after it.

model.safetensors   tables, `embedding.<field>.weight`, and the dense layers
counts.safetensors  how often each row was looked up in training, under the tables' names
train.json          data, seed, settings, metrics; also what a model is built from
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from saec_gpu.artifact import Artifact
from saec_gpu.nn import CompressedEmbedding, to_artifact

from .data import ClickData, load_criteo, load_npz
from .model import DeepFM, table_name
from .stream import stream_data

MODEL, COUNTS, TRAIN = "model.safetensors", "counts.safetensors", "train.json"
ARTIFACT, RETRAINED, RETRAINED_DENSE = "model.saec", "retrained.saec", "retrained.safetensors"


@dataclass(frozen=True)
class DataChoice:
    """Which clicks: "stream", or the path of an `.npz` or of a text file in Criteo's format.

    `stream_clicks` and `stream_seed` say which stream, `min_count` how often a value must be seen
    in a text file's training part to have a row of its own.
    """

    data: str
    min_count: int
    stream_clicks: int
    stream_seed: int

    def load(self) -> ClickData:
        """Return the clicks."""
        if self.data == "stream":
            return stream_data(self.stream_seed, self.stream_clicks)
        path = Path(self.data)
        return load_npz(path) if path.suffix == ".npz" else load_criteo(path, self.min_count)


def save_state(path: Path, model: DeepFM) -> None:
    """Write full tables and dense layers; codewords and codes are for an artifact to keep."""
    save_file({name: weight.detach().numpy() for name, weight in _weights(model)}, path)


def load_state(path: Path, model: DeepFM) -> DeepFM:
    """Give a model what `save_state` wrote of one like it; return it."""
    stored = load_file(path)
    with torch.no_grad():
        for name, weight in _weights(model):
            weight.copy_(torch.from_numpy(stored[name]))
    return model


def written_back(model: DeepFM, artifact: Artifact, out: Path) -> DeepFM:
    """Write trained codewords into a new artifact; return the model with them as they are stored.

    They may be stored in fewer bits than they were trained in.
    """
    written = to_artifact(model, artifact, out, overwrite=True)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, CompressedEmbedding) and module.field is not None:
                module.codebook.copy_(torch.tensor(written[module.field].codebook))
    return model


def _weights(model: DeepFM) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if not name.endswith(".codebook"):
            yield name, weight


def save_counts(path: Path, data: ClickData) -> None:
    """Write how often each row is looked up in training."""
    save_file({table_name(field): counts for field, counts in data.counts().items()}, path)


def load_run(run: Path) -> tuple[DeepFM, ClickData, dict[str, Any]]:
    """Return the trained model, its clicks and what `train` noted.

    Raises
    ------
    OSError
        The folder lacks a file.
    ValueError
        The clicks are no longer those that the model was trained on.
    """
    noted = read_json(run / TRAIN)
    data = DataChoice(**noted["data"]).load()
    if data.vocabularies != noted["vocabularies"]:
        raise ValueError(
            f"the clicks of {noted['data']['data']!r} have other fields or rows than those that "
            f'"{run / MODEL}" was trained on; train anew'
        )
    return load_state(run / MODEL, DeepFM(data.vocabularies)), data, noted


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file that `write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write some figures, and the folder they go to if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
