"""Going through sessions and rows: cursors for listings, places in a session, walks while the app writes on."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import NamedTuple, ParamSpec, TypeVar

from .contract import RowStore
from .errors import SessionStoreError
from .records import Content, SessionInfo, SessionRef, check_aware
from .retry import with_retries


def encode_cursor(last: SessionInfo) -> str:
    """A cursor for the page after `last`."""
    place = [last.updated_at.isoformat(), last.user_id, last.session_id]
    return urlsafe_b64encode(json.dumps(place).encode()).decode()


def decode_cursor(cursor: str) -> tuple[datetime, str, str]:
    """When the last session seen was written, its user id, its session id.

    Raises:
        ValueError: Invalid cursor.
    """
    try:
        updated_at, user_id, session_id = json.loads(urlsafe_b64decode(cursor))
        return check_aware(datetime.fromisoformat(updated_at)), str(user_id), str(session_id)
    except (ValueError, TypeError):
        raise ValueError("Invalid cursor. Pass the `next_cursor` of an earlier page.") from None


class Place(NamedTuple):
    """A row of a session whose number is known, so that the rows after it are found without counting from the first.

    Rows are only removed from the end: as long as this one exists, its number stays.
    """

    ref: SessionRef
    row_id: int | None = None
    """None: the place before the first row."""
    rows: int = 0
    """How many rows there are up to this one."""


class Bookmark:
    """Where the last rewriting of a store ended, so that the next one begins there."""

    def __init__(self) -> None:
        self._place: Place | None = None

    async def rewrite(
        self,
        attempt: Callable[[Place, Content, Content], Awaitable[int | None]],
        ref: SessionRef,
        before: Content,
        after: Content,
    ) -> bool:
        """Do what `RowStore.rewrite` promises.

        Args:
            attempt: Rewrites, counting rows from a place; the id of the last row that it compared, None if it found
                something else than `before`.
        """
        place = self._place
        if place is None or place.ref != ref or place.rows > before.first:
            place = Place(ref)
        last = await attempt(place, before, after)
        if last is None and place.row_id is not None:  # that row may have been removed
            last = await attempt(Place(ref), before, after)
        if last is not None and before.rows:
            self._place = Place(ref, last, before.first + len(before.rows))
        return last is not None


P = ParamSpec("P")
T = TypeVar("T")

_PAGE = 500
_SLOW_COMMIT = timedelta(minutes=1)
"""How much later than its `updated_at` a write may become visible."""


class NoSuchSession(SessionStoreError):
    """The session that was asked for does not exist."""


async def chosen_sessions(
    store: RowStore, user_id: str | None = None, session_id: str | None = None
) -> AsyncGenerator[SessionInfo, None]:
    """All sessions, one user's, or one. A session that is written to concurrently is not missed."""
    if session_id is not None:
        ref = SessionRef(user_id or "", session_id).check()
        info = await again(store, store.find_session, ref)
        if info is None:
            raise NoSuchSession(f"There is no session {session_id!r} of user {ref.user_id!r}.")
        yield info
        return

    # A session that is written to moves to the front of the listing, past this walk. So walk again over what was
    # written since the last walk began, until nothing new turns up. Sessions that were begun after the export are
    # left out, or it might never end.
    seen: set[SessionRef] = set()
    begin = walked_from = None
    found = True
    while found:
        found, newest = False, None
        async for info in _listing(store, user_id):
            newest = newest or info.updated_at
            begin = begin or newest
            if walked_from is not None and info.updated_at < walked_from - _SLOW_COMMIT:
                break
            ref = SessionRef(info.user_id, info.session_id)
            if ref not in seen and info.created_at <= begin:
                found = True
                seen.add(ref)
                yield info
        walked_from = newest


async def _listing(store: RowStore, user_id: str | None) -> AsyncGenerator[SessionInfo, None]:
    cursor: str | None = None
    while True:
        page = await again(store, store.list_sessions, user_id, _PAGE, cursor)
        for info in page.sessions:
            yield info
        if (cursor := page.next_cursor) is None:
            return


async def again(store: RowStore, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a method of the store, and again while the store is away, for `SESSION_RETRY_SECONDS` at most."""
    return await with_retries(lambda: method(*args, **kwargs), store.settings.session_retry_seconds)
