"""The key that a server sends with its users' tokens: without it nothing changes what signed-in users have stored.

The database keeps the SHA-256 alone, in `agent_session_server_keys`: one, or two while an old key is exchanged.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple

import asyncpg

from ..errors import SessionStoreError, SettingMissing, how_to
from ..postgres.connection import DRIVER_ERRORS, connect
from ..postgres.errors import translate
from .connection import SupabaseSettings
from .errors import how_to_upgrade

SHORT = 8
"""How many digits of a hash name a key to people."""


class ServerKey(NamedTuple):
    """A key that the database knows."""

    sha256: str
    created_at: datetime

    @property
    def name(self) -> str:
        return self.sha256[:SHORT]


def new_server_key() -> str:
    """256 random bits, for SUPABASE_SERVER_KEY."""
    return secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What the database keeps of a key. A plain hash is enough: 256 random bits cannot be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()


def statement_for(key: str) -> str:
    """SQL that lets the key in; holds its hash alone."""
    return f"select public.agent_session_add_server_key('{hash_of(key)}');"


async def add_server_key(settings: SupabaseSettings, key: str) -> None:
    """Let a key in, by SUPABASE_DB_URL. One that is known already stays.

    Raises:
        SessionStoreError: There are two others.
    """
    async with _database(settings) as connection:
        try:
            await connection.execute(statement_for(key))
        except asyncpg.RaiseError:
            names = ", ".join(known.name for known in await _known(connection))
            todo = how_to("db server-key --remove …", "Call `remove_server_key` from {package}.supabase.server_key")
            raise SessionStoreError(
                f"The database knows two server keys already ({names}). Remove the one that no server uses any more. "
                f"{todo}; `--list` shows which one is in SUPABASE_SERVER_KEY here."
            ) from None


async def server_keys(settings: SupabaseSettings) -> list[ServerKey]:
    """The keys that the database knows, the oldest first."""
    async with _database(settings) as connection:
        return await _known(connection)


async def remove_server_key(settings: SupabaseSettings, name: str) -> None:
    """Let a key in no longer.

    Args:
        settings: Where, by SUPABASE_DB_URL.
        name: The first digits of its hash.

    Raises:
        SessionStoreError: The key does not exist, or matches more than one.
    """
    async with _database(settings) as connection:
        known = await _known(connection)
        found = [key for key in known if name and key.sha256.startswith(name.lower())]
        if len(found) != 1:
            there = ", ".join(key.name for key in known) or "none"
            raise SessionStoreError(f"The database knows no server key {name!r}. It knows: {there}.")
        await connection.execute("DELETE FROM public.agent_session_server_keys WHERE sha256 = $1", found[0].sha256)


async def _known(connection: asyncpg.Connection) -> list[ServerKey]:
    rows = await connection.fetch("SELECT sha256, created_at FROM public.agent_session_server_keys ORDER BY created_at")
    return [ServerKey(row["sha256"], row["created_at"]) for row in rows]


@asynccontextmanager
async def _database(settings: SupabaseSettings) -> AsyncIterator[asyncpg.Connection]:
    if settings.supabase_db_url is None:
        todo = how_to("db server-key --sql", "Call `statement_for(key)` from {package}.supabase.server_key")
        raise SettingMissing(
            "SUPABASE_DB_URL is not set. Put the address of the database there (Connect → Session pooler). Or without "
            f"it: {todo}, and give the statement to the SQL editor of your project."
        )
    connected = False
    try:
        connection = await connect(settings.database)
        connected = True
        try:
            yield connection
        finally:
            await connection.close()
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError):
        raise SessionStoreError(f"The database cannot hold server keys yet. {how_to_upgrade()} first.") from None
    except DRIVER_ERRORS as error:
        raise translate(error, settings.database, sent=connected) from error
