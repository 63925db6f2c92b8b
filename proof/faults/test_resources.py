"""What a long history and many sessions cost, and what pruning may not touch."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from asyncio import StreamReader, StreamWriter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from my_agent.sessions import BackendSettings, SessionStore, StoredSession, open_store
from proof.support.helpers import texts, user
from proof.support.relay import Relay

SHORT, LONG = 100, 30_000
"""Items of a history."""
BATCH = 5_000
NAMES = {"short": SHORT, "long": LONG}

# ── Reading the end of a history ────────────────────────────────────────────


class Cost(NamedTuple):
    """What one call took."""

    round_trips: int
    received: int
    """Bytes from the server."""
    memory: int
    """Bytes of Python objects at the same time, the result included."""


class CountingRelay(Relay):
    """Counts the server's bytes as well."""

    received = 0

    async def _serve(self, from_client: StreamReader, to_client: StreamWriter) -> None:
        write = to_client.write

        def counted(data: bytes) -> None:
            self.received += len(data)
            write(data)

        to_client.write = counted  # type: ignore[method-assign, assignment]
        await super()._serve(from_client, to_client)


async def fill(session: StoredSession, count: int) -> None:
    for first in range(0, count, BATCH):
        await session.add_items([user(f"{number:07}") for number in range(first, min(first + BATCH, count))])


async def cost_of_reading(session: StoredSession, limit: int, relay: CountingRelay) -> Cost:
    await session.get_items(limit)  # connects, prepares the statement
    round_trips, received = relay.round_trips, relay.received
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await session.get_items(limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return Cost(relay.round_trips - round_trips, relay.received - received, peak - before)


async def test_reading_the_newest_costs_the_same_however_long_the_history(
    store: SessionStore, settings: BackendSettings, server_environment: Mapping[str, str]
) -> None:
    await asyncio.gather(*(fill(store.session(name), count) for name, count in NAMES.items()))
    variable, url = next((name, url) for name, url in server_environment.items() if name.endswith("_URL"))
    parts = urlsplit(url)
    relay = CountingRelay(parts.hostname or "", parts.port or 0)
    async with relay.running():
        relayed = BackendSettings.model_validate({**settings.model_dump(), variable.lower(): relay.url(url)})
        async with open_store(relayed) as through_relay:
            cost = {name: await cost_of_reading(through_relay.session(name), 20, relay) for name in NAMES}
            whole = await cost_of_reading(through_relay.session("short"), SHORT, relay)
            for name, count in NAMES.items():
                newest = [f"{number:07}" for number in range(count - 20, count)]
                assert texts(await through_relay.session(name).get_items(20)) == newest

    short, long = cost["short"], cost["long"]
    assert short.round_trips == long.round_trips == 1
    assert abs(long.received - short.received) < 100
    assert long.memory < 1.5 * short.memory
    assert whole.received > 3 * short.received  # so these are the bytes that are meant


# ── Pruning ─────────────────────────────────────────────────────────────────

ROUNDS = 3
AT_ONCE = 20


async def cut_off(store: SessionStore) -> datetime:
    """A time after all that was written and before all that will be, by the clock that counts."""
    page = await store.list_sessions(limit=1)
    return page.sessions[0].updated_at + timedelta(microseconds=1)


async def prune_until(over: asyncio.Future[Any], store: SessionStore, older_than: datetime) -> int:
    """Prune all the time; returns how many sessions were removed."""
    pruned = 0
    while True:
        last = over.done()
        pruned += (count := await store.prune(older_than, limit=AT_ONCE))
        assert count <= AT_ONCE
        if last and not count:
            return pruned


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_two_pruners_never_take_what_was_written_after_the_cut_off(
    store: SessionStore, settings: BackendSettings, number: int
) -> None:
    idle, alive = ([f"{name}{n}" for n in range(3 * AT_ONCE)] for name in ("idle", "alive"))
    await asyncio.gather(*(store.session(name).add_items([user("old"), user("older")]) for name in idle + alive))
    older_than = await cut_off(store)

    async def write(name: str) -> None:
        for part in "abc":
            await store.session(name).add_items([user(part), user(part)])

    random.Random(number).shuffle(alive)
    async with open_store(settings) as one, open_store(settings) as other:
        writing = asyncio.gather(*map(write, alive))
        pruners = [prune_until(writing, each, older_than) for each in (one, other)]
        pruned = await asyncio.gather(*pruners)
        await writing

    whole = ["old", "older", *"aabbcc"]
    histories = [texts(await store.session(name).get_items()) for name in alive]
    assert [said for said in histories if said not in (whole, whole[2:])] == []
    assert sum(pruned) == len(idle + alive) - histories.count(whole)
    assert {info.session_id for info in (await store.list_sessions(limit=500)).sessions} == set(alive)
