"""Puts the web service together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from ..agent import build_agent
from ..settings import Settings, load_settings
from . import conversations, responses
from .guard import Guard
from .problems import Problem, handle_problems
from .service import Build, Known, Service
from .shapes import page

PAGE = Path(__file__).with_name("page")
READY_SECONDS = 5.0


def served() -> FastAPI:
    """What `serve` runs."""
    return create_app(embedded=True)


def create_app(settings: Settings | None = None, build: Build = build_agent, *, embedded: bool = False) -> FastAPI:
    """The service. It can be mounted in another app, also below a prefix.

    Args:
        settings: None: those of the environment.
        build: Makes the agent from a model.
        embedded: Use the embedded server in a checkout; True only in `serve`.
    """
    settings = settings or load_settings()
    service = Service(settings, build, embedded=embedded)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.open()
        try:
            yield
        finally:
            await service.close()

    # FastAPI's pages about the API load their programs from elsewhere.
    app = FastAPI(title="Agent", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    handle_problems(app)
    app.include_router(responses.router)
    app.include_router(conversations.router)

    @app.get("/v1/models")
    async def models(known: Known) -> dict[str, Any]:
        name = (await known.service.agent()).name
        return page([{"id": name, "object": "model", "created": 0, "owned_by": "agent"}], name, False)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(known: Known) -> dict[str, Any]:
        return get_openapi(title=app.title, version="1", routes=app.routes)

    @app.get("/livez", include_in_schema=False)
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> dict[str, str]:
        try:
            async with asyncio.timeout(READY_SECONDS):
                await (await service.store()).ping()
        except Exception:
            raise Problem(503, "The store cannot be used.", code="store_unavailable") from None
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
        )
    app.add_middleware(Guard, hosts=settings.allowed_hosts, max_bytes=settings.web_max_body_bytes)
    return app
