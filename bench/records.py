"""What every record says beside its numbers, and the files that records are kept in."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saec_gpu.errors import SourceError
from saec_gpu.version import __version__

SCHEMA = "saec-bench/1"
PERCENTILES = (20, 50, 80)


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Return the 20th, 50th and 80th percentile of some numbers."""
    return {f"p{p}": float(np.percentile(numbers, p)) for p in PERCENTILES}


def circumstances() -> dict[str, Any]:
    """Return machine, versions, commit, time and command line, as they end every record.

    The commit is that of the checkout that these files are in; None where they are installed.
    """
    commit, dirty = _commit()
    return {
        "device": _device(),
        "versions": _versions(),
        "commit": commit,
        "dirty": dirty,
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": without_folders(sys.argv),
    }


def without_folders(arguments: Iterable[str]) -> list[str]:
    """Return the arguments with absolute paths cut to their last name."""
    kept = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        kept.append(option + equals + (Path(value).name if os.path.isabs(value) else value))
    return kept


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add the record to a file of JSON lines, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the records of some files, in order.

    Raises
    ------
    SourceError
        A file cannot be read, or a line is no record of this schema.
    """
    records = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as err:
            raise SourceError(f"{path} cannot be read: {err.strerror}") from err
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as err:
                raise SourceError(f"{path}, line {number}: no JSON: {err}") from err
            if not isinstance(record, dict) or record.get("schema") != SCHEMA:
                raise SourceError(f"{path}, line {number}: no record of schema {SCHEMA}")
            records.append(record)
    return records


def _device() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "machine": platform.machine()}


def _versions() -> dict[str, str]:
    found = {"saec-gpu": __version__, "python": platform.python_version()}
    return found | {
        name: importlib.metadata.version(name) for name in ("numpy", "numba", "llvmlite")
    }


def _commit() -> tuple[str | None, bool | None]:
    folder = Path(__file__).parent
    # installed files may lie inside some checkout too, but git does not know them
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    # records are appended while a series runs
    changes = _git(folder, "status", "--porcelain", "--", ":/", ":(exclude)results")
    return _git(folder, "rev-parse", "HEAD"), bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where it fails or is not there."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
