"""What is Supabase's own: HTTP connections, row caps, signed-in users, the friendly constructor."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from my_agent.sessions import (
    SessionRef,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    StoreUnavailable,
    SupabaseSession,
    SupabaseSettings,
    SupabaseStore,
    WrongOwner,
)
from my_agent.sessions.layers import wrap_store
from my_agent.sessions.records import Row
from proof.supabase.fixtures import Environment, ask, sessions_locked, settings_for, token
from proof.support.helpers import text, texts, user
from proof.support.lost import check_writes_are_stored_once
from proof.support.relay import Relay

KEY = SessionRef("", "s")
ADA, BOB = "6d8f0a3e-0000-4000-8000-00000000000a", "6d8f0a3e-0000-4000-8000-00000000000b"


class Wire(Relay):
    """A relay that can be cut, and knows how many connections it has."""

    @property
    def connections(self) -> int:
        return len(self._open) // 2

    async def cut(self) -> None:
        """Close all connections, as a server does with idle ones; returns when the client may know."""
        for writer in list(self._open):
            writer.transport.close()
        while self._open:  # noqa: ASYNC110 - the relay sends no event
            await asyncio.sleep(0.001)


@pytest.fixture
async def wire(project: Environment) -> AsyncIterator[Wire]:
    parts = urlsplit(project["SUPABASE_URL"])
    async with Wire(parts.hostname or "", parts.port or 80).running() as wire:
        assert isinstance(wire, Wire)
        yield wire


@pytest.fixture
def wired(wire: Wire, project: Environment) -> Environment:
    """The project, reached through the relay."""
    return {**project, "SUPABASE_URL": wire.url(project["SUPABASE_URL"])}


@pytest.fixture
async def relayed(wired: Environment) -> AsyncIterator[SupabaseStore]:
    """An open store whose only connection goes through the relay."""
    async with SupabaseStore(settings_for(wired, supabase_pool_max=1)) as store:
        yield store


# ── Round trips and lost answers ────────────────────────────────────────────


async def test_every_operation_is_one_round_trip(relayed: SupabaseStore, wire: Wire) -> None:
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

    counts = {}
    async for name, operation in operations():
        before = wire.round_trips
        await operation
        counts[name] = wire.round_trips - before
    assert set(counts.values()) == {1}, counts


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_write_whose_message_is_lost_is_stored_once(relayed: SupabaseStore, wire: Wire, lost: str) -> None:
    await check_writes_are_stored_once(relayed, wire, lost)


async def test_a_pop_whose_answer_is_lost_is_not_repeated(relayed: SupabaseStore, wire: Wire) -> None:
    session = relayed.session("s")
    await session.add_items([user("a"), user("b")])
    wire.answers_to_lose = 1
    with pytest.raises(StoreUnavailable) as caught:
        await session.pop_item()
    assert caught.value.maybe_applied
    assert texts(await session.get_items()) == ["a"]


async def test_a_cancelled_write_is_retried_until_its_outcome_is_known(relayed: SupabaseStore, wire: Wire) -> None:
    session = relayed.session("s")
    await session.add_items([user("before")])
    wire.answers_to_lose = 1
    task = asyncio.create_task(session.add_items([user("during")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert texts(await session.get_items()) == ["before", "during"]


async def test_a_connection_closed_while_idle_disturbs_nobody(relayed: SupabaseStore, wire: Wire) -> None:
    session = relayed.session("s")
    await session.add_items([user("a"), user("b")])
    await wire.cut()
    assert text(await session.pop_item()) == "b"
    await wire.cut()
    await session.add_items([user("c")])
    assert texts(await session.get_items()) == ["a", "c"]


Kill = Callable[[], Awaitable[int]]


async def test_a_database_that_restarted_behind_the_api_disturbs_nobody(
    store: SupabaseStore, kill_connections: Kill
) -> None:
    session = store.session("s")
    for number in range(3):
        await session.add_items([user(f"{number}.a"), user(f"{number}.b")])
        assert await kill_connections() >= 1
    assert len(await session.get_items()) == 6


# ── Connections ─────────────────────────────────────────────────────────────


async def test_many_calls_share_the_pool(wired: Environment, wire: Wire) -> None:
    async with SupabaseStore(settings_for(wired, supabase_pool_max=3)) as store:
        await asyncio.gather(*(store.session(f"s{n}").add_items([user("x")]) for n in range(100)))
        assert wire.connections == 3
        assert len((await store.list_sessions(limit=500)).sessions) == 100
    async with asyncio.timeout(5):
        while wire.connections:  # noqa: ASYNC110 - the relay sends no event
            await asyncio.sleep(0.01)


async def test_a_store_that_does_not_open_leaves_nothing_open(wired: Environment, wire: Wire) -> None:
    with pytest.raises(StoreRefused):
        await SupabaseStore(settings_for(wired), token(wired, ADA, exp=1))
    assert wire.round_trips == 1
    async with asyncio.timeout(5):
        while wire.connections:  # noqa: ASYNC110 - the relay sends no event
            await asyncio.sleep(0.01)


async def test_many_users_share_the_pool(project: Environment, wired: Environment, wire: Wire) -> None:
    settings = settings_for(wired, supabase_key=SecretStr(project["SUPABASE_PUBLISHABLE_KEY"]), supabase_pool_max=4)
    users = [str(uuid4()) for _ in range(200)]
    sessions = [SupabaseSession("s", settings=settings, access_token=token(project, name)) for name in users]
    await asyncio.gather(*(session.add_items([user(session.user_id)]) for session in sessions))
    assert wire.connections <= 4
    histories = await asyncio.gather(*(session.get_items() for session in sessions))
    assert [texts(history) for history in histories] == [[name] for name in users]
    for session in sessions[1:]:
        await session.close()
    assert texts(await sessions[0].get_items()) == [users[0]]
    await sessions[0].close()


async def test_nobody_acts_for_another_on_a_shared_connection(project: Environment, wired: Environment) -> None:
    # One connection for all, and the secret key's store in between: the worst case for a header that stays behind.
    settings = settings_for(wired, supabase_key=SecretStr(project["SUPABASE_PUBLISHABLE_KEY"]), supabase_pool_max=1)
    users = [str(uuid4()) for _ in range(12)]
    stores = {name: SupabaseStore(settings, token(project, name)) for name in users}

    async def talk(name: str) -> None:
        for number in range(5):
            session = stores[name].session("s")
            await session.add_items([user(f"{name} {number}")])
            assert texts(await session.get_items()) == [f"{name} {n}" for n in range(number + 1)]
            assert [info.user_id for info in (await stores[name].list_sessions()).sessions] == [name]

    async with SupabaseStore(settings_for(wired, supabase_pool_max=1)) as server:
        calls = (server.session(f"s{n}", user_id="server").add_items([user("x")]) for n in range(20))
        await asyncio.gather(*map(talk, users), *calls)
    for store in stores.values():
        await store.close()
    strays = "SELECT count(*) FROM agent_sessions WHERE user_id <> 'server' AND content NOT LIKE '%' || user_id || '%'"
    assert await ask(project, strays) == 0
    assert await ask(project, "SELECT count(DISTINCT user_id) FROM agent_sessions") == 13


async def test_what_takes_too_long_says_so(settings: SupabaseSettings, project: Environment) -> None:
    hasty = settings.model_copy(
        update={"supabase_pool_max": 1, "supabase_timeout_seconds": 0.3, "session_retry_seconds": 0.0}
    )
    async with SupabaseStore(hasty) as store:
        session = store.session("s")
        await session.add_items([user("x")])
        async with sessions_locked(project):
            outcomes = await asyncio.gather(*(session.get_items() for _ in range(4)), return_exceptions=True)
        assert texts(await session.get_items()) == ["x"]
    errors = [outcome for outcome in outcomes if isinstance(outcome, StoreUnavailable)]
    late = [error for error in errors if "did not answer within 0.3 s (SUPABASE_TIMEOUT_SECONDS)" in str(error)]
    crowded = [error for error in errors if "no free connection within 0.3 s" in str(error)]
    assert len(late) + len(crowded) == 4
    assert all(error.maybe_applied for error in late)
    assert crowded
    assert all("SUPABASE_POOL_MAX is 1" in str(error) and not error.maybe_applied for error in crowded)


async def test_a_cancelled_read_leaves_a_clean_pool(settings: SupabaseSettings) -> None:
    async with SupabaseStore(settings.model_copy(update={"supabase_pool_max": 2})) as store:
        session = store.session("s")
        await session.add_items([user(str(n)) for n in range(200)])
        for step in range(30):
            tasks = [asyncio.create_task(session.get_items()) for _ in range(3)]
            await asyncio.sleep(step * 0.0005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        histories = await asyncio.gather(*(session.get_items() for _ in range(6)))
        assert [len(history) for history in histories] == [200] * 6


def test_a_store_serves_one_event_loop_after_the_other(settings: SupabaseSettings) -> None:
    store = SupabaseStore(settings)

    async def turn(text: str) -> list[str]:
        await store.session("s").add_items([user(text)])
        history = texts(await store.session("s").get_items())
        await store.close()
        return history

    assert asyncio.run(turn("one")) == ["one"]
    assert asyncio.run(turn("two")) == ["one", "two"]


async def test_a_store_in_use_on_another_loop_is_refused(store: SupabaseStore) -> None:
    def elsewhere() -> None:
        with pytest.raises(SessionStoreError, match="another event loop"):
            asyncio.run(store.ping())

    await asyncio.to_thread(elsewhere)


# ── The row cap of the API ──────────────────────────────────────────────────


@pytest.mark.parametrize("cap", [1000, 10])
async def test_no_row_cap_cuts_a_history(store: SupabaseStore, project: Environment, cap: int) -> None:
    session = store.session("s")
    for start in range(0, 5000, 1000):
        await session.add_items([user(str(n)) for n in range(start, start + 1000)])
    for number in range(30):
        await store.session(f"t{number}").add_items([user("x")])
    await configure(project, f"ALTER ROLE authenticator SET pgrst.db_max_rows = {cap}")
    try:
        await until_rows_are_capped(project, cap)
        assert texts(await session.get_items()) == [str(n) for n in range(5000)]
        assert texts(await session.get_items(2500)) == [str(n) for n in range(2500, 5000)]
        assert len((await store.list_sessions(limit=500)).sessions) == 31
    finally:
        await configure(project, "ALTER ROLE authenticator RESET pgrst.db_max_rows")


async def configure(project: Environment, statement: str) -> None:
    """Change how the API behaves. https://docs.postgrest.org/en/latest/references/configuration.html#in-database-configuration"""
    await ask(project, statement)
    await ask(project, "NOTIFY pgrst, 'reload config'")


