"""All records of a run on a device as one Markdown table.

python -m saec_gpu.bench.device.table FOLDER > FOLDER/table.md
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saec_gpu.errors import SaecError

from ..records import read_records
from ..roofline import GPUS, RECORDED_DTYPES, Gpu, Shape, bound

PARTS = ("probes", "contract", "sanitizer", "limits", "timings")
HEAD = ("part", "what", "contestant", "result", "beside", "check")
SHORT_DTYPES = {long: short for short, long in RECORDED_DTYPES.items()}

Row = tuple[str, str, str, str, str]
Record = Mapping[str, Any]


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a folder's parts, in the order of the parts."""
    paths = [folder / f"{name}.jsonl" for name in PARTS]
    return read_records(path for path in paths if path.is_file())


def table(records: Sequence[Record]) -> str:
    """Return the records as a Markdown table under a line that says what they are of."""
    lines = [_title(records), "", _line(HEAD), _line(["---"] * len(HEAD))]
    for name in PARTS:
        own = [one for one in records if one["part"] == name]
        lines += [_line((name, *row)) for row in _rows(name, own)]
    return "\n".join(lines) + "\n"


def passed(records: Iterable[Record], parts: Iterable[str]) -> bool:
    """Return whether each of these parts ended, and as passed."""
    ended = {one["part"]: one["status"] for one in records if one["op"] == "part"}
    return all(ended.get(name) == "passed" for name in parts)


def _title(records: Sequence[Record]) -> str:
    named = next((one for one in records if "device" in one), {})
    versions = ", ".join(f"{name} {v}" for name, v in named.get("versions", {}).items())
    dirty = " (with changes)" if named.get("dirty") else ""
    facts = [
        f"**{named.get('device', 'no device')}**",
        f"driver {named['driver']}" if named.get("driver") else "",
        f"CUDA {named['runtime_cuda']}" if named.get("runtime_cuda") else "",
        f"commit {named.get('commit') or 'unknown'}{dirty}",
        str(named.get("utc", "")),
        "dry run: the times mean nothing" if named.get("dry") else "",
    ]
    return ", ".join(filter(None, facts)) + (f"; {versions}" if versions else "")


def _rows(part: str, records: Sequence[Record]) -> Iterator[Row]:
    ended = [one for one in records if one["op"] == "part"]
    status = ended[-1]["status"] if ended else "not run"
    seconds = f"{ended[-1]['seconds']:.0f} s" if ended and ended[-1].get("seconds") else ""
    faults = "; ".join(ended[-1].get("faults", ())) if ended else ""
    yield "the whole part", "", f"**{status}**", seconds, faults
    for record in records:
        maker = _MAKERS.get(record["op"])
        if maker is not None:
            yield from maker(record)


def _probe(record: Record) -> Iterator[Row]:
    if record["probe"] == "accumulation":
        yield (
            f"error of {record['columns']} products, units of BOUND.md",
            "",
            f"{record['units']:.2f}; {record['units_a_column']:.3f} a column",
            f"supposed {record['assumed_a_column']:g}, allowed {record['bound_a_column']:g}",
            _mark(record["ok"]),
        )
    else:
        yield record["probe"], "", f"{record['wrong']} wrong", "", _mark(record["ok"])


def _compile(record: Record) -> Iterator[Row]:
    slowest = max(record["seconds_by_kernel"].items(), key=lambda one: one[1], default=("", 0.0))
    yield (
        f"{record['kernels']} kernels compiled", "", f"{record['seconds']:.1f} s",
        f"{slowest[0]} alone {slowest[1]:.1f} s", _mark(record["ok"]),
    )  # fmt: skip


def _contract(record: Record) -> Iterator[Row]:
    bad = record["failed"] + record["errors"]
    yield (
        f"{record['ran']} tests", record["backend"], f"{bad} failed, {record['skipped']} skipped",
        f"{record['seconds']:.0f} s", _mark(record["ok"]),
    )  # fmt: skip


def _sanitize(record: Record) -> Iterator[Row]:
    what = f"planted {record['planted']}" if record["planted"] else "all kernels"
    findings = "" if record["findings"] is None else f"{record['findings']} findings"
    if record["status"] is None:
        findings = record["said"]
    yield what, record["tool"], findings, f"{record['seconds']:.0f} s", _mark(record["ok"])


