"""What nobody should send, and somebody will: odd JSON, odd names, items of the largest size, rows of a stranger."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from unicodedata import category
from uuid import UUID

import pytest
from agents.items import TResponseInputItem
from agents.run_internal.items import fingerprint_input_item
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from my_agent.sessions import (
    BackendSettings,
    ItemTooLarge,
    SessionPage,
    SessionRef,
    SessionStore,
    SessionStoreError,
    open_store,
)
from my_agent.sessions.codec import encode_item
from my_agent.sessions.records import MAX_ID_BYTES, Batch, Row
from proof.contract.test_properties import FEW, Driver, as_json_tells_it, driver
from proof.support.command import invoke
from proof.support.helpers import anything, text, texts, user

Damage = Callable[[int, str], Awaitable[None]]

# ── Items ───────────────────────────────────────────────────────────────────

NUMBERS = [0, -1, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 2**70, 10**400, 0.1, -0.0, 1e16, 1e22, 5e-324, 1e308]
NUMBERS += [float("inf"), float("-inf"), float("nan"), True, False]
TEXTS = ["", " ", "\0", "\\u0000", "\x7f\x80\x9f", "\r\n", "\u2028", "\ufeff", "\ud83d", "\ude00\ud83d", "\uffff", "é"]
TEXTS += ["e\u0301", "null", "NaN", "1", "\uff11", '"', "\\", "__proto__", "sealed:", "plain:", "😀" * 9999]
VALUES: st.SearchStrategy[Any] = st.sampled_from([None, *NUMBERS, *TEXTS]) | st.builds(list) | st.builds(dict)
FIELDS = st.dictionaries(st.sampled_from([*TEXTS, "role", "type", "id", "content", "k" * 5000]), VALUES, max_size=9)


def nested(value: object, depth: int) -> object:
    for level in range(depth):
        value = {"in": value} if level % 2 else [value]
    return value


def test_the_sdk_finds_the_very_item_that_it_stored(settings: BackendSettings) -> None:
    with driver(settings) as it:

        @FEW
        @given(st.lists(FIELDS, min_size=1, max_size=3), st.integers(0, 150))
        def finds_it(items: list[dict[str, Any]], depth: int) -> None:
            items[0]["nested"] = nested(dict(items[-1]), depth)
            session = it.store.session("s")
            it.do(session.clear_session())
            it.do(session.add_items(cast(Any, items)))
            read = it.do(session.get_items())
            assert [repr(item) for item in read] == [as_json_tells_it(item) for item in items]
            # So it tells after a crash whether a batch had been stored.
            assert [fingerprint_input_item(item) for item in read] == [fingerprint_input_item(item) for item in items]

        finds_it()


NO_JSON: list[object] = [b"x", {"x"}, Decimal("1.10"), UUID(int=0), datetime.now(UTC), timedelta(1), 10**5000]


@pytest.mark.parametrize("value", NO_JSON, ids=lambda value: type(value).__name__)
async def test_what_would_come_back_as_something_else_is_refused(store: SessionStore, value: object) -> None:
    session = store.session("s")
    await session.add_items([user("before")])
    with pytest.raises((TypeError, ValueError)):
        await session.add_items([user("fine"), anything(value=value)])
    assert texts(await session.get_items()) == ["before"]


DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
LONG = '{"a":1' + "0" * 5000 + "}"


ROWS = [DEEP, LONG, DEEP[:-1], '{"a":"\ue000', "\u2028", "[" * 100_000]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row)[:7])
async def test_a_row_that_cannot_be_read_hides_no_other_and_is_kept(
    store: SessionStore, damage_row: Damage, row: str
) -> None:
    session = store.session("s")
    await session.add_items([user("one"), user("two"), user("three")])
    await damage_row(2, row)
    assert texts(await session.get_items()) == ["one", "three"]
    assert texts(await session.get_items(2)) == ["one", "three"]
    assert [text(await session.pop_item()) for _ in range(2)] == ["three", "one"]
    assert await session.pop_item() is None
    assert len(await store.tail(session.ref, None)) == 1


async def test_metadata_nested_deep_are_refused_or_break_no_listing(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("Hi")])

    async def called(calls: int) -> SessionPage:
        """The listing as an application asks for it, whose own calls are many."""
        return await (called(calls - 1) if calls else store.list_sessions())

    for depth in (100, *range(700, 1000, 10), 3000, 9000, 100_000):
        with suppress(ValueError, RecursionError, SessionStoreError):
            await store.update_session(session.ref, metadata={"a": nested(0, depth)})
        assert len((await called(50)).sessions) == 1, depth


@pytest.mark.parametrize("char", ["a", "é", "中", "😀", '"', "\x01"])
async def test_the_limit_is_counted_in_bytes_to_the_last(settings: BackendSettings, char: str) -> None:
    largest = 1000
    async with open_store(settings.model_copy(update={"session_max_item_bytes": largest})) as store:
        session = store.session("s")
        await session.add_items([user("before")])

        def item(size: int) -> Any:
            room = size - len(encode_item(user("")))
            width = len(encode_item(user(char)).encode()) - len(encode_item(user("")))
            return user(char * (room // width) + "a" * (room % width))

        await session.add_items([user("first"), item(largest)])
        with pytest.raises(ItemTooLarge, match=r"Item 2 of 3 has 1,001 bytes, more than 1,000; nothing was stored"):
            await session.add_items([user("not this"), item(largest + 1), user("nor this")])
        assert await session.get_items() == [user("before"), user("first"), item(largest)]


async def test_an_item_of_the_largest_size_is_kept(store: SessionStore) -> None:
    session = store.session("s")

    def sized(more: int) -> TResponseInputItem:  # in two parts: one alone would be longer than models take
        return anything(role="user", content=[{"type": "input_text", "text": "x" * size} for size in (2**23, more)])

    room = store.settings.session_max_item_bytes - len(encode_item(sized(0)))
    await session.add_items([sized(room)])
    assert await session.get_items() == [sized(room)]
    with pytest.raises(ItemTooLarge):
        await session.add_items([sized(room + 1)])


# ── Names ───────────────────────────────────────────────────────────────────

WORDS = r"""
    a A % _ a% a_ * ? [a] [^b] { } {a} / a/b a%2Fb %2F \ \n : a:b :items }:items ' '' ';-- " $1 $$ (a,b)
    &user_id=eq. eq.a .. . ../a é ß ss İ 😀 null None 0 %s{0}