async def until_rows_are_capped(project: Environment, cap: int) -> None:
    """Wait until the API has read its configuration: proves that there is a cap at all."""
    async with httpx.AsyncClient(headers={"apikey": project["SUPABASE_KEY"]}) as client, asyncio.timeout(10):
        url = f"{project['SUPABASE_URL']}/rest/v1/agent_sessions?select=id"
        while len((await client.get(url)).json()) != cap:  # noqa: ASYNC110 - the API sends no event
            await asyncio.sleep(0.05)


# ── Signed-in users ─────────────────────────────────────────────────────────


async def test_a_signed_in_user_has_sessions_of_their_own(project: Environment) -> None:
    settings = settings_for(project, supabase_key=SecretStr(project["SUPABASE_PUBLISHABLE_KEY"]))
    ada = SupabaseSession("s", settings=settings, access_token=token(project, ADA))
    bob = SupabaseSession("s", settings=settings, access_token=token(project, BOB))
    async with ada, bob:
        assert (ada.user_id, bob.user_id) == (ADA, BOB)
        await ada.add_items([user("of ada")])
        assert await bob.get_items() == []
        assert await bob.pop_item() is None
        assert await bob.store.tail(ada.ref, None) == []
        assert [info.user_id for info in (await ada.store.list_sessions()).sessions] == [ADA]
        assert (await bob.store.list_sessions()).sessions == []
        assert texts(await ada.get_items()) == ["of ada"]
    async with wrap_store(SupabaseStore(settings_for(project))) as server:
        assert texts(await server.session("s", user_id=ADA).get_items()) == ["of ada"]


