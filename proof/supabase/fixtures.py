"""A real Supabase for the tests, in small: PostgreSQL, PostgREST and a gateway for each worker.

The tables are empty at the beginning of each test.

TEST_SUPABASE_URL, TEST_SUPABASE_KEY, TEST_SUPABASE_PUBLISHABLE_KEY, TEST_SUPABASE_SERVER_KEY, TEST_SUPABASE_DB_URL and
TEST_SUPABASE_JWT_SECRET name a project to use instead, without -n. Its sessions are lost: never a real one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from my_agent.dev import server as devserver
from my_agent.dev.supabase import sign
from my_agent.sessions import SupabaseSettings, SupabaseStore, backend
from my_agent.sessions.retry import with_retries
from my_agent.settings import Settings
from proof.sql.damage import overwrite_row
from proof.sql.dump import dump_of
from proof.support.helpers import missing

OVERRIDE = "TEST_"
USED = ("SUPABASE_URL", "SUPABASE_KEY", "SUPABASE_SERVER_KEY", "SUPABASE_DB_URL")
"""What a server needs to know."""
TABLES = (
    "agent_sessions",
    "agent_session_info",
    "agent_session_batches",
    "agent_session_canary",
    "agent_session_leases",
    "agent_session_turns",
)

Environment = Mapping[str, str]


@contextmanager
def new_project() -> Iterator[Environment]:
    """A project of its own, with the schema in it."""
    with tempfile.TemporaryDirectory(prefix="supabase-") as folder:
        try:
            server = devserver.start(Path(folder), durable=False)
        except devserver.DevServerError as error:
            missing(str(error))
        with server:
            asyncio.run(backend.prepare(Settings().with_environment(server.environment)))
            yield server.environment


@pytest.fixture(scope="session")
def worker_project(request: pytest.FixtureRequest) -> Iterator[Environment]:
    """This worker's project."""
    if f"{OVERRIDE}SUPABASE_URL" not in os.environ:
        with new_project() as environment:
            yield environment
    elif hasattr(request.config, "workerinput"):
        raise pytest.UsageError("Workers would empty each other's tables: run pytest without -n on TEST_SUPABASE_URL.")
    else:
        names = (*USED, "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_JWT_SECRET")
        yield {name: os.environ[OVERRIDE + name] for name in names}


@pytest.fixture(scope="session")
def other_worker_project(worker_project: Environment) -> Iterator[Environment]:
    """One more, for what needs two."""
    with new_project() as environment:
        yield environment


@pytest.fixture
def project(worker_project: Environment) -> Environment:
    """How to reach the worker's project, with empty tables."""
    empty(worker_project)
    return worker_project


@pytest.fixture
def settings(project: Environment) -> SupabaseSettings:
    return settings_for(project)


@pytest.fixture
def server_environment(project: Environment) -> dict[str, str]:
    """The variables with which commands reach the same project."""
    return {name: project[name] for name in USED}


@pytest.fixture
async def store(settings: SupabaseSettings) -> AsyncIterator[SupabaseStore]:
    """An open store on empty tables."""
    store = SupabaseStore(settings)
    await with_retries(store.ping, 10)  # the test before may have cut the API's connections
    yield store
    await store.close()


@pytest.fixture
def other_project(other_worker_project: Environment) -> Environment:
    empty(other_worker_project)
    return other_worker_project


@pytest.fixture
async def other_store(other_project: Environment) -> AsyncIterator[SupabaseStore]:
    """A store on another project, empty too."""
    store = SupabaseStore(settings_for(other_project))
    yield store
    await store.close()


@pytest.fixture
def kill_connections(project: Environment) -> Callable[[], Awaitable[int]]:
    """Cuts the API's connections to the database from the server's side; returns how many there were."""

    async def kill() -> int:
        connection = await asyncpg.connect(project["SUPABASE_DB_URL"])
        try:
            rows = await connection.fetch(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'authenticator'"
            )
            return len(rows)
        finally:
            await connection.close()

    return kill


@pytest.fixture
def count_connections(project: Environment) -> Callable[[], Awaitable[int]]:
    """Counts the app's connections to the gateway, which are this process's own: the gateway does not tell."""
    port = urlsplit(project["SUPABASE_URL"]).port or 443

    async def count() -> int:
        return [peer_port(int(number)) for number in os.listdir("/dev/fd")].count(port)

    return count


@pytest.fixture
def damage_row(project: Environment) -> Callable[[int, str], Awaitable[None]]:
    """Overwrites the n-th newest stored row with a text."""
    return partial(overwrite_row, project["SUPABASE_DB_URL"])


def peer_port(descriptor: int) -> int | None:
    """The port to which a file descriptor of this process is connected, if it is."""
    try:
        end = socket.socket(fileno=descriptor)
    except OSError:  # no socket, or closed by now
        return None
    try:
        return int(end.getpeername()[1])
    except (OSError, IndexError):  # listens only, or has no port
        return None
    finally:
        end.detach()


def settings_for(project: Environment, **more: object) -> SupabaseSettings:
    values = {name.lower(): value for name, value in project.items() if name in USED}
    return SupabaseSettings.model_validate(values).model_copy(update=more)


def token(project: Environment, user_id: str | None, **claims: Any) -> str:
    """What Supabase Auth gives a user who signs in."""
    usual = {"aud": "authenticated", "role": "authenticated", "exp": int(time.time()) + 3600}
    subject = {} if user_id is None else {"sub": user_id}
    return sign({**usual, **subject, **claims}, project["SUPABASE_JWT_SECRET"])


async def ask(project: Environment, query: str, *arguments: object) -> Any:
    """The first value that a query returns, asked by the owner of the database."""
    connection = await asyncpg.connect(project["SUPABASE_DB_URL"])
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


@asynccontextmanager
async def sessions_locked(project: Environment) -> AsyncIterator[None]:
    """Keep everybody from reading and writing."""
    connection = await asyncpg.connect(project["SUPABASE_DB_URL"])
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE agent_sessions")
            yield
    finally:
        await connection.close()


def empty(project: Environment) -> None:
    asyncio.run(ask(project, f"TRUNCATE {', '.join(TABLES)}"))


@pytest.fixture
def dump(project: Environment) -> Callable[[], Awaitable[str]]:
    """Reads every column of every row of every table, as text."""
    return partial(dump_of, project["SUPABASE_DB_URL"])
