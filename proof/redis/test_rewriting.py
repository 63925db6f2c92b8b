"""Rewriting a long session (for another key) is linear, and the server has time for others meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.records import Batch, Content, Row
from my_agent.sessions.redis.connection import RedisConnection
from proof.redis.fixtures import settings_for
from proof.redis.servers import Server

KEY = SessionRef("ada", "s")
MANY = 30_000
LONGEST = 0.05
"""How long another client may wait, in seconds."""


@pytest.fixture
async def store(own_server: Server, connection: RedisConnection) -> AsyncIterator[RedisStore]:
    async with RedisStore(settings_for(own_server.url)) as store:
        yield store


async def fill(store: RedisStore, text: str) -> None:
    for first in range(0, MANY, 2000):
        await store.append(KEY, Batch.of([Row(f"{number}{text}") for number in range(first, first + 2000)]))


async def rewrite_all(store: RedisStore) -> int:
    """As `sessions reencrypt` does it; returns in how many portions."""
    first, more, portions = 0, True, 0
    while more:
        rows, more = await store.rows_from(KEY, first)
        if rows:
            new = [f"new {row}" for row in rows]
            assert await store.rewrite(KEY, Content(None, {}, rows, first), Content(None, {}, new, first))
            first, portions = first + len(rows), portions + 1
    return portions


@pytest.mark.parametrize("size", [20, 600])
async def test_the_server_is_never_busy_for_long(
    store: RedisStore, own_server: Server, size: int, record_property: Callable[[str, object], None]
) -> None:
    """By its own log of what took long; how long others wait is that and what the machine adds."""
    await fill(store, "x" * size)
    with own_server.client() as client:
        client.config_set("slowlog-max-len", 10_000)
        client.config_set("slowlog-log-slower-than", int(LONGEST * 1e6))
        client.slowlog_reset()
    waits: list[float] = []

    async def another_client() -> None:
        other = RedisConnection(settings_for(own_server.url))
        try:
            while not rewriting.done():
                begin = time.perf_counter()
                await other.call("GET", "agent:x")
                waits.append(time.perf_counter() - begin)
                await asyncio.sleep(0.002)
        finally:
            await other.close()

    begin = time.perf_counter()
    rewriting = asyncio.ensure_future(rewrite_all(store))
    await another_client()
    record_property("seconds", time.perf_counter() - begin)
    record_property("longest wait of another client, in ms", max(waits) * 1000)
    assert await rewriting == MANY // 100
    with own_server.client() as client:
        slow = [(entry["duration"], entry["command"][:60]) for entry in client.slowlog_get(100)]
        assert slow == []
    assert await store.tail(KEY, 1) == [f"new {MANY - 1}{'x' * size}"]
    assert len(await store.tail(KEY, None)) == MANY


async def test_long_rows_are_rewritten_in_portions_of_bytes(store: RedisStore, own_server: Server) -> None:
    count = 40
    for number in range(count):
        await store.append(KEY, Batch.of([Row(f"{number}{'x' * 2**20}"), Row("short")]))
    with own_server.client() as client:
        client.config_set("slowlog-log-slower-than", int(LONGEST * 1e6))
        client.slowlog_reset()
    assert await rewrite_all(store) >= count
    with own_server.client() as client:
        assert [entry["command"][:60] for entry in client.slowlog_get(100)] == []
    assert [row[:6] for row in await store.tail(KEY, 2)] == [f"new {count - 1}", "new sh"]
    assert len(await store.tail(KEY, None)) == 2 * count


async def test_a_portion_costs_as_much_in_a_long_session_as_in_a_short_one(
    store: RedisStore, own_server: Server
) -> None:
    """No command copies or reads the other rows."""
    await fill(store, "x" * 300)
    rows, _ = await store.rows_from(KEY, MANY // 2)
    assert 0 < len(rows) < 1000
    with own_server.client() as client:
        client.config_resetstat()
    before = Content(None, {}, rows, MANY // 2)
    assert await store.rewrite(KEY, before, Content(None, {}, [f"n{row}" for row in rows], MANY // 2))
    with own_server.client() as client:
        calls = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in client.info("commandstats").items()}
    assert calls["lset"] == len(rows)
    assert calls["lrange"] == 1
    assert "rpush" not in calls
    # Written to since: nothing changes.
    assert not await store.rewrite(KEY, before, before)


async def test_rows_that_were_taken_since_change_nothing(store: RedisStore) -> None:
    await store.append(KEY, Batch.of([Row(str(number)) for number in range(10)]))
    rows = await store.tail(KEY, None)
    await store.pop(KEY)
    assert not await store.rewrite(KEY, Content(None, {}, rows), Content(None, {}, [*"abcdefghij"]))
    assert await store.tail(KEY, None) == rows[:-1]
    assert await store.rewrite(KEY, Content(None, {}, rows[3:9], 3), Content(None, {}, [*"defghi"], 3))
    assert await store.tail(KEY, None) == [*"012defghi"]
