"""Migrations: applied once, in order, by many at once; what was there before is adopted or left alone."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from my_agent.sessions import PostgresStore, SessionStoreError, backend
from my_agent.sessions.postgres.connection import SCHEMA_VERSION
from my_agent.sessions.postgres.schema import Migration, read_migrations, status, upgrade
from proof.postgres.fixtures import run_sql, settings_for
from proof.support.helpers import anything, texts, user

ORIGINAL_EXAMPLE = """
    CREATE TABLE agent_sessions (
        id SERIAL PRIMARY KEY,
        session_id TEXT NOT NULL,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        created_at TIMESTAMP DEFAULT now()
    );
"""


async def everything(url: str) -> list[str]:
    """Names and shapes of all that is in the database."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT table_name || '.' || column_name || ' ' || data_type AS line FROM information_schema.columns "
            "WHERE table_schema = 'public' "
            "UNION ALL SELECT proname || oidvectortypes(proargtypes) || md5(prosrc) FROM pg_proc "
            "WHERE pronamespace = 'public'::regnamespace "
            "UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        )
        return [row["line"] for row in rows]
    finally:
        await connection.close()


async def test_an_empty_database_is_upgraded_once(empty_database: str) -> None:
    settings = settings_for(empty_database)
    migrations = backend.migrations()
    assert [state.state for state in await status(settings, migrations)] == ["pending"] * len(migrations)
    assert await upgrade(settings, migrations) == migrations
    assert await upgrade(settings, migrations) == []
    assert [state.state for state in await status(settings, migrations)] == ["applied"] * len(migrations)


async def test_ten_upgrades_at_once_apply_each_migration_once(empty_database: str) -> None:
    migrations = backend.migrations()
    applied = await asyncio.gather(*(upgrade(settings_for(empty_database), migrations) for _ in range(10)))
    assert sorted(one.version for done in applied for one in done) == [one.version for one in migrations]


def test_the_program_knows_its_newest_migration() -> None:
    """The schema's own version, the newest of our files and the number in the code are one."""
    ours = [migration for migration in backend.migrations() if "agent_session_schema_version" in migration.sql]
    versions = re.findall(r"select array\[(\d+), \d+\]", ours[-1].sql)
    assert (ours[-1].version, versions) == (SCHEMA_VERSION, [str(SCHEMA_VERSION)])


# ── What was there before ───────────────────────────────────────────────────


async def test_the_table_of_the_original_example_is_adopted(empty_database: str) -> None:
    await run_sql(
        empty_database,
        ORIGINAL_EXAMPLE + "INSERT INTO agent_sessions (session_id, role, content, created_at) "
        "SELECT 's' || n % 3, CASE n % 2 WHEN 0 THEN 'user' ELSE 'assistant' END, "
        "'message \"' || n || E'\" \\\\ \\n é', '2024-05-01'::timestamp + n * interval '1 minute' "
        "FROM generate_series(0, 299) AS n ORDER BY n",
    )
    await upgrade(settings_for(empty_database), backend.migrations())
    async with PostgresStore(settings_for(empty_database)) as store:
        for number in range(3):
            session = store.session(f"s{number}")
            assert await session.get_items() == [
                anything(role="assistant" if n % 2 else "user", content=f'message "{n}" \\ \n é')
                for n in range(number, 300, 3)
            ]
        newest = (await store.list_sessions()).sessions[0]
        assert (newest.session_id, newest.item_count, newest.updated_at.year) == ("s2", 100, 2024)
        await session.add_items([user("goes on")])
        assert texts(await session.get_items(1)) == ["goes on"]


async def test_an_adopted_database_has_the_same_schema_as_a_fresh_one(
    empty_database: str, worker_database: str
) -> None:
    await run_sql(empty_database, ORIGINAL_EXAMPLE + "INSERT INTO agent_sessions VALUES (7, 's', 'user', 'Hi', now())")
    await upgrade(settings_for(empty_database), backend.migrations())
    assert await everything(empty_database) == await everything(worker_database)


