"""Codes for rows that an artifact has not."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from saec_gpu.artifact import CompressedField
from saec_gpu.backends import open_backend
from saec_gpu.clustering.statistics import check_rows
from saec_gpu.data import Codebook, Float32, chunk_of
from saec_gpu.errors import ArtifactError, SourceError
from saec_gpu.packing import code_dtype


def nearest_codewords(field: CompressedField, rows: Float32) -> NDArray[Any]:
    """Return the codes of rows, float32 (n, dim), by the codewords of a field.

    Raises
    ------
    ArtifactError, SourceError, NonFiniteRowError
        As `Artifact.assign`.
    """
    if rows.ndim != 2 or rows.shape[1] != field.dim:
        raise SourceError(
            f'rows of shape {rows.shape} were given for field "{field.name}", '
            f"whose rows have dim {field.dim}"
        )
    if not field.n_codewords:
        raise ArtifactError(f'field "{field.name}" has no codewords: it had no rows')
    check_rows(field.name, 0, rows)
    engine = open_backend("cpu")
    loaded = engine.load_rows(chunk_of(field.name, rows))
    codebooks = engine.load_codebooks({field.name: Codebook(field.codebook)})
    return engine.assign(loaded, codebooks).codes.astype(code_dtype(field.n_codewords))
