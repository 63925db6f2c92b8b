"""A cancelled call ends as cancelled, soon, whatever the server and the network do; and nothing happens later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from time import monotonic
from typing import Any

import pytest

from my_agent.sessions import SessionRef, SessionStore, StoredSession, StoreUnavailable, open_store
from my_agent.sessions.records import Batch, Row
from my_agent.settings import Settings
from proof.support.helpers import texts, user
from proof.support.network import ADDRESSES, Network, network_before, unused_port

KEY = SessionRef("", "s")
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
every_call = pytest.mark.parametrize("call", (CALLS | STORE_CALLS).values(), ids=(CALLS | STORE_CALLS).keys())


def settings_for(environment: dict[str, str], **more: str) -> Settings:
    return Settings().with_environment({**environment, "SESSION_SETTLE_SECONDS": str(SETTLE), **more})


@pytest.fixture
async def network(
    store: SessionStore, server_environment: dict[str, str]
) -> AsyncIterator[tuple[Network, SessionStore]]:
    """A network, and an open store on empty tables behind it; `store` reaches the same tables directly."""
    async with network_before(server_environment) as (network, environment):
        behind = open_store(settings_for(environment))
        await behind.open()
        yield network, behind
        network.silent, network.delay = False, 0.0
        await behind.close()


@every_call
async def test_a_timeout_of_the_caller_is_a_timeout_when_nothing_listens(
    server_environment: dict[str, str], call: Call
) -> None:
    name = next(name for name in ADDRESSES if name in server_environment)
    scheme = server_environment[name].partition("://")[0].partition("+")[0]
    store = open_store(settings_for({**server_environment, name: f"{scheme}://127.0.0.1:{unused_port()}"}))
    begin = monotonic()
    with pytest.raises((TimeoutError, StoreUnavailable)) as caught:
        async with asyncio.timeout(0.3):
            await call(store.session("s"))
    assert monotonic() - begin < 0.3 + SOON
    if call in CALLS.values():  # a store's own methods do not repeat a call, so they fail at once
        assert caught.type is TimeoutError
    await store.close()


@every_call
async def test_a_timeout_of_the_caller_is_a_timeout_on_a_silent_network(
    network: tuple[Network, SessionStore], call: Call
) -> None:
    wire, store = network
    wire.silent = True
    for _ in range(2):  # the second one has to connect first
        begin = monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await call(store.session("s"))
        assert monotonic() - begin < 0.3 + SOON


@every_call
async def test_a_cancelled_call_on_a_silent_network_gives_its_place_back(
    server_environment: dict[str, str], call: Call
) -> None:
    few = {f"{name}_POOL_MAX": "2" for name in ("DATABASE", "REDIS", "SUPABASE")}
    async with (
        network_before(server_environment) as (wire, environment),
        open_store(settings_for(environment, **few)) as store,
    ):
        await store.session("s").add_items([user("first")])
        wire.silent = True
        tasks = [asyncio.create_task(call(store.session("s"))) for _ in range(4)]
        await asyncio.sleep(0.2)
        begin = monotonic()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 4
        assert monotonic() - begin < SOON
        wire.silent = False
        async with asyncio.timeout(10):
            histories = await asyncio.gather(*(store.session("t").get_items() for _ in range(4)))
        assert histories == [[]] * 4


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.25, 0.4, 0.65, 0.9])
async def test_nothing_happens_after_a_cancellation_on_a_slow_network(
    network: tuple[Network, SessionStore], store: SessionStore, seconds: float
) -> None:
    wire, slow = network
    await store.append(KEY, Batch.of([Row('{"role":"user","content":"a"}'), Row('{"role":"user","content":"b"}')]))
    await slow.session("s").get_items()
    wire.delay = 0.1
    calls = (slow.session("s").pop_item(), slow.session("s").add_items([user("c")]))
    for call in calls:
        task = asyncio.create_task(call)
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        known = texts(await store.session("s").get_items())
        await asyncio.sleep(0.5)
        assert texts(await store.session("s").get_items()) == known


async def test_a_call_as_a_whole_has_one_bound_on_a_silent_network(server_environment: dict[str, str]) -> None:
    limits = {f"{name}_TIMEOUT_SECONDS": "1" for name in ("DATABASE", "REDIS", "SUPABASE")}
    async with (
        network_before(server_environment) as (wire, environment),
        open_store(settings_for(environment, SESSION_RETRY_SECONDS="1", **limits)) as store,
    ):
        await store.session("s").add_items([user("first")])
        wire.silent = True
        for call in CALLS.values():
            begin = monotonic()
            with pytest.raises(StoreUnavailable):
                await call(store.session("s"))
            assert monotonic() - begin < 1 + 1 + SOON  # one attempt, its repetitions, settling
        wire.silent = False
