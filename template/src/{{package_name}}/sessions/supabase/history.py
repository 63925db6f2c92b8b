"""The migrations that a Supabase project has seen, kept where the Supabase CLI keeps them: both tools agree."""

from __future__ import annotations

from ..postgres.schema import History

SUPABASE_HISTORY = History(
    table="supabase_migrations.schema_migrations",
    create="""
        CREATE SCHEMA IF NOT EXISTS supabase_migrations;
        CREATE TABLE IF NOT EXISTS supabase_migrations.schema_migrations (
          version text PRIMARY KEY, statements text[], name text
        );
    """,
    # The CLI splits a file into statements and trims them, so only what we recorded ourselves can be compared with the
    # file: the whole of it, with the line break at its end.
    seen=r"""
        SELECT version::bigint, coalesce(name, '') AS name,
               CASE WHEN cardinality(statements) = 1 AND statements[1] ~ '\n$'
               THEN encode(sha256(convert_to(statements[1], 'UTF8')), 'hex') END AS sha256
        FROM supabase_migrations.schema_migrations
    """,
    record="""
        INSERT INTO supabase_migrations.schema_migrations (version, name, statements)
        VALUES ($1::bigint::text, $2, ARRAY[$3::text])
    """,
)