async def test_rows_without_role_session_or_content_are_adopted_too(empty_database: str) -> None:
    await run_sql(
        empty_database,
        "CREATE TABLE agent_sessions (id bigint PRIMARY KEY, session_id varchar(50), role varchar, content text, "
        "created_at timestamptz); "
        "INSERT INTO agent_sessions VALUES (1, NULL, NULL, NULL, NULL), (9, 's', 'user', 'Hi', NULL)",
    )
    await upgrade(settings_for(empty_database), backend.migrations())
    async with PostgresStore(settings_for(empty_database)) as store:
        assert texts(await store.session("s").get_items()) == ["Hi"]
        assert texts(await store.session("(none)").get_items()) == [""]


@pytest.mark.parametrize(
    ("foreign", "advice"),
    [
        ("CREATE TABLE agent_sessions (id int, name text)", "Rename it, or use another database"),
        ("CREATE VIEW agent_sessions AS SELECT 1 AS id", "Rename it, or use another database"),
        (
            "CREATE TABLE agent_sessions (session_id varchar PRIMARY KEY, created_at timestamp, updated_at timestamp); "
            "CREATE TABLE agent_messages (id int)",
            "SQLAlchemySession",
        ),
    ],
)
async def test_a_foreign_table_stops_the_upgrade_and_stays(empty_database: str, foreign: str, advice: str) -> None:
    await run_sql(empty_database, foreign)
    before = await everything(empty_database)
    with pytest.raises(SessionStoreError, match=advice) as caught:
        await upgrade(settings_for(empty_database), backend.migrations())
    assert "belongs to something else" in str(caught.value)
    assert await everything(empty_database) == [
        *before,
        *(line for line in await everything(empty_database) if "agent_session_migrations" in line),
    ]


# ── Files ───────────────────────────────────────────────────────────────────


async def test_a_failing_migration_leaves_nothing_and_keeps_those_before(empty_database: str) -> None:
    settings = settings_for(empty_database)
    good = Migration(1, "good", "CREATE TABLE good (id int)")
    bad = Migration(2, "bad", "CREATE TABLE half (id int); SELECT 1/0")
    with pytest.raises(SessionStoreError, match="Migration 2_bad failed and changed nothing: division by zero"):
        await upgrade(settings, [good, bad])
    assert [state.state for state in await status(settings, [good, bad])] == ["applied", "pending"]
    assert not any("half" in line for line in await everything(empty_database))


async def test_changed_and_unknown_migrations_are_seen(empty_database: str) -> None:
    settings = settings_for(empty_database)
    one, two = Migration(1, "one", "SELECT 1"), Migration(2, "two", "SELECT 2")
    await upgrade(settings, [one, two])
    states = await status(settings, [one._replace(sql="SELECT 3")])
    assert [(state.name, state.state) for state in states] == [("one", "changed"), ("two", "unknown")]


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10_b", "9_a", "20270101000000_c"):
        (tmp_path / f"{name}.sql").write_text("SELECT 1")
    (tmp_path / "notes.txt").write_text("no migration")
    assert [migration.name for migration in read_migrations(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "words"), [(["table.sql"], "name it <version>_<name>.sql"), (["1_a.sql", "01_b.sql"], "Two migrations")]
)
def test_files_with_wrong_names_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(SessionStoreError, match=words):
        read_migrations(tmp_path)


async def test_who_may_use_the_sessions_needs_no_new_rights_after_an_upgrade(empty_database: str) -> None:
    first, *later = backend.migrations()
    await upgrade(settings_for(empty_database), [first])
    await run_sql(
        empty_database,
        'DO $$ BEGIN CREATE ROLE "odd name"; EXCEPTION WHEN duplicate_object THEN END $$; '
        'GRANT SELECT, INSERT, UPDATE, DELETE ON agent_sessions, agent_session_info TO "odd name"',
    )
    await upgrade(settings_for(empty_database), later)
    allowed = "has_table_privilege('odd name', 'agent_session_canary', 'SELECT, INSERT, UPDATE, DELETE')"
    await run_sql(empty_database, f"DO $$ BEGIN ASSERT {allowed}; END $$")
    await run_sql(empty_database, 'DROP OWNED BY "odd name"; DROP ROLE "odd name"')