async def test_a_token_of_another_user_is_refused_before_any_call(project: Environment) -> None:
    nowhere = settings_for(project, supabase_url="http://127.0.0.1:1")
    with pytest.raises(WrongOwner, match="Leave user_id out"):
        SupabaseSession("s", settings=nowhere, access_token=token(project, ADA), user_id=BOB)
    with pytest.raises(WrongOwner, match="Leave user_id out"):
        SupabaseStore(nowhere, token(project, ADA)).session("s", user_id=BOB)
    assert SupabaseStore(nowhere, token(project, ADA)).session("s", user_id=ADA).user_id == ADA


@pytest.mark.parametrize("none", ["", "planted", "a.b.c", "sb_secret_planted", "é.é.é", "a.e30.c\n", "a.W10.c"])
async def test_what_is_no_token_never_becomes_the_rights_of_the_key(settings: SupabaseSettings, none: str) -> None:
    with pytest.raises(SettingMissing, match="not a token of a signed-in user") as caught:
        SupabaseSession("s", settings=settings, access_token=none)
    assert "planted" not in str(caught.value)
    with pytest.raises(SettingMissing, match="not a token of a signed-in user"):
        SupabaseStore(settings, none)


async def test_a_token_without_a_user_is_refused(settings: SupabaseSettings, project: Environment) -> None:
    with pytest.raises(SettingMissing, match="not a token of a signed-in user"):
        SupabaseStore(settings, token(project, None, role="service_role"))


