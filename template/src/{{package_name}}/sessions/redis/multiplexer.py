"""A few connections to one Redis server for one event loop, each shared by many calls at once.

That is many times faster under load than a connection for each call, and kinder to servers that count connections.
The connections are redis-py's; its pools and clients lend one to one call at a time, and repeat commands that may have
been carried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as ConnectionLost

from ..retry import ended
from .line import CLOSE_SECONDS, FRESH_SECONDS, Call, Line, NotSent, Untouched

IDLE_SECONDS = 240.0
"""Connections unused for longer are not trusted: firewalls and load balancers drop them in silence."""
PROBE_AFTER_SECONDS = 30.0
"""Connections unused for longer are asked for a sign of life before a command is sent, which may not be repeatable."""
SILENT_SECONDS = 1.0
"""A connection from which nothing came for so long while a cancelled call waited gets no more calls."""
LARGE_BYTES = 2**16
"""Longer commands have a connection of their own, so that small ones do not wait for megabytes."""

logger = logging.getLogger(__name__)


class LoginExpired(Exception):
    """The server does not accept any more how a connection has logged in. Nothing was carried out."""


class Multiplexer:
    """One connection for small commands and one for large ones, opened when needed and replaced when lost.

    Deadlines are times of the event loop. One is for all of a call: connecting, waiting for room and the exchange.

    Args:
        connect: Opens a connection that is logged in.
        settle_seconds: How long a change whose caller was cancelled may take to be answered.
        timeout: How many seconds a call has from its beginning to its deadline. When one expires, a connection is dead
            that was silent for half of it: a call that had to wait, and so expires soon after it was sent, ends alone.
            Not the one for large replies, which may be on their way for long: it only gets no more calls.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[AbstractConnection]], settle_seconds: float, timeout: float
    ) -> None:
        self._connect = connect
        self._settle_seconds = settle_seconds
        self._patience = timeout / 2
        self._lines: list[Line | None] = [None, None]
        self._opening = (asyncio.Lock(), asyncio.Lock())
        """Who has one looks for a line that works and has room. The others wait behind."""
        self._leaving: set[Line] = set()
        """Not used for new calls, but still waiting for replies."""
        self._closed = False

    async def exchange(self, packed: bytes, deadline: float, *, change: bool = False, large: bool = False) -> Any:
        """Send one packed command; returns the reply.

        Args:
            change: Whether a caller who is cancelled waits until it is known that nothing happens later.
            large: Whether the reply may be.

        Raises:
            NotSent: Before anything was sent.
            ResponseError, BusyLoadingError: The server's answer is an error.
            Exception: What redis-py raises; the command may have been carried out.
        """
        (reply,) = await self.exchange_all(packed, 1, deadline, change=change, large=large)
        if isinstance(reply, RedisError):
            raise reply
        return reply

    async def exchange_all(
        self, packed: bytes, count: int, deadline: float, *, change: bool = False, large: bool = False
    ) -> list[Any]:
        """Send `count` packed commands at once; returns their replies, errors among them."""
        again = True
        while True:
            try:
                return await self._exchange(packed, count, deadline, change, large)
            except Untouched:
                if self._closed or not again:
                    raise
            except LoginExpired as expired:
                if self._closed or not again:
                    raise (expired.__cause__ or expired) from None
            again = False  # the connection is dropped; the next one asks for user and password again

    async def _exchange(self, packed: bytes, count: int, deadline: float, change: bool, large: bool) -> list[Any]:
        large = large or len(packed) > LARGE_BYTES
        line = self._lines[large]
        if line is None or self._opening[large].locked() or not line.is_ready(len(packed)):
            line = await self._ready(large, len(packed), deadline)
        call = line.send(packed, count, deadline)
        if self._closed:  # while this call was waiting for its connection
            self._retire(line)
        try:
            replies: list[Any] = await call.answer
        except asyncio.CancelledError:
            if not line.withdraw(call) and not call.is_over:
                await self._settle(line, call, self._settle_seconds if change else 0)
            raise
        except TimeoutError:
            if line.is_silent(self._patience):
                self._retire(line)
            raise
        if any(isinstance(reply, AuthenticationError) for reply in replies):
            self._retire(line)
            if isinstance(replies[0], AuthenticationError):
                raise LoginExpired from replies[0]
        return replies

    async def _settle(self, line: Line, call: Call, seconds: float) -> None:
        """Wait for the answer on behalf of a caller who was cancelled. Its deadline does not count any more."""
        call.forget_deadline()
        if seconds:
            call.answer = answer = asyncio.get_running_loop().create_future()  # the other one was cancelled
            await ended(answer, monotonic() + seconds)
            if answer.done():
                answer.exception()  # retrieved, or asyncio logs it
                return
            answer.cancel()
            logger.warning("The outcome of a cancelled call is not known after %g s.", seconds)
        if line.is_silent(SILENT_SECONDS):
            self._retire(line)  # for the others that wait it may still wake up
        line.end_if_unwanted()

    async def forget_idle(self) -> None:
        """Use other connections from now on, because the server went away or is not the primary any more."""
        for line in self._lines:
            if line is not None:
                self._retire(line)

    async def close(self) -> None:
        """Let calls on their way end, and close the connections."""
        self._closed = True
        await self.forget_idle()
        lines = list(self._leaving)
        if not lines:
            return
        try:
            await asyncio.wait([line.reader for line in lines], timeout=CLOSE_SECONDS)
        finally:
            for line in lines:
                line.fail(ConnectionLost("The store was closed"))
        await asyncio.wait([line.reader for line in lines])

    async def _ready(self, large: bool, size: int, deadline: float) -> Line:
        """A line that works and has room. Callers get one in the order in which they came."""
        try:
            async with asyncio.timeout_at(deadline), self._opening[large]:
                while True:
                    line = self._lines[large]
                    if line is None or not await self._is_usable(line):
                        line = self._lines[large] = Line(await self._connect(), inf if large else self._patience)
                    if line.has_room(size):
                        return line
                    await line.wait_for_room()
        except (RedisError, OSError) as error:
            raise NotSent from error

    async def _is_usable(self, line: Line) -> bool:
        idle = line.idle_seconds()
        if idle > FRESH_SECONDS:
            # If something kept the event loop busy, it has not seen yet that the server hung up.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if line.is_dead or line.is_leaving or idle >= IDLE_SECONDS:
            self._retire(line)
            return False
        if idle >= PROBE_AFTER_SECONDS:
            try:
                await line.probe()
            except asyncio.CancelledError:
                self._retire(line)  # whether it works is not known
                raise
            except (RedisError, OSError) as error:
                line.fail(error)
                await self.forget_idle()
        return not (line.is_dead or line.is_leaving)

    def _retire(self, line: Line) -> None:
        for place, other in enumerate(self._lines):
            if other is line:
                self._lines[place] = None
        if not line.reader.done() and line not in self._leaving:
            self._leaving.add(line)
            line.reader.add_done_callback(lambda _: self._leaving.discard(line))
            line.leave()
