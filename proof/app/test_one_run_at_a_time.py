"""Turns of one session follow one another, in all processes; each request counts once."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import Any

import openai
import pytest
from agents import Agent, GuardrailFunctionOutput, function_tool, output_guardrail, set_tracing_disabled

from my_agent.conversation import hold as holding
from my_agent.conversation.edit import NothingToEdit, fork_before
from my_agent.conversation.notes import TurnNote
from my_agent.conversation.turn import (
    Done,
    ItemsLeftOut,
    SessionBusy,
    TurnFailed,
    run_turn,
)
from my_agent.sessions import InvalidSessionId, SessionRef, SessionStore
from my_agent.sessions.errors import LeaseLost
from my_agent.sessions.records import Batch, Row, new_id
from proof.app.test_refusals import refused
from proof.support.helpers import anything, texts, user
from proof.support.scripted_model import CACHED, INPUT, OUTPUT, ScriptedModel, Step, call, say
from proof.support.turns import KEY, SlowModel, agent_of, events_of, launched, outcome, roles, session_of


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)
    launched.clear()


# ── One at a time ───────────────────────────────────────────────────────────


async def test_two_messages_at_once_are_answered_one_after_the_other(store: SessionStore) -> None:
    agent = agent_of(model=SlowModel(say("answer"), seconds=0.1))
    await asyncio.gather(*(outcome(agent, session_of(store), f"message {n}") for n in range(4)))
    items = await session_of(store).get_items()
    assert await roles(store) == ["user", "assistant"] * 4
    assert sorted(texts(items[::2])) == [f"message {n}" for n in range(4)]


PROGRAM = """
import asyncio, sys
from my_agent.conversation.turn import Done, run_turn
from my_agent.sessions import open_store
from proof.support.scripted_model import say
from proof.support.turns import SlowModel, agent_of
from agents import set_tracing_disabled

async def main():
    set_tracing_disabled(True)
    async with open_store() as store:
        for number in range(5):
            said = f"{sys.argv[1]} {number}"
            agent = agent_of(model=SlowModel(say(f"answer to {said}"), seconds=0.05))
            session = store.session("chat", user_id="ada")
            async for event in run_turn(agent, session, said, max_items=50):
                pass

