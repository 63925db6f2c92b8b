"""Sessions in Redis or Valkey: one server, Sentinel or a cluster.

Usage::

    session = RedisSession("chat-1", redis_url="redis://localhost:6379/0")
    await Runner.run(agent, "Hi", session=session)
    await session.close()
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from . import redis_index
from .environment import from_environment
from .opening import ConnectedStore
from .paging import decode_cursor, encode_cursor
from .redis_connection import Argument, RedisConnection, RedisSettings, Script
from .redis_index import Entry
from .redis_keys import canary_key, index_of, keys_of, microseconds, session_of
from .redis_scripts import APPEND, CANARY, CLEAR, DELETE, POP, POP_OBJECT, REPLACE_TAIL, REWRITE, UPDATE
from .retry import settles
from .shared import SharedStoreSession
from .store import (
    Batch,
    Content,
    Id,
    SchemaOutdated,
    SessionInfo,
    SessionKey,
    SessionPage,
    StoreUnavailable,
    encode_metadata,
    id_text,
)
from .tracebacks import forgets_locals

if TYPE_CHECKING:
    from agents.memory import SessionSettings

FORMAT = 1
"""How keys are laid out. A program refuses data of a newer one."""

MAX_LIMIT = 2**62
"""More than any list holds; a larger number would not fit into Redis' own."""
CHUNK = 100
"""How many sessions are deleted at a time."""


