"""Order and cancellation: what one writer, reader or impatient caller may count on while others are at work."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from my_agent.sessions import BackendSettings, BackendStore, SessionStore
from proof.support import writer
from proof.support.command import environment
from proof.support.operations import KEY, OPERATIONS, Operation, State, items, settings_with, state_of

WRITERS = 8
"""Processes. They take 2 s to start on two processors, or 5 s where the driver is large."""

Environment = Mapping[str, str]
Count = Callable[[], Awaitable[int]]
Times = list[tuple[int, int]]


# ── Order ───────────────────────────────────────────────────────────────────


async def write_at_once(names: list[str], server: Environment) -> dict[str, Times]:
    """When each batch of each writer was begun and acknowledged. Each is a process of its own."""
    command = (sys.executable, Path(writer.__file__))
    processes = [
        await asyncio.create_subprocess_exec(*command, name, stdin=PIPE, stdout=PIPE, env=environment(**server))
        for name in names
    ]
    try:
        async with asyncio.timeout(120):
            for process in processes:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
            outcomes = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return {name: json.loads(said) for name, (said, _) in zip(names, outcomes, strict=True)}


async def test_processes_never_interleave_and_readers_see_only_growth(
    store: SessionStore, server_environment: Environment
) -> None:
    names = [f"writer{number}" for number in range(WRITERS)]
    writing = asyncio.create_task(write_at_once(names, server_environment))
    read: list[str] = []
    reads = 0
    while not writing.done():
        rows = await store.tail(writer.KEY, None)
        assert rows[: len(read)] == read, "what was read once stays"
        assert len(rows) % writer.ITEMS == 0, "no part of a batch is seen"
        reads += len(rows) > len(read)
        read = rows
    times = await writing

    rows = await store.tail(writer.KEY, None)
    assert rows[: len(read)] == read
    assert reads > 1
    batches = [rows[start : start + writer.ITEMS] for start in range(0, len(rows), writer.ITEMS)]
    written = [writer.batch_of(name, number) for name in names for number in range(writer.BATCHES)]
    assert sorted(batches) == sorted(written)
    assert_in_order_of_time(batches, times)


def assert_in_order_of_time(batches: list[list[str]], times: Mapping[str, Times]) -> None:
    """A batch that was acknowledged before another one was begun stands before it."""
    last_begun = 0
    for batch in batches:
        name, number, _ = batch[0].split(".")
        begun, acknowledged = times[name][int(number)]
        assert acknowledged >= last_begun, f"{batch} stands behind a batch that was begun later"
        last_begun = max(last_begun, begun)


# ── Cancellation ────────────────────────────────────────────────────────────

CONNECTIONS = 3
TURNS = 5
SHORTEST = 0.001
"""In seconds."""
MANY = 100
SOON = 3
"""What a busy machine may take to end a cancelled call, in seconds; less than SESSION_SETTLE_SECONDS."""


@pytest.fixture
async def small_store(settings: BackendSettings) -> AsyncIterator[BackendStore]:
    """A store that soon has no connection left if some get lost."""
    async with BackendStore(settings_with(settings, connections=CONNECTIONS, seconds=5)) as store:
        yield store


async def cut_off(operation: Coroutine[Any, Any, object], step: int) -> bool:
    """Begin an operation and cancel it: after `step` turns of the event loop, later after a tenth longer each.

    Returns:
        False if it was finished by then.
    """
    task = asyncio.create_task(operation)
    for _ in range(min(step, TURNS)):
        await asyncio.sleep(0)
    if step > TURNS:
        await asyncio.sleep(SHORTEST * 1.1 ** (step - TURNS))
    stopped = task.cancel()
    begin = monotonic()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    assert monotonic() - begin < SOON  # also if the reply comes in that moment
    assert isinstance(outcome, asyncio.CancelledError) == stopped, outcome
    return stopped


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.name for operation in OPERATIONS])
async def test_a_cancelled_operation_is_done_or_not_and_nothing_comes_later(
    small_store: BackendStore, operation: Operation, count_connections: Count
) -> None:
    session = small_store.session(KEY.session_id)
    stored = State([])
    for step in count():
        if len(stored.said) < MANY:
            more = [f"{step}.{number} {'x' * 2000}" for number in range(MANY)]
            await session.add_items(items(more))
            stored = stored._replace(said=stored.said + more)
        stopped = await cut_off(operation.begin(small_store, stored), step)
        # The next one works at once, and what it adds stays.
        await session.add_items(items([f"after {step}"]))
        possible = [
            state._replace(said=[*state.said, f"after {step}"]) for state in (stored, operation.outcome(stored))
        ]
        stored = await state_of(small_store)
        assert stored in possible
        if not stopped:
            break
    assert stored == possible[1]
    assert await state_of(small_store) == stored
    async with asyncio.timeout(5):
        while await count_connections() > CONNECTIONS:  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.01)
