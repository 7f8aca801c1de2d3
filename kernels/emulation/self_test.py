"""The emulator's own kernels, right and wrong ones, and what each must give.

Run as a program it runs some of them on one build, for builds that need a process of their own:

    LD_PRELOAD=... python self_test.py address,undefined 0,1,2 nearest ring

It prints a line for each kernel and seed. `kernels/emulation/emulator.py` says what to preload.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from emulator import EmulationError, Library, build
from numpy.typing import NDArray

from saec_gpu.backends.kernel_sources import KernelSource, kernels_of

SOURCES = Path(__file__).parent / "selftest"
SEEDS = (0, 1, 2, 3, 5)
Arrays = dict[str, NDArray[Any] | int]


def kernels() -> dict[str, KernelSource]:
    """Return the emulator's own kernels by name."""
    found: dict[str, KernelSource] = {}
    for path in sorted(SOURCES.glob("*.cu")):
        found |= {k.name: k for k in kernels_of(path.name, path.read_text(encoding="utf-8"))}
    return found


def launch(
    library: Library,
    kernel: str,
    arguments: Mapping[str, Any],
    grid: int,
    block: int,
    *,
    seed: int,
    shared_bytes: int = 0,
) -> None:
    """Run a kernel on arrays of the host.

    Raises
    ------
    EmulationError
        The kernel went wrong.
    """
    packed = kernels()[kernel].packed(arguments, lambda array: int(array.ctypes.data))
    library.launch(kernel, packed.tobytes(), grid, block, shared_bytes=shared_bytes, seed=seed)


def _nearest(library: Library, kernel: str, seed: int) -> bool:
    rng = np.random.default_rng(0)
    n_rows, n_words, dim = 100, 130, 45
    rows = rng.integers(-8, 9, (n_rows, dim)).astype(np.float32)
    words = rng.integers(-8, 9, (n_words, dim)).astype(np.float32)
    codes = np.full(n_rows, 2**32 - 1, np.uint32)
    keys = np.full(n_rows, np.nan, np.float32)
    arguments: Arrays = {
        "rows": rows.reshape(-1),
        "words": words.reshape(-1),
        "n_rows": n_rows,
        "n_words": n_words,
        "dim": dim,
        "codes": codes,
        "keys": keys,
    }
    launch(library, kernel, arguments, 2, 128, seed=seed)
    right = (words * words).sum(1) - 2 * rows @ words.T  # whole numbers below 2**24: exact
    return np.array_equal(codes, right.argmin(1)) and np.array_equal(keys, right.min(1))


def _ring(library: Library, kernel: str, seed: int) -> bool:
    n_pieces, block = 5, 64
    pieces = np.arange(n_pieces * block * 4, dtype=np.uint32)
    passed = np.zeros_like(pieces)
    arguments: Arrays = {"pieces": pieces, "passed": passed, "n_pieces": n_pieces}
    launch(library, kernel, arguments, 1, block, seed=seed)
    right = np.roll(pieces.reshape(n_pieces, block, 4), -1, axis=1)
    return np.array_equal(passed, right.reshape(-1))


def _small(
    right: Callable[[NDArray[Any]], NDArray[Any]],
    grid: int,
    block: int,
    *,
    n: int = 64,
    stride: int = 1,
    shared_bytes: int = 0,
) -> Callable[[Library, str, int], bool]:
    def run(library: Library, kernel: str, seed: int) -> bool:
        given = np.arange(1, 65, dtype=np.float32)
        found = np.zeros(64, np.float32)
        arguments: Arrays = {
            "from": given,
            "to": found,
            "counter": np.zeros(1, np.uint32),
            "n": n,
            "stride": stride,
        }
        launch(library, kernel, arguments, grid, block, seed=seed, shared_bytes=shared_bytes)
        wanted = right(given)
        return np.array_equal(found[: len(wanted)], wanted)

    return run


_FAR = 3_000_000 * 4096 % 32
# By the beginning of their names: those that are right and those that are not are called alike.
_CASES: Mapping[str, Callable[[Library, str, int], bool]] = {
    "nearest": _nearest,
    "ring": _ring,
    "mirror": _small(lambda given: given[31::-1], 1, 32),
    "halves": _small(lambda given: given[:32].reshape(2, 16)[:, ::-1].reshape(-1), 1, 32),
    "copy": _small(lambda given: given, 1, 64),
    "meet": _small(lambda given: given[:32], 1, 32),
    "swap": _small(lambda given: given[:32].reshape(16, 2)[:, ::-1].reshape(-1), 1, 32),
    "quads": _small(lambda given: given, 1, 16),
    "far": _small(lambda given: given[_FAR : _FAR + 1], 1, 1, n=3_000_000, stride=4096),
    "cell": _small(lambda given: given[:4], 4, 1),
    "sum": _small(lambda given: np.array([given[:4].sum(), *given[:4]], np.float32), 4, 1),
    "count": _small(lambda given: np.full(64, 64, np.float32), 1, 64, shared_bytes=4),
    "hold": _small(lambda given: given, 1, 64),
}
# Right ones; all others of their kind hold a mistake.
RIGHT = (
    *("nearest", "ring", "mirror_synced", "halves_own", "copy_whole", "meet_together"),
    *("swap_right", "quads_aligned", "far_int64", "cell_own", "sum_fenced", "count_atomic"),
    "hold_some",
)


def run(library: Library, kernel: str, seed: int) -> str:
    """Return "right", "wrong values", or what the emulator found."""
    case = _CASES[kernel.split("_", maxsplit=1)[0]]
    try:
        return "right" if case(library, kernel, seed) else "wrong values"
    except EmulationError as found:
        return str(found)


def main() -> None:
    """Run kernels on a build: `self_test.py SANITIZE SEEDS KERNELS...`."""
    sanitize, seeds, *names = sys.argv[1:]
    library = Library(build(sanitize, sources=SOURCES))
    for kernel in names:
        for seed in seeds.split(","):
            print(f"{kernel} {seed}: {run(library, kernel, int(seed))}", flush=True)


if __name__ == "__main__":
    main()
