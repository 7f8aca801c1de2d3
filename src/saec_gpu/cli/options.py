"""Arguments and options that commands share, and what is read from their text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from saec_gpu.errors import ParamError

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
        help="Cluster a sample of 64 rows a codeword and at least 8192, drawn by weight, or all "
        "rows; if not given, a sample where that is at most a quarter of a field too large to be "
        "clustered in a second. Every row is encoded in any case.",
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
Out = Annotated[Path, typer.Option(help="Artifact to write, customarily NAME.saec.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an artifact at --out, in one step.")
]
MaxIter = Annotated[int, typer.Option(min=1, help="Most passes of the fit.")]
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


def sensitivities(options: Sequence[str] | None) -> dict[str, float] | None:
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


def asked_codewords(
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


def by_field(asked: Mapping[str | None, int | float], fields: Iterable[str]) -> Any:
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
