"""Tools that show the local variables of a traceback show no password."""

from __future__ import annotations

import asyncio
import traceback
from urllib.parse import urlsplit, urlunsplit

import pytest

from my_agent.sessions import PostgresSettings, PostgresStore, backend
from my_agent.sessions.postgres.schema import upgrade
from my_agent.sessions.postgres.sdk import open_postgres_source
from proof.postgres.fixtures import settings_for
from proof.postgres.wire import wire_to

SECRET = "hunter2"


def planted(url: str) -> str:
    """The address with a wrong password, for a user that exists."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{SECRET}@{parts.hostname}:{parts.port}"))


async def shown(work: object) -> str:
    """What such a tool shows of the error with which some work ends."""
    try:
        await work  # type: ignore[misc]
    except BaseException as error:
        # Not this frame: the caller's address is its own business.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("it works")


async def open_store(settings: PostgresSettings) -> None:
    await PostgresStore(settings)


async def migrate(settings: PostgresSettings) -> None:
    await upgrade(settings, backend.migrations())


@pytest.mark.parametrize("work", [open_store, migrate])
@pytest.mark.parametrize("fault", ["refused", "silent", "nobody", "unusable", "scheme"])
async def test_no_local_variable_of_a_traceback_has_the_password(database_url: str, work: object, fault: str) -> None:
    async with wire_to(planted(database_url)) as (wire, url):
        parts = urlsplit(url)
        match fault:
            case "silent":
                wire.silent = True
            case "nobody":
                url = urlunsplit(parts._replace(netloc=f"u:{SECRET}@127.0.0.1:1"))
            case "unusable":
                url = urlunsplit(parts._replace(netloc=f"u:{SECRET}@127.0.0.1:port"))
            case "scheme":
                url = urlunsplit(parts._replace(scheme="mysql"))
        settings = settings_for(url, database_timeout_seconds=0.5)
        text = await shown(work(settings))  # type: ignore[operator]
    assert "self" in text or "settings" in text  # so local variables are shown
    assert SECRET not in text


async def test_a_cancelled_connection_shows_no_password(database_url: str) -> None:
    async with wire_to(planted(database_url)) as (wire, url):
        wire.silent = True
        task = asyncio.create_task(open_store(settings_for(url)))
        await asyncio.sleep(0.2)
        task.cancel()
        text = await shown(task)
    assert SECRET not in text


async def test_an_import_shows_no_password(database_url: str) -> None:
    async def read(secret: list[str]) -> None:
        async with open_postgres_source(secret.pop()):
            pass

    text = await shown(read([planted(database_url)]))
    assert "Check user and password" in text
