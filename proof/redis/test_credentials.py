"""Credentials that rotate: a function gives user and password for each new connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from my_agent.sessions import (
    RedisSession,
    RedisSettings,
    RedisStore,
    SessionRef,
    SessionStore,
    SessionStoreError,
    StoreRefused,
    StoreUnavailable,
    open_store,
)
from my_agent.sessions.records import Batch, Row
from proof.redis import groups as redis_groups
from proof.redis.fixtures import settings_for
from proof.redis.servers import PASSWORD, QUOTED, Server, until
from proof.support.helpers import texts, user

KEY = SessionRef("ada", "s")


class Tokens:
    """The tokens of a cloud: only the newest one opens the servers."""

    def __init__(self, *servers: Server) -> None:
        self.servers = servers
        self.asked = 0
        self.stale = 0
        """So many times more the one before the newest is given."""
        self._newest = 0
        self.rotate()

    def rotate(self, *, cut: bool = False) -> None:
        self._newest += 1
        for server in self.servers:
            with server.client() as client:
                rules = ("on", "resetpass", f">token{self._newest}", "~agent:*", "+@all")
                client.execute_command("ACL", "SETUSER", "app", *rules)
                if cut:
                    client.execute_command("CLIENT", "KILL", "USER", "app")

    async def __call__(self) -> tuple[str, str]:
        self.asked += 1
        late, self.stale = self.stale > 0, max(self.stale - 1, 0)
        return "app", f"token{self._newest - late}"


@pytest.fixture
def tokens(own_server: Server) -> Iterator[Tokens]:
    with own_server.client() as client:
        client.flushall()
    yield Tokens(own_server)
    with own_server.client() as client:
        client.execute_command("ACL", "DELUSER", "app")


@pytest.fixture
async def store(own_server: Server, tokens: Tokens) -> AsyncIterator[SessionStore]:
    # The address has a login too, which does not count.
    url = f"redis://nobody:wrong@127.0.0.1:{own_server.port}"
    async with open_store(settings_for(url), credentials=tokens) as store:
        yield store


async def test_each_new_connection_asks_for_them(store: SessionStore, tokens: Tokens) -> None:
    assert tokens.asked == 1
    await asyncio.gather(*(store.tail(KEY, None) for _ in range(5)))
    assert tokens.asked == 2  # a whole history comes over the connection for large replies


async def test_connections_with_an_expired_one_that_are_cut_are_replaced(store: SessionStore, tokens: Tokens) -> None:
    session = store.session("s", user_id="ada")
    for number in range(3):
        await asyncio.gather(*(session.get_items() for _ in range(5)))
        tokens.rotate(cut=True)
        await session.add_items([user(f"{number}")])
    assert texts(await session.get_items()) == ["0", "1", "2"]


async def test_a_connection_that_lost_its_login_is_replaced(store: SessionStore, tokens: Tokens) -> None:
    await store.append(KEY, Batch.of([Row(f"{n}") for n in range(5)]))
    assert isinstance(store, RedisStore)
    connection = await store._ready()
    await asyncio.gather(*(connection.call("RESET") for _ in range(5)))
    asked = tokens.asked
    assert [await store.pop(KEY) for _ in range(5)] == ["4", "3", "2", "1", "0"]
    assert tokens.asked == asked + 1  # the other four are not tried


async def test_one_that_expired_on_its_way_is_asked_for_once_more(store: SessionStore, tokens: Tokens) -> None:
    session = store.session("s", user_id="ada")
    tokens.rotate(cut=True)
    asked, tokens.stale = tokens.asked, 1
    assert await session.get_items() == []
    assert tokens.asked == asked + 2
    tokens.rotate(cut=True)
    tokens.stale = 10
    with pytest.raises(StoreRefused, match="refused the login"):
        await session.get_items()
    assert tokens.asked == asked + 4


@pytest.mark.parametrize("scheme", ["redis", "redis+proxy", "redis+cluster"])
async def test_a_function_that_fails_is_one_sentence(own_server: Server, scheme: str) -> None:
    async def broken() -> tuple[str, str]:
        raise OSError("the answer was planted")

    store = RedisStore(settings_for(f"{scheme}://127.0.0.1:{own_server.port}"), credentials=broken)
    with pytest.raises(StoreUnavailable, match=r"gave no user and password: OSError") as caught:
        await store.tail(KEY, None)
    assert "planted" not in str(caught.value)
    await store.close()


async def test_what_is_no_login_is_one_sentence(own_server: Server) -> None:
    async def broken() -> tuple[str, str]:
        return "planted"  # type: ignore[return-value]

    store = RedisStore(settings_for(f"redis://127.0.0.1:{own_server.port}"), credentials=broken)
    with pytest.raises(SessionStoreError, match="user and password") as caught:
        await store.tail(KEY, None)
    assert "planted" not in str(caught.value)
    await store.close()


async def test_sessions_share_connections_if_they_have_the_same_function(own_server: Server, tokens: Tokens) -> None:
    async def other() -> tuple[str, str]:
        return await tokens()

    settings = RedisSettings()
    url = f"redis://127.0.0.1:{own_server.port}"
    async with (
        RedisSession("a", url, settings=settings, credentials=tokens) as one,
        RedisSession("b", url, settings=settings, credentials=tokens) as same,
        RedisSession("a", url, settings=settings, credentials=other) as another,
    ):
        await one.add_items([user("x")])
        assert one.store is same.store
        assert one.store is not another.store
        assert texts(await another.get_items()) == ["x"]


async def test_a_cluster_asks_for_them_too_also_to_find_its_nodes(tmp_path: Path) -> None:
    with redis_groups.node_of_cluster(tmp_path / "node") as node:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await asyncio.to_thread(
            until, lambda: redis_groups.cluster_info(node)["cluster_state"] == "ok", "the cluster serves"
        )
        tokens = Tokens(node)
        url = f"redis+cluster://127.0.0.1:{node.port}"
        async with RedisStore(settings_for(url), credentials=tokens) as store:
            session = store.session("s", user_id="ada")
            for number in range(3):
                tokens.rotate(cut=True)
                tokens.stale = number % 2
                await session.add_items([user(f"{number}")])
            assert texts(await session.get_items()) == ["0", "1", "2"]


async def test_the_primary_behind_sentinel_asks_for_them_too(tmp_path: Path) -> None:
    with redis_groups.watched(tmp_path) as group:
        tokens = Tokens(group.primary)
        url = f"redis+sentinel://127.0.0.1:{group.sentinel.port}?service=main&sentinel_password={QUOTED}"
        async with RedisStore(settings_for(url), credentials=tokens) as store:
            session = store.session("s", user_id="ada")
            for number in range(3):
                tokens.rotate(cut=True)
                await session.add_items([user(f"{number}")])
            assert texts(await session.get_items()) == ["0", "1", "2"]
    assert PASSWORD not in repr(store)
