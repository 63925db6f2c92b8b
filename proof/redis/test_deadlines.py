"""One attempt has one deadline, and a cancelled call ends at once, whatever the network does."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from my_agent.sessions import RedisStore, SessionRef, StoreUnavailable
from my_agent.sessions.records import Batch, Row
from proof.redis.fixtures import settings_for

KEY = SessionRef("ada", "s")
TIMEOUT = 1.5


@pytest.fixture
def silent() -> Iterator[list[int]]:
    """Ports whose connections are accepted and never answered."""
    listening = [socket.create_server(("127.0.0.1", 0), backlog=500) for _ in range(6)]
    yield [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()


@pytest.fixture
def swallowing() -> Iterator[list[int]]:
    """Ports where even the connection is not answered: the queue of those to be accepted is full."""
    full, fillers = [], []
    for _ in range(6):
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        full.append(listening)
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
            fillers.append(filler)
    yield [each.getsockname()[1] for each in full]
    for each in (*full, *fillers):
        each.close()


def url(kind: str, ports: list[int]) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    match kind:
        case "server":
            return f"redis://:x@127.0.0.1:{ports[0]}/0"
        case "sentinel":
            return f"redis+sentinel://:x@{hosts}/0?service=main"
        case _:
            return f"redis+cluster://:x@{hosts}"


KINDS = pytest.mark.parametrize("kind", ["server", "sentinel", "cluster"])
NETWORKS = pytest.mark.parametrize("network", ["silent", "swallowing"])


@KINDS
@NETWORKS
async def test_an_attempt_has_one_deadline(kind: str, network: str, request: pytest.FixtureRequest) -> None:
    """The time for waiting, finding, connecting and the exchange together; those of several calls do not add up."""
    ports: list[int] = request.getfixturevalue(network)
    settings = settings_for(url(kind, ports), redis_timeout_seconds=TIMEOUT)
    store = RedisStore(settings)
    for _ in range(2):
        begin = time.monotonic()
        calls = (store.append(KEY, Batch.of([Row("x")])), store.tail(KEY, None), store.find_session(KEY))
        outcomes = await asyncio.gather(*calls, *(store.tail(KEY, 1) for _ in range(5)), return_exceptions=True)
        assert time.monotonic() - begin < TIMEOUT * 1.5
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes), outcomes
        assert "1.5 s" in str(outcomes[0]), outcomes[0]
    await store.close()


@KINDS
@NETWORKS
async def test_a_cancelled_call_ends_at_once_as_cancelled(
    kind: str, network: str, request: pytest.FixtureRequest
) -> None:
    ports: list[int] = request.getfixturevalue(network)
    store = RedisStore(settings_for(url(kind, ports), redis_timeout_seconds=30.0))
    calls = [asyncio.create_task(store.tail(KEY, None)) for _ in range(4)]
    await asyncio.sleep(0.3)
    begin = time.monotonic()
    for call in calls:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - begin < 1
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 4
    # The places are free again.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await store.tail(KEY, None)
    begin = time.monotonic()
    await store.close()
    assert time.monotonic() - begin < 1


async def test_a_deadline_does_not_begin_anew_with_the_text_of_a_script() -> None:
    """A server that does not know the script is asked twice: within one deadline."""

    serving: set[asyncio.Task[None] | None] = set()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        while data := await reader.read(2**16):
            await asyncio.sleep(0.8)
            unknown = b"EVALSHA" in data
            writer.write(b"-NOSCRIPT no\r\n" if unknown else b"+OK\r\n" * max(1, data.count(b"*")))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    store = RedisStore(settings_for(url("server", [server.sockets[0].getsockname()[1]]), redis_timeout_seconds=TIMEOUT))
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable):  # the login, then the hash, then the text
        await store.append(KEY, Batch.of([Row("x")]))
    assert time.monotonic() - begin < TIMEOUT * 1.3
    await store.close()
    server.close()
    await asyncio.gather(*filter(None, serving), return_exceptions=True)
