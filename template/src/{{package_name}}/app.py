"""Puts the parts together: the settings, a database (the embedded one in development), the store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from pydantic import SecretStr

from . import devserver
from .sessions import SessionStore, open_store
from .sessions.postgres_schema import Migration, read_migrations, upgrade
from .settings import Settings

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parent
_PROJECT = _PACKAGE.parents[1]


def migrations() -> list[Migration]:
    """The SQL files of this project: inside the package when it is installed, at the project's root in development."""
    installed = _PACKAGE / "migrations"
    return read_migrations(installed if installed.is_dir() else _PROJECT / "migrations")


@contextmanager
def database(settings: Settings) -> Iterator[Settings]:
    """The settings with a database in them: DATABASE_URL's, else the embedded one if this is a development install.

    Without either, the settings stay as they are, and opening the store says that DATABASE_URL is missing.

    Raises:
        DevServerError: The embedded server does not start.
    """
    if settings.database_url is not None or not devserver.available():
        yield settings
        return
    home = _PROJECT if (_PROJECT / "pyproject.toml").is_file() else Path.cwd()
    with devserver.start(home / ".dev") as server:
        logger.warning(
            "DATABASE_URL is not set: using the embedded PostgreSQL in %s (development only).", home / ".dev"
        )
        yield settings.model_copy(update={"database_url": SecretStr(server.url)})


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[SessionStore]:
    """The store, checked and ready; closed at the end.

    The embedded database is brought up to date on the way. Any other is only checked: changing a schema is a decision.

    Raises:
        SessionStoreError, DevServerError: The message says what is wrong and what to do.
    """
    with database(settings) as chosen:
        if chosen is not settings:
            await upgrade(chosen, migrations())
        async with open_store(chosen) as store:
            yield store
