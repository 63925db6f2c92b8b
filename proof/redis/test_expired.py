"""With SESSION_TTL the indexes do not grow without end, and expired sessions cost a listing next to nothing."""

from __future__ import annotations

import asyncio

import pytest

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.records import Batch, Row
from proof.redis.fixtures import TOPOLOGY, settings_for
from proof.redis.servers import Started

CLUSTER = TOPOLOGY == "cluster"
AT_ONCE = 50


async def begin(store: RedisStore, user: str, *names: str) -> None:
    for first in range(0, len(names), AT_ONCE):
        chosen = names[first : first + AT_ONCE]
        await asyncio.gather(*(store.append(SessionRef(user, name), Batch.of([Row("x")])) for name in chosen))


def expire(servers: Started) -> int:
    """Let every session that would expire do so now, as if it had been written a day ago; returns how many."""
    expired = 0
    for server in servers.servers:
        with server.client() as client:
            for key in client.scan_iter("agent:*:info", count=5000):
                if client.pttl(key) > 0:
                    client.delete(key, key[: -len("info")] + "items")
                    expired += 1
    for server in servers.servers:
        with server.client() as client:
            for index in client.scan_iter("agent:sessions*"):
                entries = client.zrange(index, 0, -1, withscores=True)
                client.zadd(index, {member: score - 86_400_000_000 for member, score in entries})
    return expired


def entries(servers: Started) -> int:
    """Of the index of all sessions."""
    count = 0
    for server in servers.servers:
        with server.client() as client:
            for _ in client.scan_iter("agent:sessions"):
                count += client.zcard("agent:sessions")
    return count


def commands(servers: Started) -> int:
    """How many all servers have carried out, those of scripts included."""
    count = 0
    for server in servers.servers:
        with server.client() as client:
            stats = client.info("commandstats")
            count += sum(stat["calls"] for name, stat in stats.items() if not name.startswith("cmdstat_info"))
    return count


async def test_writes_keep_the_index_small(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=100.0)) as store:
        await begin(store, "ada", *(f"a{n}" for n in range(400)))
        assert expire(servers) == 400
        await begin(store, "bob", *(f"b{n}" for n in range(400)))
        assert 400 <= entries(servers) < 500
        assert len((await store.list_sessions("bob", limit=500)).sessions) == 400


async def test_sessions_that_stay_do_not_keep_the_expired_ones_in_the_index(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url)) as staying:
        await begin(staying, "eve", *(f"e{n}" for n in range(200)))
    async with RedisStore(settings_for(servers.url, session_ttl=100.0)) as store:
        for round_ in range(5):
            await begin(store, "bob", *(f"b{n}" for n in range(300 * round_, 300 * round_ + 300)))
            assert expire(servers) == 300
        await begin(store, "bob", *(f"b{n}" for n in range(1500, 1800)))
        assert entries(servers) < 200 + 300 + 700, "of 1800 entries"
        assert len((await store.list_sessions("eve", limit=500)).sessions) == 200


@pytest.mark.parametrize("users", [1, 500])
async def test_a_page_after_many_expiries_is_cheap(servers: Started, users: int) -> None:
    many = 2000
    async with RedisStore(settings_for(servers.url, session_ttl=1000.0)) as store:
        for number in range(users):
            await begin(store, f"u{number}", *(f"s{n}" for n in range(many // users)))
        expire(servers)
        async with RedisStore(settings_for(servers.url)) as staying:
            await begin(staying, "eve", "e")
        before = commands(servers)
        assert [info.session_id for info in (await store.list_sessions(limit=20)).sessions] == ["e"]
        used = commands(servers) - before
        limit = many * (4 if CLUSTER else 1.2 if users > 1 else 0.1)
        assert used < limit, f"{used} commands after {many} expiries"
        before = commands(servers)
        assert len((await store.list_sessions(limit=20)).sessions) == 1
        assert commands(servers) - before < 20
        assert entries(servers) == 1
        indexes = [key for server in servers.servers for key in server.client().keys("agent:sessions*")]
        assert sorted(indexes) == ["agent:sessions", "agent:sessions:eve"]


async def test_what_expired_long_ago_may_come_back(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=100.0)) as store:
        await begin(store, "ada", *(f"a{n}" for n in range(300)))
        expire(servers)

        async def listed() -> None:
            for _ in range(20):
                await store.list_sessions("ada", limit=5)

        await asyncio.gather(begin(store, "ada", *(f"a{n}" for n in range(0, 300, 2))), listed(), listed())
        page = await store.list_sessions("ada", limit=500)
        assert sorted(info.session_id for info in page.sessions) == sorted(f"a{n}" for n in range(0, 300, 2))
