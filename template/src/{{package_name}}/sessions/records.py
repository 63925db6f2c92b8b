"""What goes into a store and comes out of it: rows of opaque text, and what is known of a session."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import UUID

SEALED = "sealed:"
"""Beginning of a stored text that is encrypted; the short name of its key follows. No item begins like this."""


def key_of(sealed: str) -> str:
    """The short name of the key that a text is encrypted with."""
    return sealed.removeprefix(SEALED).partition(":")[0][:8]


class Row(NamedTuple):
    """One stored item: its exact text, and its role for people who query the database."""

    content: str
    role: str | None = None


class Batch(NamedTuple):
    """Rows that are stored together or not at all. The id makes a repeated call harmless."""

    id: UUID
    rows: Sequence[Row]
    title: str | None = None
    """Becomes the session's title if it has none yet."""

    @classmethod
    def of(cls, rows: Sequence[Row], title: str | None = None) -> Batch:
        """A batch with a new id. Ids grow with time (UUID version 7), so that their index grows at one end only."""
        milliseconds = time.time_ns() // 1_000_000
        random = int.from_bytes(os.urandom(10))
        bits = milliseconds << 80 | random & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
        return cls(UUID(int=bits), rows, title)


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
        TypeError: They hold something that JSON has no word for.
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
        ValueError: It has no time zone.
    """
    if time.utcoffset() is None:
        raise ValueError("A time without a time zone is ambiguous. Pass one such as datetime.now(UTC).")
    return time


class SessionPage(NamedTuple):
    """Some sessions, newest first, and where to go on (None at the end)."""

    sessions: list[SessionInfo]
    next_cursor: str | None


class Content(NamedTuple):
    """What people wrote in a session: its title, its metadata, and some of its rows."""

    title: str | None
    metadata: Mapping[str, Any]
    rows: Sequence[str] = ()
    first: int = 0
    """How many rows there are before these, which are older. (Rows that are appended do not change it.)"""
