"""A database of an older version, and programs of an older version: what they did stays, and what they do goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from my_agent.sessions import PostgresStore, SessionRef, backend
from my_agent.sessions.postgres.schema import Migration, upgrade
from my_agent.sessions.records import Batch, Row
from proof.postgres.fixtures import run_sql, settings_for

KEY = SessionRef("", "s")
PROMISES = 20261126000001
OLDER: list[Migration] = [one for one in backend.migrations() if one.version < PROMISES]
FUNCTION = "SELECT agent_session_append($1, $2, $3, $4, $5, $6)"
# What a program between 0.1.0 and the next version sends, where no pooler is between.
STATEMENT = """
WITH session AS (
  INSERT INTO public.agent_session_info AS info (user_id, session_id, title, item_count, updated_at)
  VALUES ($1, $2, $6, cardinality($4::text[]), clock_timestamp())
  ON CONFLICT (user_id, session_id) DO UPDATE
    SET item_count = info.item_count + excluded.item_count,
        updated_at = clock_timestamp(),
        title = coalesce(info.title, excluded.title)
    WHERE $3::uuid <> ALL (info.recent_batches)
  RETURNING updated_at
)
INSERT INTO public.agent_sessions (user_id, session_id, role, content, created_at, batch_id)
  SELECT $1, $2, item.role, item.content, session.updated_at, item.batch_id
  FROM session, unnest($4, $5::text[], ARRAY[$3]) AS item (content, role, batch_id)
  WHERE item.content IS NOT NULL
"""


@pytest.fixture
async def old_database(empty_database: str) -> str:
    await upgrade(settings_for(empty_database), OLDER)
    return empty_database


@pytest.fixture
async def program(old_database: str) -> AsyncIterator[asyncpg.Connection]:
    """The connection of a program of the version before, which runs on."""
    connection = await asyncpg.connect(old_database, statement_cache_size=0)
    yield connection
    await connection.close()


async def append(program: asyncpg.Connection, statement: str, *contents: str, batch_id: UUID | None = None) -> Batch:
    """As an older program does it."""
    batch = Batch(batch_id or uuid4(), [Row(content) for content in contents])
    try:
        await program.execute(statement, *KEY, batch.id, list(contents), [None] * len(contents), None)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "agent_sessions_batch":
            raise
    return batch


async def agrees(store: PostgresStore) -> list[str]:
    found = await store.find_session(KEY)
    rows = await store.tail(KEY, None)
    assert len(rows) == (found.item_count if found else 0)
    return rows


async def upgraded(url: str) -> PostgresStore:
    await upgrade(settings_for(url), backend.migrations())
    return PostgresStore(settings_for(url))


@pytest.mark.parametrize("statement", [FUNCTION, STATEMENT])
async def test_batches_of_the_hour_before_are_still_known(
    old_database: str, program: asyncpg.Connection, statement: str
) -> None:
    kept = await append(program, statement, "a", "b")
    popped = await append(program, statement, "popped")
    await program.execute("SELECT agent_session_pop($1, $2)", *KEY)
    async with await upgraded(old_database) as store:
        assert await agrees(store) == ["a", "b"]
        for batch in (kept, popped):
            await store.append(KEY, batch)
        assert await agrees(store) == ["a", "b"]
        await store.delete_session(KEY)
        for batch in (kept, popped):
            await store.append(KEY, batch)
            assert await store.replace_tail(KEY, None, batch)
        assert await store.find_session(KEY) is None


@pytest.mark.parametrize("statement", [FUNCTION, STATEMENT])
async def test_an_older_program_goes_on_beside_a_new_one(
    old_database: str, program: asyncpg.Connection, statement: str
) -> None:
    async with await upgraded(old_database) as store:
        old = await append(program, statement, "old 1", "old 2")
        new = Batch.of([Row("new")])
        await store.append(KEY, new)
        for batch in (old, new):
            contents = [row.content for row in batch.rows]
            await append(program, statement, *contents, batch_id=batch.id)
            await store.append(KEY, batch)
        assert await agrees(store) == ["old 1", "old 2", "new"]
        assert await program.fetchval("SELECT agent_session_pop($1, $2)", *KEY) == "new"
        await program.execute("SELECT agent_session_clear($1, $2)", *KEY)
        await append(program, statement, "old 1", "old 2", batch_id=old.id)
        assert await agrees(store) == []
        replace = "SELECT agent_session_replace_tail($1, $2, NULL, $3, $4, $5, NULL)"
        assert await program.fetchval(replace, *KEY, uuid4(), ["summary"], [None])
        rewrite = "SELECT agent_session_rewrite($1, $2, 0, $3, $4, NULL, NULL, '{}', '{}')"
        assert await program.fetchval(rewrite, *KEY, ["summary"], ["other"])
        assert not await program.fetchval(rewrite, *KEY, ["summary"], ["other"])
        assert await agrees(store) == ["other"]


@pytest.mark.parametrize("statement", [FUNCTION, STATEMENT])
async def test_writers_wait_for_the_upgrade_and_lose_and_double_nothing(
    old_database: str, program: asyncpg.Connection, statement: str
) -> None:
    """An older program appends and repeats all the time: before, while and after the schema is upgraded."""
    sent: list[Batch] = []
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set() or len(sent) < 20:
            sent.append(await append(program, statement, f"{len(sent)} a", f"{len(sent)} b"))
            again = sent[len(sent) // 2]
            await append(program, statement, *(row.content for row in again.rows), batch_id=again.id)

    writer = asyncio.create_task(write())
    while len(sent) < 20 and not writer.done():  # noqa: ASYNC110 - the writer runs on its own
        await asyncio.sleep(0.01)
    async with await upgraded(old_database) as store:
        known = len(sent)
        while len(sent) < known + 20 and not writer.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        done.set()
        await writer
        for batch in sent:
            await store.append(KEY, batch)
        assert await agrees(store) == [row.content for batch in sent for row in batch.rows]


async def test_only_what_was_written_in_the_last_hour_is_copied(old_database: str, program: asyncpg.Connection) -> None:
    old = await append(program, FUNCTION, "old")
    await run_sql(old_database, "UPDATE agent_sessions SET created_at = now() - interval '2 hours'")
    recent = await append(program, FUNCTION, "recent")
    async with await upgraded(old_database):
        pass
    rows = await program.fetch("SELECT batch_id, created_at FROM agent_session_batches")
    stored = await program.fetchval("SELECT max(created_at) FROM agent_sessions")
    assert [tuple(row) for row in rows] == [(recent.id, stored)]
    assert old.id != recent.id


async def test_an_upgrade_that_was_refused_can_be_repeated(old_database: str, program: asyncpg.Connection) -> None:
    sent = await append(program, STATEMENT, "a")
    newest = backend.migrations()[-1]
    broken = newest._replace(sql=newest.sql + "; select 1/0")
    with pytest.raises(Exception, match="failed and changed nothing"):
        await upgrade(settings_for(old_database), [*OLDER, broken])
    await append(program, STATEMENT, "a", batch_id=sent.id)
    async with await upgraded(old_database) as store:
        await store.append(KEY, sent)
        assert await agrees(store) == ["a"]
