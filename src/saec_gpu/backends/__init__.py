"""The machines that assign and accumulate, behind one protocol."""

from __future__ import annotations

from saec_gpu.backends.protocol import Backend, known_backends
from saec_gpu.errors import ParamError


def open_backend(name: str, *, threads: int | None = None) -> Backend:
    """Return the backend of this name; "auto" takes the fastest that can run here.

    Raises
    ------
    ParamError
        No backend has this name.
    MissingExtraError, BackendUnavailableError
        The backend that was asked for cannot run here; says what to do.
    """
    if name == "auto":
        name, _ = automatic()
    if name == "cpu":
        from saec_gpu.backends.cpu import CpuBackend

        return CpuBackend(threads)
    if name == "cupy":
        from saec_gpu.backends.cupy_cuda import CudaBackend
        from saec_gpu.backends.cupy_device import CupyDevice

        return CudaBackend(CupyDevice(), threads)
    if name == "numba":
        from saec_gpu.backends.numba_cuda import NumbaBackend

        return NumbaBackend(threads)
    raise ParamError(
        f'backend="{name}" was given; the backends are {", ".join(known_backends())}, and "auto" '
        "chooses"
    )


def automatic() -> tuple[str, str]:
    """Return the backend that "auto" takes here, and why."""
    from saec_gpu.backends.cupy_device import why_unavailable

    reason = why_unavailable()
    if reason is None:
        return "cupy", "a CUDA device is there, and CuPy can use it"
    return "cpu", f"no CUDA device can be used: {reason}"
