"""How a store gets its connections: at the first call on an event loop, with one question to the server."""

from __future__ import annotations

import asyncio
import os
import sys
from abc import abstractmethod
from contextvars import ContextVar
from weakref import WeakSet

from .store import Admit, SessionStore, SessionStoreError, StoreSettings

INHERITED = (
    "This was opened before the process forked, and its connections belong to the parent. "
    "In the child make a new store or session, on a new event loop (asyncio.run)."
)
"""What a child is told that uses a store or session of its parent."""

_admitting: ContextVar[ConnectedStore | None] = ContextVar("_admitting", default=None)
"""The store that is being opened: the calls with which `Admit` looks around pass before all others do."""


class ConnectedStore(SessionStore):
    """A store with connections. A backend says how to connect, and awaits `open` before a call if not `_admitted`.

    It belongs to one event loop at a time, and to the process that opened it.
    """

    def __init__(self, settings: StoreSettings) -> None:
        super().__init__(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._connected = self._admitted = False

    @abstractmethod
    async def _connect(self) -> str | None:
        """Connect if needed, check that the schema fits, and return what `canary` would: all in one question."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Close every connection."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop the connections of an event loop that was closed, or of a parent process, without closing them."""

    def guard(self, admit: Admit) -> None:
        super().guard(admit)
        self._admitted = False

    async def open(self, *, again: bool = False) -> None:
        if _admitting.get() is self:
            return
        if self._moved_to_this_loop():
            self._forget()
            self._opening = asyncio.Lock()
            self._connected = self._admitted = False
        async with self._opening:
            if self._admitted and not again:
                return
            try:
                self._connected = True
                canary = await self._connect()
                token = _admitting.set(self)
                try:
                    await self._admit(canary)
                finally:
                    _admitting.reset(token)
            except BaseException:
                # One that was open goes on: perhaps the server is away for a moment.
                if not self._admitted:
                    self._connected = False
                    await self._disconnect()
                raise
            self._admitted = True

    async def ping(self) -> None:
        await self.open(again=True)

    async def close(self) -> None:
        if not self.inherited:
            self._connected = self._admitted = False
            await self._disconnect()

    @property
    def inherited(self) -> bool:
        return self in _inherited

    def _moved_to_this_loop(self) -> bool:
        """Whether another event loop runs than at the last call, so that what was opened there is of no use here.

        Raises:
            SessionStoreError: The other loop still uses it, or the parent of this process.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return False
        if self._connected and self.inherited:
            raise SessionStoreError(INHERITED)
        if self._connected and self._loop is not None and not self._loop.is_closed():
            raise SessionStoreError("This store is in use on another event loop. Open one store for each loop.")
        self._loop = loop
        _used.add(self)
        _inherited.discard(self)
        return True


_used: WeakSet[ConnectedStore] = WeakSet()
_inherited: set[ConnectedStore] = set()
"""Kept for ever: were they collected, their connections would be closed, and the parent would not hear of its own any
more, because both processes have the same selector."""


def _disown() -> None:
    for store in _used:
        if store._loop is not None and not store._loop.is_closed():
            _inherited.add(store)
            store._loop = None  # no loop is this one's, so the next call asks `_moved_to_this_loop`


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_disown)
