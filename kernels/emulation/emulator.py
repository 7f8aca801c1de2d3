"""Kernels compiled for the CPU: built on demand, loaded, and launched by name.

A build is kept in the folder of temporary files under a digest of everything that goes into it, so
that a change of any source builds anew and nothing else does.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saec_gpu.errors import DeviceError

_HERE = Path(__file__).parent
_KERNELS = _HERE.parent
# What must be in the process before Python is, by the argument of -fsanitize. A library that is
# loaded later cannot bring these along; libstdc++, or AddressSanitizer misses what throws.
_PRELOADED: Mapping[str, tuple[str, ...]] = {
    "": (),
    "racecheck": (),
    "address,undefined": ("libasan.so", "libstdc++.so"),
    "thread": ("libtsan.so",),
}
_MODE_FILE = "sanitize.txt"
_RUNTIME = "runtime"  # folder of the emulator's own sources
_MESSAGE_BYTES = 4000
# The most dynamic and static shared memory of a block on the largest devices.
_SHARED_BYTES = 227 * 1024
_PLACE = re.compile(r"\[\+(0x[0-9a-f]+)\]")
# As the enums of runtime/access_counts.h and race_check.h number them.
_SPACES = {1: "shared", 2: "global"}
_KINDS = ("load", "store", "atomic")


class EmulationError(DeviceError):
    """A kernel did what it must not do on a GPU, or cannot be built or launched."""


@dataclass(frozen=True, order=True)
class Place:
    """An access of memory in a kernel.

    Parameters
    ----------
    kernel : str
    line : str
        "file:line", and behind " < " that of the call if it is in a function that was inlined.
    space : {"shared", "global"}
    kind : {"load", "store", "atomic"}
    n_bytes : int
        Of one lane.
    """

    kernel: str
    line: str
    space: str
    kind: str
    n_bytes: int


@dataclass(frozen=True)
class Cost:
    """What memory takes for the accesses of warps, estimated as README.md says.

    Parameters
    ----------
    requests : int
        Accesses of one warp.
    taken : int
        Wavefronts of shared memory, 32-byte sectors of global memory.
    least : int
        Wavefronts without conflicts of banks; sectors if the lanes' bytes lay side by side.
    """

    requests: int
    taken: int
    least: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.requests + other.requests, self.taken + other.taken, self.least + other.least
        )


class _AccessCount(ctypes.Structure):
    # emulation::AccessCount of runtime/access_counts.h
    _fields_ = (
        ("place", ctypes.c_uint64),
        ("space", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
        ("requests", ctypes.c_uint64),
        ("taken", ctypes.c_uint64),
        ("least", ctypes.c_uint64),
    )


# Why a target could not be built: the next test that needs it does not try again.
_failures: dict[Path, str] = {}


def build(sanitize: str = "", bug: str = "", sources: Path = _KERNELS) -> Path:
    """Return the folder of the libraries made of the kernels, one for each file; builds if needed.

    Parameters
    ----------
    sanitize : {"", "address,undefined", "thread", "racecheck"}
    bug : str
        A macro to define, which plants a bug.
    sources : Path
        Folder of the .cu files.

    Raises
    ------
    EmulationError
        CMake or a C++ compiler is missing, or the kernels do not compile.
    """
    return _kept(
        [*sorted(sources.glob("*.cu*")), *sorted(_KERNELS.glob("*.cuh")), *_own_files()],
        sanitize,
        bug,
        "-D",
        f"SAEC_SOURCES={sources.resolve()}",
        "-D",
        f"SAEC_RUNTIME={build_runtime(sanitize)}",
    )


def build_runtime(sanitize: str = "") -> Path:
    """Return the folder of the emulator itself, which all builds of a mode share; builds if needed.

    Raises
    ------
    EmulationError
        The mode is unknown, or CMake or a C++ compiler is missing.
    """
    if sanitize not in _PRELOADED:
        raise EmulationError(f"sanitize={sanitize!r} is unknown; known are {[*_PRELOADED]}")
    return _kept(_own_files(), sanitize)


def preload(sanitize: str) -> str:
    """Return what LD_PRELOAD must be in a process that loads such a build; empty if nothing."""
    paths = [_output(_compiler(), f"-print-file-name={name}") for name in _PRELOADED[sanitize]]
    return ":".join(paths)


def environment(sanitize: str) -> dict[str, str]:
    """Return the environment variables of a process that loads such a build, beside its others.

    With them, a finding of AddressSanitizer or of UndefinedBehaviorSanitizer ends the process at
    once, one of ThreadSanitizer at its end; each with a status that is not 0.
    """
    if not _PRELOADED[sanitize]:
        return {}
    return {
        "LD_PRELOAD": preload(sanitize),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves memory behind
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # NumPy and its like are not instrumented, so that what their threads wait for is not seen;
        # and the memory where one race was is used again by other launches.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:suppress_equal_addresses=0",
    }


class Library:
    """The kernels of one build.

    Parameters
    ----------
    path : Path
        What `build` returned.
    count_accesses : bool
        Count what memory takes for the accesses of each launch.

    Raises
    ------
    EmulationError
        The build is for a process of another kind, or cannot count.
    """

    def __init__(self, path: Path, *, count_accesses: bool = False) -> None:
        sanitize = (path / _MODE_FILE).read_text(encoding="utf-8")
        if count_accesses and sanitize != "racecheck":
            raise EmulationError(
                f"accesses are counted in builds with racecheck, and {path} is built with "
                f"sanitize={sanitize!r}"
            )
        present = os.environ.get("LD_PRELOAD", "")
        if any(name not in present for name in _PRELOADED[sanitize]):
            # Left to itself, the sanitizer would end the process.
            raise EmulationError(
                f"{path} is built with -fsanitize={sanitize}; start Python with LD_PRELOAD="
                f"{preload(sanitize)}"
            )
        self._count_accesses = count_accesses
        # By kernel and, within its library, place, space, kind and size.
        self._accesses: dict[tuple[str, int, int, int, int], Cost] = {}
        self._files: dict[str, tuple[ctypes.CDLL, Path]] = {}
        # The emulator plays one launch at a time, and ctypes lets other threads of Python run.
        self._lock = threading.Lock()
        for file in sorted(path.glob("*.so")):
            library = ctypes.CDLL(str(file))
            library.saec_kernel_name.restype = ctypes.c_char_p
            library.saec_kernel_name.argtypes = [ctypes.c_size_t]
            library.saec_access_count.restype = ctypes.c_bool
            library.saec_access_count.argtypes = [ctypes.c_size_t, ctypes.POINTER(_AccessCount)]
            index = 0
            while (name := library.saec_kernel_name(index)) is not None:
                self._files[name.decode()] = (library, file)
                index += 1

    @property
    def kernels(self) -> list[str]:
        """Return the names of all kernels."""
        return sorted(self._files)

    def launch(
        self,
        kernel: str,
        parameters: bytes,
        grid: int,
        block: int,
        *,
        shared_bytes: int = 0,
        most_shared_bytes: int = _SHARED_BYTES,
        seed: int = 0,
    ) -> None:
        """Run a kernel to its end.

        Parameters
        ----------
        kernel : str
        parameters : bytes
            Its struct of parameters.
        grid, block : int
            Number of blocks, and of threads in a block.
        shared_bytes : int
            Dynamic shared memory of a block.
        most_shared_bytes : int
            What a block may have of static and dynamic shared memory.
        seed : int
            Order of threads and blocks: 0 ascending, 1 descending, others drawn. If it is even,
            threads go on by turns; if odd, one warp runs ahead of the others. How the sums of
            matrix products are added up, as README.md lists it.

        Raises
        ------
        EmulationError
            There is no such kernel, the launch is not possible, or the kernel went wrong: a
            divergent barrier, a mismatched collective, a deadlock, a race in shared memory.
        """
        if kernel not in self._files:
            raise EmulationError(f"no kernel {kernel}; there are {', '.join(self.kernels)}")
        library, file = self._files[kernel]
        triple = ctypes.c_uint32 * 3
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        with self._lock:
            failed = library.saec_launch(
                kernel.encode(),
                parameters,
                ctypes.c_size_t(len(parameters)),
                triple(grid, 1, 1),
                triple(block, 1, 1),
                ctypes.c_size_t(shared_bytes),
                ctypes.c_size_t(most_shared_bytes),
                ctypes.c_uint32(seed),
                ctypes.c_bool(self._count_accesses),
                message,
                ctypes.c_size_t(_MESSAGE_BYTES),
            )
            if self._count_accesses and not failed:
                self._add_accesses(kernel, library)
        if failed:
            text = _PLACE.sub(lambda m: _lines(file, [int(m[1], 16)])[0][0], message.value.decode())
            raise EmulationError(f"kernel {kernel}, seed {seed}: {text}")

    def accesses(self) -> dict[Place, Cost]:
        """Return what memory took for each place's accesses in all launches that did not fail."""
        with self._lock:
            counted = dict(self._accesses)
        lines: dict[tuple[Path, int], str] = {}
        for file in {self._files[kernel][1] for kernel, *_ in counted}:
            offsets = sorted({k[1] for k in counted if self._files[k[0]][1] == file})
            for offset, calls in zip(offsets, _lines(file, offsets), strict=True):
                lines[file, offset] = " < ".join(calls)
        costs: dict[Place, Cost] = {}
        for (kernel, offset, space, kind, n_bytes), cost in counted.items():
            line = lines[self._files[kernel][1], offset]
            place = Place(kernel, line, _SPACES[space], _KINDS[kind], n_bytes)
            costs[place] = costs.get(place, Cost(0, 0, 0)) + cost
        return costs

    def _add_accesses(self, kernel: str, library: ctypes.CDLL) -> None:
        count = _AccessCount()
        index = 0
        while library.saec_access_count(index, count):
            key = (kernel, count.place, count.space, count.kind, count.bytes)
            cost = Cost(count.requests, count.taken, count.least)
            self._accesses[key] = self._accesses.get(key, Cost(0, 0, 0)) + cost
            index += 1


