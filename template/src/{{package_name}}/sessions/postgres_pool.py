"""A stack of connections for one event loop, at most so many at once.

`asyncpg.Pool` resets a connection after each use, which costs a round trip, and goes through the event loop five times
for each call, which costs 45 µs where a small read takes 100. Our calls are one statement without session state, so a
connection goes back as it is. What is lost: nothing is opened ahead of need.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any

import asyncpg

from .retry import settled
from .tracebacks import forget_locals

IDLE_SECONDS = 300.0
"""Connections unused for longer are not trusted: firewalls drop them in silence. The same as asyncpg's pool."""

CANCEL_SECONDS = 5.0
"""How long a server may take to stop what was cancelled, until its connection is cut."""

logger = logging.getLogger(__name__)


class ConnectionPool:
    """Connections that are opened when needed and used again, the last used one first.

    Args:
        options: For `asyncpg.connect`.
        size: How many there may be; further calls wait.
        timeout: How long they wait, in seconds.
    """

    def __init__(self, options: Mapping[str, Any], size: int, timeout: float) -> None:
        self._options = options
        self._timeout = timeout
        self._free = asyncio.Semaphore(size)
        self._idle: list[tuple[asyncpg.Connection, float]] = []
        self._closed = False

    async def fetchval(self, statement: str, arguments: tuple[object, ...]) -> Any:
        """The first value of the first row, in one round trip.

        Raises:
            ConnectFailed: Before anything was sent; its cause is the driver's error.
            Exception: What asyncpg raises; the statement may have been carried out.
        """
        try:
            connection = await self._acquire()
        except Exception as error:
            raise ConnectFailed from error
        try:
            value = await connection.fetchval(statement, *arguments)
        except asyncpg.PostgresError:
            self._release(connection)
            raise
        except asyncio.CancelledError:
            await settled(self._stop(connection))
            self._free.release()
            raise
        except BaseException:
            # Cut or timed out in the middle: nobody knows what would come out of it next.
            connection.terminate()
            self._free.release()
            raise
        self._release(connection)
        return value

    async def _stop(self, connection: asyncpg.Connection) -> None:
        """End a connection whose statement was cancelled: it was carried out or not, and nothing happens later.

        The driver has asked the server to stop; closing waits for what it says.
        """
        try:
            await connection.close(timeout=CANCEL_SECONDS)
        except Exception as error:
            logger.warning("What became of a cancelled statement is not known: %s", type(error).__name__)

    def forget_idle(self) -> None:
        """Drop all connections not in use, after one was lost: the server went away, so they are dead too."""
        while self._idle:
            self._idle.pop()[0].terminate()

    async def close(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self._closed = True
        while self._idle:
            connection, _ = self._idle.pop()
            try:
                await connection.close(timeout=2)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    async def _acquire(self) -> asyncpg.Connection:
        if self._free.locked():
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        else:
            await self._free.acquire()
        try:
            while self._idle:
                connection, since = self._idle.pop()
                if monotonic() - since > IDLE_SECONDS:
                    connection.terminate()
                elif not connection.is_closed():
                    return connection
            return await asyncpg.connect(**self._options)
        except BaseException as error:
            forget_locals(error)  # the driver's hold the password
            self._free.release()
            raise

    def _release(self, connection: asyncpg.Connection) -> None:
        self._free.release()
        if self._closed:
            connection.terminate()
        elif not connection.is_closed():
            self._idle.append((connection, monotonic()))


class ConnectFailed(Exception):
    """No connection could be had, so nothing was sent."""
