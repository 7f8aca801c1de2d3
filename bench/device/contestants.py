"""Who is timed on the device: Lloyd's iterations from given codewords, a fixed number of them.

Rows lie on the device before the clock starts, for everybody. Peers are imported where they are
used; one that is not installed says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from saec_gpu.backends.cuda_store import ROW_KINDS, CudaRows
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.device import DeviceArray, Stream
from saec_gpu.clustering.statistics import NARROW_BITS, total_bits, unit_exponents
from saec_gpu.data import Chunk, Codebook, FixedPoint, Float32, Partial
from saec_gpu.layout import lay_out

from .machine import Machine
from .rows import LIMIT_EXPONENT, FieldRows, TableRows

SCORES_AT_ONCE = 2**27  # float32 of torch's table of scores: 512 MiB
NEVER = -1.0  # a tolerance below every shift

Labels = NDArray[np.int64]


class Contestant:
    """What the clock asks of every contestant.

    Attributes
    ----------
    distribution : str
        What pip calls its library.
    modules : tuple of str
        What must be there to run it.
    note : str
        What it does otherwise than the others.
    """

    distribution: ClassVar[str] = "saec-gpu"
    modules: ClassVar[tuple[str, ...]] = ()
    note: ClassVar[str] = ""

    def __init__(self, machine: Machine, table: TableRows, iterations: int) -> None:
        self.machine = machine
        self.table = table
        self.iterations = iterations
        self.prepare()

    @classmethod
    def missing(cls, *, dry: bool) -> str | None:
        """Return what is missing to run it here; None where nothing is."""
        del dry
        for module in cls.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        return None

    def prepare(self) -> None:
        """Make what stands before the clock."""

    def run(self) -> list[Float32]:
        """Do all iterations and return the codewords of each field, still where they are."""
        raise NotImplementedError

    def codewords(self, found: Any) -> list[Float32]:
        """Return what `run` returned as float32 (k, dim) on the host."""
        return [np.asarray(one, np.float32) for one in found]

    def labels(self, field: FieldRows, codewords: Float32) -> Labels:
        """Return the codewords that it finds nearest to the field's sample."""
        raise NotImplementedError


