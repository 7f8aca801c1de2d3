"""The `saec` command."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from saec_gpu import console
from saec_gpu.errors import ParamError, SaecError

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Compress embedding tables: a codebook per field and a code per row, the same bits everywhere.",
    epilog="Exit status: 0 done, 1 an error in words, 2 wrong usage, 130 interrupted.",
)

Source = Annotated[
    str,
    typer.Argument(
        help="Tables: .safetensors (also sharded), .npy, .npz, .fbin, .pt, .parquet, or a folder of one "
        "file a field."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="How often each row is looked up: the same formats, one vector a field."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Backend = Annotated[Literal["auto", "cpu"], typer.Option(help="Where to compute.")]
Threads = Annotated[int | None, typer.Option(help="Cores to use; all if not given.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Most memory for rows and work, such as 500MB or 2GB; half of what is free."),
]
ChunkRows = Annotated[int | None, typer.Option(help="Rows of one read; chosen if not given.")]
Fields = Annotated[
    list[str] | None, typer.Option(help="Take only fields that match, such as 'embedding.*'.")
]
Codewords = Annotated[
    list[str] | None,
    typer.Option(
        help="Codewords per field: 256, or a fraction of the rows such as 0.01, or FIELD=256 to set "
        "one field (repeat the option)."
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option(help="How many times smaller, counted bytes; instead of --codewords."),
]


@app.command()
def compress(
    source: Source,
    out: Annotated[Path, typer.Option(help="Artifact to write, customarily NAME.saec.")],
    weights: Weights = None,
    ratio: Ratio = None,
    codewords: Codewords = None,
    seed: Annotated[int, typer.Option(help="Keys every random draw.")] = 0,
    max_iter: Annotated[int, typer.Option(help="Most passes of the fit.")] = 25,
    tol: Annotated[float, typer.Option(help="Stop a field when its codewords move less.")] = 1e-4,
    backend: Backend = "auto",
    chunk_rows: ChunkRows = None,
    memory: Memory = None,
    threads: Threads = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder from which the same command continues after a kill.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an artifact at --out.")] = False,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """Compress the embedding tables of SOURCE into an artifact.

    `saec compress model.safetensors --weights counts.safetensors --ratio 27.7 --out model.saec`
    """
    from saec_gpu.compression import compress as run
    from saec_gpu.sources import open_tables

    tables = open_tables(source, fields=fields)
    begun = time.perf_counter()
    with console.ProgressDisplay(quiet=as_json) as progress:
        artifact = run(
            tables, weights=weights, codewords=_codewords(codewords, tables.fields), ratio=ratio,
            out=out, backend=backend, seed=seed, max_iter=max_iter, tol=tol, chunk_rows=chunk_rows,
            memory=memory, threads=threads, checkpoint=checkpoint, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    if as_json:
        console.print_json(_summary(artifact))
    else:
        _print_artifact(artifact, time.perf_counter() - begun)


def _codewords(options: list[str] | None, fields: Any) -> Any:
    """Return what --codewords says: a number, a fraction, or one of both for each field."""
    default: int | float | None = None
    by_field: dict[str, int | float] = {}
    for text in options or []:
        name, equals, number = text.rpartition("=")
        try:
            value: int | float = int(number) if number.isdigit() else float(number)
        except ValueError as err:
            raise ParamError(
                f"--codewords {text} was given; give a whole number, a fraction or FIELD=number"
            ) from err
        if not equals:
            default = value
        elif name in fields:
            by_field[name] = value
        else:
            raise ParamError(
                f'--codewords {text}: no field "{name}"; the fields are {list(fields)}'
            )
    if not by_field:
        return default
    if default is None and len(by_field) < len(fields):
        raise ParamError(
            "--codewords names some fields only; add --codewords NUMBER for the others"
        )
    return {name: by_field.get(name, default) for name in fields}


def _summary(artifact: Any) -> dict[str, Any]:
    return {
        "artifact": str(artifact.path),
        "fields": len(artifact),
        "table_bytes": artifact.table_bytes,
        "counted_bytes": artifact.counted_bytes,
        "disk_bytes": artifact.disk_bytes,
        "ratio": artifact.ratio,
        "run": artifact.run,
    }


def _print_artifact(artifact: Any, seconds: float) -> None:
    rows = []
    for entry in artifact.manifest["fields"]:
        one = entry["name"]
        field = artifact[one]
        after = entry["codebook_bytes"] + entry["code_bytes"]
        rows.append(
            (
                one,
                f"{field.n_rows:,}",
                field.dim,
                f"{field.n_codewords:,}",
                "whole" if field.encoding == "identity" else f"{entry['bits']} bits",
                entry.get("iterations", 0),
                console.human_bytes(entry["table_bytes"]),
                console.human_bytes(after),
                f"{entry.get('sse', 0.0):.4g}",
            )  # fmt: skip
        )
    columns = ("field", "rows", "dim", "codewords", "codes", "passes", "before", "after", "error")
    console.print_table(str(artifact.path), columns, rows)
    shares = artifact.run.get("rechecked_share", {}).values()
    rechecked = (
        f"{100 * max(shares):.3g} % of rows rechecked at most" if shares else "nothing to recheck"
    )
    console.out.print(
        f"{console.human_bytes(artifact.table_bytes)} → {console.human_bytes(artifact.counted_bytes)} "
        f"({artifact.ratio:.2f}× smaller; {console.human_bytes(artifact.disk_bytes)} on disk) in "
        f"{seconds:.1f} s on {artifact.run.get('backend', 'cpu')}, {rechecked}",
        highlight=False,
    )


@app.command()
def demo(
    rows: Annotated[int, typer.Option(help="Rows of all fields together.")] = 200_000,
    ratio: Annotated[float, typer.Option(help="How many times smaller.")] = 27.7,
    out: Annotated[Path | None, typer.Option(help="Keep the artifact here.")] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make tables with Zipf frequencies, compress them, verify the result. Needs no input, no GPU."""
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
            verification = check(artifact, tables, weights=counts, progress=progress)
        if as_json:
            console.print_json(
                {**_summary(artifact), "seconds": seconds, "verified": verification.ok}
            )
        else:
            _print_artifact(artifact, seconds)
            _print_verification(verification)
            some = next(name for name in artifact.names if artifact[name].encoding == "planes")
            console.out.print(
                f'row 0 of field "{some}": {np.array2string(artifact[some].lookup([0])[0][:4], precision=3)} …',
                highlight=False,
            )
    if not verification.ok:
        raise typer.Exit(EXIT_ERROR)


