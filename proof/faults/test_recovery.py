"""Runs that break off: at each write of a run with an approval in it, before the write is stored or after it.

A plain run of the SDK writes six times: three until it waits for the approval, one when it is resumed, two more until
its end. A turn of this project, which is streamed, writes the first three as one, and notes its end. What can be
resumed, and from what, is the SDK's decision; where it cannot, the test says what a user gets instead.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from typing import Any, cast

import pytest
from agents import Agent, ModelResponse, Runner, RunState, Usage, function_tool, set_tracing_disabled
from agents.exceptions import UserError
from agents.items import TResponseInputItem, TResponseStreamEvent
from openai.types.responses import ResponseCompletedEvent

from my_agent.conversation import hold
from my_agent.conversation.approvals import discard
from my_agent.conversation.turn import ApprovalNeeded, RunContext, run_turn
from my_agent.dev.offline import OfflineModel
from my_agent.sessions import (
    BackendSettings,
    BackendStore,
    SessionStore,
    StoredSession,
    StoreUnavailable,
)
from my_agent.sessions.layers import wrap_store
from proof.faults.test_fork import in_child
from proof.support.faulty_store import FaultyStore, When, die
from proof.support.helpers import text, user
from proof.support.sample_agent import count_words

ORDER, OWNER = "Prepare the launch", {"user_id": ""}
STEPS = {
    0: ["How many words: a"],
    1: ["How many words: a b", 'Launch the rocket "Luna"'],
    3: ["How many words: a b c"],
    4: ["My name is Luna"],
}
"""What the model takes the order for, by the number of outputs that it has seen: two calls at once the second time."""

CALL, OUTPUT = "function_call", "function_call_output"
PLAIN = [["user"], [CALL, OUTPUT], [CALL, CALL, OUTPUT], [OUTPUT], [CALL, OUTPUT], ["message"]]
STREAMED = [list(chain(*PLAIN[:3])), *PLAIN[3:], []]


def writes(streamed: bool) -> list[list[str]]:
    """The kinds of the items of each write. Those from the fourth kind on belong to the resumed run."""
    return STREAMED if streamed else PLAIN


def numbers(first: int, last: int) -> pytest.MarkDecorator:
    """Writes of both ways to run, from `first` to `last`, counted from the approval: 0 is the last one before it."""
    cases = [
        pytest.param(streamed, number, id=f"{'streamed' if streamed else 'plain'}-{number}")
        for streamed in (False, True)
        for number in range(1, len(writes(streamed)) + 1)
        if first <= number - approval(streamed) <= last
    ]
    return pytest.mark.parametrize(("streamed", "number"), cases)


def approval(streamed: bool) -> int:
    """The number of the last write before the approval."""
    return 1 if streamed else 3


BEGIN, APPROVAL, RESUMED, END, NOTED = -9, 0, 1, 3, 4
streamed_or_not = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
before_or_after = pytest.mark.parametrize("when", ["before", "after"])


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)


class Pilot(OfflineModel):
    """Carries out the order, step by step, and keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[list[TResponseInputItem]] = []

    async def get_response(
        self, system_instructions: str | None, input: str | list[TResponseInputItem], *args: Any, **kwargs: Any
    ) -> ModelResponse:
        self.seen.append([user(input)] if isinstance(input, str) else list(input))
        said, outputs = "", 0
        for item in self.seen[-1]:
            if item.get("role") == "user":
                said, outputs = text(item), 0
            outputs += item.get("type") == OUTPUT
        meant = STEPS[outputs] if said == ORDER else [said]
        answers = [await super(Pilot, self).get_response(system_instructions, each, *args, **kwargs) for each in meant]
        return ModelResponse(list(chain(*(answer.output for answer in answers))), Usage(requests=1), None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        whole = await self.get_response(*args, **kwargs)
        async for event in super().stream_response(*args, **kwargs):
            if isinstance(event, ResponseCompletedEvent):
                event.response.output = whole.output
            yield event


def saved(state: RunState[RunContext]) -> str:
    """The state as JSON."""
    return json.dumps(state.to_json(context_serializer=lambda _: OWNER))


class Crew:
    """An agent that launches rockets, on a session of its own; nothing of it outlives its process."""

    def __init__(self, streamed: bool) -> None:
        self.streamed, self.model, self.launched = streamed, Pilot(), list[str]()

        @function_tool(needs_approval=True)
        def launch_rocket(name: str) -> str:
            """Launch a rocket."""
            self.launched.append(name)
            return f"{name} is in the air"

        self.agent = Agent[Any](name="Pilot", model=self.model, tools=[count_words, launch_rocket])

    async def run(self, store: SessionStore, said: str | RunState[RunContext]) -> RunState[RunContext] | None:
        """A run; its state if it waits for an approval."""
        session = store.session("s")
        if self.streamed:
            events = [event async for event in run_turn(self.agent, session, said, max_items=50)]
            return events[-1].state if isinstance(events[-1], ApprovalNeeded) else None
        result = await Runner.run(self.agent, said, session=session)
        return result.to_state() if result.interruptions else None

    async def wait_for_approval(self, store: SessionStore) -> str:
        """Give the order; what is to be approved, as JSON."""
        state = await self.run(store, ORDER)
        assert state is not None
        return saved(state)

    async def approved(self, saved: str) -> RunState[RunContext]:
        """A saved state, with all its calls approved."""
        state = await RunState.from_json(self.agent, json.loads(saved), context_override=OWNER)
        for call in state.get_interruptions():
            state.approve(call)
        return state

    async def fulfil(self, store: SessionStore) -> None:
        """The order, from its beginning to its end."""
        assert await self.run(store, await self.approved(await self.wait_for_approval(store))) is None

    async def break_off(self, store: SessionStore, number: int, when: When) -> tuple[str, str]:
        """Fail at the n-th write, after the approval; the state before it was resumed, and what it became."""
        waiting = await self.wait_for_approval(store)
        state = await self.approved(waiting)
        with pytest.raises(StoreUnavailable):
            await self.run(FaultyStore(store, number - approval(self.streamed), when), state)
        return waiting, saved(state)


def stored(streamed: bool, number: int | None = None, when: When = "after") -> list[str]:
    """The kinds of the items that are stored before the n-th write, or after it; None: after the last one."""
    return list(chain(*writes(streamed)[: number if when == "after" or number is None else number - 1]))


def kinds(items: Iterable[TResponseInputItem]) -> list[str]:
    return [str(item.get("type") or item.get("role")) for item in items]


def assert_paired(items: Iterable[TResponseInputItem]) -> None:
    """Each call has one output, each output one call."""
    found = [cast(dict[str, Any], item) for item in items]
    calls, outputs = ([item["call_id"] for item in found if item.get("type") == kind] for kind in (CALL, OUTPUT))
    assert len(set(calls)) == len(calls)
    assert sorted(calls) == sorted(outputs)


async def assert_goes_on(crew: Crew, session: StoredSession, expected: list[str]) -> None:
    """The session holds what is expected and takes one more turn, and each history that the model saw was valid."""
    assert kinds(await session.get_items()) == expected
    store = session.store
    assert isinstance(store, SessionStore)
    assert await crew.run(store, "My name is Ada") is None
    assert kinds(await session.get_items()) == [*expected, "user", "message"]
    for seen in crew.model.seen:
        assert_paired(seen)


@numbers(BEGIN, NOTED)
@before_or_after
async def test_a_run_does_not_notice_a_write_that_succeeds_when_repeated(
    store: SessionStore, number: int, when: When, streamed: bool
) -> None:
    crew, faulty = Crew(streamed), FaultyStore(store, number, when, recovers=True)
    await crew.fulfil(faulty)
    assert len(faulty.writes) == len(writes(streamed)), "there are writes that are not tried here"
    assert crew.launched == ["Luna"]
    await assert_goes_on(crew, store.session("s"), stored(streamed))


@numbers(BEGIN, APPROVAL)
@before_or_after
async def test_a_run_that_fails_before_its_approval_keeps_what_was_stored_and_is_begun_anew(
    store: SessionStore, number: int, when: When, streamed: bool
) -> None:
    """The order is given again, and may be found twice in the history; what waits, unknown to the user, is given up."""
    crew, session = Crew(streamed), store.session("s")
    with pytest.raises(StoreUnavailable):
        await crew.run(FaultyStore(store, number, when), ORDER)
    assert kinds(await session.get_items()) == stored(streamed, number, when)
    assert await discard(session) == (streamed and when == "after")
    await crew.fulfil(store)
    assert crew.launched == ["Luna"]
    await assert_goes_on(crew, session, stored(streamed, number, when) + stored(streamed))


@streamed_or_not
@before_or_after
async def test_a_resumption_that_fails_is_repeated_from_its_state(
    store: SessionStore, when: When, streamed: bool
) -> None:
    """The tool is not called again: the state holds its output, and whether it was stored is found out."""
    crew = Crew(streamed)
    _, state = await crew.break_off(store, approval(streamed) + RESUMED, when)
    assert await crew.run(store, await crew.approved(state)) is None
    assert crew.launched == ["Luna"]
    await assert_goes_on(crew, store.session("s"), stored(streamed))


@numbers(RESUMED + 1, END)
@before_or_after
async def test_a_step_that_fails_after_the_resumption_leaves_its_session_usable(
    store: SessionStore, number: int, when: When, streamed: bool
) -> None:
    """The SDK refuses such a state. Nothing that was stored is lost, and the next message goes on from there."""
    crew = Crew(streamed)
    _, state = await crew.break_off(store, number, when)
    with pytest.raises(UserError, match="does not match a restored tool call"):
        await crew.approved(state)
    assert crew.launched == ["Luna"]
    await assert_goes_on(crew, store.session("s"), stored(streamed, number, when))


@numbers(RESUMED, END)
@before_or_after
async def test_a_resumption_that_died_is_begun_anew_from_the_state_before_it(
    store: SessionStore, number: int, when: When, streamed: bool
) -> None:
    """The tool is called again, and its output, if it was stored, is stored again: nothing knows of the first time.

    The model sees one of the two, and the history stays valid.
    """
    crew = Crew(streamed)
    state, _ = await crew.break_off(store, number, when)
    assert await crew.run(store, await crew.approved(state)) is None
    assert crew.launched == ["Luna", "Luna"]
    await assert_goes_on(
        crew,
        store.session("s"),
        stored(streamed, number, when) + stored(streamed)[len(stored(streamed, approval(streamed))) :],
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("number", range(1, len(STREAMED) + 1))
def test_a_session_goes_on_after_its_process_was_killed(settings: BackendSettings, number: int) -> None:
    async def killed() -> None:
        hold.LEASE_SECONDS = 0.5  # so long is the session taken afterwards
        async with wrap_store(BackendStore(settings)) as store:
            await Crew(streamed=True).fulfil(FaultyStore(store, number, "after", die))

    async def go_on() -> str:
        async with wrap_store(BackendStore(settings)) as store:
            assert await discard(store.session("s"), wait_seconds=5) == (number == approval(True))
            await assert_goes_on(Crew(streamed=True), store.session("s"), stored(True, number))
        return "went on"

    assert in_child(lambda: asyncio.run(killed())) == ""
    assert in_child(lambda: asyncio.run(go_on())) == "went on"
