"""Checkpoints of `torch.save`: tensors are found by torch and read in place without it.

A checkpoint is a zip archive whose members hold the bytes of each tensor's storage, uncompressed.
Loaded on the "meta" device, torch reads no storage and notes on each the offset of its bytes
(`UntypedStorage._checkpoint_offset`; tutorial "torch.save and torch.load with GPUDirect Storage").
An offset is believed only where the archive's own directory has a stored member.
Tensors without one, or whose rows do not lie one after the other, are read through torch's map.
"""

from __future__ import annotations

import functools
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import SourceError
from saec_gpu.sources.raw import RawArray
from saec_gpu.sources.stored import (
    NUMBER_DTYPES,
    StoredArray,
    UnreadableArray,
    import_extra,
    named_once,
)
from saec_gpu.sources.zipped import stored_offset, zip_errors

# What torch.load raises for files that are damaged or made to do harm.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)


class TorchArray:
    """A tensor that torch itself must read: its rows do not lie one after the other in the file."""

    def __init__(self, file: _TorchFile, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.origin = file.path
        self.shape = shape
        self.dtype = dtype
        self._file = file
        self._name = name

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill out (C order, storage dtype) with the rows start .. start + len(out)."""
        out[...] = tensor_bits(self._file.mapped[self._name][start : start + len(out)])


class _TorchFile:
    """A checkpoint, mapped into memory when a tensor of it is first needed."""

    def __init__(self, path: Path, torch: Any) -> None:
        self.path = path
        self._torch = torch

    def load(self, **options: Any) -> dict[str, Any]:
        """Return the tensors of the checkpoint under their full names; nothing else is loaded."""
        try:
            loaded = self._torch.load(self.path, weights_only=True, **options)
            return named_once(_named(loaded, "", self._torch.Tensor), self.path)
        except SourceError:
            raise
        except pickle.UnpicklingError as err:
            raise SourceError(
                f"{self.path}: holds more than tensors and plain containers, or is altered; "
                "such a pickle is never loaded: save the model's state_dict() instead"
            ) from err
        except _LOAD_ERRORS as err:
            raise SourceError(
                f"{self.path}: cannot be read by torch ({type(err).__name__}: {err!s:.200}); "
                "the file is cut short or altered: copy or write it again"
            ) from err

    @functools.cached_property
    def mapped(self) -> dict[str, Any]:
        """Return the tensors, memory-mapped."""
        return self.load(mmap=True, map_location="cpu")


def tensor_bits(tensor: Any) -> NDArray[Any]:
    """Return the values of a torch tensor, bfloat16 as uint16; a view where it can be one."""
    values = tensor.detach().cpu().resolve_neg()
    if str(values.dtype) == "torch.bfloat16":
        # torch views a tensor under another dtype only where its rows are contiguous.
        bits: NDArray[Any] = values.contiguous().view(sys.modules["torch"].int16).numpy()
        return bits.view(np.uint16)
    numbers: NDArray[Any] = values.numpy()
    return numbers


def dtype_name(tensor: Any) -> str:
    """Return the NumPy name of a tensor's dtype, or what keeps the tensor from being an array."""
    name = str(tensor.dtype).removeprefix("torch.")
    layout = str(tensor.layout).removeprefix("torch.")
    if layout != "strided" or tensor.is_quantized:
        return f"{layout if layout != 'strided' else 'quantized'} {name}"
    return name


def open_torch(path: Path) -> dict[str, StoredArray]:
    """Return the tensors of a checkpoint under their full names ("state_dict.user.weight").

    A checkpoint that is one tensor has the file's stem as its name.

    Raises
    ------
    SourceError
        The file is damaged, holds more than tensors and plain containers, is a TorchScript archive,
        was written before torch 1.6, or two tensors have one name.
    MissingExtraError
        torch is not installed.

    Notes
    -----
    Reads the archive's directory and the pickle, no tensor.
    """
    torch = import_extra("torch", "torch", f"reading {path.name}")
    members = _stored_members(path)
    file = _TorchFile(path, torch)
    try:
        tensors = file.load(map_location="meta")
    except SourceError:
        # Some kinds of tensor have no meta form (quantized ones); the map reads no tensor either.
        tensors = file.mapped
    return {
        name or path.stem: _array(file, name, tensor, members) for name, tensor in tensors.items()
    }


def _array(file: _TorchFile, name: str, tensor: Any, members: dict[int, int]) -> StoredArray:
    """Return one tensor; `members` are the offsets and sizes of the archive's stored members."""
    shape, dtype = tuple(int(length) for length in tensor.shape), dtype_name(tensor)
    if dtype not in NUMBER_DTYPES:
        return UnreadableArray(file.path, shape, dtype)
    storage = tensor.untyped_storage()
    base: Any = getattr(storage, "_checkpoint_offset", None)
    if members.get(base, storage.nbytes()) != storage.nbytes():
        # torch would go on reading what lies behind it.
        raise SourceError(
            f"{file.path}: the storage of tensor {name!r} has {members[base]} bytes, but takes "
            f"{storage.nbytes()}; the file is altered: write it again"
        )
    if base not in members or not tensor.is_contiguous() or tensor.is_neg():
        return TorchArray(file, name, shape, dtype)
    begin = tensor.storage_offset() * tensor.element_size()
    array = RawArray(file.path, base + begin, shape, dtype, sys.byteorder)
    if begin + tensor.numel() * tensor.element_size() > storage.nbytes():
        raise SourceError(
            f"{file.path}: tensor {name!r} reaches beyond its {storage.nbytes()} bytes; "
            "the file is altered: write it again"
        )
    return array


def _stored_members(path: Path) -> dict[int, int]:
    """Return where the archive's stored members begin and how long they are."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise SourceError(
                f"{path}: is no zip archive; either it is no checkpoint, or torch wrote it before "
                "version 1.6: load it with torch and save it again with torch.save"
            )
        with zip_errors(path), zipfile.ZipFile(file) as archive:
            members: dict[int, int] = {}
            for member in archive.infolist():
                _, _, inner = member.filename.partition("/")
                if inner == "constants.pkl":
                    raise SourceError(
                        f"{path}: is a TorchScript archive; save the model's state_dict() instead"
                    )
                if inner == "byteorder" and archive.read(member) != sys.byteorder.encode():
                    # torch would swap bytes that a meta tensor does not have, and crash.
                    raise SourceError(
                        f"{path}: was written on a machine of another byte order; load it with "
                        "torch and save it again here"
                    )
                if inner.startswith("data/") and member.compress_type == zipfile.ZIP_STORED:
                    members[stored_offset(file, member, path)] = member.file_size
            return members


def _named(
    value: Any, name: str, tensor_type: type, above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """Yield the tensors in nested dicts, lists and tuples under dotted names."""
    if isinstance(value, tensor_type):
        yield name, value
        return
    if isinstance(value, dict):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    else:
        return
    if id(value) in above:
        raise ValueError(f"{name} contains itself")
    for key, item in inner:
        yield from _named(
            item, f"{name}.{key}" if name else str(key), tensor_type, (*above, id(value))
        )
