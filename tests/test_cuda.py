"""The CUDA backend from source to artifact, on the emulator: streaming, residency, memory."""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_device import LIMITS, EmulatedDevice
from numpy.typing import NDArray

import saec_gpu as saec
from builders import as_table, weights_of
from conftest import EMULATED
from saec_gpu.artifact import Artifact
from saec_gpu.backends import cuda_plan
from saec_gpu.backends.cpu import CpuBackend
from saec_gpu.backends.cuda_plan import (
    ASSIGN_STATIC,
    LEAST_RUN_ROWS,
    RECHECK_STATIC,
    SLOT_CODEWORDS,
    SLOT_DIM,
    SLOT_FIELDS,
    SLOT_GROUPS,
    SLOT_SHARED,
    SLOT_STEPS,
    TILE,
    assign_launch,
    cut_runs,
    dim_class,
    recheck_launch,
    steps_of,
    sums_are_shared,
    window_groups,
)
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.backends.kernel_sources import sources_folder
from saec_gpu.backends.protocol import Backend
from saec_gpu.data import Chunk, Codebook, FixedPoint, Float32, Float64, chunk_of
from saec_gpu.errors import DeviceMemoryError, LayoutError, NonFiniteRowError
from saec_gpu.layout import lay_out
from saec_gpu.sources import open_tables
from saec_gpu.stream import FieldWork, RowStream, plan_sets, row_dtype

Tables = tuple[dict[str, Float32], dict[str, Float64]]

# Passes over all rows are what these tests look at.
compress = functools.partial(saec.compress, fast=False)


