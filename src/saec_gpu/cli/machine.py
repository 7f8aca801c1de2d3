"""Commands that look at the machine: bench, doctor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from saec_gpu import console
from saec_gpu.cli.command import command, exit_unless
from saec_gpu.cli.options import Json
from saec_gpu.errors import MissingExtraError


@command(
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


@command("doctor", "doctor --warm")
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
    exit_unless(all(finding.ok for finding in findings))
