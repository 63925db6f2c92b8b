"""A database that a newer release has changed: this release reads by name and leaves out what it does not know."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from my_agent.sessions import SessionRef, SessionStore
from proof.support.backend import BACKEND
from proof.support.helpers import user

DESCRIBING = ("agent_session_find", "agent_session_list")


@pytest.fixture
async def newer_functions(store: SessionStore, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """The functions that describe sessions return one column more."""
    await store.ping()
    if BACKEND == "postgres":
        url = request.getfixturevalue("database_url")
    else:
        url = request.getfixturevalue("project")["SUPABASE_DB_URL"]
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        find = "select pg_get_functiondef(oid) from pg_proc where proname = any ($1)"
        definitions = [row[0] for row in await connection.fetch(find, DESCRIBING)]
        assert len(definitions) == len(DESCRIBING)
        for definition in definitions:
            assert "session_id, title," in definition
            await connection.execute(definition.replace("session_id, title,", "session_id, 'blue' as colour, title,"))
        yield
        for definition in definitions:
            await connection.execute(definition)
    finally:
        await connection.close()


@pytest.mark.usefixtures("newer_functions")
async def test_a_column_of_a_newer_release_breaks_nothing(store: SessionStore) -> None:
    await store.session("s", user_id="ada").add_items([user("Hi")])
    found = await store.find_session(SessionRef("ada", "s"))
    assert found is not None
    assert found.title == "Hi"
    assert (await store.list_sessions()).sessions == [found]