@app.command()
def inspect(
    source: Source,
    weights: Weights = None,
    codewords: Codewords = None,
    ratio: Ratio = None,
    threads: Threads = None,
    fields: Fields = None,
    as_json: Json = False,
) -> None:
    """List fields, rows, dims, dtypes, bytes, weights, and what compressing them would take."""
    from saec_gpu.backends import open_backend
    from saec_gpu.compression import asked_codewords
    from saec_gpu.inspection import as_json as field_json
    from saec_gpu.inspection import inspect_fields
    from saec_gpu.sources import open_tables, open_weights

    tables = open_tables(source, fields=fields)
    vectors = None if weights is None else open_weights(weights, tables)
    asked = asked_codewords(tables.fields, _codewords(codewords, tables.fields), ratio)
    found = inspect_fields(
        tables, vectors, asked, threads=open_backend("cpu", threads=threads).threads
    )
    before = sum(one.table.nbytes for one in found)
    after = sum(one.bytes_after for one in found)
    resident = sum(one.memory_resident for one in found)
    least = max(one.memory_streamed for one in found)
    if as_json:
        console.print_json(
            {
                "fields": [field_json(one) for one in found],
                "skipped": dict(tables.skipped),
                "bytes": before,
                "bytes_after": after,
                "memory_resident": resident,
                "memory_least": least,
            }
        )
        return
    columns = ["field", "dtype", "rows", "dim", "bytes", "codewords", "after"]
    if vectors is not None:
        columns += ["lookups", "most for a row", "never", "rows with half"]
    lines = []
    for one in found:
        line = [
            one.table.name, one.table.dtype, f"{one.table.n_rows:,}", one.table.dim,
            console.human_bytes(one.table.nbytes), f"{one.codewords:,}",
            console.human_bytes(one.bytes_after),
        ]  # fmt: skip
        if vectors is not None:
            w = one.weights
            line += ["–"] * 4 if w is None else [
                f"{w.total:,.6g}", f"{w.largest:,.6g}", f"{w.unseen:,}", f"{w.head_rows:,}",
            ]  # fmt: skip
        lines.append(line)
    console.print_table(source, columns, lines, left=2)
    for name, why in tables.skipped.items():
        console.out.print(f"not a table: {name}: {why}", highlight=False)
    console.out.print(
        f"{console.human_bytes(before)} → {console.human_bytes(after)} at most "
        f"({before / after:.1f}×). Memory: {console.human_bytes(resident)} to read each row once, "
        f"{console.human_bytes(least)} at least",
        highlight=False,
    )


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact to check.")],
    source: Annotated[
        str | None,
        typer.Argument(help="The tables it was made from; without, only its files are checked."),
    ] = None,
    weights: Weights = None,
    backend: Backend = "auto",
    threads: Threads = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Check an artifact's files, then every code and every error against the tables."""
    from saec_gpu.artifact import load
    from saec_gpu.verification import verify as check

    loaded = load(artifact)
    if source is None:
        if weights is not None:
            raise ParamError(
                "--weights was given without SOURCE; weights are checked with the tables"
            )
        loaded.check_files()
        if as_json:
            console.print_json({"ok": True, "files": "unaltered"})
        else:
            console.out.print(
                f"{artifact}: all files are unaltered (give the tables to check codes and errors)",
                highlight=False,
            )
        return
    with console.ProgressDisplay(quiet=as_json) as progress:
        found = check(
            loaded, source, weights=weights, backend=backend, threads=threads, memory=memory,
            progress=progress,
        )  # fmt: skip
    if as_json:
        console.print_json(
            {"ok": found.ok, "problems": found.problems, "fields": [vars(f) for f in found.fields]}
        )
    else:
        _print_verification(found)
    if not found.ok:
        raise typer.Exit(EXIT_ERROR)


