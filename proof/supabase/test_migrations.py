"""`db upgrade` and the Supabase CLI apply the same files and agree on what was applied, whichever comes first."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from my_agent.sessions import backend
from my_agent.sessions.postgres.schema import read_migrations, status
from my_agent.sessions.supabase.history import SUPABASE_HISTORY
from my_agent.settings import Settings
from proof.supabase.fixtures import Environment, ask
from proof.support.backend import PROJECT
from proof.support.command import invoke
from proof.support.helpers import missing

CLI = "supabase@3.1.0"

Cli = Callable[..., str]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real Supabase CLI, from npm."""
    folder = tmp_path_factory.mktemp("supabase-cli")
    npm = shutil.which("npm")
    reason = "the Supabase CLI comes from npm, which is not here: install Node.js"
    if npm is not None:
        options = ["--no-save", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder)]
        done = subprocess.run([npm, "install", *options, CLI], capture_output=True, text=True, timeout=180, check=False)
        if (found := folder / "node_modules/.bin/supabase").exists():
            return str(found)
        reason = f"npm cannot install {CLI}: {done.stderr}"
    missing(reason)


@pytest.fixture
def database(worker_project: Environment) -> Iterator[str]:
    """A database of a Supabase project in which nothing of ours is yet."""
    url = worker_project["SUPABASE_DB_URL"]
    name = f"migrations_{os.getpid()}"
    asyncio.run(run(url, f"CREATE DATABASE {name} TEMPLATE template0"))
    fresh = url.rpartition("/")[0] + f"/{name}"
    roles = (PROJECT / "src/my_agent/dev/supabase_roles.sql").read_text(encoding="utf-8")
    asyncio.run(run(fresh, roles))
    yield fresh
    asyncio.run(run(url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def cli(program: str, database: str, tmp_path: Path) -> Cli:
    """Runs the Supabase CLI in a copy of this project's folder, on the database."""
    shutil.copytree(PROJECT / "supabase", tmp_path / "supabase")

    def run_cli(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments, f"--remote={database}"],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path), "DO_NOT_TRACK": "1", "SUPABASE_TELEMETRY_DISABLED": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run_cli


async def run(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


def settings_of(database: str) -> Settings:
    return Settings().with_environment({"SUPABASE_DB_URL": database})


async def states(database: str) -> list[str]:
    return [state.state for state in await backend.status(settings_of(database))]


async def test_the_cli_finds_nothing_to_do_after_db_upgrade(cli: Cli, database: str) -> None:
    applied = await backend.upgrade(settings_of(database))
    assert len(applied) == len(backend.migrations())
    assert "up to date" in cli("migration", "up", "--yes")
    assert await states(database) == ["applied"] * len(applied)


async def test_db_upgrade_finds_nothing_to_do_after_the_cli(cli: Cli, database: str) -> None:
    cli("migration", "up", "--yes")
    assert await states(database) == ["applied"] * len(backend.migrations())
    assert await backend.upgrade(settings_of(database)) == []
    assert await ask({"SUPABASE_DB_URL": database}, "SELECT agent_session_exposure()") == []


async def test_a_file_of_one_statement_that_the_cli_applied_is_not_taken_for_changed(
    cli: Cli, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "supabase/migrations"
    (folder / "20990101000000_mine.sql").write_text("-- mine\ncreate table public.mine (id int);\n")
    cli("migration", "up", "--yes")
    migrations = read_migrations(folder)
    assert len(migrations) == len(backend.migrations()) + 1
    found = await status(settings_of(database).database, migrations, SUPABASE_HISTORY)
    assert [migration.state for migration in found] == ["applied"] * len(migrations)


async def test_both_tools_make_the_same_schema(cli: Cli, database: str, worker_project: Environment) -> None:
    cli("migration", "up", "--yes")
    query = """
        SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
          SELECT format('%s %s %s', proname, proacl, prosrc) AS line FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'agent%'
          UNION ALL SELECT format('%s %s %s', relname, relacl, relrowsecurity) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relname LIKE 'agent%'
          UNION ALL SELECT format('%s %s', policyname, qual) FROM pg_policies
        ) AS lines
    """
    assert await ask({"SUPABASE_DB_URL": database}, query) == await ask(worker_project, query)


async def test_a_changed_file_is_noticed(database: str) -> None:
    await backend.upgrade(settings_of(database))
    await run(database, "UPDATE supabase_migrations.schema_migrations SET statements = ARRAY[E'select 1;\\n']")
    assert await states(database) == ["changed"] * len(backend.migrations())


async def test_the_table_of_the_original_example_is_adopted(database: str) -> None:
    await run(
        database,
        "CREATE TABLE agent_sessions "
        "(id serial PRIMARY KEY, session_id text, role text, content text, created_at timestamp DEFAULT now()); "
        "INSERT INTO agent_sessions (session_id, role, content) VALUES ('s', 'user', 'Hi'), ('s', 'assistant', 'Yes?')",
    )
    await backend.upgrade(settings_of(database))
    query = "SELECT array_agg(content ORDER BY id) FROM agent_sessions"
    assert await ask({"SUPABASE_DB_URL": database}, query) == [
        '{"role" : "user", "content" : "Hi"}',
        '{"role" : "assistant", "content" : "Yes?"}',
    ]
    assert await ask({"SUPABASE_DB_URL": database}, "SELECT agent_session_exposure()") == []


async def test_the_history_of_migrations_cannot_be_read_through_the_api(worker_project: Environment) -> None:
    query = "SELECT has_schema_privilege(role, 'supabase_migrations', 'usage') FROM unnest($1::text[]) AS role LIMIT 1"
    for role in ("anon", "authenticated", "service_role"):
        assert await ask(worker_project, query, [role]) is False


async def test_the_commands_tell_what_was_applied(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "https://project.supabase.co")
    monkeypatch.setenv("SUPABASE_DB_URL", database)
    assert (await invoke("db", "status")).code == 1
    assert "Applied 20261123000001_agent_sessions." in (await invoke("db", "upgrade")).err
    done = await invoke("db", "status")
    applied = "".join(f"applied  {one.version}_{one.name}\n" for one in backend.migrations())
    assert (done.code, done.out) == (0, applied)


async def test_without_the_address_of_the_database_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "https://project.supabase.co")
    done = await invoke("db", "upgrade")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: SUPABASE_DB_URL is not set.")
