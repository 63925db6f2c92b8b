"""The embedded server serves the commands in a checkout and whoever asks for it, and never an app that did not ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from my_agent import app
from my_agent.dev import server as devserver
from my_agent.sessions.backend import ADDRESSES
from my_agent.settings import Settings
from proof.support.command import invoke

VARIABLE = devserver.Engine.VARIABLE
HINT = f"For development only: DEV_SERVER=1 uses an embedded {devserver.Engine.NAME}."

OWN_MAIN = """
import asyncio
from my_agent.app import open_app_store
from my_agent.sessions.backend import ADDRESSES
from my_agent.settings import load_settings

async def main():
    async with open_app_store(load_settings()) as store:
        await store.session("s").clear_session()
        await store.session("s").add_items([{"role": "user", "content": "Hi"}])
        print(len(await store.session("s").get_items()))

asyncio.run(main())
"""
"""What a person writes: a worker, a web app, a script."""

LIST = ("-m", "my_agent", "sessions", "list")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of this project: what the embedded server keeps is kept beside its sources."""
    folder = tmp_path_factory.mktemp("checkout")
    project = Path(app.__file__).parents[2]
    shutil.copy(project / "pyproject.toml", folder)
    for name in ("src", "migrations", "supabase"):
        if (project / name).is_dir():
            shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    yield folder
    shutil.rmtree(folder)


def python(source: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that imports the package from this folder, in an environment with the development dependencies."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_app_of_ones_own_never_gets_it_unasked(checkout: Path) -> None:
    shutil.rmtree(checkout / ".dev", ignore_errors=True)
    done = python(checkout / "src", "-c", OWN_MAIN)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    error = done.stderr.splitlines()[-1]
    assert f"SettingMissing: {VARIABLE} is not set." in error
    assert error.endswith(HINT)
    assert not (checkout / ".dev").exists()


def test_an_app_of_ones_own_asks_for_it(checkout: Path) -> None:
    done = python(checkout / "src", "-c", OWN_MAIN, DEV_SERVER="1")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert f"{VARIABLE} is not set: using the embedded" in done.stderr
    assert (checkout / ".dev").is_dir()


def test_a_command_in_a_checkout_gets_it(checkout: Path) -> None:
    done = python(checkout / "src", *LIST)
    assert done.returncode == 0, done.stderr
    assert f"{VARIABLE} is not set: using the embedded" in done.stderr


def test_a_command_in_a_checkout_does_without_it_if_told_to(checkout: Path) -> None:
    done = python(checkout / "src", *LIST, DEV_SERVER="0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {VARIABLE} is not set.")


def test_a_command_of_an_installed_package_does_not_get_it(checkout: Path, tmp_path: Path) -> None:
    """As pip lays it out, and although the development dependencies are there."""
    shutil.copytree(checkout / "src", tmp_path / "site-packages")
    done = python(tmp_path / "site-packages", *LIST)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {VARIABLE} is not set.")
    assert done.stderr.endswith(f"{HINT}\n")
    assert not list(tmp_path.rglob(".dev"))


def test_a_command_says_what_it_applies_to_a_server_that_was_in_use(checkout: Path) -> None:
    assert "brought up to date" not in python(checkout / "src", *LIST).stderr
    folders = [checkout / name for name in ("supabase/migrations", "migrations") if (checkout / name).is_dir()]
    told = f"The embedded {devserver.Engine.NAME} was brought up to date: applied 29990101000000_ours."
    for folder in folders:  # Redis has none
        (folder / "29990101000000_ours.sql").write_text("select 1;")
    try:
        assert python(checkout / "src", *LIST).stderr.splitlines().count(told) == len(folders)
        assert "brought up to date" not in python(checkout / "src", *LIST).stderr
    finally:
        for folder in folders:
            (folder / "29990101000000_ours.sql").unlink()


# ── While the SDK is imported ───────────────────────────────────────────────


def test_it_starts_ahead_and_is_taken_over(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PROJECT", checkout)
    monkeypatch.setenv("DEV_SERVER", "1")
    app.start_ahead(Settings())
    app.start_ahead(Settings())
    (ahead,) = app._ahead
    running = ahead.result(60)
    with app.server(Settings()) as settings:
        value = getattr(settings, VARIABLE.lower())
        assert running.environment[VARIABLE] == (value.get_secret_value() if isinstance(value, SecretStr) else value)
    assert app._ahead == []


def test_a_start_that_fails_is_told_once(checkout: Path) -> None:
    (checkout / "file").touch()
    program = f"""
import pathlib, my_agent.app as app
app._home = lambda: pathlib.Path({str(checkout / "file")!r})
from my_agent.cli.main import main
main()
"""
    done = python(checkout / "src", "-c", program, "chat", "Hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: The development server cannot use ")


def test_nothing_starts_ahead_where_an_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, ADDRESS)
    monkeypatch.setenv("DEV_SERVER", "1")
    app.start_ahead(Settings(), embedded=True)
    assert app._ahead == []


ADDRESS = {
    "DATABASE_URL": "postgresql://u:planted@127.0.0.1:1/db",
    "REDIS_URL": "redis://u:planted@127.0.0.1:1",
    "SUPABASE_URL": "http://127.0.0.1:1",
}[VARIABLE]


@pytest.mark.parametrize(
    ("variables", "embedded", "used", "why"),
    [
        ({}, True, True, "this is a command in a checkout of the project"),
        ({}, False, False, "DEV_SERVER is not 1"),
        ({"DEV_SERVER": ""}, False, False, "DEV_SERVER is not 1"),
        ({"DEV_SERVER": "0"}, True, False, "DEV_SERVER is 0"),
        ({"DEV_SERVER": "1"}, False, True, "DEV_SERVER is 1"),
        ({"DEV_SERVER": "1", VARIABLE: ADDRESS}, True, False, f"{VARIABLE} is set"),
        *(({name: "planted"}, True, False, f"{name} is set") for name in map(str.upper, ADDRESSES[1:])),
    ],
)
def test_the_rule(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], embedded: bool, used: bool, why: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    decision = app.embedded_server(Settings(), embedded=embedded)
    assert (decision.used, decision.why) == (used, why)


def test_development_is_told_by_its_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.has_dev_dependencies()
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert not app.has_dev_dependencies()


@pytest.mark.parametrize("variables", [{}, {"DEV_SERVER": "1"}])
def test_what_is_installed_has_no_embedded_server(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "has_dev", lambda: False)
    decision = app.embedded_server(Settings(), embedded=True)
    assert (decision.used, decision.why) == (False, "it is only in a checkout of the project")


def test_without_the_development_dependencies_a_command_does_not_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "has_dev_dependencies", lambda: False)
    decision = app.embedded_server(Settings(), embedded=True)
    assert (decision.used, decision.named) == (False, False)
    assert "the development dependencies are not installed" in decision.why


@pytest.mark.parametrize(("name", "value"), [("DEV_SERVER", "0"), (VARIABLE, ADDRESS)])
async def test_the_doctor_says_why_it_is_not_used(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("SESSION_RETRY_SECONDS", "0")
    why = {"DEV_SERVER": "DEV_SERVER is 0", VARIABLE: f"{VARIABLE} is set"}[name]
    done = await invoke("doctor")
    assert done.code == 1
    assert f" dev server: The embedded {devserver.Engine.NAME} is not used: {why}.\n" in done.out


def test_the_doctor_says_why_it_is_used(checkout: Path) -> None:
    done = python(checkout / "src", "-m", "my_agent", "doctor")
    assert done.returncode == 0, done.stdout
    assert "(development only), because this is a command in a checkout of the project.\n" in done.stdout
