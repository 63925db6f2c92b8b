"""Sessions that are made without a store: all with the same address share one per event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from .layers import layered
from .opening import INHERITED
from .session import StoredSession
from .store import SessionKey, SessionStore, SessionStoreError

if TYPE_CHECKING:
    from agents.memory import SessionSettings


@dataclass
class _Shared:
    store: SessionStore
    users: WeakSet[SharedStoreSession] = field(default_factory=WeakSet)


_shared: dict[tuple[asyncio.AbstractEventLoop, Hashable], _Shared] = {}


class SharedStoreSession(StoredSession):
    """A session that finds its store by address when it is first used, and must be closed.

    Args:
        address: What sessions must have in common to share a store.
        make_store: Makes the store, without I/O.
        key, session_settings: As for `StoredSession`.
    """

    def __init__(
        self,
        address: Hashable,
        make_store: Callable[[], SessionStore],
        key: SessionKey,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        super().__init__(make_store, key, session_settings)
        self._address = address

    @property
    def store(self) -> SessionStore:
        """The shared store on the running event loop.

        Raises:
            SessionStoreError: The parent of this process, from which it was forked, uses this session.
        """
        place = (asyncio.get_running_loop(), self._address)
        shared = _shared.get(place)
        if shared is None:
            if any(self in other.users and other.store.inherited for other in _shared.values()):
                raise SessionStoreError(INHERITED)
            for loop, address in list(_shared):
                if loop.is_closed():  # its connections died with it
                    del _shared[loop, address]
            shared = _shared[place] = _Shared(layered(self._make_store()))
        shared.users.add(self)
        return shared.store

    async def close(self) -> None:
        """Give up this session's share; the last one closes the store. Using the session again opens it again."""
        place = (asyncio.get_running_loop(), self._address)
        shared = _shared.get(place)
        if shared is not None and self in shared.users:
            shared.users.discard(self)
            if not shared.users:
                del _shared[place]
                await shared.store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
