"""Two things in one moment on the connections that all calls share: a reply, a deadline, a cancellation, an end.

Each test has the order that it is about, on a server that answers by a script; `test_multiplexer.py` has real servers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import pytest
from hiredis import pack_command
from redis.exceptions import ConnectionError as ConnectionLost

from my_agent.sessions import RedisStore, SessionRef, StoreRefused, StoreUnavailable
from my_agent.sessions.redis import line as redis_line
from my_agent.sessions.redis import multiplexer as redis_multiplexer
from my_agent.sessions.redis import store as redis_store
from my_agent.sessions.redis.address import parse_address
from my_agent.sessions.redis.connection import RedisConnection, Script
from my_agent.sessions.redis.index import OLD
from my_agent.sessions.redis.line import NotSent
from my_agent.sessions.redis.multiplexer import Multiplexer
from my_agent.sessions.redis.opener import Opener
from proof.redis.fixtures import settings_for
from proof.redis.scripted import Answer, Scripted
from proof.redis.servers import Server

TIMEOUT = 1.0
SETTLE = 5.0
POP = Script.of("return redis.call('RPOP', KEYS[1])")


def lines_to(port: int) -> Multiplexer:
    opener = Opener(parse_address(f"redis://127.0.0.1:{port}/0"))
    return Multiplexer(lambda: opener.open(("127.0.0.1", port)), SETTLE, TIMEOUT)


def packed(*words: str | bytes) -> bytes:
    return bytes(pack_command(words))  # type: ignore[arg-type]  # its stub wants a tuple of one


def after(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def answering(reply: bytes = b"+OK\r\n", seconds: float = 0.0, **others: float) -> Answer:
    """The same reply to all, after so many seconds; of the commands that are named, after others."""

    async def answer(command: list[bytes]) -> bytes:
        await asyncio.sleep(others.get(command[0].decode(), seconds))
        return reply

    return answer


async def outcome(call: Awaitable[Any]) -> Any:
    return (await asyncio.gather(call, return_exceptions=True))[0]


# ── A call that has little time left ────────────────────────────────────────


async def test_a_call_that_expires_soon_after_it_was_sent_ends_alone() -> None:
    async with Scripted(answering(seconds=0.1)).running() as server:
        lines = lines_to(server.port)
        await lines.exchange(packed("GET", "k"), after(5))
        other = asyncio.create_task(lines.exchange(packed("POP"), after(5), change=True))
        assert isinstance(await outcome(lines.exchange(packed("GET", "k"), after(0.02))), TimeoutError)
        assert await other == "OK"
        await lines.close()


async def test_a_large_reply_may_take_longer_than_another_call_can_wait() -> None:
    async with Scripted(answering(seconds=TIMEOUT * 1.5)).running() as server:
        lines = lines_to(server.port)
        large = asyncio.create_task(lines.exchange(packed("LRANGE", "k"), after(TIMEOUT * 3), large=True))
        await asyncio.sleep(0.1)
        assert isinstance(await outcome(lines.exchange(packed("GET", "k"), after(TIMEOUT), large=True)), TimeoutError)
        assert await lines.exchange(packed("GET", "k"), after(TIMEOUT * 3), large=True) == "OK"
        assert await large == "OK"
        assert server.connections == 2
        await lines.close()


async def test_it_does_not_keep_others_from_knowing_what_became_of_their_change() -> None:
    done: list[float] = []

    async def answer(command: list[bytes]) -> bytes:
        await asyncio.sleep(0.3)
        done.append(monotonic())
        return b"+OK\r\n"

    async with Scripted(answer).running() as server:
        lines = lines_to(server.port)
        await lines.exchange(packed("GET", "k"), after(5))
        change = asyncio.create_task(lines.exchange(packed("POP"), after(5), change=True))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(lines.exchange(packed("GET", "k"), after(0.05)))
        await asyncio.sleep(0)
        change.cancel()
        assert isinstance(await outcome(change), asyncio.CancelledError)
        assert monotonic() >= done[1]
        assert isinstance(await outcome(late), TimeoutError)
        await lines.close()


@pytest.mark.parametrize("earlier", [0.05, 0.0])
async def test_a_change_that_is_cancelled_at_its_deadline_is_awaited(earlier: float) -> None:
    done: list[float] = []

    async def answer(command: list[bytes]) -> bytes:
        await asyncio.sleep(0.8 if command == [b"CHANGE"] else 0)
        done.append(monotonic())
        return b"+OK\r\n"

    async with Scripted(answer).running() as server:
        lines = lines_to(server.port)
        await lines.exchange(packed("GET", "k"), after(5))
        deadline = after(0.4)
        change = asyncio.create_task(lines.exchange(packed("CHANGE"), deadline, change=True))
        asyncio.get_running_loop().call_at(deadline - earlier, change.cancel)
        assert isinstance(await outcome(change), asyncio.CancelledError)
        assert len(done) == 2
        await lines.close()


async def test_a_reply_that_came_while_the_event_loop_was_busy_counts(own_server: Server) -> None:
    connection = RedisConnection(settings_for(own_server.url, redis_timeout_seconds=TIMEOUT))
    for turns in (2, 3):
        with own_server.client() as client:
            client.delete("a")
            client.rpush("a", "item")
        await connection.evaluate(POP, ["b"], [])
        call = asyncio.create_task(connection.evaluate(POP, ["a"], []))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(TIMEOUT * 1.3)  # noqa: ASYNC251 - something that keeps it busy
        assert await call == "item"
    await connection.close()


# ── What could not be written yet ───────────────────────────────────────────


async def blocked(server: Scripted, lines: Multiplexer, monkeypatch: pytest.MonkeyPatch) -> asyncio.Task[Any]:
    """A call that is being written to a server that does not read; what is sent then waits behind it."""
    monkeypatch.setattr(redis_line, "MAX_BYTES", 2**30)
    await lines.exchange(packed("SET", "k", "x" * 100_000), after(5))
    server.reads.clear()
    await asyncio.sleep(0.05)
    large = asyncio.create_task(lines.exchange(packed("SET", "k", "x" * 12_000_000), after(60), change=True))
    await asyncio.sleep(0.3)
    return large


async def test_a_call_that_waits_to_be_written_may_expire_and_be_cancelled_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with Scripted(answering()).running() as server:
        lines = lines_to(server.port)
        large = await blocked(server, lines, monkeypatch)
        for earlier in (0.2, 0.0):
            deadline = after(0.3)
            small = asyncio.create_task(lines.exchange(packed("SET", "k", "y" * 100_000), deadline, change=True))
            asyncio.get_running_loop().call_at(deadline - earlier, small.cancel)
            assert isinstance(await outcome(small), asyncio.CancelledError)
            await asyncio.sleep(earlier + 0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout_at(deadline := after(0.3)):
                await lines.exchange(packed("SET", "k", "y" * 100_000), deadline, change=True)
        server.reads.set()
        assert await large == "OK"
        assert len(server.seen) == 2
        await lines.close()
    assert complaints == []


async def test_nothing_is_sent_after_a_connection_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Scripted(answering()).running() as server:
        lines = lines_to(server.port)
        large = await blocked(server, lines, monkeypatch)
        begin = monotonic()
        await lines.close()
        assert monotonic() - begin < redis_line.CLOSE_SECONDS + 1
        assert isinstance(await outcome(large), ConnectionLost)
        server.reads.set()
        await asyncio.sleep(0.3)
        assert len(server.seen) == 1


async def test_a_large_command_gets_its_turn_among_smaller_ones() -> None:
    async with Scripted(answering(seconds=0.005)).running() as server:
        lines = lines_to(server.port)
        done = asyncio.Event()

        async def write_again_and_again() -> None:
            while not done.is_set():
                await lines.exchange(packed("SET", "k", "x" * 70_000), after(10))

        writers = [asyncio.create_task(write_again_and_again()) for _ in range(4)]
        await asyncio.sleep(0.2)
        # More than may be on its way: it needs the connection for itself.
        assert await lines.exchange(packed("SET", "k", "x" * 5_000_000), after(10), change=True) == "OK"
        done.set()
        await asyncio.gather(*writers)
        await lines.close()


# ── A sign of life ──────────────────────────────────────────────────────────


@pytest.fixture
def looks_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections are probed after 0.3 s."""
    for module in (redis_line, redis_multiplexer):
        monkeypatch.setattr(module, "FRESH_SECONDS", 0.1)
    monkeypatch.setattr(redis_multiplexer, "PROBE_AFTER_SECONDS", 0.3)
    monkeypatch.setattr(redis_line, "PROBE_SECONDS", 0.8)


