"""A store in which one write fails, before it is carried out or after it. The real store stays behind it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NoReturn, TypeVar
from uuid import UUID

from my_agent.sessions import SessionInfo, SessionPage, SessionRef, SessionStore, StoreUnavailable
from my_agent.sessions.contract import Admit
from my_agent.sessions.records import Batch, Content, Id, Leased, RowPage, Turn

T = TypeVar("T")
When = Literal["before", "after"]


def lose_connection() -> NoReturn:
    raise StoreUnavailable("The connection was lost.", maybe_applied=True)


def die() -> NoReturn:
    """As a process does that is killed: nothing is closed, nothing is cleaned up."""
    os._exit(1)


class FaultyStore(SessionStore):
    """Fails at the n-th write of items, which is an `append` or a `replace_tail`.

    Args:
        inner: Where everything goes.
        fails_at: Which write it is, from 1 on. A repeat of a write counts as the same one.
        when: Before the write is carried out, or after it, so that nothing but the answer is lost.
        fault: What happens.
        recovers: A repeat gets through. Otherwise the write fails each time, and nobody waits for long.
    """

    def __init__(
        self,
        inner: SessionStore,
        fails_at: int,
        when: When,
        fault: Callable[[], NoReturn] = lose_connection,
        *,
        recovers: bool = False,
    ) -> None:
        seconds = inner.settings.session_retry_seconds if recovers else 0.0
        super().__init__(inner.settings.model_copy(update={"session_retry_seconds": seconds}))
        self.inner, self.fails_at, self.when, self.fault, self.recovers = inner, fails_at, when, fault, recovers
        self.writes: list[UUID] = []

    async def _write(self, batch: Batch, write: Callable[[], Awaitable[T]]) -> T:
        repeated = batch.id in self.writes
        if not repeated:
            self.writes.append(batch.id)
        fails = self.writes.index(batch.id) == self.fails_at - 1 and not (repeated and self.recovers)
        if fails and self.when == "before":
            self.fault()
        outcome = await write()
        if fails:
            self.fault()
        return outcome

    async def append(self, ref: SessionRef, batch: Batch) -> None:
        await self._write(batch, lambda: self.inner.append(ref, batch))

    async def replace_tail(self, ref: SessionRef, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        return await self._write(batch, lambda: self.inner.replace_tail(ref, expected_tail, batch))

    # ── The rest is as it is ────────────────────────────────────────────────

    async def tail(self, ref: SessionRef, limit: int | None) -> list[str]:
        return await self.inner.tail(ref, limit)

    async def pop(self, ref: SessionRef) -> str | None:
        return await self.inner.pop(ref)

    async def pop_object(self, ref: SessionRef) -> str | None:
        return await self.inner.pop_object(ref)

    async def take(self, ref: SessionRef, expected_tail: Sequence[str]) -> bool:
        return await self.inner.take(ref, expected_tail)

    async def page(self, ref: SessionRef, before: int | None = None, limit: int = 100) -> RowPage:
        return await self.inner.page(ref, before, limit)

    async def lease(
        self, ref: SessionRef, token: UUID, seconds: float, *, limit: int | None = 0, request_id: str | None = None
    ) -> Leased | None:
        return await self.inner.lease(ref, token, seconds, limit=limit, request_id=request_id)

    async def renew(self, ref: SessionRef, token: UUID, seconds: float) -> bool:
        return await self.inner.renew(ref, token, seconds)

    async def release(self, ref: SessionRef, token: UUID | None) -> bool:
        return await self.inner.release(ref, token)

    async def turns(self, ref: SessionRef, limit: int = 1, turn_id: str | None = None) -> list[Turn]:
        return await self.inner.turns(ref, limit, turn_id)

    async def change_turn(self, ref: SessionRef, before: Turn, after: Turn, lease: UUID | None = None) -> bool:
        return await self.inner.change_turn(ref, before, after, lease)

    async def fork(self, ref: SessionRef, new_ref: SessionRef, before: int | None = None) -> bool:
        return await self.inner.fork(ref, new_ref, before)

    async def find_session(self, ref: SessionRef) -> SessionInfo | None:
        return await self.inner.find_session(ref)

    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        return await self.inner.list_sessions(user_id, limit, cursor)

    async def update_session(
        self, ref: SessionRef, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        return await self.inner.update_session(ref, title=title, metadata=metadata)

    async def rewrite(self, ref: SessionRef, before: Content, after: Content) -> bool:
        return await self.inner.rewrite(ref, before, after)

    async def delete_session(self, ref: SessionRef) -> bool:
        return await self.inner.delete_session(ref)

    async def delete_user(self, user_id: Id) -> int:
        return await self.inner.delete_user(user_id)

    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        return await self.inner.prune(older_than, limit)

    async def canary(self, kept: str | None = None, text: str | None = None) -> str | None:
        return await self.inner.canary(kept, text)

    async def open(self, *, again: bool = False) -> None:
        await self.inner.open(again=again)

    def guard(self, admit: Admit) -> None:
        self.inner.guard(admit)

    async def ping(self) -> None:
        await self.inner.ping()

    async def close(self) -> None:
        await self.inner.close()
