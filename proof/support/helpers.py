"""Words for the tests: short ways to say what happens in a conversation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NoReturn, cast
from uuid import uuid4

import pytest
from agents.items import TResponseInputItem


def user(text: str) -> TResponseInputItem:
    return {"role": "user", "content": text}


def answer(text: str) -> TResponseInputItem:
    """An assistant message as the Responses API returns it."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    return cast(TResponseInputItem, item)


def anything(**fields: Any) -> TResponseInputItem:
    """An item of any shape; a session must not care."""
    return cast(TResponseInputItem, fields)


def text(item: TResponseInputItem | None) -> str:
    """What an item says."""
    assert item is not None
    content = cast(Any, item)["content"]
    return cast(str, content if isinstance(content, str) else content[0]["text"])


def texts(items: Iterable[TResponseInputItem]) -> list[str]:
    return [text(item) for item in items]


def missing(reason: str) -> NoReturn:
    """A part that the test needs is not here: a failure where all tests must run, otherwise no test."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
