"""Moving house: conversations that an app kept in the SDK's SQLiteSession go on here, where the old-app left them.

The command does the moving. `--from` also takes the address of what else the SDK has sessions for: `postgresql://…` for
SQLAlchemySession in a project for PostgreSQL or Supabase, `redis://…` for RedisSession in one for Redis.
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from agents import Agent, Runner, SQLiteSession

import project  # AGENT_PACKAGE=…, if your package is not called my_agent
from my_agent.app import open_app_store, open_model
from my_agent.conversation.turn import Done, run_turn
from my_agent.sessions import SessionRef
from my_agent.settings import load_settings

NAMES = ("Ada", "Bob")


async def the_old_app(agent: Agent, file: Path) -> None:
    for name in NAMES:
        session = SQLiteSession(f"chat of {name}", file)
        await Runner.run(agent, f"My name is {name}", session=session)
        session.close()


def move(file: Path, *options: str) -> None:
    shown = " ".join(options)
    print(f"$ my-agent sessions import --from sqlite:///old.db {shown}")
    command = [sys.executable, "-m", project.PACKAGE, "sessions", "import", "--from", f"sqlite:///{file}", *options]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    print(done.stderr.splitlines()[-1])


async def main() -> None:
    settings = load_settings()
    async with open_app_store(settings) as store, open_model(settings) as model:
        for name in NAMES:
            await store.delete_session(SessionRef("old-app", f"chat of {name}"))  # so that this program begins anew
        agent = Agent("Assistant", instructions="Answer briefly.", model=model)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "old.db"
            await the_old_app(agent, file)
            for options in (["--dry-run"], [], []):
                await asyncio.to_thread(move, file, "--user", "old-app", *options)
        for name in NAMES:
            session = store.session(f"chat of {name}", user_id="old-app")
            async for event in run_turn(agent, session, "What is my name?", max_items=100):
                if isinstance(event, Done):
                    print(f"{session.session_id}: {event.output}")


asyncio.run(main())
