"""Gives PostgREST the addresses and keys of Supabase: the gateway of the development server, on loopback.

`python supabase_gateway.py roles` gives a database what Supabase has and PostgreSQL lacks, and
`python supabase_gateway.py serve PORT` passes `/rest/v1/…` on to PostgREST. The rest comes from the environment:

    DATABASE_URL             of the owner of the database (roles)
    AUTHENTICATOR_PASSWORD   for PostgREST's login (roles)
    POSTGREST_URL            where PostgREST listens (serve)
    TOKENS                   JSON: for each key that is accepted, the token that PostgREST gets in its place (serve)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PREFIX = "/rest/v1"
TIMEOUT = 60.0
"""In seconds; more than the database grants a statement."""
METHODS = ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"]
# What concerns one connection alone, and what the other side will set itself.
NOT_PASSED_ON = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"host", b"apikey", b"authorization"}

# The words of the hosted gateway.
NO_KEY = {"message": "No API key found in request", "hint": "No `apikey` request header or url param was found."}
WRONG_KEY = {
    "message": "Invalid API key",
    "hint": "Double check your Supabase `anon` or `service_role` API key.",
}


def application(postgrest: str, tokens: Mapping[str, str]) -> Starlette:
    """The gateway in front of `postgrest`. A key is good for its own token, or for the one that comes with it."""
    client = httpx.AsyncClient(base_url=postgrest, timeout=TIMEOUT, trust_env=False)

    async def forward(request: Request) -> Response:
        key = request.headers.get("apikey")
        if key is None or key not in tokens:
            return JSONResponse(NO_KEY if key is None else WRONG_KEY, 401)
        authorization = request.headers.get("authorization", "")
        if authorization in ("", f"Bearer {key}"):
            authorization = f"Bearer {tokens[key]}"
        headers = [(name, value) for name, value in request.headers.raw if name not in NOT_PASSED_ON]
        headers.append((b"authorization", authorization.encode("latin-1")))
        path = request.scope["raw_path"].removeprefix(PREFIX.encode())
        url = client.base_url.copy_with(raw_path=path + b"?" + request.scope["query_string"])
        body = await request.body()
        passed_on = client.build_request(request.method, url, headers=headers, content=body)
        try:
            answer = await client.send(passed_on, stream=True)
        except httpx.TransportError:
            return JSONResponse({"message": "PostgREST does not answer: see postgrest.log."}, 503)
        passed_back = {name: value for name, value in answer.headers.items() if name.encode() not in NOT_PASSED_ON}
        done = BackgroundTask(answer.aclose)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, passed_back, background=done)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route(PREFIX + "/{path:path}", forward, methods=METHODS)], lifespan=lifespan)


async def add_roles(url: str, password: str) -> None:
    """Add what `supabase_roles.sql` holds, and let PostgREST log in."""
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(Path(__file__).with_name("supabase_roles.sql").read_text(encoding="utf-8"))
        quoted = await connection.fetchval("SELECT quote_literal($1::text)", password)
        await connection.execute(f"ALTER ROLE authenticator LOGIN PASSWORD {quoted}")
    finally:
        await connection.close()


def main(what: str, port: str = "0") -> None:
    if what == "roles":
        asyncio.run(add_roles(os.environ["DATABASE_URL"], os.environ["AUTHENTICATOR_PASSWORD"]))
    else:
        gateway = application(os.environ["POSTGREST_URL"], json.loads(os.environ["TOKENS"]))
        uvicorn.run(gateway, host="127.0.0.1", port=int(port), log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
