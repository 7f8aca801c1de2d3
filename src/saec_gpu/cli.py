"""The `saec` command."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import numpy as np
import typer
from typer.core import TyperCommand

from saec_gpu import console, printing
from saec_gpu.errors import MissingExtraError, ParamError, SaecError
from saec_gpu.version import __version__

EXIT_ERROR = 1
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
EXIT_PIPE_CLOSED = 128 + 13  # and SIGPIPE
LOOKUP_BLOCK_ROWS = 4096

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: examples stay on their lines, and it starts faster
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "\b\n"
        "Exit status:\n"
        "  0    done\n"
        "  1    an error in words, or something is not as it should be\n"
        "  2    wrong usage\n"
        "  130  interrupted; with --checkpoint the same command continues\n"
        "\n\n"
        "\b\n"
        "With --json, standard output is one JSON document: the result, or\n"
        '{"error": {"type": ..., "message": ...}} with status 1 or 130.'
    ),
)

Function = TypeVar("Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    """A command that ends in words and an exit status, whatever stops it."""

    def invoke(self, ctx: Any) -> Any:
        as_json = ctx.params.get("as_json", False)
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()  # here, where a closed pipe can be caught
        except BrokenPipeError:
            # Who reads has enough, as `head`. What is still to be flushed must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_PIPE_CLOSED) from None
        except KeyboardInterrupt:
            message = "interrupted"
            if ctx.params.get("checkpoint") is not None:
                message += f'; the same command continues from "{ctx.params["checkpoint"]}"'
            elif "checkpoint" in ctx.params:
                message += "; with --checkpoint FOLDER the same command would continue"
            _fail("Interrupted", message, EXIT_INTERRUPTED, as_json=as_json)
        except SaecError as err:
            _fail(type(err).__name__, str(err), EXIT_ERROR, as_json=as_json)
        except OSError as err:
            message = err.strerror or str(err)
            message += "" if err.filename is None else f': "{err.filename}"'
            _fail("OSError", message, EXIT_ERROR, as_json=as_json)
        except MemoryError as err:
            message = f"the memory is not enough ({err or 'MemoryError'})"
            _fail("MemoryError", message, EXIT_ERROR, as_json=as_json)


def _fail(kind: str, message: str, status: int, *, as_json: bool) -> NoReturn:
    if as_json:
        console.print_json({"error": {"type": kind, "message": message}})
        sys.stdout.flush()
    else:
        console.complain(f"saec: {message}")
    raise typer.Exit(status)


def _command(*examples: str, **settings: Any) -> Callable[[Function], Function]:
    """Return a decorator that makes a function a command; its help ends with the examples."""
    lines = "".join(f"\n  saec {example}" for example in examples)
    return app.command(
        cls=_Command, epilog=f"\b\nExamples:{lines}", context_settings=settings or None
    )


def _print_version(asked: bool) -> None:
    if asked:
        print(f"saec {__version__}")
        raise typer.Exit


@app.callback()
def _saec(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version."),
    ] = False,
) -> None:
    """Compress embedding tables: a codebook per field and a code per row, the same bits everywhere.

    Begin with `saec demo`; `saec COMMAND --help` shows examples.
    """


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Tables: .safetensors (also sharded), .npy, .npz, .fbin, .f16bin, .pt, .parquet, or a "
        "folder of .npy, .safetensors or .parquet.",
    ),
]
Artifact_ = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact, a folder *.saec.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="How often each row is looked up: the same formats, one vector a field.",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Take the fields that match, such as 'embedding.*' (repeatable)."
    ),
]
Codewords = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[FIELD=]NUMBER",
        help="Codewords per field: 256, or a fraction of the rows such as 0.01, which is the "
        "default; with FIELD= for one field (repeatable).",
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option(
        help="Instead of --codewords: how many times smaller all tables together shall be, counted "
        "bytes. They are split over the fields so that the weighted error is least."
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="The same as a size, such as 161MB."),
]
Sensitivity = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=NUMBER",
        help="How much an error of this field matters beside others when bytes are split; 1 if not "
        "given (repeatable).",
    ),
]
CodewordsDtype = Annotated[
    Literal["auto", "float32", "float16", "int8"],
    typer.Option(
        help="How codewords are stored: int8 takes a scale a codeword, and leaves room for more "
        "codewords in the same bytes. auto: --ratio and --budget choose for each field, float32 "
        "without them."
    ),
]
Fast = Annotated[
    bool | None,
    typer.Option(
        "--fast/--full",
        help="Cluster a sample of 64 rows a codeword, drawn by weight, or all rows; where that is "
        "less than a quarter of a field if not given. Every row is encoded in any case.",
    ),
]
Backend = Annotated[
    Literal["auto", "cpu", "cupy", "numba"],
    typer.Option(
        help="Where to compute: cupy and numba on an NVIDIA GPU; auto takes cupy if it can. All "
        "give the same bytes; `saec doctor` tells what can run here."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Cores to use; all if not given.")]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory for rows and work, such as 500MB or 2GiB; half of what is free if not "
        "given. Larger tables are read again in each pass.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Folder from which the same command continues after a kill or Ctrl-C."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an artifact at --out, in one step.")
]
Tolerance = Annotated[
    float,
    typer.Option(
        min=0,
        help="Stop a field when its codewords moved by at most this share of the mean variance of "
        "a column.",
    ),
]
ChunkRows = Annotated[
    int | None, typer.Option(min=1, help="Rows of one read; chosen if not given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


@_command("demo", "demo --rows 2000000 --ratio 40 --out demo.saec")
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
    _exit_unless(found.ok)


@_command(
    "compress model.safetensors --ratio 27.7 --out model.saec",
    "compress model.safetensors --weights counts.safetensors --codewords 0.01 --out model.saec",
    "compress tables/ --codewords 256 --codewords item=4096 --out tables.saec",
    "compress model.pt --fields 'embedding.*' --memory 8GB --checkpoint work/ --out model.saec",
)
def compress(
    source: Source,
    out: Annotated[Path, typer.Option(help="Artifact to write, customarily NAME.saec.")],
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
    max_iter: Annotated[int, typer.Option(min=1, help="Most passes of the fit.")] = 25,
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

    asked, scales = _asked_codewords(codewords, ratio, budget), _scales(sensitivity)
    tables = open_tables(source, fields=fields)
    begun = time.perf_counter()
    with console.ProgressDisplay(quiet=as_json) as progress:
        artifact = run(
            tables, weights=weights, codewords=_by_field(asked, tables.fields), ratio=ratio,
            budget=budget, sensitivity=scales, codewords_dtype=codewords_dtype,
            codes=codes, out=out, backend=backend, seed=seed, max_iter=max_iter, tol=tol, fast=fast,
            chunk_rows=chunk_rows, memory=memory, threads=threads, checkpoint=checkpoint,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if as_json:
        console.print_json(printing.artifact_json(artifact))
    else:
        printing.print_artifact(artifact)
        printing.print_sizes(artifact, time.perf_counter() - begun)


def _scales(options: Sequence[str] | None) -> dict[str, float] | None:
    """Return the numbers of --sensitivity by field, None without any."""
    scales = {}
    for text in options or []:
        field, _, number = text.rpartition("=")
        try:
            scales[field] = float(number)
        except ValueError as err:
            raise typer.BadParameter(
                f"{text!r}: give FIELD=number", param_hint="--sensitivity"
            ) from err
    return scales or None


def _asked_codewords(
    options: Sequence[str] | None, ratio: float | None, budget: str | None
) -> dict[str | None, int | float]:
    """Return the numbers of --codewords by field; that for all others stands under None."""
    if bool(options) + (ratio is not None) + (budget is not None) > 1:
        raise typer.BadParameter(
            "each decides the number of codewords; give one of them",
            param_hint=["--codewords", "--ratio", "--budget"],
        )
    asked: dict[str | None, int | float] = {}
    for text in options or []:
        field, equals, number = text.rpartition("=")
        try:
            asked[field if equals else None] = int(number) if number.isdigit() else float(number)
        except ValueError as err:
            raise typer.BadParameter(
                f"{text!r}: give a whole number, a fraction such as 0.01, or FIELD=number",
                param_hint="--codewords",
            ) from err
    return asked


def _by_field(asked: Mapping[str | None, int | float], fields: Iterable[str]) -> Any:
    """Return what `compress` shall be given: a number for all fields, or one for each."""
    names = list(fields)
    unknown = [name for name in asked if name is not None and name not in names]
    if unknown:
        raise ParamError(
            f'--codewords names the field "{unknown[0]}", but the fields are {", ".join(names)}'
        )
    default = asked.get(None)
    if not asked or list(asked) == [None]:
        return default
    missing = [name for name in names if name not in asked]
    if default is None and missing:
        raise ParamError(
            f"--codewords names some fields, but not {', '.join(missing)}; name them too, or add "
            "--codewords NUMBER for all others"
        )
    return {name: asked.get(name, default) for name in names}


@_command(
    "update last.saec model.safetensors --weights counts.safetensors --out now.saec",
    "update served.saec model.safetensors --out now.saec --delta now.delta",
)
def update(
    last: Annotated[
        Path, typer.Argument(metavar="LAST", help="The artifact of the last hour, a folder *.saec.")
    ],
    source: Source,
    out: Annotated[Path, typer.Option(help="Artifact to write, customarily NAME.saec.")],
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
    ] = 0.3,
    checkpoint: Checkpoint = None,
    overwrite: Overwrite = False,
    memory: Memory = None,
    threads: Threads = None,
    backend: Backend = "auto",
    max_iter: Annotated[int, typer.Option(min=1, help="Most passes of the fit.")] = 2,
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


@_command("delta last.saec now.saec --out now.delta")
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


@_command("apply served.saec now.delta", "apply last.saec now.delta --out now.saec")
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


@_command(
    "inspect model.safetensors",
    "inspect model.safetensors --weights counts.safetensors --ratio 27.7",
    "inspect model.saec",
)
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Tables as for `saec compress`, or an artifact.")
    ],
    weights: Weights = None,
    ratio: Ratio = None,
    budget: Budget = None,
    sensitivity: Sensitivity = None,
    codewords: Codewords = None,
    codewords_dtype: CodewordsDtype = "auto",
    fields: Fields = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """List what SOURCE holds, and what compressing it would take.

    Fields with rows, dims and bytes; with --weights also how the lookups are spread; bytes and
    memory for the codewords asked. Reads no rows, but for --ratio and --budget samples of them. Of
    an artifact: fields, bits of codes, sizes and errors.
    """
    from saec_gpu.backends import open_backend
    from saec_gpu.compression import (
        allocate,
        asked_bytes,
        checked_sensitivity,
        plans_by_number,
        plans_of,
    )
    from saec_gpu.inspection import as_json as inspection_json
    from saec_gpu.inspection import inspect_tables
    from saec_gpu.sources import open_tables, open_weights

    if (Path(source) / "manifest.json").exists():
        if weights or ratio or budget or sensitivity or codewords or fields:
            raise typer.BadParameter("an artifact is shown as it is; these options are for tables")
        _inspect_artifact(source, as_json=as_json)
        return
    asked, scales = _asked_codewords(codewords, ratio, budget), _scales(sensitivity)
    tables = open_tables(source, fields=fields)
    vectors = None if weights is None else open_weights(weights, tables)
    numbers = _by_field(asked, tables.fields)
    total = asked_bytes(tables.fields, numbers, ratio, budget)
    scales = checked_sensitivity(tables.fields, scales, total)
    engine = open_backend("cpu", threads=threads)
    with console.ProgressDisplay(quiet=as_json) as progress:
        if total is None:
            plans, estimates = plans_by_number(tables.fields, numbers, codewords_dtype), None
        else:
            allocation = allocate(
                engine, tables, vectors, total, codewords_dtype=codewords_dtype,
                sensitivity=scales, progress=progress,
            )  # fmt: skip
            plans = plans_of(allocation, tables.fields)
            estimates = {name: point.nbytes for name, point in allocation.chosen.items()}
        found = inspect_tables(tables, vectors, plans, estimates=estimates, threads=engine.threads)
    if as_json:
        console.print_json({**inspection_json(found), "skipped": dict(tables.skipped)})
        return
    columns = ["field", "dtype", "rows", "dim", "bytes", "codewords", "after"]
    if vectors is not None:
        columns += ["lookups", "most for a row", "rows with half", "rows never seen"]
    lines = []
    for one in found.fields:
        line = [
            one.table.name, one.table.dtype, console.human_number(one.table.n_rows), one.table.dim,
            console.human_bytes(one.table.nbytes), console.human_number(one.codewords),
            console.human_bytes(one.bytes_after),
        ]  # fmt: skip
        if vectors is not None:
            w = one.weights
            about = () if w is None else (w.total, w.largest, w.head_rows, w.unseen)
            line += [console.human_number(number) for number in about] or ["–"] * 4
        lines.append(line)
    console.print_table(columns, lines, left=2)
    for name, why in tables.skipped.items():
        print(f"no table: {name} {why}")
    print(
        f"{console.human_bytes(found.bytes_before)} → {console.human_bytes(found.bytes_after)}"
        f"{' at most' if total is None else ', about'}, "
        f"{found.bytes_before / found.bytes_after:.2f} times smaller"
    )
    print(
        f"memory: {console.human_bytes(found.memory_once)} to read every row once, "
        f"{console.human_bytes(found.memory_least)} at least"
    )


def _inspect_artifact(path: str, *, as_json: bool) -> None:
    from saec_gpu.artifact import load

    artifact = load(path)
    if as_json:
        console.print_json(printing.artifact_json(artifact))
    else:
        printing.print_artifact(artifact)
        printing.print_sizes(artifact)


@_command(
    "verify model.saec",
    "verify model.saec model.safetensors",
    "verify model.saec model.safetensors --weights counts.safetensors",
)
def verify(
    artifact: Artifact_,
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="The tables it was made from."),
    ] = None,
    weights: Weights = None,
    memory: Memory = None,
    threads: Threads = None,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Check an artifact against its tables, to the last bit.

    The SHA-256 of its files, every code and every error. Without SOURCE the files alone; without
    --weights not the weighted errors. The exit status is 1 where anything differs, be it by a bit.
    """
    from saec_gpu.artifact import load
    from saec_gpu.verification import verify as check

    if source is None and weights is not None:
        raise typer.BadParameter("weights are checked with the tables; give SOURCE too")
    loaded = load(artifact)
    if source is None:
        loaded.check_files()
        if as_json:
            console.print_json({"ok": True, "problems": [], "notes": [], "fields": []})
        else:
            print(f"{artifact}: no file was altered (give its tables to check codes and errors)")
        return
    with console.ProgressDisplay(quiet=as_json, stages=console.VERIFY_STAGES) as progress:
        found = check(
            loaded, source, weights=weights, backend=backend, threads=threads, memory=memory,
            progress=progress,
        )  # fmt: skip
    if as_json:
        fields = [vars(field) | {"ok": field.ok} for field in found.fields]
        console.print_json(
            {"ok": found.ok, "problems": found.problems, "notes": found.notes, "fields": fields}
        )
    else:
        printing.print_verification(found)
    _exit_unless(found.ok)


