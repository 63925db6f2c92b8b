"""The SDK's session protocol over any store.

Usage::

    session = store.session("chat-1", user_id="ada")
    await Runner.run(agent, "Hi", session=session)
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .codec import UnreadableItem, decode_item, decode_items, encode_item, report_damage, role_of, title_of, try_decode
from .compaction import compaction_snapshot, replace_history
from .contract import RowStore
from .errors import InvalidSessionId, ItemTooLarge, WrongOwner
from .records import Batch, Row, SessionRef, Turn, id_text
from .retry import with_retries
from .strings import MAX_STRING, fit_strings
from .turn_buffer import TurnBuffer

if TYPE_CHECKING:
    from agents.items import TResponseInputItem
    from agents.memory import SessionSettings
    from agents.memory.session import _CompactionSnapshot
    from agents.run_context import RunContextWrapper

logger = logging.getLogger(__name__)
T = TypeVar("T")

_METHODS = ("get_items", "add_items", "pop_item", "clear_session")
"""What a subclass may override to change what goes in and what comes out."""


class StoredSession:
    """One conversation of one user. Cheap to create, without a connection of its own, nothing to close.

    Args:
        make_store: Gives the store where the items are.
        ref: Whose conversation, and which.
        session_settings: Default limit for reads; an object or a dict. May be assigned later as well.

    Raises:
        TypeError: The SDK refuses these settings.

    Every method may raise what `RowStore` raises, and `WrongOwner`.
    """

    def __init__(
        self,
        make_store: Callable[[], RowStore],
        ref: SessionRef,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        self._make_store = make_store
        self.ref = ref.check()
        self.session_id = self.ref.session_id
        self.user_id = self.ref.user_id
        self._settings: SessionSettings | None = None
        self.session_settings = session_settings
        self._buffer: TurnBuffer | None = None
        self._of: StoredSession | None = None

    def leased(self, buffer: TurnBuffer) -> Self:
        """This session for the run that holds its lease: what is added stays in `buffer` until `commit`.

        What is removed is removed at once, and nothing but `commit` looks at the lease.

        Raises:
            TypeError: A method was replaced on this object alone, and would write past the buffer.
        """
        if replaced := [name for name in _METHODS if name in vars(self)]:
            raise TypeError(f"Override {', '.join(replaced)} in a subclass of StoredSession, not on an object.")
        _ = self.store  # a store that sessions share counts the original, not the copy
        session = copy(self)
        session._buffer, session._of = buffer, self
        return session

    async def commit(self, turn: Turn) -> None:
        """Of a session as `leased` gave it: store all that was added and the turn's record, and give the lease back.

        In one write: all of it or nothing.

        Raises:
            LeaseLost: Another run took the session over, or it was deleted. Nothing is stored.
            asyncio.CancelledError: All of it is stored or nothing; that is settled by now.
        """
        buffer = self._buffer
        assert buffer is not None  # noqa: S101 - see above
        await self._store(Batch.of(buffer.added, buffer.title)._replace(turn=turn, release=True))
        buffer.released = True

    @property
    def session_settings(self) -> SessionSettings | None:
        """How reads are limited by default. Never None; the SDK's own protocol says that it may be."""
        if self._settings is None:
            from agents.memory import SessionSettings  # imported late: the SDK takes a second

            self._settings = SessionSettings()
        return self._settings

    @session_settings.setter
    def session_settings(self, settings: SessionSettings | dict[str, Any] | None) -> None:
        if settings is not None:
            from agents.memory.session_settings import coerce_session_settings

            settings = coerce_session_settings(settings)
        self._settings = settings

    @property
    def store(self) -> RowStore:
        """The store behind this session."""
        return self._make_store()

    # ── The protocol ────────────────────────────────────────────────────────

    async def get_items(
        self, limit: int | None = None, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The newest `limit` readable items, oldest first.

        Args:
            limit: None means the default of `session_settings`, and all if that has none; 0 or less means no items.
            wrapper: The run that asks. If its context carries a `user_id`, it must be this session's.
        """
        self._check_owner(wrapper)
        if limit is None and self._settings is not None:
            limit = self._settings.limit
        if limit is None:
            return self.readable(await self.tail(None))
        if limit <= 0:
            return []
        asked = limit
        while True:
            rows = await self.tail(asked)
            items = self.readable(rows)
            # Unreadable rows do not count towards the limit, so look further back until it is reached.
            if len(items) >= limit or len(rows) < asked:
                return items[-limit:]
            asked *= 2

    async def add_items(self, items: list[TResponseInputItem], wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Store all items after everything stored before, or none of them, exactly once.

        Raises:
            ItemTooLarge: An item exceeds `SESSION_MAX_ITEM_BYTES`, or contains a string that is too long for any model.
            TypeError: An item contains a value that JSON cannot represent.
        """
        self._check_owner(wrapper)
        if not items:
            return
        batch = self._batch(items)
        if self._buffer is None or self._buffer.at_once:
            await self._store(batch)
        else:
            self._buffer.add(batch)

    async def pop_item(self, wrapper: RunContextWrapper[Any] | None = None) -> TResponseInputItem | None:
        """Remove and return the newest readable item; None if there is none. Unreadable rows stay.

        If the connection is lost before the answer arrives, the item may be gone: `StoreUnavailable` says so.
        """
        self._check_owner(wrapper)
        return await self._pop()

    async def clear_session(self, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Remove all items; title and metadata stay."""
        self._check_owner(wrapper)
        if self._buffer is not None:
            self._buffer.added.clear()
            self._buffer.known = None
        # Not `clear` of the store: a first attempt that arrives late would take away what was written since.
        await self._replaced(None, Batch.of([]))

    # ── What the SDK's compaction looks for (private there; the template's proof pins it) ──

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        return not self.overridden and await replace_history(self, items)

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Callable[[TResponseInputItem], bool] | None = None
    ) -> _CompactionSnapshot | None:
        return None if self.overridden else await compaction_snapshot(self, limit, prune_prefix)

    @property
    def overridden(self) -> bool:
        """Whether a subclass changes what goes in or comes out, and compaction must not go past it."""
        return any(
            name in vars(self) or getattr(type(self), name) is not getattr(StoredSession, name) for name in _METHODS
        )

    async def replace_tail(
        self, expected_tail: Sequence[str] | None, items: list[TResponseInputItem], after: Sequence[Row] = ()
    ) -> bool:
        """Put `after` and `items` in the place of the newest rows, if their texts still are `expected_tail`.

        Args:
            expected_tail: Oldest first; None: all rows, whatever they are.
            items: What stands there then.
            after: Rows that come before the items, as they are.

        Returns:
            False if another writer came first: then nothing was changed.
        """
        batch = self._batch(items)
        return await self._replaced(expected_tail, batch._replace(rows=[*after, *batch.rows]))

    async def tail(self, limit: int | None) -> list[str]:
        """The newest `limit` rows as stored text, oldest first."""
        buffer = self._buffer
        if buffer is None:
            return await self._retried(lambda: self.store.tail(self.ref, limit))
        if (rows := buffer.newest(limit)) is not None:
            return rows
        left = None if limit is None else limit - len(buffer.added)
        stored = await self._retried(lambda: self.store.tail(self.ref, left))
        if buffer.known is not None:
            buffer.read(stored, left)
        return [*stored, *(row.content for row in buffer.added)]

    # ── Inside ──────────────────────────────────────────────────────────────

    async def _store(self, batch: Batch) -> None:
        """Store a batch; of a run, under its lease."""
        buffer = self._buffer
        if buffer is not None:
            batch = batch._replace(lease=buffer.lease, turn=batch.turn or buffer.turn)
        await self._changed(lambda: self.store.append(self.ref, batch))
        if buffer is not None:
            buffer.stored += len(batch.rows)

    def _batch(self, items: Sequence[TResponseInputItem]) -> Batch:
        rows = [Row(encode_item(item), role_of(item)) for item in items]
        settings = self.store.settings
        largest, mode = settings.session_max_item_bytes, settings.session_long_strings
        for index, row in enumerate(rows):
            name = f"Item {index + 1} of {len(rows)}"
            is_long = len(row.content) > MAX_STRING  # no string is longer than the row that it is in
            if is_long and mode == "cut":
                row = rows[index] = Row(encode_item(fit_strings(items[index], mode, name)), row.role)
            # Characters first: counting bytes is only needed near the limit (UTF-8 has at most 4 for one).
            if len(row.content) * 4 > largest and (size := len(row.content.encode())) > largest:
                raise ItemTooLarge(
                    f"{name} has {size:,} bytes, more than {largest:,}; nothing was stored. "
                    "Refer to large files by URL or file id, or raise SESSION_MAX_ITEM_BYTES."
                )
            if is_long and mode == "refuse":
                fit_strings(items[index], mode, name)
        return Batch.of(rows, title_of(items))

    def readable(self, rows: Sequence[str]) -> list[TResponseInputItem]:
        """The items that rows stand for, but for those that cannot be read, which are logged."""
        try:
            return decode_items(rows)
        except UnreadableItem:
            pass
        items, damaged = [], {}
        for age, row in enumerate(reversed(rows), 1):
            try:
                items.append(decode_item(row))
            except UnreadableItem as problem:
                damaged[age] = (row, str(problem))
        report_damage(self.store, self.ref, damaged)
        if self._buffer is not None:
            self._buffer.skipped = max(self._buffer.skipped, len(damaged))
        return items[::-1]

    async def _pop(self) -> TResponseInputItem | None:
        if self._buffer is not None:
            if self._buffer.added:
                return decode_item(self._buffer.added.pop().content)
            self._buffer.known = None
        text = await self._retried(lambda: self.store.pop_object(self.ref), repeatable=False)
        if text is None:
            return None
        if text:
            try:
                return decode_item(text)
            except UnreadableItem:
                # An object to the server and not to Python, such as one with a number of 5,000 digits: it goes back.
                batch = Batch.of([Row(text)])
                await self._changed(lambda: self.store.append(self.ref, batch))
        return await self._take_readable()

    async def _take_readable(self) -> TResponseInputItem | None:
        """Take the newest readable item out from under rows that cannot be read, which stay."""
        asked = 1
        while True:
            rows = await self.tail(asked)
            if not self.readable(rows):
                if len(rows) < asked:
                    return None
                asked *= 8
                continue
            index = max(index for index, row in enumerate(rows) if try_decode(row) is not None)
            if await self._taken(rows[index:]):
                return decode_item(rows[index])

    async def _taken(self, expected_tail: Sequence[str]) -> bool:
        return await self._retried(lambda: self.store.take(self.ref, expected_tail), repeatable=False)

    async def _replaced(self, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        return await self._changed(lambda: self.store.replace_tail(self.ref, expected_tail, batch))

    def _check_owner(self, wrapper: RunContextWrapper[Any] | None) -> None:
        context = wrapper.context if wrapper is not None else None
        owner = context.get("user_id") if isinstance(context, dict) else getattr(context, "user_id", None)
        if owner is not None and _as_text(owner) != self.user_id:
            raise WrongOwner(
                "This run belongs to another user than its session. "
                "Make the session with the user_id that the run's context carries."
            )

    async def _changed(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Carry out a repeatable change whose outcome must be known, even when the caller is cancelled."""
        settings = self.store.settings
        return await with_retries(
            operation,
            settings.session_retry_seconds,
            settle=settings.session_settle_seconds,
            on_retry=self._count_retry,
        )

    async def _retried(self, operation: Callable[[], Awaitable[T]], *, repeatable: bool = True) -> T:
        """Repeat an operation while the store is away, for `SESSION_RETRY_SECONDS` at most."""
        seconds = self.store.settings.session_retry_seconds
        return await with_retries(operation, seconds, repeatable=repeatable, on_retry=self._count_retry)

    def _count_retry(self) -> None:
        if self._buffer is not None:
            self._buffer.count_retry()


def _as_text(owner: object) -> str:
    """The user of a run, in whatever type the app has its ids."""
    try:
        return id_text("user_id", owner)
    except InvalidSessionId:
        return str(owner)
