"""Sessions to a file and back, from any backend to any backend, every stored text exactly as it is.

JSON lines: a header for each session, followed by its items. Files may be joined with `cat`::

    {"format": 1, "session": {"user_id": "", "session_id": "chat-1", "title": "Hi", …}, "items": 1}
    {"content": "{\"role\":\"user\",\"content\":\"Hi\"}"}

Created and updated times are for readers: a store sets its own. An import keeps the order of sessions, not their age.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import aclosing
from typing import BinaryIO, Literal, NamedTuple
from uuid import UUID, uuid5

from ..sessions.codec import role_in
from ..sessions.paging import again, chosen_sessions
from ..sessions.records import Batch, Row, SessionInfo, SessionRef
from ..sessions.store import SessionStore
from .file import FORMAT, Place, read_session

Outcome = Literal["imported", "extended", "already there", "replaced", "skipped", "conflict"]
OnConflict = Literal["refuse", "skip", "replace"]

_CONFLICT: dict[OnConflict, Outcome] = {"refuse": "conflict", "skip": "skipped", "replace": "replaced"}
_ATTEMPTS = 10
"""How often an import starts over because the session was written to."""
_COMPARED = 20
"""How many rows at the end of a session are compared to detect a concurrent write."""
_NAMESPACE = UUID("5a3c1a3e-6d0b-4d7c-9a53-6f2e1b7c0d41")


class Exported(NamedTuple):
    """What an export wrote."""

    sessions: int
    items: int


async def export_sessions(
    store: SessionStore,
    out: BinaryIO,
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    report: Callable[[int], None] = lambda sessions: None,
) -> Exported:
    """Write sessions and their items as they are when they are read.

    Args:
        user_id: Only this user's sessions; None: everybody's.
        session_id: Only this one, of `user_id` (None: of the user "").
        report: Called with 1 after each session.

    Raises:
        NoSuchSession: The session `session_id` does not exist.
    """
    sessions = items = 0
    async with aclosing(chosen_sessions(store, user_id, session_id)) as chosen:
        async for info in chosen:
            rows = await again(store, store.tail, SessionRef(info.user_id, info.session_id), None)
            out.write(_line({"format": FORMAT, "session": _description(info), "items": len(rows)}))
            for row in rows:
                out.write(_line({"content": row}))
            sessions, items = sessions + 1, items + len(rows)
            report(1)
    return Exported(sessions, items)


async def import_sessions(
    store: SessionStore,
    file: BinaryIO,
    places: list[Place],
    *,
    on_conflict: OnConflict = "refuse",
    dry_run: bool = False,
    report: Callable[[SessionRef, Outcome], None] = lambda ref, outcome: None,
) -> None:
    """Bring the sessions of a checked file into the store, each whole or not at all. Doing it again changes nothing.

    Args:
        file: What `transfer_file.check` read; seekable.
        places: What it returned. The sessions are written in this order.
        on_conflict: What becomes of a session whose stored history is neither the beginning of the file's nor goes on
            from it. refuse: it stays, outcome "conflict"; skip: it stays; replace: the file's takes its place. One
            that an app writes to all the time stays in any case, outcome "conflict".
        dry_run: Only find out the outcomes.
        report: Called after each session.
    """
    for place in places:
        info, contents = read_session(file, place, store.settings.session_max_item_bytes)
        report(place.ref, await import_session(store, info, contents, on_conflict, dry_run))


async def import_session(
    store: SessionStore, wanted: SessionInfo, contents: list[str], on_conflict: OnConflict, dry_run: bool
) -> Outcome:
    """Bring one session in, whole or not at all, also beside an app that writes to it.

    What is written is compared with what the outcome was judged by. If the app wrote in between, the import starts over
    with what is there then; where that never ends, the outcome is "conflict" and the app's history stays.
    """
    ref = SessionRef(wanted.user_id, wanted.session_id)
    for _ in range(_ATTEMPTS):
        there = await again(store, store.find_session, ref)
        stored = await again(store, store.tail, ref, None) if there else []
        outcome = _outcome(there, stored, contents, on_conflict)
        if dry_run or outcome in ("conflict", "skipped"):
            return outcome
        if outcome == "already there" or await _bring_in(store, wanted, contents, there, stored):
            await _describe(store, ref, wanted, there, outcome)
            return outcome
    return "conflict"


def _outcome(there: SessionInfo | None, stored: list[str], contents: list[str], on_conflict: OnConflict) -> Outcome:
    if there and stored[: len(contents)] == contents:
        return "already there"
    if contents[: len(stored)] == stored:
        return "extended" if stored else "imported"
    return _CONFLICT[on_conflict]


async def _bring_in(
    store: SessionStore,
    wanted: SessionInfo,
    contents: list[str],
    there: SessionInfo | None,
    stored: list[str],
) -> bool:
    """Store what is missing, if the session still is as it was read; False if not."""
    ref = SessionRef(wanted.user_id, wanted.session_id)
    if not stored:
        return await _begin(store, ref, there, contents, wanted.title)
    extends = contents[: len(stored)] == stored
    # What stays is compared and stored again only at its end: an app changes nothing but the end.
    expected = stored[-_COMPARED:] if extends else stored
    texts = contents[len(stored) - len(expected) :] if extends else contents
    batch = Batch(_batch_id(ref, there, texts), _rows(texts), wanted.title)
    return await again(store, store.replace_tail, ref, expected, batch)


async def _begin(
    store: SessionStore, ref: SessionRef, there: SessionInfo | None, contents: list[str], title: str | None
) -> bool:
    """Store the first rows of a session; False if somebody else did, and then nothing is stored."""
    # No store can append on the condition that there is nothing yet. So look afterwards who came first.
    for attempt in range(1000):
        await again(store, store.append, ref, Batch(_batch_id(ref, there, contents, attempt), _rows(contents), title))
        rows = await again(store, store.tail, ref, None)
        begun = bool(rows) or await again(store, store.find_session, ref) is not None
        if begun and rows[: len(contents)] == contents:
            return True
        if rows and contents:
            await _take_out(store, ref, rows, contents)
            return False
        # The store knows this batch from a session of that name that was deleted, and does not bring it back.
    return False


async def _take_out(store: SessionStore, ref: SessionRef, rows: list[str], contents: list[str]) -> None:
    """Remove what was stored behind the first words of an app, and leave what the app said."""
    count = len(contents)
    while (start := next((at for at in range(len(rows)) if rows[at : at + count] == contents), None)) is not None:
        later = Batch.of(_rows(rows[start + count :]))
        if await again(store, store.replace_tail, ref, rows[start:], later):
            return
        rows = await again(store, store.tail, ref, None)


async def _describe(
    store: SessionStore, ref: SessionRef, wanted: SessionInfo, there: SessionInfo | None, outcome: Outcome
) -> None:
    """Title and metadata. What somebody gave the session since it was exported is kept, unless all is replaced."""
    replaced = outcome == "replaced"
    title = wanted.title if replaced or (there and there.title is None) else None
    metadata = wanted.metadata if replaced or (wanted.metadata and not (there and there.metadata)) else None
    if title is not None or metadata is not None:
        await again(store, store.update_session, ref, title=title, metadata=metadata)


def _description(info: SessionInfo) -> dict[str, object]:
    return {
        "user_id": info.user_id,
        "session_id": info.session_id,
        "title": info.title,
        "metadata": dict(info.metadata),
        "created_at": info.created_at.isoformat(),
        "updated_at": info.updated_at.isoformat(),
    }


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(", ", ": ")).encode() + b"\n"


def _rows(texts: list[str]) -> list[Row]:
    return [Row(text, role_in(text)) for text in texts]


def _batch_id(ref: SessionRef, there: SessionInfo | None, contents: list[str], attempt: int = 0) -> UUID:
    # The same work has the same id in every process: a repeated call or two imports at once store it once.
    # When the session was last written is part of it: what was imported and then cleared can be imported again.
    digest = hashlib.sha256(repr((ref, there and there.updated_at.isoformat(), attempt)).encode())
    for text in contents:
        digest.update(f"{len(text)}:{text}".encode())
    return uuid5(_NAMESPACE, digest.hexdigest())
