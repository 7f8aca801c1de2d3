"""Compile one kernel to machine code with NVRTC, as CuPy does it at run time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# What CuPy 14 passes beside `-arch` and include paths; the CMake build passes the same to nvcc.
OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")

_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class CompileError(Exception):
    """NVRTC refused a kernel; the message is its log."""


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes
    ----------
    kernel, architecture : str
        The architecture as `-arch` spells it, without `sm_`.
    cubin : bytes
    ptx : str
    registers : int
        Of one thread.
    stack_bytes, spill_bytes : int
        Local memory of one thread; spilled are stores and loads together.
    shared_bytes : int
        Static shared memory of one block.
    seconds : float
    """

    kernel: str
    architecture: str
    cubin: bytes
    ptx: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    seconds: float


def compiled(kernel: str, unit: str, architecture: str, folders: tuple[Path, ...]) -> Compiled:
    """Return the kernel of a translation unit that holds it alone.

    Raises
    ------
    CompileError
        NVRTC refuses it, or the unit holds another number of kernels than one.
    """
    # Here: the budget and the texts are checked where NVRTC is not installed too.
    from cuda.bindings import nvrtc

    began = time.perf_counter()
    # named like no file that it may include: NVRTC takes that for a file that includes itself
    status, program = nvrtc.nvrtcCreateProgram(unit.encode(), b"unit.cu", 0, [], [])
    _succeeded(status, kernel)
    options = [*OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
    # CuPy searches its headers, then CUDA's, after the folders of the caller.
    options += [f"-I{folder}" for folder in (*folders, _cuda_headers())]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"{kernel} does not compile for sm_{architecture}:\n{log.strip()}")
    cubin = _result(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    nvrtc.nvrtcDestroyProgram(program)
    used, frames = _USED.findall(log), _FRAME.findall(log)
    if len(used) != 1 or len(frames) != 1:
        raise CompileError(f"{kernel} for sm_{architecture}: not one kernel in NVRTC's log:\n{log}")
    stack, stores, loads = (int(n) for n in frames[0])
    shared = _SHARED.search(log)
    return Compiled(
        kernel=kernel,
        architecture=architecture,
        cubin=cubin,
        ptx=ptx,
        registers=int(used[0]),
        stack_bytes=stack,
        spill_bytes=stores + loads,
        shared_bytes=int(shared[1]) if shared else 0,
        seconds=time.perf_counter() - began,
    )


def version() -> str:
    """Return the version of the NVRTC wheel; only equal versions give equal registers."""
    return metadata.version("nvidia-cuda-nvrtc")


def _cuda_headers() -> Path:
    from cuda import pathfinder

    found = pathfinder.find_nvidia_header_directory("cudart")
    if found is None:
        raise CompileError("no CUDA headers: install tests/kernel_checks/requirements.txt")
    return Path(found)


def _succeeded(status: int, what: str) -> None:
    if status != 0:
        raise CompileError(f"{what}: NVRTC answers {status!r}")


# Two functions of NVRTC tell one result: its size, and its bytes into memory of that size.
_Size = Callable[[Any], Any]
_Read = Callable[[Any, bytes], Any]


def _text(size_of: _Size, read: _Read, program: Any) -> str:
    return _result(size_of, read, program).decode().rstrip("\0")


def _result(size_of: _Size, read: _Read, program: Any) -> bytes:
    status, size = size_of(program)
    _succeeded(status, size_of.__name__)
    if size <= 1:
        return b""  # the end mark alone; and Python shares its bytes of length 1
    text = bytes(size)  # not seen by anybody before NVRTC fills it
    (status,) = read(program, text)
    _succeeded(status, read.__name__)
    return text
