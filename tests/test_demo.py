"""The README's first command, as a new user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Project, commit_all, copy_working_tree


def test_the_demo_remembers_across_processes(tmp_path: Path) -> None:
    clone = tmp_path / "clone of it"
    commit_all(copy_working_tree(clone), "The working tree")
    # A new user's machine: an empty home, no uv, a python3 as the system brings it.
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/python3").symlink_to(Path(sys.base_prefix) / "bin/python3")
    output = Project(clone).run("make", "demo", HOME=str(home), PATH=f"{home}/bin:/usr/bin:/bin")
    assert "\nYour name is Ada.\n" in output
    assert "The second process remembered" in output
    told = re.search(r"^\$ make demo\n(.*?)```", (clone / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert told is not None
    printed = {comparable(line) for line in output.splitlines()}
    assert not [line for line in told[1].splitlines() if comparable(line) not in printed], output
    status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == "", "the demo left files that git would commit"


@pytest.mark.parametrize(("backend", "name"), [("supabase", "Supabase")])
def test_the_demo_remembers_on_another_backend(backend: str, name: str, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    commit_all(copy_working_tree(clone), "The working tree")
    output = Project(clone).run("make", "demo", f"BACKEND={backend}")
    assert "\nYour name is Ada.\n" in output
    assert f"it read it from {name}.\n" in output


def comparable(line: str) -> str:
    """A line without what differs from run to run: where the clone is, and what time it is."""
    return re.sub(r"(in ).*(/build)|\d{4}-\d\d-\d\d \d\d:\d\d", r"\1\2", line)
