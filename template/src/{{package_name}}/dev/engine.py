"""What the development server runs: an engine knows one kind of server and how to start it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import ClassVar

if sys.platform != "win32":
    import fcntl

START_SECONDS = 120.0  # new data on a slow and busy machine, or recovery after a crash
STOP_SECONDS = 90.0  # more than the keeper takes, by force at the end

KEEPER = Path(__file__).with_name("keeper.py")

Command = Sequence[str | Path]


class DevServerError(Exception):
    """Why the server cannot be started and what to do, as a sentence for the user."""


class Engine(ABC):
    """One kind of server: finds its programs, prepares its data, starts its processes.

    Args:
        directory: Where all of it is kept.
        durable: False risks the data for speed when the machine (not the process) crashes.
        starting: The lock on `start.lock`. A program that prepares the data has it too, and so holds up the next start
            if it outlives us.
    """

    NAME: ClassVar[str]
    """How users call it."""
    VARIABLE: ClassVar[str]
    """The setting that names another server to use instead."""

    def __init__(self, directory: Path, durable: bool, starting: int) -> None:
        self.directory, self.durable, self.starting = directory, durable, starting
        self.programs = type(self).find(directory)
        self.names: list[str] = []
        self.started = self.moved = False
        self.working_directory = Path("/")

    @cached_property
    def tether(self) -> list[str]:
        """Ends a process together with its keeper, on Linux only; the setpriv of BusyBox cannot do it."""
        setpriv = [shutil.which("setpriv") or "", "--pdeathsig", "INT"]
        able = setpriv[0] and not subprocess.run([*setpriv, "true"], capture_output=True).returncode  # noqa: S603
        return setpriv if able else []

    @classmethod
    @abstractmethod
    def find(cls, directory: Path) -> list[str]:
        """The programs to run, or DevServerError, which says how to get them."""

    @abstractmethod
    def start(self) -> dict[str, str]:
        """Start what does not run yet; returns, once all is ready, the variables that reach it.

        Raises:
            DevServerError, OSError: It does not start.
        """

    def serve(
        self, name: str, command: Callable[[int], Command], ready: Callable[[int], bool], **environment: str
    ) -> int:
        """Start a process that serves, unless it runs; returns its port when it is ready.

        Args:
            name: Of its files in `directory`.
            command: What to run, given the port: that of last time if it is free. Secrets belong into files or
                `environment`: everybody may read a command.
            ready: Asked again and again, with the port, while the process lives.
            environment: More variables for the process.

        Raises:
            DevServerError: It ends, or is not ready after `START_SECONDS`.
        """
        self.names.append(name)
        last, log = self.directory / f"{name}.port", self.directory / f"{name}.log"
        kept = is_locked(self.directory / f"{name}.keeper")
        before = int(last.read_text()) if last.exists() else None
        # A process that others depend on may have moved to another port, so those get new arguments.
        if kept and not self.moved and before is not None and ready(before):
            return before
        self.end(name)
        self.started = True
        for _ in range(3):  # somebody may take the port between our look and the server's
            port = free_port(last)
            keeper: Command = [sys.executable, "-I", "-S", KEEPER, self.directory, name]
            subprocess.run(  # noqa: S603
                [*keeper, *self.tether, *command(port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.working_directory,
                env={**os.environ, "LC_ALL": "C", **environment},  # we read what they say
                start_new_session=True,  # Ctrl-C in our terminal is not for the server, which others may share
                check=False,
            )
            deadline = time.monotonic() + START_SECONDS
            while is_locked(self.directory / f"{name}.keeper") and time.monotonic() < deadline:
                if ready(port):
                    write(last, str(port))
                    self.moved = port != before
                    return port
                time.sleep(0.002)
            self.end(name)
            reason = log.read_text(errors="replace")
            if "address already in use" not in reason.lower():
                break
        raise self.failed(name, reason)

    def pid(self, name: str) -> str:
        """The id of a process that is alive if its lock is held."""
        with suppress(FileNotFoundError):
            return (self.directory / f"{name}.lock").read_text()
        return ""

    def end(self, name: str) -> None:
        """End a process that serves no more, or has outlived its keeper. While its lock is held, it is the one."""
        told = ""
        deadline = time.monotonic() + STOP_SECONDS
        while is_locked(self.directory / f"{name}.lock"):
            if (pid := self.pid(name)) not in ("", told):
                told = pid
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGINT)
            if time.monotonic() > deadline:
                raise BlockingIOError
            time.sleep(0.002)

    def run(self, program: Path, *arguments: str, before: Command = (), **environment: str) -> None:
        """Run a program that ends by itself. Raises DevServerError with its reason if it fails."""
        done = subprocess.run(  # noqa: S603
            [*before, program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, "LC_ALL": "C", **environment},
            pass_fds=[self.starting],
            check=False,
        )
        if done.returncode:
            raise self.failure(f"{program} failed", done.stdout.decode(errors="replace"))

    def secret(self, name: str, size: int = 24) -> str:
        """A password of `size` random bytes that is made up once and kept in the file `name`."""
        path = self.directory / name
        if not path.exists():
            write(path, secrets.token_urlsafe(size))
        return path.read_text()

    def failed(self, name: str, output: str) -> DevServerError:
        """Why a server did not start, from what it said. An engine may know more."""
        return self.failure(f"{self.NAME} does not start on {self.directory / name}", output)

    def failure(self, what: str, output: str) -> DevServerError:
        reason = "\n".join(output.strip().splitlines()[-5:]) or "It gives no reason (is the disk full?)."
        return DevServerError(f"{what}: correct the reason below, or set {self.VARIABLE}.\n{reason}")


def lock(path: Path, seconds: float, *, shared: bool = False) -> int:
    """Lock a file; returns the descriptor that holds the lock until it is closed.

    Raises:
        BlockingIOError: Others have held it all these seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise
            time.sleep(0.002)


def is_locked(path: Path, *, shared: bool = False) -> bool:
    """Whether others keep us from locking the file."""
    try:
        os.close(lock(path, 0, shared=shared))
    except BlockingIOError:
        return True
    return False


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
    with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    new.replace(path)


def wheel(package: str) -> list[Path]:
    """The folder of a package that is a wheel around programs: found, not imported."""
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
