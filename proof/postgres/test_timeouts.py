"""A call that is late or cancelled has ended at the server when it ends here, and all of it has one bound."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic

import asyncpg
import pytest
from pydantic import SecretStr

from my_agent.sessions import PostgresSettings, PostgresStore, SessionRef, StoredSession, StoreUnavailable
from my_agent.sessions.errors import COMMAND
from my_agent.sessions.postgres.connection import connect, pool_options
from my_agent.sessions.retry import with_retries
from proof.postgres.fixtures import POOLER, settings_for
from proof.postgres.test_pooler import pooler_url  # noqa: F401 - a fixture
from proof.postgres.wire import wire_to
from proof.sql.ended_loop import run_beside_a_lock
from proof.support.helpers import texts, user
from proof.support.network import Network

pytestmark = pytest.mark.skipif(POOLER == "transaction", reason="asks the server about the app's own connections")

KEY = SessionRef("", "s")
Call = Callable[[StoredSession], Awaitable[object]]
CHANGES: dict[str, Call] = {
    "add_items": lambda session: session.add_items([user("late")]),
    "pop_item": lambda session: session.pop_item(),
    "clear_session": lambda session: session.clear_session(),
    "replace_tail": lambda session: session.store.replace_tail(KEY, None, session._batch([user("late")])),
    "update_session": lambda session: session.store.update_session(KEY, title="late"),
    "delete_session": lambda session: session.store.delete_session(KEY),
}


def hasty(settings: PostgresSettings, **more: object) -> PostgresSettings:
    """Calls of half a second, over two connections, which are not repeated."""
    values = {"database_timeout_seconds": 0.5, "database_pool_max": 2, "session_retry_seconds": 0.0}
    return settings.model_copy(update={**values, **more})


class Observer:
    """Two other connections: one can hold locks, one sees what the app does at the server.

    In a transaction, the list of connections would stay as it was first seen.
    """

    def __init__(self, holder: asyncpg.Connection, watcher: asyncpg.Connection) -> None:
        self._holder = holder
        self._watcher = watcher

    async def hold(self, statement: str) -> None:
        await self._holder.execute(f"BEGIN; {statement}")

    async def let_go(self) -> None:
        await self._holder.execute("ROLLBACK")

    async def count(self, condition: str = "true", application: str = COMMAND) -> int:
        """Connections that satisfy a condition, by default those of the app."""
        statement = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND {condition}"
        return int(await self._watcher.fetchval(f"{statement} AND datname = current_database()", application))

    async def waiting(self, *, of_the_app: bool = True) -> int:
        """Connections that wait for a lock; those that a pooler opened do not have the app's name."""
        return await self.count("wait_event_type = 'Lock'", COMMAND if of_the_app else "")

    async def wait_for(self, waiting: int, seconds: float = 5, *, of_the_app: bool = True) -> None:
        async with asyncio.timeout(seconds):
            while await self.waiting(of_the_app=of_the_app) != waiting:  # noqa: ASYNC110 - the server sends no event
                await asyncio.sleep(0.01)


LOCK_ROW = "SELECT FROM agent_session_info WHERE session_id = 's' FOR UPDATE"
LOCK_ALL = "LOCK agent_session_info, agent_sessions IN ACCESS EXCLUSIVE MODE"


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[Observer]:
    name = {"application_name": "observer"}
    connections = [await asyncpg.connect(database_url, server_settings=name) for _ in range(2)]
    yield Observer(*connections)
    for connection in connections:
        await connection.close()


@asynccontextmanager
async def sampled(observer: Observer) -> AsyncIterator[list[int]]:
    """How many connections the app has, again and again."""
    counts: list[int] = []

    async def sample() -> None:
        while True:
            counts.append(await observer.count())
            await asyncio.sleep(0.01)

    task = asyncio.create_task(sample())
    try:
        yield counts
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ── Nothing happens later ───────────────────────────────────────────────────


class Late(Network):
    """What comes on connections that were open when it was told so is late; new ones are not."""

    late = False

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        open_before = not self.late
        with suppress(ConnectionError):
            while data := await source.read(2**20):
                await asyncio.sleep(0.1 if open_before and self.late else 0)
                target.write(data)