def _exit_unless(ok: bool) -> None:
    if not ok:
        raise typer.Exit(EXIT_ERROR)


@_command(
    "report model.saec",
    "report model.saec model.safetensors --weights counts.safetensors --out model.html",
)
def report(
    artifact: Artifact_,
    source: Annotated[
        str | None,
        typer.Argument(metavar="TABLES", help="The tables it was made from."),
    ] = None,
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Page to write; replaced if it is there.")] = Path(
        "report.html"
    ),
    as_json: Json = False,
) -> None:
    """Write what there is to know of an artifact as one page of HTML.

    Bytes by field, how evenly codewords are used, seconds, rows rechecked; under a byte budget the
    curves it was shared out along. With TABLES and --weights also the error of rows by how often
    they are looked up, for which all rows are read. The page needs no network. Needs the extra
    report.
    """
    from saec_gpu.artifact import load
    from saec_gpu.report.page import check_installed, page
    from saec_gpu.report.sections import report_data

    if (source is None) != (weights is None):
        raise typer.BadParameter("the error by frequency needs both TABLES and --weights")
    check_installed()
    loaded = load(artifact)
    with console.ProgressDisplay(quiet=as_json, stages=console.REPORT_STAGES) as progress:
        data = report_data(loaded, source, weights, progress=progress)
    html = page(data)
    out.write_text(html, encoding="utf-8")
    if as_json:
        console.print_json({"out": str(out), **data})
    else:
        size = console.human_bytes(len(html.encode()))
        print(f"{out}: {console.counted(len(loaded), 'field')}, {size}; open it in a browser")


