"""Run what the documentation shows: the commands and programs of its fenced blocks.

    python tests/docs_commands.py README.md CONTRIBUTING.md   run all blocks, in order
    python tests/docs_commands.py --print tests README.md     print the block with a marker

A reader stands in a checkout, in the environment that the README sets up. So do the blocks: the
blocks of one document share a scratch folder with a copy of examples/, and find the programs of
this Python first. Bash blocks run with `set -euo pipefail`; each Python block is a program of its
own. A comment on the line before a block says what is special about it:

    <!-- tests -->             the commands that set up and test; .ci/run runs them by themselves
    <!-- install -->           the commands that install and show the main job; likewise
    <!-- not run: reason -->   shown only
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RUN = ("bash", "python")
SHOWN = ("text", "json", "toml")  # what a program prints or reads
TIMEOUT = 600  # seconds a block

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^`]*)$")
_MARKER = re.compile(r"^ *<!-- (?P<name>tests|install|not run: \S.*) -->$")


class DocsError(Exception):
    """A document cannot be run as it is written."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it starts, its language, the marker before it and its text."""

    line: int
    language: str
    marker: str
    text: str


def blocks(document: str) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown document, in order."""
    lines = document.splitlines()
    i = 0
    while i < len(lines):
        opening = _FENCE.match(lines[i])
        if opening is None:
            i += 1
            continue
        start = i
        closing = re.compile(rf"^ *{opening['fence'][0]}{{{len(opening['fence'])},}} *$")
        i += 1
        while i < len(lines) and not closing.match(lines[i]):
            i += 1
        if i == len(lines):
            raise DocsError(f"line {start + 1}: the block is never closed")
        marker = _MARKER.match(lines[start - 1]) if start else None
        language = opening["language"].strip()
        if language not in RUN + SHOWN:
            raise DocsError(
                f"line {start + 1}: the block is marked {language!r}; "
                f"use one of {', '.join(RUN + SHOWN)}, so that no command escapes"
            )
        text = textwrap.dedent("\n".join(lines[start + 1 : i])) + "\n"
        yield Block(start + 1, language, marker["name"] if marker else "", text)
        i += 1
    # A comment that looks like a marker but marks nothing would leave its block running.
    for number, line in enumerate(lines, start=1):
        if "<!--" in line and (
            not _MARKER.match(line) or number == len(lines) or not _FENCE.match(lines[number])
        ):
            raise DocsError(f"line {number}: a comment that is no marker before a block: {line}")


def marked_block(document: str, marker: str) -> str:
    """Return the text of the one bash block of a document that has this marker."""
    found = [block for block in blocks(document) if block.marker == marker]
    if len(found) != 1 or found[0].language != "bash":
        raise DocsError(
            f"{len(found)} blocks are marked <!-- {marker} -->; exactly one bash block must be"
        )
    return found[0].text


def run(path: Path, checkout: Path) -> int:
    """Run the blocks of one document in a scratch folder; return how many there were."""
    count = 0
    # Beside each other, so that `python` and `saec` are those of the environment that runs this.
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as scratch:
        if (checkout / "examples").is_dir():
            shutil.copytree(checkout / "examples", Path(scratch) / "examples")
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.language not in RUN or block.marker:
                continue
            where = f"{path.name}, line {block.line}"
            command = (
                ["bash", "-euo", "pipefail", "-c", block.text]
                if block.language == "bash"
                else [sys.executable, "-c", block.text]
            )
            start = time.monotonic()
            result = subprocess.run(
                command,
                cwd=scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            if result.returncode != 0:
                raise DocsError(
                    f"{where}: exit status {result.returncode}\n{block.text}\n{result.stdout}"
                )
            print(f"{where}: ran in {time.monotonic() - start:.1f} s", flush=True)
            count += 1
    return count


def main(arguments: Sequence[str]) -> int:
    """Run the documents that are named, or print the tests block of one."""
    parser = argparse.ArgumentParser(description="Run what the documentation shows.")
    parser.add_argument("documents", nargs="+", type=Path)
    parser.add_argument("--print", metavar="MARKER", help="only print the block with this marker")
    options = parser.parse_args(arguments)
    try:
        for path in options.documents:
            if options.print:
                print(marked_block(path.read_text(encoding="utf-8"), options.print), end="")
            else:
                count = run(path, Path(__file__).parents[1])
                print(f"{path.name}: {count} blocks ran")
    except DocsError as err:
        print(f"{path}: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
