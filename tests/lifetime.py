"""Projects over the years: a template with all its releases, what users change, and updates."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import copier
import pytest
import yaml

from .conftest import OF_COPIER, ROOT, Project, clean_environment, commit_all, copy_working_tree, git, once

NOW = "v1000.0.0"
"""The working tree as a release, the newest one."""

BACKENDS = ["postgres", "redis", "supabase"]
COPIED_ONCE = {"src/my_agent/agent.py", "tests/test_agent.py"}
MIGRATIONS = {"postgres": "migrations", "supabase": "supabase/migrations"}


class Release(NamedTuple):
    """A version that projects were made from."""

    tag: str
    commit: str
    frozen: bool = False

    @property
    def is_here(self) -> bool:
        """Whether this clone has the commit; a shallow one has not."""
        command = ["git", "cat-file", "-e", f"{self.commit}^{{commit}}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0

    @property
    def backends(self) -> list[str]:
        """Those that it offers."""
        if not self.is_here:
            return []
        question = yaml.safe_load(git(ROOT, "show", f"{self.commit}:copier.yml"))["backend"]
        return list(question["choices"].values())


def _releases() -> list[Release]:
    listed = tomllib.loads((ROOT / "tests/releases.toml").read_text())
    return [
        Release(f"v{version}", commit, group == "released")
        for group in ("before", "released")
        for version, commit in listed[group].items()
    ]


def _previous() -> Release:
    """The newest commit whose template is not the one of the working tree."""
    commits = git(ROOT, "log", "--format=%H", "-n", "20", "--", "template", "copier.yml").split()
    differ = (c for c in commits if git(ROOT, "diff", "--name-only", c, "--", "template", "copier.yml"))
    return Release("v999.0.0", next(differ, commits[0]))


RELEASES = _releases()
STARTS = [(release, backend) for release in (*RELEASES, _previous()) for backend in release.backends]
"""All that a project can be made from."""
STARTS_IDS = [f"{release.tag}-{backend}" for release, backend in STARTS]


def rebuild_releases(folder: Path) -> None:
    """A repository with a tag for every release, the working tree as the newest; of each, what Copier reads."""
    releases = (*RELEASES, _previous())
    for release in releases:
        if not release.is_here:
            # A shallow clone is a choice, not a missing component.
            pytest.skip(f"{release.commit} of tests/releases.toml is not in this clone: git fetch --unshallow")
    for release in releases:
        archive = subprocess.run(
            ["git", "archive", release.commit, *OF_COPIER], cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout
        subprocess.run(["tar", "-x"], cwd=_emptied(folder), input=archive, check=True)
        commit_all(folder, release.tag, tag=release.tag)
    commit_all(copy_working_tree(_emptied(folder), *OF_COPIER), "The working tree", tag=NOW)


def _emptied(folder: Path) -> Path:
    for name in OF_COPIER:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
    return folder


def clone(template: Path, folder: Path) -> Path:
    """Another template with the same releases, to add some to."""
    git(template, "clone", "-q", ".", str(folder))
    return folder


def start(template: Path, folder: Path, tag: str = NOW, **answers: Any) -> Project:
    """A project made from a release, committed."""

    def make(target: Path) -> None:
        copier.run_copy(str(template), target, data=answers, defaults=True, quiet=True, vcs_ref=tag)
        commit_all(target, "Start")

    # The same project comes out each time, unless the template got another release.
    what = repr((git(template, "rev-parse", "HEAD"), tag, sorted(answers.items())))
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    shutil.copytree(once(template.parent / f"start-{name}", make), folder, symlinks=True)
    return Project(folder)


def update(project: Project, **answers: Any) -> None:
    """`copier update` to the newest release, with other answers if some are given."""
    copier.run_update(project.path, data=answers, defaults=True, overwrite=True, quiet=True)


def conflicts(project: Project) -> set[str]:
    """Files that an update could not merge."""
    return {line.split("\t")[1] for line in git(project.path, "ls-files", "--unmerged").splitlines()}


def assert_no_conflict(project: Project) -> None:
    assert conflicts(project) == set(), git(project.path, "diff")
    project.run("git", "diff", "--check")
    assert not list(project.path.rglob("*.rej"))


def assert_same(project: Project, fresh: Project, but: Iterable[str] = ()) -> None:
    """Both have the same files with the same text, apart from those that are named."""
    but = set(but)
    assert set(project.files()) - but == set(fresh.files()) - but
    for name in set(fresh.files()) - but:
        assert project.read(name) == fresh.read(name), name


def edit(project: Project, name: str, old: str, new: str) -> None:
    text = project.read(name)
    assert old in text, f"{name} has no {old!r}"
    (project.path / name).write_text(text.replace(old, new, 1))


AGENT = '''"""Ours."""

from __future__ import annotations

from typing import Any

from agents import Agent, function_tool
from agents.models.interface import Model


@function_tool
def our_tool(text: str) -> str:
    """Say it in our way."""
    return text.upper()


def build_agent(model: str | Model | None = None) -> Agent[Any]:
    """The agent that every turn starts with."""
    return Agent(name="Ours", instructions="Our instructions.", tools=[our_tool], model=model)
'''

COMMAND = '''@app.command()
def ours() -> None:
    """Our own command."""
    from my_agent.settings import load_settings

    answer(f"ours: {load_settings().our_limit}")


def main() -> None:
'''


CLI_OF_0_1 = "src/my_agent/cli.py"
"""Moved since: an update removes it, edits and all."""


def command_line(project: Project) -> str:
    """The file with the commands."""
    return CLI_OF_0_1 if (project.path / CLI_OF_0_1).is_file() else "src/my_agent/cli/main.py"


def make_own(project: Project, backend: str) -> Mapping[str, str]:
    """Change a project as users do; returns a text for each file that has to survive any update."""
    path = project.path
    whole = {
        "src/my_agent/agent.py": AGENT,
        "src/my_agent/ours.py": '"""Ours."""\n',
        "tests/test_agent.py": 'def test_ours() -> None:\n    """Ours."""\n',
        "tests/test_ours.py": 'def test_ours() -> None:\n    """Ours."""\n',
        ".env": "OUR_LIMIT=7\n",
        ".dev/ours": "ours\n",
        "uv.lock": "ours\n",
    }
    if backend in MIGRATIONS:
        whole[f"{MIGRATIONS[backend]}/20300101000000_ours.sql"] = "CREATE TABLE public.ours (id int);\n"
    for name, text in whole.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    edit(project, "README.md", "## Update\n", "## Our own section\n\nWith our own words.\n\n## Update\n")
    edit(project, "docker-compose.yml", "\n  app:\n", "\n  cache:\n    image: memcached:1.6\n\n  app:\n")
    edit(project, "pyproject.toml", '    "typer>=0.20",\n', '    "typer>=0.20",\n    "anyio>=4",\n')
    edit(project, ".env.example", "# ── Model ─", "# Ours.\n# OUR_LIMIT=3\n\n# ── Model ─")
    edit(project, "src/my_agent/settings.py", "    openai_api_key:", "    our_limit: int = 3\n    openai_api_key:")
    edit(project, command_line(project), "def main() -> None:\n", COMMAND)
    commit_all(path, "What is ours")
    return {
        **whole,
        "README.md": "## Our own section\n\nWith our own words.\n",
        "docker-compose.yml": "  cache:\n    image: memcached:1.6\n",
        "pyproject.toml": '    "anyio>=4",\n',
        ".env.example": "# Ours.\n# OUR_LIMIT=3\n",
        "src/my_agent/settings.py": "    our_limit: int = 3\n",
        command_line(project): COMMAND,
    }


def assert_kept(project: Project, own: Mapping[str, str]) -> None:
    """Every text of the user is there, and a file that is the user's alone is just as it was.

    An edit in a file that moved is lost; the tests of `doctor` show that it is named.
    """
    for name, text in own.items():
        if name == CLI_OF_0_1:
            assert not (project.path / name).exists()
            continue
        assert text in project.read(name), name
        if git(project.path, "ls-files", "--", name) == "" or "ours" in Path(name).stem or name in COPIED_ONCE:
            assert project.read(name) == text, name


def run_python(project: Project, program: str, *arguments: str, **environment: str) -> str:
    """What a program prints that runs in the environment of the project."""
    return project.run(str(project.path / ".venv/bin/python"), "-c", program, *arguments, **environment)


def refused(project: Project, *command: str, **environment: str) -> str:
    """What a command says that must fail with the exit code 1, and without a traceback."""
    done = subprocess.run(
        command,
        cwd=project.path,
        env={**clean_environment(), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr
