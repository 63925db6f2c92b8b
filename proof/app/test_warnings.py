"""Python's development mode finds nothing in the commands: no resource left open, no deprecated call."""

from __future__ import annotations

import sys

import pytest

from my_agent.sessions import SessionStore
from proof.support.command import run
from proof.support.helpers import user

PROGRAM = (sys.executable, "-X", "dev", "-W", "error", "-m", "my_agent")


@pytest.mark.parametrize(
    "arguments",
    [("chat", "My name is Ada"), ("sessions", "list"), ("sessions", "export"), ("sessions", "delete", "default", "-y")],
    ids=" ".join,
)
async def test_a_command_warns_of_nothing(
    store: SessionStore,
    server_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)
    await store.session("default").add_items([user("Hi")])
    done = await run(*arguments, program=PROGRAM)
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    assert "Exception ignored" not in done.err
