"""One turn of a conversation: what the user says goes in, what happens on the way comes out as events.

Usage::

    async for event in run_turn(agent, store.session("chat-1", user_id="ada"), "Hi", max_items=200):
        if isinstance(event, Done):
            print(event.output)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from agents import Agent, Handoff, RunState

from ..sessions import StoredSession
from ..sessions.records import Turn
from .approvals import claim, refuse_while_pending, restored, resume
from .events import (
    AgentChanged,
    ApprovalGone,
    ApprovalNeeded,
    ApprovalPending,
    Done,
    Event,
    ItemsLeftOut,
    RunContext,
    SessionBusy,
    TextDelta,
    ToolCalled,
    ToolFinished,
    TurnFailed,
    TurnRefused,
)
from .history import history_settings
from .hold import Hold, hold
from .notes import TurnNote
from .run import WHILE_STORING, TurnRun, Wishes

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
    "RunContext",
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
    message: str | ApprovalNeeded | RunState[RunContext],
    *,
    max_items: int,
    max_tokens: int | None = None,
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
        max_tokens: The same in tokens.
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
    wishes = Wishes(max_items, max_tokens, request_id, trace_content)
    runs: list[TurnRun] = []

    def stop() -> None:
        for each in runs:
            each.stop()

    # A subclass that overrides how items are read is asked itself.
    limit = 0 if session.overridden else history_settings(max_items, max_tokens).limit
    taken = hold(session, wait_seconds=wait_seconds, limit=limit, request_id=request_id, on_lost=stop)
    async with taken as held:
        claimed = None
        if isinstance(message, ApprovalNeeded):
            claimed = held.note.turn = await claim(held, message)
        elif isinstance(message, str):
            if held.same is not None:
                yield await _answered_before(agent, session, held.same)
                return
            refuse_while_pending(held)
        else:
            claimed = held.note.turn = await resume(held)
        run = TurnRun(held, message.state if isinstance(message, ApprovalNeeded) else message, claimed, wishes)
        runs.append(run)
        async with aclosing(run.events(_speaker(agent, held) if last_agent_goes_on else agent)) as events:
            async for event in events:
                yield event


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
