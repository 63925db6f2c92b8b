"""Sessions without a store of their own: who shares a store, how long it lives, and what errors show of an address."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from pydantic import SecretStr

from my_agent.sessions import (
    BackendSettings,
    BackendStore,
    InvalidSessionId,
    ItemTooLarge,
    SessionStoreError,
    SettingMissing,
    WrongKey,
    shared,
)
from my_agent.sessions.shared import SharedStoreSession
from proof.faults.test_fork import in_child
from proof.support.helpers import texts, user
from proof.support.operations import session_without_store, settings_with

Count = Callable[[], Awaitable[int]]

(KIND,) = SharedStoreSession.__subclasses__()
session_class: Any = KIND
ADDRESS = {
    "PostgresSession": "postgresql://somebody:planted@127.0.0.1:1/postgres",
    "RedisSession": "redis://somebody:planted@127.0.0.1:1/0",
    "SupabaseSession": "http://127.0.0.1:1",
}[KIND.__name__]
KEY_ARGUMENT = ["planted"] if KIND.__name__ == "SupabaseSession" else []


def session_of(settings: BackendSettings, **changed: object) -> SharedStoreSession:
    return session_without_store(settings.model_copy(update=changed))


def stores() -> list[BackendStore]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is BackendStore]


async def eventually(count: Callable[[], Awaitable[int]], expected: int) -> None:
    async with asyncio.timeout(10):
        while await count() != expected:  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)


# ── Who shares ──────────────────────────────────────────────────────────────


async def test_sessions_with_equal_settings_share_a_store(settings: BackendSettings) -> None:
    async with session_of(settings) as one, session_of(settings) as other:
        assert one.store is other.store


@pytest.mark.parametrize("name", sorted(BackendSettings.model_fields))
async def test_sessions_that_differ_in_one_setting_share_nothing(settings: BackendSettings, name: str) -> None:
    value = getattr(settings, name)
    if re.search("_(url|key)$", name):
        return  # another address is another store, as it always was
    other = value + 1 if isinstance(value, (int, float)) else "transaction" if name == "database_pooler" else 1
    if isinstance(value, str) and name != "database_pooler":
        other = f"{value}.other"
    async with session_of(settings) as one, session_of(settings, **{name: other}) as another:
        assert one.store is not another.store
        assert getattr(another.store.settings, name) == other
        assert getattr(one.store.settings, name) == value


async def test_a_session_keeps_its_own_settings_beside_others(settings: BackendSettings) -> None:
    async with session_of(settings, session_max_item_bytes=10) as narrow, session_of(settings) as wide:
        with pytest.raises(ItemTooLarge):
            await narrow.add_items([user("x" * 100)])
        await wide.add_items([user("x" * 100)])
        assert texts(await wide.get_items()) == ["x" * 100]


async def test_settings_with_a_field_that_cannot_be_hashed_can_be_used(settings: BackendSettings) -> None:
    class WithList(BackendSettings):
        names: list[str]

    mine, same, other = (WithList.model_validate({**dict(settings), "names": names}) for names in (["a"], ["a"], []))
    async with session_of(mine) as one, session_of(same) as twin, session_of(other) as another:
        assert one.store is twin.store
        assert one.store is not another.store


# ── How long a store lives ──────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def short_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "REST_SECONDS", 0.1)


async def test_forgotten_sessions_leave_neither_stores_nor_connections(
    settings: BackendSettings, count_connections: Count
) -> None:
    before = len(stores())
    for number in range(200):
        session = session_of(settings, session_max_item_bytes=10_000 + number)
        await session.get_items()
        del session
    await eventually(count_connections, 0)
    async with asyncio.timeout(10):
        while len(stores()) > before:  # noqa: ASYNC110 - a task that closes one may be in its last step
            await asyncio.sleep(0.01)


async def test_sessions_made_one_after_another_use_one_store_until_a_while_after_the_last(
    settings: BackendSettings, count_connections: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a web app does that makes one for each request."""
    monkeypatch.setattr(shared, "REST_SECONDS", 1.0)
    used = set()
    for number in range(20):
        session = session_of(settings)
        await session.add_items([user(f"{number}")])
        used.add(id(session.store))
        other = session_of(settings, session_max_item_bytes=10_000) if number == 10 else None
        if other is not None:  # it is used at the same time, and forgotten first
            await other.get_items()
        del other
        del session
        await asyncio.sleep(0)
    assert len(used) == 1
    assert len(shared._resting) == 1
    assert await count_connections() >= 1
    session = session_of(settings)
    assert len(await session.get_items()) == 20
    await asyncio.sleep(1.2)  # no time passes for a store that is in use
    assert await count_connections() >= 1
    await session.close()  # which waits for nothing
    assert [rest for rest in shared._resting.values() if rest.store is not None] == []
    await eventually(count_connections, 0)


