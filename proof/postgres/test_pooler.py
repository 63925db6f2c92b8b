"""Behind PgBouncer in transaction mode, where fifty sessions share two connections of the server."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from my_agent.sessions import PostgresStore, SessionStoreError
from my_agent.sessions.codec import encode_item
from proof.postgres.fixtures import settings_for
from proof.support.helpers import answer, missing, texts, user

POOL_SIZE = 2
"""The server's connections behind the pooler."""
SESSIONS = 50
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def pooler_url(database_url: str, tmp_path: Path) -> Iterator[str]:
    """The worker's database through a PgBouncer of its own."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("no pgbouncer here: apt-get install -y pgbouncer")
    server = urlsplit(database_url)
    login = f"user={unquote(server.username or '')} password={unquote(server.password or '')}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "pgbouncer.ini"
    settings.write_text(f"""
[databases]
* = host={server.hostname} port={server.port or 5432} {login}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {POOL_SIZE}
""")
    log = tmp_path / "pgbouncer.log"
    with settings.open() as file, log.open("wb") as output:
        # Open already: another user cannot pass the folder, which keeps the password from everybody else.
        command = [*_confined(), program, "-q", f"/dev/fd/{file.fileno()}"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[file.fileno()]
        )
        try:
            deadline = time.monotonic() + 20
            while not _listens(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.005)
            yield f"postgresql://app@127.0.0.1:{port}{server.path}"
        finally:
            process.kill()
            process.wait()


def _confined() -> list[str]:
    """It refuses to run as root, and it should not outlive us."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    other = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    return [setpriv, "--pdeathsig", "KILL", *other, "--"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ── What is left behind ─────────────────────────────────────────────────────

LEFT = """
SELECT json_build_object(
  'settings', (SELECT json_object_agg(name, setting ORDER BY name) FROM pg_settings WHERE source = 'session'),
  'role', current_user,
  'prepared statements', (SELECT count(*) FROM pg_prepared_statements),
  'cursors', (SELECT count(*) FROM pg_cursors),
  'channels', (SELECT count(*) FROM pg_listening_channels()),
  'advisory locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
  'temporary tables', (SELECT count(*) FROM pg_class WHERE relpersistence = 't')
)
"""


async def left_on_connections(url: str) -> dict[int, str]:
    """The state of each connection that the pooler has to the server, by its process there."""
    async with AsyncExitStack() as stack:
        state = {}
        for _ in range(POOL_SIZE):
            client = await asyncpg.connect(url, statement_cache_size=0)
            stack.push_async_callback(client.close)
            # An open transaction keeps its connection: the next client gets the other one.
            await stack.enter_async_context(client.transaction())
            state[await client.fetchval("SELECT pg_backend_pid()")] = await client.fetchval(LEFT)
        assert len(state) == POOL_SIZE
        return state


# ── The app ─────────────────────────────────────────────────────────────────


@asynccontextmanager
async def store_behind(url: str, pooler: str) -> AsyncIterator[PostgresStore]:
    """A store with a connection to the pooler for each session."""
    store = PostgresStore(settings_for(url, database_pooler=pooler, database_pool_max=SESSIONS))
    try:
        yield store
    finally:
        await store.close()


async def converse(store: PostgresStore, name: str) -> None:
    """Every operation of a session and its store."""
    session = store.session(name, user_id=name)
    for turn in range(3):
        await session.add_items([user(f"{name} {turn}"), answer("yes"), answer("no")])
        assert texts(await session.get_items(3)) == [f"{name} {turn}", "yes", "no"]
        assert texts(await session.get_items())[-1] == "no"
    popped = await session.pop_item()
    assert texts([popped] if popped else []) == ["no"]
    newest = await session.get_items(1)
    assert await session.replace_tail([encode_item(item) for item in newest], [answer("instead")])
    assert texts(await session.get_items(2)) == [f"{name} 2", "instead"]
    assert await store.update_session(session.ref, title=name, metadata={"name": name})
    found = await store.find_session(session.ref)
    assert found is not None
    assert (found.title, found.item_count) == (name, 8)
    assert (await store.list_sessions(name, limit=5)).sessions == [found]
    await session.clear_session()
    assert await session.get_items() == []
    await session.add_items([user("again")])
    assert await store.delete_session(session.ref)
    await session.add_items([user("again")])
    assert await store.delete_user(name) == 1
    assert await store.prune(LONG_AGO) == 0
    await store.ping()


async def at_once(store: PostgresStore) -> list[BaseException]:
    """All sessions at the same time; returns what went wrong."""
    conversations = (converse(store, f"s{number}") for number in range(SESSIONS))
    outcomes = await asyncio.gather(*conversations, return_exceptions=True)
    return [outcome for outcome in outcomes if outcome is not None]


@pytest.mark.parametrize(("pooler", "query"), [("transaction", ""), ("auto", "?pgbouncer=true")])
async def test_fifty_sessions_share_two_connections_and_leave_nothing_on_them(
    pooler_url: str, pooler: str, query: str
) -> None:
    before = await left_on_connections(pooler_url)
    async with store_behind(pooler_url + query, pooler) as store:
        assert await at_once(store) == []
    assert await left_on_connections(pooler_url) == before


async def test_what_is_left_behind_is_seen(pooler_url: str) -> None:
    before = await left_on_connections(pooler_url)
    client = await asyncpg.connect(pooler_url, statement_cache_size=0)
    try:
        await client.execute(
            "SET work_mem = '5MB'; PREPARE mine AS SELECT 1; SELECT pg_advisory_lock(7); CREATE TEMP TABLE mine (n int)"
        )
    finally:
        await client.close()
    changed = [state for process, state in (await left_on_connections(pooler_url)).items() if state != before[process]]
    assert any('"prepared statements" : 1' in state and '"advisory locks" : 1' in state for state in changed)


async def test_without_the_setting_the_error_names_it(pooler_url: str) -> None:
    async with store_behind(pooler_url, "none") as store:
        refused = await at_once(store)
    assert refused
    for error in refused:
        assert isinstance(error, SessionStoreError)
        assert str(error).endswith("a pooler swaps prepared statements. Set DATABASE_POOLER=transaction.")
