"""`sessions/` works in another codebase, and names no command that does not exist there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import my_agent.sessions
from my_agent.sessions import SessionStore, errors
from proof.support.helpers import texts, user
from proof.support.lifted import PACKAGE, lift, run

SCRIPT = f"""
import asyncio
import {PACKAGE} as sessions

async def main():
    (name,) = {{"PostgresSession", "RedisSession", "SupabaseSession"}} & set(sessions.__all__)
    async with getattr(sessions, name)("s") as session:
        await session.add_items([{{"role": "user", "content": "lifted"}}])
        print(len(await session.get_items()))

asyncio.run(main())
"""


async def test_a_session_works_in_another_codebase(
    store: SessionStore, server_environment: dict[str, str], tmp_path: Path
) -> None:
    lift(tmp_path)
    await store.session("s").add_items([user("before")])
    variables = {**server_environment, "SESSION_RETRY_SECONDS": "0"}
    assert run(tmp_path, SCRIPT, variables) == "2\n"
    assert texts(await store.session("s").get_items()) == ["before", "lifted"]


HOW_TO = f"""
from {PACKAGE}.errors import how_to
print(how_to("db upgrade", "Call {{package}}.upgrade"))
"""


def test_another_codebase_is_told_what_to_call(tmp_path: Path) -> None:
    lift(tmp_path)
    assert run(tmp_path, HOW_TO, {}) == f"Call {PACKAGE}.upgrade\n"


def test_this_project_is_told_what_to_run() -> None:
    assert errors.how_to("db upgrade", "Call {package}.upgrade") == "Run `my-agent db upgrade`"


@pytest.mark.parametrize(
    "file", sorted(Path(my_agent.sessions.__file__).parent.rglob("*.py")), ids=lambda file: str(file.name)
)
def test_no_message_names_a_command_by_itself(file: Path) -> None:
    assert not re.search(r"`(\{COMMAND\}|my-agent) ", file.read_text().replace("Run `{COMMAND} {command}`", ""))
