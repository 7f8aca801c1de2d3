"""What CuPy is asked for, and what is said where it cannot run, with a stand-in for CuPy."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saec_gpu import doctor
from saec_gpu.backends import automatic, open_backend
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.cupy_device import CupyDevice, why_unavailable
from saec_gpu.backends.kernel_sources import kernel_sources
from saec_gpu.errors import (
    BackendUnavailableError,
    DeviceError,
    DeviceMemoryError,
    MissingExtraError,
)


class RuntimeFailureError(RuntimeError):
    """As CuPy's errors are."""


class OutOfMemoryError(MemoryError):
    """As CuPy's is."""


class FakeArray:
    def __init__(self, size: int, dtype: Any) -> None:
        self.host = np.zeros(size, dtype)
        self.size, self.dtype, self.nbytes = size, self.host.dtype, self.host.nbytes
        self.flags = self.host.flags
        self.data = SimpleNamespace(ptr=self.host.ctypes.data, memset_async=self._memset)

    def _memset(self, value: int, n_bytes: int, stream: Any) -> None:
        self.host.view(np.uint8)[:n_bytes] = value


class FakeCupy(ModuleType):
    """As much of CuPy as CupyDevice touches, with devices as given by their properties."""

    def __init__(self, *devices: dict[str, Any], failure: str | None = None) -> None:
        super().__init__("cupy")
        self.__version__ = "0"
        self.compiled: list[tuple[str, tuple[str, ...]]] = []
        self.launched: list[Any] = []
        self.refuses = False

        def count() -> int:
            if failure is not None:
                raise RuntimeFailureError(failure)
            return len(devices)

        runtime = SimpleNamespace(
            getDeviceCount=count,
            getDeviceProperties=lambda number: devices[number],
            memGetInfo=lambda: (1000, 2000),
            driverGetVersion=lambda: 12040,
            CUDARuntimeError=RuntimeFailureError,
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            driver=SimpleNamespace(CUDADriverError=RuntimeFailureError),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
            Device=nullcontext,
            Stream=lambda non_blocking: nullcontext(),
        )

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: 24)

    def empty(self, size: int, dtype: Any) -> FakeArray:
        if size > 10**6:
            raise OutOfMemoryError
        return FakeArray(size, dtype)

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        self.compiled.append((code, options))

        owner = self

        class Kernel:
            def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int) -> None:
                if owner.refuses:
                    raise RuntimeFailureError("invalid argument")
                owner.launched.append((grid, block, args, shared_mem))

        return SimpleNamespace(get_function=lambda name: Kernel())


def properties(major: int = 9, minor: int = 0) -> dict[str, Any]:
    return {
        "name": b"Test GPU", "major": major, "minor": minor, "multiProcessorCount": 7,
        "sharedMemPerBlockOptin": 100_000, "totalGlobalMem": 2000,
    }  # fmt: skip


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(cupy: FakeCupy | None) -> FakeCupy | None:
        monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: as if it were not there
        return cupy

    return put


def test_without_cupy_the_extra_is_named(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # RELIABILITY 53
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"pip install 'saec_gpu\[cuda13\]'"):
        open_backend("cupy")
    assert open_backend("auto").name == "cpu"


class Hidden:
    """Hides CuPy from imports."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "cupy":
            raise ModuleNotFoundError("No module named 'cupy'", name="cupy")


def test_a_cupy_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # RELIABILITY 56
    class Broken(Hidden):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "cupy":
                raise ImportError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(BackendUnavailableError, match=r"libnvrtc.*keep one of cupy-cuda12x and"):
        open_backend("cupy")
    assert automatic()[0] == "cpu"


@pytest.mark.parametrize(
    ("cupy", "said"),
    [
        (FakeCupy(failure="insufficient driver"), "insufficient driver.*nvidia-smi"),
        (FakeCupy(), "lists no device; look at CUDA_VISIBLE_DEVICES"),
        (FakeCupy(properties(7, 0)), r"Test GPU has compute capability 7.0, the kernels need 7.5"),
    ],
)
def test_a_device_that_cannot_be_used_is_told(install: Any, cupy: FakeCupy, said: str) -> None:
    install(cupy)
    with pytest.raises(BackendUnavailableError, match=said):
        open_backend("cupy")


def test_one_device_is_used_and_it_can_be_chosen(install: Any) -> None:
    # RELIABILITY 57
    install(FakeCupy(properties(), properties(7, 5)))
    assert why_unavailable() is None
    assert automatic()[0] == "cupy"
    backend = open_backend("auto")
    assert isinstance(backend, CudaBackend)
    assert backend.device.limits.architecture == 90
    assert CupyDevice(1).limits.architecture == 75
    with pytest.raises(BackendUnavailableError, match=r"device 2 was asked for.*0 to 1"):
        CupyDevice(2)
    assert backend.memory_budget() == int(0.8 * 1024)


def test_no_memory_is_an_error_with_numbers(install: Any) -> None:
    # RELIABILITY 21
    install(FakeCupy(properties()))
    with pytest.raises(DeviceMemoryError, match="has 1024 bytes left, 8000000000 were asked for"):
        CupyDevice().empty(2 * 10**9, np.float32)


def test_a_kernel_is_compiled_alone_and_once(install: Any) -> None:
    cupy = install(FakeCupy(properties()))
    device = CupyDevice()
    arguments = {
        name: device.empty(4, dtype)
        for name, dtype in {
            "groups": np.int64, "slots": np.int64, "scales": np.float32, "centres": np.float32,
            "words": np.float32, "order": np.int32, "fragments": np.uint32,
            "fragments_low": np.uint32, "keys": np.float32, "bounds": np.float32,
            "bounds_low": np.float32,
        }.items()
    }  # fmt: skip
    for _ in range(2):
        device.launch("pack_codebook", 3, 128, arguments, shared_bytes=16, stream=device.stream())
    ((code, options),) = cupy.compiled
    digest, *lines = code.splitlines()
    assert digest == f"// {kernel_sources()['pack_codebook'].digest}"
    assert lines == [
        "#define SAEC_ONE_KERNEL", '#include "pack_codebook.cu"', "PACK_CODEBOOK(pack_codebook)"
    ]  # fmt: skip
    assert options[0] == "-std=c++17"
    assert options[1].startswith("-I")
    (grid, block, (packed,), shared), _ = cupy.launched
    assert (grid, block, shared) == ((3,), (128,), 16)
    assert packed["words"] == arguments["words"].data.ptr
    cupy.refuses = True
    with pytest.raises(
        DeviceError, match=r"cannot run pack_codebook on 3 blocks .* on Test GPU: invalid"
    ):
        device.launch("pack_codebook", 3, 128, arguments, shared_bytes=0, stream=device.stream())


def test_doctor_tells_of_every_device(install: Any) -> None:
    install(FakeCupy(properties(), properties(7, 0)))
    told = {finding.what: finding for finding in doctor.examine(warm=False)}
    assert told["CUDA of the driver"].state == "12.4"
    assert told["NVRTC, the kernels' compiler"].state == "13.0"
    assert told["device 0"].state.startswith("Test GPU, compute capability 9.0, ")
    assert "need 7.5" in told["device 1"].advice
    assert told["backend auto"].state.startswith("takes cupy: a CUDA device is there")
    install(FakeCupy(failure="insufficient driver"))
    told = {finding.what: finding for finding in doctor.examine(warm=False)}
    assert "insufficient driver" in told["backend cupy"].advice
    assert told["backend auto"].state.startswith("takes cpu: no CUDA device can be used")
