"""A device that is none: kernels run on the CPU, copies and launches in an order that a seed draws.

Whatever a real device leaves open until somebody waits is left open here too. A stream runs no
further than it must when it is waited for, so that a missing event, a pinned buffer that is written
to too early, or memory that is given back before the work on it has run shows as wrong data.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from emulator import Library, build
from numpy.typing import NDArray

from saec_gpu.backends.device import DeviceLimits
from saec_gpu.backends.kernel_sources import KernelSource, kernel_sources
from saec_gpu.errors import DeviceError, DeviceMemoryError, LayoutError

LIMITS = DeviceLimits(
    name="emulator",
    architecture=90,
    processors=3,
    shared_bytes=227 * 1024,
    memory_bytes=2**30,
)
_MOST_THREADS = 1024
_MOST_BLOCKS = 2**31 - 1
# As CUDA aligns what it allocates; what a request takes of memory depends on it.
_ALIGNMENT = 256
_LIBC = ctypes.CDLL(None)
_LIBC.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
_LIBC.free.argtypes = (ctypes.c_void_p,)
_LIBC.free.restype = None


class _Owner:
    """Lives as long as somebody holds memory or a view of it; queued work does not count."""


class EmulatedArray:
    """Memory of the device: the host can slice it, but read it only through a download."""

    def __init__(self, content: NDArray[Any], owner: _Owner) -> None:
        self._content = content
        self._owner = owner

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype."""
        return self._content.dtype

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return self._content.size

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self._content.nbytes

    @property
    def flags(self) -> Any:
        """Return the flags that NumPy arrays have."""
        return self._content.flags

    def __getitem__(self, part: slice) -> EmulatedArray:
        if not isinstance(part, slice):
            raise TypeError(f"memory of a device is sliced, not indexed with {part!r}")
        return EmulatedArray(self._content[part], self._owner)

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("memory of a device cannot be read by the host: download it")


@dataclass(eq=False)
class EmulatedEvent:
    """A point in a stream's work."""

    stream: EmulatedStream
    passed: bool = False


@dataclass(eq=False)
class _Work:
    run: Callable[[], None]
    after: EmulatedEvent | None = None


@dataclass(eq=False)
class EmulatedStream:
    """Work that runs in the order it was given."""

    work: deque[_Work] = field(default_factory=deque)

    @property
    def waits_for(self) -> EmulatedEvent | None:
        """Return the event that its next work waits for, if that has not passed."""
        event = self.work[0].after if self.work else None
        return None if event is None or event.passed else event

    def can_go_on(self) -> bool:
        """Return whether there is work that waits for nothing."""
        return bool(self.work) and self.waits_for is None


