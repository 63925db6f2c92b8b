"""What comes out for which answers."""

from __future__ import annotations

import ast
import builtins
import json
import keyword
import os
import pty
import re
import select
import subprocess
import termios
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from .conftest import DEFAULTS, DISTINCT, QUESTIONS, ROOT, VARIANTS, Install, Project, Render, clean_environment, git

TRACES = {
    "redis": r"redis(?!tribut)|valkey",
    "postgres": r"postgres|asyncpg|database_url|pgbouncer",
    "supabase": r"supabase|postgrest",
}
"""What gives a backend away; none may be found in a project of another."""

OF_POSTGRES_ALONE = r"postgres[._/]?(session|store|pool|checks)|\bapp:local-only"
"""The same for a project of Supabase, which is PostgreSQL underneath."""

COMMON = """
.copier-answers.yml
.dockerignore
.env.example
.github/workflows/ci.yml
.github/workflows/update.yml
.gitignore
.pre-commit-config.yaml
AGENTS.md
CLAUDE.md
Dockerfile
LICENSE
README.md
docker-compose.yml
docs/database.md
docs/http.md
docs/operate.md
docs/sessions.md
docs/turns.md
docs/update.md
pyproject.toml
src/my_agent/__init__.py
src/my_agent/__main__.py
src/my_agent/agent.py
src/my_agent/app.py
src/my_agent/cli/__init__.py
src/my_agent/cli/chat.py
src/my_agent/cli/console.py
src/my_agent/cli/doctor.py
src/my_agent/cli/main.py
src/my_agent/cli/repair.py
src/my_agent/cli/sessions.py
src/my_agent/cli/transcript.py
src/my_agent/cli/transfer.py
src/my_agent/cli/turns.py
src/my_agent/conversation/__init__.py
src/my_agent/conversation/approvals.py
src/my_agent/conversation/edit.py
src/my_agent/conversation/errors.py
src/my_agent/conversation/events.py
src/my_agent/conversation/history.py
src/my_agent/conversation/hold.py
src/my_agent/conversation/items.py
src/my_agent/conversation/model.py
src/my_agent/conversation/notes.py
src/my_agent/conversation/refusals.py
src/my_agent/conversation/repair.py
src/my_agent/conversation/report.py
src/my_agent/conversation/run.py
src/my_agent/conversation/summary.py
src/my_agent/conversation/tracing.py
src/my_agent/conversation/turn.py
src/my_agent/dev/__init__.py
src/my_agent/dev/engine.py
src/my_agent/dev/keeper.py
src/my_agent/dev/offline.py
src/my_agent/dev/server.py
src/my_agent/logs.py
src/my_agent/offline.py
src/my_agent/py.typed
src/my_agent/sessions/__init__.py
src/my_agent/sessions/backend.py
src/my_agent/sessions/codec.py
src/my_agent/sessions/compaction.py
src/my_agent/sessions/contract.py
src/my_agent/sessions/credentials.py
src/my_agent/sessions/errors.py
src/my_agent/sessions/layers.py
src/my_agent/sessions/paging.py
src/my_agent/sessions/records.py
src/my_agent/sessions/retry.py
src/my_agent/sessions/session.py
src/my_agent/sessions/settings.py
src/my_agent/sessions/shared.py
src/my_agent/sessions/store.py
src/my_agent/sessions/strings.py
src/my_agent/sessions/turn_buffer.py
src/my_agent/settings.py
src/my_agent/transfer/__init__.py
src/my_agent/transfer/file.py
src/my_agent/transfer/sdk.py
src/my_agent/transfer/sessions.py
tests/__init__.py
tests/conftest.py
tests/helpers.py
tests/test_agent.py
tests/test_cli.py
tests/test_conversation.py
tests/test_history.py
tests/test_privacy.py
tests/test_sessions.py
"""


