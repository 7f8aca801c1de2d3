"""The Numba backend: its kernels in Numba's simulator, what they compile to, and its errors.

The simulator is chosen when `numba.cuda` is imported, so tests in it run in a Python of their own:
those of `TestSimulated` are collected there only, and the contract is run there by name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import reference
import saec_gpu as saec
from builders import (
    Piece,
    assert_clustered_alike,
    chunks_of,
    cluster,
    column,
    fixed_points,
    rows_of,
    weights_of,
    whole,
)
from saec_gpu.backends import numba_cuda
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.numba_cuda import NumbaBackend
from saec_gpu.data import Codebook, chunk_of
from saec_gpu.errors import (
    BackendUnavailableError,
    DeviceError,
    DeviceMemoryError,
    LayoutError,
    MissingExtraError,
)

CHECKOUT = Path(__file__).parents[1]
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
# The simulator polls its threads without a pause, and they get Python's lock only when it is taken
# away by force, every 5 ms. With a pause in each look at a thread, this takes a third of the time.
PAUSE = """
import sys, threading, time, pytest
is_alive = threading.Thread.is_alive
threading.Thread.is_alive = lambda thread: time.sleep(0) or is_alive(thread)
sys.exit(pytest.main(sys.argv[1:]))
"""
ARCHITECTURES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]

# What must not be in code that keeps the promise.
FAULTS = {
    "fused multiply-add in float64": r"\bfma\.\w+\.f64",
    "conversion that flushes subnormals": r"\bcvt\.[\w.]*ftz",
    "atomic addition of floats": r"\b(?:atom|red)\.[\w.]*\bf(?:16|32|64)",
    "array outside registers": "__local_depot",
}


def simulate(request: pytest.FixtureRequest, *arguments: str) -> None:
    """Run tests with the Numba backend in the simulator; fail unless all pass."""
    seed = request.config.getoption("randomly_seed", 0)
    options = [
        f"--randomly-seed={seed}",
        "-p",
        "no:cacheprovider",
        "--no-cov",
        "--durations=5",
        "-n0",
    ]
    result = subprocess.run(
        [sys.executable, "-c", PAUSE, "--backends", "numba", *options, *arguments],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    print(result.stdout, result.stderr)  # shown by pytest where this fails
    assert result.returncode == 0  # 5 where nothing was selected


def faults_of(ptx: str) -> list[str]:
    """Return which of FAULTS a compiled kernel has."""
    return [fault for fault, pattern in FAULTS.items() if re.search(pattern, ptx)]


def compiled(
    monkeypatch: pytest.MonkeyPatch,
    function: Any,
    signature: str,
    architecture: tuple[int, int],
    **options: Any,
) -> str:
    """Return a kernel's PTX, on a machine with or without a driver."""
    from numba import cuda

    # Device functions are compiled for "the current device", which there may be none of.
    device = SimpleNamespace(compute_capability=architecture)
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: device)
    ptx, _ = cuda.compile_ptx(function, signature, cc=architecture, **options)
    assert f".target sm_{architecture[0]}{architecture[1]}" in ptx
    return str(ptx)


@pytest.fixture
def device_error() -> type[Exception]:
    """Return what Numba raises when the driver reports something."""
    from numba.cuda.cudadrv.driver import CudaAPIError

    error: type[Exception] = CudaAPIError
    return error


Memory = namedtuple("Memory", ["free", "total"])


