"""How a session is named: by the pair of its user and itself."""

from __future__ import annotations

from typing import NamedTuple, Self
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
            if len(value) > MAX_ID_BYTES or len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
                raise InvalidSessionId(f"{name} is longer than {MAX_ID_BYTES} bytes. Store a hash of it instead.")
            if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
                raise InvalidSessionId(f"{name} holds a NUL or half a surrogate pair, which no database can store.")
        if not self.session_id:
            raise InvalidSessionId("session_id is empty. Give every conversation an id of its own.")
        return self


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
