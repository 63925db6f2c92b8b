"""One turn of a conversation: the session's history, the agent's run, and what happens on the way as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from typing import Any

import openai
from agents import (
    Agent,
    AgentsException,
    Handoff,
    RawResponsesStreamEvent,
    RunConfig,
    RunItemStreamEvent,
    Runner,
    RunResultStreaming,
    RunState,
    ToolErrorFormatterArgs,
)

from ..sessions import SessionRef, StoredSession
from ..sessions.records import Turn
from .approvals import claim, refuse_while_pending, restored
from .errors import forget_key, reason
from .events import (
    AgentChanged,
    ApprovalNeeded,
    Done,
    Event,
    RunContext,
    TextDelta,
    ToolCalled,
    ToolFinished,
    TurnFailed,
)
from .history import history_settings, history_window
from .hold import Hold, hold
from .notes import TurnNote, record
from .report import TurnReport
from .turn_session import TurnSession

__all__ = [
    "WAIT_SECONDS",
    "WHILE_STORING",
    "AgentChanged",
    "ApprovalNeeded",
    "Done",
    "Event",
    "RunContext",
    "TextDelta",
    "ToolCalled",
    "ToolFinished",
    "TurnFailed",
    "run_turn",
]

PROJECT = __name__.partition(".")[0].replace("_", "-")
WAIT_SECONDS = 30.0
"""How long a message waits until another run on its session has ended."""

WHILE_STORING = "Stopped while the turn was being stored: all of it is, or nothing."
"""Text of a cancellation that came too late to say which of the two."""

FAILURES = (AgentsException, openai.OpenAIError, json.JSONDecodeError)
"""What becomes `TurnFailed`; other errors are mistakes in a program, or the store's, and go on as they are."""


async def run_turn(
    agent: Agent[Any],
    session: StoredSession,
    message: str | ApprovalNeeded | RunState[RunContext],
    *,
    max_items: int,
    request_id: str | None = None,
    wait_seconds: float = WAIT_SECONDS,
    last_agent_goes_on: bool = True,
    trace_content: bool = False,
) -> AsyncGenerator[Event, None]:
    """Say something to the agent and follow what it does. Closing the generator stops the run.

    Turns of one session follow one another, in all processes. A turn is stored as a whole before `Done` or
    `ApprovalNeeded`: one read and one write. If it breaks off earlier, by an error, a guardrail, a cancellation or
    because the generator is closed, nothing of it is stored. What its tools did outside stays done, and the model does
    not remember it. A turn that is resumed is stored step by step instead: its tools were allowed once, so their
    outputs are kept whatever comes after.

    Args:
        agent: Who answers the first message.
        session: Where the conversation is kept.
        message: What the user says, or a decided turn that needed an approval. (A `RunState` that you kept yourself
            is taken as it is: nothing then keeps another process from going on with it as well.)
        max_items: How much of the history the model may see, see `history.py`.
        request_id: What the client calls this request. If its turn is stored already, its answer comes again, alone.
        wait_seconds: How long to wait while another run is at work on this session.
        last_agent_goes_on: After a handoff, the agent that took over answers the next message; False: always `agent`.
        trace_content: Whether traces contain what was said, and arguments and outputs of tools.

    Raises:
        TurnFailed: The model or the agent failed, or the turn was stopped from elsewhere.
        SessionBusy: Another run did not end in time.
        ApprovalPending: An earlier turn waits for a decision.
        ApprovalGone: The decision came too late.
        SessionStoreError: The store failed. `StoreUnavailable` with `maybe_applied`: the whole turn may be stored.
        asyncio.CancelledError: With `WHILE_STORING` as its text if the turn was being stored: all of it is, or nothing.
    """
    running: list[RunResultStreaming] = []

    def stop() -> None:
        for each in running:
            each.cancel(mode="immediate")

    # A subclass that overrides how items are read is asked itself.
    limit = 0 if session.overridden else history_settings(max_items).limit
    async with hold(
        session,
        wait_seconds=wait_seconds,
        limit=limit,
        request_id=request_id,
        on_lost=stop,
    ) as held:
        if isinstance(message, str) and held.same is not None:
            yield await _answered_before(agent, session, held.same)
            return
        if isinstance(message, str):
            refuse_while_pending(held)
        run = _Run(held, message, max_items=max_items, request_id=request_id, trace_content=trace_content)
        await run.claim()
        result = run.start(_speaker(agent, held) if last_agent_goes_on else agent)
        running.append(result)
        async with aclosing(run.follow(result)) as events:
            async for event in events:
                yield event


