"""`copier update` brings what is new and keeps what is the user's, from every release there was."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from . import lifetime
from .conftest import Install, Project, commit_all, embedded_server, git
from .lifetime import (
    COMMAND,
    COPIED_ONCE,
    MIGRATIONS,
    STARTS,
    STARTS_IDS,
    Release,
    assert_kept,
    assert_no_conflict,
    assert_same,
    command_line,
    edit,
    make_own,
    refused,
    start,
    update,
)

# An old release may warn of what has been mended since.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(("release", "backend"), STARTS, ids=STARTS_IDS)
def test_an_untouched_project_becomes_what_a_new_one_is(
    releases: Path, tmp_path: Path, release: Release, backend: str
) -> None:
    project = start(releases, tmp_path / "project", release.tag, backend=backend)
    update(project)
    assert_no_conflict(project)
    assert_same(project, start(releases, tmp_path / "fresh", backend=backend), but=COPIED_ONCE)


@pytest.mark.parametrize(("release", "backend"), STARTS, ids=STARTS_IDS)
def test_what_users_change_is_kept(releases: Path, tmp_path: Path, release: Release, backend: str) -> None:
    project = start(releases, tmp_path / "project", release.tag, backend=backend)
    own = make_own(project, backend)
    update(project)
    assert_no_conflict(project)
    assert_kept(project, own)
    fresh = start(releases, tmp_path / "fresh", backend=backend)
    assert_same(project, fresh, but=own.keys() | COPIED_ONCE)


OLDEST = {backend: release for release, backend in reversed(STARTS)}


@pytest.mark.parametrize("backend", OLDEST)
def test_an_old_project_works_after_the_update_with_its_agent_and_its_data(
    releases: Path, tmp_path: Path, installed: Install, backend: str
) -> None:
    project = start(releases, tmp_path / "project", OLDEST[backend].tag, backend=backend)
    make_own(project, backend)
    (project.path / "uv.lock").unlink()
    project.run("uv", "sync", "--quiet")
    with embedded_server(installed(backend), tmp_path / "server") as server:

        def agent(*command: str) -> str:
            return project.run(".venv/bin/my-agent", *command, **server)

        if backend in MIGRATIONS:
            agent("db", "upgrade")
        agent("chat", "My name is Ada", "--session", "s", "--user", "ada")
        before = agent("sessions", "export")
        commit_all(project.path, "With the lock file")
        update(project)
        project.run("uv", "sync", "--quiet")
        # It fails until the schema is upgraded, too.
        diagnosis = project.run("sh", "-c", ".venv/bin/my-agent doctor || true", **server)
        assert "The update removed what you had changed: src/my_agent/cli.py." in " ".join(diagnosis.split())
        # As it says: the command goes where the others went.
        edit(project, command_line(project), "def main() -> None:\n", COMMAND)
        if backend in MIGRATIONS:
            agent("db", "upgrade")
        assert agent("sessions", "export") == before
        assert "Your name is Ada." in agent("chat", "What is my name?", "--session", "s", "--user", "ada")
        assert agent("ours") == "ours: 7\n"
    # The agent that it was made with goes on working, too.
    git(project.path, "checkout", "-q", "HEAD~1", "--", *COPIED_ONCE)
    tests = ["tests/test_agent.py", "tests/test_ours.py"]
    # What a new project has runs in full in tests/test_project.py; one backend shows that it passes here as well.
    tests += ["tests/test_cli.py"] if backend == "postgres" else []
    project.run("uv", "run", "pytest", "-q", *tests)


# ── The schema ──────────────────────────────────────────────────────────────

VERSIONS = """
create or replace function public.agent_session_schema_version() returns bigint[]
language sql stable set search_path = '' as $$ select array[{newest}, {oldest}]::bigint[] $$;
"""


def release_migration(template: Path, tag: str, newest: int, oldest: int) -> None:
    """A release with one more migration, whose schema serves programs from `oldest` on."""
    sql = "alter table public.agent_sessions add column note text default 'new';\n" if oldest < newest else ""
    text = sql + VERSIONS.format(newest=newest, oldest=oldest)
    for folder in MIGRATIONS.values():
        (template / f"template/{folder}/{newest}_next.sql").write_text(text)
    program = template / "template/src/{{package_name}}/sessions/postgres/connection.py"
    lines = program.read_text().splitlines()
    program.write_text("\n".join(f"SCHEMA_VERSION = {newest}" if "SCHEMA_VERSION = " in x else x for x in lines) + "\n")
    commit_all(template, "Another schema", tag=tag)


@pytest.mark.parametrize("backend", MIGRATIONS)
def test_a_newer_schema_keeps_the_rows_and_refuses_programs_that_are_too_old(
    releases: Path, tmp_path: Path, installed: Install, backend: str
) -> None:
    template = lifetime.clone(releases, tmp_path / "template")
    now = start(template, tmp_path / "project", backend=backend)
    old = installed(backend)
    oldest = 20261123000001
    chat = (".venv/bin/my-agent", "chat", "--session", "s")
    with embedded_server(old, tmp_path / "server") as server:
        old.run(".venv/bin/my-agent", "db", "upgrade", **server)
        old.run(*chat, "My name is Ada", **server)
        before = old.run(".venv/bin/my-agent", "sessions", "export", **server)

        release_migration(template, "v1001.0.0", 29990101000000, oldest)
        update(now)
        now.run("uv", "sync", "--quiet")
        commit_all(now.path, "A minor release")
        assert "needs 29990101000000. Run `my-agent db upgrade`" in refused(now, *chat, "Hi", **server)
        assert "Applied 29990101000000_next." in now.run(".venv/bin/my-agent", "db", "upgrade", **server)
        assert now.run(".venv/bin/my-agent", "sessions", "export", **server) == before
        assert "Your name is Ada." in now.run(*chat, "What is my name?", **server)
        assert "Your name is Ada." in old.run(*chat, "What is my name?", **server)

        release_migration(template, "v1002.0.0", 29990102000000, 29990102000000)
        update(now)
        now.run(".venv/bin/my-agent", "db", "upgrade", **server)
        before = now.run(".venv/bin/my-agent", "sessions", "export", **server)
        assert "Deploy the current version of this app" in refused(old, *chat, "Hi", **server)
        assert now.run(".venv/bin/my-agent", "sessions", "export", **server) == before


# ── Conflicts ───────────────────────────────────────────────────────────────


@pytest.fixture
def conflict(releases: Path, tmp_path: Path) -> Project:
    """A project whose title was changed both by its user and by a release; about to be updated."""
    template = lifetime.clone(releases, tmp_path / "template")
    project = start(template, tmp_path / "project")
    edit(project, "README.md", "# My Agent\n", "# My own title\n")
    commit_all(project.path, "Our own title")
    readme = template / "template/README.md.jinja"
    readme.write_text(readme.read_text().replace("# {{ project_name }}", "# The agent {{ project_name }}", 1))
    commit_all(template, "Another title", tag="v1001.0.0")
    return project


def check_of_ci(project: Project) -> tuple[str, ...]:
    steps = yaml.safe_load(project.read(".github/workflows/ci.yml"))["jobs"]["test"]["steps"]
    return "bash", "-e", "-c", next(step["run"] for step in steps if "conflict" in step.get("name", ""))


def hook(project: Project, name: str) -> tuple[dict[str, list[str]], str]:
    """A hook of the project's pre-commit configuration, and the release of the repository it is in."""
    repositories = yaml.safe_load(project.read(".pre-commit-config.yaml"))["repos"]
    found = [(hook, repository.get("rev", "")) for repository in repositories for hook in repository["hooks"]]
    return next((hook, rev) for hook, rev in found if hook["id"] == name)


