"""Compaction whose writer fails, or dies: the history is the old one or the new one, never anything in between."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest

from my_agent.sessions import (
    BackendSettings,
    BackendStore,
    SessionStore,
    StoredSession,
    StoreUnavailable,
)
from my_agent.sessions.layers import wrap_store
from proof.contract.test_sdk_compaction import snapshot
from proof.faults.test_compaction_faults import FORCED, batch, compacting, summary, unfolded
from proof.faults.test_fork import in_child
from proof.support.faulty_store import FaultyStore, When, die
from proof.support.helpers import user

Compact = Callable[[SessionStore], Awaitable[None]]
OLD = [user("a"), user("b")]

forks = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
forked_with_threads = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


async def by_hand(store: SessionStore) -> None:
    await compacting(store.session("s")).run_compaction(FORCED)


async def from_snapshot(store: SessionStore) -> None:
    found = await snapshot(store.session("s"), 10)
    await found.replace_suffix(0, [summary(found.items)])


hooks = pytest.mark.parametrize("compact", [by_hand, from_snapshot])
before_or_after = pytest.mark.parametrize("when", ["before", "after"])


async def assert_old_or_new(session: StoredSession, when: When) -> None:
    items = await session.get_items()
    assert unfolded(items) == ["a", "b"]
    assert len(items) == (1 if when == "after" else 2)


@hooks
@before_or_after
async def test_a_compaction_that_fails_leaves_the_old_history_or_the_new(
    store: SessionStore, compact: Compact, when: When
) -> None:
    await store.session("s").add_items(OLD)
    with pytest.raises(StoreUnavailable):
        await compact(FaultyStore(store, 1, when))
    await assert_old_or_new(store.session("s"), when)
    await compact(store)
    await assert_old_or_new(store.session("s"), "after")


@forks
@forked_with_threads
@hooks
@before_or_after
def test_a_process_that_dies_compacting_leaves_the_old_history_or_the_new(
    settings: BackendSettings, compact: Compact, when: When
) -> None:
    async def killed() -> None:
        async with wrap_store(BackendStore(settings)) as store:
            await store.session("s").add_items(OLD)
            await compact(FaultyStore(store, 1, when, die))

    async def check() -> None:
        async with wrap_store(BackendStore(settings)) as store:
            await assert_old_or_new(store.session("s"), when)

    assert in_child(lambda: asyncio.run(killed())) == ""
    asyncio.run(check())


def forked(work: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Begin this in a child; its process id."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(work())
        finally:
            os._exit(1)
    return child


@forks
@forked_with_threads
def test_processes_are_killed_while_they_compact(settings: BackendSettings) -> None:
    async def compact() -> None:
        async with wrap_store(BackendStore(settings)) as store:
            while True:
                await from_snapshot(store)

    async def kill(children: list[int]) -> None:
        said, summaries = list[str](), set[str]()
        async with wrap_store(BackendStore(settings)) as store, asyncio.timeout(60):
            session = store.session("s")
            for number, child in enumerate(children, 1):
                said += unfolded(batch(number))
                await session.add_items(batch(number))
                while len(summaries) < 5 * number:
                    items = await session.get_items()
                    assert unfolded(items) == said
                    summaries |= {str(item["id"]) for item in cast(Any, items) if item.get("type") == "compaction"}
                os.kill(child, signal.SIGKILL)
            assert unfolded(await session.get_items()) == said

    children = [forked(compact) for _ in range(4)]
    try:
        asyncio.run(kill(children))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
