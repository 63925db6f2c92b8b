"""`sessions fork` and `sessions stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import AnyUser, CommandError, answer, name, note, unknown, with_store

if TYPE_CHECKING:
    from ..sessions import SessionStore


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
