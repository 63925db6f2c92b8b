"""In a cluster the indexes are on other nodes than the sessions: nothing is stored that no index leads to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.crc import key_slot

from my_agent.sessions import RedisStore, SessionRef, StoreUnavailable
from my_agent.sessions.records import Batch, Row, new_id
from my_agent.sessions.redis import index as redis_index
from my_agent.sessions.redis.keys import keys_of
from proof.redis import groups as redis_groups
from proof.redis.fixtures import settings_for
from proof.redis.groups import Cluster
from proof.redis.servers import Server, until
from proof.support.helpers import texts, user


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # A node that is stopped is not given up, so that its slots stay where they are.
    with redis_groups.cluster(tmp_path_factory.mktemp("cluster"), "--cluster-node-timeout", "60000") as cluster:
        yield cluster
        for node in cluster.nodes:
            node.kill()  # also one that was started again


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    for node in running.nodes:
        with node.client() as client:
            client.flushall()
    return running


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


def node_of(cluster: Cluster, key: str) -> Server:
    return cluster.nodes[min(key_slot(key.encode()) * 3 // 16384, 2)]


def keys_away_from(cluster: Cluster, stopped: Server) -> SessionRef:
    """A session whose user's index is on that node, and which itself is not."""
    for number in range(1000):
        ref = SessionRef(f"u{number % 50}", f"s{number}")
        keys = keys_of("agent", ref)
        if node_of(cluster, keys.user_index) is stopped and node_of(cluster, keys.items) is not stopped:
            return ref
    raise AssertionError


def node_without_all_index(cluster: Cluster) -> Server:
    return next(node for node in cluster.nodes if node is not node_of(cluster, "agent:sessions"))


def stored(cluster: Cluster, pattern: str) -> list[str]:
    return [str(key) for node in cluster.nodes for key in node.client().keys(pattern)]


async def test_a_session_whose_index_is_away_is_not_begun(cluster: Cluster) -> None:
    away = node_without_all_index(cluster)
    key = keys_away_from(cluster, away)
    settings = settings_for(cluster.url, redis_timeout_seconds=2.0, session_retry_seconds=0.5)
    async with RedisStore(settings) as store:
        session = store.session(key.session_id, user_id=key.user_id)
        away.kill()
        try:
            with pytest.raises(StoreUnavailable):
                await session.add_items([user("unlisted")])
            items = keys_of("agent", key).items
            assert node_of(cluster, items).client().exists(items) == 0
        finally:
            redis_groups.start_again(away)
        until(lambda: redis_groups.cluster_info(away)["cluster_state"] == "ok", "the cluster serves again")
        await session.add_items([user("listed")])
        assert [info.item_count for info in (await store.list_sessions(key.user_id)).sessions] == [1]
        assert await store.delete_user(key.user_id) == 1
        assert stored(cluster, "*:items") == []


async def test_a_session_that_is_listed_goes_on_without_its_index(cluster: Cluster) -> None:
    away = node_without_all_index(cluster)
    key = keys_away_from(cluster, away)
    settings = settings_for(cluster.url, redis_timeout_seconds=5.0, session_retry_seconds=0.5)
    async with RedisStore(settings) as store:
        session = store.session(key.session_id, user_id=key.user_id)
        await session.add_items([user("a")])
        away.process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(4):
                await session.add_items([user("b")])
                assert await session.pop_item() == user("b")
                await session.add_items([user("c")])
        finally:
            away.process.send_signal(signal.SIGCONT)
        assert texts(await session.get_items()) == ["a", "c"]
        assert [info.item_count for info in (await store.list_sessions(key.user_id)).sessions] == [2]


async def test_deleting_beside_a_first_write_leaves_nothing_unlisted(cluster: Cluster) -> None:
    ref = SessionRef("ada", "s")
    keys = keys_of("agent", ref)
    async with RedisStore(settings_for(cluster.url)) as store, RedisStore(settings_for(cluster.url)) as other:

        async def write() -> None:
            for number in range(150):
                await store.append(ref, batch(str(number)))
                if number % 10 == 0:
                    await asyncio.sleep(0)

        async def delete(how: int) -> None:
            while not writing.done():
                if how == 0:
                    await other.delete_session(ref)
                elif how == 1:
                    await other.delete_user("ada")
                elif how == 2:
                    await other.prune(datetime.now(UTC) + timedelta(hours=1))
                else:
                    await other.list_sessions("ada")

        writing = asyncio.gather(write(), write())
        await asyncio.gather(*(delete(how) for how in range(4)))
        await writing
        await store.append(ref, batch("last"))
        assert len((await store.list_sessions()).sessions) == len((await store.list_sessions("ada")).sessions) == 1
        assert await store.delete_user("ada") == 1
        assert stored(cluster, "*:items") == stored(cluster, "*:info") == stored(cluster, "agent:sessions*") == []
        assert len(stored(cluster, keys.batches)) == 1  # remembered for an hour


