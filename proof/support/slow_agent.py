"""The command with another agent: it gets stuck, takes naps, asks for approval and hands over. Run as a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, function_tool
from agents.items import TResponseStreamEvent
from agents.models.interface import Model

from my_agent import agent
from my_agent.cli import main as cli
from my_agent.dev import offline
from my_agent.dev.offline import OfflineModel


class StuckModel(OfflineModel):
    """Gets no further than the first word of a greeting."""

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        async for event in super().stream_response(*args, **kwargs):
            yield event
            if event.type == "response.output_text.delta" and event.delta == "Nice ":
                await asyncio.sleep(60)


@function_tool
async def take_nap() -> str:
    """Sleep for a minute."""
    await asyncio.sleep(60)
    return "slept"


@function_tool(needs_approval=True)
async def delete_files() -> str:
    """Delete everything."""
    return "\x1b[31mAll is gone."


@function_tool
async def look_up(text: str) -> str:
    """Look something up, which fails."""
    raise LookupError(f"no entry \x1b[31m{text}")


def build_agent(model: str | Model | None = None) -> Agent[Any]:
    grace = Agent[Any](name="Grace", model=model)
    return Agent(name="Slow", tools=[take_nap, delete_files, look_up], handoffs=[grace], model=model)


if __name__ == "__main__":
    agent.build_agent = build_agent
    vars(offline)["OfflineModel"] = StuckModel
    cli.main()
