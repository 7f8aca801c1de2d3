"""What every command is: its place in `saec`, its help, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand

from saec_gpu import console
from saec_gpu.errors import SaecError
from saec_gpu.version import __version__

EXIT_ERROR = 1
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
EXIT_PIPE_CLOSED = 128 + 13  # and SIGPIPE

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


class Command(TyperCommand):
    """A command that ends in words and an exit status, whatever stops it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
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


def command(*examples: str, **settings: Any) -> Callable[[Function], Function]:
    """Return a decorator that makes a function a command; its help ends with the examples."""
    lines = "".join(f"\n  saec {example}" for example in examples)
    return app.command(
        cls=Command, epilog=f"\b\nExamples:{lines}", context_settings=settings or None
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


def exit_unless(ok: bool) -> None:
    """End the command with the status of an error unless all is well."""
    if not ok:
        raise typer.Exit(EXIT_ERROR)


def main() -> None:
    """Run the command that the arguments name."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a field's name may have letters that a terminal lacks
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="saec")
