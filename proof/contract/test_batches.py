"""What a repeated, late or concurrent batch may and may not do, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.records import Batch, Row
from proof.support.helpers import texts, user

KEY = SessionRef("ada", "s")


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


async def agrees(store: SessionStore, ref: SessionRef = KEY) -> list[str]:
    """The stored texts; they are as many as the session counts."""
    rows = await store.tail(ref, None)
    found = await store.find_session(ref)
    assert len(rows) == (found.item_count if found else 0)
    return rows


async def test_a_batch_sent_twice_is_stored_once(store: SessionStore) -> None:
    sent = batch("a", "b")
    await store.append(KEY, sent)
    await store.append(KEY, batch("c"))
    await store.append(KEY, sent)
    assert await agrees(store) == ["a", "b", "c"]


async def test_an_empty_batch_sent_twice_begins_the_session_once(store: SessionStore) -> None:
    sent = batch()
    await store.append(KEY, sent)
    await store.append(KEY, sent)
    assert await agrees(store) == []
    assert await store.find_session(KEY) is not None
    assert await store.delete_session(KEY)
    await store.append(KEY, sent)
    assert await store.find_session(KEY) is None


async def test_a_batch_is_known_in_its_own_session_alone(store: SessionStore) -> None:
    sent = batch("a")
    keys = [KEY, SessionRef("ada", "t"), SessionRef("bob", "s")]
    for key in keys:
        await store.append(key, sent)
    assert [await agrees(store, key) for key in keys] == [["a"]] * 3


async def test_a_batch_sent_many_times_at_once_is_stored_once(store: SessionStore) -> None:
    sent = batch("a", "b")
    await asyncio.gather(*(store.append(KEY, sent) for _ in range(20)))
    assert await agrees(store) == ["a", "b"]


# ── Late ────────────────────────────────────────────────────────────────────

Remove = Callable[[SessionStore], Awaitable[object]]
REMOVALS: dict[str, Remove] = {
    "pop": lambda store: store.pop(KEY),
    "clear": lambda store: store.clear(KEY),
    "replace": lambda store: store.replace_tail(KEY, None, batch()),
    "delete_session": lambda store: store.delete_session(KEY),
    "delete_user": lambda store: store.delete_user(KEY.user_id),
    "prune": lambda store: store.prune(datetime.now(UTC) + timedelta(minutes=1)),
}


@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_late_repetition_does_not_bring_back_what_was_removed(store: SessionStore, removal: str) -> None:
    sent = batch("a")
    await store.append(KEY, sent)
    await REMOVALS[removal](store)
    assert await agrees(store) == []
    await store.append(KEY, sent)
    assert await agrees(store) == []
    if removal.startswith(("delete", "prune")):
        assert await store.find_session(KEY) is None  # not even an empty session comes back
    await store.append(KEY, batch("b"))
    await store.append(KEY, sent)
    assert await agrees(store) == ["b"]


async def test_any_number_of_batches_is_remembered(store: SessionStore) -> None:
    sent = [batch(str(number)) for number in range(150)]
    for one in sent:
        await store.append(KEY, one)
        await store.pop(KEY)
    await store.delete_session(KEY)
    for one in sent:
        await store.append(KEY, one)
    assert await store.find_session(KEY) is None


@pytest.mark.parametrize("removal", ["clear", "delete_session", "delete_user", "prune"])
async def test_a_repetition_beside_the_removal_does_not_bring_it_back(store: SessionStore, removal: str) -> None:
    for _ in range(20):
        sent = batch("a", "b")
        await store.append(KEY, sent)
        await asyncio.gather(
            *(store.append(KEY, sent) for _ in range(4)),
            REMOVALS[removal](store),
            store.append(KEY, sent),
        )
        assert await agrees(store) == []


@pytest.mark.parametrize("removal", ["pop", "clear", "replace", "delete_session", "delete_user", "prune"])
async def test_a_first_append_beside_a_removal_is_whole_or_gone(store: SessionStore, removal: str) -> None:
    for _ in range(30):
        await store.delete_session(KEY)
        removals = [REMOVALS[removal](store) for _ in range(3)]
        await asyncio.gather(store.append(KEY, batch("a", "b")), *removals, store.append(KEY, batch("c", "d")))
        rows = await agrees(store)
        if removal != "pop":
            assert rows in ([], ["a", "b"], ["c", "d"], ["a", "b", "c", "d"], ["c", "d", "a", "b"])


# ── Replacing ───────────────────────────────────────────────────────────────


async def test_a_repeated_replacement_spares_what_was_written_since(store: SessionStore) -> None:
    await store.append(KEY, batch("a", "b"))
    summary = batch("summary")
    assert await store.replace_tail(KEY, None, summary)
    assert await store.pop(KEY) == "summary"
    await store.append(KEY, batch("new 1", "new 2"))
    assert await store.replace_tail(KEY, None, summary)
    assert await agrees(store) == ["new 1", "new 2"]


async def test_a_repeated_removal_of_a_tail_removes_it_once(store: SessionStore) -> None:
    await store.append(KEY, batch("x", "x"))
    nothing = batch()
    assert await store.replace_tail(KEY, ["x"], nothing)
    assert await store.replace_tail(KEY, ["x"], nothing)
    assert await agrees(store) == ["x"]


@pytest.mark.parametrize("before", [[], ["a", "b"]])
async def test_a_repeated_removal_of_everything_spares_what_was_written_since(
    store: SessionStore, before: list[str]
) -> None:
    if before:
        await store.append(KEY, batch(*before))
    nothing = batch()
    assert await store.replace_tail(KEY, None, nothing)
    await store.append(KEY, batch("c"))
    assert await store.replace_tail(KEY, None, nothing)
    assert await agrees(store) == ["c"]


async def test_a_late_clear_spares_what_was_written_since(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that was repeated because it was late, and that arrives after all."""
    replace, sent = store.replace_tail, list[tuple[Any, ...]]()

    async def recorded(*arguments: Any) -> bool:
        sent.append(arguments)
        return await replace(*arguments)

    monkeypatch.setattr(store, "replace_tail", recorded)
    session = store.session(KEY.session_id, user_id=KEY.user_id)
    await session.add_items([user("a")])
    await session.clear_session()
    assert await agrees(store) == []
    await session.add_items([user("b")])
    (late,) = sent
    await replace(*late)
    assert texts(await session.get_items()) == ["b"]


