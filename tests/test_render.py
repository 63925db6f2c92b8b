"""What comes out for which answers."""

from __future__ import annotations

import json
import keyword
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, VARIANTS, Install, Project, Render

TRACES = {"redis": r"redis(?!tribut)|valkey", "postgres": r"postgres|asyncpg", "supabase": r"supabase|postgrest"}
"""What gives a backend away; none may be found in a project of another."""

TREE = """
.copier-answers.yml
.dockerignore
.env.example
.gitignore
.pre-commit-config.yaml
AGENTS.md
CLAUDE.md
Dockerfile
LICENSE
README.md
docker-compose.yml
pyproject.toml
.github/
  workflows/
    ci.yml
migrations/
  20261123000001_agent_sessions.sql
src/
  my_agent/
    __init__.py
    __main__.py
    agent.py
    app.py
    chat.py
    cli.py
    cli_common.py
    cli_db.py
    cli_sessions.py
    cli_transfer.py
    conversation.py
    devserver.py
    devserver_keeper.py
    doctor.py
    files.py
    history.py
    model.py
    offline.py
    settings.py
    terminal.py
    transcript.py
    transfer.py
    transfer_file.py
    sessions/
      __init__.py
      checks.py
      codec.py
      compaction.py
      paging.py
      postgres_checks.py
      postgres_connection.py
      postgres_pool.py
      postgres_schema.py
      postgres_session.py
      retry.py
      session.py
      shared.py
      store.py
tests/
  __init__.py
  command.py
  conftest.py
  helpers.py
  postgres_fixtures.py
  relay.py
  sample_agent.py
  slow_agent.py
  test_agent.py
  test_agent_runs.py
  test_cli.py
  test_cli_chat.py
  test_contract.py
  test_devserver.py
  test_doctor.py
  test_history.py
  test_model.py
  test_offline.py
  test_openai_server.py
  test_postgres_cli.py
  test_postgres_schema.py
  test_postgres_store.py
  test_sdk_compaction.py
  test_transfer.py
"""


def test_the_default_answers_give_exactly_these_files(render: Render) -> None:
    assert drawn(render().path) == TREE.strip().splitlines()


def drawn(folder: Path) -> list[str]:
    """A folder as an indented tree; files come before folders."""
    lines = []
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
        lines.append(entry.name + "/" * entry.is_dir())
        if entry.is_dir():
            lines += ["  " + line for line in drawn(entry)]
    return lines


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
        ({"project_name": "Agent-"}, "end with a letter or digit"),
        ({"project_name": "Email"}, "'email' means something to Python.* Try 'email_agent'"),
        ({"package_name": "class"}, "'class' means something to Python"),
        ({"package_name": "agents"}, "is a library that your project uses"),
        ({"package_name": "my-agent"}, "'my-agent' is no package name"),
        ({"package_name": "1x"}, "is no package name"),
        ({"package_name": "x_"}, "is no package name"),
        ({"package_name": "x" * 31}, "use 1 to 30"),
        ({"package_name": "my_agent\n"}, "is no package name"),
        ({"description": 'with "quotes"'}, "Leave out double quotes"),
        ({"description": "back\\slash"}, "Leave out double quotes, backslashes"),
        ({"description": "two\nlines"}, "and line breaks"),
        ({"author_name": "back\\slash"}, "without double quotes, backslashes"),
        ({"author_name": "two\nlines"}, "and line breaks"),
        ({"author_name": " "}, "Give a name"),
        ({"author_email": "nowhere"}, "'nowhere' is no e-mail address"),
        ({"author_email": "a@b\n"}, "is no e-mail address"),
        ({"license": "GPL"}, "Invalid choice"),
        ({"backend": "mongo"}, "Invalid choice"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_bad_answer_is_refused_with_a_reason(render: Render, answers: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(**answers)


def test_the_reason_is_what_the_terminal_shows_last(template: Path, tmp_path: Path) -> None:
    command = ("copier", "copy", "--defaults", "--data", "project_name=123", str(template), "project")
    with pytest.raises(pytest.fail.Exception, match=r"Use 1 to 60 letters[^\n]*\n\Z"):
        Project(tmp_path).run(*command)
    assert not (tmp_path / "project").exists()


def test_no_package_can_be_called_like_a_keyword_or_a_dependency(render: Render) -> None:
    described = tomllib.loads(render().read("pyproject.toml"))
    needed = described["project"]["dependencies"] + described["dependency-groups"]["dev"]
    names = {re.split(r"[<>=; ]", requirement)[0].replace("-", "_") for requirement in needed}
    names |= {word for word in [*keyword.kwlist, *keyword.softkwlist] if word[0].isalpha() and word.islower()}
    validator = yaml.safe_load((ROOT / "copier.yml").read_text())["package_name"]["validator"]
    assert names - set(validator.split()) == set()


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


def test_the_example_file_has_every_variable_and_its_default(installed: Install) -> None:
    project = installed("defaults")
    program = """if True:
        import json
        from my_agent.settings import Settings
        print(json.dumps({name.upper(): field.default for name, field in Settings.model_fields.items()}))
    """
    settings = json.loads(project.run(".venv/bin/python", "-c", program))
    defaults = {name: "" if default is None else str(default).removesuffix(".0") for name, default in settings.items()}
    compose = dict(re.findall(r"\$\{(\w+):-(.*?)\}", project.read("docker-compose.yml")))
    example = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", project.read(".env.example"), re.MULTILINE))
    # Unset means an embedded server; the example is the one of docker-compose.yml.
    assert example.pop("DATABASE_URL") == f"postgresql://app:{compose['POSTGRES_PASSWORD']}@localhost:5432/app"
    del defaults["DATABASE_URL"]
    assert example == defaults | compose
