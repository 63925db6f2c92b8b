"""A TCP server of the tests on loopback: it listens for as long as it is needed, and leaves no task behind."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self


class Listener(ABC):
    """Serves each connection in a task of its own."""

    def __init__(self) -> None:
        self._serving: set[asyncio.Task[None] | None] = set()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self._end()
            await asyncio.gather(*filter(None, self._serving), return_exceptions=True)
            await server.wait_closed()

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        await self._serve(from_client, to_client)

    @abstractmethod
    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Serve a connection until it ends."""

    @abstractmethod
    def _end(self) -> None:
        """Let every `_serve` return."""
