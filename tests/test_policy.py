"""What is promised of updates: in CONTRIBUTING.md for releases, in a project's docs/update.md for each of its files."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
import yaml

from . import lifetime
from .conftest import ROOT, Project, commit_all, git
from .lifetime import MIGRATIONS, RELEASES, STARTS, Release, conflicts, edit, start, update

pytestmark = pytest.mark.filterwarnings("default")


def of(releases: Path, release: Release, name: str) -> str:
    return git(releases, "show", f"{release.tag}:{name}")


# ── Releases ────────────────────────────────────────────────────────────────


def test_every_version_of_the_changelog_has_a_commit() -> None:
    told = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(release.tag.removeprefix("v") for release in RELEASES if release.frozen)


def changed_migrations(releases: Path, release: Release) -> list[str]:
    """Migrations of a release that are not any more what they were."""
    folders = [f"template/{folder}" for folder in MIGRATIONS.values()]
    names = git(releases, "ls-tree", "-r", "--name-only", release.tag, "--", *folders).splitlines()
    now = {name: ROOT / name for name in names}
    return [name for name, file in now.items() if not file.is_file() or file.read_text() != of(releases, release, name)]


def test_a_released_migration_is_never_edited(releases: Path) -> None:
    assert [found for release in RELEASES if release.frozen for found in changed_migrations(releases, release)] == []
    # The first state of all had another one: so it would be noticed.
    assert changed_migrations(releases, RELEASES[0]) == ["template/migrations/20261123000001_agent_sessions.sql"]


def questions(text: str) -> dict[str, dict[str, object]]:
    return {name: question for name, question in yaml.safe_load(text).items() if not name.startswith("_")}


def test_every_question_has_a_default_and_no_answer_is_forgotten(releases: Path) -> None:
    now = questions((ROOT / "copier.yml").read_text())
    assert [name for name, question in now.items() if "default" not in question or "help" not in question] == []
    for release in RELEASES:
        assert questions(of(releases, release, "copier.yml")).keys() <= now.keys(), release.tag


def test_a_file_that_is_gone_is_told_in_the_changelog(releases: Path, tmp_path: Path) -> None:
    """Its edits are gone with it: renaming or removing one is a matter of a major release."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for release, backend in STARTS:
        if release.frozen:
            old = start(releases, tmp_path / f"{release.tag}-{backend}", release.tag, backend=backend)
            new = start(releases, tmp_path / f"new-{release.tag}-{backend}", backend=backend)
            gone = set(old.files()) - set(new.files())
            assert [name for name in sorted(gone) if name.replace("my_agent", "…") not in changelog] == [], release.tag


# ── Yours and ours: the table of a project's docs/update.md, tried ───────────

Rows = list[tuple[list[str], str]]


def rows_of_the_table(page: str) -> Rows:
    """Patterns of files ("*": all others), and what an update does to them."""
    table = page.partition("| file | an update |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = []
    for line in table.strip().splitlines():
        files, does = line.strip("| ").split(" | ")
        rows.append((re.findall(r"`([^`]+)`", files) + ["*"] * ("other file" in files), does))
    return rows


def what_it_does(rows: Rows, name: str) -> str:
    for patterns, does in rows:
        if any(fnmatch.fnmatch(name, pattern + "*" * pattern.endswith("/")) for pattern in patterns):
            return does
    pytest.fail(f"{name} is in no row of the table in docs/update.md")


def change_everything(template: Path) -> None:
    """A release that changes the first line of every file, and has one more migration."""
    for file in (template / "template").rglob("*"):
        if file.is_file() and "migrations" not in file.parts and "answers_file" not in file.name:
            file.write_text("# theirs\n" + file.read_text())
    for folder in MIGRATIONS.values():
        (template / f"template/{folder}/29990101000000_theirs.sql").write_text("select 'theirs';\n")
    commit_all(template, "Everything is new", tag="v1001.0.0")


@pytest.mark.parametrize("backend", ["postgres", "redis", "supabase"])
def test_an_update_does_to_each_file_what_the_page_says(releases: Path, tmp_path: Path, backend: str) -> None:
    template = lifetime.clone(releases, tmp_path / "template")
    project = start(template, tmp_path / "project", backend=backend)
    rows = rows_of_the_table(project.read("docs/update.md"))
    files = set(project.files()) - {".copier-answers.yml"}
    added = {".env", ".dev/data", "uv.lock", "src/my_agent/ours.py", "tests/test_ours.py"}
    for name in files | added:
        file = project.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text((file.read_text() if name in files else "") + "# ours\n")
    commit_all(project.path, "Everything is ours")
    before = {name: project.read(name) for name in files | added}

    change_everything(template)
    update(project)
    seen = set()
    for name in before:
        does = "never touches" if "ours" in name else what_it_does(rows, name)
        kind = next(word for word in ("never touches", "never changes", "merges") if word in does)
        seen.add(kind)
        text = project.read(name)
        if kind == "merges":
            assert "# ours\n" in text, name
            assert "# theirs\n" in text, name
            assert ("<<<<<<< before updating" in text) is (name in conflicts(project)), name
        else:
            assert text == before[name], name
    assert what_it_does(rows, ".copier-answers.yml").startswith("rewrites")
    assert "_commit: v1001.0.0\n" in project.read(".copier-answers.yml")
    if backend in MIGRATIONS:
        assert "never changes" in seen
        assert "theirs" in project.read(f"{MIGRATIONS[backend]}/29990101000000_theirs.sql")


# ── The workflow that opens a pull request ──────────────────────────────────

GH = """#!/bin/sh
printf '%s\\n' "$@" > "$RUNNER_TEMP/gh"
"""


def test_the_workflow_opens_a_pull_request_for_a_newer_release(releases: Path, tmp_path: Path) -> None:
    template = lifetime.clone(releases, tmp_path / "template")
    project = start(template, tmp_path / "project")
    edit(project, "README.md", "# My Agent\n", "# My own title\n")
    commit_all(project.path, "Our own title")
    git(project.path, "clone", "-q", "--bare", ".", str(tmp_path / "origin.git"))
    git(project.path, "remote", "add", "origin", str(tmp_path / "origin.git"))
    (job,) = yaml.safe_load(project.read(".github/workflows/update.yml"))["jobs"].values()
    script = job["steps"][-1]["run"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH)
    (tmp_path / "bin/gh").chmod(0o755)

    def run(token: str = "planted") -> str:
        path = f"PATH={tmp_path / 'bin'}:$PATH"
        return project.run(
            "bash", "-eo", "pipefail", "-c", f"{path}\n{script}", RUNNER_TEMP=str(tmp_path), GH_TOKEN=token
        )

    assert "Nothing new." in run()
    change_everything(template)
    assert "updates are left to you" in run(token="")
    run()
    assert "Update to v1001.0.0 of the template" in (tmp_path / "gh").read_text()
    assert re.search(r"\n- README.md\n(?s:.*)\nRemoved", (tmp_path / "body.md").read_text())
    branch = Project(tmp_path / "branch")
    git(tmp_path, "clone", "-q", "--branch", "template-v1001.0.0", "origin.git", "branch")
    assert "_commit: v1001.0.0\n" in branch.read(".copier-answers.yml")
    assert "# My own title" in branch.read("README.md")

    git(project.path, "switch", "-q", "main")
    assert "There is a pull request already." in run()
