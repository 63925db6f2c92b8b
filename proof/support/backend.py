"""Which project the proof runs in."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import my_agent
from my_agent.sessions import BackendStore

PROJECT = Path(my_agent.__file__).parents[2]
BACKEND = BackendStore.__name__.removesuffix("Store").lower()
ENCRYPTED = find_spec("my_agent.sessions.encryption") is not None
KEYS = "SESSION_ENCRYPTION_KEYS"


def new_key() -> str | None:
    """A key, where the project encrypts."""
    return str(import_module("my_agent.sessions.encryption.cipher").new_key()) if ENCRYPTED else None
