"""A store as an app uses it: it gives sessions, is opened and closed, and gets its connections at the first call."""

from __future__ import annotations

import asyncio
import os
import sys
from abc import abstractmethod
from collections.abc import Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from .contract import Admit, RowStore
from .errors import SessionStoreError
from .records import Id, SessionRef, id_text
from .retry import finish
from .session import StoredSession
from .settings import StoreSettings

if TYPE_CHECKING:
    from types import TracebackType

    from agents.memory import SessionSettings


class SessionStore(RowStore):
    """Where sessions are kept. One per process and event loop; sessions are light views on it."""

    def session(
        self,
        session_id: Id,
        *,
        user_id: Id = "",
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> StoredSession:
        """A view on one session; no I/O, nothing to close.

        Raises:
            InvalidSessionId: See `SessionRef.check`.
        """
        ref = SessionRef(self.owner(id_text("user_id", user_id)), session_id)
        return StoredSession(lambda: self, ref, session_settings)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


INHERITED = (
    "This was opened before the process forked, and its connections belong to the parent. "
    "In the child make a new store or session, on a new event loop (asyncio.run)."
)
"""Error for a child process that uses a store or session of its parent."""

_admitting: ContextVar[ConnectedStore | None] = ContextVar("_admitting", default=None)
"""The store that is being opened: the calls with which `Admit` looks around pass before all others do."""


class ConnectedStore(SessionStore):
    """A store with connections. A backend says how to connect, and awaits `open` before a call if not `_admitted`.

    It belongs to one event loop at a time, and to the process that opened it.
    """

    def __init__(self, settings: StoreSettings) -> None:
        super().__init__(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[None] | None = None
        self._callers = 0
        """How many calls wait for it."""
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
            self._connected = self._admitted = False
            self._opening, self._callers = None, 0
        while again or not self._admitted:
            # Calls that come at the same time share the attempt and its outcome, so their timeouts do not add up.
            self._opening = self._opening or asyncio.create_task(self._connect_and_admit())
            if await self._outcome(self._opening):
                again = False

    async def _connect_and_admit(self) -> None:
        admit = self._admit
        try:
            self._connected = True
            canary = await self._connect()
            token = _admitting.set(self)
            try:
                await admit(canary)
            finally:
                _admitting.reset(token)
        except BaseException:
            # A store that was open stays open: perhaps the server is away for a moment.
            if not self._admitted:
                self._connected = False
                await self._disconnect()
            raise
        self._admitted = admit == self._admit

    async def _outcome(self, opening: asyncio.Task[None]) -> bool:
        """Wait for it; False if it was given up by those who wanted it."""
        self._callers += 1
        try:
            await asyncio.wait({opening})
        except asyncio.CancelledError:
            if self._callers == 1:
                opening.cancel()
                await finish(opening, self.settings.session_settle_seconds)
            raise
        finally:
            self._callers -= 1
            if self._opening is opening and (opening.done() or not self._callers):
                self._opening = None
        if opening.cancelled():
            return False
        match error := opening.exception():
            case None:
                return True
            case SessionStoreError():
                # Each caller gets an error of its own. Its call was not sent: only the question of opening was.
                raise type(error)(str(error)) from error
            case _:
                raise error

    async def ping(self) -> None:
        await self.open(again=True)

    async def close(self) -> None:
        if self.inherited:
            return
        if (opening := self._opening) is not None and self._loop is asyncio.get_running_loop():
            opening.cancel()
            await finish(opening, self.settings.session_settle_seconds)
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