asyncio.run(main())
"""


async def test_a_double_click_that_reaches_two_processes(
    store: SessionStore, server_environment: dict[str, str]
) -> None:
    environment = {**server_environment, "PYTHONPATH": ":".join(sys.path)}
    programs = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, name, env=environment)
        for name in ("left", "right")
    ]
    assert [await program.wait() for program in programs] == [0, 0]
    said = texts(await session_of(store).get_items())
    assert len(said) == 20
    assert said[1::2] == [f"answer to {message}" for message in said[::2]]


async def test_who_does_not_want_to_wait_is_told(store: SessionStore) -> None:
    model = SlowModel(say("slow"), seconds=1.0)
    first = asyncio.create_task(outcome(agent_of(model=model), session_of(store)))
    await model.asked.wait()
    with pytest.raises(SessionBusy, match="still at work"):
        await outcome(agent_of(say("x")), session_of(store), wait_seconds=0.2)
    assert isinstance(await first, Done)
    assert await roles(store) == ["user", "assistant"]


async def test_a_tool_may_write_to_the_session_of_its_turn_but_not_begin_another_turn(store: SessionStore) -> None:
    @function_tool(failure_error_function=None)
    async def note_down() -> str:
        """Write beside the turn."""
        await session_of(store).add_items([user("noted")])
        with pytest.raises(SessionBusy):
            await outcome(agent_of(say("never")), session_of(store), wait_seconds=0.1)
        return "done"

    agent = agent_of(call("note_down"), say("fine"))
    agent.tools = [note_down]
    assert await outcome(agent, session_of(store)) == Done("fine")
    assert await roles(store) == ["user", "user", "function_call", "function_call_output", "assistant"]
    assert texts((await session_of(store).get_items())[:2]) == ["noted", "Hello"]


async def test_after_a_crash_the_session_is_free_again(store: SessionStore) -> None:
    assert await store.lease(KEY, new_id(), 0.3) is not None  # whose holder has died
    assert isinstance(await outcome(agent_of(say("hi")), session_of(store)), Done)


async def test_a_run_keeps_its_lease_while_it_lasts(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(holding, "RENEW_SECONDS", 0.1)
    model = SlowModel(say("slow"), seconds=1.2)
    first = asyncio.create_task(outcome(agent_of(model=model), session_of(store)))
    await model.asked.wait()
    await asyncio.sleep(0.8)
    assert await store.lease(KEY, new_id(), 1) is None
    assert isinstance(await first, Done)


async def test_a_turn_is_stopped_from_elsewhere(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "RENEW_SECONDS", 0.1)
    model = SlowModel(say("slow"), seconds=30)
    run = asyncio.create_task(outcome(agent_of(model=model), session_of(store)))
    await model.asked.wait()
    assert await store.release(KEY, None)
    with pytest.raises(TurnFailed, match="stopped from elsewhere"):
        await asyncio.wait_for(run, 5)
    assert await roles(store) == []
    assert isinstance(await outcome(agent_of(say("hi")), session_of(store)), Done)


async def test_who_lost_the_lease_writes_nothing(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "RENEW_SECONDS", 60.0)
    model = SlowModel(say("late"), seconds=0.4)
    run = asyncio.create_task(outcome(agent_of(model=model), session_of(store)))
    await model.asked.wait()
    assert await store.release(KEY, None)
    assert isinstance(await outcome(agent_of(say("first")), session_of(store), "Me first"), Done)
    with pytest.raises(LeaseLost):
        await run
    assert texts(await session_of(store).get_items()) == ["Me first", "first"]


async def test_a_session_that_is_deleted_during_a_turn_stays_deleted(store: SessionStore) -> None:
    model = SlowModel(say("late"), seconds=0.3)
    run = asyncio.create_task(outcome(agent_of(model=model), session_of(store)))
    await model.asked.wait()
    assert await store.delete_session(KEY)
    with pytest.raises(LeaseLost):
        await run
    assert await store.find_session(KEY) is None


async def test_a_turn_that_fails_leaves_no_session_behind(store: SessionStore) -> None:
    with pytest.raises(TurnFailed):
        await outcome(agent_of(openai.APIConnectionError(request=None)), session_of(store))  # type: ignore[arg-type]
    async with aclosing(run_turn(agent_of(say("hi")), session_of(store), "Hi", max_items=50)) as events:
        async for _ in events:
            break
    assert await store.find_session(KEY) is None


# ── The same request again ──────────────────────────────────────────────────


async def test_a_request_that_is_repeated_counts_once_and_has_the_same_answer(store: SessionStore) -> None:
    model = ScriptedModel(say("first"), say("second"))
    agent = agent_of(model=model)
    first = await outcome(agent, session_of(store), request_id="r1")
    assert await events_of(agent, session_of(store), request_id="r1") == [first]
    assert len(model.seen) == 1
    assert await outcome(agent, session_of(store), "Other", request_id="r2") == Done("second")
    assert await events_of(agent, session_of(store), request_id="r1") == [first]
    assert await roles(store) == ["user", "assistant"] * 2


async def test_a_request_that_is_repeated_while_it_runs_waits_for_the_answer(store: SessionStore) -> None:
    agent = agent_of(model=SlowModel(say("once"), say("twice"), seconds=0.1))
    session = session_of(store)
    answers = await asyncio.gather(*(outcome(agent, session, request_id="r") for _ in range(3)))
    assert answers == [Done("once")] * 3
    assert await roles(store) == ["user", "assistant"]


async def test_the_session_is_free_when_a_turn_tells_its_outcome(store: SessionStore) -> None:
    agent = agent_of(say("first"))
    for _ in range(2):  # also of a request that is repeated
        async for event in run_turn(agent, session_of(store), "Hello", max_items=50, request_id="r"):
            if isinstance(event, Done):
                token = new_id()
                assert await store.lease(KEY, token, 5) is not None
                assert await store.release(KEY, token)


@pytest.mark.parametrize("request_id", ["a\0b", "\ud800", "x" * 5_000, True])
async def test_a_request_id_that_no_store_can_keep_is_refused(store: SessionStore, request_id: Any) -> None:
    agent = agent_of(say("never"))
    with pytest.raises(InvalidSessionId, match=r"^request_id "):
        await outcome(agent, session_of(store), request_id=request_id)
    assert agent.model.seen == []  # type: ignore[union-attr]
    assert await store.find_session(KEY) is None


async def test_a_request_that_failed_may_be_made_again(store: SessionStore) -> None:
    with pytest.raises(TurnFailed):
        await outcome(agent_of(openai.APIConnectionError(request=None)), session_of(store), request_id="r")  # type: ignore[arg-type]
    assert await outcome(agent_of(say("now")), session_of(store), request_id="r") == Done("now")


# ── Who goes on, and what it cost ───────────────────────────────────────────


def with_expert(*script: Step) -> Agent[Any]:
    agent = agent_of(*script)
    agent.handoffs = [Agent(name="Expert", model=agent.model, instructions="You are the expert.")]
    return agent


@pytest.mark.parametrize("goes_on", [True, False])
async def test_after_a_handoff_the_agent_that_spoke_last_goes_on(store: SessionStore, goes_on: bool) -> None:
    await outcome(with_expert(call("transfer_to_expert"), say("expert here")), session_of(store))
    await outcome(with_expert(say("again")), session_of(store), "More", last_agent_goes_on=goes_on)
    note = TurnNote.of((await store.turns(KEY))[0])
    assert note is not None
    assert note.agent == ("Expert" if goes_on else "Front")


async def test_an_agent_that_is_gone_does_not_go_on(store: SessionStore) -> None:
    await outcome(with_expert(call("transfer_to_expert"), say("expert here")), session_of(store))
    assert isinstance(await outcome(agent_of(say("front here")), session_of(store)), Done)


async def test_of_two_agents_with_one_name_neither_goes_on(store: SessionStore) -> None:
    agent = with_expert(call("transfer_to_expert"), say("expert here"))
    await outcome(agent, session_of(store))
    agent.handoffs = [*agent.handoffs, Agent(name="Expert", model=agent.model)]
    agent.model.script = [say("front here")]  # type: ignore[union-attr]
    await outcome(agent, session_of(store), "More")
    note = TurnNote.of((await store.turns(KEY))[0])
    assert note is not None
    assert note.agent == "Front"


async def test_the_cost_of_a_session_is_the_sum_of_its_turns(store: SessionStore) -> None:
    for number in range(3):
        await outcome(agent_of(say(str(number))), session_of(store))
    note = TurnNote.of((await store.turns(KEY))[0])
    assert note is not None
    assert (note.usage.requests, note.total.requests) == (1, 3)
    assert (note.total.input_tokens, note.total.cached_tokens, note.total.output_tokens) == (
        3 * INPUT,
        3 * CACHED,
        3 * OUTPUT,
    )


# ── A history that the API refuses ──────────────────────────────────────────


async def test_what_the_api_refuses_is_left_out_and_asked_again(store: SessionStore) -> None:
    image = anything(
        role="user",
        content=[
            {"type": "input_text", "text": "Look"},
            {"type": "input_image", "image_url": "https://gone.example/a.png"},
        ],
    )
    await session_of(store).add_items([image, *[anything(**dict(item)) for item in [user("and?")]]])
    error = refused("Error while downloading https://gone.example/a.png.", "url")
    model = ScriptedModel(error, say("I cannot see it."))
    events = await events_of(agent_of(model=model), session_of(store), "What is it?")
    assert isinstance(events[0], ItemsLeftOut)
    assert events[-1] == Done("I cannot see it.")
    assert "gone.example" not in str(model.seen[-1])
    assert await roles(store) == ["user", "user", "user", "assistant"]
    assert (await session_of(store).get_items())[0] == image


async def test_a_refusal_is_answered_once(store: SessionStore) -> None:
    await session_of(store).add_items([user("one")])
    error = refused("Error while downloading https://gone.example/a.png.", "url")
    with pytest.raises(TurnFailed):
        await outcome(agent_of(error), session_of(store))
    assert await roles(store) == ["user"]


async def test_after_a_tool_has_acted_nothing_is_asked_again(store: SessionStore) -> None:
    """Here it is a model of the agent's own that the API refuses something to, after its first and only call."""
    error = refused("Error while downloading https://gone.example/a.png.", "url")

    @output_guardrail
    async def ask_model(context: Any, agent: Any, said: Any) -> GuardrailFunctionOutput:
        raise error

    @function_tool
    def count_up() -> str:
        """Count."""
        launched.append("up")
        return "done"

    old = anything(role="user", content=[{"type": "input_image", "image_url": "https://gone.example/a.png"}])
    await session_of(store).add_items([old])
    agent = agent_of(call("count_up"))
    agent.tools, agent.output_guardrails, agent.tool_use_behavior = [count_up], [ask_model], "stop_on_first_tool"
    with pytest.raises(TurnFailed):
        await outcome(agent, session_of(store))
    assert launched == ["up"]