class RedisStore(ConnectedStore):
    """All sessions under one key prefix, over one set of connections, which opens at the first call.

    Times are those of the clients: `updated_at` never goes back, and is as right as their clocks.
    """

    settings: RedisSettings

    def __init__(self, settings: RedisSettings | None = None) -> None:
        super().__init__(settings or from_environment(RedisSettings))
        self._prefix = self.settings.session_key_prefix
        self._ttl = round((self.settings.session_ttl or 0) * 1000)
        self._connection: RedisConnection | None = None

    @settles
    async def append(self, key: SessionKey, batch: Batch) -> None:
        contents = [row.content for row in batch.rows]
        await self._write(APPEND, key, [batch.id.bytes, *_optional(batch.title), *contents], lists=True)

    async def tail(self, key: SessionKey, limit: int | None) -> list[str]:
        first = 0 if limit is None else -min(limit, MAX_LIMIT)
        rows: list[str] = await (await self._ready()).call("LRANGE", keys_of(self._prefix, key).items, first, -1)
        return rows

    @settles
    async def pop(self, key: SessionKey) -> str | None:
        content: str | None = await self._write(POP, key)
        return content

    @settles
    async def pop_object(self, key: SessionKey) -> str | None:
        content: str | None = await self._write(POP_OBJECT, key)
        return content

    @settles
    async def clear(self, key: SessionKey) -> None:
        await self._write(CLEAR, key)

    @settles
    async def replace_tail(self, key: SessionKey, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        contents = [row.content for row in batch.rows]
        expected: list[Argument] = [-1] if expected_tail is None else [len(expected_tail), *expected_tail]
        arguments = [batch.id.bytes, *_optional(batch.title), *expected, *contents]
        return bool(await self._write(REPLACE_TAIL, key, arguments, lists=bool(contents)))

    async def find_session(self, key: SessionKey) -> SessionInfo | None:
        keys = keys_of(self._prefix, key)
        return await redis_index.find(await self._ready(), keys.info, keys.member)

    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        user_id = None if user_id is None else id_text("user_id", user_id)
        limit = max(1, min(limit, 500))
        before = self._entry(cursor) if cursor else None
        sessions: list[SessionInfo] = []
        # One more than asked for tells whether there is a next page.
        async with aclosing(
            redis_index.entries(await self._ready(), index_of(self._prefix, user_id), before, limit + 1)
        ) as chunks:
            async for chunk in chunks:
                sessions += await redis_index.infos(await self._ready(), self._prefix, chunk)
                if len(sessions) > limit:
                    break
        return SessionPage(sessions[:limit], encode_cursor(sessions[limit - 1]) if len(sessions) > limit else None)

    @settles
    async def update_session(
        self, key: SessionKey, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        encoded = None if metadata is None else encode_metadata(metadata)
        arguments = [*_optional(title), *_optional(encoded)]
        return bool(await (await self._ready()).evaluate(UPDATE, [keys_of(self._prefix, key).info], arguments))

    @settles
    async def rewrite(self, key: SessionKey, before: Content, after: Content) -> bool:
        info: list[Argument] = [
            part for each in (before, after) for part in (*_optional(each.title), json.dumps(each.metadata))
        ]
        arguments: list[Argument] = [*info, before.first, len(before.rows), *before.rows, *after.rows]
        keys = keys_of(self._prefix, key)
        return bool(await (await self._ready()).evaluate(REWRITE, [keys.items, keys.info], arguments))

    @settles
    async def delete_session(self, key: SessionKey) -> bool:
        return await self._delete([Entry(0, keys_of(self._prefix, key).member)]) == 1

    @settles
    async def delete_user(self, user_id: Id) -> int:
        return await self._delete_listed(index_of(self._prefix, id_text("user_id", user_id)))

    @settles
    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        return await self._delete_listed(index_of(self._prefix, None), microseconds(older_than), limit)

    async def canary(self, kept: str | None = None, text: str | None = None) -> str | None:
        arguments = [*_optional(kept), *_optional(text)]
        now: str | None = await (await self._ready()).evaluate(CANARY, [canary_key(self._prefix)], arguments)
        return now

    # ── Inside ──────────────────────────────────────────────────────────────

    async def _ready(self) -> RedisConnection:
        """The way to the server, open."""
        if not self._admitted or self._loop is not asyncio.get_running_loop():
            await self.open()
        assert self._connection is not None  # noqa: S101 - it is open
        return self._connection

    async def _connect(self) -> str | None:
        if self._connection is None:
            self._connection = RedisConnection(self.settings)
        return await read_opening(self._connection, self._prefix)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _forget(self) -> None:
        self._connection = None

    async def _write(
        self, script: Script, key: SessionKey, arguments: Sequence[Argument] = (), *, lists: bool = False
    ) -> Any:
        """Run a script that writes to a session; `lists`: it may begin the session."""
        connection = await self._ready()
        keys = keys_of(self._prefix, key)
        now = time.time_ns() // 1000
        every = (now, self._ttl, keys.member, *arguments)
        if not connection.clustered:
            return await connection.evaluate(script, keys[:5], every)
        # The indexes are on other nodes: written at the same time, so that it takes no longer. It may be repeated.
        condition = () if lists else ("XX",)
        change = asyncio.ensure_future(connection.evaluate(script, keys[:3], every))
        listing = (connection.call("ZADD", index, *condition, "GT", now, keys.member) for index in keys[3:5])
        try:
            await redis_index.together(change, *listing)
        except StoreUnavailable as problem:
            # It may be that only an index is away. What was popped is returned then: the session stays at its old
            # place in the list. A new session must be listed, so its batch is sent again, and stored once.
            if lists or change.exception() is not None:
                problem.maybe_applied = problem.maybe_applied or change.exception() is None
                raise
        return change.result()

    async def _delete_listed(self, index: str, before: int = 0, limit: int | None = None) -> int:
        """Delete sessions of an index, the oldest first; `before`: only those last written before, in microseconds."""
        highest = f"({before}" if before else "+inf"
        deleted = 0
        while limit is None or deleted < limit:
            count = CHUNK if limit is None else min(CHUNK, limit - deleted)
            reply = await (await self._ready()).call(
                "ZRANGE", index, "-inf", highest, "BYSCORE", "LIMIT", 0, count, "WITHSCORES"
            )
            if not reply:
                break
            deleted += await self._delete(Entry.all_of(reply), before)
        return deleted

    async def _delete(self, found: Sequence[Entry], before: int = 0) -> int:
        """Delete these sessions; returns how many there were. None of the entries keeps its place in the indexes."""
        connection = await self._ready()
        every = [keys_of(self._prefix, session_of(entry.member)) for entry in found]
        indexes = slice(3, 3 if connection.clustered else 5)
        outcomes = await redis_index.together(
            *(connection.evaluate(DELETE, [*keys[:2], *keys[indexes]], [before, keys.member]) for keys in every)
        )
        if connection.clustered:
            gone: list[Entry] = []
            alive: list[Entry] = []
            for entry, (outcome, updated) in zip(found, outcomes, strict=True):
                (gone if outcome else alive).append(Entry(int(updated or entry.score), entry.member))
            await redis_index.unlist(connection, self._prefix, gone)
            await redis_index.relist(connection, self._prefix, alive)
        return sum(outcome == 1 for outcome, _ in outcomes)

    def _entry(self, cursor: str) -> Entry:
        updated_at, user_id, session_id = decode_cursor(cursor)
        if updated_at.tzinfo is None:
            raise ValueError("This is no cursor of list_sessions.")
        return Entry(microseconds(updated_at), keys_of(self._prefix, SessionKey(user_id, session_id)).member)


async def read_opening(connection: RedisConnection, prefix: str) -> str | None:
    """The canary; the format of what is stored is compared with this program, and what has none yet gets ours.

    Raises:
        SchemaOutdated: It is newer.
    """
    key = f"{prefix}:format"
    stored, canary = await connection.call_all([("GET", key), ("GET", canary_key(prefix))])
    # Reading comes first: a server whose memory is full takes no SET, and its sessions can still be read.
    stored = stored or await connection.call("SET", key, FORMAT, "NX", "GET")
    if stored is not None and int(stored) > FORMAT:
        raise SchemaOutdated(
            f"The sessions under {prefix}: are of format {stored}, newer than this program knows ({FORMAT}). "
            "Deploy the current version of this app."
        )
    return None if canary is None else str(canary)


class RedisSession(SharedStoreSession):
    """A session that needs no store of its own: all with the same settings share one per event loop.

    user_id and session_id are text, a number or a UUID; 42 and "42" are the same user. An app whose run context carries
    a user_id passes it here too: otherwise the session is refused as another user's.

    Args:
        session_id: Name of the conversation, unique for its user; at most 1,000 bytes.
        redis_url: redis://, rediss://, redis+cluster:// or redis+sentinel://…; REDIS_URL if left out.
        user_id: Whose conversation it is.
        session_settings: Default limit for reads; an object or a dict.
        settings: Everything else; from the environment if left out.

    Raises:
        SettingMissing: No URL, or no usable one.
        InvalidSessionId: See `SessionKey.check`.
    """

    @forgets_locals
    def __init__(
        self,
        session_id: Id,
        redis_url: str | None = None,
        *,
        user_id: Id = "",
        session_settings: SessionSettings | dict[str, Any] | None = None,
        settings: RedisSettings | None = None,
    ) -> None:
        settings = settings or from_environment(RedisSettings)
        if redis_url is not None:
            settings = settings.model_copy(update={"redis_url": SecretStr(redis_url)})
        _ = settings.url  # which raises what is wrong with it
        key = SessionKey(user_id, session_id)
        super().__init__(settings, lambda: RedisStore(settings), key, session_settings)


def _optional(text: str | None) -> tuple[str, str]:
    """A text that may be missing, as two arguments of a script."""
    return ("0", "") if text is None else ("1", text)
