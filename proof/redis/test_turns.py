"""Leases and turns as fields of a session's hash: how long they live, what they cost, and what damages them."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from my_agent.sessions import RedisStore, SessionRef
from my_agent.sessions.errors import LeaseLost
from my_agent.sessions.records import TURN_DAYS, TURNS_KEPT, Batch, Row, Turn, new_id
from my_agent.sessions.redis.keys import keys_of, microseconds
from proof.redis.fixtures import settings_for
from proof.redis.servers import Server, Started

KEY = SessionRef("ada", "s")
INFO = keys_of("agent", KEY).info
LONG = 600.0


def batch(*contents: str, lease: UUID | None = None, turn: Turn | None = None, release: bool = False) -> Batch:
    return Batch.of([Row(content) for content in contents])._replace(lease=lease, turn=turn, release=release)


async def take(store: RedisStore, ref: SessionRef = KEY, seconds: float = LONG) -> UUID:
    token = new_id()
    assert await store.lease(ref, token, seconds) is not None
    return token


async def fields(store: RedisStore, *names: str) -> list[str | None]:
    found: list[str | None] = await (await store._ready()).call("HMGET", INFO, *names)
    return found


async def change_field(store: RedisStore, name: str, value: str | int) -> None:
    await (await store._ready()).call("HSET", INFO, name, value)


async def note(store: RedisStore, token: UUID, *turns: Turn) -> None:
    for turn in turns:
        await store.append(KEY, batch(lease=token, turn=turn))


# ── Time to live ────────────────────────────────────────────────────────────


async def test_what_a_run_has_read_does_not_expire_before_it_writes(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=1.0)) as store:
        await store.append(KEY, batch("question"))
        await asyncio.sleep(0.7)
        token = await take(store)
        await asyncio.sleep(0.7)
        await store.append(KEY, batch("answer", lease=token))
        assert await store.tail(KEY, None) == ["question", "answer"]


async def test_a_session_does_not_expire_under_a_run(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=1.0)) as store:
        await store.append(KEY, batch("question"))
        token = await take(store)
        for _ in range(4):
            await asyncio.sleep(0.4)
            assert await store.renew(KEY, token, LONG)
        await store.append(KEY, batch("answer", lease=token, release=True))
        assert await store.tail(KEY, None) == ["question", "answer"]


async def test_a_run_that_died_does_not_keep_a_session(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=1.0)) as store:
        token = await take(store)
        await asyncio.sleep(1.2)
        assert not await store.renew(KEY, token, LONG)
        with pytest.raises(LeaseLost):
            await store.append(KEY, batch("late", lease=token, turn=Turn("t", "done", "")))
        assert await store.find_session(KEY) is None


async def test_a_session_stops_expiring_with_a_lease_too(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=1.0)) as expiring:
        await expiring.append(KEY, batch("a"))
    async with RedisStore(settings_for(servers.url)) as lasting:
        await take(lasting)
        await asyncio.sleep(1.1)
        assert await lasting.tail(KEY, None) == ["a"]


async def test_a_copy_lives_as_long_as_a_new_session(servers: Started) -> None:
    copy = SessionRef("ada", "copy")
    async with RedisStore(settings_for(servers.url, session_ttl=100.0)) as store:
        await store.append(KEY, batch("a"))
        assert await store.fork(KEY, copy)
        for key in keys_of("agent", copy)[:2]:
            assert 90_000 < await (await store._ready()).call("PTTL", key) <= 100_000


# ── Clocks ──────────────────────────────────────────────────────────────────


async def test_a_lease_that_was_taken_under_a_wrong_clock_blocks_nobody(store: RedisStore) -> None:
    await take(store, seconds=10)
    year = timedelta(days=365)
    await change_field(store, "lease_until", microseconds(datetime.now(UTC) + year))
    await take(store)


@pytest.mark.parametrize("off", [-1, 1])
async def test_a_turn_is_shown_for_thirty_days_and_then_removed(store: RedisStore, off: int) -> None:
    token = await take(store)
    await note(store, token, Turn("old", "paused", "a secret", "r"), Turn("new", "done", ""))
    days = (TURN_DAYS + 1) * 86400 * off
    (time,) = await fields(store, "turn:1:time")
    await change_field(store, "turn:1:time", int(time or 0) + days)
    assert [turn.id for turn in await store.turns(KEY, 10)] == ["new"]
    assert await store.turns(KEY, turn_id="old") == []
    assert not await store.change_turn(KEY, Turn("old", "paused", "a secret"), Turn("old", "done", ""))
    taken = await store.lease(KEY, token, LONG, request_id="r")
    assert taken is not None
    assert taken.same is None
    await note(store, token, Turn("newer", "done", ""))
    assert "a secret" not in await fields(store, *(f"turn:{place}:content" for place in range(5)))
    assert [turn.id for turn in await store.turns(KEY, 10)] == ["newer", "new"]


async def test_a_turn_that_changes_stays_for_thirty_days_more(store: RedisStore) -> None:
    token = await take(store)
    await note(store, token, Turn("t", "paused", ""))
    (now,) = await fields(store, "turn:1:time")
    await change_field(store, "turn:1:time", int(now or 0) - 20 * 86400)
    assert await store.change_turn(KEY, Turn("t", "paused", ""), Turn("t", "done", ""))
    assert await fields(store, "turn:1:time") >= [now]


# ── What is kept ────────────────────────────────────────────────────────────


async def test_turns_do_not_grow_without_end(store: RedisStore) -> None:
    token = await take(store)
    await note(store, token, *(Turn(f"t{n}", "done", "x", f"r{n}") for n in range(TURNS_KEPT)))
    count = await (await store._ready()).call("HLEN", INFO)
    await note(store, token, *(Turn(f"more{n}", "done", "x", f"more{n}") for n in range(TURNS_KEPT + 7)))
    assert await (await store._ready()).call("HLEN", INFO) == count


async def test_only_the_contents_of_turns_that_are_returned_are_read(own_server: Server) -> None:
    """A paused run's content may have megabytes."""
    async with RedisStore(settings_for(own_server.url)) as store:
        token = await take(store)
        await note(store, token, *(Turn(f"t{n}", "paused", "x", f"r{n}") for n in range(1, 6)))
        with own_server.client() as client, client.monitor() as monitor:
            await store.append(KEY, batch("a", lease=token, turn=Turn("t2", "done", "y", "r2")))
            await store.turns(KEY, 2)
            await store.turns(KEY, turn_id="t3")
            await store.lease(KEY, token, LONG, request_id="r1")
            await (await store._ready()).call("ECHO", "the end")
            read = []
            while "the end" not in (command := monitor.next_command()["command"]):
                if command.startswith("HMGET"):
                    read += re.findall(r"turn:(\d+):content", command)
    assert read == ["5", "4", "3", "5", "1"]


