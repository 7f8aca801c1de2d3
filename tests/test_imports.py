"""Imports point down only, importing the package is cheap, and other libraries do not mind it."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

# A module imports from lower levels only. A folder counts as one module, whose files may import
# each other. Under "" stands the package itself: it hands out everything, lazily.
LEVELS = {
    "errors": 0,
    "version": 0,
    "compiled": 0,
    "threads": 0,
    "compiled_levels": 1,
    "layout": 1,
    "durable": 1,
    "synthetic": 1,
    "data": 2,
    "backends": 3,
    "packing": 3,
    "sources": 3,
    "codewords": 4,
    "levels": 4,
    "manifest": 5,
    "artifact": 6,
    "artifact_writer": 7,
    "clustering": 8,
    "checkpoint": 9,
    "stream": 9,
    "inspection": 10,
    "pipeline": 10,
    "compression": 11,
    "nn": 12,
    "verification": 12,
    "updating": 13,
    "assignment": 9,
    "delta": 8,
    "": 14,
    "console": 15,
    "printing": 16,
    "doctor": 15,
    "bench": 16,
    "report": 16,
    "cli": 17,
}

# (from, to) that may point up, and why. Only where it runs on call or for
# the type checker alone, so that no import is circular.
EXCEPTIONS = {
    ("artifact", "assignment"): "artifact.assign(field, rows), likewise",
    ("artifact", "verification"): "artifact.verify(tables) is a method; it loads backends on call",
}

# What `import saec_gpu` must not load.
HEAVY = (
    "cupy",
    "faiss",
    "jinja2",
    "matplotlib",
    "numba",
    "pyarrow",
    "rich",
    "safetensors",
    "sklearn",
    "torch",
    "typer",
)


def modules() -> dict[str, str]:
    """Return the source of each module of the package by its dotted name below saec_gpu."""
    found = {}
    for root, prefix in ((CHECKOUT / "src" / "saec_gpu", ()), (CHECKOUT / "bench", ("bench",))):
        for path in root.rglob("*.py"):
            parts = (*prefix, *path.relative_to(root).with_suffix("").parts)
            if parts[-1] == "__init__":
                # The trailing dot tells a package from a module of that name for relative imports.
                parts = (*parts[:-1], "")
            found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


def imported(name: str, source: str) -> Iterator[tuple[str, bool, int]]:
    """Yield (module below saec_gpu, whether not run on import, line) of each import of ours."""
    package = ("saec_gpu", *name.split(".")[:-1])

    def walk(node: ast.AST, deferred: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                targets = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) + 1 - child.level] if child.level else ()
                base = (*base, *(child.module or "").split("."))
                start = ".".join(part for part in base if part)
                targets = [f"{start}.{alias.name}" for alias in child.names]
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from walk(child, deferred or function or types)
                continue
            for target in targets:
                head, *rest = target.split(".")
                if head == "saec_gpu":
                    yield ".".join(rest), deferred, child.lineno

    yield from walk(ast.parse(source), deferred=False)


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return a line for each import that does not point down, and for modules without a level."""
    found = []
    for name, source in sources.items():
        module = name.split(".")[0]
        if module not in LEVELS:
            found.append(f"{name}: no level; give it one in LEVELS")
            continue
        for target, deferred, line in imported(name, source):
            # `from saec_gpu import load` imports a name of the package itself.
            other = target.split(".")[0] if target.split(".")[0] in LEVELS else ""
            if module == "" or LEVELS[other] < LEVELS[module] or other == module:
                continue
            if deferred and (module, other) in EXCEPTIONS:
                continue
            found.append(f"{name}:{line}: imports saec_gpu.{other}, which is not below {module}")
    return found


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, with warnings as errors like here."""
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_imports_point_down() -> None:
    assert violations(modules()) == []


def test_exceptions_are_used() -> None:
    used = {
        (name.split(".")[0], target.split(".")[0])
        for name, source in modules().items()
        for target, _, _ in imported(name, source)
    }
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("layout", "from saec_gpu.data import Chunk"),
        ("layout", "import saec_gpu.data"),
        ("layout", "from saec_gpu import data"),
        ("layout", "from . import data"),
        ("layout", "from saec_gpu import load"),
        ("backends.cpu", "from ..clustering.lloyd import lloyd"),
        ("backends.", "from ..compression import compress"),
        ("compression", "def run():\n    from saec_gpu.cli import main"),
        ("stream", "if True:\n    import saec_gpu.compression as compression"),
        ("artifact", "from saec_gpu.verification import verify"),
        ("artifact", "if sys.version_info:\n    from saec_gpu.verification import verify"),
        ("layout", "if TYPE_CHECKING:\n    from saec_gpu.data import Chunk"),
        ("newcomer", ""),
    ],
)
def test_checker_can_fail(name: str, source: str) -> None:
    assert len(violations({name: source})) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data", "from saec_gpu.layout import Layout\nimport numpy"),
        ("backends.cpu", "from .protocol import Backend\nfrom ..data import Chunk"),
        ("backends.cpu", "from saec_gpu.backends import protocol"),
        ("artifact", "def check():\n    from saec_gpu.verification import verify"),
        ("artifact", "if TYPE_CHECKING:\n    from saec_gpu.verification import verify"),
        ("", "def __getattr__(name):\n    from saec_gpu.compression import compress"),
        ("bench.run", "import saec_gpu as saec\nfrom .cases import CASES"),
    ],
)
def test_checker_can_pass(name: str, source: str) -> None:
    assert violations({name: source}) == []


def test_import_is_cheap() -> None:  # RELIABILITY 53, 54
    code = "import sys, saec_gpu; print(*{name.partition('.')[0] for name in sys.modules})"
    result = python(code)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "numpy" in loaded
    assert loaded.isdisjoint(HEAVY)


def installed(name: str) -> list[pytest.MarkDecorator]:
    if importlib.util.find_spec(name) is not None:
        return []
    return [
        pytest.mark.allowed_skip(reason="a peer of the extra bench"),
        pytest.mark.skip(reason=f"{name} is not installed"),
    ]


OURS = "import saec_gpu, saec_gpu.packing, saec_gpu.backends.cpu"
OTHERS = {
    "torch": "import torch; torch.ones((64, 64)) @ torch.ones((64, 64))",
    "sklearn": "from sklearn.cluster import KMeans; import numpy as np; "
    "KMeans(2, n_init=1).fit(np.eye(8))",
    "faiss": "import faiss, numpy as np; faiss.IndexFlatL2(4).add(np.eye(4, dtype='float32'))",
}


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "other", [pytest.param(name, marks=installed(name)) for name in sorted(OTHERS)]
)
def test_import_order(other: str, first: bool) -> None:  # RELIABILITY 55
    # Two OpenMP runtimes in one process crash or hang depending on which came first: each side is
    # imported and put to work, and our kernel runs last in both orders.
    work = (
        "import numpy as np; "
        "packed = saec_gpu.packing.pack(np.arange(9, dtype=np.uint16), 257); "
        "assert saec_gpu.packing.unpack(packed, 9, 257).tolist() == list(range(9))"
    )
    steps: Sequence[str] = [OTHERS[other], OURS] if first else [OURS, OTHERS[other]]
    result = python("\n".join([*steps, work]))
    assert result.returncode == 0, result.stderr
