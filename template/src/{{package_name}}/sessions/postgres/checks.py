"""Is this PostgreSQL server set up as the app needs it?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from time import perf_counter

import asyncpg

from ..errors import Check, SessionStoreError
from .connection import (
    DRIVER_ERRORS,
    OPENING_STATEMENT,
    PostgresSettings,
    connect,
    in_schema,
    read_opening,
)
from .errors import translate
from .schema import Migration, check_migrations
from .socket import is_encrypted

OLDEST = 15
"""The oldest version that this app is tested with."""

# What the functions of migrations/ do to the tables, with the rights of the role that calls them.
_MISSING_RIGHTS = """
SELECT CASE WHEN NOT has_schema_privilege($1::text, 'USAGE') THEN array[format('USAGE on schema %s', $1)] ELSE array(
  SELECT format('%s on table %s', wanted.privilege, wanted.name)
  FROM (SELECT p, t FROM unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p,
        unnest(array['agent_sessions', 'agent_session_info', 'agent_session_batches', 'agent_session_canary']) AS t
       ) AS wanted (privilege, name)
  WHERE NOT has_table_privilege(quote_ident($1) || '.' || wanted.name, wanted.privilege)
  UNION ALL
  SELECT format('EXECUTE on function %s', proname) FROM pg_catalog.pg_proc
  WHERE pronamespace = quote_ident($1)::regnamespace AND proname LIKE 'agent\\_session\\_%'
    AND NOT has_function_privilege(oid, 'EXECUTE')
) END
"""


async def check_postgres(settings: PostgresSettings, migrations: Sequence[Migration]) -> AsyncGenerator[Check, None]:
    """All checks of the database. A later one is left out if an earlier one makes it pointless."""
    begin = perf_counter()
    try:
        connection = await connect(settings)
    except DRIVER_ERRORS as error:
        problem = translate(error, settings, sent=False)
        yield Check("connection", "fail", "The database cannot be reached.", str(problem))
        return
    except SessionStoreError as error:
        yield Check("connection", "fail", "The settings cannot be used.", str(error))
        return
    try:
        yield Check("connection", "ok", f"Connected to {settings.where} in {(perf_counter() - begin) * 1000:.0f} ms.")
        yield _check_transport(settings, encrypted=is_encrypted(connection))
        yield _check_server_version(connection.get_server_version())
        pooler = await _check_pooler(connection, settings)
        yield pooler
        if pooler.state == "fail":
            return  # any statement may fail now, and say nothing of what it asks for
        yield await _check_encoding(connection)
        schema = await _check_schema(connection, settings, migrations)
        yield schema
        if schema.state != "fail":
            yield await _check_rights(connection, settings.database_schema)
    except (*DRIVER_ERRORS, SessionStoreError) as error:
        problem = error if isinstance(error, SessionStoreError) else translate(error, settings, sent=True)
        yield Check("connection", "fail", "The checks were cut short.", str(problem))
    finally:
        await connection.close()


def _check_transport(settings: PostgresSettings, *, encrypted: bool) -> Check:
    address = settings.address
    if not address.is_remote:
        return Check("TLS", "ok", "The server is on this machine.")
    todo = f"Add ?sslmode=verify-full to {settings.variable} (require if no authority signed the server's certificate)."
    if not encrypted:
        what = "The connection is not encrypted: the password's proof and all conversations can be read on the way."
        return Check("TLS", "warn", what, f"{todo} On a private network you may leave it.")
    if address.ssl_mode in ("disable", "allow", "prefer"):
        what = "The connection is encrypted, but nothing requires it: an attacker on the way can turn it off."
        return Check("TLS", "warn", what, todo)
    if address.bound and address.ssl_mode == "require":
        what = "The connection is encrypted, but channel_binding=require is not checked: the driver cannot do that."
        return Check("TLS", "warn", what, todo.replace("Add ?", "Write "))
    return Check("TLS", "ok", f"The connection is encrypted (sslmode={address.ssl_mode}).")


def _check_server_version(version: asyncpg.types.ServerVersion) -> Check:
    # Since PostgreSQL 10 the second number counts the bug-fix releases; asyncpg keeps it in the third field.
    name = f"The server is PostgreSQL {version.major}.{version.micro}"
    if version.major < OLDEST:
        what = f"{name}; this app is only tested with {OLDEST} and later."
        return Check("server version", "warn", what, "Plan an upgrade of the server.")
    return Check("server version", "ok", f"{name}.")


async def _check_encoding(connection: asyncpg.Connection) -> Check:
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        what = f"The database stores text as {encoding}, which cannot hold every character."
        return Check("encoding", "fail", what, "Use a database made with ENCODING 'UTF8' TEMPLATE template0.")
    return Check("encoding", "ok", "The database stores text as UTF8.")


async def _check_pooler(connection: asyncpg.Connection, settings: PostgresSettings) -> Check:
    """A pooler makes up the process id it greets with; in transaction mode the real one may change as well."""
    try:
        seen = {await connection.fetchval("SELECT pg_backend_pid()") for _ in range(3)}
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        seen = set()
    between = seen != {connection.get_server_pid()}
    if settings.behind_pooler:
        found = "it is there" if between else "none shows itself (without one, this costs a round trip a call)"
        return Check("pooler", "ok", f"The settings announce a transaction pooler: {found}.")
    if len(seen) != 1:
        what = "There is a transaction pooler before the server, and the settings do not say so."
        return Check("pooler", "fail", what, "Set DATABASE_POOLER=transaction.")
    if between:
        what = "There is a pooler before the server. Session mode works; in transaction mode calls fail under load."
        return Check("pooler", "warn", what, "If it is in transaction mode, set DATABASE_POOLER=transaction.")
    return Check("pooler", "ok", "The connection goes straight to the server.")


async def _check_schema(
    connection: asyncpg.Connection, settings: PostgresSettings, migrations: Sequence[Migration]
) -> Check:
    try:
        answer = await connection.fetchval(in_schema(OPENING_STATEMENT, settings.database_schema), "")
        read_opening(answer)
    except asyncpg.InsufficientPrivilegeError:
        what = "This role cannot see whether the schema fits this program."
        return Check("schema", "warn", what, "The check of its rights, below, names those that it lacks.")
    except asyncpg.PostgresError as error:
        return Check("schema", "fail", "The schema cannot be used.", str(translate(error, settings, sent=True)))
    except SessionStoreError as error:
        return Check("schema", "fail", "The schema does not fit this program.", str(error))
    place = "" if settings.database_schema == "public" else f" in {settings.database_schema}"
    fits = f"The schema fits this program: schema {answer[0]}{place}"
    try:
        return await check_migrations(settings, migrations, fits)
    except SessionStoreError:
        return Check("schema", "ok", f"{fits}. (This role cannot see which migrations were applied.)")


async def _check_rights(connection: asyncpg.Connection, schema: str) -> Check:
    missing = await connection.fetchval(_MISSING_RIGHTS, schema)
    role = await connection.fetchval("SELECT current_user")
    if missing:
        what = f"The role {role} lacks {', '.join(missing)}."
        return Check("rights", "fail", what, "Grant the rights that docs/database.md lists.")
    if await connection.fetchval("SELECT has_schema_privilege($1::text, 'CREATE')", schema):
        return Check("rights", "ok", f"The role {role} may do all that is needed, and change the schema as well.")
    return Check("rights", "ok", f"The role {role} may do all that is needed, and not change the schema.")
