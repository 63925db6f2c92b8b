"""What `sessions/` in another codebase says of a database without its tables can be done as it says."""

from __future__ import annotations

import shutil
from pathlib import Path

from proof.support.backend import PROJECT
from proof.support.lifted import PACKAGE, lift, run

MIGRATIONS = PROJECT / "migrations"

USE = f"""
import asyncio
from {PACKAGE} import PostgresSession, SchemaOutdated

async def main():
    async with PostgresSession("s") as session:
        try:
            await session.add_items([{{"role": "user", "content": "Hi"}}])
            print(len(await session.get_items()))
        except SchemaOutdated as problem:
            print(problem)

asyncio.run(main())
"""

DO_AS_TOLD = f"""
import asyncio
from pathlib import Path
from {PACKAGE} import PostgresSettings as Settings
from {PACKAGE}.postgres.schema import read_migrations, upgrade

settings, folder = Settings(), Path("migrations")
print(len(asyncio.run(upgrade(settings, read_migrations(folder)))))
"""


def test_a_database_without_tables_is_upgraded_as_the_message_says(empty_database: str, tmp_path: Path) -> None:
    lift(tmp_path)
    shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    variables = {"DATABASE_URL": empty_database, "SESSION_RETRY_SECONDS": "0"}
    told = run(tmp_path, USE, variables)
    assert f"`upgrade(settings, read_migrations(folder))`, both from {PACKAGE}.postgres.schema" in told
    assert "db upgrade" not in told
    assert run(tmp_path, DO_AS_TOLD, variables) == f"{len(list(MIGRATIONS.glob('*.sql')))}\n"
    assert run(tmp_path, USE, variables) == "1\n"
