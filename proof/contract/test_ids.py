"""Ids that an app has as numbers or UUIDs: stored and compared as text."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from agents import Agent, RunContextWrapper, Runner, set_tracing_disabled

from my_agent.dev.offline import OfflineModel
from my_agent.sessions import BackendSettings, InvalidSessionId, SessionRef, SessionStore, WrongOwner
from my_agent.sessions.shared import SharedStoreSession
from proof.support.helpers import texts, user

UUID_TEXT = "0b5f1a52-93a5-4d05-8f6c-2f4d3c0a9b10"


class Number(IntEnum):
    ADA = 42


class Name(StrEnum):
    ADA = "ada"


IDS: list[tuple[Any, str]] = [
    (42, "42"),
    (0, "0"),
    (-7, "-7"),
    (2**70, str(2**70)),
    (UUID(UUID_TEXT), UUID_TEXT),
    (Number.ADA, "42"),
    (Name.ADA, "ada"),
    ("42", "42"),
]
NO_IDS: list[Any] = [42.0, True, False, None, b"ada", ["ada"], object()]


@pytest.mark.parametrize(("given", "stored"), IDS, ids=repr)
async def test_an_id_is_stored_as_text(store: SessionStore, given: Any, stored: str) -> None:
    session = store.session(given, user_id=given)
    assert (session.user_id, session.session_id, session.ref) == (stored, stored, SessionRef(stored, stored))
    assert {type(name) for name in (session.user_id, session.session_id, *session.ref)} == {str}
    await session.add_items([user("Hi")])
    assert texts(await store.session(stored, user_id=stored).get_items()) == ["Hi"]
    assert await store.find_session(SessionRef(stored, stored)) is not None


@pytest.mark.parametrize("given", NO_IDS, ids=lambda given: type(given).__name__)
async def test_what_is_no_id_is_refused_in_one_sentence(store: SessionStore, given: Any) -> None:
    kind = type(given).__name__
    with pytest.raises(InvalidSessionId, match=f"^session_id must be a str, an int or a UUID, not {kind}\\.$"):
        store.session(given)
    with pytest.raises(InvalidSessionId, match=f"^user_id must be a str, an int or a UUID, not {kind}\\.$"):
        store.session("s", user_id=given)


@pytest.mark.parametrize(("given", "stored"), IDS, ids=repr)
async def test_a_store_takes_every_kind_of_id(store: SessionStore, given: Any, stored: str) -> None:
    for each in (given, stored, "another"):
        await store.session("s", user_id=each).add_items([user("Hi")])
    ref = SessionRef(given, given)
    assert (ref, type(ref.user_id), type(ref.session_id)) == ((stored, stored), str, str)
    assert await store.find_session(SessionRef(given, "s")) == await store.find_session(SessionRef(stored, "s"))
    assert len(await store.tail(SessionRef(given, "s"), None)) == 2
    page = await store.list_sessions(given)
    assert [(info.user_id, info.item_count) for info in page.sessions] == [(stored, 2)]
    assert await store.delete_user(given) == 1
    assert [info.user_id for info in (await store.list_sessions()).sessions] == ["another"]


@pytest.mark.parametrize("given", NO_IDS, ids=lambda given: type(given).__name__)
async def test_a_store_refuses_what_is_no_id(store: SessionStore, given: Any) -> None:
    await store.session("s", user_id="1").add_items([user("Hi")])
    refused = f"^user_id must be a str, an int or a UUID, not {type(given).__name__}\\.$"
    with pytest.raises(InvalidSessionId, match=refused):
        SessionRef(given, "s")
    with pytest.raises(InvalidSessionId, match=refused):  # None too: it is not everybody
        await store.delete_user(given)
    if given is not None:
        with pytest.raises(InvalidSessionId, match=refused):
            await store.list_sessions(given)
    assert len((await store.list_sessions()).sessions) == 1


@pytest.mark.parametrize(("given", "stored"), IDS, ids=repr)
async def test_a_session_without_a_store_takes_every_kind_of_id(
    settings: BackendSettings, given: Any, stored: str
) -> None:
    (session_class,) = SharedStoreSession.__subclasses__()
    make = cast(Any, session_class)
    async with make(given, user_id=given, settings=settings) as session:
        assert session.ref == (stored, stored)
        await session.add_items([user("Hi")])
    async with make(stored, user_id=stored, settings=settings) as session:
        assert texts(await session.get_items()) == ["Hi"]


SAME: list[tuple[Any, Any]] = [
    ("42", 42),
    (42, "42"),
    (42, 42),
    (Number.ADA, 42),
    (UUID_TEXT, UUID(UUID_TEXT)),
    (UUID(UUID_TEXT), UUID_TEXT),
    (0, 0),
    ("42.0", 42.0),
    ("ada", Name.ADA),
    (Name.ADA, "ada"),
]


@pytest.mark.parametrize(("owner", "runs_as"), SAME, ids=repr)
async def test_a_run_of_the_owner_is_served_whatever_the_type_of_its_id(
    store: SessionStore, owner: Any, runs_as: Any
) -> None:
    set_tracing_disabled(True)
    session = store.session("s", user_id=owner)
    agent = Agent[Any](name="Assistant", model=OfflineModel())
    for context in ({"user_id": runs_as}, SimpleNamespace(user_id=runs_as)):
        await Runner.run(agent, "Hi", session=session, context=context)
    assert len(await session.get_items()) == 4


OTHERS: list[tuple[Any, Any]] = [
    ("42", 43),
    (42, "43"),
    ("", 0),
    (0, ""),
    (42, 42.0),
    ("ada", b"ada"),
    (1, True),
    (UUID_TEXT, UUID(int=0)),
    ("42", " 42"),
]


@pytest.mark.parametrize(("owner", "runs_as"), OTHERS, ids=repr)
async def test_a_run_of_another_is_refused_whatever_the_type_of_its_id(
    store: SessionStore, owner: Any, runs_as: Any
) -> None:
    session = store.session("s", user_id=owner)
    for context in ({"user_id": runs_as}, SimpleNamespace(user_id=runs_as)):
        with pytest.raises(WrongOwner):
            await session.add_items([user("Hi")], wrapper=RunContextWrapper(cast(object, context)))
    assert await session.get_items() == []
