"""Agents on a session, run by the SDK's Runner with the offline model: what is stored, and what comes back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest
from agents import Agent, Model, ModelResponse, RunConfig, Runner, function_tool, set_tracing_disabled
from agents.items import TResponseStreamEvent

from my_agent.conversation.approvals import discard
from my_agent.conversation.turn import (
    AgentChanged,
    ApprovalNeeded,
    ApprovalPending,
    Done,
    Event,
    RunContext,
    TextDelta,
    ToolCalled,
    ToolFinished,
    TurnFailed,
    run_turn,
)
from my_agent.dev.offline import OfflineModel
from my_agent.sessions import SessionRef, SessionStore, StoredSession, WrongOwner
from my_agent.sessions.records import Batch
from proof.support.helpers import texts
from proof.support.sample_agent import build_agent


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)


async def events_of(session: StoredSession, message: str, agent: Agent[Any] | None = None) -> list[Event]:
    turn = run_turn(agent or build_agent(OfflineModel()), session, message, max_items=50)
    return [event async for event in turn]


async def ask(session: StoredSession, message: str, agent: Agent[Any] | None = None) -> str:
    events = await events_of(session, message, agent)
    assert isinstance(events[-1], Done)
    return events[-1].output


async def kinds(session: StoredSession) -> list[str]:
    return [str(item.get("type") or item.get("role")) for item in await session.get_items()]


async def test_a_conversation_is_remembered(store: SessionStore) -> None:
    session = store.session("s", user_id="ada")
    assert await ask(session, "My name is Ada") == "Nice to meet you, Ada!"
    assert await ask(store.session("s", user_id="ada"), "What is my name?") == "Your name is Ada."
    assert await ask(session, "What did I say first?") == 'The first thing you said was: "My name is Ada"'
    assert await ask(store.session("other", user_id="ada"), "What is my name?") == "You have not told me your name yet."
    assert await ask(store.session("s", user_id="bob"), "What is my name?") == "You have not told me your name yet."


async def test_a_plain_run_and_a_streamed_one_store_the_same(store: SessionStore) -> None:
    plain, streamed = store.session("plain"), store.session("streamed")
    result = await Runner.run(build_agent(OfflineModel()), "My name is Ada", session=plain)
    events = await events_of(streamed, "My name is Ada")
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == result.final_output
    assert await kinds(plain) == await kinds(streamed) == ["user", "message"]


async def test_a_tool_is_called_and_its_call_is_stored_with_its_output(store: SessionStore) -> None:
    session = store.session("s")
    events = await events_of(session, "How many words: one two three")
    assert [event for event in events if not isinstance(event, TextDelta)] == [
        ToolCalled("count_words", '{"text": "one two three"}'),
        ToolFinished("3"),
        Done("Here is what I found: 3"),
    ]
    assert await kinds(session) == ["user", "function_call", "function_call_output", "message"]


async def test_what_a_tool_raises_is_told_to_the_caller_and_not_to_the_model(store: SessionStore) -> None:
    @function_tool
    def look_up(text: str) -> str:
        """Look something up, which fails."""
        raise LookupError("planted")

    session = store.session("s")
    agent = Agent[Any](name="Reader", model=OfflineModel(), tools=[look_up])
    (finished,) = [event for event in await events_of(session, "look up: x", agent) if isinstance(event, ToolFinished)]
    assert isinstance(finished.error, LookupError)
    assert finished.error.__traceback__ is not None
    assert "planted" not in repr(finished) + str(await session.get_items())


async def test_a_handoff_stays_on_the_session(store: SessionStore) -> None:
    session = store.session("s")
    expert = Agent(name="Expert", model=OfflineModel())
    agent = Agent(name="Front", model=OfflineModel(), handoffs=[expert])
    events = await events_of(session, "My name is Ada, give me the expert", agent)
    assert AgentChanged("Expert") in events
    assert events[-1] == Done("Expert here, how can I help?")
    assert await ask(session, "What is my name?", agent) == "Your name is Ada."
    assert (await kinds(session))[:4] == ["user", "function_call", "function_call_output", "message"]


# ── Approval, in another process ────────────────────────────────────────────


@function_tool(needs_approval=True)
def launch_rocket(name: str) -> str:
    """Launch a rocket."""
    return f"{name} is in the air"


def rocket_agent() -> Agent[Any]:
    return Agent(name="Pilot", model=OfflineModel(), tools=[launch_rocket])


RESUME = """
import asyncio, json, sys
from agents import RunState, set_tracing_disabled
from my_agent.conversation.turn import RunContext, run_turn
from my_agent.sessions import open_store
from proof.app.test_agent_runs import rocket_agent

