"""What the routes share: the open store, the agent, and whose request it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any, NamedTuple

from agents import Agent
from agents.models.interface import Model
from fastapi import Depends, Request

from ..agent import build_agent
from ..app import open_app_store, open_model
from ..sessions import SessionStore, StoredSession
from ..sessions.records import Id, SessionInfo, SessionRef
from ..settings import Settings
from .auth import user_of
from .shapes import no_conversation

Build = Callable[[Model], Agent[Any]]


class Service:
    """The parts of one app. They are opened at its start, or by the first request if it is mounted in another app."""

    def __init__(self, settings: Settings, build: Build = build_agent, *, embedded: bool = False) -> None:
        self.settings, self._build, self._embedded = settings, build, embedded
        self._stack: AsyncExitStack | None = None
        self._opening = asyncio.Lock()
        self._store: SessionStore | None = None
        self._agent: Agent[Any] | None = None

    async def open(self) -> None:
        """Open what is not open yet.

        Raises:
            SessionStoreError: The store cannot be used, or a setting of the model is missing.
        """
        async with self._opening:
            if self._stack is None:
                async with AsyncExitStack() as stack:
                    self._store = await stack.enter_async_context(
                        open_app_store(self.settings, embedded=self._embedded)
                    )
                    model = await stack.enter_async_context(open_model(self.settings))
                    self._agent = self._build(model)
                    self._stack = stack.pop_all()

    async def close(self) -> None:
        if self._stack is not None:
            await self._stack.aclose()
            self._stack = None

    async def store(self) -> SessionStore:
        if self._stack is None:
            await self.open()
        assert self._store is not None  # noqa: S101 - it is open
        return self._store

    async def agent(self) -> Agent[Any]:
        await self.store()
        assert self._agent is not None  # noqa: S101 - it is open
        return self._agent


class Caller(NamedTuple):
    """A request's user and their conversations."""

    service: Service
    store: SessionStore
    user_id: str

    def ref(self, session_id: Id) -> SessionRef:
        return SessionRef(self.store.owner(self.user_id), session_id).check()

    def session(self, session_id: Id) -> StoredSession:
        return self.store.session(session_id, user_id=self.user_id)

    async def info(self, session_id: str) -> SessionInfo:
        """What is known of a conversation.

        Raises:
            Problem: The user has none with this id.
        """
        info = await self.store.find_session(self.ref(session_id))
        if info is None:
            raise no_conversation(session_id)
        return info


async def caller(request: Request) -> Caller:
    """For `Depends`: first who it is, then everything else."""
    service: Service = request.app.state.service
    user_id = await user_of(request, service.settings)
    return Caller(service, await service.store(), user_id)


Known = Annotated[Caller, Depends(caller)]


async def until_gone(request: Request, work: Awaitable[Any]) -> Any:
    """Wait for work, but stop it when the client goes away."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await task
    finally:
        watching.cancel()
