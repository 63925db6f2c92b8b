"""What a backend promises: rows of opaque text, kept in order, one history per session.

A backend implements `SessionStore` and knows nothing of items, JSON or the SDK; `StoredSession` does the rest.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import UUID

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from .env_file import EnvFiles

if TYPE_CHECKING:
    from types import TracebackType

    from agents.memory import SessionSettings

    from .session import StoredSession

COMMAND = __name__.partition(".")[0].replace("_", "-")
"""The command line of this project."""


def how_to(command: str, otherwise: str) -> str:
    """What a message says to do: run a command of this project, or `otherwise` where the commands did not come along.

    Args:
        command: Behind the name of the program, such as "db upgrade".
        otherwise: The same for a codebase that has `sessions/` alone; `{package}` is what it is called there.
    """
    package = __package__ or ""
    above = package.rpartition(".")[0]
    if above and all(find_spec(f"{above}.{module}") for module in ("cli", "conversation")):
        return f"Run `{COMMAND} {command}`"
    return otherwise.format(package=package)


Id = str | int | UUID
"""What an app may have as the id of a user or a session. Stored and compared as text."""

MAX_ID_BYTES = 1000
"""Longest session id or user id in bytes of UTF-8. Both must fit into one index entry of an SQL database (2,704)."""


class SessionStoreError(Exception):
    """Something went wrong with stored sessions. The message says what, and what to do next."""


class SettingMissing(SessionStoreError):
    """A setting that the store needs is absent or cannot be read."""


class InvalidSessionId(SessionStoreError, ValueError):
    """A session id or user id that no store could keep faithfully."""


class ItemTooLarge(SessionStoreError, ValueError):
    """An item is larger than `SESSION_MAX_ITEM_BYTES`; nothing of its batch was stored."""


class WrongOwner(SessionStoreError, PermissionError):
    """A run of one user tried to use the session of another."""


class SchemaOutdated(SessionStoreError):
    """What is stored and this program do not fit together: one of them is too old."""


class WrongKey(SessionStoreError):
    """What is stored is encrypted, and this program does not hold the key."""


class StoreRefused(SessionStoreError):
    """The server answered and will not serve us: password, permission, missing database, full disk."""


class StoreUnavailable(SessionStoreError):
    """The server could not be reached, or went away.

    Args:
        maybe_applied: True when the request may have been carried out although no answer came back.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


SEALED = "sealed:"
"""Beginning of a stored text that is encrypted; the short name of its key follows. No item begins like this."""


def key_of(sealed: str) -> str:
    """The short name of the key that a text is encrypted with."""
    return sealed.removeprefix(SEALED).partition(":")[0][:8]


class _Ids(NamedTuple):
    user_id: str
    session_id: str


