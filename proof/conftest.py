"""The proof runs inside a rendered project, on the servers and fixtures of its own tests."""

from __future__ import annotations

from my_agent.sessions import BackendStore
from tests.conftest import *  # noqa: F403 - the fixtures that the project's own tests share

BACKEND = BackendStore.__name__.removesuffix("Store").lower()

pytest_plugins = (f"tests.{BACKEND}_fixtures", "tests.devserver_fixtures")
