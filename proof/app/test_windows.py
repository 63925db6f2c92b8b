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
from proof.app.test_cli_chat import stop_two_answers
from proof.support.command import Terminal
from proof.support.helpers import texts

ROOT = str(Path(__file__).parents[2])
AGENT = (sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); import proof.support.windows_agent")


async def test_ctrl_c_stops_an_answer_without_signal_handlers_of_the_loop(
    store: SessionStore, server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)

    def talk() -> int:
        with Terminal("chat", program=AGENT) as terminal:
            stop_two_answers(terminal)
            terminal.type("\x04")
            return terminal.end()

    assert await asyncio.to_thread(talk) == 0
    said = texts(await store.session("default").get_items())
    assert said == ["What is my name?", "You have not told me your name yet."], "of a stopped answer nothing is"


def test_a_time_zone_is_known_without_those_of_the_system_and_what_is_none_is_told() -> None:
    zones = ("Europe/Berlin", "Asia/Kolkata", "UTC")
    others = ("Middle/Earth", "Europe", "", "../../etc/passwd", "/etc/passwd", "\0")
    program = """if True:
        import asyncio, json, sys
        from agents.tool_context import ToolContext
        from my_agent.agent import current_time
        for zone in json.loads(sys.argv[1]):
            arguments = json.dumps({"timezone": zone})
            context = ToolContext(None, tool_name="current_time", tool_call_id="c", tool_arguments=arguments)
            print(asyncio.run(current_time.on_invoke_tool(context, arguments)))
    """
    environment = {**os.environ, "PYTHONTZPATH": ""}
    command = [sys.executable, "-c", program, json.dumps([*zones, *others])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    unknown = ["There is no time zone" in line for line in done.stdout.splitlines()]
    assert unknown == [False] * len(zones) + [True] * len(others)
