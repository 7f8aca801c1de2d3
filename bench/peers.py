"""The contestants: k-means over the fields of a case, from given first codewords, passes fixed.

Each class holds what a user of that library would have made before: rows in memory, and for this
package the statistics. Packages of the extra `bench` are imported where they are used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from saec_gpu.data import Float32
from saec_gpu.errors import MissingExtraError, ParamError

from .cases import CaseData, useful_flop

READ_ROWS = 2**18
NO_SUBSAMPLING = 10**9  # rows a codeword
NEVER = -1.0  # a tolerance below every shift


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a contestant did in one timed run.

    Attributes
    ----------
    flop : float
        Useful flop, 2·n·k·d a pass: less than asked for where a library stopped by itself.
    codewords : tuple of float32 (k, dim), one a field
        Empty for the peak, which clusters nothing.
    rechecked : int or None
        Rows that the filter did not prove, of all passes; None where there is no filter.
    """

    flop: float
    codewords: tuple[Float32, ...] = ()
    rechecked: int | None = None


class Contestant:
    """What the worker asks of every contestant.

    Attributes
    ----------
    distribution, module : str
        What pip and Python call the library.
    extra : str
        The extra of this package that brings it; empty if it is always there.
    takes_weights : bool
    note : str
        What the library did otherwise than the case says.
    """

    distribution: ClassVar[str] = "saec-gpu"
    module: ClassVar[str] = "saec_gpu"
    extra: ClassVar[str] = ""
    takes_weights: ClassVar[bool] = False
    note: ClassVar[str] = ""

    def __init__(self, data: CaseData, *, threads: int, iterations: int, weighted: bool) -> None:
        self.data = data
        self.threads = threads
        self.iterations = iterations
        self.weighted = weighted
        self.prepare()

    def prepare(self) -> None:
        """Make what stands before the clock."""

    def run(self) -> Outcome:
        """Do the work that is timed."""
        raise NotImplementedError

    def codes(self, rows: Float32, codewords: Float32) -> NDArray[Any] | None:
        """Return the nearest codewords of rows, where that is promised to be exact."""
        return None

    @classmethod
    def version(cls) -> str:
        """Return the version of the installed library."""
        try:
            return importlib.metadata.version(cls.distribution)
        except importlib.metadata.PackageNotFoundError:
            return str(importlib.import_module(cls.module).__version__)

    def _all_passes(self) -> float:
        return useful_flop(self.data, [self.iterations] * len(self.data.fields))


class Saec(Contestant):
    """The fit of all fields by this package, without statistics and seeding."""

    takes_weights = True

    def prepare(self) -> None:
        """Gather statistics and lay the rows out."""
        from saec_gpu.backends import open_backend
        from saec_gpu.clustering.statistics import StatisticsBuilder
        from saec_gpu.data import Chunk
        from saec_gpu.layout import lay_out

        self._backend = open_backend("cpu", threads=self.threads)
        runs = [(field.name, 0, *field.rows.shape) for field in self.data.fields]
        weights = self.data.weights if self.weighted else None
        self._chunk = Chunk(lay_out(runs), self.data.values, weights)
        self._statistics = {}
        for field in self.data.fields:
            n_rows, dim = field.rows.shape
            builder = StatisticsBuilder(
                field.name, n_rows, dim, len(field.initial), 0, weighted=self.weighted
            )
            for start in range(0, n_rows, READ_ROWS):
                part = slice(start, start + READ_ROWS)
                builder.add(start, field.rows[part], field.weights[part] if self.weighted else None)
            self._statistics[field.name] = builder.statistics()

    def run(self) -> Outcome:
        """Fit all fields; codebooks are laid out for the kernels in each pass."""
        from saec_gpu.backends.cpu_kept import kept_rows
        from saec_gpu.clustering.lloyd import FieldFit, fit
        from saec_gpu.clustering.statistics import fixed_point

        fits = {
            # a variance above 0, so that no shift is within NEVER of it
            field.name: FieldFit(one, fixed_point(one), 1.0, field.codewords)
            for field, one in zip(self.data.fields, self._statistics.values(), strict=True)
        }
        # as a store's rows that stay, and with nothing known of them from the run before
        rows = kept_rows(self._chunk, self._backend.memory_budget())
        rechecked = 0

        def after_pass(rows: Mapping[str, int]) -> None:
            nonlocal rechecked
            rechecked += sum(rows.values())

        fit(
            self._backend, lambda _: [rows], fits, tol=NEVER, max_iter=self.iterations,
            after_pass=after_pass,
        )  # fmt: skip
        flop = useful_flop(self.data, [one.iterations for one in fits.values()])
        return Outcome(flop, tuple(one.codewords for one in fits.values()), rechecked)

    def codes(self, rows: Float32, codewords: Float32) -> NDArray[Any] | None:
        """Return the nearest codewords of rows."""
        from saec_gpu.data import Codebook, chunk_of

        loaded = self._backend.load_codebooks({"x": Codebook(codewords)})
        return self._backend.assign(self._backend.load_rows(chunk_of("x", rows)), loaded).codes


