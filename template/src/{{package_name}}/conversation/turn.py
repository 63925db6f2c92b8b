"""One turn of a conversation: the session's history, the agent's run, and what happens on the way as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai
from agents import (
    Agent,
    AgentsException,
    RawResponsesStreamEvent,
    RunConfig,
    RunItemStreamEvent,
    Runner,
    RunResultStreaming,
    RunState,
    ToolErrorFormatterArgs,
)

from ..sessions import StoredSession
from .errors import forget_key, reason
from .history import history_settings, history_window


@dataclass(frozen=True)
class RunContext:
    """Goes with a run to its tools, and to the session, which refuses runs of other users."""

    user_id: str


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer, as it is written."""

    text: str


@dataclass(frozen=True)
class ToolCalled:
    """The agent calls a tool; arguments are the JSON text that the model wrote."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFinished:
    """A tool has answered."""

    output: str
    error: Exception | None = field(default=None, repr=False)
    """What the tool raised, if the SDK answered in its place. The model does not see it."""


@dataclass(frozen=True)
class AgentChanged:
    """Another agent took over."""

    name: str


@dataclass(frozen=True)
class ApprovalNeeded:
    """The turn stands still until its tool calls are decided.

    Decide each with `state.approve` or `state.reject`, then give `state` to `run_turn`; in another process, after
    `state.to_json()` and `RunState.from_json(…, context_override=RunContextWrapper(RunContext(user_id)))`: tools want
    their context back.

    If the store fails during the turn, take `state.to_json()` once more and resume from that: it knows what was
    stored. If the SDK refuses it, say something new. An older JSON would call the tools again.
    """

    calls: list[ToolCalled]
    state: RunState[RunContext]


@dataclass(frozen=True)
class Done:
    """The turn is over, and all of it is stored."""

    output: str


Event = TextDelta | ToolCalled | ToolFinished | AgentChanged | ApprovalNeeded | Done


class TurnFailed(Exception):
    """A turn broke off. The message says why and what to do; finished steps of the turn stay stored.

    The user's message is among them, so asking again with the same words stores it twice.
    """


async def run_turn(
    agent: Agent[Any],
    session: StoredSession,
    message: str | RunState[RunContext],
    *,
    max_items: int,
    max_tokens: int | None = None,
) -> AsyncGenerator[Event, None]:
    """Say something to the agent and follow what it does. Closing the generator stops the run.

    Args:
        agent: Who answers.
        session: Where the conversation is kept.
        message: What the user says, or the decided state of a turn that needed an approval.
        max_items: How much of the history the model may see, see `history.py`.
        max_tokens: The same in tokens.

    Raises:
        TurnFailed: The model or the agent failed.
        SessionStoreError: The store failed.
    """
    raised: dict[str, Exception] = {}

    def keep_error(failed: ToolErrorFormatterArgs[Any]) -> None:
        if failed.error is not None:
            raised[failed.call_id] = failed.error

    result = Runner.run_streamed(
        agent,
        message,
        context=RunContext(session.user_id) if isinstance(message, str) else None,
        session=session,
        run_config=RunConfig(
            session_settings=history_settings(max_items, max_tokens),
            session_input_callback=history_window(session, max_items, max_tokens),
            tool_error_formatter=keep_error,
        ),
    )
    speaking = agent.name
    try:
        async for event in result.stream_events():
            if event.type == "agent_updated_stream_event":
                if event.new_agent.name != speaking:
                    speaking = event.new_agent.name
                    yield AgentChanged(speaking)
            elif (seen := _event(event, raised)) is not None:
                yield seen
    except (AgentsException, openai.OpenAIError, json.JSONDecodeError) as error:
        forget_key(error)
        raise TurnFailed(reason(error)) from error
    finally:
        await _stop(result)
    if result.interruptions:
        calls = [ToolCalled(call.name or "?", call.arguments or "") for call in result.interruptions]
        yield ApprovalNeeded(calls, result.to_state())
    else:
        yield Done(str(result.final_output))


async def _stop(result: RunResultStreaming) -> None:
    """End a run that nobody listens to any more, and wait until its writes are finished."""
    if not result.is_complete:
        # Not "after_turn": that waits for the rest of the answer. What was stored stays valid: a turn is one batch.
        result.cancel(mode="immediate")
    # The SDK does not wait for a write that has begun when it is cancelled itself; the next turn would overtake it.
    if result.run_loop_task is not None:
        await asyncio.wait({result.run_loop_task})


def _event(event: RawResponsesStreamEvent | RunItemStreamEvent, raised: Mapping[str, Exception]) -> Event | None:
    if event.type == "raw_response_event":
        return TextDelta(event.data.delta) if event.data.type == "response.output_text.delta" else None
    match event.name, event.item.type:
        case "tool_called", "tool_call_item":
            raw: Any = event.item.raw_item
            return ToolCalled(getattr(raw, "name", raw.type), getattr(raw, "arguments", ""))
        case "tool_output", "tool_call_output_item":
            return ToolFinished(str(event.item.output), raised.get(event.item.call_id or ""))
    return None
