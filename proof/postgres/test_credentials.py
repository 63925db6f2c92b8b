"""User and password that expire: a function is asked for every new connection."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from my_agent.sessions import PostgresSession, PostgresStore, StoreRefused, StoreUnavailable, open_store
from proof.postgres.fixtures import POOLER, run_sql, settings_for
from proof.support.helpers import texts, user

pytestmark = pytest.mark.skipif(POOLER == "transaction", reason="changes the passwords of roles")


class Rotating:
    """A role whose password changes, and the function that knows it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._admin = url
        self.url = f"postgresql://{parts.hostname}:{parts.port}{parts.path}"
        self.role = f"role_{uuid4().hex[:8]}"
        self.given: list[tuple[str, str]] = []
        self.stale = 0
        """So many times more the password before is given."""
        self._passwords = [""]

    async def make(self) -> None:
        await run_sql(self._admin, f"CREATE ROLE {self.role} LOGIN SUPERUSER")
        await self.rotate()

    async def rotate(self) -> None:
        self._passwords.append(f"planted{uuid4().hex}")
        await run_sql(self._admin, f"ALTER ROLE {self.role} PASSWORD '{self._passwords[-1]}'")

    async def cut(self) -> None:
        await run_sql(
            self._admin, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{self.role}'"
        )

    async def drop(self) -> None:
        await self.cut()
        await run_sql(self._admin, f"DROP ROLE {self.role}")

    async def __call__(self) -> tuple[str, str]:
        await asyncio.sleep(0)
        self.stale, old = max(self.stale - 1, 0), self.stale > 0
        self.given.append((self.role, self._passwords[-2 if old else -1]))
        return self.given[-1]


@pytest.fixture
async def rotating(database_url: str) -> AsyncIterator[Rotating]:
    rotating = Rotating(database_url)
    await rotating.make()
    yield rotating
    await rotating.drop()


async def test_every_new_connection_asks_and_an_old_one_goes_on(rotating: Rotating) -> None:
    async with open_store(settings_for(rotating.url), credentials=rotating) as store:
        session = store.session("s")
        await session.add_items([user("one")])
        asked = len(rotating.given)
        await rotating.rotate()
        await session.add_items([user("two")])
        assert len(rotating.given) == asked == 1
        await rotating.cut()
        await session.add_items([user("three")])
        assert texts(await session.get_items()) == ["one", "two", "three"]
        assert len({password for _, password in rotating.given}) == 2


async def test_a_password_that_expired_just_now_is_asked_for_once_more(rotating: Rotating) -> None:
    await rotating.rotate()
    rotating.stale = 1
    async with PostgresStore(settings_for(rotating.url), credentials=rotating) as store:
        assert await store._call("SELECT current_user::text") == rotating.role
    assert len(rotating.given) == 2


async def test_a_password_that_stays_wrong_is_refused_without_more_attempts(rotating: Rotating) -> None:
    await rotating.rotate()
    rotating.stale = 9
    with pytest.raises(StoreRefused, match="refused the login") as caught:
        await PostgresStore(settings_for(rotating.url), credentials=rotating).session("s").get_items()
    assert len(rotating.given) == 2
    caught.value.__traceback__ = None
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "planted" not in shown
    assert rotating.role not in str(caught.value)


async def test_sessions_share_a_store_only_with_the_same_function(rotating: Rotating) -> None:
    async def other() -> tuple[str, str]:
        return await rotating()

    settings = settings_for(rotating.url)
    sessions = [PostgresSession(str(n), settings=settings, credentials=rotating) for n in range(2)]
    apart = PostgresSession("2", settings=settings, credentials=other)
    try:
        assert sessions[0].store is sessions[1].store
        assert apart.store is not sessions[0].store
        for session in (*sessions, apart):
            await session.add_items([user("Hi")])
    finally:
        for session in (*sessions, apart):
            await session.close()


async def test_a_function_that_fails_is_told_and_tried_again(rotating: Rotating) -> None:
    failures = 1

    async def failing() -> tuple[str, str]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RuntimeError("the token service is away")
        return await rotating()

    store = PostgresStore(settings_for(rotating.url), credentials=failing)
    assert texts(await store.session("s").get_items()) == []
    await store.close()
    failures = 10**6
    impatient = settings_for(rotating.url, session_retry_seconds=0.2)
    with pytest.raises(StoreUnavailable, match="`credentials` gave no user and password: RuntimeError"):
        await PostgresStore(impatient, credentials=failing).session("s").get_items()


async def test_a_function_that_hangs_is_bounded_by_the_timeout(rotating: Rotating) -> None:
    async def hanging() -> tuple[str, str]:
        await asyncio.sleep(60)
        raise AssertionError

    settings = settings_for(rotating.url, database_timeout_seconds=0.3, session_retry_seconds=0.0)
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s"):
            await PostgresStore(settings, credentials=hanging).session("s").get_items()
