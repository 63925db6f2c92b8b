"""Answers that are changed after a project was made: its files, its users' edits and its conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from . import lifetime
from .conftest import Install, commit_all, embedded_server, git
from .lifetime import (
    BACKENDS,
    COPIED_ONCE,
    NOW,
    assert_kept,
    assert_no_conflict,
    assert_same,
    edit,
    make_own,
    refused,
    start,
    update,
)

ON_AND_OFF = [(True, False), (False, True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("old", "new"), ON_AND_OFF)
def test_an_untouched_project_gets_and_loses_encryption(
    releases: Path, tmp_path: Path, old: bool, new: bool, backend: str
) -> None:
    project = start(releases, tmp_path / "project", backend=backend, encryption=old)
    update(project, encryption=new)
    assert_no_conflict(project)
    assert_same(project, start(releases, tmp_path / "fresh", backend=backend, encryption=new))


@pytest.mark.parametrize(("old", "new"), ON_AND_OFF)
def test_what_users_change_is_kept(releases: Path, tmp_path: Path, old: bool, new: bool) -> None:
    backend = "postgres"
    project = start(releases, tmp_path / "project", backend=backend, encryption=old)
    own = make_own(project, backend)
    update(project, encryption=new)
    assert_no_conflict(project)
    assert_kept(project, own)
    fresh = start(releases, tmp_path / "fresh", backend=backend, encryption=new)
    assert_same(project, fresh, but=own.keys() | COPIED_ONCE)


def test_conversations_are_encrypted_and_decrypted_as_the_page_says(
    releases: Path, tmp_path: Path, installed: Install
) -> None:
    """On one backend: proof/encryption/test_cli.py runs these commands on each."""
    backend = "postgres"
    project = start(releases, tmp_path / "project", backend=backend)
    project.run("uv", "sync", "--quiet")
    commit_all(project.path, "With the lock file")
    agent = ".venv/bin/my-agent"
    with embedded_server(installed(backend), tmp_path / "server") as server:

        def chat(text: str, **environment: str) -> str:
            return project.run(agent, "chat", text, "--session", "s", **server, **environment)

        def items(**environment: str) -> list[str]:
            return project.run(agent, "sessions", "show", "s", "--json", **server, **environment).splitlines()

        project.run(agent, "db", "upgrade", **server)
        chat("My name is Ada")
        before = items()

        # Turned on: in between, both forms are read.
        update(project, encryption=True)
        commit_all(project.path, "With encryption")
        key = {"SESSION_ENCRYPTION_KEYS": project.run(agent, "sessions", "new-key").strip()}
        assert "Your name is Ada." in chat("What is my name?", **key, SESSION_ENCRYPTION_ALLOW_PLAINTEXT="true")
        assert "1 session encrypted" in project.run(agent, "sessions", "reencrypt", **server, **key)
        assert "Your name is Ada." in chat("What is my name?", **key)
        assert items(**key)[: len(before)] == before
        plain = installed(backend)
        assert "The stored sessions are encrypted" in refused(plain, agent, "sessions", "export", **server)

        # Turned off.
        assert "1 session decrypted" in project.run(agent, "sessions", "reencrypt", "--decrypt", **server, **key)
        update(project, encryption=False)
        assert "Your name is Ada." in chat("What is my name?")
        assert items()[: len(before)] == before


@pytest.mark.parametrize("tag", [NOW, "v0.1.0"])
def test_details_that_were_given_once_stay(releases: Path, tmp_path: Path, tag: str) -> None:
    """Also from a release that had no question for them."""
    details = {
        "author_name": "Ada",
        "author_email": "ada@example.com",
        "license": "proprietary",
        "description": "Ours.",
    }
    project = start(releases, tmp_path / "project", tag, **details)
    later = lifetime.clone(releases, tmp_path / "template")
    commit_all(later, "A later release", tag="v1001.0.0")
    edit(project, ".copier-answers.yml", str(releases), str(later))
    commit_all(project.path, "Moved")
    update(project)
    answers = yaml.safe_load(project.read(".copier-answers.yml"))
    assert {name: answers[name] for name in details} == details
    assert answers["details"] is False
    assert 'name = "Ada", email = "ada@example.com"' in project.read("pyproject.toml")


def test_an_update_says_what_comes_after_turning_encryption_on(releases: Path, tmp_path: Path) -> None:
    project = start(releases, tmp_path / "project")
    update_ = ("copier", "update", "--defaults", "--data")
    said = project.run(*update_, "encryption=true")
    steps = ["sessions new-key", "SESSION_ENCRYPTION_KEYS", "SESSION_ENCRYPTION_ALLOW_PLAINTEXT", "sessions reencrypt"]
    places = [said.index(step) for step in steps]
    assert places == sorted(places)
    commit_all(project.path, "With encryption")
    assert "reencrypt" not in project.run(*update_, "encryption=false")


def test_another_project_name_changes_titles_alone(releases: Path, tmp_path: Path) -> None:
    project = start(releases, tmp_path / "project")
    update(project, project_name="Their Agent")
    assert_no_conflict(project)
    changed = {line[3:] for line in git(project.path, "status", "--short").splitlines()}
    assert changed == {"README.md", "AGENTS.md", ".copier-answers.yml"}
    assert project.read("README.md").startswith("# Their Agent\n")
    assert "package_name: my_agent" in project.read(".copier-answers.yml")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("backend=mysql", "'mysql' is not in ['postgres', 'redis', 'supabase']"),
        ("package_name=class", "'class' means something to Python"),
        ("project_name=123", "start with a letter"),
    ],
)
def test_a_bad_answer_changes_nothing(releases: Path, tmp_path: Path, answer: str, words: str) -> None:
    project = start(releases, tmp_path / "project")
    with pytest.raises(pytest.fail.Exception) as refusal:
        project.run("copier", "update", "--defaults", "--data", answer)
    # Copier shows where in its own code it noticed; the last line says what is wrong.
    assert words in str(refusal.value).splitlines()[-1]
    assert git(project.path, "status", "--short") == ""


def test_the_web_service_comes_and_goes_and_its_own_file_stays_the_users(releases: Path, tmp_path: Path) -> None:
    project = start(releases, tmp_path / "project", backend="redis")
    update(project, web=True)
    assert_no_conflict(project)
    assert_same(project, start(releases, tmp_path / "fresh", backend="redis", web=True))
    auth = project.path / "src/my_agent/web/auth.py"
    auth.write_text(auth.read_text() + "\n# ours\n")
    commit_all(project.path, "Our own sign-in")
    update(project, web=True, encryption=True)
    assert_no_conflict(project)
    assert auth.read_text().endswith("# ours\n")
    commit_all(project.path, "Encryption")
    update(project, web=False)
    assert_no_conflict(project)
    assert not (project.path / "src/my_agent/cli/serve.py").exists()
    # Copier takes what it brought; the edit is in the last commit, which `git status` shows as deleted.
    assert auth.exists() or "web/auth.py" in git(project.path, "status", "--short")