def _own_files() -> list[Path]:
    return [*sorted((_HERE / _RUNTIME).iterdir()), _HERE / "CMakeLists.txt"]


def _kept(files: Sequence[Path], sanitize: str, bug: str = "", *options: str) -> Path:
    """Return the folder of what is built of these files, now or before; options are CMake's."""
    digest = _digest(files, sanitize, bug)
    target = Path(tempfile.gettempdir()) / f"saec-gpu-emulator-{digest}"
    if target in _failures:
        raise EmulationError(_failures[target])
    if not target.is_dir():
        try:
            _build(target, sanitize, bug, *options)
        except EmulationError as failure:
            _failures[target] = str(failure)
            raise
    return target


def _build(target: Path, sanitize: str, bug: str, *options: str) -> None:
    cmake = _cmake()
    # Built aside and moved in one step: another process that builds the same finds all or nothing.
    with tempfile.TemporaryDirectory(prefix="saec-gpu-emulator-") as scratch:
        modes = ["-D", f"SAEC_SANITIZE={sanitize}", "-D", f"SAEC_BUG={bug}"]
        compiler = ["-D", f"CMAKE_CXX_COMPILER={_compiler()}"]
        generator = ["-G", "Ninja"] if _program("ninja") else []
        _run(cmake, "-S", str(_HERE), "-B", scratch, *generator, *compiler, *modes, *options)
        _run(cmake, "--build", scratch, "--parallel", str(os.cpu_count() or 1))
        libraries = Path(scratch) / "libraries"
        (libraries / _MODE_FILE).write_text(sanitize, encoding="utf-8")
        try:
            libraries.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster with the same
                raise


