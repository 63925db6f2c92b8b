#!/bin/sh
# Run by the image of PostgreSQL when the database is made: what Supabase has, and a login for PostgREST.
set -eu
psql --username postgres --dbname postgres --set ON_ERROR_STOP=1 --set password="$AUTHENTICATOR_PASSWORD" <<'SQL'
\i /roles.sql
ALTER ROLE authenticator LOGIN PASSWORD :'password';
SQL
