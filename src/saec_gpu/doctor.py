"""What this machine can run, and what to install where it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from saec_gpu.version import __version__

EXTRAS = {
    "torch": "torch",
    "pyarrow": "parquet",
    "faiss": "bench",
    "sklearn": "bench",
    "fastkmeans": "bench",
    "matplotlib": "bench",
    "cupy": "cuda13",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is, how it stands, and what to do if that is not well."""

    what: str
    state: str
    ok: bool
    advice: str = ""


def examine(*, warm: bool) -> list[Finding]:
    """Return findings about this machine; `warm` also compiles every kernel of the CPU backend."""
    findings = [
        Finding("saec_gpu", __version__, True),
        Finding("Python", platform.python_version(), True),
        Finding("NumPy", np.__version__, True),
        *_cpu(),
        _cache(),
        _subnormals(),
        *_packages(),
    ]
    if warm:
        findings.append(_warm())
    return findings


def _cpu() -> list[Finding]:
    from saec_gpu.backends.cpu import CpuBackend
    from saec_gpu.backends.simd import ROW_LANES

    backend = CpuBackend()
    return [
        Finding("backend cpu", f"{backend.threads} threads, {ROW_LANES} rows at once", True),
        Finding("backend auto", "takes cpu: it is the only one in this version", True),
        Finding("memory for a run", f"{backend.memory_budget() / 1e9:.1f} GB", True),
    ]


def _cache() -> Finding:
    folder = os.environ.get("NUMBA_CACHE_DIR") or str(Path(__file__).parent)
    ok = os.access(folder, os.W_OK)
    state = "compiled kernels are kept" if ok else "the package's folder is read-only"
    advice = "" if ok else "Numba keeps kernels in the user's cache; set NUMBA_CACHE_DIR to choose"
    return Finding("kernel cache", state, True, advice)


def _subnormals() -> Finding:
    """Return whether the processor keeps numbers below 2⁻¹²⁶, as exactness needs."""
    kept = bool(np.float32(2.0**-140) * np.float32(1.0) > 0)
    return Finding(
        "subnormal numbers",
        "kept" if kept else "flushed to zero",
        kept,
        ""
        if kept
        else "a library built with -ffast-math changed the processor's mode; find and drop it",
    )


def _packages() -> list[Finding]:
    findings = []
    for package, extra in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            findings.append(
                Finding(package, "not installed", True, f"pip install 'saec_gpu[{extra}]'")
            )
        else:
            findings.append(Finding(package, _version(package), True))
    return findings


def _version(package: str) -> str:
    names = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}
    try:
        return version(names.get(package, package))
    except PackageNotFoundError:
        return "installed"


def _warm() -> Finding:
    from saec_gpu.compression import compress_in_scratch

    begun = time.perf_counter()
    for rows in _warming_tables():
        compress_in_scratch(rows)
    return Finding("kernels", f"compiled in {time.perf_counter() - begun:.1f} s", True)


def _warming_tables() -> list[dict[str, Any]]:
    """Return tables that between them call every compiled function."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 3)).astype(np.float32)
    return [{"tables": {"x": rows}, "weights": {"x": weights}} for weights in (
        np.ones(len(rows)),
        np.ldexp(1.0, np.arange(len(rows)) % 60),
    )]  # fmt: skip
