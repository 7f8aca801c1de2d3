"""The memory of this process that is resident, as Linux tells it."""

from __future__ import annotations

import re
from pathlib import Path


def resident_bytes() -> int:
    """Return the bytes that are resident now."""
    return _size("VmRSS")


def peak_resident_bytes() -> int:
    """Return the most bytes that ever were resident."""
    return _size("VmHWM")


def _size(key: str) -> int:
    """Return a size of /proc/self/status, which counts in KiB and calls them kB; see proc(5)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (size,) = re.findall(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(size) * 1024
