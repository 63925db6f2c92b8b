"""A stored conversation, for people and for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

from ..sessions.codec import UnreadableItem, decode_item
from .console import answer, clean, complain


def print_json(rows: Sequence[str]) -> None:
    """Each item as stored, one a line. Unreadable rows are left out: stdout contains only JSON."""
    unreadable = 0
    for row in rows:
        try:
            decode_item(row)
        except UnreadableItem:
            unreadable += 1
            continue
        # Between JSON tokens only, since strings cannot hold them: ours have none, another program's might.
        answer(row.replace("\r", " ").replace("\n", " "))
    if unreadable:
        complain(f"Unreadable rows left out: {unreadable}. `sessions export` keeps them.")


def print_items(rows: Iterable[str]) -> None:
    """Who said what, wrapped to the width of the terminal."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for row in rows:
        try:
            heading, text = _described(cast(dict[str, Any], decode_item(row)))
        except UnreadableItem:
            heading, text = "unreadable", f"({len(row):,} characters)"
        console.print(Text(clean(heading), style="bold"))
        body = Text(clean(text, lines=True))
        console.print(Padding(body, (0, 0, 0, 2)) if sys.stdout.isatty() else body)
        console.print()


def _described(item: dict[str, Any]) -> tuple[str, str]:
    kind = item.get("type", "message")
    if isinstance(item.get("role"), str):
        return item["role"], _text(item.get("content"))
    if kind == "function_call":
        return f"calls {item.get('name')}", _text(item.get("arguments"))
    if kind == "function_call_output":
        return "result", _text(item.get("output"))
    if kind == "reasoning":
        return "reasoning", _text(item.get("summary")) or "(not shown by the model)"
    return str(kind), json.dumps(item, ensure_ascii=False)


def _text(content: object) -> str:
    """The words of a content field: text, a list of parts, or anything else as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(map(_part, content))
    return json.dumps(content, ensure_ascii=False)


def _part(part: object) -> str:
    if isinstance(part, dict):
        for field in ("text", "refusal"):
            if isinstance(part.get(field), str):
                return cast(str, part[field])
        return f"({part.get('type', 'part')})"  # an image or a file: its data would fill the screen
    return _text(part)
