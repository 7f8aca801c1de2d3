"""What compression costs a click model: a DeepFM in PyTorch, and its tables compressed.

python -m examples.ctr train --run runs/first
python -m examples.ctr compress --run runs/first --ratio 27.7
python -m examples.ctr retrain --run runs/first
python -m examples.ctr evaluate --run runs/first
python -m examples.ctr study runs/first --ratios 27.7,50,100
python -m examples.ctr hours 24 --run runs/hours
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from saec_gpu.errors import SaecError

from . import commands
from .runs import ARTIFACT
from .stream import CLICKS_AN_HOUR
from .study import FURTHER_ARMS
from .training import Training

RETRAIN_RATE = 3e-4  # of codewords and dense layers; 1e-3 loses more than retraining gains
PUBLISHED_RATIO = 27.7  # of Saec, at the AUC of full tables (arXiv 1903.00103)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m examples.ctr",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--threads", type=int, help="cores to use (default: all)")
    named = made.add_subparsers(required=True, metavar="command")

    def command(name: str, what: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        told = (what.__doc__ or "").partition("\n")[0]
        added = named.add_parser(
            name, help=told, description=what.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )  # fmt: skip
        added.set_defaults(what=what)
        return added

    usual = Training()
    added = command("train", commands.train)
    _of_run(added)
    added.add_argument("--data", default="stream", help='"stream", an .npz, or Criteo\'s text')
    added.add_argument("--min-count", type=int, default=2, help="of a value of a text's own row")
    added.add_argument("--clicks", type=int, default=CLICKS_AN_HOUR, help="an hour of the stream")
    added.add_argument("--stream-seed", type=int, default=0, help="of the stream")
    added.add_argument("--seed", type=int, default=0, help="of model and training")
    added.add_argument("--l2", type=float, default=usual.l2, help="of all tables")
    added.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    added.add_argument("--epochs", type=int, default=usual.epochs, help="at most")
    added.add_argument("--batch", type=int, default=usual.batch, help="samples a step")

    added = command("compress", commands.compress)
    _with_artifact(added)
    size = added.add_mutually_exclusive_group(required=True)
    size.add_argument("--ratio", type=float, help="how many times smaller, counted bytes")
    size.add_argument("--budget", help="counted bytes of all tables, such as 161MB")
    size.add_argument("--codewords", type=float, help="fraction of the rows")
    _how_to_compress(added)
    added.add_argument("--seed", type=int, default=0, help="of the clustering")

    added = command("retrain", commands.retrain)
    _with_artifact(added)
    added.add_argument("--learning-rate", type=float, default=RETRAIN_RATE, help="at first")
    added.add_argument("--epochs", type=int, default=10, help="at most")

    added = command("evaluate", commands.evaluate)
    _with_artifact(added)
    added.add_argument("--hashing", action="store_true", help="also train tables of hashed values")
    added.add_argument("--json", type=Path, help="where to, instead of evaluate.json of the run")

    added = command("compare", commands.compare)
    added.add_argument("results", type=Path, nargs="+", help="evaluate.json of several seeds")
    added.add_argument("--json", type=Path, help="where to")

    _of_study(command("study", commands.study_runs))

    added = command("draw", commands.draw_studies)
    added.add_argument("records", type=Path, nargs="+", help="files that `study` appended to")
    added.add_argument("--out", type=Path, required=True, help="the SVG")

    added = command("hours", commands.serve_hours)
    added.add_argument("hours", type=int, help="how many")
    _of_run(added)
    added.add_argument("--ratio", type=float, default=PUBLISHED_RATIO, help="counted bytes")
    added.add_argument("--clicks", type=int, default=CLICKS_AN_HOUR, help="an hour")
    added.add_argument("--seed", type=int, default=0, help="of stream, model and training")
    added.add_argument(
        "--anew", action="store_true", help="cluster anew each hour, instead of an update"
    )
    return made


def _of_run(added: argparse.ArgumentParser) -> None:
    added.add_argument("--run", type=Path, required=True, help="folder of the run")


def _with_artifact(added: argparse.ArgumentParser) -> None:
    _of_run(added)
    added.add_argument("--artifact", type=Path, help=f"instead of {ARTIFACT} of the run")


def _how_to_compress(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "--errors", default="rows", choices=["rows", "sensitivity", "metric"],
        help="what is made small: errors of rows; scaled by how much the loss depends on each "
        "field; or in the metric of the loss",
    )  # fmt: skip
    added.add_argument(
        "--codewords-dtype", default="auto", choices=["auto", "float32", "float16", "int8"],
        help="auto: chosen by --ratio and --budget, float32 without them",
    )  # fmt: skip
    clustered = added.add_mutually_exclusive_group()
    clustered.add_argument(
        "--fast",
        action="store_true",
        default=None,
        help="cluster coresets (default: where it pays)",
    )
    clustered.add_argument(
        "--full", action="store_false", dest="fast", default=None, help="cluster all rows"
    )


def _of_study(added: argparse.ArgumentParser) -> None:
    added.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    added.add_argument("--ratios", type=numbers, default=[PUBLISHED_RATIO], help="such as 27.7,50")
    added.add_argument(
        "--retrain-rates", type=numbers, default=[RETRAIN_RATE, 1e-4],
        help="of which validation chooses; '' retrains nothing",
    )  # fmt: skip
    added.add_argument("--retrain-epochs", type=int, default=10, help="at most")
    added.add_argument(
        "--also", type=further_arms, default=[], help=f"more arms: {','.join(FURTHER_ARMS)}"
    )
    added.add_argument("--parts", type=int, default=1, help="codes a row of an arm of its own")
    _how_to_compress(added)
    added.add_argument("--append", type=Path, help="append the record to this file")


def numbers(text: str) -> list[float]:
    """Return the numbers that commas separate."""
    return [float(number) for number in text.split(",")] if text else []


def further_arms(text: str) -> list[str]:
    """Return the names of arms that commas separate.

    Raises
    ------
    ArgumentTypeError
        There is no such arm.
    """
    found = text.split(",")
    if unknown := sorted(set(found) - set(FURTHER_ARMS)):
        raise argparse.ArgumentTypeError(f"there is no {unknown}; give some of {FURTHER_ARMS}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    options = parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        options.what(options)
    except (SaecError, ValueError, OSError) as err:
        sys.exit(f"error: {err}")


if __name__ == "__main__":
    main()
