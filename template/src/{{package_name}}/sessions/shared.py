"""Sessions that are made without a store: all with the same settings share one per event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet, WeakValueDictionary, finalize

from .errors import SessionStoreError
from .layers import layer_settings, wrap_store
from .opening import INHERITED
from .refs import SessionRef
from .session import StoredSession
from .settings import Hidden, StoreSettings
from .store import SessionStore

if TYPE_CHECKING:
    from agents.memory import SessionSettings

CLOSE_SECONDS = 5.0
"""How long closing a forgotten store may take, and hold up the end of its event loop."""

logger = logging.getLogger(__name__)


class _Share:
    """A store on the running event loop. The sessions that use it hold it, and nothing else does."""

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self.users: WeakSet[SharedStoreSession] = WeakSet()
        self.forgotten = finalize(self, _close_forgotten, store, asyncio.get_running_loop(), os.getpid())
        self.forgotten.atexit = False


_shares: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, Hidden], _Share] = WeakValueDictionary()
"""No two threads look for the same entry, since a loop runs in one, and nothing iterates over it: so no lock."""

_closing: set[asyncio.Task[None]] = set()
"""Event loops hold their tasks weakly."""


class SharedStoreSession(StoredSession):
    """A session that finds its store when it is first used, and should be closed.

    If it is not, its share is given up when Python collects it; only `close` waits until connections are closed.

    Args:
        settings: Sessions share a store if these are equal, and so is what the layers read (see `layers.py`).
        make_store: Makes the store, without I/O.
        key, session_settings: As for `StoredSession`.
        token: What else they must have in common.
    """

    def __init__(
        self,
        settings: StoreSettings,
        make_store: Callable[[], SessionStore],
        ref: SessionRef,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        *,
        token: object = None,
    ) -> None:
        super().__init__(make_store, ref, session_settings)
        self._make_shared = make_store
        self._layer_settings = layer_settings(settings)
        self._address = Hidden((type(self), settings, self._layer_settings, token))
        self._shares: dict[asyncio.AbstractEventLoop, _Share] = {}

    @property
    def store(self) -> SessionStore:
        """The shared store on the running event loop, for as long as this session exists.

        Raises:
            SessionStoreError: The parent of this process, from which it was forked, uses this session.
        """
        loop = asyncio.get_running_loop()
        share = self._shares.get(loop)
        return (share or self._join(loop)).store

    async def close(self) -> None:
        """Give up this session's share; the last one closes the store. Using the session again opens it again."""
        loop = asyncio.get_running_loop()
        share = self._shares.pop(loop, None)
        if share is None:
            return
        share.users.discard(self)
        if not share.users:
            if _shares.get((loop, self._address)) is share:
                del _shares[loop, self._address]
            await share.store.close()
            share.forgotten.detach()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _join(self, loop: asyncio.AbstractEventLoop) -> _Share:
        if any(share.store.inherited for share in list(self._shares.values())):
            raise SessionStoreError(INHERITED)
        for other in list(self._shares):
            if other.is_closed():  # its connections died with it
                self._shares.pop(other, None)
        place = (loop, self._address)
        share = _shares.get(place)
        if share is None:
            share = _shares[place] = _Share(wrap_store(self._make_shared(), self._layer_settings))
        share.users.add(self)
        self._shares[loop] = share
        return share


def _close_forgotten(store: SessionStore, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """Close a store that no session uses any more, on its own loop. Called by Python, in any thread at any time."""
    if process != os.getpid() or loop.is_closed():
        return  # its connections are those of the parent, or died with their loop
    if asyncio._get_running_loop() is loop:
        _begin_closing(store, loop)
    else:
        with suppress(RuntimeError):  # the loop was closed just now
            loop.call_soon_threadsafe(_begin_closing, store, loop, context=Context())


def _begin_closing(store: SessionStore, loop: asyncio.AbstractEventLoop) -> None:
    # Not loop.create_task: it may begin at once, in the middle of whatever made Python collect the session.
    task = asyncio.Task(_close(store), loop=loop, context=Context())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _close(store: SessionStore) -> None:
    """Close a store, even while the event loop ends: `asyncio.run` cancels all tasks that it knows, and waits for them.

    It waits for this one, and does not know the one that closes.
    """
    closing = asyncio.ensure_future(_close_in_time(store))
    asyncio._unregister_task(closing)
    while not closing.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({closing})


async def _close_in_time(store: SessionStore) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await store.close()
    except Exception as error:
        logger.warning("A store that no session uses any more could not be closed: %s", type(error).__name__)
