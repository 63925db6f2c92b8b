"""What is PostgreSQL's own: connections, errors, the friendly constructor."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import asyncpg
import pytest

from my_agent.sessions import (
    PostgresSession,
    PostgresSettings,
    PostgresStore,
    SchemaOutdated,
    SessionRef,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    StoreUnavailable,
)
from my_agent.sessions.postgres import store as postgres_store
from my_agent.sessions.records import Row
from proof.postgres.fixtures import TABLES, database_of, run_sql, settings_for
from proof.support.helpers import texts, user
from proof.support.lost import check_writes_are_stored_once
from proof.support.relay import Relay

KEY = SessionRef("", "s")


@pytest.fixture
async def relay(database_url: str) -> AsyncIterator[Relay]:
    parts = urlsplit(database_url)
    async with Relay(parts.hostname or "", parts.port or 5432).running() as relay:
        yield relay


@pytest.fixture
async def relayed(relay: Relay, database_url: str) -> AsyncIterator[PostgresStore]:
    """An open store whose only connection goes through the relay."""
    store = await PostgresStore(settings_for(relay.url(database_url), database_pool_max=1))
    yield store
    await store.close()


# ── Statements ──────────────────────────────────────────────────────────────


def bare(sql: str) -> str:
    """A statement without its comments, casts, and the shape it was written in."""
    sql = re.sub(r"--[^\n]*|::\w+(\[\])?|;", "", sql.lower())
    return " ".join(re.sub(r"([(),])", r" \1 ", sql).split())


@pytest.mark.parametrize(
    ("name", "begin", "end", "statement"),
    [
        ("agent_session_append", "begin  -- changes\n", "return found", postgres_store._APPEND),
        ("agent_session_tail", "return array(", ");", postgres_store._TAIL),
    ],
)
async def test_a_statement_does_what_the_function_does(
    database_url: str, name: str, begin: str, end: str, statement: str
) -> None:
    connection = await asyncpg.connect(database_url)
    function = f"FROM pg_proc WHERE oid = '{name}'::regproc"
    try:
        body: str = await connection.fetchval(f"SELECT prosrc {function}")
        names: list[str] = await connection.fetchval(f"SELECT proargnames {function}")
    finally:
        await connection.close()
    body = body.partition(begin)[2].partition(end)[0]
    for number, argument in enumerate(names, 1):
        body = re.sub(rf"\b{argument}\b", f"${number}", body)
    assert bare(statement) == bare(body)


# ── Round trips and lost answers ────────────────────────────────────────────


async def test_every_operation_is_one_round_trip(relayed: PostgresStore, relay: Relay) -> None:
    session = relayed.session("s")

    async def operations() -> AsyncIterator[tuple[str, Awaitable[object]]]:
        yield "append", session.add_items([user("a"), user("b")])
        yield "tail", session.get_items()
        yield "tail 1", session.get_items(1)
        yield "pop", session.pop_item()
        yield "replace", relayed.replace_tail(KEY, ["?"], session._batch([user("c")]))
        yield "find", relayed.find_session(KEY)
        yield "list", relayed.list_sessions("", limit=3)
        yield "update", relayed.update_session(KEY, title="t")
        yield "clear", session.clear_session()
        yield "delete", relayed.delete_session(KEY)
        yield "ping", relayed.ping()

    async for _, operation in operations():  # the first time, each statement is prepared
        await operation
    counts = {}
    async for name, operation in operations():
        before = relay.round_trips
        await operation
        counts[name] = relay.round_trips - before
    assert set(counts.values()) == {1}, counts


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_write_whose_message_is_lost_is_stored_once(relayed: PostgresStore, relay: Relay, lost: str) -> None:
    await check_writes_are_stored_once(relayed, relay, lost)


async def test_a_pop_whose_answer_is_lost_is_not_repeated(relayed: PostgresStore, relay: Relay) -> None:
    session = relayed.session("s")
    await session.add_items([user("a"), user("b")])
    await session.pop_item()
    await session.add_items([user("b")])
    relay.answers_to_lose = 1
    with pytest.raises(StoreUnavailable) as caught:
        await session.pop_item()
    assert caught.value.maybe_applied
    assert texts(await session.get_items()) == ["a"]


async def test_a_cancelled_write_is_retried_until_its_outcome_is_known(relayed: PostgresStore, relay: Relay) -> None:
    session = relayed.session("s")
    await session.add_items([user("before")])
    relay.answers_to_lose = 1
    task = asyncio.create_task(session.add_items([user("during")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert texts(await session.get_items()) == ["before", "during"]


async def test_a_cancelled_pop_that_waits_for_another_writer_is_stopped_at_the_server(
    store: PostgresStore, database_url: str
) -> None:
    session = store.session("s")
    await session.add_items([user("a")])
    blocker = await asyncpg.connect(database_url)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    try:
        async with blocker.transaction():
            await blocker.execute("SELECT FROM agent_session_info FOR UPDATE")
            task = asyncio.create_task(session.pop_item())
            async with asyncio.timeout(5):
                while not await blocker.fetchval(waiting):  # noqa: ASYNC110 - the server sends no event
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert not await blocker.fetchval(waiting)
    finally:
        await blocker.close()
    assert texts(await session.get_items()) == ["a"]


# ── The pool ────────────────────────────────────────────────────────────────


async def connections(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        count = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(count)
    finally:
        await connection.close()


async def no_connections(url: str) -> None:
    """Wait until the server has noticed that all clients are gone."""
    async with asyncio.timeout(5):
        while await connections(url):  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)


async def test_many_calls_share_the_pool(settings: PostgresSettings, database_url: str) -> None:
    async with PostgresStore(settings.model_copy(update={"database_pool_max": 3})) as store:
        await asyncio.gather(*(store.session(f"s{n}").add_items([user("x")]) for n in range(100)))
        assert await connections(database_url) == 3
        assert len((await store.list_sessions(limit=500)).sessions) == 100
    await no_connections(database_url)


async def test_what_takes_too_long_says_so(settings: PostgresSettings, database_url: str) -> None:
    hasty = settings.model_copy(
        update={"database_pool_max": 1, "database_timeout_seconds": 0.2, "session_retry_seconds": 0.0}
    )
    async with PostgresStore(hasty) as store:
        session = store.session("s")
        await session.add_items([user("x")])
        blocker = await asyncpg.connect(database_url)
        try:
            async with blocker.transaction():
                await blocker.execute("LOCK agent_sessions")
                with pytest.raises(StoreUnavailable, match=r"did not (answer|finish .*) within 0\.2 s"):
                    await session.get_items()
        finally:
            await blocker.close()
        assert texts(await session.get_items()) == ["x"]

        hold = store._call("SELECT pg_sleep(0.15)")
        waiting = [asyncio.create_task(store._call("SELECT pg_sleep(0.15)")) for _ in range(3)]
        outcomes = await asyncio.gather(hold, *waiting, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, StoreUnavailable)]
        assert len(refused) == 3  # the first of them had waited for most of its time
        without = [error for error in refused if "no free connection within 0.2 s" in str(error)]
        assert [error.maybe_applied for error in without] == [False, False]
        assert texts(await session.get_items()) == ["x"]


async def test_a_cancelled_read_leaves_a_clean_pool(settings: PostgresSettings) -> None:
    async with PostgresStore(settings.model_copy(update={"database_pool_max": 2})) as store:
        session = store.session("s")
        await session.add_items([user(str(n)) for n in range(200)])
        for step in range(30):
            task = asyncio.create_task(session.get_items())
            await asyncio.sleep(step * 0.0002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(await session.get_items()) == 200


async def test_connections_unused_for_long_are_opened_anew(
    settings: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from my_agent.sessions.postgres import pool as postgres_pool

    async with PostgresStore(settings) as store:
        first = await store._call("SELECT pg_backend_pid()")
        assert await store._call("SELECT pg_backend_pid()") == first
        monkeypatch.setattr(postgres_pool, "IDLE_SECONDS", -1.0)
        assert await store._call("SELECT pg_backend_pid()") != first


def test_a_store_serves_one_event_loop_after_the_other(settings: PostgresSettings) -> None:
    store = PostgresStore(settings)

    async def turn(text: str) -> list[str]:
        await store.session("s").add_items([user(text)])
        history = texts(await store.session("s").get_items())
        await store.close()
        return history

    assert asyncio.run(turn("one")) == ["one"]
    assert asyncio.run(turn("two")) == ["one", "two"]


async def test_a_store_in_use_on_another_loop_is_refused(store: PostgresStore) -> None:
    def elsewhere() -> None:
        with pytest.raises(SessionStoreError, match="another event loop"):
            asyncio.run(store.ping())

    await asyncio.to_thread(elsewhere)


# ── Errors a user can cause ─────────────────────────────────────────────────


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def refusal(url: str) -> SessionStoreError:
    with pytest.raises(SessionStoreError) as caught:
        await PostgresStore(settings_for(url))
    assert "planted" not in str(caught.value)
    return caught.value


async def test_a_server_that_is_down_is_named() -> None:
    port = free_port()
    error = await refusal(f"postgresql://u:planted@127.0.0.1:{port}/db")
    assert isinstance(error, StoreUnavailable)
    assert f"Cannot reach PostgreSQL at 127.0.0.1:{port}/db" in str(error)


async def test_a_host_that_does_not_exist_is_named() -> None:
    error = await refusal("postgresql://u:planted@nowhere.invalid/db")
    assert "Cannot reach PostgreSQL at nowhere.invalid:5432/db" in str(error)


async def test_a_missing_database_is_named(server_url: str) -> None:
    error = await refusal(database_of(server_url, "missing"))
    assert isinstance(error, StoreRefused)
    assert "missing: this database does not exist" in str(error)


async def test_a_wrong_user_is_refused(server_url: str) -> None:
    parts = urlsplit(server_url)
    error = await refusal(f"postgresql://nobody_here:planted@{parts.hostname}:{parts.port}/postgres")
    assert isinstance(error, StoreRefused)
    assert "Check user and password in DATABASE_URL" in str(error)


async def test_a_missing_schema_names_the_command(empty_database: str) -> None:
    error = await refusal(empty_database)
    assert isinstance(error, SchemaOutdated)
    assert "db upgrade`" in str(error)


@pytest.mark.parametrize(
    ("versions", "words"),
    [("1, 1", "Run `.* db upgrade`"), ("99999999999999, 99999999999999", "made for newer programs than this one")],
)
async def test_a_schema_that_does_not_fit_is_refused(database_url: str, versions: str, words: str) -> None:
    original = "SELECT pg_get_functiondef('agent_session_schema_version'::regproc)"
    connection = await asyncpg.connect(database_url)
    try:
        definition = await connection.fetchval(original)
        body = f"LANGUAGE sql IMMUTABLE AS 'SELECT array[{versions}]::bigint[]'"
        await connection.execute(f"CREATE OR REPLACE FUNCTION agent_session_schema_version() RETURNS bigint[] {body}")
        try:
            with pytest.raises(SchemaOutdated, match=words):
                await PostgresStore(settings_for(database_url))
        finally:
            await connection.execute(definition)
    finally:
        await connection.close()


async def test_a_newer_schema_that_still_serves_this_program_is_fine(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        definition = await connection.fetchval("SELECT pg_get_functiondef('agent_session_schema_version'::regproc)")
        (_, oldest) = await connection.fetchval("SELECT agent_session_schema_version()")
        body = f"LANGUAGE sql IMMUTABLE AS 'SELECT array[99999999999999, {oldest}]::bigint[]'"
        await connection.execute(f"CREATE OR REPLACE FUNCTION agent_session_schema_version() RETURNS bigint[] {body}")
        try:
            async with PostgresStore(settings_for(database_url)):
                pass
        finally:
            await connection.execute(definition)
    finally:
        await connection.close()


async def test_a_role_without_rights_is_told(database_url: str) -> None:
    await run_sql(database_url, "CREATE ROLE stranger LOGIN PASSWORD 'planted'")
    parts = urlsplit(database_url)
    try:
        store = PostgresStore(settings_for(f"postgresql://stranger:planted@{parts.hostname}:{parts.port}{parts.path}"))
        with pytest.raises(StoreRefused, match=r"permission denied .* Grant the rights"):
            await store.session("s").add_items([user("x")])
        await store.close()
    finally:
        await run_sql(database_url, "DROP ROLE stranger")


async def test_a_role_needs_four_rights_and_no_ddl(database_url: str) -> None:
    await run_sql(
        database_url,
        f"CREATE ROLE app LOGIN PASSWORD 'planted'; GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(TABLES)} TO app",
    )
    parts = urlsplit(database_url)
    try:
        async with PostgresStore(
            settings_for(f"postgresql://app:planted@{parts.hostname}:{parts.port}{parts.path}")
        ) as store:
            session = store.session("s")
            await session.add_items([user("a"), user("b")])
            await session.pop_item()
            assert texts(await session.get_items()) == ["a"]
            await store.delete_user("")
    finally:
        await run_sql(database_url, "DROP OWNED BY app; DROP ROLE app")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (None, "DATABASE_URL is not set"),
        ("mysql://u:planted@h/db", "not a PostgreSQL URL"),
        ("planted", "not a PostgreSQL URL"),
        ("postgresql://u:planted@h:port/db", "DATABASE_URL cannot be used"),
        ("postgresql://u:12#planted@h/db", "must be written as"),
        ("postgresql://u:12/planted@h/db", "must be written as"),
        ("postgresql://u:12?planted@h/db", "must be written as"),
    ],
)
async def test_a_database_url_that_cannot_be_used_is_told(url: str | None, words: str) -> None:
    settings = PostgresSettings() if url is None else settings_for(url)
    with pytest.raises(SettingMissing, match=words) as caught:
        await PostgresStore(settings)
    assert "planted" not in str(caught.value)
    assert "u:12" not in str(caught.value)


def test_secrets_are_not_in_repr() -> None:
    assert "planted" not in repr(settings_for("postgresql://u:planted@h/db"))


@pytest.mark.parametrize(
    ("url", "pooler", "expected"),
    [
        ("postgresql://h:5432/db", "auto", False),
        ("postgresql://h:6543/db", "auto", True),
        ("postgresql://h/db?pgbouncer=true", "auto", True),
        ("postgresql://h:6543/db", "none", False),
        ("postgresql://h/db", "transaction", True),
    ],
)
def test_a_transaction_pooler_is_recognised(url: str, pooler: str, expected: bool) -> None:
    assert settings_for(url, database_pooler=pooler).behind_pooler is expected


async def test_the_store_works_without_prepared_statements(database_url: str) -> None:
    async with PostgresStore(settings_for(database_url + "?pgbouncer=true")) as store:
        session = store.session("s")
        await session.add_items([user("a")])
        assert texts(await session.get_items()) == ["a"]


# ── PostgresSession ─────────────────────────────────────────────────────────


async def test_a_session_needs_only_an_id_and_a_dsn(database_url: str) -> None:
    session = PostgresSession(session_id="my-session-id", dsn=database_url)
    await session.add_items([user("Hi")])
    assert texts(await session.get_items()) == ["Hi"]
    await session.close()


async def test_a_session_takes_its_dsn_from_the_environment(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url.replace("postgresql://", "postgresql+asyncpg://"))
    async with PostgresSession("s", user_id="ada") as session:
        await session.add_items([user("Hi")])
    async with PostgresSession("s", database_url, user_id="ada", session_settings={"limit": 1}) as session:
        assert texts(await session.get_items()) == ["Hi"]


async def test_a_session_without_a_dsn_names_the_variable() -> None:
    with pytest.raises(SettingMissing, match="DATABASE_URL is not set"):
        PostgresSession("s")


async def test_sessions_of_one_address_share_connections_until_the_last_is_closed(database_url: str) -> None:
    sessions = [PostgresSession(f"s{n}", database_url) for n in range(20)]
    for session in sessions:
        await session.add_items([user("x")])
    assert await connections(database_url) == 1
    for session in sessions[1:]:
        await session.close()
    assert len(await sessions[0].get_items()) == 1
    await sessions[0].close()
    await sessions[0].close()
    await no_connections(database_url)


def test_a_session_survives_its_event_loop(database_url: str) -> None:
    session = PostgresSession("s", database_url)

    async def turn(text: str) -> list[str]:
        await session.add_items([user(text)])
        return texts(await session.get_items())

    async def last_turn() -> list[str]:
        history = await turn("two")
        await session.close()
        return history

    async def first_turn() -> list[str]:
        history = await turn("one")
        await session.close()
        return history

    assert asyncio.run(first_turn()) == ["one"]
    assert asyncio.run(last_turn()) == ["one", "two"]
    gc.collect()


Kill = Callable[[], Awaitable[int]]


async def test_dead_idle_connections_are_replaced(settings: PostgresSettings, kill_connections: Kill) -> None:
    async with PostgresStore(settings) as store:
        session = store.session("s")
        await asyncio.gather(*(session.add_items([user("x")]) for _ in range(30)))
        assert await kill_connections() > 1
        assert len(await session.get_items()) == 30


async def test_rows_reach_the_table_that_people_query(store: PostgresStore, database_url: str) -> None:
    await store.append(KEY, store.session("s")._batch([user("Hi")])._replace(rows=[Row('{"a":1}', "user")]))
    connection = await asyncpg.connect(database_url)
    try:
        row = await connection.fetchrow("SELECT session_id, role, content, user_id FROM agent_sessions")
        assert tuple(row or ()) == ("s", "user", '{"a":1}', "")
    finally:
        await connection.close()
