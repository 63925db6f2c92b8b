"""Words of the tests of turns: a session, an agent that says what it is told to, a tool that needs an approval."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from agents import Agent, function_tool

from my_agent.conversation.turn import Event, run_turn
from my_agent.sessions import SessionRef, SessionStore, StoredSession
from proof.support.scripted_model import ScriptedModel, Step

KEY = SessionRef("ada", "chat")
launched: list[str] = []
"""What the tool was called with."""


@function_tool(needs_approval=True)
async def launch_rocket(text: str = "") -> str:
    """Launch a rocket."""
    launched.append(text)
    await asyncio.sleep(0.05)
    return "it is in the air"


class SlowModel(ScriptedModel):
    """Thinks for a moment, or until it is told to go on."""

    def __init__(self, *script: Step, seconds: float = 0.2) -> None:
        super().__init__(*script)
        self.seconds, self.asked = seconds, asyncio.Event()

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        self.asked.set()
        await asyncio.sleep(self.seconds)
        async for event in super().stream_response(*args, **kwargs):
            yield event


def agent_of(*script: Step, model: ScriptedModel | None = None) -> Agent[Any]:
    return Agent(name="Front", model=model or ScriptedModel(*script), tools=[launch_rocket])


def session_of(store: SessionStore) -> StoredSession:
    return store.session(KEY.session_id, user_id=KEY.user_id)


async def events_of(agent: Agent[Any], session: StoredSession, said: Any = "Hello", **options: Any) -> list[Event]:
    return [event async for event in run_turn(agent, session, said, **{"max_items": 50, **options})]


async def outcome(agent: Agent[Any], session: StoredSession, said: Any = "Hello", **options: Any) -> Event:
    return (await events_of(agent, session, said, **options))[-1]


async def roles(store: SessionStore) -> list[str]:
    items: list[Any] = await session_of(store).get_items()
    return [item.get("role") or item["type"] for item in items]