@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_late_repetition_of_a_replacement_brings_nothing_back(store: SessionStore, removal: str) -> None:
    await store.append(KEY, batch("a", "b"))
    summary = batch("summary")
    assert await store.replace_tail(KEY, ["a", "b"], summary)
    await REMOVALS[removal](store)
    assert await store.replace_tail(KEY, ["a", "b"], summary)
    assert await agrees(store) == []


async def test_a_replacement_that_was_refused_may_be_sent_again(store: SessionStore) -> None:
    await store.append(KEY, batch("a"))
    summary = batch("summary")
    assert not await store.replace_tail(KEY, ["b"], summary)
    assert not await store.replace_tail(KEY, ["b"], summary)
    assert await agrees(store) == ["a"]
    await store.append(KEY, batch("b"))
    assert await store.replace_tail(KEY, ["b"], summary)
    assert await agrees(store) == ["a", "summary"]
    unknown = SessionRef("ada", "unknown")
    assert not await store.replace_tail(unknown, ["b"], summary)
    assert await store.find_session(unknown) is None


async def test_a_replacement_sent_many_times_at_once_is_done_once(store: SessionStore) -> None:
    await store.append(KEY, batch(*["x"] * 20))
    shorter = batch("y")
    outcomes = await asyncio.gather(*(store.replace_tail(KEY, ["x"], shorter) for _ in range(12)))
    assert all(outcomes)
    assert await agrees(store) == ["x"] * 19 + ["y"]


async def test_a_replacement_of_everything_beside_appends_loses_and_mixes_nothing(store: SessionStore) -> None:
    """Every outcome is one that some order of the calls would have had, on a session that begins with them."""
    for _ in range(25):
        await store.delete_session(KEY)
        new, other = batch("new 1", "new 2"), batch("a", "b")
        await asyncio.gather(store.append(KEY, other), store.replace_tail(KEY, None, new))
        assert await agrees(store) in (["new 1", "new 2"], ["new 1", "new 2", "a", "b"])
