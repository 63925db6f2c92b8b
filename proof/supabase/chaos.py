"""Where chaos takes place: PostgreSQL with fsync on, PostgREST, and a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from proof.support.chaos_servers import Servers, Stage, faults_of_a_network
from proof.support.relay import Relay


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """A project, a relay in front of its gateway, and what can be broken."""
    servers = Servers(folder)
    async with servers.running() as environment:
        url = environment["SUPABASE_URL"]
        relay = Relay("127.0.0.1", urlsplit(url).port or 0)

        async def terminate_backends() -> None:
            connection = await asyncpg.connect(environment["SUPABASE_DB_URL"])
            try:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'authenticator'"
                )
            finally:
                await connection.close()

        faults = {
            **faults_of_a_network(relay),
            "pg_terminate_backend": terminate_backends,
            "kill -9 of PostgREST": lambda: servers.kill("postgrest"),
            "kill -9 of PostgreSQL": lambda: servers.kill("pg"),
            "kill -9 of the gateway": lambda: servers.kill("gateway"),
        }
        async with relay.running():
            yield Stage({**environment, "SUPABASE_URL": relay.url(url)}, faults)