@pytest.mark.parametrize("user_id", ["user_2NNEqL2nrIRdJ194ndJqAHwEfxC", "auth0|5f7c8ec7c33c6c004bbafe82", "é", "a b"])
async def test_users_of_another_sign_in_have_sessions_too(
    settings: SupabaseSettings, project: Environment, user_id: str
) -> None:
    async with SupabaseSession("s", settings=settings, access_token=token(project, user_id)) as session:
        await session.add_items([user("x")])
        assert texts(await session.get_items()) == ["x"]
    assert await ask(project, "SELECT user_id FROM agent_sessions") == user_id


# ── SupabaseSession ─────────────────────────────────────────────────────────


async def test_a_session_needs_only_an_id_an_address_and_a_key(project: Environment) -> None:
    session = SupabaseSession("my-session-id", url=project["SUPABASE_URL"] + "/", key=project["SUPABASE_KEY"])
    await session.add_items([user("Hi")])
    assert texts(await session.get_items()) == ["Hi"]
    await session.close()


async def test_a_session_takes_address_and_key_from_the_environment(
    project: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPABASE_URL", project["SUPABASE_URL"] + "/rest/v1/")
    monkeypatch.setenv("SUPABASE_KEY", project["SUPABASE_KEY"])
    async with SupabaseSession("s", user_id="ada") as session:
        await session.add_items([user("one"), user("two")])
    async with SupabaseSession("s", user_id="ada", session_settings={"limit": 1}) as session:
        assert texts(await session.get_items()) == ["two"]


async def test_sessions_of_one_project_share_connections_until_the_last_is_closed(
    wired: Environment, wire: Wire
) -> None:
    sessions = [SupabaseSession(f"s{n}", settings=settings_for(wired)) for n in range(20)]
    for session in sessions:
        await session.add_items([user("x")])
    assert wire.connections == 1
    for session in sessions[1:]:
        await session.close()
    assert len(await sessions[0].get_items()) == 1
    await sessions[0].close()
    await sessions[0].close()
    async with asyncio.timeout(5):
        while wire.connections:  # noqa: ASYNC110 - the relay sends no event
            await asyncio.sleep(0.01)


def test_a_session_survives_its_event_loop(settings: SupabaseSettings) -> None:
    session = SupabaseSession("s", settings=settings)

    async def turn(text: str) -> list[str]:
        await session.add_items([user(text)])
        history = texts(await session.get_items())
        await session.close()
        return history

    assert asyncio.run(turn("one")) == ["one"]
    assert asyncio.run(turn("two")) == ["one", "two"]
    gc.collect()


async def test_a_store_closed_by_one_stays_open_for_others(settings: SupabaseSettings) -> None:
    first, second = SupabaseStore(settings), SupabaseStore(settings)
    await first.ping()
    await second.ping()
    reading = asyncio.create_task(second.session("s").get_items())
    await first.close()
    assert await reading == []
    await second.close()


async def test_a_call_that_is_cut_off_by_close_is_said(settings: SupabaseSettings, project: Environment) -> None:
    store = SupabaseStore(settings.model_copy(update={"session_retry_seconds": 0.0}))
    await store.ping()
    async with sessions_locked(project):
        reading = asyncio.create_task(store.tail(KEY, None))
        await until_somebody_waits(project)
        await store.close()
        with pytest.raises(StoreUnavailable, match="was lost"):
            await reading
    assert await store.tail(KEY, None) == []
    await store.close()


async def until_somebody_waits(project: Environment) -> None:
    """Wait until a call has reached the lock."""
    async with asyncio.timeout(5):
        while not await ask(project, "SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_rows_reach_the_table_that_people_query(store: SupabaseStore, project: Environment) -> None:
    await store.append(KEY, store.session("s")._batch([user("Hi")])._replace(rows=[Row('{"a":1}', "user")]))
    stored = await ask(project, "SELECT ROW(session_id, role, content, user_id)::text FROM agent_sessions")
    assert stored == """(s,user,"{""a"":1}","")"""
