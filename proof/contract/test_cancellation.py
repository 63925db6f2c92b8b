"""A cancelled call ends as cancelled, soon, whatever the server and the network do; and nothing happens later.

What the logs say of an outage is looked at here as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from my_agent.sessions import SessionStore, StoredSession, StoreUnavailable, open_store
from my_agent.settings import Settings
from proof.support.helpers import texts, user
from proof.support.network import ADDRESSES, network_before, unused_port

SETTLE = 1.0
"""The bound in these tests, in seconds: SESSION_SETTLE_SECONDS."""
SOON = SETTLE + 1.5
"""The bound, and what a busy machine takes on top."""

Call = Callable[[StoredSession], Coroutine[Any, Any, object]]

CALLS: dict[str, Call] = {
    "get_items": lambda session: session.get_items(),
    "add_items": lambda session: session.add_items([user("later")]),
    "pop_item": lambda session: session.pop_item(),
    "clear_session": lambda session: session.clear_session(),
    "replace_tail": lambda session: session.replace_tail(["?"], [user("later")]),
}
STORE_CALLS: dict[str, Call] = {
    "update": lambda session: session.store.update_session(session.ref, title="later"),
    "delete": lambda session: session.store.delete_session(session.ref),
    "delete_user": lambda session: session.store.delete_user(""),
    "list": lambda session: session.store.list_sessions(),
}
EVERY_CALL = CALLS | STORE_CALLS


def settings_for(environment: dict[str, str], **more: str) -> Settings:
    return Settings().with_environment({**environment, "SESSION_SETTLE_SECONDS": str(SETTLE), **more})


async def at_once(checks: dict[str, Coroutine[Any, Any, None]]) -> None:
    """Make all checks at the same time: they wait, most of it."""
    outcomes = await asyncio.gather(*checks.values(), return_exceptions=True)
    for name, outcome in zip(checks, outcomes, strict=True):
        if outcome is not None:
            outcome.add_note(f"This is about {name}.")
            raise outcome


@asynccontextmanager
async def stores(environment: dict[str, str], names: Iterable[str], **more: str) -> AsyncIterator[list[SessionStore]]:
    """An open store for each of these."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_store(settings_for(environment, **more))) for _ in names]


async def test_a_timeout_of_the_caller_is_a_timeout_when_nothing_listens(server_environment: dict[str, str]) -> None:
    address = next(name for name in ADDRESSES if name in server_environment)
    scheme = server_environment[address].partition("://")[0].partition("+")[0]
    nowhere = {**server_environment, address: f"{scheme}://127.0.0.1:{unused_port()}"}

    async def check(name: str) -> None:
        store = open_store(settings_for(nowhere))
        begin = monotonic()
        with pytest.raises((TimeoutError, StoreUnavailable)) as caught:
            async with asyncio.timeout(0.3):
                await EVERY_CALL[name](store.session("s"))
        assert monotonic() - begin < 0.3 + SOON
        if name in CALLS:  # a store's own methods do not repeat a call, so they fail at once
            assert caught.type is TimeoutError
        await store.close()

    await at_once({name: check(name) for name in EVERY_CALL})


@pytest.mark.usefixtures("store")
async def test_a_timeout_of_the_caller_is_a_timeout_on_a_silent_network(server_environment: dict[str, str]) -> None:
    async def check(name: str, store: SessionStore) -> None:
        for _ in range(2):  # the second one has to connect first
            begin = monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await EVERY_CALL[name](store.session("s"))
            assert monotonic() - begin < 0.3 + SOON

    async with network_before(server_environment) as (wire, environment), stores(environment, EVERY_CALL) as behind:
        wire.silent = True
        await at_once({name: check(name, store) for name, store in zip(EVERY_CALL, behind, strict=True)})
        wire.silent = False


