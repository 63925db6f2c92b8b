"""What PostgreSQL and Supabase share: a database that can be asked by its owner."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from proof.support.backend import BACKEND


@pytest.fixture
def owner_url(request: pytest.FixtureRequest) -> str:
    """The address of the database of `store`, for its owner."""
    if BACKEND == "postgres":
        return str(request.getfixturevalue("database_url"))
    return str(request.getfixturevalue("project")["SUPABASE_DB_URL"])


@pytest.fixture
async def owner(owner_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the owner of the database."""
    connection = await asyncpg.connect(owner_url, statement_cache_size=0)
    yield connection
    await connection.close()
