"""`sessions check` and `sessions repair`, and strings that are too long to be stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from my_agent.conversation.repair import LONG, find_problems, repair
from my_agent.sessions import ItemTooLarge, SessionRef, SessionStore
from my_agent.sessions.codec import decode_item
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.strings import MAX_STRING
from proof.support.command import invoke
from proof.support.helpers import anything, user
from proof.support.histories import History
from proof.support.model_input import refusals

Damage = Callable[[int, str], Awaitable[None]]
REF = SessionRef("", "s")
REASONING = anything(type="reasoning", id="rs_1", summary=[])
CALL = anything(type="function_call", id="fc_1", call_id="lost", name="secret", arguments='{"secret":1}')
ORPHAN = anything(type="function_call_output", call_id="gone", output="secret")
BROKEN = [user("a"), REASONING, CALL, user("b"), ORPHAN, user("c")]


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def rows(store: SessionStore) -> list[str]:
    return await store.tail(REF, None)


# ── check ───────────────────────────────────────────────────────────────────


async def test_a_sound_session_has_no_problems(store: SessionStore) -> None:
    await store.session("s").add_items([user("a"), user("b")])
    done = await invoke("sessions", "check", "s")
    assert (done.code, done.out, done.err) == (0, "", "Nothing found.\n")


async def test_problems_are_named_by_position_and_kind_without_content(store: SessionStore, damage_row: Damage) -> None:
    await store.session("s").add_items(BROKEN)
    await damage_row(1, "secret{")
    before = await rows(store)
    done = await invoke("sessions", "check", "--all")
    assert done.out.splitlines() == [
        '"s", row 2 (reasoning): reasoning without what follows it: remove',
        '"s", row 3 (function_call): call without its output: remove',
        '"s", row 5 (function_call_output): output without its call: remove',
        '"s", row 6 (row): unreadable row: keep',
    ]
    assert (done.code, done.err) == (1, "4 problems. `sessions repair` shows what it would do.\n")
    dry = await invoke("sessions", "repair", "s")
    assert (dry.code, dry.out) == (0, done.out)
    assert dry.err == "Nothing was changed. --yes repairs 3 rows.\n"
    assert "secret" not in done.out + done.err + dry.out + dry.err
    assert await rows(store) == before


async def test_calls_of_the_newest_turn_may_wait_for_an_approval(store: SessionStore) -> None:
    await store.session("s").add_items([user("a"), REASONING, CALL])
    assert (await invoke("sessions", "check", "s")).code == 0
    await store.session("s").add_items([user("b")])
    assert (await invoke("sessions", "check", "s")).code == 1


async def test_only_the_chosen_sessions_are_looked_at(store: SessionStore) -> None:
    for name, who in (("one", "ada"), ("two", "ada"), ("three", "bob")):
        await store.session(name, user_id=who).add_items([user("a"), ORPHAN])
    assert (await invoke("sessions", "check", "--all", "--user", "ada")).out.count("row 2") == 2
    assert (await invoke("sessions", "repair", "one", "--user", "ada", "--yes")).err == "Repaired: 1 row.\n"
    assert (await invoke("sessions", "check", "--all")).out.count("row 2") == 2


@pytest.mark.parametrize("command", ["check", "repair"])
@pytest.mark.parametrize("arguments", [[], ["s", "--all"], ["missing"]])
async def test_wrong_usage_is_one_line(store: SessionStore, command: str, arguments: Sequence[str]) -> None:
    done = await invoke("sessions", command, *arguments)
    assert done.code == (1 if arguments == ["missing"] else 2)
    assert done.out == ""


# ── repair ──────────────────────────────────────────────────────────────────


async def test_a_repair_takes_out_what_it_named_and_nothing_else(store: SessionStore, damage_row: Damage) -> None:
    session = store.session("s")
    await session.add_items(BROKEN[:3])
    other = '{ "role": "user",  "content": "written by another program" }'
    await store.append(REF, Batch.of([Row(other)]))
    await session.add_items(BROKEN[4:])
    await store.update_session(REF, title="title")
    await damage_row(1, "secret{")
    before = await rows(store)
    done = await invoke("sessions", "repair", "s", "--yes")
    assert (done.code, done.err) == (0, "Repaired: 3 rows.\n")
    assert await rows(store) == [before[0], before[3], before[5]]
    again = await invoke("sessions", "repair", "s", "--yes")
    assert again.err == "Repaired: 0 rows.\n"
    assert await rows(store) == [before[0], before[3], before[5]]
    info = await store.find_session(REF)
    assert info is not None
    assert (info.title, info.item_count) == ("title", 3)


async def test_unreadable_rows_go_only_when_asked(store: SessionStore, damage_row: Damage) -> None:
    await store.session("s").add_items([user("a"), user("b")])
    await damage_row(2, "half a row{")
    await invoke("sessions", "repair", "s", "--yes")
    assert len(await rows(store)) == 2
    assert (await invoke("sessions", "repair", "s", "--unreadable", "--yes")).err == "Repaired: 1 row.\n"
    assert [json.loads(row)["content"] for row in await rows(store)] == ["b"]


async def test_a_session_of_nothing_but_problems_is_empty_then(store: SessionStore) -> None:
    await store.session("s").add_items([ORPHAN, ORPHAN])
    await invoke("sessions", "repair", "s", "--yes")
    assert await rows(store) == []


@pytest.mark.parametrize("seed", range(3))
async def test_a_repaired_history_is_taken_whole(store: SessionStore, seed: int) -> None:
    history, session = History(seed).grow(12), store.session("s")
    await session.add_items([*history.items[3:], user("new")])
    named = find_problems(await rows(store))
    assert await repair(session, named) == named
    # What cannot be seen in a row: that an answer at the beginning had reasoning, which was cut off.
    left = refusals(await session.get_items(), history.reasoning_of)
    assert [problem for problem in left if "without its reasoning" not in problem] == []
    assert find_problems(await rows(store)) == []


async def test_a_repair_beside_writers_loses_nothing(store: SessionStore) -> None:
    session = store.session("s")
    for number in range(10):
        await session.add_items([user(f"old {number}"), ORPHAN])

    async def write(who: int) -> None:
        for number in range(15):
            await store.session("s").add_items([user(f"{who} {number}")])

    async def mend() -> int:
        return len(await repair(session, find_problems(await rows(store))))

    *_, one, two = await asyncio.gather(write(1), write(2), mend(), mend())
    assert one + two == 10
    said = [str(item.get("content")) for item in await session.get_items()]
    for who in (1, 2):
        assert [words for words in said if words.startswith(f"{who} ")] == [f"{who} {number}" for number in range(15)]
    assert [words for words in said if words.startswith("old")] == [f"old {number}" for number in range(10)]
    assert len(said) == 40


async def test_what_came_up_after_the_naming_stays(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("a"), CALL, user("b"), ORPHAN, user("c")])
    named = find_problems(await rows(store))
    answered = anything(type="function_call_output", call_id="lost", output="late")
    await session.add_items([ORPHAN, answered])
    assert [finding.position for finding in await repair(session, named)] == [4]
    assert await session.get_items() == [user("a"), CALL, user("b"), user("c"), ORPHAN, answered]


# ── Strings that are too long ───────────────────────────────────────────────

HUGE = "x" * (MAX_STRING + 1)
UNCUTTABLE = {
    "file": anything(role="user", content=[{"type": "input_image", "image_url": f"data:image/png;base64,{HUGE}"}]),
    "file in a text": anything(type="function_call_output", call_id="a", output=f'{{"a":"data:a/b;base64,{HUGE}"}}'),
    "encrypted": anything(type="compaction", id="cmp_1", encrypted_content=HUGE),
}


async def test_a_string_that_no_model_takes_is_refused_before_anything_is_stored(store: SessionStore) -> None:
    session = store.session("s")
    with pytest.raises(ItemTooLarge, match=r"Item 2 of 2 contains a string of 10,485,761 .*SESSION_LONG_STRINGS=cut"):
        await session.add_items([user("a"), user(HUGE)])
    assert await session.get_items() == []
    await session.add_items([user(HUGE[1:])])


async def cutting(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(store, "settings", store.settings.model_copy(update={"session_long_strings": "cut"}))
    return store.session("s")


async def test_a_long_string_can_be_cut(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await cutting(store, monkeypatch)
    given = anything(
        type="function_call_output", call_id="a", output=[{"type": "input_text", "text": HUGE + "x" * 10**6}]
    )
    await session.add_items([given])
    (item,) = await session.get_items()
    text = item["output"][0]["text"]
    assert len(text) == MAX_STRING
    assert text.endswith(f"\n[… 11,485,761 characters, cut after {len(text.partition(chr(10))[0]):,}]")
    assert len(cast(Any, given)["output"][0]["text"]) == MAX_STRING + 1 + 10**6


@pytest.mark.parametrize("item", UNCUTTABLE.values(), ids=UNCUTTABLE)
async def test_a_file_is_never_cut_in_its_middle(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, item: Any
) -> None:
    session = await cutting(store, monkeypatch)
    with pytest.raises(ItemTooLarge, match=r"by URL or file id\.$"):
        await session.add_items([item])
    assert await session.get_items() == []


@pytest.mark.parametrize("item", [user(HUGE), *UNCUTTABLE.values()], ids=["text", *UNCUTTABLE])
async def test_a_long_string_that_is_stored_already_is_repaired(store: SessionStore, item: Any) -> None:
    others = [user("a"), user("b")]
    texts = [json.dumps(each) for each in (others[0], item, others[1])]
    await store.append(REF, Batch.of([Row(text) for text in texts]))
    named = find_problems(texts)
    assert LONG in [finding.problem for finding in named]
    assert await repair(store.session("s"), named) == named
    after = await rows(store)
    assert (after[0], after[-1]) == (texts[0], texts[2])
    assert refusals([decode_item(row) for row in after], {}) == []
    assert len(after) == (3 if item.get("role") == "user" else 2)
