"""A real PostgreSQL for the tests: one server for the run, one database for each worker, empty tables for each test.

TEST_DATABASE_URL names a server to use instead (its user must be allowed to create databases); with
TEST_DATABASE_POOLER=transaction it may be a transaction pooler in front of one.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from pydantic import SecretStr

from my_agent.dev import server as devserver
from my_agent.sessions import PostgresSettings, PostgresStore, backend
from my_agent.sessions.errors import COMMAND
from my_agent.sessions.postgres.schema import upgrade
from proof.sql.damage import overwrite_row
from proof.sql.dump import dump_of

SERVER = "TEST_DATABASE_URL"
POOLER = os.environ.get("TEST_DATABASE_POOLER", "auto")
TABLES = (
    "agent_sessions",
    "agent_session_info",
    "agent_session_batches",
    "agent_session_canary",
    "agent_session_leases",
    "agent_session_turns",
)


def pytest_configure(config: pytest.Config) -> None:
    """Start the server once, in the process that the xdist workers come from."""
    if SERVER in os.environ or hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="postgres-")
    server = devserver.start(Path(folder.name), durable=False)
    os.environ[SERVER] = server.environment["DATABASE_URL"]

    def stop() -> None:
        del os.environ[SERVER]
        server.close()
        folder.cleanup()

    config.add_cleanup(stop)


@pytest.fixture(scope="session")
def server_url() -> str:
    """The maintenance database of the server."""
    return os.environ[SERVER]


@pytest.fixture(scope="session")
def worker_database(server_url: str) -> Iterator[str]:
    """This worker's database, with the schema in it."""
    name = f"test_{os.getpid()}"
    url = database_of(server_url, name)
    execute(server_url, f'CREATE DATABASE "{name}" ENCODING UTF8 TEMPLATE template0')
    asyncio.run(upgrade(settings_for(url), backend.migrations()))
    yield url
    execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(worker_database: str) -> str:
    """The worker's database, with empty tables."""
    execute(worker_database, f"TRUNCATE {', '.join(TABLES)}")
    return worker_database


@pytest.fixture
def empty_database(server_url: str) -> Iterator[str]:
    """A database without any table, for one test."""
    name = f"empty_{os.getpid()}"
    execute(server_url, f'CREATE DATABASE "{name}" ENCODING UTF8 TEMPLATE template0')
    yield database_of(server_url, name)
    execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def settings(database_url: str) -> PostgresSettings:
    return settings_for(database_url)


@pytest.fixture
def server_environment(database_url: str) -> dict[str, str]:
    """The variables with which commands reach the same database."""
    return {"DATABASE_URL": with_password(database_url), "DATABASE_POOLER": POOLER}


@pytest.fixture
async def store(settings: PostgresSettings) -> AsyncIterator[PostgresStore]:
    """An open store on empty tables."""
    store = PostgresStore(settings)
    await store.ping()
    yield store
    await store.close()


@pytest.fixture
async def other_store(empty_database: str) -> AsyncIterator[PostgresStore]:
    """A store on another database, empty too."""
    settings = settings_for(empty_database)
    await upgrade(settings, backend.migrations())
    store = PostgresStore(settings)
    yield store
    await store.close()


@pytest.fixture
def kill_connections(database_url: str) -> Callable[[], Awaitable[int]]:
    """Cuts all connections to the database from the server's side; returns how many there were."""

    async def kill() -> int:
        connection = await asyncpg.connect(database_url, statement_cache_size=0)
        try:
            rows = await connection.fetch(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            return len(rows)
        finally:
            await connection.close()

    return kill


@pytest.fixture
def count_connections(database_url: str) -> Callable[[], Awaitable[int]]:
    """Counts the app's connections at the server."""
    if POOLER == "transaction":
        pytest.skip("a pooler keeps connections of its own")

    async def count() -> int:
        connection = await asyncpg.connect(database_url)
        try:
            return int(
                await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND backend_type = 'client backend' AND application_name = $1",
                    COMMAND,
                )
            )
        finally:
            await connection.close()

    return count


@pytest.fixture
def damage_row(database_url: str) -> Callable[[int, str], Awaitable[None]]:
    """Overwrites the n-th newest stored row with a text."""
    return partial(overwrite_row, database_url)


def settings_for(url: str, **more: object) -> PostgresSettings:
    return PostgresSettings(database_url=SecretStr(url)).model_copy(update={"database_pooler": POOLER, **more})


def with_password(url: str) -> str:
    """The address with a password in it that must never be seen (a test server may ask for none)."""
    parts = urlsplit(url)
    if parts.password:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username}:planted@{parts.hostname}:{parts.port}"))


def database_of(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def run_sql(url: str, statement: str) -> None:
    """Run statements on a connection of their own."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def execute(url: str, statement: str) -> None:
    """Run statements from outside an event loop."""
    asyncio.run(run_sql(url, statement))


@pytest.fixture
def dump(database_url: str) -> Callable[[], Awaitable[str]]:
    """Reads every column of every row of every table, as text."""
    return partial(dump_of, database_url)
