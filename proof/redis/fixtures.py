"""A real Redis or Valkey for the tests: servers of their own for each worker, empty for each test.

TEST_REDIS_TOPOLOGY (tls, acl, sentinel, cluster, proxy) starts another arrangement of servers than one alone,
TEST_REDIS_BIN another program than the one that is found.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import cast

import pytest
from pydantic import SecretStr

from my_agent.sessions import RedisSettings, RedisStore
from my_agent.sessions.redis.connection import RedisConnection
from proof.redis import groups as redis_groups
from proof.redis import servers as redis_servers
from proof.redis.servers import Server, Started

READING = {"string": ("GET",), "list": ("LRANGE", 0, -1), "hash": ("HGETALL",), "zset": ("ZRANGE", 0, -1)}
TOPOLOGY = os.environ.get("TEST_REDIS_TOPOLOGY", "")


@pytest.fixture(scope="session")
def worker_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """This worker's servers."""
    with redis_groups.start(TOPOLOGY, tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def servers(worker_servers: Started) -> Started:
    """The worker's servers, with nothing in them."""
    for server in worker_servers.servers:
        with server.client() as client:
            client.flushall()
    return worker_servers


@pytest.fixture
def settings(servers: Started) -> RedisSettings:
    return settings_for(servers.url)


@pytest.fixture
def server_environment(servers: Started) -> dict[str, str]:
    """The variables with which commands reach the same servers."""
    return {"REDIS_URL": servers.url}


@pytest.fixture
async def store(settings: RedisSettings) -> AsyncIterator[RedisStore]:
    """An open store on empty servers."""
    store = RedisStore(settings)
    await store.ping()
    yield store
    await store.close()


@pytest.fixture
async def other_store(servers: Started) -> AsyncIterator[RedisStore]:
    """A store on the same servers under another prefix, empty too."""
    store = RedisStore(settings_for(servers.url, session_key_prefix="other"))
    await store.ping()
    yield store
    await store.close()


@pytest.fixture
def kill_connections(servers: Started) -> Callable[[], Awaitable[int]]:
    """Cuts all connections from the servers' side; returns how many there were."""

    def kill() -> int:
        killed = 0
        for server in servers.servers:
            with server.client() as client:
                ours = client.client_id()
                for other in client.client_list(_type="normal"):
                    # Sentinel's own would be missed by it, and it would make another server the primary.
                    if other["id"] != str(ours) and not other["name"].startswith("sentinel"):
                        killed += cast(int, client.client_kill_filter(_id=other["id"]))
        return killed

    return lambda: asyncio.to_thread(kill)


@pytest.fixture
def count_connections(servers: Started) -> Callable[[], Awaitable[int]]:
    """Counts the app's connections at the server that has most of them."""

    def is_pooled(client: dict[str, str]) -> bool:
        # Not Sentinel's own, and not the one over which redis-py asks a cluster who is where.
        return not client["name"].startswith("sentinel") and not client["cmd"].startswith("cluster")

    def count() -> int:
        counts: list[int] = []
        for server in servers.servers:
            with server.client() as client:
                ours = str(client.client_id())
                others = (other for other in client.client_list(_type="normal") if other["id"] != ours)
                counts.append(sum(map(is_pooled, others)))
        return max(counts)

    return lambda: asyncio.to_thread(count)


@pytest.fixture
def damage_row(servers: Started) -> Callable[[int, str], Awaitable[None]]:
    """Overwrites the n-th newest text of the only session."""

    async def damage(age: int, text: str) -> None:
        for server in servers.servers:
            with server.client() as client:
                for key in client.keys("*:items"):
                    client.lset(key, -age, text)
                    return
        raise AssertionError("There is no session")

    return damage


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for one module alone, whose tests kill connections and set limits."""
    with redis_servers.one(tmp_path_factory.mktemp("redis") / "own") as server:
        yield server


@pytest.fixture
async def connection(own_server: Server) -> AsyncIterator[RedisConnection]:
    """The way to that server, with nothing in it."""
    with own_server.client() as client:
        client.flushall()
    connection = RedisConnection(settings_for(own_server.url))
    yield connection
    await connection.close()


def settings_for(url: str, **more: object) -> RedisSettings:
    return RedisSettings(redis_url=SecretStr(url)).model_copy(update=more)


@pytest.fixture
def dump(servers: Started) -> Callable[[], Awaitable[str]]:
    """Every key of every server with its value, and as the server itself writes it to a file."""

    async def dumped() -> str:
        found: list[object] = []
        for server in servers.servers:
            with server.client() as client:
                for key in client.keys("*"):
                    command, *where = READING[client.type(key)]
                    found += [key, client.execute_command(command, key, *where, NEVER_DECODE=True), client.dump(key)]
        return repr(found)

    return dumped
