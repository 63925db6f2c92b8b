"""Everything that an SQL database keeps, as text."""

from __future__ import annotations

import asyncpg

TABLES = """
SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'm') AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
"""


async def dump_of(address: str) -> str:
    """Every column of every row of every table."""
    connection = await asyncpg.connect(address)
    try:
        found = []
        for (table,) in await connection.fetch(TABLES):
            rows = await connection.fetch(f"SELECT t::text FROM {table} AS t")
            found += [table, *(row[0] for row in rows)]
    finally:
        await connection.close()
    return "\n".join(found)
