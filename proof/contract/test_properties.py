"""Whatever JSON can hold comes back, and a session is a list: tried with examples that nobody would think of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from my_agent.sessions import BackendSettings, SessionRef, SessionStore, open_store
from my_agent.sessions.codec import encode_item
from my_agent.sessions.records import MAX_ID_BYTES
from proof.support.helpers import anything

T = TypeVar("T")
EXAMPLES = 15 if "supabase_url" in BackendSettings.model_fields else 60  # each step is a request there
FEW = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""With NUL, control characters and halves of surrogate pairs."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
ITEMS = st.lists(st.dictionaries(ANY_TEXT, JSON, max_size=4), min_size=1, max_size=5)
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=MAX_ID_BYTES // 4
)
KEYS = st.builds(SessionRef, st.just("") | NAMES, NAMES)


class Driver:
    """A store, driven from outside an event loop."""

    def __init__(self, runner: asyncio.Runner, store: SessionStore) -> None:
        self.runner, self.store = runner, store

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)


@contextmanager
def driver(settings: BackendSettings) -> Iterator[Driver]:
    with asyncio.Runner() as runner:
        store = open_store(settings)
        try:
            yield Driver(runner, store)
        finally:
            runner.run(store.close())


def as_json_tells_it(item: dict[str, Any]) -> str:
    """JSON joins two halves of a surrogate pair that stand side by side; all else stays as it is."""
    return repr(json.loads(json.dumps(item)))


def test_whatever_json_can_hold_comes_back(settings: BackendSettings) -> None:
    with driver(settings) as it:

        @FEW
        @given(ITEMS)
        def comes_back(items: list[dict[str, Any]]) -> None:
            session = it.store.session("s")
            it.do(session.clear_session())
            it.do(session.add_items(cast(Any, items)))
            # repr tells 1 from 1.0, 0.0 from -0.0, and one order of keys from another; == does not.
            expected = [as_json_tells_it(item) for item in items]
            assert [repr(item) for item in it.do(session.get_items())] == expected
            assert repr(it.do(session.pop_item())) == expected[-1]

        comes_back()


def test_sessions_of_any_name_never_meet(settings: BackendSettings) -> None:
    with driver(settings) as it:

        @FEW
        @given(st.lists(KEYS, min_size=2, max_size=6, unique=True))
        def never_meet(keys: list[SessionRef]) -> None:
            for key in keys:
                session = it.store.session(key.session_id, user_id=key.user_id)
                it.do(session.clear_session())
                it.do(session.add_items([anything(user=key.user_id, session=key.session_id)]))
            for key in keys:
                session = it.store.session(key.session_id, user_id=key.user_id)
                assert it.do(session.get_items()) == [anything(user=key.user_id, session=key.session_id)]
            for user_id in {key.user_id for key in keys}:
                page = it.do(it.store.list_sessions(user_id))
                assert {info.user_id for info in page.sessions} == {user_id}
                own = {key.session_id for key in keys if key.user_id == user_id}
                assert {info.session_id for info in page.sessions} == own
                assert it.do(it.store.delete_user(user_id)) == len(own)
            assert it.do(it.store.list_sessions()).sessions == []

        never_meet()


def test_a_session_is_a_list(settings: BackendSettings) -> None:
    with driver(settings) as driven:

        class OnThisStore(ListOfItems):
            it = driven

        run_state_machine_as_test(OnThisStore, settings=FEW)


class ListOfItems(RuleBasedStateMachine):
    """A session beside a list: after every step both hold the same."""

    it: Driver

    def __init__(self) -> None:
        super().__init__()
        self.session = self.it.store.session("list")
        self.it.do(self.it.store.delete_session(self.session.ref))
        self.model: list[Any] = []
        self.number = 0

    def new(self, count: int) -> list[Any]:
        self.number += count
        return [anything(role="user", content=str(n)) for n in range(self.number - count, self.number)]

    @rule(count=st.integers(0, 5))
    def add(self, count: int) -> None:
        items = self.new(count)
        self.it.do(self.session.add_items(items))
        self.model += items

    @rule()
    def pop(self) -> None:
        assert self.it.do(self.session.pop_item()) == (self.model.pop() if self.model else None)

    @rule()
    def clear(self) -> None:
        self.it.do(self.session.clear_session())
        self.model = []

    @rule(limit=st.none() | st.integers(-1, 12))
    def read(self, limit: int | None) -> None:
        expected = self.model if limit is None else self.model[-limit:] if limit > 0 else []
        assert self.it.do(self.session.get_items(limit)) == expected

    @rule(data=st.data(), count=st.integers(0, 3))
    def replace(self, data: st.DataObject, count: int) -> None:
        length = data.draw(st.integers(0, len(self.model)))
        tail = [encode_item(item) for item in self.model[len(self.model) - length :]]
        items = self.new(count)
        assert self.it.do(self.session.replace_tail(tail, items))
        self.model[len(self.model) - length :] = items

    @precondition(lambda self: self.model)
    @rule()
    def replace_what_is_not_there(self) -> None:
        assert not self.it.do(self.session.replace_tail(["something else"], self.new(1)))

    @rule()
    def delete(self) -> None:
        self.it.do(self.it.store.delete_session(self.session.ref))
        self.model = []

    def teardown(self) -> None:
        assert self.it.do(self.session.get_items()) == self.model
        found = self.it.do(self.it.store.find_session(self.session.ref))
        assert (found.item_count if found else 0) == len(self.model)
