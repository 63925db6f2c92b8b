"""What can be wrong with a PostgreSQL server or its schema, as the commands tell it."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from my_agent.sessions import PostgresStore, SessionRef, SessionStore
from proof.postgres.fixtures import database_of, run_sql, with_password
from proof.support.command import invoke
from proof.support.helpers import anything, user
from proof.transfer.test_transfer import exported, imported, put


@pytest.fixture(autouse=True)
def configured(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", with_password(database_url))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wrong_urls(server_url: str) -> dict[str, str]:
    host = urlsplit(server_url).netloc.rpartition("@")[2]
    return {
        f"postgresql://u:planted@127.0.0.1:{closed_port()}/db": "Cannot reach PostgreSQL at 127.0.0.1:",
        "postgresql://u:planted@nowhere.invalid/db": "Cannot reach PostgreSQL at nowhere.invalid:5432/db",
        f"postgresql://nobody_here:planted@{host}/postgres": "refused the login. Check user and password",
        with_password(database_of(server_url, "missing")): "missing: this database does not exist. Create it",
        "mysql://u:planted@h/db": "DATABASE_URL is not a PostgreSQL URL",
        "planted": "DATABASE_URL is not a PostgreSQL URL",
        "postgresql://u:planted@h:port/db": "DATABASE_URL cannot be used",
        "postgresql://ada@contoso.com:planted@h/db": "must be written as %2F %3F %23 %40",
    }


@pytest.mark.parametrize(
    "command",
    [
        ["sessions", "list"],
        ["sessions", "show", "s", "--json"],
        ["sessions", "export"],
        ["sessions", "delete", "s", "--yes"],
        ["sessions", "prune", "--older-than", "1d", "--yes"],
        ["db", "status"],
        ["db", "upgrade"],
        ["chat", "Hi"],
    ],
    ids=" ".join,
)
async def test_a_database_that_cannot_be_used_is_one_line(
    command: list[str], server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, words in wrong_urls(server_url).items():
        monkeypatch.setenv("DATABASE_URL", url)
        done = await invoke(*command)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("Error: ")
        assert words in done.err
        assert done.err.count("\n") == 1
        assert "planted" not in done.err


@pytest.mark.parametrize("command", [["sessions", "list"], ["chat", "Hi"]], ids=" ".join)
async def test_a_missing_schema_names_the_command(
    command: list[str], empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", with_password(empty_database))
    done = await invoke(*command)
    assert (done.code, done.out) == (1, "")
    assert "db upgrade`" in done.err


async def test_the_schema_is_brought_up_to_date(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", with_password(empty_database))
    before = await invoke("db", "status")
    assert before.code == 1
    assert before.out.startswith("pending  ")
    first = await invoke("db", "upgrade")
    assert first.code == 0
    assert first.err.startswith("Applied ")
    second = await invoke("db", "upgrade")
    assert second.err == "The database is up to date; the newest migration is 20261127000001_turns.\n"
    after = await invoke("db", "status")
    assert (after.code, after.err) == (0, "")
    assert after.out.startswith("applied  ")


async def test_without_an_address_development_uses_the_embedded_database(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started:
        """Stands for the embedded server: the one that the tests run on."""

        environment = {"DATABASE_URL": empty_database}  # noqa: RUF012

        def __enter__(self) -> Started:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setattr("my_agent.app.has_dev_dependencies", lambda: True)
    monkeypatch.setattr("my_agent.dev.server.start", lambda directory: Started())
    assert (await invoke("db", "status")).code == 1
    assert (await invoke("db", "upgrade")).code == 0
    assert (await invoke("db", "status")).code == 0
    assert (await invoke("doctor")).code == 0


async def test_without_an_address_production_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setattr("my_agent.app.has_dev_dependencies", lambda: False)
    for command in (["db", "upgrade"], ["sessions", "list"], ["chat", "Hi"]):
        done = await invoke(*command)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("Error: DATABASE_URL is not set.")
        assert done.err.endswith("For development only: DEV_SERVER=1 uses an embedded PostgreSQL.\n")


async def test_a_script_reads_the_status(database_url: str) -> None:
    status = json.loads((await invoke("db", "status", "--json")).out)
    assert status["up_to_date"] is True
    changed, unknown = "UPDATE {} SET sha256 = 'x'", "INSERT INTO {} (version, name) VALUES (30000101000000, 'later')"
    table = "agent_session_migrations"
    for statement, state in ((changed, "changed"), (unknown, "unknown")):
        await run_sql(database_url, f"CREATE TABLE kept AS SELECT * FROM {table}; {statement.format(table)}")
        try:
            done = await invoke("db", "status", "--json")
            told = await invoke("db", "status")
        finally:
            await run_sql(database_url, f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept")
        assert done.code == told.code == 1
        assert state in [migration["state"] for migration in json.loads(done.out)["migrations"]]
        assert f"{state}: " in told.err


async def test_a_newer_schema_asks_for_a_newer_program(database_url: str) -> None:
    await run_sql(
        database_url,
        "ALTER FUNCTION agent_session_schema_version() RENAME TO kept; "
        "CREATE FUNCTION agent_session_schema_version() RETURNS bigint[] LANGUAGE sql AS "
        "'SELECT array[30000101000000, 30000101000000]::bigint[]'",
    )
    try:
        done = await invoke("sessions", "list")
        doctor = await invoke("doctor", "--json")
    finally:
        await run_sql(
            database_url,
            "DROP FUNCTION agent_session_schema_version(); "
            "ALTER FUNCTION kept() RENAME TO agent_session_schema_version",
        )
    assert (done.code, done.out) == (1, "")
    assert "made for newer programs" in done.err
    (failed,) = [check for check in json.loads(doctor.out)["checks"] if check["state"] == "fail"]
    assert failed["name"] == "schema"


async def test_sessions_are_pruned_by_age(store: SessionStore, database_url: str) -> None:
    for name in ("old", "new"):
        await store.session(name).add_items([user("Hi")])
    time = datetime.now(UTC) - timedelta(days=30, minutes=1)
    await run_sql(database_url, f"UPDATE agent_session_info SET updated_at = '{time}' WHERE session_id = 'old'")
    assert (await invoke("sessions", "prune", "--older-than", "31d", "--yes")).err == "Deleted 0 sessions.\n"
    assert (await invoke("sessions", "prune", "--older-than", "30d", "--yes")).err == "Deleted 1 session.\n"
    assert [info.session_id for info in (await store.list_sessions()).sessions] == ["new"]


async def test_the_role_is_there_for_people_who_query(store: SessionStore, other_store: PostgresStore) -> None:
    await store.session("s").add_items([user("Hi"), anything(type="reasoning")])
    await put(store, SessionRef("", "s"), "unreadable")
    await imported(other_store, await exported(store))
    roles = await other_store._call("SELECT array_agg(role ORDER BY id) FROM agent_sessions")
    assert roles == ["user", None, None]
