"""What the server does for a read, a pop, a list and a prune, by its own counters; and what it does out of room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from my_agent.dev import server as devserver
from my_agent.sessions import PostgresStore, SessionRef, StoreRefused, backend
from my_agent.sessions.postgres.schema import upgrade
from proof.postgres.fixtures import TABLES, run_sql, settings_for
from proof.sql.damage import LARGE, full_disk
from proof.support.helpers import texts, user

ADA = "a11ce000-0000-4000-8000-000000000001"
KEY = SessionRef("", "s")
CALLS = 12
"""From the sixth on the server may use a plan that was made for no arguments in particular."""
MANY = 10_000

Kill = Callable[[], Awaitable[int]]
Call = Callable[[], Awaitable[object]]

# ── Work ────────────────────────────────────────────────────────────────────


class Work(NamedTuple):
    """What one call took, as an average of `CALLS`."""

    rows: float
    """Read from the table."""
    pages: float
    """Of the table and its indexes."""
    scans: int
    """How often, in all calls, the table was read from its beginning."""


async def counters(url: str, table: str) -> tuple[int, ...]:
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            "SELECT seq_tup_read + idx_tup_fetch, heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit, "
            "seq_scan FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid) WHERE relid = $1::regclass",
            table,
        )
        assert row is not None
        return tuple(row)
    finally:
        await connection.close()


async def work_of(call: Call, url: str, table: str, kill_connections: Kill) -> Work:
    """What the server counts; a connection reports the last of it when it ends."""
    await kill_connections()
    before = await counters(url, table)
    for _ in range(CALLS):
        await call()
    await kill_connections()
    rows, pages, scans = (new - old for new, old in zip(await counters(url, table), before, strict=True))
    return Work(rows / CALLS, pages / CALLS, scans)


async def tell_the_planner(url: str, analyzed: bool) -> None:
    """Let the planner know what is in the tables, or nothing; and let nobody else read them to find out."""
    for table in TABLES:
        await run_sql(url, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    await run_sql(url, f"DELETE FROM pg_statistic WHERE starelid IN ('{TABLES[0]}'::regclass, '{TABLES[1]}'::regclass)")
    if analyzed:
        await run_sql(url, f"ANALYZE {', '.join(TABLES)}")


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(("operation", "rows"), [("read", 20), ("pop", 2)])
async def test_the_newest_take_the_same_work_however_long_the_history(
    store: PostgresStore, database_url: str, kill_connections: Kill, operation: str, rows: int, analyzed: bool
) -> None:
    sizes = {"short": 100, "long": 30_000}
    for name, size in sizes.items():
        await run_sql(
            database_url,
            f"INSERT INTO agent_session_info (user_id, session_id, item_count) VALUES ('{ADA}', '{name}', {size});"
            f"INSERT INTO agent_sessions (user_id, session_id, content) SELECT '{ADA}', '{name}', "
            f"json_build_object('role', 'user', 'content', n::text) FROM generate_series(1, {size}) n",
        )
    await tell_the_planner(database_url, analyzed)
    work = {}
    for name, size in sizes.items():
        session = store.session(name, user_id=ADA)
        assert texts(await session.get_items(20)) == [str(n) for n in range(size - 19, size + 1)]
        call: Call = session.pop_item if operation == "pop" else partial(session.get_items, 20)
        work[name] = await work_of(call, database_url, "agent_sessions", kill_connections)
    assert {(one.rows, one.scans) for one in work.values()} == {(rows, 0)}  # a popped one is found, then deleted
    assert work["long"].pages <= work["short"].pages + 3  # its index is deeper


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("user_id", ["ada", None])
@pytest.mark.parametrize("pages_before", [0, MANY // 2 // 500])
async def test_listing_takes_the_work_of_a_page_however_many_sessions_there_are(
    store: PostgresStore,
    database_url: str,
    kill_connections: Kill,
    pages_before: int,
    user_id: str | None,
    analyzed: bool,
) -> None:
    await run_sql(
        database_url,
        "INSERT INTO agent_session_info (user_id, session_id, updated_at) "
        f"SELECT 'ada', n::text, now() - n * interval '1 second' FROM generate_series(1, {MANY}) n "
        f"UNION ALL SELECT 'user ' || n, n::text, now() - interval '1 day' FROM generate_series(1, {MANY}) n",
    )
    await tell_the_planner(database_url, analyzed)
    cursor = None
    for _ in range(pages_before):
        cursor = (await store.list_sessions(user_id, limit=500, cursor=cursor)).next_cursor

    async def page() -> list[str]:
        found = await store.list_sessions(user_id, limit=20, cursor=cursor)
        return [info.session_id for info in found.sessions]

    work = await work_of(page, database_url, "agent_session_info", kill_connections)
    assert work.scans == 0
    assert work.rows < 25  # one more than asked for, and what the planner looks up
    assert await page() == [str(500 * pages_before + n) for n in range(1, 21)]


# ── Pruning ─────────────────────────────────────────────────────────────────


async def test_pruning_passes_by_a_session_that_is_being_written_to(store: PostgresStore, database_url: str) -> None:
    for name in ("idle", "s"):
        await store.session(name).add_items([user("old")])
    found = await store.find_session(KEY)
    assert found is not None
    writer = await asyncpg.connect(database_url)
    try:
        async with writer.transaction():
            await writer.execute(
                "SELECT agent_session_append('', 's', gen_random_uuid(), $1, $2, NULL)",
                ['{"role": "user", "content": "new"}'],
                ["user"],
            )
            assert await store.prune(found.updated_at + timedelta(microseconds=1)) == 1
    finally:
        await writer.close()
    assert texts(await store.session("s").get_items()) == ["old", "new"]
    assert await store.find_session(SessionRef("", "idle")) is None


# ── Out of room ─────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for this module alone, which may run out of room."""
    with devserver.start(tmp_path_factory.mktemp("own"), durable=True) as server:
        url = server.environment["DATABASE_URL"]
        asyncio.run(upgrade(settings_for(url), backend.migrations()))
        yield url


