"""The indexes: two sorted sets that list sessions, all of them and those of a user, the last written ones last.

A session that expired leaves its entries behind. They are removed when a listing meets them, and some at a time by
writes, so that the indexes do not grow without end.

Where sessions and indexes are on one server, each script keeps both in step. In a cluster they are on different nodes:

- The first write of a session writes its entries (`touch`), then its data, which names the scores of the entries. Later
  writes move the entries while they write the data.
- Who removes entries of a session that it deletes first looks up their scores, notes these beside the data, and then
  removes the entries that still have them. So a first write on its way finds out that its entries are gone.
- Entries without a session are removed only when they are old: a first write may be on its way.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple, Self

from ..records import SessionInfo
from .connection import Argument, RedisConnection, Script
from .keys import SessionKeys, index_of, keys_of, session_of, time_of
from .scripts import TIME

_FIELDS = ("title", "metadata", "item_count", "created_at", "updated_at")
_NUMBER = re.compile(r"[0-9]{1,16}")
MANY = 500
"""How many entries are looked at together, once more than a few were of sessions that are gone."""

# KEYS: an index. ARGV: member, whether to add it if it is not there. Returns its score, 0 if it is not there. Scores of
# a member grow with each call, so a caller that saw one detects another call.
TOUCH = Script.of(
    TIME
    + """
local seen = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '')
if not seen and ARGV[2] == '0' then
  return '0'
end
if seen and seen >= now and seen - now <= SKEW then
  now = seen + 1
end
redis.call('ZADD', KEYS[1], text_of(now), ARGV[1])
return text_of(now)
"""
)

# KEYS: an index. ARGV: member, score. Takes the member out if it still has this score.
UNLIST = Script.of("""
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
""")

# KEYS: the index of all, then for each member its session's info and its user's index. ARGV: members. Takes those out
# of both indexes whose sessions are gone; returns the positions of the others. For one server.
TIDY = Script.of("""
local infos, alive, gone, of_user = {}, {}, {}, {}
for position = 1, #ARGV do
  infos[position] = KEYS[2 * position]
