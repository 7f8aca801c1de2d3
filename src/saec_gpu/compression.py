"""From table source to artifact: the front door, which knows every part."""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saec_gpu.artifact import Artifact, load
from saec_gpu.artifact_writer import check_out, write_artifact
from saec_gpu.backends import open_backend
from saec_gpu.backends.protocol import Backend
from saec_gpu.checkpoint import Checkpoint, is_codes_name
from saec_gpu.clustering.asked import CodewordsParam, FieldPlan, codewords_by_field
from saec_gpu.clustering.budget import Allocation, FieldCurve, choose, price_of_a_byte, unsettled
from saec_gpu.clustering.curves import CORESET_ROWS, MOST_MEASURED, Point, measure
from saec_gpu.clustering.rules import GREATEST_BIT_PRICE
from saec_gpu.clustering.selection import coreset, rows_to_cluster
from saec_gpu.codewords import CODEWORDS_DTYPES, CodewordsDtype
from saec_gpu.data import Progress, ProgressFunction
from saec_gpu.durable import scratch_beside
from saec_gpu.errors import ArtifactError, DeviceMemoryError, ParamError
from saec_gpu.pipeline import CODES_PARAMS, CodesParam, Params, Pipeline
from saec_gpu.sources import TableField, TableSource, WeightSource, open_tables, open_weights
from saec_gpu.stream import ResidencySet, plan_sets
from saec_gpu.version import __version__

logger = logging.getLogger(__name__)

DEFAULT_CODEWORDS = 0.01  # a hundred rows a codeword, as the Saec poster's tables
BYTE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    BYTE_UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}