class WatchedDevice:
    """The device, which notes how long kernels take while it is watched.

    Between events nothing else runs on the stream, so a kernel's time is its own and its launch's.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._device: Any = machine.device
        self._spans: list[tuple[str, Any]] = []
        self.watched = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(
        self,
        kernel: str,
        grid: int,
        block: int,
        arguments: Mapping[str, DeviceArray | float | None],
        *,
        shared_bytes: int,
        stream: Stream,
    ) -> None:
        """Run a kernel, between two events if it is watched."""

        def work() -> None:
            self._device.launch(
                kernel, grid, block, arguments, shared_bytes=shared_bytes, stream=stream
            )

        if not self.watched:
            work()
        elif self._machine.dry:
            self._spans.append((kernel, self._machine.seconds(stream, work)))
        else:
            first = self._device.record(stream)
            work()
            self._spans.append((kernel, (first, self._device.record(stream))))

    def seconds_by_kernel(self) -> dict[str, float]:
        """Return the total of each kernel since the last call."""
        self._machine.settle()
        totals: dict[str, float] = {}
        for kernel, span in self._spans:
            totals[kernel] = totals.get(kernel, 0.0) + self._length(span)
        self._spans.clear()
        return totals

    def _length(self, span: Any) -> float:
        if self._machine.dry:
            return float(span)
        import cupy

        return float(cupy.cuda.get_elapsed_time(*span)) / 1e3


class Saec(Contestant):
    """What is measured here: codebooks loaded, all rows read once, partials brought back."""

    def prepare(self) -> None:
        """Lay the rows out and choose exponents for values within the rows' limit."""
        fields = self.table.fields
        layout = lay_out((one.name, 0, one.n_rows, one.dim) for one in fields)
        # not by load_rows: the rows are on the device already
        self._rows = CudaRows(layout, ROW_KINDS[self.table.dtype], self.table.values, None)
        self.device = WatchedDevice(self.machine)
        watched: Any = self.device
        self._backend = CudaBackend(watched)
        self._fixed_points = {
            one.name: FixedPoint(
                NARROW_BITS,
                NARROW_BITS - total_bits(unit_exponents(one.n_rows)),
                np.full(one.dim, LIMIT_EXPONENT + 1, np.int64),
                weighted=False,
            )
            for one in fields
        }
        self._loaded: Any = None

    def run(self) -> list[Float32]:
        """Do all iterations, the update on the host as the package does it."""
        words = {one.name: one.initial for one in self.table.fields}
        for _ in range(self.iterations):
            self._loaded = self._backend.load_codebooks(
                {name: Codebook(w, self._fixed_points[name]) for name, w in words.items()}
            )
            self._backend.assign_accumulate(self._rows, self._loaded)
            partials = self._backend.partials(self._loaded)
            words = {name: self._moved(name, words[name], partials[name]) for name in words}
        return list(words.values())

    def _moved(self, name: str, words: Float32, partial: Partial) -> Float32:
        moved = words.copy()
        used = partial.counts > 0
        means = partial.sums[used] / partial.weight_sums[used, None].astype(np.float64)
        moved[used] = np.ldexp(means, self._fixed_points[name].column_exponents)
        return moved

    def labels(self, field: FieldRows, codewords: Float32) -> Labels:
        """Return the codes of the sample."""
        stored = np.ascontiguousarray(field.sample).reshape(-1)
        layout = lay_out([("x", 0, len(field.sample), field.dim)])
        rows = self._backend.load_rows(Chunk(layout, stored, None))
        loaded = self._backend.load_codebooks({"x": Codebook(codewords)})
        return self._backend.assign(rows, loaded).codes.astype(np.int64)

    def rechecked(self) -> tuple[int, int]:
        """Return the rows that the filter, and the finer products, left open in the last pass."""
        return (
            sum(self._backend.rechecked(self._loaded).values()),
            sum(self._backend.exact(self._loaded).values()),
        )

    def kernel_seconds(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the time of each kernel in all iterations, and in one assignment alone."""
        self.device.watched = True
        self.run()
        iterated = self.device.seconds_by_kernel()
        self._backend.assign(self._rows, self._loaded)
        assigned = self.device.seconds_by_kernel()
        self.device.watched = False
        return iterated, assigned


class _OnTorch(Contestant):
    """A contestant that works on torch tensors, which share the rows' memory."""

    modules: ClassVar[tuple[str, ...]] = ("torch",)

    def prepare(self) -> None:
        """Make tensors of the rows and of the first codewords."""
        fields = self.table.fields
        self._x = [self.machine.tensor(one.values, one.dim) for one in fields]
        self._initial = [
            self._as_tensor(one.initial, x.dtype) for one, x in zip(fields, self._x, strict=True)
        ]

    def _as_tensor(self, array: NDArray[Any], dtype: Any) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self._x[0].device, dtype)

    def codewords(self, found: Any) -> list[Float32]:
        """Return the codewords on the host."""
        return [one.float().cpu().numpy() for one in found]


