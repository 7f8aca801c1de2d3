"""The CUDA sources: where they are, which kernels they hold, and what these take.

A file of kernels declares what they take once, as a struct that is passed by value, and lists its
kernels one a line:

    struct AssignUpdate {      // parameters
      const int64* runs;       // IN  (n_runs, 5) ...
      int32 find;
    };
    ASSIGN_UPDATE(assign_update_d16_f32, ...)

Both are read here, so that a launch is checked against the kernel itself and one kernel can be
compiled without its sisters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from saec_gpu.errors import BackendUnavailableError, LayoutError

# What a parameter may be, and the dtypes of arrays that fit a pointer to it. Sums of 64 bits are
# added by atomics that know only unsigned ones; float16 and bfloat16 travel as their bits.
TYPES: Mapping[str, tuple[str, ...]] = {
    "float": ("float32",),
    "double": ("float64",),
    "int32": ("int32",),
    "uint16": ("uint16", "float16"),
    "uint32": ("uint32",),
    "int64": ("int64",),
    "uint64": ("uint64", "int64"),
    "void": ("float32", "float16", "uint16"),
}
_STRUCT = re.compile(r"^struct (\w+) \{[^\n]*// parameters\n(.*?)^\};", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^\s*(?:const )?(\w+)(\*?) (\w+);", re.MULTILINE)
_SEVERAL = re.compile(r"^\s*[\w ]+\*? \w+,", re.MULTILINE)
_KERNEL = re.compile(r"^[A-Z_]+\((\w+)(?:,.*)?\)$", re.MULTILINE)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its name, its type as spelled, and whether it is a pointer."""

    name: str
    type: str
    pointer: bool


@dataclass(frozen=True)
class KernelSource:
    """One kernel.

    Attributes
    ----------
    name : str
    file : str
        The file that holds it, in the first of `folders`.
    line : str
        The line of the file that makes it.
    parameters : tuple of Parameter
    folders : tuple of Path
        Where the file and what it includes are found.
    digest : str
        Of all sources in these folders.
    """

    name: str
    file: str
    line: str
    parameters: tuple[Parameter, ...]
    folders: tuple[Path, ...] = ()
    digest: str = ""

    @property
    def unit(self) -> str:
        """Return the source of a translation unit that holds this kernel alone.

        It names the digest: compilers keep what they made of a unit by its text, and do not look at
        what that includes.
        """
        return f'// {self.digest}\n#define SAEC_ONE_KERNEL\n#include "{self.file}"\n{self.line}\n'

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the layout of the parameters' struct, pointers as addresses."""
        fields = [(p.name, "uint64" if p.pointer else TYPES[p.type][0]) for p in self.parameters]
        return np.dtype(fields, align=True)

    def packed(self, arguments: Mapping[str, Any], address: Callable[[Any], int]) -> Any:
        """Return the struct of these arguments, a scalar of `dtype`.

        Raises
        ------
        LayoutError
            A name is missing or unknown, or an array or number does not fit its parameter.
        """
        names = {p.name for p in self.parameters}
        if names != arguments.keys():
            raise LayoutError(
                f"kernel {self.name} takes {sorted(names)}; missing are "
                f"{sorted(names - arguments.keys())}, unknown {sorted(arguments.keys() - names)}"
            )
        packed = np.zeros((), self.dtype)
        for p in self.parameters:
            packed[p.name] = self._value(p, arguments[p.name], address)
        return packed

    def _value(self, p: Parameter, given: Any, address: Callable[[Any], int]) -> Any:
        if p.pointer and given is None:
            return 0
        dtype = getattr(given, "dtype", None)
        if p.pointer:
            if dtype is None or dtype.name not in TYPES[p.type] or not given.flags.c_contiguous:
                raise LayoutError(
                    f"kernel {self.name} takes for {p.name} an array without gaps of "
                    f"{' or '.join(TYPES[p.type])}, but {dtype or type(given).__name__} was given"
                )
            return address(given)
        (wanted,) = TYPES[p.type]
        if np.ndim(given) or not np.can_cast(np.min_scalar_type(given), wanted, "same_kind"):
            raise LayoutError(f"kernel {self.name} takes for {p.name} one {wanted}, not {given!r}")
        if wanted == "int32" and not -(2**31) <= given < 2**31:
            raise LayoutError(f"{p.name}={given} of kernel {self.name} does not fit int32")
        return given


def sources_folder() -> Path:
    """Return the folder of the CUDA sources: the checkout's own, else the installed one.

    The checkout first, because an editable install keeps a copy that grows stale.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parents[1] / "kernels", package / "kernels"):
        if (folder / "assign_update.cu").is_file():
            return folder
    raise BackendUnavailableError(
        f"no CUDA sources beside {package}; the installation is incomplete: install saec_gpu again"
    )


@cache
def kernel_sources() -> Mapping[str, KernelSource]:
    """Return the package's kernels by name."""
    return read_kernels(sources_folder())


def read_kernels(folder: Path, *included: Path) -> Mapping[str, KernelSource]:
    """Return the kernels of a folder by name; `included` are folders of what they include."""
    folders = (folder, *included)
    sources = [path for one in folders for path in sorted(one.glob("*.cu*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return {
        kernel.name: replace(kernel, folders=folders, digest=digest)
        for path in sorted(folder.glob("*.cu"))
        for kernel in kernels_of(path.name, path.read_text(encoding="utf-8"))
    }


def kernels_of(file: str, text: str) -> list[KernelSource]:
    """Return the kernels of one file.

    Raises
    ------
    LayoutError
        The file declares no struct of parameters, or a type that is not known.
    """
    structs = _STRUCT.findall(text)
    if len(structs) != 1:
        raise LayoutError(f"{file} declares {len(structs)} structs marked // parameters, not one")
    parameters = tuple(
        Parameter(name, type_, bool(star)) for type_, star, name in _FIELD.findall(structs[0][1])
    )
    if _SEVERAL.search(structs[0][1]):
        raise LayoutError(f"{file} declares several parameters on one line; give each its own")
    for p in parameters:
        if p.type not in TYPES or not (p.pointer or len(TYPES[p.type]) == 1):
            raise LayoutError(f"{file}: parameter {p.name} is of the unknown type {p.type}")
    return [KernelSource(m[1], file, m[0], parameters) for m in _KERNEL.finditer(text)]