class SessionKey(_Ids):
    """The name of one session. Two users may both have a session called "default" and never meet.

    Ids become plain text here, for every store: 42 and "42" are the same user.

    Raises:
        InvalidSessionId: An id is of another type than `Id`.
    """

    __slots__ = ()

    def __new__(cls, user_id: Id, session_id: Id) -> Self:
        return super().__new__(cls, id_text("user_id", user_id), id_text("session_id", session_id))

    def check(self) -> Self:
        """This key, if every store can keep it.

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


class StoreSettings(BaseSettings):
    """Settings of every backend, from the environment or `.env`."""

    model_config = SettingsConfigDict(
        env_file=EnvFiles(),
        env_file_encoding="utf-8-sig",  # a mark that editors on Windows begin a file with is not part of the first name
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
    )

    session_max_item_bytes: int = Field(default=16 * 2**20, gt=0)
    """Largest item in bytes of UTF-8. An image inlined as base64 counts in full."""
    session_retry_seconds: float = Field(default=10.0, ge=0)
    """How long a lost connection is retried before the error reaches the caller."""
    session_settle_seconds: float = Field(default=5.0, gt=0)
    """How long a call that was cancelled or timed out may take to find out, or undo, what the server made of it."""


Admit = Callable[[str | None], Awaitable[None]]
"""Takes the canary of a store that is being opened, and raises if this program must not use what is stored.
It may call the store: its calls pass before the store is open."""


async def refuse_encrypted(canary: str | None) -> None:
    """What a program without encryption admits.

    Raises:
        WrongKey: What is stored is encrypted.
    """
    if canary is not None:
        decrypt = how_to("sessions reencrypt --decrypt", "Run `sessions reencrypt --decrypt`")
        raise WrongKey(
            f"The stored sessions are encrypted with key {key_of(canary)}, and this project was made without "
            "encryption. Turn it on again (`uvx copier update --data encryption=true`). To go without: "
            f"{decrypt} in a project that has it."
        )


async def admit_all(canary: str | None) -> None:
    """For who reads and writes what is stored as it is, whether it is encrypted or not."""


class SessionStore(ABC):
    """Where sessions are kept. One per process and event loop; sessions are light views on it.

    Every method is one round trip. Every method may raise `StoreUnavailable`, `StoreRefused` or `SchemaOutdated`.
    All but those that pop may simply be called again after `StoreUnavailable`. A change whose caller is cancelled is
    finished or undone before the cancellation goes on: nothing happens later (`@settles` in `retry.py` is one way). If
    the server does not answer, that takes `SESSION_SETTLE_SECONDS` at most.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self._admit: Admit = refuse_encrypted

    def session(
        self,
        session_id: Id,
        *,
        user_id: Id = "",
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> StoredSession:
        """A view on one session; no I/O, nothing to close.

        Raises:
            InvalidSessionId: See `SessionKey.check`.
        """
        from .session import StoredSession  # the session builds on the store, so it is imported late

        key = SessionKey(self.owner(id_text("user_id", user_id)), session_id)
        return StoredSession(lambda: self, key, session_settings)

    def owner(self, user_id: str) -> str:
        """Whose session it is when a session of `user_id` is asked for. A store that serves one user alone knows."""
        return user_id

    # ── Items ───────────────────────────────────────────────────────────────

    @abstractmethod
    async def append(self, key: SessionKey, batch: Batch) -> None:
        """Store all rows of `batch` after everything stored before, or none of them. Without rows, begin the session.

        Concurrent batches of one session never interleave, and readers see them in the order of their commits.
        The same `batch.id` twice stores it once, so a caller whose connection broke may simply call again.
        """

    @abstractmethod
    async def tail(self, key: SessionKey, limit: int | None) -> list[str]:
        """The newest `limit` (> 0) rows, oldest first; None for all. An unknown session has none."""

    @abstractmethod
    async def pop(self, key: SessionKey) -> str | None:
        """Remove and return the newest row; None if there is none. Two callers never get the same row."""

    async def pop_object(self, key: SessionKey) -> str | None:
        """As `pop`, for a row that is a JSON object. May not be called again if it was `maybe_applied`.

        Returns:
            None if there is no row. "" if nothing was removed: the newest row is something else, or this store does not
            look. Then a session looks itself and calls `take`, which costs two round trips.
        """
        return ""

    async def take(self, key: SessionKey, expected_tail: Sequence[str]) -> bool:
        """Remove the first of the newest rows if those still are `expected_tail`, oldest first. The others stay as they
        are. May not be called again if it was `maybe_applied`.

        Returns:
            False if somebody wrote in between: then nothing was changed.
        """
        return await self.replace_tail(key, expected_tail, Batch.of([Row(text) for text in expected_tail[1:]]))

    @abstractmethod
    async def clear(self, key: SessionKey) -> None:
        """Remove all rows. The session keeps its title and metadata."""

    @abstractmethod
    async def replace_tail(self, key: SessionKey, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        """Put `batch` in the place of the newest rows if those still are `expected_tail`, oldest first; None: all rows.

        Returns:
            False if somebody wrote in between: then nothing was changed.
        """

    # ── Sessions ────────────────────────────────────────────────────────────

    @abstractmethod
    async def find_session(self, key: SessionKey) -> SessionInfo | None:
        """What is known of one session; None if it does not exist."""

    @abstractmethod
    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        """Sessions of a user (None: of everybody), the last written first, `limit` (1 to 500) at a time.

        Raises:
            ValueError: `cursor` is not one that this method returned.
            InvalidSessionId: `user_id` is of another type than `Id`.
        """

    @abstractmethod
    async def update_session(
        self, key: SessionKey, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        """Set title, metadata (as a whole) or both; None leaves one as it is. False if there is no such session."""

    @abstractmethod
    async def rewrite(self, key: SessionKey, before: Content, after: Content) -> bool:
        """Put what `after` holds in the place of what `before` holds, row by row, if all of it is still as in `before`.

        A title that is None in `after` stays. Nothing else changes: neither the order and number of rows, nor any time,
        nor the session's place in a listing.

        Returns:
            False if something was not as in `before`: then nothing was changed.
        """

    async def rows_from(self, key: SessionKey, first: int) -> tuple[list[str], bool]:
        """Rows after the oldest `first`, oldest first, as many as are read at a time; and whether there may be more."""
        return (await self.tail(key, None))[first:], False

    @abstractmethod
    async def delete_session(self, key: SessionKey) -> bool:
        """Remove a session and everything in it. False if there was none."""

    @abstractmethod
    async def delete_user(self, user_id: Id) -> int:
        """Remove all sessions of a user; returns how many there were.

        Raises:
            InvalidSessionId: `user_id` is of another type than `Id`. None is not everybody here.
        """

    @abstractmethod
    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        """Remove up to `limit` sessions last written before `older_than`; returns how many. Call until it returns 0.

        Raises:
            ValueError: `older_than` has no time zone.
        """

    # ── The store itself ────────────────────────────────────────────────────

    @abstractmethod
    async def canary(self, kept: str | None = None, text: str | None = None) -> str | None:
        """Keep `text` for the whole store if `kept` is what is kept so far; None is nothing in both places.

        So `canary()` reads, `canary(None, text)` keeps a first one, `canary(kept, None)` removes it. Of many at once
        one wins.

        Returns:
            What is kept now.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Return if the server answers and its schema fits; raise what is wrong otherwise."""

    @abstractmethod
    async def close(self) -> None:
        """Give back every connection. A closed store opens again when it is used."""

    async def open(self, *, again: bool = False) -> None:
        """Connect, check that the schema fits and that this program may read and write what is stored.

        `ConnectedStore`, which all backends are, does it with one question to the server at the first call of any
        method, so that nothing is read or written by a program that does not fit.

        Args:
            again: Also ask if this store is open.

        Raises:
            WrongKey: What is stored is encrypted, and not with a key of this program.
        """
        await self.ping()
        await self._admit(await self.canary())

    def guard(self, admit: Admit) -> None:
        """Let `admit` decide at each opening from now on. By default, an encrypted database is refused."""
        self._admit = admit

    @property
    def inherited(self) -> bool:
        """Whether the parent of this process, from which it was forked, opened it."""
        return False

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
