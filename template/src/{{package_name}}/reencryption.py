"""Stored sessions under the newest key, or in plain text, while the app goes on writing.

Each session is read, and what is not as it should be is put in the place of what was there, if nobody changed that in
between. What is done already is left alone: an interrupted run is gone on with by running again.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from .sessions.encryption import SEALED_METADATA, Cipher, Purpose, sealed_metadata
from .sessions.retry import retried
from .sessions.store import SEALED, Content, SessionInfo, SessionKey, SessionStore, SessionStoreError
from .transfer import chosen_sessions

T = TypeVar("T")

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
    inner: SessionStore,
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
    kept = await _again(inner, inner.canary)
    cipher.check_canary(kept)
    report = Report()
    async with aclosing(chosen_sessions(inner)) as found:
        async for info in found:
            await _session(inner, cipher, info, report, decrypt=decrypt)
            report.sessions += 1
            advance(1)
    if decrypt or kept is None or not cipher.is_newest(kept):
        # Those of single users go when the app's is replaced, so there must be one to replace.
        old = kept or await _again(inner, lambda: inner.canary(None, cipher.seal_canary()))
        new = None if decrypt else cipher.seal_canary()
        await _again(inner, lambda: inner.canary(old, new))
    return report


async def _session(inner: SessionStore, cipher: Cipher, listed: SessionInfo, report: Report, *, decrypt: bool) -> None:
    """One session, again and again until nothing is left to do."""
    key = SessionKey(listed.user_id, listed.session_id)
    changed = False
    for _ in range(_ATTEMPTS):
        info = await _again(inner, lambda: inner.find_session(key))
        if info is None:
            return  # deleted meanwhile
        rows = await _again(inner, lambda: inner.tail(key, None))
        wanted, unreadable = _wanted(cipher, key, Content(info.title, info.metadata, rows), decrypt=decrypt)
        before = Content(info.title, info.metadata)
        for part in _parts(rows):
            old = before._replace(rows=rows[part], first=part.start)
            new = wanted._replace(rows=wanted.rows[part], first=part.start)
            if old == new:
                continue
            if not await _again(inner, lambda old=old, new=new: inner.rewrite(key, old, new)):  # type: ignore[misc]
                break  # somebody was faster
            before = wanted._replace(rows=())
            report.rows += sum(one != other for one, other in zip(old.rows, new.rows, strict=True))
            changed = True
        else:
            report.unreadable += unreadable
            report.rewritten += changed
            return
    raise SessionStoreError(f"Session {key.session_id!r} changes all the time. Run this again at a quieter hour.")


def _wanted(cipher: Cipher, key: SessionKey, stored: Content, *, decrypt: bool) -> tuple[Content, int]:
    """How the texts of a session should be stored, and how many of them do not open."""
    unreadable = 0

    def wanted(purpose: Purpose, text: str) -> str:
        nonlocal unreadable
        if not text.startswith(SEALED):
            return text if decrypt else cipher.seal(purpose, key, text)
        if cipher.is_newest(text) and not decrypt:
            return text
        opened = cipher.open(purpose, key, text)
        if opened is None:
            unreadable += 1
            return text
        return opened if decrypt else cipher.seal(purpose, key, opened)

    metadata = stored.metadata
    if sealed := sealed_metadata(metadata):
        metadata = {SEALED_METADATA: wanted("metadata", sealed)}
        if sealed_metadata(metadata) is None:
            metadata = json.loads(metadata[SEALED_METADATA])
    elif not decrypt:
        metadata = cipher.seal_metadata(key, metadata)
    title = None if stored.title is None else wanted("title", stored.title)
    return Content(title, metadata, [wanted("item", row) for row in stored.rows]), unreadable


def _parts(rows: list[str]) -> Iterator[slice]:
    """Where to cut, so that each part is of a size that any server takes. At least one part, for title and metadata."""
    start = size = 0
    for index, row in enumerate(rows):
        if index > start and (index - start == _ROWS or size + len(row) > _CHARACTERS):
            yield slice(start, index)
            start, size = index, 0
        size += len(row)
    yield slice(start, len(rows))


async def _again(store: SessionStore, call: Callable[[], Awaitable[T]]) -> T:
    return await retried(call, store.settings.session_retry_seconds)