async def main():
    set_tracing_disabled(True)
    agent = rocket_agent()
    state = await RunState.from_json(agent, json.load(sys.stdin), context_override=RunContext("ada"))
    for call in state.get_interruptions():
        state.approve(call)
    async with open_store() as store:
        async for event in run_turn(agent, store.session("s", user_id="ada"), state, max_items=50):
            print(event)

asyncio.run(main())
"""


async def test_an_approval_is_given_in_another_process(store: SessionStore, server_environment: dict[str, str]) -> None:
    session = store.session("s", user_id="ada")
    events = await events_of(session, 'Launch the rocket "Luna"', rocket_agent())
    waiting = events[-1]
    assert isinstance(waiting, ApprovalNeeded)
    assert waiting.calls == [ToolCalled("launch_rocket", '{"name": "Luna"}')]
    state = waiting.state.to_json(context_serializer=lambda context: {"user_id": context.user_id})

    resumed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RESUME],
        input=json.dumps(state),
        env={**server_environment, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ToolFinished(output='Luna is in the air')" in resumed.stdout, resumed.stderr
    assert await kinds(session) == ["user", "function_call", "function_call_output", "message"]
    assert await ask(session, "What did I say first?", rocket_agent()) == (
        'The first thing you said was: "Launch the rocket "Luna""'
    )


# ── What goes wrong ─────────────────────────────────────────────────────────


class Watching(OfflineModel):
    """Keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        self.seen.append(kwargs["input"] if "input" in kwargs else args[1])
        async for event in super().stream_response(*args, **kwargs):
            yield event


