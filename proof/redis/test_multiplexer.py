"""Two connections that all calls share: order, size, silence, cancellation, room."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from my_agent.sessions import RedisStore, SessionRef, StoreUnavailable
from my_agent.sessions.records import Batch, Row, new_id
from my_agent.sessions.redis import line as redis_line
from my_agent.sessions.redis.connection import RedisConnection, Script
from my_agent.sessions.redis.multiplexer import LARGE_BYTES, Multiplexer
from proof.redis.fixtures import settings_for
from proof.redis.servers import Server, until
from proof.support.network import Network

KEY = SessionRef("ada", "s")
PUSH = Script.of("return redis.call('RPUSH', KEYS[1], ARGV[1])")


@pytest.fixture
async def network(own_server: Server) -> AsyncIterator[Network]:
    with own_server.client() as client:
        client.flushall()
    async with Network("127.0.0.1", own_server.port).running() as network:
        yield network


def through(network: Network, server: Server, **more: object) -> RedisConnection:
    return RedisConnection(settings_for(server.url.replace(f":{server.port}", f":{network.port}"), **more))


def lines_of(connection: RedisConnection) -> Multiplexer:
    lines = connection._servers._lines  # type: ignore[attr-defined]
    assert isinstance(lines, Multiplexer)
    return lines


async def test_megabytes_do_not_hold_up_what_is_small(own_server: Server, network: Network) -> None:
    connection = through(network, own_server)
    await asyncio.gather(*(connection.call("ECHO", "x", large=large) for large in (True, False)))
    network.delay = 0.02  # for each piece that passes
    large = asyncio.create_task(connection.evaluate(PUSH, ["a"], ["x" * 2**24]))
    await asyncio.sleep(0.01)
    replies = await asyncio.gather(*(connection.call("ECHO", str(n)) for n in range(50)))
    assert replies == [str(n) for n in range(50)]
    assert not large.done()
    assert await large == 1
    # And a large reply.
    large = asyncio.create_task(connection.call("LRANGE", "a", 0, -1, large=True))
    await asyncio.sleep(0.01)
    assert await connection.call("ECHO", "small") == "small"
    assert not large.done()
    assert await large == ["x" * 2**24]
    await connection.close()


async def test_a_whole_history_and_a_long_batch_are_large(own_server: Server) -> None:
    async with RedisStore(settings_for(own_server.url)) as store:
        lines = lines_of(await store._ready())
        await store.append(KEY, Batch.of([Row("x")]))
        await store.tail(KEY, 20)
        assert lines._lines[True] is None
        await store.append(KEY, Batch.of([Row("x" * LARGE_BYTES)]))
        large: Any = lines._lines[True]
        heard = large._heard_at
        await store.tail(KEY, None)
        assert large._heard_at > heard
        heard = large._heard_at
        await store.lease(KEY, new_id(), 60, limit=20)
        assert await store.release(KEY, None)
        assert large._heard_at == heard
        await store.lease(KEY, new_id(), 60, limit=None)
        assert large._heard_at > heard


async def test_everyone_gets_their_own_reply_whoever_gives_up(own_server: Server, network: Network) -> None:
    connection = through(network, own_server)
    chance = random.Random(1)
    network.delay = 0.001

    async def ask(number: int) -> str | None:
        call = asyncio.create_task(connection.call("ECHO", f"{number}", large=chance.random() < 0.3))
        if chance.random() < 0.4:
            await asyncio.sleep(chance.random() * 0.01)
            call.cancel()
        try:
            answer = await call
        except asyncio.CancelledError:
            return None
        assert answer == f"{number}"
        return f"{number}"

    for begin in range(0, 2000, 100):
        answered = [one for one in await asyncio.gather(*map(ask, range(begin, begin + 100))) if one is not None]
        assert 0 < len(answered) <= 100
    with own_server.client() as client:
        assert client.info("stats")["total_connections_received"] < 50  # nobody who gave up took a connection along
    await connection.close()


async def test_a_server_that_falls_silent_fails_all_at_their_deadline(own_server: Server, network: Network) -> None:
    connection = through(network, own_server, redis_timeout_seconds=0.5)
    await connection.evaluate(PUSH, ["a"], ["x"])
    network.silent = True
    begin = monotonic()
    outcomes = await asyncio.gather(
        *(connection.evaluate(PUSH, ["b"], ["x"]) for _ in range(50)), return_exceptions=True
    )
    assert monotonic() - begin < 1.5
    for outcome in outcomes:
        assert isinstance(outcome, StoreUnavailable)
        assert outcome.maybe_applied
        assert outcome is outcomes[0] or outcome.__cause__ is not outcomes[0].__cause__
    network.silent = False
    assert await connection.evaluate(PUSH, ["a"], ["x"]) == 2
    await connection.close()


async def test_calls_wait_while_too_many_bytes_are_on_their_way(
    own_server: Server, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "MAX_BYTES", 2000)
    connection = through(network, own_server)
    await connection.evaluate(PUSH, ["a"], ["first"])
    network.delay = 0.02
    calls = [asyncio.create_task(connection.evaluate(PUSH, ["a"], ["x" * 500])) for _ in range(20)]
    line = lines_of(connection)._lines[False]
    assert line is not None
    most = 0
    while not all(call.done() for call in calls):
        await asyncio.sleep(0)
        most = max(most, line._bytes)
        if most and len(calls) == 20:  # those who wait may give up, and nothing of them is sent
            await asyncio.sleep(0)
            calls.pop().cancel()
    assert 1000 < most <= 2000
    assert sorted(await asyncio.gather(*calls)) == [*range(2, 21)]
    # What is larger than that alone goes as the only one.
    assert await connection.evaluate(PUSH, ["a"], ["x" * 5000]) == 21
    await connection.close()


async def test_who_waits_for_room_until_the_deadline_has_sent_nothing(
    own_server: Server, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "MAX_BYTES", 1000)
    connection = through(network, own_server, redis_timeout_seconds=0.3)
    await connection.evaluate(PUSH, ["a"], ["first"])
    network.silent = True
    calls = (connection.evaluate(PUSH, ["a"], ["x" * 800]) for _ in range(5))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert [outcome.maybe_applied for outcome in outcomes] == [True, *[False] * 4]  # type: ignore[union-attr]
    await connection.close()


async def test_a_change_whose_caller_gives_up_is_awaited(own_server: Server, network: Network) -> None:
    connection = through(network, own_server)
    await connection.evaluate(PUSH, ["a"], ["x"])
    network.delay = 0.1
    call = asyncio.create_task(connection.evaluate(PUSH, ["a"], ["x"]))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with own_server.client() as client:
        assert client.llen("a") == 2
    await connection.close()


async def test_what_was_not_written_when_its_caller_gives_up_never_is(
    own_server: Server, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "MAX_BYTES", 2**30)
    connection = through(network, own_server)
    await connection.call("ECHO", "x", large=True)
    network.delay = 0.05
    first = asyncio.create_task(connection.evaluate(PUSH, ["a"], ["x" * 2**24]))  # takes a while to write
    await asyncio.sleep(0.05)
    second = asyncio.create_task(connection.evaluate(PUSH, ["a"], ["y" * LARGE_BYTES]))
    await asyncio.sleep(0.05)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert not first.done()
    assert await first == 1
    await connection.close()
    with own_server.client() as client:
        assert client.llen("a") == 1


async def test_a_call_that_meets_the_end_of_its_store_ends_as_well(own_server: Server) -> None:
    with own_server.client() as client:
        for steps in range(60):
            connection = RedisConnection(settings_for(own_server.url, redis_timeout_seconds=5.0))
            calls = [asyncio.create_task(connection.call("ECHO", "x", large=large)) for large in (False, True)]
            for _ in range(steps // 2):
                await asyncio.sleep(0)
            if steps % 2:
                await asyncio.sleep(0.001)
            await connection.close()
            async with asyncio.timeout(3):
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(outcome == "x" or isinstance(outcome, StoreUnavailable) for outcome in outcomes), outcomes
        await asyncio.to_thread(until, lambda: len(client.client_list()) == 1, "all connections are closed")


@pytest.mark.parametrize("method", ["send_packed_command", "read_response"])
async def test_an_error_that_nobody_thought_of_costs_one_connection(own_server: Server, method: str) -> None:
    connection = RedisConnection(settings_for(own_server.url))
    assert await connection.call("ECHO", "x") == "x"
    line: Any = lines_of(connection)._lines[False]

    async def broken(*_: object, **__: object) -> None:
        raise ValueError("planted")

    setattr(line._connection, method, broken)
    if method == "read_response":
        assert await connection.call("ECHO", "x") == "x"  # it reads already, and fails while nobody waits
    else:
        with pytest.raises(StoreUnavailable, match=r"was lost \(ConnectionError\)"):
            await connection.call("ECHO", "x")
    assert await connection.call("ECHO", "y") == "y"
    await connection.close()


async def test_nothing_is_left_after_close(own_server: Server, network: Network) -> None:
    before = asyncio.all_tasks()
    connection = through(network, own_server)
    await asyncio.gather(*(connection.call("ECHO", "x", large=large) for large in (True, False)))
    network.silent = True
    call = asyncio.create_task(connection.call("ECHO", "x"))
    await asyncio.sleep(0.05)
    begin = monotonic()
    await connection.close()
    assert monotonic() - begin < redis_line.CLOSE_SECONDS * 2
    with pytest.raises(StoreUnavailable):
        await call
    network.silent = False
    left = {task for task in asyncio.all_tasks() - before if "Redis" in task.get_name()}
    assert not left