end
local any = redis.call('EXISTS', unpack(infos)) > 0
for position, member in ipairs(ARGV) do
  if any and redis.call('EXISTS', infos[position]) == 1 then
    alive[#alive + 1] = position
  else
    gone[#gone + 1] = member
    local index = KEYS[2 * position + 1]
    of_user[index] = of_user[index] or {}
    table.insert(of_user[index], member)
  end
end
if #gone > 0 then
  redis.call('ZREM', KEYS[1], unpack(gone))
  for index, members in pairs(of_user) do
    redis.call('ZREM', index, unpack(members))
  end
end
return alive
""")

# KEYS: an index. ARGV: members. Takes out those that are too old to be of a write on its way. For a cluster.
UNLIST_OLD = Script.of(
    TIME
    + """
local old = {}
for _, member in ipairs(ARGV) do
  local age = now - (tonumber(redis.call('ZSCORE', KEYS[1], member) or '') or now)
  if age > IN_FLIGHT or age < -SKEW then
    old[#old + 1] = member
  end
end
if #old > 0 then
  redis.call('ZREM', KEYS[1], unpack(old))
end
return #old
"""
)


# KEYS: the index of all. ARGV: a time to live in seconds, a score, a number from 0 to 1, how many. Returns the first
# entries that were written to longer ago than that, from this part of the time since the score on.
OLD = Script.of(
    TIME
    + """
local highest = now - ARGV[1] * 1000000
local lowest = ARGV[2] + math.max(highest - ARGV[2], 0) * ARGV[3]
local places = {'BYSCORE', 'LIMIT', 0, ARGV[4], 'WITHSCORES'}
return redis.call('ZRANGE', KEYS[1], text_of(lowest), '(' .. text_of(highest), unpack(places))
"""
)


class Entry(NamedTuple):
    """A session's place in an index; in the order of the index when compared."""

    score: int
    member: str

    @classmethod
    def all_of(cls, reply: Sequence[str]) -> list[Self]:
        """What ZRANGE … WITHSCORES answers."""
        return [cls(int(score), member) for member, score in zip(reply[::2], reply[1::2], strict=True)]


async def page(
    connection: RedisConnection, prefix: str, user_id: str | None, before: Entry | None, limit: int
) -> list[tuple[Entry, SessionInfo]]:
    """Up to `limit` sessions after `before`, the last written first. What is met of sessions that are gone, goes."""
    found: list[tuple[Entry, SessionInfo]] = []
    chunks = _entries(connection, index_of(prefix, user_id), before, limit)
    try:
        async for chunk in chunks:
            left = limit - len(found)
            if len(chunk) > left:
                chunk = (await tidy(connection, prefix, chunk))[:left]
            found += await _infos(connection, prefix, chunk)
            if len(found) == limit:
                break
    finally:
        await chunks.aclose()
    return found


async def _entries(
    connection: RedisConnection, index: str, before: Entry | None, count: int
) -> AsyncGenerator[list[Entry], None]:
    """All entries after `before` (None: from the start), the last written first: `count`, then `MANY` at a time."""
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
        count = max(count, MANY)


async def _infos(connection: RedisConnection, prefix: str, found: Sequence[Entry]) -> list[tuple[Entry, SessionInfo]]:
    if not found:
        return []
    keys = [keys_of(prefix, session_of(entry.member)) for entry in found]
    replies = await connection.call_all([("HMGET", key.info, *_FIELDS) for key in keys])
    both = list(zip(found, replies, strict=True))
    if gone := [entry for entry, reply in both if reply[2] is None]:
        await tidy(connection, prefix, gone)
    return [(entry, session_info(entry.member, reply)) for entry, reply in both if reply[2] is not None]


async def find(connection: RedisConnection, info_key: str, member: str) -> SessionInfo | None:
    """What is known of one session."""
    reply = await connection.call("HMGET", info_key, *_FIELDS)
    return None if reply[2] is None else session_info(member, reply)


async def tidy(
    connection: RedisConnection, prefix: str, found: Sequence[Entry], deadline: float | None = None
) -> list[Entry]:
    """Remove the entries of sessions that are gone; returns the others."""
    keys = [keys_of(prefix, session_of(entry.member)) for entry in found]
    if not connection.clustered:
        alive: list[Entry] = []
        for start in range(0, len(found), MANY):
            some = keys[start : start + MANY]
            every = [index_of(prefix, None), *(name for key in some for name in (key.info, key.user_index))]
            positions = await connection.evaluate(TIDY, every, [key.member for key in some], deadline)
            alive += [found[start + position - 1] for position in positions]
        return alive
    exist = await connection.call_all([("EXISTS", key.info) for key in keys], deadline)
    gone: defaultdict[str, list[str]] = defaultdict(list)
    for key, exists in zip(keys, exist, strict=True):
        if not exists:
            gone[key.all_index].append(key.member)
            gone[key.user_index].append(key.member)
    await connection.evaluate_all(
        UNLIST_OLD,
        [
            ([index], members[start : start + MANY])
            for index, members in gone.items()
            for start in range(0, len(members), MANY)
        ],
        deadline,
    )
    return [entry for entry, exists in zip(found, exist, strict=True) if exists]


async def tidy_some(connection: RedisConnection, prefix: str, ttl: float, count: int, deadline: float) -> None:
    """Remove up to `count` (at most `MANY`) entries of sessions that expired, if there are any.

    Args:
        ttl: In seconds. Sessions that were written to later are not looked at.
    """
    first, part = 0, 0.0
    for _ in range(2):
        arguments: list[Argument] = [str(ttl), first, str(part), min(count, MANY)]
        found = Entry.all_of(await connection.evaluate(OLD, [index_of(prefix, None)], arguments, deadline))
        if not found or len(await tidy(connection, prefix, found, deadline)) < len(found):
            return
        # The oldest ones are of sessions that live longer. Look somewhere behind them.
        first, part = found[-1].score, random.random()  # noqa: S311 - no secret


async def touch(connection: RedisConnection, keys: SessionKeys, *, add: bool, deadline: float) -> list[str]:
    """Move the entries of a session of a cluster to the end of both indexes; returns their scores."""
    arguments: list[Argument] = [keys.member, int(add)]
    scores: list[str] = await connection.evaluate_all(
        TOUCH, [([keys.all_index], arguments), ([keys.user_index], arguments)], deadline
    )
    return scores


async def scores(connection: RedisConnection, keys: Sequence[SessionKeys]) -> list[Sequence[str]]:
    """The scores of sessions in the index of all and in their users'; empty: no entry."""
    reply = await connection.call_all(
        [("ZSCORE", index, key.member) for key in keys for index in (key.all_index, key.user_index)]
    )
    return [(one or "", other or "") for one, other in zip(reply[::2], reply[1::2], strict=True)]


async def unlist(connection: RedisConnection, gone: Sequence[tuple[SessionKeys, Sequence[str]]]) -> None:
    """Remove the entries of sessions of a cluster that still have the scores that were seen."""
    await connection.evaluate_all(
        UNLIST,
        [
            ([index], [key.member, score])
            for key, seen in gone
            for index, score in zip((key.all_index, key.user_index), seen, strict=True)
            if score
        ],
    )


async def relist(connection: RedisConnection, moved: Sequence[tuple[SessionKeys, int]]) -> None:
    """Move entries to where they belong, if the writer did not come to it."""
    await connection.call_all(
        [
            ("ZADD", index, "XX", "GT", score, key.member)
            for key, score in moved
            for index in (key.all_index, key.user_index)
        ]
    )


def session_info(member: str, fields: Sequence[str | None]) -> SessionInfo:
    """What the hash of a session says. A field that was changed by hand into something else counts as missing."""
    title, metadata, item_count, created_at, updated_at = fields
    return SessionInfo(
        *session_of(member),
        title=title,
        item_count=_number(item_count),
        created_at=time_of(_number(created_at)),
        updated_at=time_of(_number(updated_at)),
        metadata=_object(metadata),
    )


def _number(text: str | None) -> int:
    return int(text) if text and _NUMBER.fullmatch(text) else 0


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