class Broken(OfflineModel):
    """Fails in the middle of an answer, or hangs there."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        raise self.error or AssertionError

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        begun = 0
        async for event in super().stream_response(*args, **kwargs):
            begun += 1
            if begun == 5:  # after the first word
                if self.error:
                    raise self.error
                await asyncio.Event().wait()
            yield event


def agent_with(model: Model) -> Agent[Any]:
    return Agent(name="Broken", model=model)


async def test_a_failing_model_is_one_sentence_and_leaves_the_history_as_it_was(store: SessionStore) -> None:
    session = store.session("s")
    await ask(session, "My name is Ada")
    with pytest.raises(TurnFailed, match=r"^The model's server cannot be reached"):
        await events_of(session, "Hello", agent_with(Broken(openai.APIConnectionError(request=None))))  # type: ignore[arg-type]
    assert await kinds(session) == ["user", "message"]
    assert await ask(session, "What is my name?") == "Your name is Ada."


def refused(status: int, message: str, code: str | None = None) -> openai.APIStatusError:
    """What the OpenAI client raises when a server refuses."""
    kinds = {400: openai.BadRequestError, 404: openai.NotFoundError, 429: openai.RateLimitError}
    answer = cast(Any, SimpleNamespace(status_code=status, request=None, headers={}))
    return kinds.get(status, openai.InternalServerError)(message, response=answer, body={"code": code})


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            refused(400, "no", "context_length_exceeded"),
            "The conversation is too long for this model. Set or lower HISTORY_MAX_T",
        ),
        (refused(400, "not\nthis"), "The model's server answered with an error (400). (not this)"),
        (refused(503, "busy"), "The model's server answered with an error (503). Try again. (busy)"),
        (refused(404, "none"), "The model does not exist, or this key may not use it. Check OPENAI_MODEL. (none)"),
        (refused(429, "slow"), "The model's server asks to wait"),
        (json.JSONDecodeError("bad", "<", 0), "The model's server answered with something unreadable."),
    ],
)
async def test_every_error_of_a_model_says_what_to_do(store: SessionStore, error: Exception, sentence: str) -> None:
    with pytest.raises(TurnFailed) as failed:
        await events_of(store.session("s"), "Hello", agent_with(Broken(error)))
    assert str(failed.value).startswith(sentence)
    assert "\n" not in str(failed.value)
    assert failed.value.__cause__ is error


@pytest.mark.parametrize("leave", ["close", "cancel"])
async def test_a_turn_that_is_left_in_its_middle_is_not_stored(store: SessionStore, leave: str) -> None:
    session = store.session("s")
    turn = run_turn(agent_with(Broken(None)), session, "My name is Ada", max_items=50)
    assert isinstance(await anext(turn), TextDelta)
    if leave == "close":
        await turn.aclose()
    else:
        waiting = asyncio.ensure_future(anext(turn))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await kinds(session) == []
    assert await ask(session, "What is my name?") == "You have not told me your name yet."


async def test_a_cancelled_turn_leaves_no_write_behind(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session, append = store.session("s"), store.append
    begun, open_writes = asyncio.Event(), 0

    async def slow(ref: SessionRef, batch: Batch) -> None:
        nonlocal open_writes
        open_writes += 1
        begun.set()
        try:
            await asyncio.sleep(0.2)
            await append(ref, batch)
        finally:
            open_writes -= 1

    monkeypatch.setattr(store, "append", slow)
    turn = asyncio.create_task(ask(session, "My name is Ada"))
    await begun.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert open_writes == 0
    assert await kinds(session) == ["user", "message"]


async def test_an_agent_that_goes_round_in_circles_is_stopped(store: SessionStore) -> None:
    class Circles(OfflineModel):
        async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
            kwargs = {**kwargs}
            if "input" in kwargs:
                kwargs["input"] = "How many words: a"
            else:
                args = (args[0], "How many words: a", *args[2:])
            async for event in super().stream_response(*args, **kwargs):
                yield event

    with pytest.raises(TurnFailed, match="went round in circles"):
        await events_of(store.session("s"), "Hello", build_agent(Circles()))


async def test_a_run_of_another_user_never_reaches_the_session(store: SessionStore) -> None:
    session = store.session("s", user_id="ada")
    with pytest.raises(WrongOwner):
        await Runner.run(
            build_agent(OfflineModel()),
            "Hi",
            session=session,
            context=RunContext("bob"),
            run_config=RunConfig(tracing_disabled=True),
        )
    assert await session.get_items() == []


async def test_only_the_window_reaches_the_model(store: SessionStore) -> None:
    model = Watching()
    session = store.session("s")
    for number in range(6):
        async for _ in run_turn(agent_with(model), session, f"question {number}", max_items=4):
            pass
    assert [len(inputs) for inputs in model.seen] == [1, 3, 5, 5, 5, 5]
    questions = [text for text in texts(model.seen[-1]) if text.startswith("question")]
    assert questions == ["question 3", "question 4", "question 5"]
    assert len(await session.get_items()) == 12


@pytest.mark.parametrize("max_items", [1, 2, 3])
async def test_a_turn_longer_than_what_is_read_is_stored_once(store: SessionStore, max_items: int) -> None:
    """What is read again, further back, is history to the Runner and no new input."""
    session, model = store.session("s"), Watching()
    for message in ("How many words: one two three", "Hello"):
        async for _ in run_turn(build_agent(model), session, message, max_items=max_items):
            pass
    turn = ["user", "function_call", "function_call_output", "message"]
    assert await kinds(session) == [*turn, "user", "message"]
    assert [item.get("type") or item["role"] for item in model.seen[-1]] == [*turn, "user"]


async def test_an_approval_that_nobody_gives_holds_the_conversation_up_until_it_is_discarded(
    store: SessionStore,
) -> None:
    session, model = store.session("s"), Watching()
    assert isinstance((await events_of(session, 'Launch the rocket "Luna"', rocket_agent()))[-1], ApprovalNeeded)
    with pytest.raises(ApprovalPending, match="launch_rocket"):
        await ask(session, "My name is Ada", agent_with(model))
    assert await discard(session)
    assert await ask(session, "My name is Ada", agent_with(model)) == "Nice to meet you, Ada!"
    assert texts(model.seen[0]) == ['Launch the rocket "Luna"', "My name is Ada"]