class Faiss(Contestant):
    """faiss-cpu: Kmeans, one field after another."""

    distribution = "faiss-cpu"
    module = "faiss"
    extra = "bench"
    takes_weights = True
    note = "weights rounded to float32"

    def prepare(self) -> None:
        """Set the threads, and round the weights as faiss wants them."""
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self._weights = [
            field.weights.astype(np.float32) if self.weighted else None
            for field in self.data.fields
        ]

    def run(self) -> Outcome:
        """Train on all rows of each field."""
        import faiss

        words, passes = [], []
        for field, weights in zip(self.data.fields, self._weights, strict=True):
            kmeans: Any = faiss.Kmeans(
                field.rows.shape[1],
                len(field.initial),
                niter=self.iterations,
                max_points_per_centroid=NO_SUBSAMPLING,
                min_points_per_centroid=1,
            )
            kmeans.train(field.rows, weights=weights, init_centroids=field.codewords)
            words.append(np.asarray(kmeans.centroids, np.float32))
            passes.append(len(kmeans.obj))
        return Outcome(useful_flop(self.data, passes), tuple(words))


class ScikitLearn(Contestant):
    """scikit-learn: KMeans with algorithm="lloyd", one field after another."""

    distribution = "scikit-learn"
    module = "sklearn"
    extra = "bench"
    takes_weights = True
    note = "ends with one assignment that is not counted; stops where no code changes"

    def prepare(self) -> None:
        """Set the threads of OpenMP and of the BLAS."""
        import sklearn.cluster
        import threadpoolctl

        self._estimator = sklearn.cluster.KMeans
        self._limits = threadpoolctl.threadpool_limits(self.threads)

    def run(self) -> Outcome:
        """Fit each field."""
        words, passes = [], []
        for field in self.data.fields:
            kmeans = self._estimator(
                len(field.initial), init=field.codewords, n_init=1, max_iter=self.iterations,
                tol=0.0, algorithm="lloyd",
            )  # fmt: skip
            kmeans.fit(field.rows, sample_weight=field.weights if self.weighted else None)
            words.append(kmeans.cluster_centers_)
            passes.append(kmeans.n_iter_)
        return Outcome(useful_flop(self.data, passes), tuple(words))


class FastKMeans(Contestant):
    """fastkmeans on the CPU, one field after another.

    Notes
    -----
    It starts from rows that it draws itself, `torch.randperm(n)[:k]` after seeding torch. The rows
    are put in an order in which it draws the first codewords of the case; k-means does not depend
    on the order of the rows.
    """

    distribution = "fastkmeans"
    module = "fastkmeans"
    extra = "bench"
    note = "rows reordered so that its own draw is the given first codewords"

    def prepare(self) -> None:
        """Reorder the rows of each field."""
        import torch

        torch.set_num_threads(self.threads)
        self._rows = []
        for field in self.data.fields:
            torch.manual_seed(0)
            drawn = torch.randperm(len(field.rows))[: len(field.initial)].numpy()
            places = np.arange(len(field.rows))
            order = np.empty_like(places)
            order[drawn] = field.initial
            order[np.delete(places, drawn)] = np.delete(places, field.initial)
            self._rows.append(field.rows[order])

    def run(self) -> Outcome:
        """Train on all rows of each field."""
        import fastkmeans

        words = []
        for field, rows in zip(self.data.fields, self._rows, strict=True):
            kmeans = fastkmeans.FastKMeans(
                rows.shape[1], len(field.initial), niter=self.iterations, tol=NEVER, gpu=False,
                seed=0, max_points_per_centroid=NO_SUBSAMPLING,
            )  # fmt: skip
            kmeans.train(rows)
            words.append(kmeans.centroids)
        return Outcome(self._all_passes(), tuple(words))


class FmaPeak(Contestant):
    """What the machine can do: fused multiply-adds and nothing else."""

    def prepare(self) -> None:
        """Compile."""
        from .peak import FmaChains

        self._chains = FmaChains(self.threads)

    def run(self) -> Outcome:
        """Run the chains."""
        return Outcome(self._chains.run())


CONTESTANTS: dict[str, type[Contestant]] = {
    "saec": Saec,
    "faiss": Faiss,
    "sklearn": ScikitLearn,
    "fastkmeans": FastKMeans,
    "fma-peak": FmaPeak,
}
PEERS = ("faiss", "sklearn", "fastkmeans")


def find_contestant(name: str) -> type[Contestant]:
    """Return the contestant of this name, or the class that "module:Class" names.

    Raises
    ------
    ParamError
        There is none.
    MissingExtraError
        Its library is not installed.
    """
    module, _, attribute = name.partition(":")
    if attribute:
        found: type[Contestant] = getattr(importlib.import_module(module), attribute)
    elif name in CONTESTANTS:
        found = CONTESTANTS[name]
    else:
        known = ", ".join(("saec", *PEERS))
        raise ParamError(
            f'peer "{name}" was asked for; the peers are {known}, or module:Class of your own'
        )
    if found.extra and importlib.util.find_spec(found.module) is None:
        raise MissingExtraError.for_extra(found.distribution, found.extra, f'the peer "{name}"')
    return found