@_command(
    "lookup model.saec item 0 17 100:110",
    "lookup model.saec item 0:1000000 --out vectors.npy",
    ignore_unknown_options=True,  # so that -1 is a row, and an error that says so
)
def lookup(
    artifact: Artifact_,
    field: Annotated[str, typer.Argument(metavar="FIELD", help="Name of a field.")],
    rows: Annotated[
        list[str],
        typer.Argument(metavar="ROWS", help="Row numbers from 0, or ranges such as 100:110."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the vectors to this .npy file instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the codes of rows, and the vectors that stand for them."""
    from saec_gpu.artifact import load

    ranges = [_row_range(text) for text in rows]
    found = load(artifact)[field]
    found.codes_of([end for one in ranges for end in (one.start, one.stop - 1)])  # all are there
    numbers = np.concatenate([np.arange(one.start, one.stop) for one in ranges])
    if out is not None:
        with out.open("wb") as file:
            np.save(file, found.lookup(numbers))
        if not as_json:
            print(f"{len(numbers):,} vectors of dim {found.dim} are in {out}")
            return
    if as_json:
        result = {
            "field": field,
            "rows": numbers.tolist(),
            "codes": found.codes_of(numbers).tolist(),
        }
        kept = {"vectors": found.lookup(numbers).tolist()} if out is None else {"out": str(out)}
        console.print_json(result | kept)
        return
    for first in range(0, len(numbers), LOOKUP_BLOCK_ROWS):
        block = numbers[first : first + LOOKUP_BLOCK_ROWS]
        for number, code, vector in zip(
            block, found.codes_of(block), found.lookup(block), strict=True
        ):
            # The shortest text that is this float32 and no other.
            print(f"row {number} code {code}: {' '.join(map(str, vector))}")


def _row_range(text: str) -> range:
    first, colon, last = text.partition(":")
    try:
        found = range(int(first), int(last) if colon else int(first) + 1)
    except ValueError:
        found = range(0)
    if not found:
        hint = "an option unknown here" if text.startswith("-") else "no row number"
        raise typer.BadParameter(
            f"{text!r} is {hint}; give rows as 17, or as 100:110 without the last",
            param_hint="ROWS",
        )
    return found


@_command(
    "bench --list",
    "bench --case plain --size 0.1",
    "bench --case fields26-d16 --peers faiss,sklearn --threads 8 --append records.jsonl",
)
def bench(
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Case to run (repeatable); the first of --list if none."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Libraries to run beside, such as faiss,sklearn,fastkmeans; those installed if "
            "not given, saec for none.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores of each contestant.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Passes over the rows.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    size: Annotated[float, typer.Option(help="Share of the case's rows, in (0, 1].")] = 1.0,
    weighted: Annotated[
        bool, typer.Option(help="Rows weigh as often as they are looked up.")
    ] = False,
    append: Annotated[
        Path | None, typer.Option(help="File of JSON lines that the records are added to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time k-means beside other libraries.

    On the same rows, from the same codewords. Each result is checked before it is timed. One thread
    is compared by CPU time, several by wall time; contestants take turns, so only times of one
    table compare.
    """
    from saec_gpu.bench.cases import cases, find_case
    from saec_gpu.bench.records import append_record
    from saec_gpu.bench.run import run_case

    if show:
        if as_json:
            console.print_json([{"name": name, "line": line} for name, line in cases()])
        else:
            console.print_table(("case", "what"), cases(), left=2)
        return
    asked = [find_case(name) for name in case or [cases()[0][0]]]
    beside = _installed_peers() if peers is None else [name for name in peers.split(",") if name]
    records = []
    for one in asked:
        record = run_case(
            one, peers=beside, iterations=iterations, repeats=repeats, threads=threads,
            weighted=weighted, size=size, progress=None if as_json else console.note,
        )  # fmt: skip
        records.append(record)
        if append is not None:
            append_record(append, record)
        if not as_json:
            _print_record(record)
    if as_json:
        console.print_json(records)


def _installed_peers() -> list[str]:
    from saec_gpu.bench.peers import PEERS, find_contestant

    found = []
    for name in PEERS:
        try:
            find_contestant(name)
        except MissingExtraError as err:
            console.note(f"without {name}: {err}")
        else:
            found.append(name)
    return found


def _print_record(record: Mapping[str, Any]) -> None:
    clock = record["compared_by"].removesuffix("_seconds")

    def text(value: float | None, style: str) -> str:
        return "–" if value is None else format(value, style)

    rows = []
    for name, entry in record["contestants"].items():
        seconds = (entry["seconds"] or {}).get(clock)
        share = entry["check"]
        rows.append(
            (
                name,
                "wrong, not timed" if seconds is None else f"{seconds['p50']:.3f}",
                "–" if seconds is None else f"{seconds['p20']:.3f}–{seconds['p80']:.3f}",
                text(entry["gflops"], ".1f"),
                text(entry["share_of_fma_peak"], ".1%"),
                text(entry["speed_relative_to_faiss"], ".2f"),
                text(entry["rechecked_share"], ".3%"),
                text(share["inertia"], ".7g"),
            )
        )
    print(
        f"{record['case']}: {record['n_rows']:,} rows of {record['dim']} in "
        f"{console.counted(record['n_fields'], 'field')}, {record['n_codewords']:,} codewords, "
        f"{console.counted(record['iterations'], 'pass')}, "
        f"{console.counted(record['threads'], 'thread')}{', weighted' * record['weighted']}"
    )
    columns = (
        "contestant", f"{clock} s", "20–80 %", "GFLOP/s", "of FMA peak", "× faiss", "rechecked",
        "inertia",
    )  # fmt: skip
    console.print_table(columns, rows)


@_command("doctor", "doctor --warm")
def doctor(
    warm: Annotated[
        bool, typer.Option("--warm", help="Compile every kernel now, so that no run waits for it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what this machine can run, and what is missing."""
    from saec_gpu.doctor import examine

    findings = examine(warm=warm)
    if as_json:
        console.print_json([vars(finding) for finding in findings])
    else:
        rows = [(f.what, f.state if f.ok else f"NOT WELL: {f.state}", f.advice) for f in findings]
        console.print_table(("what", "how it is", "to do"), rows, left=3)
    _exit_unless(all(finding.ok for finding in findings))


def main() -> None:
    """Run the command that the arguments name."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a field's name may have letters that a terminal lacks
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="saec")
