"""What every backend refuses, in the same words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Codebook
from saec_gpu.errors import LayoutError, ParamError
from saec_gpu.layout import Layout, Segment


def check_threads(threads: int | None) -> None:
    """Raise ParamError unless `threads` is None or at least 1."""
    if threads is not None and threads < 1:
        raise ParamError(f"threads={threads} was given; give 1 or more, or None for every core")


def check_codewords(codebooks: Mapping[str, Codebook]) -> None:
    """Raise LayoutError unless every codebook has a codeword: without one no row has a code."""
    for field, codebook in codebooks.items():
        n_codewords, dim = codebook.codewords.shape
        if n_codewords == 0:
            raise LayoutError(
                f'field "{field}" was given a codebook of 0 codewords of {dim} columns; give at '
                "least one, or leave the field out"
            )


def check_columns(segment: Segment, dim: int) -> None:
    """Raise LayoutError unless the segment's rows have `dim` columns, as its codewords have."""
    if segment.dim != dim:
        raise LayoutError(
            f'rows of field "{segment.field}" have {segment.dim} columns, its codewords {dim}'
        )


def check_weights(segment: Segment, *, weighted: bool, given: bool) -> None:
    """Raise LayoutError where the sums of the segment's field are weighted and no weights came."""
    if weighted and not given:
        raise LayoutError(
            f'rows of field "{segment.field}" were given without weights, but its sums are '
            "weighted; give weights with every chunk of the field"
        )


def check_codes(layout: Layout, codes: NDArray[np.uint32], n_codewords: Mapping[str, int]) -> None:
    """Raise LayoutError unless `codes` can be looked up: one a row, each a codeword of its field.

    Parameters
    ----------
    layout : Layout
        Of the rows.
    codes : uint32 (layout.n_rows,)
        One code a row.
    n_codewords : mapping of str to int
        Number of codewords by field; the codes of other fields may be anything.

    Raises
    ------
    LayoutError
        There are not as many codes as rows, or a code is not below its field's number of
        codewords. Names the greatest such code, its row within the field, and the field.
    """
    if codes.shape != (layout.n_rows,):
        raise LayoutError(
            f"codes of shape {codes.shape} were given for {layout.n_rows} rows; give one code a row"
        )
    for segment in layout.segments:
        if segment.field not in n_codewords or segment.n_rows == 0:
            continue
        most = n_codewords[segment.field]
        worst = int(np.argmax(codes[segment.rows]))
        if codes[segment.rows][worst] >= most:
            raise LayoutError(
                f'row {segment.start + worst} of field "{segment.field}" has code '
                f"{codes[segment.rows][worst]}, but the field has {most} codewords"
            )
