"""`doctor`: is everything set up that this app needs, and what is to be done where it is not."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import typer
from dotenv import dotenv_values
from pydantic import SecretStr

from .app import EMBEDDED, embedded_server, server
from .backend import check_server, prepare
from .devserver import DevServerError, Engine
from .drift import check_drift
from .model import address_of
from .sessions import SessionStore, SessionStoreError, SettingMissing, open_store
from .sessions.checks import Check
from .sessions.env_file import env_files
from .sessions.store import Batch, Row, SessionKey
from .settings import Settings, load_settings
from .terminal import answer

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
        settings = load_settings()
    except SessionStoreError as error:
        yield Check("settings", "fail", "The settings cannot be read.", str(error))
        return
    yield Check("settings", "ok", "The settings can be read.")
    for check in _check_env_files():
        yield check
    yield _check_model(settings)
    for check in await asyncio.to_thread(lambda: list(check_drift())):
        yield check
    decision = embedded_server(settings, embedded=True)
    if not decision.used:
        yield Check("dev server", "ok", f"The embedded {Engine.NAME} is not used: {decision.why}.")
    try:
        with server(settings, embedded=True) as chosen:
            if chosen is not settings:
                await prepare(chosen)  # as opening the store does with the embedded server
                yield Check("dev server", "ok", f"{EMBEDDED} (development only), because {decision.why}.")
            usable = True
            async with aclosing(check_server(chosen)) as found:
                async for check in found:
                    usable = usable and check.state != "fail"
                    yield check
            if usable:
                yield await _check_round_trip(open_store(chosen))
    except (SessionStoreError, DevServerError) as error:
        yield Check("server", "fail", "The server cannot be used.", str(error))


def _check_env_files() -> Iterator[Check]:
    files = [Path(name) for name in env_files() if Path(name).is_file()]
    if not files:
        yield Check(".env", "ok", "There is no .env here; the environment alone counts.")
    yield from map(_check_env_file, files)


def _check_env_file(file: Path) -> Check:
    secret = {name.upper() for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}
    held = secret & {name.upper() for name, value in dotenv_values(file).items() if value}
    if held and os.name == "posix" and file.stat().st_mode & 0o004:
        what = f"Every user of this machine can read {file}, with {' and '.join(sorted(held))} in it."
        return Check(".env", "warn", what, f"chmod 600 {shlex.quote(str(file))}")
    return Check(".env", "ok", f"{file} is private." if held else f"{file} holds no secrets.")


def _check_model(settings: Settings) -> Check:
    try:
        key = settings.model_key
        address_of(settings)
    except SettingMissing as error:
        return Check("model", "fail", "The model cannot be asked.", str(error))
    if key is None:
        what = "OPENAI_API_KEY is not set: the offline model answers, by a few rules."
        return Check("model", "warn", what, "Put OPENAI_API_KEY into .env.")
    model = settings.openai_model or "the default model"
    return Check("model", "ok", f"OPENAI_API_KEY is set; {model} answers. (Not called now.)")


async def _check_round_trip(store: SessionStore) -> Check:
    """Write, read and delete a session that nobody else can have."""
    key = SessionKey("", f"doctor-{uuid4()}")
    begin = perf_counter()
    try:
        try:
            await store.open()
            await store.append(key, Batch.of([Row(_TEXT, "user")]))
            exact = await store.tail(key, None) == [_TEXT]
        finally:
            await store.delete_session(key)
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
