"""What this machine can run, and what to install where it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from saec_gpu.errors import BackendUnavailableError, MissingExtraError
from saec_gpu.version import __version__

# Module, name of the package that brings it, extra, and what needs it.
OPTIONAL = (
    ("torch", "torch", "torch", "to read .pt files"),
    ("pyarrow", "pyarrow", "parquet", "to read Parquet"),
    ("numba_cuda", "numba-cuda", "numba-cuda", 'for backend="numba"'),
    ("faiss", "faiss-cpu", "bench", "for saec bench"),
    ("sklearn", "scikit-learn", "bench", "for saec bench"),
    ("fastkmeans", "fastkmeans", "bench", "for saec bench"),
    ("matplotlib", "matplotlib", "bench", "for pictures of saec bench"),
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is, how it stands, and what to do if that is not well."""

    what: str
    state: str
    ok: bool = True
    advice: str = ""


def examine(*, warm: bool) -> list[Finding]:
    """Return findings about this machine; `warm` also compiles every kernel of the CPU backend."""
    return [
        Finding("saec_gpu", __version__),
        Finding("Python", platform.python_version()),
        Finding("NumPy", np.__version__),
        *_kernels(),
        *_backends(),
        _subnormals(),
        *_optional(),
        *([_warm()] if warm else []),
    ]


def _kernels() -> list[Finding]:
    """Return what compiles the kernels, for which processor, and where they are kept."""
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    from saec_gpu.backends.cpu_tiles import run_tiles
    from saec_gpu.backends.simd import ROW_LANES

    _, processor, features = cpu_target.target_context.codegen().magic_tuple()
    wanted = ("avx512bw", "avx512f", "avx2", "fma")
    present = [name for name in wanted if f"+{name}" in features.split(",")]
    folder = Path(run_tiles.stats.cache_path)  # type: ignore[attr-defined]  # compiled by Numba
    writable = next(one for one in (folder, *folder.parents) if one.exists())
    kept = os.access(writable, os.W_OK)
    return [
        Finding("Numba", f"{numba.__version__} with llvmlite {llvmlite.__version__}"),
        Finding(
            "processor",
            f"{processor} ({', '.join(present) or 'no AVX, no FMA'}), {ROW_LANES} rows at once",
        ),
        Finding(
            "kernel cache",
            str(folder) if kept else f"{folder} cannot be written: every run compiles anew",
            True,
            "" if kept else "set NUMBA_CACHE_DIR to a folder that can be written",
        ),
    ]


def _backends() -> list[Finding]:
    from saec_gpu.backends import automatic
    from saec_gpu.backends.cpu import CpuBackend

    backend = CpuBackend()
    taken, reason = automatic()
    return [
        Finding("backend cpu", f"{backend.threads} threads"),
        Finding(
            "its memory for a run", f"{backend.memory_budget() / 1e9:.1f} GB, half of what is free"
        ),
        *_cuda(),
        Finding("backend auto", f"takes {taken}: {reason}"),
    ]


def _cuda() -> list[Finding]:
    """Return how the CUDA backend stands: CuPy, driver, compiler, each device."""
    from saec_gpu.backends.cupy_cuda import CudaBackend
    from saec_gpu.backends.cupy_device import CupyDevice, import_cupy, why_unavailable

    try:
        cupy = import_cupy()
    except (MissingExtraError, BackendUnavailableError) as err:
        return [Finding("backend cupy", "cannot run", True, str(err))]
    findings = [Finding("CuPy", cupy.__version__)]
    try:
        numbers = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
        findings.append(Finding("NVRTC, the kernels' compiler", numbers))
    except (ImportError, RuntimeError) as err:
        advice = (
            "install the compiler of your driver's CUDA version: pip install 'saec_gpu[cuda13]', "
            f"or cuda12 ({err})"
        )
        findings.append(Finding("NVRTC, the kernels' compiler", "not found", False, advice))
    reason = why_unavailable()
    if reason is not None:
        return [*findings, Finding("backend cupy", "cannot run", True, reason)]
    runtime = cupy.cuda.runtime
    findings.append(Finding("CUDA of the driver", _cuda_version(runtime.driverGetVersion())))
    for number in range(runtime.getDeviceCount()):
        try:
            backend = CudaBackend(CupyDevice(number))
        except BackendUnavailableError as err:
            findings.append(Finding(f"device {number}", "cannot be used", True, str(err)))
            continue
        limits = backend.device.limits
        capability = f"{limits.architecture // 10}.{limits.architecture % 10}"
        findings.append(
            Finding(
                f"device {number}",
                f"{limits.name}, compute capability {capability}, "
                f"{backend.memory_budget() / 1e9:.1f} GB for a run",
            )
        )
    return findings


def _cuda_version(number: int) -> str:
    """Return CUDA's way to write a version, 12040 for 12.4, as people do."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _subnormals() -> Finding:
    """Return whether the processor keeps numbers below 2⁻¹²⁶, as exactness needs."""
    if np.float32(2.0**-140) * np.float32(1.0) > 0:
        return Finding("subnormal numbers", "kept")
    advice = "a library built with -ffast-math changed the processor's mode; find and drop it"
    return Finding("subnormal numbers", "flushed to zero", False, advice)


def _optional() -> list[Finding]:
    findings = []
    for module, package, extra, purpose in OPTIONAL:
        if importlib.util.find_spec(module) is None:
            advice = f"{purpose}: pip install 'saec_gpu[{extra}]'"
            findings.append(Finding(package, "not installed", True, advice))
        else:
            findings.append(Finding(package, _version(package)))
    return findings


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "installed"


def _warm() -> Finding:
    """Compress, verify, look up and update small tables: that calls what a usual run calls."""
    from saec_gpu.backends import open_backend
    from saec_gpu.backends.cpu import CpuBackend
    from saec_gpu.compression import compress
    from saec_gpu.updating import update

    begun = time.perf_counter()
    rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    rows[:200] *= np.float32(2**-10)  # one codeword for most rows: their codes are in levels
    narrow, wide = np.ones(len(rows)), np.ldexp(1.0, np.arange(len(rows)) % 60)
    usual, large = open_backend("auto"), CpuBackend(first_pass=True)
    # 64 codewords are enough for passes that skip
    for weights, k, backend in ((narrow, 8, usual), (wide, 8, usual), (None, 64, large)):
        with tempfile.TemporaryDirectory(prefix="saec-warm-") as folder:
            artifact = compress(
                rows, weights=weights, codewords=k, backend=backend, out=Path(folder) / "x.saec"
            )
            artifact.verify(rows, weights=weights)
            artifact["x"].lookup([0])
            update(
                artifact, rows + 1, weights=weights, backend=backend, out=Path(folder) / "y.saec"
            )
    return Finding("kernels", f"ready after {time.perf_counter() - begun:.1f} s")
