"""Strings that no model takes, found before they are stored: such a session could never be used again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from .errors import ItemTooLarge

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

MAX_STRING = 10 * 2**20
"""Longest string of a request in characters. The API refuses a longer one: "string too long. Expected a string with
maximum length 10485760" (code `string_above_max_length`; seen in Shopify/roast#52 and VectorlyApp/bluebox#31)."""

LongStrings = Literal["refuse", "cut"]
Path = tuple[str | int, ...]
"""Where a string is in an item: names of fields and positions in lists."""

_TEXTS = {"content", "output", "refusal", "stderr", "stdout", "text"}
"""Fields with words that can be cut; ids, arguments, file data and encrypted content cannot."""


def fit_strings(item: TResponseInputItem, mode: LongStrings, name: str) -> TResponseInputItem:
    """The item, with every string that is longer than `MAX_STRING` cut, or the same object without such a string.

    Args:
        item: Not changed.
        mode: "refuse": do not cut.
        name: The item in a sentence.

    Raises:
        ItemTooLarge: There is such a string, and it must not or cannot be cut.
    """
    for path in list(long_strings(item)):
        if mode == "refuse" or not is_text(item, path):
            hint = ", or set SESSION_LONG_STRINGS=cut" if is_text(item, path) else ""
            raise ItemTooLarge(
                f"{name} contains a string of {len(_at(item, path)):,} characters (in {path[0]}), and models take no "
                f"more than {MAX_STRING:,}; nothing was stored. Shorten it, or refer to it by URL or file id{hint}."
            )
        item = cut(item, path)
    return item


def long_strings(item: object, limit: int = MAX_STRING) -> Iterator[Path]:
    """Where strings of an item are that have more than `limit` characters."""
    if isinstance(item, dict) and "__enc__" in item:
        return  # the SDK's EncryptedSession: the model never gets this text
    if isinstance(item, str):
        if len(item) > limit:
            yield ()
        return
    inner = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, (list, tuple)) else ()
    for key, value in inner:
        yield from ((key, *path) for path in long_strings(value, limit))


def is_text(item: object, path: Path) -> bool:
    """Whether the string there is one that can be cut: words, and none of them a file written as base64."""
    text = _at(item, path)
    return bool(path) and path[-1] in _TEXTS and not text.startswith("data:") and ";base64," not in text


def cut(item: TResponseInputItem, path: Path, limit: int = MAX_STRING) -> TResponseInputItem:
    """The item with the string there cut to `limit` characters, of which the last ones say how much is missing."""
    text = _at(item, path)
    mark = f"\n[… {len(text):,} characters, cut after "
    keep = max(limit - len(mark) - len(f"{limit:,}]"), 0)
    return cast("TResponseInputItem", _with(item, path, f"{text[:keep]}{mark}{keep:,}]"[:limit]))


def _at(item: object, path: Path) -> str:
    for key in path:
        item = cast(Any, item)[key]
    return cast(str, item)


def _with(item: Any, path: Path, text: str) -> object:
    if not path:
        return text
    key, *rest = path
    inner = _with(item[key], tuple(rest), text)
    if isinstance(item, dict):
        return {**item, key: inner}
    return [inner if index == key else value for index, value in enumerate(item)]