"""
NAMES = [*WORDS.split(), " ", "a ", "' OR '' = '", "\n", "\n2026 CRITICAL: forged", "\r\n", "\t", "\x1b[31m", "\x7f"]
NAMES += ["\u202e", "\u2028", "\ufeff", "\u200d", "e\u0301", "\u212b", "\u00c5", "\U0010ffff", "\ue000", "\ufffd"]
NAMES += ["😀" * (MAX_ID_BYTES // 4), "x" * MAX_ID_BYTES]
ALIKE = [("a", "b/c"), ("a/b", "c"), ("a:b", "c"), ("a", "b:c"), ("a}:{b", "c"), ("a%7D", "b"), ("a}", "b")]


async def test_a_user_sees_and_loses_just_their_own_sessions(store: SessionStore) -> None:
    owned = {name: {name, NAMES[number - 1], NAMES[number - 2]} for number, name in enumerate(NAMES)}
    owned[""] = set(NAMES)
    for user_id, session_id in ALIKE:
        owned.setdefault(user_id, set()).add(session_id)
    keys = {SessionRef(user_id, session_id) for user_id, ids in owned.items() for session_id in ids}
    for key in keys:
        await store.append(key, Batch.of([Row(json.dumps(key))]))

    for key in keys:
        assert await store.tail(key, None) == [json.dumps(key)]
    for user_id, ids in owned.items():
        page = await store.list_sessions(user_id, limit=500)
        assert {(info.user_id, info.session_id) for info in page.sessions} == {(user_id, name) for name in ids}
        assert len(page.sessions) == len(ids)
        assert await store.delete_user(user_id) == len(ids)
        keys -= {SessionRef(user_id, name) for name in ids}
        left = [key async for key in everyone(store)]
        assert len(left) == len(keys)
        assert set(left) == keys


async def test_pages_go_on_after_any_name(store: SessionStore) -> None:
    for name in NAMES:
        await store.append(SessionRef(name, name), Batch.of([Row("1")]))
    assert [key.session_id async for key in everyone(store, 1)] == NAMES[::-1]


async def everyone(store: SessionStore, limit: int = 100) -> AsyncIterator[SessionRef]:
    """All sessions, page by page."""
    cursor = None
    while True:
        page = await store.list_sessions(limit=limit, cursor=cursor)
        for info in page.sessions:
            yield SessionRef(info.user_id, info.session_id)
        if (cursor := page.next_cursor) is None:
            return


ODD = [name for name in NAMES if not name.isprintable() or "%" in name]


@pytest.mark.parametrize("name", ODD, ids=lambda name: ascii(name)[1:20])
async def test_a_name_forges_no_log_line(
    store: SessionStore, damage_row: Damage, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    session = store.session(name, user_id=name)
    await session.add_items([user("Hi")])
    await damage_row(1, "unreadable")
    with caplog.at_level(logging.DEBUG, "my_agent"):
        assert await session.get_items() == []
        assert await session.pop_item() is None
    lines = [logging.Formatter("%(levelname)s:%(name)s:%(message)s").format(record) for record in caplog.records]
    assert [line for line in lines if "unreadable row" in line]
    assert [line for line in lines if not line.isprintable()] == []


async def test_a_name_forges_no_line_of_a_command(
    server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in server_environment.items():
        monkeypatch.setenv(variable, value)
    for name in ODD:
        for command in (["show"], ["delete", "--yes"], ["export", "--session"]):
            done = await invoke("sessions", *command, name, "--user", name)
            assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
            assert done.err.startswith("Error: There is no session ")
            # Only joiners: some scripts are spelt with them.
            acting = {char for char in done.err if category(char) in ("Cc", "Cf", "Zl", "Zp")}
            assert acting <= {"\n", "\u200d"}


# ── A store is a dict of lists ──────────────────────────────────────────────

KEYS = st.sampled_from([SessionRef(user_id, name) for user_id in ("", "ada", "ada ") for name in ("s", "S")])
TITLES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
METADATA = st.dictionaries(TITLES, TITLES | st.integers() | st.booleans() | st.none(), max_size=3)


class Model(NamedTuple):
    """All that is to be known of a session."""

    title: str | None
    metadata: dict[str, Any]
    items: list[str]


def test_a_store_is_a_dict_of_lists(settings: BackendSettings) -> None:
    with driver(settings) as driven:

        class OnThisStore(DictOfLists):
            it = driven

        run_state_machine_as_test(OnThisStore, settings=FEW)


class DictOfLists(RuleBasedStateMachine):
    """Six sessions beside a dict: at the end both hold the same."""

    it: Driver

    def __init__(self) -> None:
        super().__init__()
        self.store = self.it.store
        for user_id in ("", "ada", "ada "):
            self.it.do(self.store.delete_user(user_id))
        self.model: dict[SessionRef, Model] = {}

    @rule(ref=KEYS, said=st.lists(TITLES, min_size=1, max_size=3))
    def append(self, ref: SessionRef, said: list[str]) -> None:
        self.it.do(self.store.append(ref, Batch.of([Row(text) for text in said], said[0])))
        old = self.model.get(ref, Model(None, {}, []))
        self.model[ref] = Model(said[0] if old.title is None else old.title, old.metadata, old.items + said)

    @rule(ref=KEYS)
    def pop(self, ref: SessionRef) -> None:
        items = self.model[ref].items if ref in self.model else []
        assert self.it.do(self.store.pop(ref)) == (items.pop() if items else None)

    @rule(ref=KEYS)
    def clear(self, ref: SessionRef) -> None:
        self.it.do(self.store.clear(ref))
        if ref in self.model:
            self.model[ref].items.clear()

    @rule(ref=KEYS, title=TITLES)
    def rename(self, ref: SessionRef, title: str) -> None:
        assert self.it.do(self.store.update_session(ref, title=title)) == (ref in self.model)
        if ref in self.model:
            self.model[ref] = self.model[ref]._replace(title=title)

    @rule(ref=KEYS, metadata=METADATA)
    def describe(self, ref: SessionRef, metadata: dict[str, Any]) -> None:
        assert self.it.do(self.store.update_session(ref, metadata=metadata)) == (ref in self.model)
        if ref in self.model:
            self.model[ref] = self.model[ref]._replace(metadata=metadata)

    @rule(ref=KEYS, data=st.data(), new=st.lists(TITLES, max_size=2))
    def replace(self, ref: SessionRef, data: st.DataObject, new: list[str]) -> None:
        items = self.model[ref].items if ref in self.model else []
        wrong = data.draw(st.lists(TITLES, min_size=1, max_size=2))
        expected = data.draw(st.sampled_from([items[len(items) // 2 :], items, wrong, ["one too many", *items]]))
        fits = expected == items[len(items) - len(expected) :]
        assert self.it.do(self.store.replace_tail(ref, expected, Batch.of([Row(text) for text in new]))) == fits
        if fits and ref in self.model:
            items[len(items) - len(expected) :] = new
        elif fits and new:
            self.model[ref] = Model(None, {}, list(new))

    @rule(ref=KEYS)
    def delete(self, ref: SessionRef) -> None:
        assert self.it.do(self.store.delete_session(ref)) == (self.model.pop(ref, None) is not None)

    @rule(user_id=st.sampled_from(["", "ada"]))
    def delete_user(self, user_id: str) -> None:
        gone = [key for key in self.model if key.user_id == user_id]
        assert self.it.do(self.store.delete_user(user_id)) == len(gone)
        for key in gone:
            del self.model[key]

    def teardown(self) -> None:
        infos = self.it.do(self.store.list_sessions(limit=500)).sessions
        stored = {SessionRef(info.user_id, info.session_id): info for info in infos}
        assert stored.keys() == self.model.keys()
        for key, info in stored.items():
            rows = self.it.do(self.store.tail(key, None))
            assert Model(info.title, dict(info.metadata), rows) == self.model[key]
            assert info.item_count == len(rows)
