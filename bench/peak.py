"""The machine's peak: independent chains of fused multiply-adds that stay in registers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from saec_gpu.backends.simd import ROW_LANES, fma, load, splat, store
from saec_gpu.compiled import compiled

# One widest register a chain. A chain waits for its own last result, 4 cycles at two a cycle, so 8
# chains suffice; 12 leave room, and with a factor and a term still fit 16 registers.
LANES = 16 if ROW_LANES == 64 else 8
CHAINS = 12
STEPS = 2**25


@compiled
def run_chains(
    numbers: Any,  # IN  float32 (2): factor and term, unknown to the compiler
    steps: Any,
    out: Any,  # OUT float32 (CHAINS * LANES): keeps the chains from being left out
) -> None:
    """Replace each of CHAINS vectors v by factor·v + term, `steps` times."""
    factor = splat(LANES, numbers[0])
    term = splat(LANES, numbers[1])
    v0 = load(LANES, out, 0)
    v1 = load(LANES, out, LANES)
    v2 = load(LANES, out, 2 * LANES)
    v3 = load(LANES, out, 3 * LANES)
    v4 = load(LANES, out, 4 * LANES)
    v5 = load(LANES, out, 5 * LANES)
    v6 = load(LANES, out, 6 * LANES)
    v7 = load(LANES, out, 7 * LANES)
    v8 = load(LANES, out, 8 * LANES)
    v9 = load(LANES, out, 9 * LANES)
    v10 = load(LANES, out, 10 * LANES)
    v11 = load(LANES, out, 11 * LANES)
    for _ in range(steps):
        v0 = fma(v0, factor, term)
        v1 = fma(v1, factor, term)
        v2 = fma(v2, factor, term)
        v3 = fma(v3, factor, term)
        v4 = fma(v4, factor, term)
        v5 = fma(v5, factor, term)
        v6 = fma(v6, factor, term)
        v7 = fma(v7, factor, term)
        v8 = fma(v8, factor, term)
        v9 = fma(v9, factor, term)
        v10 = fma(v10, factor, term)
        v11 = fma(v11, factor, term)
    store(out, 0, v0)
    store(out, LANES, v1)
    store(out, 2 * LANES, v2)
    store(out, 3 * LANES, v3)
    store(out, 4 * LANES, v4)
    store(out, 5 * LANES, v5)
    store(out, 6 * LANES, v6)
    store(out, 7 * LANES, v7)
    store(out, 8 * LANES, v8)
    store(out, 9 * LANES, v9)
    store(out, 10 * LANES, v10)
    store(out, 11 * LANES, v11)


class FmaChains:
    """The chains on some threads at once.

    Parameters
    ----------
    threads : int
    """

    def __init__(self, threads: int) -> None:
        # converge to 2, far from overflow and from subnormal numbers, which some machines do slowly
        self._numbers = np.array([0.5, 1.0], np.float32)
        self._out = [np.arange(CHAINS * LANES, dtype=np.float32) for _ in range(threads)]
        run_chains(self._numbers, 1, self._out[0])

    def run(self) -> float:
        """Run every thread's chains to the end and return the flop of all: 2 a lane and step."""
        with ThreadPoolExecutor(len(self._out)) as pool:
            list(pool.map(lambda out: run_chains(self._numbers, STEPS, out), self._out))
        return 2.0 * STEPS * CHAINS * LANES * len(self._out)
