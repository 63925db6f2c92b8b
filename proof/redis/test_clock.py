"""Times are those of the server: what a client's clock says does not matter."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.redis.keys import keys_of, microseconds
from proof.redis.servers import Started

KEY = SessionRef("ada", "s")
KEYS = keys_of("agent", KEY)
YEARS = timedelta(days=3650)


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


async def times(store: RedisStore) -> tuple[datetime, datetime]:
    found = await store.find_session(KEY)
    assert found is not None
    return found.created_at, found.updated_at


@pytest.mark.parametrize("off", [YEARS, -YEARS])
async def test_a_wrong_clock_of_a_client_does_not_pin_a_session(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    begin = datetime.now(UTC)
    true_time = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_time() + int(off.total_seconds()) * 10**9)
    monkeypatch.setattr(time, "time", lambda: true_time() / 1e9 + off.total_seconds())
    await store.append(KEY, batch("a"))
    await store.append(SessionRef("ada", "t"), batch("a"))
    await store.pop(KEY)
    monkeypatch.undo()
    created, updated = await times(store)
    assert begin - timedelta(seconds=5) < created <= updated < datetime.now(UTC) + timedelta(seconds=5)
    assert [info.session_id for info in (await store.list_sessions("ada")).sessions] == ["s", "t"]


async def test_a_session_from_the_future_recovers_with_its_next_write(store: RedisStore) -> None:
    await store.append(KEY, batch("a"))
    await store.append(SessionRef("ada", "t"), batch("a"))
    future = microseconds(datetime.now(UTC) + YEARS)
    connection = await store._ready()
    await connection.call("HSET", KEYS.info, "created_at", future, "updated_at", future)
    for index in (KEYS.all_index, KEYS.user_index):
        await connection.call("ZADD", index, future, KEYS.member)
    await store.append(KEY, batch("b"))
    soon = datetime.now(UTC) + timedelta(seconds=5)
    assert max(await times(store)) < soon
    for user in ("ada", None):
        assert max(info.updated_at for info in (await store.list_sessions(user)).sessions) < soon
    assert await store.prune(soon) == 2
    assert (await store.list_sessions()).sessions == []


async def test_a_time_never_goes_back_when_another_server_takes_over(store: RedisStore) -> None:
    """Its clock is a little behind the old primary's."""
    await store.append(KEY, batch("a"))
    ahead = microseconds(datetime.now(UTC) + timedelta(seconds=20))
    await (await store._ready()).call("HSET", KEYS.info, "updated_at", ahead)
    await store.append(KEY, batch("b"))
    assert microseconds((await times(store))[1]) >= ahead


async def test_a_listing_and_a_look_agree_on_times(store: RedisStore, servers: Started) -> None:
    for number in range(5):
        await store.append(SessionRef("ada", str(number)), batch("a"))
    listed = (await store.list_sessions("ada")).sessions
    assert [info.session_id for info in listed] == ["4", "3", "2", "1", "0"]
    assert listed == [await store.find_session(SessionRef("ada", info.session_id)) for info in listed]


async def test_batches_are_forgotten_in_time_where_a_clock_was_wrong(store: RedisStore) -> None:
    sent = batch("a")
    await store.append(KEY, sent)
    connection = await store._ready()
    future = microseconds(datetime.now(UTC) + YEARS) // 10**6
    await connection.call("HSET", KEYS.info, "tidied", future)
    await connection.call("ZADD", KEYS.batches, 1, sent.id.bytes)
    await store.append(KEY, batch("b"))
    assert len(await connection.call("ZRANGE", KEYS.batches, 0, -1)) == 1
