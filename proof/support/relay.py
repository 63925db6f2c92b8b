"""A TCP relay in front of a server: counts round trips, loses or cuts what passes."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit, urlunsplit

from proof.support.listener import Listener


class Relay(Listener):
    """Passes bytes on. A round trip is one change of direction, from the client's bytes to the server's."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._target = host, port
        self._open: set[asyncio.StreamWriter] = set()
        self.round_trips = 0
        self.bytes = 0
        """Passed in both directions."""
        self.requests_to_lose = self.requests_to_cut = 0
        """So many requests do not arrive, or only their first half does; the connection ends with them."""
        self.answers_to_lose = self.answers_to_cut = 0
        self.broken = asyncio.Event()
        """Set when one of these has happened."""

    def _end(self) -> None:
        self.reset()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open) // 2

    def reset(self) -> int:
        """Cut all connections; returns how many ends there were."""
        ends = list(self._open)
        for writer in ends:
            writer.transport.abort()
        return len(ends)

    def url(self, url: str) -> str:
        """The same address, through this relay."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    def _next(self, fault: str) -> bool:
        """Whether this fault is to happen now."""
        if (left := getattr(self, fault)) == 0:
            return False
        setattr(self, fault, left - 1)
        self.broken.set()
        return True

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:  # nobody listens there
            to_client.transport.abort()
            return
        self._open |= {to_client, to_server}
        waiting = False

        async def up() -> None:
            nonlocal waiting
            while data := await from_client.read(2**20):
                if self._next("requests_to_lose"):
                    return
                if self._next("requests_to_cut"):
                    to_server.write(data[: len(data) // 2])
                    await to_server.drain()
                    return
                waiting = True
                self.bytes += len(data)
                to_server.write(data)

        async def down() -> None:
            nonlocal waiting
            while data := await from_server.read(2**20):
                if waiting:
                    waiting = False
                    self.round_trips += 1
                    if self._next("answers_to_lose"):
                        return
                    if self._next("answers_to_cut"):
                        to_client.write(data[: len(data) // 2])
                        await to_client.drain()
                        return
                self.bytes += len(data)
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
