"""The three sides of the PostgreSQL benchmark: ours, the SDK's SQLAlchemySession, and the bare driver as the floor."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
from agents.extensions.memory import SQLAlchemySession
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import create_async_engine

from my_agent.sessions import PostgresSession, PostgresSettings
from my_agent.sessions.backend import migrations
from my_agent.sessions.postgres.schema import upgrade
from side import Encoder, Goal, Items, Make

NAME = "PostgreSQL"
ADDRESS = "DATABASE_URL"
MODES = {"fsync on": True, "fsync off": False}

GOALS = {
    "append 2": Goal((6, 9, 0), 1.3),
    "read 20": Goal((6.5, 9, 0), 1.45),
    "pop": Goal((5, 8, 0), 1.3),
    "turn": Goal((5.5, 6, 0), 1.4),
    "request": Goal((9, 10, 0), 0),
}

FLOOR_TABLE = """
CREATE TABLE IF NOT EXISTS floor_items (
  id bigint GENERATED ALWAYS AS IDENTITY, session_id text, content text, PRIMARY KEY (session_id, id)
) WITH (toast_tuple_target = 8160);
ALTER TABLE floor_items ALTER content SET STORAGE EXTERNAL;
"""


class Floor:
    """The same bytes through bare connections: one minimal statement, encoded before, not decoded after.

    No lock, no repeated-batch check, no session row. Nothing that keeps a promise can be faster.
    """

    def __init__(self, idle: list[asyncpg.Connection], session_id: str) -> None:
        self._idle, self._id = idle, session_id
        self._encoder = Encoder()

    async def add_items(self, items: Items) -> object:
        statement = "INSERT INTO floor_items (session_id, content) SELECT $1, unnest($2::text[])"
        return await self._fetch(statement, self._id, self._encoder.texts(items))

    async def get_items(self, limit: int) -> object:
        statement = "SELECT content FROM floor_items WHERE session_id = $1 ORDER BY id DESC LIMIT $2"
        return await self._fetch(statement, self._id, limit)

    async def pop_item(self) -> object:
        newest = "SELECT id FROM floor_items WHERE session_id = $1 ORDER BY id DESC LIMIT 1"
        statement = f"DELETE FROM floor_items WHERE session_id = $1 AND id = ({newest}) RETURNING content"  # noqa: S608
        return await self._fetch(statement, self._id)

    async def _fetch(self, statement: str, *arguments: object) -> object:
        connection = self._idle.pop()
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            self._idle.append(connection)


@asynccontextmanager
async def sides(environment: Mapping[str, str], clients: int) -> AsyncIterator[dict[str, list[Make]]]:
    """For each side, a conversation per client, over as many connections as there are clients."""
    url = environment[ADDRESS]
    os.environ.update({ADDRESS: url, "DATABASE_POOL_MAX": str(clients)})
    settings = PostgresSettings(database_url=SecretStr(url))
    await upgrade(settings, migrations())
    address = url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(address, pool_size=clients, max_overflow=0)
    idle = [await asyncpg.connect(url) for _ in range(clients)]
    await idle[0].execute(FLOOR_TABLE)
    connections = list(idle)
    names = [f"bench-{clients}-{n}" for n in range(clients)]
    # By default the SDK's table would have the name of ours.
    tables = {"sessions_table": "sdk_sessions", "messages_table": "sdk_messages", "create_tables": True}
    async with PostgresSession("keeps the connections open"):
        yield {
            "ours": [partial(PostgresSession, name) for name in names],
            "sdk": [partial(SQLAlchemySession, name, engine=engine, **tables) for name in names],
            "floor": [partial(Floor, idle, name) for name in names],
        }
    await engine.dispose()
    for connection in connections:
        await connection.close()
