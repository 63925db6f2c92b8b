"""A process that forks: its child shares no connection with it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable

import pytest

from my_agent.sessions import BackendSettings, StoredSession, open_store
from proof.support.helpers import texts, user
from proof.support.operations import session_without_store, settings_with

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # earlier tests have left threads
]

REFUSAL = "SessionStoreError: This was opened before the process forked"


def in_child(work: Callable[[], object]) -> str:
    """What becomes of `work` in a forked child: what it returns, or the error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            outcome = str(work())
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        try:
            os.write(writing, outcome.encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], 30)[0], "the child is stuck"
        return os.read(reading, 2**16).decode()
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def say(session: StoredSession, text: str) -> str:
    """Add to the session; all that was said."""
    await session.add_items([user(text)])
    return " ".join(texts(await session.get_items()))


@pytest.fixture
def impatient(settings: BackendSettings) -> BackendSettings:
    """One connection, and no second try if it fails."""
    return settings_with(settings, connections=1, seconds=5)


@pytest.mark.parametrize("where", ["on a new loop", "on the same loop"])
def test_a_child_is_refused_the_store_of_its_parent(impatient: BackendSettings, where: str) -> None:
    with asyncio.Runner() as parent:
        store = open_store(impatient)
        parent.run(say(store.session("s"), "one"))
        run = parent.run if where == "on the same loop" else asyncio.run
        assert in_child(lambda: run(say(store.session("s"), "child"))).startswith(REFUSAL)
        assert in_child(lambda: run(store.list_sessions())).startswith(REFUSAL)
        assert parent.run(say(store.session("s"), "two")) == "one two"
        parent.run(store.close())


@pytest.mark.parametrize("where", ["on a new loop", "on the same loop"])
def test_a_child_is_refused_the_session_of_its_parent(impatient: BackendSettings, where: str) -> None:
    with asyncio.Runner() as parent:
        session = session_without_store(impatient)
        parent.run(say(session, "one"))
        run = parent.run if where == "on the same loop" else asyncio.run
        assert in_child(lambda: run(say(session, "child"))).startswith(REFUSAL)
        assert parent.run(say(session, "two")) == "one two"
        parent.run(session.close())


def test_a_child_opens_its_own(impatient: BackendSettings) -> None:
    async def with_own_store() -> str:
        async with open_store(impatient) as store:
            return await say(store.session("s"), "store")

    async def with_own_session() -> str:
        async with session_without_store(impatient) as session:
            return await say(session, "session")

    async def with_store_not_opened_before() -> str:
        async with unopened:
            return await say(unopened.session("s"), "unopened")

    async def with_store_closed_before() -> str:
        async with closed:
            return await say(closed.session("s"), "closed")

    with asyncio.Runner() as parent:
        store, unopened, closed = (open_store(impatient) for _ in range(3))
        parent.run(say(store.session("s"), "one"))
        parent.run(closed.ping())
        parent.run(closed.close())
        assert in_child(lambda: asyncio.run(with_own_store())) == "one store"
        assert in_child(lambda: asyncio.run(with_own_session())) == "one store session"
        assert in_child(lambda: asyncio.run(with_store_not_opened_before())) == "one store session unopened"
        assert in_child(lambda: asyncio.run(with_store_closed_before())) == "one store session unopened closed"
        assert parent.run(say(store.session("s"), "two")) == "one store session unopened closed two"
        parent.run(store.close())


@pytest.mark.parametrize("where", ["on a new loop", "on the same loop"])
def test_a_child_that_closes_the_store_of_its_parent_closes_nothing(impatient: BackendSettings, where: str) -> None:
    with asyncio.Runner() as parent:
        store, session = open_store(impatient), session_without_store(impatient)
        parent.run(say(store.session("s"), "one"))
        parent.run(say(session, "two"))
        run = parent.run if where == "on the same loop" else asyncio.run
        assert in_child(lambda: run(store.close())) == "None"
        assert in_child(lambda: run(session.close())) == "None"
        assert parent.run(say(store.session("s"), "three")) == "one two three"
        assert parent.run(say(session, "four")) == "one two three four"
        parent.run(store.close())
        parent.run(session.close())
