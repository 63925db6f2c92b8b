"""A rendered project of the working tree, for the demo and the benchmark."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import copier
import copier.errors

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"

PROOF_FOLDERS = {"postgres": ("sql", "postgres"), "redis": ("redis",), "supabase": ("sql", "supabase")}
"""Which folders of `proof/` fit which backend; what lies beside them fits all."""


def fresh_project(folder: Path, **answers: str) -> Path:
    """Render the working tree, uncommitted changes included; replaces what was in `folder`, but keeps its `.venv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    source = BUILD / "template"
    shutil.rmtree(source, ignore_errors=True)
    # Without .git, Copier takes the files as they are.
    shutil.copytree(ROOT / "template", source / "template")
    shutil.copy(ROOT / "copier.yml", source)
    try:
        copier.run_copy(str(source), folder, data=answers, defaults=True, overwrite=True, quiet=True)
    except (copier.errors.CopierError, ValueError) as error:
        sys.exit(f"Error: {error}")
    return folder


def lay_proof_over(project: Path, backend: str) -> None:
    """Put the files of `proof/` that fit this backend into a rendered project."""
    target = project / "proof"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in (ROOT / "proof").glob("*.py"):
        shutil.copy(file, target)
    for name in PROOF_FOLDERS[backend]:
        shutil.copytree(ROOT / "proof" / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def tool_environment() -> dict[str, str]:
    """The environment without what would change the demo: keys, servers, an active virtual environment."""
    ours = ("DATABASE_", "REDIS_", "SUPABASE_", "OPENAI_", "SESSION_", "HISTORY_", "DEV_SERVER")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours) and name != "VIRTUAL_ENV"}
