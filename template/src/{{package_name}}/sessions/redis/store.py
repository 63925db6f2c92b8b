"""Sessions in Redis or Valkey: one server, Sentinel or a cluster.

Usage::

    session = RedisSession("chat-1", redis_url="redis://localhost:6379/0")
    await Runner.run(agent, "Hi", session=session)
    await session.close()
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import SecretStr

from ..credentials import Credentials
from ..errors import LeaseLost, SchemaOutdated, SessionStoreError, StoreRefused, forgets_locals
from ..paging import decode_cursor, encode_cursor
from ..records import (
    Batch,
    Content,
    Id,
    Leased,
    RowPage,
    SessionInfo,
    SessionPage,
    SessionRef,
    Turn,
    check_aware,
    encode_metadata,
    id_text,
)
from ..retry import run_to_completion, settles
from ..settings import from_environment
from ..shared import SharedStoreSession
from ..store import ConnectedStore
from . import index as redis_index
from .connection import Argument, RedisConnection, Script
from .index import Entry
from .keys import SessionKeys, canary_key, index_of, keys_of, microseconds, session_of, time_of
from .scripts import (
    APPEND,
    CANARY,
    DELETE,
    POP,
    POP_OBJECT,
    REPLACE_TAIL,
    REWRITE,
    ROWS_FROM,
    UNLISTED,
    UPDATE,
)
from .settings import RedisSettings
from .turns import (
    CHANGE_TURN,
    CLEAR,
    ENTRIES_NEEDED,
    FORK,
    LEASE,
    LEASED_APPEND,
    LOST,
    PAGE,
    RELEASE,
    REMOVED,
    RENEW,
    TURNS,
    leased_of,
    turn_of,
)

if TYPE_CHECKING:
    from agents.memory import SessionSettings

FORMAT = 1
"""How keys are laid out. A program refuses data of a newer one."""
OLDEST = (7, 0)
"""The format check is `SET … NX GET` (https://redis.io/docs/latest/commands/set/#history); all else is older."""

MANY = 1000
"""Longer reads are fetched beside those of other calls."""
MAX_LIMIT = 2**62
"""More than any list holds; a larger number would not fit into Redis' own."""
CHUNK = 100
"""How many sessions are deleted at a time."""
PORTION_ROWS, PORTION_BYTES = 100, 2**18
"""How much of a long session is rewritten at a time, or one row that is larger. The server does nothing else then."""
REFRESH_SECONDS = 1.0
"""How long a write waits for what is not its own: the session's place in the indexes of a cluster, tidying."""
TIDY_EACH = 20
"""Of so many writes one looks for expired sessions in the indexes, two for each write."""


class RedisStore(ConnectedStore):
    """All sessions under one key prefix, over one set of connections, which opens at the first call."""

    settings: RedisSettings

    def __init__(self, settings: RedisSettings | None = None, *, credentials: Credentials | None = None) -> None:
        super().__init__(settings or from_environment(RedisSettings))
        self._credentials = credentials
        self._prefix = self.settings.session_key_prefix
        self._ttl = self.settings.ttl_milliseconds
        self._untidied = random.randrange(TIDY_EACH)  # noqa: S311 - no secret
        self._tidying = False
        self._connection: RedisConnection | None = None

    async def append(self, ref: SessionRef, batch: Batch) -> None:
        contents = [row.content for row in batch.rows]
        start: list[Argument] = [batch.id.bytes, *_optional(batch.title)]
        if batch.lease is None:
            await self._write(APPEND, ref, [*start, *contents], lists=True)
            return
        turn = batch.turn or Turn("", "", "")
        lease: list[Argument] = [str(batch.lease), int(batch.release)]
        note: list[Argument] = [int(batch.turn is not None), turn.id, *_optional(turn.request_id)]
        arguments = [*start, *lease, *note, turn.status, turn.content, *contents]
        if await self._write(LEASED_APPEND, ref, arguments) == LOST:
            raise LeaseLost

    async def tail(self, ref: SessionRef, limit: int | None) -> list[str]:
        first = 0 if limit is None else -min(limit, MAX_LIMIT)
        items, large = keys_of(self._prefix, ref).items, limit is None or limit > MANY
        rows: list[str] = await (await self._ready()).call("LRANGE", items, first, -1, large=large)
        return rows

    async def pop(self, ref: SessionRef) -> str | None:
        content: str | None = await self._write(POP, ref)
        return content

    async def pop_object(self, ref: SessionRef) -> str | None:
        content: str | None = await self._write(POP_OBJECT, ref)
        return content

    async def replace_tail(self, ref: SessionRef, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        if expected_tail is None and not batch.rows:
            return bool(await self._write(CLEAR, ref, [batch.id.bytes]))
        contents = [row.content for row in batch.rows]
        expected: list[Argument] = [-1] if expected_tail is None else [len(expected_tail), *expected_tail]
        arguments = [batch.id.bytes, *_optional(batch.title), *expected, *contents]
        return bool(await self._write(REPLACE_TAIL, ref, arguments, lists=bool(contents)))

    async def page(self, ref: SessionRef, before: int | None = None, limit: int = 100) -> RowPage:
        place = "" if before is None else before
        items = keys_of(self._prefix, ref).items
        first, rows = await (await self._ready()).evaluate(PAGE, [items], [place, max(1, min(limit, 500))])
        return RowPage(rows, list(range(first, first + len(rows))), first > 0)

    async def lease(
        self, ref: SessionRef, token: UUID, seconds: float, *, limit: int | None = 0, request_id: str | None = None
    ) -> Leased | None:
        count = "" if limit is None else min(limit, MAX_LIMIT)
        arguments: list[Argument] = [str(token), round(seconds * 1_000_000), count, *_optional(request_id)]
        large = limit is None or limit > MANY
        reply = await self._write(LEASE, ref, arguments, lists=True, moves=False, large=large)
        return None if reply is None else leased_of(reply)

    async def renew(self, ref: SessionRef, token: UUID, seconds: float) -> bool:
        keys = keys_of(self._prefix, ref)
        arguments: list[Argument] = [str(token), round(seconds * 1_000_000), self._ttl]
        return bool(await (await self._ready()).evaluate(RENEW, [keys.items, keys.info], arguments))

    @settles
    async def release(self, ref: SessionRef, token: UUID | None) -> bool:
        connection, keys = await self._ready(), keys_of(self._prefix, ref)
        which = _optional(None if token is None else str(token))

        async def give_back(names: Sequence[str], scores: Sequence[str]) -> int:
            reply: int = await connection.evaluate(RELEASE, names, [self._ttl, keys.member, *scores, *which])
            return reply

        if not connection.clustered:
            return bool(await give_back(keys[:5], ("", "")))
        reply = await give_back(keys[:3], ("0", "0"))
        if reply == ENTRIES_NEEDED:  # nothing came in, so the session goes, and its entries on other nodes with it
            (scores,) = await redis_index.scores(connection, [keys])
            reply = await give_back(keys[:3], scores)
            if reply == REMOVED:
                await redis_index.unlist(connection, [(keys, scores)])
        return bool(reply)

    async def turns(self, ref: SessionRef, limit: int = 1, turn_id: str | None = None) -> list[Turn]:
        arguments: list[Argument] = [*_optional(turn_id), max(1, limit)]
        found = await (await self._ready()).evaluate(TURNS, [keys_of(self._prefix, ref).info], arguments)
        return [turn_of(parts) for parts in found]

    async def change_turn(self, ref: SessionRef, before: Turn, after: Turn, lease: UUID | None = None) -> bool:
        texts = (before.id, before.status, before.content, after.status, after.content)
        arguments: list[Argument] = [*_optional(None if lease is None else str(lease)), *texts]
        return bool(await (await self._ready()).evaluate(CHANGE_TURN, [keys_of(self._prefix, ref).info], arguments))

    @settles
    async def fork(self, ref: SessionRef, new_ref: SessionRef, before: int | None = None) -> bool:
        connection = await self._ready()
        if connection.clustered:
            return await super().fork(ref, new_ref, before)
        old, new = keys_of(self._prefix, ref), keys_of(self._prefix, new_ref)
        keys = [old.items, old.info, new.items, new.info, new.all_index, new.user_index]
        return bool(await connection.evaluate(FORK, keys, [self._ttl, new.member, "" if before is None else before]))

    async def find_session(self, ref: SessionRef) -> SessionInfo | None:
        keys = keys_of(self._prefix, ref)
        return await redis_index.find(await self._ready(), keys.info, keys.member)

    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        user_id = None if user_id is None else id_text("user_id", user_id)
        limit = max(1, min(limit, 500))
        before = self._entry(cursor) if cursor else None
        # One more than asked for shows whether there is a next page.
        found = await redis_index.page(await self._ready(), self._prefix, user_id, before, limit + 1)
        sessions = [info for _, info in found[:limit]]
        if len(found) <= limit:
            return SessionPage(sessions, None)
        # A place in the index, which in a cluster has a clock of its own.
        last = replace(sessions[-1], updated_at=time_of(found[limit - 1][0].score))
        return SessionPage(sessions, encode_cursor(last))

    async def update_session(
        self, ref: SessionRef, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        encoded = None if metadata is None else encode_metadata(metadata)
        arguments = [*_optional(title), *_optional(encoded)]
        return bool(await (await self._ready()).evaluate(UPDATE, [keys_of(self._prefix, ref).info], arguments))

    async def rewrite(self, ref: SessionRef, before: Content, after: Content) -> bool:
        info: list[Argument] = [
            part for each in (before, after) for part in (*_optional(each.title), json.dumps(each.metadata))
        ]
        arguments: list[Argument] = [*info, before.first, len(before.rows), *before.rows, *after.rows]
        keys = keys_of(self._prefix, ref)
        return bool(await (await self._ready()).evaluate(REWRITE, [keys.items, keys.info], arguments))

    async def rows_from(self, ref: SessionRef, first: int) -> tuple[list[str], bool]:
        items = keys_of(self._prefix, ref).items
        arguments: list[Argument] = [first, PORTION_ROWS, PORTION_BYTES]
        rows, more = await (await self._ready()).evaluate(ROWS_FROM, [items], arguments)
        return rows, bool(more)

    @settles
    async def delete_session(self, ref: SessionRef) -> bool:
        refused = list[StoreRefused]()
        deleted = await self._delete([Entry(0, keys_of(self._prefix, ref).member)], refused)
        if refused:
            raise refused[0]
        return deleted == 1

    @settles
    async def delete_user(self, user_id: Id) -> int:
        return await self._delete_listed(index_of(self._prefix, id_text("user_id", user_id)))

    @settles
    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        return await self._delete_listed(index_of(self._prefix, None), microseconds(check_aware(older_than)), limit)

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
            self._connection = RedisConnection(self.settings, self._credentials)
        return await read_opening(self._connection, self._prefix)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _forget(self) -> None:
        self._connection = None

    async def _write(
        self,
        script: Script,
        ref: SessionRef,
        arguments: Sequence[Argument] = (),
        *,
        lists: bool = False,
        moves: bool = True,
        large: bool = False,
    ) -> Any:
        """Run a script that writes to a session.

        Args:
            lists: It may begin the session.
            moves: The session becomes the one that was written last.
            large: See `RedisConnection.call`.
        """
        connection, keys = await self._ready(), keys_of(self._prefix, ref)
        deadline = connection.deadline()
        if self._ttl:
            await self._tidy_sometimes(connection)
        if connection.clustered:
            return await run_to_completion(
                self._write_in_cluster(connection, script, keys, arguments, deadline, lists, moves, large),
                self.settings.session_settle_seconds,
            )
        arguments = (self._ttl, keys.member, "", "", *arguments)
        return await connection.evaluate(script, keys[:5], arguments, deadline, large=large)

    async def _tidy_sometimes(self, connection: RedisConnection) -> None:
        """Remove expired sessions from the indexes, more than there are new ones.

        Before the write: whatever becomes of it, the reply to the write cannot be lost any more.
        """
        self._untidied += 1
        if self._untidied < TIDY_EACH or self._tidying:
            return
        count, self._untidied, self._tidying = 2 * self._untidied, 0, True
        seconds = min(REFRESH_SECONDS, self.settings.redis_timeout_seconds / 2)
        end = asyncio.get_running_loop().time() + seconds
        try:
            with suppress(SessionStoreError):  # the next time will do
                await redis_index.tidy_some(connection, self._prefix, self._ttl / 1000, count, end)
        finally:
            self._tidying = False

    async def _write_in_cluster(
        self,
        connection: RedisConnection,
        script: Script,
        keys: SessionKeys,
        arguments: Sequence[Argument],
        deadline: float,
        lists: bool,
        moves: bool,
        large: bool,
    ) -> Any:
        """Write the entries in the indexes, which are on other nodes, at the same time; of a new session before."""

        async def write(scores: Sequence[str]) -> Any:
            every = (self._ttl, keys.member, *scores, *arguments)
            return await connection.evaluate(script, keys[:3], every, deadline, large=large)

        if not moves and (reply := await write(("0", "0"))) != UNLISTED:
            return reply
        listing = asyncio.ensure_future(redis_index.touch(connection, keys, add=lists, deadline=deadline))
        listing.add_done_callback(lambda task: task.cancelled() or task.exception())  # looked at, or not of interest
        try:
            if moves and (reply := await write(("0", "0"))) != UNLISTED:
                # It is listed since it began. An index that is away keeps it at its old place.
                await asyncio.wait({listing}, timeout=REFRESH_SECONDS)
                return reply
            scores = await listing
            while (reply := await write(scores)) == UNLISTED:  # the entries were removed concurrently
                scores = await redis_index.touch(connection, keys, add=lists, deadline=deadline)
            return reply
        finally:
            listing.cancel()

    async def _delete_listed(self, index: str, before: int = 0, limit: int | None = None) -> int:
        """Delete sessions of an index, the oldest first; `before`: only those last written before, in microseconds.

        One that cannot be deleted, because a key of it is another app's, keeps none of the others from it.
        """
        highest = f"({before}" if before else "+inf"
        deleted, refused = 0, list[StoreRefused]()
        while limit is None or deleted < limit:
            count = CHUNK if limit is None else min(CHUNK, limit - deleted)
            reply = await (await self._ready()).call(
                "ZRANGE", index, "-inf", highest, "BYSCORE", "LIMIT", len(refused), count, "WITHSCORES"
            )
            if not reply:
                break
            deleted += await self._delete(Entry.all_of(reply), refused, before)
        if refused:
            raise StoreRefused(f"{len(refused)} of {deleted + len(refused)} sessions stay. {refused[0]}")
        return deleted

    async def _delete(self, found: Sequence[Entry], refused: list[StoreRefused], before: int = 0) -> int:
        """Delete these sessions; returns how many there were.

        None of the entries keeps its place in the indexes, but for those of sessions that add to `refused`.
        """
        connection = await self._ready()
        every = [keys_of(self._prefix, session_of(entry.member)) for entry in found]
        seen = await redis_index.scores(connection, every) if connection.clustered else [()] * len(found)
        count = 3 if connection.clustered else 5
        outcomes = await connection.evaluate_all(
            DELETE,
            [(keys[:count], [before, keys.member, *scores]) for keys, scores in zip(every, seen, strict=True)],
            foreign=True,
        )
        refused += [outcome for outcome in outcomes if isinstance(outcome, StoreRefused)]
        done = [each for each in zip(every, seen, outcomes, strict=True) if not isinstance(each[2], StoreRefused)]
        if connection.clustered:
            await redis_index.unlist(connection, [(keys, scores) for keys, scores, (outcome, _) in done if outcome])
        alive = [(keys, int(updated)) for keys, _, (outcome, updated) in done if not outcome]
        await redis_index.relist(connection, alive)
        return sum(outcome == 1 for _, _, (outcome, _) in done)

    def _entry(self, cursor: str) -> Entry:
        updated_at, user_id, session_id = decode_cursor(cursor)
        return Entry(microseconds(updated_at), keys_of(self._prefix, SessionRef(user_id, session_id)).member)


async def read_opening(connection: RedisConnection, prefix: str) -> str | None:
    """The canary; the format of what is stored is compared with this program, and what has none yet gets ours.

    Raises:
        SchemaOutdated: It is newer.
    """
    key, deadline = f"{prefix}:format", connection.deadline()
    stored, canary = await connection.call_all([("GET", key), ("GET", canary_key(prefix))], deadline)
    # Reading comes first: a server whose memory is full takes no SET, and its sessions can still be read.
    try:
        if not stored:
            (stored,) = await connection.call_all([("SET", key, FORMAT, "NX", "GET")], deadline)
    except SessionStoreError as error:
        await refuse_old(connection, error)
        raise
    if stored is not None and int(stored) > FORMAT:
        raise SchemaOutdated(
            f"The sessions under {prefix}: are of format {stored}, newer than this program knows ({FORMAT}). "
            "Deploy the current version of this app."
        )
    return None if canary is None else str(canary)


async def refuse_old(connection: RedisConnection, error: SessionStoreError) -> None:
    """After an error: was the server too old to understand what it was sent?

    Raises:
        StoreRefused: It was.
    """
    try:
        infos = list((await connection.call_everywhere("INFO", "server")).values())
    except SessionStoreError:  # it may not be asked
        infos = []
    versions = re.findall(r"^redis_version:((\d+)\S*)", "\n".join(infos), re.MULTILINE)
    old = [f"version {version}" for version, major in versions if int(major) < OLDEST[0]]
    if not versions and "syntax error" in str(error):
        old = ["an older version"]
    if old:
        raise StoreRefused(
            f"Redis at {connection.address.where} is {old[0]}; this app needs Redis {OLDEST[0]} or newer, or Valkey. "
            "Upgrade the server."
        ) from error


class RedisSession(SharedStoreSession):
    """A session that needs no store of its own: all with the same settings share one per event loop.

    user_id and session_id are text, a number or a UUID; 42 and "42" are the same user. An app whose run context carries
    a user_id passes it here too: otherwise the session is refused as another user's.

    Args:
        session_id: Name of the conversation, unique for its user; at most 1,000 bytes.
        redis_url: redis://, rediss://, redis+cluster://, redis+sentinel:// or redis+proxy://…; REDIS_URL if left out.
        user_id: Whose conversation it is.
        session_settings: Default limit for reads; an object or a dict.
        settings: Everything else; from the environment if left out.
        credentials: Returns user and password for each new connection, in place of those of the URL. Sessions share a
            store only if they have the same function. REDIS_CREDENTIALS is not used for a redis_url with a password.

    Raises:
        SettingMissing: No URL, or no usable one.
        InvalidSessionId: See `SessionRef.check`.
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
        credentials: Credentials | None = None,
    ) -> None:
        settings = settings or from_environment(RedisSettings)
        if redis_url is not None:
            settings = settings.model_copy(update={"redis_url": SecretStr(redis_url)})
            if settings.redis_credentials and settings.address.options["password"]:  # which is for this address
                settings = settings.model_copy(update={"redis_credentials": None})
        _ = settings.url  # which raises what is wrong with it
        ref = SessionRef(user_id, session_id)
        super().__init__(
            settings,
            lambda: RedisStore(settings, credentials=credentials),
            ref,
            session_settings,
            token=credentials,
        )


def _optional(text: str | None) -> tuple[str, str]:
    """A text that may be missing, as two arguments of a script."""
    return ("0", "") if text is None else ("1", text)