def compress(
    tables: Any,
    *,
    weights: Any = None,
    codewords: CodewordsParam | None = None,
    ratio: float | None = None,
    budget: int | str | None = None,
    sensitivity: Mapping[str, float] | None = None,
    codewords_dtype: CodewordsDtype | Literal["auto"] = "auto",
    codes: CodesParam = "auto",
    out: str | os.PathLike[str],
    backend: str | Backend = "auto",
    seed: int = 0,
    max_iter: int = 25,
    tol: float = 1e-4,
    fast: bool | None = None,
    chunk_rows: int | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    fields: str | Sequence[str] | None = None,
    progress: ProgressFunction | None = None,
) -> Artifact:
    """Return the artifact written to `out`: a codebook per field and a code per row.

    The same rows, weights, codewords or budget, codes, seed, max_iter, tol and fast give the same
    bytes, whatever the format, backend, chunk_rows, memory and threads, and also after a kill and
    resume.

    Parameters
    ----------
    tables : TableSource, path, mapping of name to array, or 2-D array
        What to compress; see `open_tables`.
    weights : path, mapping or vector, optional
        How often each row is looked up, float ≥ 0, one vector a field; fields without one are
        unweighted.
    codewords : int, fraction in (0, 1] or mapping of field to either, optional
        Codewords per field; a fraction is of its rows and at most 65,536. 0.01 if none of this,
        `ratio` and `budget` is given.
    ratio : float, optional
        How many times smaller the tables shall be, counted bytes: a budget of their bytes / ratio.
    budget : int or str, optional
        Counted bytes ("161MB") of all fields together. They are split so that the weighted
        distortion of all tables is least, as curves measured on samples of the fields tell; fields
        where nothing is gained are kept whole. At least 98 % of it is used where that spares any
        distortion.
    sensitivity : mapping of field to float, optional
        Scales the distortion of a field when a budget is split; 1 for fields not named.
    codewords_dtype : {"auto", "float32", "float16", "int8"}
        How codewords are stored; int8 with one scale a codeword (codewords.py). Rows get the codes
        of the codewords as stored, whose error is the one that is told. "auto": a budget chooses
        for each field; float32 without a budget.
    codes : {"auto", "planes", "entropy"}
        How codes are stored: "planes" in ceil(log2 k) bits; "auto" for each field in levels
        (levels.py) where these take fewer bytes. From planes rows are looked up fastest. "entropy",
        with a budget: in levels, and where a much shorter code costs a row little weighted error it
        takes that instead of the nearest codeword's (entropy-constrained, clustering/rules.py).
    out : path
        Folder to write, customarily `*.saec`.
    backend : {"auto", "cpu", "cupy", "numba"} or Backend
        Where to compute: a name, or a backend opened before, for a certain device. "auto" takes a
        CUDA device where one can be used.
    seed : int
        Keys every random draw.
    max_iter : int
        Most passes of the fit.
    tol : float
        A field stops when its codewords moved by at most tol times the mean variance of a column.
    fast : bool, optional
        Cluster a coreset, 64 rows a codeword and at least 8192, drawn by weight, and encode all
        rows in one reading. True: wherever a field has more rows; False: nowhere. If not given,
        where it has four times as many, and rows · codewords · dim is at least 2³⁰: all passes over
        a smaller field take less than a second. The manifest states the rows that were clustered
        (`clustered_rows`).
    chunk_rows : int, optional
        Rows of one read; chosen from the memory if not given.
    memory : int or str, optional
        Bytes ("500MB", "2GiB") of the backend's memory (a device's own) for rows and all that is
        made of them; if not given, half of what is free, four fifths on a device. Of a table that
        does not fit the first rows stay and the others are read again in each pass.
    threads : int, optional
        Cores to use; all if not given.
    checkpoint : path, optional
        Folder from which the same call continues after an interrupt or a kill.
    overwrite : bool
        Replace an artifact that is at `out`, in one step.
    fields : str or sequence of str, optional
        Patterns (`fnmatch`) of the fields to take.
    progress : function of Progress, optional
        Called often, from this thread.

    Raises
    ------
    ParamError, SourceError, WeightError, NonFiniteRowError, ArtifactError, CheckpointError
        Each names what was given, what is needed and where.

    Notes
    -----
    Saec-style compression: Wu, Xu, Zhang, Chen, Wang, arXiv 1903.00103. Fields that fit the memory
    are read once; memory held is `memory` and the codebooks. A budget's curves are measured before,
    which holds copies of 65,536 rows of a field; `codes="entropy"` does so again after the fit,
    with 64 rows a codeword if that is more.

    Examples
    --------
    >>> import numpy as np, tempfile, saec_gpu as saec
    >>> rows = np.repeat(np.eye(4, dtype=np.float32), 100, axis=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = saec.compress({"item": rows}, codewords=4, out=f"{folder}/item.saec")
    ...     bool((artifact["item"].lookup([0, 399]) == rows[[0, 399]]).all())
    True
    """
    begun = time.time()
    source = open_tables(tables, fields=fields)
    weight_source = None if weights is None else open_weights(weights, source)
    check_numbers(seed, max_iter, tol, chunk_rows)
    known: list[tuple[str, str, Sequence[str]]] = [
        ("codewords_dtype", codewords_dtype, ("auto", *CODEWORDS_DTYPES)),
        ("codes", codes, CODES_PARAMS),
    ]
    for name, chosen, choices in known:
        if chosen not in choices:
            raise ParamError(f"{name}={chosen!r} was given; give one of {', '.join(choices)}")
    total = asked_bytes(source.fields, codewords, ratio, budget)
    scales = checked_sensitivity(source.fields, sensitivity, total)
    if codes == "entropy" and total is None:
        raise ParamError('codes="entropy" was given, which needs a budget; give budget or ratio')
    params = Params(
        int(seed), int(max_iter), float(tol), codewords_dtype, codes, fast, total, scales
    )
    plans = None
    if total is None:
        plans = plans_by_number(source.fields, codewords, codewords_dtype, fast)
    engine = open_backend(backend, threads=threads) if isinstance(backend, str) else backend
    report = progress or (lambda _: None)
    identity = {
        "parameters": params.manifest(),
        "codewords": {name: plan.codewords for name, plan in (plans or {}).items()},
        "tables": source.fingerprint() if checkpoint is not None else None,
        "weights": weight_source.fingerprint() if checkpoint and weight_source else None,
    }
    kept = None
    with ExitStack() as stack:
        if checkpoint is not None:
            folder = Path(checkpoint)
            kept = Checkpoint(folder, identity)
            ended = finished(kept.run_id, Path(out))
            if ended is not None:
                return ended
        place = check_out(out, overwrite=overwrite)
        if checkpoint is None:
            folder = stack.enter_context(scratch_beside(place, is_codes_name))
        allocation = None
        if total is not None:
            allocation = allocate(
                engine, source, weight_source, total, codewords_dtype=codewords_dtype, codes=codes,
                sensitivity=scales, seed=int(seed), progress=report, kept=kept,
            )  # fmt: skip
            plans = plans_of(allocation, source.fields, fast)
        assert plans is not None
        run = Pipeline(
            source, weight_source, params, plans, engine, folder, kept, report,
            by_piece=chunk_rows is not None,
        )  # fmt: skip
        sets = cluster(run, memory, chunk_rows)
        if allocation is not None:
            sets += _settle(run, allocation, memory, chunk_rows)
        record = run_record(run, begun, sets, chunk_rows, memory)
        return write(run, Path(out), record, overwrite=overwrite)


