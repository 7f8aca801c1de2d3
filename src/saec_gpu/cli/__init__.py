"""The `saec` command."""

from __future__ import annotations

# Commands stand in the help in the order in which they are imported.
from saec_gpu.cli import writing, reading, machine  # isort: skip  # noqa: F401
from saec_gpu.cli.command import app, main

__all__ = ["app", "main"]
