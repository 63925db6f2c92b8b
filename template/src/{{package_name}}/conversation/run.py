"""One run of the SDK under a lease: from its start to the moment when its turn is stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

import openai
from agents import (
    Agent,
    AgentsException,
    RawResponsesStreamEvent,
    RunConfig,
    RunHooks,
    RunItemStreamEvent,
    Runner,
    RunResultStreaming,
    RunState,
    ToolErrorFormatterArgs,
)
from agents.items import TResponseInputItem
from agents.run_config import CallModelData, ModelInputData

from ..sessions import SessionRef
from ..sessions.records import Turn
from .errors import forget_key, reason
from .events import (
    AgentChanged,
    ApprovalNeeded,
    Done,
    Event,
    ItemsLeftOut,
    Message,
    RunContext,
    SdkEvent,
    TextDelta,
    ToolCalled,
    ToolFinished,
    TurnFailed,
)
from .history import history_settings, history_window
from .hold import Hold, wait_for_end
from .notes import Status, TurnNote, record
from .refusals import Repaired, without_refused
from .report import TurnReport
from .summary import SummaryPlace

PROJECT = __name__.partition(".")[0].replace("_", "-")

FAILURES = (AgentsException, openai.OpenAIError, json.JSONDecodeError)
"""What becomes `TurnFailed`; other errors are mistakes in a program, or the store's, and go on as they are."""


@dataclass(frozen=True)
class Wishes:
    """How a turn is made; see `run_turn`."""

    max_items: int
    max_tokens: int | None
    request_id: str | None
    trace_content: bool
    sdk_events: bool
    metadata: dict[str, str]