class _Run:
    """One run of the SDK under a lease, from its start to its record."""

    def __init__(
        self,
        held: Hold,
        message: str | ApprovalNeeded | RunState[RunContext],
        *,
        max_items: int,
        request_id: str | None,
        trace_content: bool,
    ) -> None:
        self._held, self._message, self._request_id = held, message, request_id
        self._max_items, self._trace_content = max_items, trace_content
        self._session = TurnSession(held, at_once=not isinstance(message, str))
        self._claimed: Turn | None = None
        self._raised: dict[str, Exception] = {}

    async def claim(self) -> None:
        """For a decided turn: be the one who goes on with it."""
        if isinstance(self._message, ApprovalNeeded):
            self._claimed = self._held.note.turn = await claim(self._held, self._message)

    def start(self, agent: Agent[Any]) -> RunResultStreaming:
        """Let the agent begin, or go on."""

        def keep_error(failed: ToolErrorFormatterArgs[Any]) -> None:
            if failed.error is not None:
                self._raised[failed.call_id] = failed.error

        message, session = self._message, self._held.session
        said = message.state if isinstance(message, ApprovalNeeded) else message
        self._agent = agent
        result = Runner.run_streamed(
            agent,
            said,
            context=RunContext(session.user_id) if isinstance(said, str) else None,
            session=self._session,
            run_config=RunConfig(
                session_settings=history_settings(self._max_items),
                session_input_callback=history_window(session, self._max_items),
                tool_error_formatter=keep_error,
                workflow_name=f"{PROJECT}: {agent.name}",
                group_id=trace_group(session.ref),
                trace_include_sensitive_data=self._trace_content,
            ),
        )
        self._report = TurnReport(session.ref, result.context_wrapper.usage)
        return result

    async def follow(self, result: RunResultStreaming) -> AsyncGenerator[Event, None]:
        """What happens, until the turn is stored."""
        report, turn = self._report, self._session
        try:
            try:
                async for event in self._events(result):
                    if isinstance(event, TextDelta):
                        report.text_came()
                    yield event
            finally:
                await _stop(result)
            if self._held.lost:
                raise TurnFailed("The turn was stopped from elsewhere. Nothing of it is stored.")
            _check_finished(result)
            stored = self._record(result)
            await _commit(turn, stored)
        except BaseException as error:
            report.log(error, turn.stored)
            if isinstance(error, FAILURES):
                forget_key(error)
                raise TurnFailed(reason(error)) from error
            raise
        report.log("approval" if result.interruptions else "done", turn.stored)
        if result.interruptions:
            calls = [ToolCalled(call.name or "?", call.arguments or "") for call in result.interruptions]
            yield ApprovalNeeded(calls, result.to_state(), report.usage, stored.id)
        else:
            yield Done(str(result.final_output), report.usage, stored.id)

    async def _events(self, result: RunResultStreaming) -> AsyncGenerator[Event, None]:
        speaking = self._agent.name
        async for event in result.stream_events():
            if event.type == "agent_updated_stream_event":
                if event.new_agent.name != speaking:
                    speaking = event.new_agent.name
                    yield AgentChanged(speaking)
            elif (seen := _event(event, self._raised)) is not None:
                yield seen

    def _record(self, result: RunResultStreaming) -> Turn:
        """What is noted of the turn."""
        usage = self._report.usage
        before = TurnNote.of(self._held.last) or TurnNote("")
        note = TurnNote(result.last_agent.name, usage=usage, total=before.total + usage)
        if self._claimed is not None:
            note = replace(note, usage=before.usage + usage)
        if not result.interruptions:
            return record("done", replace(note, output=str(result.final_output)), self._claimed, self._request_id)
        calls = [
            {"call_id": call.call_id or "", "name": call.name or "?", "arguments": call.arguments or ""}
            for call in result.interruptions
        ]
        state = result.to_state().to_json(context_serializer=vars)
        return record("approval", replace(note, calls=calls, state=state), self._claimed, self._request_id)


async def _answered_before(agent: Agent[Any], session: StoredSession, turn: Turn) -> Event:
    """The outcome of a request whose turn is stored already."""
    if turn.status == "approval":
        return await restored(agent, session.user_id, turn)
    note = TurnNote.of(turn)
    if turn.status == "done" and note is not None and note.output is not None:
        return Done(note.output, note.usage, turn.id)
    raise TurnFailed("This request was made before, and its turn broke off after an approval. Say something new.")


def _speaker(agent: Agent[Any], held: Hold) -> Agent[Any]:
    """Who answers: the agent that spoke last, if it can still be reached by handoffs."""
    note = TurnNote.of(held.last)
    return next((each for each in _reachable(agent) if note is not None and each.name == note.agent), agent)


def _reachable(agent: Agent[Any]) -> Iterator[Agent[Any]]:
    seen: list[Agent[Any]] = []
    todo: list[Any] = [agent]
    while todo:
        each = todo.pop(0)
        if isinstance(each, Handoff):
            each = each._agent_ref() if each._agent_ref is not None else None
        if isinstance(each, Agent) and not any(each is known for known in seen):
            seen.append(each)
            yield each
            todo += each.handoffs


async def _commit(session: TurnSession, turn: Turn) -> None:
    try:
        await session.commit(turn)
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