def _limit(record: Record) -> Iterator[Row]:
    units = {
        "gb_per_s": "GB/s", "tflop_per_s": "TFLOP/s", "giga_per_s": "G/s",
    }  # fmt: skip
    for key, unit in units.items():
        if key in record:
            clocks = record.get("per_clock") or record.get("flop_per_clock")
            beside = "" if clocks is None else f"{clocks:.1f} a clock and processor"
            if record.get("instruction"):
                beside = f"{beside} ({record['instruction']})".strip()
            result = f"{record[key]:.4g} {unit}"
            yield record["limit"], "", result, beside, _mark(record["ok"])


def _peer(record: Record) -> Iterator[Row]:
    if record["missing"]:
        yield "peer", record["peer"], "missing", record["missing"], ""


def _left_out(record: Record) -> Iterator[Row]:
    who = ", ".join(record["contestants"])
    yield f"{record['case']}, {record['rows']}", who, "left out", "no time", ""


def _iterate(record: Record) -> Iterator[Row]:
    what = f"{record['case']}, {record['rows']}"
    least = _bound_ms(record)
    for name, entry in record["contestants"].items():
        if entry["ms_an_iteration"] is None:
            yield what, name, "not timed", entry["why_not"] or "", ""
            continue
        ms = entry["ms_an_iteration"]
        beside = []
        if entry["time_relative_to_saec"] is not None:
            beside.append(f"{entry['time_relative_to_saec']:.2f}× the time of saec")
        if least is not None:
            beside.append(f"{least / ms:.0%} of the bound")
        beside.append(f"first {entry['first_seconds']:.2f} s")
        if entry["runs"] < record["repeats"]:
            beside.append("one run")
        yield what, name, f"{ms:.3f} ms an iteration", ", ".join(beside), _checked(entry)
        kernels = entry.get("kernel_ms_an_iteration")
        if kernels:
            yield what, f"{name}, kernels", *_kernels(entry, least)


def _kernels(entry: Record, least: float | None) -> tuple[str, str, str]:
    kernels = entry["kernel_ms_an_iteration"]
    total, assigned = sum(kernels.values()), sum(entry["assign_kernel_ms"].values())
    listed = ", ".join(f"{kernel} {ms:.3f}" for kernel, ms in kernels.items())
    share = "" if least is None else f", {least / total:.0%} of the bound"
    return (
        f"{total:.3f} ms an iteration{share}",
        f"{listed}; assignment alone {assigned:.3f}",
        f"{entry['rechecked_share']:.3%} rechecked, {entry['exact_share']:.4%} exact",
    )


def _bound_ms(record: Record) -> float | None:
    """Return the bound of one pass in milliseconds, where the device and the shape have one."""
    gpu = next((one for one in GPUS.values() if _matches(one, record)), None)
    if gpu is None or record["n_fields"] != 1:
        return None
    dtype = SHORT_DTYPES[record["dtype"]]
    shape = Shape(record["n_rows"], record["n_codewords"], record["dim"], dtype)
    return 1e3 * bound(shape, gpu)[1]


def _matches(gpu: Gpu, record: Record) -> bool:
    return not record.get("dry") and re.search(gpu.pattern, str(record.get("device"))) is not None


def _checked(entry: Record) -> str:
    check = entry["check"]
    if check is None:
        return "not checked"
    relative = entry.get("inertia_relative_to_saec")
    beside = "" if relative is None else f" ({relative - 1:+.1e})"
    return (
        f"inertia {check['inertia']:.6g}{beside}, {check['wrong_labels']} of "
        f"{check['checked_rows']} labels wrong"
    )


def _mark(ok: bool) -> str:
    return "ok" if ok else "**WRONG**"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


_MAKERS = {
    "probe": _probe,
    "compile": _compile,
    "contract": _contract,
    "sanitize": _sanitize,
    "limit": _limit,
    "peer": _peer,
    "left_out": _left_out,
    "iterate": _iterate,
}


def main(given: Sequence[str] | None = None) -> None:
    """Print from the command line; exit status 1 where a part that is named did not pass."""
    parser = argparse.ArgumentParser(
        prog="python -m saec_gpu.bench.device.table", description="A run's records as a table."
    )
    parser.add_argument("folder", type=Path, help="what on_device.sh wrote")
    parser.add_argument("--parts", default=",".join(PARTS), help="those that must have passed")
    options = parser.parse_args(given)
    try:
        records = read_folder(options.folder)
    except SaecError as err:
        sys.exit(f"error: {err}")
    print(table(records), end="")
    if not passed(records, options.parts.split(",")):
        sys.exit(1)


if __name__ == "__main__":
    main()
