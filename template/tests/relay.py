"""A TCP relay in front of a server: counts round trips, loses answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit


class Relay:
    """Passes bytes on. A round trip is one change of direction, from the client's bytes to the server's."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None] | None] = set()
        self.round_trips = 0
        self.requests_to_lose = 0
        self.answers_to_lose = 0
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await asyncio.gather(*filter(None, self._serving), return_exceptions=True)
            await server.wait_closed()

    def url(self, url: str) -> str:
        """The same address, through this relay."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        from_server, to_server = await asyncio.open_connection(*self._target)
        self._open |= {to_client, to_server}
        waiting = False

        async def up() -> None:
            nonlocal waiting
            while data := await from_client.read(2**20):
                if self.requests_to_lose > 0:
                    self.requests_to_lose -= 1
                    return
                waiting = True
                to_server.write(data)

        async def down() -> None:
            nonlocal waiting
            while data := await from_server.read(2**20):
                if waiting:
                    waiting = False
                    self.round_trips += 1
                    if self.answers_to_lose > 0:
                        self.answers_to_lose -= 1
                        return
                to_client.write(data)

        tasks = {asyncio.ensure_future(up()), asyncio.ensure_future(down())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in (to_client, to_server):
                writer.transport.abort()
                self._open.discard(writer)
