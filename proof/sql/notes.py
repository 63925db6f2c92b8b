"""A note in a development server, to be found again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import asyncpg

Environment = Mapping[str, str]


def remember(environment: Environment, note: str) -> None:
    """Keep a note in the server."""
    ask(environment, "CREATE TABLE IF NOT EXISTS note (text text)")
    ask(environment, f"INSERT INTO note VALUES ('{note}')")


def recall(environment: Environment) -> str:
    """The note."""
    return str(ask(environment, "SELECT text FROM note ORDER BY ctid DESC"))


def ask(environment: Environment, query: str) -> object:
    """The first value of the first row."""

    async def fetch() -> object:
        connection = await asyncpg.connect(environment.get("SUPABASE_DB_URL") or environment["DATABASE_URL"])
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())
