"""A real server for development and tests: no Docker, no root, no installation. Never in production.

Usage::

    with server.start(Path(".dev")) as server:
        os.environ.update(server.environment)

The server listens on loopback and lives exactly as long as somebody uses it. Each of its processes has a *keeper*
(`keeper.py`): a detached process that starts it, sleeps until the last user is gone and stops it. What the server
consists of is told by an *engine* (`backend.py` says which one). Who is alive is told by locks on files, which the
kernel releases even after `kill -9`, and never by process ids, which are recycled. In `directory`:

    lock           shared by all users; a keeper waits for it exclusively
    start.lock     one user at a time looks for the server or starts it
    <name>.keeper  held while the keeper of a process lives; contains its id
    <name>.lock    held while the process, a child of it, or its keeper lives; contains its id
    <name>.port    the port of last time
    <name>.log     what it says
    <name>         its data
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from .backend import Engine
from .engine import START_SECONDS, STOP_SECONDS, DevServerError, is_locked, lock

__all__ = ["DevServer", "DevServerError", "Engine", "start"]


class DevServer:
    """One user's share of a running server.

    Attributes:
        environment: The variables that reach the server; they contain its passwords.
        started: Whether this call started the server; otherwise it shares a running one.
    """

    def __init__(self, engine: Engine, environment: dict[str, str], share: int) -> None:
        self.environment = environment
        self.started = engine.started
        self._directory = engine.directory
        self._names = engine.names
        self._share: int | None = share

    def close(self) -> None:
        """Give up our share; if it was the last one, return when the server is down. May be called again."""
        if self._share is None:
            return
        os.close(self._share)
        self._share = None
        users = self._directory / "lock"
        deadline = time.monotonic() + STOP_SECONDS
        with suppress(OSError):  # the folder has been removed: there is nothing to wait for
            while any(is_locked(self._directory / f"{name}.lock") for name in self._names):
                if (is_locked(users) and not is_locked(users, shared=True)) or time.monotonic() > deadline:
                    return  # other users hold it; a keeper, when stopping, holds it exclusively
                time.sleep(0.002)

    def __enter__(self) -> DevServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def start(directory: Path, *, durable: bool = True, engine: type[Engine] = Engine) -> DevServer:
    """Share the server whose data are in `directory`; start it if nobody uses it yet.

    Args:
        directory: Created if needed, readable for this user only and ignored by git.
        durable: False risks the data for speed, in tests. Whoever starts the server decides.
        engine: What to run.

    Raises:
        DevServerError: There is no server; the message says why and what to do.
    """
    if os.name == "nt":
        raise DevServerError(f"The development server does not run on Windows: work in WSL, or set {engine.VARIABLE}.")
    try:
        directory = directory.resolve()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (directory / ".gitignore").exists():
            (directory / ".gitignore").write_text("*\n")
        share = lock(directory / "lock", START_SECONDS, shared=True)  # the last server may still be stopping
        try:
            starting = lock(directory / "start.lock", START_SECONDS)
            try:
                ours = engine(directory, durable, starting)
                return DevServer(ours, ours.start(), share)
            finally:
                os.close(starting)
        except BaseException:
            os.close(share)
            raise
    except BlockingIOError as error:
        what = f"The server in {directory} is stuck: see the .log files there, and end what the .lock files name."
        raise DevServerError(what) from error
    except OSError as error:
        what = f"The development server cannot use {directory}: {error}. Correct that, or set {engine.VARIABLE}."
        raise DevServerError(what) from error