@pytest.fixture
async def own_store(own_server: str) -> AsyncIterator[PostgresStore]:
    await run_sql(own_server, "TRUNCATE agent_sessions, agent_session_info CASCADE")
    async with PostgresStore(settings_for(own_server, database_pooler="none")) as store:
        yield store


async def test_a_full_disk_is_an_error_that_leaves_history_alone(own_store: PostgresStore, own_server: str) -> None:
    session = own_store.session("s")
    await session.add_items([user("before")])
    with full_disk(await file_of_large_items(own_server)):
        await own_store.close()  # new connections open it anew
        with pytest.raises(StoreRefused, match=r"is out of resources: could not extend file .*No space left on device"):
            await session.add_items([user("small"), user(LARGE), user("small")])
        found = await own_store.find_session(KEY)
        assert found is not None
        assert found.item_count == 1
        assert texts(await session.get_items()) == ["before"]
        await session.add_items([user("small")])  # for which there is room
        await own_store.close()
    await session.add_items([user(LARGE)])
    assert texts(await session.get_items()) == ["before", "small", LARGE]


async def file_of_large_items(url: str) -> Path:
    connection = await asyncpg.connect(url)
    try:
        path = await connection.fetchval(
            "SELECT current_setting('data_directory') || '/' || pg_relation_filepath(reltoastrelid) "
            "FROM pg_class WHERE oid = 'agent_sessions'::regclass"
        )
        return Path(path)
    finally:
        await connection.close()


async def test_a_full_memory_is_an_error_that_leaves_history_alone(own_store: PostgresStore, own_server: str) -> None:
    """The memory that all connections share is full: another client has taken what there is for locks (53200)."""
    session = own_store.session("s")
    await session.add_items([user("before")])
    other = await asyncpg.connect(own_server)
    try:
        for first in (1, 1_000_000):  # the second time, for what the first attempt has given back
            with pytest.raises(asyncpg.OutOfMemoryError):
                await other.execute(f"SELECT pg_advisory_lock(n) FROM generate_series({first}, {first} + 500000) n")
        with pytest.raises(StoreRefused, match="is out of resources: out of shared memory"):
            await session.add_items([user("during")])
    finally:
        await other.close()
    await session.add_items([user("after")])
    assert texts(await session.get_items()) == ["before", "after"]
