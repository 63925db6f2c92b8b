"""Several apps in one database, each in a schema of its own (DATABASE_SCHEMA)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from my_agent.sessions import PostgresStore, SchemaOutdated, SessionRef, SettingMissing, StoreRefused, backend
from my_agent.sessions.errors import Check
from my_agent.sessions.postgres.checks import check_postgres
from my_agent.sessions.postgres.connection import PostgresSettings, in_schema
from my_agent.sessions.postgres.schema import HISTORY, Migration, status, upgrade
from my_agent.sessions.records import Batch, Content, Row
from my_agent.sessions.settings import read_settings
from proof.postgres.fixtures import run_sql, settings_for
from proof.support.command import invoke

KEY = SessionRef("ada", "s")
SCHEMAS = ("public", "sales", "order")  # the last is a reserved word


def in_own(url: str, schema: str) -> PostgresSettings:
    return settings_for(url, database_schema=schema)


async def rows_of(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def checks(settings: PostgresSettings, migrations: Sequence[Migration] | None = None) -> dict[str, Check]:
    found = check_postgres(settings, migrations or backend.migrations())
    return {check.name: check async for check in found}


@pytest.fixture
async def apps(empty_database: str) -> AsyncIterator[dict[str, PostgresStore]]:
    """An app in each schema of one database."""
    stores = {}
    for schema in SCHEMAS:
        settings = in_own(empty_database, schema)
        await upgrade(settings, backend.migrations())
        stores[schema] = PostgresStore(settings)
    yield stores
    for store in stores.values():
        await store.close()


async def test_apps_in_one_database_do_not_see_each_other(apps: dict[str, PostgresStore]) -> None:
    for schema, store in apps.items():
        await store.append(KEY, Batch.of([Row(f"of {schema}", "user"), Row("more")], f"title of {schema}"))
    for schema, store in apps.items():
        assert await store.tail(KEY, None) == [f"of {schema}", "more"]
        found = await store.find_session(KEY)
        assert found is not None
        assert (found.title, found.item_count) == (f"title of {schema}", 2)
        assert len((await store.list_sessions()).sessions) == 1
    assert await apps["sales"].delete_user("ada") == 1
    assert [len((await store.list_sessions()).sessions) for store in apps.values()] == [1, 0, 1]


async def test_the_doctor_names_the_schema(apps: dict[str, PostgresStore]) -> None:
    for name, store in apps.items():
        fits = (await checks(store.settings))["schema"].says
        assert (f" in {name}" in fits) == (name != "public")


async def test_every_change_is_made_in_the_own_schema(empty_database: str) -> None:
    """Nothing is in public that an unqualified name could find by mistake."""
    await upgrade(in_own(empty_database, "order"), backend.migrations())
    async with PostgresStore(in_own(empty_database, "order")) as store:
        batch = Batch.of([Row("a"), Row("{}")])
        await store.append(KEY, batch)
        await store.append(KEY, batch)
        assert await store.pop_object(KEY) == "{}"
        assert await store.pop(KEY) == "a"
        await store.append(KEY, Batch.of([Row("b"), Row("c")]))
        assert await store.replace_tail(KEY, ["c"], Batch.of([Row("d")]))
        assert await store.take(KEY, ["d"])
        assert await store.update_session(KEY, title="t", metadata={"a": 1})
        before, after = Content("t", {"a": 1}, ["b"]), Content("u", {"a": 2}, ["e"])
        assert await store.rewrite(KEY, before, after)
        assert await store.tail(KEY, 5) == ["e"]
        assert await store.rows_from(KEY, 0) == (["e"], False)
        await store.clear(KEY)
        assert await store.canary(None, "canary") == "canary"
        assert await store.delete_session(KEY)
        assert await store.prune(datetime.now(UTC)) == 0
    found = await rows_of(
        empty_database,
        "SELECT DISTINCT nspname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace "
        "WHERE relname LIKE 'agent%' UNION "
        "SELECT DISTINCT nspname FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace "
        "WHERE proname LIKE 'agent%'",
    )
    assert found == [("order",)]


async def test_the_recorded_checksum_is_the_files(apps: dict[str, PostgresStore]) -> None:
    for schema, store in apps.items():
        assert {state.state for state in await status(store.settings, backend.migrations())} == {"applied"}
        assert await upgrade(store.settings, backend.migrations()) == []
        seen = await rows_of(
            store.settings.database_url.get_secret_value() if store.settings.database_url else "",
            in_schema("SELECT sha256 FROM public.agent_session_migrations ORDER BY version", schema),
        )
        assert [sha for (sha,) in seen] == [migration.sha256 for migration in backend.migrations()]


async def test_the_doctor_looks_at_the_own_schema(apps: dict[str, PostgresStore], empty_database: str) -> None:
    for store in apps.values():
        assert {check.state for check in (await checks(store.settings)).values()} == {"ok"}
    await run_sql(empty_database, 'DROP INDEX "order".agent_session_info_user; REVOKE ALL ON SCHEMA sales FROM PUBLIC')
    assert "agent_session_info_user" in (await checks(apps["order"].settings))["schema"].says
    assert (await checks(apps["public"].settings))["schema"].state == "ok"
    schema = (await checks(in_own(empty_database, "nothing_here")))["schema"]
    assert schema.state == "fail"
    assert "the schema nothing_here lacks tables" in schema.todo or ""


async def test_a_schema_that_is_not_there_is_named(empty_database: str) -> None:
    await upgrade(in_own(empty_database, "public"), backend.migrations())
    store = PostgresStore(in_own(empty_database, "sales"))
    with pytest.raises(SchemaOutdated, match=r"the schema sales lacks .* `my-agent db upgrade`\.$"):
        await store.tail(KEY, None)
    await store.close()


async def test_a_role_without_the_right_to_create_schemas_upgrades_in_one_that_is_there(empty_database: str) -> None:
    await run_sql(empty_database, "CREATE ROLE deployer LOGIN PASSWORD 'd'; CREATE SCHEMA sales AUTHORIZATION deployer")
    parts = urlsplit(empty_database)
    url = urlunsplit(parts._replace(netloc=f"deployer:d@{parts.hostname}:{parts.port}"))
    try:
        settings = in_own(url, "sales")
        await upgrade(settings, backend.migrations())
        async with PostgresStore(settings) as store:
            await store.append(KEY, Batch.of([Row("a")]))
            assert await store.tail(KEY, None) == ["a"]
        with pytest.raises(StoreRefused, match="permission denied for database"):
            await upgrade(in_own(url, "other"), backend.migrations())
    finally:
        await run_sql(empty_database, "DROP OWNED BY deployer CASCADE; DROP ROLE deployer")


async def test_migrations_of_ones_own_follow(empty_database: str) -> None:
    own = Migration(
        20991231000001,
        "own",
        'create table public.notes (id int); grant select on PUBLIC.notes to public; alter table "public".notes '
        "add a int; alter table agent_session_info add column topic text; comment on table notes is 'In public. Yes.';",
    )
    await upgrade(in_own(empty_database, "sales"), [*backend.migrations(), own])
    assert await rows_of(empty_database, "SELECT schemaname::text FROM pg_tables WHERE tablename = 'notes'") == [
        ("sales",)
    ]
    topics = "SELECT table_schema::text FROM information_schema.columns WHERE column_name = 'topic'"
    assert await rows_of(empty_database, topics) == [("sales",)]
    assert await rows_of(empty_database, "SELECT obj_description('sales.notes'::regclass)") == [("In public. Yes.",)]
    (grants,) = await rows_of(empty_database, "SELECT relacl::text FROM pg_class WHERE relname = 'notes'")
    assert "=r/" in str(grants[0])


@pytest.mark.parametrize(
    "name", ["Sales", "pg_own", "1st", "a b", 'a"; drop table x --', "a" * 64, "a.b", "ä", "information_schema"]
)
def test_a_name_that_is_none_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", name)
    with pytest.raises(SettingMissing, match=r"DATABASE_SCHEMA: .* lower-case letters"):
        read_settings(PostgresSettings)


def test_only_qualified_names_are_written_anew() -> None:
    sql = "revoke all on public.x from public; -- republic.x\nselect 'public.y'::regclass"
    assert in_schema(sql, "s") == 'revoke all on "s".x from public; -- republic.x\nselect \'"s".y\'::regclass'
    assert in_schema(sql, "public") == sql
    assert '"s".agent_session_migrations' in in_schema(HISTORY.create, "s")


async def test_the_commands_use_it(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setenv("DATABASE_SCHEMA", "sales")
    assert (await invoke("db", "upgrade")).code == 0
    assert json.loads((await invoke("db", "status", "--json")).out)["up_to_date"]
    monkeypatch.setenv("DATABASE_SCHEMA", "other")
    assert (await invoke("db", "status")).code == 1
    monkeypatch.setenv("DATABASE_SCHEMA", "Other")
    done = await invoke("sessions", "list")
    assert done.code == 1
    assert done.err.startswith("Error: Check the environment and .env. DATABASE_SCHEMA: ")
