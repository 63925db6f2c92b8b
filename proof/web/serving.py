"""The web service of the project on a free port of loopback, in the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from agents import Agent
from fastapi import FastAPI

from my_agent.sessions import SessionStore
from my_agent.settings import Settings
from my_agent.web.app import create_app

SECRET = "a secret that is long enough for a signature"


@asynccontextmanager
async def serving(app: FastAPI, port: int = 0) -> AsyncIterator[str]:
    """The address of the running app."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task


def app_of(environment: dict[str, str], build: Callable[[Any], Agent[Any]] | None = None, **settings: Any) -> FastAPI:
    """An app on the store of the test."""
    made = Settings().with_environment(environment).model_copy(update=settings)
    return create_app(made) if build is None else create_app(made, build)


async def everything(store: SessionStore) -> list[str]:
    return [info.session_id for info in (await store.list_sessions()).sessions]
