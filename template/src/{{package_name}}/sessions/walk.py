"""Going through all sessions of a store while the app writes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from typing import ParamSpec, TypeVar

from .contract import RowStore
from .errors import SessionStoreError
from .records import SessionInfo
from .refs import SessionRef
from .retry import with_retries

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
