"""A connection that a firewall dropped without a word does not hold up a turn."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic

import pytest

from my_agent.sessions import PostgresStore
from my_agent.sessions.postgres import pool as postgres_pool
from proof.postgres.fixtures import POOLER, settings_for
from proof.postgres.wire import wire_to
from proof.support.helpers import texts, user

pytestmark = pytest.mark.skipif(POOLER == "transaction", reason="looks at the app's own connections")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(postgres_pool, "CHECK_TIMEOUT_SECONDS", 0.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", ["add", "pop"])
async def test_a_connection_that_was_dropped_while_idle_is_replaced(database_url: str, change: str) -> None:
    async with wire_to(database_url) as (wire, url), PostgresStore(settings_for(url)) as store:
        session = store.session("s")
        await session.add_items([user("one"), user("two")])
        await asyncio.gather(*(store._call("SELECT pg_sleep(0.05)") for _ in range(4)))
        assert store._pool is not None
        assert len(store._pool._idle) == 4
        await asyncio.sleep(0.2)
        wire.forget()
        begin = monotonic()
        if change == "add":
            await session.add_items([user("three")])
        else:
            assert await session.pop_item() == user("two")
        assert monotonic() - begin < 5  # of the 30 s of the timeout
        expected = ["one", "two", "three"] if change == "add" else ["one"]
        assert texts(await session.get_items()) == expected


@pytest.mark.usefixtures("quick")
async def test_a_connection_that_still_works_is_kept(database_url: str) -> None:
    async with PostgresStore(settings_for(database_url)) as store:
        before = await store._call("SELECT pg_backend_pid()")
        await asyncio.sleep(0.2)
        assert await store._call("SELECT pg_backend_pid()") == before


@pytest.mark.usefixtures("quick")
async def test_a_call_that_is_cancelled_while_it_checks_leaves_a_pool_that_works(database_url: str) -> None:
    async with wire_to(database_url) as (wire, url):
        one = settings_for(url, database_pool_max=1)
        async with PostgresStore(one) as store:
            await store.ping()
            await asyncio.sleep(0.2)
            wire.forget()
            call = asyncio.create_task(store._call("SELECT 1"))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            async with asyncio.timeout(5):
                assert await store._call("SELECT 1") == 1


def test_connections_are_not_trusted_for_as_long_as_load_balancers_keep_them() -> None:
    assert postgres_pool.CHECK_SECONDS < postgres_pool.IDLE_SECONDS < 240


@pytest.mark.parametrize(
    ("query", "kept"),
    [("", (1, 60)), ("?keepalives_idle=7&keepalives_interval=5", (1, 7)), ("?keepalives=0", (0, None))],
)
async def test_the_system_asks_whether_the_other_end_is_there(
    database_url: str, query: str, kept: tuple[int, int | None]
) -> None:
    async with PostgresStore(settings_for(f"{database_url}{query}")) as store:
        await store.ping()
        assert store._pool is not None
        (pooled,) = store._pool._idle
        found = pooled.connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == bool(kept[0])
        if kept[1] is not None and hasattr(socket, "TCP_KEEPIDLE"):
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == kept[1]