class WatchedDevice(EmulatedDevice):
    """Counts launches and the bytes that go to the device from pinned memory; refuses if told."""

    def __init__(self, *args: Any, refused: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.copied = 0
        self._counting = threading.Lock()
        self.refused = refused
        self.launches: Counter[str] = Counter()

    def launch(self, kernel: str, *args: Any, **kwargs: Any) -> None:
        self.launches[kernel] += 1
        super().launch(kernel, *args, **kwargs)

    def upload(self, source: NDArray[Any], target: Any, stream: Any) -> None:
        copied = source.nbytes * self._is_pinned(source)
        with self._counting:  # rows come from the thread that reads ahead, codebooks from another
            self.copied += copied
        super().upload(source, target, stream)

    def empty(self, size: int, dtype: Any) -> Any:
        if self.refused and size >= 1000 and np.dtype(dtype) == np.float32:
            self.refused -= 1
            raise DeviceMemoryError(f"{size} were asked for; told to refuse")
        return super().empty(size, dtype)


def tables_of(rng: np.random.Generator) -> Tables:
    """Ragged fields, some weighted, some with sums in two limbs, one with codewords run empty."""
    rows = {
        "item": rng.standard_normal((5000, 17)),
        "user": rng.standard_normal((6000, 3)) + 1000,
        "shop": np.repeat(rng.standard_normal((5, 4)), 40, axis=0),
        "tag": rng.standard_normal((150, 40)) * np.exp(3 * rng.standard_normal((150, 1))),
        "word": rng.standard_normal((60, 300)),
        "none": np.zeros((0, 8)),
    }
    weights = {
        "item": weights_of("whole", rng, 5000),
        "tag": weights_of("wide", rng, 150),
        "user": weights_of("sparse", rng, 6000),
    }
    given = {name: one for name, one in weights.items() if one is not None}
    return {name: one.astype(np.float32) for name, one in rows.items()}, given


def artifact_bytes(artifact: Artifact) -> dict[str, bytes]:
    return {
        str(path.relative_to(artifact.path)): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


@pytest.fixture(scope="module")
def tables() -> Tables:
    return tables_of(np.random.default_rng(11))


@pytest.fixture(scope="module")
def expected(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    rows, weights = tables
    out = tmp_path_factory.mktemp("cpu") / "a.saec"
    return artifact_bytes(compress(rows, weights=weights, codewords=20, out=out, backend="cpu"))


# Dtypes of tables, and the bytes that a value of their rows takes on the device.
HELD_AS = [("float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 4)]

# The order of threads, copies and sums: one of them each time, all with --full.
SEEDS = [pytest.param(s, marks=[] if s == 5 else [pytest.mark.full]) for s in EMULATED.values()]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("memory", [None, 1_500_000])
def test_artifacts_are_the_cpu_s(
    tables: Tables, expected: Mapping[str, bytes], tmp_path: Path, seed: int, memory: int | None
) -> None:
    rows, weights = tables
    backend = CudaBackend(EmulatedDevice(seed=seed))
    threads = threading.active_count()
    artifact = compress(
        rows, weights=weights, codewords=20, out=tmp_path / "a.saec", backend=backend, memory=memory
    )
    assert artifact_bytes(artifact) == expected
    assert artifact.verify(rows, weights=weights).ok
    assert threading.active_count() == threads
    sets = artifact.run["residency_sets"]
    assert (len(sets) == 1) == (memory is None)
    # what waits for nothing but memory is given back
    assert backend.device.free_bytes() > 0.9 * LIMITS.memory_bytes


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_pass_through_are_never_mixed_up(tmp_path: Path, seed: int) -> None:
    # A ring of four places, reads of 50 rows: each place is used again and again in a pass.
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((16_000, 5)).astype(np.float32)
    weights = rng.integers(1, 9, 16_000).astype(np.float64)
    common: dict[str, Any] = {"weights": weights, "codewords": 7, "max_iter": 4, "chunk_rows": 50}
    plain = compress(rows, out=tmp_path / "cpu.saec", backend="cpu", **common)
    backend = CudaBackend(EmulatedDevice(seed=seed))
    streamed = compress(rows, out=tmp_path / "cuda.saec", backend=backend, memory=400_000, **common)
    (planned,) = streamed.run["residency_sets"]
    assert 10_000 < planned["resident_rows"] < 15_000
    assert artifact_bytes(streamed) == artifact_bytes(plain)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("memory", [None, 1_000_000])
def test_rows_of_every_dtype_come_to_the_cpu_s_artifact(
    tmp_path: Path, seed: int, memory: int | None
) -> None:
    # RELIABILITY 27, 29, 30
    rng = np.random.default_rng(seed)
    shapes = {
        "a": ("float16", 9000, 17), "b": ("float32", 1000, 5), "c": ("bfloat16", 50_000, 6),
        "d": ("float64", 600, 20), "e": ("float16", 700, 33), "f": ("bfloat16", 90, 40),
    }  # fmt: skip
    tables = {
        name: as_table(dtype, rng.standard_normal((n_rows, dim)))
        for name, (dtype, n_rows, dim) in shapes.items()
    }
    weights = {"a": weights_of("sparse", rng, 9000), "e": weights_of("wide", rng, 700)}
    common: dict[str, Any] = {"weights": weights, "codewords": 20, "max_iter": 3}
    plain = compress(tables, out=tmp_path / "cpu.saec", backend="cpu", **common)
    device = WatchedDevice(seed=seed)
    backend = CudaBackend(device)
    found = compress(tables, out=tmp_path / "cuda.saec", backend=backend, memory=memory, **common)
    assert artifact_bytes(found) == artifact_bytes(plain)
    assert found.verify(tables, weights=weights, backend=backend, memory=memory).ok
    assert {name.rpartition("_")[2] for name in device.launches} >= {"f16", "bf16", "f32"}
    sets = found.run["residency_sets"]
    if memory is None:  # one for each dtype
        assert [s["fields"] for s in sets] == [2, 2, 2]
    else:  # the largest of float16 and of bfloat16 do not fit
        assert [s["resident_rows"] > 0 for s in sets if not s["resident"]] == [True, True]


@pytest.mark.parametrize(("dtype", "item_bytes"), HELD_AS)
def test_rows_take_on_the_device_what_the_plan_says(dtype: str, item_bytes: int) -> None:
    # RELIABILITY 16
    source = open_tables({"x": as_table(dtype, np.ones((3000, 7)))})
    backend = CudaBackend(EmulatedDevice())
    work = FieldWork("x", 3000, 7, False, 9, row_dtype(dtype, backend))
    (planned,) = plan_sets([work], memory=2**24, threads=1, chunk_rows=None)
    stream = RowStream(source, None, planned, backend, by_piece=False)
    (rows,) = stream.passed(["x"])
    taken = LIMITS.memory_bytes - backend.device.free_bytes()
    assert taken == rows.values.nbytes == 3000 * 7 * item_bytes
    assert planned.rows_held() == taken + 3000 * 4  # and codes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(tmp_path: Path, dtype: str, bad: float) -> None:
    # RELIABILITY 24
    rows = np.random.default_rng(0).standard_normal((3000, 6))
    rows[2345, 4] = bad
    with pytest.raises(NonFiniteRowError, match='row 2345 of field "x"'):
        compress(
            as_table(dtype, rows), codewords=9, out=tmp_path / "a.saec", chunk_rows=100,
            backend=CudaBackend(EmulatedDevice()),
        )  # fmt: skip


@pytest.mark.parametrize(("dtype", "item_bytes"), HELD_AS)
def test_a_field_that_fits_is_copied_once(tmp_path: Path, dtype: str, item_bytes: int) -> None:
    rows = as_table(dtype, np.random.default_rng(0).standard_normal((3000, 6)))
    device = WatchedDevice()
    artifact = compress(
        rows, codewords=9, out=tmp_path / "a.saec", backend=CudaBackend(device), tol=0, max_iter=5
    )
    assert artifact["x"].record["iterations"] == 5
    assert device.copied == rows.size * item_bytes


@pytest.mark.parametrize(("dtype", "item_bytes"), HELD_AS)
def test_of_a_large_field_only_the_rest_is_copied_again(
    tmp_path: Path, dtype: str, item_bytes: int
) -> None:
    rows = as_table(dtype, np.random.default_rng(0).standard_normal((20_000, 6)))
    device = WatchedDevice()
    artifact = compress(
        rows, codewords=9, out=tmp_path / "a.saec", backend=CudaBackend(device), tol=0, max_iter=3,
        memory="600kB",
    )  # fmt: skip
    (planned,) = artifact.run["residency_sets"]
    stay = planned["resident_rows"]
    assert 0 < stay < 20_000
    # statistics, three passes of the fit, codes
    assert device.copied == 6 * item_bytes * (stay + 5 * (20_000 - stay))


def test_a_full_device_gets_smaller_sets(
    tables: Tables, expected: Mapping[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # RELIABILITY 21
    rows, weights = tables
    for refused in (1, 3):
        backend = CudaBackend(WatchedDevice(refused=refused))
        artifact = compress(
            rows, weights=weights, codewords=20, out=tmp_path / f"{refused}.saec", backend=backend,
            memory="30MB",
        )  # fmt: skip
        assert artifact_bytes(artifact) == expected
    assert "going on with sets of at most 15,000,000 bytes" in caplog.text


def test_a_full_device_gets_its_memory_back_before_it_tries_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {f"{i}": rng.standard_normal((20_000, 6)).astype(np.float32) for i in range(4)}
    expected = compress(rows, codewords=9, max_iter=2, out=tmp_path / "a.saec", backend="cpu")
    # four fields do not fit, two do, and only if nothing is left of the four
    device = EmulatedDevice(replace(LIMITS, memory_bytes=1_900_000))
    artifact = compress(
        rows, codewords=9, max_iter=2, out=tmp_path / "b.saec", memory="7MB",
        backend=CudaBackend(device),
    )  # fmt: skip
    assert artifact_bytes(artifact) == artifact_bytes(expected)
    assert len(artifact.run["residency_sets"]) > 1


def test_a_device_too_small_for_anything_is_an_error(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32)
    backend = CudaBackend(EmulatedDevice(replace(LIMITS, memory_bytes=20_000)))
    with pytest.raises(DeviceMemoryError, match="of 20000 are free"):
        compress(rows, codewords=9, out=tmp_path / "a.saec", backend=backend, memory="10MB")
    assert not (tmp_path / "a.saec").exists()


# Plans: pure numbers


@pytest.mark.parametrize(
    ("dim", "name", "steps"),
    [(1, "d8", 1), (8, "d8", 1), (9, "d16", 1), (17, "d32", 2), (33, "d64", 4), (65, "d128", 8),
     (256, "d256", 16), (257, "any", 17), (1024, "any", 64)],
)  # fmt: skip
def test_every_dim_has_a_class(dim: int, name: str, steps: int) -> None:
    assert dim_class(dim).name == name
    assert steps_of(dim) == steps


def assert_fits(slots: NDArray[np.int64], shared_bytes: int) -> None:
    """Fail unless fields of one class can be launched together with so much shared memory."""
    one = dim_class(int(slots[0, SLOT_DIM]))
    launch = assign_launch(one, slots, shared_bytes, accumulate=True)
    assert 0 < launch.shared_bytes <= shared_bytes - ASSIGN_STATIC
    assert 0 < recheck_launch(slots, shared_bytes).shared_bytes <= shared_bytes - RECHECK_STATIC
    if not one.looped:
        assert 1 <= launch.window <= window_groups(one, shared_bytes) <= 32


@pytest.mark.parametrize("total_bytes", [64 * 1024, 99 * 1024, 163 * 1024, 227 * 1024])
@pytest.mark.parametrize("dim", [3, 16, 32, 64, 100, 256, 300])
def test_fields_of_a_class_fit_together(total_bytes: int, dim: int) -> None:
    # the largest sums of one field beside the largest window of another
    counts = [1, 64, 132, 260, 400, 600, 1024, 5000]
    slots = np.zeros((len(counts), SLOT_FIELDS), np.int64)
    for slot, k in zip(slots, counts, strict=True):
        groups = -(-k // 32)
        shared = sums_are_shared(k, dim, groups, wide=False, shared_bytes=total_bytes)
        slot[SLOT_DIM], slot[SLOT_CODEWORDS], slot[SLOT_SHARED] = dim, k, shared
        slot[SLOT_GROUPS], slot[SLOT_STEPS] = groups, steps_of(dim)
    for first in range(len(counts)):
        for second in range(first, len(counts)):
            assert_fits(slots[[first, second]], total_bytes)


@pytest.mark.parametrize(
    ("dim", "total_bytes"), [(3600, 227 * 1024), (7300, 227 * 1024), (768, 64 * 1024)]
)
def test_rows_that_fit_no_shared_memory_are_decided_by_definition(
    dim: int, total_bytes: int
) -> None:
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((9, dim)).astype(np.float32)
    backend = CudaBackend(EmulatedDevice(replace(LIMITS, shared_bytes=total_bytes)))
    fixed = FixedPoint(62, 40, np.full(dim, 4, np.int64), weighted=False)
    codebooks = {"x": Codebook(rows[:3], fixed)}
    cpu = CpuBackend(1)
    found, expected = backend.load_codebooks(codebooks), cpu.load_codebooks(codebooks)
    chunk = chunk_of("x", rows)
    cpu.assign_accumulate(chunk, expected)
    codes = cpu.assign(chunk, expected).codes
    loaded = backend.load_rows(chunk)
    assert backend.assign(loaded, found).codes.tolist() == codes.tolist()
    backend.assign_accumulate(loaded, found)
    assert backend.partials(found)["x"].sums.tolist() == cpu.partials(expected)["x"].sums.tolist()
    backend.accumulate(loaded, codes, found)
    twice = 2 * cpu.partials(expected)["x"].sums
    assert backend.partials(found)["x"].sums.tolist() == twice.tolist()


def test_the_plan_s_numbers_are_the_kernels_own() -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in sources_folder().glob("*.cu*"))
    found = dict(re.findall(r"^constexpr int32 (\w+) = (\d+);", text, re.MULTILINE))
    assert {name: int(found[name]) for name in found if name.startswith("SLOT_")} == {
        name: value for name, value in vars(cuda_plan).items() if name.startswith("SLOT_")
    }
    for name in ("RUN_FIELDS", "WARP", "GROUP", "STEP", "FOLDED_DIM", "WINDOW_GROUPS", "TILE"):
        assert getattr(cuda_plan, name) == int(found[name])
    assert int(found["WARPS"]) == cuda_plan.ASSIGN_WARPS
    assert int(found["WARPS"]) * int(found["MOST_TILES"]) * TILE == cuda_plan.ASSIGN_CODES


@pytest.mark.parametrize("shared_bytes", [64 * 1024, 99 * 1024, 163 * 1024, 227 * 1024])
def test_launches_fit_the_shared_memory(shared_bytes: int) -> None:
    # RELIABILITY 36
    for dim in (1, 8, 16, 33, 64, 128, 256, 300, 1024, 2048):
        for n_codewords in (1, 33, 1024, 70_000):
            groups = -(-n_codewords // 32)
            shared = sums_are_shared(
                n_codewords, dim, groups, wide=False, shared_bytes=shared_bytes
            )
            slots = np.zeros((1, SLOT_FIELDS), np.int64)
            slots[0, SLOT_DIM], slots[0, SLOT_CODEWORDS] = dim, n_codewords
            slots[0, SLOT_GROUPS], slots[0, SLOT_STEPS] = groups, steps_of(dim)
            slots[0, SLOT_SHARED] = shared
            assert_fits(slots, shared_bytes)
    # what the workhorse is made for stays in shared memory
    assert sums_are_shared(1024, 16, 32, wide=False, shared_bytes=227 * 1024)


def test_runs_cover_each_row_once(rng: np.random.Generator) -> None:
    for _ in range(50):
        sizes = [
            (f"field {i}", int(rng.integers(0, 9)), int(2 ** rng.uniform(0, 22)), dim)
            for i, dim in enumerate(rng.choice([1, 16, 64], rng.integers(1, 7)).tolist())
        ]
        layout = lay_out(sizes)
        slots = np.ones((len(sizes), SLOT_FIELDS), np.int64)
        slots[:, SLOT_CODEWORDS] = rng.integers(1, 2000, len(sizes))
        work = [(i, s, bool(i % 2)) for i, s in enumerate(layout.segments)]
        runs = cut_runs(work, slots, 132)
        for slot, segment, weighted in work:
            own = runs[runs[:, 0] == slot]
            own = own[np.argsort(own[:, 4])]
            assert own[:, 1].sum() == segment.n_rows
            firsts = segment.first_row + np.cumsum([0, *own[:-1, 1]])
            assert own[:, 4].tolist() == firsts.tolist()
            values = segment.first_value + (firsts - segment.first_row) * segment.dim
            assert own[:, 2].tolist() == values.tolist()
            assert own[:, 3].tolist() == (firsts if weighted else np.full(len(own), -1)).tolist()
            if len(own) > 1:
                assert own[:-1, 1].min() >= LEAST_RUN_ROWS


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_codewords", [16, 1024, 65_536])
def test_runs_keep_the_processors_busy(n_codewords: int, shared: bool) -> None:
    (segment,) = lay_out([("x", 0, 10**6, 16)]).segments
    slots = np.ones((1, SLOT_FIELDS), np.int64)
    slots[0, SLOT_CODEWORDS], slots[0, SLOT_SHARED] = n_codewords, shared
    assert len(cut_runs([(0, segment, True)], slots, 132)) >= 132


@pytest.mark.parametrize("n", [2**31 - 1, 2**31, 2**31 + 1, 2**33 + 5])
def test_runs_above_32_bits(n: int) -> None:
    # RELIABILITY 9, 10, 11
    (segment,) = lay_out([("x", 0, n, 16)]).segments
    slots = np.ones((1, SLOT_FIELDS), np.int64)
    runs = cut_runs([(0, segment, True)], slots, 132)
    assert runs.dtype == np.int64
    last = runs[np.argmax(runs[:, 4])]
    assert last[4] + last[1] == n
    assert last[2] == last[4] * 16
    assert runs[:, 1].sum() == n


# The seam checks what it is given


def test_a_launch_is_checked_against_the_kernel() -> None:
    device = EmulatedDevice()
    stream = device.stream()
    with pytest.raises(LayoutError, match="missing are"):
        device.launch("pack_codebook", 1, 128, {}, shared_bytes=0, stream=stream)


def test_launches_of_all_classes_are_counted() -> None:
    # a chunk of many dims is one launch of each kernel for each class, not one for each field
    rng = np.random.default_rng(0)
    device = WatchedDevice()
    rows = {f"{d} {i}": rng.standard_normal((40, d)) for d in (16, 12, 64) for i in range(5)}
    backend: Backend = CudaBackend(device)
    layout = lay_out((name, 0, 40, one.shape[1]) for name, one in rows.items())
    values = np.concatenate([one.reshape(-1) for one in rows.values()]).astype(np.float32)
    words = {name: Codebook(one[:3].astype(np.float32)) for name, one in rows.items()}
    loaded = backend.load_codebooks(words)
    backend.assign(backend.load_rows(Chunk(layout, values, None)), loaded)
    assert device.launches == {
        "pack_codebook": 1, "assign_update_d16_f32": 1, "assign_update_d64_f32": 1,
        "recheck_f32": 2,
    }  # fmt: skip
