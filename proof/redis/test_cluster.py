"""A cluster keeps each session on one of its nodes, wherever that is at the moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import cast

import pytest
from agents.extensions.memory import RedisSession as SdkRedisSession
from redis.asyncio.cluster import RedisCluster
from redis.crc import key_slot

from my_agent.sessions import RedisStore, SessionRef, SettingMissing, StoreUnavailable
from my_agent.sessions.redis.connection import RedisConnection
from proof.redis import groups as redis_groups
from proof.redis.fixtures import settings_for
from proof.redis.groups import Cluster
from proof.redis.servers import PASSWORD, Server, has_replicated, until
from proof.redis.test_topologies import KEY, batch, opened
from proof.support.helpers import user


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with redis_groups.cluster(tmp_path_factory.mktemp("cluster"), replicas=1) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """A cluster of three primaries with nothing in it; the first has a replica."""
    for node in running_cluster.nodes:
        with node.client() as client:
            client.flushall()
    return running_cluster


async def test_sessions_are_spread_over_a_cluster(cluster: Cluster) -> None:
    async with opened(cluster.url) as store:
        await asyncio.gather(*(store.append(SessionRef("ada", f"s{n}"), batch("x")) for n in range(60)))
        sizes = []
        for node in cluster.nodes:
            with node.client() as client:
                sizes.append(len(client.keys("*:items")))
        assert sum(sizes) == 60
        assert min(sizes) > 5
        assert len((await store.list_sessions("ada", limit=100)).sessions) == 60
        assert await store.delete_user("ada") == 60


async def test_the_session_of_the_sdk_refuses_a_cluster(cluster: Cluster) -> None:
    """Why this project has its own."""
    client = RedisCluster("127.0.0.1", cluster.nodes[0].port, password=PASSWORD)
    try:
        with pytest.raises(TypeError, match="transactions"):
            await SdkRedisSession("s", redis_client=client).add_items([user("Hi")])
    finally:
        await client.aclose()


async def test_one_known_node_is_enough(cluster: Cluster) -> None:
    scheme, _, rest = cluster.url.partition("@")
    for url in (f"{scheme}@{rest.split(',')[1]}", f"{scheme}@127.0.0.1:1,{rest.split(',')[2]}"):
        async with opened(url) as store:
            await asyncio.gather(*(store.append(SessionRef("", f"s{n}"), batch("x")) for n in range(20)))


async def test_a_plain_address_of_a_node_is_told(cluster: Cluster) -> None:
    for node in cluster.nodes:
        store = RedisStore(settings_for(node.url))
        with pytest.raises(SettingMissing, match=r"Write redis\+cluster:// in REDIS_URL"):
            await store.append(KEY, batch("x"))
        await store.close()


class Move:
    """A slot on its way from one node to another, as `redis-cli --cluster reshard` does it."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.nodes = cluster.nodes
        self.slot = key_slot(key.encode())
        owner = self.slot * len(self.nodes) // 16384
        self.source, self.target = self.nodes[owner], self.nodes[(owner + 1) % len(self.nodes)]

    def begin(self) -> None:
        self._setslot(self.target, "IMPORTING", redis_groups.node_id(self.source))
        self._setslot(self.source, "MIGRATING", redis_groups.node_id(self.target))

    def take(self) -> int:
        """Move one key; returns how many there were."""
        with self.source.client() as client:
            keys = cast(list[str], client.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, 100))
            if keys:
                target = ("127.0.0.1", self.target.port, keys[0], 0, 5000, "AUTH", PASSWORD)
                client.execute_command("MIGRATE", *target)
            return len(keys)

    def finish(self) -> None:
        for node in (self.target, self.source, *self.nodes):
            self._setslot(node, "NODE", redis_groups.node_id(self.target))

    def undo(self) -> None:
        """Give the empty slot back."""
        self.source, self.target = self.target, self.source
        self.begin()
        while self.take():
            pass
        self.finish()

    def _setslot(self, node: Server, *arguments: str) -> None:
        with node.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", self.slot, *arguments)


