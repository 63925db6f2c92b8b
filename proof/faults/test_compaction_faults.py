"""Compaction while connections are killed, others write and somebody reads: nothing is lost, nothing is told twice.

Summaries say here what they stand for. So a history can be unfolded, and then says all that was ever written to it, in
order, however often it was compacted.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents import Agent, Runner, set_tracing_disabled
from agents.items import TResponseInputItem
from agents.memory import OpenAIResponsesCompactionArgs, OpenAIResponsesCompactionSession
from openai import AsyncOpenAI

from my_agent.dev.offline import OfflineModel
from my_agent.sessions import SessionStore, StoredSession
from proof.contract.test_sdk_compaction import snapshot
from proof.support.helpers import anything, text, user

Kill = Callable[[], Awaitable[int]]
Writing = Coroutine[Any, Any, None]

ROUNDS, KILLS = 30, 12
"""At least. A kill takes much longer than a round, or not, as the server is."""
PARTS = 3
"""Items of a batch."""
FORCED: OpenAIResponsesCompactionArgs = {"force": True}


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)


def summary(items: Iterable[TResponseInputItem]) -> TResponseInputItem:
    return anything(id=f"cmp_{os.urandom(8).hex()}", type="compaction", encrypted_content=json.dumps(unfolded(items)))


def unfolded(items: Iterable[TResponseInputItem]) -> list[str]:
    """What the items say, and what those said that they stand for."""
    said: list[str] = []
    for item in cast(Iterable[dict[str, Any]], items):
        said += json.loads(item["encrypted_content"]) if item.get("type") == "compaction" else [text(cast(Any, item))]
    return said


def batch(name: object) -> list[TResponseInputItem]:
    return [user(f"{name}.{part}") for part in range(PARTS)]


async def nothing() -> None:
    pass


def compacting(
    session: StoredSession, meanwhile: Callable[[], Awaitable[None]] = nothing
) -> OpenAIResponsesCompactionSession:
    """The session, compacted at every opportunity.

    Args:
        session: Where the history is.
        meanwhile: What happens while the API makes a summary.
    """

    async def compact(input: list[TResponseInputItem], **_: Any) -> SimpleNamespace:
        await meanwhile()
        return SimpleNamespace(output=[summary(input)], usage=None)

    client = cast(AsyncOpenAI, SimpleNamespace(responses=SimpleNamespace(compact=compact)))
    return OpenAIResponsesCompactionSession(
        session.session_id, session, client=client, compaction_mode="input", should_trigger_compaction=lambda _: True
    )


@dataclass
class Fire:
    """What goes on around a compaction."""

    said: list[str] = field(default_factory=list)
    """What the history says, as far as it was read."""
    names: list[str] = field(default_factory=list)
    """The batches of the others."""
    kills: int = 0

    def rounds(self) -> Iterator[int]:
        number = 0
        while number < ROUNDS or self.kills < KILLS:
            yield number
            number += 1

    def others(self, session: StoredSession | OpenAIResponsesCompactionSession, number: int) -> list[Writing]:
        """What others write in a round. In every third one that is nothing, so that nothing stands in the way."""
        names = [f"{number}.{writer}" for writer in range(number % 3)]
        self.names += names
        return [session.add_items(batch(name)) for name in names]


@asynccontextmanager
async def under_fire(store: SessionStore, kill_connections: Kill) -> AsyncIterator[Fire]:
    """All connections are cut, again and again; a reader sees the history grow, and never anything else."""
    fire, over = Fire(), asyncio.Event()
    session = store.session("s")

    async def kill() -> None:
        while not over.is_set():
            await kill_connections()
            fire.kills += 1

    async def read() -> None:
        last = False
        while not last:
            last = over.is_set()
            now = unfolded(await session.get_items())
            assert now[: len(fire.said)] == fire.said, "a reader found less than before"
            fire.said = now

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill())
        tasks.create_task(read())
        yield fire
        over.set()


def without(said: list[str], names: Iterable[object]) -> list[str]:
    """What is left when each of these batches is taken out, once and in one piece."""
    left = list(said)
    for name in names:
        whole = unfolded(batch(name))
        start = left.index(whole[0])
        assert left[start : start + PARTS] == whole
        del left[start : start + PARTS]
    return left


async def test_snapshots_are_replaced_under_fire(store: SessionStore, kill_connections: Kill) -> None:
    """By two at once. What is older than the snapshot stays, and sometimes the oldest item in it."""
    session = store.session("s")
    await session.add_items(batch("first"))

    async def compact(start: int) -> bool:
        found = await snapshot(session, 7)
        return await found.replace_suffix(start, [summary(found.items[start:])])

    replaced = 0
    async with under_fire(store, kill_connections) as fire:
        for number in fire.rounds():
            writing = asyncio.gather(*fire.others(session, number))
            *outcomes, _ = await asyncio.gather(compact(0), compact(number % 2), writing)
            replaced += sum(outcomes)
    assert without(fire.said, ["first", *fire.names]) == []
    assert replaced >= ROUNDS // 3


@pytest.mark.parametrize("limit", [None, 6])
async def test_the_runner_compacts_under_fire(store: SessionStore, kill_connections: Kill, limit: int | None) -> None:
    """Others write during a turn and, in every fourth round, while its summary is made."""
    session, others = store.session("s", session_settings={"limit": limit}), store.session("s")
    agent, late, number = Agent[Any](name="Assistant", model=OfflineModel()), list[str](), 0

    async def add_late() -> None:
        if number % 4 == 3:
            late.append(f"late {number}")
            await others.add_items(batch(late[-1]))

    async def turn(session: OpenAIResponsesCompactionSession) -> None:
        async for _ in Runner.run_streamed(agent, f"question {number}", session=session).stream_events():
            pass

    compacted = compacting(session, add_late)
    async with under_fire(store, kill_connections) as fire:
        for number in fire.rounds():
            await asyncio.gather(turn(compacted), *fire.others(others, number))
    turns = without(fire.said, [*fire.names, *late])
    assert turns[::2] == [f"question {asked}" for asked in range(number + 1)]
    assert all(answer.startswith("I am the offline model") for answer in turns[1::2])
    assert late
    # With a limit only the newest items are summarised; what others put behind them in time stays as it is.
    assert len(await others.get_items()) < len(fire.said) / (1 if limit else 2)


async def test_compaction_by_hand_under_fire(store: SessionStore, kill_connections: Kill) -> None:
    """Here the SDK itself keeps apart who writes: all must use the same object."""
    session = compacting(store.session("s"))
    await session.add_items(batch("first"))
    async with under_fire(store, kill_connections) as fire:
        for number in fire.rounds():
            await asyncio.gather(session.run_compaction(FORCED), *fire.others(session, number))
    assert without(fire.said, ["first", *fire.names]) == []
    assert len(await session.get_items()) <= 1 + 2 * PARTS


async def test_compaction_by_hand_takes_along_what_others_add_meanwhile(store: SessionStore) -> None:
    """The SDK's hook does not say what it read, so this cannot be noticed: do it while nobody else writes."""
    session = store.session("s")
    await session.add_items([user("a"), user("b")])
    await compacting(session, lambda: store.session("s").add_items(batch("other"))).run_compaction(FORCED)
    assert unfolded(await session.get_items()) == ["a", "b"]