@pytest.mark.parametrize("how", ["delete_session", "delete_user"])
@pytest.mark.parametrize("when", ["before its entries", "before its data", "after its data"])
async def test_a_deletion_in_the_middle_of_a_first_write_leaves_nothing_unlisted(
    cluster: Cluster, when: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = SessionRef("ada", "s")
    async with RedisStore(settings_for(cluster.url)) as store, RedisStore(settings_for(cluster.url)) as other:
        touch, evaluate = redis_index.touch, (await store._ready()).evaluate
        touched = written = 0

        async def delete() -> None:
            await (other.delete_session(ref) if how == "delete_session" else other.delete_user("ada"))

        async def watched_touch(*arguments: Any, **more: Any) -> Any:
            nonlocal touched
            if touched == 0 and when == "before its entries":
                await delete()
            touched += 1
            return await touch(*arguments, **more)

        async def watched_write(*arguments: Any, **more: Any) -> Any:
            nonlocal written
            if written == 1 and when == "before its data":
                await delete()
            written += 1
            return await evaluate(*arguments, **more)

        monkeypatch.setattr(redis_index, "touch", watched_touch)
        monkeypatch.setattr((await store._ready()), "evaluate", watched_write)
        await store.append(ref, batch("a"))
        monkeypatch.undo()
        if when == "after its data":
            await delete()
        assert (touched, written) == ((2, 3) if when == "before its data" else (1, 2))
        rows = await store.tail(ref, None)
        assert rows == ([] if when == "after its data" else ["a"])
        for user_id in ("ada", None):
            listed = [info.session_id for info in (await store.list_sessions(user_id)).sessions]
            assert listed == (["s"] if rows else [])
        assert len(stored(cluster, "agent:sessions*")) == (2 if rows else 0)


@pytest.mark.parametrize("what", ["append", "title", "another run", "nothing"])
async def test_what_comes_in_while_an_empty_session_is_given_back_stays(
    cluster: Cluster, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries in the indexes are on other nodes, so giving it back takes several steps."""
    ref, token, other_token = SessionRef("ada", "s"), new_id(), new_id()
    async with RedisStore(settings_for(cluster.url)) as store, RedisStore(settings_for(cluster.url)) as other:
        assert await store.lease(ref, token, 60) is not None
        look_up = redis_index.scores

        async def watched(*arguments: Any) -> Any:
            monkeypatch.undo()
            scores = await look_up(*arguments)
            match what:
                case "append":
                    await other.append(ref, batch("a"))
                case "title":
                    assert await other.update_session(ref, title="T")
                case "another run":
                    assert await other.release(ref, None)
                    assert await other.lease(ref, other_token, 60) is not None
            return scores

        monkeypatch.setattr(redis_index, "scores", watched)
        await store.release(ref, token)
        assert (await store.find_session(ref) is None) == (what == "nothing")
        for user_id in ("ada", None):
            listed = [info.session_id for info in (await store.list_sessions(user_id)).sessions]
            assert listed == ([] if what == "nothing" else ["s"])
        if what == "another run":
            await other.append(ref, batch("theirs")._replace(lease=other_token))
        assert len(stored(cluster, "agent:sessions*")) == (0 if what == "nothing" else 2)


async def test_a_first_write_while_an_empty_session_is_given_back_is_listed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are written before the old ones are looked up, its data after the old session is gone."""
    ref, token = SessionRef("ada", "s"), new_id()
    look_up, touch, unlist = redis_index.scores, redis_index.touch, redis_index.unlist
    async with RedisStore(settings_for(cluster.url)) as store, RedisStore(settings_for(cluster.url)) as other:
        assert await store.lease(ref, token, 60) is not None
        early = list[list[str]]()

        async def watched_scores(*arguments: Any) -> Any:
            connection = await other._ready()
            early.append(await touch(connection, keys_of("agent", ref), add=True, deadline=connection.deadline()))
            return await look_up(*arguments)

        async def watched_touch(*arguments: Any, **more: Any) -> Any:
            return early.pop() if early else await touch(*arguments, **more)

        async def watched_unlist(*arguments: Any) -> None:
            monkeypatch.setattr(redis_index, "touch", watched_touch)
            await other.append(ref, batch("a"))
            await unlist(*arguments)

        monkeypatch.setattr(redis_index, "scores", watched_scores)
        monkeypatch.setattr(redis_index, "unlist", watched_unlist)
        assert await store.release(ref, token)
        monkeypatch.undo()
        assert await store.tail(ref, None) == ["a"]
        for user_id in ("ada", None):
            assert [info.session_id for info in (await store.list_sessions(user_id)).sessions] == ["s"]


async def test_a_new_session_costs_two_round_trips_and_later_writes_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = SessionRef("ada", "s")
    async with RedisStore(settings_for(cluster.url)) as store:
        await store.append(SessionRef("ada", "t"), batch("x"))
        servers = (await store._ready())._servers
        exchange, running, depth = servers.exchange, 0, []

        async def counted(*arguments: Any, **how: Any) -> Any:
            nonlocal running
            running += 1
            if running == 1:
                depth.append(1)
            try:
                return await exchange(*arguments, **how)
            finally:
                running -= 1

        monkeypatch.setattr(servers, "exchange", counted)
        await store.append(ref, batch("a"))
        assert len(depth) <= 2
        depth.clear()
        await store.append(ref, batch("b"))
        assert len(depth) == 1


async def test_an_entry_without_a_session_is_tidied_when_it_is_old(cluster: Cluster) -> None:
    async with RedisStore(settings_for(cluster.url)) as store:
        now = int(datetime.now(UTC).timestamp() * 1e6)
        for session_id, age in (("new", 1), ("old", 3600), ("future", -86400)):
            for index in ("agent:sessions", "agent:sessions:ada"):
                await (await store._ready()).call("ZADD", index, now - age * 1_000_000, f"ada/{session_id}")
        assert (await store.list_sessions("ada")).sessions == []
        left = await (await store._ready()).call("ZRANGE", "agent:sessions", 0, -1)
        assert left == ["ada/new"], "a write may be between its entry and its data"
        assert await (await store._ready()).call("ZRANGE", "agent:sessions:ada", 0, -1) == ["ada/new"]
