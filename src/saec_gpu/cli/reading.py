"""Commands that look at tables and artifacts: inspect, verify, report, lookup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from saec_gpu import console, printing
from saec_gpu.cli.command import command, exit_unless
from saec_gpu.cli.options import (
    Artifact_,
    Backend,
    Budget,
    Codewords,
    CodewordsDtype,
    Fields,
    Json,
    Memory,
    Ratio,
    Sensitivity,
    Threads,
    Weights,
    asked_codewords,
    by_field,
    sensitivities,
)

LOOKUP_BLOCK_ROWS = 4096


@command(
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
    from saec_gpu.artifact import load
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
        printing.show_artifact(load(source), as_json=as_json)
        return
    asked, scales = asked_codewords(codewords, ratio, budget), sensitivities(sensitivity)
    tables = open_tables(source, fields=fields)
    vectors = None if weights is None else open_weights(weights, tables)
    numbers = by_field(asked, tables.fields)
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


@command(
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
    exit_unless(found.ok)


@command(
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


@command(
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
