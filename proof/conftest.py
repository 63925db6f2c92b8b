"""What all of the proof shares. The server comes from the backend's own fixtures."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from my_agent.sessions import BackendStore, SessionStore
from my_agent.sessions import settings as session_settings
from my_agent.sessions.layers import wrap_store
from my_agent.settings import Settings
from proof.support.backend import BACKEND, KEYS, new_key

# The first starts the server and opens the store.
pytest_plugins = (f"proof.{BACKEND}.fixtures", "proof.support.dev_servers")

KEY = new_key()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts us in the background (`make test &`) has Ctrl-C ignored, and so would what we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the developer's `.env`, keys or server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session_settings, "PROJECT", None)
    monkeypatch.setattr(session_settings, "_everywhere", False)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    if KEY is not None:
        monkeypatch.setenv(KEYS, KEY)


@pytest.fixture
def server_environment(server_environment: dict[str, str]) -> dict[str, str]:
    return server_environment if KEY is None else {**server_environment, KEYS: KEY}


def wrapped(store: BackendStore, request: pytest.FixtureRequest) -> SessionStore:
    """One that encrypts, where the project does, unless the test asks for the backend's own class."""
    asked = request.function.__annotations__.get(request.fixturename)
    raw = f".{BACKEND}." in request.module.__name__ if asked is None else asked == BackendStore.__name__
    return store if raw or KEY is None else wrap_store(store)


@pytest.fixture
def store(store: BackendStore, request: pytest.FixtureRequest) -> SessionStore:
    return wrapped(store, request)


@pytest.fixture
def other_store(other_store: BackendStore, request: pytest.FixtureRequest) -> SessionStore:
    return wrapped(other_store, request)
