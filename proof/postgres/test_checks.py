"""The doctor finds what is wrong with a PostgreSQL server."""

from __future__ import annotations

from urllib.parse import urlsplit

import asyncpg
import pytest

from my_agent.sessions import backend
from my_agent.sessions.postgres.checks import OLDEST, _check_server_version, check_postgres
from my_agent.sessions.postgres.schema import upgrade
from proof.app.test_doctor import diagnosis
from proof.postgres.fixtures import TABLES, run_sql, settings_for, with_password
from proof.support.backend import PROJECT
from proof.support.command import invoke


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def test_a_server_that_is_down_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:planted@127.0.0.1:1/db")
    check = (await diagnosis(code=1))["connection"]
    assert "Cannot reach PostgreSQL at 127.0.0.1:1/db" in check["todo"]


@pytest.mark.parametrize("url", ["planted", "postgresql://u:planted@h:port/db"])
async def test_an_address_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    found = await diagnosis(code=1)
    assert found["settings"]["state"] == "fail"
    assert "DATABASE_URL" in found["settings"]["todo"]
    assert "connection" not in found
    assert "planted" not in str(found)


async def test_a_missing_schema_is_found(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", with_password(empty_database))
    found = await diagnosis(code=1)
    assert "db upgrade" in found["schema"]["todo"]
    assert "round trip" not in found


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        ("SELECT 1", ""),
        ("DROP INDEX agent_session_info_updated", "agent_session_info_updated"),
        (
            "CREATE OR REPLACE FUNCTION agent_session_clear(p_user_id text, p_session_id text) RETURNS void "
            "LANGUAGE sql AS ''",
            "agent_session_clear",
        ),
    ],
)
async def test_a_schema_that_was_edited_by_hand_is_a_warning(empty_database: str, edit: str, found: str) -> None:
    settings = settings_for(empty_database)
    await upgrade(settings, backend.migrations())
    await run_sql(empty_database, edit)
    checks = {check.name: check async for check in check_postgres(settings, backend.migrations())}
    assert checks["schema"].state == ("warn" if found else "ok")
    assert found in checks["schema"].says


async def test_a_changed_migration_is_a_warning(database_url: str) -> None:
    await run_sql(database_url, "UPDATE agent_session_migrations SET sha256 = 'x' || sha256")
    try:
        check = (await diagnosis())["schema"]
    finally:
        await run_sql(database_url, "UPDATE agent_session_migrations SET sha256 = substr(sha256, 2)")
    assert check["state"] == "warn"
    assert "is changed" in check["says"]


async def test_missing_rights_are_named(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await run_sql(
        database_url,
        "CREATE ROLE visitor LOGIN PASSWORD 'planted'; GRANT SELECT, INSERT ON agent_sessions TO visitor; "
        "REVOKE EXECUTE ON FUNCTION agent_session_pop FROM public",
    )
    host = urlsplit(database_url).netloc.rpartition("@")[2]
    monkeypatch.setenv("DATABASE_URL", f"postgresql://visitor:planted@{host}{urlsplit(database_url).path}")
    try:
        says = (await diagnosis(code=1))["rights"]["says"]
        await run_sql(
            database_url,
            "GRANT EXECUTE ON FUNCTION agent_session_pop TO public; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(TABLES)} TO visitor",
        )
        healthy = await diagnosis()
        refused = [await invoke("db", command) for command in ("status", "upgrade")]
        await run_sql(database_url, "GRANT SELECT ON agent_session_migrations TO visitor")
        compared = await diagnosis()
        status, upgraded = await invoke("db", "status"), await invoke("db", "upgrade")
    finally:
        await run_sql(
            database_url,
            "DROP OWNED BY visitor; DROP ROLE visitor; GRANT EXECUTE ON FUNCTION agent_session_pop TO public",
        )
    for right in ("UPDATE on table agent_sessions", "SELECT on table agent_session_info"):
        assert right in says
    assert "INSERT on table agent_sessions" not in says
    assert "EXECUTE on function agent_session_pop" in says
    assert healthy["rights"]["says"].endswith("and not change the schema.")
    assert "cannot see which migrations" in healthy["schema"]["says"]
    assert "cannot see" not in compared["schema"]["says"]
    assert status.code == 0
    for done in (*refused, upgraded):
        assert done.code == 1
        assert done.err.endswith("Run this as the role that owns the tables.\n")
        assert done.err.count("\n") == 1


async def test_a_role_that_may_not_use_the_schema_is_told_that(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upgrade(settings_for(empty_database), backend.migrations())
    await run_sql(
        empty_database, "REVOKE USAGE ON SCHEMA public FROM PUBLIC; CREATE ROLE guest LOGIN PASSWORD 'planted'"
    )
    host = urlsplit(empty_database).netloc.rpartition("@")[2]
    monkeypatch.setenv("DATABASE_URL", f"postgresql://guest:planted@{host}{urlsplit(empty_database).path}")
    try:
        found = await diagnosis(code=1)
    finally:
        await run_sql(empty_database, "DROP ROLE guest")
    assert found["schema"]["todo"] == "The check of its rights, below, names those that it lacks."
    assert found["rights"]["says"] == "The role guest lacks USAGE on schema public."


@pytest.mark.parametrize(("version", "state"), [(14, "warn"), (15, "ok"), (19, "ok")])
def test_the_version_in_the_docs_is_the_one_that_the_doctor_wants(version: int, state: str) -> None:
    check = _check_server_version(asyncpg.types.ServerVersion(version, 0, 3, "final", 0))
    assert check.state == state
    assert check.says.startswith(f"The server is PostgreSQL {version}.3")
    for page in ("README.md", "docs/database.md"):
        assert f"PostgreSQL {OLDEST} or newer" in (PROJECT / page).read_text()


async def test_another_encoding_is_found(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = urlsplit(server_url)
    url = with_password(path._replace(path="/latin").geturl())
    await run_sql(server_url, "CREATE DATABASE latin ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
    try:
        monkeypatch.setenv("DATABASE_URL", url)
        assert (await diagnosis(code=1))["encoding"]["state"] == "fail"
    finally:
        await run_sql(server_url, "DROP DATABASE latin WITH (FORCE)")


async def test_a_pooler_is_seen_by_the_process_id_that_it_makes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # As PgBouncer 1.18 does; the real one is too large for this suite.
    monkeypatch.setattr("asyncpg.connection.Connection.get_server_pid", lambda connection: 1)
    check = (await diagnosis())["pooler"]
    assert check["state"] == "warn"
    assert "DATABASE_POOLER=transaction" in check["todo"]
    monkeypatch.setenv("DATABASE_POOLER", "transaction")
    assert (await diagnosis())["pooler"]["state"] == "ok"


async def test_a_transaction_pooler_that_the_settings_deny_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(*_: object) -> None:
        raise asyncpg.DuplicatePreparedStatementError("already exists")

    monkeypatch.setattr("asyncpg.connection.Connection.fetchval", lose)
    found = await diagnosis(code=1)
    assert found["pooler"]["todo"] == "Set DATABASE_POOLER=transaction."
    assert list(found)[-1] == "pooler"


async def test_a_pooler_setting_without_a_pooler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOLER", "transaction")
    assert "none shows itself" in (await diagnosis())["pooler"]["says"]
