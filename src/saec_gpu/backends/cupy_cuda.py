"""The CUDA backend: the kernels of `kernels/` on one device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
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
from saec_gpu.backends.cuda_codebooks import lay_out_codebooks
from saec_gpu.backends.cuda_plan import (
    CHUNK_BOUNDS,
    KEYS,
    LOOPED_WARPS,
    SLOT_CODE,
    SLOT_CODEWORDS,
    SLOT_DIM,
    SLOT_GROUPS,
    SLOT_STEPS,
    SLOT_WIDE,
    SLOT_WORD,
    STEP_WORDS,
    WARP,
    DimClass,
    assign_launch,
    cut_runs,
    dim_class,
    recheck_launch,
)
from saec_gpu.backends.cuda_store import ROW_KINDS, CudaRows, CudaStore
from saec_gpu.backends.device import Device, DeviceArray
from saec_gpu.backends.kernel_sources import kernel_sources
from saec_gpu.backends.protocol import Assignment, StorePlan
from saec_gpu.data import Chunk, Codebook, Int64, Partial, carry

SHARE_OF_MEMORY = 0.8  # of what is free on the device now; the rest is for its other users
CARRY_ROWS = 2**30  # a low limb is below 2³² a row, so int64 holds twice as many rows

Arrays = dict[str, DeviceArray | None]


@dataclass(eq=False)
class CudaCodebooks:
    """Codebooks as the kernels read them, one slot a field, and their sums.

    `packed` are the arrays that every kernel takes, by parameter; `sums` those that it adds to.
    """

    slot_of: dict[str, int]
    codebooks: tuple[Codebook, ...]
    slots: Int64
    packed: Arrays
    sums: Arrays
    words: DeviceArray
    rows_since_carry: int = 0

    def wide(self) -> bool:
        """Return whether any slot sums in two limbs."""
        return bool(self.slots[:, SLOT_WIDE].any())


class CudaBackend:
    """Assignment and accumulation on a CUDA device, or on what stands in for one.

    Parameters
    ----------
    device : Device
    threads : int or None
        Not used: the device decides. Checked, so that a wrong number is wrong on every backend.
    """

    name = "cupy"
    # one being read, one just handed out, and two whose codes are on their way back
    reads_held = 4
    row_dtypes: Collection[str] = ("float16", "bfloat16", "float32")

    def __init__(self, device: Device, threads: int | None = None) -> None:
        check_threads(threads)
        self.threads = 1
        self.device = device
        self._stream = device.stream()
        self._copies = device.stream()
        self._back = device.stream()
        self._codes: DeviceArray | None = None
        # Memory that work which was only given may still use: a device gives memory out again as
        # soon as nobody holds it, to whatever stream. `_begun` are assignments not waited for.
        self._lent: list[Any] = []
        self._begun: dict[int, list[Any]] = {}

    def memory_budget(self) -> int:
        """Return most of the memory that is free on the device now, in bytes."""
        return int(SHARE_OF_MEMORY * self.device.free_bytes())

    def open_store(self, plan: StorePlan) -> CudaStore:
        """Return an empty store on the device."""
        self._settle()
        return CudaStore(plan, self.reads_held, self.device, self._copies)

    def load_rows(self, chunk: Chunk) -> CudaRows:
        """Return the chunk's rows, copied to the device."""
        weights = None if chunk.weights is None else self._uploaded(chunk.weights)
        kind = ROW_KINDS[chunk.values.dtype.name]
        return CudaRows(chunk.layout, kind, self._uploaded(chunk.values), weights)

    def load_codebooks(self, codebooks: Mapping[str, Codebook]) -> CudaCodebooks:
        """Return the codebooks, packed for the kernels on the device."""
        check_codewords(codebooks)
        host = lay_out_codebooks(tuple(codebooks.values()), self.device.limits.shared_bytes)
        slots, n_groups = host.slots, len(host.groups)
        n_fragments = int((slots[:, SLOT_GROUPS] * slots[:, SLOT_STEPS]).sum())
        packed: Arrays = {
            "slots": self._uploaded(host.slots),
            "scales": self._uploaded(host.scales),
            "centres": self._uploaded(host.centres),
            "fragments": self.device.empty(n_fragments * STEP_WORDS, np.uint32),
            "fragments_low": self.device.empty(n_fragments * STEP_WORDS, np.uint32),
            "keys": self.device.empty(n_groups * KEYS, np.float32),
            "bounds": self.device.empty(n_groups * CHUNK_BOUNDS, np.float32),
            "bounds_low": self.device.empty(n_groups * CHUNK_BOUNDS, np.float32),
            "order": self._uploaded(host.order),
            "column_scales": self._uploaded(host.column_scales),
            "weight_scales": self._uploaded(host.weight_scales),
        }
        n_words, n_codes = host.words.size, int(slots[:, SLOT_CODEWORDS].sum())
        wide = bool(slots[:, SLOT_WIDE].any())
        sums: Arrays = {
            "sums": self._cleared(n_words),
            "sums_low": self._cleared(n_words) if wide else None,
            "weight_sums": self._cleared(n_codes),
            "weight_sums_low": self._cleared(n_codes) if wide else None,
            "counts": self._cleared(n_codes),
            "rechecked": self._cleared(len(slots)),
            "exact": self._cleared(len(slots)),
        }
        slot_of = {name: number for number, name in enumerate(codebooks)}
        words = self._uploaded(host.words)
        if n_groups:
            self._launch(
                "pack_codebook", n_groups, 4 * WARP, 0,
                {**packed, "groups": self._uploaded(host.groups), "words": words},
            )  # fmt: skip
        return CudaCodebooks(slot_of, tuple(codebooks.values()), slots, packed, sums, words)

    def assign(
        self, rows: CudaRows, codebooks: CudaCodebooks, *, distances: bool = False
    ) -> Assignment:
        """Return the nearest codeword of each row, and its distance when asked."""
        return self.assign_later(rows, codebooks, distances=distances)()

    def assign_later(
        self, rows: CudaRows, codebooks: CudaCodebooks, *, distances: bool = False
    ) -> Callable[[], Assignment]:
        """Begin what `assign` does; return what waits for it.

        Codes go back on a stream of their own, beside the work on the next rows.
        """
        n_rows = rows.layout.n_rows
        codes = self._cleared(n_rows, np.uint32)
        found = self._cleared(n_rows, np.float64) if distances else None
        self._run(rows, codebooks, codes, found, find=True, accumulate=False)
        self.device.wait(self._back, self.device.record(self._stream))
        own_codes = self._returned(codes)
        own_distances = None if found is None else self._returned(found)
        done = self.device.record(self._back)
        number = max(self._begun, default=0) + 1
        self._begun[number] = [*self._lent, own_codes, own_distances]
        self._lent.clear()

        def finished() -> Assignment:
            self.device.synchronize(done)
            self._begun.pop(number, None)
            return Assignment(own_codes, own_distances)

        return finished

    def assign_accumulate(self, rows: CudaRows, codebooks: CudaCodebooks) -> None:
        """Add rows to the partials of their nearest codewords."""
        codes = self._codes_of(rows.layout.n_rows)
        self._run(rows, codebooks, codes, None, find=True, accumulate=True)

    def accumulate(
        self, rows: CudaRows, codes: NDArray[np.uint32], codebooks: CudaCodebooks
    ) -> None:
        """Add rows to the partials of the codewords that `codes` names.

        Raises
        ------
        LayoutError
            There are not as many codes as rows, or a code is not below its field's number of
            codewords.
        """
        n_codewords = {
            name: int(codebooks.slots[slot, SLOT_CODEWORDS])
            for name, slot in codebooks.slot_of.items()
        }
        check_codes(rows.layout, codes, n_codewords)
        self._run(rows, codebooks, self._uploaded(codes), None, find=False, accumulate=True)

    def partials(self, codebooks: CudaCodebooks) -> dict[str, Partial]:
        """Return all that was accumulated since the codebooks were loaded."""
        host = {
            name: None if array is None else self._downloaded(array)
            for name, array in codebooks.sums.items()
            if name not in ("rechecked", "exact")
        }
        for name in ("sums", "weight_sums"):
            high, low = host[name], host[f"{name}_low"]
            if high is not None and low is not None:
                host[name], host[f"{name}_low"] = carry(high, low)
        return {
            name: _partial(codebooks, number, host)
            for name, number in codebooks.slot_of.items()
            if codebooks.codebooks[number].fixed_point is not None
        }

    def rechecked(self, codebooks: CudaCodebooks) -> dict[str, int]:
        """Return how many rows of each field the filter did not prove since then."""
        return self._by_field(codebooks, "rechecked")

    def exact(self, codebooks: CudaCodebooks) -> dict[str, int]:
        """Return how many rows of each field only the definition decided since then."""
        return self._by_field(codebooks, "exact")

    def _by_field(self, codebooks: CudaCodebooks, counter: str) -> dict[str, int]:
        counted = self._downloaded(codebooks.sums[counter])
        return {name: int(counted[number]) for name, number in codebooks.slot_of.items()}

    def _run(
        self,
        rows: CudaRows,
        codebooks: CudaCodebooks,
        codes: DeviceArray,
        distances: DeviceArray | None,
        *,
        find: bool,
        accumulate: bool,
    ) -> None:
        """Launch the kernels over the chunk's rows, class by class."""
        if accumulate:
            codebooks.rows_since_carry += rows.layout.n_rows
            if codebooks.rows_since_carry > CARRY_ROWS:
                self._carry(codebooks)
                codebooks.rows_since_carry = rows.layout.n_rows
        if rows.ready is not None:
            self.device.wait(self._stream, rows.ready)
        limit = self.device.limits.shared_bytes
        common: Arrays = {
            **codebooks.packed,
            **codebooks.sums,
            "values": rows.values,
            "weights": rows.weights,
            "codes": codes,
            "words": codebooks.words,
            "distances": distances,
        }
        for one, runs, slots in self._classes(rows, codebooks):
            common["runs"] = self._uploaded(runs.reshape(-1))
            planned = assign_launch(one, slots, limit, accumulate=accumulate)
            filtered = planned.warps > 0
            if filtered or not find:
                bounds = common["bounds_low" if one.folded else "bounds"]
                self._launch(
                    f"assign_update_{one.name}_{rows.kind}", len(runs),
                    (planned.warps or LOOPED_WARPS) * WARP, planned.shared_bytes,
                    {**common, "bounds": bounds, "find": int(find), "accumulate": int(accumulate),
                     "window": planned.window},
                )  # fmt: skip
            if not find:
                continue
            finer = recheck_launch(slots, limit)
            self._launch(
                f"recheck_{rows.kind}", len(runs), (finer.warps or LOOPED_WARPS) * WARP,
                finer.shared_bytes,
                {**common, "bounds": common["bounds_low"], "accumulate": int(accumulate),
                 "everything": int(not filtered), "products": int(finer.warps > 0)},
            )  # fmt: skip
        if rows.slot is not None:
            rows.slot.used = self.device.record(self._stream)

    def _launch(
        self, kernel: str, grid: int, block: int, shared_bytes: int, arguments: Mapping[str, Any]
    ) -> None:
        """Run a kernel on those of the arguments that it takes."""
        wanted = [parameter.name for parameter in kernel_sources()[kernel].parameters]
        taken = {name: arguments[name] for name in wanted if name in arguments}
        self.device.launch(
            kernel, grid, block, taken, shared_bytes=shared_bytes, stream=self._stream
        )

    def _classes(
        self, rows: CudaRows, codebooks: CudaCodebooks
    ) -> Iterator[tuple[DimClass, Int64, Int64]]:
        """Yield each class of dims that the chunk has, its runs, and its fields' slots."""
        segments = []
        for segment in rows.layout.segments:
            number = codebooks.slot_of.get(segment.field)
            if number is None:
                continue
            check_columns(segment, int(codebooks.slots[number, SLOT_DIM]))
            fixed_point = codebooks.codebooks[number].fixed_point
            weighted = fixed_point is not None and fixed_point.weighted
            check_weights(segment, weighted=weighted, given=rows.weights is not None)
            segments.append((number, segment, weighted))
        for one in dict.fromkeys(dim_class(segment.dim) for _, segment, _ in segments):
            own = [s for s in segments if dim_class(s[1].dim) == one]
            runs = cut_runs(own, codebooks.slots, self.device.limits.processors)
            if len(runs):
                yield one, runs, codebooks.slots[sorted({number for number, _, _ in own})]

    def _carry(self, codebooks: CudaCodebooks) -> None:
        """Bring the low limbs below 2³² again."""
        if not codebooks.wide():
            return
        for name in ("sums", "weight_sums"):
            high = self._downloaded(codebooks.sums[name])
            low = self._downloaded(codebooks.sums[f"{name}_low"])
            for array, target in zip(carry(high, low), (name, f"{name}_low"), strict=True):
                self.device.upload(array, codebooks.sums[target], self._stream)
        self.device.synchronize(self._stream)

    def _uploaded(self, source: NDArray[Any]) -> DeviceArray:
        target = self._lending(self.device.empty(source.size, source.dtype))
        host = self._lending(np.ascontiguousarray(source).reshape(-1))
        self.device.upload(host, target, self._stream)
        return target

    def _cleared(self, size: int, dtype: Any = np.int64) -> DeviceArray:
        array = self._lending(self.device.empty(size, dtype))
        self.device.clear(array, self._stream)
        return array

    def _codes_of(self, n_rows: int) -> DeviceArray:
        """Return memory for codes that nobody asks for; the same again and again."""
        if self._codes is None or self._codes.size < n_rows:
            self._codes = self._lending(self.device.empty(n_rows, np.uint32))
        return self._codes[:n_rows]

    def _lending(self, array: Any) -> Any:
        self._lent.append(array)
        return array

    def _settle(self) -> None:
        """Wait for everything that was given to the device; hold nothing of it any more."""
        for stream in (self._copies, self._stream, self._back):
            self.device.synchronize(stream)
        self._lent.clear()
        self._begun.clear()
        self._codes = None

    def _returned(self, source: DeviceArray) -> NDArray[Any]:
        """Return pinned memory that is filled when the stream back comes to it."""
        target = self.device.pinned(source.size, source.dtype)
        self.device.download(source, target, self._back)
        return target

    def _downloaded(self, source: DeviceArray) -> NDArray[Any]:
        target = np.empty(source.size, source.dtype)
        self.device.download(source, target, self._stream)
        self.device.synchronize(self._stream)
        self._lent.clear()
        return target


