"""One turn of a conversation: the session's history, the agent's run, and what happens on the way as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
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

from ..sessions import SessionRef, StoredSession
from .errors import forget_key, reason
from .history import history_settings, history_window
from .report import TurnReport, Usage
from .turn_session import TurnSession

PROJECT = __name__.partition(".")[0].replace("_", "-")


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
    """The turn stands still until its tool calls are decided. What it did so far is stored.

    Decide each with `state.approve` or `state.reject`, then give `state` to `run_turn`; in another process, after
    `state.to_json()` and `RunState.from_json(…, context_override=RunContextWrapper(RunContext(user_id)))`: tools want
    their context back.

    If the store fails while the turn is resumed, take `state.to_json()` once more and resume from that: it knows what
    was stored. If the SDK refuses it, say something new. An older JSON would call the tools again.
    """

    calls: list[ToolCalled]
    state: RunState[RunContext]
    usage: Usage = field(default=Usage(), compare=False)
    """What it cost until here."""


@dataclass(frozen=True)
class Done:
    """The turn is over, and all of it is stored."""

    output: str
    usage: Usage = field(default=Usage(), compare=False)
    """What it cost; for a turn that was resumed: since the approval."""


Event = TextDelta | ToolCalled | ToolFinished | AgentChanged | ApprovalNeeded | Done


class TurnFailed(Exception):
    """A turn broke off. The message says why and what to do.

    Nothing of the turn is stored, so the same message can be sent again. Of a turn that was resumed after an approval,
    the finished steps stay stored.
    """


WHILE_STORING = "Stopped while the turn was being stored: all of it is, or nothing."
"""Text of a cancellation that came too late to say which of the two."""

FAILURES = (AgentsException, openai.OpenAIError, json.JSONDecodeError)
"""What becomes `TurnFailed`; other errors are mistakes in a program, or the store's, and go on as they are."""


async def run_turn(
    agent: Agent[Any],
    session: StoredSession,
    message: str | RunState[RunContext],
    *,
    max_items: int,
    trace_content: bool = False,
) -> AsyncGenerator[Event, None]:
    """Say something to the agent and follow what it does. Closing the generator stops the run.

    The turn is stored as a whole before `Done` or `ApprovalNeeded`: one read and one write. If it breaks off earlier,
    by an error, a guardrail, a cancellation or because the generator is closed, nothing of it is stored. What its tools
    did outside stays done, and the model does not remember it. A turn that is resumed is stored step by step
    instead: its tools were allowed once, so their outputs are kept whatever comes after.

    Args:
        agent: Who answers.
        session: Where the conversation is kept.
        message: What the user says, or the decided state of a turn that needed an approval.
        max_items: How much of the history the model may see, see `history.py`.
        trace_content: Whether traces contain what was said, and arguments and outputs of tools.

    Raises:
        TurnFailed: The model or the agent failed.
        SessionStoreError: The store failed. `StoreUnavailable` with `maybe_applied`: the whole turn may be stored.
        asyncio.CancelledError: With `WHILE_STORING` as its text if the turn was being stored: all of it is, or nothing.
    """
    raised: dict[str, Exception] = {}

    def keep_error(failed: ToolErrorFormatterArgs[Any]) -> None:
        if failed.error is not None:
            raised[failed.call_id] = failed.error

    turn = TurnSession(session, at_once=not isinstance(message, str))
    result = Runner.run_streamed(
        agent,
        message,
        context=RunContext(session.user_id) if isinstance(message, str) else None,
        session=turn,
        run_config=RunConfig(
            session_settings=history_settings(max_items),
            session_input_callback=history_window(session, max_items),
            tool_error_formatter=keep_error,
            workflow_name=f"{PROJECT}: {agent.name}",
            group_id=trace_group(session.ref),
            trace_include_sensitive_data=trace_content,
        ),
    )
    report = TurnReport(session.ref, result.context_wrapper.usage)
    speaking = agent.name
    try:
        try:
            async for event in result.stream_events():
                if event.type == "agent_updated_stream_event":
                    if event.new_agent.name != speaking:
                        speaking = event.new_agent.name
                        yield AgentChanged(speaking)
                elif (seen := _event(event, raised)) is not None:
                    if isinstance(seen, TextDelta):
                        report.text_came()
                    yield seen
        finally:
            await _stop(result)
        _check_finished(result)
        await _commit(turn)
    except BaseException as error:
        report.log(error, turn.stored)
        if isinstance(error, FAILURES):
            forget_key(error)
            raise TurnFailed(reason(error)) from error
        raise
    report.log("approval" if result.interruptions else "done", turn.stored)
    if result.interruptions:
        calls = [ToolCalled(call.name or "?", call.arguments or "") for call in result.interruptions]
        yield ApprovalNeeded(calls, result.to_state(), report.usage)
    else:
        yield Done(str(result.final_output), report.usage)


async def _commit(turn: TurnSession) -> None:
    try:
        await turn.commit()
    except asyncio.CancelledError:
        raise asyncio.CancelledError(WHILE_STORING) from None


def trace_group(ref: SessionRef) -> str:
    """What the traces of a session have in common: a hash, so that no id of a user gets into them."""
    return sha256(json.dumps(ref).encode()).hexdigest()[:32]


async def _stop(result: RunResultStreaming) -> None:
    """End a run that nobody listens to any more, and wait until it has ended."""
    if not result.is_complete:
        # Not "after_turn": that waits for the rest of the answer.
        result.cancel(mode="immediate")
    # The SDK does not wait for a write that has begun when it is cancelled itself; the next turn would overtake it.
    if result.run_loop_task is not None:
        await asyncio.wait({result.run_loop_task})


def _check_finished(result: RunResultStreaming) -> None:
    """Raise what ended the run, if the stream of its events did not."""
    if result.run_loop_exception is not None:
        raise result.run_loop_exception
    if result.run_loop_task is not None and result.run_loop_task.cancelled():
        raise AgentsException("The run was cancelled from inside.")


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
