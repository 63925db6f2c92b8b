"""What the SDK's `SQLAlchemySession` has stored in PostgreSQL. Only read."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from urllib.parse import unquote_plus

import asyncpg
from pydantic import SecretStr

from ..errors import SessionStoreError
from .connection import DRIVER_ERRORS, PostgresSettings, connect
from .errors import translate

# Cut out of the text: to take the rest apart and put it together again might change a password.
_TABLE = re.compile(r"(?<=[?&])messages_table=([^&#@]*)&?")


class _SourceSettings(PostgresSettings):
    variable: ClassVar[str] = "--from"


class PostgresSource:
    """The table of messages; the other one, of sessions, holds nothing that is needed, and may have been renamed."""

    def __init__(self, connection: asyncpg.Connection, settings: PostgresSettings, table: str) -> None:
        self._connection = connection
        self._settings = settings
        self._table = '"' + table.replace('"', '""') + '"'

    async def session_ids(self) -> list[str]:
        """All sessions that have items, those first that were written first."""
        rows = await self._read("SELECT session_id FROM {} GROUP BY session_id ORDER BY max(id)")
        return [row[0] for row in rows]

    async def rows(self, session_id: str) -> list[tuple[int, str]]:
        """Id and text of every message, in the order in which `SQLAlchemySession` gives them."""
        statement = "SELECT id, message_data FROM {} WHERE session_id = $1 ORDER BY created_at, id"
        return [(row[0], row[1]) for row in await self._read(statement, session_id)]

    async def check(self) -> None:
        """Raise if the table does not exist."""
        columns = await self._read(
            "SELECT attname::text FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass($1)", self._table
        )
        if not {"id", "session_id", "message_data", "created_at"} <= {row[0] for row in columns}:
            raise SessionStoreError(
                f"--from: this database has no table {self._table} of SQLAlchemySession. ?messages_table=… names it."
            )

    async def _read(self, statement: str, *arguments: str) -> list[Any]:
        try:
            async with self._connection.transaction(readonly=True):
                return list(await self._connection.fetch(statement.format(self._table), *arguments))
        except DRIVER_ERRORS as error:
            raise translate(error, self._settings, sent=True) from error


@asynccontextmanager
async def open_postgres_source(url: str) -> AsyncIterator[PostgresSource]:
    """The messages in a database.

    Args:
        url: postgresql://…, also as SQLAlchemy writes it; ?messages_table=… where that was not "agent_messages".

    Raises:
        SessionStoreError: It cannot be reached or read, or the table does not exist.
    """
    named = _TABLE.search(url)
    table = unquote_plus(named[1]) if named else "agent_messages"
    settings = _SourceSettings(database_url=SecretStr(_TABLE.sub("", url)), database_credentials=None)
    del url, named  # tools that show local variables show no password
    try:
        # Without a time limit: listing the sessions of a large table may take long.
        connection = await connect(settings, command_timeout=None)
    except DRIVER_ERRORS as error:
        raise translate(error, settings, sent=False) from error
    try:
        source = PostgresSource(connection, settings, table)
        await source.check()
        yield source
    finally:
        await connection.close()
