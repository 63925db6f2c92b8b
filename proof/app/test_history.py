"""What the model sees of a long history is always something that the API accepts."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, cast

import pytest
from agents.items import TResponseInputItem

from my_agent.conversation.history import history_settings, history_window, window
from my_agent.sessions import SessionStore
from proof.support.helpers import answer, anything, texts, user


def reasoning(name: str) -> TResponseInputItem:
    return anything(type="reasoning", id=f"rs_{name}", summary=[])


def call(name: str) -> TResponseInputItem:
    return anything(type="function_call", id=f"fc_{name}", call_id=name, name="tool", arguments="{}")


def output(name: str) -> TResponseInputItem:
    return anything(type="function_call_output", call_id=name, output="done")


SUMMARY = anything(type="compaction", id="cmp_1", encrypted_content="…")
PLAIN = [user("plain"), reasoning("p"), answer("yes")]
TOOLS = [user("tools"), reasoning("1"), call("a"), call("b"), output("a"), output("b"), reasoning("2"), answer("done")]
HANDOFF = [user("handoff"), call("transfer"), output("transfer"), reasoning("3"), answer("here")]
INTERRUPTED = [user("interrupted"), reasoning("4"), call("pending")]


def problems(items: list[TResponseInputItem]) -> list[str]:
    """Why the API would refuse this history."""
    found = []
    fields = [cast(dict[str, Any], item) for item in items]
    kinds = [field.get("type", "message") for field in fields]
    if fields and kinds[0] != "compaction" and fields[0].get("role") != "user":
        found.append(f"begins with {kinds[0]}")
    called = {field["call_id"] for field, kind in zip(fields, kinds, strict=True) if kind == "function_call"}
    for index, (field, kind) in enumerate(zip(fields, kinds, strict=True)):
        if kind == "function_call_output" and field["call_id"] not in called:
            found.append(f"output of {field['call_id']} without its call")
        if kind == "reasoning" and kinds[index + 1 : index + 2] not in (["message"], ["function_call"]):
            found.append("reasoning without what it belongs to")
        if kind == "message" and field.get("role") == "assistant" and kinds[index - 1] != "reasoning":
            found.append("message without its reasoning")
    return found


@pytest.mark.parametrize("max_items", range(1, 40))
def test_no_window_breaks_a_request(max_items: int) -> None:
    history = [*PLAIN, *TOOLS, *HANDOFF, SUMMARY, *TOOLS, *PLAIN, *TOOLS, *PLAIN, *HANDOFF]
    kept = window(history, max_items)
    assert kept is not None
    assert problems(kept) == []
    assert kept[-1] == history[-1]
    assert kept.count(SUMMARY) == 1, "the summary is lost"
    assert len(kept) <= max(max_items, len(HANDOFF)) + 1


@pytest.mark.parametrize("max_items", [1, 3, 8, 100])
def test_every_place_to_stop_is_safe(max_items: int) -> None:
    """However far the conversation has come, the next turn can be sent."""
    turns = [PLAIN, TOOLS, HANDOFF, TOOLS, PLAIN]
    for history in accumulate(turns, lambda before, turn: [*before, *turn]):
        kept = window(history, max_items)
        assert kept is not None
        assert problems(kept) == []


def test_a_short_history_is_seen_whole() -> None:
    assert window([*PLAIN, *TOOLS], 100) == [*PLAIN, *TOOLS]
    assert window([], 100) == []


def test_a_greeting_by_the_agent_is_seen_as_long_as_nothing_is_cut() -> None:
    greeted = [answer("Welcome!"), *PLAIN]
    assert window(greeted, len(greeted)) == greeted
    assert window(greeted, len(greeted) - 1) == PLAIN


def test_a_turn_that_is_longer_than_the_window_is_kept_whole() -> None:
    assert window([*PLAIN, *TOOLS], 2) == TOOLS


def test_an_output_whose_call_was_lost_is_left_out() -> None:
    assert window([user("a"), output("lost"), *PLAIN], 100) == [user("a"), *PLAIN]


def test_a_call_that_waits_for_approval_is_left_to_the_sdk() -> None:
    assert window([*PLAIN, *INTERRUPTED], 100) == [*PLAIN, *INTERRUPTED]


def test_a_history_without_a_place_to_cut_is_none() -> None:
    assert window([answer("a"), answer("b")], 1) is None


async def test_a_turn_longer_than_what_was_read_is_read_again(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([*PLAIN, user("long")])
    for number in range(30):
        await session.add_items([call(f"c{number}"), output(f"c{number}")])
    read = await session.get_items(history_settings(5).limit)
    assert len(read) == 10
    seen = await cast(Any, history_window(session, 5)(read, [user("new")]))
    assert texts([seen[0], seen[-1]]) == ["long", "new"]
    assert len(seen) == 62


async def test_a_history_without_any_user_is_not_sent(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([answer("a")] * 30)
    read = await session.get_items(history_settings(5).limit)
    assert await cast(Any, history_window(session, 5)(read, [user("new")])) == [user("new")]
