"""`sessions`: list, show, delete, export, import and prune conversations."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from .console import AnyUser, OneUser, answer, clean, confirm, count, name, note, progress, unknown, when, with_store

if TYPE_CHECKING:
    from ..sessions import SessionInfo, SessionStore

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

sessions = typer.Typer(no_args_is_help=True, help="List, show, delete, export, import and prune conversations.")


@sessions.command("list")
def list_(
    user: AnyUser = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many at most.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on where the last listing ended.")] = None,
    as_json: Json = False,
) -> None:
    """List sessions, the last written first. For scripts --json has names; without it a pipe gets columns with tabs."""
    from ..sessions.records import SessionRef

    SessionRef(user or "", "any").check()
    try:
        page = with_store(lambda store: store.list_sessions(user, limit, cursor))
    except ValueError:
        if cursor is None:
            raise
        raise typer.BadParameter("Take the cursor from a listing.", param_hint="--cursor") from None
    if as_json:
        answer(json.dumps({"sessions": [_as_json(info) for info in page.sessions], "next_cursor": page.next_cursor}))
        return
    if not page.sessions:
        note("There are no sessions.")
    elif sys.stdout.isatty():
        _print_table(page.sessions)
        note("For scripts: --json.")
    else:
        for info in page.sessions:
            answer("\t".join(map(clean, _columns(info))))
    if page.next_cursor:
        note(f"There are more: --cursor {page.next_cursor}")


@sessions.command()
def show(
    session: Annotated[str, typer.Argument(help="Which session.")],
    user: OneUser = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest items, this many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each item as stored, one a line.")] = False,
) -> None:
    """Print what was said in a session."""
    from ..sessions.records import SessionRef
    from .transcript import print_items, print_json

    ref = SessionRef(user, session).check()

    async def read(store: SessionStore) -> list[str]:
        if await store.find_session(ref) is None:
            raise await unknown(store, ref)
        return await store.tail(ref, limit)

    rows = with_store(read)
    print_json(rows) if as_json else print_items(rows)


@sessions.command()
def delete(
    session: Annotated[str | None, typer.Argument(help="Which session.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All sessions of --user.")] = False,
    user: AnyUser = None,
    yes: Yes = False,
) -> None:
    """Delete a session, or all of a user."""
    from ..sessions.records import SessionRef

    if all_ == (session is not None):
        raise typer.BadParameter("Name a session, or say --all.", param_hint="SESSION")
    if session is not None:
        ref = SessionRef(user or "", session).check()
        if not yes:
            confirm(f"Delete session {name(session, user)} for good?")

        async def work(store: SessionStore) -> None:
            if not await store.delete_session(ref):
                raise await unknown(store, ref)

        with_store(work)
        note("Deleted.")
        return
    if user is None:
        raise typer.BadParameter("Say whose sessions; --user '' for those without a user.", param_hint="--user")
    SessionRef(user, "any").check()
    if not yes:
        confirm(f"Delete all sessions of user {json.dumps(user)} for good?")
    gone = with_store(lambda store: store.delete_user(user))
    note(f"Deleted {count(gone, 'session')}.")


@sessions.command()
def prune(
    older_than: Annotated[str, typer.Option(help="Age, as in 30d, 12h or 4w.")],
    yes: Yes = False,
) -> None:
    """Delete sessions that were not written to for some time."""
    before = _time_before(older_than)
    if not yes:
        confirm(f"Delete all sessions last written before {when(before)}, for good?")
    with progress("Pruning") as advance:

        async def work(store: SessionStore) -> int:
            from ..sessions.paging import again

            total = 0
            while gone := await again(store, store.prune, before):
                total += gone
                advance(gone)
            return total

        total = with_store(work)
    note(f"Deleted {count(total, 'session')}.")


def _time_before(age: str) -> datetime:
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    match = re.fullmatch(r"([0-9]+)([mhdw])", age)
    try:
        if match is not None:
            return datetime.now(UTC) - timedelta(**{units[match[2]]: int(match[1])})
    except (OverflowError, ValueError):
        pass
    raise typer.BadParameter("Write a number and m, h, d or w, as in 30d.", param_hint="--older-than")


def _as_json(info: SessionInfo) -> dict[str, object]:
    return {
        "user_id": info.user_id,
        "session_id": info.session_id,
        "title": info.title,
        "item_count": info.item_count,
        "created_at": info.created_at.isoformat(),
        "updated_at": info.updated_at.isoformat(),
        "metadata": dict(info.metadata),
    }


def _columns(info: SessionInfo) -> tuple[str, ...]:
    return info.session_id, info.user_id, str(info.item_count), when(info.updated_at), info.title or ""


def _print_table(infos: list[SessionInfo]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("session", overflow="fold")
    table.add_column("user", overflow="fold")
    table.add_column("items", justify="right")
    table.add_column("last written", no_wrap=True)
    table.add_column("title", overflow="ellipsis", no_wrap=True)
    for info in infos:
        table.add_row(*(Text(clean(column)) for column in _columns(info)))
    Console().print(table)
