"""Where chaos takes place: Redis with a file that is on the disk before a write is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis

from my_agent.dev.redis import RedisEngine
from proof.support.chaos_servers import Servers, Stage, faults_of_a_network
from proof.support.relay import Relay


class Durable(RedisEngine):
    APPENDFSYNC = "always"


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """A server, a relay in front of it, and what can be broken."""
    servers = Servers(folder, Durable)
    async with servers.running() as environment:
        url = environment["REDIS_URL"]
        relay = Relay("127.0.0.1", urlsplit(url).port or 0)

        def kill_clients() -> None:
            with Redis.from_url(url) as client:
                client.client_kill_filter(_type="normal", skipme=True)

        def forget_scripts() -> None:
            with Redis.from_url(url) as client:
                client.script_flush()

        faults = {
            **faults_of_a_network(relay),
            "CLIENT KILL": lambda: asyncio.to_thread(kill_clients),
            "SCRIPT FLUSH": lambda: asyncio.to_thread(forget_scripts),
            "kill -9 of Redis": lambda: servers.kill("redis"),
        }
        async with relay.running():
            yield Stage({"REDIS_URL": relay.url(url)}, faults)
