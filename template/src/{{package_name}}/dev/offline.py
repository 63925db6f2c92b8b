"""A model that needs no key and no network, for the first minute and for tests. It answers from the history it gets.

It knows the user's name if the user said it, the first message, and calls a tool or hands over if the user names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from time import time
from typing import Any, cast
from uuid import uuid4

from agents import FunctionTool, Handoff, ModelResponse, ModelSettings, Tool, Usage
from agents.agent_output import AgentOutputSchemaBase
from agents.items import TResponseInputItem, TResponseOutputItem, TResponseStreamEvent
from agents.models.interface import Model, ModelTracing
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)
from openai.types.responses.response_prompt_param import ResponsePromptParam

NAME = "offline"
_MY_NAME = re.compile(r"\b(?:my name is|i am called|call me)\s+(\w[\w'-]*)", re.IGNORECASE)
_HANDED_OVER = re.compile(r'\{"assistant": "(.*)"\}')  # the SDK's words to an agent that takes over


class OfflineModel(Model):
    """Answers by a few rules, in the shape of the Responses API."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> ModelResponse:
        return ModelResponse(output=[_output(input, tools, handoffs)], usage=Usage(requests=1), response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> AsyncIterator[TResponseStreamEvent]:
        for event in _events(_output(input, tools, handoffs)):
            yield event


# ── What to say ─────────────────────────────────────────────────────────────


def _output(
    input: str | list[TResponseInputItem], tools: Sequence[Tool], handoffs: Sequence[Handoff]
) -> TResponseOutputItem:
    items = [{"role": "user", "content": input}] if isinstance(input, str) else cast(list[dict[str, Any]], input)
    last = items[-1] if items else {}
    if last.get("type") == "function_call_output":
        found = _text(last.get("output"))
        if handed_over := _HANDED_OVER.fullmatch(found):
            return _message(f"{handed_over[1]} here, how can I help?")
        return _message(f"Here is what I found: {found}")
    said = [_text(item.get("content")) for item in items if item.get("role") == "user"]
    question = said[-1] if said else ""
    for handoff in handoffs:
        if handoff.agent_name.lower() in question.lower() and last.get("role") == "user":
            return _call(handoff.tool_name, {})
    for tool in () if _MY_NAME.search(question) else tools:
        # A tool is meant by the last word of its name: the time for current_time, the words for count_words.
        if isinstance(tool, FunctionTool) and re.search(rf"\b{tool.name.split('_')[-1]}\b", question, re.IGNORECASE):
            return _call(tool.name, _arguments(tool, question))
    calls = [tool.name.split("_")[-1] for tool in tools if isinstance(tool, FunctionTool)]
    return _message(_answer(question, said[:-1], calls))


def _answer(question: str, earlier: Sequence[str], calls: Sequence[str]) -> str:
    asked = question.lower()
    if told := _MY_NAME.search(question):
        return f"Nice to meet you, {told[1]}!"
    if "my name" in asked:
        names = [name for text in earlier for name in _MY_NAME.findall(text)]
        return f"Your name is {names[-1]}." if names else "You have not told me your name yet."
    if "first" in asked and earlier:
        return f'The first thing you said was: "{earlier[0]}"'
    count = f"{len(earlier)} earlier message{'' if len(earlier) == 1 else 's'}"
    known = ["My name is Ada", "What is my name?", "What did I say first?"]
    rules = [json.dumps(sentence) for sentence in known]
    if calls:
        rules.append(f"words that call a tool ({', '.join(calls)})")
    return f"I am the offline model: I remember {count} and understand {', '.join(rules[:-1])} and {rules[-1]}."


def _arguments(tool: FunctionTool, question: str) -> dict[str, Any]:
    """What the question offers for each parameter: a number, what is quoted or follows a colon, a name with a slash."""
    arguments: dict[str, Any] = {}
    for name, schema in tool.params_json_schema.get("properties", {}).items():
        number = re.search(r"-?\d+", question)
        phrase = re.search(r'"([^"]+)"|:\s*(.+)|\b(\w+(?:/[\w+-]+)+)', question)
        if schema.get("type") in ("integer", "number"):
            arguments[name] = int(number[0]) if number else schema.get("default", 1)
        else:
            arguments[name] = next(filter(None, phrase.groups())) if phrase else schema.get("default", question)
    return arguments


def _text(content: object) -> str:
    """The words of a content field: text, or a list of parts."""
    if isinstance(content, list):
        return " ".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return str(content or "")


# ── How the Responses API says it ───────────────────────────────────────────


def _message(text: str) -> ResponseOutputMessage:
    part = ResponseOutputText(text=text, annotations=[], type="output_text")
    return ResponseOutputMessage(
        id=f"msg_{uuid4().hex}", content=[part], role="assistant", status="completed", type="message"
    )


def _call(name: str, arguments: dict[str, Any]) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id=f"fc_{uuid4().hex}",
        call_id=f"call_{uuid4().hex}",
        name=name,
        arguments=json.dumps(arguments),
        type="function_call",
        status="completed",
    )


def _response(output: list[TResponseOutputItem]) -> Response:
    return Response(
        id=f"resp_{uuid4().hex}",
        created_at=time(),
        model=NAME,
        object="response",
        output=output,
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
    )


def _events(item: TResponseOutputItem) -> Iterator[TResponseStreamEvent]:
    """A response as it streams in: begun, the item piece by piece, completed."""
    numbers = count()
    yield ResponseCreatedEvent(response=_response([]), sequence_number=next(numbers), type="response.created")
    empty: dict[str, Any] = {"content": []} if isinstance(item, ResponseOutputMessage) else {"arguments": ""}
    begun = item.model_copy(update=empty | {"status": "in_progress"})
    yield ResponseOutputItemAddedEvent(
        item=begun, output_index=0, sequence_number=next(numbers), type="response.output_item.added"
    )
    for kind, fields in _pieces(item):
        yield kind(item_id=item.id, output_index=0, sequence_number=next(numbers), **fields)
    yield ResponseOutputItemDoneEvent(
        item=item, output_index=0, sequence_number=next(numbers), type="response.output_item.done"
    )
    yield ResponseCompletedEvent(response=_response([item]), sequence_number=next(numbers), type="response.completed")


def _pieces(item: TResponseOutputItem) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The events between the beginning and the end of an item, and what they say of it."""
    if isinstance(item, ResponseFunctionToolCall):
        kind = "response.function_call_arguments."
        yield ResponseFunctionCallArgumentsDeltaEvent, {"delta": item.arguments, "type": f"{kind}delta"}
        done = {"arguments": item.arguments, "name": item.name, "type": f"{kind}done"}
        yield ResponseFunctionCallArgumentsDoneEvent, done
    if isinstance(item, ResponseOutputMessage):
        empty = ResponseOutputText(text="", annotations=[], type="output_text")
        yield ResponseContentPartAddedEvent, {"content_index": 0, "part": empty, "type": "response.content_part.added"}
        text = _text([part.model_dump() for part in item.content])
        of_text = {"content_index": 0, "logprobs": []}
        for word in re.findall(r"\S+\s*", text):
            yield ResponseTextDeltaEvent, {**of_text, "delta": word, "type": "response.output_text.delta"}
        yield ResponseTextDoneEvent, {**of_text, "text": text, "type": "response.output_text.done"}
        part = {"content_index": 0, "part": item.content[0], "type": "response.content_part.done"}
        yield ResponseContentPartDoneEvent, part
