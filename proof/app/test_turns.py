"""One turn is stored as a whole or not at all: what is stored in each situation, and what the model sees next."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import openai
import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    RunState,
    function_tool,
    input_guardrail,
    output_guardrail,
    set_tracing_disabled,
)
from agents.items import TResponseInputItem

from my_agent.conversation.approvals import discard
from my_agent.conversation.hold import hold
from my_agent.conversation.report import Usage
from my_agent.conversation.turn import (
    WHILE_STORING,
    AgentChanged,
    ApprovalNeeded,
    Done,
    Event,
    RunContext,
    TurnFailed,
    run_turn,
)
from my_agent.sessions import ItemTooLarge, SessionRef, SessionStore, StoredSession, StoreUnavailable, WrongOwner
from my_agent.sessions.records import Batch
from proof.support.faulty_store import FaultyStore, When
from proof.support.helpers import answer, texts, user
from proof.support.scripted_model import CACHED, INPUT, OUTPUT, ScriptedModel, Step, call, say

CALL, RESULT = "function_call", "function_call_output"
BEFORE = ["user", "message"]
"""What each session contains when the turn begins."""


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)


# ── Agents ──────────────────────────────────────────────────────────────────


@function_tool
def look_up(text: str = "") -> str:
    """Look something up."""
    return f"found {text}"


@function_tool(failure_error_function=None)
def break_down(text: str = "") -> str:
    """Fail."""
    raise LookupError("planted")


@function_tool
def fetch_all(text: str = "") -> str:
    """Return more than an item may have."""
    return "x" * 20_000_000


@function_tool(needs_approval=True)
def launch_rocket(text: str = "") -> str:
    """Launch a rocket."""
    return "it is in the air"


TOOLS = [look_up, break_down, fetch_all, launch_rocket]


@input_guardrail(run_in_parallel=False)
async def ask_first(context: Any, agent: Any, said: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(None, tripwire_triggered=True)


@input_guardrail
async def ask_beside(context: Any, agent: Any, said: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(None, tripwire_triggered=True)


@output_guardrail
async def refuse_answer(context: Any, agent: Any, said: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(None, tripwire_triggered=True)


def agent_of(*script: Step, **options: Any) -> Agent[Any]:
    return Agent(**{"name": "Front", "model": ScriptedModel(*script), "tools": TOOLS, **options})


def with_expert(*script: Step) -> Agent[Any]:
    agent = agent_of(*script)
    agent.handoffs = [Agent(name="Expert", model=agent.model)]
    return agent


NO_NETWORK = openai.APIConnectionError(request=None)  # type: ignore[arg-type]


# ── Words of the tests ──────────────────────────────────────────────────────


def turn_of(agent: Agent[Any], session: StoredSession, said: Any = "Hello") -> AsyncGenerator[Event, None]:
    return run_turn(agent, session, said, max_items=50)


async def events_of(agent: Agent[Any], session: StoredSession, said: Any = "Hello") -> list[Event]:
    return [event async for event in turn_of(agent, session, said)]


def kinds(items: list[TResponseInputItem]) -> list[str]:
    return [str(item.get("type") or item.get("role")) for item in items]


async def begun(store: SessionStore) -> StoredSession:
    session = store.session("s", user_id="ada")
    await session.add_items([user("before"), answer("yes")])
    return session


async def stored_by_turn(session: StoredSession) -> list[str]:
    found = kinds(await session.get_items())
    assert found[:2] == BEFORE
    return found[2:]


async def seen_next(session: StoredSession) -> list[str]:
    """What the model of the next turn sees, without the beginning and the new message."""
    agent = agent_of(say("fine"))
    await discard(session)
    assert isinstance((await events_of(agent, session, "Next"))[-1], Done)
    assert isinstance(agent.model, ScriptedModel)
    seen = kinds(agent.model.seen[0])
    assert seen[:2] == BEFORE
    assert seen[-1] == "user"
    return seen[2:-1]


class Counting:
    """Counts the calls of a store."""

    def __init__(self, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        names = (
            "append",
            "tail",
            "replace_tail",
            "pop",
            "pop_object",
            "take",
            "find_session",
            "lease",
            "release",
            "turns",
        )
        for name in (*names, "change_turn"):
            monkeypatch.setattr(store, name, self._counted(name, getattr(store, name)))

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return await method(*args, **kwargs)

        return counted


# ── Situation → what is stored → what the model sees next ───────────────────


class Situation(NamedTuple):
    agent: Callable[[], Agent[Any]]
    ends: type[Event] | type[Exception]
    stored: list[str]
    seen: list[str] | None = None
    """None: the same."""
    said: str = "Hello"


SITUATIONS = {
    "an answer": Situation(lambda: agent_of(say("hi")), Done, ["user", "message"]),
    "a tool": Situation(lambda: agent_of(call("look_up"), say("hi")), Done, ["user", CALL, RESULT, "message"]),
    "tools at once": Situation(
        lambda: agent_of(call("look_up", "look_up"), say("hi")), Done, ["user", CALL, CALL, RESULT, RESULT, "message"]
    ),
    "steps": Situation(
        lambda: agent_of(call("look_up"), call("look_up"), say("hi")),
        Done,
        ["user", CALL, RESULT, CALL, RESULT, "message"],
    ),
    "a handoff": Situation(
        lambda: with_expert(call("transfer_to_expert"), say("hi")), Done, ["user", CALL, RESULT, "message"]
    ),
    "a tool before a handoff": Situation(
        lambda: with_expert(call("look_up"), call("transfer_to_expert"), say("hi")),
        Done,
        ["user", CALL, RESULT, CALL, RESULT, "message"],
    ),
    "waits for an approval": Situation(
        lambda: agent_of(call("launch_rocket")), ApprovalNeeded, ["user", CALL], ["user"]
    ),
    "waits for one of two tools": Situation(
        lambda: agent_of(call("look_up", "launch_rocket")),
        ApprovalNeeded,
        ["user", CALL, CALL, RESULT],
        ["user", CALL, RESULT],
    ),
    "waits under an output guardrail": Situation(
        lambda: agent_of(call("launch_rocket"), output_guardrails=[refuse_answer]),
        ApprovalNeeded,
        ["user", CALL],
        ["user"],
    ),
    "input guardrail before": Situation(lambda: agent_of(say("hi"), input_guardrails=[ask_first]), TurnFailed, []),
    "input guardrail beside": Situation(lambda: agent_of(say("hi"), input_guardrails=[ask_beside]), TurnFailed, []),
    "output guardrail": Situation(lambda: agent_of(say("hi"), output_guardrails=[refuse_answer]), TurnFailed, []),
    "output guardrail after a tool": Situation(
        lambda: agent_of(call("look_up"), say("hi"), output_guardrails=[refuse_answer]), TurnFailed, []
    ),
    "model fails": Situation(lambda: agent_of(NO_NETWORK), TurnFailed, []),
    "model fails after a tool": Situation(lambda: agent_of(call("look_up"), NO_NETWORK), TurnFailed, []),
    "model fails after a handoff": Situation(
        lambda: with_expert(call("transfer_to_expert"), NO_NETWORK), TurnFailed, []
    ),
    "too many steps": Situation(lambda: agent_of(call("look_up")), TurnFailed, []),
    "a tool raises": Situation(lambda: agent_of(call("break_down")), TurnFailed, []),
    "unknown tool": Situation(lambda: agent_of(call("no_such_tool")), TurnFailed, []),
    "an output that is too large": Situation(lambda: agent_of(call("fetch_all")), ItemTooLarge, []),
    "a message that is too large": Situation(lambda: agent_of(say("hi")), ItemTooLarge, [], said="x" * 20_000_000),
}


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
async def test_a_turn_is_stored_as_a_whole_or_not_at_all(store: SessionStore, situation: Situation) -> None:
    session, agent = await begun(store), situation.agent()
    if issubclass(situation.ends, Exception):
        with pytest.raises(situation.ends):
            await events_of(agent, session, situation.said)
    else:
        assert isinstance((await events_of(agent, session, situation.said))[-1], situation.ends)
    assert await stored_by_turn(session) == situation.stored
    assert await seen_next(session) == (situation.stored if situation.seen is None else situation.seen)


@pytest.mark.parametrize(
    "name", ["an answer", "steps", "a handoff", "a tool before a handoff", "waits for an approval"]
)
@pytest.mark.parametrize("new", [True, False], ids=["new session", "known session"])
async def test_a_turn_costs_one_read_and_one_write(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, name: str, new: bool
) -> None:
    session = store.session("s") if new else await begun(store)
    counting = Counting(store, monkeypatch)
    await events_of(SITUATIONS[name].agent(), session)
    assert counting.calls == ["lease", "append"]


@pytest.mark.parametrize("name", ["model fails after a tool", "input guardrail beside", "output guardrail"])
async def test_a_turn_that_breaks_off_writes_nothing(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    counting = Counting(store, monkeypatch)
    with pytest.raises(TurnFailed):
        await events_of(SITUATIONS[name].agent(), store.session("s"))
    assert counting.calls == ["lease", "release"]
    assert await store.find_session(SessionRef("", "s")) is None, "not even an empty session is left"


async def test_what_is_too_large_is_refused_before_the_model_is_asked(store: SessionStore) -> None:
    agent = agent_of(say("hi"))
    with pytest.raises(ItemTooLarge):
        await events_of(agent, store.session("s"), "x" * 20_000_000)
    assert isinstance(agent.model, ScriptedModel)
    assert agent.model.seen == []


async def test_what_is_stored_is_there_before_the_last_event(store: SessionStore) -> None:
    for name in ("an answer", "waits for an approval"):
        session = store.session(name)
        async for event in turn_of(SITUATIONS[name].agent(), session):
            stored = kinds(await session.get_items())
            assert stored == (SITUATIONS[name].stored if isinstance(event, Done | ApprovalNeeded) else [])


async def test_a_failed_message_that_is_sent_again_is_stored_once(store: SessionStore) -> None:
    session = await begun(store)
    agent = agent_of(NO_NETWORK, say("hi"))
    with pytest.raises(TurnFailed):
        await events_of(agent, session)
    await events_of(agent, session)
    assert texts(await session.get_items()) == ["before", "yes", "Hello", "hi"]


# ── Stopping ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["close", "cancel"])
@pytest.mark.parametrize("name", ["steps", "a tool before a handoff", "waits for one of two tools"])
async def test_a_turn_that_is_stopped_after_any_event_is_whole_or_absent(
    store: SessionStore, name: str, how: str
) -> None:
    situation = SITUATIONS[name]
    total = len(await events_of(situation.agent(), store.session("all")))
    for number in range(total + 1):
        session = store.session(f"{number}")
        if how == "close":
            async with aclosing(turn_of(situation.agent(), session)) as turn:
                for _ in range(number):
                    await anext(turn)
        else:
            await cancelled_after(situation.agent(), session, number)
        assert kinds(await session.get_items()) == (situation.stored if number == total else []), number


async def cancelled_after(agent: Agent[Any], session: StoredSession, number: int) -> None:
    """Cancel a task that follows a turn, while it waits for something else after the n-th event."""
    reached = asyncio.Event()

    async def follow() -> None:
        async with aclosing(turn_of(agent, session)) as turn:
            for _ in range(number):
                await anext(turn)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(follow())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_turn_that_is_cancelled_at_any_step_of_the_loop_is_whole_or_absent(store: SessionStore) -> None:
    """At each await of the turn, those inside the SDK and the store included."""
    outcomes, steps = set(), 0
    result: list[Event] | asyncio.CancelledError | None = None
    while not isinstance(result, list):
        session = store.session(f"{steps}")
        task = asyncio.create_task(events_of(SITUATIONS["a tool"].agent(), session))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            result = await task
        except asyncio.CancelledError as cancelled:  # not `gather`, which loses its text
            result = cancelled
        stored = kinds(await session.get_items())
        assert stored in ([], SITUATIONS["a tool"].stored), steps
        assert stored or isinstance(result, asyncio.CancelledError), "it is done, and not stored"
        outcomes.add((type(result), str(result) if isinstance(result, asyncio.CancelledError) else "", bool(stored)))
        steps += 2 + steps // 20
    assert (asyncio.CancelledError, "", False) in outcomes
    assert (asyncio.CancelledError, "", True) not in outcomes, "the command would say that nothing is stored"
    assert outcomes & {(asyncio.CancelledError, WHILE_STORING, stored) for stored in (True, False)}


async def test_a_cancellation_while_the_turn_is_stored_waits_for_the_outcome(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, append, writing, ended = await begun(store), store.append, asyncio.Event(), []

    async def slow(ref: SessionRef, batch: Batch) -> None:
        writing.set()
        await asyncio.sleep(0.1)
        await append(ref, batch)
        ended.append(batch.id)

    monkeypatch.setattr(store, "append", slow)
    task = asyncio.create_task(events_of(SITUATIONS["a tool"].agent(), session))
    await asyncio.wait_for(writing.wait(), timeout=10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError, match=WHILE_STORING):
        await task
    assert len(ended) == 1, "nothing goes on behind the caller"
    assert await stored_by_turn(session) == SITUATIONS["a tool"].stored


# ── The store fails ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["steps", "waits for an approval"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_that_fails_is_an_error_and_leaves_all_or_nothing(
    store: SessionStore, name: str, when: When
) -> None:
    situation = SITUATIONS[name]
    events = list[Event]()

    async def follow() -> None:
        async for event in turn_of(situation.agent(), FaultyStore(store, 1, when).session("s")):
            events.append(event)

    with pytest.raises(StoreUnavailable) as failed:
        await follow()
    assert failed.value.maybe_applied
    assert not any(isinstance(event, Done | ApprovalNeeded) for event in events)
    assert kinds(await store.session("s").get_items()) == (situation.stored if when == "after" else [])


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_is_repeated_and_stored_once(store: SessionStore, when: When) -> None:
    situation = SITUATIONS["steps"]
    faulty = FaultyStore(store, 1, when, recovers=True)
    assert isinstance((await events_of(situation.agent(), faulty.session("s")))[-1], Done)
    assert kinds(await store.session("s").get_items()) == situation.stored


async def test_a_subclass_is_used_through_the_methods_that_it_overrides(store: SessionStore) -> None:
    class Shortening(StoredSession):
        """Stores less than it is given, and takes no `wrapper`, as a session for an older SDK."""

        async def add_items(self, items: list[TResponseInputItem]) -> None:  # type: ignore[override]
            await super().add_items([item for item in items if item.get("type") != RESULT or len(str(item)) < 1000])

    session = Shortening(lambda: store, SessionRef("", "s"))
    assert isinstance((await events_of(agent_of(call("fetch_all"), say("hi")), session))[-1], Done)
    assert kinds(await session.get_items()) == ["user", CALL, "message"]


class Twofold(StoredSession):
    """Writes twice for each step."""

    async def add_items(self, items: list[TResponseInputItem], wrapper: Any = None) -> None:
        for item in items:
            await super().add_items([item], wrapper)


class Elsewhere(StoredSession):
    """Keeps its items in another place."""

    async def add_items(self, items: list[TResponseInputItem], wrapper: Any = None) -> None:
        kept.extend(items)

    async def get_items(self, limit: int | None = None, wrapper: Any = None) -> list[TResponseInputItem]:
        return list(kept)


kept = list[TResponseInputItem]()


@pytest.mark.parametrize("kind", [Twofold, Elsewhere])
async def test_a_subclass_may_write_as_it_likes_and_its_turn_is_whole(
    store: SessionStore, kind: type[StoredSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.clear()
    session, counting = kind(lambda: store, SessionRef("", "s")), Counting(store, monkeypatch)
    assert isinstance((await events_of(agent_of(call("look_up"), say("hi")), session))[-1], Done)
    assert counting.calls == ["lease", "append"]
    assert kinds(await session.get_items()) == ["user", CALL, RESULT, "message"]
    assert [turn.status for turn in await store.turns(session.ref, 10)] == ["done"]
    assert len(await store.tail(session.ref, None)) == (4 if kind is Twofold else 0)


async def test_a_method_that_is_replaced_on_one_object_is_refused(store: SessionStore) -> None:
    session = store.session("s")
    session.add_items = session.get_items  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError, match="Override add_items in a subclass"):
        await events_of(agent_of(say("hi")), session)
    assert await store.find_session(session.ref) is None


async def test_what_a_turn_takes_back_was_its_own_first(store: SessionStore) -> None:
    """As the SDK does when it repeats a call: the newest item of all, then the stored ones."""
    await begun(store)
    async with hold(store.session("s", user_id="ada"), wait_seconds=1, limit=1) as held:
        session = held.session
        assert texts(await session.get_items(1)) == ["yes"]
        await session.add_items([user("new")])
        assert texts(await session.get_items(2)) == ["yes", "new"]
        assert texts(await session.get_items()) == ["before", "yes", "new"]
        assert texts(await store.session("s", user_id="ada").get_items()) == ["before", "yes"]
        for expected in (["new"], ["yes"], ["before"], []):
            popped = await session.pop_item()
            assert texts([popped] if popped else []) == expected
        await session.add_items([user("again")])
        await session.clear_session()
        assert await session.get_items() == []


async def test_the_owner_is_still_checked(store: SessionStore) -> None:
    agent = agent_of(call("launch_rocket"))
    waiting = (await events_of(agent, store.session("s", user_id="ada")))[-1]
    assert isinstance(waiting, ApprovalNeeded)
    with pytest.raises(WrongOwner):
        await events_of(agent, store.session("s", user_id="bob"), decided(waiting, approve=True))
    assert await store.find_session(SessionRef("bob", "s")) is None


# ── Approvals ───────────────────────────────────────────────────────────────


def decided(waiting: ApprovalNeeded, *, approve: bool) -> RunState[RunContext]:
    for item in waiting.state.get_interruptions():
        (waiting.state.approve if approve else waiting.state.reject)(item)
    return waiting.state


RESUME = """
import asyncio, json, sys
from agents import RunState, set_tracing_disabled
from my_agent.conversation.turn import Done, RunContext, run_turn
from my_agent.sessions import open_store
from proof.app.test_turns import agent_of, say

