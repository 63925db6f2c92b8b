"""Rendered projects work: their own tests pass in their own environment, and what they build can be installed."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path, PurePath

import pytest
from project import PYTEST, lay_proof

from . import pgbouncer
from .conftest import PRESETS, ROOT, Install, Project, Render, installed_program, missing


def passed(output: str) -> int:
    """How many tests passed. Under CI a skipped one is a missing component, unless it means nothing here."""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", output.splitlines()[-1])}
    skipped = re.findall(r"^SKIPPED .*", output, re.MULTILINE)
    if os.environ.get("CI"):
        fine = ("root", "for one server alone", "made without encryption")
        assert not [line for line in skipped if not any(reason in line for reason in fine)], output
    return counts["passed"]


@pytest.mark.parametrize("backend", ["postgres", "redis", "supabase"])
def test_its_own_tests_pass(installed: Install, backend: str) -> None:
    assert passed(installed(backend).run("uv", "run", "pytest", "-q")) > 90


# About code that is the same for every backend, and uses a store as any other: each is proven on one of them or two.
APP = (
    *("agent_runs", "cli_chat", "env_files", "history_windows", "model", "model_servers", "offline", "openai_server"),
    *("refusals", "summaries", "cli_turns", "tracing", "turns", "update", "warnings", "windows"),
)
ONCE = {
    "redis": (
        *(f"app/test_{name}.py" for name in APP),
        "transfer/test_fuzzed_imports.py",
        "transfer/test_sdk_import.py",
    ),
    "postgres": ("app/test_embedded_server.py", "transfer/test_inputs.py"),
}
NOT_ON_SUPABASE = (
    *("app/test_cli.py", "app/test_repair.py"),
    *("faults/test_compaction_faults.py", "faults/test_recovery.py", "transfer/test_transfer.py"),
)
# The embedded Supabase is the embedded PostgreSQL, which is proven, and two processes more.
SEVERAL_PROCESSES = "at_once or killed or loopback or command_line"


@pytest.mark.parametrize("backend", ["postgres", "redis", "supabase"])
def test_the_proof_holds(installed: Install, backend: str) -> None:
    elsewhere = [name for other, names in ONCE.items() if other != backend for name in names]
    left_out = [f"--ignore=proof/{name}" for name in elsewhere]
    if backend == "supabase":
        left_out += [f"--ignore=proof/{name}" for name in NOT_ON_SUPABASE]
        left_out.append(f"-k=not test_devserver or supabase or {SEVERAL_PROCESSES}")
    assert prove(installed(backend), *left_out) > 850


# What may come out differently with encryption, or where something stands between the store and its server. The rest of
# the proof is about code that is the same there.
CONTRACT = ("contract/test_contract",)
MOVED = (
    *CONTRACT,
    *(f"contract/test_{name}" for name in ("batches", "cancellation", "damage", "imports", "leases", "times")),
)
WRAPPED = (
    *CONTRACT,
    *(f"contract/test_{name}" for name in ("cancellation", "damage", "leases", "opening")),
    "encryption",
)
OF_REDIS = (*MOVED, "contract/test_concurrency", "redis/test_store")


def prove(project: Project, *places: str, **environment: str) -> int:
    """Run the proof on a project, or the files of it at these places; returns how many tests passed."""
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        command = lay_proof(Path(folder), project.path)
        options = [place for place in places if place.startswith("-")]
        files = [f"proof/{place}.py" if "/" in place else f"proof/{place}" for place in places if place not in options]
        return passed(Project(Path(folder)).run(*command, *PYTEST, *options, *(files or ["proof"]), **environment))


SEALED = {
    # Stores are shared in the same way whatever they wrap.
    "postgres": (*WRAPPED, "contract/test_sharing"),
    "redis": (*WRAPPED, "app/test_cli"),
    # The layer is the same there, and what it stands on is proven without it.
    "supabase": (*CONTRACT, "contract/test_leases", "encryption", "supabase/test_new_users"),
}


@pytest.mark.parametrize("backend", SEALED)
def test_the_contract_holds_with_encryption(installed: Install, backend: str) -> None:
    project = installed(f"{backend}-encrypted")
    assert passed(project.run("uv", "run", "pytest", "-q", "tests/test_privacy.py")) > 5
    assert prove(project, *SEALED[backend]) > 150


def test_the_web_service_holds(installed: Install) -> None:
    """On one backend: it uses a store as the conversation does, which is proven on all."""
    assert prove(installed("redis-web"), "web") > 120


# How the presets run that differ from the one of their backend in their settings alone.
OTHER_SETTINGS = {"redis-cluster": "cluster", "redis-sentinel": "sentinel"}


@pytest.mark.parametrize("preset", OTHER_SETTINGS)
def test_the_contract_holds_on_other_topologies(installed: Install, preset: str) -> None:
    topology = OTHER_SETTINGS[preset]
    more = ("redis/test_turns",) if topology == "cluster" else ()
    assert prove(installed(preset), *OF_REDIS, *more, TEST_REDIS_TOPOLOGY=topology) > 200


def test_the_contract_holds_behind_a_proxy_of_a_cluster(installed: Install) -> None:
    assert prove(installed("redis"), *OF_REDIS, TEST_REDIS_TOPOLOGY="proxy") > 200


def test_the_contract_holds_behind_a_transaction_pooler(installed: Install, tmp_path: Path) -> None:
    project = installed("postgres-pgbouncer")
    with pgbouncer.running(project, tmp_path) as url:
        pooler = {"TEST_DATABASE_URL": url, "TEST_DATABASE_POOLER": "transaction"}
        # There, the connection that kills all others may be the one it is after.
        kill = "--deselect=proof/contract/test_contract.py::test_a_killed_connection_loses_nothing"
        assert prove(project, kill, *MOVED, **pooler) > 150
        # Without the setting it does not: so there really is a pooler that swaps connections.
        with pytest.raises(pytest.fail.Exception, match=r"DATABASE_POOLER=transaction"):
            prove(project, *CONTRACT, TEST_DATABASE_URL=url, TEST_DATABASE_POOLER="none", PYTEST_ADDOPTS="-x")


def test_every_preset_is_run() -> None:
    runs = {"postgres", "redis", "supabase", *OTHER_SETTINGS, "postgres-pgbouncer", "postgres-encrypted"}
    runs.add("supabase-per-user")  # by proof/supabase/test_security.py
    assert set(PRESETS) == runs


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_settings_that_exist(installed: Install, preset: str) -> None:
    text = (ROOT / f"examples/answers/{preset}.yml").read_text()
    values = dict(re.findall(r"^#   ([A-Z_]+)=(.*)$", text, re.MULTILINE))
    program = "from my_agent.settings import Settings; print(*(name.upper() for name in Settings.model_fields))"
    project = installed(preset)
    assert values.keys() <= set(project.run(".venv/bin/python", "-c", program).split())
    program = "from my_agent.sessions import BackendSettings; print(BackendSettings().where)"
    assert project.run(".venv/bin/python", "-c", program, **values).strip()


def test_its_own_tests_and_the_proof_pass_under_another_name(installed: Install) -> None:
    project = installed("apache")
    before = project.files()
    assert passed(project.run("uv", "run", "pytest", "-q")) > 90
    assert prove(project, "app/test_cli_turns", "postgres/test_schema") > 15
    assert project.files() == before


def test_the_contract_holds_on_the_postgresql_of_debian(installed: Install) -> None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not folders:
        missing("no PostgreSQL of the system here: apt-get install postgresql")
    places = (*CONTRACT, "postgres/test_store", "postgres/test_schema")
    assert prove(installed("postgres"), *places, DEV_POSTGRES_BIN=str(folders[0].parent)) > 100


def test_the_contract_holds_on_the_redis_of_debian(installed: Install) -> None:
    program = installed_program("redis-server", "redis-server")
    assert prove(installed("redis"), *CONTRACT, "redis/test_store", TEST_REDIS_BIN=program) > 100


VARIABLES = {"postgres": "DATABASE_URL", "redis": "REDIS_URL", "supabase": "SUPABASE_URL"}


@pytest.mark.parametrize(("backend", "lock"), [*((backend, True) for backend in VARIABLES), ("postgres", False)])
def test_what_is_deployed_holds_the_migrations_and_no_development_server(
    installed: Install, render: Render, tmp_path: Path, backend: str, lock: bool
) -> None:
    """What the Dockerfile does, step by step, with the files that `.dockerignore` lets through."""
    project = installed(backend) if lock else render(backend=backend)
    context = Project(tmp_path / "src")
    context.path.mkdir()
    environment = {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "app")}
    allowed = re.findall(r"^!(.+)$", project.read(".dockerignore"), re.MULTILINE)
    for step, words in re.findall(r"^(COPY|RUN) (?!--from)(.*)$", project.read("Dockerfile"), re.MULTILINE):
        if step == "COPY":
            *names, _ = words.split()
            there = [name for name in allowed if (project.path / name).exists()]
            chosen = there if names == ["."] else [name for name in there if any(map(PurePath(name).match, names))]
            assert chosen  # as a Dockerfile demands, of some builders for each pattern
            for name in chosen:
                subprocess.run(["cp", "-r", name, str(context.path)], cwd=project.path, check=True)
        elif "uv " in words:
            context.run("sh", "-ec", words, **environment)
    assert (context.path / "uv.lock").is_file()
    command = str(tmp_path / "app/bin/my-agent")
    python = str(tmp_path / "app/bin/python")
    program = "from my_agent.app import has_dev; from my_agent.sessions import backend; print(has_dev())"
    if backend != "redis":
        program += "; print(len(backend.migrations()))"
    deployed = Project(tmp_path)
    assert deployed.run(python, "-c", program).split() == ["False", *(["4"] if backend != "redis" else [])]
    with pytest.raises(pytest.fail.Exception, match=rf"exited 1 in [^\n]*\nError: {VARIABLES[backend]} is not set"):
        deployed.run(command, "sessions", "list")
