"""A repository made of the working tree, and projects rendered from it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import copier
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PRESETS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((ROOT / "examples/answers").glob("*.yml"))}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    **PRESETS,
    "redis-encrypted": {"backend": "redis", "encryption": True},
    "supabase-encrypted": {"backend": "supabase", "encryption": True},
    "redis-web": {"backend": "redis", "web": True},
    "apache": {
        "project_name": "A rather long name of a project with-dashes and_underscores",
        "license": "Apache-2.0",
        "author_name": "Ada O'Neil Ünal <&>",
        "description": "It's {fine} & 100 % 'quoted' <b>.",
    },
    "proprietary": {"package_name": "a", "license": "proprietary"},
}
QUESTIONS = yaml.safe_load((ROOT / "copier.yml").read_text())
DEFAULTS = {name: question["default"] for name, question in QUESTIONS.items() if not name.startswith("_")}


def rendered_as(variant: str) -> str:
    """The first variant that gives the same project: some presets differ in their settings alone."""
    wanted = {**DEFAULTS, **VARIANTS[variant]}
    return next(name for name, answers in VARIANTS.items() if {**DEFAULTS, **answers} == wanted)


DISTINCT = sorted({rendered_as(variant) for variant in VARIANTS})


@dataclass
class Project:
    """A rendered project."""

    path: Path

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def files(self) -> list[str]:
        """All files of the project, but for what tools made."""
        made = {".git", ".venv", "__pycache__", ".dev", "uv.lock", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
        found = (file.relative_to(self.path) for file in self.path.rglob("*") if file.is_file())
        return sorted(str(file) for file in found if not made & set(file.parts))

    def run(self, *command: str, **environment: str) -> str:
        """The output of a command that must succeed; if it fails, the test shows what it printed."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env={**clean_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"`{' '.join(command)}` exited {done.returncode} in {self.path}:\n{done.stdout}", pytrace=False)
        return done.stdout


def clean_environment() -> dict[str, str]:
    """What a new user's shell has: nothing of ours, and git with a name."""
    settings = ("DATABASE_", "REDIS_", "SUPABASE_", "OPENAI_", "SESSION_", "HISTORY_", "SHOW_", "DEV_SERVER", "WEB_")
    ours = (*settings, "VIRTUAL_ENV", "TEST_", "PYTEST_", "GIT_", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    who = {"NAME": "Ada", "EMAIL": "ada@example.com"}
    identity = {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in who.items()}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # uv and our tools
    return {**environment, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "PATH": path}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that no worker has to finish alone."""
    items.sort(key=lambda item: not (item.path.name == "test_project.py" or item.name.endswith("_typed")))


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copier runs in our process and calls git there."""
    for name, value in clean_environment().items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", *command], cwd=folder, env=clean_environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


def commit_all(folder: Path, message: str, tag: str | None = None) -> None:
    if not (folder / ".git").exists():
        git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    if tag:
        git(folder, "tag", tag)


def copy_working_tree(target: Path, *parts: str) -> Path:
    """Everything that is tracked or could be, uncommitted changes included; only these parts if some are named."""
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "--", *parts).splitlines():
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


OF_COPIER = ("copier.yml", "template")
"""What Copier reads of this repository: without the rest, it clones it sooner."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run for what is made once for all workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that whoever asks first makes; the others wait for it. Nobody changes it afterwards."""
    done = folder.with_name(f"{folder.name}.done")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one who failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def template(shared: Path) -> Path:
    """A git repository with the working tree as its one release."""

    def make(folder: Path) -> None:
        commit_all(copy_working_tree(folder, *OF_COPIER), "The working tree", tag="v1.0.0")

    return once(shared / "template", make)


@pytest.fixture(scope="session")
def releases(shared: Path) -> Path:
    """The template with all its releases. Never changed: a test that adds one clones it."""
    from .lifetime import rebuild_releases  # which builds on this module

    return once(shared / "releases", rebuild_releases)


def missing(reason: str) -> NoReturn:
    """A part that the test needs is not here: a failure where all tests must run, otherwise no test."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def installed_program(name: str, package: str) -> str:
    """A program of the system; `missing` if it is not there."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") or missing(
        f"no {name} here: apt-get install {package}"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: Sequence[str], port: int, log: Path, **options: Any) -> Iterator[None]:
    """A server that listens on this port and does not outlive us.

    Args:
        command: What to run; may begin with more options of setpriv.
        port: Where it will listen, on loopback.
        log: Where its output goes.
        options: More for `subprocess.Popen`.
    """
    with log.open("w") as output:
        server = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **options,
        )
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait(10)


_SERVER = """if True:
    import json, sys
    from pathlib import Path
    from my_agent.dev import server as devserver
    with devserver.start(Path(sys.argv[1]), durable=False) as server:
        print(json.dumps(server.environment), flush=True)
        sys.stdin.read()
"""


@contextmanager
def embedded_server(project: Project, folder: Path) -> Iterator[dict[str, str]]:
    """The development server of an installed project; the variables that reach it."""
    command = [str(project.path / ".venv/bin/python"), "-c", _SERVER, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=clean_environment(), stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin
        assert server.stdout
        try:
            yield json.loads(server.stdout.readline())
        finally:
            server.stdin.close()


Render = Callable[..., Project]
Install = Callable[[str], Project]


@pytest.fixture
def render(template: Path, tmp_path: Path) -> Render:
    """Renders a project with some answers, the rest being defaults."""

    def render(name: str = "project", **answers: Any) -> Project:
        copier.run_copy(str(template), tmp_path / name, data=answers, defaults=True, quiet=True)
        return Project(tmp_path / name)

    return render


@pytest.fixture(scope="session")
def rendered(template: Path, shared: Path) -> Install:
    """Renders a variant once, to look at."""

    def rendered(variant: str) -> Project:
        variant = rendered_as(variant)

        def make(folder: Path) -> None:
            copier.run_copy(str(template), folder, data=VARIANTS[variant], defaults=True, quiet=True, overwrite=True)

        return Project(once(shared / f"{variant}-rendered", make))

    return rendered


@pytest.fixture(scope="session")
def installed(rendered: Install, shared: Path) -> Install:
    """Installs a variant once, to run it; tests of both workers may do so at the same time."""

    def installed(variant: str) -> Project:
        def make(folder: Path) -> None:
            shutil.copytree(rendered(variant).path, folder, dirs_exist_ok=True)
            Project(folder).run("uv", "sync", "--quiet")

        return Project(once(shared / rendered_as(variant), make))

    return installed
