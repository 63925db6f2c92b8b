"""Puts the parts together: the settings, a server (the embedded one in development), the store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from . import devserver
from .backend import prepare
from .sessions import SessionStore, open_store
from .settings import Settings

logger = logging.getLogger(__name__)

_PROJECT = Path(__file__).parents[2]

EMBEDDED = f"{devserver.Engine.VARIABLE} is not set: using the embedded {devserver.Engine.NAME}"
"""Beginning of a sentence: nobody shall take the development server for the real one."""


@contextmanager
def server(settings: Settings) -> Iterator[Settings]:
    """The settings with a server in them: the one they name, else the embedded one if this is a development install.

    Without either, the settings stay as they are, and opening the store says which variable is missing.

    Raises:
        DevServerError: The embedded server does not start.
    """
    if getattr(settings, devserver.Engine.VARIABLE.lower()) is not None or not devserver.available():
        yield settings
        return
    home = _PROJECT if (_PROJECT / "pyproject.toml").is_file() else Path.cwd()
    with devserver.start(home / ".dev") as embedded:
        logger.warning("%s in %s (development only).", EMBEDDED, home / ".dev")
        yield settings.with_environment(embedded.environment)


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[SessionStore]:
    """The store, checked and ready; closed at the end.

    The embedded server is brought up to date on the way. Any other is only checked: changing it is a decision.

    Raises:
        SessionStoreError, DevServerError: The message says what is wrong and what to do.
    """
    with server(settings) as chosen:
        if chosen is not settings:
            await prepare(chosen)
        async with open_store(chosen) as store:
            yield store
