"""Edit what was said, or have it answered anew: always on a copy, so that nothing is lost.

Usage::

    said = await fork_before(session, "chat-1 again")          # what the user said last, and all before it in a copy
    run_turn(agent, store.session("chat-1 again"), said, …)    # or other words in its place
"""

from __future__ import annotations

from typing import Any, cast

from agents.items import TResponseInputItem

from ..sessions import SessionRef, SessionStoreError, StoredSession
from ..sessions.codec import try_decode
from ..sessions.paging import again
from ..sessions.retry import with_retries
from .items import is_summary, is_user_message


class NothingToEdit(SessionStoreError):
    """There is no such message, or the copy would stand in the place of another session. Nothing was changed."""


async def fork_before(session: StoredSession, new_session_id: str, nth: int = 1) -> str:
    """Copy all that came before a message of the user into a new session of the same user.

    Args:
        session: The conversation.
        new_session_id: The name of the copy.
        nth: Which message, counted from the newest one, 1.

    Returns:
        The text of that message, without its images and files.

    Raises:
        NothingToEdit: There are fewer messages since the last summary, or there is such a session already.
        ValueError: `nth` is less than 1.
        SessionStoreError: The store failed.
    """
    if nth < 1:
        raise ValueError("nth counts from 1, the newest message.")
    store, before, left = session.store, None, nth
    while True:
        page = await again(store, store.page, session.ref, before)
        for row, position in zip(reversed(page.rows), reversed(page.positions), strict=True):
            item = try_decode(row)
            if item is not None and is_summary(item):
                raise NothingToEdit("A summary stands for what came before: it cannot be taken apart any more.")
            left -= item is not None and is_user_message(item)
            if item is not None and not left:
                await fork(session, new_session_id, position)
                return _text_of(item)
        if not page.more:
            raise NothingToEdit(f"Session {session.session_id!r} has fewer than {nth} messages of its user.")
        before = page.positions[0]


async def fork(session: StoredSession, new_session_id: str, before: int | None = None) -> None:
    """Copy a session, or what it holds before a position, into a new one of the same user.

    Raises:
        NothingToEdit: There is such a session already, or nothing to copy.
        SessionStoreError: The store failed; with `maybe_applied` the copy may be there.
    """
    store, ref = session.store, SessionRef(session.user_id, new_session_id).check()
    copied = await with_retries(
        lambda: store.fork(session.ref, ref, before), store.settings.session_retry_seconds, repeatable=False
    )
    if not copied:
        there = await again(store, store.find_session, session.ref)
        why = "There is no session" if there is None else "There is already a session"
        raise NothingToEdit(f"{why} {(session.session_id if there is None else new_session_id)!r}.")


def _text_of(item: TResponseInputItem) -> str:
    content: Any = cast(dict[str, Any], item).get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
