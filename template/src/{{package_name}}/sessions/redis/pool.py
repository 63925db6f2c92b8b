"""A stack of connections to one Redis server for one event loop, at most so many at once.

redis-py's own pools raise instead of waiting or cost a lock and several hooks for each call, and its clients repeat
commands that may have been carried out. These are its connections without that: a call is sent once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError

IDLE_SECONDS = 240.0
"""Connections unused for longer are not trusted: firewalls and load balancers drop them in silence."""
PROBE_AFTER_SECONDS = 30.0
"""Connections unused for longer are asked for a sign of life before a command is sent, which may not be repeatable."""
PROBE_SECONDS = 2.0
"""How long that may take."""
CLOSE_SECONDS = 2.0


class NotSent(Exception):
    """No connection could be had, so nothing was sent. Its cause is the driver's error."""


class LoginExpired(Exception):
    """The server does not accept any more how a connection has logged in. Its cause is the driver's error.

    Nothing was carried out.
    """


class PoolExhausted(Exception):
    """All connections stayed in use for too long."""


class RedisPool:
    """Connections that are opened when needed and used again, the last used one first.

    Args:
        connect: Opens a connection.
        size: How many there may be; further calls wait.

    Deadlines are times of the event loop. One is for all of a call: waiting, connecting and the exchange.
    """

    def __init__(self, connect: Callable[[], Awaitable[AbstractConnection]], size: int) -> None:
        self._connect = connect
        self._free = asyncio.Semaphore(size)
        self._idle: list[tuple[AbstractConnection, float]] = []
        self._closed = False

    async def exchange(self, packed: bytes, deadline: float) -> Any:
        """Send one packed command; returns the reply.

        Raises:
            NotSent: Before anything was sent.
            ResponseError: The server's answer is an error.
            Exception: What redis-py raises; the command may have been carried out.
        """
        (reply,) = await self.exchange_all(packed, 1, deadline)
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def exchange_all(self, packed: bytes, count: int, deadline: float) -> list[Any]:
        """Send `count` packed commands at once; returns their replies, errors among them."""
        try:
            return await self._exchange(packed, count, deadline)
        except LoginExpired:
            await self.forget_idle()  # they have logged in with the same
        try:
            return await self._exchange(packed, count, deadline)
        except LoginExpired as expired:
            raise (expired.__cause__ or expired) from None

    async def _exchange(self, packed: bytes, count: int, deadline: float) -> list[Any]:
        place, connection = False, None
        replies: list[Any] = []
        try:
            async with asyncio.timeout_at(deadline):
                place = await self._free.acquire()
                connection = await self._take()
                await connection.send_packed_command(packed, check_health=False)
                while len(replies) < count:
                    replies.append(await _reply(connection))
        except BaseException as error:
            if place:
                self._free.release()
            if connection is not None:
                # Cut, timed out or cancelled in the middle: the next reply on it could be an earlier one.
                await connection.disconnect(nowait=True)
                if isinstance(error, AuthenticationError) and not replies:
                    raise LoginExpired from error
                raise
            if not isinstance(error, (RedisError, OSError)):
                raise
            raise NotSent from (error if place else PoolExhausted())
        self._free.release()
        if self._closed:
            await _close(connection)
        else:
            self._idle.append((connection, monotonic()))
        return replies

    async def forget_idle(self) -> None:
        """Drop all connections not in use, because the server went away or is no longer the one to talk to."""
        while self._idle:
            await self._idle.pop()[0].disconnect(nowait=True)

    async def close(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self._closed = True
        idle, self._idle = self._idle, []
        try:
            await asyncio.gather(*(_close(connection) for connection, _ in idle))
        except asyncio.CancelledError:
            for connection, _ in idle:
                await connection.disconnect(nowait=True)
            raise

    async def _take(self) -> AbstractConnection:
        """An idle connection, or a new one."""
        while self._idle:
            connection, since = self._idle.pop()
            try:
                if await self._is_usable(connection, monotonic() - since):
                    return connection
            except BaseException:  # the call was cancelled
                await connection.disconnect(nowait=True)
                raise
            await connection.disconnect(nowait=True)
        return await self._connect()

    async def _is_usable(self, connection: AbstractConnection, idle: float) -> bool:
        if idle > 1:
            # If something kept the event loop busy, it has not seen yet that the server hung up.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        # There is nothing to read before a command is sent, unless the server has hung up.
        if idle >= IDLE_SECONDS or await connection.can_read():
            return False
        if idle >= PROBE_AFTER_SECONDS and not await _lives(connection):
            await self.forget_idle()  # they are idle for longer
            return False
        return True


async def _close(connection: AbstractConnection) -> None:
    """Take leave of the server, which takes a moment with TLS."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.disconnect()


async def _lives(connection: AbstractConnection) -> bool:
    """Whether the other end still answers."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await connection.send_command("PING", check_health=False)
            await _reply(connection)  # a refusal is an answer as well
            return True
    except (RedisError, OSError):
        return False


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        if "unauthenticated" in str(error):  # what NOAUTH is called for a command with many arguments
            raise AuthenticationError(str(error)) from error
        return error
