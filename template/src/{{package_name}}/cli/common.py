"""What the commands on sessions share: the open store, and how sessions, numbers and times are called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .console import CommandError

if TYPE_CHECKING:
    from ..sessions import SessionStore

T = TypeVar("T")
AnyUser = Annotated[str | None, typer.Option("--user", "-u", help="Only sessions of this user.")]
OneUser = Annotated[str, typer.Option("--user", "-u", help="Whose session.")]


def with_store(work: Callable[[SessionStore], Awaitable[T]]) -> T:
    """The outcome of `work` on the store of the settings."""
    from ..app import opened_store
    from ..settings import load_settings

    async def run() -> T:
        async with opened_store(load_settings(), embedded=True) as store:
            return await work(store)

    return asyncio.run(run())


def unknown(session: str, user: str | None) -> CommandError:
    """What to raise when a session is not there."""
    return CommandError(f"There is no session {name(session, user)}. `sessions list` shows those that are there.")


def name(session: str, user: str | None) -> str:
    """A session in a sentence: quoted, so that strange ids can be told from the words around them."""
    quoted = json.dumps(session, ensure_ascii=False)
    return f"{quoted} of user {json.dumps(user, ensure_ascii=False)}" if user else quoted


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def when(time: datetime) -> str:
    """A time on the clock of this machine."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")
