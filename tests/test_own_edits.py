"""What users make of their project breaks none of its tests, but for the one of the agent, which is theirs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from .conftest import Project, Render, clean_environment, commit_all, git
from .lifetime import edit, make_own

COLUMN = """-- A column to query.
ALTER TABLE public.agent_session_info
  ADD COLUMN topic text GENERATED ALWAYS AS (metadata ->> 'topic') STORED;
CREATE INDEX ours_by_topic ON public.agent_session_info (topic);
"""

TOOLS = '''

@function_tool(needs_approval=True)
def send_mail(to: str, subject: str) -> str:
    """Send a mail."""
    raise ConnectionError(f"no mail to {to}")
'''


def failed_files(project: Project) -> tuple[set[str], str]:
    """The files of the project's tests in which one fails, and what pytest said."""
    done = subprocess.run(
        ["uv", "run", "--quiet", "pytest", "-q", "-rfE", "-p", "no:cacheprovider"],
        cwd=project.path,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout
    return {*re.findall(r"^(?:FAILED|ERROR) (tests/\w+\.py)", done.stdout, re.MULTILINE)}, done.stdout


def test_only_the_test_of_the_agent_minds_what_users_change(render: Render, tmp_path: Path) -> None:
    project = render(backend="postgres")
    commit_all(project.path, "Start")
    make_own(project, "postgres")
    (project.path / "uv.lock").unlink()
    # The agent is another one, its test still the first one.
    git(project.path, "checkout", "-q", "HEAD~1", "--", "tests/test_agent.py")
    edit(project, "src/my_agent/agent.py", "\n\ndef build_agent", TOOLS + "\n\ndef build_agent")
    edit(project, "src/my_agent/agent.py", "tools=[our_tool]", "tools=[our_tool, send_mail]")
    (project.path / "migrations/20300102000000_topic.sql").write_text(COLUMN)
    edit(project, "src/my_agent/settings.py", "default=200", "default=20")
    edit(project, "pyproject.toml", 'name = "my-agent"\nversion = "0.1.0"', 'name = "my-agent"\nversion = "3.2.1"')
    with (project.path / ".env").open("a") as file:
        file.write("HISTORY_MAX_ITEMS=7\nSESSION_RETRY_SECONDS=1\nOPENAI_API_KEY=sk-ours\n")
    project.run("uv", "sync", "--quiet")

    failed, said = failed_files(project)
    assert failed == {"tests/test_agent.py"}, said
    assert re.search(r"(\d+) passed", said)

    command = ".venv/bin/my-agent"
    assert project.run(command, "ours") == "ours: 7\n"
    assert project.run(command, "--version") == "3.2.1\n"
    project.run("chmod", "600", ".env")
    diagnosis = json.loads(project.run(command, "doctor", "--json").splitlines()[-1])
    assert [check for check in diagnosis["checks"] if check["state"] != "ok"] == []
