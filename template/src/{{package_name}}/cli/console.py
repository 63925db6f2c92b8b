"""What the commands share: words to the person at the terminal, questions to them, progress.

Answers go to stdout; everything else goes to stderr, so that stdout can be piped.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

_JOINERS = "\u200c\u200d"
"""Invisible too, but Persian and composed emoji are spelt with them, and they move nothing."""


class CommandError(Exception):
    """A command cannot do what it was asked to. The message says why, and what to do."""


def clean(text: str, *, lines: bool = False) -> str:
    """The text without anything that acts on a terminal: what would (escapes, direction marks) is spelt out.

    Args:
        lines: Let line breaks and tabs through.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _harmless(char) or (lines and char in "\n\t") else ascii(char)[1:-1] for char in text)


def _harmless(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) in ("Zs", "Co", "Cn")


def answer(text: str, *, newline: bool = True) -> None:
    """Write to stdout, at once: made harmless for a terminal, exact for a pipe."""
    typer.echo(clean(text, lines=True) if sys.stdout.isatty() else text, nl=newline)


def note(text: str, *, lines: bool = False) -> None:
    """Say something on the side: dim, on stderr.

    Args:
        lines: Keep line breaks and tabs.
    """
    typer.secho(clean(text, lines=lines), dim=True, err=True)


def complain(text: str) -> None:
    """Say on stderr, in one line, what is wrong."""
    typer.echo(clean(" ".join(text.split())), err=True)


def text_of_stdin() -> str:
    """All of stdin, without its last line break.

    Raises:
        CommandError: It is not text.
    """
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise CommandError("What came in on stdin is not UTF-8 text.") from None


def confirm(question: str) -> None:
    """Ask before something is lost.

    Raises:
        CommandError: The answer was no, or nobody is there to answer.
    """
    if not sys.stdin.isatty():
        raise CommandError("Not a terminal, so nobody can confirm this. Add --yes.")
    if ask(question).lower() not in ("y", "yes"):
        raise CommandError("Nothing was deleted.")


def ask(question: str) -> str:
    """The answer to a question that is put on stderr."""
    typer.echo(f"{clean(question)} [y/N] ", err=True, nl=False)
    return sys.stdin.readline().strip()


@contextmanager
def progress(what: str, total: int | None = None, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr while the block runs, if that is a terminal. Yields what to call with each advance."""
    if not (show and sys.stderr.isatty()):
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


class PlainLog(logging.Handler):
    """Log messages as plain lines on stderr, whatever stderr is at that moment (a progress bar replaces it)."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())
