"""The session that the Runner sees during one turn: what the turn adds stays in memory until it is stored as a whole.

The SDK writes the user's message before it asks the model, and each step of the agent by itself. A turn that breaks off
would leave a message without an answer, which a retry doubles, or a prompt that a guardrail has blocked.
"""

from __future__ import annotations

from copy import deepcopy
from inspect import signature
from typing import TYPE_CHECKING, Any

from ..sessions import StoredSession
from ..sessions.codec import decode_items
from ..sessions.records import Turn
from .hold import Hold

if TYPE_CHECKING:
    from agents.items import TResponseInputItem
    from agents.run_context import RunContextWrapper

_METHODS = ("get_items", "add_items", "pop_item", "clear_session")


class TurnSession:
    """A session of the SDK for one turn; use it once. Nothing is stored before `commit`.

    Args:
        held: The session, which belongs to this run, and what was read of it. It is written once. A subclass is used
            through the methods that it overrides.
        at_once: Store each step when it is added instead. For a turn that is resumed after an approval: its tools were
            allowed once and have acted, and the `RunState` keeps account of what is stored.
    """

    def __init__(self, held: Hold, *, at_once: bool = False) -> None:
        session = held.session
        self.session_id = session.session_id
        self.session_settings = session.session_settings
        self.stored = 0
        """Items that this turn has stored."""
        self._session = session
        self._at_once = at_once
        # As text: what comes back is what the store would return, whatever the SDK does with its objects later.
        self._added: list[str] = []
        self._note = held.note
        self._history = None if session.overridden else held.items
        self._is_all = held.is_all
        self._wrapper: RunContextWrapper[Any] | None = None
        # As the SDK does with methods that a subclass overrides: all four take it, or none gets it.
        self._passes_wrapper = all("wrapper" in signature(getattr(session, name)).parameters for name in _METHODS)

    async def get_items(
        self, limit: int | None = None, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The newest `limit` items, oldest first: those stored before this turn, then those of this turn.

        Raises:
            SessionStoreError: As `StoredSession.get_items`.
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if limit is not None and 0 < limit <= len(self._added):
            return decode_items(self._added[-limit:])
        if limit is None or limit > 0:
            earlier = await self._before(None if limit is None else limit - len(self._added), wrapper)
            return [*earlier, *decode_items(self._added)]
        return []

    async def add_items(self, items: list[TResponseInputItem], wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Keep the items for `commit`.

        Raises:
            ItemTooLarge: An item exceeds `SESSION_MAX_ITEM_BYTES`.
            TypeError: An item contains a value that JSON cannot represent.
            WrongOwner: The run belongs to another user.
        """
        if self._at_once:
            await self._store(items, wrapper)
            return
        self._wrapper = wrapper
        self._added += self._session.check_items(items, wrapper)

    async def pop_item(self, wrapper: RunContextWrapper[Any] | None = None) -> TResponseInputItem | None:
        """Take back the newest item of this turn; without one, remove the newest stored item, at once."""
        if self._added:
            return decode_items([self._added.pop()])[0]
        self._history = None
        return await self._session.pop_item(**self._passed(wrapper))

    async def clear_session(self, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Forget the items of this turn, and remove all that are stored, at once."""
        self._added.clear()
        self._history = None
        await self._session.clear_session(**self._passed(wrapper))

    async def commit(self, turn: Turn) -> None:
        """Store what this turn added and its record, and give the lease back: all of it or nothing, in one write.

        The run must have ended.

        Raises:
            SessionStoreError: It is not stored; after `StoreUnavailable` with `maybe_applied` it may be, as a whole.
            LeaseLost: Another run took the session over, or it was deleted. Nothing is stored.
            asyncio.CancelledError: All of it is stored or nothing; that is settled by now.
        """
        self._note.turn, self._note.release = turn, True
        if self._added:
            await self._store(decode_items(self._added), self._wrapper)
            self._added.clear()
        else:  # nothing that a subclass could change
            await StoredSession.add_items(self._session, [])

    async def _store(self, items: list[TResponseInputItem], wrapper: RunContextWrapper[Any] | None) -> None:
        """The one place where a turn writes."""
        await self._session.add_items(items, **self._passed(wrapper))
        self.stored += len(items)

    async def _before(self, limit: int | None, wrapper: RunContextWrapper[Any] | None) -> list[TResponseInputItem]:
        """The newest stored items; read again only if more are asked for than before."""
        known = self._history
        # It is what came with the lease. In a handoff the SDK asks for the last few items once more.
        if known is not None and not self._at_once and (self._is_all or (limit is not None and limit <= len(known))):
            return deepcopy(known if limit is None else known[-limit:])
        items = await self._session.get_items(limit, **self._passed(wrapper))
        self._history, self._is_all = list(items), limit is None or len(items) < limit
        return items

    def _passed(self, wrapper: RunContextWrapper[Any] | None) -> dict[str, Any]:
        return {"wrapper": wrapper} if self._passes_wrapper else {}