@pytest.mark.usefixtures("store")
async def test_a_cancelled_call_on_a_silent_network_gives_its_place_back(server_environment: dict[str, str]) -> None:
    few = {f"{name}_POOL_MAX": "2" for name in ("DATABASE", "SUPABASE")}
    few["SUPABASE_TIMEOUT_SECONDS"] = "2"  # a request that nobody waits for any more keeps its place for so long

    async def check(name: str, store: SessionStore) -> None:
        tasks = [asyncio.create_task(EVERY_CALL[name](store.session("s"))) for _ in range(4)]
        await asyncio.sleep(0.2)
        begin = monotonic()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 4
        assert monotonic() - begin < SOON

    async def check_again(store: SessionStore) -> None:
        async with asyncio.timeout(10):
            histories = await asyncio.gather(*(store.session("t").get_items() for _ in range(4)))
        assert histories == [[]] * 4

    async with (
        network_before(server_environment) as (wire, environment),
        stores(environment, EVERY_CALL, **few) as behind,
    ):
        for store in behind:
            await store.session("s").add_items([user("first")])
        wire.silent = True
        await at_once({name: check(name, store) for name, store in zip(EVERY_CALL, behind, strict=True)})
        wire.silent = False
        await at_once({name: check_again(store) for name, store in zip(EVERY_CALL, behind, strict=True)})


async def test_nothing_happens_after_a_cancellation_on_a_slow_network(
    store: SessionStore, server_environment: dict[str, str]
) -> None:
    async def check(seconds: float, slow: SessionStore) -> None:
        name = f"s{seconds}"
        for call in (slow.session(name).pop_item(), slow.session(name).add_items([user("c")])):
            task = asyncio.create_task(call)
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            known = texts(await store.session(name).get_items())
            await asyncio.sleep(0.5)
            assert texts(await store.session(name).get_items()) == known

    moments = (0.05, 0.15, 0.25, 0.4, 0.65, 0.9)
    async with (
        network_before(server_environment) as (wire, environment),
        stores(environment, map(str, moments)) as behind,
    ):
        for seconds, slow in zip(moments, behind, strict=True):
            await store.session(f"s{seconds}").add_items([user("a"), user("b")])
            await slow.session("s").get_items()
        wire.delay = 0.1
        checks = zip(moments, behind, strict=True)
        await at_once({f"{seconds} s": check(seconds, slow) for seconds, slow in checks})
        wire.delay = 0.0


@pytest.mark.usefixtures("store")
async def test_a_call_as_a_whole_has_one_bound_on_a_silent_network(server_environment: dict[str, str]) -> None:
    limits = {f"{name}_TIMEOUT_SECONDS": "1" for name in ("DATABASE", "REDIS", "SUPABASE")}
    limits["SESSION_RETRY_SECONDS"] = "1"

    async def check(name: str, store: SessionStore) -> None:
        begin = monotonic()
        with pytest.raises(StoreUnavailable):
            await CALLS[name](store.session("s"))
        assert monotonic() - begin < 1 + 1 + SOON  # one attempt, its repetitions, settling

    async with (
        network_before(server_environment) as (wire, environment),
        stores(environment, CALLS, **limits) as behind,
    ):
        wire.silent = True
        await at_once({name: check(name, store) for name, store in zip(CALLS, behind, strict=True)})
        wire.silent = False


@pytest.mark.parametrize("call", ["get_items", "pop_item", "clear_session"])
async def test_an_outage_logs_its_beginning_and_its_end(
    server_environment: dict[str, str], caplog: pytest.LogCaptureFixture, call: str
) -> None:
    name = next(name for name in ADDRESSES if name in server_environment)
    scheme = server_environment[name].partition("://")[0].partition("+")[0]
    nowhere = f"{scheme}://somebody:planted@127.0.0.1:{unused_port()}"
    if name == "SUPABASE_URL":
        nowhere = nowhere.replace("somebody:planted@", "")
    settings = Settings().with_environment({**server_environment, name: nowhere, "SESSION_RETRY_SECONDS": "0.5"})
    store = open_store(settings)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreUnavailable):
        await getattr(store.session("s"), call)()
    await store.close()
    begin, end = caplog.messages
    assert "Trying again for 0.5 s" in begin
    assert "Gave up after" in end
    assert "planted" not in caplog.text
