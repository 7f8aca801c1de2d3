"""What the machine itself can do, to hold every time against: rates of its parts, each alone.

    python -m saec_gpu.bench.device.limits --out limits.jsonl

Rates per clock and processor come from the processor's own clock, so that they do not depend on
what frequency it ran at; rates per second come from events.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.device import DeviceArray, Stream

from ..records import spread
from .machine import Machine, nvidia_smi, open_machine
from .part import Part, arguments_of, run_part

THREADS = 256
ACCUMULATORS, FLOP_A_PRODUCT = 8, 2 * 16 * 16 * 8  # limit_rates.cu
VALUES = 16
# kernels, and the values that one minimum takes in
MINIMA = {
    "limit_minimum_f32": 1,
    "limit_minimum_s32": 1,
    "limit_minimum3_f32": 2,
    "limit_minimum3_s32": 2,
}
SKEW = 0.99
LEAST_SHARED = 16  # bytes; the kernel names its table also where it is not used
CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Sizes:
    """How much is done at once: enough to fill a device, or next to nothing on the emulator."""

    copy_words: int
    matrix_steps: int
    minimum_steps: int
    atomic_steps: int
    addresses: int
    shared_entries: int
    global_entries: int
    host_bytes: int
    slot_bytes: int
    blocks_a_processor: int
    repeats: int


FULL = Sizes(
    copy_words=2**28, matrix_steps=20_000, minimum_steps=40_000, atomic_steps=1_000,
    addresses=2**22, shared_entries=4096, global_entries=2**20, host_bytes=2**30,
    slot_bytes=2**26, blocks_a_processor=4, repeats=5,
)  # fmt: skip
DRY = Sizes(
    copy_words=2**10, matrix_steps=2, minimum_steps=2, atomic_steps=3, addresses=2**9,
    shared_entries=64, global_entries=128, host_bytes=2**14, slot_bytes=2**12,
    blocks_a_processor=1, repeats=1,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every measurement needs."""

    machine: Machine
    sizes: Sizes
    stream: Stream

    @property
    def grid(self) -> int:
        """Return blocks that fill every processor alike."""
        processors: int = self.machine.device.limits.processors
        return processors * self.sizes.blocks_a_processor

    def launch(
        self, kernel: str, arguments: Mapping[str, Any], grid: int | None = None, shared: int = 0
    ) -> None:
        """Launch a kernel of this folder."""
        self.machine.own.launch(
            kernel, grid or self.grid, THREADS, arguments, shared_bytes=shared, stream=self.stream
        )

    def seconds(self, work: Callable[[], Any]) -> list[float]:
        """Return the times of some repeats, after one that does not count."""
        times = [self.machine.seconds(self.stream, work) for _ in range(self.sizes.repeats + 1)]
        return times[1:]

    def clocks(self, cycles: DeviceArray) -> float | None:
        """Return the median clocks that a block took; None on the emulator, which has no clock."""
        taken = statistics.median(self.machine.downloaded(cycles, self.stream).tolist())
        return taken or None


def measure_copy(bench: Bench, part: Part) -> None:
    """Record what device memory gives, bytes read and written."""
    words = bench.sizes.copy_words
    given = {name: bench.machine.own.empty(words, np.uint32) for name in ("from", "to")}
    bench.machine.own.clear(given["from"], bench.stream)
    times = bench.seconds(lambda: bench.launch("limit_copies", {**given, "words": words}))
    _add_rate(part, "device copy", 8 * words, times, "gb_per_s", 1e9)


def measure_rates(bench: Bench, part: Part) -> None:
    """Record the rates of the matrix unit and of minima."""
    sizes, grid = bench.sizes, bench.grid
    seeds = np.random.default_rng(5).integers(1, 2**31, 32, np.uint32)
    common = {
        "seeds": bench.machine.uploaded(seeds, bench.stream),
        "kept": bench.machine.own.empty(grid * THREADS, np.uint32),
        "cycles": bench.machine.own.empty(grid, np.int64),
    }
    blocks = bench.sizes.blocks_a_processor

    def run(kernel: str, steps: int) -> tuple[list[float], float | None]:
        times = bench.seconds(lambda: bench.launch(kernel, {**common, "steps": steps}))
        return times, bench.clocks(common["cycles"])

    times, clocks = run("limit_matrix", sizes.matrix_steps)
    flop_a_warp = FLOP_A_PRODUCT * ACCUMULATORS * sizes.matrix_steps
    flop_a_block = flop_a_warp * THREADS // 32
    _add_rate(
        part, "mma.sync f16", flop_a_block * grid, times, "tflop_per_s", 1e12,
        flop_per_clock=None if clocks is None else flop_a_block * blocks / clocks,
        # all blocks run at once, so a block takes nearly as long as the kernel
        clock_ghz=None if clocks is None else clocks / statistics.median(times) / 1e9,
    )  # fmt: skip
    for kernel, taken_in in MINIMA.items():
        times, clocks = run(kernel, sizes.minimum_steps)
        minima = VALUES * sizes.minimum_steps * THREADS
        per_clock = None if clocks is None else minima * blocks / clocks
        _add_rate(
            part, kernel.removeprefix("limit_"), minima * grid, times, "giga_per_s", 1e9,
            instruction=instruction_of(kernel, bench.machine.device.limits.architecture),
            per_clock=per_clock,
            values_per_clock=None if per_clock is None else taken_in * per_clock,
        )  # fmt: skip


