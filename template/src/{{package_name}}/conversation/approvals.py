"""Runs that wait for a decision are stored with their turn: found again in another process, and gone on with once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents import Agent, RunContextWrapper, RunState, UserError

from ..sessions import StoredSession
from ..sessions.paging import again
from ..sessions.records import Turn
from .events import ApprovalGone, ApprovalNeeded, ApprovalPending, RunContext, ToolCalled
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
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise ApprovalGone(
            f"The run that waits for a decision does not fit the agent any more ({error}). Discard it, and ask again."
        ) from error
    calls = [ToolCalled(call["name"], call["arguments"]) for call in note.calls]
    return ApprovalNeeded(calls, state, note.usage, turn.id, note.pause)


async def claim(held: Hold, decided: ApprovalNeeded) -> Turn:
    """Be the one who goes on with a decided turn; its record from now on.

    Raises:
        ApprovalGone: Somebody else did, or it waits no longer.
    """
    turn = held.last
    gone = ApprovalGone("This was decided already, or the conversation went on without it.")
    note = TurnNote.of(turn)
    if turn is None or note is None or (turn.id, note.pause) != (decided.turn_id, decided.pause):
        raise gone
    if turn.status == "resumed" and note.claim == decided.claim:
        return turn
    if turn.status != "approval":
        raise gone
    claimed = record("resumed", replace(note, claim=decided.claim), turn)
    if not await held.change(turn, claimed):
        raise gone
    return claimed


async def resume(held: Hold) -> Turn | None:
    """For a `RunState` that the app kept itself: the record of the turn that goes on, if the newest waits or waited.

    Whoever has the state may go on with it, also again.
    """
    turn, note = held.last, TurnNote.of(held.last)
    if turn is None or note is None or turn.status not in ("approval", "resumed"):
        return None
    resumed = record("resumed", note, turn)
    return resumed if resumed == turn or await held.change(turn, resumed) else None


def refuse_while_pending(held: Hold) -> None:
    """Raise ApprovalPending if an earlier turn waits."""
    if held.last is not None and held.last.status == "approval":
        note = TurnNote.of(held.last)
        names = ", ".join(call["name"] for call in note.calls) if note else "?"
        raise ApprovalPending(f"An earlier turn waits for a decision on: {names}. Approve, reject or discard it first.")
