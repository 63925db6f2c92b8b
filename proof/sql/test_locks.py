"""What a function has not locked it does not touch: a session that is being made beside it stays whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.records import Batch, Content

KEY = SessionRef("", "s")

Change = Callable[[SessionStore], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "pop": lambda store: store.pop(KEY),
    "clear": lambda store: store.clear(KEY),
    "replace": lambda store: store.replace_tail(KEY, None, Batch.of([])),
    "rewrite": lambda store: store.rewrite(KEY, Content(None, {}, ["a"]), Content(None, {}, ["b"])),
    "delete_session": lambda store: store.delete_session(KEY),
    "delete_user": lambda store: store.delete_user(KEY.user_id),
    "prune": lambda store: store.prune(datetime.now(UTC) + timedelta(minutes=1)),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_session_in_the_making_is_left_alone(
    store: SessionStore, owner: asyncpg.Connection, change: str
) -> None:
    async with asyncio.timeout(20):
        async with owner.transaction():
            # Who goes on without having locked the session's row waits here, and then finds the row that was made.
            await owner.execute("LOCK TABLE agent_sessions IN SHARE MODE")
            task = asyncio.ensure_future(CHANGES[change](store))
            await asyncio.wait({task}, timeout=3)
            await owner.execute("INSERT INTO agent_session_info (session_id, item_count) VALUES ('s', 1)")
            await owner.execute("INSERT INTO agent_sessions (session_id, content) VALUES ('s', 'a')")
        await task
    assert await owner.fetchval("SELECT agent_session_pop($1, $2)", *KEY) == "a"
    found = await store.find_session(KEY)
    assert found is not None
    assert found.item_count == 0