async def test_a_forgotten_session_takes_nothing_from_those_that_share_its_store(
    settings: BackendSettings, count_connections: Count
) -> None:
    async with session_of(settings) as stays:
        await stays.get_items()
        connections = await count_connections()
        forgotten = session_of(settings)
        await forgotten.add_items([user("one")])
        store = stays.store
        assert forgotten.store is store
        del forgotten
        gc.collect()
        await asyncio.sleep(0.05)
        assert await count_connections() >= connections >= 1
        assert texts(await stays.get_items()) == ["one"]
        assert stays.store is store
    await eventually(count_connections, 0)


async def test_the_last_session_that_is_closed_closes_the_store_although_another_was_forgotten(
    settings: BackendSettings, count_connections: Count
) -> None:
    closed, forgotten = session_of(settings), session_of(settings)
    await forgotten.get_items()
    await closed.get_items()
    del forgotten
    gc.collect()
    await closed.close()
    await eventually(count_connections, 0)
    assert texts(await closed.get_items()) == []
    await closed.close()


async def test_a_session_that_another_thread_collects_closes_its_store_on_its_own_loop(
    settings: BackendSettings, count_connections: Count
) -> None:
    held = [session_of(settings)]
    await held[0].get_items()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    await eventually(count_connections, 0)


def test_a_session_forgotten_at_the_end_of_its_loop_warns_of_nothing(settings: BackendSettings) -> None:
    async def one_turn() -> int:
        session = session_of(settings)
        return len(await asyncio.gather(*(session.get_items() for _ in range(4))))  # over several connections

    for _ in range(5):
        assert asyncio.run(one_turn()) == 4
    gc.collect()  # a warning of an unclosed connection fails this test


FORGETFUL = f"""
import asyncio, gc
from agents import Agent, RunConfig, Runner
from my_agent.dev.offline import OfflineModel
from my_agent.sessions import {KIND.__name__} as Session

async def one():
    await Session("s").get_items()
    gc.collect()

quiet = RunConfig(tracing_disabled=True)
for _ in range(2):
    Runner.run_sync(Agent(name="A", model=OfflineModel()), "Hi", session=Session("s"), run_config=quiet)
asyncio.run(one())
loop = asyncio.new_event_loop()
loop.run_until_complete(one())
loop.run_until_complete(asyncio.sleep(0.01))
loop.close()
del loop
gc.collect()
"""


def test_programs_that_close_nothing_end_without_a_word(server_environment: dict[str, str]) -> None:
    environment = {**os.environ, **server_environment, "OPENAI_API_KEY": ""}
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_a_session_that_outlives_its_loop_keeps_neither_loop_nor_store(settings: BackendSettings) -> None:
    session = session_of(settings)

    async def one_turn() -> None:
        await session.get_items()
        await session.close()

    before = len(stores())
    for _ in range(20):
        asyncio.run(one_turn())
    assert len(stores()) == before


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_that_collects_a_session_of_its_parent_disturbs_nothing(settings: BackendSettings) -> None:
    with asyncio.Runner() as parent:
        sessions = [session_of(settings_with(settings, connections=1, seconds=5))]
        parent.run(sessions[0].add_items([user("one")]))

        def forget() -> str:
            sessions.clear()
            gc.collect()
            return "forgotten"

        assert in_child(forget) == "forgotten"
        assert texts(parent.run(sessions[0].get_items())) == ["one"]
        parent.run(sessions[0].close())


# ── Threads ─────────────────────────────────────────────────────────────────

THREADS, REQUESTS = 16, 12


@pytest.mark.parametrize("kind", ["a session for each request", "one session for all"])
def test_threads_that_run_a_loop_for_each_request_do_not_disturb_each_other(
    settings: BackendSettings, kind: str
) -> None:
    start = threading.Barrier(THREADS)
    failures: list[str] = []
    common = session_of(settings)

    async def request(thread: int) -> None:
        own = kind == "a session for each request"
        session = session_of(settings, session_max_item_bytes=10_000 + thread) if own else common
        try:
            await session.get_items(1)
        finally:
            await session.close()

    def serve(thread: int) -> None:
        start.wait(30)
        for _ in range(REQUESTS):
            try:
                asyncio.run(request(thread))
            except Exception as error:
                failures.append(repr(error))

    run_threads(serve)
    assert failures == []


