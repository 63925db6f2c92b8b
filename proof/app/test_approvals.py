"""A turn that waits for a decision is gone on with once, and only by whom it belongs to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agents import (
    Agent,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrailData,
    set_tracing_disabled,
    tool_input_guardrail,
)

from my_agent.conversation import hold as holding
from my_agent.conversation.approvals import discard, pending
from my_agent.conversation.turn import ApprovalGone, ApprovalNeeded, ApprovalPending, Done, TurnFailed
from my_agent.sessions import SessionStore
from my_agent.sessions.errors import LeaseLost
from my_agent.sessions.records import new_id
from proof.support.scripted_model import ScriptedModel, call, say
from proof.support.turns import (
    KEY,
    SlowModel,
    agent_of,
    events_of,
    launch_rocket,
    launched,
    outcome,
    roles,
    session_of,
)


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)
    launched.clear()


async def paused(store: SessionStore) -> ApprovalNeeded:
    needed = await outcome(agent_of(call("launch_rocket", text="Apollo")), session_of(store), request_id="launch")
    assert isinstance(needed, ApprovalNeeded)
    return needed


async def found(store: SessionStore, agent: Agent[Any], *, approve: bool = True) -> ApprovalNeeded:
    """What waits, decided."""
    waiting = await pending(agent, session_of(store))
    assert waiting is not None
    for item in waiting.state.get_interruptions():
        waiting.state.approve(item) if approve else waiting.state.reject(item)
    return waiting


@pytest.mark.parametrize("approve", [True, False])
async def test_what_waits_is_found_again_and_gone_on_with(store: SessionStore, approve: bool) -> None:
    first = await paused(store)
    agent = agent_of(say("done"))
    decided = await found(store, agent, approve=approve)
    assert (decided.calls, decided.turn_id) == (first.calls, first.turn_id)
    done = await outcome(agent, session_of(store), decided)
    assert isinstance(done, Done)
    assert (done.output, done.turn_id) == ("done", first.turn_id)
    assert launched == (["Apollo"] if approve else [])
    assert await roles(store) == ["user", "function_call", "function_call_output", "assistant"]
    assert await pending(agent, session_of(store)) is None
    (turn,) = await store.turns(KEY, 10)
    positions = (await store.page(KEY)).positions
    assert (turn.status, turn.first, turn.last, turn.request_id) == ("done", positions[0], positions[-1], "launch")


async def test_of_two_approvals_at_once_one_runs_the_tool(store: SessionStore) -> None:
    await paused(store)
    agent = agent_of(say("done"))
    decided = [await found(store, agent) for _ in range(3)]
    results = await asyncio.gather(
        *(outcome(agent, session_of(store), each) for each in decided), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["ApprovalGone", "ApprovalGone", "Done"]
    assert launched == ["Apollo"]


async def test_a_decision_of_the_pause_before_is_refused(store: SessionStore) -> None:
    await paused(store)
    agent = agent_of(call("launch_rocket", text="Gemini"))  # which pauses again
    first, late = [await found(store, agent) for _ in range(2)]
    assert isinstance(await outcome(agent, session_of(store), first), ApprovalNeeded)
    with pytest.raises(ApprovalGone):
        await outcome(agent, session_of(store), late)
    assert launched == ["Apollo"]


async def test_a_run_that_is_cancelled_again_and_again_leaves_no_lease(store: SessionStore) -> None:
    model = SlowModel(say("slow"), seconds=5)
    run = asyncio.create_task(outcome(agent_of(model=model), session_of(store)))
    await model.asked.wait()
    while not run.done():
        run.cancel()
        await asyncio.sleep(0)
    assert run.cancelled()
    assert await outcome(agent_of(say("hi")), session_of(store), wait_seconds=1) == Done("hi")


async def test_a_new_message_waits_until_the_decision(store: SessionStore) -> None:
    await paused(store)
    agent = agent_of(say("hi"))
    with pytest.raises(ApprovalPending, match="launch_rocket"):
        await outcome(agent, session_of(store), "Something else")
    again = await events_of(agent, session_of(store), request_id="launch")
    assert isinstance(again[-1], ApprovalNeeded)
    assert await roles(store) == ["user", "function_call"]
    assert await store.lease(KEY, new_id(), 1) is not None  # nothing is held while it waits


async def test_what_waits_can_be_discarded(store: SessionStore) -> None:
    await paused(store)
    agent = agent_of(say("hi"))
    late = await found(store, agent)
    assert await discard(session_of(store))
    assert not await discard(session_of(store))
    with pytest.raises(ApprovalGone):
        await outcome(agent, session_of(store), late)
    assert isinstance(await outcome(agent, session_of(store), "Something else"), Done)
    assert launched == []
    seen = agent.model.seen[-1]  # type: ignore[union-attr]
    assert [item.get("role") for item in seen] == ["user", "user"]


@pytest.mark.parametrize("how", ["another session", "another user", "cleared", "went on"])
async def test_a_decision_that_belongs_elsewhere_changes_nothing(store: SessionStore, how: str) -> None:
    await paused(store)
    agent = agent_of(say("hi"))
    decided = await found(store, agent)
    session = session_of(store)
    match how:
        case "another session":
            session = store.session("other", user_id="ada")
        case "another user":
            session = store.session("chat", user_id="bob")
        case "cleared":
            await session.clear_session()
        case _:
            assert await discard(session)
            await outcome(agent, session, "Go on")
    before = await store.tail(session.ref, None)
    with pytest.raises(ApprovalGone):
        await outcome(agent, session, decided)
    assert await store.tail(session.ref, None) == before
    assert launched == []


async def test_a_run_that_does_not_fit_the_agent_any_more_is_refused(store: SessionStore) -> None:
    await paused(store)
    renamed = Agent(name="Somebody else", model=ScriptedModel(say("hi")))
    with pytest.raises(ApprovalGone, match="does not fit the agent any more"):
        await pending(renamed, session_of(store))
    assert isinstance(await pending(agent_of(say("x")), session_of(store)), ApprovalNeeded)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"version": 99}', '{"version": 1}', "not json"])
async def test_what_was_tampered_with_is_refused(store: SessionStore, content: str) -> None:
    await paused(store)
    (turn,) = await store.turns(KEY)
    assert await store.change_turn(KEY, turn, turn._replace(content=content))
    with pytest.raises(ApprovalGone, match="cannot be read"):
        await pending(agent_of(say("x")), session_of(store))
    assert await discard(session_of(store))
    assert isinstance(await outcome(agent_of(say("hi")), session_of(store)), Done)


async def test_a_tool_that_is_gone_is_found_out_before_the_decision_is_used_up(store: SessionStore) -> None:
    await paused(store)
    without = Agent(name="Front", model=ScriptedModel(say("hi")))
    with pytest.raises(ApprovalGone, match="the tool launch_rocket is gone"):
        await pending(without, session_of(store))
    assert isinstance(await pending(agent_of(say("x")), session_of(store)), ApprovalNeeded)


async def test_a_decision_that_did_nothing_can_be_made_again(store: SessionStore) -> None:
    """The tool is lost between the question and the decision, so the run fails before anything happens."""
    await paused(store)
    changing = agent_of(say("x"))
    decided = await found(store, changing)
    changing.tools = []
    with pytest.raises(TurnFailed):
        await outcome(changing, session_of(store), decided)
    agent = agent_of(say("done"))
    assert await outcome(agent, session_of(store), await found(store, agent)) == Done("done")
    assert launched == ["Apollo"]


async def test_a_decision_is_used_up_by_the_tool_and_not_by_a_cancellation_before_it(store: SessionStore) -> None:
    """Cancelled at each step of the loop: the turn waits again, or its tool began."""
    agent, steps, done, outcomes = agent_of(say("done"), say("done")), 0, None, []
    while done is None:
        launched.clear()
        await store.delete_session(KEY)
        await paused(store)
        decided = await found(store, agent)
        run = asyncio.create_task(outcome(agent, session_of(store), decided))
        for _ in range(steps):
            await asyncio.sleep(0)
        run.cancel()
        try:
            done = await run
        except asyncio.CancelledError:
            waiting = await pending(agent, session_of(store))
            outcomes.append("waits" if waiting else "ran" if launched else "began")
            assert not (waiting and launched), steps
        steps += 1 if not launched else steps
    # "began": the SDK was told to run it, and did not get to its first line.
    assert outcomes.count("waits") > outcomes.count("began")


@pytest.mark.parametrize(
    "damage", ["", "current_step", "model_responses", "context", "current_agent", "$schemaVersion"]
)
async def test_a_damaged_state_is_refused(store: SessionStore, damage: str) -> None:
    await paused(store)
    (turn,) = await store.turns(KEY)
    note = json.loads(turn.content)
    assert not damage or damage in note["state"]
    note["state"] = {**note["state"], damage: [0]} if damage else {}
    assert await store.change_turn(KEY, turn, turn._replace(content=json.dumps(note)))
    with pytest.raises(ApprovalGone, match="Discard it"):
        await pending(agent_of(say("x")), session_of(store))
    assert await discard(session_of(store))


async def test_a_kept_state_does_not_give_up_another_turn_that_waits(store: SessionStore) -> None:
    first = await paused(store)
    assert await discard(session_of(store))
    assert isinstance(await outcome(agent_of(call("launch_rocket", text="Gemini")), session_of(store)), ApprovalNeeded)
    agent = agent_of(say("done"))
    with pytest.raises(ApprovalPending):
        await outcome(agent, session_of(store), first.state)
    assert isinstance(await pending(agent, session_of(store)), ApprovalNeeded)
    assert launched == []


async def test_a_stop_before_a_decision_did_anything_uses_nothing_up(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "RENEW_SECONDS", 0.05)
    await paused(store)
    agent = agent_of(say("done"))
    decided = await found(store, agent)
    begun = asyncio.Event()

    @tool_input_guardrail
    async def think(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        begun.set()
        await asyncio.sleep(10)
        return ToolGuardrailFunctionOutput.allow()

    monkeypatch.setattr(launch_rocket, "tool_input_guardrails", [think])
    run = asyncio.create_task(outcome(agent, session_of(store), decided))
    await asyncio.wait_for(begun.wait(), timeout=10)
    assert await store.release(KEY, None)
    with pytest.raises((TurnFailed, LeaseLost)):
        await asyncio.wait_for(run, timeout=10)
    assert launched == []
    assert isinstance(await pending(agent, session_of(store)), ApprovalNeeded)
