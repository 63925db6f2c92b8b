"""What a repeated, late or concurrent batch may and may not do, on every store."""

from __future__ import annotations

from my_agent.sessions import SessionKey, SessionStore
from my_agent.sessions.store import Batch, Row

KEY = SessionKey("", "s")


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


async def test_a_batch_sent_twice_is_stored_once(store: SessionStore) -> None:
    sent = batch("a", "b")
    await store.append(KEY, sent)
    await store.append(KEY, batch("c"))
    await store.append(KEY, sent)
    assert await store.tail(KEY, None) == ["a", "b", "c"]
