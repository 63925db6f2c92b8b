"""A server that speaks Redis' protocol and answers by a script, where a test needs an answer at an exact moment.

It stands in for no database: what the server does with data is tested on real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hiredis import Reader

from proof.support.listener import Listener

Answer = Callable[[list[bytes]], Awaitable[bytes | None]]
"""The reply to a command; None: none."""


class Scripted(Listener):
    """Answers the commands of each connection one after the other."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer
        self.connections = 0
        self.seen: list[list[bytes]] = []
        self.reads = asyncio.Event()
        """Cleared: it takes nothing from its connections."""
        self.reads.set()

    def _end(self) -> None:
        for task in self._serving:
            if task is not None:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = Reader()
        try:
            while True:
                await self.reads.wait()
                if not (data := await reader.read(2**16)):
                    break
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.seen.append(command)
                    if (reply := await self._answer(command)) is not None:
                        writer.write(reply)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
