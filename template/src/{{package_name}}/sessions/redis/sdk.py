"""What the SDK's `RedisSession` has stored. Only read.

A session has two keys: `<prefix>:<session id>`, a hash with updated_at, and `<prefix>:<session id>:messages`, a list.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import parse_qsl, urlencode

from pydantic import SecretStr

from ..errors import SessionStoreError
from .connection import RedisConnection
from .settings import RedisSettings

_MESSAGES = ":messages"
_CHUNK = 500


class RedisSource:
    """The keys of `RedisSession` that begin with a prefix."""

    def __init__(self, connection: RedisConnection, prefix: str) -> None:
        self._connection = connection
        self._prefix = f"{prefix}:"

    async def session_ids(self) -> list[str]:
        """All sessions that have items, those first that were written first (as far as its seconds tell)."""
        pattern = re.sub(r"([*?\[\]^\\])", r"\\\1", self._prefix) + "*" + _MESSAGES
        found: set[str] = set()
        cursor = "0"
        while True:
            with _of_source():
                arguments = ("MATCH", pattern, "COUNT", _CHUNK, "TYPE", "list")
                cursor, keys = await self._connection.call("SCAN", cursor, *arguments)
            found.update(key[len(self._prefix) : -len(_MESSAGES)] for key in keys)
            if cursor == "0":
                break
        ids = sorted(found)
        written: dict[str, int] = {}
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            with _of_source():
                times = await self._connection.call_all([("HGET", self._prefix + name, "updated_at") for name in chunk])
            for name, time in zip(chunk, times, strict=True):
                written[name] = int(time) if time and time.isdecimal() else 0
        return sorted(ids, key=lambda name: written[name])

    async def rows(self, session_id: str) -> list[tuple[int, str]]:
        """Place (from 1) and text of every item, oldest first. Bytes that are not UTF-8 have become U+FFFD."""
        with _of_source():
            texts = await self._connection.call("LRANGE", f"{self._prefix}{session_id}{_MESSAGES}", 0, -1)
        return list(enumerate(texts, 1))


@asynccontextmanager
async def open_redis_source(url: str) -> AsyncIterator[RedisSource]:
    """The sessions on a server.

    Args:
        url: redis://…, as for this app; ?key_prefix=… where that was not "agents:session".

    Raises:
        SessionStoreError: It cannot be reached or read.
    """
    base, _, query = url.partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    prefix = parameters.pop("key_prefix", "agents:session")
    with _of_source():
        address = SecretStr(f"{base}?{urlencode(parameters)}" if parameters else base)
        settings = RedisSettings(redis_url=address, redis_credentials=None)  # which are for the app's own server
        connection = RedisConnection(settings)
    try:
        yield RedisSource(connection, prefix)
    finally:
        await connection.close()


@contextmanager
def _of_source() -> Iterator[None]:
    """Errors name the address that is meant, which is not the one of this app."""
    try:
        yield
    except SessionStoreError as error:
        raise type(error)(str(error).replace("REDIS_URL", "--from")) from error
