"""Sentinels say which server is the primary, and sessions go on when that changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from my_agent.sessions import RedisStore, StoreRefused, StoreUnavailable
from proof.redis import groups as redis_groups
from proof.redis import servers as redis_servers
from proof.redis.groups import Watched
from proof.redis.servers import QUOTED, until
from proof.redis.test_topologies import KEY, batch, failure, opened
from proof.support.helpers import texts, user


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Watched]:
    with redis_groups.watched(tmp_path) as group:
        yield group


async def written(group: Watched, store: RedisStore) -> None:
    """Write a text that the replica has, too."""
    await store.session("s").add_items([user("before")])
    until(lambda: redis_servers.has_replicated(group.primary), "the replica has everything")


def has_changed(group: Watched) -> bool:
    """Whether the old primary is a replica; if nothing is under way, the Sentinel is told to change them.

    It gives up a change that takes longer than three seconds on a busy machine.
    """
    if group.primary_port() == group.primary.port:
        with group.sentinel.client() as client, suppress(redis.ResponseError):  # it is under way already
            client.execute_command("SENTINEL", "FAILOVER", "main")
    return bool(redis_servers.info(group.primary)["role"] == "slave")


async def test_a_session_goes_on_when_the_primary_dies(group: Watched) -> None:
    async with opened(group.url) as store:
        await written(group, store)
        group.primary.kill()
        await store.session("s").add_items([user("after")])
        assert texts(await store.session("s").get_items()) == ["before", "after"]
    assert group.primary_port() == group.replica.port


async def test_a_session_goes_on_when_the_primary_is_changed(group: Watched) -> None:
    async with opened(group.url) as store:
        await written(group, store)
        until(lambda: has_changed(group), "the old primary is a replica")
        await store.session("s").add_items([user("after")])
        assert texts(await store.session("s").get_items()) == ["before", "after"]
    with group.replica.client() as client:
        assert client.llen("agent:{/s}:items") == 2


async def test_a_connection_to_what_has_become_a_replica_is_given_up(group: Watched) -> None:
    async with opened(group.url) as store:
        await written(group, store)
        with group.primary.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", group.replica.port)
        with pytest.raises(StoreUnavailable, match="read-only replica") as caught:
            await store.append(KEY, batch("x"))
        assert not caught.value.maybe_applied
        with group.primary.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
            connections = redis_servers.info(group.primary)["total_connections_received"]
            await store.append(KEY, batch("x"))
            assert redis_servers.info(group.primary)["total_connections_received"] > connections + 1


async def test_what_is_wrong_with_sentinels_is_told(group: Watched) -> None:
    error = await failure(group.url.replace("service=main", "service=other"))
    assert isinstance(error, StoreUnavailable)
    assert "know no such primary" in str(error)
    error = await failure(group.url.partition("&")[0])
    assert isinstance(error, StoreRefused)
    assert "&sentinel_password=" in str(error)
    error = await failure(group.url.replace(f":{QUOTED}@", ":planted@"))
    assert isinstance(error, StoreRefused)
    assert "planted" not in str(error)


async def test_a_sentinel_that_is_down_is_passed_over(group: Watched) -> None:
    async with opened(group.url.replace("@", "@127.0.0.1:1,")) as store:
        await store.append(KEY, batch("x"))