def _print_verification(found: Any) -> None:
    for problem in found.problems:
        console.err.print(problem, highlight=False)
    if found.ok:
        total = sum(field.sse for field in found.fields)
        console.out.print(
            f"verified: {len(found.fields)} fields, every code and every error as stored "
            f"(sum of squared distances {total:.6g})",
            highlight=False,
        )


@app.command()
def lookup(
    artifact: Annotated[Path, typer.Argument(help="Artifact to read.")],
    field: Annotated[str, typer.Argument(help="Name of a field.")],
    rows: Annotated[list[str], typer.Argument(help="Row numbers or ranges: 3 17 100:110")],
    out: Annotated[Path | None, typer.Option(help="Write the vectors to this .npy file.")] = None,
    as_json: Json = False,
) -> None:
    """Print the vectors that stand for rows of a field."""
    from saec_gpu.artifact import load

    loaded = load(artifact)
    if field not in loaded.names:
        raise ParamError(f'no field "{field}" in {artifact}; the fields are {list(loaded.names)}')
    numbers = _row_numbers(rows)
    vectors = loaded[field].lookup(numbers)
    codes = loaded[field].codes_of(numbers)
    if out is not None:
        np.save(out, vectors)
    elif as_json:
        console.print_json(
            {"field": field, "rows": numbers, "codes": codes.tolist(), "vectors": vectors.tolist()}
        )
    else:
        for number, code, vector in zip(numbers, codes, vectors, strict=True):
            text = " ".join(f"{x:.6g}" for x in vector)
            print(f"row {number} code {code}: {text}")


def _row_numbers(texts: list[str]) -> list[int]:
    numbers: list[int] = []
    for text in texts:
        first, colon, last = text.partition(":")
        try:
            numbers.extend(range(int(first), int(last)) if colon else [int(first)])
        except ValueError as err:
            raise ParamError(
                f"row {text!r} was given; give numbers or ranges such as 100:110"
            ) from err
    return numbers


@app.command()
def doctor(
    warm: Annotated[bool, typer.Option(help="Compile every kernel now.")] = False,
    as_json: Json = False,
) -> None:
    """Show what this machine can run, and what to install where it cannot."""
    from saec_gpu.doctor import examine

    findings = examine(warm=warm)
    if as_json:
        console.print_json([vars(finding) for finding in findings])
    else:
        rows = [(f.what, f.state if f.ok else f"NOT WELL: {f.state}", f.advice) for f in findings]
        console.print_table("saec doctor", ("what", "state", "to do"), rows, left=3)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_ERROR)


def main() -> None:
    """Run the command and turn errors into words and exit statuses."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _guarded(app)


def _guarded(command: Callable[[], Any]) -> None:
    try:
        command()
    except SaecError as error:
        console.err.print(
            f"saec: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        console.err.print(
            "saec: interrupted; with --checkpoint the same command continues", highlight=False
        )
        sys.exit(EXIT_INTERRUPTED)
