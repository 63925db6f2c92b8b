"""Sessions that are made without a store: all with the same settings share one per event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet, WeakValueDictionary, finalize

from .errors import SessionStoreError
from .layers import layer_settings, wrap_store
from .records import SessionRef
from .retry import hidden, unnoticed
from .session import StoredSession
from .settings import Hidden, StoreSettings
from .store import INHERITED, SessionStore

if TYPE_CHECKING:
    from agents.memory import SessionSettings

REST_SECONDS = 5.0
"""How long the store that was forgotten last stays open for the next session: a web app makes one for each request."""
CLOSE_SECONDS = 5.0
"""How long closing a forgotten store may take, and hold up the end of its event loop."""

logger = logging.getLogger(__name__)


Place = tuple[asyncio.AbstractEventLoop, Hidden]
"""Where a store can be used: its event loop, and what its sessions have in common."""


class _Share:
    """A store on the running event loop. The sessions that use it hold it, and nothing else does."""

    def __init__(self, place: Place, store: SessionStore) -> None:
        self.store = store
        self.users: WeakSet[SharedStoreSession] = WeakSet()
        self.forgotten = finalize(self, _when_forgotten, place, store, os.getpid())
        self.forgotten.atexit = False


class _Rest:
    """A store that no session uses any more, before it is closed."""

    def __init__(self, place: Place, store: SessionStore) -> None:
        self.place = place
        self.store: SessionStore | None = store
        """None while sessions use it again."""
        self.since = monotonic()
        self.ended = asyncio.Event()


_shares: WeakValueDictionary[Place, _Share] = WeakValueDictionary()
"""No two threads look for the same entry, since a loop runs in one, and nothing iterates over it: so no lock."""

_resting: dict[asyncio.AbstractEventLoop, _Rest] = {}
"""One for each loop, so that forgotten stores do not pile up. Only the thread of the loop looks for it."""

_closing: set[asyncio.Task[None]] = set()
"""Event loops hold their tasks weakly."""


class SharedStoreSession(StoredSession):
    """A session that finds its store when it is first used, and should be closed.

    If it is not, its share is given up when Python collects it, and the last one's store closed a few seconds later;
    only `close` waits until connections are closed.

    Args:
        settings: Sessions share a store if these are equal, and so is what the layers read (see `layers.py`).
        make_store: Makes the store, without I/O.
        ref, session_settings: As for `StoredSession`.
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
            store = _take_resting(place) or wrap_store(self._make_shared(), self._layer_settings)
            share = _shares[place] = _Share(place, store)
        share.users.add(self)
        self._shares[loop] = share
        return share


def _when_forgotten(place: Place, store: SessionStore, process: int) -> None:
    """Let a store rest that no session uses any more. Called by Python, in any thread at any time."""
    loop, _ = place
    if process != os.getpid() or loop.is_closed():
        return  # its connections are those of the parent, or died with their loop
    if asyncio._get_running_loop() is loop:
        _let_rest(place, store)
    else:
        with suppress(RuntimeError):  # the loop was closed just now
            loop.call_soon_threadsafe(_let_rest, place, store, context=Context())


def _let_rest(place: Place, store: SessionStore) -> None:
    loop, _ = place
    rest = _resting.get(loop)
    if rest is not None and rest.place == place and rest.store is None:
        rest.store, rest.since = store, monotonic()  # its task still waits
        return
    if rest is not None:
        rest.ended.set()
    rest = _resting[loop] = _Rest(place, store)
    # Not loop.create_task: it may begin at once, in the middle of whatever made Python collect the session.
    task = unnoticed(asyncio.Task(_close_later(rest), loop=loop, context=Context()))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _take_resting(place: Place) -> SessionStore | None:
    rest = _resting.get(place[0])
    if rest is None or rest.place != place:
        return None
    store, rest.store = rest.store, None
    return store


async def _close_later(rest: _Rest) -> None:
    loop, _ = rest.place
    with suppress(asyncio.CancelledError):  # the event loop ends
        while not rest.ended.is_set() and (left := rest.since + REST_SECONDS - monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await rest.ended.wait()
    if _resting.get(loop) is rest:
        del _resting[loop]
    if rest.store is not None:
        await _close(rest.store)


async def _close(store: SessionStore) -> None:
    """Close a store, even while the event loop ends: `asyncio.run` cancels all tasks that it knows, and waits for them.

    It waits for this one, and does not know the one that closes.
    """
    closing = hidden(asyncio.create_task(_close_in_time(store)))
    while not closing.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({closing})


async def _close_in_time(store: SessionStore) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await store.close()
    except Exception as error:
        logger.warning("A store that no session uses any more could not be closed: %s", type(error).__name__)