async def test_a_statement_that_arrives_after_the_request_to_cancel_it_is_cancelled_all_the_same(
    settings: PostgresSettings, observer: Observer
) -> None:
    address = settings.address.hosts[0]
    async with Late(*address).running() as network:
        url = settings.database_url.get_secret_value() if settings.database_url else ""
        behind = SecretStr(url.replace(f":{address[1]}/", f":{network.port}/"))
        async with PostgresStore(settings.model_copy(update={"database_url": behind})) as store:
            await store.session("s").add_items([user("a"), user("b")])
            await store.session("s").pop_item()
            await observer.hold(LOCK_ALL)
            network.late = True
            call = asyncio.create_task(store.session("s").pop_item())
            await asyncio.sleep(0.02)
            call.cancel()
            begin = monotonic()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert monotonic() - begin < settings.session_settle_seconds / 2
            assert await observer.waiting() == 0
            await observer.let_go()
            network.late = False
            assert texts(await store.session("s").get_items()) == ["a"]


def test_a_change_is_ended_at_the_server_when_the_event_loop_ends(
    settings: PostgresSettings, database_url: str
) -> None:
    """`asyncio.run` cancels all tasks, those of the driver too."""
    kept: list[asyncio.Task[object]] = []

    async def pop_and_close(store: PostgresStore) -> None:
        try:
            await store.session("s").pop_item()
        finally:
            await store.close()

    async def main(is_held: Callable[[], Awaitable[object]]) -> None:
        store = PostgresStore(settings)
        await store.session("s").add_items([user("a")])
        await store.session("s").pop_item()
        await store.session("s").add_items([user("b")])
        await is_held()
        kept.append(asyncio.create_task(pop_and_close(store)))
        await asyncio.sleep(0.3)
        kept[0].cancel()  # it begins to settle when the loop ends

    left = run_beside_a_lock(database_url, "LOCK agent_sessions IN ACCESS EXCLUSIVE MODE", main)
    assert kept[0].cancelled()
    assert left == (0, 1)


@pytest.mark.parametrize("ending", ["timeout", "cancel"])
async def test_appends_that_wait_for_another_writer_end_with_their_calls(
    settings: PostgresSettings, store: PostgresStore, observer: Observer, ending: str
) -> None:
    await store.session("s").add_items([user("before")])
    await store.close()
    async with PostgresStore(hasty(settings)) as few:
        await observer.hold(LOCK_ROW)
        async with sampled(observer) as connections:
            batches = [few.session("s")._batch([user(f"{n}")]) for n in range(12)]
            calls = [asyncio.create_task(with_retries(partial(few.append, KEY, batch), 1.0)) for batch in batches]
            if ending == "cancel":
                await asyncio.sleep(0.2)
                for call in calls:
                    call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert await observer.waiting() == 0
        await observer.let_go()
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds == {asyncio.CancelledError if ending == "cancel" else StoreUnavailable}
        assert max(connections) <= 2
        await asyncio.sleep(0.3)
        assert texts(await few.session("s").get_items()) == ["before"]


async def test_what_a_session_sends_again_for_a_cancelled_caller_ends_with_the_call(
    settings: PostgresSettings, store: PostgresStore, observer: Observer
) -> None:
    await store.session("s").add_items([user("before")])
    patient = settings.model_copy(update={"database_pool_max": 2, "session_settle_seconds": 2.0})
    async with PostgresStore(patient) as few:
        await few.session("s").get_items()
        for _ in range(3):
            await observer.hold(LOCK_ROW)
            calls = [asyncio.create_task(few.session("s").add_items([user("late")])) for _ in range(4)]
            await asyncio.sleep(0.2)
            for call in calls:
                call.cancel()
            begin = monotonic()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            waiting = await observer.waiting()
            await observer.let_go()
            assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
            assert waiting == 0
            assert monotonic() - begin < 3.5
        await asyncio.sleep(0.3)
        assert texts(await few.session("s").get_items()) == ["before"]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_that_timed_out_is_never_made(
    settings: PostgresSettings, store: PostgresStore, observer: Observer, change: Call
) -> None:
    session = store.session("s")
    await session.add_items([user("one"), user("two")])
    async with PostgresStore(hasty(settings)) as few:
        await few.session("s").get_items()
        await observer.hold(LOCK_ALL)
        with pytest.raises(StoreUnavailable):
            await change(few.session("s"))
        assert await observer.waiting() == 0
        await observer.let_go()
    await session.add_items([user("three")])
    await asyncio.sleep(0.2)
    assert texts(await session.get_items()) == ["one", "two", "three"]
    found = await store.find_session(KEY)
    assert found is not None
    assert found.title == "one"


