"""The development server in our own hands: its processes are killed without warning and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from my_agent.dev import server as devserver
from proof.support.dev_servers import kill
from proof.support.relay import Relay

Fault = Callable[[], Awaitable[object]]
"""Breaks something; returns when it is broken, and whole again if it does not heal by itself."""


@dataclass
class Stage:
    """Where chaos takes place."""

    environment: Mapping[str, str]
    """The variables that reach the server, through a relay."""
    faults: Mapping[str, Fault]
    """What can be broken, by its name in the table."""


class Servers:
    """The processes of a development server that keeps its promises: what it has acknowledged is on the disk."""

    def __init__(self, directory: Path, engine: type[devserver.Engine] = devserver.Engine) -> None:
        self._directory, self._engine = directory, engine

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Mapping[str, str]]:
        """The variables that reach the server, while it runs."""
        server = await asyncio.to_thread(self._start)
        try:
            yield server.environment
        finally:
            await asyncio.to_thread(server.close)

    async def kill(self, name: str) -> None:
        """`kill -9` one process, and start it again."""
        await asyncio.to_thread(kill, self._directory, name)
        (await asyncio.to_thread(self._start)).close()

    def _start(self) -> devserver.DevServer:
        return devserver.start(self._directory, engine=self._engine)


def faults_of_a_network(relay: Relay) -> dict[str, Fault]:
    """What any connection may suffer, and each leaves another question open: was it carried out?"""

    async def happens(name: str) -> None:
        relay.broken.clear()
        setattr(relay, name, 1)
        await relay.broken.wait()

    async def reset() -> None:
        relay.reset()

    return {
        "a request is lost": lambda: happens("requests_to_lose"),
        "a request is cut in half": lambda: happens("requests_to_cut"),
        "an answer is lost": lambda: happens("answers_to_lose"),
        "an answer is cut in half": lambda: happens("answers_to_cut"),
        "all connections are reset": reset,
    }
