"""A rendered project of the working tree, for the demo, the benchmark and the proof."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import copier
import copier.errors
import yaml

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"

PROOF_FOLDERS = {
    "postgres": ("credentials", "sql", "postgres"),
    "redis": ("credentials", "redis"),
    "supabase": ("sql", "supabase"),
}
"""Which folders of `proof/` do not fit every backend."""
PYTEST = ("pytest", "-q", "-n", "2", "-c", "proof/pytest.ini", "--rootdir", ".")
"""Runs the proof where `lay_proof` has put it; files of it may follow."""


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


def lay_proof(target: Path, project: Path) -> list[str]:
    """Put the part of `proof/` that fits a project into the folder `target`; the project is not touched.

    Returns:
        The beginning of a command for `target`, in the project's environment: a module follows, or `PYTEST`.
    """
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text())
    others = {name for names in PROOF_FOLDERS.values() for name in names} - {*PROOF_FOLDERS[answers["backend"]]}
    others |= {name for name in ("encryption", "web") if not answers.get(name)}

    def left_out(folder: str, names: list[str]) -> set[str]:
        here = others if Path(folder) == ROOT / "proof" else set()
        return {name for name in names if name == "__pycache__" or name in here}

    proof = Path(shutil.copytree(ROOT / "proof", target / "proof", ignore=left_out))
    package = answers["package_name"]
    if package != "my_agent":
        for file in proof.rglob("*.py"):
            text = file.read_text()
            file.write_text(re.sub(r"\bmy_agent\b", package, text).replace("my-agent", package.replace("_", "-")))
    needs = [word for file in sorted(proof.rglob("requirements.txt")) for word in ("--with-requirements", str(file))]
    return ["uv", "run", "--quiet", "--project", str(project), *needs, "python", "-m"]


def tool_environment() -> dict[str, str]:
    """The environment without what would change the demo: keys, servers, an active virtual environment."""
    ours = (
        "DATABASE_",
        "REDIS_",
        "SUPABASE_",
        "OPENAI_",
        "SESSION_",
        "HISTORY_",
        "SHOW_",
        "DEV_SERVER",
        "LOG_",
        "TRACE_",
        "OTEL_",
        "WEB_",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(ours) and name != "VIRTUAL_ENV"}
