"""`serve`: the web service."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_address
from typing import Annotated

import typer

from .console import CommandError, command_settings, note

GRACE_SECONDS = 10
"""How long running turns may take to end when the service stops."""


def serve(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many processes.")] = 1,
) -> None:
    """Serve the agent over HTTP: OpenAI's Responses API, and a page to talk on."""
    settings = command_settings()
    from ..web.identity import is_protected

    if not is_protected(settings):
        if not _is_loopback(host):
            raise CommandError(
                f"Without a way to know users the service listens on this machine only, not on {host}. "
                "Set WEB_JWT_SECRET, WEB_JWKS_URL or WEB_API_KEY first."
            )
        note("Everybody on this machine may use it: neither WEB_JWT_SECRET, WEB_JWKS_URL nor WEB_API_KEY is set.")
    import uvicorn

    from ..app import embedded_server, open_app_store, open_model, start_ahead

    async def look() -> None:
        async with open_app_store(settings), open_model(settings):
            pass

    if embedded_server(settings, embedded=True).used:
        start_ahead(settings, embedded=True)
    else:
        asyncio.run(look())  # what is wrong is one sentence here
    note(f"http://{host}:{port}  Ctrl-C ends it.")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    uvicorn.run(
        f"{__package__.partition('.')[0]}.web.app:served",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        access_log=False,  # ids of conversations are in the paths
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
