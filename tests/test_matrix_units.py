"""The kernels on matrix units that do not normalise subnormal float16, where that decides."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from emulated_device import EmulatedDevice
from emulator import Library, build
from self_test import SEEDS

from builders import definition
from saec_gpu.backends.cupy_cuda import CudaBackend
from saec_gpu.data import Codebook, chunk_of
from test_filter_model import lowest_exponents

KERNELS = Path(__file__).parents[1] / "kernels"
DIMS = (8, 16, 32)
# Width and extra bits by the seed whose products are added up so.
UNITS = {5: (4, 0), 2: (8, 1), 3: (16, 2)}


@cache
def library() -> Library:
    return Library(build())


def right(library: Library, seed: int, unit: tuple[int, int], dim: int) -> bool:
    """Return whether the counterexample to a unit gets the definition's code."""
    rows, codewords = lowest_exponents(*unit, dim)
    backend = CudaBackend(EmulatedDevice(seed=seed, library=library))
    codebooks = backend.load_codebooks({"field": Codebook(codewords)})
    found = backend.assign(backend.load_rows(chunk_of("field", rows)), codebooks).codes
    return np.array_equal(found, definition(rows, codewords).argmin(axis=1))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("unit", UNITS.values())
@pytest.mark.parametrize("seed", SEEDS)
def test_codes_are_the_definition_s(seed: int, unit: tuple[int, int], dim: int) -> None:
    assert right(library(), seed, unit, dim)


@pytest.fixture(scope="module")
def without_shares(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Return the kernels with a bound that has no share for subnormal operands."""
    sources = tmp_path_factory.mktemp("sources") / "kernels"
    shutil.copytree(KERNELS, sources)
    bound = sources / "bound.cuh"
    text = bound.read_text(encoding="utf-8")
    text, found = re.subn(r"(LOWEST(_OF_ROW|_OF_CHUNK)?) = 0x1p-\d+f;", r"\1 = 0.0f;", text)
    assert found == 3
    bound.write_text(text, encoding="utf-8")
    return Library(build(sources=sources))


@pytest.mark.parametrize(
    ("seed", "dim"),
    # where a unit adds more columns than there are, what it cuts off is too little
    [(seed, dim) for seed, (width, _) in UNITS.items() for dim in DIMS if width <= dim],
)
def test_without_their_share_a_wrong_code_is_proved(
    without_shares: Library, seed: int, dim: int
) -> None:
    # a row that is not proved would get the definition's code
    assert not right(without_shares, seed, UNITS[seed], dim)
