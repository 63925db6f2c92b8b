"""The example of a store of one's own keeps the contract of every store."""

from __future__ import annotations

import shutil
from pathlib import Path

from project import PYTEST, lay_proof

from .conftest import ROOT, Install, Project
from .test_project import passed

EXAMPLE = ROOT / "examples/custom_backend"


def test_the_example_passes_the_projects_own_tests(installed: Install, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "custom_backend")
    pytest = ("uv", "run", "python", "-m", "pytest", "-c", "pyproject.toml", "-p", "no:cacheprovider", "-q")
    assert passed(installed("postgres").run(*pytest, str(folder))) > 25


def test_the_example_keeps_the_whole_contract(installed: Install, tmp_path: Path) -> None:
    command = lay_proof(tmp_path, installed("postgres").path)
    folder = shutil.copytree(EXAMPLE, tmp_path / "proof/custom_backend")
    file = folder / "test_sqlite_store.py"
    file.write_text(file.read_text().replace("tests.test_sessions", "proof.contract.test_contract"))
    assert passed(Project(tmp_path).run(*command, *PYTEST, str(file), PYTHONPATH=str(folder))) > 90


def test_the_example_is_checked_like_the_project(installed: Install, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "custom_backend")
    project = installed("postgres")
    project.run("uv", "run", "mypy", "--no-incremental", str(folder / "sqlite_store.py"))
    check = ("uv", "run", "ruff", "check", "--no-cache", "--config", "pyproject.toml")
    project.run(*check, str(folder / "sqlite_store.py"))
