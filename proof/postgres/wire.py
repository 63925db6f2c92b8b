"""The network between a store and PostgreSQL: it can swallow everything, and lead to another server."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from proof.support.relay import Relay


class Wire(Relay):
    """A relay that can fall silent: nothing passes, in either direction, and no end of a connection is noticed."""

    silent = False
    _born = 0
    """How often it forgot connections; those that are older are silent for ever."""

    def forget(self) -> None:
        """Drop all connections without a word, as a firewall does with idle ones; new ones pass."""
        self._born += 1

    def lead_to(self, url: str) -> None:
        """Lead new connections to another server, as DNS or a virtual address does after a failover."""
        parts = urlsplit(url)
        self._target = parts.hostname or "", parts.port or 5432

    async def _serve(self, from_client: StreamReader, to_client: StreamWriter) -> None:
        read, write, born = from_client.read, to_client.write, self._born

        async def read_unless_silent(n: int = -1) -> bytes:
            while True:
                data = await read(n)
                if not self.silent and born == self._born:
                    return data
                if not data:
                    await asyncio.Event().wait()  # until the relay ends

        def write_unless_silent(data: bytes) -> None:
            if not self.silent and born == self._born:
                write(data)

        from_client.read = read_unless_silent  # type: ignore[method-assign]
        to_client.write = write_unless_silent  # type: ignore[method-assign, assignment]
        await super()._serve(from_client, to_client)


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[tuple[Wire, str]]:
    """A network in front of a server, and the address through it."""
    parts = urlsplit(url)
    async with Wire(parts.hostname or "", parts.port or 5432).running() as relay:
        assert isinstance(relay, Wire)
        yield relay, relay.url(url)
