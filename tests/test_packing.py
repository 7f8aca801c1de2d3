"""Codes survive packing, at every width and length, and bad ones do not get in or out."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saec_gpu import packing
from saec_gpu.errors import ArtifactError
from saec_gpu.packing import (
    PlaneWriter,
    code_bits,
    code_dtype,
    npy_header,
    open_planes,
    pack,
    packed_size,
    plane_widths,
    row_numbers,
    take,
    unpack,
)

LENGTHS = (0, 1, 7, 8, 9, 31, 97, 1025)


def codewords_of(bits: int) -> list[int]:
    """Return the least, a middle and the greatest number of codewords with codes of these bits."""
    return [1] if bits == 0 else sorted({2 ** (bits - 1) + 1, 3 * 2**bits // 4, 2**bits} - {1})


def random_codes(rng: np.random.Generator, n_rows: int, codewords: int) -> NDArray[Any]:
    codes = rng.integers(0, codewords, n_rows).astype(code_dtype(codewords))
    codes[-1:] = codewords - 1  # the greatest code has all the bits that occur
    return codes


def read(path: Path, n_rows: int, codewords: int) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        return open_planes(file, n_rows, codewords)


def packed_by_hand(codes: Sequence[int], codewords: int) -> bytes:
    """Return the packed codes bit by bit, as the module's docstring puts it in words."""
    planes = b""
    shift = 0
    for width in plane_widths(code_bits(codewords)):
        plane = bytearray(-(-len(codes) * width // 8))
        for row, code in enumerate(codes):
            for bit in range(width):
                place = row * width + bit
                plane[place // 8] |= (code >> (shift + bit) & 1) << place % 8
        planes += bytes(plane)
        shift += width
    return planes


@pytest.mark.parametrize(
    ("codewords", "bits"),
    [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
        (256, 8),
        (257, 9),
        (2**20, 20),
        (2**20 + 1, 21),
    ],
)
def test_code_bits(codewords: int, bits: int) -> None:
    assert code_bits(codewords) == bits


@pytest.mark.parametrize(
    ("bits", "widths"),
    [(0, ()), (1, (1,)), (3, (2, 1)), (7, (4, 2, 1)), (8, (8,)), (11, (8, 2, 1)), (20, (8, 8, 4))],
)
def test_plane_widths(bits: int, widths: tuple[int, ...]) -> None:
    assert plane_widths(bits) == widths
    assert sum(widths) == bits


@pytest.mark.parametrize(
    ("codewords", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_code_dtype(codewords: int, dtype: str) -> None:
    assert code_dtype(codewords) == np.dtype(dtype)


def test_hand_computed() -> None:
    # 11 bits: the low eight in a byte each; then two bits a row; then the highest, one bit a row.
    codes = np.array([0b1_01_00000001, 0b0_11_11111111, 0b1_10_10000000, 0, 0b1_00_00000010])
    packed = pack(codes, 2048)
    assert packed.tolist() == [
        0b00000001, 0b11111111, 0b10000000, 0b00000000, 0b00000010,
        0b00_10_11_01, 0b00_00_00_00,
        0b00010101,
    ]  # fmt: skip
    assert packed_size(5, 2048) == 5 + 2 + 1
    assert unpack(packed, 5, 2048).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", range(21))
def test_round_trip(bits: int, rng: np.random.Generator) -> None:  # RELIABILITY 61
    for codewords in codewords_of(bits):
        assert code_bits(codewords) == bits
        for n_rows in LENGTHS:
            codes = random_codes(rng, n_rows, codewords)
            packed = pack(codes, codewords)
            assert packed.dtype == np.uint8
            assert len(packed) == packed_size(n_rows, codewords)
            assert bytes(packed) == packed_by_hand(codes.tolist(), codewords)
            back = unpack(packed, n_rows, codewords)
            assert back.dtype == code_dtype(codewords)
            assert np.array_equal(back, codes)
            rows = rng.integers(0, max(n_rows, 1), 50 if n_rows else 0)
            taken = take(packed, n_rows, codewords, rows)
            assert taken.dtype == code_dtype(codewords)
            assert np.array_equal(taken, codes[rows])


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[Any], int]:
    codewords = draw(st.integers(1, 2**20))
    codes = draw(st.lists(st.integers(0, codewords - 1), max_size=70))
    return np.array(codes, code_dtype(codewords)), codewords


@given(problems(), st.data())
def test_any_range(problem: tuple[NDArray[Any], int], data: st.DataObject) -> None:
    codes, codewords = problem
    packed = pack(codes, codewords)
    start = data.draw(st.integers(0, len(codes)))
    stop = data.draw(st.integers(start, len(codes)))
    assert np.array_equal(unpack(packed, len(codes), codewords, start, stop), codes[start:stop])


@given(problems(), st.data())
def test_any_chunks(
    tmp_path_factory: pytest.TempPathFactory, problem: tuple[NDArray[Any], int], data: st.DataObject
) -> None:
    codes, codewords = problem
    path = tmp_path_factory.mktemp("codes") / "0.npy"
    with PlaneWriter(path, len(codes), codewords) as writer:
        done = 0
        while done < len(codes):
            step = data.draw(st.integers(0, 20))
            writer.append(codes[done : done + step])
            done += step
    assert np.array_equal(np.load(path), pack(codes, codewords))
    assert np.array_equal(read(path, len(codes), codewords), pack(codes, codewords))


@pytest.mark.parametrize("codewords", [5, 257, 65537])
def test_blocks_and_files_that_are_mapped(
    tmp_path: Path, rng: np.random.Generator, codewords: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = random_codes(rng, 200_001, codewords)
    packed = pack(codes, codewords)
    monkeypatch.setattr(packing, "_BLOCK_ROWS", 1024)
    assert np.array_equal(pack(codes, codewords), packed)
    assert np.array_equal(unpack(packed, len(codes), codewords, 5, 150_003), codes[5:150_003])
    with PlaneWriter(tmp_path / "0.npy", len(codes), codewords) as writer:
        for part in np.array_split(codes, 7):
            writer.append(part)
    mapped = read(tmp_path / "0.npy", len(codes), codewords)
    assert not mapped.flags.writeable
    assert np.array_equal(mapped, packed)
    assert np.array_equal(mapped, np.load(tmp_path / "0.npy", mmap_mode="r"))


def test_signed_and_wide_codes() -> None:
    for dtype in (np.int64, np.int8, np.uint64):
        assert np.array_equal(pack(np.array([2, 0, 1], dtype), 3), pack(np.array([2, 0, 1]), 3))
    # A plane above the dtype's own bits is zero, not an undefined shift.
    assert unpack(pack(np.array([255, 1], np.uint8), 70_000), 2, 70_000).tolist() == [255, 1]


@pytest.mark.parametrize("codes", [[0, 5], [0, -1]])
def test_code_out_of_range(tmp_path: Path, codes: list[int]) -> None:
    with pytest.raises(ArtifactError, match=rf"code of row 1 is {codes[1]}; with 5 codewords"):
        pack(np.array(codes), 5)
    path = tmp_path / "0.npy"

    def write() -> None:
        with PlaneWriter(path, 5, 5) as writer:
            writer.append(np.array([0, 1, 2]))
            writer.append(np.array(codes))

    with pytest.raises(ArtifactError, match=rf"code of row 4 is {codes[1]}"):
        write()
    assert not path.exists()


@pytest.mark.parametrize("codes", [np.array([0.0]), np.array([True]), np.array([[1]])])
def test_codes_of_another_kind(codes: NDArray[Any]) -> None:
    with pytest.raises(ArtifactError, match="integers in one dimension"):
        pack(codes, 5)


@pytest.mark.parametrize(("n_rows", "codewords"), [(1, 0), (-1, 5), (0, -1)])
def test_impossible_counts(n_rows: int, codewords: int) -> None:
    with pytest.raises(ArtifactError, match="cannot be coded"):
        packed_size(n_rows, codewords)


def test_altered_codes_are_found() -> None:
    packed = pack(np.array([0, 4, 2]), 5)
    packed[0] = 0b11_11_11_11
    packed[1] = 0b111
    with pytest.raises(ArtifactError, match="hold the code 7, but there are 5"):
        unpack(packed, 3, 5)
    with pytest.raises(ArtifactError, match='codes of field "user" hold the code 7'):
        take(packed, 3, 5, [1], field="user")


def test_packed_of_another_size() -> None:
    wrongs: list[NDArray[Any]] = [
        np.zeros(3, np.uint8),
        np.zeros(2, np.int8),
        np.zeros((1, 2), "u1"),
    ]
    for wrong in wrongs:
        with pytest.raises(ArtifactError, match=r"need uint8 of shape \(2,\)"):
            unpack(wrong, 3, 5)
        with pytest.raises(ArtifactError, match=r"need uint8 of shape \(2,\)"):
            take(wrong, 3, 5, [0])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4), (4, 4)])
def test_range_out_of_bounds(start: int, stop: int) -> None:
    with pytest.raises(ArtifactError, match="there are 3 rows"):
        unpack(np.zeros(2, np.uint8), 3, 5, start, stop)


@pytest.mark.parametrize(
    ("rows", "row"), [([0, 3, 9], 3), ([-1], -1), (np.array([2**63 + 5], np.uint64), 2**63 + 5)]
)
def test_row_out_of_range(rows: Any, row: int) -> None:
    with pytest.raises(ArtifactError, match=rf'row {row} of field "user" is out of range.* 3 rows'):
        row_numbers(rows, 3, field="user")
    with pytest.raises(ArtifactError, match=rf"row {row} is out of range: there are 3 rows"):
        take(np.zeros(2, np.uint8), 3, 5, rows)


@pytest.mark.parametrize("rows", [[0.0], [True], np.zeros(3, bool), np.zeros(0), ["1"], [None]])
def test_rows_that_are_no_integers(rows: Any) -> None:
    with pytest.raises(ArtifactError, match="must be integers"):
        row_numbers(rows, 3)


def test_rows_of_any_shape_and_dtype() -> None:
    packed = pack(np.array([4, 1, 2]), 5)
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        assert take(packed, 3, 5, np.array([[2, 0], [1, 1]], dtype)).tolist() == [[2, 4], [1, 1]]
    assert take(packed, 3, 5, 1).shape == ()
    assert take(packed, 3, 5, 1) == 1
    assert take(packed, 3, 5, []).shape == (0,)
    assert take(packed, 3, 5, range(3)).tolist() == [4, 1, 2]


def test_take_beyond_32_bits() -> None:  # RELIABILITY 9
    # A view whose stride is zero: all bytes are one byte, so nothing of this size is in memory.
    n_rows = 2**33
    size = packed_size(n_rows, 8)
    packed = np.lib.stride_tricks.as_strided(np.array([0b11100100], np.uint8), (size,), (0,))
    rows = np.array([0, 1, 2, 3, n_rows - 4, n_rows - 1])
    # The plane of two bits reads 0, 1, 2, 3 for ever, that of one bit 0, 0, 1, 0, 0, 1, 1, 1.
    assert take(packed, n_rows, 8, rows).tolist() == [0, 1, 6, 3, 0, 7]
    assert unpack(packed, n_rows, 8, n_rows - 4, n_rows).tolist() == [0, 5, 6, 7]


def test_header_is_numpys() -> None:
    for size in (0, 1, 12_345_678_901):
        header = npy_header(size)
        assert len(header) == 128
        file = io.BytesIO(header)
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        assert (shape, fortran_order, dtype) == ((size,), False, np.dtype(np.uint8))
        assert file.tell() == 128


@pytest.mark.parametrize("appended", [2, 9])
def test_wrong_number_of_codes(tmp_path: Path, appended: int) -> None:
    path = tmp_path / "0.npy"
    with (
        pytest.raises(ArtifactError, match=f"was to hold 8 codes, but {appended} were appended"),
        PlaneWriter(path, 8, 5) as writer,
    ):
        writer.append(np.zeros(appended, np.uint8))
    assert not path.exists()


def test_exception_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"

    def write() -> None:
        with PlaneWriter(path, 8, 5) as writer:
            writer.append(np.zeros(8, np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not path.exists()


def test_unfinished_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    with PlaneWriter(path, 8, 5) as writer:
        writer.append(np.arange(8) % 5)
        # What a killed process leaves: all codes, and no header yet.
        unfinished = path.read_bytes()
    finished = path.read_bytes()
    assert len(finished) == len(unfinished)
    assert finished[128:] == unfinished[128:]
    path.write_bytes(unfinished)
    with pytest.raises(ArtifactError, match=r'0\.npy" .* unfinished, truncated or altered'):
        read(path, 8, 5)


def test_header_is_written_when_the_codes_are_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "0.npy"
    flushed: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(path.read_bytes()))
    with PlaneWriter(path, 9, 5) as writer:
        writer.append(np.arange(9) % 5)
    finished = path.read_bytes()
    assert flushed == [bytes(128) + finished[128:], finished]


@pytest.mark.parametrize(("n_rows", "codewords"), [(9, 5), (8, 4), (7, 2)])
def test_file_of_other_codes_is_refused(tmp_path: Path, n_rows: int, codewords: int) -> None:
    path = tmp_path / "0.npy"
    with PlaneWriter(path, 8, 5) as writer:
        writer.append(np.arange(8) % 5)
    with pytest.raises(ArtifactError, match=f"{n_rows} rows for {codewords} codewords"):
        read(path, n_rows, codewords)


def test_writing_again_leaves_hard_links_alone(tmp_path: Path) -> None:
    path, linked = tmp_path / "0.npy", tmp_path / "linked.npy"
    for code in (1, 2):
        with PlaneWriter(path, 8, 5) as writer:
            writer.append(np.full(8, code))
        if not linked.exists():
            linked.hardlink_to(path)
    assert unpack(read(linked, 8, 5), 8, 5).tolist() == [1] * 8
    assert unpack(read(path, 8, 5), 8, 5).tolist() == [2] * 8


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(ArtifactError, match="the disk is full"),
        PlaneWriter(tmp_path / "0.npy", 8, 5) as writer,
    ):
        writer.append(np.zeros(8, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_file_that_cannot_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r'0\.npy" could not be written: No such file'),
        PlaneWriter(tmp_path / "missing" / "0.npy", 8, 5),
    ):
        pass


def test_many_writers_hold_no_files_open(tmp_path: Path) -> None:
    writers = [PlaneWriter(tmp_path / f"{number}.npy", 2, 2) for number in range(50)]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for writer in writers:
        writer.__enter__()
        writer.append(np.array([1]))
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    for writer in writers:
        writer.append(np.array([0]))
        writer.__exit__(None, None, None)
    assert all(read(tmp_path / f"{number}.npy", 2, 2).tolist() == [1] for number in range(50))
