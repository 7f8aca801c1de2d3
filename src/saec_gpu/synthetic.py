"""Planted tables and lookup counts, for the demo, the tests and the benchmarks.

Everything follows from the seed; the global random state is neither read nor changed. The bits are
those of the installed NumPy: its distributions may change between versions (NEP 19), so nothing
of an artifact depends on this module.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from saec_gpu.errors import ParamError

# Distinct values of the 26 categorical columns of the Criteo Kaggle data set, and its samples.
CRITEO_VOCABULARIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
CRITEO_SAMPLES = 45_840_617

_LOOKUP_EXPONENT = 1.05  # a sample looks up one row of each field, by Zipf's law
_CLUSTER_EXPONENT = 0.7
_CLUSTER_SIGMA = 0.6  # of the rows around the means, which have unit variance a column


def planted(
    n_rows: int, dim: int, n_clusters: int, *, spread: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return rows around well separated centres, so that the right codes are known.

    Centres are distinct points of an integer lattice, at least 1 apart. A row lies within `spread`
    of its centre: below 0.5 no other centre is as near, and below 0.25 rows of one cluster are
    nearer to each other than to any other row.

    Parameters
    ----------
    n_rows, dim, n_clusters : int
        Sizes, each at least 1. Every cluster gets floor or ceil of n_rows / n_clusters rows.
    spread : float
        Largest distance of a row from its centre, in [0, 0.5).
    seed : int
        Everything drawn follows from it.

    Returns
    -------
    rows : float32 (n_rows, dim)
        In random order.
    centres : float32 (n_clusters, dim)
        Whole numbers.
    labels : int64 (n_rows,)
        Index of each row's centre.

    Raises
    ------
    ParamError
        A size is below 1, there are more clusters than rows, or `spread` is outside [0, 0.5).

    Examples
    --------
    >>> rows, centres, labels = planted(6, 2, 3, spread=0.0, seed=0)
    >>> bool((rows == centres[labels]).all())
    True
    """
    _at_least(1, n_rows=n_rows, dim=dim, n_clusters=n_clusters)
    if n_clusters > n_rows:
        raise ParamError(
            f"{n_clusters} clusters were asked for of {n_rows} rows; give at most {n_rows}"
        )
    if not 0 <= spread < 0.5:
        raise ParamError(f"spread is {spread}; give a number in [0, 0.5)")
    rng = np.random.Generator(np.random.PCG64(seed))
    # The smallest lattice side**dim with room for all centres. The leading columns count them,
    # which makes them distinct; the others are drawn.
    side = 2
    while side**dim < n_clusters:
        side += 1
    n_counting = 1
    while side**n_counting < n_clusters:
        n_counting += 1
    centres = rng.integers(0, side, size=(n_clusters, dim)).astype(np.float32)
    counted = np.unravel_index(rng.permutation(n_clusters), (side,) * n_counting)
    centres[:, :n_counting] = np.stack(counted, axis=1)
    labels = rng.permutation(np.arange(n_rows, dtype=np.int64) % n_clusters)
    # Uniform in a cube whose corners are `spread` away from its middle.
    reach = np.float32(spread / math.sqrt(dim))
    rows = rng.random((n_rows, dim), dtype=np.float32)
    rows *= 2 * reach
    rows -= reach
    rows += centres[labels]
    return rows, centres, labels


def zipf_counts(n_rows: int, exponent: float, total: int, seed: int) -> NDArray[np.float64]:
    """Return how often each row is looked up when `total` lookups follow Zipf's law.

    The r-th most popular row is drawn with probability proportional to r**-exponent; which row that
    is, is drawn too. Rows of the tail may never be drawn.

    Parameters
    ----------
    n_rows : int
        At least 1.
    exponent : float
        At least 0; 0 makes all rows equally popular.
    total : int
        Number of lookups, in [0, 2**53].
    seed : int
        Everything drawn follows from it.

    Returns
    -------
    counts : float64 (n_rows,)
        Whole numbers that sum to `total`.

    Raises
    ------
    ParamError
        A parameter is outside its range.

    Examples
    --------
    >>> counts = zipf_counts(5, 1.0, 100, seed=0)
    >>> float(counts.sum())
    100.0
    """
    _at_least(1, n_rows=n_rows)
    if not 0 <= total <= 2**53:  # above, float64 no longer holds every count
        raise ParamError(f"total is {total}; give a number in [0, 2**53]")
    if not 0 <= exponent < math.inf:
        raise ParamError(f"exponent is {exponent}; give a finite number of at least 0")
    rng = np.random.Generator(np.random.PCG64(seed))
    popularity = np.arange(1, n_rows + 1, dtype=np.float64) ** -exponent
    drawn = rng.multinomial(total, popularity / popularity.sum())
    return rng.permutation(drawn).astype(np.float64)


