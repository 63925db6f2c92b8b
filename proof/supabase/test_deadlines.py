"""One call ends in time, and what it asked for does not happen later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest

from my_agent.sessions import SessionRef, StoreUnavailable, SupabaseStore
from my_agent.sessions.records import Batch, Row
from proof.sql.ended_loop import run_beside_a_lock
from proof.supabase.fixtures import Environment, settings_for, token

ADA = "6d8f0a3e-0000-4000-8000-00000000000a"
KEY = SessionRef(ADA, "s")
PATIENCE = 0.5
Change = Callable[[SupabaseStore], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "append": lambda store: store.append(KEY, Batch.of([Row("late")])),
    "pop": lambda store: store.pop(KEY),
    "clear": lambda store: store.clear(KEY),
    "replace": lambda store: store.replace_tail(KEY, None, Batch.of([Row("late")])),
    "update": lambda store: store.update_session(KEY, title="late"),
    "delete": lambda store: store.delete_session(KEY),
    "delete_user": lambda store: store.delete_user(ADA),
}


@asynccontextmanager
async def locked(project: Environment) -> AsyncIterator[asyncpg.Connection]:
    """Another client holds the session's row."""
    connection = await asyncpg.connect(project["SUPABASE_DB_URL"])
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM agent_session_info WHERE session_id = 's' FOR UPDATE")
            yield connection
    finally:
        await connection.close()


async def until_somebody_waits(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(10):
        while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_nobody_waits(connection: asyncpg.Connection) -> None:
    """Until the database itself has given up what waited."""
    async with asyncio.timeout(10):
        while await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def history(project: Environment) -> tuple[str | None, list[str]]:
    """The session's title and its items, as the database holds them."""
    connection = await asyncpg.connect(project["SUPABASE_DB_URL"])
    try:
        rows = await connection.fetch("SELECT content FROM agent_sessions WHERE session_id = 's' ORDER BY id")
        title = await connection.fetchval("SELECT title FROM agent_session_info WHERE session_id = 's'")
        return title, [row["content"] for row in rows]
    finally:
        await connection.close()


@pytest.fixture(params=["secret key", "signed in"])
async def writer(request: pytest.FixtureRequest, project: Environment) -> AsyncIterator[SupabaseStore]:
    """A store that waits for others for half a second, with a session in it."""
    settings = settings_for(project, session_settle_seconds=PATIENCE)
    store = SupabaseStore(settings, token(project, ADA) if request.param == "signed in" else None)
    await store.append(KEY, Batch.of([Row("a"), Row("b")], "title"))
    yield store
    await store.close()


@pytest.mark.parametrize("change", CHANGES)
async def test_a_cancelled_change_is_not_carried_out_later(
    project: Environment, writer: SupabaseStore, change: str
) -> None:
    async with locked(project) as other:
        task = asyncio.ensure_future(CHANGES[change](writer))
        await until_somebody_waits(other)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(PATIENCE + 5):
                await task
        await until_nobody_waits(other)
    assert await history(project) == ("title", ["a", "b"])


def test_nothing_is_carried_out_after_the_event_loop_ended(project: Environment) -> None:
    """`asyncio.run` cancels all tasks, those of the request too."""
    kept: list[asyncio.Task[object]] = []

    async def pop_and_close(store: SupabaseStore) -> None:
        try:
            await store.session("s", user_id=ADA).pop_item()
        finally:
            await store.close()

    async def main(is_held: Callable[[], Awaitable[object]]) -> None:
        store = SupabaseStore(settings_for(project, session_settle_seconds=4 * PATIENCE))
        await store.append(KEY, Batch.of([Row("{}"), Row("{}")]))
        await is_held()
        kept.append(asyncio.create_task(pop_and_close(store)))
        await asyncio.sleep(PATIENCE)

    lock = "SELECT FROM agent_session_info WHERE session_id = 's' FOR UPDATE"
    left = run_beside_a_lock(project["SUPABASE_DB_URL"], lock, main)
    assert kept[0].cancelled()
    assert left == (0, 2)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_waits_too_long_for_others_is_an_error_and_does_not_happen(
    project: Environment, writer: SupabaseStore, change: str
) -> None:
    async with locked(project) as other:
        with pytest.raises(StoreUnavailable, match="lock timeout") as caught:
            async with asyncio.timeout(PATIENCE + 10):
                await CHANGES[change](writer)
        assert not caught.value.maybe_applied  # so it may be repeated, even a pop
        await until_nobody_waits(other)
    assert await history(project) == ("title", ["a", "b"])


async def test_a_change_that_waits_is_repeated_until_the_others_are_done(
    project: Environment, writer: SupabaseStore
) -> None:
    async with locked(project):
        popping = asyncio.ensure_future(writer.session("s", user_id=ADA).get_items())
        appending = asyncio.ensure_future(
            writer.session("s", user_id=ADA).add_items([{"role": "user", "content": "c"}])
        )
        await popping  # readers do not wait
        await asyncio.sleep(3 * PATIENCE)
    await appending
    assert len((await history(project))[1]) == 3


@asynccontextmanager
async def dripping() -> AsyncIterator[str]:
    """The address of a server whose answer never ends: a byte now and then, so that no single read takes long."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            await reader.read(65536)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"1\r\n \r\n")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving)
    server.close()


async def test_one_call_has_one_bound_however_it_spends_its_time() -> None:
    async with dripping() as url:
        environment = {"SUPABASE_URL": url, "SUPABASE_KEY": "sb_secret_x"}
        settings = settings_for(environment, supabase_timeout_seconds=PATIENCE, supabase_pool_max=2)
        store = SupabaseStore(settings)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*(store.tail(KEY, None) for _ in range(8)), return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes), outcomes
        assert loop.time() - begin < PATIENCE + 3  # not once for waiting, once for the schema, once for the call
        await store.close()
