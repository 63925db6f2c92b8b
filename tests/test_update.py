"""`copier update` brings what is new and keeps what is the user's."""

from __future__ import annotations

from pathlib import Path

import copier
import pytest
import yaml

from .conftest import ROOT, Project, commit_all, copy_working_tree, git

# An old release may warn of what has been mended since.
pytestmark = pytest.mark.filterwarnings("default")

FILES = "template/src/{{package_name}}"


@pytest.fixture
def old_template(tmp_path: Path) -> Path:
    """The last commit before the working tree as release 1.0.0: the newest one whose template differs, or HEAD."""
    folder = tmp_path / "template"
    for commit in git(ROOT, "log", "--format=%H", "-n", "20", "--", "template", "copier.yml").split():
        if git(ROOT, "diff", "--name-only", commit, "--", "template", "copier.yml"):
            break
    git(ROOT, "clone", "-q", "--no-hardlinks", str(ROOT), str(folder))
    git(folder, "checkout", "-q", commit)
    git(folder, "tag", "v1.0.0")
    return folder


def release(template: Path) -> None:
    """The working tree as release 2.0.0."""
    git(template, "rm", "-rq", "--ignore-unmatch", ".")
    copy_working_tree(template)
    commit_all(template, "New release", tag="v2.0.0")


def start(template: Path, folder: Path, **answers: str) -> Project:
    copier.run_copy(str(template), folder, data=answers, defaults=True, quiet=True, vcs_ref="v1.0.0")
    commit_all(folder, "Start")
    return Project(folder)


def update(project: Project) -> None:
    copier.run_update(project.path, defaults=True, overwrite=True, quiet=True)
    assert git(project.path, "ls-files", "--unmerged") == ""
    project.run("git", "diff", "--check")


def edit(project: Project, name: str, old: str, new: str) -> None:
    text = project.read(name)
    assert old in text, f"{name} has no {old!r}"
    (project.path / name).write_text(text.replace(old, new, 1))


def test_an_untouched_project_becomes_what_a_new_one_is(old_template: Path, tmp_path: Path) -> None:
    project = start(old_template, tmp_path / "project")
    release(old_template)
    update(project)
    copier.run_copy(str(old_template), tmp_path / "fresh", defaults=True, quiet=True, vcs_ref="v2.0.0")
    fresh = Project(tmp_path / "fresh")
    own = {"src/my_agent/agent.py", "tests/test_agent.py"}
    assert set(fresh.files()) - own == set(project.files()) - own
    for name in set(fresh.files()) - own:
        assert project.read(name) == fresh.read(name), name


def test_what_users_change_is_kept(old_template: Path, tmp_path: Path) -> None:
    project = start(old_template, tmp_path / "project")
    path = project.path
    (path / "src/my_agent/agent.py").write_text("# all mine\n")
    edit(project, "README.md", "## Update\n", "## Our own section\n\nWith our own words.\n\n## Update\n")
    edit(project, "docker-compose.yml", "\n  app:\n", "\n  cache:\n    image: memcached:1.6\n\n  app:\n")
    edit(project, "pyproject.toml", '    "typer', '    "httpx>=0.28",\n    "typer')
    (path / "migrations/20300101000000_ours.sql").write_text("CREATE TABLE ours (id int);\n")
    (path / "tests/test_ours.py").write_text("def test_ours() -> None:\n    pass\n")
    (path / ".env").write_text("OPENAI_API_KEY=ours\n")
    (path / ".dev").mkdir()
    (path / ".dev/data").write_text("ours")
    commit_all(path, "Our own changes")

    # A release that changes files near, and in, what the user changed.
    release(old_template)
    template = old_template / FILES
    (template / "agent.py").write_text('"""A new example agent."""\n')
    (template / "offline.py").write_text((template / "offline.py").read_text() + "\n# new in this release\n")
    readme = old_template / "template/README.md.jinja"
    readme.write_text(readme.read_text() + "\nNew at the end.\n")
    commit_all(old_template, "Another release", tag="v3.0.0")
    update(project)

    assert project.read("src/my_agent/agent.py") == "# all mine\n"
    assert "With our own words." in project.read("README.md")
    assert project.read("README.md").endswith("New at the end.\n")
    assert "memcached" in project.read("docker-compose.yml")
    assert "httpx" in project.read("pyproject.toml")
    assert "CREATE TABLE ours" in project.read("migrations/20300101000000_ours.sql")
    assert "test_ours" in project.read("tests/test_ours.py")
    assert project.read("src/my_agent/offline.py").endswith("# new in this release\n")
    assert (project.read(".env"), project.read(".dev/data")) == ("OPENAI_API_KEY=ours\n", "ours")


def test_a_conflict_is_seen_by_the_check_that_the_readme_names(old_template: Path, tmp_path: Path) -> None:
    project = start(old_template, tmp_path / "project")
    first = project.read("README.md").splitlines()[0]
    edit(project, "README.md", first, "# My own title")
    commit_all(project.path, "Our own title")
    release(old_template)
    readme = old_template / "template/README.md.jinja"
    readme.write_text(readme.read_text().replace("# {{ project_name }}", "# The agent {{ project_name }}", 1))
    commit_all(old_template, "Another title", tag="v3.0.0")

    copier.run_update(project.path, defaults=True, overwrite=True, quiet=True)
    assert "# My own title" in project.read("README.md")
    with pytest.raises(pytest.fail.Exception, match=r"exited 2[^\n]*\nREADME.md:\d+: leftover conflict marker"):
        project.run("git", "diff", "--check")


def test_ci_refuses_a_conflict_that_was_committed(template: Path, tmp_path: Path) -> None:
    copier.run_copy(str(template), tmp_path / "project", defaults=True, quiet=True)
    project = Project(tmp_path / "project")
    steps = yaml.safe_load(project.read(".github/workflows/ci.yml"))["jobs"]["test"]["steps"]
    check = next(step["run"] for step in steps if "conflict" in step.get("name", ""))
    commit_all(project.path, "Start")
    project.run("bash", "-e", "-c", check)
    (project.path / "README.md").write_text("<<<<<<< before updating\nmine\n=======\ntheirs\n>>>>>>> after updating\n")
    commit_all(project.path, "Not looked at")
    with pytest.raises(pytest.fail.Exception, match=r"README\.md:1:<<<<<<<"):
        project.run("bash", "-e", "-c", check)
