"""Rows that cannot be read: skipped, kept as they are, and logged once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI

from my_agent.sessions import SessionKey, SessionStore, StoredSession
from my_agent.sessions.store import Batch, Row
from tests.helpers import anything, text, texts, user

Damage = Callable[[int, str], Awaitable[None]]
KEY = SessionKey("", "s")
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


async def test_damage_of_another_session_is_logged_too(
    store: SessionStore, damage_row: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("one", "two"):
            await store.session(name).add_items([user("Hi")])
            await damage_row(1, "the same damage")
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
