"""The commands about turns: what they cost, what waits, copies, stopping; summaries of `chat`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agents import set_tracing_disabled

from my_agent.sessions import SessionStore
from my_agent.sessions.records import SessionRef, new_id
from proof.app.test_summaries import SUMMARY, compacted, long_history
from proof.support.command import invoke
from proof.support.helpers import texts
from proof.support.model_servers import Answer, ModelServer
from proof.support.scripted_model import CACHED, INPUT, OUTPUT, call, say
from proof.support.turns import KEY, agent_of, outcome, session_of

Damage = Callable[[int, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_tracing_disabled(True)
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


async def test_turns_are_listed_with_what_they_cost(store: SessionStore) -> None:
    for word in ("one", "two"):
        await outcome(agent_of(say(word)), session_of(store))
    shown = await invoke("sessions", "turns", "chat", "--user", "ada")
    assert shown.out.splitlines() == [f"chat\tada\tdone\tFront\t{INPUT} + {OUTPUT} tokens"] * 2
    assert shown.err == (
        f"In all: 2 requests, {2 * INPUT} input tokens, {2 * CACHED} cached tokens, {2 * OUTPUT} output tokens.\n"
    )
    (newest,) = (await invoke("sessions", "turns", "chat", "--user", "ada", "--limit", "1", "--json")).out.splitlines()
    fields = json.loads(newest)
    assert (fields["turn"], fields["total"]["requests"]) == ((await store.turns(KEY))[0].id, 2)


async def test_what_waits_for_an_approval_is_listed_over_all_sessions(store: SessionStore) -> None:
    nothing = await invoke("sessions", "turns")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "Nothing waits for an approval.\n")
    await outcome(agent_of(say("hi")), store.session("other", user_id="bob"))
    await outcome(agent_of(call("launch_rocket", text="\x1b[31mApollo")), session_of(store))
    for options in ((), ("--user", "ada")):
        (line,) = (await invoke("sessions", "turns", *options)).out.splitlines()
        assert line.startswith("chat\tada\tapproval\tFront\t")
        assert "launch_rocket(" in line
        assert "\x1b" not in line
    assert (await invoke("sessions", "turns", "--user", "bob")).out == ""


async def test_turns_of_a_session_that_is_not_there(store: SessionStore) -> None:
    unknown = await invoke("sessions", "turns", "chat")
    assert (unknown.code, unknown.out) == (1, "")
    assert "no session" in unknown.err
    await session_of(store).add_items(long_history())
    assert (await invoke("sessions", "turns", "chat", "--user", "ada")).err == "No turn is noted.\n"


async def test_a_session_is_copied(store: SessionStore) -> None:
    await session_of(store).add_items(long_history(2))
    whole = await invoke("sessions", "fork", "chat", "copy", "--user", "ada")
    assert (whole.code, whole.out, whole.err) == (0, "", 'Copied to session "copy" of user "ada".\n')
    before = await invoke("sessions", "fork", "chat", "edited", "--user", "ada", "--before-message", "1")
    assert (before.code, before.out) == (0, "question 1\n")
    assert texts(await store.session("edited", user_id="ada").get_items()) == ["question 0", "answer 0"]
    for arguments in (("chat", "copy"), ("nowhere", "new"), ("chat", "new", "--before-message", "9")):
        refused = await invoke("sessions", "fork", *arguments, "--user", "ada")
        assert (refused.code, refused.out) == (1, "")
        assert refused.err.startswith("Error: ")
    assert await store.find_session(SessionRef("ada", "new")) is None


async def test_a_run_is_stopped(store: SessionStore) -> None:
    idle = await invoke("sessions", "stop", "chat", "--user", "ada")
    assert (idle.code, idle.err) == (1, 'Error: No run is at work on session "chat" of user "ada".\n')
    token = new_id()
    assert await store.lease(KEY, token, 30) is not None
    assert (await invoke("sessions", "stop", "chat", "--user", "ada")).code == 0
    assert not await store.renew(KEY, token, 30)


# ── Summaries ───────────────────────────────────────────────────────────────


def answering(path: str, body: dict[str, Any]) -> Answer:
    if path.endswith("/compact"):
        return compacted(path, body)
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "fine", "annotations": []}],
    }
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "gpt-test",
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    event = {"type": "response.completed", "sequence_number": 0, "response": response}
    return 200, "text/event-stream", f"event: response.completed\ndata: {json.dumps(event)}\n\n"


async def test_chat_has_long_histories_summarised(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await session_of(store).add_items(long_history(10))
    server = ModelServer(answering)
    async with server.running():
        variables = {"OPENAI_BASE_URL": server.url, "OPENAI_MODEL": "gpt-test", "SUMMARISE_AFTER_ITEMS": "11"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        said = await invoke("chat", "Hello", "--session", "chat", "--user", "ada")
        assert (said.code, said.out) == (0, "fine\n")
        assert said.err == "The conversation was long: a summary is in its place now.\n"
        assert (await session_of(store).get_items())[-1] == SUMMARY
        monkeypatch.setenv("OPENAI_MODEL", "llama")
        again = await invoke("chat", "Hello", "--session", "chat", "--user", "ada")
        assert (again.code, again.out) == (0, "fine\n")
        assert "llama" in again.err
        assert again.err.endswith("The answer is stored.\n")
