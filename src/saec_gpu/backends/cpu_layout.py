"""How arrays lie in memory for the CPU kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cpu_filter import PANEL

CACHE_LINE = 64


def aligned(shape: int, dtype: Any) -> NDArray[Any]:
    """Return zeros that start at a cache line, so that no vector load straddles two."""
    n_bytes = shape * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + n_bytes].view(dtype)


def in_panels(n_codewords: int) -> int:
    """Return for how many codewords as many panels as these need have room."""
    return -(-n_codewords // PANEL) * PANEL


def panels_of(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows PANEL by PANEL, columns first within a panel, flat; missing rows are 0."""
    n_rows, dim = rows.shape
    padded = np.zeros((in_panels(n_rows), dim), rows.dtype)
    padded[:n_rows] = rows
    return padded.reshape(-1, PANEL, dim).transpose(0, 2, 1).reshape(-1)


def rows_of_panels(panels: NDArray[Any], dim: int) -> NDArray[Any]:
    """Return the rows, missing ones with them, that `panels_of` laid out."""
    return panels.reshape(-1, dim, PANEL).transpose(0, 2, 1).reshape(-1, dim)