def check_numbers(
    seed: int, max_iter: int, tol: float, chunk_rows: int | None, *, least_iter: int = 1
) -> None:
    """Raise ParamError unless the numbers of a run are allowed."""
    whole = [("seed", seed, 0), ("max_iter", max_iter, least_iter)]
    if chunk_rows is not None:
        whole.append(("chunk_rows", chunk_rows, 1))
    for name, value, least in whole:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ParamError(f"{name}={value!r} was given; give a whole number from {least}")
    if not (isinstance(tol, int | float) and np.isfinite(tol) and tol >= 0):
        raise ParamError(f"tol={tol!r} was given; give a finite number from 0")


def asked_bytes(
    fields: Mapping[str, TableField],
    codewords: CodewordsParam | None,
    ratio: float | None,
    budget: int | str | None,
) -> int | None:
    """Return the counted bytes that were asked of all fields, None where codewords were.

    Raises
    ------
    ParamError
        More than one of the three was given, or one is outside what it may be.
    """
    given = {"codewords": codewords, "ratio": ratio, "budget": budget}
    several = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if len(several) > 1:
        raise ParamError(
            f"{' and '.join(several)} were given; each decides the number of codewords: give one"
        )
    if budget is not None:
        return parse_bytes(budget, "budget")
    if ratio is None:
        return None
    if not (isinstance(ratio, int | float | np.number) and math.isfinite(ratio) and ratio > 1):
        raise ParamError(f"ratio={ratio!r} was given; give a number above 1, such as 27.7")
    return int(sum(field.nbytes for field in fields.values()) / ratio)


def plans_by_number(
    fields: Mapping[str, TableField],
    codewords: CodewordsParam | None,
    codewords_dtype: CodewordsDtype | Literal["auto"],
    fast: bool | None = None,
) -> dict[str, FieldPlan]:
    """Return the plan of each field from the codewords asked; a hundredth of the rows by default.

    Raises
    ------
    ParamError
        See `codewords_by_field`.
    """
    numbers = codewords_by_field(fields, DEFAULT_CODEWORDS if codewords is None else codewords)
    dtype = "float32" if codewords_dtype == "auto" else codewords_dtype
    return {
        name: FieldPlan(number, dtype, selected=rows_to_cluster(fields[name], number, fast))
        for name, number in numbers.items()
    }


