"""The device under test, seen twice: for the project's kernels and for those of this folder.

On a machine without a GPU both are the emulator, so that a dry run takes the same way as a real
one; its times mean nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cupy_device import CupyDevice
from saec_gpu.backends.device import Device, DeviceArray, Stream
from saec_gpu.backends.kernel_sources import KernelSource, read_kernels, sources_folder

EMULATOR = "emulator"
FOLDER = Path(__file__).parent
LIBRARIES = ("cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "torch", "triton", "flash-kmeans",
             "fastkmeans")  # fmt: skip


@cache
def own_kernels() -> Mapping[str, KernelSource]:
    """Return the kernels of this folder, by name."""
    return read_kernels(FOLDER, sources_folder())


@dataclass(frozen=True)
class Machine:
    """The device under test.

    Attributes
    ----------
    device : Device
        Launches the project's kernels.
    own : Device
        The same device, but it launches those of this folder. Memory of either serves both.
    dry : bool
        It is the emulator.
    """

    device: Device
    own: Device
    dry: bool

    def seconds(self, stream: Stream, work: Callable[[], Any]) -> float:
        """Return the time between two events around what `work` gives to the stream."""
        self.own.synchronize(stream)
        if self.dry:
            began = time.perf_counter()
            work()
            self.own.synchronize(stream)
            return time.perf_counter() - began
        import cupy

        first = self.own.record(stream)
        work()
        last = self.own.record(stream)
        self.own.synchronize(stream)
        return float(cupy.cuda.get_elapsed_time(first, last)) / 1e3

    def settle(self) -> None:
        """Wait for everything on the device, whoever gave it."""
        if not self.dry:
            import cupy

            cupy.cuda.runtime.deviceSynchronize()

    def release(self) -> None:
        """Give memory that allocators hold in reserve back, theirs to each other."""
        if self.dry:
            return
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def uploaded(self, source: NDArray[Any], stream: Stream) -> DeviceArray:
        """Return a copy on the device, complete."""
        flat = np.ascontiguousarray(source).reshape(-1)
        target = self.own.empty(flat.size, flat.dtype)
        self.own.upload(flat, target, stream)
        self.own.synchronize(stream)
        return target

    def downloaded(self, source: DeviceArray, stream: Stream) -> NDArray[Any]:
        """Return a copy on the host."""
        target = np.empty(source.size, source.dtype)
        self.own.download(source, target, stream)
        self.own.synchronize(stream)
        return target

    def tensor(self, array: DeviceArray, dim: int) -> Any:
        """Return memory of the device as a torch tensor of rows; shared, but with the emulator."""
        import torch

        if self.dry:
            return torch.from_numpy(self.downloaded(array, self.own.stream())).reshape(-1, dim)
        return torch.utils.dlpack.from_dlpack(array).reshape(-1, dim)

    def about(self) -> dict[str, Any]:
        """Return what a record says of the device."""
        limits = self.device.limits
        found: dict[str, Any] = {
            "device": EMULATOR if self.dry else limits.name,
            "dry": self.dry,
            "architecture": limits.architecture,
            "processors": limits.processors,
            "memory_bytes": limits.memory_bytes,
        }
        if not self.dry:
            import cupy

            runtime = cupy.cuda.runtime
            found["driver_cuda"] = _dotted(runtime.driverGetVersion())
            found["runtime_cuda"] = _dotted(runtime.runtimeGetVersion())
            found["driver"] = nvidia_smi("driver_version")
        return found


def open_machine(*, dry: bool) -> Machine:
    """Return the CUDA device, or the emulator for a dry run.

    Raises
    ------
    MissingExtraError, BackendUnavailableError
        There is no device to be used; says what to do.
    """
    if not dry:
        return Machine(CupyDevice(), CupyDevice(kernels=own_kernels()), dry)
    folder = str(sources_folder() / "emulation")
    if folder not in sys.path:
        sys.path.append(folder)
    emulated: Any = importlib.import_module("emulated_device")
    emulator: Any = importlib.import_module("emulator")
    library = emulator.Library(emulator.build(sources=FOLDER))
    own = emulated.EmulatedDevice(library=library, kernels=own_kernels())
    return Machine(emulated.EmulatedDevice(), own, dry)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that measurements depend on, as far as they are here."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def nvidia_smi(query: str) -> str | None:
    """Return what nvidia-smi answers for the first device; None where it cannot be asked."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