@pytest.mark.usefixtures("looks_soon")
@pytest.mark.parametrize("end", [Multiplexer.close, Multiplexer.forget_idle])
async def test_a_connection_that_is_given_up_while_it_is_probed_gets_no_call(
    end: Callable[[Multiplexer], Awaitable[None]],
) -> None:
    async with Scripted(answering(PING=0.2)).running() as server:
        lines = lines_to(server.port)
        await lines.exchange(packed("GET", "k"), after(5))
        await asyncio.sleep(0.4)
        call = asyncio.create_task(lines.exchange(packed("GET", "k"), after(TIMEOUT)))
        await asyncio.sleep(0.05)
        await end(lines)
        async with asyncio.timeout(TIMEOUT * 2):
            assert await outcome(call) == "OK"
        await lines.close()


@pytest.mark.usefixtures("looks_soon")
@pytest.mark.parametrize("cancelled", [False, True])
async def test_who_waits_for_a_probe_that_is_cancelled_gets_a_connection_that_works(cancelled: bool) -> None:
    silent = False

    async def answer(command: list[bytes]) -> bytes | None:
        return None if silent and server.connections == 1 else b"+OK\r\n"

    async with Scripted(answer).running() as server:
        lines = lines_to(server.port)
        await lines.exchange(packed("GET", "k"), after(5))
        silent = True  # as a firewall that forgot this connection
        await asyncio.sleep(0.4)
        prober = asyncio.create_task(lines.exchange(packed("GET", "k"), after(5)))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(lines.exchange(packed("POP"), after(5), change=True))
        await asyncio.sleep(0.05)
        if cancelled:
            prober.cancel()
        assert isinstance(await outcome(prober), asyncio.CancelledError if cancelled else str)
        assert await waiting == "OK"
        await lines.close()