class Torch(_OnTorch):
    """Plain torch: scores by addmm in float32, argmin, index_add_; chunks of rows."""

    distribution = "torch"
    note = "float32 whatever the rows are"

    def run(self) -> list[Float32]:
        """Iterate each field after the other."""
        found = []
        for x, words in zip(self._x, self._initial, strict=True):
            moved = words.float()
            for _ in range(self.iterations):
                moved = self._iteration(x, moved)
            found.append(moved)
        return found

    def _iteration(self, x: Any, words: Any) -> Any:
        import torch

        sums = torch.zeros_like(words)
        counts = torch.zeros(len(words), dtype=torch.int64, device=words.device)
        for chunk in x.split(max(1, SCORES_AT_ONCE // len(words))):
            rows = chunk.float()
            codes = self._codes(rows, words)
            sums.index_add_(0, codes, rows)
            counts.index_add_(0, codes, torch.ones_like(codes))
        means = sums / counts.clamp(min=1)[:, None]
        return torch.where((counts > 0)[:, None], means, words)

    @staticmethod
    def _codes(rows: Any, words: Any) -> Any:
        import torch

        return torch.addmm((words * words).sum(1), rows, words.T, alpha=-2).argmin(1)

    def labels(self, field: FieldRows, codewords: Float32) -> Labels:
        """Return the codes of the sample by the same products."""
        import torch

        rows = self._as_tensor(field.sample, torch.float32)
        codes = self._codes(rows, self._as_tensor(codewords, torch.float32))
        return np.asarray(codes.cpu().numpy(), np.int64)


class FlashKMeans(_OnTorch):
    """flash-kmeans: its batched Euclidean k-means, a batch of one field."""

    distribution = "flash-kmeans"
    modules = ("torch", "triton", "flash_kmeans")
    note = "float32 rows are multiplied in TF32; compiles for every size anew"

    @classmethod
    def missing(cls, *, dry: bool) -> str | None:
        """Return what is missing; its kernels need a GPU."""
        return super().missing(dry=dry) or ("it needs a GPU" if dry else None)

    def run(self) -> list[Float32]:
        """Iterate each field after the other."""
        flash = importlib.import_module("flash_kmeans.kmeans_triton_impl")
        found = []
        for x, words in zip(self._x, self._initial, strict=True):
            _, moved, _ = flash.batch_kmeans_Euclid(
                x[None], len(words), max_iters=self.iterations, tol=NEVER,
                init_centroids=words[None],
            )  # fmt: skip
            found.append(moved[0])
        return found

    def labels(self, field: FieldRows, codewords: Float32) -> Labels:
        """Return the codes of the sample by its own kernel."""
        flash = importlib.import_module("flash_kmeans.assign_euclid_triton")
        dtype = self._x[0].dtype
        rows = self._as_tensor(field.sample, dtype)[None]
        words = self._as_tensor(codewords, dtype)[None]
        codes = flash.euclid_assign_triton(rows, words, (rows * rows).sum(-1))
        return np.asarray(codes[0].cpu().numpy(), np.int64)


class FastKMeans(_OnTorch):
    """fastkmeans, called below its class, which would bring the rows from the host each iteration.

    It draws its first codewords itself; that draw is replaced by the given rows.
    """

    distribution = "fastkmeans"
    modules = ("torch", "fastkmeans")
    note = "called below its class so that rows stay on the device; float16; its draw replaced"
    CHUNK_ROWS = 51_200  # the default of its class

    def prepare(self) -> None:
        """Also take the norms, which its class takes before its clock would start."""
        super().prepare()
        self._norms = [(x.float() ** 2).sum(1) for x in self._x]

    def run(self) -> list[Float32]:
        """Iterate each field after the other."""
        import torch
        from fastkmeans import kmeans

        found = []
        for field, x, norms in zip(self.table.fields, self._x, self._norms, strict=True):
            words = self._as_tensor(field.initial, x.dtype)
            # what it draws picks rows by number; here the first rows to be picked are the codewords
            numbers = torch.arange(len(words))
            with mock.patch.object(torch, "randperm", lambda *_, given=numbers, **__: given):
                moved, _ = kmeans._kmeans_torch_double_chunked(
                    _WithFirst(x, words), norms, k=len(words), device=x.device,
                    max_iters=self.iterations, tol=NEVER, chunk_size_data=self.CHUNK_ROWS,
                    max_points_per_centroid=None, use_triton=self._on_device(x),
                )  # fmt: skip
            found.append(moved)
        return found

    @staticmethod
    def _on_device(x: Any) -> bool:
        return bool(x.is_cuda)

    def labels(self, field: FieldRows, codewords: Float32) -> Labels:
        """Return the codes of the sample by its own kernel, or by its products on the CPU."""
        import torch
        from fastkmeans import kmeans

        dtype = torch.float16 if self._on_device(self._x[0]) else torch.float32
        rows = self._as_tensor(field.sample, dtype)
        words = self._as_tensor(codewords, dtype)
        norms, own = (rows**2).sum(1), (words**2).sum(1)
        codes = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        if self._on_device(rows):
            kmeans.triton_kmeans(rows, norms, words, own, codes)
        else:
            codes = torch.addmm(own, rows, words.T, alpha=-2).argmin(1)
        return np.asarray(codes.cpu().numpy(), np.int64)


class _WithFirst:
    """Rows as fastkmeans sees them: what it picks first are the given codewords.

    Later picks, for codewords that ran empty, are rows.
    """

    def __init__(self, rows: Any, first: Any) -> None:
        self._rows = rows
        self._first = first
        self.shape = rows.shape
        self.device = rows.device

    def __getitem__(self, part: Any) -> Any:
        if isinstance(part, slice):
            return self._rows[part]
        source, self._first = self._first, None
        return self._rows[part.to(self.device)] if source is None else source[part]


CONTESTANTS: dict[str, type[Contestant]] = {
    "saec": Saec,
    "flash-kmeans": FlashKMeans,
    "fastkmeans": FastKMeans,
    "torch": Torch,
}