async def test_the_server_ends_a_statement_itself_where_no_request_to_cancel_it_gets_through(
    settings: PostgresSettings, store: PostgresStore, database_url: str, observer: Observer
) -> None:
    await store.session("s").add_items([user("before")])
    await store.close()
    async with wire_to(database_url) as (wire, url):
        few = PostgresStore(hasty(settings_for(url), session_settle_seconds=0.5))
        await few.session("s").get_items()
        await observer.hold(LOCK_ROW)
        call = asyncio.create_task(few.session("s").add_items([user("late")]))
        await observer.wait_for(1)
        wire.silent = True
        with pytest.raises(StoreUnavailable):
            await call
        await observer.wait_for(0, 1)
        await observer.let_go()
        await few.close()
    assert texts(await store.session("s").get_items()) == ["before"]


@pytest.mark.parametrize("ending", ["timeout", "cancel"])
async def test_behind_a_pooler_too_a_change_ends_with_its_call(
    store: PostgresStore,
    observer: Observer,
    pooler_url: str,  # noqa: F811
    ending: str,
) -> None:
    await store.session("s").add_items([user("before")])
    async with PostgresStore(hasty(settings_for(pooler_url, database_pooler="transaction"))) as pooled:
        await observer.hold(LOCK_ROW)
        call = asyncio.create_task(pooled.append(KEY, pooled.session("s")._batch([user("late")])))
        await observer.wait_for(1, of_the_app=False)
        if ending == "cancel":
            call.cancel()
        with pytest.raises(asyncio.CancelledError if ending == "cancel" else StoreUnavailable):
            await call
        assert await observer.waiting(of_the_app=False) == 0
        await observer.let_go()
        assert texts(await pooled.session("s").get_items()) == ["before"]


# ── It ends ─────────────────────────────────────────────────────────────────


