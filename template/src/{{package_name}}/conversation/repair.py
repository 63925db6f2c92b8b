"""Finds what breaks requests in a stored conversation, and takes it out.

Rows that stay keep their exact text. Nothing is changed that was not found before, and nothing if another writer comes
first: then the rows are read again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agents.items import TResponseInputItem

from ..sessions import SessionStoreError, StoredSession
from ..sessions.codec import encode_item, role_in, try_decode
from ..sessions.records import Row
from ..sessions.strings import MAX_STRING, cut, is_text, long_strings
from .items import KINDS, NO_REASONING, close, is_user_message, kind, without_part

UNREADABLE = "unreadable row"
LONG = f"string of more than {MAX_STRING:,} characters"
_LEFT_OUT = "[A file was here. It was too large.]"
_ATTEMPTS = 100


@dataclass(frozen=True)
class Finding:
    """Something in a stored row that the API would refuse."""

    position: int
    """Of the row; 1 is the oldest."""
    kind: str
    """What type of item it is; "row" if it cannot be read."""
    problem: str
    action: Literal["remove", "change", "keep"]
    """What `repair` does. Unreadable rows are kept unless it is told to remove them."""
    before: str = field(repr=False)
    """The stored text."""
    after: str | None = field(default=None, repr=False)
    """What a row is changed to."""


def find_problems(rows: Sequence[str], *, unreadable: bool = False) -> list[Finding]:
    """What the API would refuse, the oldest first.

    A call without its output is not a problem in the newest turn, which may wait for an approval. An answer whose
    reasoning was lost cannot be found: not every answer has some.

    Args:
        rows: All rows of a session, as they are stored.
        unreadable: Unreadable rows are to be removed.
    """
    decoded = [try_decode(row) for row in rows]
    places = [index for index, item in enumerate(decoded) if item is not None]
    items = [item for item in decoded if item is not None]
    newest = max((index for index, item in enumerate(items) if is_user_message(item)), default=0)
    changed, too_long = dict[int, TResponseInputItem](), dict[int, str]()
    for index, item in enumerate(items):
        # A string is no longer than the row that it is in.
        if len(rows[places[index]]) > MAX_STRING and any(long_strings(item)):
            shorter = _shortened(item)
            if shorter is None:
                too_long[index] = LONG
            else:
                changed[index] = shorter
    gone, unlinked = close(items, too_long, waits_from=newest)
    found = [
        Finding(index + 1, "row", UNREADABLE, "remove" if unreadable else "keep", rows[index])
        for index, item in enumerate(decoded)
        if item is None
    ]
    for index, problem in gone.items():
        found.append(Finding(places[index] + 1, _name(items[index]), problem, "remove", rows[places[index]]))
    for more, problem in ((unlinked, NO_REASONING), (changed, LONG)):
        for index, item in more.items():
            if index not in gone:
                row = rows[places[index]]
                found.append(Finding(places[index] + 1, _name(item), problem, "change", row, encode_item(item)))
    return sorted(found, key=lambda finding: finding.position)


async def repair(session: StoredSession, named: Collection[Finding]) -> list[Finding]:
    """Do to a session what these findings say, and nothing else.

    Args:
        session: Where they were found.
        named: What `find_problems` found; the person has seen it.

    Returns:
        What was done. Less than what was named if others changed the session concurrently; nothing the second time.

    Raises:
        SessionStoreError: The session changes all the time, or the store failed.
    """
    unreadable = any(finding.problem == UNREADABLE and finding.action == "remove" for finding in named)
    for _ in range(_ATTEMPTS):
        rows = await session.tail(None)
        todo = {
            finding.position - 1: finding
            for finding in find_problems(rows, unreadable=unreadable)
            if finding.action != "keep" and finding in named
        }
        if not todo:
            return []
        first = min(todo)
        after = [todo[index].after if index in todo else row for index, row in enumerate(rows) if index >= first]
        kept = [Row(text, role_in(text)) for text in after if text is not None]
        if await session.replace_tail(rows[first:], [], after=kept):
            return list(todo.values())
    raise SessionStoreError(f"Session {session.session_id!r} changes all the time. Run this again at a quieter hour.")


def _shortened(item: TResponseInputItem) -> TResponseInputItem | None:
    """The item with its long strings cut, and a note in the place of a file; None if that is not possible."""
    changed: TResponseInputItem | None = item
    for path in list(long_strings(item)):
        if changed is None:
            break
        if is_text(item, path):
            changed = cut(changed, path)
        elif len(path) > 2 and isinstance(path[1], int):
            changed = without_part(changed, str(path[0]), path[1], _LEFT_OUT)
        else:
            changed = None
    return changed


def _name(item: TResponseInputItem) -> str:
    """Its type, if that is one that is known: otherwise it is content."""
    return kind(item) if kind(item) in KINDS else "item"
