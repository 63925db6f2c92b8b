"""A connection that a firewall dropped without a word costs a moment, not the whole timeout, and repeats nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.redis import line as redis_line
from my_agent.sessions.redis import multiplexer
from proof.redis import groups as redis_groups
from proof.redis.fixtures import settings_for
from proof.redis.servers import QUOTED, Server, until
from proof.support.network import Network

KEY = SessionRef("ada", "s")
TIMEOUT = 10.0


class Firewall(Network):
    """Swallows what comes on connections that were opened before it forgot them; new ones pass."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._forgotten = 0

    def forget(self) -> None:
        self._forgotten += 1

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        opened = self._forgotten
        with suppress(ConnectionError):
            while data := await source.read(2**20):
                if opened == self._forgotten:
                    target.write(data)


@pytest.fixture
async def firewall(own_server: Server) -> AsyncIterator[Firewall]:
    with own_server.client() as client:
        client.flushall()
    async with Firewall("127.0.0.1", own_server.port).running() as firewall:
        assert isinstance(firewall, Firewall)
        yield firewall


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (redis_line, multiplexer):
        monkeypatch.setattr(module, "FRESH_SECONDS", 0.05)
    monkeypatch.setattr(multiplexer, "PROBE_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(redis_line, "PROBE_SECONDS", 0.3)


async def comes_through(store: RedisStore, firewall: Firewall) -> None:
    """Use the connections, let them be forgotten, and go on."""
    await store.append(KEY, Batch.of([Row(f"{n}") for n in range(10)]))
    await asyncio.gather(*(store.tail(KEY, limit) for _ in range(8) for limit in (1, None)))
    await asyncio.sleep(0.2)
    firewall.forget()
    begin = monotonic()
    first = asyncio.create_task(store.pop(KEY))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(store.pop(KEY))  # nothing is sent before the connection has proved to work
    assert [await first, await second] == ["9", "8"]
    await store.append(KEY, Batch.of([Row("new")]))
    assert await asyncio.gather(*(store.tail(KEY, limit) for limit in (2, None))) == [
        ["7", "new"],
        [*map(str, range(8)), "new"],
    ]
    assert monotonic() - begin < TIMEOUT / 3


async def test_a_forgotten_connection_is_replaced_before_a_command_is_sent(
    own_server: Server, firewall: Firewall
) -> None:
    url = own_server.url.replace(f":{own_server.port}", f":{firewall.port}")
    async with RedisStore(settings_for(url, redis_timeout_seconds=TIMEOUT)) as store:
        await comes_through(store, firewall)


async def test_forgotten_connections_to_nodes_of_a_cluster_are_replaced(tmp_path: Path) -> None:
    with redis_groups.node_of_cluster(tmp_path / "node") as node:
        async with Firewall("127.0.0.1", node.port).running() as firewall:
            assert isinstance(firewall, Firewall)
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                client.config_set("cluster-announce-port", firewall.port)
            await asyncio.to_thread(
                until, lambda: redis_groups.cluster_info(node)["cluster_state"] == "ok", "the cluster serves"
            )
            url = f"redis+cluster://:{QUOTED}@127.0.0.1:{firewall.port}"
            async with RedisStore(settings_for(url, redis_timeout_seconds=TIMEOUT)) as store:
                await comes_through(store, firewall)
                # And the one over which it asks who is where, which it does after a failure.
                (await store._ready())._servers._stale = True  # type: ignore[attr-defined]
                await asyncio.sleep(0.2)
                firewall.forget()
                begin = monotonic()
                assert await store.pop(KEY) == "new"
                assert monotonic() - begin < TIMEOUT / 4


async def test_a_connection_that_is_idle_for_long_is_not_used(
    own_server: Server, firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert multiplexer.IDLE_SECONDS <= 240
    monkeypatch.setattr(multiplexer, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(redis_line, "PROBE_SECONDS", 60.0)
    url = own_server.url.replace(f":{own_server.port}", f":{firewall.port}")
    async with RedisStore(settings_for(url, redis_timeout_seconds=TIMEOUT)) as store:
        await comes_through(store, firewall)


async def test_a_connection_that_lives_is_kept_and_probed_only_after_a_pause(own_server: Server) -> None:
    async with RedisStore(settings_for(own_server.url)) as store:
        await store.tail(KEY, None)
        with own_server.client() as client:
            client.config_resetstat()
            for _ in range(5):
                await store.tail(KEY, None)
            assert "cmdstat_ping" not in client.info("commandstats")
            before = client.info("stats")["total_connections_received"]
            await asyncio.sleep(0.2)
            await store.tail(KEY, None)
            assert client.info("commandstats")["cmdstat_ping"]["calls"] == 1
            assert client.info("stats")["total_connections_received"] == before


async def test_keepalives_are_on(own_server: Server) -> None:
    async with RedisStore(settings_for(own_server.url)) as store:
        await store.tail(KEY, None)
        servers: Any = (await store._ready())._servers
        line = servers._lines._lines[True]  # a whole history may be large
        sock = line._connection._writer.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 240
