"""Commands for Redis or Valkey, sent to the server that keeps their key."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..credentials import Credentials
from ..errors import SessionStoreError
from .errors import DRIVER_ERRORS, translate
from .line import NotSent
from .settings import RedisSettings
from .topology import open_topology

Argument = str | bytes | int


class Script(NamedTuple):
    """A Lua script, and the hash by which the server knows it once it has seen it."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> Script:
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class RedisConnection:
    """The way to the server or servers, for one event loop. Opens nothing before the first command.

    Every method raises `StoreUnavailable`, `StoreRefused` or another `SessionStoreError`; no command is sent twice,
    except to the node of a cluster that the first one pointed to instead of carrying it out.
    Replies are those of RESP2, texts decoded; bytes that are not UTF-8 become U+FFFD.
    Each call takes `REDIS_TIMEOUT_SECONDS` at most, several together if they are given one `deadline`.
    """

    def __init__(self, settings: RedisSettings, credentials: Credentials | None = None) -> None:
        self._settings = settings
        self.address = address = settings.address
        self.clustered = address.kind in ("cluster", "proxy")
        """Whether keys live on different servers, unless they have the same {part}."""
        credentials = credentials or settings.credentials
        self._servers = open_topology(
            address, settings.session_settle_seconds, settings.redis_timeout_seconds, credentials
        )

    def deadline(self) -> float:
        """When a call ends that begins now, in the time of the event loop."""
        return asyncio.get_running_loop().time() + self._settings.redis_timeout_seconds

    async def call(self, command: str, *arguments: Argument, large: bool = False) -> Any:
        """Send one command that changes nothing, of which the first argument is the key; returns the reply.

        Args:
            large: Whether the reply may be: then it is fetched beside those of other calls.
        """
        key = arguments[0] if arguments else None
        try:
            return await self._servers.exchange(key, _pack(command, *arguments), self.deadline(), large=large)
        except (NotSent, *DRIVER_ERRORS) as error:
            raise self._translated(error) from error

    async def evaluate(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        deadline: float | None = None,
        *,
        large: bool = False,
    ) -> Any:
        """Run a script on keys of one slot: in one round trip if the server knows it, else in two.

        Args:
            large: As for `call`.
        """
        rest = (len(keys), *keys, *arguments)
        exchange = partial(self._servers.exchange, deadline=deadline or self.deadline(), change=True, large=large)
        try:
            try:
                return await exchange(keys[0], _pack("EVALSHA", script.sha, *rest))
            except NoScriptError:  # a new server, or SCRIPT FLUSH: nothing was done
                return await exchange(keys[0], _pack("EVAL", script.text, *rest))
        except (NotSent, *DRIVER_ERRORS) as error:
            raise self._translated(error) from error

    async def call_all(self, commands: Sequence[tuple[Argument, ...]], deadline: float | None = None) -> list[Any]:
        """Send commands at once, each to the server that has its key (its first argument), in one round trip.

        Returns the replies in the same order. All were carried out, unless it raises: then each may have been or not.
        """
        packed = [(each[1], _pack(*each)) for each in commands]
        return self._checked(await self._exchange_all(packed, deadline or self.deadline()))

    async def evaluate_all(
        self,
        script: Script,
        calls: Sequence[tuple[Sequence[str], Sequence[Argument]]],
        deadline: float | None = None,
        *,
        foreign: bool = False,
    ) -> list[Any]:
        """Run a script with several keys and arguments at once; as `call_all`.

        Args:
            foreign: Where a key is another app's, the reply is the `StoreRefused` that would be raised.
        """
        deadline = deadline or self.deadline()
        every = [(keys[0], (len(keys), *keys, *arguments)) for keys, arguments in calls]
        replies = await self._exchange_all(
            [(key, _pack("EVALSHA", script.sha, *rest)) for key, rest in every], deadline
        )
        if unknown := [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
            again = [(every[place][0], _pack("EVAL", script.text, *every[place][1])) for place in unknown]
            for place, reply in zip(unknown, await self._exchange_all(again, deadline), strict=True):
                replies[place] = reply
        if foreign:
            replies = [self._translated(reply) if _is_foreign(reply) else reply for reply in replies]
        return self._checked(replies)

    async def call_everywhere(self, command: str, *arguments: Argument) -> dict[str, Any]:
        """Send a command without a key to each primary; returns the replies by the names of the servers."""
        try:
            return await self._servers.everywhere(_pack(command, *arguments), self.deadline())
        except (NotSent, *DRIVER_ERRORS) as error:
            raise self._translated(error) from error

    async def close(self) -> None:
        """Give back every connection."""
        await self._servers.close()

    async def _exchange_all(self, commands: Sequence[tuple[Argument, bytes]], deadline: float) -> list[Any]:
        if not commands:
            return []
        try:
            return await self._servers.exchange_all(commands, deadline, change=True)
        except (NotSent, *DRIVER_ERRORS) as error:
            raise self._translated(error) from error

    def _checked(self, replies: list[Any]) -> list[Any]:
        for reply in replies:
            if isinstance(reply, RedisError):
                raise self._translated(reply) from reply
        return replies

    def _translated(self, error: BaseException) -> SessionStoreError:
        if isinstance(error, NotSent):
            return translate(error.__cause__ or error, self._settings, sent=False)
        return translate(error, self._settings, sent=True)


def _is_foreign(reply: object) -> bool:
    return isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply)


def _pack(*arguments: Argument) -> bytes:
    try:
        packed: bytes = pack_command(arguments)  # type: ignore[arg-type]  # its stub wants a tuple of one
    except UnicodeEncodeError as error:
        raise SessionStoreError("A text holds half a surrogate pair, which cannot be stored.") from error
    return packed
