"""`sessions check` and `sessions repair`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from .console import AnyUser, answer, count, name, note, unknown, with_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ..conversation.repair import Finding
    from ..sessions import SessionRef, SessionStore, StoredSession

Session = Annotated[str | None, typer.Argument(help="Which session.")]
All = Annotated[bool, typer.Option("--all", help="All sessions of --user, or of everybody.")]
Unreadable = Annotated[bool, typer.Option("--unreadable", help="Remove unreadable rows too. A lost key may be found!")]


def check(session: Session = None, user: AnyUser = None, all_: All = False) -> None:
    """Find what a model would refuse in stored sessions. Changes nothing; exit code 1 if there is something."""
    ref = _ref(session, user, all_)

    async def work(store: SessionStore) -> int:
        total = 0
        async for each in _chosen(store, ref, user):
            total += _print(each, await _problems(each))
        return total

    total = with_store(work)
    note("Nothing found." if not total else f"{count(total, 'problem')}. `sessions repair` shows what it would do.")
    if total:
        raise typer.Exit(1)


def repair(
    session: Session = None,
    user: AnyUser = None,
    all_: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without this, only say what would be done.")] = False,
    unreadable: Unreadable = False,
) -> None:
    """Take out what a model would refuse. Only shows it without --yes. Running it again changes nothing."""
    ref = _ref(session, user, all_)

    async def work(store: SessionStore) -> tuple[int, int]:
        from ..conversation.repair import repair

        named = done = 0
        async for each in _chosen(store, ref, user):
            found = await _problems(each, unreadable=unreadable)
            _print(each, found)
            todo = [finding for finding in found if finding.action != "keep"]
            named += len(todo)
            if yes and todo:
                done += len(await repair(each, todo))
        return named, done

    named, done = with_store(work)
    if yes:
        note(f"Repaired: {count(done, 'row')}.")
    else:
        note(f"Nothing was changed. --yes repairs {count(named, 'row')}." if named else "Nothing to repair.")


def _ref(session: str | None, user: str | None, all_: bool) -> SessionRef | None:
    """The session that is named; None for many."""
    from ..sessions.records import SessionRef

    if all_ == (session is not None):
        raise typer.BadParameter("Name a session, or say --all.", param_hint="SESSION")
    ref = SessionRef(user or "", session or "any").check()
    return ref if session is not None else None


async def _chosen(store: SessionStore, ref: SessionRef | None, user: str | None) -> AsyncIterator[StoredSession]:
    from ..sessions.paging import chosen_sessions

    if ref is not None:
        if await store.find_session(ref) is None:
            raise await unknown(store, ref)
        yield store.session(ref.session_id, user_id=ref.user_id)
        return
    async with aclosing(chosen_sessions(store, user)) as found:
        async for info in found:
            yield store.session(info.session_id, user_id=info.user_id)


async def _problems(session: StoredSession, *, unreadable: bool = False) -> list[Finding]:
    from ..conversation.repair import find_problems

    return find_problems(await session.tail(None), unreadable=unreadable)


def _print(session: StoredSession, found: Sequence[Finding]) -> int:
    for finding in found:
        where = f"{name(session.session_id, session.user_id)}, row {finding.position}"
        answer(f"{where} ({finding.kind}): {finding.problem}: {finding.action}")
    return len(found)
