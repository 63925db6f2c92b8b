"""`session_settings`, as every session of the SDK has them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import pytest
from agents import Agent, RunConfig, Runner, SessionSettings, SQLiteSession, set_tracing_disabled

from my_agent.dev.offline import OfflineModel
from my_agent.sessions import SessionStore
from proof.support.helpers import texts, user


@pytest.mark.parametrize("wrong", [{"limitt": 20}, {"limit": 1, "order": "desc"}, 20, [("limit", 20)]])
async def test_settings_that_the_sdk_refuses_are_refused(store: SessionStore, wrong: Any) -> None:
    with pytest.raises(TypeError) as of_the_sdk:
        SQLiteSession("s", session_settings=wrong)
    with pytest.raises(TypeError) as ours:
        store.session("s", session_settings=wrong)
    assert str(ours.value) == str(of_the_sdk.value)

    session = store.session("s", session_settings={"limit": 1})
    with pytest.raises(TypeError):
        session.session_settings = wrong
    assert session.session_settings == SessionSettings(limit=1)


async def test_settings_assigned_later_count(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user(str(number)) for number in range(5)])
    session.session_settings = cast(Any, {"limit": 2})
    assert session.session_settings == SessionSettings(limit=2)
    assert texts(await session.get_items()) == ["3", "4"]
    session.session_settings = SessionSettings(limit=1)
    assert texts(await session.get_items()) == ["4"]
    session.session_settings = None
    assert len(await session.get_items()) == 5


async def test_a_change_of_the_settings_counts(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user(str(number)) for number in range(5)])
    settings = session.session_settings
    assert settings is not None
    settings.limit = 2
    assert texts(await session.get_items()) == ["3", "4"]


async def test_the_runner_reads_with_settings_assigned_later(store: SessionStore) -> None:
    set_tracing_disabled(True)
    session = store.session("s")
    await session.add_items([user(str(number)) for number in range(5)])
    session.session_settings = cast(Any, {"limit": 2})
    seen: list[int] = []

    def look(data: Any) -> Any:
        seen.append(len(data.model_data.input))
        return data.model_data

    agent = Agent[Any](name="Assistant", model=OfflineModel())
    await Runner.run(agent, "Hi", session=session, run_config=RunConfig(call_model_input_filter=look))
    assert seen == [3]


async def test_the_default_is_an_object_as_in_every_session_of_the_sdk(store: SessionStore) -> None:
    one, other = store.session("s"), store.session("s")
    assert one.session_settings == SQLiteSession("s").session_settings == SessionSettings()
    assert one.session_settings is one.session_settings
    assert one.session_settings is not other.session_settings


def test_a_session_does_not_import_the_sdk() -> None:
    """It takes a second, and `--help` and all commands that do not run an agent need nothing of it."""
    code = (
        "import sys; from my_agent.sessions.session import StoredSession; from my_agent.sessions.store import *; "
        "StoredSession(lambda: None, SessionRef('', 's')); print('agents' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
