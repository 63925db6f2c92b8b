"""What a backend promises: rows of opaque text, kept in order, one history per session.

A backend implements these methods and knows nothing of items, JSON or the SDK; `StoredSession` does the rest. It
extends `SessionStore`, which adds what apps call, or `ConnectedStore`, which also connects; both are in `store.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from .errors import WrongKey, how_to
from .records import (
    Batch,
    Content,
    Id,
    Leased,
    Row,
    RowPage,
    SessionInfo,
    SessionPage,
    SessionRef,
    Turn,
    key_of,
    new_id,
)
from .settings import StoreSettings

Admit = Callable[[str | None], Awaitable[None]]
"""Takes the canary of a store that is being opened, and raises if this program must not use what is stored.
It may call the store: its calls pass before the store is open."""


COPY_SECONDS = 60.0
"""How long a session that is copied may be in the making before others may write into it."""


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


class RowStore(ABC):
    """Where the rows of sessions are kept.

    Every method is one round trip. Every method may raise `StoreUnavailable`, `StoreRefused` or `SchemaOutdated`.
    All but those that pop may simply be called again after `StoreUnavailable`. A change whose caller is cancelled is
    finished or undone before the cancellation propagates: nothing happens later (`@settles` in `retry.py` is one way).
    If the server does not answer, that takes `SESSION_SETTLE_SECONDS` at most.
    """

    encrypts = False
    """Whether what is stored can be read by this program alone; what comes out is plain text."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self._admit: Admit = refuse_encrypted

    def owner(self, user_id: str) -> str:
        """Whose session it is when a session of `user_id` is asked for. A store that serves one user alone knows."""
        return user_id

    # ── Items ───────────────────────────────────────────────────────────────

    @abstractmethod
    async def append(self, ref: SessionRef, batch: Batch) -> None:
        """Store all rows of `batch` after everything stored before, or none of them. Without rows, begin the session.

        Concurrent batches of one session never interleave, and readers see them in the order of their commits.
        The same `batch.id` twice stores it once, so a caller whose connection broke may simply call again.

        Raises:
            LeaseLost: `batch.lease` is not the session's (any more), or the session was deleted. Nothing was stored.
        """

    @abstractmethod
    async def tail(self, ref: SessionRef, limit: int | None) -> list[str]:
        """The newest `limit` (> 0) rows, oldest first; None for all. An unknown session has none."""

    @abstractmethod
    async def pop(self, ref: SessionRef) -> str | None:
        """Remove and return the newest row; None if there is none. Two callers never get the same row."""

    async def pop_object(self, ref: SessionRef) -> str | None:
        """As `pop`, for a row that is a JSON object. May not be called again if it was `maybe_applied`.

        Returns:
            None if there is no row. "" if nothing was removed: the newest row is something else, or this store does not
            look. Then a session looks itself and calls `take`, which costs two round trips.
        """
        return ""

    async def take(self, ref: SessionRef, expected_tail: Sequence[str]) -> bool:
        """Remove the first of the newest rows if those still are `expected_tail`, oldest first. The others stay as they
        are. May not be called again if it was `maybe_applied`.

        Returns:
            False if another writer came first: then nothing was changed.
        """
        return await self.replace_tail(ref, expected_tail, Batch.of([Row(text) for text in expected_tail[1:]]))

    async def clear(self, ref: SessionRef) -> None:
        """Remove all rows, and what is noted of turns. The session keeps its title and metadata."""
        await self.replace_tail(ref, None, Batch.of([]))

    @abstractmethod
    async def replace_tail(self, ref: SessionRef, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        """Put `batch` in the place of the newest rows if those still are `expected_tail`, oldest first; None: all rows.

        None and a batch without rows: nothing is left of the conversation, so what is noted of its turns goes as well.

        Returns:
            False if another writer came first: then nothing was changed.
        """

    @abstractmethod
    async def page(self, ref: SessionRef, before: int | None = None, limit: int = 100) -> RowPage:
        """The newest `limit` (1 to 500) rows before a position; None: of all."""

    # ── Turns ───────────────────────────────────────────────────────────────
    # Only runs that take a lease exclude each other. A plain append, pop or clear never looks at one.

    @abstractmethod
    async def lease(
        self, ref: SessionRef, token: UUID, seconds: float, *, limit: int | None = 0, request_id: str | None = None
    ) -> Leased | None:
        """Take a session for one run, for so many seconds by the clock of the server, and read it in the same step.

        It begins the session if there is none. Whoever has it already (`token` from `new_id`) gets it for longer, so
        the call may be repeated. A lease that expired can be taken by others, but until one does it still is a lease.

        Args:
            limit: As for `tail`; 0 reads nothing.
            request_id: Also find the turn with this one.

        Returns:
            None while another one has it.
        """

    @abstractmethod
    async def renew(self, ref: SessionRef, token: UUID, seconds: float) -> bool:
        """Keep a lease for so many seconds from now. False if it is lost: taken by another, revoked, or deleted."""

    @abstractmethod
    async def release(self, ref: SessionRef, token: UUID | None) -> bool:
        """Give a lease back; None: take it away from whoever has it. False if there was none.

        A session that began with it goes again if there is still nothing in it.
        """

    @abstractmethod
    async def turns(self, ref: SessionRef, limit: int = 1, turn_id: str | None = None) -> list[Turn]:
        """The newest `limit` (1 to `TURNS_KEPT`) turns, newest first; or the one with this id."""

    @abstractmethod
    async def change_turn(self, ref: SessionRef, before: Turn, after: Turn, lease: UUID | None = None) -> bool:
        """Set status and content of a turn to those of `after`, if they still are those of `before`.

        With `lease`, only while that is the session's. To be the one who makes a change, put something of your own into
        `after`: it also counts as done if they are those of `after` already, so that the call may be repeated.

        Returns:
            False if something was not so: then nothing was changed.
        """

    async def fork(self, ref: SessionRef, new_ref: SessionRef, before: int | None = None) -> bool:
        """Copy a session's rows, title and metadata into a new one: all rows, or those before a position.

        This default reads and appends, for stores where that is not possible in one step. May not be called again if
        it was `maybe_applied`: the new session may be there.

        Returns:
            False if the new session exists already, or the old one does not: then nothing was changed.
        """
        info, token = await self.find_session(ref), new_id()
        if info is None:
            return False
        rows: list[str] = []
        more = True
        while more:
            part = await self.page(ref, before, 500)
            rows[:0], more = part.rows, part.more
            before = part.positions[0] if part.positions else before
        taken = await self.lease(new_ref, token, COPY_SECONDS)
        if taken is None or not taken.began:
            await self.release(new_ref, token)
            return False
        batch = Batch.of([Row(row) for row in rows], info.title)._replace(lease=token, release=True)
        try:
            await self.append(new_ref, batch)
        except BaseException:
            await self.release(new_ref, token)
            raise
        if info.metadata:
            await self.update_session(new_ref, metadata=info.metadata)
        return True

    # ── Sessions ────────────────────────────────────────────────────────────

    @abstractmethod
    async def find_session(self, ref: SessionRef) -> SessionInfo | None:
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
        self, ref: SessionRef, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        """Set title, metadata (as a whole) or both; None leaves one as it is. False if the session does not exist."""

    @abstractmethod
    async def rewrite(self, ref: SessionRef, before: Content, after: Content) -> bool:
        """Put what `after` holds in the place of what `before` holds, row by row, if all of it is still as in `before`.

        A title that is None in `after` stays. Nothing else changes: the order and number of rows, all times and the
        session's place in a listing stay.

        Returns:
            False if something was not as in `before`: then nothing was changed.
        """

    async def rows_from(self, ref: SessionRef, first: int) -> tuple[list[str], bool]:
        """Rows after the oldest `first`, oldest first, as many as are read at a time; and whether there may be more."""
        return (await self.tail(ref, None))[first:], False

    @abstractmethod
    async def delete_session(self, ref: SessionRef) -> bool:
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
            ValueError: `older_than` lacks a time zone.
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
