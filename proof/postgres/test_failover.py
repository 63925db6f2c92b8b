"""A connection that cannot write any more is replaced, and the write goes through; also when a standby takes over."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from time import monotonic

import asyncpg
import pytest

from my_agent.sessions import PostgresSettings, PostgresStore, StoreUnavailable
from proof.postgres.fixtures import POOLER, database_of, settings_for
from proof.postgres.replicas import replicated
from proof.postgres.wire import wire_to
from proof.support.helpers import texts, user

pytestmark = pytest.mark.skipif(POOLER == "transaction", reason="changes the state of the app's own connections")

WRITERS = 16

# ── A connection ────────────────────────────────────────────────────────────


async def spoil(store: PostgresStore, statement: str, connections: int) -> None:
    """Open so many connections and change the state of each."""
    pool = store._pool
    assert pool is not None
    await asyncio.gather(*(store._call("SELECT pg_sleep(0.1)") for _ in range(connections)))
    assert len(pool._idle) == connections
    for pooled in pool._idle:
        await pooled.connection.execute(statement)


@pytest.mark.parametrize("connections", [1, 8])
async def test_a_connection_that_became_read_only_is_replaced(
    settings: PostgresSettings, caplog: pytest.LogCaptureFixture, connections: int
) -> None:
    async with PostgresStore(settings) as store:
        session = store.session("s")
        await session.add_items([user("before")])
        await spoil(store, "SET default_transaction_read_only = on", connections)
        begin = monotonic()
        with caplog.at_level(logging.WARNING):
            await session.add_items([user("after")])
        assert monotonic() - begin < 1
        assert caplog.text.count("takes no writes") == 1
        assert texts(await session.get_items()) == ["before", "after"]
        # One after the other, and all at once: no stale connection is left.
        await asyncio.gather(*(store.session(f"s{n}").add_items([user("x")]) for n in range(20)))
        assert caplog.text.count("takes no writes") == 1


async def test_connections_in_use_when_another_is_found_read_only_are_not_used_again(
    settings: PostgresSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with PostgresStore(settings) as store:
        session = store.session("s")
        await session.add_items([user("before")])
        await spoil(store, "SET default_transaction_read_only = on", 4)
        readers = [asyncio.create_task(store._call("SELECT pg_sleep(0.3)")) for _ in range(3)]
        await asyncio.sleep(0)
        await session.add_items([user("after")])
        await asyncio.gather(*readers)
        for number in range(5):
            await asyncio.gather(*(store.session(f"s{n}").add_items([user(f"{number}")]) for n in range(4)))
        assert caplog.text.count("takes no writes") == 1


async def test_a_connection_that_the_server_ended_for_being_idle_is_replaced(settings: PostgresSettings) -> None:
    async with PostgresStore(settings) as store:
        if await store._call("SELECT current_setting('server_version_num')::int") < 140000:
            pytest.skip("idle_session_timeout came with PostgreSQL 14")
        session = store.session("s")
        await session.add_items([user("before")])
        await spoil(store, "SET idle_session_timeout = '50ms'", 4)
        for number in range(10):
            await asyncio.sleep(0.01 * number)
            await session.add_items([user(f"{number}")])
        assert texts(await session.get_items()) == ["before", *map(str, range(10))]


async def test_a_database_that_takes_no_writes_says_what_to_do(server_url: str, settings: PostgresSettings) -> None:
    name = settings.address.database or ""
    admin = await asyncpg.connect(database_of(server_url, name))
    try:
        await admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        impatient = settings.model_copy(update={"session_retry_seconds": 0.0})
        async with PostgresStore(impatient) as store:
            assert await store.session("s").get_items() == []
            with pytest.raises(
                StoreUnavailable, match=r"takes no writes: .* Point DATABASE_URL to the primary"
            ) as caught:
                await store.session("s").add_items([user("x")])
            assert not caught.value.maybe_applied
    finally:
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await admin.close()


# ── A server ────────────────────────────────────────────────────────────────


async def test_nothing_acknowledged_is_lost_when_a_standby_takes_over_from_sixteen_writers(tmp_path: Path) -> None:
    async with replicated(tmp_path) as pair, wire_to(pair.primary_url) as (wire, url):
        settings = settings_for(url, session_retry_seconds=60.0, database_pool_max=8)
        acknowledged: list[list[str]] = [[] for _ in range(WRITERS)]
        gap, last = 0.0, monotonic()
        enough = asyncio.Event()
        stop = False

        async def write(store: PostgresStore, writer: int) -> None:
            nonlocal gap, last
            session = store.session(f"s{writer}")
            while not stop:
                batch = [f"{len(acknowledged[writer])}.{part}" for part in "ab"]
                await session.add_items([user(text) for text in batch])
                acknowledged[writer] += batch
                gap, last = max(gap, monotonic() - last), monotonic()
                if sum(map(len, acknowledged)) >= 400:
                    enough.set()

        async with PostgresStore(settings) as store:
            async with asyncio.TaskGroup() as writers:
                for writer in range(WRITERS):
                    writers.create_task(write(store, writer))
                async with asyncio.timeout(60):
                    await enough.wait()
                # The address leads to the standby a moment before it takes over: until then it only reads.
                wire.lead_to(pair.standby_url)
                pair.kill_primary()
                wire.reset()
                await asyncio.sleep(0.5)
                before = list(map(len, acknowledged))
                await pair.promote_standby()
                begin = monotonic()
                async with asyncio.timeout(60):
                    while any(len(now) < then + 10 for now, then in zip(acknowledged, before, strict=True)):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                recovered = monotonic() - begin
                stop = True
            stored = [texts(await store.session(f"s{writer}").get_items()) for writer in range(WRITERS)]
        logging.getLogger(__name__).warning(
            "%d items acknowledged, longest pause %.2f s, all writers again %.2f s after the promotion",
            sum(map(len, acknowledged)),
            gap,
            recovered,
        )
        assert stored == acknowledged


async def test_connections_to_a_standby_go_on_when_it_becomes_the_primary(tmp_path: Path) -> None:
    async with replicated(tmp_path) as pair:
        async with PostgresStore(settings_for(pair.primary_url)) as store:
            await store.session("s").add_items([user("before")])
        impatient = settings_for(pair.standby_url, session_retry_seconds=0.3)
        async with PostgresStore(impatient) as store:
            session = store.session("s")
            assert texts(await session.get_items()) == ["before"]
            with pytest.raises(StoreUnavailable, match="takes no writes"):
                await session.add_items([user("refused")])
            pair.kill_primary()
            await pair.promote_standby()
            await session.add_items([user("after")])
            assert texts(await session.get_items()) == ["before", "after"]


async def test_connections_to_a_standby_that_stays_one_are_left_for_the_primary(tmp_path: Path) -> None:
    async with (
        replicated(tmp_path) as pair,
        wire_to(pair.standby_url) as (wire, url),
        PostgresStore(settings_for(url)) as store,
    ):
        sessions = [store.session(f"s{number}") for number in range(5)]
        await asyncio.gather(*(session.get_items() for session in sessions))
        wire.lead_to(pair.primary_url)  # for new connections: the open ones still end at the standby
        begin = monotonic()
        await asyncio.gather(*(session.add_items([user("x")]) for session in sessions))
        assert monotonic() - begin < 2
        assert [texts(await session.get_items()) for session in sessions] == [["x"]] * 5