# ── Edit and regenerate ─────────────────────────────────────────────────────


async def test_a_message_is_said_again_on_a_copy(store: SessionStore) -> None:
    session = session_of(store)
    for number in range(3):
        await outcome(agent_of(say(f"answer {number}")), session, f"message {number}")
    assert await fork_before(session, "copy", 2) == "message 1"
    copy = store.session("copy", user_id="ada")
    assert await outcome(agent_of(say("another answer")), copy, "message 1, edited") == Done("another answer")
    assert texts(await copy.get_items()) == ["message 0", "answer 0", "message 1, edited", "another answer"]
    assert len(await session.get_items()) == 6


async def test_a_message_far_back_is_found(store: SessionStore) -> None:
    rows = [Row('{"role": "user", "content": "first"}'), *[Row('{"type": "reasoning"}')] * 250, Row("damaged")]
    await store.append(KEY, Batch.of(rows))
    assert await fork_before(session_of(store), "copy") == "first"
    assert await store.tail(replace_id("copy"), None) == []


def replace_id(session_id: str) -> SessionRef:
    return SessionRef(KEY.user_id, session_id)


async def test_an_edit_of_what_is_gone_or_onto_a_session_changes_nothing(store: SessionStore) -> None:
    session = session_of(store)
    await outcome(agent_of(say("answer")), session)
    await store.append(replace_id("taken"), Batch.of([Row("kept")]))
    with pytest.raises(NothingToEdit, match="fewer than 2 messages"):
        await fork_before(session, "copy", 2)
    with pytest.raises(ValueError, match="counts from 1"):
        await fork_before(session, "copy", 0)
    with pytest.raises(NothingToEdit, match="already a session 'taken'"):
        await fork_before(session, "taken")
    assert await store.find_session(replace_id("copy")) is None
    assert await store.tail(replace_id("taken"), None) == ["kept"]
