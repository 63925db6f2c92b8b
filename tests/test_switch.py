"""`copier update --data backend=…` moves a project to another backend: files, edits and conversations."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest

from .conftest import Install, Project, commit_all, embedded_server, git
from .lifetime import (
    BACKENDS,
    COPIED_ONCE,
    MIGRATIONS,
    assert_kept,
    assert_no_conflict,
    assert_same,
    conflicts,
    make_own,
    run_python,
    start,
    update,
)

SWITCHES = list(permutations(BACKENDS, 2))
CIRCLE = [("redis", "postgres"), ("postgres", "supabase"), ("supabase", "redis")]
"""Each backend is left once and reached once."""

# A file that only one backend has and that its users edit.
OF_ONE_BACKEND = {
    "postgres": "migrations/20261123000001_agent_sessions.sql",
    "redis": "redis/users.acl",
    "supabase": "supabase/config.toml",
}


@pytest.mark.parametrize(("old", "new"), SWITCHES)
def test_an_untouched_project_becomes_one_of_the_other_backend(
    releases: Path, tmp_path: Path, old: str, new: str
) -> None:
    project = start(releases, tmp_path / "project", backend=old)
    before = set(project.files())
    update(project, backend=new)
    assert_no_conflict(project)
    fresh = start(releases, tmp_path / "fresh", backend=new)
    assert_same(project, fresh)
    # `git status` names what is gone.
    gone = {line[3:] for line in git(project.path, "status", "--short").splitlines() if line.startswith(" D ")}
    assert gone == before - set(fresh.files())
    assert OF_ONE_BACKEND[old] in gone


@pytest.mark.parametrize(("old", "new"), CIRCLE)
def test_what_users_change_is_kept_by_a_switch(releases: Path, tmp_path: Path, old: str, new: str) -> None:
    project = start(releases, tmp_path / "project", backend=old)
    own = make_own(project, old)
    update(project, backend=new)
    assert_kept(project, own)
    # Their service stands between the lines of the old backend: often a conflict, which is told.
    if conflicts(project):
        assert conflicts(project) == {"docker-compose.yml"}
        with pytest.raises(pytest.fail.Exception, match=r"docker-compose.yml:\d+: leftover conflict marker"):
            project.run("git", "diff", "--check")
    fresh = start(releases, tmp_path / "fresh", backend=new)
    assert_same(project, fresh, but=own.keys() | COPIED_ONCE)


def test_the_doctor_names_an_edited_file_that_a_switch_removed(releases: Path, tmp_path: Path) -> None:
    """Copier removes it without a word, so this is where it is said; git has it still."""
    old, new = "redis", "postgres"
    project = start(releases, tmp_path / "project", backend=old)
    name = OF_ONE_BACKEND[old]
    ours = project.read(name) + "# ours\n"
    (project.path / name).write_text(ours)
    commit_all(project.path, "What is ours")
    update(project, backend=new)
    assert not (project.path / name).exists()
    project.run("uv", "sync", "--quiet")
    report = json.loads(project.run(".venv/bin/my-agent", "doctor", "--json").splitlines()[-1])
    check = next(check for check in report["checks"] if check["name"] == "update")
    assert check["says"] == f"The update removed what you had changed: {name}."
    assert git(project.path, *check["todo"].partition(": git ")[2].split()) == ours


# ── With data ───────────────────────────────────────────────────────────────

FILL = """if True:
    import asyncio, json, random, sys
    from my_agent.sessions import open_store
    from my_agent.settings import load_settings
    from my_agent.sessions.records import Batch, Row, SessionRef

    TEXTS = ["é 😀", "\\\\ud83d", "\\\\u0000", '"', "\\\\", "x" * 70_000, "line\\nbreak", ""]

    async def main(seed, sessions):
        pick = random.Random(seed)
        async with open_store(load_settings()) as store:
            for number in range(sessions):
                key = SessionRef(pick.choice(["", "ada", "é/1"]), f"s{seed}-{number}/{pick.choice('aé: {}*')}")
                for _ in range(pick.randint(0, 3)):
                    rows = [
                        Row('{"role": "user",  "content": "%s", "n": [-0.0, 1e16, 1180591620717411303424]}'
                            % pick.choice(TEXTS).replace('"', "'").replace("\\n", "\\\\n"), "user")
                        for _ in range(pick.randint(1, 9))
                    ]
                    await store.append(key, Batch.of(rows, pick.choice([None, "A title", "é 😀"])))
                else:
                    await store.append(key, Batch.of([]))
                if pick.random() < 0.5:
                    metadata = {"b": [1, {"é": None}], "a": pick.random(), "big": 2**53}
                    await store.update_session(key, title=pick.choice([None, "Ours"]), metadata=metadata)

    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""