async def test_a_session_is_found_where_its_slot_has_moved_to(cluster: Cluster) -> None:
    move = Move(cluster, "agent:{/s}:items")
    async with opened(cluster.url) as store:
        await store.append(KEY, batch("a"))
        move.begin()
        while move.take():
            pass
        move.finish()
        assert await store.tail(KEY, None) == ["a"]
        assert await store.pop(KEY) == "a"
        move.undo()
        await asyncio.gather(*(store.append(KEY, batch(f"{n}")) for n in range(20)))
        assert len(await store.tail(KEY, None)) == 20


async def test_a_session_is_written_to_while_its_slot_is_moved(cluster: Cluster) -> None:
    move = Move(cluster, "agent:{/s}:items")
    async with opened(cluster.url) as store:

        async def write(writer: int) -> None:
            for number in range(30):
                await store.append(KEY, batch(*(f"{writer}.{number}.{part}" for part in range(3))))
                await asyncio.sleep(0.005)

        writing = asyncio.gather(*map(write, range(4)))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(move.begin)
        for _ in range(4):
            await asyncio.to_thread(move.take)
            await asyncio.sleep(0.02)  # some of its keys are here and some there, then all there but not the slot
        assert not writing.done()
        await asyncio.to_thread(move.finish)
        await writing
        stored = await store.tail(KEY, None)
        assert sorted(stored) == sorted(f"{w}.{n}.{p}" for w in range(4) for n in range(30) for p in range(3))
        for start in range(0, len(stored), 3):
            assert len({name.rpartition(".")[0] for name in stored[start : start + 3]}) == 1
        await asyncio.to_thread(move.undo)


async def test_a_slot_that_moves_does_not_confuse_calls_of_others(cluster: Cluster) -> None:
    """After ASK, the permission to use the slot is given on the connection that the command follows on."""
    key = "agent:{/s}:items"
    move = Move(cluster, key)
    connection = RedisConnection(settings_for(cluster.url))
    # Several idle connections to each node.
    await connection.call_all([("SET", f"{n}", n) for n in range(60)])
    await asyncio.gather(*(connection.call("GET", f"{n}") for n in range(60)))
    move.begin()
    with move.target.client() as client:
        others = client.keys("*")
        client.config_resetstat()
        lengths = asyncio.gather(*(connection.call("RPUSH", key, n) for n in range(40)))
        while not lengths.done():
            await asyncio.gather(*(connection.call("GET", other) for other in others))
        assert sorted(await lengths) == [*range(1, 41)]
        assert client.info("errorstats") == {}, "no call was sent back"
    assert await connection.call_all([("LLEN", key), ("GET", "0")]) == [40, "0"]
    move.finish()
    assert await connection.call("LLEN", key) == 40
    await connection.close()
    move.undo()


async def test_a_session_goes_on_when_a_node_dies(cluster: Cluster) -> None:
    """The last test of this cluster: it stays without the node."""
    async with opened(cluster.url) as store:
        keys = [SessionRef("", f"s{n}") for n in range(30)]
        lost = [key for key in keys if key_slot(f"/{key.session_id}".encode()) < 16384 // 3][:3]
        await asyncio.gather(*(store.append(key, batch("before")) for key in keys))
        until(lambda: has_replicated(cluster.nodes[0]), "the replica has everything")
        await asyncio.to_thread(cluster.nodes[0].kill)
        for key in lost:
            with pytest.raises(StoreUnavailable) as caught:
                await store.pop(key)
            assert not caught.value.maybe_applied
        begin = time.monotonic()
        await asyncio.gather(*(store.session(key.session_id).add_items([user("after")]) for key in keys))
        assert time.monotonic() - begin < 10
        for key in keys:
            before, after = await store.tail(key, None)
            assert (before, "after" in after) == ("before", True)
