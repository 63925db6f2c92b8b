"""Rows that cannot be read keep their id, role and time when the item below them is popped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from my_agent.sessions import SessionStore
from proof.support.backend import BACKEND
from proof.support.helpers import text, user


@pytest.fixture
async def database(store: SessionStore, request: pytest.FixtureRequest) -> AsyncIterator[asyncpg.Connection]:
    await store.ping()
    if BACKEND == "postgres":
        url = request.getfixturevalue("database_url")
    else:
        url = request.getfixturevalue("project")["SUPABASE_DB_URL"]
    connection = await asyncpg.connect(url, statement_cache_size=0)
    yield connection
    await connection.close()


async def rows_of(database: asyncpg.Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in await database.fetch("select * from public.agent_sessions order by id")]


@pytest.mark.parametrize("damage", ['{"role":"user","con', "[1]", "", '{"a":nan}'])
async def test_a_row_that_cannot_be_read_is_not_touched(
    store: SessionStore, database: asyncpg.Connection, damage: str
) -> None:
    session = store.session("s")
    for number in range(4):
        await session.add_items([user(str(number))])
    find = "select id from public.agent_sessions order by id desc limit 2"
    await database.execute(f"update public.agent_sessions set content = $1 where id in ({find})", damage)
    before = await rows_of(database)
    popped = [await session.pop_item(), await session.pop_item(), await session.pop_item()]
    assert [item and text(item) for item in popped] == ["1", "0", None]
    assert await rows_of(database) == before[2:]


async def test_popping_where_all_rows_are_damaged_changes_nothing(
    store: SessionStore, database: asyncpg.Connection
) -> None:
    session = store.session("s")
    await session.add_items([user("one"), user("two")])
    await database.execute("update public.agent_sessions set content = left(content, 10)")
    find = "select * from public.agent_session_info"
    before, info = await rows_of(database), await database.fetch(find)
    assert await session.pop_item() is None
    assert await rows_of(database) == before
    assert await database.fetch(find) == info


async def test_rows_that_were_not_counted_are_popped_and_the_count_is_right_again(
    store: SessionStore, database: asyncpg.Connection
) -> None:
    """Versions before left such rows where a session was cleared while it was made."""
    session = store.session("s")
    for taken in (session.pop_item, session.clear_session, lambda: session.replace_tail(None, [])):
        await session.add_items([user("one")])
        await database.execute("update public.agent_session_info set item_count = 0")
        await taken()
        await session.add_items([user("two"), user("three")])
        found = await store.find_session(session.ref)
        assert found is not None
        assert found.item_count == len(await session.get_items()) == 2
        await session.clear_session()
