"""A batch is recognised for an hour, counted by time, whatever became of its session; then it is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.redis.keys import keys_of
from my_agent.sessions.redis.scripts import BATCH_MEMORY_SECONDS, TIDY_SECONDS
from proof.redis.servers import Server, Started

KEY = SessionRef("ada", "s")
KEYS = keys_of("agent", KEY)


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


def ttl_of_batches(servers: Started) -> int:
    return max(int(server.client().pttl(KEYS.batches)) for server in servers.servers if _has(server, KEYS.batches))


def _has(server: Server, key: str) -> bool:
    try:
        return bool(server.client().exists(key))
    except redis.exceptions.RedisError:
        return False


REMOVALS: dict[str, Callable[[RedisStore], Awaitable[object]]] = {
    "pop": lambda store: store.pop(KEY),
    "clear": lambda store: store.clear(KEY),
    "delete": lambda store: store.delete_session(KEY),
    "delete user": lambda store: store.delete_user("ada"),
    "replaced": lambda store: store.replace_tail(KEY, None, batch()),
}


@pytest.mark.parametrize("removal", REMOVALS)
async def test_the_memory_of_batches_lasts_an_hour(store: RedisStore, servers: Started, removal: str) -> None:
    sent = batch("erased")
    await store.append(KEY, sent)
    await REMOVALS[removal](store)
    assert BATCH_MEMORY_SECONDS >= 3600
    left = ttl_of_batches(servers)
    assert 3_590_000 < left <= (BATCH_MEMORY_SECONDS + 2 * TIDY_SECONDS) * 1000
    await store.append(KEY, sent)
    assert await store.tail(KEY, None) == []


async def test_thousands_of_later_batches_do_not_push_one_out(store: RedisStore) -> None:
    sent = batch("erased")
    await store.append(KEY, sent)
    await store.delete_session(KEY)
    for _ in range(20):
        await asyncio.gather(*(store.append(KEY, batch("later")) for _ in range(100)))
    await store.append(KEY, sent)
    assert "erased" not in await store.tail(KEY, None)


async def test_batches_older_than_that_are_forgotten(store: RedisStore) -> None:
    old = [batch(str(number)) for number in range(20)]
    for each in old:
        await store.append(KEY, each)
    connection = await store._ready()
    members = await connection.call("ZRANGE", KEYS.batches, 0, -1, "WITHSCORES")
    assert len(members) == 40
    seconds = int(members[1])
    await connection.call("ZADD", KEYS.batches, seconds - BATCH_MEMORY_SECONDS - 1, old[0].id.bytes)
    await connection.call("ZADD", KEYS.batches, seconds - BATCH_MEMORY_SECONDS + 60, old[1].id.bytes)
    await connection.call("HSET", KEYS.info, "tidied", 0)
    await store.append(KEY, batch("new"))
    assert len(await connection.call("ZRANGE", KEYS.batches, 0, -1)) == 20


@pytest.mark.parametrize("expected", [None, []])
async def test_an_empty_replacement_of_nothing_is_carried_out_once(
    store: RedisStore, servers: Started, expected: list[str] | None
) -> None:
    nothing = batch()
    assert await store.replace_tail(KEY, expected, nothing)
    assert await store.find_session(KEY) is None
    assert ttl_of_batches(servers) > 3_590_000
    await store.append(KEY, batch("stays"))
    assert await store.replace_tail(KEY, expected, nothing)
    assert await store.tail(KEY, None) == ["stays"]


async def test_a_replacement_sent_twice_is_carried_out_once(store: RedisStore) -> None:
    await store.append(KEY, batch("x", "x"))
    tail = batch()
    for _ in range(2):
        assert await store.replace_tail(KEY, ["x"], tail)
    assert await store.tail(KEY, None) == ["x"]
    summary = batch("summary")
    assert await store.replace_tail(KEY, None, summary)
    assert await store.pop(KEY) == "summary"
    await store.append(KEY, batch("new1", "new2"))
    assert await store.replace_tail(KEY, None, summary)
    assert await store.tail(KEY, None) == ["new1", "new2"]


async def test_counts_agree_with_rows_while_sessions_are_made_and_unmade(store: RedisStore) -> None:
    keys = [SessionRef("ada", f"s{n}") for n in range(6)]
    got: list[str] = []
    put = 0

    async def work(number: int) -> None:
        nonlocal put
        for step in range(80):
            key = keys[(number + step) % 6]
            match (number * 7 + step * 3) % 8:
                case 0 | 1 | 2 | 3:
                    await store.append(key, batch(f"{number}.{step}"))
                    put += 1
                case 4 | 5:
                    if (text := await store.pop(key)) is not None:
                        got.append(text)
                case 6:
                    await store.clear(key)
                case _:
                    await store.delete_session(key)

    await asyncio.gather(*map(work, range(24)))
    assert len(got) == len(set(got)) <= put
    for key in keys:
        found = await store.find_session(key)
        assert (found.item_count if found else 0) == len(await store.tail(key, None))
        rows = await store.tail(key, None)
        for expected in reversed(rows):
            assert await store.pop(key) == expected
