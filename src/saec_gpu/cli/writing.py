"""Commands that write artifacts: demo, compress, update, delta, apply."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from saec_gpu import console, printing
from saec_gpu.cli.command import command, exit_unless
from saec_gpu.cli.options import (
    Artifact_,
    Backend,
    Budget,
    Checkpoint,
    ChunkRows,
    Codewords,
    CodewordsDtype,
    Fast,
    Fields,
    Json,
    MaxIter,
    Memory,
    Out,
    Overwrite,
    Ratio,
    Sensitivity,
    Source,
    Threads,
    Tolerance,
    Weights,
    asked_codewords,
    by_field,
    sensitivities,
)


@command("demo", "demo --rows 2000000 --ratio 40 --out demo.saec")
def demo(
    rows: Annotated[int, typer.Option(min=1, help="Rows of all 26 fields together.")] = 200_000,
    ratio: Annotated[float, typer.Option(help="How many times smaller, counted bytes.")] = 27.7,
    out: Annotated[Path | None, typer.Option(help="Keep the artifact here.")] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make tables, compress them, verify the result.

    The tables have the proportions of the Criteo data set and Zipf frequencies. Needs no input and
    no GPU. The first run also compiles the kernels, once a machine.
    """
    from saec_gpu.compression import compress as run
    from saec_gpu.synthetic import recommender_tables
    from saec_gpu.verification import verify as check

    tables, counts = recommender_tables(rows, 26, 16, seed=0)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="saec-demo-") as scratch:
        place = out or Path(scratch) / "demo.saec"
        with console.ProgressDisplay(quiet=as_json) as progress:
            artifact = run(
                tables, weights=counts, ratio=ratio, out=place, backend=backend, threads=threads,
                progress=progress,
            )  # fmt: skip
            seconds = time.perf_counter() - begun
        found = check(artifact, tables, weights=counts, backend=backend, threads=threads)
        if as_json:
            console.print_json(
                {**printing.artifact_json(artifact), "seconds": seconds, "verified": found.ok}
            )
        else:
            printing.print_artifact(artifact)
            printing.print_sizes(artifact, seconds)
            printing.print_verification(found)
            if out is not None:
                print(f"kept in {out}")
    exit_unless(found.ok)


