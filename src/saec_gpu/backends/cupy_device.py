"""A CUDA device by CuPy: its memory, streams and run-time compiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.device import DeviceArray, DeviceLimits, Event, Stream
from saec_gpu.backends.kernel_sources import KernelSource, kernel_sources
from saec_gpu.errors import (
    BackendUnavailableError,
    DeviceError,
    DeviceMemoryError,
    MissingExtraError,
)

LEAST_ARCHITECTURE = 75  # the first with float16 products that add in float32, 16 × 8 at a time
# What is compiled at run time is compiled like this everywhere: CuPy adds -ftz=true and
# --device-as-default-execution-space, and the checks of the kernels do the same.
OPTIONS = ("-std=c++17",)
NO_BINARY_FOR_GPU = 209  # CUDA_ERROR_NO_BINARY_FOR_GPU


def import_cupy() -> Any:
    """Return the module cupy.

    Raises
    ------
    MissingExtraError
        It is not installed.
    BackendUnavailableError
        It is there and cannot be loaded.
    """
    try:
        import cupy
    except ModuleNotFoundError as err:
        if err.name != "cupy":
            raise
        raise MissingExtraError.for_extra("cupy", "cuda13", 'backend="cupy"') from err
    except ImportError as err:
        raise BackendUnavailableError(
            f"CuPy is installed but cannot be loaded ({err}); keep one of cupy-cuda12x and "
            "cupy-cuda13x, the one of your driver's CUDA version, and install it again"
        ) from err
    return cupy


def why_unavailable() -> str | None:
    """Return why no device can be used here, in words that say what to do; None where one can."""
    try:
        count = import_cupy().cuda.runtime.getDeviceCount()
    except (MissingExtraError, BackendUnavailableError) as err:
        return str(err)
    except RuntimeError as err:  # CuPy's errors of the driver are such
        return (
            f"CuPy finds no NVIDIA driver that it can use ({err}); install or update the driver "
            '(nvidia-smi must list the device), or use backend="cpu"'
        )
    if count == 0:
        return 'the driver lists no device; look at CUDA_VISIBLE_DEVICES, or use backend="cpu"'
    return None


class CupyDevice:
    """One CUDA device.

    Parameters
    ----------
    number : int
        As CUDA counts them.
    kernels : mapping of str to KernelSource, optional
        What can be launched, by name; the package's kernels by default.

    Raises
    ------
    MissingExtraError, BackendUnavailableError
        The device cannot be used; says what to do.
    """

    def __init__(
        self, number: int = 0, *, kernels: Mapping[str, KernelSource] | None = None
    ) -> None:
        self._kernels = kernel_sources() if kernels is None else kernels
        self._compiled: dict[str, Any] = {}
        self._cupy = import_cupy()
        reason = why_unavailable()
        if reason is not None:
            raise BackendUnavailableError(reason)
        runtime = self._cupy.cuda.runtime
        count = runtime.getDeviceCount()
        if not 0 <= number < count:
            raise BackendUnavailableError(
                f"device {number} was asked for, but there are {count}: give 0 to {count - 1}"
            )
        self._device = self._cupy.cuda.Device(number)
        found = runtime.getDeviceProperties(number)
        architecture = found["major"] * 10 + found["minor"]
        name = found["name"].decode()
        if architecture < LEAST_ARCHITECTURE:
            raise BackendUnavailableError(
                f"{name} has compute capability {found['major']}.{found['minor']}, the kernels "
                'need 7.5 or later (Turing, 2018); use backend="numba" or backend="cpu"'
            )
        self.limits = DeviceLimits(
            name,
            architecture,
            found["multiProcessorCount"],
            found["sharedMemPerBlockOptin"],
            found["totalGlobalMem"],
        )

    def free_bytes(self) -> int:
        """Return the memory that can still be had, what CuPy holds in reserve included."""
        with self._device:
            free, _ = self._cupy.cuda.runtime.memGetInfo()
            return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())

    def empty(self, size: int, dtype: Any) -> DeviceArray:
        """Return memory of whatever content."""
        with self._device:
            try:
                return self._cupy.empty(size, dtype)
            except self._cupy.cuda.memory.OutOfMemoryError as err:
                wanted = size * np.dtype(dtype).itemsize
                raise DeviceMemoryError(
                    f"{self.limits.name} has {self.free_bytes()} bytes left, {wanted} were asked "
                    "for; give less memory= or stop what else uses the device"
                ) from err

    def pinned(self, size: int, dtype: Any) -> NDArray[Any]:
        """Return host memory from which copies run beside other work."""
        n_bytes = size * np.dtype(dtype).itemsize
        with self._translated(f"pin {n_bytes} bytes of the host's memory for"):
            memory = self._cupy.cuda.alloc_pinned_memory(max(1, n_bytes))
        return np.frombuffer(memory, dtype, size)

    def stream(self) -> Stream:
        """Return a new stream."""
        with self._device:
            return self._cupy.cuda.Stream(non_blocking=True)

    def clear(self, array: DeviceArray, stream: Stream) -> None:
        """Fill with zero bytes."""
        if array.size:
            with self._translated("clear memory of"):
                array.data.memset_async(0, array.nbytes, stream)

    def upload(self, source: NDArray[Any], target: DeviceArray, stream: Stream) -> None:
        """Copy to the device."""
        if source.size:
            with self._translated("copy to"):
                target.data.copy_from_host_async(source.ctypes.data, source.nbytes, stream)

    def download(self, source: DeviceArray, target: NDArray[Any], stream: Stream) -> None:
        """Copy from the device."""
        if source.size:
            with self._translated("copy from"):
                source.data.copy_to_host_async(target.ctypes.data, target.nbytes, stream)

    def record(self, stream: Stream) -> Event:
        """Return the present end of the stream's work."""
        with self._translated("mark the work of"):
            return stream.record()

    def wait(self, stream: Stream, event: Event) -> None:
        """Let the stream's later work wait for the event."""
        with self._translated("order the work of"):
            stream.wait_event(event)

    def synchronize(self, work: Stream | Event) -> None:
        """Wait here until a stream's work is done, or all that came before an event."""
        with self._translated("do the work given to"):
            work.synchronize()

    def launch(
        self,
        kernel: str,
        grid: int,
        block: int,
        arguments: Mapping[str, DeviceArray | float | None],
        *,
        shared_bytes: int,
        stream: Stream,
    ) -> None:
        """Run a kernel of `kernels/` by its name."""
        packed = self._kernels[kernel].packed(arguments, lambda array: int(array.data.ptr))
        what = (
            f"run {kernel} on {grid} blocks of {block} threads with {shared_bytes} bytes of shared "
            "memory each on"
        )
        with self._translated(what), stream:
            function = self.compiled(kernel)
            function.max_dynamic_shared_size_bytes = shared_bytes
            function((grid,), (block,), (packed,), shared_mem=shared_bytes)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Make this device the present one, and its errors ours: CuPy's name no device.

        An error may be that of work given long before.
        """
        cuda = self._cupy.cuda
        try:
            with self._device:
                yield
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as err:
            raise DeviceError(f"cannot {what} {self.limits.name}: {err}") from err

    def compiled(self, kernel: str) -> Any:
        """Return a kernel as CuPy's function, compiled now unless it was ahead of time or before.

        CuPy keeps what it compiles on disk.
        """
        if kernel not in self._compiled:
            source = self._kernels[kernel]
            ahead = source.folders[0] / f"{source.file.removesuffix('.cu')}.fatbin"
            with self._device:
                function = self._from_file(ahead, kernel) if ahead.is_file() else None
                if function is None:
                    include = tuple(f"-I{folder}" for folder in source.folders)
                    module = self._cupy.RawModule(code=source.unit, options=(*OPTIONS, *include))
                    function = module.get_function(kernel)
                self._compiled[kernel] = function
        return self._compiled[kernel]

    def _from_file(self, path: Path, kernel: str) -> Any:
        """Return a kernel of a file made ahead of time; None if it has no code for this device."""
        try:
            return self._cupy.RawModule(path=str(path)).get_function(kernel)
        except self._cupy.cuda.driver.CUDADriverError as err:
            if err.status != NO_BINARY_FOR_GPU:
                raise
            return None
