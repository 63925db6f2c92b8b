"""Listing sessions: walks an index from the last written session on, and tidies it on the way.

A session that expired or was deleted leaves its entry behind, which goes when it is met. An entry is taken out only if
its score is still the one that was seen, so a session that came back in between stays listed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, NamedTuple, Self

from .redis_connection import RedisConnection
from .redis_keys import index_of, keys_of, session_of, time_of
from .redis_scripts import UNLIST
from .store import SessionInfo

_FIELDS = ("title", "metadata", "item_count", "created_at", "updated_at")


class Entry(NamedTuple):
    """A session's place in an index; in the order of the index when compared."""

    score: int
    member: str

    @classmethod
    def all_of(cls, reply: Sequence[str]) -> list[Self]:
        """What ZRANGE … WITHSCORES answers."""
        return [cls(int(score), member) for member, score in zip(reply[::2], reply[1::2], strict=True)]


async def entries(
    connection: RedisConnection, index: str, before: Entry | None, count: int
) -> AsyncGenerator[list[Entry], None]:
    """All entries after `before` (None: from the start), the last written first, `count` at a time."""
    while True:
        highest = "+inf" if before is None else before.score
        asked = count + 1
        while True:
            # By score, so that entries which come and go elsewhere do not shift the ones to come.
            reply = await connection.call(
                "ZRANGE", index, highest, "-inf", "BYSCORE", "REV", "LIMIT", 0, asked, "WITHSCORES"
            )
            found = Entry.all_of(reply)
            fresh = [entry for entry in found if before is None or entry < before]
            if len(fresh) >= count or len(found) < asked:
                break
            asked *= 2  # many of the same microsecond
        if fresh:
            yield fresh[:count]
        if len(found) < asked and len(fresh) <= count:
            return
        before = fresh[count - 1]


async def infos(connection: RedisConnection, prefix: str, found: Sequence[Entry]) -> list[SessionInfo]:
    """What is known of these sessions. Those that are no more are left out, and their entries removed."""
    if not found:
        return []
    keys = [keys_of(prefix, session_of(entry.member)) for entry in found]
    replies = await connection.call_all([("HMGET", key.info, *_FIELDS) for key in keys])
    both = list(zip(found, replies, strict=True))
    await unlist(connection, prefix, [entry for entry, reply in both if reply[2] is None])
    return [session_info(entry.member, [*reply[:4], str(entry.score)]) for entry, reply in both if reply[2] is not None]


async def find(connection: RedisConnection, info_key: str, member: str) -> SessionInfo | None:
    """What is known of one session."""
    reply = await connection.call("HMGET", info_key, *_FIELDS)
    return None if reply[2] is None else session_info(member, reply)


async def unlist(connection: RedisConnection, prefix: str, gone: Sequence[Entry]) -> None:
    """Remove entries from both indexes, unless they have changed since they were seen."""
    await together(
        *(
            connection.evaluate(UNLIST, [index], [entry.member, str(entry.score)])
            for entry in gone
            for index in _indexes(prefix, entry)
        )
    )


async def relist(connection: RedisConnection, prefix: str, alive: Sequence[Entry]) -> None:
    """Move entries of a cluster to where they belong, if the writer did not come to it."""
    await together(
        *(
            connection.call("ZADD", index, "XX", "GT", entry.score, entry.member)
            for entry in alive
            for index in _indexes(prefix, entry)
        )
    )


def _indexes(prefix: str, entry: Entry) -> tuple[str, str]:
    return index_of(prefix, None), index_of(prefix, session_of(entry.member).user_id)


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """The outcomes of calls that are made at the same time. If one fails the others are finished first."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def session_info(member: str, fields: Sequence[str | None]) -> SessionInfo:
    """What the hash of a session says."""
    title, metadata, item_count, created_at, updated_at = fields
    return SessionInfo(
        *session_of(member),
        title=title,
        item_count=int(item_count or 0),
        created_at=time_of(created_at or "0"),
        updated_at=time_of(updated_at or "0"),
        metadata=json.loads(metadata or "{}"),
    )
