"""Saec-style compression of embedding tables: a codebook per field and a code per row.

>>> import saec_gpu as saec
>>> sorted(saec.__all__)[:4]
['Artifact', 'ArtifactError', 'BackendUnavailableError', 'CheckpointError']

Importing the package loads NumPy alone; what needs more is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy  # noqa: F401 - the one thing that is loaded at once

if TYPE_CHECKING:
    from saec_gpu.artifact import Artifact, load
    from saec_gpu.compression import compress
    from saec_gpu.data import Progress
    from saec_gpu.delta import apply_delta, write_delta
    from saec_gpu.errors import (
        ArtifactError,
        BackendUnavailableError,
        CheckpointError,
        LayoutError,
        MissingExtraError,
        NonFiniteRowError,
        ParamError,
        SaecError,
        SourceError,
        WeightError,
    )
    from saec_gpu.sources import TableField, TableSource, open_tables, open_weights
    from saec_gpu.updating import update
    from saec_gpu.verification import Verification, verify
    from saec_gpu.version import __version__

_HOMES = {
    "artifact": ("Artifact", "load"),
    "compression": ("compress",),
    "data": ("Progress",),
    "errors": (
        "ArtifactError",
        "BackendUnavailableError",
        "CheckpointError",
        "LayoutError",
        "MissingExtraError",
        "NonFiniteRowError",
        "ParamError",
        "SaecError",
        "SourceError",
        "WeightError",
    ),
    "delta": ("apply_delta", "write_delta"),
    "sources": ("TableField", "TableSource", "open_tables", "open_weights"),
    "updating": ("update",),
    "verification": ("Verification", "verify"),
    "version": ("__version__",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendUnavailableError",
    "CheckpointError",
    "LayoutError",
    "MissingExtraError",
    "NonFiniteRowError",
    "ParamError",
    "Progress",
    "SaecError",
    "SourceError",
    "TableField",
    "TableSource",
    "Verification",
    "WeightError",
    "__version__",
    "apply_delta",
    "compress",
    "load",
    "open_tables",
    "open_weights",
    "update",
    "verify",
    "write_delta",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'saec_gpu' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"saec_gpu.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
