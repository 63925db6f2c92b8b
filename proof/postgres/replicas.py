"""A primary and a standby that streams from it, on the engine of the development server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg

from my_agent.dev import server as devserver
from my_agent.dev.engine import write
from my_agent.dev.postgres import PostgresEngine, give
from my_agent.sessions import backend
from my_agent.sessions.postgres.schema import upgrade
from proof.postgres.fixtures import settings_for
from proof.support.dev_servers import kill
from proof.support.helpers import missing


class StandbyEngine(PostgresEngine):
    """PostgreSQL whose data are a copy of a primary's, which it follows until it is promoted."""

    primary_url = ""

    def create_data(self) -> None:
        primary = urlsplit(self.primary_url)
        password = unquote(primary.password or "")
        new = self.directory / "pg.new"
        new.mkdir(mode=0o700)
        if self.owner:
            give(self.owner, new)
        self.run(
            self.binaries / "pg_basebackup",
            f"--pgdata={new / 'pg'}",
            f"--host={primary.hostname}",
            f"--port={primary.port}",
            f"--username={primary.username}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            before=self.as_owner,
            PGPASSWORD=password,
        )
        write(self.directory / "password", password)
        (new / "pg").rename(self.data)
        shutil.rmtree(new)


class Pair:
    """Two servers; what the primary acknowledges, the standby has."""

    def __init__(self, primary: Path, urls: tuple[str, str]) -> None:
        self._primary = primary
        self.primary_url, self.standby_url = urls

    def kill_primary(self) -> None:
        kill(self._primary, "pg")

    async def promote_standby(self) -> None:
        assert await _ask(self.standby_url, "SELECT pg_promote(wait => true, wait_seconds => 30)") is True


@asynccontextmanager
async def replicated(folder: Path) -> AsyncIterator[Pair]:
    """A primary with our schema, and its standby, with synchronous replication."""
    programs = PostgresEngine.find(folder)
    if not (Path(programs[0]) / "pg_basebackup").exists():
        missing(f"no pg_basebackup in {programs[0]}")
    with ExitStack() as servers:
        primary = servers.enter_context(devserver.start(folder / "primary", engine=PostgresEngine))
        url = primary.environment["DATABASE_URL"]
        await upgrade(settings_for(url), backend.migrations())
        StandbyEngine.primary_url = url
        standby = servers.enter_context(devserver.start(folder / "standby", engine=StandbyEngine))
        pair = Pair(folder / "primary", (url, standby.environment["DATABASE_URL"]))
        # After the copy: promoted, the standby has nobody to wait for.
        await _ask(url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        await _ask(url, "SELECT pg_reload_conf()")
        async with asyncio.timeout(20):
            while await _ask(url, "SELECT sync_state FROM pg_stat_replication") != "sync":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield pair


async def _ask(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()
