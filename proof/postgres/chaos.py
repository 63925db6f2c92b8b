"""Where chaos takes place: PostgreSQL with fsync on."""

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
    """A server, a relay in front of it, and what can be broken."""
    servers = Servers(folder)
    async with servers.running() as environment:
        url = environment["DATABASE_URL"]
        parts = urlsplit(url)
        relay = Relay(parts.hostname or "", parts.port or 0)

        async def terminate_backends() -> None:
            connection = await asyncpg.connect(url)
            try:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            finally:
                await connection.close()

        faults = {
            **faults_of_a_network(relay),
            "pg_terminate_backend": terminate_backends,
            "kill -9 of PostgreSQL": lambda: servers.kill("pg"),
        }
        async with relay.running():
            yield Stage({"DATABASE_URL": relay.url(url)}, faults)