def allocate(
    engine: Backend,
    source: TableSource,
    weights: WeightSource | None,
    budget: int,
    *,
    codewords_dtype: CodewordsDtype | Literal["auto"] = "auto",
    codes: CodesParam = "auto",
    sensitivity: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: ProgressFunction | None = None,
    kept: Checkpoint | None = None,
) -> Allocation:
    """Return how a budget is split over the fields that have rows, after measuring their curves.

    Parameters
    ----------
    engine : Backend
    source : TableSource
    weights : WeightSource or None
    budget : int
        Counted bytes of all fields.
    codewords_dtype, codes, seed, progress
        As `compress` takes them.
    sensitivity : mapping of field to float, optional
        As `checked_sensitivity` returns it.
    kept : Checkpoint, optional
        Where curves and rounds are kept, and found if they were.

    Raises
    ------
    ParamError
        The budget is out of reach.
    WeightError, NonFiniteRowError
        Of the rows that curves are measured on.
    """
    fields = [field for field in source.fields.values() if field.n_rows]
    scales = sensitivity or {}
    found = None if kept is None else kept.allocation()

    def curves_of(points: Mapping[str, Sequence[Point]]) -> dict[str, FieldCurve]:
        return {
            name: FieldCurve(source.fields[name], tuple(own), scales.get(name, 1.0))
            for name, own in points.items()
        }

    if found is None:
        done, total = 0, len(fields) * (2 if codes == "entropy" else 1)

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(Progress("curves", done, total, "fields"))

        def measured(
            bit_prices: Mapping[str, float], least: Mapping[str, int]
        ) -> dict[str, tuple[Point, ...]]:
            return measure(
                engine, fields, lambda field: coreset(source, weights, field, CORESET_ROWS, seed),
                dtypes=CODEWORDS_DTYPES if codewords_dtype == "auto" else (codewords_dtype,),
                in_levels=codes != "planes", bit_prices=bit_prices, least=least, seed=seed,
                wanted=lambda points: unsettled(curves_of(points), budget), progress=report,
            )  # fmt: skip

        report(0)
        points = measured({}, {})
        bit_prices: dict[str, float] = {}
        if codes == "entropy":
            curves = curves_of(points)
            chosen = choose(curves, budget)
            price = price_of_a_byte(curves, budget) / 8
            if price > 0.0:
                bit_prices = {
                    field.name: min(price / scales.get(field.name, 1.0), GREATEST_BIT_PRICE)
                    for field in fields
                }
                # shorter codes leave bytes for more codewords; the last doubling tells what follows
                least = {
                    name: min(one.codewords, MOST_MEASURED) // 2 for name, one in chosen.items()
                }
                points = measured(bit_prices, least)
        as_json = {name: [asdict(one) for one in own] for name, own in points.items()}
        found = {"curves": as_json, "bit_prices": bit_prices, "rounds": []}
        if kept is not None:
            kept.save_allocation(found)
    kept_points = {name: [Point(**one) for one in own] for name, own in found["curves"].items()}
    allocation = Allocation(
        {
            name: replace(curve, bit_price=found["bit_prices"].get(name, 0.0))
            for name, curve in curves_of(kept_points).items()
        },
        budget,
    )
    for one in found["rounds"]:
        allocation.settled(one)
    return allocation


def checked_sensitivity(
    fields: Mapping[str, TableField], sensitivity: Mapping[str, float] | None, total: int | None
) -> dict[str, float]:
    """Return the sensitivities that were given, as floats.

    Raises
    ------
    ParamError
        One is no positive number of a field, or there are some but no bytes to split.
    """
    if sensitivity and total is None:
        raise ParamError("sensitivity was given, which splits a budget; give budget or ratio too")
    for name, value in (sensitivity or {}).items():
        if name not in fields:
            raise ParamError(
                f'sensitivity names the field "{name}", but the fields are {sorted(fields)}'
            )
        if not (isinstance(value, int | float | np.number) and 0 < value < math.inf):
            raise ParamError(
                f'sensitivity of field "{name}" is {value!r}; give a finite number above 0'
            )
    return {name: float(value) for name, value in (sensitivity or {}).items()}


def plans_of(
    allocation: Allocation, fields: Mapping[str, TableField], fast: bool | None = None
) -> dict[str, FieldPlan]:
    """Return the plan of each field, those without rows included."""
    plans = {name: FieldPlan(1, "float32", whole=False) for name in fields}
    for name, point in allocation.chosen.items():
        if point.dtype == "whole":
            plans[name] = FieldPlan(point.codewords, "float32", whole=True)
        else:
            selected = rows_to_cluster(fields[name], point.codewords, fast)
            plans[name] = FieldPlan(
                point.codewords, point.dtype, whole=False, selected=selected,
                bit_price=allocation.curves[name].bit_price,
            )  # fmt: skip
    return plans


def parse_bytes(text: int | str, what: str = "memory") -> int:
    """Return a number of bytes from an int or from text such as "500MB", "2GB" or "1.5GiB".

    Parameters
    ----------
    text : int or str
    what : str
        The parameter, for messages.

    Raises
    ------
    ParamError
        It is not a positive size.
    """
    number, unit = str(text).strip(), ""
    while number and not number[-1].isdigit():
        unit = number[-1] + unit
        number = number[:-1]
    try:
        size = int(float(number) * BYTE_UNITS[unit.strip().lower()])
    except (ValueError, KeyError, OverflowError) as err:
        raise ParamError(
            f"{what}={text!r} was given; give bytes, or a size such as 500MB, 2GB or 1.5GiB"
        ) from err
    if size < 1:
        raise ParamError(f"{what}={text!r} was given; give at least one byte")
    return size


def finished(run_id: str, out: Path) -> Artifact | None:
    """Return the artifact at `out` if the run of that id has already written it."""
    try:
        artifact = load(out)
    except ArtifactError:
        return None  # missing, or not ours: writing decides what to say of it
    return artifact if artifact.run.get("run_id") == run_id else None