def instruction_of(kernel: str, architecture: int) -> str:
    """Return what NVRTC 13.0 makes of a minimum; of three values two where none takes them."""
    if kernel == "limit_minimum_f32":
        return "FMNMX"
    if kernel == "limit_minimum3_f32":
        return "FMNMX3" if 100 <= architecture < 120 else "2 FMNMX"
    if kernel == "limit_minimum3_s32" and not 90 <= architecture < 120:
        return "2 VIMNMX" if architecture >= 90 else "2 IMNMX"
    three = kernel == "limit_minimum3_s32"
    return "VIMNMX3" if three else "VIMNMX" if architecture >= 90 else "IMNMX"


def addresses_of(rng: np.random.Generator, count: int, entries: int, skew: float) -> NDArray[Any]:
    """Return uint32 (count,) addresses, a share of them all the same, the others uniform."""
    drawn = rng.integers(0, entries, count, np.uint32)
    drawn[rng.random(count) < skew] = entries // 2
    return drawn


def measure_atomics(bench: Bench, part: Part) -> None:
    """Record how fast sums are added to, at uniform and at skewed addresses."""
    sizes, grid = bench.sizes, bench.grid
    rng = np.random.default_rng(6)
    for place, entries in (("shared", sizes.shared_entries), ("global", sizes.global_entries)):
        for name, skew in (("uniform", 0.0), (f"{SKEW:.0%} at one address", SKEW)):
            given = {
                "addresses": bench.machine.uploaded(
                    addresses_of(rng, sizes.addresses, entries, skew), bench.stream
                ),
                "table": bench.machine.own.empty(entries, np.uint64),
                "kept": bench.machine.own.empty(grid * THREADS, np.uint32),
                "cycles": bench.machine.own.empty(grid, np.int64),
                "n_addresses": sizes.addresses,
                "entries": entries,
                "steps": sizes.atomic_steps,
            }
            bench.machine.own.clear(given["table"], bench.stream)
            launch = partial(
                bench.launch, f"limit_atomics_{place}", given,
                shared=4 * entries if place == "shared" else LEAST_SHARED,
            )  # fmt: skip
            times = bench.seconds(launch)
            clocks = bench.clocks(given["cycles"])
            adds = sizes.atomic_steps * THREADS
            counted = int(bench.machine.downloaded(given["table"], bench.stream).sum())
            expected = adds * grid * (sizes.repeats + 1)
            bits = 32 if place == "shared" else 64
            _add_rate(
                part, f"{place} add {bits}, {name}", adds * grid, times, "giga_per_s", 1e9,
                per_clock=None
                if clocks is None
                else adds * sizes.blocks_a_processor / clocks,
                ok=counted == expected,
            )  # fmt: skip
            if counted != expected:
                part.fault(f"{place} additions: {counted} were counted, {expected} were made")


def measure_host_copies(bench: Bench, part: Part) -> None:
    """Record how fast rows come from the host: pinned, through a ring of pinned slots, and bare.

    Wall time: the ring is filled by the host while the device copies.
    """
    device, sizes, stream = bench.machine.own, bench.sizes, bench.stream
    n_bytes = sizes.host_bytes
    target = device.empty(n_bytes, np.uint8)
    pinned = device.pinned(n_bytes, np.uint8)
    pinned[:] = 1  # also makes the pages be there
    source = np.ones(n_bytes, np.uint8)
    slots = [device.pinned(sizes.slot_bytes, np.uint8) for _ in range(4)]

    def staged() -> None:
        copied: list[Any] = [None] * len(slots)
        for number, start in enumerate(range(0, n_bytes, sizes.slot_bytes)):
            slot = slots[number % len(slots)]
            if copied[number % len(slots)] is not None:
                device.synchronize(copied[number % len(slots)])
            piece = slice(start, start + sizes.slot_bytes)
            slot[:] = source[piece]
            device.upload(slot, target[piece], stream)
            copied[number % len(slots)] = device.record(stream)

    ways: dict[str, Callable[[], None]] = {
        "host to device, pinned": lambda: device.upload(pinned, target, stream),
        "host to device, staged by one thread": staged,
        "host to device, pageable": lambda: device.upload(source, target, stream),
        "device to host, pinned": lambda: device.download(target, pinned, stream),
    }
    for name, work in ways.items():
        times = []
        for _ in range(sizes.repeats + 1):
            began = time.perf_counter()
            work()
            device.synchronize(stream)
            times.append(time.perf_counter() - began)
        _add_rate(part, name, n_bytes, times[1:], "gb_per_s", 1e9)


def _add_rate(
    part: Part, limit: str, amount: float, times: list[float], unit: str, scale: float, **more: Any
) -> None:
    rate = amount / statistics.median(times) / scale
    content = {"limit": limit, unit: rate, "seconds": spread(times), "repeats": len(times)}
    part.add("limit", **content, **{"ok": True, **more})
    per_clock = more.get("values_per_clock") or more.get("per_clock") or more.get("flop_per_clock")
    beside = "" if per_clock is None else f", {per_clock:.1f} a clock and processor"
    part.say(f"{limit}: {rate:.4g} {unit}{beside}")


def measure(part: Part, *, dry: bool) -> None:
    """Measure everything."""
    machine = open_machine(dry=dry)
    part.describe(**machine.about())
    bench = Bench(machine, DRY if dry else FULL, machine.own.stream())
    measure_copy(bench, part)
    measure_rates(bench, part)
    measure_atomics(bench, part)
    measure_host_copies(bench, part)
    part.add("limit", limit="clocks", nvidia_smi={CLOCKS: nvidia_smi(CLOCKS)}, ok=True)


def main(given: list[str] | None = None) -> Any:
    """Run from the command line."""
    options: argparse.Namespace = arguments_of("limits", "Measure the machine.").parse_args(given)
    run_part("limits", options, lambda part: measure(part, dry=options.dry_run))


if __name__ == "__main__":
    main()
