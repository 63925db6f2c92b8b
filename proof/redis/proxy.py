"""A proxy in front of one server that behaves as one in front of a cluster whose nodes it hides.

As Redis Enterprise and Azure Managed Redis do: commands and scripts with keys of different slots are refused, and so
is CLUSTER. The server itself makes the refusals, so they come in the order of the commands.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from redis.crc import key_slot

CROSSSLOT = "CROSSSLOT Keys in request don't hash to the same slot"


def refusal(command: Sequence[bytes]) -> str | None:
    """What such a proxy answers instead of passing a command on."""
    name = command[0].upper()
    if name == b"CLUSTER":
        return "ERR unknown command 'CLUSTER'"
    if name in (b"EVAL", b"EVALSHA"):
        keys = command[3 : 3 + int(command[2])]
    else:
        keys = command[1:] if name in (b"DEL", b"EXISTS", b"MGET", b"UNLINK") else ()
    return CROSSSLOT if len({key_slot(key) for key in keys}) > 1 else None


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


async def _pass_commands(client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
    while header := await client.readline():
        command = []
        for _ in range(int(header[1:])):
            length = int((await client.readline())[1:])
            command.append((await client.readexactly(length + 2))[:-2])
        if answer := refusal(command):
            command = [b"EVAL", b"return redis.error_reply(ARGV[1])", b"0", answer.encode()]
        server.write(packed(*command))


async def _pass_replies(server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
    while data := await server.read(2**20):
        client.write(data)


async def _serve(port: int, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    server = await asyncio.open_connection("127.0.0.1", port)
    ways = [
        asyncio.ensure_future(_pass_commands(client[0], server[1])),
        asyncio.ensure_future(_pass_replies(server[0], client[1])),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for writer in (client[1], server[1]):
            writer.transport.abort()


@contextmanager
def proxy(port: int) -> Iterator[int]:
    """A proxy of the server on this port of loopback; its own port. It runs in a thread of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ports: list[int] = []

    async def run() -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with suppress(ConnectionError, asyncio.CancelledError):
                await _serve(port, (reader, writer))
            tasks.discard(task)

        listener = await asyncio.start_server(accept, "127.0.0.1", 0, limit=2**26)
        ports.append(listener.sockets[0].getsockname()[1])
        ready.set()
        await ending.wait()
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    ending = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(20), "the proxy did not start"
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(20)
        loop.close()
