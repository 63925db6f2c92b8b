"""Keys as people paste them, and servers that are not OpenAI's."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from agents import set_tracing_disabled

from my_agent.agent import build_agent
from my_agent.app import open_model
from my_agent.conversation.turn import Done, TurnFailed, run_turn
from my_agent.sessions import SessionStore
from my_agent.settings import load_settings
from proof.support.command import invoke
from proof.support.helpers import texts
from proof.support.model_servers import Answer, ModelServer, chat_completion, refusal

KEY = "sk-planted-0123456789"


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield
    set_tracing_disabled(True)


def chats(path: str, body: dict[str, Any]) -> Answer:
    """A server with chat completions alone, which counts what it is told."""
    if path.endswith("/chat/completions"):
        return chat_completion(f"I got {len(body['messages'])} messages")
    return refusal(404, {"detail": "Not Found"})


@pytest.mark.parametrize("key", [f"{KEY}\n", f"  {KEY} ", f"{KEY}\r\n", f"\t{KEY}"])
async def test_space_around_a_key_does_not_matter(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_API", "chat_completions")
    async with ModelServer(chats).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f" {server.url}\n")
        monkeypatch.setenv("OPENAI_MODEL", "its-model\n")
        done = await invoke("chat", "Hi")
        assert (done.code, done.out) == (0, "I got 2 messages\n"), done.err
        ((path, headers, body),) = server.requests
        assert (path, headers["authorization"], body["model"]) == (
            "/v1/chat/completions",
            f"Bearer {KEY}",
            "its-model",
        )


async def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_API", "chat_completions")
    async with ModelServer(chats).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        done = await invoke("chat", "Hi")
        assert (done.code, done.out, done.err) == (0, "I got 2 messages\n", "")
        told = await invoke("doctor")
        assert "OPENAI_BASE_URL is set; the default model answers there. OPENAI_API_KEY is not set." in told.out
    async with ModelServer(lambda path, body: refusal(401, {"error": {"message": "no"}})).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        done = await invoke("chat", "Hi")
        assert done.err == "Error: The model's server refused the key, or asks for one. Check OPENAI_API_KEY.\n"


NO_KEYS = [f"\u201c{KEY}\u201d", f"sk\u2013{KEY}", f"{KEY}\n{KEY}", f"{KEY} # mine", f"{KEY}\x7f", f"{KEY}\u200b"]


@pytest.mark.parametrize("key", NO_KEYS)
async def test_a_key_that_cannot_be_one_is_one_sentence(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    done = await invoke("chat", "Hi")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("Error: OPENAI_API_KEY contains characters that no key has")
    assert "planted" not in done.err
    told = await invoke("doctor")
    assert told.code == 1
    assert "OPENAI_API_KEY contains characters" in told.out
    assert "planted" not in told.out + told.err


@pytest.mark.parametrize("url", ["localhost:1234/v1", "http://[planted", "ftp://u:planted@h", "http://h:planted/"])
async def test_an_address_that_cannot_be_one_is_one_sentence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    done = await invoke("chat", "Hi")
    assert (done.code, done.err) == (
        1,
        "Error: OPENAI_BASE_URL is not an address of a server. Write it as https://host/v1.\n",
    )


NO_ROUTE = [
    refusal(404, {"detail": "Not Found"}),
    refusal(404, "404 page not found"),
    refusal(404, "<html>Cannot POST /v1/responses</html>"),
    refusal(405, {"detail": "Method Not Allowed"}),
    refusal(501, "not implemented"),
    refusal(404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}),
]


@pytest.mark.parametrize("answer", NO_ROUTE)
async def test_a_server_without_the_responses_api_is_told_with_what_to_set(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ModelServer(lambda path, body: answer).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        done = await invoke("chat", "Hi")
        assert (done.code, done.err.count("\n")) == (1, 1)
        lacking = f"Error: The server at OPENAI_BASE_URL does not have the Responses API (HTTP {answer[0]}). "
        assert done.err.startswith(f"{lacking}Set OPENAI_API=chat_completions")
        assert answer[0] == 501 or len(server.requests) == 1
        monkeypatch.setenv("OPENAI_API", "chat_completions")
        done = await invoke("chat", "Hi")
        assert done.code == 1
        assert "does not have the API of OPENAI_API=chat_completions" in done.err


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}},
        {"error": {"message": "model 'x' not found, try pulling it first", "type": "api_error", "code": None}},
    ],
)
async def test_a_server_without_the_model_is_another_matter(body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ModelServer(lambda path, _: refusal(404, body)).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        done = await invoke("chat", "Hi")
        assert done.err.startswith("Error: The model does not exist, or this key may not use it. Check OPENAI_MODEL.")


async def test_a_conversation_over_chat_completions_is_remembered(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API", "chat_completions")
    async with ModelServer(chats).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        settings, session = load_settings(), store.session("s")
        async with open_model(settings) as model:
            for expected in ("I got 2 messages", "I got 4 messages"):
                events = [event async for event in run_turn(build_agent(model), session, "Hi", max_items=50)]
                assert events[-1] == Done(expected)
    assert texts(await session.get_items()) == ["Hi", "I got 2 messages", "Hi", "I got 4 messages"]


async def test_an_unknown_api_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API", "planted")
    done = await invoke("chat", "Hi")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "OPENAI_API: Input should be 'responses' or 'chat_completions'" in done.err


ECHO = {"error": {"message": f"Incorrect key {KEY}, Bearer {KEY}", "code": KEY, "param": [KEY]}}


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, None])
async def test_the_key_is_nowhere_in_an_error(
    store: SessionStore, api: str, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API", api)
    async with ModelServer(lambda path, body: refusal(status or 200, ECHO)).running() as server:
        url = server.url if status else "http://127.0.0.1:1/v1"
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        async with open_model(load_settings()) as model:
            model._client.max_retries = 0  # type: ignore[attr-defined]
            turn = run_turn(build_agent(model), store.session("s"), "Hi", max_items=50)
            with pytest.raises(TurnFailed) as caught:
                _ = [event async for event in turn]
    assert caught.value.__cause__ is not None
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    # The test's own frames know it.
    assert KEY not in shown.replace(repr(ECHO), "")
    todo: list[BaseException | None] = [caught.value]
    for each in todo:
        if each is not None:
            assert KEY not in f"{each} {each!r} {vars(each)}"
            request = getattr(each, "request", None)
            assert KEY not in str(request.headers.raw if request is not None else "")
            todo += [other for other in (each.__cause__, each.__context__) if other not in todo]