OF_ITS_OWN = {
    "postgres": """
migrations/20261123000001_agent_sessions.sql
migrations/20261123000002_agent_session_canary.sql
migrations/20261126000001_promises.sql
migrations/20261127000001_turns.sql
src/my_agent/cli/db.py
src/my_agent/dev/postgres.py
src/my_agent/sessions/postgres/__init__.py
src/my_agent/sessions/postgres/address.py
src/my_agent/sessions/postgres/checks.py
src/my_agent/sessions/postgres/connection.py
src/my_agent/sessions/postgres/errors.py
src/my_agent/sessions/postgres/pool.py
src/my_agent/sessions/postgres/schema.py
src/my_agent/sessions/postgres/sdk.py
src/my_agent/sessions/postgres/socket.py
src/my_agent/sessions/postgres/store.py
tests/test_migrations.py
""",
    "redis": """
redis/users.acl
src/my_agent/dev/redis.py
src/my_agent/sessions/redis/__init__.py
src/my_agent/sessions/redis/address.py
src/my_agent/sessions/redis/checks.py
src/my_agent/sessions/redis/connection.py
src/my_agent/sessions/redis/errors.py
src/my_agent/sessions/redis/index.py
src/my_agent/sessions/redis/keys.py
src/my_agent/sessions/redis/opener.py
src/my_agent/sessions/redis/line.py
src/my_agent/sessions/redis/multiplexer.py
src/my_agent/sessions/redis/scripts.py
src/my_agent/sessions/redis/sdk.py
src/my_agent/sessions/redis/settings.py
src/my_agent/sessions/redis/store.py
src/my_agent/sessions/redis/topology.py
src/my_agent/sessions/redis/turns.py
""",
    "supabase": """
src/my_agent/cli/db.py
src/my_agent/cli/server_key.py
src/my_agent/dev/postgres.py
src/my_agent/dev/supabase.py
src/my_agent/dev/supabase_gateway.py
src/my_agent/dev/supabase_roles.sql
src/my_agent/sessions/postgres/__init__.py
src/my_agent/sessions/postgres/address.py
src/my_agent/sessions/postgres/connection.py
src/my_agent/sessions/postgres/errors.py
src/my_agent/sessions/postgres/schema.py
src/my_agent/sessions/postgres/sdk.py
src/my_agent/sessions/postgres/socket.py
src/my_agent/sessions/supabase/__init__.py
src/my_agent/sessions/supabase/checks.py
src/my_agent/sessions/supabase/client.py
src/my_agent/sessions/supabase/connection.py
src/my_agent/sessions/supabase/errors.py
src/my_agent/sessions/supabase/history.py
src/my_agent/sessions/supabase/server_key.py
src/my_agent/sessions/supabase/store.py
src/my_agent/sessions/supabase/token.py
supabase/config.toml
supabase/local/gateway.conf.template
supabase/local/roles.sh
supabase/migrations/20261123000001_agent_sessions.sql
supabase/migrations/20261123000002_agent_session_canary.sql
supabase/migrations/20261126000001_promises.sql
supabase/migrations/20261127000001_turns.sql
tests/test_migrations.py
""",
}


OF_ENCRYPTION = """
src/my_agent/cli/encryption.py
src/my_agent/sessions/encryption/__init__.py
src/my_agent/sessions/encryption/checks.py
src/my_agent/sessions/encryption/cipher.py
src/my_agent/sessions/encryption/reencrypt.py
src/my_agent/sessions/encryption/store.py
"""


OF_WEB = """
src/my_agent/cli/serve.py
src/my_agent/web/__init__.py
src/my_agent/web/app.py
src/my_agent/web/auth.py
src/my_agent/web/conversations.py
src/my_agent/web/guard.py
src/my_agent/web/identity.py
src/my_agent/web/page/api.js
src/my_agent/web/page/dom.js
src/my_agent/web/page/icon.svg
src/my_agent/web/page/index.html
src/my_agent/web/page/main.js
src/my_agent/web/page/markdown.js
src/my_agent/web/page/messages.js
src/my_agent/web/page/sessions.js
src/my_agent/web/page/style.css
src/my_agent/web/page/turn.js
src/my_agent/web/problems.py
src/my_agent/web/requests.py
src/my_agent/web/responses.py
src/my_agent/web/service.py
src/my_agent/web/shapes.py
src/my_agent/web/stream.py
"""


@pytest.mark.parametrize("backend", OF_ITS_OWN)
def test_the_answers_give_exactly_these_files(rendered: Install, backend: str) -> None:
    assert rendered(backend).files() == sorted((COMMON + OF_ITS_OWN[backend]).split())


