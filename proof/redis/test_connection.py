"""How commands reach the server: one exchange a call over two connections that all calls share."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from my_agent.sessions.errors import SessionStoreError, StoreUnavailable
from my_agent.sessions.redis.connection import RedisConnection, Script
from proof.redis import servers as redis_servers
from proof.redis.fixtures import settings_for
from proof.redis.servers import QUOTED, Server
from proof.support.relay import Relay

# ── Commands and replies ────────────────────────────────────────────────────


async def test_replies_of_many_commands_come_in_order(connection: RedisConnection) -> None:
    assert await connection.call_all([("SET", "a", "é"), ("GET", "a"), ("GET", "b")]) == ["OK", "é", None]
    assert await connection.call_all([]) == []
    with pytest.raises(SessionStoreError, match="another app uses keys"):
        await connection.call_all([("LLEN", "a"), ("SET", "a", "after")])
    assert await connection.call("GET", "a") == "after"


async def test_a_script_is_run_whether_the_server_knows_it_or_not(
    own_server: Server, connection: RedisConnection
) -> None:
    script = Script.of("return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}")
    for runs in range(1, 4):
        assert await connection.evaluate(script, ["a"], ["é"]) == ["a", "é", runs]
        if runs == 2:
            with own_server.client() as client:
                client.script_flush()


async def test_bytes_that_are_no_text_are_replaced_and_text_that_has_no_bytes_is_refused(
    own_server: Server, connection: RedisConnection
) -> None:
    with own_server.client() as client:
        client.set("a", b"\xff\x00\xc3\xa9")
    assert await connection.call("GET", "a") == "\ufffd\0é"
    with pytest.raises(SessionStoreError, match="half a surrogate pair"):
        await connection.call("SET", "a", "\ud83d")


# ── Shared connections ──────────────────────────────────────────────────────


async def test_two_hundred_calls_share_two_connections(own_server: Server) -> None:
    connection = RedisConnection(settings_for(own_server.url))
    try:
        for large, ours in ((False, 1), (True, 2)):
            replies = await asyncio.gather(*(connection.call("ECHO", str(n), large=large) for n in range(200)))
            assert replies == [str(n) for n in range(200)]
            with own_server.client() as client:
                assert len(client.client_list()) == ours + 1
    finally:
        await connection.close()


async def test_a_call_waits_for_its_reply_only_so_long(own_server: Server) -> None:
    connection = RedisConnection(settings_for(own_server.url, redis_timeout_seconds=0.2))
    try:
        blocked = (connection.call("BLPOP", "nothing", 5) for _ in range(5))
        for waited in await asyncio.gather(*blocked, return_exceptions=True):
            assert isinstance(waited, StoreUnavailable)
            assert "did not answer within 0.2 s" in str(waited)
            assert waited.maybe_applied
        assert await connection.call("ECHO", "free again") == "free again"
    finally:
        await connection.close()


async def test_no_call_gets_the_reply_of_a_cancelled_one(own_server: Server) -> None:
    connection = RedisConnection(settings_for(own_server.url))
    try:
        for number in range(60):
            wait = ("BLPOP", "nothing", "0.05") if number % 3 == 0 else ("ECHO", "of the cancelled call")
            cancelled = asyncio.create_task(connection.call(*wait))
            for _ in range(number // 3):
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait({cancelled})
            assert await connection.call("ECHO", f"{number}") == f"{number}"
            assert await connection.call_all([("ECHO", "a"), ("ECHO", "b")]) == ["a", "b"]
    finally:
        await connection.close()


@pytest.mark.parametrize("busy", [0, 1.1], ids=["the loop is free", "the loop was busy"])
async def test_dead_connections_are_noticed_before_a_command_is_sent(
    own_server: Server, connection: RedisConnection, busy: float
) -> None:
    await asyncio.gather(*(connection.call("RPUSH", "a", "x") for _ in range(10)))
    if busy:
        with own_server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(busy)  # noqa: ASYNC251 - it is what the test is about
    else:
        other = RedisConnection(settings_for(own_server.url))
        assert await other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") >= 1
        await other.close()
    assert [await connection.call("RPOP", "a") for _ in range(11)] == ["x"] * 10 + [None]


async def test_a_command_whose_answer_is_lost_is_not_sent_again(
    own_server: Server, connection: RedisConnection
) -> None:
    async with Relay("127.0.0.1", own_server.port).running() as relay:
        through = RedisConnection(settings_for(relay.url(own_server.url)))
        await through.call("PING")
        relay.answers_to_lose = 1
        with pytest.raises(StoreUnavailable, match="was lost") as caught:
            await through.call("RPUSH", "a", "x")
        assert caught.value.maybe_applied
        assert await connection.call("LLEN", "a") == 1
        trips = relay.round_trips
        assert await through.call("RPUSH", "a", "y") == 2
        # A new connection logs in first.
        assert relay.round_trips == trips + 2
        await through.close()


async def test_a_call_is_one_round_trip(own_server: Server) -> None:
    async with Relay("127.0.0.1", own_server.port).running() as relay:
        through = RedisConnection(settings_for(relay.url(own_server.url)))
        script = Script.of("return redis.call('RPUSH', KEYS[1], ARGV[1])")
        await through.evaluate(script, ["a"], ["x"])
        trips = relay.round_trips
        await through.evaluate(script, ["a"], ["x"])
        await through.call("LRANGE", "a", 0, -1)
        await through.call_all([("GET", f"{n}") for n in range(100)])
        assert relay.round_trips == trips + 3
        await through.close()


async def test_a_closed_connection_leaves_nothing_open_on_the_server(own_server: Server) -> None:
    connection = RedisConnection(settings_for(own_server.url))
    waiting = asyncio.gather(*(connection.call("BLPOP", "nothing", "0.1") for _ in range(5)))
    await asyncio.sleep(0.05)
    await connection.close()
    assert await waiting == [None] * 5
    with own_server.client() as client:
        redis_servers.until(lambda: len(client.client_list()) == 1, "all connections are closed")


async def test_a_socket_on_this_machine_is_reached(tmp_path: Path) -> None:
    with redis_servers.one(tmp_path / "r", "--unixsocket", "socket"):
        connection = RedisConnection(settings_for(f"unix://:{QUOTED}@{tmp_path}/r/socket?db=1"))
        try:
            assert await connection.call("ECHO", "x") == "x"
        finally:
            await connection.close()
