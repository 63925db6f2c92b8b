"""The programs in examples/apps run on every backend and print what examples/README.md shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from .conftest import ROOT, Install, Project, embedded_server

APPS = ROOT / "examples/apps"
BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ uv run python \$APPS/(.+)\n((?:(?!\$ uv).*\n)*)", re.MULTILINE)

Running = Callable[[str], tuple[Project, dict[str, str]]]


def shown() -> list[list[tuple[str, str]]]:
    """For each block of the page, its commands and what they are said to print."""
    blocks = BLOCK.findall((ROOT / "examples/README.md").read_text())
    return [found for block in blocks if (found := COMMAND.findall(block))]


def name_of(block: list[tuple[str, str]]) -> str:
    return " ".join(command for command, _ in block)


@pytest.fixture(scope="module")
def running(installed: Install, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A project of a backend and a server that is ready for it, the same for all tests of this worker."""
    projects: dict[str, tuple[Project, dict[str, str]]] = {}
    with ExitStack() as servers:

        def run(backend: str) -> tuple[Project, dict[str, str]]:
            if backend not in projects:
                project = installed(backend)
                server = servers.enter_context(embedded_server(project, tmp_path_factory.mktemp(f"{backend}-server")))
                projects[backend] = project, server
                if backend != "redis":
                    project.run("uv", "run", "my-agent", "db", "upgrade", **server)
            return projects[backend]

        yield run


BACKENDS = ("postgres", "redis", "supabase")


@pytest.mark.parametrize(
    ("backend", "block"),
    [
        # Each on one backend: what a program uses of a store is proven on all of them.
        pytest.param(BACKENDS[number % 3], block, id=f"{BACKENDS[number % 3]}-{name_of(block)}")
        for number, block in enumerate(shown())
    ],
)
def test_a_program_prints_what_the_page_shows(
    running: Running, tmp_path: Path, backend: str, block: list[tuple[str, str]]
) -> None:
    project, server = running(backend)
    for command, output in block:
        words = f"uv run --quiet --project {project.path} python {APPS}/{command} 2>errors || cat errors"
        assert Project(tmp_path).run("bash", "-c", words, **server) == output, command


def test_the_page_shows_every_program() -> None:
    programs = {command.split()[0] for block in shown() for command, _ in block}
    assert programs == {file.name for file in APPS.glob("*.py")} - {"project.py"}
    assert all(len(file.read_text().splitlines()) <= 100 for file in APPS.glob("*.py"))


def test_a_program_runs_under_another_name_without_any_server(installed: Install) -> None:
    project = installed("apache")
    package = next((project.path / "src").iterdir()).name
    assert "Your name is Ada." in project.run("uv", "run", "python", str(APPS / "drop_in.py"), AGENT_PACKAGE=package)


# ── Sessions that the SDK's SQLAlchemySession has written itself ────────────

WRITER = """if True:
    import asyncio, json, sys
    from agents.extensions.memory import SQLAlchemySession
    from sqlalchemy import text

    async def main(url):
        for name, said in (("a", "1"), ("b", "1"), ("a", "2")):
            item = {"role": "user", "content": said, "z": -0.0, "odd": chr(0xd83d) + "\\u2028\\0", "a": 2**70}
            session = SQLAlchemySession.from_url(name, url=url, create_tables=True)
            await session.add_items([item, {"type": "reasoning", "id": "rs_1", "summary": []}])
            async with session.engine.connect() as connection:
                rows = await connection.execute(text("SELECT session_id, message_data FROM agent_messages ORDER BY id"))
                stored = [tuple(row) for row in rows]
            await session.engine.dispose()
        print(json.dumps(stored))

    asyncio.run(main(sys.argv[1]))
"""

CREATE = """if True:
    import asyncio, asyncpg, sys

    async def main(url):
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE DATABASE old_app")
        await connection.close()

    asyncio.run(main(sys.argv[1]))
"""


def address_of_an_old_app(project: Project, server: dict[str, str]) -> str:
    """A new database on the server of the project."""
    url = server.get("DATABASE_URL") or server["SUPABASE_DB_URL"]
    project.run(".venv/bin/python", "-c", CREATE, url)
    return urlunsplit(urlsplit(url)._replace(scheme="postgresql+asyncpg", path="/old_app"))


@pytest.mark.parametrize(
    ("backend", "kind"),
    [("postgres", "server"), ("supabase", "server"), ("redis", "sqlite")],
)
def test_what_sqlalchemy_session_stored_comes_over_exactly(
    running: Running, tmp_path: Path, backend: str, kind: str
) -> None:
    project, server = running(backend)
    url = f"sqlite+aiosqlite:///{tmp_path}/old.db" if kind == "sqlite" else address_of_an_old_app(project, server)
    needed = ("--with", "sqlalchemy[asyncio]", "--with", "aiosqlite")
    stored = json.loads(project.run("uv", "run", "--quiet", *needed, "python", "-c", WRITER, url))
    command = ("uv", "run", "my-agent", "sessions")
    moved = (*command, "import", "--user", f"of {kind}", "--from", url)
    assert project.run(*moved, "--dry-run", **server) == "It would be: 2 imported (6 items).\n"
    assert project.run(*moved, **server) == "Done: 2 imported (6 items).\n"
    assert project.run(*moved, **server) == "Done: 2 already there (6 items).\n"
    for name in ("a", "b"):
        shown = project.run(*command, "show", name, "--json", "--user", f"of {kind}", **server)
        assert shown.splitlines() == [text for session, text in stored if session == name]