@command(
    "compress model.safetensors --ratio 27.7 --out model.saec",
    "compress model.safetensors --weights counts.safetensors --codewords 0.01 --out model.saec",
    "compress tables/ --codewords 256 --codewords item=4096 --out tables.saec",
    "compress model.pt --fields 'embedding.*' --memory 8GB --checkpoint work/ --out model.saec",
)
def compress(
    source: Source,
    out: Out,
    weights: Weights = None,
    ratio: Ratio = None,
    budget: Budget = None,
    sensitivity: Sensitivity = None,
    codewords: Codewords = None,
    codewords_dtype: CodewordsDtype = "auto",
    codes: Annotated[
        Literal["auto", "planes", "entropy"],
        typer.Option(
            help="How codes are stored: planes in ceil(log2 codewords) bits, from which rows are "
            "looked up fastest; auto in fewer bits where codewords serve unequal numbers of rows; "
            "entropy, with a budget, so that rows of little weight take the shortest codes."
        ),
    ] = "auto",
    fields: Fields = None,
    checkpoint: Checkpoint = None,
    overwrite: Overwrite = False,
    memory: Memory = None,
    threads: Threads = None,
    backend: Backend = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Keys every random draw.")] = 0,
    max_iter: MaxIter = 25,
    tol: Tolerance = 1e-4,
    fast: Fast = None,
    chunk_rows: ChunkRows = None,
    as_json: Json = False,
) -> None:
    """Compress the embedding tables of SOURCE into an artifact.

    The same rows, weights, codewords and their dtype, codes, seed, passes and tolerance give the
    same bytes, whatever the format, memory, threads and backend. An error, a kill or a full disk
    leaves what was at --out as it was.
    """
    from saec_gpu.compression import compress as run
    from saec_gpu.sources import open_tables

    asked, scales = asked_codewords(codewords, ratio, budget), sensitivities(sensitivity)
    tables = open_tables(source, fields=fields)
    begun = time.perf_counter()
    with console.ProgressDisplay(quiet=as_json) as progress:
        artifact = run(
            tables, weights=weights, codewords=by_field(asked, tables.fields), ratio=ratio,
            budget=budget, sensitivity=scales, codewords_dtype=codewords_dtype,
            codes=codes, out=out, backend=backend, seed=seed, max_iter=max_iter, tol=tol, fast=fast,
            chunk_rows=chunk_rows, memory=memory, threads=threads, checkpoint=checkpoint,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    printing.show_artifact(artifact, time.perf_counter() - begun, as_json=as_json)


@command(
    "update last.saec model.safetensors --weights counts.safetensors --out now.saec",
    "update served.saec model.safetensors --out now.saec --delta now.delta",
)
def update(
    last: Annotated[
        Path, typer.Argument(metavar="LAST", help="The artifact of the last hour, a folder *.saec.")
    ],
    source: Source,
    out: Out,
    weights: Weights = None,
    previous_rows: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Where rows have other numbers now: the number that each had, -1 for a new one; "
            "the same formats, one vector a field.",
        ),
    ] = None,
    delta: Annotated[
        Path | None,
        typer.Option(help="Also write here what changed, for `saec apply` where LAST is served."),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            min=0,
            help="A row keeps its code while its squared distance is at most 1 + this times the "
            "least one.",
        ),
    ] = 0.25,
    checkpoint: Checkpoint = None,
    overwrite: Overwrite = False,
    memory: Memory = None,
    threads: Threads = None,
    backend: Backend = "auto",
    max_iter: Annotated[
        int,
        typer.Option(min=0, help="Most passes of Lloyd's iterations after the codewords moved."),
    ] = 0,
    tol: Tolerance = 1e-4,
    chunk_rows: ChunkRows = None,
    as_json: Json = False,
) -> None:
    """Bring an artifact up to the tables of now, with as few other codes as need be.

    Rows may have been added, removed and changed. Codewords go on from those of LAST and keep their
    numbers; a field that has grown gets more. Shown are churn, the share of rows whose code
    changed; drift, the mean squared distance of a row relative to the last one; staleness, the
    error of serving LAST on, relative to the new one.
    """
    from saec_gpu.artifact import load
    from saec_gpu.delta import write_delta
    from saec_gpu.updating import update as run

    before = load(last)
    begun = time.perf_counter()
    with console.ProgressDisplay(quiet=as_json) as progress:
        artifact = run(
            before, source, weights=weights, previous_rows=previous_rows, out=out, margin=margin,
            max_iter=max_iter, tol=tol, backend=backend, chunk_rows=chunk_rows, memory=memory,
            threads=threads, checkpoint=checkpoint, overwrite=overwrite, progress=progress,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
    delta_bytes = None
    if delta is not None:
        delta_bytes = write_delta(before, artifact, delta).stat().st_size
    if as_json:
        console.print_json(printing.artifact_json(artifact) | {"delta_bytes": delta_bytes})
        return
    printing.print_changes(artifact)
    printing.print_sizes(artifact, seconds)
    if delta_bytes is not None:
        print(f"what changed is in {delta}: {console.human_bytes(delta_bytes)}")


@command("delta last.saec now.saec --out now.delta")
def delta(
    last: Annotated[Path, typer.Argument(metavar="LAST", help="The artifact that is served.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The one to be served.")],
    out: Annotated[Path, typer.Option(help="File to write; replaced if it is there.")],
    as_json: Json = False,
) -> None:
    """Write what changed from one artifact to another, in one file for `saec apply`."""
    from saec_gpu.artifact import load
    from saec_gpu.delta import write_delta

    now = load(new)
    size = write_delta(load(last), now, out).stat().st_size
    if as_json:
        console.print_json({"out": str(out), "bytes": size, "artifact_bytes": now.disk_bytes})
    else:
        whole = console.human_bytes(now.disk_bytes)
        print(f"{out}: {console.human_bytes(size)}; the new artifact has {whole}")


@command("apply served.saec now.delta", "apply last.saec now.delta --out now.saec")
def apply(
    artifact: Artifact_,
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="File of `saec delta`.")],
    out: Annotated[
        Path | None, typer.Option(help="Artifact to write; ARTIFACT is replaced if not given.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make the new artifact of the last one and a delta, byte for byte, in one step.

    Every file is held against its SHA-256 before it is put in place. A delta that was applied
    already changes nothing.
    """
    from saec_gpu.delta import apply_delta

    made = apply_delta(artifact, delta, out, overwrite=overwrite)
    if as_json:
        console.print_json(printing.artifact_json(made))
    else:
        print(f"{made.path}: {made.manifest['sha256'][:12]}…, every file as it should be")
