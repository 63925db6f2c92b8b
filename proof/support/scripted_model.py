"""A model that answers what a script says, one entry a request, and keeps what it was sent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

from agents.items import TResponseInputItem, TResponseOutputItem, TResponseStreamEvent
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemDoneEvent,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from my_agent.dev.offline import OfflineModel, _message, _response

INPUT, CACHED, OUTPUT = 100, 40, 7
"""Tokens that each request is said to cost."""


def say(text: str) -> list[TResponseOutputItem]:
    return [_message(text)]


def call(*calls: str, **arguments: str) -> list[TResponseOutputItem]:
    """Calls of these tools at once, all with the same arguments."""
    return [
        ResponseFunctionToolCall(
            id=f"fc_{uuid4().hex}",
            call_id=f"call_{uuid4().hex}",
            name=name,
            arguments=json.dumps(arguments),
            type="function_call",
            status="completed",
        )
        for name in calls
    ]


Step = Sequence[TResponseOutputItem] | Exception


class ScriptedModel(OfflineModel):
    """Raises what is an exception; the last entry is repeated for ever."""

    def __init__(self, *script: Step) -> None:
        self.script, self.seen = list(script), list[list[TResponseInputItem]]()

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        asked = kwargs["input"] if "input" in kwargs else args[1]
        self.seen.append([{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked))
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        for number, item in enumerate(step):
            if item.type == "message":
                yield ResponseTextDeltaEvent(
                    content_index=0,
                    delta=getattr(item.content[0], "text", ""),
                    item_id=item.id,
                    logprobs=[],
                    output_index=number,
                    sequence_number=number,
                    type="response.output_text.delta",
                )
            yield ResponseOutputItemDoneEvent(
                item=item, output_index=number, sequence_number=number, type="response.output_item.done"
            )
        response = _response(list(step))
        response.usage = ResponseUsage(
            input_tokens=INPUT,
            input_tokens_details=InputTokensDetails.model_validate({"cached_tokens": CACHED, "cache_write_tokens": 0}),
            output_tokens=OUTPUT,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            total_tokens=INPUT + OUTPUT,
        )
        yield ResponseCompletedEvent(response=response, sequence_number=len(step), type="response.completed")
