"""What the command line shows: one-line errors, progress bars, aligned tables."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from mbexport.errors import MbexportError
from mbexport.files import Progress, no_progress

FAILED, BAD_INPUT, INTERNAL_ERROR = 1, 2, 70
LONGEST_LINE = 4000  # characters of an error
F = TypeVar("F", bound=Callable[..., Any])


class Stopped(KeyboardInterrupt):
    """Another signal than SIGINT asked the process to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let what would end the process at once be an interrupt, so that it cleans up first."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (a handler's)
        raise Stopped(signal.Signals(number))

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class OneLineGroup(click.Group):
    """A group whose errors are one line on standard error; ``--debug`` shows the traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and leave with an exit code."""
        debug = "--debug" in (extra.get("args") or (args[0] if args else None) or sys.argv[1:])
        extra["standalone_mode"] = False
        try:
            with _stoppable():
                sys.exit(super().main(*args, **extra) or 0)
        except click.ClickException as error:
            _fail(error.format_message(), debug)
        except MbexportError as error:
            _fail(str(error), debug)
        except (click.Abort, KeyboardInterrupt) as error:
            cause = error.__cause__ or error.__context__ or error  # click makes an Abort of interrupts, 8.1 of none
            number = cause.number if isinstance(cause, Stopped) else signal.SIGINT
            click.echo(f"mbexport: interrupted by {number.name}; nothing half-written was left", err=True)
            sys.exit(128 + number)
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
    """A Progress shown as a bar on standard error; nothing with ``quiet``, waits alone without a terminal."""
    if quiet or not sys.stderr.isatty():
        yield no_progress if quiet else _only_waits
        return
    with click.progressbar(length=1, label=label, file=sys.stderr, item_show_func=_step) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.length = total or bar.length
            bar.update(done - bar.pos, what)
            if total == 0:
                bar.render_progress()  # which no step does

        yield show


def _only_waits(done: int, total: int, what: str) -> None:  # noqa: ARG001 (a Progress)
    """Says what is waited for, of which nobody knows how long it takes."""
    if total == 0 and what:
        note(what, quiet=False)


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
