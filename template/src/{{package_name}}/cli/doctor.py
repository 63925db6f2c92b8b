"""`doctor`: is everything set up that this app needs, and what is to be done where it is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import typer
from dotenv import dotenv_values
from pydantic import SecretStr

from ..app import EMBEDDED, PROJECT, embedded_server, has_dev, prepared, server
from ..conversation.model import address_of
from ..sessions import SessionStore, SessionStoreError, SettingMissing, open_store
from ..sessions.backend import ADDRESSES, NAME, check_server
from ..sessions.errors import Check
from ..sessions.records import Batch, Row, SessionRef
from ..sessions.settings import env_files
from ..settings import Settings
from .console import answer, command_settings

ANSWERS = ".copier-answers.yml"
_TEXT = '{"role":"user","content":"é 😀 \\u0000 \\ud83d","numbers":[-0.0,1e16,1180591620717411303424]}'
"""What a store that is not exact would change."""
_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def print_diagnosis(as_json: bool) -> bool:
    """Run all checks and print them as they come. True if none failed."""

    async def run() -> list[Check]:
        checks = []
        async with aclosing(diagnose()) as found:
            async for check in found:
                checks.append(check)
                if not as_json:
                    _print(check)
        return checks

    checks = asyncio.run(run())
    healthy = all(check.state != "fail" for check in checks)
    if as_json:
        answer(json.dumps({"healthy": healthy, "checks": [check._asdict() for check in checks]}))
    return healthy


async def diagnose() -> AsyncGenerator[Check, None]:
    """All checks, each as soon as it is made. What needs a part that failed is left out."""
    try:
        settings = command_settings()
    except SessionStoreError as error:
        yield Check("settings", "fail", "The settings cannot be read.", str(error))
        return
    decision = embedded_server(settings, embedded=True)
    address = _check_address(settings) if decision.named else None
    yield address or Check("settings", "ok", "The settings can be read.")
    files = _files_that_are_read()
    for check in (*_check_env_files(files), *_check_unread(files, named=decision.named)):
        yield check
    yield _check_model(settings)
    for check in await asyncio.to_thread(lambda: list(_check_update())):
        yield check
    if address is not None:
        return
    if not decision.used:
        yield Check("dev server", "ok", f"The embedded {NAME} is not used: {decision.why}.")
    try:
        with server(settings, embedded=True) as chosen:
            if chosen is not settings:
                await prepared(chosen)  # as opening the store does with the embedded server
                yield Check("dev server", "ok", f"{EMBEDDED} (development only), because {decision.why}.")
            usable = True
            async with aclosing(check_server(chosen)) as found:
                async for check in found:
                    usable = usable and check.state != "fail"
                    yield check
            if usable:
                yield await _check_round_trip(open_store(chosen))
    except SessionStoreError as error:
        yield Check("server", "fail", "The server cannot be used.", str(error))


def _check_address(settings: Settings) -> Check | None:
    """None if the address that the settings name can be used."""
    try:
        _ = settings.where
    except SettingMissing as error:
        return Check("settings", "fail", "The address in the settings cannot be used.", str(error))
    return None


def _files_that_are_read() -> list[Path]:
    return [file for file in map(Path, env_files()) if file.is_file()]


def _check_env_files(files: Sequence[Path]) -> Iterator[Check]:
    if not files:
        yield Check(".env", "ok", "No .env found; only the environment is read.")
    yield from map(_check_env_file, files)


def _check_env_file(file: Path) -> Check:
    secret = {name.upper() for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}
    held = secret & {name.upper() for name, value in dotenv_values(file).items() if value}
    if held and os.name == "posix" and file.stat().st_mode & 0o004:
        what = f"Every user of this machine can read {file}, with {' and '.join(sorted(held))} in it."
        return Check(".env", "warn", what, f"chmod 600 {shlex.quote(str(file))}")
    return Check(".env", "ok", f"{file} is private." if held else f"{file} contains no secrets.")


def _check_unread(files: Sequence[Path], *, named: bool) -> Iterator[Check]:
    """Variables that nothing here reads: misspelt, or of the backend that this project had before.

    Args:
        files: The env files.
        named: Whether the settings name a server. If not, an address in the environment is probably meant for one.
    """
    documents = [PROJECT / name for name in (".env.example", "docker-compose.yml")]
    documented = " ".join(file.read_text(encoding="utf-8") for file in documents if file.is_file())
    known = {name.upper() for name in Settings.model_fields} | {*re.findall(r"\w+", documented)}
    found = {name for file in files for name, value in dotenv_values(file).items() if value}
    if not named:
        addresses = {name: value for name, value in os.environ.items() if name.endswith("_URL") and "://" in value}
        found |= {name for name, value in addresses.items() if not value.startswith("http")}
    if unread := sorted(found - known):
        ours = " or ".join(name.upper() for name in ADDRESSES)
        what = f"{', '.join(unread)}: set, but not read. This project keeps sessions in {NAME}, at {ours}."
        todo = "Correct the name, or remove it. List variables of other programs in .env.example."
        yield Check("unread settings", "warn", what, todo)


def _check_model(settings: Settings) -> Check:
    try:
        key, address = settings.model_key, address_of(settings)
    except SettingMissing as error:
        return Check("model", "fail", "The model cannot be asked.", str(error))
    model = settings.openai_model or "the default model"
    if key is None and address is not None:
        what = f"OPENAI_BASE_URL is set; {model} answers there. OPENAI_API_KEY is not set. (Not called now.)"
        return Check("model", "ok", what)
    if key is None and not has_dev():
        return Check("model", "fail", "OPENAI_API_KEY is not set, so no model answers.", "Set OPENAI_API_KEY.")
    if key is None:
        what = "OPENAI_API_KEY is not set: the offline model answers, by a few rules."
        return Check("model", "warn", what, "Put OPENAI_API_KEY into .env.")
    return Check("model", "ok", f"OPENAI_API_KEY is set; {model} answers. (Not called now.)")


def _check_update() -> Iterator[Check]:
    """An update of the template that is not committed: the last moment at which nothing of it can be overlooked.

    None where the app is installed without its project, or called from elsewhere.
    """
    if not (PROJECT / "pyproject.toml").is_file() or not Path.cwd().is_relative_to(PROJECT):
        return
    if not (PROJECT / ANSWERS).is_file():
        what = f"{ANSWERS} is missing; without it `copier update` does not know what to update."
        yield Check("update", "warn", what, f"Take it back from git: git log --oneline -- {ANSWERS}")
        return
    conflicts = sorted({line.split("\t")[1] for line in _git("ls-files", "--unmerged")})
    if conflicts:
        what = f"The update could not merge {', '.join(conflicts)}."
        yield Check("update", "fail", what, "Resolve what is between the conflict markers, then: git add")
    # Relative: the project may be a folder of a repository, and git counts from the top of that.
    removed = _git("diff", "--relative", "--name-only", "--diff-filter=D", "HEAD")
    if not removed or ANSWERS not in _git("diff", "--relative", "--name-only", "HEAD"):
        return
    # Copies and updates, and nothing else, write the answers.
    updates = set(_git("log", "--format=%H", "--", ANSWERS))
    lost = [name for name in removed if set(_git("log", "--format=%H", "--", name)) - updates]
    if lost:
        what = f"The update removed what you had changed: {', '.join(lost)}."
        file = shlex.quote("".join(["HEAD:", *_git("rev-parse", "--show-prefix"), lost[0]]))
        yield Check("update", "warn", what, f"Before you commit, look what of it you need: git show {file}")


async def _check_round_trip(store: SessionStore) -> Check:
    """Write, read and delete a session with a random name."""
    ref = SessionRef("", f"doctor-{uuid4()}")
    begin = perf_counter()
    try:
        try:
            await store.open()
            await store.append(ref, Batch.of([Row(_TEXT, "user")]))
            exact = await store.tail(ref, None) == [_TEXT]
        finally:
            await store.delete_session(ref)
    except SessionStoreError as error:
        return Check("round trip", "fail", "A session cannot be written, read and deleted.", str(error))
    finally:
        await store.close()
    if not exact:
        what = "What was read is not what was written."
        return Check("round trip", "fail", what, "Something on the way changes text: look at encodings and proxies.")
    return Check("round trip", "ok", f"Wrote, read and deleted a session in {(perf_counter() - begin) * 1000:.0f} ms.")


def _print(check: Check) -> None:
    mark, color = _MARKS[check.state]
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        mark = check.state
    typer.secho(mark, fg=color, nl=False)
    answer(f" {check.name}: {check.says}")
    if check.todo:
        answer(f"    {check.todo}")


def _git(*command: str) -> list[str]:
    """Lines that git prints; none if it fails."""
    program = shutil.which("git")
    if program is None:
        return []
    done = subprocess.run(  # noqa: S603 - the words are ours
        [program, "-c", "core.quotePath=false", *command],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return [] if done.returncode else done.stdout.splitlines()
