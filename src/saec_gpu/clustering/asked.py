"""How many codewords are asked of each field, and whether codes gain anything at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from saec_gpu.codewords import CodewordsDtype, codebook_bytes
from saec_gpu.errors import ParamError
from saec_gpu.packing import packed_size
from saec_gpu.sources import TableField

logger = logging.getLogger(__name__)

MOST_BY_FRACTION = 65_536  # 16-bit codes; who wants more asks for a number
MOST_CODEWORDS = 2**20


@dataclass(frozen=True)
class FieldPlan:
    """What is to become of one field.

    Attributes
    ----------
    codewords : int
        Asked; fewer come of it where fewer rows differ.
    dtype : {"float32", "float16", "int8"}
        In which they are stored.
    whole : bool or None
        Whether rows are kept as they are; None: where codes would gain nothing.
    selected : int
        Rows of the coreset that is clustered instead of all; 0: all are.
    bit_price : float
        λ of codes by error and length (rules.py); 0: codes are those of the nearest.
    """

    codewords: int
    dtype: CodewordsDtype
    whole: bool | None = None
    selected: int = 0
    bit_price: float = 0.0


CodewordsParam = int | float | Mapping[str, int | float]


def encoded_bytes(field: TableField, n_codewords: int, codewords_dtype: str = "float32") -> int:
    """Return counted bytes of a field's codebook and codes, or of its rows where that is less."""
    if field.n_rows == 0:
        return 0
    codebook = codebook_bytes(n_codewords, field.dim, codewords_dtype)
    return min(codebook + packed_size(field.n_rows, n_codewords), field.nbytes)


def kept_whole(field: TableField, n_codewords: int, codewords_dtype: str = "float32") -> bool:
    """Return whether codes would gain nothing, so that the field's rows are stored as they are."""
    return encoded_bytes(field, n_codewords, codewords_dtype) == field.nbytes


def codewords_by_field(
    fields: Mapping[str, TableField], codewords: CodewordsParam
) -> dict[str, int]:
    """Return the codewords asked of each field.

    Parameters
    ----------
    fields : mapping of name to TableField
    codewords : int, fraction or mapping
        A number for every field; a fraction in (0, 1] of its rows, at most 65,536; or one of both
        for each field by name.

    Raises
    ------
    ParamError
        A number below 1 or above 2^20, a fraction outside (0, 1], names that are not the fields'.
    """
    if isinstance(codewords, Mapping):
        unknown = sorted(set(codewords) - set(fields))
        missing = sorted(set(fields) - set(codewords))
        if unknown or missing:
            raise ParamError(
                f"codewords must name each field once; unknown: {unknown or 'none'}, missing: "
                f"{missing or 'none'}; the fields are {sorted(fields)}"
            )
        return {name: _field_codewords(field, codewords[name]) for name, field in fields.items()}
    return {name: _field_codewords(field, codewords) for name, field in fields.items()}


def _field_codewords(field: TableField, asked: Any) -> int:
    if isinstance(asked, int | np.integer) and not isinstance(asked, bool):
        if not 1 <= asked <= MOST_CODEWORDS:
            raise ParamError(
                f'{asked} codewords were asked of field "{field.name}"; give 1 to '
                f"{MOST_CODEWORDS}, or a fraction such as 0.01"
            )
        return int(asked)
    if isinstance(asked, float | np.floating) and 0.0 < asked <= 1.0:
        wanted = max(1, round(float(asked) * field.n_rows))
        if wanted > MOST_BY_FRACTION:
            logger.info(
                'field "%s": %s of %d rows would be %d codewords; %d are taken, the most that a '
                "fraction gives; ask for a number to have more",
                field.name, asked, field.n_rows, wanted, MOST_BY_FRACTION,
            )  # fmt: skip
        return min(wanted, MOST_BY_FRACTION)
    raise ParamError(
        f'codewords={asked!r} was given for field "{field.name}"; give a whole number from 1, or a '
        "fraction of the rows in (0, 1]"
    )
