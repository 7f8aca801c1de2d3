"""The Numba backend: the definition on an NVIDIA device, without a filter, in kernels to be read.

It looks at every pair of row and codeword in float64. So it serves to check faster backends and to
learn from, and for work where float64 is fast (A100, H100 and their like).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.checks import (
    check_codes,
    check_codewords,
    check_columns,
    check_threads,
    check_weights,
)
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.host_store import HostStore
from saec_gpu.backends.protocol import Assignment, StorePlan
from saec_gpu.data import Chunk, Codebook, Int64, Partial, carry
from saec_gpu.errors import (
    BackendUnavailableError,
    DeviceError,
    DeviceMemoryError,
    MissingExtraError,
)
from saec_gpu.layout import Layout, Segment

SHARE_OF_MEMORY = 0.5  # of what the device has free; codes, distances and sums take from the rest
CARRY_ROWS = 2**30  # a low limb is below 2³² a row, so int64 holds twice as many rows
OLDEST = (7, 5)  # compute capability from which on the kernels are checked
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
LEAST_BLOCKS = 128  # Numba warns of fewer in a launch; blocks without a tile end at once
# Of a small codebook, all blocks would add to the same few sums and wait for each other. They take
# turns with copies, of which there are as many as are small beside the device's second cache.
MOST_COPIES = 64
VALUES_OF_COPIES = 2**18

# What Numba says when it finds no device, and what to do then; the last goes with anything else.
ADVICE = (
    ("NUMBA_DISABLE_CUDA", "unset the environment variable NUMBA_DISABLE_CUDA"),
    (
        "cannot be found",
        "install the NVIDIA driver, until `nvidia-smi` lists a device; a container must be started "
        "with access to it (docker run --gpus all)",
    ),
    (
        "NO_DEVICE",
        "check that `nvidia-smi` lists a device and that the environment variable "
        "CUDA_VISIBLE_DEVICES leaves it visible",
    ),
    ("", "update the NVIDIA driver and check that `nvidia-smi` lists a device"),
)


@dataclass(frozen=True, eq=False)
class NumbaRows:
    """A chunk's rows on the device.

    Attributes
    ----------
    layout : Layout
    values : float32 (layout.n_values,), on the device
    weights : float64 (layout.n_rows,), on the device, or None
    """

    layout: Layout
    values: Any
    weights: Any


@dataclass(eq=False)
class NumbaCodebooks:
    """Codebooks on the device, one slot a field, and their sums once there are any.

    Attributes
    ----------
    codebooks : dict of str to Codebook
        By field. A field's slot is its place here.
    slots : int64 (n_slots, SLOT_FIELDS)
        The slot table, on the host.
    device_slots : int64 (n_slots, SLOT_FIELDS), on the device
    words : float32 (n_words,), on the device
        All codewords, flat.
    column_scales : float64, flat, on the device
        2^s_j of all slots.
    weight_scales : float64 (n_slots,), on the device
        2^t of all slots.
    sums : tuple of int64 (n_copies, …), on the device
        Sums, their low limbs, weight sums, their low limbs, and counts of all slots, as
        `accumulate_f32` takes them. Empty where no field has a fixed point.
    rows_since_carry : int
    """

    codebooks: dict[str, Codebook]
    slots: Int64
    device_slots: Any
    words: Any
    column_scales: Any
    weight_scales: Any
    sums: tuple[Any, ...]
    rows_since_carry: int = 0


class NumbaBackend:
    """Assignment and accumulation with Numba on one NVIDIA device, or in Numba's simulator.

    Parameters
    ----------
    threads : int or None
        Only checked: a device has its own.

    Raises
    ------
    ParamError
        Fewer than one thread.
    MissingExtraError
        numba-cuda is not installed.
    BackendUnavailableError
        There is no driver, no device, or an old one, or the kernels cannot be compiled.

    Notes
    -----
    All kernels are compiled here, which takes a second or two: what is missing is missed before a
    run and not in the midst of it.
    """

    name = "numba"
    reads_held = 2  # one in use, one being read
    row_dtypes: Collection[str] = ("float32",)

    def __init__(self, threads: int | None = None) -> None:
        check_threads(threads)
        self.threads = 1  # sums are held once, whatever runs beside each other on the device
        self._kernels = _load_kernels()
        self._cuda = self._kernels.cuda
        if not self._kernels.SIMULATED:
            _check_device(self._cuda)
            _compile(self._kernels.KERNELS)

    def memory_budget(self) -> int:
        """Return half of the memory that is free now, in bytes, of the device or the host.

        The lesser of both, because rows wait in the host's memory (see `open_store`).
        """
        free = self._cuda.current_context().get_memory_info().free  # infinite in the simulator
        return int(min(CpuBackend(1).memory_budget(), SHARE_OF_MEMORY * free))

    def open_store(self, plan: StorePlan) -> HostStore:
        """Return a store in host memory; rows are copied to the device when they are asked for."""
        return HostStore(plan, self.reads_held, self.load_rows)

    def load_rows(self, chunk: Chunk) -> NumbaRows:
        """Return a copy of the chunk's rows on the device.

        Raises
        ------
        DeviceMemoryError
            The device does not hold them.
        """
        n_bytes = chunk.values.nbytes + (0 if chunk.weights is None else chunk.weights.nbytes)
        with self._reported("hold rows", n_bytes):
            weights = None if chunk.weights is None else self._cuda.to_device(chunk.weights)
            return NumbaRows(chunk.layout, self._cuda.to_device(chunk.values), weights)

    def load_codebooks(self, codebooks: Mapping[str, Codebook]) -> NumbaCodebooks:
        """Return the codebooks on the device.

        Raises
        ------
        DeviceMemoryError
            The device does not hold them.
        """
        check_codewords(codebooks)
        slots = np.zeros((len(codebooks), self._kernels.SLOT_FIELDS), np.int64)
        places = np.zeros(3, np.int64)  # codewords, words and columns laid out so far
        words = [np.zeros(0, np.float32)]
        column_scales, weight_scales = [np.zeros(0)], np.zeros(len(codebooks))
        for number, codebook in enumerate(codebooks.values()):
            n_codewords, dim = codebook.codewords.shape
            slots[number] = [dim, n_codewords, *places, _any_wide({"": codebook})]
            places += [n_codewords, n_codewords * dim, dim]
            words.append(codebook.codewords.reshape(-1))
            own_scales, weight_scales[number] = codebook.sum_factors()
            column_scales.append(own_scales)
        all_words, all_scales = np.concatenate(words), np.concatenate(column_scales)
        sums = _empty_sums(codebooks)
        n_bytes = sum(array.nbytes for array in (slots, all_words, all_scales, *sums))
        with self._reported("hold codebooks", n_bytes):
            return NumbaCodebooks(
                dict(codebooks),
                slots,
                self._cuda.to_device(slots),
                self._cuda.to_device(all_words),
                self._cuda.to_device(all_scales),
                self._cuda.to_device(weight_scales),
                tuple(self._cuda.to_device(array) for array in sums),
            )

    def assign(
        self, rows: NumbaRows, codebooks: NumbaCodebooks, *, distances: bool = False
    ) -> Assignment:
        """Return the nearest codeword of each row, and its distance when asked."""
        n_rows = rows.layout.n_rows
        tiles = self._tiles(rows, codebooks)
        if len(tiles) == 0:
            return Assignment(np.zeros(n_rows, np.uint32), np.zeros(n_rows) if distances else None)
        with self._reported("assign rows", tiles.nbytes + n_rows * (12 if distances else 4)):
            device_codes = self._cuda.device_array(n_rows, np.uint32)
            device_distances = self._cuda.device_array(n_rows if distances else 0, np.float64)
            self._assign(
                self._cuda.to_device(tiles), rows, codebooks, device_codes, device_distances
            )
            codes = device_codes.copy_to_host()
            found = device_distances.copy_to_host() if distances else None
        for segment in rows.layout.segments:
            if segment.field not in codebooks.codebooks:  # no thread wrote there
                codes[segment.rows] = 0
                if found is not None:
                    found[segment.rows] = 0.0
        return Assignment(codes, found)

    def assign_later(
        self, rows: NumbaRows, codebooks: NumbaCodebooks, *, distances: bool = False
    ) -> Callable[[], Assignment]:
        """Return what gives the codes: all is done already."""
        found = self.assign(rows, codebooks, distances=distances)
        return lambda: found

    def assign_accumulate(self, rows: NumbaRows, codebooks: NumbaCodebooks) -> None:
        """Add rows to the partials of their nearest codewords. Their codes stay on the device."""
        n_rows = rows.layout.n_rows
        tiles = self._tiles(rows, codebooks)
        if len(tiles) == 0:
            return
        with self._reported("assign and accumulate rows", tiles.nbytes + 4 * n_rows):
            device_tiles = self._cuda.to_device(tiles)
            codes = self._cuda.device_array(n_rows, np.uint32)
            no_distances = self._cuda.device_array(0, np.float64)
            self._assign(device_tiles, rows, codebooks, codes, no_distances)
            self._accumulate(device_tiles, rows, codebooks, codes)

    def accumulate(
        self, rows: NumbaRows, codes: NDArray[np.uint32], codebooks: NumbaCodebooks
    ) -> None:
        """Add rows to the partials of the codewords that `codes` names.

        Raises
        ------
        LayoutError
            There are not as many codes as rows, or a code is not below its field's number of
            codewords.
        """
        codes = np.ascontiguousarray(codes, np.uint32)
        check_codes(
            rows.layout,
            codes,
            {name: len(codebook.codewords) for name, codebook in codebooks.codebooks.items()},
        )
        tiles = self._tiles(rows, codebooks)
        if len(tiles) == 0:
            return
        with self._reported("accumulate rows", tiles.nbytes + codes.nbytes):
            self._accumulate(
                self._cuda.to_device(tiles), rows, codebooks, self._cuda.to_device(codes)
            )

    def partials(self, codebooks: NumbaCodebooks) -> dict[str, Partial]:
        """Return all that was accumulated since the codebooks were loaded."""
        if not codebooks.sums:
            return {}
        with self._reported("return sums"):
            sums, sums_low, weight_sums, weight_sums_low, counts = (
                array.copy_to_host().sum(axis=0) for array in codebooks.sums
            )
        if _any_wide(codebooks.codebooks):
            sums, sums_low = carry(sums, sums_low)
            weight_sums, weight_sums_low = carry(weight_sums, weight_sums_low)
        first_counts = codebooks.slots[:, self._kernels.SLOT_COUNTS]
        first_words = codebooks.slots[:, self._kernels.SLOT_WORDS]
        partials = {}
        for number, (name, codebook) in enumerate(codebooks.codebooks.items()):
            if codebook.fixed_point is None:
                continue
            n_codewords, dim = codebook.codewords.shape
            own = slice(first_counts[number], first_counts[number] + n_codewords)
            words = slice(first_words[number], first_words[number] + n_codewords * dim)
            wide = codebook.fixed_point.wide
            partials[name] = Partial(
                sums[words].reshape(n_codewords, dim).copy(),
                weight_sums[own].copy(),
                counts[own].copy(),
                sums_low[words].reshape(n_codewords, dim).copy() if wide else None,
                weight_sums_low[own].copy() if wide else None,
            )
        return partials

    def rechecked(self, codebooks: NumbaCodebooks) -> dict[str, int]:
        """Return 0 for each field: there is no filter, so nothing is left to recheck."""
        return dict.fromkeys(codebooks.codebooks, 0)

    def _tiles(self, rows: NumbaRows, codebooks: NumbaCodebooks) -> Int64:
        """Return the tile table, costliest first so that the device does not end on a long one."""
        slot_of = {name: number for number, name in enumerate(codebooks.codebooks)}
        segments = [s for s in rows.layout.segments if s.field in slot_of]
        segments.sort(key=lambda s: -codebooks.codebooks[s.field].codewords.size)
        parts = [np.zeros((0, self._kernels.TILE_COLUMNS), np.int64)]
        for segment in segments:
            codebook = codebooks.codebooks[segment.field]
            check_columns(segment, codebook.codewords.shape[1])
            weighted = codebook.fixed_point is not None and codebook.fixed_point.weighted
            check_weights(segment, weighted=weighted, given=rows.weights is not None)
            parts.append(self._segment_tiles(segment, slot_of[segment.field], weighted=weighted))
        return np.concatenate(parts)

    def _segment_tiles(self, segment: Segment, slot: int, *, weighted: bool) -> Int64:
        first = np.arange(0, segment.n_rows, self._kernels.TILE, dtype=np.int64)
        tiles = np.empty((len(first), self._kernels.TILE_COLUMNS), np.int64)
        tiles[:, self._kernels.TILE_SLOT] = slot
        tiles[:, self._kernels.TILE_ROWS] = np.minimum(self._kernels.TILE, segment.n_rows - first)
        tiles[:, self._kernels.TILE_VALUES] = segment.first_value + first * segment.dim
        tiles[:, self._kernels.TILE_FIRST] = segment.first_row + first
        tiles[:, self._kernels.TILE_WEIGHTS] = segment.first_row + first if weighted else -1
        return tiles

    def _assign(
        self, tiles: Any, rows: NumbaRows, codebooks: NumbaCodebooks, codes: Any, distances: Any
    ) -> None:
        self._launch(
            self._kernels.assign_f32, len(tiles),
            tiles, codebooks.device_slots, rows.values, codebooks.words, codes, distances,
        )  # fmt: skip

    def _accumulate(
        self, tiles: Any, rows: NumbaRows, codebooks: NumbaCodebooks, codes: Any
    ) -> None:
        if not codebooks.sums:
            return
        codebooks.rows_since_carry += rows.layout.n_rows
        if codebooks.rows_since_carry > CARRY_ROWS and _any_wide(codebooks.codebooks):
            sums, sums_low, weight_sums, weight_sums_low, _ = codebooks.sums
            for high, low in ((sums, sums_low), (weight_sums, weight_sums_low)):
                self._launch(
                    self._kernels.carry_limbs, -(-low.shape[1] // self._kernels.THREADS), high, low
                )
            codebooks.rows_since_carry = rows.layout.n_rows
        weights = rows.weights if rows.weights is not None else self._cuda.device_array(0)
        self._launch(
            self._kernels.accumulate_f32, len(tiles),
            tiles, codebooks.device_slots, rows.values, weights, codebooks.column_scales,
            codebooks.weight_scales, codes, *codebooks.sums,
        )  # fmt: skip

    def _launch(self, kernel: Any, n_blocks: int, *arguments: Any) -> None:
        """Run a kernel on as many blocks."""
        least = 1 if self._kernels.SIMULATED else LEAST_BLOCKS
        kernel[max(n_blocks, least), self._kernels.THREADS](*arguments)

    @contextmanager
    def _reported(self, task: str, n_bytes: int = 0) -> Iterator[None]:
        """Turn what the device reports while it should do its task into errors of this package."""
        from numba.cuda.cudadrv.driver import CudaAPIError

        try:
            yield
        except CudaAPIError as err:
            if getattr(err, "code", None) != OUT_OF_MEMORY:
                raise DeviceError(
                    f'the device of backend="numba" failed to {task}: {err}; run again, and if it '
                    'fails again, with backend="cpu"'
                ) from err
            memory = self._cuda.current_context().get_memory_info()
            raise DeviceMemoryError(
                f"the device must hold {n_bytes} bytes more to {task}, but of its {memory.total} "
                f"only {memory.free} are free; give a smaller memory, end other programs that "
                '`nvidia-smi` lists, or take backend="cpu"'
            ) from err


def _any_wide(codebooks: Mapping[str, Codebook]) -> bool:
    """Return whether any field is summed in two limbs."""
    return any(c.fixed_point is not None and c.fixed_point.wide for c in codebooks.values())


def _empty_sums(codebooks: Mapping[str, Codebook]) -> list[Int64]:
    """Return zeros in the order and shapes of `NumbaCodebooks.sums`."""
    if all(codebook.fixed_point is None for codebook in codebooks.values()):
        return []
    n_words = sum(codebook.codewords.size for codebook in codebooks.values())
    n_codewords = sum(len(codebook.codewords) for codebook in codebooks.values())
    n_copies = min(MOST_COPIES, max(1, VALUES_OF_COPIES // n_words))
    wide = _any_wide(codebooks)
    shapes = [
        shape
        for n in (n_words, n_codewords)
        for shape in ((n_copies, n), (n_copies, n) if wide else (1, 1))
    ]
    return [np.zeros(shape, np.int64) for shape in (*shapes, (n_copies, n_codewords))]


def _load_kernels() -> ModuleType:
    """Return the module of kernels.

    Numba has a target `numba.cuda` of its own, which numba-cuda replaces; the older one is good
    enough for its simulator only.
    """
    from numba import config

    if not config.ENABLE_CUDASIM and importlib.util.find_spec("numba_cuda") is None:
        raise MissingExtraError.for_extra("numba-cuda", "numba-cuda", 'backend="numba"')
    try:
        from saec_gpu.backends import numba_kernels
    except ImportError as err:
        raise BackendUnavailableError(
            f"numba-cuda is installed but cannot be loaded ({err}); install it again, with "
            "pip install 'saec_gpu[numba-cuda]'"
        ) from err
    return numba_kernels


def _check_device(cuda: Any) -> None:
    """Raise BackendUnavailableError unless there is a device on which the kernels run."""
    from numba.cuda.cudadrv.driver import CudaAPIError
    from numba.cuda.cudadrv.error import CudaSupportError

    try:
        if len(cuda.gpus) == 0:
            raise CudaSupportError("NO_DEVICE")
        device = cuda.current_context().device
    except (CudaSupportError, CudaAPIError) as err:
        said = " ".join(str(err).split())
        advice = next(advice for part, advice in ADVICE if part in said)
        raise BackendUnavailableError(
            f'backend="numba" can use no NVIDIA device ({said}); {advice}, or take backend="cpu"'
        ) from err
    if device.compute_capability < OLDEST:
        found, least = (".".join(map(str, cc)) for cc in (device.compute_capability, OLDEST))
        raise BackendUnavailableError(
            f'{device.name} has compute capability {found}, but backend="numba" needs {least} or '
            'later (Turing, 2018); take backend="cpu"'
        )


def _compile(kernels: Iterable[tuple[Any, str]]) -> None:
    """Compile and load all kernels; raise BackendUnavailableError if that cannot be done here."""
    from numba.cuda.cudadrv.error import CudaDriverError, NvrtcError, NvvmError

    try:
        for kernel, signature in kernels:
            kernel.compile(signature)
    # What is missing or does not fit is an ImportError or a RuntimeError in Numba's own checks.
    except (ImportError, RuntimeError, CudaDriverError, NvrtcError, NvvmError) as err:
        said = " ".join(str(err).split())
        raise BackendUnavailableError(
            f'the kernels of backend="numba" cannot be compiled here ({said}); a compiler '
            "that fits comes with pip install 'numba-cuda[cu13]', or 'numba-cuda[cu12]' where the "
            'driver is older than 580; or take backend="cpu"'
        ) from err
