"""A store that encrypts what goes into another one, and decrypts what comes out.

Usage::

    async with EncryptedStore(BackendStore()) as store:
        await Runner.run(agent, "Hi", session=store.session("chat-1"))
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import UUID

from ..codec import try_decode
from ..contract import Admit
from ..errors import SettingMissing, StoreUnavailable
from ..records import SEALED, Batch, Content, Id, Leased, Row, RowPage, SessionInfo, SessionPage, SessionRef, Turn
from ..settings import from_environment
from ..store import SessionStore
from .cipher import Cipher, EncryptionSettings, how_to_reencrypt, sealed_metadata

logger = logging.getLogger(__name__)
T = TypeVar("T")


class NotEncrypted(SettingMissing):
    """There are sessions from before encryption was turned on, and the settings do not say that they count."""


class EncryptedStore(SessionStore):
    """Items, titles, metadata and what is noted of turns are sealed; ids, roles, states, counts and times are not.

    A row that does not open is handed on as it is stored, which no session can read, and may be put back like this.

    Args:
        inner: Where everything goes. From now on it opens only if the keys are the right ones.
        settings: The keys; those of `inner` if they have any, else from the environment.
    """

    encrypts = True

    def __init__(self, inner: SessionStore, settings: EncryptionSettings | None = None) -> None:
        super().__init__(inner.settings)
        self.inner = inner
        known = inner.settings
        self.keys = settings or (
            known if isinstance(known, EncryptionSettings) else from_environment(EncryptionSettings)
        )
        inner.guard(self._check_canary)

    @cached_property
    def _cipher(self) -> Cipher:
        return self.keys.cipher

    def owner(self, user_id: str) -> str:
        return self.inner.owner(user_id)

    # ── Items ───────────────────────────────────────────────────────────────

    async def append(self, ref: SessionRef, batch: Batch) -> None:
        await self.inner.append(ref, _sealed_batch(self._cipher, ref, batch))

    async def tail(self, ref: SessionRef, limit: int | None) -> list[str]:
        cipher = self._cipher
        return self._texts(cipher, ref, await self.inner.tail(ref, limit))

    async def pop(self, ref: SessionRef) -> str | None:
        """Remove and return the newest row that opens; None if none does. Costs two round trips, or more under load.

        The row is read, opened, and then taken out if it is still there: so none is lost that does not open. Only the
        last step changes anything, and it settles in the store behind this one.
        """
        return await self._pop(ref, lambda text: True)

    async def pop_object(self, ref: SessionRef) -> str | None:
        """As `pop`; rows that are not a JSON object are left as well, and the newest one that is is taken."""
        return await self._pop(ref, lambda text: try_decode(text) is not None)

    async def _pop(self, ref: SessionRef, wanted: Callable[[str], bool]) -> str | None:
        cipher = self._cipher
        asked = 1
        while True:
            rows = await _harmless(self.inner.tail(ref, asked))
            for index in reversed(range(len(rows))):
                text, opens = self._text(cipher, ref, rows[index])
                if opens and wanted(text):
                    break
            else:
                if len(rows) < asked:
                    return None
                asked *= 8
                continue
            if await self.inner.take(ref, rows[index:]):
                return text

    async def take(self, ref: SessionRef, expected_tail: Sequence[str]) -> bool:
        """As promised, in two round trips: sealed texts differ each time, so the tail is read first."""
        stored = await _harmless(self.inner.tail(ref, len(expected_tail)))
        if self._texts(self._cipher, ref, stored) != list(expected_tail):
            return False
        return await self.inner.take(ref, stored)

    async def replace_tail(self, ref: SessionRef, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        """As promised, in two round trips if a tail is expected: sealed texts differ each time, so it is read first."""
        cipher = self._cipher
        if not expected_tail:
            return await self.inner.replace_tail(ref, expected_tail, _sealed_batch(cipher, ref, batch))
        stored = await self.inner.tail(ref, len(expected_tail))
        read = [self._text(cipher, ref, row) for row in stored]
        # What does not open is put back as it is stored, even if it was never sealed.
        unread = {text: row for row, (text, opens) in zip(stored, read, strict=True) if not opens}
        if [text for text, _ in read] != list(expected_tail):
            # The batch may be there already, by an earlier attempt whose answer got lost. Nothing but the store knows.
            stored = [secrets.token_hex()]
        return await self.inner.replace_tail(ref, stored, _sealed_batch(cipher, ref, batch, unread))

    async def page(self, ref: SessionRef, before: int | None = None, limit: int = 100) -> RowPage:
        cipher = self._cipher
        page = await self.inner.page(ref, before, limit)
        return page._replace(rows=self._texts(cipher, ref, page.rows))

    # ── Turns ───────────────────────────────────────────────────────────────

    async def lease(
        self, ref: SessionRef, token: UUID, seconds: float, *, limit: int | None = 0, request_id: str | None = None
    ) -> Leased | None:
        taken = await self.inner.lease(ref, token, seconds, limit=limit, request_id=request_id)
        if taken is None:
            return None
        last, same = (turn and self._turn(ref, turn) for turn in (taken.last, taken.same))
        return taken._replace(rows=self._texts(self._cipher, ref, taken.rows), last=last, same=same)

    async def renew(self, ref: SessionRef, token: UUID, seconds: float) -> bool:
        return await self.inner.renew(ref, token, seconds)

    async def release(self, ref: SessionRef, token: UUID | None) -> bool:
        return await self.inner.release(ref, token)

    async def turns(self, ref: SessionRef, limit: int = 1, turn_id: str | None = None) -> list[Turn]:
        return [self._turn(ref, turn) for turn in await self.inner.turns(ref, limit, turn_id)]

    async def change_turn(self, ref: SessionRef, before: Turn, after: Turn, lease: UUID | None = None) -> bool:
        """As promised, in two round trips: sealed texts differ each time, so the turn is read first."""
        for stored in await _harmless(self.inner.turns(ref, 1, before.id)):
            status, content = stored.status, self._turn(ref, stored).content
            if (status, content) == (after.status, after.content):
                after = stored  # done already, if the lease still is the session's
            elif (status, content) == (before.status, before.content):
                after = self._cipher.seal_turn(ref, after)
            else:
                return False
            return await self.inner.change_turn(ref, stored, after, lease)
        return False

    # ── Sessions ────────────────────────────────────────────────────────────

    async def find_session(self, ref: SessionRef) -> SessionInfo | None:
        cipher = self._cipher
        info = await self.inner.find_session(ref)
        return None if info is None else self._info(cipher, info)

    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        cipher = self._cipher
        page = await self.inner.list_sessions(user_id, limit, cursor)
        return page._replace(sessions=[self._info(cipher, info) for info in page.sessions])

    async def update_session(
        self, ref: SessionRef, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        cipher = self._cipher
        title = None if title is None else cipher.seal("title", ref, title)
        metadata = None if metadata is None else cipher.seal_metadata(ref, metadata)
        return await self.inner.update_session(ref, title=title, metadata=metadata)

    async def rewrite(self, ref: SessionRef, before: Content, after: Content) -> bool:
        cipher = self._cipher
        found = await self.inner.find_session(ref)
        rows = (await self.inner.tail(ref, None))[before.first : before.first + len(before.rows)]
        if found is None:
            return False
        info = self._info(cipher, found)
        texts = self._texts(cipher, ref, rows)
        if (info.title, info.metadata, texts) != (before.title, before.metadata, list(before.rows)):
            return False
        title = None if after.title is None else cipher.seal("title", ref, after.title)
        sealed = [cipher.seal_row(ref, row) for row in after.rows]
        new = Content(title, cipher.seal_metadata(ref, after.metadata), sealed, after.first)
        return await self.inner.rewrite(ref, Content(found.title, found.metadata, rows, before.first), new)

    async def delete_session(self, ref: SessionRef) -> bool:
        return await self.inner.delete_session(ref)

    async def delete_user(self, user_id: Id) -> int:
        return await self.inner.delete_user(user_id)

    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        return await self.inner.prune(older_than, limit)

    # ── The store itself ────────────────────────────────────────────────────

    async def canary(self, kept: str | None = None, text: str | None = None) -> str | None:
        return await self.inner.canary(kept, text)

    async def ping(self) -> None:
        await self.inner.ping()

    async def open(self, *, again: bool = False) -> None:
        """As promised. The first time, a text is stored that shows with which key the store is encrypted.

        Raises:
            WrongKey: The keys of the settings do not open what is stored.
            SettingMissing: There are none, or one is none; or what is stored is not encrypted.
        """
        self._cipher  # noqa: B018 - without keys, no connection is made
        await self.inner.open(again=again)

    def guard(self, admit: Admit) -> None:
        self.inner.guard(admit)

    async def close(self) -> None:
        await self.inner.close()

    @property
    def inherited(self) -> bool:
        return self.inner.inherited

    # ── Inside ──────────────────────────────────────────────────────────────

    async def _check_canary(self, kept: str | None) -> None:
        if kept is None:
            await self._refuse_plain_sessions()
            kept = await self.inner.canary(None, self._cipher.seal_canary())
        self._cipher.check_canary(kept)

    async def _refuse_plain_sessions(self) -> None:
        """They would look empty: what is not sealed does not count."""
        cursor: str | None = None
        while not self.keys.session_encryption_allow_plaintext:
            page = await self.inner.list_sessions(limit=500, cursor=cursor)
            for info in page.sessions:
                ref = SessionRef(info.user_id, info.session_id)
                texts = await self.inner.tail(ref, 1) if info.title is None else [info.title]
                if any(not text.startswith(SEALED) for text in texts):
                    raise NotEncrypted(
                        f"There are sessions that are not encrypted. {how_to_reencrypt()}; until that is "
                        "done, SESSION_ENCRYPTION_ALLOW_PLAINTEXT=true lets the app read them."
                    )
            if (cursor := page.next_cursor) is None:
                return

    def _text(self, cipher: Cipher, ref: SessionRef, row: str) -> tuple[str, bool]:
        return cipher.open_row(ref, row, plain=self.keys.session_encryption_allow_plaintext)

    def _texts(self, cipher: Cipher, ref: SessionRef, rows: Sequence[str]) -> list[str]:
        return [self._text(cipher, ref, row)[0] for row in rows]

    def _turn(self, ref: SessionRef, stored: Turn) -> Turn:
        return self._cipher.open_turn(ref, stored, plain=self.keys.session_encryption_allow_plaintext)

    def _info(self, cipher: Cipher, info: SessionInfo) -> SessionInfo:
        ref = SessionRef(info.user_id, info.session_id)
        title, metadata = info.title, cipher.open_metadata(ref, info.metadata)
        plain = self.keys.session_encryption_allow_plaintext
        if title is not None and not (plain and not title.startswith(SEALED)):
            title = cipher.open("title", ref, title)
        if plain and sealed_metadata(info.metadata) is None:
            metadata = info.metadata
        if metadata is None or (title is None and info.title is not None):
            logger.warning("Title or metadata of %r do not open; they are shown as missing", ref)
        return replace(info, title=title, metadata=metadata or {})


def _sealed_batch(
    cipher: Cipher, ref: SessionRef, batch: Batch, unread: Mapping[str, str] = MappingProxyType({})
) -> Batch:
    rows = [
        Row(unread[row.content] if row.content in unread else cipher.seal_row(ref, row.content), row.role)
        for row in batch.rows
    ]
    title = None if batch.title is None else cipher.seal("title", ref, batch.title)
    turn = None if batch.turn is None else cipher.seal_turn(ref, batch.turn)
    return batch._replace(rows=rows, title=title, turn=turn)


async def _harmless(call: Awaitable[T]) -> T:
    """The outcome of a call that changes nothing, so that what it is a part of may be repeated if it fails."""
    try:
        return await call
    except StoreUnavailable as error:
        raise StoreUnavailable(str(error)) from error
