"""What a run leaves behind so that, killed at any moment, it continues to the same bytes.

    DIR/run.json                  parameters, state of the sources; a run with others is refused
    DIR/allocation.json           of a budget: curves, and the bytes found in each round
    DIR/<number>.statistics.npz   once a field's rows were read for the first time
    DIR/<number>.fit.npz          after passes of the fit
    DIR/<number>.done.npz         the finished codebook and record; codes beside it
    DIR/<number>.codes.npy

Every file is written beside and moved into place, so it is there whole or not at all. Nothing here
depends on how rows were chunked, on threads, memory or backend: those may change on resume.
"""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.clustering.lloyd import STOP_RULES, FieldFit
from saec_gpu.codewords import StoredCodewords
from saec_gpu.data import Sample, Statistics
from saec_gpu.errors import CheckpointError
from saec_gpu.levels import LEVELS_ENDING, Levels

CHECKPOINT_VERSION = 1
ALLOCATION = "allocation.json"
CODES_ENDING = ".codes.npy"
# saving a fit may cost at most a twentieth of the time
SAVE_SHARE = 20


class Checkpoint:
    """The folder of one run.

    Attributes
    ----------
    run_id : str
        Names the run in the `run.json` of its artifact: found there, the run has ended, also if it
        was killed in the moment after.

    Parameters
    ----------
    folder : path
        Made if missing.
    identity : mapping
        What must be the same on resume, JSON-able: parameters, tables, weights.

    Raises
    ------
    CheckpointError
        The folder belongs to another run, or is no checkpoint. Says what differs.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        wanted = json.loads(json.dumps({"checkpoint_version": CHECKPOINT_VERSION, **identity}))
        run_file = folder / "run.json"
        self.run_id = os.urandom(16).hex()
        if run_file.exists():
            found = _read_json(run_file)
            self.run_id = found.pop("run_id", "")
            self._compare(found, wanted)
        elif folder.exists() and any(not _is_temporary(entry) for entry in folder.iterdir()):
            raise CheckpointError(
                f'"{folder}" is not empty and holds no run.json, so it is no checkpoint of saec; '
                "name an empty or new folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not run_file.exists():
            _write(run_file, _json_bytes({**wanted, "run_id": self.run_id}))
        self._next_save = 0.0

    def _compare(self, found: Any, wanted: Mapping[str, Any]) -> None:
        differences = [
            f"{key} was {_short(found.get(key))}, now {_short(wanted.get(key))}"
            for key in sorted(set(found) | set(wanted))
            if found.get(key) != wanted.get(key)
        ]
        if differences:
            raise CheckpointError(
                f'the checkpoint "{self.folder}" belongs to another run: {"; ".join(differences)}. '
                "Resume may change backend, chunk rows, threads and memory, nothing else; delete "
                "the folder to begin anew"
            )

    def save_statistics(self, number: int, statistics: Statistics) -> None:
        """Keep a field's statistics and sample."""
        sample = statistics.sample
        arrays: dict[str, NDArray[Any]] = {
            "minimum": statistics.minimum,
            "maximum": statistics.maximum,
            "exponents": np.array(sorted(statistics.exponents.items()), np.int64).reshape(-1, 2),
            "n_rows": np.array(statistics.n_rows),
            "weighted": np.array(statistics.weighted),
            "index": sample.index,
            "rows": sample.rows,
            "priority": sample.priority,
            "weights": sample.weights,
        }
        if statistics.distinct is not None:
            arrays["distinct"] = statistics.distinct
        _write_arrays(self.folder / f"{number}.statistics.npz", arrays)

    def statistics(self, number: int) -> Statistics | None:
        """Return a field's statistics if they were kept."""
        arrays = _read_arrays(self.folder / f"{number}.statistics.npz")
        if arrays is None:
            return None
        return Statistics(
            int(arrays["n_rows"]),
            arrays["minimum"],
            arrays["maximum"],
            {int(e): int(count) for e, count in arrays["exponents"]},
            bool(arrays["weighted"]),
            arrays.get("distinct"),
            Sample(arrays["index"], arrays["rows"], arrays["priority"], arrays["weights"]),
        )

    def save_fits(self, fits: Mapping[int, FieldFit]) -> None:
        """Keep the fits after a pass, unless the last saving is too near for its cost."""
        begun = time.monotonic()
        if begun < self._next_save:
            return
        for number, fit in fits.items():
            arrays: dict[str, NDArray[Any]] = {
                "codewords": fit.codewords,
                "iterations": np.array(fit.iterations),
                "stopped": np.array(fit.stopped or ""),
            }
            if fit.counts is not None:
                arrays["counts"] = fit.counts
            _write_arrays(self.folder / f"{number}.fit.npz", arrays)
        ended = time.monotonic()
        self._next_save = ended + SAVE_SHARE * (ended - begun)

    def has_fit(self, number: int) -> bool:
        """Return whether a fit of the field was kept."""
        return (self.folder / f"{number}.fit.npz").exists()

    def restore_fit(self, number: int, fit: FieldFit) -> None:
        """Bring a fit to where it was kept, which it was.

        Not to be called by several threads at a time: headers of .npy are parsed by `ast`, which
        may fail then (CPython 3.11, https://github.com/python/cpython/issues/106905).
        """
        arrays = _read_arrays(self.folder / f"{number}.fit.npz")
        assert arrays is not None
        fit.codewords = arrays["codewords"]
        fit.iterations = int(arrays["iterations"])
        fit.stopped = next((rule for rule in STOP_RULES if rule == arrays["stopped"]), None)
        fit.counts = arrays.get("counts")

    def save_done(
        self,
        number: int,
        codebook: StoredCodewords,
        levels: Levels | None,
        record: Mapping[str, Any],
    ) -> None:
        """Keep a field's final codebook, levels and manifest record; its codes are in place."""
        arrays: dict[str, NDArray[Any]] = {
            "codebook": codebook.values,
            "record": np.frombuffer(_json_bytes(record), np.uint8),
        }
        if codebook.scales is not None:
            arrays["scales"] = codebook.scales
        if levels is not None:
            arrays["levels"] = np.array([levels.bits, levels.rows], np.int64)
        _write_arrays(self.folder / f"{number}.done.npz", arrays)

    def done(self, number: int) -> tuple[StoredCodewords, Levels | None, dict[str, Any]] | None:
        """Return a finished field's codebook, levels and record."""
        arrays = _read_arrays(self.folder / f"{number}.done.npz")
        if arrays is None or not codes_path(self.folder, number).exists():
            return None
        codebook = StoredCodewords(arrays["codebook"], arrays.get("scales"))
        levels = None
        if "levels" in arrays:
            bits, rows = arrays["levels"].tolist()
            levels = Levels(tuple(bits), tuple(rows))
        return codebook, levels, json.loads(arrays["record"].tobytes())

    def forget(self, number: int) -> None:
        """Remove what was kept of a field; its codes are removed by who wrote them."""
        for what in ("done", "fit", "statistics"):
            (self.folder / f"{number}.{what}.npz").unlink(missing_ok=True)

    def save_allocation(self, content: Mapping[str, Any]) -> None:
        """Keep how a budget was split so far, JSON-able."""
        _write(self.folder / ALLOCATION, _json_bytes(content))

    def allocation(self) -> Any:
        """Return how a budget was split so far, None if that was not kept."""
        path = self.folder / ALLOCATION
        return _read_json(path) if path.exists() else None


def run_id_of(folder: Path) -> str:
    """Return the id of the run that a folder belongs to; an empty text where there is none."""
    path = folder / "run.json"
    return str(_read_json(path).get("run_id", "")) if path.exists() else ""


def codes_path(folder: Path, number: int) -> Path:
    """Return where a field's packed codes are written until the artifact takes them."""
    return folder / f"{number}{CODES_ENDING}"


def is_codes_name(name: str) -> bool:
    """Return whether a file of that name is one of `codes_path`, or on the way to be one."""
    name = name.removesuffix(LEVELS_ENDING)
    return name.endswith(CODES_ENDING) and name.removesuffix(CODES_ENDING).isdigit()


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    limit = 200
    return text if len(text) <= limit else text[:limit] + "…"


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as err:
        raise CheckpointError(
            f'"{path}" is not JSON: it was altered; delete the checkpoint'
        ) from err


def _is_temporary(path: Path) -> bool:
    return path.name.endswith(".tmp")


def _write(path: Path, content: bytes) -> None:
    """Put a file in place whole, on disk."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    _write(path, buffer.getvalue())


def _read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as err:
        raise CheckpointError(
            f'"{path}" cannot be read: it was altered; delete the checkpoint'
        ) from err