class EmulatedDevice:
    """One device, as `saec_gpu.backends.device.Device` describes it.

    Parameters
    ----------
    limits : DeviceLimits
    seed : int
        Order of streams, and of threads and sums as `Library.launch` takes it. While one stream is
        waited for, others run only if it waits for them (0), as far as they can before it (1), or
        as drawn.
    library : Library, optional
        The project's own kernels unless another is given.
    kernels : mapping of str to KernelSource, optional
        What the library's kernels take, the project's own by default.
    """

    def __init__(
        self,
        limits: DeviceLimits = LIMITS,
        *,
        seed: int = 0,
        library: Library | None = None,
        kernels: Mapping[str, KernelSource] | None = None,
    ) -> None:
        self.limits = limits
        self._seed = seed
        self._random = random.Random(seed)
        self._library = Library(build()) if library is None else library
        self._kernels = kernel_sources() if kernels is None else kernels
        # Reentrant: memory may be given back in the midst of anything, when it is collected.
        self._lock = threading.RLock()
        self._used_bytes = 0
        # By size: given out again at once, also while work that was given before still uses it.
        self._given_back: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self._pinned: dict[int, int] = {}
        self._streams: list[EmulatedStream] = []
        self._failure: DeviceError | None = None

    def free_bytes(self) -> int:
        """Return the memory that can still be had."""
        return self.limits.memory_bytes - self._used_bytes

    def empty(self, size: int, dtype: Any) -> EmulatedArray:
        """Return memory filled with 0xFF, NaN as any floating-point number.

        Raises
        ------
        DeviceMemoryError
            The device has not that much left.
        """
        n_bytes = size * np.dtype(dtype).itemsize
        with self._lock:
            if n_bytes > self.free_bytes():
                raise DeviceMemoryError(
                    f"{n_bytes} bytes were asked for and {self.free_bytes()} of "
                    f"{self.limits.memory_bytes} are free"
                )
            given_back = self._given_back[n_bytes]
            content = given_back.pop() if given_back else _aligned(n_bytes)
            content.fill(0xFF)
            self._used_bytes += n_bytes
            owner = _Owner()
            weakref.finalize(owner, self._give_back, content)
        return EmulatedArray(content.view(dtype), owner)

    def pinned(self, size: int, dtype: Any) -> NDArray[Any]:
        """Return host memory filled with 0xFF from which copies run beside other work."""
        content = np.full(size * np.dtype(dtype).itemsize, 0xFF, np.uint8)
        start = content.ctypes.data
        with self._lock:
            self._pinned[start] = content.nbytes
            weakref.finalize(content, self._pinned.pop, start)
        return content.view(dtype)

    def stream(self) -> EmulatedStream:
        """Return a new stream."""
        stream = EmulatedStream()
        with self._lock:
            self._streams.append(stream)
        return stream

    def clear(self, array: EmulatedArray, stream: EmulatedStream) -> None:
        """Fill with zero bytes."""
        content = array._content
        self._give(stream, lambda: content.fill(0))

    def upload(self, source: NDArray[Any], target: EmulatedArray, stream: EmulatedStream) -> None:
        """Copy to the device; what a pinned source holds when the stream comes to it."""
        _check_copy(source, target)
        # Memory that is not pinned is copied before the call returns, as CUDA does.
        read = source if self._is_pinned(source) else source.copy()
        content = target._content
        self._give(stream, lambda: np.copyto(content, read))

    def download(self, source: EmulatedArray, target: NDArray[Any], stream: EmulatedStream) -> None:
        """Copy from the device; a target that is not pinned is filled at once, as CUDA does."""
        _check_copy(target, source)
        content = source._content
        self._give(stream, lambda: np.copyto(target, content))
        if not self._is_pinned(target):
            self.synchronize(stream)

    def record(self, stream: EmulatedStream) -> EmulatedEvent:
        """Return the present end of the stream's work."""
        event = EmulatedEvent(stream)

        def passes() -> None:
            event.passed = True

        self._give(stream, passes)
        return event

    def wait(self, stream: EmulatedStream, event: EmulatedEvent) -> None:
        """Let the stream's later work wait for the event."""
        self._give(stream, lambda: None, after=event)

    def synchronize(self, work: EmulatedStream | EmulatedEvent) -> None:
        """Run a stream's work, all or up to an event, and what it waits for or chance has it.

        Raises
        ------
        DeviceError
            A kernel failed, now or before: like a real device, this one is of no use afterwards.
        """
        stream = work.stream if isinstance(work, EmulatedEvent) else work
        with self._lock:
            while stream.work and not (isinstance(work, EmulatedEvent) and work.passed):
                if self._failure is not None:
                    raise self._failure
                self._run_one(self._next_stream(stream))

    def launch(
        self,
        kernel: str,
        grid: int,
        block: int,
        arguments: Mapping[str, EmulatedArray | float | None],
        *,
        shared_bytes: int,
        stream: EmulatedStream,
    ) -> None:
        """Run a kernel of `kernels/` by its name, with `shared_bytes` of dynamic shared memory.

        Raises
        ------
        LayoutError
            Names or dtypes are not those of the kernel.
        DeviceError
            There is no such kernel, or grid, block or shared memory are beyond the limits.
        """
        if kernel not in self._kernels:
            raise DeviceError(f"no kernel {kernel}; there are {', '.join(sorted(self._kernels))}")
        if not (0 < grid <= _MOST_BLOCKS and 0 < block <= _MOST_THREADS):
            raise DeviceError(f"kernel {kernel} cannot run as {grid} blocks of {block} threads")
        if shared_bytes > self.limits.shared_bytes:
            raise DeviceError(
                f"kernel {kernel} is launched with {shared_bytes} bytes of shared memory and a "
                f"block has at most {self.limits.shared_bytes}"
            )
        packed = self._kernels[kernel].packed(arguments, _address).tobytes()

        def run() -> None:
            self._library.launch(
                kernel,
                packed,
                grid,
                block,
                shared_bytes=shared_bytes,
                most_shared_bytes=self.limits.shared_bytes,
                seed=self._seed,
            )

        self._give(stream, run)

    def _give(
        self,
        stream: EmulatedStream,
        run: Callable[[], None],
        *,
        after: EmulatedEvent | None = None,
    ) -> None:
        with self._lock:
            stream.work.append(_Work(run, after))

    def _next_stream(self, wanted: EmulatedStream) -> EmulatedStream:
        # A stream waits for an event only after it was recorded, so streams cannot wait in a ring.
        able = [stream for stream in self._streams if stream.can_go_on()]
        match self._seed:
            case 0:
                while wanted.waits_for is not None:
                    wanted = wanted.waits_for.stream
                return wanted
            case 1:
                return next((stream for stream in able if stream is not wanted), wanted)
            case _:
                return self._random.choice(able)

    def _run_one(self, stream: EmulatedStream) -> None:
        work = stream.work.popleft()
        try:
            work.run()
        except DeviceError as failure:
            self._failure = failure
            raise

    def _is_pinned(self, array: NDArray[Any]) -> bool:
        address = array.ctypes.data
        with self._lock:
            return any(
                start <= address < start + n_bytes for start, n_bytes in self._pinned.items()
            )

    def _give_back(self, content: NDArray[np.uint8]) -> None:
        with self._lock:
            self._used_bytes -= content.nbytes
            self._given_back[content.nbytes].append(content)


def _aligned(n_bytes: int) -> NDArray[np.uint8]:
    # From the C library, so that AddressSanitizer sees where it ends.
    memory = ctypes.c_void_p()
    if _LIBC.posix_memalign(ctypes.byref(memory), _ALIGNMENT, n_bytes):
        raise MemoryError(f"{n_bytes} bytes for an emulated device")
    held = (ctypes.c_uint8 * n_bytes).from_address(memory.value or 0)
    weakref.finalize(held, _LIBC.free, memory).atexit = False
    return np.ctypeslib.as_array(held)


def _check_copy(host: NDArray[Any], device: EmulatedArray) -> None:
    if not isinstance(device, EmulatedArray):
        raise LayoutError(f"memory of a device is needed, not {type(device).__name__}")
    if not isinstance(host, np.ndarray):
        raise LayoutError(f"an array of the host is needed, not {type(host).__name__}")
    if host.shape != (device.size,) or host.dtype != device.dtype:
        raise LayoutError(
            f"{device.size} {device.dtype} of a device and {host.shape} {host.dtype} of the host "
            f"cannot be copied onto each other"
        )


def _address(array: EmulatedArray) -> int:
    if not isinstance(array, EmulatedArray):
        raise LayoutError(f"memory of a device is needed, not {type(array).__name__}")
    return int(array._content.ctypes.data)
