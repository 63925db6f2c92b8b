"""Talking to the agent, from scripts and at a terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from my_agent import app
from my_agent.sessions import SessionRef, SessionStore
from my_agent.settings import Settings
from proof.support import slow_agent
from proof.support.command import Terminal, invoke, run
from proof.support.helpers import texts

PROMPT = ">\b"  # then the cursor moves to where the typing begins
SLOW_AGENT = (sys.executable, str(Path(slow_agent.__file__)))


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def said(store: SessionStore, session: str = "default", user: str = "") -> list[str]:
    return texts(await store.session(session, user_id=user).get_items())


# ── From scripts ────────────────────────────────────────────────────────────


async def test_two_processes_remember_each_other() -> None:
    first = await run("chat", "My name is Ada")
    assert (first.code, first.out) == (0, "Nice to meet you, Ada!\n")
    second = await run("chat", "What is my name?")
    assert (second.code, second.out) == (0, "Your name is Ada.\n")
    # In the order of the conversation, and nothing else.
    shown = await invoke("sessions", "show", "default")
    assert [block.split("\n")[1] for block in shown.out.strip().split("\n\n")] == [
        "My name is Ada",
        "Nice to meet you, Ada!",
        "What is my name?",
        "Your name is Ada.",
    ]


async def test_sessions_and_users_are_kept_apart(store: SessionStore) -> None:
    await invoke("chat", "My name is Ada", "--session", "s", "--user", "ada")
    for where in (["--session", "s"], ["--session", "t", "--user", "ada"]):
        assert "You have not told me" in (await invoke("chat", "What is my name?", *where)).out
    assert len(await said(store, "s", "ada")) == 2


async def test_a_message_can_come_from_stdin(store: SessionStore) -> None:
    done = await invoke("chat", stdin="My name is Ada,\nby the way\n")
    assert (done.code, done.out) == (0, "Nice to meet you, Ada!\n")
    assert (await said(store))[0] == "My name is Ada,\nby the way"


async def test_stdin_without_a_message_is_wrong_usage(store: SessionStore) -> None:
    assert (await invoke("chat", stdin=" \n")).code == 2
    done = await invoke("chat", stdin=b"\xff\xfe")
    assert (done.code, done.err) == (1, "Error: What came in on stdin is not UTF-8 text.\n")
    assert (await store.list_sessions()).sessions == []


async def test_tools_are_told_on_stderr() -> None:
    done = await invoke("chat", "How many words: one two three")
    assert done.out == "Here is what I found: 3\n"
    assert '→ count_words({"text": "one two three"})\n← 3\n' in done.err


@pytest.mark.parametrize(("setting", "shown"), [("", True), ("1", True), ("0", False)])
async def test_what_a_tool_raises_is_shown_to_the_developer_and_not_to_the_model(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, setting: str, shown: bool
) -> None:
    monkeypatch.setenv("SHOW_TOOL_ERRORS", setting)
    done = await run("chat", "look up: Ada", program=SLOW_AGENT, traceback=True)
    assert done.code == 0
    assert "An error occurred while running the tool" in done.out
    for words in ("Traceback", "slow_agent.py", "LookupError: no entry \\x1b[31mAda", "SHOW_TOOL_ERRORS"):
        assert (words in done.err) is shown
    assert "\x1b[31m" not in done.err
    assert "no entry" not in done.out + "".join(await store.tail(SessionRef("", "default"), None))


async def test_where_the_parts_for_development_are_missing_it_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "has_dev", lambda: False)
    assert not app.shows_tool_errors(Settings())
    monkeypatch.setenv("SHOW_TOOL_ERRORS", "true")
    assert app.shows_tool_errors(Settings())


async def test_a_strange_session_is_an_error() -> None:
    done = await invoke("chat", "Hi", "--session", "x" * 1001)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("Error: session_id is longer than 1000 bytes")


async def test_a_model_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    done = await invoke("chat", "Hi")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: The model's server cannot be reached.")
    assert done.err.count("\n") == 1


async def test_an_approval_needs_a_person() -> None:
    done = await run("chat", "delete the files", program=SLOW_AGENT)
    assert (done.code, done.out) == (1, "")
    assert "Error: The agent needs approval to call delete_files. The turn waits: run `chat` at a terminal" in done.err
    done = await run("chat", "hello", program=SLOW_AGENT)
    assert (done.code, done.out) == (1, "")
    assert "Error: An earlier turn waits for a decision on: delete_files." in done.err


# ── At a terminal ───────────────────────────────────────────────────────────


async def test_a_conversation_at_a_terminal(store: SessionStore) -> None:
    def talk() -> int:
        with Terminal("chat", "--session", "s") as terminal:
            terminal.wait_for('Session "s", nothing said yet.')
            for message, reply in (
                ("My name is Ada", "Nice to meet you, Ada!"),
                ("What is my name?", "Your name is Ada."),
                ("\x1b[A", "Your name is Ada."),  # arrow up: the line before
                ("  ", ""),
            ):
                terminal.wait_for(PROMPT)
                terminal.type(message + "\r")
                terminal.wait_for(reply)
            terminal.wait_for(PROMPT)
            terminal.type("given up\x03")
            terminal.wait_for(PROMPT)
            terminal.type("\x04")
            return terminal.end()

    assert await asyncio.to_thread(talk) == 0
    assert len(await said(store, "s")) == 6


@pytest.mark.parametrize("word", ["exit", "QUIT", " /exit ", "/quit"])
async def test_a_word_leaves_a_conversation(store: SessionStore, word: str) -> None:
    def talk() -> int:
        with Terminal("chat") as terminal:
            terminal.wait_for("exit leaves, /help tells more.")
            terminal.wait_for(PROMPT)
            terminal.type("/help\r")
            terminal.wait_for("Ctrl-C               stop an answer")
            terminal.wait_for(PROMPT)
            terminal.type(f"{word}\r")
            return terminal.end()

    assert await asyncio.to_thread(talk) == 0
    assert await said(store) == []


def stop_two_answers(terminal: Terminal) -> None:
    """Ctrl-C while the slow agent answers, and while its tool runs; then it answers."""
    for message, begun in (("My name is Ada", "Nice "), ("take a nap", "→ take_nap({})")):
        terminal.wait_for(PROMPT)
        terminal.type(message + "\r")
        terminal.wait_for(begun)
        terminal.type("\x03")
        terminal.wait_for("Stopped. Nothing of this turn is stored.")
    terminal.wait_for(PROMPT)
    terminal.type("What is my name?\r")
    terminal.wait_for("You have not told me your name yet.")
    terminal.wait_for(PROMPT)


async def test_ctrl_c_stops_an_answer_and_a_second_one_leaves(store: SessionStore) -> None:
    def talk() -> tuple[int, str]:
        with Terminal("chat", program=SLOW_AGENT) as terminal:
            stop_two_answers(terminal)
            terminal.type("\x03")
            return terminal.end(), terminal.seen

    code, seen = await asyncio.to_thread(talk)
    assert code == 0
    assert "meet you" not in seen
    assert await said(store) == ["What is my name?", "You have not told me your name yet."]


async def test_ctrl_c_ends_a_single_answer(store: SessionStore) -> None:
    def talk() -> int:
        with Terminal("chat", "My name is Ada", program=SLOW_AGENT) as terminal:
            terminal.wait_for("Nice ")
            terminal.type("\x03")
            terminal.wait_for("Stopped. Nothing of this turn is stored.")
            return terminal.end()

    assert await asyncio.to_thread(talk) == 130
    assert await said(store) == []


async def test_a_turn_leaves_one_line_of_json_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = await run("chat", "My name is Ada", "--user", "ada")
    assert "Turn:" not in quiet.err
    monkeypatch.setenv("LOG_FORMAT", "json")
    done = await run("chat", "My name is Ada", "--user", "ada")
    assert done.out == "Nice to meet you, Ada!\n"
    lines = [json.loads(line) for line in done.err.splitlines()]
    (turn,) = [line for line in lines if "outcome" in line]
    assert (turn["outcome"], turn["session"], turn["user"], turn["items"]) == ("done", "default", "ada", 2)
    assert (turn["level"], turn["logger"]) == ("INFO", "my_agent.conversation.report")
    assert "My name" not in done.err


async def test_a_person_decides_on_a_tool(store: SessionStore) -> None:
    def talk() -> str:
        with Terminal("chat", program=SLOW_AGENT) as terminal:
            for decision in ("n", "y"):
                terminal.wait_for(PROMPT)
                terminal.type("delete the files\r")
                terminal.wait_for("The agent wants to call delete_files({})")
                terminal.wait_for("Allow it? [y/N]")
                terminal.type(decision + "\r")
                terminal.wait_for("Here is what I found: ")
            terminal.wait_for("gone.")
            terminal.wait_for(PROMPT)
            terminal.type("ask Grace\r")
            terminal.wait_for("→ Grace takes over")
            terminal.wait_for(PROMPT)
            terminal.type("\x04")
            assert terminal.end() == 0
            return terminal.seen

    seen = await asyncio.to_thread(talk)
    assert "\\x1b[31mAll is gone." in seen
    assert "\x1b[31m" not in seen
    outputs = [json.loads(row)["output"] for row in await store.session("default").tail(None) if '"output"' in row]
    assert outputs[:2] == ["Tool execution was not approved.", "\x1b[31mAll is gone."]


async def test_an_answer_that_fails_does_not_end_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")

    def talk() -> int:
        with Terminal("chat") as terminal:
            for _ in range(2):
                terminal.wait_for(PROMPT)
                terminal.type("Hi\r")
                terminal.wait_for("Error: The model's server cannot be reached.")
            terminal.wait_for(PROMPT)
            terminal.type("\x04")
            return terminal.end()

    assert await asyncio.to_thread(talk) == 0
