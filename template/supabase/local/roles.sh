#!/bin/sh
# Run by the image of PostgreSQL when the database is made: what Supabase has, and a login for PostgREST. The image may run
# it in its own shell, so it sets no options there.
psql --username postgres --dbname postgres --set ON_ERROR_STOP=1 --set password="${AUTHENTICATOR_PASSWORD:?}" <<'SQL'
\i /roles.sql
ALTER ROLE authenticator LOGIN PASSWORD :'password';
SQL
