"""A network between a store and its server that can be slow, or swallow everything without a word."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import pytest

from proof.support.listener import Listener

ADDRESSES = ("DATABASE_URL", "REDIS_URL", "SUPABASE_URL")
"""The variable that says where the server is, of each backend."""


class Network(Listener):
    """Passes bytes on.

    Attributes:
        delay: Seconds that each piece is on its way, in each direction.
        silent: Nothing passes any more, in either direction, without a sign. New connections are accepted, and silent.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._target = host, port
        self._ends: set[asyncio.StreamWriter] = set()
        self.delay = 0.0
        self.silent = False

    def _end(self) -> None:
        self.silent = False
        for writer in self._ends:
            writer.transport.abort()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self._target)
        ends = {to_client, to_server}
        self._ends |= ends
        ways = {
            asyncio.ensure_future(self._pass_on(from_client, to_server)),
            asyncio.ensure_future(self._pass_on(from_server, to_client)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in ends:
                writer.transport.abort()
            self._ends -= ends

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(2**20):
                await asyncio.sleep(self.delay)
                if not self.silent:
                    target.write(data)
        while self.silent:  # noqa: ASYNC110 - the end of a connection is swallowed as well
            await asyncio.sleep(0.01)


@asynccontextmanager
async def network_before(environment: Mapping[str, str]) -> AsyncIterator[tuple[Network, dict[str, str]]]:
    """A network in front of a server, and the variables that reach the server through it."""
    name = next(name for name in ADDRESSES if name in environment)
    address = urlsplit(environment[name])
    if "+" in address.scheme:
        pytest.skip("for one server alone: the others tell their own addresses")
    async with Network(address.hostname or "", address.port or 0).running() as network:
        login, at, _ = address.netloc.rpartition("@")
        url = urlunsplit(address._replace(netloc=f"{login}{at}127.0.0.1:{network.port}"))
        yield network, {**environment, name: url}


def unused_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
