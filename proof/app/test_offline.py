"""The offline model speaks only of what is in the history."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Agent, RunConfig, Runner
from agents.items import TResponseInputItem

from my_agent.dev.offline import OfflineModel
from proof.support.helpers import answer, anything, user
from proof.support.sample_agent import build_agent

RULES = '"My name is Ada", "What is my name?", "What did I say first?" and words that call a tool (time, words)'


async def say(*items: TResponseInputItem) -> str:
    config = RunConfig(tracing_disabled=True)
    result = await Runner.run(build_agent(OfflineModel()), list(items), run_config=config)
    return str(result.final_output)


@pytest.mark.parametrize(
    ("history", "question", "expected"),
    [
        ([], "My name is Ada", "Nice to meet you, Ada!"),
        ([], "What is my name?", "You have not told me your name yet."),
        ([user("I am called Ada")], "Do you know my name?", "Your name is Ada."),
        ([user("My name is Ada"), user("Call me Countess")], "What is my name?", "Your name is Countess."),
        ([answer("My name is Assistant")], "What is my name?", "You have not told me your name yet."),
        ([user("Hi"), user("there")], "What did I say first?", 'The first thing you said was: "Hi"'),
        ([user("Hi")], "Hm", f"I am the offline model: I remember 1 earlier message and understand {RULES}."),
    ],
)
async def test_it_answers_from_the_history(history: list[TResponseInputItem], question: str, expected: str) -> None:
    assert await say(*history, user(question)) == expected


async def test_it_reads_messages_made_of_parts() -> None:
    parts = anything(role="user", content=[{"type": "input_text", "text": "My name is Ada"}])
    assert await say(parts, user("What is my name?")) == "Your name is Ada."


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the time in Europe/Berlin?", "(Europe/Berlin)"),
        ("What is the time?", "(UTC)"),
        ("What is the time in Middle/Earth?", "There is no time zone 'Middle/Earth'."),
        ("What is the time in America/Argentina/Buenos_Aires?", "(America/Argentina/Buenos_Aires)"),
        ('How many words are in "a b c"?', "Here is what I found: 3"),
        ("My name is Ada and I have little time", "Nice to meet you, Ada!"),
    ],
)
async def test_it_calls_the_tool_that_is_named(question: str, expected: str) -> None:
    assert expected in await say(user(question))


async def test_without_tools_it_names_none() -> None:
    agent = Agent[Any](name="Plain", model=OfflineModel())
    result = await Runner.run(agent, "Hm", run_config=RunConfig(tracing_disabled=True))
    assert result.final_output.endswith('understand "My name is Ada", "What is my name?" and "What did I say first?".')