def _partial(
    codebooks: CudaCodebooks, number: int, host: Mapping[str, NDArray[Any] | None]
) -> Partial:
    """Return one slot's partial from the downloaded sums of all."""
    slot = codebooks.slots[number]
    dim, n_codewords = int(slot[SLOT_DIM]), int(slot[SLOT_CODEWORDS])
    words = slice(int(slot[SLOT_WORD]), int(slot[SLOT_WORD]) + n_codewords * dim)
    codes = slice(int(slot[SLOT_CODE]), int(slot[SLOT_CODE]) + n_codewords)

    def part(name: str, place: slice) -> Int64:
        array = host[name]
        assert array is not None
        return array[place].copy()

    fixed_point = codebooks.codebooks[number].fixed_point
    assert fixed_point is not None
    counts, weight_sums = part("counts", codes), part("weight_sums", codes)
    if not fixed_point.weighted and not fixed_point.wide:
        weight_sums = (
            counts << fixed_point.weight_shift
        )  # rint(1·2^t) a row: the kernel only counts
    return Partial(
        part("sums", words).reshape(n_codewords, dim),
        weight_sums,
        counts,
        part("sums_low", words).reshape(n_codewords, dim) if fixed_point.wide else None,
        part("weight_sums_low", codes) if fixed_point.wide else None,
    )
