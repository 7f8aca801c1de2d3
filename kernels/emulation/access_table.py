"""What memory takes for the accesses of kernels, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping

from emulator import Cost, Place

_HEADER = ("kernel", "line", "access", "bytes", "requests", "a request", "least")
_UNITS = {"shared": "wavefronts", "global": "sectors"}


def access_table(accesses: Mapping[Place, Cost]) -> str:
    """Return a line for each place, those of a kernel by how much they take above the least.

    Columns are the kernel, the line and the calls it is in, the kind of access, bytes of a lane,
    requests of warps, and for one of them, on average, what it takes and the least it could:
    wavefronts of shared memory, sectors of global memory.
    """
    by_excess = sorted(
        accesses.items(),
        key=lambda item: (item[0].kernel, item[1].least - item[1].taken, item[0]),
    )
    rows = [_HEADER, *(_row(place, cost) for place, cost in by_excess)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(place: Place, cost: Cost) -> tuple[str, ...]:
    return (
        place.kernel,
        place.line,
        f"{place.space} {place.kind}",
        str(place.n_bytes),
        str(cost.requests),
        f"{cost.taken / cost.requests:.2f} {_UNITS[place.space]}",
        f"{cost.least / cost.requests:.2f}",
    )
