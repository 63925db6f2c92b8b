"""Sessions, turns and rows in the shapes of the Responses API."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from time import time
from typing import Any, cast
from uuid import UUID

from ..conversation.items import OUTPUTS, kind
from ..conversation.notes import TurnNote
from ..conversation.report import Usage
from ..sessions.codec import try_decode
from ..sessions.records import SessionInfo, Turn
from .problems import Problem

AGENT = "agent"
"""`server_label` of approvals: the tools are the agent's own."""
FAKE_ID = "__fake_id__"
"""What the SDK calls items of models that give no ids."""
_MESSAGE = re.compile(r"msg_(\d{1,18})")
_RESPONSE = re.compile(r"resp_([0-9a-f]{32})([\w-]+)")
Item = dict[str, Any]


# ── Names ───────────────────────────────────────────────────────────────────


def response_id(turn_id: str, session_id: str) -> str:
    """A turn's id with the session's in it, so that the session is found by it."""
    return turn_id + urlsafe_b64encode(session_id.encode()).decode().rstrip("=")


def parse_response_id(text: str) -> tuple[str, str, UUID]:
    """Turn id, session id, and the token of the run.

    Raises:
        Problem: It is no id of ours.
    """
    found = _RESPONSE.fullmatch(text)
    try:
        if found:
            session = urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4)).decode()
            return f"resp_{found[1]}", session, UUID(found[1])
    except ValueError:
        pass
    raise no_response(text)


def no_response(text: str) -> Problem:
    return Problem(404, f"There is no response {text!r}.", code="response_not_found")


def no_conversation(session_id: str) -> Problem:
    return Problem(404, f"There is no conversation {session_id!r}.", code="conversation_not_found")


def position_of(item_id: str) -> int:
    """Where a message of the user is.

    Raises:
        Problem: It is no id of such a message.
    """
    found = _MESSAGE.fullmatch(item_id)
    if found is None:
        raise Problem(400, f"{item_id!r} is not the id of a message of the user.", param="before_item")
    return int(found[1])


def made_at(turn_id: str) -> int:
    """Seconds since 1970: the id of a turn begins with the time in milliseconds."""
    found = re.match(r"resp_([0-9a-f]{12})", turn_id)
    return int(found[1], 16) // 1000 if found else int(time())


# ── Items ───────────────────────────────────────────────────────────────────


def shown(item: Any, position: int) -> Item:
    """A stored item as the API lists it: with an id, and text of the user as a part."""
    what = kind(item)
    found: Item = {"type": what, "status": "completed", **item}
    if what == "message" and isinstance(item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        text = {"type": part, "text": item["content"]}
        found["content"] = [{**text, "annotations": []} if part == "output_text" else text]
    if what == "message" and item.get("role") == "user":
        found["id"] = f"msg_{position}"  # which `position_of` reads
    elif what.endswith("_output"):
        found["id"] = output_id(item)
    elif found.get("id") in (None, FAKE_ID):
        found["id"] = f"item_{position}"
    return found


def output_id(item: Any) -> str:
    return str(item.get("id") or f"out_{item.get('call_id')}")


def approval_request(call: dict[str, str]) -> Item:
    """A tool call that waits for a decision."""
    return {
        "id": f"mcpr_{call['call_id']}",
        "type": "mcp_approval_request",
        "server_label": AGENT,
        "name": call["name"],
        "arguments": call["arguments"],
    }


def shown_rows(rows: Sequence[str], positions: Sequence[int], waiting: Iterable[dict[str, str]] = ()) -> list[Item]:
    """Rows as items, oldest first, without what is damaged, and without calls that wait: no client is to make them."""
    calls = {call["call_id"] for call in waiting}
    found = []
    for row, position in zip(rows, positions, strict=True):
        item = cast(Any, try_decode(row))
        if item is not None and not (kind(item) in OUTPUTS and item.get("call_id") in calls):
            found.append(shown(item, position))
    return found


# ── Turns and sessions ──────────────────────────────────────────────────────


def waiting_calls(turn: Turn | None) -> list[dict[str, str]]:
    note = TurnNote.of(turn)
    return note.calls if turn is not None and turn.status == "approval" and note is not None else []


def response(name: str, session_id: str, model: str, **fields: Any) -> Item:
    """A response that is being made, with every field that strict clients look for."""
    frame: Item = {
        "id": name,
        "object": "response",
        "created_at": made_at(name),
        "status": "in_progress",
        "background": False,
        "conversation": {"id": session_id},
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
    }
    return {**frame, **fields}


def usage(counted: Usage) -> Item:
    return {
        "input_tokens": counted.input_tokens,
        "input_tokens_details": {"cached_tokens": counted.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counted.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted.input_tokens + counted.output_tokens,
    }


def conversation(info: SessionInfo) -> Item:
    return {
        "id": info.session_id,
        "object": "conversation",
        "created_at": int(info.created_at.timestamp()),
        "updated_at": int(info.updated_at.timestamp()),
        "metadata": dict(info.metadata),
        "title": info.title,
        "item_count": info.item_count,
    }


def page(data: Sequence[Item], last_id: str | None, has_more: bool) -> Item:
    """A list; `last_id` goes into `after` of the next request."""
    return {"object": "list", "data": list(data), "first_id": None, "last_id": last_id, "has_more": has_more}
