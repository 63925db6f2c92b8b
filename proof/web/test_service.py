"""The service as a process: where it listens, how it ends, several workers, inside another app, other models."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from agents import Agent, set_tracing_disabled
from fastapi import FastAPI
from openai import AsyncOpenAI
from pydantic import SecretStr

from my_agent.sessions import SessionRef, SessionStore
from my_agent.web import responses
from proof.support.command import PROGRAM, environment, invoke
from proof.support.helpers import texts
from proof.support.model_servers import ModelServer, chat_completion
from proof.support.scripted_model import say
from proof.support.turns import SlowModel
from proof.web.serving import app_of, everything, serving


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_tracing_disabled(True)
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)


@asynccontextmanager
async def served(*options: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """`serve` in a process of its own; its address."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "serve", *options, stderr=asyncio.subprocess.PIPE, env=environment()
    )
    assert process.stderr is not None
    try:
        address = None
        async with asyncio.timeout(60):
            while address is None:
                line = (await process.stderr.readline()).decode()
                assert line, "it ended"
                address = re.search(r"http://\S+", line)
            async with httpx.AsyncClient(base_url=address[0]) as client:
                while True:
                    try:
                        if (await client.get("/readyz")).status_code == 200:
                            break
                    except httpx.TransportError:
                        pass
                    await asyncio.sleep(0.1)
        yield address[0], process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), timeout=30)


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


async def test_it_is_served_and_remembers_after_a_restart(store: SessionStore) -> None:
    conversation = None
    for said, answer in (("My name is Ada", "Nice to meet you, Ada!"), ("What is my name?", "Your name is Ada.")):
        async with served("--port", free_port(), "--workers", "2") as (url, process):  # noqa: SIM117 - one after the other
            async with AsyncOpenAI(api_key="none", base_url=f"{url}/v1") as client:
                options: Any = {} if conversation is None else {"conversation": conversation}
                done = await client.responses.create(input=said, **options)
                assert done.output_text == answer
                assert done.conversation is not None
                conversation = done.conversation.id
        assert process.returncode in (0, -signal.SIGTERM)


async def test_without_a_way_to_know_users_it_listens_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        refused = await invoke("serve", "--host", host)
        assert (refused.code, refused.out) == (1, "")
        assert "WEB_JWT_SECRET" in refused.err
        assert refused.err.count("\n") == 1
    monkeypatch.setenv("WEB_JWT_SECRET", "short")
    short = await invoke("serve")
    assert short.code == 1
    assert "WEB_JWT_SECRET" in short.err
    assert "short" not in short.err.replace("WEB_JWT_SECRET", "").replace("too short", "")


async def test_a_server_that_is_away_is_one_sentence(
    server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_RETRY_SECONDS", "0.1")
    for name, value in server_environment.items():
        monkeypatch.setenv(name, re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", value))
    refused = await invoke("serve", "--port", free_port())
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in refused.err


async def test_turns_that_run_end_when_the_service_does(
    store: SessionStore, server_environment: dict[str, str]
) -> None:
    model = SlowModel(say("never"), seconds=30)
    app = app_of(server_environment, lambda _: Agent(name="Front", model=model))
    async with asyncio.timeout(15):
        async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
            asking = asyncio.create_task(client.post("/v1/responses", json={"input": "Think", "stream": True}))
            await model.asked.wait()
        with pytest.raises(httpx.TransportError):  # cut off: it does not look as if it were complete
            await asking
    assert await everything(store) == []


async def test_it_can_be_mounted_in_another_app(store: SessionStore, server_environment: dict[str, str]) -> None:
    outer = FastAPI()
    inner = app_of(server_environment)
    outer.mount("/agent", inner)
    async with serving(outer) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/agent/livez")).status_code == 200
        assert (await client.get("/agent/livez", headers={"Host": "10.0.0.1"})).status_code == 200
        answer = await client.post("/agent/v1/responses", json={"input": "My name is Ada"})
        assert answer.status_code == 200, answer.text
        assert (await client.get("/v1/models")).status_code == 404
    await inner.state.service.close()


async def test_a_store_that_is_away_is_not_ready(server_environment: dict[str, str]) -> None:
    away = {name: re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", value) for name, value in server_environment.items()}
    outer = FastAPI()
    outer.mount("/agent", app_of(away, session_retry_seconds=0.1))
    async with serving(outer) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/agent/livez")).status_code == 200
        assert (await client.get("/agent/readyz")).status_code == 503
        answer = await client.get("/agent/v1/conversations")
        assert answer.status_code in (500, 503)
        assert "127.0.0.1" not in answer.text


async def test_a_heartbeat_keeps_a_silent_stream_open(
    store: SessionStore, server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "HEARTBEAT_SECONDS", 1)
    model = SlowModel(say("late"), seconds=2.5)
    app = app_of(server_environment, lambda _: Agent(name="Front", model=model))
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        answer = await client.post("/v1/responses", json={"input": "Think", "stream": True})
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert len(re.findall(r"^: ", answer.text, re.MULTILINE)) >= 2


async def test_models_behind_chat_completions_have_real_ids(
    store: SessionStore, server_environment: dict[str, str]
) -> None:
    server = ModelServer(lambda path, body: chat_completion("hello there"))
    async with server.running():
        settings: Any = {
            "openai_api_key": SecretStr("sk-test"),
            "openai_base_url": server.url,
            "openai_api": "chat_completions",
        }
        app = app_of(server_environment, **settings)
        async with serving(app) as url, AsyncOpenAI(api_key="none", base_url=f"{url}/v1") as client:
            async with client.responses.stream(input="Hi", model="Assistant") as stream:
                events: list[Any] = [event async for event in stream]
                final = await stream.get_final_response()
            assert final.output_text == "hello there"
            assert "__fake_id__" not in str(events)
            listed = await client.conversations.items.list(final.conversation.id)  # type: ignore[union-attr]
            assert len({item.id for item in listed.data}) == 2
            assert "__fake_id__" not in str(listed)
            ref = SessionRef("", final.conversation.id)  # type: ignore[union-attr]
            assert texts(await store.session(ref.session_id).get_items()) == ["Hi", "hello there"]


async def test_the_offline_model_speaks_every_event(store: SessionStore, server_environment: dict[str, str]) -> None:
    async with serving(app_of(server_environment)) as url:
        client = AsyncOpenAI(api_key="none", base_url=f"{url}/v1")
        async with client, client.responses.stream(input="Count words: one two", model="Assistant") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["function_call", "function_call_output", "message"]
    for kind in ("content_part.added", "output_text.done", "content_part.done", "function_call_arguments.done"):
        assert f"response.{kind}" in kinds
