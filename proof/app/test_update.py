"""The doctor names what an update of the template left to do: real repositories of git, no network."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from my_agent.cli import doctor
from my_agent.sessions.errors import Check
from proof.support.command import invoke


def git(folder: Path, *command: str) -> None:
    subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def git_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.com")


@pytest.fixture(params=["", "services/my agent"])
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A project that is a repository, or a folder in one."""
    folder: Path = tmp_path / "project" / request.param
    folder.mkdir(parents=True)
    git(tmp_path / "project", "init", "-q")
    (folder / "pyproject.toml").touch()
    monkeypatch.setattr(doctor, "PROJECT", folder)
    monkeypatch.chdir(folder)
    return folder


def commit(clone: Path, message: str = "A commit") -> None:
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", message)


def answers(clone: Path, commit: str) -> None:
    (clone / doctor.ANSWERS).write_text(f"# Written by Copier.\n_commit: {commit}\na: b\n")


def test_a_missing_answers_file_is_told(clone: Path) -> None:
    (check,) = doctor._check_update()
    assert (check.state, ".copier-answers.yml is missing" in check.says) == ("warn", True)
    answers(clone, "v1.9.0")
    commit(clone)
    assert list(doctor._check_update()) == []


async def test_the_doctor_tells_inside_the_project_alone(
    clone: Path, server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)
    assert "update: .copier-answers.yml is missing" in (await invoke("doctor")).out
    monkeypatch.chdir("/")
    assert "update: " not in (await invoke("doctor")).out


def test_what_an_update_removed_and_was_changed_before_is_named(clone: Path) -> None:
    answers(clone, "v1.9.0")
    for name in ("mine.conf", "theirs.conf", "kept.conf"):
        (clone / name).write_text("one\n")
    commit(clone, "Start")
    (clone / "mine.conf").write_text("two\n")
    commit(clone, "Our own change")
    (clone / "theirs.conf").write_text("two\n")
    (clone / doctor.ANSWERS).write_text((clone / doctor.ANSWERS).read_text() + "c: d\n")
    commit(clone, "An update")
    (clone / "mine.conf").unlink()
    assert list(doctor._check_update()) == []  # removed by the user

    answers(clone, "v1.10.0")
    (clone / "theirs.conf").unlink()
    (check,) = doctor._check_update()
    assert check == Check(
        "update",
        "warn",
        "The update removed what you had changed: mine.conf.",
        check.todo,
    )
    advice, _, command = check.todo.partition(": ")
    assert advice == "Before you commit, look what of it you need"
    shown = subprocess.run(shlex.split(command), cwd=clone, check=True, capture_output=True, text=True)
    assert shown.stdout == "two\n"


def test_conflicts_are_named(clone: Path) -> None:
    answers(clone, "v1.10.0")
    (clone / "a.txt").write_text("one\n")
    commit(clone)
    git(clone, "checkout", "-q", "-b", "other")
    (clone / "a.txt").write_text("two\n")
    commit(clone)
    git(clone, "checkout", "-q", "-")
    (clone / "a.txt").write_text("three\n")
    commit(clone)
    with pytest.raises(subprocess.CalledProcessError):
        git(clone, "merge", "other")
    (check,) = doctor._check_update()
    assert (check.name, check.state, check.says) == ("update", "fail", "The update could not merge a.txt.")
