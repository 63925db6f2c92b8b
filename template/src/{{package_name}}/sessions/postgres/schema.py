"""Numbered SQL files applied to a database, each once, in order, each in one transaction.

A file is named `<version>_<name>.sql`; the version is a number, by convention the time it was written (YYYYMMDDhhmmss).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import asyncpg

from ..errors import Check, SessionStoreError, StoreRefused, how_to
from .connection import DRIVER_ERRORS, PostgresSettings, connect, in_schema
from .errors import translate

# Any number will do, as long as all versions of this program use the same one.
_LOCK = 7_262_001_417_553

_FUNCTION = re.compile(
    r"^create (?:or replace )?function public\.(\w+)\(.*?\bas \$\$(.*?)\$\$", re.DOTALL | re.MULTILINE
)
_INDEX = re.compile(r"^create (?:unique )?index (\w+)", re.MULTILINE)
_DROPPED = re.compile(r"^ *drop (?:index|function) public\.(\w+)", re.MULTILINE)


class History(NamedTuple):
    """Where a database keeps which migrations it has seen."""

    table: str
    create: str
    """Statements that may be run again."""
    seen: str
    """Yields version, name, and sha256 of the file (null: not known)."""
    record: str
    """Takes version, name and text of the file."""


HISTORY = History(
    table="public.agent_session_migrations",
    create="""
        CREATE TABLE IF NOT EXISTS public.agent_session_migrations (
          version bigint PRIMARY KEY, name text NOT NULL, sha256 text, applied_at timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE public.agent_session_migrations IS 'Which files of migrations/ this database has seen.';
    """,
    seen="SELECT version, name, sha256 FROM public.agent_session_migrations",
    record="""
        INSERT INTO public.agent_session_migrations (version, name, sha256)
        VALUES ($1, $2, encode(sha256(convert_to($3, 'UTF8')), 'hex'))
    """,
)


class Migration(NamedTuple):
    """One SQL file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


class MigrationState(NamedTuple):
    """State of a migration in the database. changed: the file differs from what was applied; unknown: no file here."""

    version: int
    name: str
    state: Literal["applied", "pending", "changed", "unknown"]


def read_migrations(directory: Path) -> list[Migration]:
    """All migrations of a folder, oldest first.

    Raises:
        SessionStoreError: A file has another name than `<version>_<name>.sql`, or two have the same version.
    """
    migrations = []
    for file in sorted(directory.glob("*.sql")):
        name = re.fullmatch(r"(\d{1,18})_(\w+)", file.stem)
        if name is None:
            raise SessionStoreError(f"{file.name}: name it <version>_<name>.sql, as in 20270131120000_add_table.sql.")
        migrations.append(Migration(int(name[1]), name[2], file.read_text(encoding="utf-8")))
    migrations.sort()
    for earlier, later in pairwise(migrations):
        if earlier.version == later.version:
            raise SessionStoreError(f"Two migrations have the version {later.version}: {earlier.name}, {later.name}.")
    return migrations


async def upgrade(
    settings: PostgresSettings, migrations: Sequence[Migration], history: History = HISTORY
) -> list[Migration]:
    """Apply what is missing; safe to run many times at once. Returns what this call applied.

    Raises:
        SessionStoreError: A migration failed; it left nothing behind, and those before it stay.
    """
    applied = []
    history = _in_schema(history, settings.database_schema)
    async with _connection(settings) as connection:
        for migration in migrations:
            # The lock belongs to the transaction, so it also holds through a transaction pooler.
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                await connection.execute("SET LOCAL client_min_messages = warning")
                await _create_schema(connection, settings.database_schema)
                await connection.execute(history.create)
                if migration.version not in await _seen(connection, history):
                    await _apply(connection, migration, history, settings.database_schema)
                    applied.append(migration)
    return applied


async def status(
    settings: PostgresSettings, migrations: Sequence[Migration], history: History = HISTORY
) -> list[MigrationState]:
    """Every migration that the folder or the database knows, oldest first."""
    history = _in_schema(history, settings.database_schema)
    async with _connection(settings) as connection:
        there = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", history.table)
        seen = await _seen(connection, history) if there else {}
    states = []
    for migration in migrations:
        state: Literal["applied", "pending", "changed"] = "pending"
        if migration.version in seen:
            _, sha256 = seen.pop(migration.version)
            state = "applied" if sha256 in (None, migration.sha256) else "changed"
        states.append(MigrationState(migration.version, migration.name, state))
    return sorted([*states, *(MigrationState(version, name, "unknown") for version, (name, _) in seen.items())])


async def check_migrations(
    settings: PostgresSettings,
    migrations: Sequence[Migration],
    fits: str,
    *,
    history: History = HISTORY,
    harmless: Collection[str] = ("applied",),
) -> Check:
    """For the doctor: are all migrations applied, and is the schema still what they made?

    Args:
        fits: What is known already, the beginning of the sentence.
        harmless: States of migrations that need no mention.

    Raises:
        SessionStoreError: The database, or what it knows of migrations, cannot be read.
    """
    states = [state for state in await status(settings, migrations, history) if state.state not in harmless]
    if states:
        found = ", ".join(f"{state.version} is {state.state}" for state in states)
        todo = how_to(
            "db status", "Compare: `status(settings, read_migrations(folder))`, both from {package}.postgres.schema"
        )
        return Check("schema", "warn", f"{fits}, but of the migrations {found}.", f"{todo}.")
    if edited := await _changed_by_hand(settings, migrations):
        what = f"{fits}, but these are not what the migrations made: {', '.join(edited)}."
        return Check("schema", "warn", what, "Take the statements from the migrations, and put changes into a new one.")
    return Check("schema", "ok", f"{fits}.")


async def _changed_by_hand(settings: PostgresSettings, migrations: Sequence[Migration]) -> list[str]:
    """Functions and indexes of ours that are not what the migrations made; a lost column breaks the round trip."""
    sql = "\n".join(migration.sql for migration in migrations)
    dropped = set(_DROPPED.findall(sql))
    functions = {name: body for name, body in _FUNCTION.findall(sql) if name.startswith("agent_session_")}
    written = {name: body for name, body in functions.items() if name not in dropped}
    indexes = [name for name in _INDEX.findall(sql) if name.startswith("agent_session") and name not in dropped]
    schema = settings.database_schema
    async with _connection(settings) as connection:
        rows = await connection.fetch(
            "SELECT proname, prosrc FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n "
            "ON n.oid = p.pronamespace WHERE nspname = $1",
            schema,
        )
        missing = await connection.fetchval(
            "SELECT array(SELECT name FROM unnest($1::text[]) AS name "
            "WHERE to_regclass(quote_ident($2) || '.' || name) IS NULL)",
            indexes,
            schema,
        )
    stored = {row["proname"]: row["prosrc"] for row in rows}
    return sorted({*missing, *(name for name, body in written.items() if stored.get(name) != in_schema(body, schema))})


def _in_schema(history: History, schema: str) -> History:
    return History(*(in_schema(part, schema) for part in history))


async def _create_schema(connection: asyncpg.Connection, schema: str) -> None:
    # IF NOT EXISTS would ask for the right to create one even if it exists.
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)", schema):
        await connection.execute(f'CREATE SCHEMA "{schema}"')


