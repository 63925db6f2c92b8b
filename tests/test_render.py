"""What comes out for which answers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, VARIANTS, Install, Render

TRACES = {"redis": r"redis(?!tribut)|valkey", "postgres": r"postgres|asyncpg", "supabase": r"supabase|postgrest"}
"""What gives a backend away; none may be found in a project of another."""

TREE = {
    ".copier-answers.yml",
    ".dockerignore",
    ".env.example",
    ".github/workflows/ci.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    "AGENTS.md",
    "CLAUDE.md",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "docker-compose.yml",
    "migrations/20261123000001_agent_sessions.sql",
    "pyproject.toml",
    "src/my_agent/__init__.py",
    "src/my_agent/__main__.py",
    "src/my_agent/agent.py",
    "src/my_agent/app.py",
    "src/my_agent/conversation.py",
    "src/my_agent/sessions/postgres_session.py",
    "src/my_agent/sessions/session.py",
    "src/my_agent/sessions/store.py",
    "src/my_agent/settings.py",
    "tests/conftest.py",
    "tests/test_contract.py",
}


def test_the_default_answers_give_a_whole_project(render: Render) -> None:
    files = render().files()
    assert set(files) >= TREE
    assert not [name for name in files if name.endswith((".jinja", ".orig", ".rej")) or "{" in name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_of_the_template_language_is_left(render: Render, variant: str) -> None:
    project = render(**VARIANTS[variant])
    for name in project.files():
        text = project.read(name).replace("${{", "")  # GitHub's own expressions
        assert not re.search(r"\{\{|\{%|\{#|package_name|copier_conf", text) or name == ".copier-answers.yml", name


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_tells_of_another_backend(render: Render, variant: str) -> None:
    project = render(**VARIANTS[variant])
    backend = yaml.safe_load(project.read(".copier-answers.yml"))["backend"]
    for name in project.files():
        for other in TRACES.keys() - {backend}:
            # A remark on a pooler that Supabase offers is about PostgreSQL.
            text = project.read(name).replace("Supavisor", "")
            found = re.search(TRACES[other], f"{name}\n{text}", re.IGNORECASE)
            assert not found, f"{name} speaks of {other}: {found}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_project_is_described_as_answered(render: Render, variant: str) -> None:
    answers = VARIANTS[variant]
    project = render(**answers)
    described = tomllib.loads(project.read("pyproject.toml"))["project"]
    package = next((project.path / "src").iterdir()).name
    assert described["name"] == package.replace("_", "-")
    assert described["scripts"] == {described["name"]: f"{package}.cli:main"}
    assert described["description"] == answers.get("description", "An agent that remembers its conversations.")
    assert described["authors"][0]["name"] == answers.get("author_name", "Your Name")
    words = {"MIT": "MIT License", "Apache-2.0": "Apache License", "proprietary": "All rights reserved"}
    assert words[answers.get("license", "MIT")] in project.read("LICENSE")
    for name in ("docker-compose.yml", ".github/workflows/ci.yml", ".pre-commit-config.yaml"):
        yaml.safe_load(project.read(name))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"project_name": ""}, "start with a letter"),
        ({"project_name": "123"}, "start with a letter"),
        ({"project_name": "Löwe 🦁"}, "start with a letter"),
        ({"project_name": "x" * 61}, "Use 1 to 60"),
        ({"package_name": "class"}, "is a Python keyword"),
        ({"package_name": "my-agent"}, "is no package name"),
        ({"package_name": "1x"}, "is no package name"),
        ({"package_name": "agents"}, "would hide a package"),
        ({"description": 'with "quotes"'}, "Leave out double quotes"),
        ({"description": "two\nlines"}, "Leave out double quotes"),
        ({"author_name": "back\\slash"}, "without double quotes or backslashes"),
        ({"author_name": " "}, "Give a name"),
        ({"author_email": "nowhere"}, "is no e-mail address"),
        ({"license": "GPL"}, "Invalid choice"),
        ({"backend": "mongo"}, "Invalid choice"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_bad_answer_is_refused_with_a_reason(render: Render, answers: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(**answers)


def test_the_package_name_follows_the_project_name_and_is_recorded(render: Render) -> None:
    project = render(project_name="My Very-own Agent")
    assert (project.path / "src/my_very_own_agent/agent.py").is_file()
    assert "package_name: my_very_own_agent\n" in project.read(".copier-answers.yml")


def test_a_folder_with_other_files_is_not_overwritten(render: Render, template: Path) -> None:
    project = render()
    (project.path / "README.md").write_text("my own words")
    # With nobody to ask, Copier stops at the first file that differs.
    with pytest.raises(pytest.fail.Exception, match="exited 1"):
        project.run("copier", "copy", "--defaults", str(template), ".")
    assert project.read("README.md") == "my own words"


def test_copier_needs_no_trust() -> None:
    settings = yaml.safe_load((ROOT / "copier.yml").read_text())
    assert not {"_tasks", "_migrations", "_jinja_extensions", "_external_data"} & settings.keys()


def test_every_setting_is_in_the_example_file(installed: Install) -> None:
    project = installed("defaults")
    names = project.run(
        ".venv/bin/python", "-c", "from my_agent.settings import Settings; print(*Settings.model_fields)"
    ).split()
    for name in names:
        assert re.search(rf"^# {name.upper()}=", project.read(".env.example"), re.MULTILINE), name