def test_finding_a_store_is_safe_in_many_threads(settings: BackendSettings) -> None:
    """Without I/O, so that the threads meet in the registry all the time."""
    start = threading.Barrier(THREADS)
    failures: list[str] = []

    async def request(number: int) -> None:
        sessions = [session_of(settings, session_max_item_bytes=1000 + number + n) for n in range(3)]
        for session in sessions:
            assert session.store is session.store
        await sessions[0].close()  # the others are forgotten

    def serve(thread: int) -> None:
        start.wait(30)
        for number in range(100):
            try:
                asyncio.run(request(thread + number % 3))
            except Exception as error:
                failures.append(repr(error))

    run_threads(serve)
    assert failures == []


def run_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns in the middle of everything
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)


# ── Passwords ───────────────────────────────────────────────────────────────


def secrets_of(settings: BackendSettings, address: Callable[[str], str]) -> BackendSettings:
    """Settings with a planted password, and an address that `address` makes of the one there is."""
    found: dict[str, object] = {"session_retry_seconds": 0.0}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if not name.endswith(("_url", "_key")) or value is None:
            continue
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if name.endswith("_key"):
            changed = "planted" * 6 + "x" if name == "supabase_server_key" else "sb_secret_planted"
        else:
            changed = address(re.sub(r"//([^@/]*@)?", "//somebody:planted@", text) if "http" not in text else text)
        found[name] = SecretStr(changed) if isinstance(value, SecretStr) else changed
    return settings.model_copy(update=found)


def seen_in(error: BaseException) -> str:
    """All that a tool for errors would report: the text, and every local variable of our code and of what it calls."""
    found: list[str] = []
    every, todo = set[int](), [error]
    while todo:
        each = todo.pop()
        if id(each) in every:
            continue
        every.add(id(each))
        found.append(repr(each))
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != __file__:
                found += [f"{frame.f_code.co_qualname}: {name} = {value!r}" for name, value in frame.f_locals.items()]
        todo += [chained for chained in (each.__cause__, each.__context__) if chained is not None]
    return "\n".join(line for line in found if "planted" in line)


WRONG: dict[str, Callable[[str], str]] = {
    "wrong password": lambda url: url,
    "nothing listens": lambda url: re.sub(r":\d+(,[^/]*)?(?=/|$|\?)", ":1", url),
    "no such host": lambda url: re.sub(r"(127\.0\.0\.1|localhost):\d+(,[^/]*)?(?=/|$|\?)", "planned.invalid:1", url),
}


@pytest.mark.parametrize("name", WRONG)
async def test_no_password_is_in_a_local_variable_of_an_error(settings: BackendSettings, name: str) -> None:
    wrong = secrets_of(settings, WRONG[name])
    session, store = session_without_store(wrong), BackendStore(wrong)
    for call in (session.get_items, lambda: session.add_items([user("x")]), session.pop_item, store.ping):
        with pytest.raises(SessionStoreError) as caught:
            await call()
        assert seen_in(caught.value) == ""
    await session.close()
    await store.close()


async def test_no_password_is_in_a_local_variable_of_a_call_that_is_cancelled(settings: BackendSettings) -> None:
    accepted, left = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        with suppress(OSError):
            await reader.read()
        writer.close()
        left.set()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wrong = secrets_of(settings, lambda url: re.sub(r":\d+(,[^/]*)?(?=/|$|\?)", f":{port}", url))
    async with server, session_without_store(settings_with(wrong, connections=1, seconds=20)) as session:
        call = asyncio.create_task(session.get_items())
        await accepted.wait()
        call.cancel()
        with pytest.raises((asyncio.CancelledError, SessionStoreError)) as caught:
            await call
        assert seen_in(caught.value) == ""
        await session.close()
        async with asyncio.timeout(30):
            await left.wait()


BAD = ["", ":planted", "planted", "gopher://somebody:planted@host", "//somebody:pla/planted@host", "[planted"]


