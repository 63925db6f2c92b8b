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
    of_the_project = file.read_text()
    for name in ("test_contract", "test_leases"):
        file = folder / f"{name}_of_sqlite.py"
        file.write_text(of_the_project.replace("tests.test_sessions", f"proof.contract.{name}"))
    (folder / "test_sqlite_store.py").unlink()
    assert passed(Project(tmp_path).run(*command, *PYTEST, str(folder), PYTHONPATH=str(folder))) > 130


def test_the_example_is_checked_like_the_project(installed: Install, tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "custom_backend")
    project = installed("postgres")
    project.run("uv", "run", "mypy", "--no-incremental", str(folder / "sqlite_store.py"))
    check = ("uv", "run", "ruff", "check", "--no-cache", "--config", "pyproject.toml")
    project.run(*check, str(folder / "sqlite_store.py"))
