"""The process that keeps the development server running while somebody uses it; `server.py` tells the story.

Its arguments: DIRECTORY durable|fast PROGRAM... It says "ready", or why it cannot. It stands apart from the project: of
that it imports the engine, and otherwise the standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from .backend import Engine
from .tools import STOP_SECONDS, DevServerError, explain, lock, write

if sys.platform != "win32":
    import fcntl


def keep(directory: Path, durable: bool, programs: tuple[str, ...]) -> None:
    """Start the server, report it, sleep until the last user has left, stop the server.

    Raises:
        DevServerError, OSError: The server does not start.
    """
    keeper = lock(directory / "keeper.lock", fcntl.LOCK_EX, STOP_SECONDS)
    os.truncate(keeper, 0)
    os.write(keeper, str(os.getpid()).encode())  # for people who look
    users = os.open(directory / "lock", os.O_RDWR)
    engine = Engine(directory, durable, *programs)
    try:
        environment = engine.start()
        ports = [process.port for process in engine.processes.values()]
        write(directory / "running", json.dumps({"environment": environment, "ports": ports}))
        # Besides the last user, two things end the wait: a process of the server ends, or we are told to end.
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit())
        if all(process.lives for process in engine.processes.values()):
            report("ready")
            fcntl.flock(users, fcntl.LOCK_EX)  # held until we exit: a new user waits, then starts afresh
    finally:
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        engine.stop()
        (directory / "running").unlink(missing_ok=True)


def report(message: str) -> None:
    """Tell the starter, and let go of the output that it reads to its end."""
    os.write(1, message.encode(errors="replace"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def main(folder: str, durability: str, *programs: str) -> None:
    if os.fork():  # The starter waits for us alone; so the keeper is nobody's child that could become a zombie.
        os._exit(0)
    directory = Path(folder)
    try:
        keep(directory, durability == "durable", programs)
    except (DevServerError, OSError) as error:
        report(explain(error, directory, Engine.VARIABLE))
