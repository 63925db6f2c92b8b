"""One turn, with all its model calls and tools, told as one response of the Responses API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from agents import StreamEvent

from ..conversation.items import OUTPUTS
from ..conversation.report import Usage
from .shapes import FAKE_ID, Item, approval_request, output_id, usage

Event = dict[str, Any]
_TEXT = "response.output_text."
_PART = "response.content_part."


@dataclass
class _Open:
    """An item that the model is writing."""

    item: Item
    index: int | None
    """Its place in the output; None: a call, which is held back."""
    texts: dict[int, str] = field(default_factory=dict)
    """Of parts that are not done yet."""


class ResponseEvents:
    """Makes the events of one response.

    A call is told when its output is there, or as a request for an approval: a client must never think that the call
    is its own to make.

    Args:
        response: See `shapes.response`; its status, output and usage change.
        calls: Calls of an earlier response whose outputs will come now.
    """

    def __init__(self, response: Item, calls: list[Item] | None = None) -> None:
        self.response = response
        self._number = -1
        self._open: dict[int, _Open] = {}
        self._calls = {call["call_id"]: call for call in calls or []}

    def begin(self) -> Iterator[Event]:
        for kind in ("response.created", "response.in_progress"):
            yield self._whole(kind)

    def of_sdk(self, event: StreamEvent) -> Iterator[Event]:
        """What an event of the SDK is in the response."""
        if event.type == "raw_response_event":
            yield from self._raw(event.data)
        elif event.type == "run_item_stream_event":
            raw: Any = event.item.to_input_item()
            if event.item.type in ("tool_call_item", "handoff_call_item") and raw.get("type") in OUTPUTS:
                self._calls[raw.get("call_id")] = raw
            elif event.item.type in ("tool_call_output_item", "handoff_output_item"):
                if (call := self._calls.pop(raw.get("call_id"), None)) is not None:
                    yield from self._call({"id": f"fc_{uuid4().hex}", **call, "status": "completed"})
                yield from self._at_once({"id": output_id(raw), "status": "completed", **raw})

    def waits(self, calls: list[dict[str, str]]) -> Iterator[Event]:
        """Calls that need an approval."""
        for call in calls:
            yield from self._at_once(approval_request(call))

    def completed(self, counted: Usage) -> Iterator[Event]:
        self.response |= {"status": "completed", "usage": usage(counted)}
        yield self._whole("response.completed")

    def failed(self, message: str, status: str = "failed") -> Iterator[Event]:
        self.response |= {"status": status, "error": {"code": "server_error", "message": message}, "output": []}
        yield self._whole("response.failed")

    def replayed(self, output: list[Item]) -> Iterator[Event]:
        """A response that was made before, from its stored items."""
        status, self.response["status"] = self.response["status"], "in_progress"
        yield from self.begin()
        for item in output:
            yield from self._at_once(item)
        self.response["status"] = status
        yield self._whole("response.completed")

    # ── Inside ──────────────────────────────────────────────────────────────

    @property
    def _output(self) -> list[Item]:
        output: list[Item] = self.response["output"]
        return output

    def _raw(self, data: Any) -> Iterator[Event]:
        if data.type in ("response.created", "response.completed"):
            self._open.clear()  # the next model call counts from 0 again
        place = getattr(data, "output_index", None)
        if place is None:
            return  # the frame of one model call is not that of the turn
        fields = data.model_dump(mode="json", exclude_unset=True, exclude={"type", "sequence_number"}, warnings=False)
        if data.type == "response.output_item.added":
            yield from self._added(place, fields["item"])
            return
        if data.type == "response.output_item.done" and place not in self._open:
            yield from self._added(place, {**fields["item"], "content": []})
        open_item = self._open.get(place)
        if open_item is None or open_item.index is None:
            return
        if data.type == "response.output_item.done":
            yield from self._done(open_item, fields["item"])
            return
        if "content_index" in fields and data.type.startswith(_TEXT):
            yield from self._part_is_open(open_item, fields["content_index"])
            if data.type == f"{_TEXT}delta":
                open_item.texts[fields["content_index"]] += fields["delta"]
                fields.setdefault("logprobs", [])
        elif data.type == f"{_PART}added":
            open_item.texts[fields["content_index"]] = ""
        elif data.type == f"{_PART}done":
            open_item.texts.pop(fields["content_index"], None)
        if "item_id" in fields:
            fields["item_id"] = open_item.item["id"]
        yield self._event(data.type, **{**fields, "output_index": open_item.index})

    def _added(self, place: int, item: Item) -> Iterator[Event]:
        if item.get("id") in (None, FAKE_ID):
            item["id"] = f"{'msg' if item.get('type') == 'message' else 'item'}_{uuid4().hex}"
        if item.get("type") in OUTPUTS:
            self._open[place] = _Open(item, None)
            return
        self._open[place] = _Open(item, len(self._output))
        self._output.append(item)
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=deepcopy(item))

    def _done(self, open_item: _Open, item: Item) -> Iterator[Event]:
        item["id"], index = open_item.item["id"], open_item.index or 0
        where = {"item_id": item["id"], "output_index": index}
        for number, text in list(open_item.texts.items()):  # of a model that leaves the ends out
            parts = item.get("content") or []
            part = parts[number] if number < len(parts) else {"type": "output_text", "text": text, "annotations": []}
            yield self._event(f"{_TEXT}done", **where, content_index=number, text=text, logprobs=[])
            yield self._event(f"{_PART}done", **where, content_index=number, part=part)
        self._output[index] = item
        yield self._event("response.output_item.done", output_index=index, item=deepcopy(item))

    def _part_is_open(self, open_item: _Open, number: int) -> Iterator[Event]:
        if number in open_item.texts:
            return
        open_item.texts[number] = ""
        part = {"type": "output_text", "text": "", "annotations": []}
        where = {"item_id": open_item.item["id"], "output_index": open_item.index}
        yield self._event(f"{_PART}added", **where, content_index=number, part=part)

    def _call(self, call: Item) -> Iterator[Event]:
        if call["type"] != "function_call":
            yield from self._at_once(call)
            return
        index = len(self._output)
        where, arguments = {"item_id": call["id"], "output_index": index}, call.get("arguments", "")
        begun = {**call, "arguments": "", "status": "in_progress"}
        self._output.append(call)
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **where, delta=arguments)
        done = {**where, "arguments": arguments, "name": call["name"]}
        yield self._event("response.function_call_arguments.done", **done)
        yield self._event("response.output_item.done", output_index=index, item=deepcopy(call))

    def _at_once(self, item: Item) -> Iterator[Event]:
        self._output.append(item)
        for kind in ("response.output_item.added", "response.output_item.done"):
            yield self._event(kind, output_index=len(self._output) - 1, item=deepcopy(item))

    def _whole(self, kind: str) -> Event:
        return self._event(kind, response=deepcopy(self.response))

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}


def encoded(event: Event) -> dict[str, str]:
    """For an EventSourceResponse."""
    return {"event": event["type"], "data": json.dumps(event, separators=(",", ":"))}