async def test_a_cancelled_call_ends_on_a_silent_network_and_its_place_is_free_again(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    patient = {"database_timeout_seconds": 30.0, "session_settle_seconds": 0.5, "database_pool_max": 1}
    async with wire_to(database_url) as (wire, url):
        store = PostgresStore(settings_for(url, **patient))
        session = store.session("s")
        await session.get_items()
        for _ in range(3):
            wire.silent = True
            call = asyncio.create_task(store.tail(KEY, None))
            await asyncio.sleep(0.1)
            begin = monotonic()
            call.cancel()
            await asyncio.wait({call}, timeout=10)
            assert call.done(), "the cancelled call never ends"
            assert call.cancelled()
            assert monotonic() - begin < 2
            wire.silent = False
            async with asyncio.timeout(5):
                assert await store.tail(KEY, None) == []
        await store.close()
    assert caplog.text.count("SESSION_SETTLE_SECONDS") == 3
    left = [task for task in asyncio.all_tasks() if "asyncpg" in str(task.get_coro())]
    assert left == []


async def test_a_call_that_is_cancelled_again_and_again_ends_in_time(database_url: str) -> None:
    async with wire_to(database_url) as (wire, url):
        store = PostgresStore(settings_for(url, session_settle_seconds=0.5))
        await store.tail(KEY, None)
        wire.silent = True
        call = asyncio.create_task(store.tail(KEY, None))
        await asyncio.sleep(0.05)
        begin = monotonic()
        while not call.done() and monotonic() - begin < 5:
            call.cancel()
            await asyncio.sleep(0.02)
        assert call.cancelled()
        assert monotonic() - begin < 2
        await store.close()


async def test_closing_a_store_ends_on_a_silent_network(database_url: str) -> None:
    async with wire_to(database_url) as (wire, url):
        store = PostgresStore(settings_for(url))
        await asyncio.gather(*(store._call("SELECT pg_sleep(0.05)") for _ in range(8)))
        wire.silent = True
        begin = monotonic()
        await store.close()
        assert monotonic() - begin < 4


async def test_a_cancelled_call_keeps_its_connection(store: PostgresStore, observer: Observer) -> None:
    await store.session("s").add_items([user("one")])
    before = await store._call("SELECT pg_backend_pid()")
    for _ in range(5):
        await observer.hold(LOCK_ALL)
        call = asyncio.create_task(store.tail(KEY, None))
        await observer.wait_for(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await observer.waiting() == 0
        await observer.let_go()
        assert len(await store.tail(KEY, None)) == 1
    assert await store._call("SELECT pg_backend_pid()") == before


async def test_a_call_made_while_its_task_is_being_cancelled_works(settings: PostgresSettings) -> None:
    """Code that tidies up runs in a task that was cancelled already: its calls fail only for reasons of their own."""
    async with PostgresStore(hasty(settings)) as store:
        await store.ping()
        outcomes: list[object] = []

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                try:
                    await store._call("SELECT pg_sleep(5)")
                except StoreUnavailable as error:
                    outcomes.append(error)
                outcomes.append(await store._call("SELECT 1"))

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable, int]


# ── One bound ───────────────────────────────────────────────────────────────


async def test_waiting_connecting_and_the_statement_share_one_deadline(settings: PostgresSettings) -> None:
    one = hasty(settings, database_timeout_seconds=1.0, database_pool_max=1)
    async with PostgresStore(one) as store:
        await store.ping()
        holder = asyncio.create_task(store._call("SELECT pg_sleep(0.7)"))
        await asyncio.sleep(0)
        begin = monotonic()
        with pytest.raises(StoreUnavailable, match=r"did not \w+ .*within 1 s"):
            await store._call("SELECT pg_sleep(10)")
        assert 0.9 < monotonic() - begin < 1.5
        await holder


async def test_connecting_to_a_silent_server_ends_and_says_so(database_url: str) -> None:
    async with wire_to(database_url) as (wire, url):
        wire.silent = True
        store = PostgresStore(hasty(settings_for(url)))
        begin = monotonic()
        with pytest.raises(
            StoreUnavailable, match=r"did not answer within 0.5 s \(DATABASE_TIMEOUT_SECONDS\)"
        ) as caught:
            await store.tail(KEY, None)
        assert monotonic() - begin < 1.5
        assert not caught.value.maybe_applied


# ── The server's own limit ──────────────────────────────────────────────────


async def limit_of(settings: PostgresSettings) -> str:
    async with PostgresStore(settings) as store:
        return str(await store._call("SELECT current_setting('statement_timeout')"))


async def test_the_server_limits_statements_too(settings: PostgresSettings) -> None:
    assert await limit_of(settings) == "30s"
    for seconds, milliseconds in ((0.0001, "1"), (1e9, "2147483647")):
        options = pool_options(settings.model_copy(update={"database_timeout_seconds": seconds}))
        assert options["server_settings"]["statement_timeout"] == milliseconds


@pytest.mark.parametrize("query", ["statement_timeout=7s", "options=-c%20statement_timeout%3D7s"])
async def test_a_limit_in_the_address_stays(database_url: str, query: str) -> None:
    assert await limit_of(settings_for(f"{database_url}?{query}")) == "7s"


async def test_migrations_and_the_doctor_have_no_such_limit(settings: PostgresSettings) -> None:
    connection = await connect(settings, command_timeout=None)
    try:
        assert await connection.fetchval("SELECT current_setting('statement_timeout')") == "0"
    finally:
        await connection.close()


async def test_a_pooler_that_is_not_named_may_refuse_the_limit(
    pooler_url: str,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    direct = settings_for(pooler_url, database_pooler="none")
    assert pool_options(direct) != {}
    with caplog.at_level(logging.WARNING):
        assert await limit_of(direct) == "0"
    assert caplog.text == ""
    assert pool_options(settings_for(pooler_url, database_pooler="transaction")) == {}
