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

from saec_gpu.version import __version__

# Module, name of the package that brings it, extra, and what needs it.
OPTIONAL = (
    ("torch", "torch", "torch", "to read .pt files"),
    ("pyarrow", "pyarrow", "parquet", "to read Parquet"),
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
    present = [name for name in ("avx512f", "avx2", "fma") if f"+{name}" in features.split(",")]
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
    from saec_gpu.backends.cpu import CpuBackend

    backend = CpuBackend()
    return [
        Finding("backend cpu", f"{backend.threads} threads"),
        Finding("backend auto", "takes cpu, the only one of this version"),
        Finding(
            "memory for a run", f"{backend.memory_budget() / 1e9:.1f} GB, half of what is free"
        ),
    ]


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
    """Compress, verify and look up small tables that between them call every compiled function."""
    from saec_gpu.compression import compress

    begun = time.perf_counter()
    rows = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    narrow, wide = np.ones(len(rows)), np.ldexp(1.0, np.arange(len(rows)) % 60)
    for weights in (None, narrow, wide):
        with tempfile.TemporaryDirectory(prefix="saec-warm-") as folder:
            artifact = compress(rows, weights=weights, codewords=8, out=Path(folder) / "x.saec")
            artifact.verify(rows, weights=weights)
            artifact["x"].lookup([0])
    return Finding("kernels", f"ready after {time.perf_counter() - begun:.1f} s")
