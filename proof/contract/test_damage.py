"""Rows that cannot be read: skipped, kept as they are, and logged once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI

from my_agent.sessions import SessionRef, SessionStore, StoredSession
from my_agent.sessions.records import Batch, Row
from proof.support.helpers import anything, text, texts, user

Damage = Callable[[int, str], Awaitable[None]]
KEY = SessionRef("", "s")
SUMMARY = anything(type="message", role="user", content="a summary")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()]


# ── The log ─────────────────────────────────────────────────────────────────


async def test_damage_is_logged_once_however_often_it_is_read(
    store: SessionStore, damage_row: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    await store.session("s").add_items([user(str(number)) for number in range(6)])
    await damage_row(2, "secret{")
    await damage_row(4, "[1]")
    with caplog.at_level(logging.WARNING):
        for limit in (None, 3, None, 1, 100):
            await store.session("s").get_items(limit)
    (line,) = lines(caplog)
    assert "2 unreadable rows" in line
    assert "number 2, 4 from the newest" in line
    assert "secret" not in caplog.text


async def test_new_damage_is_logged_beside_the_old(
    store: SessionStore, damage_row: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    session = store.session("s")
    await session.add_items([user(str(number)) for number in range(4)])
    with caplog.at_level(logging.WARNING):
        for age in (1, 3):
            await damage_row(age, f"damage {age}")
            await session.get_items()
            await session.get_items()
    assert len(lines(caplog)) == 2


async def test_damage_of_another_session_is_logged_too(store: SessionStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("one", "two"):
            await store.append(SessionRef("", name), Batch.of([Row("the same damage")]))
            for _ in range(3):
                await store.session(name).get_items()
    assert ["'one'" in line for line in lines(caplog)] == [True, False]


async def test_thousands_of_damaged_rows_are_one_line(store: SessionStore, caplog: pytest.LogCaptureFixture) -> None:
    await store.append(KEY, Batch.of([Row(f"damage {number}") for number in range(3000)]))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await store.session("s").get_items() == []
    (line,) = lines(caplog)
    assert len(line) < 300


# ── Popping ─────────────────────────────────────────────────────────────────


async def test_damaged_rows_stay_in_their_place_when_an_item_is_popped(store: SessionStore, damage_row: Damage) -> None:
    session = store.session("s")
    await session.add_items([user(str(number)) for number in range(6)])
    await damage_row(1, "damage 1")
    await damage_row(2, "damage 2")
    await damage_row(4, "damage 4")
    assert text(await session.pop_item()) == "3"
    assert text(await session.pop_item()) == "1"
    assert (await store.tail(KEY, None))[1:] == ["damage 4", "damage 2", "damage 1"]
    assert text(await session.pop_item()) == "0"
    assert await session.pop_item() is None
    assert await store.tail(KEY, None) == ["damage 4", "damage 2", "damage 1"]
    info = await store.find_session(KEY)
    assert info is not None
    assert info.item_count == 3


DAMAGE = {
    "truncated": '{"role":"user","con',
    "list": "[1]",
    "null": "null",
    "text": '"text"',
    "empty": "",
    "white space": " ",
    "no JSON": "secret{",
    "control character": '{"role":"user","content":"a\nb"}',
    "no number": '{"a":nan}',
    "half a number": '{"a":1.}',
    "huge number": '{"a":' + "1" * 5000 + "}",
}


def behind(store: SessionStore) -> SessionStore:
    """What is stored, as it is stored."""
    return getattr(store, "inner", store)


async def stored(store: SessionStore) -> list[str]:
    return await behind(store).tail(KEY, None)


async def count(store: SessionStore) -> int:
    info = await store.find_session(KEY)
    assert info is not None
    return info.item_count


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_popping_never_removes_what_cannot_be_read(store: SessionStore, damage_row: Damage, damage: str) -> None:
    session = store.session("s")
    await session.add_items([user("0"), user("1"), user("2")])
    await damage_row(1, damage)
    await damage_row(3, damage)
    assert text(await session.pop_item()) == "1"
    assert await stored(store) == [damage, damage]
    for _ in range(2):
        assert await session.pop_item() is None
    assert await stored(store) == [damage, damage]
    assert await count(store) == 2


# Servers take some numbers for JSON that Python does not: there the session puts the row back.
@pytest.mark.parametrize("damage", [DAMAGE[name] for name in DAMAGE if "number" not in name])
async def test_a_store_leaves_what_is_not_an_object_in_its_place(
    store: SessionStore, damage_row: Damage, damage: str
) -> None:
    await store.append(KEY, Batch.of([Row('{"n":0}'), Row('{"n":1}')]))
    await damage_row(1, damage)
    if popped := await store.pop_object(KEY):
        assert popped == '{"n":0}'  # an encrypted store looks further
    assert (await stored(store))[1 if not popped else 0 :] == [damage]


def deep(levels: int) -> list[Any]:
    return [] if levels == 0 else [deep(levels - 1)]


UNUSUAL: dict[str, Any] = {
    "infinity": {"role": "user", "content": "a", "value": float("inf")},
    "half a surrogate pair": {"role": "user", "content": "\ud800"},
    "deep": {"role": "user", "content": "a", "deep": deep(300)},
    "white space": {"role": "user", "content": " \t\x7f\u2028 "},
    "NUL": {"role": "user", "content": "a\0b"},
    "long": {"role": "user", "content": "x" * 2**20},
    "empty": {},
    "large number": {"value": 2**70, "float": 1e300},
}


@pytest.mark.parametrize("item", UNUSUAL.values(), ids=UNUSUAL)
async def test_an_item_is_popped_whatever_the_server_makes_of_it(store: SessionStore, item: Any) -> None:
    session = store.session("s")
    await session.add_items([user("before"), item])
    assert await session.pop_item() == item
    assert texts(await session.get_items()) == ["before"]
    assert await count(store) == 1


async def test_a_readable_item_is_popped_without_being_read_before(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("s")
    await session.add_items([user("one"), user("two"), anything(type="reasoning", id="r", summary=[])])

    async def fail(*_: object) -> None:
        raise AssertionError("this takes another round trip")

    for name in ("tail", "take", "append", "replace_tail"):
        monkeypatch.setattr(store, name, fail)
    popped = [await session.pop_item() for _ in range(4)]
    assert [item and item.get("type", "message") for item in popped] == ["reasoning", "message", "message", None]


async def test_each_object_is_popped_once_and_none_is_missed(store: SessionStore) -> None:
    await store.append(KEY, Batch.of([Row(f'{{"n":{number}}}') for number in range(80)]))

    async def pop_ten() -> list[str | None]:
        return [await store.pop_object(KEY) for _ in range(10)]

    popped = [row for rows in await asyncio.gather(*(pop_ten() for _ in range(8))) for row in rows]
    assert sorted(popped, key=str) == sorted(f'{{"n":{number}}}' for number in range(80))
    assert await store.pop_object(KEY) is None
    assert await count(store) == 0


async def test_two_who_pop_below_damage_never_get_the_same_item(store: SessionStore, damage_row: Damage) -> None:
    await store.session("s").add_items([user(str(number)) for number in range(24)])
    damaged = (1, 2, 5, 6, 7, 15)
    for age in damaged:
        await damage_row(age, f"damage {age}")

    async def pop_all(session: StoredSession) -> list[str]:
        popped = []
        while item := await session.pop_item():
            popped.append(text(item))
        return popped

    both = await asyncio.gather(*(pop_all(store.session("s")) for _ in range(3)))
    popped = sorted(int(word) for words in both for word in words)
    assert popped == [number for number in range(24) if 24 - number not in damaged]
    assert await stored(store) == [f"damage {age}" for age in reversed(damaged)]
    assert await count(store) == len(damaged)


async def test_popping_below_damage_beside_a_writer_loses_nothing(store: SessionStore, damage_row: Damage) -> None:
    await store.session("s").add_items([user(str(number)) for number in range(10)])
    for age in (1, 2, 4):
        await damage_row(age, f"damage {age}")

    async def write() -> None:
        for number in range(20):
            await store.session("s").add_items([user(f"new {number}")])

    async def pop_some() -> list[str]:
        items = [await store.session("s").pop_item() for _ in range(12)]
        return [text(item) for item in items if item is not None]

    _, some, others = await asyncio.gather(write(), pop_some(), pop_some())
    left = texts(await store.session("s").get_items())
    words = [str(number) for number in range(10) if 10 - number not in (1, 2, 4)]
    assert sorted(some + others + left) == sorted(words + [f"new {number}" for number in range(20)])
    assert [row for row in await stored(store) if row.startswith("damage")] == ["damage 4", "damage 2", "damage 1"]
    assert await count(store) == len(left) + 3


async def test_take_removes_the_first_of_the_newest_rows(store: SessionStore) -> None:
    await store.append(KEY, Batch.of([Row(word) for word in ("x", "y", "x", "z", "x")]))
    for other in (["y"], ["z", "y"], ["y", "x", "z"], ["x"] * 6):
        assert not await store.take(KEY, other)
    assert not await store.take(SessionRef("", "another"), ["x"])
    assert await store.tail(KEY, None) == ["x", "y", "x", "z", "x"]
    assert await store.take(KEY, ["x", "z", "x"])
    assert await store.tail(KEY, None) == ["x", "y", "z", "x"]
    assert await store.take(KEY, ["x"])
    assert await store.take(KEY, ["x", "y", "z"])
    assert await store.tail(KEY, None) == ["y", "z"]
    assert await count(store) == 2


# ── Compaction ──────────────────────────────────────────────────────────────


def compacting(session: StoredSession) -> OpenAIResponsesCompactionSession:
    async def compact(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(output=[SUMMARY], usage=None)

    client = cast(AsyncOpenAI, SimpleNamespace(responses=SimpleNamespace(compact=compact)))
    return OpenAIResponsesCompactionSession(session.session_id, session, client=client, compaction_mode="input")


async def test_a_snapshot_begins_after_a_damaged_row_and_keeps_it(store: SessionStore, damage_row: Damage) -> None:
    session = store.session("s")
    await session.add_items([user(str(number)) for number in range(6)])
    await damage_row(4, "damage")
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    assert (texts(snapshot.items), snapshot.complete) == (["3", "4", "5"], False)
    assert await snapshot.replace_suffix(0, [SUMMARY])
    rows = await store.tail(KEY, None)
    assert (len(rows), rows[2]) == (4, "damage")
    assert texts(await session.get_items()) == ["0", "1", "a summary"]


async def test_an_expired_prefix_is_pruned_up_to_a_damaged_row(store: SessionStore, damage_row: Damage) -> None:
    session = store.session("s")
    await session.add_items([user(word) for word in ("old", "old", "broken", "old", "kept", "a", "b")])
    await damage_row(5, "damage")
    snapshot = await session._get_compaction_snapshot(2, prune_prefix=lambda item: item == user("old"))
    assert snapshot is not None
    assert await snapshot.replace_suffix(0, [SUMMARY])
    assert (await store.tail(KEY, None))[0] == "damage"
    assert texts(await session.get_items()) == ["old", "kept", "a summary"]


async def test_a_damaged_newest_row_leaves_nothing_to_replace(store: SessionStore, damage_row: Damage) -> None:
    session = store.session("s")
    await session.add_items([user("a"), user("b")])
    await damage_row(1, "damage")
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    assert (snapshot.items, snapshot.complete) == ([], False)
    assert not await snapshot.replace_suffix(0, [SUMMARY])


@pytest.mark.parametrize("age", [1, 2, 4])
async def test_a_compaction_by_hand_keeps_damaged_rows(store: SessionStore, damage_row: Damage, age: int) -> None:
    session = store.session("s")
    await session.add_items([user(str(number)) for number in range(4)])
    await damage_row(age, "damage")
    await compacting(session).run_compaction({"force": True})
    assert texts(await session.get_items()) == ["a summary"]
    assert "damage" in await store.tail(KEY, None)


# ── What compaction leaves ──────────────────────────────────────────────────

DAMAGED = ["not json", "[1]", "", "plain:x", "plain:{}", '{"n":' + "9" * 5000 + "}", "sealed:0badc0de:x"]


async def test_compaction_leaves_what_cannot_be_read_as_it_is_stored(store: SessionStore) -> None:
    raw = getattr(store, "inner", store)  # with encryption, below it
    session = store.session("s")
    await session.add_items([user("first")])
    for number, damaged in enumerate(DAMAGED):
        await raw.append(KEY, Batch.of([Row(damaged)]))
        await session.add_items([user(str(number))])
    assert await session._atomic_replace_items([user("a summary")])
    assert texts(await session.get_items()) == ["a summary"]
    assert (await raw.tail(KEY, None))[:-1] == DAMAGED
