"""What the commands share: the open store, words to the person at the terminal, questions to them, progress.

Answers go to stdout; everything else goes to stderr, so that stdout can be piped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import sys
import unicodedata
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from ..sessions import SessionRef, SessionStore
    from ..settings import Settings

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
        CommandError: The answer was no, or stdin is not a terminal.
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


LOOKED_AT = 500
"""Sessions among which one of another user is looked for: as many as one listing has."""
NAMED = 3
"""Users that an error names, at most."""

T = TypeVar("T")
AnyUser = Annotated[str | None, typer.Option("--user", "-u", help="Only sessions of this user.")]
OneUser = Annotated[str, typer.Option("--user", "-u", help="Whose session.")]


def command_settings() -> Settings:
    """The settings, with the project's `.env` wherever the command was started.

    Raises:
        SettingMissing: As `load_settings` does.
    """
    from ..sessions.settings import read_project_file_everywhere
    from ..settings import load_settings

    read_project_file_everywhere()
    settings = load_settings()
    if settings.log_format == "json":
        from ..logs import log_json

        log_json()
    return settings


def with_store(work: Callable[[SessionStore], Awaitable[T]]) -> T:
    """The outcome of `work` on the store of the settings."""
    from ..app import open_app_store

    async def run() -> T:
        async with open_app_store(command_settings(), embedded=True) as store:
            return await work(store)

    return asyncio.run(run())


async def unknown(store: SessionStore, ref: SessionRef) -> CommandError:
    """What to raise when a session is not there: it says whose there is, among those that were written last."""
    page = await store.list_sessions(limit=LOOKED_AT)
    owners = sorted({info.user_id for info in page.sessions if info.session_id == ref.session_id} - {ref.user_id})
    if not owners:
        missing = name(ref.session_id, ref.user_id)
        return CommandError(f"There is no session {missing}. `sessions list` shows all.")
    missing = f"{quoted(ref.session_id)} of user {quoted(ref.user_id)}"
    *others, last = map(quoted, owners[:NAMED])
    if len(owners) > NAMED:
        others, last = [*others, last], "others"
    who = f"users {', '.join(others)} and {last} have one" if others else f"user {last} has one"
    return CommandError(f"There is no session {missing}; {who}: --user {shlex.quote(owners[0])}")


def name(session: str, user: str | None) -> str:
    """A session in a sentence: quoted, so that strange ids stand out from the words around them."""
    return f"{quoted(session)} of user {quoted(user)}" if user else quoted(session)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def when(time: datetime) -> str:
    """A time on the clock of this machine."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")