def cluster(run: Pipeline, memory: int | str | None, chunk_rows: int | None) -> list[ResidencySet]:
    """Cluster all fields set by set; return the sets. Where a device is full, sets get smaller."""
    budget = run.backend.memory_budget() if memory is None else parse_bytes(memory)
    done: list[ResidencySet] = []
    full: DeviceMemoryError | None = None
    while names := run.unfinished():
        try:
            sets = plan_sets(
                [run.work(name) for name in names], memory=budget, threads=run.backend.threads,
                chunk_rows=chunk_rows, reads_held=run.backend.reads_held,
            )  # fmt: skip
        except ParamError as err:
            if full is None:
                raise
            raise full from err
        try:
            for planned in sets:
                _log(planned)
                done.append(planned)
                run.cluster(planned)
        except DeviceMemoryError as err:
            budget //= 2
            # without its frames, which hold the memory of the set that did not fit
            full = err.with_traceback(None)
            logger.warning("%s; going on with sets of at most %s bytes", err, f"{budget:,}")
    return done


def _settle(
    run: Pipeline, allocation: Allocation, memory: int | str | None, chunk_rows: int | None
) -> list[ResidencySet]:
    """Cluster fields anew until all are within the budget; return the sets of these rounds."""
    done: list[ResidencySet] = []
    while not allocation.settled(found := {n: _found(run, n) for n in allocation.chosen}):
        run.replan(plans_of(allocation, run.source.fields, run.params.fast))
        logger.info(
            "%s bytes came of a budget of %s; %d fields are clustered anew",
            f"{sum(nbytes for _, nbytes in found.values()):,}", f"{run.params.budget:,}",
            len(run.unfinished()),
        )  # fmt: skip
        if run.checkpoint is not None:
            content = run.checkpoint.allocation()
            run.checkpoint.save_allocation(content | {"rounds": [*content["rounds"], found]})
        done += cluster(run, memory, chunk_rows)
    for name, curve in allocation.curves.items():
        run.records[name]["curve"] = [asdict(point) for point in curve.hull()]
    return done


def _found(run: Pipeline, name: str) -> tuple[int, int]:
    """Return a finished field's number of codewords, or of its rows if kept, and its bytes."""
    stored = run.codebooks.get(name)
    number = run.source.fields[name].n_rows if stored is None else len(stored.values)
    return number, run.counted_bytes(name)


def _log(planned: ResidencySet) -> None:
    logger.info(
        "fields: %d, rows: %s: %s",
        len(planned.fields),
        f"{sum(work.n_rows for work in planned.fields):,}",
        "read once and kept in memory"
        if planned.resident
        else f"larger than the memory, all but {planned.resident_rows:,} read in each pass",
    )


def write(run: Pipeline, out: Path, record: Mapping[str, Any], *, overwrite: bool) -> Artifact:
    """Return the artifact that a finished pipeline's fields make, with the record of its run."""
    encoded = [run.encoded(name) for name in run.source.fields]
    run.progress(Progress("write", 0, len(encoded), "fields"))
    artifact = write_artifact(
        out, encoded, parameters=run.params.manifest(), run=record, overwrite=overwrite
    )
    run.progress(Progress("write", len(encoded), len(encoded), "fields"))
    return artifact


def run_record(
    run: Pipeline,
    begun: float,
    sets: Sequence[ResidencySet],
    chunk_rows: int | None,
    memory: int | str | None,
) -> dict[str, Any]:
    """Return what is worth knowing of a run and outside the promise."""
    rows = {name: run.source.fields[name].n_rows for name in run.rechecked}
    return {
        "run_id": None if run.checkpoint is None else run.checkpoint.run_id,
        "backend": run.backend.name,
        "threads": run.backend.threads,
        "chunk_rows": chunk_rows,
        "memory": memory,
        "residency_sets": [
            {
                "fields": len(s.fields),
                "resident": s.resident,
                "resident_rows": s.resident_rows,
                "read_rows": s.read_rows,
            }
            for s in sets
        ],
        "source": run.source.path,
        "seconds": {**run.seconds, "total": time.time() - begun},
        "rechecked_rows": run.rechecked,
        "rechecked_share": {
            name: sum(found) / (rows[name] * len(found)) for name, found in run.rechecked.items()
        },
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
        "versions": {
            "saec_gpu": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
