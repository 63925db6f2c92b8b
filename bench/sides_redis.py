"""The three sides of the Redis benchmark: ours, the SDK's RedisSession, and redis-py's bare connections (the floor)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from agents.extensions.memory import RedisSession as SdkSession
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, parse_url

from my_agent.sessions import RedisSession
from side import Encoder, Goal, Items, Make

NAME = "Redis (Valkey)"
ADDRESS = "REDIS_URL"
MODES = {"file written every second": True}

GOALS = {
    "append 2": Goal((5, 15, 25), 1.7),
    "read 20": Goal((1.8, 4, 4), 1.4),
    "pop": Goal((1.3, 5, 5), 0),
    "turn": Goal((4, 6, 6), 1.7),
    "request": Goal((0, 0, 0), 0),
}


class Floor:
    """The same bytes through bare connections: one plain command, encoded before, not decoded after.

    No repeated-batch check, no hash of the session, no index, no script. Nothing that keeps a promise can be faster.
    """

    def __init__(self, idle: list[Connection], session_id: str) -> None:
        self._idle, self._key = idle, f"floor:{session_id}"
        self._encoder = Encoder()

    async def add_items(self, items: Items) -> object:
        return await self._send("RPUSH", self._key, *self._encoder.texts(items))

    async def get_items(self, limit: int) -> object:
        return await self._send("LRANGE", self._key, -limit, -1)

    async def pop_item(self) -> object:
        return await self._send("RPOP", self._key)

    async def _send(self, *command: Any) -> object:
        connection = self._idle.pop()
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            self._idle.append(connection)


@asynccontextmanager
async def sides(environment: Mapping[str, str], clients: int) -> AsyncIterator[dict[str, list[Make]]]:
    """For each side, a conversation per client; the others have as many connections as there are clients."""
    url = environment[ADDRESS]
    os.environ[ADDRESS] = url
    connections = [Connection(**parse_url(url), decode_responses=True) for _ in range(clients)]
    for connection in connections:
        await connection.connect()
    idle = list(connections)
    client = Redis.from_url(url, max_connections=clients)
    names = [f"bench-{clients}-{n}" for n in range(clients)]
    async with RedisSession("keeps the connections open"):
        yield {
            "ours": [partial(RedisSession, name) for name in names],
            "sdk": [partial(SdkSession, name, redis_client=client) for name in names],
            "floor": [partial(Floor, idle, name) for name in names],
        }
        await client.flushall()
    await client.aclose()
    for connection in connections:
        await connection.disconnect()
