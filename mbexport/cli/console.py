"""What the command line shows: one-line errors, progress bars, aligned tables."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

from mbexport.errors import MbexportError
from mbexport.files import Progress, no_progress

FAILED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 1, 2, 70, 130
LONGEST_LINE = 4000  # characters of an error
F = TypeVar("F", bound=Callable[..., Any])


class OneLineGroup(click.Group):
    """A group whose errors are one line on standard error; ``--debug`` shows the traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and leave with an exit code."""
        debug = "--debug" in (extra.get("args") or (args[0] if args else None) or sys.argv[1:])
        extra["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **extra) or 0)
        except click.ClickException as error:
            _fail(error.format_message(), debug)
        except MbexportError as error:
            _fail(str(error), debug)
        except (click.Abort, KeyboardInterrupt):
            click.echo("mbexport: interrupted; nothing half-written was left", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
            sys.exit(0)
        except OSError as error:
            _fail(f"{error.filename or 'a file'}: {error.strerror or error}", debug)
        except Exception as error:
            if debug:
                raise
            message = " ".join(f"{type(error).__name__}: {error}".split())
            click.echo(f"mbexport: internal error: {printable(message)}; --debug shows where", err=True)
            sys.exit(INTERNAL_ERROR)


def _fail(message: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    click.echo(f"mbexport: error: {printable(' '.join(message.split()))[:LONGEST_LINE]}", err=True)
    sys.exit(BAD_INPUT)


def common_options(command: F) -> F:
    """``-q`` and ``--debug``, the same on every command; ``-q`` reaches the command as ``quiet``."""

    @click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on standard error.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(command)
    def wrapped(*args: Any, debug: bool, **options: Any) -> Any:  # noqa: ARG001 (read by OneLineGroup)
        return command(*args, **options)

    return wrapped  # type: ignore[return-value]  # click's decorators keep the signature's use, not its type


@contextlib.contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Progress]:
    """A Progress shown as a bar on standard error; nothing with ``quiet`` or without a terminal."""
    if quiet or not sys.stderr.isatty():
        yield no_progress
        return
    with click.progressbar(length=1, label=label, file=sys.stderr, item_show_func=_step) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.length = total
            bar.update(done - bar.pos, what)

        yield show


def _step(what: str | None) -> str:
    return printable(what or "")


def note(message: str, *, quiet: bool, kind: str = "note") -> None:
    """A line on standard error, unless ``quiet``; ``kind``, e.g. ``warning``, stands before it."""
    if not quiet:
        click.echo(f"{kind}: {printable(' '.join(message.split()))}", err=True)


@contextlib.contextmanager
def noted_warnings(*, quiet: bool, kind: str = "note", category: type[Warning] = Warning) -> Iterator[None]:
    """Python's warnings as lines on standard error, once the block ends.

    Args:
        quiet: none of them.
        kind: stands before each.
        category: those that are shown always; of others those that Python shows.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", category)
        try:
            yield
        finally:
            for warning in caught:
                note(str(warning.message), quiet=quiet, kind=kind)


def printable(text: str) -> str:
    """Text with ? for each character that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def printable_lines(text: str) -> str:
    """Text of several lines, each as :func:`printable` has it."""
    return "\n".join(map(printable, text.split("\n")))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns: the first to the left, the others to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one a line, the values aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {printable(value)}" for name, value in rows)
