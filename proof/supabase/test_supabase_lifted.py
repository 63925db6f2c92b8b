"""What `sessions/` in another codebase says of a project without its functions can be done as it says."""

from __future__ import annotations

import shutil
from pathlib import Path

from my_agent import backend

from ..lifted import PACKAGE, lift, run

MIGRATIONS = Path(backend.__file__).parents[2] / "supabase" / "migrations"

DO_AS_TOLD = f"""
import asyncio
from pathlib import Path
from {PACKAGE}.postgres_schema import read_migrations, upgrade
from {PACKAGE}.supabase_connection import SupabaseSettings
from {PACKAGE}.supabase_errors import how_to_upgrade
from {PACKAGE}.supabase_history import SUPABASE_HISTORY

settings, folder = SupabaseSettings(), Path("supabase/migrations")
asyncio.run(upgrade(settings.database, read_migrations(folder), SUPABASE_HISTORY))
print(how_to_upgrade())
"""


def test_the_schema_is_upgraded_as_the_message_says(server_environment: dict[str, str], tmp_path: Path) -> None:
    lift(tmp_path)
    shutil.copytree(MIGRATIONS, tmp_path / "supabase" / "migrations")
    told = run(tmp_path, DO_AS_TOLD, server_environment)
    assert "`upgrade(settings.database, read_migrations(folder), SUPABASE_HISTORY)`" in told
    assert f"{PACKAGE}.supabase_history" in told
    assert "db upgrade" not in told
