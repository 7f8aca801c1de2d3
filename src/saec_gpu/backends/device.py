"""The one seam to a device: memory, copies, streams, events and launches, nothing more.

The CUDA backend is written against this protocol. CuPy is one implementation; the other is the
emulator of `kernels/emulation/`, which runs the same kernels on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

# One-dimensional memory of the device: has `dtype` and `size`, and slices into views.
DeviceArray = Any
# Work that runs in the order it was given; streams run beside each other.
Stream = Any
# A point in a stream's work.
Event = Any


@dataclass(frozen=True)
class DeviceLimits:
    """What a device can hold and run.

    Attributes
    ----------
    name : str
    architecture : int
        Compute capability, 90 for 9.0.
    processors : int
        Streaming multiprocessors.
    shared_bytes : int
        The most shared memory of one block, in bytes.
    memory_bytes : int
        All of the device's memory.
    """

    name: str
    architecture: int
    processors: int
    shared_bytes: int
    memory_bytes: int


class Device(Protocol):
    """One device. Nothing here waits for it unless it says so."""

    limits: DeviceLimits

    def free_bytes(self) -> int:
        """Return the memory that can still be had."""

    def empty(self, size: int, dtype: Any) -> DeviceArray:
        """Return memory of whatever content.

        Raises
        ------
        DeviceMemoryError
            The device has not that much left.
        """

    def pinned(self, size: int, dtype: Any) -> NDArray[Any]:
        """Return host memory of whatever content from which copies run beside other work."""

    def stream(self) -> Stream:
        """Return a new stream."""

    def clear(self, array: DeviceArray, stream: Stream) -> None:
        """Fill with zero bytes."""

    def upload(self, source: NDArray[Any], target: DeviceArray, stream: Stream) -> None:
        """Copy to the device; a pinned source may only be written to after the copy."""

    def download(self, source: DeviceArray, target: NDArray[Any], stream: Stream) -> None:
        """Copy from the device; a pinned target is filled only when the stream is."""

    def record(self, stream: Stream) -> Event:
        """Return the present end of the stream's work."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Let the stream's later work wait for the event."""

    def synchronize(self, work: Stream | Event) -> None:
        """Wait here until a stream's work is done, or all that came before an event.

        Raises
        ------
        DeviceError
            Something of it failed.
        """

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
        """Run a kernel of `kernels/` by its name, with `shared_bytes` of dynamic shared memory.

        Arguments go by the names of the kernel's parameters, all of them: an array of the dtype
        that the pointer has (None is a null pointer), or a number.

        Raises
        ------
        LayoutError
            Names or dtypes are not those of the kernel.
        DeviceError
            The device refuses the launch.
        """