DUMP = """if True:
    import asyncio, json
    from my_agent.sessions import open_store
    from my_agent.settings import load_settings
    from my_agent.sessions.records import SessionRef

    async def main():
        async with open_store(load_settings()) as store:
            cursor = None
            while True:
                page = await store.list_sessions(None, 20, cursor)
                for info in page.sessions:
                    rows = await store.tail(SessionRef(info.user_id, info.session_id), None)
                    metadata = json.dumps(info.metadata, sort_keys=True)
                    print(json.dumps([info.user_id, info.session_id, info.title, info.item_count, metadata, rows]))
                cursor = page.next_cursor
                if cursor is None:
                    return

    asyncio.run(main())
"""
"""Everything that a store has, the session that was written last first."""


def contents(project: Project, server: dict[str, str]) -> list[str]:
    return run_python(project, DUMP, **server).splitlines()


@pytest.mark.parametrize(("old", "new"), CIRCLE)
def test_conversations_move_with_the_project(
    releases: Path, tmp_path: Path, installed: Install, old: str, new: str
) -> None:
    """As docs/operate.md says, and while the app still writes; three switches read and write all three stores."""
    project = start(releases, tmp_path / "project", backend=old)
    project.run("uv", "sync", "--quiet")
    commit_all(project.path, "With the lock file")
    # As on that page, in the project: git ignores it, or Copier would not touch the project.
    agent, backup = ".venv/bin/my-agent", str(project.path / "backup.jsonl")
    with (
        embedded_server(installed(old), tmp_path / "old") as source,
        embedded_server(installed(new), tmp_path / "new") as target,
    ):
        if old in MIGRATIONS:
            project.run(agent, "db", "upgrade", **source)
        run_python(project, FILL, "1", "50", **source)
        project.run(agent, "chat", "My name is Ada", "--session", "talk", **source)
        project.run(agent, "sessions", "export", backup, **source)
        # The app goes on for a while: an old session grows, new ones begin.
        still_running = installed(old)
        still_running.run(agent, "chat", "I live in London", "--session", "talk", **source)

        update(project, backend=new)
        project.run("uv", "sync", "--quiet")
        if new in MIGRATIONS:
            project.run(agent, "db", "upgrade", **target)
        imported = project.run(agent, "sessions", "import", backup, **target)
        assert "51 imported" in imported

        # The final short stop: the same again moves what is missing.
        run_python(still_running, FILL, "2", "3", **source)
        still_running.run(agent, "sessions", "export", backup, **source)
        imported = project.run(agent, "sessions", "import", backup, **target)
        assert "1 extended" in imported
        assert "3 imported" in imported
        assert "50 already there" in imported

        expected = contents(still_running, source)
        assert len(expected) == 54
        assert contents(project, target) == expected
        assert "Your name is Ada." in project.run(agent, "chat", "What is my name?", "--session", "talk", **target)


def test_the_old_development_data_stay_and_are_there_after_switching_back(releases: Path, tmp_path: Path) -> None:
    project = start(releases, tmp_path / "project", backend="redis")
    chat = (".venv/bin/my-agent", "chat", "--session", "s")
    project.run("uv", "sync", "--quiet")
    project.run(*chat, "My name is Ada")
    for backend in ("postgres", "redis"):
        commit_all(project.path, "All")
        update(project, backend=backend)
        project.run("uv", "sync", "--quiet")
        answer = project.run(*chat, "What is my name?")
        assert ("Your name is Ada." in answer) is (backend == "redis")
