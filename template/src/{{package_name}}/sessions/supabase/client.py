"""Calling the functions of a Supabase project: all stores of a project share one client and its connections.

The client is ours alone, and `.auth` is never used on it: an auth event would change whom it acts for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar
from weakref import WeakSet

import httpx
from pydantic import SecretStr
from supabase import AsyncClient, AsyncClientOptions

from ..errors import SchemaOutdated, StoreRefused, forget_locals, forgets_locals
from ..postgres.connection import read_opening
from ..retry import hidden
from ..settings import Hidden
from .connection import SupabaseSettings, deadline_of
from .errors import Refusal, TokenExpired, refuse, translate
from .token import AccessToken, TokenInUse

T = TypeVar("T")

MAX_IDLE_CONNECTIONS = 10
"""httpx looks at every idle connection at each call: 50 of them double its time."""
IDLE_SECONDS = 60.0
"""Shorter than what servers and firewalls commonly allow (nginx: 75 s), long enough to span a model call."""

KEY_HEADER = "x-agent-session-key"
"""Carries the server's key. The names of headers are written once more in `supabase/migrations/`."""
WAIT_HEADER = "x-agent-session-wait"
"""How many milliseconds a change may wait in the database for others. PostgREST does not cancel a statement when its
caller is gone, so one that was given up ends by itself."""
LEAST_SECONDS, LEAST_SHARE = 0.05, 0.25
"""How much time must be left for a request: so many seconds, or that share of the time of a call if it is less."""
CONNECT_SHARE = 0.9
"""Of the time of a call: what is given up earlier than the call itself certainly was not sent."""

OPENING_FUNCTION = "agent_session_open"
SCHEMA_PAUSES = (0.1, 0.2, 0.4, 0.8)
"""Seconds between questions for functions that are not there yet."""


@dataclass(eq=False)
class Project:
    """One project on one event loop."""

    client: AsyncClient
    http: httpx.AsyncClient
    turns: asyncio.Semaphore
    """As many as there may be connections."""
    least_seconds: float
    """How much time must be left for a request, which goes on when its caller gives up."""
    callers: WeakSet[Caller] = field(default_factory=WeakSet)
    requests: set[asyncio.Task[Any]] = field(default_factory=set)

    @classmethod
    def connect(cls, settings: SupabaseSettings) -> Project:
        """Set everything up, without I/O."""
        http = httpx.AsyncClient(
            timeout=httpx.Timeout(
                settings.supabase_timeout_seconds, connect=settings.supabase_timeout_seconds * CONNECT_SHARE
            ),
            limits=httpx.Limits(
                max_connections=settings.supabase_pool_max,
                max_keepalive_connections=min(MAX_IDLE_CONNECTIONS, settings.supabase_pool_max),
                keepalive_expiry=IDLE_SECONDS,
            ),
            # The users of a server share these connections, so nothing may stick to them.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            event_hooks={"response": [refuse]},
            trust_env=not settings.is_local,  # a proxy of the environment does not reach our loopback
        )
        options = AsyncClientOptions(
            headers={"Authorization": f"Bearer {settings.key}"},
            auto_refresh_token=False,
            persist_session=False,
            postgrest_client_retry=False,
            httpx_client=http,
        )
        client = AsyncClient(settings.url, settings.key, options)
        least_seconds = min(LEAST_SECONDS, settings.supabase_timeout_seconds * LEAST_SHARE)
        return cls(client, http, asyncio.Semaphore(settings.supabase_pool_max), least_seconds)

    async def completed(self, request: Callable[[], Coroutine[Any, Any, T]], deadline: float) -> T:
        """The outcome of a request, which runs to its end (or timeout) even if the caller stops waiting.

        httpcore 1.0 loses a connection for ever when a request is cancelled, and at times when one waits for its turn
        in vain: soon none would be left. So we do neither. https://github.com/encode/httpcore/issues/1093

        Args:
            request: Makes the request.
            deadline: Until when the caller waits, in the time of the event loop.

        Raises:
            PoolTimeout: Its turn did not come; nothing was sent.
            ReadTimeout: It has not ended.
            Exception: What the request raises.
        """
        clock = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                await self.turns.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("") from None
        if deadline - clock.time() < self.least_seconds:
            self.turns.release()
            raise httpx.PoolTimeout("")
        task = hidden(asyncio.create_task(request()))
        self.requests.add(task)
        task.add_done_callback(self._done)
        await asyncio.wait({task}, timeout=deadline - clock.time())
        if not task.done():
            raise httpx.ReadTimeout("")
        if task.cancelled():  # by `close`
            raise httpx.ReadError("")
        return task.result()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.turns.release()
        self.requests.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio logs it when the caller has stopped waiting

    async def close(self) -> None:
        """Close all connections; requests on them fail."""
        for request in self.requests:
            request.cancel()
        try:
            if self.requests:
                await asyncio.wait(self.requests)
        finally:
            await self.http.aclose()


