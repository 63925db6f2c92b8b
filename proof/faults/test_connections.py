"""Connections that are cut, run out, or belong to another event loop, thread or process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner

from my_agent.dev.offline import OfflineModel
from my_agent.sessions import BackendSettings, SessionStore, StoreUnavailable, open_store
from my_agent.sessions.retry import with_retries
from proof.support.helpers import texts, user
from proof.support.operations import (
    KEY,
    OPERATIONS,
    Operation,
    State,
    items,
    session_without_store,
    settings_with,
    state_of,
)

CONNECTIONS = 3
HAS_POOL = any(name.endswith("_pool_max") for name in BackendSettings.model_fields)
"""Whether calls wait for connections; those of Redis share two."""

Count = Callable[[], Awaitable[int]]


# ── Cut ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.name for operation in OPERATIONS])
async def test_connections_cut_between_two_turns_disturb_no_operation(
    store: SessionStore, operation: Operation, kill_connections: Callable[[], Awaitable[int]]
) -> None:
    before = State(["first", "second", "third"])
    await store.session("s").add_items(items(before.said))
    # Several connections: the next call must not meet one dead one after the other.
    await asyncio.gather(*(store.find_session(KEY) for _ in range(3)))
    assert await kill_connections() >= 1
    pops = operation.name == "pop_item"
    possible = [operation.outcome(before)]
    try:
        await with_retries(lambda: operation.begin(store, before), 10, repeatable=not pops)
    except StoreUnavailable as lost:
        if not (pops and lost.maybe_applied):
            raise
        possible.append(before)  # nobody knows whether it was done, so it is not repeated
    assert await kill_connections() >= 1
    assert await with_retries(lambda: state_of(store), 10) in possible


# ── Few ─────────────────────────────────────────────────────────────────────


async def test_five_hundred_sessions_never_use_more_connections_than_allowed(
    settings: BackendSettings, count_connections: Count
) -> None:
    async def talk(store: SessionStore, name: str) -> list[str]:
        session = store.session(name)
        await session.add_items([user(name)])
        return texts(await session.get_items())

    names = [f"s{number}" for number in range(500)]
    counts = []
    async with open_store(settings_with(settings, connections=CONNECTIONS, seconds=60)) as store:
        talking = asyncio.gather(*(talk(store, name) for name in names))
        while not talking.done():
            counts.append(await count_connections())
            await asyncio.sleep(0)
        assert await talking == [[name] for name in names]
        assert CONNECTIONS >= max(counts) >= 1
    await none_is_left(count_connections)


async def test_calls_that_wait_too_long_say_so_and_leave_nothing_behind(
    settings: BackendSettings, count_connections: Count
) -> None:
    said = ["x" * 1000] * 500
    async with open_store(settings_with(settings, connections=2, seconds=60)) as store:
        await store.session("s").add_items(items(said))
    async with open_store(settings_with(settings, connections=2, seconds=0.2)) as store:
        reads = (store.session("s").get_items() for _ in range(400))
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, StoreUnavailable)]
        assert errors
        assert len(errors) == sum(not isinstance(outcome, list) for outcome in outcomes)
        assert all("within 0.2 s" in str(error) for error in errors)
        if HAS_POOL:
            assert any("_POOL_MAX" in str(error) and not error.maybe_applied for error in errors)
        # As many at once as there are connections: none of them got lost. The server may be busy for longer than
        # 0.2 s with what was given up.
        for _ in range(3):
            reading = (with_retries(lambda: store.session("s").get_items(1), 10) for _ in range(2))
            assert [texts(history) for history in await asyncio.gather(*reading)] == [said[:1]] * 2
        assert await count_connections() <= 2
    await none_is_left(count_connections)


async def test_a_store_whose_first_call_is_cancelled_opens_at_the_next_and_leaves_nothing_behind(
    settings: BackendSettings, count_connections: Count
) -> None:
    stopped = True
    for milliseconds in range(1000):
        store = open_store(settings_with(settings, connections=CONNECTIONS, seconds=10))
        calls = [asyncio.create_task(store.session("s").get_items()) for _ in range(2 * CONNECTIONS)]
        await asyncio.sleep(milliseconds / 1000)
        stopped = calls[0].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError) == stopped
        assert outcomes[1:] == [[]] * (2 * CONNECTIONS - 1)
        await store.close()
        if not stopped:
            break
    assert not stopped
    await none_is_left(count_connections)


async def none_is_left(count_connections: Count) -> None:
    async with asyncio.timeout(10):
        while await count_connections():  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)


# ── Event loops and threads ─────────────────────────────────────────────────


async def test_two_event_loops_in_two_threads_each_have_their_store(settings: BackendSettings) -> None:
    start = threading.Barrier(2)

    async def write(name: str) -> None:
        async with open_store(settings) as store:
            start.wait(10)
            for number in range(30):
                batch = [f"{name}.{number}.{part}" for part in range(3)]
                await store.session("s").add_items(items(batch))
                history = texts(await store.session("s").get_items())
                at = history.index(batch[0])
                assert history[at : at + 3] == batch

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, write(name)) for name in ("one", "two")))
    async with open_store(settings) as store:
        assert len(await store.session("s").get_items()) == 2 * 30 * 3


@pytest.mark.filterwarnings("ignore:.*event_loop_policy:DeprecationWarning")  # of the SDK, with Python 3.14
@pytest.mark.filterwarnings("ignore:asynchronous generator:ResourceWarning")  # it ends those of a loop that goes on
def test_runs_without_an_event_loop_go_on_with_the_same_session(settings: BackendSettings) -> None:
    session = session_without_store(settings)
    agent, quiet = Agent[Any](name="Assistant", model=OfflineModel()), RunConfig(tracing_disabled=True)
    with default_loop() as loop:
        Runner.run_sync(agent, "My name is Ada", session=session, run_config=quiet)
        result = Runner.run_sync(agent, "What is my name?", session=session, run_config=quiet)
        loop.run_until_complete(session.close())
    assert result.final_output == "Your name is Ada."
    with default_loop() as loop:
        Runner.run_sync(agent, "Thank you", session=session, run_config=quiet)
        assert len(loop.run_until_complete(session.get_items())) == 6
        loop.run_until_complete(session.close())


@contextmanager
def default_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop that `run_sync` takes, closed at the end."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
