"""Conversations that the SDK's own session classes have stored, brought into our store. The source is only read.

Each session is imported as one of an exported file is: every text exactly as the SDK stored it, in the SDK's order,
whole or not at all, and doing it again changes nothing. What cannot be read is left where it is, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from ..sessions.codec import UnreadableItem, decode_item, title_of
from ..sessions.errors import InvalidSessionId, ItemTooLarge
from ..sessions.records import SessionInfo
from ..sessions.refs import SessionRef
from ..sessions.store import SessionStore
from .sessions import OnConflict, Outcome, import_session

_BROKEN = "\ufffd"
"""What a source gives for bytes that are not UTF-8. The SDK itself writes ASCII, unless it is told otherwise."""


class SdkSource(Protocol):
    """The database of a session class of the SDK."""

    async def session_ids(self) -> list[str]:
        """All sessions that have items, those first that were written first."""

    async def rows(self, session_id: str) -> list[tuple[int, str]]:
        """Number and stored text of every row, oldest first. Bytes that are not UTF-8 have become U+FFFD."""


async def import_from(
    source: SdkSource,
    store: SessionStore,
    session_ids: Sequence[str],
    *,
    user_id: str = "",
    on_conflict: OnConflict = "refuse",
    dry_run: bool = False,
    report: Callable[[SessionRef, Outcome, int], None] = lambda ref, outcome, items: None,
    left_out: Callable[[str, int | None, str], None] = lambda session_id, row, reason: None,
) -> None:
    """Bring these sessions of `source` into the store.

    Args:
        user_id: Whose they are; the SDK's sessions know no users.
        on_conflict: See `transfer.import_sessions`.
        dry_run: Only find out the outcomes.
        report: Called after each session, with the number of its items.
        left_out: Called with what cannot be imported: a row and why, or None for the whole session.

    Raises:
        ItemTooLarge: An item exceeds `SESSION_MAX_ITEM_BYTES`. Nothing of its session was imported.
    """
    for session_id in session_ids:
        ref = SessionRef(user_id, session_id)
        try:
            ref.check()
        except InvalidSessionId as problem:
            left_out(session_id, None, str(problem))
            continue
        rows = await source.rows(session_id)
        if not rows and _BROKEN in session_id:
            left_out(session_id, None, "its id is not UTF-8")
        contents = []
        for number, text in rows:
            reason = _unreadable(text)
            if reason is None:
                _check_size(text, number, ref, store.settings.session_max_item_bytes)
                contents.append(text)
            else:
                left_out(session_id, number, reason)
        if not contents:
            continue
        now = datetime.now(UTC)  # not used: a store sets its own times
        title = title_of(map(decode_item, contents))
        info = SessionInfo(*ref, title, len(contents), now, now, {})
        report(ref, await import_session(store, info, contents, on_conflict, dry_run), len(contents))


def _unreadable(text: str) -> str | None:
    if _BROKEN in text:
        return "not UTF-8"
    try:
        decode_item(text)
    except UnreadableItem as problem:
        return str(problem)
    return None


def _check_size(text: str, number: int, ref: SessionRef, largest: int) -> None:
    if len(text) * 4 > largest and (size := len(text.encode())) > largest:
        raise ItemTooLarge(
            f"Row {number} of {ref.session_id!r} has {size:,} bytes, more than {largest:,}. "
            "Raise SESSION_MAX_ITEM_BYTES."
        )
