"""A database that another app has used: the original example's becomes ours, the SDK's is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Install, Project, embedded_server
from .lifetime import refused, run_python

AGENT = ".venv/bin/my-agent"
ADDRESS = {"postgres": "DATABASE_URL", "supabase": "SUPABASE_DB_URL"}

RUN_SQL = """if True:
    import asyncio, json, sys
    import asyncpg

    async def main(url, statement):
        connection = await asyncpg.connect(url)
        try:
            print(json.dumps([list(row) for row in await connection.fetch(statement)]))
        finally:
            await connection.close()

    for statement in sys.argv[2].split(";;"):
        asyncio.run(main(sys.argv[1], statement))
"""

ORIGINAL_EXAMPLE = """
    CREATE TABLE agent_sessions (
        id SERIAL PRIMARY KEY,
        session_id TEXT NOT NULL,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        created_at TIMESTAMP DEFAULT now()
    );;
    INSERT INTO agent_sessions (session_id, role, content) VALUES
        ('ada', 'user', 'My name is Ada'),
        ('bob', 'user', 'My name is Bob'),
        ('ada', 'assistant', 'Nice to meet you, Ada!')
"""

OF_THE_SDK = """if True:
    import asyncio, sys
    from agents.extensions.memory import SQLAlchemySession

    async def main(url):
        for name in ("ada", "bob"):
            session = SQLAlchemySession.from_url(f"s-{name}", url=url, create_tables=True)
            await session.add_items([{"role": "user", "content": f"My name is {name.title()}"}])

    asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(params=ADDRESS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def project(installed: Install, backend: str) -> Project:
    return installed(backend)


@pytest.fixture
def server(project: Project, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A new server without any table of ours."""
    with embedded_server(project, tmp_path / "server") as environment:
        yield environment


@pytest.fixture
def address(backend: str, server: dict[str, str]) -> str:
    return server[ADDRESS[backend]]


def test_the_original_example_goes_on_in_our_app(project: Project, server: dict[str, str], address: str) -> None:
    run_python(project, RUN_SQL, address, ORIGINAL_EXAMPLE)
    assert "Applied 20261123000001_agent_sessions." in project.run(AGENT, "db", "upgrade", **server)
    shown = project.run(AGENT, "sessions", "show", "ada", **server)
    assert shown.index("My name is Ada") < shown.index("Nice to meet you, Ada!")
    assert "Bob" not in shown
    for name in ("Ada", "Bob"):
        answer = project.run(AGENT, "chat", "What is my name?", "--session", name.lower(), **server)
        assert f"Your name is {name}." in answer
    assert "up to date" in project.run(AGENT, "db", "upgrade", **server)
    rows = run_python(
        project, RUN_SQL, address, "SELECT session_id, count(*) FROM agent_sessions GROUP BY 1 ORDER BY 1"
    )
    assert rows == '[["ada", 4], ["bob", 3]]\n'


def test_the_tables_of_the_sdk_are_left_alone_and_can_be_imported(
    project: Project, server: dict[str, str], address: str
) -> None:
    project.run(
        "uv", "run", "--with", "sqlalchemy[asyncio]", "python", "-c", OF_THE_SDK, address.replace("://", "+asyncpg://")
    )
    complaint = refused(project, AGENT, "db", "upgrade", **server)
    assert "belongs to something else" in complaint
    assert "sessions import --from" in complaint
    messages = "SELECT session_id, message_data FROM agent_messages ORDER BY id"
    before = run_python(project, RUN_SQL, address, messages)

    # What the complaint advises.
    run_python(project, RUN_SQL, address, "ALTER TABLE agent_sessions RENAME TO sdk_sessions")
    project.run(AGENT, "db", "upgrade", **server)
    assert "2 imported" in project.run(AGENT, "sessions", "import", "--from", address, **server)
    answer = project.run(AGENT, "chat", "What is my name?", "--session", "s-ada", **server)
    assert "Your name is Ada." in answer
    assert run_python(project, RUN_SQL, address, messages) == before
