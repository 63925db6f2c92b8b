"""Is this PostgreSQL server set up as the app needs it?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from time import perf_counter

import asyncpg

from .checks import Check
from .postgres_connection import DRIVER_ERRORS, PostgresSettings, check_version, connect_options, translate
from .postgres_connection import VERSION_STATEMENT as SCHEMA_VERSION_STATEMENT
from .postgres_schema import Migration, status
from .store import COMMAND, SessionStoreError

OLDEST = 11
"""The SQL needs `toast_tuple_target` (https://www.postgresql.org/docs/release/11.0/); all else in it is older."""
OLDEST_TESTED = 15

# What the functions of migrations/ do to the tables, with the rights of the role that calls them.
_MISSING_RIGHTS = """
SELECT array(
  SELECT format('%s on table %s', wanted.right, wanted.name)
  FROM (SELECT r, t FROM unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS r,
        unnest(array['agent_sessions', 'agent_session_info']) AS t) AS wanted (right, name)
  WHERE NOT has_table_privilege('public.' || wanted.name, wanted.right)
  UNION ALL
  SELECT format('EXECUTE on function %s', proname) FROM pg_catalog.pg_proc
  WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'agent\\_session\\_%'
    AND NOT has_function_privilege(oid, 'EXECUTE')
)
"""


async def check_postgres(settings: PostgresSettings, migrations: Sequence[Migration]) -> AsyncIterator[Check]:
    """All checks of the database; the last one is a failure if no further use of it makes sense."""
    begin = perf_counter()
    try:
        connection = await asyncpg.connect(**connect_options(settings))
    except DRIVER_ERRORS as error:
        yield Check("connection", "fail", "The database cannot be reached.", str(translate(error, settings, sent=False)))
        return
    except SessionStoreError as error:
        yield Check("connection", "fail", "There is no usable DATABASE_URL.", str(error))
        return
    try:
        yield Check("connection", "ok", f"Connected to {settings.where} in {(perf_counter() - begin) * 1000:.0f} ms.")
        yield _check_server_version(connection)
        yield await _check_encoding(connection)
        yield await _check_pooler(connection, settings)
        schema = await _check_schema(connection, settings, migrations)
        yield schema
        if schema.state != "fail":
            yield await _check_rights(connection)
    except DRIVER_ERRORS as error:
        yield Check("connection", "fail", "The database did not answer.", str(translate(error, settings, sent=True)))
    finally:
        await connection.close()
