"""What all tests share: backends asked for by name, seeded randomness, no skip in silence."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("saec", deadline=None, print_blob=True)
hypothesis.settings.load_profile("saec")  # no deadline: the first example compiles

_SEED = pytest.StashKey[int]()

# The kernels on a machine without a GPU, by name of the backend; a seed draws the order of threads,
# copies and sums.
EMULATED = {"emulated": 0, **{f"emulated-{seed}": seed for seed in (1, 2, 3, 5)}}

# Files of minutes, the longest first. They are begun before the others, whose order is random, so
# that no process is left alone with one of them at the end.
LONG = (
    "test_numba_cuda.py",
    "test_cuda_kernels.py",
    "test_bench.py",
    "test_compression.py",
    "test_checkpoint.py",
    "test_emulation.py",
    "test_cuda.py",
    "test_ctr_example.py",
    "test_on_device.py",
    "test_rules.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default="cpu,emulated",
        help="comma list of the backends to test; one that cannot load fails "
        "(default: %(default)s)",
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="also tests marked full, and every emulated backend beside those of --backends",
    )


def kernel_cache() -> str:
    """Return a cache folder for these sources alone.

    Numba looks only at the file of the function it kept, not at what that inlines from others:
    after a change there it would go on with the old code.
    """
    found = importlib.util.find_spec("saec_gpu")
    assert found is not None
    assert found.origin is not None
    sources = Path(found.origin).parent.rglob("*.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    return str(Path(tempfile.gettempdir()) / f"saec-gpu-kernels-{digest[:16]}")


def _backends(config: pytest.Config) -> list[str]:
    asked = [name.strip() for name in str(config.getoption("--backends")).split(",")]
    return list(dict.fromkeys([*asked, *(EMULATED if config.getoption("--full") else [])]))


def pytest_configure(config: pytest.Config) -> None:
    os.environ["NUMBA_CACHE_DIR"] = kernel_cache()
    # Here and not in a fixture: a run that was asked for a backend must not pass without it.
    from saec_gpu.backends.protocol import known_backends

    known = [*known_backends(), *EMULATED]
    for name in _backends(config):
        if name not in known:
            raise pytest.UsageError(f"--backends names {name!r}; known are: {', '.join(known)}")


def _place(item: pytest.Item) -> int:
    return LONG.index(item.path.name) if item.path.name in LONG else len(LONG)


@pytest.hookimpl(trylast=True)  # after the shuffling of pytest-randomly
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_place)
    if not config.getoption("--full"):
        chosen = [item for item in items if item.get_closest_marker("full") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend_name" in metafunc.fixturenames:
        metafunc.parametrize("backend_name", _backends(metafunc.config), scope="session")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return a generator of the test's own: the run's seed, mixed with the test's name."""
    # The seed of pytest-randomly, so that one number repeats both the order and the data.
    seed = int(request.config.getoption("randomly_seed", 0))
    request.node.stash[_SEED] = seed
    name = hashlib.sha256(request.node.nodeid.encode()).digest()
    return np.random.default_rng([seed, *name])


@pytest.fixture(scope="module")
def small_coresets() -> Generator[None]:
    """Let tables of tests have coresets: small ones too, of no more rows for a few codewords."""
    from saec_gpu.clustering import selection  # after `pytest_configure`

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(selection, "LEAST_ROWS", 1)
        patched.setattr(selection, "PAYS_PRODUCTS", 1)
        yield


@pytest.fixture
def one_torch_thread() -> Generator[None]:
    """Keep torch to one thread: tests run beside each other, and theirs are small."""
    import torch  # most tests do without, and it is slow to import

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    match report.longrepr:
        case (path, line, reason):
            return f"{path}:{line}: {reason}"
        case other:
            return str(other)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _SEED in item.stash:
        report.sections.append(("rng", f"repeat with: --randomly-seed={item.stash[_SEED]}"))
    expected = hasattr(report, "wasxfail") or any(
        "reason" in marker.kwargs or marker.args for marker in item.iter_markers("allowed_skip")
    )
    if report.skipped and not expected:
        report.outcome = "failed"
        report.longrepr = f"unexpected skip, not marked allowed_skip(reason): {_why(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:  # a module that skips itself takes its tests along: nothing can be allowed
        report.outcome = "failed"
        report.longrepr = f"unexpected skip of {collector.nodeid}: {_why(report)}"
    return report
