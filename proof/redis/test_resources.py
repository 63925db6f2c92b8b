"""What the server is asked for a read, a list and a prune, by its own log of commands, however much there is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.redis.connection import RedisConnection
from my_agent.sessions.redis.keys import keys_of
from proof.redis.fixtures import settings_for
from proof.redis.servers import Server
from proof.support.helpers import texts, user

MANY = 10_000
AT_ONCE = 500

Call = Callable[[], Awaitable[object]]


@pytest.fixture
async def store(own_server: Server, connection: RedisConnection) -> AsyncIterator[RedisStore]:
    """An open store on a server of its own, with nothing else in it."""
    async with RedisStore(settings_for(own_server.url)) as store:
        yield store


async def commands_of(call: Call, server: Server) -> list[str]:
    """What the server got because of a call."""
    with server.client() as client:
        client.config_set("slowlog-max-len", 10_000)
        client.config_set("slowlog-log-slower-than", 0)  # all of them
        client.slowlog_reset()
        await call()
        client.config_set("slowlog-log-slower-than", -1)
        log = [str(entry["command"], "ascii") for entry in client.slowlog_get(10_000)]
    return [command for command in reversed(log) if not command.startswith(("CONFIG", "SLOWLOG"))]


@pytest.mark.parametrize("size", [100, 100_000])
async def test_reading_the_newest_asks_for_no_more_than_those(store: RedisStore, own_server: Server, size: int) -> None:
    session = store.session("s")
    for first in range(0, size, 5_000):
        await session.add_items([user(str(n)) for n in range(first, min(first + 5_000, size))])
    read: list[str] = []

    async def call() -> None:
        read.extend(texts(await session.get_items(20)))

    assert await commands_of(call, own_server) == ["LRANGE agent:{/s}:items -20 -1"]
    assert read == [str(n) for n in range(size - 20, size)]
    with own_server.client() as client:
        if size > 5_000:  # a chain of small pieces, which is read from its nearer end
            assert client.object("ENCODING", "agent:{/s}:items") == "quicklist"


async def test_listing_asks_for_no_more_than_a_page(store: RedisStore, own_server: Server) -> None:
    keys = [SessionRef("ada" if n % 10 else f"user {n}", f"s{n}") for n in range(MANY)]
    for first in range(0, len(keys), AT_ONCE):
        await asyncio.gather(*(store.append(key, Batch.of([Row("x")])) for key in keys[first : first + AT_ONCE]))
    for user_id, index in (("ada", "agent:sessions:ada"), (None, "agent:sessions")):
        cursor = None
        for _ in range(MANY // 2 // 500):
            cursor = (await store.list_sessions(user_id, limit=500, cursor=cursor)).next_cursor
        for start in (None, cursor):
            list_page = partial(store.list_sessions, user_id, limit=20, cursor=start)
            begin, *rest = await commands_of(list_page, own_server)
            found = (await list_page()).sessions
            listed = [keys_of("agent", SessionRef(one.user_id, one.session_id)).info for one in found]
            assert begin.split()[:2] == ["ZRANGE", index]
            assert "BYSCORE REV LIMIT 0 22" in begin  # one more than asked for, and the last one of the page before
            assert len(listed) == 20
            asked = [command.removeprefix("HMGET ").split(" title")[0] for command in rest]
            assert asked[:20] == listed
            assert len(asked) == 21


async def test_pruning_asks_for_no_more_than_a_batch(store: RedisStore, own_server: Server) -> None:
    await asyncio.gather(*(store.append(SessionRef("", f"s{n}"), Batch.of([Row("x")])) for n in range(AT_ONCE)))
    await store.delete_session(SessionRef("", "s0"))  # so that the server knows the script
    older_than = datetime.now(UTC) + timedelta(hours=1)
    commands = await commands_of(lambda: store.prune(older_than, limit=20), own_server)
    asked = Counter(command.split()[0] for command in commands)  # some servers log what scripts do as well
    assert (asked["ZRANGE"], asked["EVALSHA"]) == (1, 20)
    assert asked.total() <= 1 + 20 * 7
    assert "BYSCORE LIMIT 0 20" in commands[0]
