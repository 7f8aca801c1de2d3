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
    """
    if name in ("auto", "cpu"):
        from saec_gpu.backends.cpu import CpuBackend

        return CpuBackend(threads)
    raise ParamError(
        f'backend="{name}" was given; the backends are {", ".join(known_backends())}, and "auto" '
        "chooses"
    )
