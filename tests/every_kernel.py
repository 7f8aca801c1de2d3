"""Runs every kernel on the emulator: the fields of `bench/device/small_shapes.py`.

A program of its own, because a sanitizer must be in its process from the start; see
`test_cuda_kernels.py`. Prints how many launches of how many kernels agreed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from access_table import access_table
from emulated_device import LIMITS, EmulatedDevice
from emulator import Library, build
from saec_gpu.bench.device.small_shapes import DIMS, DTYPES, WEIGHTS, differences, make_fields

from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.kernel_sources import kernel_sources

# shared memory of sm_75, of sm_86 and of sm_90
SHARED_BYTES = (64 * 1024, 99 * 1024, 227 * 1024)


class CountingDevice(EmulatedDevice):
    """Counts the launches of each kernel."""

    def __init__(self, launches: Counter[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._launches = launches

    def launch(self, kernel: str, *args: Any, **kwargs: Any) -> None:
        """Count, then run."""
        self._launches[kernel] += 1
        super().launch(kernel, *args, **kwargs)


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", default="", help="how the kernels are built")
    parser.add_argument("--seed", type=int, default=0, help="order of threads, copies and sums")
    parser.add_argument("--sources", type=Path, help="folder of the kernels, if not the project's")
    parser.add_argument("--dims", default=",".join(map(str, DIMS)), help="which dims")
    parser.add_argument(
        "--few", action="store_true", help="each dtype with one kind of weights, not with each"
    )
    parser.add_argument(
        "--accesses",
        action="store_true",
        help="print what memory takes for the accesses of each line; with --sanitize racecheck",
    )
    args = parser.parse_args()
    sources = {} if args.sources is None else {"sources": args.sources}
    library = Library(build(args.sanitize, **sources), count_accesses=args.accesses)
    rng = np.random.default_rng(args.seed)
    launches: Counter[str] = Counter()
    for one, dtype in enumerate(DTYPES):
        for other, weighting in enumerate(WEIGHTS):
            if args.few and one != other:
                continue
            limits = replace(LIMITS, shared_bytes=SHARED_BYTES[(one + other) % 3])
            device = CountingDevice(launches, limits, seed=args.seed, library=library)
            fields = make_fields(map(int, args.dims.split(",")), dtype, weighting, rng)
            found = list(differences(CudaBackend(device), fields))
            assert not found, f"{dtype}, weights {weighting}: {found}"
    if args.dims == ",".join(map(str, DIMS)):
        assert launches.keys() == kernel_sources().keys(), launches
    if args.accesses:
        print(access_table(library.accesses()))
    print(f"{launches.total()} launches of {len(launches)} kernels agree")


if __name__ == "__main__":
    main()
