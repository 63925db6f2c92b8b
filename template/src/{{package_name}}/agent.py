"""Your agent. This file is yours: no update of the template touches it. Replace the instructions and the tools."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agents import Agent, function_tool
from agents.models.interface import Model

INSTRUCTIONS = "You are a friendly assistant. Answer briefly, and use what the user told you before."


@function_tool
def current_time(timezone: str = "UTC") -> str:
    """Tell the time.

    Args:
        timezone: A name like Europe/Berlin.
    """
    try:
        now = datetime.now(ZoneInfo(timezone))
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of time zones, such as Europe
        return f"There is no time zone {timezone!r}. Use a name like Europe/Berlin."
    return f"{now:%H:%M on %A, %d %B %Y} ({timezone})"


@function_tool
def count_words(text: str) -> int:
    """Count the words of a text exactly, which models are bad at."""
    return len(text.split())


def build_agent(model: str | Model | None = None) -> Agent[Any]:
    """The agent that every turn starts with."""
    return Agent(name="Assistant", instructions=INSTRUCTIONS, tools=[current_time, count_words], model=model)
