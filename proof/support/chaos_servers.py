"""The development server in our own hands: its processes are killed without warning and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from my_agent.dev.backend import Engine
from proof.support.relay import Relay

T = TypeVar("T")
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

    def __init__(self, directory: Path, engine: type[Engine] = Engine) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._engine = engine(directory, True, *engine.find(directory))
        self._thread = ThreadPoolExecutor(1)  # a process ends with the thread that started it

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Mapping[str, str]]:
        """The variables that reach the server, while it runs."""
        try:
            yield await self._in_thread(self._engine.start)
        finally:
            await self._in_thread(self._engine.stop)
            self._thread.shutdown()

    async def kill(self, name: str) -> None:
        """`kill -9` one process, and start it again."""
        process = self._engine.processes[name].popen
        process.kill()
        await self._in_thread(process.wait)
        await self._in_thread(self._engine.start)

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)


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
