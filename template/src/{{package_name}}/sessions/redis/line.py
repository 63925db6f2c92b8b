"""One connection to Redis: commands of concurrent tasks leave in one write, and replies arrive in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from copy import copy
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLost

from ..retry import unnoticed

FRESH_SECONDS = 1.0
"""A connection that was used so recently is used again without a look at it."""
PROBE_SECONDS = 2.0
"""How long the answer to a probe may take."""
CLOSE_SECONDS = 2.0
"""How long taking leave of the server may take."""
MAX_BYTES = 2**22
"""Commands on their way on one connection, in bytes. With more of them, callers wait."""
READING_TURNS = 2
"""Turns of the event loop that a reply takes from the socket to its caller."""

_PING = b"*1\r\n$4\r\nPING\r\n"


class NotSent(Exception):
    """No connection could be had, so nothing was sent. Its cause is the driver's error."""


class Untouched(NotSent):
    """The connection was lost before the command was written to it."""


class Call:
    """Commands that were sent together, and who waits for their replies."""

    __slots__ = ("answer", "count", "is_over", "packed", "replies", "sent_at", "size", "timer")

    def __init__(self, packed: bytes, count: int, sent_at: float, answer: asyncio.Future[list[Any]]) -> None:
        self.packed: bytes | None = packed
        """None once it was written."""
        self.size = len(packed)
        self.count = count
        self.sent_at = sent_at
        self.answer = answer
        self.is_over = False
        """Whether nothing more will be known: it was answered, lost or withdrawn."""
        self.replies: list[Any] = []
        self.timer: asyncio.Handle | None = None

    def forget_deadline(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def end(self, error: BaseException | None = None) -> None:
        self.is_over = True
        self.forget_deadline()
        if self.answer.done():  # given up
            return
        if error is None:
            self.answer.set_result(self.replies)
        else:
            self.answer.set_exception(error)


class Line:
    """A connection, the calls that wait for its replies, and the two tasks that alone touch it.

    (redis-py drops a connection when a task is cancelled while it sends or reads.)

    Args:
        connection: Logged in.
        patience: In seconds. When a call expires and nothing came for so long while replies were due, all calls fail.
    """

    def __init__(self, connection: AbstractConnection, patience: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        # Private there, as only this drops what was not sent yet: close() would still send it.
        self._transport: asyncio.WriteTransport = connection._writer.transport  # type: ignore[union-attr]
        self._patience = patience
        self._waiting: deque[Call] = deque()
        self._unsent: list[Call] = []
        self._bytes = 0
        self._heard_at = self._loop.time()
        self._something_to_send = asyncio.Event()
        self._room = asyncio.Event()
        self.is_dead = self.is_leaving = False
        self.reader = unnoticed(asyncio.create_task(self._read(), name="replies of Redis"))
        self._writer = unnoticed(asyncio.create_task(self._write(), name="commands to Redis"))

    # ── For those who call ──────────────────────────────────────────────────

    def is_ready(self, size: int) -> bool:
        """Whether a call may use it right away."""
        if self.is_dead or self.is_leaving or not self.has_room(size):
            return False
        return bool(self._waiting) or self.idle_seconds() <= FRESH_SECONDS

    def idle_seconds(self) -> float:
        return 0.0 if self._waiting else self._loop.time() - self._heard_at

    def has_room(self, size: int) -> bool:
        return not self._bytes or self._bytes + size <= MAX_BYTES

    async def wait_for_room(self) -> None:
        self._room.clear()
        await self._room.wait()

    async def probe(self) -> None:
        """Ask for a sign of life."""
        await self.send(_PING, 1, self._loop.time() + PROBE_SECONDS).answer

    def send(self, packed: bytes, count: int, deadline: float) -> Call:
        """Put commands behind the others; `answer` of what is returned gets their replies."""
        call = Call(packed, count, self._loop.time(), self._loop.create_future())
        call.timer = self._loop.call_at(deadline, self._expire, call)
        self._bytes += call.size
        self._waiting.append(call)
        self._unsent.append(call)
        self._something_to_send.set()
        return call

    def withdraw(self, call: Call) -> bool:
        """Take a call back that was not written yet; False if it was."""
        if call.packed is None:
            return False
        if not call.is_over:
            self._unsent.remove(call)
            self._waiting.remove(call)
            self._give_room(call)
            call.packed, call.is_over = b"", True
            call.forget_deadline()
            self.end_if_unwanted()
        return True

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing came for so long, while replies were due."""
        if not self._waiting:
            return False
        return self._loop.time() - max(self._heard_at, self._waiting[0].sent_at) >= seconds

    def leave(self) -> None:
        """Take no more calls, and end when nobody waits for a reply any more."""
        self.is_leaving = True
        self._room.set()
        self.end_if_unwanted()

    def end_if_unwanted(self) -> None:
        """End a line that is leaving if nobody waits for a reply any more."""
        if self.is_leaving and not self.is_dead and not self._is_wanted():
            self.reader.cancel()

    def fail(self, error: BaseException) -> None:
        """End now. Each call gets an error of its own: a shared one would collect the tracebacks of all."""
        if self.is_dead:
            return
        self.is_dead = True
        self._room.set()
        if asyncio.current_task() is not self.reader:
            self.reader.cancel()
        for call in self._waiting:
            lost: Exception = (
                copy(error) if isinstance(error, (RedisError, OSError)) else ConnectionLost(type(error).__name__)
            )
            lost.__context__ = error.__context__  # what TLS said
            call.end(lost if call.packed is None else _unsent(Untouched, lost))
        self._waiting.clear()

    # ── Inside ──────────────────────────────────────────────────────────────

    def _expire(self, call: Call, turns: int = READING_TURNS) -> None:
        """A reply is late: its caller gives up. The others do, too, if the connection is silent."""
        if call.answer.done():
            return
        if turns:  # something kept the event loop busy, perhaps, and the reply is in the socket
            call.timer = self._loop.call_soon(self._expire, call, turns - 1)
        elif self.withdraw(call):
            call.answer.set_exception(_unsent(NotSent, TimeoutError()))
        elif self.is_silent(self._patience):
            self.fail(TimeoutError())
        else:
            call.answer.set_exception(TimeoutError())
            self.end_if_unwanted()

    def _is_wanted(self) -> bool:
        return not all(call.answer.done() for call in self._waiting)

    def _give_room(self, call: Call) -> None:
        self._bytes -= call.size
        self._room.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._something_to_send.wait()
                self._something_to_send.clear()
                calls, self._unsent = self._unsent, []
                packed = [call.packed for call in calls if call.packed is not None]
                for call in calls:
                    call.packed = None
                await self._connection.send_packed_command(packed, check_health=False)
        except Exception as error:  # whatever it is: nobody else would notice
            if not self._loop.is_closed():
                self.fail(error)

    async def _read(self) -> None:
        gently = False
        try:
            try:
                await self._hand_out()
            except asyncio.CancelledError:
                if self.is_dead:
                    raise
                # It is leaving, or the event loop ends: then callers were cancelled too, and may wait for the outcome.
                self.is_leaving = True
                await asyncio.sleep(0)
                await self._hand_out()
            gently = not self._waiting
            self.fail(ConnectionLost("The connection was closed"))
        except Exception as error:
            self.fail(error)
        except asyncio.CancelledError:
            self.fail(ConnectionLost("The connection was closed"))
        # Not in `finally`: an event loop that was closed without us drops this task, and nothing can be closed then.
        self._writer.cancel()
        if not gently:
            self._transport.abort()
        with suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):  # TLS takes leave of the server
                await self._connection.disconnect(nowait=not gently)

    async def _hand_out(self) -> None:
        waiting = self._waiting
        while not self.is_leaving or self._is_wanted():
            reply = await self._reply()
            self._heard_at = self._loop.time()
            call = waiting[0]
            call.replies.append(reply)
            if len(call.replies) == call.count:
                waiting.popleft()
                self._give_room(call)
                call.end()

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(disconnect_on_error=False)
        except (AuthenticationError, BusyLoadingError) as error:  # which are replies, and no end of the connection
            return error
        except ResponseError as error:
            if "unauthenticated" in str(error):  # what NOAUTH is called for a command with many arguments
                return AuthenticationError(str(error))
            return error


def _unsent(kind: type[NotSent], cause: BaseException) -> NotSent:
    error = kind()
    error.__cause__ = cause
    return error