def _digest(files: Sequence[Path], sanitize: str, bug: str) -> str:
    compiler = _compiler()
    digest = hashlib.sha256(
        repr((sanitize, bug, compiler, _output(compiler, "--version"))).encode()
    )
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _program(name: str) -> str | None:
    # Programs that pip installed lie beside Python, which PATH need not name.
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _cmake() -> str:
    found = _program("cmake")
    if found is None:
        raise EmulationError(
            "kernels are emulated through CMake, which is not installed; run: pip install cmake"
        )
    return found


def _compiler() -> str:
    found = _program(os.environ.get("CXX", "g++"))
    if found is None:
        raise EmulationError(
            f"kernels are emulated through a C++ compiler, and there is no "
            f"{os.environ.get('CXX', 'g++')}; run: apt-get install g++, or set CXX"
        )
    return found


def _output(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=_bare())
    if done.returncode:
        raise EmulationError(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout.strip()


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_bare(),
    )
    if done.returncode:
        raise EmulationError(f"the kernels do not build: {' '.join(command)}\n{done.stdout}")


def _bare() -> dict[str, str]:
    # A sanitizer is for the kernels, not for the compiler that is started beside them.
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _lines(file: Path, offsets: Sequence[int]) -> list[list[str]]:
    """Return the line of a kernel that stands at each place of a library, and those that call it.

    Calls are those that were inlined. Lines of the emulator stand only where no kernel's do.
    """
    # binutils comes with every g++ of a distribution, but a compiler alone can be copied.
    addr2line = _program("addr2line")
    if addr2line is None:
        return [[f"{file.name}+{offset:#x}"] for offset in offsets]
    places = [hex(offset) for offset in offsets]
    found = _output(addr2line, "--inlines", "--addresses", "--exe", str(file), *places)
    calls: list[list[Path]] = []
    for text in found.splitlines():
        if text.startswith("0x"):
            calls.append([])
        else:
            calls[-1].append(Path(text.split(" ")[0]))  # without " (discriminator 3)"
    # A build may be of another checkout.
    of_kernel = [[path for path in of_one if path.parent.name != _RUNTIME] for of_one in calls]
    return [[path.name for path in one or all_] for one, all_ in zip(of_kernel, calls, strict=True)]
