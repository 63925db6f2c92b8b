"""One turn of a conversation: what the user says goes in, what happens on the way comes out as events.

Usage::

    async for event in run_turn(agent, store.session("chat-1", user_id="ada"), "Hi", max_items=200):
        if isinstance(event, Done):
            print(event.output)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any
from uuid import UUID

from agents import Agent, Handoff, RunState

from ..sessions import StoredSession
from ..sessions.records import Turn, check_id
from .approvals import claim, restored
from .events import (
    AgentChanged,
    ApprovalGone,
    ApprovalNeeded,
    ApprovalPending,
    Done,
    Event,
    ItemsLeftOut,
    Message,
    RunContext,
    SdkEvent,
    SessionBusy,
    TextDelta,
    ToolCalled,
    ToolFinished,
    TurnFailed,
    TurnRefused,
)
from .history import history_settings
from .hold import WHILE_STORING, Hold, hold
from .notes import TurnNote
from .run import TurnRun, Wishes

__all__ = [
    "WAIT_SECONDS",
    "WHILE_STORING",
    "AgentChanged",
    "ApprovalGone",
    "ApprovalNeeded",
    "ApprovalPending",
    "Done",
    "Event",
    "ItemsLeftOut",
    "Message",
    "RunContext",
    "SdkEvent",
    "SessionBusy",
    "TextDelta",
    "ToolCalled",
    "ToolFinished",
    "TurnFailed",
    "TurnRefused",
    "run_turn",
]

WAIT_SECONDS = 30.0
"""How long a message waits until another run on its session has ended."""


async def run_turn(
    agent: Agent[Any],
    session: StoredSession,
    message: Message | ApprovalNeeded | RunState[RunContext],
    *,
    max_items: int,
    max_tokens: int | None = None,
    request_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    wait_seconds: float = WAIT_SECONDS,
    last_agent_goes_on: bool = True,
    trace_content: bool = False,
    sdk_events: bool = False,
    token: UUID | None = None,
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
        max_tokens: The same in tokens.
        request_id: What the client calls this message. If its turn is stored already, its answer comes again, alone.
            (A decision counts once without it.)
        metadata: What is noted of the turn beside all this.
        wait_seconds: How long to wait while another run is at work on this session.
        last_agent_goes_on: After a handoff, the agent that took over answers the next message; False: always `agent`.
        trace_content: Whether traces contain what was said, and arguments and outputs of tools.
        sdk_events: Also yield what the SDK tells, each event before ours that are made of it.
        token: Names the run, and a new turn (`turn_id`): `store.release` with it stops this run and no other.

    Raises:
        TurnFailed: The model or the agent failed, or the turn was stopped from elsewhere.
        SessionBusy: Another run did not end in time.
        ApprovalPending: An earlier turn waits for a decision.
        ApprovalGone: The decision came too late.
        InvalidSessionId: No store can keep this `request_id`.
        SessionStoreError: The store failed. `StoreUnavailable` with `maybe_applied`: the whole turn may be stored.
        asyncio.CancelledError: With `WHILE_STORING` as its text if the turn was being stored: all of it is, or nothing.
    """
    if request_id is not None:
        request_id = check_id("request_id", request_id)
    wishes = Wishes(max_items, max_tokens, request_id, trace_content, sdk_events, dict(metadata or {}))
    limit = history_settings(max_items, max_tokens).limit
    async with hold(session, wait_seconds=wait_seconds, limit=limit, request_id=request_id, token=token) as held:
        if isinstance(message, str | list) and held.same is not None:
            outcome: Event | None = await _answered_before(agent, session, held.same)
        else:
            async with claim(held, message) as claimed:
                said = message.state if isinstance(message, ApprovalNeeded) else message
                run = TurnRun(held, said, claimed, wishes)
                async with aclosing(run.events(_speaker(agent, held) if last_agent_goes_on else agent)) as events:
                    async for event in events:
                        yield event
            outcome = run.outcome
    # Whatever is done with it, the session is free by now.
    if outcome is not None:
        yield outcome


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
    found = [each for each in _reachable(agent) if note is not None and each.name == note.agent]
    return found[0] if len(found) == 1 else agent  # of two with one name, it may have been either


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