class FullDevice:
    """Stands in for `numba.cuda` on a device that reports the same error again and again."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.memory = Memory(12_345, 67_890)

    def current_context(self) -> Any:
        return SimpleNamespace(get_memory_info=lambda: self.memory)

    def to_device(self, array: object) -> None:
        raise self.error

    device_array = to_device


class TestCompiled:
    """Every kernel for every architecture, without a driver, and a look at what came out."""

    __test__ = not SIMULATED

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_kernels_compile_without_faults(
        self, monkeypatch: pytest.MonkeyPatch, architecture: tuple[int, int]
    ) -> None:
        from saec_gpu.backends.numba_kernels import KERNELS

        ptx = {
            kernel.py_func.__name__: compiled(monkeypatch, kernel.py_func, signature, architecture)
            for kernel, signature in KERNELS
        }
        assert {name: faults_of(text) for name, text in ptx.items()} == {name: [] for name in ptx}
        # the other way round: what should be there is there
        for instruction in ("cvt.f64.f32", "mul.rn.f64", "add.rn.f64", "bar.sync"):
            assert instruction in ptx["assign_f32"]
        for instruction in ("cvt.f64.f32", "mul.rn.f64", "cvt.rni.f64.f64", "add.u64"):
            assert instruction in ptx["accumulate_f32"]

    def test_every_kernel_is_listed(self) -> None:
        from numba.cuda.dispatcher import CUDADispatcher

        from saec_gpu.backends import numba_kernels

        dispatchers = [k for k in vars(numba_kernels).values() if isinstance(k, CUDADispatcher)]
        kernels = [k for k in dispatchers if not k.targetoptions.get("device")]
        assert len(kernels) == 3
        assert [kernel for kernel, _ in numba_kernels.KERNELS] == kernels

    def test_a_planted_multiply_add_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def planted(values: Any, total: Any) -> None:
            s = total[0]
            for value in values:
                t = np.float64(value)
                s += t * t
            total[0] = s

        ptx = compiled(monkeypatch, planted, "void(float32[::1], float64[::1])", (9, 0))
        assert faults_of(ptx) == ["fused multiply-add in float64"]

    def test_a_planted_flush_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def planted(values: Any, wider: Any) -> None:
            wider[0] = np.float64(values[0] + np.float32(1.0))

        signature = "void(float32[::1], float64[::1])"
        assert faults_of(compiled(monkeypatch, planted, signature, (9, 0))) == []
        flushing = compiled(monkeypatch, planted, signature, (9, 0), fastmath=True)
        assert faults_of(flushing) == ["conversion that flushes subnormals"]

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_planted_float_atomic_is_seen(
        self, monkeypatch: pytest.MonkeyPatch, dtype: str
    ) -> None:
        from numba import cuda

        def planted(values: Any, total: Any) -> None:
            cuda.atomic.add(total, 0, values[0])

        ptx = compiled(monkeypatch, planted, f"void({dtype}[::1], {dtype}[::1])", (9, 0))
        assert faults_of(ptx) == ["atomic addition of floats"]

    def test_a_planted_array_in_memory_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from numba import cuda, float64

        def planted(places: Any, values: Any) -> None:
            kept = cuda.local.array(64, float64)
            for i in range(64):
                kept[i] = values[i]
            values[0] = kept[places[0]]  # known at run time only: a register has no index

        ptx = compiled(monkeypatch, planted, "void(int64[::1], float64[::1])", (9, 0))
        assert faults_of(ptx) == ["array outside registers"]


class TestErrors:
    """What is missing, and what to do about it, in words; all of it with stand-ins."""

    __test__ = not SIMULATED

    @pytest.fixture
    def backend(self, monkeypatch: pytest.MonkeyPatch) -> NumbaBackend:
        monkeypatch.setattr(numba_cuda, "_check_device", lambda _: None)
        monkeypatch.setattr(numba_cuda, "_compile", lambda _: None)
        return NumbaBackend()

    def test_the_package_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(
            MissingExtraError, match=r"numba-cuda.*install 'saec_gpu\[numba-cuda\]'"
        ):
            NumbaBackend()

    def test_the_package_cannot_be_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("saec_gpu.backends.numba_kernels", raising=False)
        monkeypatch.setitem(sys.modules, "saec_gpu.backends.numba_kernels", None)
        with pytest.raises(BackendUnavailableError, match=r"cannot be loaded \(.*install it again"):
            NumbaBackend()

    @pytest.mark.parametrize(
        ("said", "advice"),
        [
            (
                "Error at driver init: \n\nCUDA driver library cannot be found.\n",
                "install the NVIDIA",
            ),
            ("CUDA is disabled due to setting NUMBA_DISABLE_CUDA=1 in", "unset the environment"),
            ("Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)", "check that"),
            (
                "Call to cuInit results in CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)",
                "update the NVIDIA",
            ),
        ],
    )
    def test_no_device(self, monkeypatch: pytest.MonkeyPatch, said: str, advice: str) -> None:
        from numba.cuda.cudadrv.error import CudaSupportError

        from saec_gpu.backends import numba_kernels

        def refuse() -> None:
            raise CudaSupportError(said)

        stand_in = SimpleNamespace(gpus=(0,), current_context=refuse)
        monkeypatch.setattr(numba_kernels, "cuda", stand_in)
        quoted = re.escape(" ".join(said.split()))
        match = rf'backend="numba" can use no .*\({quoted}\); {advice}.*or take backend="cpu"'
        with pytest.raises(BackendUnavailableError, match=match):
            NumbaBackend()

    def test_an_empty_list_of_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from saec_gpu.backends import numba_kernels

        monkeypatch.setattr(numba_kernels, "cuda", SimpleNamespace(gpus=()))
        with pytest.raises(
            BackendUnavailableError, match=r"\(NO_DEVICE\); check that `nvidia-smi`"
        ):
            NumbaBackend()

    def test_a_device_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from saec_gpu.backends import numba_kernels

        device = SimpleNamespace(name="Tesla V100", compute_capability=(7, 0))
        stand_in = SimpleNamespace(
            gpus=(device,), current_context=lambda: SimpleNamespace(device=device)
        )
        monkeypatch.setattr(numba_kernels, "cuda", stand_in)
        match = r"Tesla V100 has compute capability 7\.0, but .* needs 7\.5 or later"
        with pytest.raises(BackendUnavailableError, match=match):
            NumbaBackend()

    @pytest.mark.parametrize("kind", ["ImportError", "RuntimeError", "NvvmError", "CudaAPIError"])
    def test_no_compiler(
        self, monkeypatch: pytest.MonkeyPatch, device_error: type[Exception], kind: str
    ) -> None:
        from numba.cuda.cudadrv.error import NvvmError

        from saec_gpu.backends import numba_kernels

        errors = {
            "ImportError": ImportError("libNVVM\ncannot be found"),
            "RuntimeError": RuntimeError("libNVVM\ncannot be found"),
            "NvvmError": NvvmError("libNVVM\ncannot be found"),
            "CudaAPIError": device_error(222, "libNVVM\ncannot be found"),
        }

        def compile_(signature: str) -> None:
            raise errors[kind]

        kernels = ((SimpleNamespace(compile=compile_), "void()"),)
        monkeypatch.setattr(numba_cuda, "_check_device", lambda _: None)
        monkeypatch.setattr(numba_kernels, "KERNELS", kernels)
        match = r"cannot be compiled here \(.*libNVVM cannot be found\); .*'numba-cuda\[cu13\]'"
        with pytest.raises(BackendUnavailableError, match=match):
            NumbaBackend()

    def test_out_of_memory(self, backend: NumbaBackend, device_error: type[Exception]) -> None:
        backend._cuda = FullDevice(device_error(2, "CUDA_ERROR_OUT_OF_MEMORY"))
        rows, weights = np.ones((100, 3), np.float32), np.ones(100)
        match = (
            r"must hold 2000 bytes more to hold rows.* 67890 only 12345 are free; give a smaller"
        )
        with pytest.raises(DeviceMemoryError, match=match):
            backend.load_rows(chunk_of("x", rows, weights))
        with pytest.raises(DeviceMemoryError, match="bytes more to hold codebooks"):
            backend.load_codebooks({"x": Codebook(rows[:1])})

    def test_a_device_that_fails(
        self, backend: NumbaBackend, device_error: type[Exception]
    ) -> None:
        backend._cuda = FullDevice(device_error(700, "CUDA_ERROR_ILLEGAL_ADDRESS"))
        with pytest.raises(DeviceError, match=r'failed to hold rows: .*ILLEGAL.* backend="cpu"'):
            backend.load_rows(chunk_of("x", column(1, 2)))

    def test_the_budget_is_the_lesser_memory_s(
        self, backend: NumbaBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend._cuda = FullDevice(RuntimeError())
        assert backend.memory_budget() == 12_345 // 2
        backend._cuda.memory = Memory(2**60, 2**60)
        monkeypatch.setattr(CpuBackend, "memory_budget", lambda _: 1000)
        assert backend.memory_budget() == 1000


class TestInTheSimulator:
    """What is run there, and that it passes."""

    __test__ = not SIMULATED

    @pytest.mark.timeout(600)
    def test_the_contract_holds(self, request: pytest.FixtureRequest) -> None:
        simulate(request, "tests/test_backend_contract.py::TestBackend")

    @pytest.mark.timeout(600)
    def test_codes_are_the_definition_s(self, request: pytest.FixtureRequest) -> None:
        # columns of more than one stage, and values of every kind and magnitude
        dims = "-3] or -17] or ties-130]"
        selected = f"test_codes_are_the_definition_s and ({dims}) or no_number_of_rows or all_equal"
        simulate(request, "tests/test_filter.py", "-k", selected)

    @pytest.mark.timeout(600)
    def test_all_else_holds(self, request: pytest.FixtureRequest) -> None:
        simulate(request, "tests/test_numba_cuda.py::TestSimulated")


class TestSimulated:
    """What the contract does not ask for. Runs in the simulator only, see `TestInTheSimulator`."""

    __test__ = SIMULATED

    @pytest.fixture
    def backend(self) -> NumbaBackend:
        return NumbaBackend()

    def test_low_limbs_are_carried_in_time(
        self,
        backend: NumbaBackend,
        rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(numba_cuda, "CARRY_ROWS", 70)
        rows, weights = rows_of("normal", rng, 200, 3), weights_of("wide", rng, 200)
        ours, oracle = fixed_points(rows, weights)
        assert ours.wide
        loaded = backend.load_codebooks({"x": Codebook(rows[:7], ours)})
        since: list[int] = []
        for chunk in chunks_of([Piece("x", rows, weights)], 33):
            backend.assign_accumulate(backend.load_rows(chunk), loaded)
            since.append(loaded.rows_since_carry)
        assert since == [33, 66, 33, 66, 33, 66, 68]  # a third chunk of 33 would be too much
        codes, _ = reference.assign(rows, rows[:7])
        assert whole(backend.partials(loaded)["x"]) == reference.partial(
            rows, weights, codes, 7, oracle
        )

    def test_carrying_leaves_less_than_a_limb(
        self, backend: NumbaBackend, rng: np.random.Generator
    ) -> None:
        from saec_gpu.backends.numba_kernels import THREADS, carry_limbs

        n = 3 * THREADS + 1
        high, low = rng.integers(-(2**61), 2**61, (2, n)), rng.integers(0, 2**62, (2, n))
        high_there, low_there = (backend._cuda.to_device(array) for array in (high, low))
        backend._launch(carry_limbs, 4, high_there, low_there)
        high_then, low_then = high_there.copy_to_host(), low_there.copy_to_host()
        assert low_then.min() >= 0
        assert low_then.max() < 2**32
        value = high.astype(object) * 2**32 + low
        assert (high_then.astype(object) * 2**32 + low_then == value).all()

    @pytest.mark.parametrize(("values", "n_copies"), [(1, 1), (7 * 3 * 5, 5), (2**18, 64)])
    @pytest.mark.parametrize("kind", ["whole", "wide"])
    def test_copies_of_the_sums_add_up(
        self,
        backend: NumbaBackend,
        rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch,
        values: int,
        n_copies: int,
        kind: str,
    ) -> None:
        monkeypatch.setattr(numba_cuda, "VALUES_OF_COPIES", values)
        n = 7 * backend._kernels.TILE + 1
        rows, weights = rows_of("normal", rng, n, 3), weights_of(kind, rng, n)
        ours, oracle = fixed_points(rows, weights)
        loaded = backend.load_codebooks({"x": Codebook(rows[:7], ours)})
        assert loaded.sums[0].shape == (n_copies, 21)
        backend.assign_accumulate(backend.load_rows(chunk_of("x", rows, weights)), loaded)
        used = (loaded.sums[-1].copy_to_host() > 0).any(axis=1).sum()
        assert used == min(n_copies, 8)  # tiles take turns
        codes, _ = reference.assign(rows, rows[:7])
        assert whole(backend.partials(loaded)["x"]) == reference.partial(
            rows, weights, codes, 7, oracle
        )

    def test_blocks_without_a_tile_do_nothing(
        self,
        backend: NumbaBackend,
        rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(backend._kernels, "SIMULATED", False)
        monkeypatch.setattr(numba_cuda, "LEAST_BLOCKS", 5)
        rows = rows_of("normal", rng, 9, 2)
        ours, oracle = fixed_points(rows, None)
        loaded = backend.load_codebooks({"x": Codebook(rows[:3], ours)})
        resident = backend.load_rows(chunk_of("x", rows))
        codes, _ = reference.assign(rows, rows[:3])
        assert backend.assign(resident, loaded).codes.tolist() == codes
        backend.assign_accumulate(resident, loaded)
        assert whole(backend.partials(loaded)["x"]) == reference.partial(
            rows, None, codes, 3, oracle
        )

    def test_weighted_sums_without_weights_are_refused(self, backend: NumbaBackend) -> None:
        rows = column(1, 2)
        ours, _ = fixed_points(rows, np.array([1.0, 2.0]))
        loaded = backend.load_codebooks({"x": Codebook(rows, ours)})
        with pytest.raises(LayoutError, match='field "x" were given without weights'):
            backend.assign_accumulate(backend.load_rows(chunk_of("x", rows)), loaded)

    def test_a_negative_code_is_out_of_range(self, backend: NumbaBackend) -> None:
        rows = column(1, 2)
        ours, _ = fixed_points(rows, None)
        loaded = backend.load_codebooks({"x": Codebook(rows, ours)})
        codes: Any = np.array([0, -1])
        with pytest.raises(LayoutError, match='row 1 of field "x" has code 4294967295'):
            backend.accumulate(backend.load_rows(chunk_of("x", rows)), codes, loaded)

    def test_sums_that_nobody_can_ask_for_are_not_kept(self, backend: NumbaBackend) -> None:
        rows = column(1, 2)
        loaded = backend.load_codebooks({"x": Codebook(rows)})
        resident = backend.load_rows(chunk_of("x", rows))
        backend.assign_accumulate(resident, loaded)
        backend.accumulate(resident, np.zeros(2, np.uint32), loaded)
        assert loaded.sums == ()
        assert backend.partials(loaded) == {}

    @pytest.mark.parametrize("weights", ["none", "sparse", "wide"])
    def test_a_field_is_clustered_as_on_the_cpu(
        self, backend: NumbaBackend, rng: np.random.Generator, weights: str
    ) -> None:
        rows, own = rows_of("repeated", rng, 150, 3), weights_of(weights, rng, 150)
        found = cluster(rows, own, 12, max_iter=4, tol=0.0, step=67, backend=backend)
        assert_clustered_alike(found, cluster(rows, own, 12, max_iter=4, tol=0.0))

    def test_an_artifact_has_the_bytes_it_has_on_the_cpu(
        self, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        tables = {"a": rows_of("normal", rng, 150, 3), "b": rows_of("heavy", rng, 40, 5)}
        weights = {"b": weights_of("whole", rng, 40)}
        for backend in ("cpu", "numba"):
            artifact = saec.compress(
                tables, weights=weights, codewords=6, max_iter=3, backend=backend,
                out=tmp_path / backend,
            )  # fmt: skip
            assert artifact.run["backend"] == backend
        assert files(tmp_path / "numba") == files(tmp_path / "cpu")


def files(folder: Path) -> dict[str, bytes]:
    """Return what the promise covers of an artifact: all but the record of the run."""

    def kept() -> Iterator[tuple[str, bytes]]:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "run.json":
                yield str(path.relative_to(folder)), path.read_bytes()

    found = dict(kept())
    assert "manifest.json" in found
    return found
