"""What every store promises to every session. Knows no backend: the `store` fixture brings it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from agents import RunContextWrapper, SessionSettings
from agents.items import TResponseInputItem
from agents.memory import Session

from my_agent.sessions import InvalidSessionId, ItemTooLarge, SessionRef, SessionStore, WrongOwner
from my_agent.sessions.records import Batch, Content, Row
from proof.support.helpers import answer, anything, text, texts, user

KEY = SessionRef("", "s")


def batch(*contents: str, title: str | None = None) -> Batch:
    return Batch.of([Row(content) for content in contents], title)


# ── Reading and writing ─────────────────────────────────────────────────────


async def test_items_come_back_in_order(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("one"), answer("two")])
    await session.add_items([user("three")])
    assert texts(await session.get_items()) == ["one", "two", "three"]


async def test_an_unknown_session_is_empty(store: SessionStore) -> None:
    session = store.session("nobody")
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.clear_session()
    assert (await store.list_sessions()).sessions == []


async def test_no_items_are_no_write(store: SessionStore) -> None:
    await store.session("s").add_items([])
    assert await store.find_session(KEY) is None


async def test_a_batch_without_rows_begins_a_session(store: SessionStore) -> None:
    await store.append(KEY, batch(title="Nothing yet"))
    begun = await known(store, KEY)
    assert (begun.title, begun.item_count) == ("Nothing yet", 0)
    assert await store.tail(KEY, None) == []
    await store.append(KEY, batch("x"))
    assert await store.tail(KEY, None) == ["x"]


async def test_it_is_a_session_of_the_sdk(store: SessionStore) -> None:
    assert isinstance(store.session("s"), Session)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 5), (0, 0), (-1, 0), (-(2**40), 0), (1, 1), (3, 3), (5, 5), (6, 5), (2**31 - 1, 5), (2**70, 5)],
)
async def test_a_limit_is_exact(store: SessionStore, limit: int | None, expected: int) -> None:
    session = store.session("s")
    await session.add_items([user(str(n)) for n in range(5)])
    assert texts(await session.get_items(limit)) == [str(n) for n in range(5 - expected, 5)]


@pytest.mark.parametrize("default", [SessionSettings(limit=2), {"limit": 2}])
async def test_session_settings_give_the_default_limit(
    store: SessionStore, default: SessionSettings | dict[str, Any]
) -> None:
    session = store.session("s", session_settings=default)
    await session.add_items([user(str(n)) for n in range(5)])
    assert texts(await session.get_items()) == ["3", "4"]
    assert len(await session.get_items(4)) == 4
    assert await session.get_items(0) == []


async def test_a_batch_of_thousands_is_one_batch(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user(str(n)) for n in range(10_000)])
    assert texts(await session.get_items()) == [str(n) for n in range(10_000)]


# ── Fidelity ────────────────────────────────────────────────────────────────

DIFFICULT = [
    anything(role="user", content="NUL \0 inside"),
    anything(role="user", content="half a pair \ud83d and \udc00"),
    anything(role="user", content="whole pair 😀, é, e\u0301, 中文, \u202eright to left"),
    anything(role="user", content="{}[]'\"\\$1 ; DROP TABLE agent_sessions; -- \x1b[31m\r\n\t"),
    anything(z=1, a=2, m={"z": 1, "a": 2}),
    anything(number=-0.0, big=2**70, exponent=1e16, tiny=5e-324, precise=0.1, whole=1.0, negative=-(2**63)),
    anything(infinite=float("inf"), huge=1e308, none=None, yes=True, no=False),
    anything(empty={}, nothing=[], blank="", nested=[[[{"a": [None]}]]]),
    anything(),
]


@pytest.mark.parametrize("item", DIFFICULT, ids=lambda item: ascii(item)[:40])
async def test_an_item_comes_back_exactly(store: SessionStore, item: TResponseInputItem) -> None:
    session = store.session("s")
    await session.add_items([item])
    (read,) = await session.get_items()
    # repr tells 1 from 1.0, 0.0 from -0.0, and one order of keys from another; == does not.
    assert repr(read) == repr(item)
    assert repr(await session.pop_item()) == repr(item)


async def test_nan_stays_nan(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([anything(value=float("nan"))])
    assert repr(await session.get_items()) == "[{'value': nan}]"


async def test_a_large_item_comes_back_exactly(store: SessionStore) -> None:
    session = store.session("s")
    image = anything(
        role="user", content=[{"type": "input_image", "image_url": "data:image/png;base64," + "A" * 6_000_000}]
    )
    await session.add_items([image])
    assert await session.get_items() == [image]


async def test_an_item_that_is_too_large_is_refused_with_its_batch(store: SessionStore) -> None:
    session = store.session("s")
    with pytest.raises(ItemTooLarge, match=r"Item 2 of 2 .* SESSION_MAX_ITEM_BYTES"):
        await session.add_items([user("small"), user("é" * 10_000_000)])
    assert await session.get_items() == []


async def test_what_json_cannot_hold_is_refused_with_its_batch(store: SessionStore) -> None:
    session = store.session("s")
    with pytest.raises(TypeError):
        await session.add_items([user("fine"), anything(value=object())])
    assert await session.get_items() == []


async def test_rows_are_kept_to_the_byte(store: SessionStore) -> None:
    strange = ['{"a" :  1}', "not json", "", " ", '{"a":"\\u0000"}', "x" * 100_000]
    await store.append(KEY, batch(*strange))
    assert await store.tail(KEY, None) == strange


# ── Names ───────────────────────────────────────────────────────────────────

NAMES = [
    "a",
    "A",
    "á",
    "a\u0301",
    " a",
    "a ",
    "a:b",
    "a/b",
    "{a}",
    "%",
    "*",
    "'",
    '"',
    "\\",
    "\n",
    "😀",
    "\u202e",
    "a" * 1000,
]


async def test_different_names_never_meet(store: SessionStore) -> None:
    keys = [(user_id, session_id) for user_id in ["", *NAMES] for session_id in NAMES]
    for key in keys:
        await store.append(SessionRef(*key), batch(json.dumps(key)))
    for key in keys:
        assert await store.tail(SessionRef(*key), None) == [json.dumps(key)]


@pytest.mark.parametrize(
    "name", ["", "a\0b", "\ud83d", "x" * 1001, "é" * 501, "x" * 2**20], ids=lambda name: ascii(name)[:12]
)
async def test_a_name_that_cannot_be_stored_is_refused(store: SessionStore, name: str) -> None:
    with pytest.raises(InvalidSessionId):
        store.session(name)


@pytest.mark.parametrize("name", [7, UUID(int=7)])
async def test_an_id_may_be_a_number_or_a_uuid(store: SessionStore, name: int | UUID) -> None:
    session = store.session(name, user_id=name)
    assert session.ref == SessionRef(str(name), str(name))
    await session.add_items([user("Hi")], wrapper=RunContextWrapper({"user_id": name}))
    assert texts(await store.session(str(name), user_id=str(name)).get_items()) == ["Hi"]


@pytest.mark.parametrize("name", [None, 7.0, True, b"7"])
async def test_an_id_of_another_type_is_refused(store: SessionStore, name: object) -> None:
    with pytest.raises(InvalidSessionId, match="must be a str, an int or a UUID, not"):
        store.session(cast(str, name))


# ── Batches ─────────────────────────────────────────────────────────────────


async def test_batch_ids_are_unique_and_grow() -> None:
    ids = [Batch.of([]).id for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert {(new.version, new.variant) for new in ids} == {(7, "specified in RFC 4122")}
    assert [new.int >> 80 for new in ids] == sorted(new.int >> 80 for new in ids)


async def test_a_batch_sent_twice_is_stored_once(store: SessionStore) -> None:
    sent = batch("a", "b")
    await store.append(KEY, sent)
    await store.append(KEY, batch("c"))
    await store.append(KEY, sent)
    assert await store.tail(KEY, None) == ["a", "b", "c"]
    assert (await known(store, KEY)).item_count == 3


async def test_a_batch_sent_twice_at_once_is_stored_once(store: SessionStore) -> None:
    sent = batch("a", "b")
    await asyncio.gather(*(store.append(KEY, sent) for _ in range(12)))
    assert await store.tail(KEY, None) == ["a", "b"]


async def test_a_late_repeat_does_not_bring_back_what_was_removed(store: SessionStore) -> None:
    popped, cleared = batch("a"), batch("b", "c")
    await store.append(KEY, popped)
    assert await store.pop(KEY) == "a"
    await store.append(KEY, cleared)
    await store.clear(KEY)
    await store.append(KEY, popped)
    await store.append(KEY, cleared)
    assert await store.tail(KEY, None) == []
    assert (await known(store, KEY)).item_count == 0


async def test_writers_never_interleave_and_readers_see_only_growth(store: SessionStore) -> None:
    writers = 16
    reads: list[list[str]] = []

    async def write(writer: int) -> None:
        for number in range(10):
            await store.append(KEY, batch(*(f"{writer}.{number}.{part}" for part in range(5))))

    async def read(writing: asyncio.Future[Any]) -> None:
        while not writing.done():
            reads.append(await store.tail(KEY, None))

    writing = asyncio.gather(*map(write, range(writers)))
    await asyncio.gather(writing, read(writing), read(writing))

    rows = await store.tail(KEY, None)
    assert len(rows) == writers * 10 * 5
    for start in range(0, len(rows), 5):
        name = rows[start].rsplit(".", 1)[0]
        assert rows[start : start + 5] == [f"{name}.{part}" for part in range(5)]
    assert len(reads) > 2
    for seen in reads:
        assert seen == rows[: len(seen)]


# ── Pop, clear ──────────────────────────────────────────────────────────────


async def test_pop_takes_the_newest(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("one"), user("two")])
    assert text(await session.pop_item()) == "two"
    await session.add_items([user("three")])
    assert texts(await session.get_items()) == ["one", "three"]
    assert (await known(store, KEY)).item_count == 2


async def test_each_item_is_popped_once_and_none_is_missed(store: SessionStore) -> None:
    await store.append(KEY, batch(*map(str, range(160))))

    async def pop_ten() -> list[str | None]:
        return [await store.pop(KEY) for _ in range(10)]

    popped = [row for rows in await asyncio.gather(*(pop_ten() for _ in range(16))) for row in rows]
    assert sorted(popped, key=lambda row: int(row or -1)) == [str(n) for n in range(160)]
    assert await store.pop(KEY) is None


async def test_clear_leaves_title_and_metadata(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("Hello there")])
    await store.update_session(KEY, metadata={"pinned": True})
    await session.clear_session()
    assert await session.get_items() == []
    left = await known(store, KEY)
    assert (left.title, left.item_count, left.metadata) == ("Hello there", 0, {"pinned": True})
    await session.add_items([user("again")])
    assert texts(await session.get_items()) == ["again"]


# ── Unreadable rows ─────────────────────────────────────────────────────────

Damage = Callable[[int, str], Awaitable[None]]


async def test_an_unreadable_row_is_skipped_and_does_not_count(
    store: SessionStore, damage_row: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    session = store.session("s")
    await session.add_items([user(str(n)) for n in range(8)])
    await damage_row(1, "secret{")
    await damage_row(3, "[1]")
    with caplog.at_level(logging.WARNING):
        assert texts(await session.get_items(4)) == ["2", "3", "4", "6"]
    assert texts(await session.get_items()) == ["0", "1", "2", "3", "4", "6"]
    assert "number 1, 3 from the newest" in caplog.text
    assert "secret" not in caplog.text


async def test_pop_takes_the_newest_readable_item_and_leaves_unreadable_rows(
    store: SessionStore, damage_row: Damage
) -> None:
    session = store.session("s")
    await session.add_items([user(str(n)) for n in range(20)])
    for age in range(1, 12):
        await damage_row(age, f"unreadable {age}")
    assert text(await session.pop_item()) == "8"
    assert (await store.tail(KEY, 12))[1:] == [f"unreadable {age}" for age in range(11, 0, -1)]
    assert texts(await session.get_items()) == [str(n) for n in range(8)]


async def test_pop_of_nothing_readable_is_none(store: SessionStore) -> None:
    await store.append(KEY, batch("unreadable"))
    assert await store.session("s").pop_item() is None
    assert await store.tail(KEY, None) == ["unreadable"]


# ── Replacing the end ───────────────────────────────────────────────────────


async def test_the_tail_is_replaced_if_nobody_wrote(store: SessionStore) -> None:
    await store.append(KEY, batch("a", "b", "c"))
    assert await store.replace_tail(KEY, ["b", "c"], batch("x"))
    assert await store.tail(KEY, None) == ["a", "x"]
    assert not await store.replace_tail(KEY, ["b", "c"], batch("y"))
    assert not await store.replace_tail(KEY, ["?", "a", "x"], batch("y"))
    assert not await store.replace_tail(KEY, ["a"], batch("y"))
    assert await store.tail(KEY, None) == ["a", "x"]
    assert (await known(store, KEY)).item_count == 2


async def test_everything_is_replaced_at_once(store: SessionStore) -> None:
    await store.append(KEY, batch("a", "b"))
    replacement = batch("x", "y")
    assert await store.replace_tail(KEY, None, replacement)
    assert await store.replace_tail(KEY, None, replacement), "a repeated call is the same call"
    assert await store.tail(KEY, None) == ["x", "y"]


async def test_of_many_replacements_of_one_tail_one_wins(store: SessionStore) -> None:
    await store.append(KEY, batch("a", "b"))
    won = await asyncio.gather(*(store.replace_tail(KEY, ["b"], batch(f"x{n}")) for n in range(12)))
    assert sorted(won) == [False] * 11 + [True]
    assert len(await store.tail(KEY, None)) == 2


# ── Owners ──────────────────────────────────────────────────────────────────


async def test_two_users_have_a_session_of_the_same_name(store: SessionStore) -> None:
    ada, bob = store.session("s", user_id="ada"), store.session("s", user_id="bob")
    await ada.add_items([user("of ada")])
    assert await bob.get_items() == []
    assert await bob.pop_item() is None
    await bob.clear_session()
    await store.delete_user("bob")
    assert texts(await ada.get_items()) == ["of ada"]


@pytest.mark.parametrize("context", [SimpleNamespace(user_id="bob"), {"user_id": "bob"}, {"user_id": ""}])
async def test_a_run_of_another_user_is_refused(store: SessionStore, context: object) -> None:
    session = store.session("s", user_id="ada")
    await session.add_items([user("of ada")])
    wrapper = RunContextWrapper(context)
    for use in (
        session.get_items(wrapper=wrapper),
        session.add_items([user("of bob")], wrapper=wrapper),
        session.pop_item(wrapper=wrapper),
        session.clear_session(wrapper=wrapper),
    ):
        with pytest.raises(WrongOwner):
            await use
    assert texts(await session.get_items()) == ["of ada"]


@pytest.mark.parametrize("context", [None, object(), {}, {"user_id": None}, SimpleNamespace(user_id="ada")])
async def test_a_run_without_owner_or_of_the_owner_is_served(store: SessionStore, context: object) -> None:
    session = store.session("s", user_id="ada")
    await session.add_items([user("of ada")], wrapper=RunContextWrapper(context))
    assert len(await session.get_items(wrapper=RunContextWrapper(context))) == 1


# ── Sessions ────────────────────────────────────────────────────────────────


async def known(store: SessionStore, ref: SessionRef) -> Any:
    found = await store.find_session(ref)
    assert found is not None
    return found


async def test_a_session_is_described(store: SessionStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    session = store.session("s", user_id="ada")
    await session.add_items([answer("Hello!"), user("  What\n is  up? \0 " + "x" * 100)])
    await session.add_items([user("later")])
    described = await known(store, session.ref)
    assert (described.user_id, described.session_id, described.item_count) == ("ada", "s", 3)
    assert described.title.startswith("What is up? \ufffd xxx")
    assert len(described.title) == 80
    assert described.metadata == {}
    assert before < described.created_at <= described.updated_at < before + timedelta(seconds=65)


async def test_title_and_metadata_are_set(store: SessionStore) -> None:
    await store.session("s").add_items([user("Hi")])
    assert await store.update_session(KEY, title="Greeting")
    assert await store.update_session(KEY, metadata={"tags": ["a", "é"], "n": 1})
    described = await known(store, KEY)
    assert (described.title, described.metadata) == ("Greeting", {"tags": ["a", "é"], "n": 1})
    assert not await store.update_session(SessionRef("", "unknown"), title="x")


async def test_sessions_are_listed_newest_first_page_by_page(store: SessionStore) -> None:
    for number in range(25):
        await store.append(SessionRef("ada", f"s{number}"), batch("x"))
        await store.append(SessionRef("bob", f"t{number}"), batch("x"))
    await store.append(SessionRef("ada", "s3"), batch("y"))

    names, cursor = [], None
    while True:
        page = await store.list_sessions("ada", limit=10, cursor=cursor)
        assert len(page.sessions) <= 10
        names += [info.session_id for info in page.sessions]
        if (cursor := page.next_cursor) is None:
            break
    assert names == ["s3"] + [f"s{n}" for n in range(24, -1, -1) if n != 3]
    assert len((await store.list_sessions(None, limit=500)).sessions) == 50


async def test_listing_goes_on_where_it_was_while_sessions_are_written(store: SessionStore) -> None:
    for number in range(10):
        await store.append(SessionRef("", f"s{number}"), batch("x"))
    first = await store.list_sessions(limit=4)
    await store.append(SessionRef("", "new"), batch("x"))
    second = await store.list_sessions(limit=20, cursor=first.next_cursor)
    listed = [info.session_id for info in (*first.sessions, *second.sessions)]
    assert listed == [f"s{n}" for n in range(9, -1, -1)]


@pytest.mark.parametrize("cursor", ["?", "e30=", "é", "W10="])
async def test_a_wrong_cursor_is_refused(store: SessionStore, cursor: str) -> None:
    with pytest.raises(ValueError, match="Invalid cursor"):
        await store.list_sessions(cursor=cursor)


async def test_a_deleted_session_is_gone(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("Hi")])
    assert await store.delete_session(KEY)
    assert not await store.delete_session(KEY)
    assert await session.get_items() == []
    assert await store.find_session(KEY) is None


async def test_a_deleted_user_is_gone(store: SessionStore) -> None:
    for name in ("a", "b", "c"):
        await store.session(name, user_id="ada").add_items([user("Hi")])
    await store.session("a", user_id="bob").add_items([user("Hi")])
    assert await store.delete_user("ada") == 3
    assert await store.delete_user("ada") == 0
    assert [info.user_id for info in (await store.list_sessions()).sessions] == ["bob"]
    assert await store.session("a", user_id="ada").get_items() == []


async def test_old_sessions_are_pruned_in_batches_and_live_ones_stay(store: SessionStore) -> None:
    for number in range(7):
        await store.append(SessionRef("", f"old{number}"), batch("x"))
    await store.append(KEY, batch("x"))
    await asyncio.sleep(0.01)
    older_than = datetime.now(UTC)
    await asyncio.sleep(0.01)
    await store.append(KEY, batch("y"))
    assert [await store.prune(older_than, limit=3) for _ in range(4)] == [3, 3, 1, 0]
    assert [info.session_id for info in (await store.list_sessions()).sessions] == ["s"]
    assert await store.tail(KEY, None) == ["x", "y"]


# ── Writing anew what is there ──────────────────────────────────────────────


async def test_what_is_stored_is_rewritten_in_its_place(store: SessionStore) -> None:
    sent = batch("a", "b", "c", title="old")
    await store.append(KEY, sent)
    await store.append(SessionRef("", "newer"), batch("a"))
    await store.update_session(KEY, metadata={"n": [1, 0.5, None]})
    before = await known(store, KEY)
    old, new = Content("old", {"n": [1, 0.5, None]}, ["b", "c"], 1), Content("new", {"m": "é"}, ["B", ""], 1)
    assert await store.rewrite(KEY, old, new)
    after = await known(store, KEY)
    assert (after.title, after.metadata, await store.tail(KEY, None)) == ("new", {"m": "é"}, ["a", "B", ""])
    assert (after.item_count, after.created_at, after.updated_at) == (3, before.created_at, before.updated_at)
    assert [info.session_id for info in (await store.list_sessions()).sessions] == ["newer", "s"]
    await store.append(KEY, sent)
    assert not await store.rewrite(KEY, old, new)
    assert await store.tail(KEY, None) == ["a", "B", ""]


@pytest.mark.parametrize(
    "before",
    [
        Content("t", {"m": 1}, ["a", "c"]),
        Content("t", {"m": 1}, ["a", "b"], 1),
        Content("t", {"m": 1}, ["b", "c", "d"], 1),
        Content("t", {"m": 1}, ["a"], 3),
        Content("t", {"m": 2}, ["a"]),
        Content("t", {}, ["a"]),
        Content("T", {"m": 1}, ["a"]),
        Content(None, {"m": 1}, ["a"]),
    ],
)
async def test_nothing_is_rewritten_if_anything_is_not_as_expected(store: SessionStore, before: Content) -> None:
    await store.append(KEY, batch("a", "b", "c", title="t"))
    await store.update_session(KEY, metadata={"m": 1})
    stood = await known(store, KEY)
    assert not await store.rewrite(KEY, before, Content("x", {"x": 1}, ["x"] * len(before.rows), before.first))
    assert not await store.rewrite(SessionRef("", "unknown"), Content(None, {}), Content(None, {}))
    assert await store.tail(KEY, None) == ["a", "b", "c"]
    assert await known(store, KEY) == stood


async def test_a_session_is_rewritten_while_rows_are_appended(store: SessionStore) -> None:
    await store.append(KEY, batch(*(f"old {number}" for number in range(3000))))

    async def write() -> None:
        for number in range(20):
            await store.append(KEY, batch(f"later {number}"))

    async def rewrite() -> None:
        for first in range(0, 3000, 500):
            numbers = range(first, first + 500)
            before = Content(None, {}, [f"old {number}" for number in numbers], first)
            assert await store.rewrite(KEY, before, before._replace(rows=[f"new {number}" for number in numbers]))

    await asyncio.gather(write(), rewrite())
    rows = [f"new {number}" for number in range(3000)] + [f"later {number}" for number in range(20)]
    assert await store.tail(KEY, None) == rows


# ── The canary ──────────────────────────────────────────────────────────────


async def test_a_canary_is_kept_replaced_and_removed(store: SessionStore) -> None:
    kept = await store.canary()
    if kept is not None:  # the store's own
        assert await store.canary(kept, None) is None
    assert await store.canary(None, "first") == "first"
    assert await store.canary(None, "second") == "first"
    assert await store.canary("second", "third") == "first"
    assert await store.canary("second", None) == "first"
    assert await store.canary() == "first"
    assert await store.canary("first", "second") == "second"
    assert await store.canary("second", None) is None
    assert await store.canary("second", "third") is None


async def test_of_many_canaries_one_is_kept(store: SessionStore) -> None:
    if (kept := await store.canary()) is not None:
        await store.canary(kept, None)
    seen = await asyncio.gather(*(store.canary(None, str(number)) for number in range(20)))
    assert len(set(seen)) == 1
    changed = await asyncio.gather(*(store.canary(seen[0], f"new {number}") for number in range(20)))
    assert len(set(changed)) == 1


# ── Connections and cancellation ────────────────────────────────────────────

Kill = Callable[[], Awaitable[int]]


async def test_a_killed_connection_loses_nothing(store: SessionStore, kill_connections: Kill) -> None:
    session = store.session("s")
    await session.add_items([user("before")])
    assert await kill_connections() >= 1
    await session.add_items([user("after")])
    assert await kill_connections() >= 1
    assert texts(await session.get_items()) == ["before", "after"]
    assert await kill_connections() >= 1
    await session.clear_session()
    assert await session.get_items() == []


async def test_connections_killed_all_the_time_lose_and_double_nothing(
    store: SessionStore, kill_connections: Kill
) -> None:
    session = store.session("s")

    async def write(writer: int) -> None:
        for number in range(20):
            await session.add_items([user(f"{writer}.{number}.{part}") for part in range(3)])

    async def kill(writing: asyncio.Future[Any]) -> None:
        while not writing.done():
            await kill_connections()

    writing = asyncio.gather(*map(write, range(4)))
    await asyncio.gather(writing, kill(writing))
    stored = texts(await session.get_items())
    assert sorted(stored) == sorted(f"{w}.{n}.{p}" for w in range(4) for n in range(20) for p in range(3))


async def test_a_cancelled_write_is_settled_before_the_cancellation_goes_on(store: SessionStore) -> None:
    session = store.session("s")
    for number in range(20):
        task = asyncio.create_task(session.add_items([user(f"{number}.a"), user(f"{number}.b")]))
        await asyncio.sleep(0 if number < 10 else 0.0002 * number)
        stopped = task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(outcome, asyncio.CancelledError) == stopped
        # Had the call begun, all of it is stored by now.
        assert texts(await session.get_items(2)) == [f"{number}.a", f"{number}.b"]
    assert len(await session.get_items()) == 40


async def test_a_store_closes_and_opens_again(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("Hi")])
    await store.close()
    await store.close()
    assert texts(await session.get_items()) == ["Hi"]


async def test_five_hundred_sessions_share_few_connections(store: SessionStore) -> None:
    sessions = [store.session(f"s{n}") for n in range(500)]
    await asyncio.gather(*(session.add_items([user(session.session_id)]) for session in sessions))
    histories = await asyncio.gather(*(session.get_items() for session in sessions))
    assert [texts(history) for history in histories] == [[session.session_id] for session in sessions]
