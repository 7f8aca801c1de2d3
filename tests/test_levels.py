"""Codes survive levels, at every cut and length; the cheapest cut is found; lies do not get out."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saec_gpu import levels as levels_module
from saec_gpu.errors import ArtifactError
from saec_gpu.levels import (
    MOST_LEVELS,
    LevelCodes,
    Levels,
    choose_levels,
    encode_in_levels,
    open_levels,
)
from saec_gpu.packing import PlaneWriter, code_bits, code_dtype

# Rows of a word, of half a block, of a block and of 128 blocks end here, on either side.
LENGTHS = (
    *(1, 7, 8, 9, 47, 48, 49, 239, 240, 241, 303, 304, 305, 495, 496, 497, 511, 512, 513),
    *(65_535, 65_536, 65_537),
)
SUPERS = (63_487, 63_488, 63_489, 2 * 63_488 + 1)


def cut(codes: NDArray[Any], codewords: int, classes: Sequence[int]) -> Levels:
    """Return the levels of codes whose classes but the last have these bits."""
    starts = [0, *itertools.accumulate(1 << bits for bits in classes)]
    bits = (*classes, code_bits(codewords - starts[-1]))
    return Levels(bits, tuple(int((codes >= start).sum()) for start in starts))


def written(path: Path, codes: NDArray[Any], codewords: int, levels: Levels) -> NDArray[np.uint8]:
    with PlaneWriter(path, len(codes), codewords) as writer:
        writer.append(codes)
    encode_in_levels(path, codewords, levels)
    with path.open("rb") as file:
        return open_levels(file, levels)


def by_hand(codes: Sequence[int], levels: Levels) -> bytes:
    """Return the codes in levels bit by bit, as the module's docstring puts it in words."""
    bitmaps, supers, payloads = b"", b"", b""
    left = list(codes)
    for level, (bits, first) in enumerate(zip(levels.bits, levels.first_codes, strict=True)):
        stay = left
        if level < len(levels.bits) - 1:
            goes = [code >= first + (1 << bits) for code in left]
            stay = [code for code, on in zip(left, goes, strict=True) if not on]
            for block in range(0, len(goes), 496):
                of_super = block // (128 * 496) * (128 * 496)
                if block == of_super:
                    supers += sum(goes[:block]).to_bytes(8, "little")
                word = sum(goes[of_super : block + 240])
                for place, on in enumerate(goes[block : block + 496]):
                    word |= on << (16 + place)
                rows = len(goes[block : block + 496])
                bitmaps += word.to_bytes(-(-(16 + rows) // 64) * 8, "little")
            left = [code for code, on in zip(left, goes, strict=True) if on]
        whole = sum((code - first) << (place * bits) for place, code in enumerate(stay))
        payloads += whole.to_bytes(-(-len(stay) * bits // 8), "little")
    return bitmaps + supers + payloads + bytes(3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[Any], int, list[int]]:
    """Codes, codewords, and bits of all classes but the last."""
    codewords = draw(st.integers(2, 3000))
    classes = [draw(st.integers(0, (codewords - 1).bit_length() - 1))]
    start = 1 << classes[0]
    while len(classes) < MOST_LEVELS and start + 1 < codewords and draw(st.booleans()):
        classes.append(draw(st.integers(0, (codewords - start - 1).bit_length() - 1)))
        start += 1 << classes[-1]
    near = st.integers(0, min(codewords, 8) - 1)
    code = st.one_of(near, st.integers(0, codewords - 1))
    codes = draw(st.lists(code, min_size=1, max_size=70))
    repeats = draw(st.integers(1, 30))
    return np.array(codes * repeats, code_dtype(codewords)), codewords, classes


@given(problems(), st.data())
def test_any_codes_in_any_classes(
    tmp_path_factory: pytest.TempPathFactory,
    problem: tuple[NDArray[Any], int, list[int]],
    data: st.DataObject,
) -> None:
    codes, codewords, classes = problem
    levels = cut(codes, codewords, classes)
    levels.check(len(codes), codewords)
    path = tmp_path_factory.mktemp("levels") / "0.npy"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(levels_module, "_STEP_ROWS", data.draw(st.sampled_from([8, 104, 4096])))
        packed = written(path, codes, codewords, levels)
        assert bytes(packed) == by_hand(codes.tolist(), levels)
        assert len(packed) == levels.size
        found = LevelCodes(packed, levels, codewords, "x")
        start = data.draw(st.integers(0, len(codes)))
        stop = data.draw(st.integers(start, len(codes)))
        between = found.between(start, stop)
    assert between.dtype == code_dtype(codewords)
    assert np.array_equal(between, codes[start:stop])
    rows = np.array(data.draw(st.lists(st.integers(0, len(codes) - 1), max_size=600)), np.int64)
    taken = found.take(rows)
    assert taken.dtype == code_dtype(codewords)
    assert np.array_equal(taken, codes[rows])


@pytest.mark.parametrize("n_rows", [*LENGTHS, *SUPERS])
@pytest.mark.parametrize(
    ("codewords", "classes"), [(5, [0, 0]), (2, [0]), (256, [2, 4, 6, 6]), (70_000, [3, 16])]
)
def test_lengths(
    tmp_path: Path, rng: np.random.Generator, n_rows: int, codewords: int, classes: list[int]
) -> None:
    codes = np.minimum(rng.pareto(0.5, n_rows), codewords - 1).astype(code_dtype(codewords))
    codes[-1] = codewords - 1
    levels = cut(codes, codewords, classes)
    packed = written(tmp_path / "0.npy", codes, codewords, levels)
    assert bytes(packed) == by_hand(codes.tolist(), levels)
    assert np.array_equal(np.load(tmp_path / "0.npy"), packed)
    assert not packed.flags.writeable
    found = LevelCodes(packed, levels, codewords, "x")
    assert np.array_equal(found.between(0, n_rows), codes)
    rows = rng.integers(0, n_rows, (7, 100))
    assert np.array_equal(found.take(rows), codes[rows])


def test_hand_computed(tmp_path: Path) -> None:
    # Code 0 alone, then codes 1 and 2, then 3 to 6 in two bits; bits of rows begin at the 16th.
    codes = np.array([0, 2, 0, 6, 0, 1, 3, 0], np.uint8)
    levels = cut(codes, 7, [0, 1])
    assert levels == Levels((0, 1, 2), (8, 4, 2))
    assert (levels.first_codes, levels.staying) == ((0, 1, 3), (4, 2, 2))
    packed = written(tmp_path / "0.npy", codes, 7, levels)
    assert packed.tolist() == [
        4, 0, 0b01101010, 0, 0, 0, 0, 0,  # rows 1, 3, 5, 6 go on, all before the middle
        2, 0, 0b1010, 0, 0, 0, 0, 0,  # of these the second and fourth
        *[0] * 16,  # no ones before the first rows
        0b01,  # codes 2 and 1, less 1
        0b00_11,  # codes 6 and 3, less 3
        0, 0, 0,
    ]  # fmt: skip
    assert LevelCodes(packed, levels, 7, "x").take([3, 0, 6, 6]).tolist() == [6, 0, 3, 3]


def test_rows_of_any_shape_and_dtype(tmp_path: Path) -> None:
    codes = np.array([4, 0, 2], np.uint8)
    levels = cut(codes, 5, [0])
    found = LevelCodes(written(tmp_path / "0.npy", codes, 5, levels), levels, 5, "user")
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        assert found.take(np.array([[2, 0], [1, 1]], dtype)).tolist() == [[2, 4], [0, 0]]
    assert found.take(1).shape == ()
    assert found.take([]).shape == (0,)
    assert found.between(1, 1).shape == (0,)
    with pytest.raises(ArtifactError, match='row 3 of field "user" is out of range'):
        found.take([0, 3])
    with pytest.raises(ArtifactError, match="must be integers"):
        found.take([0.0])


# Which classes.


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=11))
def test_no_cut_takes_fewer_bytes(drawn: list[int]) -> None:
    uses = np.array(drawn, np.int64)
    uses[0] += 1  # a field without rows has no codes
    codewords = len(uses)
    codes = np.repeat(np.arange(codewords), uses)

    def cuts(start: int, levels: int) -> list[list[int]]:
        found: list[list[int]] = [[]]
        for bits in range(codewords.bit_length()):
            if levels > 1 and start + (1 << bits) < codewords:
                found += [[bits, *rest] for rest in cuts(start + (1 << bits), levels - 1)]
        return found

    least = (len(codes) * code_bits(codewords) + 7) // 8
    for classes in cuts(0, MOST_LEVELS):
        if classes:
            least = min(least, cut(codes, codewords, classes).size - 3)
    chosen = choose_levels(uses)
    if chosen is None:
        assert (len(codes) * code_bits(codewords) + 7) // 8 == least
    else:
        chosen.check(len(codes), codewords)
        assert chosen == cut(codes, codewords, chosen.bits[:-1])
        assert chosen.size - 3 == least


def test_many_codewords(rng: np.random.Generator) -> None:
    uses = np.sort((rng.pareto(1.0, 2**20) * 3).astype(np.int64))[::-1].copy()
    chosen = choose_levels(uses)
    assert chosen is not None
    chosen.check(int(uses.sum()), 2**20)


def test_one_codeword_has_no_levels() -> None:
    assert choose_levels(np.array([5])) is None


@pytest.mark.parametrize(
    ("bits", "rows"),
    [
        ((), ()),
        ((3,), (8,)),  # one level
        ((0, 3), (8,)),
        ((0, 3), (9, 2)),  # other rows
        ((0, 3), (8, 9)),  # more than came
        ((0, 1, 3), (8, 2, 3)),
        ((0, 2), (8, 2)),  # six codes are left
        ((0, 4), (8, 2)),
        ((3, 0), (8, 2)),  # no codes are left
        ((-1, 3), (8, 2)),
        ((0, 3), (8, -1)),
        ((2**40, 3), (8, 2)),
        ((False, 3), (8, 2)),
        ((0, 3.0), (8, 2)),
        ((0, "3"), (8, 2)),
    ],
)
def test_levels_that_cannot_be(bits: Any, rows: Any) -> None:
    Levels((0, 3), (8, 2)).check(8, 7)
    with pytest.raises(ArtifactError, match="8 rows with 7 codewords cannot have levels"):
        Levels(bits, rows).check(8, 7)


# What was altered.


@given(st.data())
def test_altered_bytes_give_an_error_or_a_code(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("levels") / "0.npy"
    codes = np.minimum(np.random.default_rng(1).pareto(0.6, 1500), 299).astype(np.uint16)
    levels = cut(codes, 300, [1, 2, 4])
    packed = written(path, codes, 300, levels).copy()
    for _ in range(data.draw(st.integers(1, 20))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed[place] = data.draw(st.integers(0, 255))
    try:
        found = LevelCodes(packed, levels, 300, "user").between(0, 1500)
    except ArtifactError:
        return  # what it says is tested below
    assert found.max() < 300


def test_altered_bytes_lead_to_no_read_outside(tmp_path: Path) -> None:
    """The loop is compiled once more, and looks at every index."""
    script = """
from pathlib import Path
import numpy as np
from saec_gpu.errors import ArtifactError
from saec_gpu.levels import LevelCodes, choose_levels, encode_in_levels, open_levels
from saec_gpu.packing import PlaneWriter
rng = np.random.default_rng(0)
codes = np.minimum(rng.pareto(0.6, 1500), 299).astype(np.uint16)
codes[-1] = 299
with PlaneWriter("0.npy", 1500, 300) as writer:
    writer.append(codes)
levels = choose_levels(np.bincount(codes))
encode_in_levels(Path("0.npy"), 300, levels)
with open("0.npy", "rb") as file:
    packed = open_levels(file, levels)
refused = 0
for changes in range(400):
    altered = packed.copy()
    altered[rng.integers(0, len(packed), changes)] = rng.integers(0, 256, changes)
    try:
        LevelCodes(altered, levels, 300, "x").between(0, 1500)
    except ArtifactError:
        refused += 1
print(refused)
"""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert int(done.stdout) > 300


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_every_byte_the_same(byte: int) -> None:
    levels = Levels((0, 1, 9), (1000, 400, 300))
    packed = np.full(levels.size, byte, np.uint8)
    with pytest.raises(ArtifactError, match='field "user" cannot be'):
        LevelCodes(packed, levels, 300, "user").between(0, 1000)


def test_counter_and_payload_that_lie(tmp_path: Path) -> None:
    codes = np.arange(1000, dtype=np.uint16) % 300
    levels = cut(codes, 300, [1, 2])
    packed = written(tmp_path / "0.npy", codes, 300, levels)
    counter = packed.copy()
    counter[128] += 9  # of the third block: places beyond the level for its last rows
    lying = LevelCodes(counter, levels, 300, "user")
    assert lying.take([0, 495]).tolist() == [0, 195]
    with pytest.raises(ArtifactError, match='the code of row 999 of field "user" cannot be'):
        lying.take([0, 999])
    payload = packed.copy()
    payload[-5:-3] = 0xFF  # the last code becomes 511 + 6
    with pytest.raises(ArtifactError, match='the code of row 999 of field "user" cannot be'):
        LevelCodes(payload, levels, 300, "user").take([0, 999])


def test_file_of_other_levels_is_refused(tmp_path: Path) -> None:
    codes = np.arange(100) % 7
    levels = cut(codes, 7, [0])
    written(tmp_path / "0.npy", codes, 7, levels)
    with (
        (tmp_path / "0.npy").open("rb") as file,
        pytest.raises(ArtifactError, match=r'0\.npy" .* codes of 100 rows in levels'),
    ):
        open_levels(file, Levels((1, 3), (100, 14)))


def test_beyond_32_bits(tmp_path: Path) -> None:  # RELIABILITY 9
    # A file with holes: of its gigabytes only the pages exist that are written here.
    n_rows, last = 2**33, 2**33 - 3
    levels = Levels((1, 0), (n_rows, 1))
    bitmap_bytes = n_rows // 496 * 64 + -(-(n_rows % 496 + 16) // 64) * 8
    block, place = last // 496, 16 + last % 496
    payloads = bitmap_bytes + -(-n_rows // (128 * 496)) * 8
    with (tmp_path / "codes").open("wb") as file:
        file.truncate(levels.size)
        for at, byte in (
            (block * 64 + place // 8, 1 << place % 8),
            (payloads + 2**30 - 1, 0b0011_0000),  # of the last three rows that stay: 1, 1, 0
        ):
            file.seek(at)
            file.write(bytes([byte]))
    packed = np.memmap(tmp_path / "codes", np.uint8, "r").view(np.ndarray)
    found = LevelCodes(packed, levels, 3, "x")
    rows = [0, last - 1, last, last + 1, last + 2]
    assert found.take(rows).tolist() == [0, 1, 2, 1, 0]
    assert found.between(last - 1, n_rows).tolist() == [1, 2, 1, 0]


# Files.


def test_disk_full_leaves_the_planes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0.npy"
    codes = np.arange(100) % 7
    with PlaneWriter(path, 100, 7) as writer:
        writer.append(codes)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        encode_in_levels(path, 7, cut(codes, 7, [0]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_hard_links_are_left_alone(tmp_path: Path) -> None:
    path, linked = tmp_path / "0.npy", tmp_path / "linked.npy"
    codes = np.arange(100) % 7
    with PlaneWriter(path, 100, 7) as writer:
        writer.append(codes)
    linked.hardlink_to(path)
    before = path.read_bytes()
    encode_in_levels(path, 7, cut(codes, 7, [0]))
    assert linked.read_bytes() == before != path.read_bytes()
