"""The table that remembers batches: what it holds, for how long, who tidies it. And the tables can be partitioned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.records import Batch, Row

KEY = SessionRef("ada", "s")
LAST_YEAR = datetime.now(UTC) - timedelta(days=365)
TABLES = ("agent_sessions", "agent_session_info", "agent_session_batches")


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


async def old_batches(owner: asyncpg.Connection, count: int, age: str) -> None:
    """Batches of sessions that nobody will ever use again."""
    await owner.execute(
        "INSERT INTO agent_session_batches SELECT 'gone', n::text, gen_random_uuid(), now() - $2::text::interval "
        "FROM generate_series(1, $1) AS n",
        count,
        age,
    )


async def remembered(owner: asyncpg.Connection) -> int:
    return int(await owner.fetchval("SELECT count(*) FROM agent_session_batches WHERE user_id = 'gone'"))


# ── Tidying ─────────────────────────────────────────────────────────────────

Change = Callable[[SessionStore], Awaitable[object]]
TIDYING: dict[str, tuple[Change, int]] = {
    "prune": (lambda store: store.prune(LAST_YEAR), 10_000),
    "delete_session": (lambda store: store.delete_session(KEY), 500),
    "delete_user": (lambda store: store.delete_user("ada"), 500),
}


@pytest.mark.parametrize("change", TIDYING)
async def test_old_batches_are_tidied_a_bounded_number_at_a_time(
    store: SessionStore, owner: asyncpg.Connection, change: str
) -> None:
    call, at_most = TIDYING[change]
    await store.append(KEY, batch("a"))
    await old_batches(owner, 12_000, "61 minutes")
    await call(store)
    assert await remembered(owner) == 12_000 - at_most


async def test_appends_tidy_up_after_sessions_that_are_gone(store: SessionStore, owner: asyncpg.Connection) -> None:
    await old_batches(owner, 1500, "61 minutes")
    async with asyncio.timeout(60):
        while await remembered(owner):  # one append of a hundred tidies
            await asyncio.gather(*(store.append(SessionRef("ada", str(n)), batch("a")) for n in range(20)))


async def test_a_batch_is_remembered_for_an_hour(store: SessionStore, owner: asyncpg.Connection) -> None:
    sent = batch("a")
    await store.append(KEY, sent)
    await owner.execute("UPDATE agent_session_batches SET created_at = created_at - interval '59 minutes'")
    await store.delete_session(KEY)
    await store.prune(LAST_YEAR)
    await store.append(KEY, sent)
    assert await store.find_session(KEY) is None
    await owner.execute("UPDATE agent_session_batches SET created_at = created_at - interval '2 minutes'")
    await store.prune(LAST_YEAR)
    assert await owner.fetchval("SELECT count(*) FROM agent_session_batches") == 0


async def test_tidying_waits_for_nobody(store: SessionStore, owner: asyncpg.Connection) -> None:
    await old_batches(owner, 5, "2 hours")
    async with owner.transaction():
        await owner.execute("SELECT FROM agent_session_batches WHERE session_id = '1' FOR UPDATE")
        async with asyncio.timeout(10):
            await store.prune(LAST_YEAR)
        assert await remembered(owner) == 1


async def test_what_remembers_a_batch_holds_no_content(store: SessionStore, owner: asyncpg.Connection) -> None:
    await store.append(KEY, Batch.of([Row("planted", "planted")], title="planted"))
    await store.replace_tail(KEY, None, batch("planted"))
    rows = await owner.fetch("SELECT * FROM agent_session_batches ORDER BY created_at")
    assert [{*row.keys()} for row in rows] == [{"user_id", "session_id", "batch_id", "created_at"}] * 2
    assert "planted" not in repr([tuple(row) for row in rows])


# ── Opening ─────────────────────────────────────────────────────────────────


async def test_opening_is_one_question(store: SessionStore, owner: asyncpg.Connection) -> None:
    versions = await owner.fetchval("SELECT agent_session_schema_version()::text[]")
    assert await owner.fetchval("SELECT (agent_session_open(''))[1:3]") == [*versions, None]
    await owner.execute("INSERT INTO agent_session_canary VALUES ('', 'app'), ('ada', 'user')")
    assert await owner.fetchval("SELECT (agent_session_open(''))[1:3]") == [*versions, "app"]
    assert await owner.fetchval("SELECT (agent_session_open('ada'))[1:3]") == [*versions, "user"]
    assert await owner.fetchval("SELECT (agent_session_open('bob'))[1:3]") == [*versions, None]


# ── Partitions ──────────────────────────────────────────────────────────────


async def test_every_unique_index_begins_with_the_session(owner: asyncpg.Connection) -> None:
    columns = await owner.fetch(
        "SELECT indexrelid::regclass::text AS name, array("
        "SELECT attname::text FROM unnest(indkey) WITH ORDINALITY AS key (number, place) "
        "JOIN pg_attribute ON attrelid = indrelid AND attnum = number ORDER BY place) AS columns "
        "FROM pg_index WHERE indisunique AND indrelid = ANY ($1::text[]::regclass[])",
        list(TABLES),
    )
    assert len(columns) == len(TABLES)
    assert {row["name"]: row["columns"][:2] for row in columns if row["columns"][:2] != ["user_id", "session_id"]} == {}


async def test_the_functions_work_on_partitioned_tables(store: SessionStore, owner: asyncpg.Connection) -> None:
    """As someone with very many sessions would set it up; put back afterwards."""
    for table in TABLES:
        await owner.execute(
            f"ALTER TABLE {table} RENAME TO plain_{table}; "
            f"CREATE TABLE {table} (LIKE plain_{table} INCLUDING ALL) PARTITION BY HASH (user_id, session_id); "
            f"CREATE TABLE {table}_0 PARTITION OF {table} FOR VALUES WITH (MODULUS 2, REMAINDER 0); "
            f"CREATE TABLE {table}_1 PARTITION OF {table} FOR VALUES WITH (MODULUS 2, REMAINDER 1); "
            f"GRANT ALL ON {table} TO PUBLIC"
        )
    try:
        keys = [SessionRef("ada", str(number)) for number in range(8)]
        for key in keys:
            sent = batch("a", "b", "c")
            await store.append(key, sent)
            await store.append(key, sent)
            assert await store.pop(key) == "c"
            assert await store.replace_tail(key, ["b"], batch("d"))
            assert await store.tail(key, None) == ["a", "d"]
        assert await store.delete_session(keys[0])
        await old_batches(owner, 10, "2 hours")
        assert await store.prune(datetime.now(UTC) + timedelta(minutes=1), 3) == 3
        assert await remembered(owner) == 0
        assert await store.delete_user("ada") == 4
        assert await owner.fetchval("SELECT count(*) FROM agent_sessions") == 0
    finally:
        await store.close()
        for table in TABLES:
            await owner.execute(f"DROP TABLE {table}; ALTER TABLE plain_{table} RENAME TO {table}")