async def _seen(connection: asyncpg.Connection, history: History) -> dict[int, tuple[str, str | None]]:
    rows = await connection.fetch(history.seen)
    return {row["version"]: (row["name"], row["sha256"]) for row in rows}


async def _apply(connection: asyncpg.Connection, migration: Migration, history: History, schema: str) -> None:
    try:
        if schema != "public":  # names without a schema, in migrations of your own, mean this one too
            await connection.execute(f'SET LOCAL search_path TO "{schema}", public')
        await connection.execute(in_schema(migration.sql, schema))
    except asyncpg.PostgresError as error:
        # An error that a migration raises on purpose says in its hint what to do.
        hint = f" {error.hint}" if getattr(error, "hint", None) else ""
        raise SessionStoreError(
            f"Migration {migration.version}_{migration.name} failed and changed nothing: {error.args[0]}.{hint}"
        ) from error
    await connection.execute(history.record, migration.version, migration.name, migration.sql)


@asynccontextmanager
async def _connection(settings: PostgresSettings) -> AsyncIterator[asyncpg.Connection]:
    """A connection of its own, without a time limit: a migration may take long."""
    connected = False
    try:
        connection = await connect(settings, command_timeout=None)
        connected = True
        try:
            yield connection
        finally:
            await connection.close()
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreRefused(
            f"PostgreSQL at {settings.where}: {error.args[0]}. Run this as the role that owns the tables."
        ) from error
    except DRIVER_ERRORS as error:
        raise translate(error, settings, sent=connected) from error
