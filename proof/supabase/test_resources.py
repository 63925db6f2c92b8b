"""What the database does for a read, a pop, a list and a prune, by its own counters; and what it does out of room.

Once for the secret key and once for a signed-in user, for whom the policies are a part of every query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from my_agent.sessions import SessionRef, StoreRefused, SupabaseStore
from my_agent.sessions.retry import with_retries
from proof.sql.damage import LARGE, full_disk
from proof.supabase.fixtures import Environment, ask, settings_for, token
from proof.support.helpers import texts, user

ADA = "a11ce000-0000-4000-8000-000000000001"
KEY = SessionRef("", "s")
TABLES = ("agent_sessions", "agent_session_info")
CALLS = 12
"""From the sixth on the database may use a plan that was made for no arguments in particular."""
MANY = 10_000

Kill = Callable[[], Awaitable[int]]
Call = Callable[[], Awaitable[object]]

# ── Work ────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["secret key", "signed in"])
async def reader(request: pytest.FixtureRequest, project: Environment) -> AsyncIterator[SupabaseStore]:
    """Whoever looks at Ada's sessions."""
    signed_in = request.param == "signed in"
    async with SupabaseStore(settings_for(project), token(project, ADA) if signed_in else None) as store:
        yield store


class Work(NamedTuple):
    """What one call took, as an average of `CALLS`."""

    rows: float
    """Read from the table."""
    pages: float
    """Of the table and its indexes."""
    scans: int
    """How often, in all calls, the table was read from its beginning."""


async def counters(project: Environment, table: str) -> list[int]:
    counted: list[int] = await ask(
        project,
        "SELECT ARRAY[seq_tup_read + idx_tup_fetch, heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit, "
        "seq_scan] FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid) WHERE relid = $1::text::regclass",
        table,
    )
    return counted


async def work_of(call: Call, project: Environment, table: str, kill_connections: Kill) -> Work:
    """What the database counts; a connection of the API reports the last of it when it ends."""
    await kill_connections()
    before = await counters(project, table)
    for _ in range(CALLS):
        await with_retries(call, 10)
    await kill_connections()
    rows, pages, scans = (new - old for new, old in zip(await counters(project, table), before, strict=True))
    return Work(rows / CALLS, pages / CALLS, scans)


async def tell_the_planner(project: Environment, analyzed: bool) -> None:
    """Let the planner know what is in the tables, or nothing; and let nobody else read them to find out."""
    for table in TABLES:
        await ask(project, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    await ask(project, "DELETE FROM pg_statistic WHERE starelid = ANY ($1::text[]::regclass[])", TABLES)
    if analyzed:
        await ask(project, f"ANALYZE {', '.join(TABLES)}")


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(("operation", "rows"), [("read", 20), ("pop", 2)])
async def test_the_newest_take_the_same_work_however_long_the_history(
    reader: SupabaseStore, project: Environment, kill_connections: Kill, operation: str, rows: int, analyzed: bool
) -> None:
    sizes = {"short": 100, "long": 30_000}
    for name, size in sizes.items():
        insert = "INSERT INTO agent_session_info (user_id, session_id, item_count) VALUES ($1, $2, $3)"
        await ask(project, insert, ADA, name, size)
        await ask(
            project,
            "INSERT INTO agent_sessions (user_id, session_id, content) "
            "SELECT $1, $2, json_build_object('role', 'user', 'content', n::text) FROM generate_series(1, $3) n",
            ADA,
            name,
            size,
        )
    await tell_the_planner(project, analyzed)
    work = {}
    for name, size in sizes.items():
        session = reader.session(name, user_id=ADA)
        assert texts(await session.get_items(20)) == [str(n) for n in range(size - 19, size + 1)]
        call: Call = session.pop_item if operation == "pop" else partial(session.get_items, 20)
        work[name] = await work_of(call, project, "agent_sessions", kill_connections)
    assert {(one.rows, one.scans) for one in work.values()} == {(rows, 0)}  # a popped one is found, then deleted
    assert work["long"].pages <= work["short"].pages + 3  # its index is deeper


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("user_id", [ADA, None])
@pytest.mark.parametrize("pages_before", [0, MANY // 2 // 500])
async def test_listing_takes_the_work_of_a_page_however_many_sessions_there_are(
    reader: SupabaseStore,
    project: Environment,
    kill_connections: Kill,
    pages_before: int,
    user_id: str | None,
    analyzed: bool,
) -> None:
    await ask(
        project,
        "INSERT INTO agent_session_info (user_id, session_id, updated_at) "
        "SELECT $1, n::text, now() - n * interval '1 second' FROM generate_series(1, $2) n "
        "UNION ALL SELECT 'user ' || n, n::text, now() - interval '1 day' FROM generate_series(1, $2) n",
        ADA,
        MANY,
    )
    await tell_the_planner(project, analyzed)
    cursor = None
    for _ in range(pages_before):
        cursor = (await reader.list_sessions(user_id, limit=500, cursor=cursor)).next_cursor

    async def page() -> list[str]:
        found = await reader.list_sessions(user_id, limit=20, cursor=cursor)
        return [info.session_id for info in found.sessions]

    work = await work_of(page, project, "agent_session_info", kill_connections)
    assert await with_retries(page, 10) == [str(500 * pages_before + n) for n in range(1, 21)]
    assert work.scans == 0
    assert work.rows < 25  # one more than asked for, and what the planner looks up


# ── Pruning ─────────────────────────────────────────────────────────────────


async def test_pruning_passes_by_a_session_that_is_being_written_to(store: SupabaseStore, project: Environment) -> None:
    for name in ("idle", "s"):
        await store.session(name).add_items([user("old")])
    found = await store.find_session(KEY)
    assert found is not None
    writer = await asyncpg.connect(project["SUPABASE_DB_URL"])
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


@pytest.fixture
def kill_other(other_project: Environment) -> Call:
    """Cuts the API's connections to the other database; returns when they are gone."""
    return lambda: ask(
        other_project,
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = 'authenticator'",
    )


async def test_a_full_disk_is_an_error_that_leaves_history_alone(
    other_store: SupabaseStore, other_project: Environment, kill_other: Call
) -> None:
    session = other_store.session("s")
    await session.add_items([user("before")])
    path = await ask(
        other_project,
        "SELECT current_setting('data_directory') || '/' || pg_relation_filepath(reltoastrelid) "
        "FROM pg_class WHERE oid = 'agent_sessions'::regclass",
    )
    with full_disk(Path(path)):
        await kill_other()  # new connections open it anew
        with pytest.raises(StoreRefused, match=r"is out of resources: could not extend file .*No space left on device"):
            await session.add_items([user("small"), user(LARGE), user("small")])
        found = await other_store.find_session(KEY)
        assert found is not None
        assert found.item_count == 1
        assert texts(await session.get_items()) == ["before"]
        await session.add_items([user("small")])  # for which there is room
    await kill_other()
    await session.add_items([user(LARGE)])
    assert texts(await session.get_items()) == ["before", "small", LARGE]


async def test_a_full_memory_is_an_error_that_leaves_history_alone(
    other_store: SupabaseStore, other_project: Environment
) -> None:
    """The memory that all connections share is full: another client has taken what there is for locks (53200)."""
    session = other_store.session("s")
    await session.add_items([user("before")])
    other = await asyncpg.connect(other_project["SUPABASE_DB_URL"])
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
