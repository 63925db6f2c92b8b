"""The folder `sessions/` in another codebase, without the rest of the app."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import my_agent.sessions

PACKAGE = "otherpkg.storage.sessions"


def lift(folder: Path) -> None:
    """Copy `sessions/` and nothing else into the package that `run` uses."""
    target = folder / PACKAGE.replace(".", "/")
    source = Path(my_agent.sessions.__file__).parent
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for above in (target.parent, target.parent.parent):
        (above / "__init__.py").touch()
    # Such a codebase may well have a command line of its own.
    (folder / "otherpkg" / "cli.py").touch()
    (target.parent / "cli.py").touch()


def run(folder: Path, script: str, environment: Mapping[str, str]) -> str:
    """What a script prints in a process of its own that can import the package; warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout
