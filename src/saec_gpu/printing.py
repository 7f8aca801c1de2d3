"""What commands print of an artifact: tables and sums on standard output, or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saec_gpu import console

if TYPE_CHECKING:
    from saec_gpu.artifact import Artifact
    from saec_gpu.verification import Verification


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """Return what is shown of an artifact, JSON-able."""
    return {
        "artifact": str(artifact.path),
        "table_bytes": artifact.table_bytes,
        "counted_bytes": artifact.counted_bytes,
        "disk_bytes": artifact.disk_bytes,
        "ratio": artifact.ratio,
        "fields": artifact.manifest["fields"],
        "run": artifact.run,
    }


def show_artifact(
    artifact: Artifact, seconds: float | None = None, *, as_json: bool = False
) -> None:
    """Print all that is shown of an artifact, with the seconds that it took to make if given."""
    if as_json:
        console.print_json(artifact_json(artifact))
    else:
        print_artifact(artifact)
        print_sizes(artifact, seconds)


def print_artifact(artifact: Artifact) -> None:
    """Print a line a field: sizes, codewords, error."""
    columns = (
        "field", "rows", "dim", "clustered", "codewords", "dtype", "bits", "passes", "before",
        "after", "error",
    )  # fmt: skip
    rows = []
    for entry in artifact.manifest["fields"]:
        whole = entry["encoding"] == "identity"
        sse = entry.get("sse", 0.0)
        rows.append(
            (
                entry["name"],
                console.human_number(entry["rows"]),
                entry["dim"],
                "" if whole else console.human_number(entry.get("clustered_rows", 0)),
                "whole" if whole else console.human_number(entry["codewords"]),
                entry["codewords_dtype"],
                _bits_of_codes(entry),
                entry.get("iterations", ""),
                console.human_bytes(entry["table_bytes"]),
                console.human_bytes(entry["codebook_bytes"] + entry["code_bytes"]),
                "retrained" if sse is None else console.human_number(sse),
            )
        )
    console.print_table(columns, rows)


def _bits_of_codes(entry: Mapping[str, Any]) -> str:
    """Return the bits that the codes take a row, and how they are stored where not in planes."""
    match entry["encoding"]:
        case "identity":
            return ""
        case "levels":
            return f"{8 * entry['code_bytes'] / entry['rows']:.2f} levels"
        case _:
            return str(entry["bits"])


def print_sizes(artifact: Artifact, seconds: float | None = None) -> None:
    """Print how much smaller the tables have become, and how long that took."""
    errors = [entry.get("sse", 0.0) for entry in artifact.manifest["fields"]]
    known = [error for error in errors if error is not None]
    retrained = len(errors) - len(known)
    besides = f", {console.counted(retrained, 'retrained field')} aside" if retrained else ""
    print(
        f"{console.human_bytes(artifact.table_bytes)} → "
        f"{console.human_bytes(artifact.counted_bytes)}, {artifact.ratio:.2f} times smaller "
        f"({console.human_bytes(artifact.disk_bytes)} on disk); sum of squared distances "
        f"{console.human_number(sum(known))}{besides}"
    )
    if seconds is not None:
        run = artifact.run
        shares = run["rechecked_share"].values()
        rechecked = f"; {max(shares):.2%} of a field's rows rechecked at most" if shares else ""
        threads = console.counted(run["threads"], "thread")
        print(f"{seconds:.1f} s on {run['backend']} with {threads}{rechecked}")


def print_changes(artifact: Artifact) -> None:
    """Print a line a field: what an update has changed."""
    columns = ("field", "rows", "added", "removed", "churn", "drift", "staleness", "codewords")
    rows = []
    for entry in artifact.manifest["fields"]:
        if entry["rule"] != "margin":
            rows.append((entry["name"], console.human_number(entry["rows"]), *[""] * 5, "whole"))
            continue
        ratios = (
            "" if value is None else f"{value:{form}}"
            for value, form in (
                (entry["churn"], ".2%"), (entry["drift"], ".4f"), (entry["staleness"], ".3f"),
            )
        )  # fmt: skip
        rows.append(
            (
                entry["name"],
                *map(
                    console.human_number,
                    (entry["rows"], entry["rows_added"], entry["rows_removed"]),
                ),
                *ratios,
                console.human_number(entry["codewords"]),
            )
        )
    console.print_table(columns, rows)


def print_verification(found: Verification) -> None:
    """Print what a check has found: problems, notes, or that all is well."""
    for problem in found.problems:
        console.complain(problem)
    for note in found.notes:
        print(note)
    checked = len(found.fields) - len(found.notes)
    if found.ok and checked:
        weighted = any(field.weighted_sse is not None for field in found.fields)
        print(
            f"verified: {console.counted(checked, 'field')}, every code and every "
            f"{'error, weighted too,' if weighted else 'error'} to the last bit"
        )