def recommender_sizes(n_rows_total: int, n_fields: int) -> tuple[dict[str, int], int]:
    """Return the rows of each field and the lookups of all, in proportion to Criteo Kaggle.

    Vocabularies and the number of samples are scaled to `n_rows_total`; more than 26 fields repeat
    the vocabularies.

    Parameters
    ----------
    n_rows_total, n_fields : int
        Each at least 1.

    Returns
    -------
    sizes : dict of int
        Rows by name: "C01", "C02", …; at least one each, together `n_rows_total` up to rounding.
    n_lookups : int
        Samples, each of which looks up one row of every field.

    Raises
    ------
    ParamError
        A size is below 1.

    Examples
    --------
    >>> recommender_sizes(1000, 3)
    ({'C01': 1, 'C02': 1, 'C03': 1000}, 4524)
    """
    _at_least(1, n_rows_total=n_rows_total, n_fields=n_fields)
    vocabularies = [CRITEO_VOCABULARIES[i % len(CRITEO_VOCABULARIES)] for i in range(n_fields)]
    scale = n_rows_total / sum(vocabularies)
    digits = max(2, len(str(n_fields)))
    sizes = {
        f"C{i:0{digits}}": max(1, round(vocabulary * scale))
        for i, vocabulary in enumerate(vocabularies, 1)
    }
    return sizes, max(1, round(CRITEO_SAMPLES * scale))


def mixture_components(n_rows: int) -> int:
    """Return the number of components of a field: two for each codeword it is likely to get.

    Examples
    --------
    >>> mixture_components(99), mixture_components(1000), mixture_components(10**9)
    (2, 20, 2048)
    """
    return 2 * min(max(n_rows // 100, 1), 1024)


def recommender_tables(
    n_rows_total: int, n_fields: int, dim: int, seed: int
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float64]]]:
    """Return embedding tables and lookup counts with the proportions of the Criteo Kaggle data set.

    Sizes are those of `recommender_sizes`. Rows are a mixture of 2 * clip(n / 100, 1, 1024)
    Gaussians per field, whose weights follow Zipf's law with exponent 0.7: means of unit variance a
    column, sigma 0.6.

    Parameters
    ----------
    n_rows_total : int
        Rows of all fields together, up to rounding; every field has at least one.
    n_fields, dim, seed : int
        Sizes, each at least 1, and what everything drawn follows from.

    Returns
    -------
    tables : dict of float32 (n_rows, dim)
        By name: "C01", "C02", …
    counts : dict of float64 (n_rows,)
        How often each row is looked up, by the same names; each field has the same total.

    Raises
    ------
    ParamError
        A size is below 1.

    Examples
    --------
    >>> tables, counts = recommender_tables(1000, 3, 4, seed=0)
    >>> list(tables), tables["C03"].shape
    (['C01', 'C02', 'C03'], (1000, 4))
    """
    _at_least(1, dim=dim)
    sizes, n_lookups = recommender_sizes(n_rows_total, n_fields)
    seeds = np.random.SeedSequence(seed).generate_state(2 * n_fields, np.uint64)
    tables, counts = {}, {}
    for i, (name, n_rows) in enumerate(sizes.items()):
        tables[name] = _mixture(n_rows, dim, int(seeds[2 * i]))
        counts[name] = zipf_counts(n_rows, _LOOKUP_EXPONENT, n_lookups, int(seeds[2 * i + 1]))
    return tables, counts


def _mixture(n_rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Return rows drawn from a Gaussian mixture with Zipf weights."""
    rng = np.random.Generator(np.random.PCG64(seed))
    n_components = mixture_components(n_rows)
    shares = np.arange(1, n_components + 1, dtype=np.float64) ** -_CLUSTER_EXPONENT
    edges = np.cumsum(shares)
    labels = np.searchsorted(edges, rng.random(n_rows) * edges[-1], side="right")
    # A product that rounds up to the last edge would fall off the end.
    np.minimum(labels, n_components - 1, out=labels)
    means = rng.standard_normal((n_components, dim), dtype=np.float32)
    rows = rng.standard_normal((n_rows, dim), dtype=np.float32)
    rows *= np.float32(_CLUSTER_SIGMA)
    rows += means[labels]
    return rows


def _at_least(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ParamError(f"{name} is {size}; give at least {least}")
