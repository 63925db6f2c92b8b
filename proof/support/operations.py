"""Every operation on a session, for the tests that disturb each of them; settings and sessions of any backend."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, cast

from agents.items import TResponseInputItem

from my_agent.sessions import BackendSettings, SessionRef, SessionStore
from my_agent.sessions.codec import encode_item
from my_agent.sessions.shared import SharedStoreSession
from proof.support.helpers import anything, texts

KEY = SessionRef("", "s")
NEW = [f"new {number}" for number in range(7)]


class State(NamedTuple):
    """What is stored of the session `KEY`."""

    said: list[str]
    title: str | None = None


async def state_of(store: SessionStore) -> State:
    found = await store.find_session(KEY)
    said = texts(await store.session(KEY.session_id).get_items())
    return State(said, None if found is None else found.title)


def items(said: list[str]) -> list[TResponseInputItem]:
    """Items of an assistant, so that they give the session no title."""
    return [anything(role="assistant", content=text) for text in said]


class Operation(NamedTuple):
    """Something to do with the session `KEY`.

    Args:
        name: What it is called in the code.
        begin: Starts it; is told what is stored.
        outcome: What is stored once it is done; what was stored before, if it only reads.
    """

    name: str
    begin: Callable[[SessionStore, State], Coroutine[Any, Any, object]]
    outcome: Callable[[State], State] = lambda before: before


OPERATIONS = [
    Operation(
        "add_items",
        lambda store, _: store.session("s").add_items(items(NEW)),
        lambda before: before._replace(said=before.said + NEW),
    ),
    Operation("get_items", lambda store, _: store.session("s").get_items()),
    Operation(
        "pop_item",
        lambda store, _: store.session("s").pop_item(),
        lambda before: before._replace(said=before.said[:-1]),
    ),
    Operation(
        "clear_session",
        lambda store, _: store.session("s").clear_session(),
        lambda before: before._replace(said=[]),
    ),
    Operation(
        "replace_tail",
        lambda store, before: store.session("s").replace_tail(
            [encode_item(item) for item in items(before.said[-2:])], items(NEW)
        ),
        lambda before: before._replace(said=before.said[:-2] + NEW),
    ),
    Operation("list_sessions", lambda store, _: store.list_sessions()),
    Operation("find_session", lambda store, _: store.find_session(KEY)),
    Operation(
        "update_session",
        lambda store, before: store.update_session(KEY, title=f"{len(before.said)} items"),
        lambda before: before._replace(title=f"{len(before.said)} items"),
    ),
    Operation("delete_session", lambda store, _: store.delete_session(KEY), lambda _: State([])),
]


def settings_with(settings: BackendSettings, *, connections: int, seconds: float) -> BackendSettings:
    """The same server over few connections; what takes longer fails, and is not tried again."""
    values = {"_pool_max": connections, "_timeout_seconds": seconds, "_retry_seconds": 0.0}
    names = {name: end for name in BackendSettings.model_fields for end in values if name.endswith(end)}
    assert {*values} - {*names.values()} <= {"_pool_max"}  # a server of Redis has two connections in any case
    return settings.model_copy(update={name: values[end] for name, end in names.items()})


def session_without_store(settings: BackendSettings) -> SharedStoreSession:
    """The session `KEY`, made by the backend's own class."""
    (kind,) = SharedStoreSession.__subclasses__()
    return cast(Any, kind)(KEY.session_id, settings=settings)  # type: ignore[no-any-return]
