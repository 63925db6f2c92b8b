"""The README's first command, as a new user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Project, commit_all, copy_working_tree


@pytest.mark.xdist_group("demo")
def test_the_demo_remembers_across_processes(tmp_path: Path) -> None:
    clone = tmp_path / "clone of it"
    commit_all(copy_working_tree(clone), "The working tree")
    # A new user's machine: an empty home, no uv, a python3 as the system brings it.
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/python3").symlink_to(Path(sys.base_prefix) / "bin/python3")
    output = Project(clone).run("make", "demo", HOME=str(home), PATH=f"{home}/bin:/usr/bin:/bin")
    assert 'chat --session demo "What is my name?"\nYour name is Ada.\n' in output
    assert "The second process remembered" in output
    status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == "", "the demo left files that git would commit"