@pytest.mark.parametrize("backend", OF_ITS_OWN)
def test_encryption_adds_exactly_these_files(rendered: Install, backend: str) -> None:
    files = rendered(f"{backend}-encrypted").files()
    assert files == sorted((COMMON + OF_ITS_OWN[backend] + OF_ENCRYPTION).split())


def test_the_web_service_adds_exactly_these_files(rendered: Install) -> None:
    assert rendered("redis-web").files() == sorted((COMMON + OF_ITS_OWN["redis"] + OF_WEB).split())


@pytest.mark.parametrize("backend", OF_ITS_OWN)
def test_nothing_of_the_web_service_is_left_where_it_was_not_chosen(rendered: Install, backend: str) -> None:
    project = rendered(backend)
    assert [name for name in project.files() if re.search(r"WEB_[A-Z]|cli/serve|/web/", project.read(name))] == []
    assert "fastapi" not in project.read("pyproject.toml")


@pytest.mark.parametrize("backend", OF_ITS_OWN)
def test_nothing_of_encryption_is_left_where_it_was_not_chosen(rendered: Install, backend: str) -> None:
    project = rendered(backend)
    words = re.compile(r"SESSION_ENCRYPTION|reencrypt|EncryptedStore|encryption=")
    # These say what to do about sessions that are encrypted already.
    told = ["docs/operate.md", "src/my_agent/sessions/contract.py"]
    assert [name for name in project.files() if words.search(project.read(name))] == told
    assert "cryptography" not in str(tomllib.loads(project.read("pyproject.toml"))["project"])


@pytest.mark.parametrize("variant", DISTINCT)
def test_nothing_of_the_template_language_is_left(rendered: Install, variant: str) -> None:
    project = rendered(variant)
    for name in project.files():
        text = project.read(name).replace("${{", "")  # GitHub's own expressions
        assert not re.search(r"\{\{|\{%|\{#|package_name|copier_conf", text) or name == ".copier-answers.yml", name


@pytest.mark.parametrize("variant", DISTINCT)
def test_nothing_tells_of_another_backend(rendered: Install, variant: str) -> None:
    project = rendered(variant)
    backend = yaml.safe_load(project.read(".copier-answers.yml"))["backend"]
    for name in project.files():
        # A provider may be met through its database alone: its pooler's words are translated for every project.
        known = {"supabase"} if name.endswith("/sessions/postgres/errors.py") else set()
        for other in TRACES.keys() - {backend} - known:
            pattern = OF_POSTGRES_ALONE if (backend, other) == ("supabase", "postgres") else TRACES[other]
            found = re.search(pattern, f"{name}\n{project.read(name)}", re.IGNORECASE)
            assert not found, f"{name} speaks of {other}: {found}"


DOCS = ("database", "http", "operate", "sessions", "update")
LONGEST_PAGE = 120
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
PROOF = re.compile(r"`(?:proof/)?((?:app|contract|encryption|faults|postgres|redis|sql|supabase|web)/test_\w+\.py)`")
OF_THE_CONTRACT = re.compile(r"\(`(test_\w+\.py)`\)")


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("variant", DISTINCT)
def test_a_page_is_short_and_its_links_lead_somewhere(rendered: Install, variant: str) -> None:
    project = rendered(variant)
    pages = [name for name in project.files() if name.endswith(".md")]
    assert {
        "README.md",
        "docs/sessions.md",
        "docs/database.md",
        "docs/http.md",
        "docs/operate.md",
        "docs/update.md",
    } <= set(pages)
    for name in pages:
        text = project.read(name)
        assert len(text.splitlines()) <= LONGEST_PAGE, name
        for target, anchor in LINK.findall(text):
            if target.startswith("https://"):
                continue
            file = (project.path / name).parent / target if target else project.path / name
            assert file.is_file(), f"{name} links to {target}"
            assert not anchor or anchor in anchors(file.read_text()), f"{name} links to {target}#{anchor}"


IMPORTS = """if True:
    import importlib, json, sys
    for module, name in json.loads(sys.argv[1]):
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
"""


@pytest.mark.parametrize("backend", ["postgres", "redis", "supabase", "postgres-encrypted", "redis-web"])
def test_python_on_the_pages_can_be_pasted(installed: Install, backend: str) -> None:
    project = installed(backend)
    imports = []
    for page in ("README.md", *(f"docs/{name}.md" for name in DOCS)):
        for block in re.findall(r"^```python\n(.*?)^```", project.read(page), re.DOTALL | re.MULTILINE):
            tree = ast.parse(block)
            compile(block, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("my_agent"):
                    imports += [(node.module, alias.name) for alias in node.names]
            if imports_anything(tree):  # the others are fragments, which the text around them explains
                assert undefined(tree) <= {"agent"}, page
    project.run(".venv/bin/python", "-c", IMPORTS, json.dumps(imports))


def imports_anything(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree))


def undefined(tree: ast.Module) -> set[str]:
    """Names that a block uses and neither defines nor imports."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    known = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {*vars(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
    return {node.id for node in names} - known


@pytest.mark.parametrize("variant", DISTINCT)
def test_a_promise_names_a_file_of_the_proof(rendered: Install, variant: str) -> None:
    project = rendered(variant)
    page = project.read("docs/sessions.md")
    named = [*PROOF.findall(page), *(f"contract/{name}" for name in OF_THE_CONTRACT.findall(page))]
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "proof" / name).is_file()] == []


@pytest.mark.parametrize("variant", DISTINCT)
def test_the_project_is_described_as_answered(rendered: Install, variant: str) -> None:
    answers = VARIANTS[variant]
    project = rendered(variant)
    described = tomllib.loads(project.read("pyproject.toml"))["project"]
    package = next((project.path / "src").iterdir()).name
    assert described["name"] == package.replace("_", "-")
    assert described["scripts"] == {described["name"]: f"{package}.cli.main:main"}
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
        ({"package_name": "my-agent"}, "'my-agent' is not a package name"),
        ({"package_name": "1x"}, "is not a package name"),
        ({"package_name": "x_"}, "is not a package name"),
        ({"package_name": "x" * 31}, "use 1 to 30"),
        ({"package_name": "my_agent\n"}, "is not a package name"),
        ({"description": 'with "quotes"'}, "Leave out double quotes"),
        ({"description": "back\\slash"}, "Leave out double quotes, backslashes"),
        ({"description": "two\nlines"}, "and line breaks"),
        ({"author_name": "back\\slash"}, "without double quotes, backslashes"),
        ({"author_name": "two\nlines"}, "and line breaks"),
        ({"author_name": " "}, "Give a name"),
        ({"author_email": "nowhere"}, "'nowhere' is not an e-mail address"),
        ({"author_email": "a@b\n"}, "is not an e-mail address"),
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


@pytest.mark.parametrize("backend", OF_ITS_OWN)
def test_no_package_can_be_called_like_a_keyword_or_a_dependency(rendered: Install, backend: str) -> None:
    described = tomllib.loads(rendered(backend).read("pyproject.toml"))
    needed = described["project"]["dependencies"] + described["dependency-groups"]["dev"]
    names = {re.split(r"[<>=;\[ ]", requirement)[0].replace("-", "_") for requirement in needed}
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


# Unset means an embedded server; the example is the one of docker-compose.yml.
ADDRESSES = {
    "postgres": {"DATABASE_URL": "postgresql://app:{POSTGRES_PASSWORD}@localhost:5432/app"},
    "postgres-encrypted": {"DATABASE_URL": "postgresql://app:{POSTGRES_PASSWORD}@localhost:5432/app"},
    "redis": {"REDIS_URL": "redis://:{REDIS_PASSWORD}@localhost:6379/0", "SESSION_TTL": "2592000"},
    "supabase": {"SUPABASE_URL": "http://localhost:54321"},
}


@pytest.mark.parametrize("backend", ADDRESSES)
def test_the_example_file_has_every_variable_and_its_default(installed: Install, backend: str) -> None:
    project = installed(backend)
    program = """if True:
        import json
        from my_agent.settings import Settings
        print(json.dumps({name.upper(): field.default for name, field in Settings.model_fields.items()}))
    """
    settings = json.loads(project.run(".venv/bin/python", "-c", program))
    defaults = {name: "" if default is None else str(default).removesuffix(".0") for name, default in settings.items()}
    compose = dict(re.findall(r"\$\{(\w+):-(.*?)\}", project.read("docker-compose.yml")))
    examples = {name: value.format(**compose) for name, value in ADDRESSES[backend].items()}
    written = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", project.read(".env.example"), re.MULTILINE))
    assert written == defaults | compose | examples


def next_steps(template: Path, folder: Path) -> list[str]:
    """The commands that Copier prints after it made a project here, up to the first conversation."""
    command = ["copier", "copy", "--defaults", str(template), str(folder)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stderr.splitlines()]
    return [line for line in lines if line.startswith(("cd ", "git ", "uv sync"))]


@pytest.mark.parametrize("place", ["my project", "$HOME [x]; it's"])
@pytest.mark.parametrize("inside", [False, True])
def test_the_next_steps_can_be_pasted_and_nest_no_repository(
    template: Path, tmp_path: Path, place: str, inside: bool
) -> None:
    top = tmp_path / "services & more"
    top.mkdir()
    if inside:
        (top / "theirs.txt").touch()
        git(top, "init", "-q")
    folder = top / place
    script = "\n".join(["uv() { touch uv.lock; }", *next_steps(template, folder)])
    subprocess.run(["bash", "-ec", script], cwd="/", env=clean_environment(), capture_output=True, check=True)
    assert (folder / ".git").exists() is not inside
    committed = git(folder, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
    assert {".copier-answers.yml", "uv.lock"} <= {*committed}  # an update refuses a file that git does not know
    assert git(folder, "status", "--short", ".") == ""
    assert not inside or git(top, "status", "--short").split() == ["??", "theirs.txt"]


def test_the_example_file_is_copied_for_its_owner_alone(render: Render) -> None:
    project = render()
    command = "install -m 600 .env.example .env"
    assert f"`{command}`" in project.read(".env.example").splitlines()[0]
    assert command in (ROOT / "copier.yml").read_text()
    project.run(*command.split())
    assert (project.path / ".env").stat().st_mode & 0o777 == 0o600


# ── Questions ───────────────────────────────────────────────────────────────


START = ["backend", "project_name", "package_name", "encryption", "details"]
DETAILS = ["web", "description", "author_name", "author_email", "license"]


def asked(template: Path, folder: Path, *options: str, **keys: str) -> list[str]:
    """The questions that Copier asks at a terminal, each answered with its keys, else with Enter."""
    ends, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 200))
    process = subprocess.Popen(
        ["copier", "copy", "--quiet", *options, str(template), str(folder)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**clean_environment(), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        start_new_session=True,
    )
    os.close(terminal)
    seen, questions = "", list[str]()
    with suppress(OSError):  # so Linux tells that the other side is closed
        while select.select([ends], [], [], 20)[0] and (data := os.read(ends, 65536)):
            seen += data.decode(errors="ignore")
            new = [name for name, help_ in HELP.items() if name not in questions and help_ in seen]
            for name in new:
                os.write(ends, keys.get(name, "\r").encode())
            questions += new
    os.close(ends)
    assert process.wait(20) == 0, seen
    return questions


HELP = {name: question["help"] for name, question in QUESTIONS.items() if not name.startswith("_")}


def answers_of(folder: Path) -> dict[str, object]:
    return dict(yaml.safe_load((folder / ".copier-answers.yml").read_text()))


def test_who_just_wants_to_start_answers_five_questions(template: Path, tmp_path: Path) -> None:
    assert asked(template, tmp_path / "project") == START
    recorded = answers_of(tmp_path / "project")
    assert {name: recorded[name] for name in DEFAULTS} == {**DEFAULTS, "package_name": "my_agent"}


def test_details_are_asked_for_on_demand(template: Path, tmp_path: Path) -> None:
    name = "\b" * len("Your Name") + "Ada\r"
    assert asked(template, tmp_path / "project", details="y", author_name=name) == START + DETAILS
    assert answers_of(tmp_path / "project")["author_name"] == "Ada"


def test_a_detail_that_is_given_counts_whether_details_are_asked_for_or_not(template: Path, tmp_path: Path) -> None:
    given = ("--data", "author_name=Ada", "--data", "backend=redis")
    assert asked(template, tmp_path / "project", *given) == START[1:]
    assert answers_of(tmp_path / "project")["author_name"] == "Ada"
    assert 'name = "Ada"' in (tmp_path / "project/pyproject.toml").read_text()