def test_a_conflict_is_seen_by_git_by_pre_commit_and_by_ci(conflict: Project) -> None:
    conflict.run(*check_of_ci(conflict))
    conflict.run("copier", "update", "--defaults")  # exits 0
    assert "# My own title" in conflict.read("README.md")
    assert "README.md" in git(conflict.path, "ls-files", "--unmerged")
    with pytest.raises(pytest.fail.Exception, match=r"exited 2[^\n]*\nREADME.md:\d+: leftover conflict marker"):
        conflict.run("git", "diff", "--check")

    merge_conflict, rev = hook(conflict, "check-merge-conflict")
    tool = ("uvx", "--quiet", "--from", f"pre-commit-hooks=={rev.removeprefix('v')}", "check-merge-conflict")
    with pytest.raises(pytest.fail.Exception, match=r"README.md:\d+: Merge conflict string"):
        conflict.run(*tool, *merge_conflict["args"], "README.md")

    commit_all(conflict.path, "Not looked at")
    with pytest.raises(pytest.fail.Exception, match=r"README\.md:\d:<<<<<<<"):
        conflict.run(*check_of_ci(conflict))


def test_a_rejected_part_is_seen_by_pre_commit_and_by_ci(conflict: Project, installed: Install) -> None:
    conflict.run("copier", "update", "--defaults", "--conflict", "rej")
    assert (conflict.path / "README.md.rej").is_file()
    commit_all(conflict.path, "Not looked at")
    with pytest.raises(pytest.fail.Exception, match=r"exited 1[^\n]*\nREADME\.md\.rej"):
        conflict.run(*check_of_ci(conflict))

    rejected, _ = hook(conflict, "update-rejects")
    config = conflict.path / ".git/hook.json"  # that one hook; the others would have to be fetched
    config.write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": [rejected]}]}))
    pre_commit = str(installed("postgres").path / ".venv/bin/pre-commit")
    with pytest.raises(pytest.fail.Exception, match=r"(?s)Failed.*README\.md\.rej"):
        conflict.run(pre_commit, "run", "--config", str(config), "--all-files")
    (conflict.path / "README.md.rej").unlink()
    commit_all(conflict.path, "Resolved")
    conflict.run(pre_commit, "run", "--config", str(config), "--all-files")
    conflict.run(*check_of_ci(conflict))


def test_an_update_can_be_given_up_as_the_page_says(conflict: Project) -> None:
    (conflict.path / ".env").write_text("OPENAI_API_KEY=ours\n")
    conflict.run("copier", "update", "--defaults", "--data", "backend=redis")
    assert git(conflict.path, "status", "--short") != ""
    command = "git reset --hard && git clean -di"
    assert command in " ".join(conflict.read("docs/update.md").split())
    conflict.run("git", "reset", "--hard")
    conflict.run("git", "clean", "-d", "--force")  # -i asks
    assert git(conflict.path, "status", "--short") == ""
    assert conflict.read("README.md").startswith("# My own title\n")
    assert conflict.read(".env") == "OPENAI_API_KEY=ours\n"
