"""A real server for development and tests: no Docker, no root, no installation. Never in production.

Usage::

    with server.start(Path(".dev")) as server:
        os.environ.update(server.environment)

The server listens on loopback and lives exactly as long as somebody uses it. The first user starts a *keeper*
(`keeper.py`), a detached process that starts the server, sleeps until the last user is gone and stops it.
What the server consists of is told by an *engine* (`backend.py` says which one). Who is alive is told by
locks on files, which the kernel releases even after `kill -9`, and never by process ids, which are recycled. In
`directory`:

    lock         shared by all users; the keeper waits for it exclusively
    start.lock   one user at a time looks for the server or starts it
    keeper.lock  held while the keeper lives: only then is `running` to be believed
    running      the ports and the environment of the server
    <name>.lock  inherited by a process of the server, see `engine.py`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .backend import Engine
from .tools import START_SECONDS, STOP_SECONDS, DevServerError, explain, listens, lock

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_SH

__all__ = ["DevServer", "DevServerError", "Engine", "start"]

_KEEPER = """
import sys, types
package = sys.modules["dev"] = types.ModuleType("dev")
package.__path__ = [sys.argv[1]]
from dev.keeper import main
main(*sys.argv[2:])
"""
"""Imports this folder under another name: the `__init__.py` of the project, which may need more, does not run."""


class DevServer:
    """One user's share of a running server.

    Attributes:
        environment: The variables that reach the server; they contain its passwords.
        started: Whether this call started the server; otherwise it shares a running one.
    """

    def __init__(self, directory: Path, environment: dict[str, str], share: int, *, started: bool) -> None:
        self.environment = environment
        self.started = started
        self._directory = directory
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
            while _is_locked(self._directory / "keeper.lock", LOCK_SH) and time.monotonic() < deadline:
                if _is_locked(users, LOCK_EX) and not _is_locked(users, LOCK_SH):
                    return  # other users hold it; the keeper, when stopping, holds it exclusively
                time.sleep(0.002)

    def __enter__(self) -> DevServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def start(directory: Path, *, durable: bool = True) -> DevServer:
    """Share the server whose data are in `directory`; start it if nobody uses it yet.

    Args:
        directory: Created if needed, readable for this user only and ignored by git.
        durable: False risks the data for speed, in tests. Whoever starts the server decides.

    Raises:
        DevServerError: There is no server; the message says why and what to do.
    """
    if sys.platform == "win32":
        raise DevServerError(f"The development server does not run on Windows: work in WSL, or set {Engine.VARIABLE}.")
    try:
        directory = directory.resolve()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (directory / ".gitignore").exists():
            (directory / ".gitignore").write_text("*\n")
        share = lock(directory / "lock", LOCK_SH, START_SECONDS)  # the last server may still be stopping
        try:
            starting = lock(directory / "start.lock", LOCK_EX, START_SECONDS)
            try:
                environment = _running(directory)
                if started := environment is None:
                    environment = _start_keeper(directory, durable)
            finally:
                os.close(starting)
        except BaseException:
            os.close(share)
            raise
    except OSError as error:
        raise DevServerError(explain(error, directory, Engine.VARIABLE)) from error
    return DevServer(directory, environment, share, started=started)


def _running(directory: Path) -> dict[str, str] | None:
    """How to reach the running server. A keeper without one will soon have it (its starter was killed) or exit."""
    deadline = time.monotonic() + START_SECONDS
    while _is_locked(directory / "keeper.lock", LOCK_SH):
        with suppress(FileNotFoundError):
            running = json.loads((directory / "running").read_text())
            if all(listens(port) for port in running["ports"]):  # else a process has just ended by itself
                return dict(running["environment"])
        if time.monotonic() > deadline:
            raise BlockingIOError
        time.sleep(0.002)
    return None


def _start_keeper(directory: Path, durable: bool) -> dict[str, str]:
    """Start a keeper; returns how to reach the server once it is ready."""
    programs = Engine.find(directory)
    (directory / "running").unlink(missing_ok=True)  # left by a keeper that was killed
    arguments = [str(Path(__file__).parent), str(directory), "durable" if durable else "fast", *programs]
    started = subprocess.run(
        # -S as well: the standard library is all it needs.
        [sys.executable, "-I", "-S", "-c", _KEEPER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # until the keeper lets go of it
        stderr=subprocess.STDOUT,
        cwd="/",
        start_new_session=True,  # Ctrl-C in our terminal is not for the server, which others may share
        check=False,
    )
    if started.stdout != b"ready":
        reason = started.stdout.decode(errors="replace")
        raise DevServerError(reason or f"The server has ended by itself: see the .log files in {directory}.")
    return dict(json.loads((directory / "running").read_text())["environment"])


def _is_locked(path: Path, how: int) -> bool:
    """Whether others keep us from locking the file."""
    try:
        os.close(lock(path, how, 0))
    except BlockingIOError:
        return True
    return False
