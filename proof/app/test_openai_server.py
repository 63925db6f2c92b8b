"""The road to a real model: over HTTP, to a server that speaks OpenAI's Responses API (aimock, from npm), on loopback.

What the server was sent is what counts: the second turn must carry the first one, read back from the database.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from my_agent.app import open_model
from my_agent.conversation.turn import Done, TextDelta, ToolCalled, TurnFailed, run_turn
from my_agent.dev.offline import OfflineModel
from my_agent.sessions import SessionStore
from my_agent.settings import Settings
from proof.support.helpers import missing
from proof.support.sample_agent import build_agent

PACKAGE = "@copilotkit/aimock@1.43.0"
KEY = "a-key-for-the-test"
FIXTURES = [
    {"match": {"userMessage": "My name is Ada"}, "response": {"content": "Nice to meet you, Ada, said the server."}},
    {"match": {"userMessage": "What is my name?"}, "response": {"content": "You are Ada."}},
    {
        "match": {"userMessage": "Count please", "hasToolResult": False},
        "response": {"toolCalls": [{"name": "count_words", "arguments": {"text": "one two three"}}]},
    },
    {"match": {"userMessage": "Count please", "hasToolResult": True}, "response": {"content": "Three words."}},
    {"match": {"userMessage": "Fail"}, "response": {"error": {"message": "planted", "type": "x"}, "status": 400}},
    {"match": {"userMessage": "Break"}, "response": {"error": {"message": "planted", "type": "x"}, "status": 500}},
]


@pytest.fixture(scope="session")
def aimock(pytestconfig: pytest.Config) -> Path:
    """The server's program; installed once, whatever process asks first."""
    if shutil.which("npm") is None:
        missing("the OpenAI-compatible server comes from npm, which is not here: install Node.js")
    folder = Path(os.environ.get("AIMOCK_DIR") or pytestconfig.cache.mkdir("aimock"))
    program = folder / "node_modules" / ".bin" / "llmock"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            options = ["--silent", "--no-save", "--no-audit", "--no-fund"]
            subprocess.run(["npm", "install", *options, "--prefix", str(folder), PACKAGE], check=True, timeout=300)
    return program


class Server:
    """A running server, and what it was sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._old = 0

    def requests(self) -> list[dict[str, Any]]:
        """The bodies of the requests to the Responses API since `forget`."""
        return self._all()[self._old :]

    def forget(self) -> None:
        self._old = len(self._all())

    def _all(self) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{self.url}/__aimock/journal", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return [entry["body"] for entry in json.load(answer) if entry["path"].endswith("/responses")]


@pytest.fixture(scope="session")
def running(aimock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": FIXTURES}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--strict", "--log-level", "silent", "--fixtures", str(folder / "fixtures.json")]
    with subprocess.Popen([str(aimock), *options], env={**os.environ, "AIMOCK_API_KEYS": KEY}) as process:
        server = Server(f"http://127.0.0.1:{port}")
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    server.requests()
                    break
                except OSError:
                    assert process.poll() is None, "the server did not start"
                    assert time.monotonic() < deadline, "the server does not answer"
                    time.sleep(0.05)
            yield server
        finally:
            process.terminate()


@pytest.fixture
def server(running: Server) -> Server:
    """The server, as if nothing had been asked yet."""
    running.forget()
    return running


def settings_for(server: Server, key: str = KEY) -> Settings:
    return Settings(openai_api_key=SecretStr(key), openai_base_url=f"{server.url}/v1", openai_model="gpt-test")


def said(request: dict[str, Any]) -> list[str]:
    """All messages that a request carried, in order."""
    texts = []
    for message in request["input"] if "input" in request else request["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        if message.get("role") in ("user", "assistant") and content:
            texts.append(f"{message['role']}: {content}")
    return texts


def roles(request: dict[str, Any]) -> list[str]:
    return [message["role"] for message in request["messages"] if message["role"] != "system"]


async def ask(store: SessionStore, settings: Settings, message: str) -> list[Any]:
    session = store.session("s", user_id="ada")
    async with open_model(settings) as model:
        return [event async for event in run_turn(build_agent(model), session, message, max_items=50)]


async def test_the_second_turn_carries_the_first(store: SessionStore, server: Server) -> None:
    first = await ask(store, settings_for(server), "My name is Ada")
    second = await ask(store, settings_for(server), "What is my name?")
    assert first[-1] == Done("Nice to meet you, Ada, said the server.")
    assert second[-1] == Done("You are Ada.")
    requests = server.requests()
    assert [request["model"] for request in requests] == ["gpt-test", "gpt-test"]
    assert said(requests[1]) == [
        "user: My name is Ada",
        "assistant: Nice to meet you, Ada, said the server.",
        "user: What is my name?",
    ]


async def test_the_answer_streams(store: SessionStore, server: Server) -> None:
    events = await ask(store, settings_for(server), "My name is Ada")
    pieces = [event.text for event in events if isinstance(event, TextDelta)]
    assert len(pieces) > 1
    assert "".join(pieces) == "Nice to meet you, Ada, said the server."


async def test_a_tool_call_goes_through(store: SessionStore, server: Server) -> None:
    events = await ask(store, settings_for(server), "Count please")
    assert [event.name for event in events if isinstance(event, ToolCalled)] == ["count_words"]
    assert events[-1] == Done("Three words.")
    await ask(store, settings_for(server), "My name is Ada")
    requests = server.requests()
    assert len(requests) == 3
    # The call and its output are part of what is remembered, once and in their place.
    assert roles(requests[2]) == ["user", "assistant", "tool", "assistant", "user"]
    carried, output = requests[2]["messages"][2:4]
    assert carried["tool_calls"][0]["function"]["name"] == "count_words"
    assert (output["tool_call_id"], output["content"]) == (carried["tool_calls"][0]["id"], "3")


async def test_a_wrong_key_is_said_and_not_shown(store: SessionStore, server: Server) -> None:
    with pytest.raises(
        TurnFailed, match=r"^The model's server refused the key, or asks for one. Check OPENAI_API_KEY.$"
    ):
        await ask(store, settings_for(server, key="planted"), "My name is Ada")


async def test_an_error_of_the_server_is_said(store: SessionStore, server: Server) -> None:
    with pytest.raises(TurnFailed, match=r"^The model's server answered with an error \(4"):
        await ask(store, settings_for(server), "Fail")


async def test_a_broken_server_is_asked_again_and_then_said(store: SessionStore, server: Server) -> None:
    with pytest.raises(TurnFailed, match=r"^The model's server answered with an error \(500\)\. Try again\."):
        await ask(store, settings_for(server), "Break")
    assert len(server.requests()) == 3
    assert await store.session("s", user_id="ada").get_items() == []


async def test_a_server_that_is_down_is_said(store: SessionStore) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = settings_for(Server(f"http://127.0.0.1:{probe.getsockname()[1]}"))
        with pytest.raises(TurnFailed, match=r"^The model's server cannot be reached"):
            await ask(store, settings, "My name is Ada")


@pytest.mark.parametrize("key", [None, SecretStr("")])
async def test_without_a_key_the_offline_model_answers_and_says_so(
    key: SecretStr | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with open_model(Settings(openai_api_key=key)) as model:
            assert isinstance(model, OfflineModel)
    assert "OPENAI_API_KEY is not set: the offline model answers" in caplog.text