class TurnRun:
    """One turn.

    Args:
        held: The session, which belongs to this run.
        said: What the user says, or the state that goes on.
        claimed: The record of the turn that goes on.
    """

    def __init__(self, held: Hold, said: Message | RunState[RunContext], claimed: Turn | None, wishes: Wishes) -> None:
        self._held, self._said, self._claimed, self._wishes = held, said, claimed, wishes
        self._is_new = not isinstance(said, RunState)
        self._raised: dict[str, Exception] = {}
        self._report = TurnReport(held.session.ref)
        self._calls = 0
        self._input: list[TResponseInputItem] = []
        self._refused: openai.APIError | None = None
        """What the API said of this history: once more, without what it refused."""
        self._result: RunResultStreaming | None = None
        self.outcome: Done | ApprovalNeeded | None = None
        """What came of the turn, once it is stored."""
        self._before = TurnNote.of(held.last) or TurnNote("")
        self._summary = SummaryPlace(held.session, self._before.summary)
        held.on_lost = self.stop

    def stop(self) -> None:
        """End the run from outside; what follows it is told."""
        if self._result is not None:
            self._result.cancel(mode="immediate")

    async def events(self, agent: Agent[Any]) -> AsyncGenerator[Event, None]:
        """What happens, until the turn is stored; `outcome` is set then."""
        try:
            try:
                async for event in self._followed(agent):
                    yield event
            except openai.APIError as error:
                repaired = self._without_refused(error)
                if repaired is None:
                    raise
                self._refused = error
                await self._ended()
                yield ItemsLeftOut(repaired.what)
                async for event in self._followed(agent):
                    yield event
            finally:
                await self._ended()
            result = self._result
            assert result is not None  # noqa: S101 - it was followed
            if self._held.lost:
                left = "Nothing of it is" if self._is_new else "Its finished steps are"
                raise TurnFailed(f"The turn was stopped from elsewhere. {left} stored.")
            _check_finished(result)
            note = self._noted(result)
            status: Status = "approval" if result.interruptions else "done"
            turn = record(status, note, self._claimed, self._wishes.request_id, self._held.buffer.lease)
            await self._held.commit(turn)
        except BaseException as error:
            self._report.log(error, self._held.buffer)
            if isinstance(error, FAILURES):
                forget_key(error)
                raise TurnFailed(reason(error)) from error
            raise
        self._report.log(status, self._held.buffer)
        if result.interruptions:
            calls = [ToolCalled(call.name or "?", call.arguments or "") for call in result.interruptions]
            self.outcome = ApprovalNeeded(calls, result.to_state(), self._report.usage, turn.id, note.pause)
        else:
            self.outcome = Done(str(result.final_output), self._report.usage, turn.id)

    async def _followed(self, agent: Agent[Any]) -> AsyncGenerator[Event, None]:
        self._held.buffer.begin(self._claimed, at_once=not self._is_new)
        self._result = result = self._started(agent)
        speaking = agent.name
        async for event in result.stream_events():
            if self._wishes.sdk_events:
                yield SdkEvent(event)
            if event.type == "agent_updated_stream_event":
                if event.new_agent.name != speaking:
                    speaking = event.new_agent.name
                    yield AgentChanged(speaking)
            elif (seen := _event(event, self._raised)) is not None:
                if isinstance(seen, TextDelta):
                    self._held.acted = True
                    self._report.text_came()
                yield seen

    def _started(self, agent: Agent[Any]) -> RunResultStreaming:
        said, wishes, ref = self._said, self._wishes, self._held.session.ref
        self._calls = 0
        result = Runner.run_streamed(
            agent,
            said,
            context=RunContext(ref.user_id) if self._is_new else None,
            session=self._held.session,
            hooks=_Watch(self._held),
            run_config=RunConfig(
                session_settings=history_settings(wishes.max_items, wishes.max_tokens),
                session_input_callback=history_window(
                    self._held.session, wishes.max_items, wishes.max_tokens, self._summary
                ),
                call_model_input_filter=self._checked_input,
                tool_error_formatter=self._keep_error,
                workflow_name=f"{PROJECT}: {agent.name}",
                group_id=trace_group(ref),
                trace_include_sensitive_data=wishes.trace_content,
            ),
        )
        self._report.counts(result.context_wrapper.usage)
        return result

    def _keep_error(self, failed: ToolErrorFormatterArgs[Any]) -> None:
        if failed.error is not None:
            self._raised[failed.call_id] = failed.error

    def _checked_input(self, call: CallModelData[Any]) -> ModelInputData:
        """What the model gets: without what the API refused before."""
        self._calls += 1
        self._input = call.model_data.input
        if self._refused is not None and (repaired := without_refused(self._refused, self._input)) is not None:
            return ModelInputData(repaired.items, call.model_data.instructions)
        return call.model_data

    def _without_refused(self, error: openai.APIError) -> Repaired | None:
        """Of the first call alone, while nothing was done or said yet that would come twice."""
        if self._calls != 1 or self._held.acted or not self._is_new:
            return None
        return without_refused(error, self._input)

    async def _ended(self) -> None:
        """End a run that nobody listens to any more, and wait until it has ended."""
        result = self._result
        if result is None:
            return
        if not result.is_complete:
            # Not "after_turn": that waits for the rest of the answer.
            result.cancel(mode="immediate")
        # The SDK does not wait for a write that has begun when it is cancelled itself; the next turn would overtake it.
        if result.run_loop_task is not None:
            await wait_for_end(result.run_loop_task)
            with suppress(asyncio.CancelledError):
                result.run_loop_task.exception()

    def _noted(self, result: RunResultStreaming) -> TurnNote:
        """What is noted of the turn."""
        usage, before = self._report.usage, self._before
        note = TurnNote(
            result.last_agent.name,
            usage=usage,
            total=before.total + usage,
            summary=self._summary.position,
            metadata=self._wishes.metadata,
        )
        if self._claimed is not None:
            note = replace(note, usage=before.usage + usage)
        if not result.interruptions:
            return replace(note, output=str(result.final_output))
        calls = [
            {"call_id": call.call_id or "", "name": call.name or "?", "arguments": call.arguments or ""}
            for call in result.interruptions
        ]
        state = result.to_state().to_json(context_serializer=vars)
        return replace(note, calls=calls, state=state, pause=uuid4().hex)


class _Watch(RunHooks[Any]):
    """Notices when a tool begins, before any event tells of it."""

    def __init__(self, held: Hold) -> None:
        self._held = held

    async def on_tool_start(self, *_: Any) -> None:
        self._held.acted = True


def trace_group(ref: SessionRef) -> str:
    """What the traces of a session have in common: a hash, so that no id of a user gets into them."""
    return sha256(json.dumps(ref).encode()).hexdigest()[:32]


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
