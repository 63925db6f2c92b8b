"""The project's own tests of sessions, unchanged, on the store of this folder."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlite_store import SqliteStore

pytest.register_assert_rewrite("tests.test_sessions")

from tests.test_sessions import *  # noqa: E402, F403 - these are the tests


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "sessions.db") as store:
        yield store


@pytest.fixture
async def other_store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "other.db") as store:
        yield store


@pytest.fixture
def kill_connections(store: SqliteStore) -> Callable[[], Awaitable[int]]:
    """Closes the store's connection under it; returns how many there were."""

    def close() -> int:
        if store._connection is None:
            return 0
        store._connection.close()
        return 1

    async def kill() -> int:
        return await store._in_thread(close)  # SQLite itself would crash if it were closed in the middle of a call

    return kill


@pytest.fixture
def damage_row(tmp_path: Path) -> Callable[[int, str], Awaitable[None]]:
    """Overwrites the n-th newest text."""

    async def damage(age: int, text: str) -> None:
        db = sqlite3.connect(tmp_path / "sessions.db")
        statement = "UPDATE items SET content = ? WHERE id = (SELECT id FROM items ORDER BY id DESC LIMIT 1 OFFSET ?)"
        with db:
            assert db.execute(statement, [text, age - 1]).rowcount == 1
        db.close()

    return damage