# ── Replies that are errors ─────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reply", "error"), [(b"-NOAUTH no\r\n", StoreRefused), (b"-LOADING is loading\r\n", StoreUnavailable)]
)
async def test_an_error_behind_the_first_reply_is_an_error(reply: bytes, error: type[Exception]) -> None:
    async def answer(command: list[bytes]) -> bytes:
        return b"$1\r\n1\r\n" if command[1:] == [b"a"] else reply

    async with Scripted(answer).running() as server:
        connection = RedisConnection(settings_for(f"redis://127.0.0.1:{server.port}/0"))
        for connections in (1, 2):
            with pytest.raises(error):
                await connection.call_all([("GET", "a"), ("GET", "b")])
            assert server.connections == connections
        await connection.close()


async def test_a_primary_that_became_a_replica_is_left_by_calls_of_many_commands_too() -> None:
    read_only = True

    async def answer(command: list[bytes]) -> bytes:
        return b"-READONLY You can't write against a read only replica.\r\n" if read_only else b"+OK\r\n"

    async with Scripted(answer).running() as server:
        connection = RedisConnection(settings_for(f"redis://127.0.0.1:{server.port}/0"))
        with pytest.raises(StoreUnavailable, match="read-only replica"):
            await connection.evaluate_all(Script.of("return 1"), [(["a"], [])])
        read_only = False  # the address leads to another server now
        assert await connection.evaluate_all(Script.of("return 1"), [(["a"], [])]) == ["OK"]
        assert server.connections == 2
        await connection.close()


