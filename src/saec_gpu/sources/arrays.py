"""Arrays in memory: NumPy, memory maps, torch, and whatever gives DLPack or `__array__`."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import SourceError
from saec_gpu.sources.npy import byteorder_of
from saec_gpu.sources.raw import RawArray
from saec_gpu.sources.stored import NUMBER_DTYPES, StoredArray, byte_view, total_bytes
from saec_gpu.sources.torch import dtype_name, tensor_bits

_PROBE_BYTES = 4096


@dataclass(frozen=True)
class MemoryArray:
    """An array in memory; bfloat16 is held as uint16."""

    values: NDArray[Any]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the lengths of the axes."""
        return self.values.shape

    @property
    def origin(self) -> None:
        """Return None: there is no file."""
        return None

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill out (C order, storage dtype) with the rows start .. start + len(out)."""
        out[...] = self.values[start : start + len(out)]


def open_arrays(arrays: Mapping[Any, Any]) -> dict[str, StoredArray]:
    """Return the arrays of a mapping under their names.

    Arrays that a file is mapped to (`numpy.load(…, mmap_mode="r")`) are read from the file, so that
    they never count as resident memory.

    Raises
    ------
    SourceError
        A name is no string, or a value no array.

    Notes
    -----
    Copies nothing that lies on the CPU, unless a library gives copies only. An array on a GPU is
    copied to the host as a whole.
    """
    for name in arrays:
        if not isinstance(name, str):
            raise SourceError(f"the name {name!r} is no string; field names are strings")
    return {name: _stored(name, array) for name, array in arrays.items()}


def _stored(name: str, array: Any) -> StoredArray:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        dtype = dtype_name(array)
        if dtype not in NUMBER_DTYPES:
            raise SourceError(
                f"{name!r} is a tensor of {dtype}; give a dense one of numbers, or .float() of it"
            )
        return MemoryArray(tensor_bits(array), dtype)
    values = _as_numpy(name, array)
    if values.dtype.name == "bfloat16":  # of ml_dtypes, which JAX gives
        return MemoryArray(values.view(np.uint16), "bfloat16")
    return _mapped_file(values) or MemoryArray(values, values.dtype.name)


def _as_numpy(name: str, array: Any) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    reason: Exception | None = None
    if hasattr(array, "__dlpack__"):
        try:
            return np.from_dlpack(array, device="cpu")
        except (BufferError, TypeError, ValueError, RuntimeError, AttributeError) as err:
            reason = err  # a dtype that DLPack or NumPy lacks; __array__ may know it
    if hasattr(array, "__array__") or isinstance(array, (list, tuple)):
        try:
            return np.asarray(array)
        except (TypeError, ValueError, RuntimeError) as err:
            reason = err
    raise SourceError(
        f"{name!r} is a {type(array).__name__}, which does not give an array"
        + (f" ({reason})" if reason else "")
        + "; give a NumPy array, a torch tensor or an object with __dlpack__ or __array__"
    ) from reason


def _mapped_file(values: NDArray[Any]) -> RawArray | None:
    """Return the place in the file of an array in a memory map, or None if it has none.

    The base of every view of a memory map leads back to the map's first array, which alone has the
    right `offset`: NumPy copies that attribute to slices unchanged.
    """
    first = values
    base: Any = values.base
    while isinstance(base, np.ndarray):
        first, base = base, base.base
    if not (
        isinstance(first, np.memmap)
        and isinstance(base, mmap.mmap)
        and first.filename is not None
        and first.mode != "c"  # changes of a copy-on-write map are not in the file
        and values.flags.c_contiguous
        and values.dtype.kind in "iuf"
        and values.nbytes
    ):
        return None
    array = RawArray(
        Path(first.filename),
        first.offset + values.ctypes.data - first.ctypes.data,
        values.shape,
        values.dtype.name,
        byteorder_of(values.dtype),
    )
    return array if _same_bytes(array, values) else None


def _same_bytes(array: RawArray, values: NDArray[Any]) -> bool:
    """Return whether both ends are found in the file, which may be another one by now."""
    size, probe = total_bytes(array), min(_PROBE_BYTES, total_bytes(array))
    memory = byte_view(values)
    try:
        with array.path.open("rb") as file:
            for offset in (0, size - probe):
                file.seek(array.offset + offset)
                if file.read(probe) != memory[offset : offset + probe]:
                    return False
    except OSError:
        return False
    return True
