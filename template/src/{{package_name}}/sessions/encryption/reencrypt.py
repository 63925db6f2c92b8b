"""Seals stored sessions with the newest key, or stores them in plain text, while the app keeps writing.

Each session is read, and what is not as it should be is put in the place of what was there, if nobody changed that in
between. What is done already is left alone: an interrupted run is gone on with by running again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from ..contract import RowStore
from ..errors import SessionStoreError
from ..paging import again, chosen_sessions
from ..records import SEALED, TURNS_KEPT, Content, SessionInfo, SessionRef, Turn
from .cipher import SEALED_METADATA, Cipher, Purpose, sealed_metadata

_ROWS, _CHARACTERS = 1000, 4 * 2**20
"""How much is rewritten at a time, unless one row is larger."""
_ATTEMPTS = 100


@dataclass
class Report:
    """What was done so far."""

    sessions: int = 0
    """Looked at."""
    rewritten: int = 0
    """Sessions that something was rewritten in."""
    rows: int = 0
    """Rows that were rewritten."""
    unreadable: int = 0
    """Texts that open with none of the keys; they stay as they are."""


async def reencrypt(
    inner: RowStore,
    cipher: Cipher,
    *,
    decrypt: bool = False,
    advance: Callable[[int], None] = lambda sessions: None,
) -> Report:
    """Bring every session into the form that is wanted, and then the canary.

    Args:
        inner: The store itself, without encryption.
        cipher: All keys that are in use, the one to use first.
        decrypt: Leave everything in plain text.
        advance: Called with 1 after each session.

    Raises:
        WrongKey: The keys are not those of the store. Nothing was changed.
    """
    kept = await again(inner, inner.canary)
    cipher.check_canary(kept)
    report = Report()
    async with aclosing(chosen_sessions(inner)) as found:
        async for info in found:
            await _session(inner, cipher, info, report, decrypt=decrypt)
            report.sessions += 1
            advance(1)
    if decrypt or kept is None or not cipher.is_newest(kept):
        # Those of single users go when the app's is replaced, so there must be one to replace.
        old = kept or await again(inner, inner.canary, None, cipher.seal_canary())
        new = None if decrypt else cipher.seal_canary()
        await again(inner, inner.canary, old, new)
    return report


async def _session(inner: RowStore, cipher: Cipher, listed: SessionInfo, report: Report, *, decrypt: bool) -> None:
    """One session, again and again until nothing is left to do."""
    ref = SessionRef(listed.user_id, listed.session_id)
    changed = False
    for _ in range(_ATTEMPTS):
        info = await again(inner, inner.find_session, ref)
        if info is None:
            return  # deleted concurrently
        texts = _Texts(cipher, ref, decrypt=decrypt)
        before, wanted = Content(info.title, info.metadata), texts.wanted(info)
        first, more, done = 0, True, True
        while more and done:
            found, more = await again(inner, inner.rows_from, ref, first)
            for part in _parts(found):
                old = before._replace(rows=found[part], first=first + part.start)
                new = wanted._replace(rows=[texts.wanted_row(row) for row in old.rows], first=old.first)
                if old == new:
                    continue
                done = await again(inner, inner.rewrite, ref, old, new)
                if not done:
                    break  # somebody was faster
                before = wanted
                report.rows += sum(one != other for one, other in zip(old.rows, new.rows, strict=True))
                changed = True
            first += len(found)
        for turn in await again(inner, inner.turns, ref, TURNS_KEPT) if done else ():
            new_turn = texts.wanted_turn(turn)
            if new_turn != turn:
                done = done and await again(inner, inner.change_turn, ref, turn, new_turn)
                changed = True
        if done:
            report.unreadable += texts.unreadable
            report.rewritten += changed
            return
    raise SessionStoreError(f"Session {ref.session_id!r} changes all the time. Run this again at a quieter hour.")


class _Texts:
    """How the texts of a session should be stored, and how many of them do not open."""

    def __init__(self, cipher: Cipher, ref: SessionRef, *, decrypt: bool) -> None:
        self._cipher, self._key, self._decrypt = cipher, ref, decrypt
        self.unreadable = 0

    def wanted(self, stored: SessionInfo) -> Content:
        """Title and metadata."""
        metadata = stored.metadata
        if sealed := sealed_metadata(metadata):
            metadata = {SEALED_METADATA: self._wanted("metadata", sealed)}
            if sealed_metadata(metadata) is None:
                metadata = json.loads(metadata[SEALED_METADATA])
        elif not self._decrypt:
            metadata = self._cipher.seal_metadata(self._key, metadata)
        return Content(None if stored.title is None else self._wanted("title", stored.title), metadata)

    def wanted_row(self, row: str) -> str:
        """One row."""
        return self._wanted("item", row)

    def wanted_turn(self, stored: Turn) -> Turn:
        """One turn."""
        cipher = self._cipher
        if cipher.is_newest(stored.content) and not self._decrypt:
            return stored
        turn = cipher.open_turn(self._key, stored, plain=True)
        if not turn.content:
            self.unreadable += 1
            return stored
        return turn if self._decrypt else cipher.seal_turn(self._key, turn)

    def _wanted(self, purpose: Purpose, text: str) -> str:
        cipher = self._cipher
        if not text.startswith(SEALED):
            return text if self._decrypt else cipher.seal(purpose, self._key, text)
        if cipher.is_newest(text) and not self._decrypt:
            return text
        opened = cipher.open(purpose, self._key, text)
        if opened is None:
            self.unreadable += 1
            return text
        return opened if self._decrypt else cipher.seal(purpose, self._key, opened)


def _parts(rows: list[str]) -> Iterator[slice]:
    """Where to cut, so that each part is of a size that any server takes. At least one part, for title and metadata."""
    start = size = 0
    for index, row in enumerate(rows):
        if index > start and (index - start == _ROWS or size + len(row) > _CHARACTERS):
            yield slice(start, index)
            start, size = index, 0
        size += len(row)
    yield slice(start, len(rows))
