"""safetensors: one file, or shards listed by a `*.index.json`. Only headers are parsed here.

The format (https://github.com/huggingface/safetensors, "Format"): eight bytes with the length of a
JSON header, little-endian; the header, name → dtype, shape, data_offsets; then the data in C order,
little-endian, the offsets counted from its beginning.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from saec_gpu.errors import SourceError
from saec_gpu.sources.raw import RawArray
from saec_gpu.sources.stored import (
    StoredArray,
    UnreadableArray,
    check_file_size,
    listed,
    named_once,
    open_each,
    storage_dtype,
)

_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}

# The limit of the reference implementation: a damaged length must not become an allocation.
_MAX_HEADER_BYTES = 100_000_000


def open_safetensors(path: Path) -> dict[str, StoredArray]:
    """Return the tensors of one file under their names.

    Returns
    -------
    arrays : dict of RawArray or UnreadableArray
        A RawArray holds the tensor's offset in the file.

    Raises
    ------
    SourceError
        The header is damaged, or the file has another size than the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise SourceError(
                f"{path}: has {size} bytes and announces a header of {length}; "
                "the file is cut short, altered or no safetensors file"
            )
        header = _json_object(file.read(length), path)
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != end:
            raise SourceError(
                f"{path}: tensor {name!r} begins at byte {start} of the data, not at {end} where "
                "the one before it ends; the file is altered: write it again"
            )
        end = stop
    check_file_size(path, 8 + length + end, f"{len(spans)} tensors with header")
    return {name: _tensor(path, 8 + length, name, entry) for name, entry in header.items()}


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Return where the data of a tensor begins and ends, of an entry of the right form."""
    match entry:
        case {"dtype": str(), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if (
            all(type(length) is int and length >= 0 for length in shape) and 0 <= start <= stop
        ):
            return start, stop
    raise SourceError(f"{path}: the header's entry of {name!r} is no tensor: {entry!r:.200}")


def _tensor(path: Path, base: int, name: str, entry: dict[str, Any]) -> StoredArray:
    """Return one tensor of a header."""
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    start, stop = entry["data_offsets"]
    if dtype not in _DTYPES:
        return UnreadableArray(path, shape, dtype)
    array = RawArray(path, base + start, shape, _DTYPES[dtype])
    needed = math.prod(shape) * storage_dtype(array.dtype).itemsize
    if stop - start != needed:
        raise SourceError(
            f"{path}: tensor {name!r} takes {needed} bytes for {array.shape} {array.dtype}, but "
            f"the header gives it {stop - start}; the file is altered: write it again"
        )
    return array


def open_safetensors_index(path: Path) -> dict[str, StoredArray]:
    """Return the tensors that a `*.index.json` lists, from the shards beside it.

    Raises
    ------
    SourceError
        The index is damaged, names a file that is not beside it or a tensor that its file lacks, or
        two shards hold tensors of one name.
    """
    weight_map = _json_object(path.read_bytes(), path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise SourceError(f"{path}: has no weight_map (tensor name to file name), so no tensors")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        # A name with a folder in it could lead anywhere.
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise SourceError(
                f"{path}: lists the shard {shard!r}, but there is no file of that name beside it"
            )
    arrays = open_each((path.parent / shard for shard in shards), open_safetensors, path)
    for name, shard in weight_map.items():
        if name not in arrays or arrays[name].origin != path.parent / shard:
            raise SourceError(
                f"{path}: lists {name!r} in {shard!r}, but that file has no such tensor"
            )
    return {name: arrays[name] for name in weight_map}


def open_safetensors_folder(path: Path, files: list[Path]) -> dict[str, StoredArray]:
    """Return the tensors of a folder: of its index if it has one, else of all its files."""
    indexes = [file for file in path.iterdir() if file.name.endswith(".safetensors.index.json")]
    if len(indexes) > 1:
        raise SourceError(
            f"{path}: has several indexes ({listed(sorted(file.name for file in indexes))}); "
            "give the path of the one that is meant"
        )
    if indexes:
        return open_safetensors_index(indexes[0])
    return open_each(files, open_safetensors, path)


def _json_object(data: bytes, path: Path) -> dict[str, Any]:
    """Return a JSON object; one with the same key twice, at any depth, is refused."""
    try:
        parsed = json.loads(
            data.decode("utf-8"), object_pairs_hook=lambda pairs: named_once(pairs, path)
        )
    except SourceError:
        raise
    except (ValueError, RecursionError) as err:
        raise SourceError(
            f"{path}: the JSON in it cannot be read ({err}); "
            "the file is cut short, altered or of another format"
        ) from err
    if not isinstance(parsed, dict):
        raise SourceError(f"{path}: a JSON object is needed, not {type(parsed).__name__}")
    return parsed
