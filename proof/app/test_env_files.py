"""Which `.env` is read: the project's from anywhere inside it, elsewhere the one of the current folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import my_agent
from my_agent.sessions import BackendSettings, SettingMissing
from my_agent.sessions import settings as session_settings
from my_agent.sessions.settings import from_environment
from my_agent.settings import load_settings

PROGRAM = """if True:
    import json
    from my_agent.sessions import BackendSettings
    from my_agent.sessions.settings import from_environment
    from my_agent.settings import load_settings
    print(json.dumps([load_settings().history_max_items, from_environment(BackendSettings).session_retry_seconds]))
"""


def installed(source: Path) -> Path:
    """A copy of this package in this folder; returns the package."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(my_agent.__file__).parent, source / "my_agent", ignore=ignore))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with a `.env` of its own, in a folder with a space."""
    project = tmp_path / "my project"
    installed(project / "src")
    (project / "pyproject.toml").touch()
    (project / "docs/deep").mkdir(parents=True)
    (project / ".env").write_text("HISTORY_MAX_ITEMS=7\nSESSION_RETRY_SECONDS=3\n")
    return project


def run(source: Path, folder: Path, *command: str) -> str:
    """What a command prints in this folder, with the package that lies in `source`."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(source), "COLUMNS": "500"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def read(source: Path, folder: Path) -> list[float]:
    """The two settings, as this package reads them in this folder."""
    return list(json.loads(run(source, folder, "-P", "-c", PROGRAM)))


@pytest.mark.parametrize("folder", [".", "docs", "docs/deep", "src/my_agent/sessions"])
def test_the_env_file_of_the_project_is_read_from_anywhere_inside_it(checkout: Path, folder: str) -> None:
    assert read(checkout / "src", checkout / folder) == [7, 3]


def test_the_env_file_of_the_folder_wins_over_that_of_the_project(checkout: Path) -> None:
    (checkout / "docs/.env").write_text("HISTORY_MAX_ITEMS=8\n")
    assert read(checkout / "src", checkout / "docs") == [8, 3]
    assert read(checkout / "src", checkout / "docs/deep") == [7, 3]


def test_through_a_link_it_is_the_same_project(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkout)
    assert read(tmp_path / "link/src", tmp_path / "link/docs") == [7, 3]


def test_outside_of_the_project_only_the_current_folder_counts(checkout: Path, tmp_path: Path) -> None:
    outside = tmp_path / "my project too"  # whose name begins like the project's
    outside.mkdir()
    assert read(checkout / "src", outside) == [200, 10]
    (outside / ".env").write_text("HISTORY_MAX_ITEMS=9\n")
    assert read(checkout / "src", outside) == [9, 10]


def test_the_commands_of_a_project_read_its_file_wherever_they_are_started(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".env").write_text("DEV_SERVER=0\nOPENAI_API_KEY=sk-planted\n")
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    for folder in (tmp_path, sibling):
        told = run(checkout / "src", folder, "-m", "my_agent", "doctor")
        assert f"{checkout}/.env" in told
        assert "OPENAI_API_KEY is set" in told
    (sibling / ".env").write_text("OPENAI_API_KEY=\nOPENAI_BASE_URL=planted\n")  # which wins
    assert "OPENAI_BASE_URL is not an address" in run(checkout / "src", sibling, "-m", "my_agent", "doctor")


@pytest.mark.parametrize("place", ["lib/site-packages", "other/storage"])
def test_an_installed_package_reads_the_current_folder(checkout: Path, place: str) -> None:
    source = checkout / place  # even a virtual environment inside the project
    installed(source)
    (checkout / place / ".env").write_text("HISTORY_MAX_ITEMS=1\n")
    assert read(source, checkout / "docs") == [200, 10]
    assert read(source, checkout) == [7, 3]


def test_the_doctor_names_the_file_that_is_read(checkout: Path) -> None:
    (checkout / ".env").write_text("OPENAI_API_KEY=sk-planted\nDEV_SERVER=0\n")
    (checkout / ".env").chmod(0o644)
    told = run(checkout / "src", checkout / "docs", "-m", "my_agent", "doctor")
    assert f"Every user of this machine can read {checkout}/.env, with OPENAI_API_KEY in it." in told
    assert f"chmod 600 '{checkout}/.env'" in told
    assert "OPENAI_API_KEY is set" in told


def test_a_mark_that_windows_editors_write_is_not_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HISTORY_MAX_ITEMS=7\n", encoding="utf-8-sig")
    assert load_settings().history_max_items == 7


def test_what_was_read_in_another_folder_is_not_kept(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_settings, "PROJECT", str(checkout))
    for folder, seconds in ((checkout, 3), (tmp_path, 10), (checkout / "docs", 3), (tmp_path, 10)):
        monkeypatch.chdir(folder)
        assert from_environment(BackendSettings).session_retry_seconds == seconds


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").touch(mode=0)
    with pytest.raises(SettingMissing, match=r"^\.env cannot be read: Permission denied\. Make it readable"):
        load_settings()


async def test_a_folder_that_was_removed_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert load_settings().history_max_items == 200
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [("SESSION_RETRY_SECONDS: planted\n", 1), ('A=1\nB="open\nSESSION_RETRY_SECONDS=3\n', 2), ("export =planted", 1)],
)
def test_a_line_that_cannot_be_read_is_named_and_not_skipped(
    tmp_path: Path, text: str, line: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text(text)
    with pytest.raises(SettingMissing, match=rf"\.env, line {line} cannot be read\. Write NAME=value") as caught:
        load_settings()
    assert "planted" not in str(caught.value) + caplog.text
    (tmp_path / ".env").write_text("# A comment\n\nexport SESSION_RETRY_SECONDS='3' # three\nNOTHING\n")
    assert load_settings().session_retry_seconds == 3
