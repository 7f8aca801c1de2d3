"""The committed table of what each kernel may use, `budget.json`, and the comparison with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# Figures in the order of the table. `alu_per_pair` stands only where a loop multiplies matrices.
FIGURES = ("registers", "stack_bytes", "shared_bytes", "alu_per_pair")

Figures = Mapping[str, float]
Place = tuple[str, str]  # kernel and architecture


@dataclass(frozen=True)
class Budget:
    """What kernels may use.

    Attributes
    ----------
    nvrtc : str
        The version that the table was made with: another one gives other registers.
    limits : mapping
        Pattern of kernel names to what holds for all of them: the most `registers`; `matrix`: one
        is needed; `products`: how many of those, of 16 columns each, make one key; the most
        `alu_per_pair`, by architecture.
    table : mapping
        What each kernel used when the table was last made, by kernel and architecture.
    """

    nvrtc: str
    limits: Mapping[str, Mapping[str, Any]]
    table: Mapping[Place, Figures] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Budget:
        """Return the budget of a file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        table = {
            (kernel, architecture): figures
            for kernel, rows in content["table"].items()
            for architecture, figures in rows.items()
        }
        return cls(content["nvrtc"], content["limits"], table)

    def write(self, path: Path) -> None:
        """Write the budget so that each figure that changes is a line of a diff."""
        kernels = sorted({kernel for kernel, _ in self.table})
        blocks = []
        for kernel in kernels:
            rows = [
                f"      {json.dumps(architecture)}: {json.dumps(self.table[kernel, architecture])}"
                for architecture in sorted((a for k, a in self.table if k == kernel), key=_rank)
            ]
            blocks.append(f"    {json.dumps(kernel)}: {{\n" + ",\n".join(rows) + "\n    }")
        limits = ",\n".join(f"    {json.dumps(p)}: {json.dumps(v)}" for p, v in self.limits.items())
        path.write_text(
            f'{{\n  "nvrtc": {json.dumps(self.nvrtc)},\n  "limits": {{\n{limits}\n  }},\n'
            '  "table": {\n' + ",\n".join(blocks) + "\n  }\n}\n",
            encoding="utf-8",
        )

    def needs_matrix(self, kernel: str) -> bool:
        """Return whether this kernel is meant to multiply with matrix instructions."""
        return any(limit.get("matrix", False) for limit in self._of(kernel))

    def products(self, kernel: str) -> int | None:
        """Return how many matrix instructions make one key, None if no limit tells."""
        told = {limit["products"] for limit in self._of(kernel) if "products" in limit}
        return int(told.pop()) if len(told) == 1 else None

    def complaints(self, place: Place, figures: Figures) -> Iterator[str]:
        """Yield what a kernel uses beyond its limits or its row of the table."""
        kernel, architecture = place
        for limit in self._of(kernel):
            most = {"registers": limit.get("registers")}
            most["alu_per_pair"] = limit.get("alu_per_pair", {}).get(architecture)
            for name, limited in most.items():
                if limited is None:
                    continue
                if name not in figures:
                    yield f"no {name} was found, and it is limited to {limited}"
                elif figures[name] > limited:
                    yield f"{name} {figures[name]} is above the limit of {limited}"
        row = self.table.get(place)
        if not row:
            yield "has no row in the table: look at the figures, then --update"
            return
        for name in FIGURES:
            if name not in figures and name not in row:
                continue
            if name not in figures or name not in row:
                yield f"{name} is {figures.get(name)}, in the table {row.get(name)}"
            elif figures[name] > row[name]:
                yield f"{name} {figures[name]}, in the table {row[name]}"

    def gone(self, kernels: Sequence[str]) -> list[str]:
        """Return the kernels of the table that are no more."""
        return sorted({kernel for kernel, _ in self.table} - set(kernels))

    def updated(self, nvrtc: str, found: Mapping[Place, Figures], kernels: Sequence[str]) -> Budget:
        """Return the budget with the rows that were found, and without kernels that are no more."""
        kept = {place: row for place, row in self.table.items() if place[0] in kernels}
        return Budget(nvrtc, self.limits, {**kept, **found})

    def _of(self, kernel: str) -> list[Mapping[str, Any]]:
        return [limit for pattern, limit in self.limits.items() if fnmatch(kernel, pattern)]


def _rank(architecture: str) -> tuple[int, str]:
    return int(architecture.rstrip("af")), architecture
