"""`sessions turns`, `sessions fork` and `sessions stop`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .console import AnyUser, CommandError, answer, clean, name, note, unknown, with_store

if TYPE_CHECKING:
    from ..sessions import SessionRef, SessionStore
    from ..sessions.records import Turn


def fork(
    session: Annotated[str, typer.Argument(help="Which session.")],
    new: Annotated[str, typer.Argument(help="What the copy is called.")],
    user: AnyUser = None,
    before_message: Annotated[
        int | None,
        typer.Option("--before-message", min=1, help="Only what came before this message of the user; 1: the newest."),
    ] = None,
) -> None:
    """Copy a session. With --before-message 1 the last message can be said again, in other words too: it is printed."""
    from ..sessions.records import SessionRef

    ref = SessionRef(user or "", session).check()

    async def work(store: SessionStore) -> str | None:
        from ..conversation.edit import fork, fork_before

        if await store.find_session(ref) is None:
            raise await unknown(store, ref)
        view = store.session(session, user_id=ref.user_id)
        if before_message is not None:
            return await fork_before(view, new, before_message)
        await fork(view, new)
        return None

    said = with_store(work)
    note(f"Copied to session {name(new, user)}.")
    if said is not None:
        answer(said)


def stop(session: Annotated[str, typer.Argument(help="Which session.")], user: AnyUser = None) -> None:
    """Stop the run that is at work on a session, in whatever process. Nothing of its turn is stored."""
    from ..sessions.records import SessionRef

    ref = SessionRef(user or "", session).check()
    if not with_store(lambda store: store.release(ref, None)):
        raise CommandError(f"No run is at work on session {name(session, user)}.")
    note("Stopped. The run notices within two seconds.")


def turns(
    session: Annotated[str | None, typer.Argument(help="Which session; without it, all.")] = None,
    user: AnyUser = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many turns of the session at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object a line.")] = False,
) -> None:
    """List the turns of a session, the newest first, and what they cost; without a session, what waits for approval."""

    async def work(store: SessionStore) -> list[dict[str, object]]:
        from ..sessions.paging import again, chosen_sessions
        from ..sessions.records import SessionRef

        if session is not None:
            ref = SessionRef(user or "", session).check()
            if await store.find_session(ref) is None:
                raise await unknown(store, ref)
            return [_fields(ref, turn) for turn in await again(store, store.turns, ref, limit)]
        waiting = []
        async for info in chosen_sessions(store, user):
            ref = SessionRef(info.user_id, info.session_id)
            newest = await again(store, store.turns, ref, 1)
            waiting += [_fields(ref, turn) for turn in newest if turn.status == "approval"]
        return waiting

    found = with_store(work)
    if not found:
        note("No turn is noted." if session is not None else "Nothing waits for an approval.")
    for fields in found:
        if as_json:
            answer(json.dumps(fields))
            continue
        tokens = f"{fields['input_tokens']} + {fields['output_tokens']} tokens"
        columns = (fields["session"], fields["user"], fields["status"], fields["agent"], tokens, fields["waits_for"])
        answer("\t".join(clean(str(column)) for column in columns).rstrip())
    if session is not None and found and not as_json:
        total = cast(dict[str, int], found[0]["total"])
        note("In all: " + ", ".join(f"{value} {what.replace('_', ' ')}" for what, value in total.items()) + ".")


def _fields(ref: SessionRef, turn: Turn) -> dict[str, object]:
    from ..conversation.notes import TurnNote

    noted = TurnNote.of(turn) or TurnNote("?")
    waits = [f"{call['name']}({call['arguments']})" for call in noted.calls]
    return {
        "session": ref.session_id,
        "user": ref.user_id,
        "turn": turn.id,
        "status": turn.status,
        "agent": noted.agent,
        **asdict(noted.usage),
        "waits_for": " ".join(waits) if turn.status == "approval" else "",
        "total": asdict(noted.total),
    }
