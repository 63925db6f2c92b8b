"""What the commands on sessions share: the open store, and how sessions, numbers and times are called."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .console import CommandError

if TYPE_CHECKING:
    from ..sessions import SessionRef, SessionStore

LOOKED_AT = 500
"""Sessions among which one of another user is looked for: as many as one listing has."""
NAMED = 3
"""Users that an error names, at most."""

T = TypeVar("T")
AnyUser = Annotated[str | None, typer.Option("--user", "-u", help="Only sessions of this user.")]
OneUser = Annotated[str, typer.Option("--user", "-u", help="Whose session.")]


def with_store(work: Callable[[SessionStore], Awaitable[T]]) -> T:
    """The outcome of `work` on the store of the settings."""
    from ..app import open_app_store
    from ..settings import load_settings

    async def run() -> T:
        async with open_app_store(load_settings(), embedded=True) as store:
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
    """A session in a sentence: quoted, so that strange ids can be told from the words around them."""
    return f"{quoted(session)} of user {quoted(user)}" if user else quoted(session)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def when(time: datetime) -> str:
    """A time on the clock of this machine."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")
