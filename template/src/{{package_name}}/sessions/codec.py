"""Items to text and back, exactly: what was a float stays that float, what was a key stays in its place.

msgspec reads and writes in a tenth of the time of `json`. What it would refuse or change (half a surrogate pair, NaN,
a number beyond every float) goes through `json`, which keeps it. Both read what the other wrote. Rows that cannot be
read stay where they are, and are logged once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import msgspec

from .contract import RowStore
from .records import SEALED, SessionRef

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode

TITLE_LENGTH = 80
"""Longest title made from a message, in characters."""


class UnreadableItem(ValueError):
    """Stored text that is not an item. The message never contains the text."""


def encode_item(item: TResponseInputItem) -> str:
    """The item as JSON text without line breaks.

    Raises:
        TypeError: The item contains a value that JSON cannot represent.
    """
    try:
        data = _encode(item)
        # msgspec writes NaN and infinity as null, `json` keeps them. A real null takes the slow road too. And it writes
        # bytes, dates, sets and more as what they are not when they come back, which `json` refuses.
        if b"null" not in data and _decode(data) == item:
            return data.decode()
    except (msgspec.MsgspecError, UnicodeEncodeError, TypeError):
        pass
    return json.dumps(item, separators=(",", ":"))


def decode_item(text: str) -> TResponseInputItem:
    """The item that `encode_item` made `text` of.

    Raises:
        UnreadableItem: `text` is not a JSON object.
    """
    try:
        return cast("TResponseInputItem", _decode(text))
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        pass
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableItem("encrypted" if text.startswith(SEALED) else "not JSON") from None
    if not isinstance(item, dict):
        raise UnreadableItem("JSON, but no object")
    return cast("TResponseInputItem", item)


def decode_items(texts: Sequence[str]) -> list[TResponseInputItem]:
    """All items at once, for the usual case that all are readable.

    Raises:
        UnreadableItem: One of them is not a JSON object.
    """
    try:
        return cast("list[TResponseInputItem]", [_decode(text) for text in texts])
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return [decode_item(text) for text in texts]


def try_decode(text: str) -> TResponseInputItem | None:
    """The item, or None if the text cannot be read."""
    try:
        return decode_item(text)
    except UnreadableItem:
        return None


def role_of(item: TResponseInputItem) -> str | None:
    """The item's role if it has a plain one; tool calls, reasoning and encrypted items have none."""
    role = item.get("role")
    return role if isinstance(role, str) and role.isascii() and role.isprintable() and len(role) <= 40 else None


def role_in(text: str) -> str | None:
    """The role of a stored item; None also if the text cannot be read."""
    item = try_decode(text)
    return None if item is None else role_of(item)


def title_of(items: Iterable[TResponseInputItem]) -> str | None:
    """The first words of the first user message, on one line; None without a text from a user."""
    for item in items:
        if item.get("role") == "user" and (words := " ".join(_text(item.get("content")).split())):
            title = words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 1] + "…"
            # Control characters, NUL and half surrogate pairs would break a listing.
            return title if title.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in title)
    return None


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = " ".join(part for part in parts if isinstance(part, str))
    # Enough for a title even if half of it is white space; the rest may be megabytes.
    return content[: 2 * TITLE_LENGTH] if isinstance(content, str) else ""


MAX_REMEMBERED = 10_000
"""How many damaged rows of a store are remembered as logged. With more of them, some are logged again."""
MAX_NAMED = 10
"""How many rows a line names."""

_logged: WeakKeyDictionary[RowStore, dict[int, None]] = WeakKeyDictionary()
"""Hashes of what was logged, the oldest first. Not the texts, which may be megabytes."""


def report_damage(store: RowStore, ref: SessionRef, damaged: Mapping[int, tuple[str, str]]) -> None:
    """Log rows that were skipped, in one line, unless all of them were logged before. Never logs their content.

    Args:
        store: Where they were read.
        ref: Their session.
        damaged: By their number from the newest: their text, and what is wrong with it.
    """
    logged = _logged.setdefault(store, {})
    found = {hash((ref, text)): (age, problem) for age, (text, problem) in damaged.items()}
    fresh = {mark: found[mark] for mark in found if mark not in logged}
    if not fresh:
        return
    logged.update(dict.fromkeys(fresh))
    while len(logged) > MAX_REMEMBERED:
        del logged[next(iter(logged))]
    ages = sorted(age for age, _ in fresh.values())
    logger.warning(
        "Skipped %d unreadable row%s of %r (%s): number %s from the newest. Logged once; what is stored stays.",
        len(ages),
        "" if len(ages) == 1 else "s",
        ref,
        ", ".join(sorted({problem for _, problem in fresh.values()})),
        ", ".join(map(str, ages[:MAX_NAMED])) + (", …" if len(ages) > MAX_NAMED else ""),
    )
