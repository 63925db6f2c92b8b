"""A stack of connections for one event loop, at most so many at once.

`asyncpg.Pool` resets a connection after each use, which costs a round trip, and goes through the event loop five times
for each call, which costs 45 µs where a small read takes 100. Our calls are one statement without session state, so a
connection goes back as it is. What is lost: nothing is opened ahead of need.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

import asyncpg

from ..credentials import Credentials
from ..retry import abandon, cancellations, hidden
from .connection import NoFreeConnection, PostgresSettings, connect, pool_options
from .socket import reset

IDLE_SECONDS = 200.0
"""Connections unused for longer are not trusted: load balancers drop them in silence, the first ones after 240 s."""

CHECK_SECONDS = 30.0
"""Connections unused for longer are asked first whether they still work: a statement that is swallowed by the network
would take the whole timeout, and its outcome would be unknown. One round trip, after a pause only."""

CHECK_TIMEOUT_SECONDS = 2.0
"""How long the answer may take. Then a new connection is opened."""

CANCEL_AGAIN_SECONDS = 0.25
"""How long after a request to cancel a statement the next one is sent, if the statement goes on; then twice as long."""

CLOSE_SECONDS = 2.0
"""How long all idle connections together may take to close."""

logger = logging.getLogger(__name__)


class ConnectionPool:
    """Connections that are opened when needed and used again, the last used one first.

    A call has one deadline, DATABASE_TIMEOUT_SECONDS, for waiting, connecting and its statement. A statement that is
    late or cancelled is ended at the server before the call ends, within SESSION_SETTLE_SECONDS more.
    """

    def __init__(self, settings: PostgresSettings, credentials: Credentials | None = None) -> None:
        self._settings = settings
        self._credentials = credentials
        self._timeout = settings.database_timeout_seconds
        self._settle_seconds = settings.session_settle_seconds
        self._server_settings = pool_options(settings)
        self._free = asyncio.Semaphore(settings.database_pool_max)
        self._idle: list[_Pooled] = []
        self._generation = 0
        self._closed = False

    async def fetch(self, statement: str, arguments: tuple[object, ...]) -> list[asyncpg.Record]:
        """The rows of one statement, in one round trip.

        Raises:
            ConnectFailed: Before anything was sent; its cause is the driver's error.
            Exception: What asyncpg raises; the statement may have been carried out.
        """
        cancelled = cancellations()
        deadline = monotonic() + self._timeout
        try:
            pooled = await self._acquire(deadline)
        except Exception as error:
            if cancellations() > cancelled:
                raise asyncio.CancelledError from error
            raise ConnectFailed from error
        try:
            rows: list[asyncpg.Record] = await pooled.connection.fetch(
                statement, *arguments, timeout=deadline - monotonic()
            )
        except (TimeoutError, asyncio.CancelledError):
            await self._settle(pooled)
            if cancellations() > cancelled:
                raise asyncio.CancelledError from None
            raise
        except BaseException as error:
            if isinstance(error, asyncpg.PostgresError) and not _is_useless(error):
                self._release(pooled)
            else:
                self._drop(pooled)
            if cancellations() > cancelled:
                raise asyncio.CancelledError from error
            raise
        self._release(pooled)
        return rows

    async def close(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self._closed = True
        idle = [pooled.connection for pooled in self._idle]
        self._idle.clear()
        if not idle:
            return
        closing = [asyncio.ensure_future(connection.close(timeout=CLOSE_SECONDS)) for connection in idle]
        try:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        finally:
            for connection, task in zip(idle, closing, strict=True):
                connection.terminate()
                abandon(task)

    async def _acquire(self, deadline: float) -> _Pooled:
        if self._free.locked():
            try:
                async with asyncio.timeout(self._timeout):
                    await self._free.acquire()
            except TimeoutError:
                raise NoFreeConnection from None
        else:
            await self._free.acquire()
        try:
            while self._idle:
                pooled = self._idle.pop()
                idle = monotonic() - pooled.idle_since
                if idle > IDLE_SECONDS:
                    pooled.connection.terminate()
                elif not pooled.connection.is_closed() and (idle < CHECK_SECONDS or await self._answers(pooled)):
                    return pooled
            # Of this generation even if others find out, while this one connects, that the server is another now.
            generation = self._generation
            return _Pooled(await self._connect(deadline), generation)
        except BaseException:
            self._free.release()
            raise

    async def _answers(self, pooled: _Pooled) -> bool:
        """Whether a connection that was idle still works. If not, it is cut, and those that were idle for longer."""
        # In a task that can be left behind, for the reason that `_settle` gives.
        probe = asyncio.ensure_future(pooled.connection.execute("SELECT 1", timeout=CHECK_TIMEOUT_SECONDS))
        works = False
        try:
            await asyncio.wait({probe}, timeout=min(CHECK_TIMEOUT_SECONDS, self._timeout / 2))
            works = probe.done() and not probe.cancelled() and probe.exception() is None
        finally:
            if not works:
                pooled.connection.terminate()
                abandon(probe)
        if not works:
            logger.info("%s: an idle connection did not answer and is replaced.", self._settings.where)
            while self._idle and self._idle[0].idle_since <= pooled.idle_since:
                self._idle.pop(0).connection.terminate()
        return works

    async def _connect(self, deadline: float) -> asyncpg.Connection:
        # The driver gives its request to cancel a statement `command_timeout` seconds.
        options = {"command_timeout": self._settle_seconds, "max_cached_statement_lifetime": 0}
        while True:
            if (seconds := deadline - monotonic()) <= 0:
                raise TimeoutError
            try:
                return await connect(
                    self._settings, self._credentials, seconds=seconds, **options, **self._server_settings
                )
            except (asyncpg.ProtocolViolationError, asyncpg.FeatureNotSupportedError):
                # A pooler in session mode: all is well with it, but it may refuse what it does not know.
                if not self._server_settings:
                    raise
                self._server_settings = {}

    async def _settle(self, pooled: _Pooled) -> None:
        """Wait until the server has ended a statement that was late or cancelled. Its place in the pool stays taken.

        The driver sends the request to cancel it on a connection of its own, in the background; to cut ours stops that
        request as well, and the statement would keep running. The next statement waits for the end of the last. asyncpg
        0.31 waits without a limit where the network is silent, so it does that in a task that can be left behind.
        The driver's requests are private there; the template's proof fails if that changes.
        """
        connection, pause = pooled.connection, CANCEL_AGAIN_SECONDS
        probe = asyncio.create_task(connection.execute("SELECT 1", timeout=self._settle_seconds))
        end = monotonic() + self._settle_seconds
        again: asyncio.CancelledError | None = None
        while (seconds := end - monotonic()) > 0:
            # One that comes late would hit the next statement.
            requests: set[asyncio.Task[None]] = set(connection._cancellations)  # type: ignore[attr-defined]
            if probe.done() and not requests:
                break
            for task in (probe, *requests):
                hidden(task)
            try:
                await asyncio.wait({probe, *requests}, timeout=min(seconds, pause))
            except asyncio.CancelledError as error:
                again = error
                continue
            if not probe.done():
                # The request may have overtaken the statement, and a server that does nothing ignores it.
                connection._cancel_current_command(  # type: ignore[attr-defined]
                    asyncio.get_running_loop().create_future()
                )
                pause *= 2
        # A request that came late has hit the probe: that is an answer as well.
        if probe.done() and not probe.cancelled() and isinstance(probe.exception(), asyncpg.QueryCanceledError | None):
            self._release(pooled)
        else:
            reset(connection)
            self._drop(pooled)
            abandon(probe)
            logger.warning(
                "%s: the end of a statement was not confirmed within %g s (SESSION_SETTLE_SECONDS).",
                self._settings.where,
                self._settle_seconds,
            )
        if again is not None:
            raise again

    def _release(self, pooled: _Pooled) -> None:
        """Put a connection back that works."""
        self._free.release()
        if self._closed or pooled.generation != self._generation:
            pooled.connection.terminate()
        elif not pooled.connection.is_closed():
            pooled.idle_since = monotonic()
            self._idle.append(pooled)

    def _drop(self, pooled: _Pooled) -> None:
        """Cut a connection that was lost, and all that were opened before now: they end at the same server.

        The idle ones at once, so that the next attempt does not meet one of them; those in use when they come back.
        """
        self._generation += 1
        pooled.connection.terminate()
        self._free.release()
        while self._idle:
            self._idle.pop().connection.terminate()


class ConnectFailed(Exception):
    """No connection could be had, so nothing was sent."""


class _Pooled:
    """A connection, and when it was opened and last used."""

    __slots__ = ("connection", "generation", "idle_since")

    def __init__(self, connection: asyncpg.Connection, generation: int) -> None:
        self.connection = connection
        self.generation = generation
        self.idle_since = 0.0


def _is_useless(error: asyncpg.PostgresError) -> bool:
    """Whether a connection cannot serve us any more: the server ends or starts, or became read-only (a standby)."""
    code = error.sqlstate or ""
    return code[:2] in ("08", "25") or code[:4] == "57P0"