async def test_a_node_that_was_asked_may_point_back() -> None:
    """The move of a slot was called off between the two answers."""
    asked = 0

    def slots() -> bytes:
        nodes = [(0, 16382, one.port, b"a"), (16383, 16383, other.port, b"b")]
        rows = (
            b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$40\r\n%s\r\n" % (first, last, port, name * 40)
            for first, last, port, name in nodes
        )
        return b"*2\r\n" + b"".join(rows)

    async def first(command: list[bytes]) -> bytes:
        nonlocal asked
        if command[0] != b"GET":
            return slots() if command[0] == b"CLUSTER" else b"+OK\r\n"
        asked += 1
        return b"-ASK 1 127.0.0.1:%d\r\n" % other.port if asked == 1 else b"$1\r\nv\r\n"

    async def second(command: list[bytes]) -> bytes:
        if command[0] != b"GET":
            return slots() if command[0] == b"CLUSTER" else b"+OK\r\n"
        return b"-MOVED 1 127.0.0.1:%d\r\n" % one.port

    async with Scripted(first).running() as one, Scripted(second).running() as other:
        connection = RedisConnection(settings_for(f"redis+cluster://127.0.0.1:{one.port}"))
        assert await connection.call("GET", "k") == "v"
        await connection.close()


# ── Beside a write ──────────────────────────────────────────────────────────


async def test_tidying_on_a_silent_server_keeps_no_reply_from_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "TIDY_EACH", 1)

    async def answer(command: list[bytes]) -> bytes | None:
        if command[:2] == [b"EVALSHA", OLD.sha.encode()]:
            await asyncio.sleep(TIMEOUT * 0.7)  # longer than it may take
            return b"*0\r\n"
        return b"$4\r\nitem\r\n" if command[0] == b"EVALSHA" else b"$-1\r\n"

    async with Scripted(answer).running() as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        async with RedisStore(settings_for(url, session_ttl=3600, redis_timeout_seconds=TIMEOUT)) as store:
            begin = monotonic()
            assert await store.pop(SessionRef("", "s")) == "item"
            assert monotonic() - begin < TIMEOUT * 1.2


# ── The end of the event loop ───────────────────────────────────────────────


def test_a_change_is_awaited_when_the_event_loop_ends(own_server: Server) -> None:
    """`asyncio.run` cancels all tasks, those of the connections too."""
    kept: list[asyncio.Task[Any]] = []
    pause = 0.8

    async def main() -> None:
        connection = RedisConnection(settings_for(own_server.url))
        await connection.evaluate(POP, ["b"], [])
        with own_server.client() as client:
            client.execute_command("CLIENT", "PAUSE", int(pause * 1000), "ALL")
        kept.append(asyncio.create_task(connection.evaluate(POP, ["a"], [])))
        await asyncio.sleep(0.1)

    with own_server.client() as client:
        client.delete("a")
        client.rpush("a", "item")
    begin = monotonic()
    asyncio.run(main())
    assert monotonic() - begin >= pause
    assert kept[0].cancelled()
    with own_server.client() as client:
        assert client.llen("a") == 0


async def test_a_late_call_to_a_closed_store_opens_no_connection() -> None:
    async with Scripted(answering(seconds=0.2)).running() as server:
        lines = lines_to(server.port)
        await lines.exchange(packed("GET", "k"), after(5))
        call = asyncio.create_task(lines.exchange(packed("GET", "k"), after(5)))
        await asyncio.sleep(0.05)
        await lines.close()
        assert isinstance(await outcome(call), str | NotSent | ConnectionLost)
        assert server.connections == 1


async def test_a_login_that_expired_while_the_store_was_closed_is_an_error_of_ours() -> None:
    async with Scripted(answering(b"-NOAUTH no\r\n", seconds=0.2)).running() as server:
        connection = RedisConnection(settings_for(f"redis://127.0.0.1:{server.port}/0"))
        call = asyncio.create_task(connection.call("GET", "k"))
        await asyncio.sleep(0.1)
        await connection.close()
        assert isinstance(await outcome(call), StoreRefused)
        assert server.connections == 1