@pytest.mark.parametrize("bad", [*BAD, "{scheme}://somebody:pl/planted@host/x", "{scheme}://a:planted@host:port/x"])
def test_no_password_is_in_a_local_variable_when_an_address_is_refused(settings: BackendSettings, bad: str) -> None:
    def spoil(url: str) -> str:
        return bad.format(scheme=url.partition(":")[0])

    wrong = secrets_of(settings, spoil)
    with pytest.raises(SettingMissing) as caught:
        session_without_store(wrong)
    assert seen_in(caught.value) == ""
    with pytest.raises(SettingMissing) as caught:
        session_class("s", spoil(ADDRESS), *KEY_ARGUMENT)
    assert seen_in(caught.value) == ""


def test_a_session_refuses_an_id_without_showing_the_address(settings: BackendSettings) -> None:
    with pytest.raises(InvalidSessionId) as caught:
        session_class("", ADDRESS, *KEY_ARGUMENT)
    assert seen_in(caught.value) == ""


# ── The environment ─────────────────────────────────────────────────────────


@pytest.fixture
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


def made() -> SharedStoreSession:
    session: SharedStoreSession = session_class("s")
    return session


async def limit_of(session: SharedStoreSession) -> int:
    async with session:
        return session.store.settings.session_max_item_bytes


@pytest.mark.usefixtures("configured")
async def test_a_changed_variable_counts_for_the_next_session(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "SESSION_MAX_ITEM_BYTES"
    for value in ("1001", "1002", "1001"):
        monkeypatch.setenv(name, value)
        assert await limit_of(made()) == int(value)
    monkeypatch.delenv(name)
    monkeypatch.setenv(name.lower(), "1003")
    assert await limit_of(made()) == 1003
    monkeypatch.delenv(name.lower())
    assert await limit_of(made()) == 16 * 2**20


@pytest.mark.usefixtures("configured")
async def test_a_changed_env_file_counts_for_the_next_session(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "other"))
    monkeypatch.chdir(one)
    for value in range(1001, 1021):  # of one length and within one tick of the file system's clock
        (one / ".env").write_text(f"SESSION_MAX_ITEM_BYTES={value}\n")
        assert await limit_of(made()) == value
    monkeypatch.chdir(other)
    assert await limit_of(made()) == 16 * 2**20
    (other / ".env").write_text("SESSION_MAX_ITEM_BYTES=2001\n")
    assert await limit_of(made()) == 2001
    (other / ".env").unlink()
    assert await limit_of(made()) == 16 * 2**20


@pytest.mark.usefixtures("configured")
async def test_settings_are_read_once_while_nothing_changes() -> None:
    async with made() as one, made() as other:
        assert one.store.settings is other.store.settings


@pytest.mark.usefixtures("configured")
def test_a_value_that_cannot_be_used_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_RETRY_SECONDS", "planted")
    with pytest.raises(SettingMissing, match="SESSION_RETRY_SECONDS") as caught:
        made()
    assert "planted" not in str(caught.value)
    assert seen_in(caught.value) == ""


# ── Keys ────────────────────────────────────────────────────────────────────

ENCRYPTION = "my_agent.sessions.encryption.cipher"  # not in every project

encrypted = pytest.mark.skipif(find_spec(ENCRYPTION.rpartition(".")[0]) is None, reason="made without encryption")


@encrypted
async def test_tenants_with_different_keys_do_not_share(settings: BackendSettings) -> None:
    encryption = import_module(ENCRYPTION)
    kind: Any = type("Tenant", (encryption.EncryptionSettings, BackendSettings), {})

    def tenant(key: str) -> SharedStoreSession:
        return session_without_store(kind(**{**dict(settings), "session_encryption_keys": SecretStr(key)}))

    keys = [encryption.new_key(), encryption.new_key()]
    async with tenant(keys[0]) as first, tenant(keys[1]) as second, tenant(keys[0]) as third:
        await first.add_items([user("mine")])
        assert first.store is third.store
        assert first.store is not second.store
        with pytest.raises(WrongKey):
            await second.add_items([user("sealed with the key of another")])


@encrypted
async def test_a_changed_key_of_the_environment_counts_for_the_next_session(
    settings: BackendSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    encryption = import_module(ENCRYPTION)
    async with session_without_store(settings) as first:
        await first.add_items([user("mine")])
        monkeypatch.setenv(encryption.KEYS, encryption.new_key())
        async with session_without_store(settings) as second:
            assert first.store is not second.store
            with pytest.raises(WrongKey):
                await second.add_items([user("sealed with the key of another")])
        await first.add_items([user("still mine")])
