"""Rewriting a session portion by portion: the work grows with its length, and each portion is found where it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from my_agent.sessions import BackendSettings, BackendStore, SessionRef, SessionStore
from my_agent.sessions.records import Batch, Content, Row
from my_agent.sessions.retry import with_retries

KEY = SessionRef("", "s")
LENGTH, PORTION = 6000, 100
READ = "SELECT coalesce(seq_tup_read, 0) + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'agent_sessions'"

Kill = Callable[[], Awaitable[int]]


@pytest.fixture
async def inner(settings: BackendSettings) -> AsyncIterator[SessionStore]:
    """The store itself, without encryption."""
    async with BackendStore(settings) as store:
        yield store


def portion(first: int, *texts: str) -> Content:
    return Content(None, {}, list(texts), first)


async def stored(store: SessionStore, *texts: str) -> None:
    await store.append(KEY, Batch.of([Row(text) for text in texts]))


async def ask(url: str, query: str, *arguments: object) -> int:
    """On a connection of its own, since all are killed."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        return int(await connection.fetchval(query, *arguments) or 0)
    finally:
        await connection.close()


@pytest.mark.parametrize("every", [1, 2])
async def test_rewriting_a_whole_session_reads_each_row_a_few_times(
    inner: SessionStore, owner_url: str, kill_connections: Kill, every: int
) -> None:
    await ask(owner_url, "INSERT INTO agent_session_info (session_id, item_count) VALUES ('s', $1)", LENGTH)
    rows = "SELECT 's', 'old ' || n FROM generate_series(1, $1) AS n"
    await ask(owner_url, f"INSERT INTO agent_sessions (session_id, content) {rows}", LENGTH)
    await kill_connections()  # a connection reports what it counted when it ends, at the latest
    before = await ask(owner_url, READ)
    wanted = await with_retries(lambda: inner.tail(KEY, None), 10)
    for first in range(0, LENGTH, PORTION * every):
        old = wanted[first : first + PORTION]
        new = [text.replace("old", "new") for text in old]
        assert await inner.rewrite(KEY, portion(first, *old), portion(first, *new))
        wanted[first : first + PORTION] = new
    assert await inner.tail(KEY, None) == wanted
    await kill_connections()
    read = await ask(owner_url, READ) - before
    # Twice as a whole, by `tail`; counting from the first row each time would read it 17 times and more. The server
    # itself may read it, too (autovacuum).
    assert 2 * LENGTH < read < 12 * LENGTH


async def test_a_portion_is_found_after_the_rows_before_it_were_replaced(inner: SessionStore) -> None:
    await stored(inner, "a", "b", "c", "d")
    assert await inner.rewrite(KEY, portion(0, "a", "b"), portion(0, "A", "B"))
    await inner.clear(KEY)
    await stored(inner, "a", "b", "c", "d", "e")
    assert await inner.rewrite(KEY, portion(2, "c", "d"), portion(2, "C", "D"))
    assert await inner.rewrite(KEY, portion(1, "b"), portion(1, "B"))
    assert await inner.rewrite(KEY, portion(4, "e"), portion(4, "E"))
    assert await inner.tail(KEY, None) == ["a", "B", "C", "D", "E"]


async def test_a_portion_in_another_place_is_refused(inner: SessionStore) -> None:
    await stored(inner, "a", "b", "a", "b")
    assert await inner.rewrite(KEY, portion(0, "a", "b"), portion(0, "a", "b"))
    await inner.replace_tail(KEY, None, Batch.of([Row("a"), Row("b")]))
    assert not await inner.rewrite(KEY, portion(2, "a", "b"), portion(2, "A", "B"))
    assert not await inner.rewrite(KEY, portion(0, "b"), portion(0, "B"))
    assert await inner.tail(KEY, None) == ["a", "b"]


async def test_only_title_and_metadata_are_rewritten_too(inner: SessionStore) -> None:
    await stored(inner, "a", "b", "c")
    assert await inner.rewrite(KEY, portion(0, "a"), portion(0, "A"))
    assert await inner.rewrite(KEY, Content(None, {}, [], 2), Content("t", {"m": 1}, [], 2))
    assert await inner.rewrite(KEY, Content("t", {"m": 1}, ["c"], 2), Content("t", {}, ["C"], 2))
    assert await inner.tail(KEY, None) == ["A", "b", "C"]
