"""What goes into a store and comes out of it: names of sessions, rows of opaque text, what is known of a session."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import UUID

from .errors import InvalidSessionId

Id = str | int | UUID
"""What an app may have as the id of a user or a session. Stored and compared as text."""

MAX_ID_BYTES = 1000
"""Longest session id or user id in bytes of UTF-8. Both must fit into one index entry of an SQL database (2,704)."""


class _Ids(NamedTuple):
    user_id: str
    session_id: str


class SessionRef(_Ids):
    """The name of one session. Two users may both have a session called "default" and never meet.

    Ids become plain text here, for every store: 42 and "42" are the same user.

    Raises:
        InvalidSessionId: An id is of another type than `Id`.
    """

    __slots__ = ()

    def __new__(cls, user_id: Id, session_id: Id) -> Self:
        return super().__new__(cls, id_text("user_id", user_id), id_text("session_id", session_id))

    def check(self) -> Self:
        """This reference, if every store can keep it.

        Raises:
            InvalidSessionId: An id is too long, empty (the session's), or holds NUL or half a surrogate pair.
        """
        for name, value in zip(("user_id", "session_id"), self, strict=True):
            check_id(name, value)
        if not self.session_id:
            raise InvalidSessionId("session_id is empty. Give every conversation an id of its own.")
        return self


def check_id(name: str, value: Id) -> str:
    """The text that stands for an id, if every store can keep it.

    Raises:
        InvalidSessionId: It is of another type than `Id`, too long, or holds NUL or half a surrogate pair.
    """
    text = id_text(name, value)
    if len(text) > MAX_ID_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise InvalidSessionId(f"{name} is longer than {MAX_ID_BYTES} bytes. Store a hash of it instead.")
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidSessionId(f"{name} holds a NUL or half a surrogate pair, which no database can store.")
    return text


def id_text(name: str, value: object) -> str:
    """The text that stands for an id: 42 and "42" are the same user.

    Args:
        name: Of the argument, for the message.
        value: An `Id`.

    Raises:
        InvalidSessionId: `value` is of another type than `Id`; True and False are not ids either.
    """
    if isinstance(value, str):
        return str.__str__(value)  # also what a member of an enumeration of texts stands for
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    if isinstance(value, UUID):
        return str(value)
    raise InvalidSessionId(f"{name} must be a str, an int or a UUID, not {type(value).__name__}.")


SEALED = "sealed:"
"""Beginning of a stored text that is encrypted; the short name of its key follows. No item begins like this."""


def key_of(sealed: str) -> str:
    """The short name of the key that a text is encrypted with."""
    return sealed.removeprefix(SEALED).partition(":")[0][:8]


class Row(NamedTuple):
    """One stored item: its exact text, and its role for people who query the database."""

    content: str
    role: str | None = None


class Turn(NamedTuple):
    """What is noted of one turn beside its items. Stores compare names, status and content, and look into none of them.

    A store keeps the newest `TURNS_KEPT` of a session, each for `TURN_DAYS` after it changed last.
    """

    id: str
    """Unique in its session."""
    status: str
    content: str
    """What the app notes of it, as text."""
    request_id: str | None = None
    """What the client calls its request, so that a repeated one is recognised."""
    first: int | None = None
    """The position of its first item, see `RowStore.page`. The store sets it and `last`; None: it has no items."""
    last: int | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """From a row of SQL as JSON, by name."""
        names = ("turn_id", "status", "content", "request_id", "first_id", "last_id")
        return cls(*(row[name] for name in names))


TURNS_KEPT = 100
TURN_DAYS = 30


class Batch(NamedTuple):
    """Rows that are stored together or not at all. The id makes a repeated call harmless."""

    id: UUID
    rows: Sequence[Row]
    title: str | None = None
    """Becomes the session's title if it has none yet."""
    lease: UUID | None = None
    """The rows are stored only while this lease is the session's, see `RowStore.lease`."""
    turn: Turn | None = None
    """With a lease: the turn that the rows belong to. One with the same id takes its place and grows by the rows."""
    release: bool = False
    """With a lease: give it back in the same step."""

    @classmethod
    def of(cls, rows: Sequence[Row], title: str | None = None) -> Batch:
        """A batch with a new id."""
        return cls(new_id(), rows, title)


def new_id() -> UUID:
    """Random, but growing with time (UUID version 7), so that an index of many grows at one end only."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    return UUID(int=milliseconds << 80 | random & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62)


class Leased(NamedTuple):
    """What whoever takes a lease is told."""

    rows: list[str]
    """The newest rows, oldest first."""
    last: Turn | None
    """The newest turn of the session."""
    same: Turn | None
    """The turn whose `request_id` was asked for."""
    began: bool
    """Whether there was no session before: it began with a lease, and nothing came in."""

    @classmethod
    def of_array(cls, found: Sequence[str | None] | None) -> Self | None:
        """From what the function of SQL returns."""
        if found is None:
            return None
        began, last, same, *rows = found
        turns = [None if turn is None else Turn.of_row(json.loads(turn)) for turn in (last, same)]
        return cls([row for row in reversed(rows) if row is not None], turns[0], turns[1], began is not None)


class RowPage(NamedTuple):
    """Rows one after another, oldest first, and the position of each: a number that grows with them."""

    rows: list[str]
    positions: list[int]
    more: bool
    """Whether there are older ones. `before=positions[0]` asks for them."""

    @classmethod
    def of_rows(cls, found: Sequence[tuple[int, str]], limit: int) -> Self:
        """From positions and rows, newest first: one more than `limit` if there are more."""
        kept = found[:limit][::-1]
        return cls([row for _, row in kept], [position for position, _ in kept], len(found) > limit)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known of a session without reading its items."""

    user_id: str
    session_id: str
    title: str | None
    item_count: int
    created_at: datetime
    updated_at: datetime
    metadata: Mapping[str, Any]

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """From a row of SQL as JSON. Read by name, so that a column of a newer release does not break this one."""
        return cls(
            user_id=row["user_id"],
            session_id=row["session_id"],
            title=row["title"],
            item_count=row["item_count"],
            created_at=datetime.fromisoformat(row["created_at"]),
            updated_at=datetime.fromisoformat(row["updated_at"]),
            metadata=row["metadata"],
        )


MAX_METADATA_DEPTH = 100
"""How deep metadata may be nested. What is too deep to be read again would break every listing."""


def encode_metadata(metadata: Mapping[str, Any], *, allow_nan: bool = True) -> str:
    """Metadata as JSON text.

    Raises:
        TypeError: They contain a value that JSON cannot represent.
        ValueError: They are nested too deep, or hold NaN or infinity that is not allowed.
    """
    if _is_deeper(metadata, MAX_METADATA_DEPTH):
        raise ValueError(f"The metadata are nested more than {MAX_METADATA_DEPTH} levels deep.")
    return json.dumps(metadata, allow_nan=allow_nan)


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


def check_aware(time: datetime) -> datetime:
    """The same time, if it says which one it is.

    Raises:
        ValueError: The time zone is missing.
    """
    if time.utcoffset() is None:
        raise ValueError("A time without a time zone is ambiguous. Pass one such as datetime.now(UTC).")
    return time


class SessionPage(NamedTuple):
    """Some sessions, newest first, and the cursor of the next page (None at the end)."""

    sessions: list[SessionInfo]
    next_cursor: str | None


class Content(NamedTuple):
    """What people wrote in a session: its title, its metadata, and some of its rows."""

    title: str | None
    metadata: Mapping[str, Any]
    rows: Sequence[str] = ()
    first: int = 0
    """How many rows there are before these, which are older. (Rows that are appended do not change it.)"""
