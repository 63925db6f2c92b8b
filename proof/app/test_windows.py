"""What Windows lacks, simulated: signal handlers of event loops, time zones of the system."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from my_agent.sessions import SessionStore
from proof.support.command import Terminal
from proof.support.helpers import texts

PROMPT = ">\b"
ROOT = str(Path(__file__).parents[2])
AGENT = (sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); import proof.support.windows_agent")


async def test_ctrl_c_stops_an_answer_without_signal_handlers_of_the_loop(
    store: SessionStore, server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)

    def talk() -> int:
        with Terminal("chat", program=AGENT) as terminal:
            for message, begun in (("My name is Ada", "Nice "), ("take a nap", "→ take_nap({})")):
                terminal.wait_for(PROMPT)
                terminal.type(message + "\r")
                terminal.wait_for(begun)
                terminal.type("\x03")
                terminal.wait_for("Stopped.")
            terminal.wait_for(PROMPT)
            terminal.type("What is my name?\r")
            terminal.wait_for("Your name is Ada.")
            terminal.wait_for(PROMPT)
            terminal.type("\x04")
            return terminal.end()

    assert await asyncio.to_thread(talk) == 0
    said = texts(await store.session("default").get_items())
    assert said == ["My name is Ada", "take a nap", "What is my name?", "Your name is Ada."]


@pytest.mark.parametrize("question", ["Europe/Berlin", "Asia/Kolkata", "UTC"])
def test_the_time_is_known_without_time_zones_of_the_system(question: str) -> None:
    assert "There is no time zone" not in _time(question)


@pytest.mark.parametrize("question", ["Middle/Earth", "Europe", "", "../../etc/passwd", "/etc/passwd", "\0"])
def test_what_is_not_a_time_zone_is_told(question: str) -> None:
    assert "There is no time zone" in _time(question)


def _time(zone: str) -> str:
    program = """if True:
        import asyncio, json, sys
        from agents.tool_context import ToolContext
        from my_agent.agent import current_time
        arguments = json.dumps({"timezone": json.loads(sys.argv[1])})
        context = ToolContext(None, tool_name="current_time", tool_call_id="c", tool_arguments=arguments)
        print(asyncio.run(current_time.on_invoke_tool(context, arguments)))
    """
    environment = {**os.environ, "PYTHONTZPATH": ""}
    command = [sys.executable, "-c", program, json.dumps(zone)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
