"""What the SDK's own SQLAlchemySession has stored comes over exactly, once, and its tables are only read.

SQLAlchemy is no dependency of this project: the tables are made here as SDK 0.24 makes them.
"""

from __future__ import annotations

import json

import pytest

from my_agent.sessions import SessionRef, SessionStore
from proof.postgres.fixtures import run_sql
from proof.support.command import Done, invoke
from proof.support.helpers import texts

TABLES = """
    CREATE TABLE agent_sessions (
      session_id VARCHAR PRIMARY KEY,
      created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL
    );
    CREATE TABLE agent_messages (
      id SERIAL PRIMARY KEY, session_id VARCHAR NOT NULL REFERENCES agent_sessions ON DELETE CASCADE,
      message_data TEXT NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL
    );
"""


@pytest.fixture
async def old_database(empty_database: str, server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with the SDK's tables, two sessions in them; beside it, the app's own."""
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)
    await run_sql(empty_database, TABLES)
    await run_sql(empty_database, "INSERT INTO agent_sessions VALUES ('a'), ('b')")
    for session_id, text in (("a", "1"), ("b", "1"), ("a", "2")):
        await insert(empty_database, session_id, text)
    return empty_database


async def insert(url: str, session_id: str, text: str, table: str = "agent_messages") -> None:
    message = json.dumps({"role": "user", "content": text})
    await run_sql(url, f"INSERT INTO {table} (session_id, message_data) VALUES ('{session_id}', '{message}')")


async def import_from(url: str, *options: str) -> Done:
    return await invoke("sessions", "import", "--from", url, *options)


async def test_every_text_comes_over_exactly_once_and_in_order(store: SessionStore, old_database: str) -> None:
    # The SDK orders by the time a transaction began, and then by id.
    await run_sql(old_database, "UPDATE agent_messages SET created_at = created_at - interval '1 hour' WHERE id = 3")
    odd = r'{"z" :  -0.0, "role":"user", "content": "\ud83d é", "big":1180591620717411303424}'
    await run_sql(old_database, f"INSERT INTO agent_messages (session_id, message_data) VALUES ('b', '{odd}')")
    address = old_database.replace("postgresql://", "postgresql+asyncpg://")
    assert (await import_from(address, "--user", "ada", "--dry-run")).err == "It would be: 2 imported (4 items).\n"
    assert (await import_from(address, "--user", "ada")).err == "Done: 2 imported (4 items).\n"
    assert texts(await store.session("a", user_id="ada").get_items()) == ["2", "1"]
    assert (await store.tail(SessionRef("ada", "b"), 1)) == [odd]
    assert [info.session_id for info in (await store.list_sessions("ada")).sessions] == ["b", "a"]
    await insert(old_database, "b", "new")
    again = await import_from(address, "--user", "ada")
    assert again.err == "Done: 1 already there (2 items), 1 extended (3 items).\n"


async def test_tables_in_the_apps_own_database_are_made_room_for_by_renaming_one(old_database: str) -> None:
    """Both have a table agent_sessions; the SDK's holds nothing that is not in agent_messages, too."""
    url = {"DATABASE_URL": old_database}
    refused = await in_database(url, "db", "upgrade")
    assert "It looks like the table of the SDK's SQLAlchemySession. Rename it" in refused.err
    await run_sql(old_database, "ALTER TABLE agent_sessions RENAME TO sdk_sessions")
    assert (await in_database(url, "db", "upgrade")).code == 0
    assert (await in_database(url, "sessions", "import", "--from", old_database)).err == "Done: 2 imported (3 items).\n"


async def in_database(variables: dict[str, str], *arguments: str) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return await invoke(*arguments)


async def test_unreadable_rows_are_named_and_all_others_come(store: SessionStore, old_database: str) -> None:
    await run_sql(old_database, "UPDATE agent_messages SET message_data = '{not json' WHERE id = 1")
    done = await import_from(old_database)
    assert done.code == 1
    assert 'Left out: row 1 of session "a" (not JSON).' in done.err
    assert "Done: 2 imported (2 items)." in done.err
    assert texts(await store.session("a").get_items()) == ["2"]


async def test_a_table_of_another_name_is_found(store: SessionStore, old_database: str) -> None:
    await run_sql(old_database, "CREATE TABLE \"My messages\" AS SELECT * FROM agent_messages WHERE session_id = 'b'")
    done = await import_from(f"{old_database}?messages_table=My%20messages&ssl=prefer")
    assert done.err == "Done: 1 imported (1 item).\n"


async def test_an_address_that_cannot_be_read_says_so(old_database: str, server_url: str) -> None:
    async def error(url: str) -> str:
        done = await import_from(url)
        assert done.code == 1
        assert "DATABASE_URL" not in done.err
        return done.err.removeprefix("Error: ")

    assert (await error("postgresql://127.0.0.1:1/x")).startswith("Cannot reach PostgreSQL at 127.0.0.1:1/x")
    assert (await error("postgresql://ada:secret@host:port/x")).startswith("--from cannot be used: its port is no")
    assert (await error(f"{server_url}_missing")).endswith("Create it, or correct --from.\n")
    assert 'has no table "agent_messages" of SQLAlchemySession' in await error(server_url)
    assert (await error("mysql://host/x")).startswith("--from: this project reads")