async def test_nothing_of_a_turn_stays_where_another_takes_its_place(store: RedisStore) -> None:
    token = await take(store)
    await store.append(KEY, batch("a", lease=token, turn=Turn("first", "done", "x", "r")))
    await note(store, token, *(Turn(f"t{n}", "done", "x") for n in range(TURNS_KEPT)))
    newest = (await store.turns(KEY))[0]
    assert newest == Turn(f"t{TURNS_KEPT - 1}", "done", "x")
    taken = await store.lease(KEY, token, LONG, request_id="r")
    assert taken is not None
    assert taken.same is None


async def test_clearing_leaves_no_word_of_a_turn(store: RedisStore) -> None:
    token = await take(store)
    await note(store, token, *(Turn(f"id {n}", "a word", "a secret", "a request") for n in range(3)))
    await store.clear(KEY)
    everything = await (await store._ready()).call("HGETALL", INFO)
    assert not [text for text in everything if text.startswith(("id", "a ", "1a "))]
    await note(store, token, Turn("new", "done", ""))  # the lease is still held
    assert [turn.id for turn in await store.turns(KEY, 10)] == ["new"]


async def test_a_session_that_lost_its_info_can_be_cleared(store: RedisStore) -> None:
    await store.append(KEY, batch("a"))
    connection, keys = await store._ready(), keys_of("agent", KEY)
    await connection.call("DEL", keys.info)
    for index in (keys.all_index, keys.user_index):  # in a cluster, its first write would wait for these
        await connection.call("ZREM", index, keys.member)
    await asyncio.wait_for(store.clear(KEY), timeout=2)
    assert await store.tail(KEY, None) == []


async def test_a_copy_does_not_go_into_what_a_dead_run_left(store: RedisStore) -> None:
    copy = SessionRef("ada", "copy")
    await store.append(KEY, batch("a"))
    token = await take(store, copy, seconds=0.01)
    await store.append(copy, batch("theirs", lease=token))
    await asyncio.sleep(0.05)
    assert not await store.fork(KEY, copy)
    assert await store.tail(copy, None) == ["theirs"]


async def test_taking_a_session_does_not_change_its_place_in_listings(store: RedisStore) -> None:
    other = SessionRef("ada", "other")
    await store.append(KEY, batch("a"))
    await store.append(other, batch("b"))
    before = await store.list_sessions("ada")
    token = await take(store)
    assert await store.renew(KEY, token, LONG)
    assert await store.release(KEY, token)
    assert await store.list_sessions("ada") == before
    assert [info.session_id for info in (await store.list_sessions()).sessions] == ["other", "s"]


# ── Damage and round trips ──────────────────────────────────────────────────

VALUES = ["", "x", "-1", "1.5", "1e30", "nan", "9" * 40, "1,1,2", "\x00"]
DAMAGED = ["lease_until", "lease_for", "lease_began", "turns", *(f"turn:1:{part}" for part in ("request", "time"))]


@pytest.mark.parametrize("field", [*DAMAGED, "turn:1:first", "turn:1:last"])
async def test_a_field_that_was_changed_by_hand_breaks_nothing(store: RedisStore, field: str) -> None:
    for value in VALUES:
        token = await take(store)
        await store.append(KEY, batch("a", lease=token, turn=Turn("t", "done", "", "r")))
        await change_field(store, field, value)
        assert len(await store.turns(KEY, 10)) <= 2
        await store.turns(KEY, turn_id="t")
        await store.change_turn(KEY, Turn("t", "done", ""), Turn("t", "done", ""))
        assert await store.lease(KEY, token, LONG, limit=1, request_id="r") is not None
        assert await store.renew(KEY, token, LONG)
        await store.append(KEY, batch("b", lease=token, turn=Turn("u", "done", "")))
        assert (await store.turns(KEY))[0].id == "u"
        assert await store.release(KEY, token)
        await store.clear(KEY)
        assert await store.turns(KEY, 10) == []
