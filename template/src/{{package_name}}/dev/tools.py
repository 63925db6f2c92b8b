"""What both sides of the development server use: locks, ports, files, and the error that a user reads."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

START_SECONDS = 120.0  # new data on a slow and busy machine, or recovery after a crash
STOP_SECONDS = 20.0  # a checkpoint; who takes longer is stopped the hard way, and the next start recovers


class DevServerError(Exception):
    """Why there is no server and what to do about it, as a sentence to the user."""


def explain(error: OSError | DevServerError, directory: Path, variable: str) -> str:
    """The error as a sentence to the user, who may set `variable` instead."""
    if isinstance(error, DevServerError):
        return str(error)
    if isinstance(error, BlockingIOError):
        return f"The server in {directory} is stuck: see the .log files there, and end what the .lock files name."
    return f"The development server cannot use {directory}: {error}. Correct that, or set {variable}."


def lock(path: Path, how: int, seconds: float) -> int:
    """Lock a file; returns the descriptor that holds the lock until it is closed.

    Raises:
        BlockingIOError: Others have held it all these seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.002)
    except BaseException:
        os.close(descriptor)
        raise


def listens(port: int) -> bool:
    """Whether a server listens on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port(last: Path) -> int:
    """The port of last time, which a database tool may remember, else one that is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind(("127.0.0.1", int(last.read_text())))
        except (OSError, ValueError, OverflowError):
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write(path: Path, text: str) -> None:
    """Write a file for our eyes only; a reader finds all of it or none."""
    new = path.with_name(f"{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
