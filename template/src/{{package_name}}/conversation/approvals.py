"""Runs that wait for a decision are stored with their turn: found again in another process, and gone on with once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from agents import Agent, RunContextWrapper, RunState

from ..sessions import SessionStoreError, StoredSession
from ..sessions.paging import again
from ..sessions.records import Turn
from ..sessions.retry import run_to_completion
from .events import ApprovalGone, ApprovalNeeded, ApprovalPending, Message, RunContext, ToolCalled
from .hold import Hold, hold
from .notes import TurnNote, record


async def pending(agent: Agent[Any], session: StoredSession) -> ApprovalNeeded | None:
    """What waits for a decision in this session, if anything does.

    Args:
        agent: The agent of the conversation, with the tools and handoffs it has now.

    Raises:
        ApprovalGone: The agent has changed so much that the run cannot go on. `discard` lets the conversation go on.
        SessionStoreError: The store failed.
    """
    store = session.store
    for turn in await again(store, store.turns, session.ref, 1):
        if turn.status == "approval":
            return await restored(agent, session.user_id, turn)
    return None


async def discard(session: StoredSession, wait_seconds: float = 0.0) -> bool:
    """Let the conversation go on without what waits for a decision; False if nothing does.

    The model sees neither the calls nor that they were not made.
    """
    async with hold(session, wait_seconds=wait_seconds, limit=0) as held:
        note = TurnNote.of(held.last)
        if held.last is None or held.last.status != "approval":
            return False
        gone = replace(note, state=None, calls=[]) if note else TurnNote("")
        return await held.change(held.last, record("discarded", gone, held.last))


async def restored(agent: Agent[Any], user_id: str, turn: Turn) -> ApprovalNeeded:
    """The run that a record keeps.

    Raises:
        ApprovalGone: This program cannot read it, or the agent has changed too much.
    """
    note = TurnNote.of(turn)
    if note is None or note.state is None:
        raise ApprovalGone("What waits for a decision cannot be read: it was changed, or a newer program stored it.")
    try:
        state: RunState[RunContext] = await RunState.from_json(
            agent, note.state, context_override=RunContextWrapper(RunContext(user_id))
        )
        _check_tools(note, state)
    except Exception as error:  # whatever the SDK raises of a state that is damaged, or of another release
        raise ApprovalGone(
            f"The run that waits for a decision does not fit the agent any more ({error}). Discard it, and ask again."
        ) from error
    calls = [ToolCalled(call["name"], call["arguments"]) for call in note.calls]
    return ApprovalNeeded(calls, state, note.usage, turn.id, note.pause)


def _check_tools(note: TurnNote, state: RunState[RunContext]) -> None:
    """Found out here, a lost tool uses no decision up. Tools of MCP servers are known when the run begins."""
    waiting = state.get_interruptions()
    if len(waiting) != len(note.calls):
        raise LookupError("an agent that called a tool is gone")
    for call in waiting:
        if call.tool_lookup_key is None or call.agent.mcp_servers:
            continue
        if call.tool_name not in {tool.name for tool in call.agent.tools}:
            raise LookupError(f"the tool {call.tool_name} is gone")


@asynccontextmanager
async def claim(held: Hold, message: Message | ApprovalNeeded | RunState[RunContext]) -> AsyncIterator[Turn | None]:
    """Be the one who goes on with a decided turn: its record from now on. None for a new turn.

    If the run breaks off before it did anything, the turn waits for its decision again.

    Raises:
        ApprovalGone: Somebody else did, or it waits no longer.
        ApprovalPending: This is a new message, and an earlier turn waits.
    """
    if isinstance(message, str | list):
        _refuse_while_pending(held)
        yield None
        return
    if isinstance(message, RunState):
        yield await _resumed(held, message)
        return
    turn, note = held.last, TurnNote.of(held.last)
    gone = ApprovalGone("This was decided already, or the conversation went on without it.")
    if turn is None or note is None or (turn.id, note.pause) != (message.turn_id, message.pause):
        raise gone
    if turn.status != "approval":
        raise gone
    claimed = record("resumed", replace(note, claim=uuid4().hex), turn)
    try:
        if not await held.change(turn, claimed):
            raise gone
        yield claimed
    except BaseException:
        if not (held.acted or held.buffer.stored or held.buffer.released):
            with suppress(SessionStoreError):
                # Without the lease, which may be lost: the claim is in the record, so nobody else's is taken back.
                store, ref = held.session.store, held.session.ref
                await run_to_completion(store.change_turn(ref, claimed, turn), store.settings.session_settle_seconds)
        raise


async def _resumed(held: Hold, state: RunState[RunContext]) -> Turn | None:
    """For a `RunState` that the app kept itself: the record of the turn that goes on, if the newest waits or waited.

    Whoever has the state may go on with it, also again.
    """
    turn, note = held.last, TurnNote.of(held.last)
    if turn is None or note is None or turn.status not in ("approval", "resumed"):
        return None
    if {call.call_id for call in state.get_interruptions()} != {call["call_id"] for call in note.calls}:
        _refuse_while_pending(held)  # another turn waits
        return None
    resumed = record("resumed", note, turn)
    return resumed if resumed == turn or await held.change(turn, resumed) else None


def _refuse_while_pending(held: Hold) -> None:
    if held.last is not None and held.last.status == "approval":
        note = TurnNote.of(held.last)
        names = ", ".join(call["name"] for call in note.calls) if note else "?"
        raise ApprovalPending(f"An earlier turn waits for a decision on: {names}. Approve, reject or discard it first.")
