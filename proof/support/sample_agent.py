"""The agent of the tests. They do not use `agent.py`: that one is the user's, and may become anything."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agents import Agent, function_tool
from agents.models.interface import Model


@function_tool
def current_time(timezone: str = "UTC") -> str:
    """Tell the time."""
    try:
        return f"{datetime.now(ZoneInfo(timezone)):%H:%M} ({timezone})"
    except (ZoneInfoNotFoundError, ValueError):
        return f"There is no time zone {timezone!r}."


@function_tool
def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


def build_agent(model: str | Model | None = None) -> Agent[Any]:
    return Agent(name="Assistant", instructions="Be brief.", tools=[current_time, count_words], model=model)
