"""How sessions are called in Redis: names of keys, members of indexes, and numbers for times.

A session has three keys with one hash tag, `{user/session}`, so they live in one slot of a cluster:

    agent:{ada/chat-1}:items     list: the texts of the items, oldest first
    agent:{ada/chat-1}:info      hash: title, metadata, item_count, created_at, updated_at; lease and turns (`turns.py`)
    agent:{ada/chat-1}:batches   sorted set: ids of the last hour's batches, to recognise a repeated one

The third outlives the session by an hour, so that a late repetition does not bring back what was deleted. It holds no
content, but its name has the ids of user and session in it.

Two sorted sets list sessions by the time they were last written to: `agent:sessions`, and `agent:sessions:ada` for a
user's. If sessions are encrypted, `agent:canary` shows with which key.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import unquote

from ..records import SessionRef

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What has a meaning in our keys: the hash tag's braces, the separator, and the sign of escapes itself.
_ESCAPES = str.maketrans({char: f"%{ord(char):02X}" for char in "%{}/"})


class SessionKeys(NamedTuple):
    """All keys of one session, and its place in the indexes."""

    items: str
    info: str
    batches: str
    all_index: str
    user_index: str
    member: str


def keys_of(prefix: str, ref: SessionRef) -> SessionKeys:
    """The keys of a session. Different sessions never share one, whatever their ids hold."""
    user = ref.user_id.translate(_ESCAPES)
    member = f"{user}/{ref.session_id.translate(_ESCAPES)}"
    tag = prefix + ":{" + member + "}"
    return SessionKeys(
        f"{tag}:items", f"{tag}:info", f"{tag}:batches", f"{prefix}:sessions", f"{prefix}:sessions:{user}", member
    )


def index_of(prefix: str, user_id: str | None) -> str:
    """The index of a user's sessions; None: of everybody's."""
    return f"{prefix}:sessions" if user_id is None else f"{prefix}:sessions:{user_id.translate(_ESCAPES)}"


def canary_key(prefix: str) -> str:
    """Name of the text that shows which encryption keys fit."""
    return f"{prefix}:canary"


def session_of(member: str) -> SessionRef:
    """The session that a member of an index stands for."""
    user, _, session = member.partition("/")
    return SessionRef(unquote(user), unquote(session))


def microseconds(time: datetime) -> int:
    """Since 1970, as scores and `updated_at` hold them: whole numbers that a double keeps exactly until 2255."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def time_of(number: int) -> datetime:
    """The inverse of `microseconds`."""
    return _EPOCH + timedelta(microseconds=number)
