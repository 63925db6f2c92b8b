"""What `sessions/` in another codebase says of a project without its functions can be done as it says."""

from __future__ import annotations

import shutil
from pathlib import Path

from proof.support.backend import PROJECT
from proof.support.lifted import PACKAGE, lift, run

MIGRATIONS = PROJECT / "supabase" / "migrations"

DO_AS_TOLD = f"""
import asyncio
from pathlib import Path
from {PACKAGE}.postgres.schema import read_migrations, upgrade
from {PACKAGE}.supabase.connection import SupabaseSettings
from {PACKAGE}.supabase.errors import how_to_upgrade
from {PACKAGE}.supabase.history import SUPABASE_HISTORY

settings, folder = SupabaseSettings(), Path("supabase/migrations")
asyncio.run(upgrade(settings.database, read_migrations(folder), SUPABASE_HISTORY))
print(how_to_upgrade())
"""


def test_the_schema_is_upgraded_as_the_message_says(server_environment: dict[str, str], tmp_path: Path) -> None:
    lift(tmp_path)
    shutil.copytree(MIGRATIONS, tmp_path / "supabase" / "migrations")
    told = run(tmp_path, DO_AS_TOLD, server_environment)
    assert "`upgrade(settings.database, read_migrations(folder), SUPABASE_HISTORY)`" in told
    assert f"{PACKAGE}.supabase.history" in told
    assert "db upgrade" not in told