_projects: dict[tuple[asyncio.AbstractEventLoop, Hidden], Project] = {}


class Caller:
    """Calls functions as one user: the one of an access token, or the role of the key. Belongs to one event loop."""

    @forgets_locals
    def __init__(self, settings: SupabaseSettings, access_token: AccessToken | None) -> None:
        server_key = settings.server_key  # may raise: before anything is made
        self._settings = settings
        self._token = None if access_token is None else TokenInUse(access_token)
        self._signed_in = access_token is not None
        pool = (settings.supabase_timeout_seconds, settings.supabase_pool_max)
        self._place = (asyncio.get_running_loop(), Hidden((settings.url, settings.key, *pool)))
        for place in list(_projects):
            if place[0].is_closed():
                _projects.pop(place, None)  # its connections died with its loop; another thread may have seen it too
        if (project := _projects.get(self._place)) is None:
            try:
                project = _projects[self._place] = Project.connect(settings)
            except (ValueError, httpx.InvalidURL) as error:
                forget_locals(error)
                raise translate(httpx.InvalidURL(""), settings, signed_in=self._signed_in) from error
        self._project = project
        project.callers.add(self)
        # `schema` makes a small client with headers of its own, over the same connections.
        self._api = project.client.schema("public")
        if server_key is not None:
            self._api.headers[KEY_HEADER] = server_key
        # Less than `finish` in retry.py waits: what it gives up must not be carried out afterwards.
        wait = min(settings.session_settle_seconds * 0.7, settings.supabase_timeout_seconds)
        self._api.headers[WAIT_HEADER] = str(max(1, min(round(wait * 1000), 999_999)))

    async def call(self, function: str, arguments: dict[str, Any], deadline: float | None = None) -> Any:
        """The value that the function returns, in one round trip.

        Args:
            function, arguments: What to call.
            deadline: Until when to wait, in the time of the event loop; None: as long as one call may take.

        Raises:
            SessionStoreError: The message says what is wrong and what to do.
        """
        if deadline is None:
            deadline = deadline_of(self._settings)
        # The API notices a migration a moment later: https://docs.postgrest.org/en/latest/references/schema_cache.html
        for pause in SCHEMA_PAUSES:
            with suppress(SchemaOutdated):
                return await self._signed(function, arguments, deadline)
            await asyncio.sleep(pause)
        return await self._signed(function, arguments, deadline)

    async def _signed(self, function: str, arguments: dict[str, Any], deadline: float) -> Any:
        """One call, with the token of the user if there is one."""
        if self._token is None:
            return await self._attempt(function, arguments, deadline)
        token = await self._token.get(deadline)
        try:
            return await self._attempt(function, arguments, deadline, token)
        except TokenExpired:
            # Refused before anything was carried out, so it may be sent again.
            if not await self._token.replace(token, deadline):
                raise
        return await self._attempt(function, arguments, deadline, await self._token.get(deadline))

    async def _attempt(
        self, function: str, arguments: dict[str, Any], deadline: float, token: SecretStr | None = None
    ) -> Any:
        try:
            if token is not None:
                self._api.auth(token.get_secret_value())  # the request copies it
            answer = await self._project.completed(self._api.rpc(function, arguments).execute, deadline)
            return answer.data
        except Refusal as error:
            raise translate(error, self._settings, signed_in=self._signed_in) from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise translate(error, self._settings, signed_in=self._signed_in) from error

    async def open(self, user_id: str) -> tuple[str | None, str | None]:
        """The canary of a user, and that of others if this one has none; if the schema fits.

        Raises:
            SchemaOutdated: It does not, or is not there.
        """
        answer = await self.call(OPENING_FUNCTION, {"p_user_id": user_id})
        if not (isinstance(answer, list) and len(answer) == 4):
            raise StoreRefused(f"{self._settings.where} answers, but is not a Supabase API. Correct SUPABASE_URL.")
        return read_opening(answer[:3]), answer[3]

    async def close(self) -> None:
        """Give up this caller's share; the last one closes the connections."""
        self._project.callers.discard(self)
        if not self._project.callers and _projects.get(self._place) is self._project:
            del _projects[self._place]
            await self._project.close()