async def main():
    set_tracing_disabled(True)
    agent = agent_of(say("settled"))
    state = await RunState.from_json(agent, json.load(sys.stdin), context_override=RunContext("ada"))
    for item in state.get_interruptions():
        getattr(state, sys.argv[1])(item)
    async with open_store() as store:
        async for event in run_turn(agent, store.session("s", user_id="ada"), state, max_items=50):
            if isinstance(event, Done):
                print(event.output, event.usage)

asyncio.run(main())
"""


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_a_turn_is_resumed_in_another_process(
    store: SessionStore, server_environment: dict[str, str], decision: str
) -> None:
    session = await begun(store)
    waiting = (await events_of(agent_of(call("look_up", "launch_rocket")), session))[-1]
    assert isinstance(waiting, ApprovalNeeded)
    assert waiting.usage == Usage(1, INPUT, CACHED, OUTPUT)
    state = waiting.state.to_json(context_serializer=lambda context: {"user_id": context.user_id})
    resumed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RESUME, decision],
        input=json.dumps(state),
        env={**server_environment, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    # The state brought the usage of the first part along; it is not counted twice.
    assert resumed.stdout == f"settled {Usage(1, INPUT, CACHED, OUTPUT)}\n", resumed.stderr
    expected = ["user", CALL, CALL, RESULT, RESULT, "message"]
    assert await stored_by_turn(session) == expected
    outputs = [str(item.get("output")) for item in await session.get_items() if item.get("type") == RESULT]
    assert ("it is in the air" in outputs[1]) is (decision == "approve")
    assert await seen_next(session) == expected


async def test_what_an_approved_tool_did_stays_stored_when_the_rest_breaks_off(store: SessionStore) -> None:
    """The approval was given once, and the tool has acted."""
    session = await begun(store)
    agent = agent_of(call("launch_rocket"), NO_NETWORK)
    waiting = (await events_of(agent, session))[-1]
    assert isinstance(waiting, ApprovalNeeded)
    with pytest.raises(TurnFailed):
        await events_of(agent, session, decided(waiting, approve=True))
    assert await stored_by_turn(session) == ["user", CALL, RESULT]
    assert await seen_next(session) == ["user", CALL, RESULT]


# ── What a turn tells of itself ─────────────────────────────────────────────


async def test_usage_is_the_sum_of_the_run(store: SessionStore) -> None:
    done = (await events_of(SITUATIONS["steps"].agent(), store.session("s")))[-1]
    assert isinstance(done, Done)
    assert done.usage == Usage(3, 3 * INPUT, 3 * CACHED, 3 * OUTPUT)


@pytest.mark.parametrize(
    ("name", "outcome", "items", "requests"),
    [
        ("a tool", "done", 4, 2),
        ("waits for an approval", "approval", 2, 1),
        ("output guardrail", "failed: OutputGuardrailTripwireTriggered", 0, 1),
        ("model fails", "failed: APIConnectionError", 0, 0),
    ],
)
async def test_each_turn_leaves_one_line_without_content(
    store: SessionStore, caplog: pytest.LogCaptureFixture, name: str, outcome: str, items: int, requests: int
) -> None:
    caplog.set_level(logging.INFO, logger="my_agent")
    with suppress(TurnFailed):
        await events_of(SITUATIONS[name].agent(), store.session("s", user_id="ada"), "a secret")
    (record,) = [record for record in caplog.records if record.name.startswith("my_agent.conversation")]
    fields = vars(record)["fields"]
    assert (fields["outcome"], fields["items"], fields["requests"]) == (outcome, items, requests)
    assert (fields["session"], fields["user"]) == ("s", "ada")
    assert fields["seconds"] > 0
    assert (fields["first_text_seconds"] is not None) is (name in ("a tool", "output guardrail"))
    assert "secret" not in record.getMessage()
    assert f"outcome={outcome!r}" in record.getMessage()


async def test_a_turn_that_is_stopped_leaves_a_line(store: SessionStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="my_agent")
    async with aclosing(turn_of(SITUATIONS["a tool"].agent(), store.session("s"))) as turn:
        await anext(turn)
    assert [vars(record)["fields"]["outcome"] for record in caplog.records if "fields" in vars(record)] == ["stopped"]


async def test_a_handoff_is_told(store: SessionStore) -> None:
    assert AgentChanged("Expert") in await events_of(SITUATIONS["a handoff"].agent(), store.session("s"))
