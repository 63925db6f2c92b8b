"""What the development server runs: an engine knows one kind of server and how to start it.

An engine works on both sides. `find` runs in the process of the user who needs a server; everything else runs in the
keeper, which has the standard library only. In `directory` each process of an engine has four files:

    <name>.lock  inherited by the process: held while it or a child of it lives; names its id, for people and for us
    <name>.port  the port of last time
    <name>.log   what it says
    <name>       its data
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

from .tools import START_SECONDS, STOP_SECONDS, DevServerError, free_port, listens, lock, write

if sys.platform != "win32":
    import fcntl

Command = Sequence[str | Path]


class Process(NamedTuple):
    """A server that runs."""

    popen: subprocess.Popen[bytes]
    port: int

    @property
    def lives(self) -> bool:
        return self.popen.poll() is None


class Engine(ABC):
    """One kind of server: finds its programs, prepares its data, starts its processes.

    Args:
        directory: Where all of it is kept.
        durable: False risks the data for speed when the machine (not the process) crashes.
        programs: What `find` returned.
    """

    NAME: ClassVar[str]
    """How users call it."""
    VARIABLE: ClassVar[str]
    """The setting that names another server to use instead."""
    OTHER_VARIABLES: ClassVar[tuple[str, ...]] = ()
    """More settings that belong to such a server: where one is set, the embedded server is not what is meant."""

    def __init__(self, directory: Path, durable: bool, *programs: str) -> None:
        self.directory, self.durable, self.programs = directory, durable, programs
        self.processes: dict[str, Process] = {}
        self.locks: dict[str, int] = {}
        # Ends a process together with the keeper, on Linux only; the setpriv of BusyBox cannot do it.
        setpriv = [shutil.which("setpriv") or "", "--pdeathsig", "INT"]
        able = setpriv[0] and not subprocess.run([*setpriv, "true"], capture_output=True).returncode  # noqa: S603
        self.tether = setpriv if able else []

    @classmethod
    @abstractmethod
    def find(cls, directory: Path) -> list[str]:
        """The programs to run, before a server is started.

        Raises:
            DevServerError: They are not there; the message says how to get them.
        """

    @abstractmethod
    def start(self) -> dict[str, str]:
        """Prepare the data and start all processes; returns, once they are ready, the variables that reach them.

        Called again, it starts those that have ended since.

        Raises:
            DevServerError, OSError: They do not start. What did is stopped by the keeper.
        """

    def stop(self) -> None:
        """Stop all processes, the last one first."""
        while self.processes:
            end(self.processes.popitem()[1].popen)

    def claim(self, name: str) -> int:
        """Wait for a process that outlived its keeper, then take the lock that ours will inherit."""
        if name in self.locks:
            return self.locks[name]
        path = self.directory / f"{name}.lock"
        try:
            descriptor = lock(path, fcntl.LOCK_EX, 2)
        except BlockingIOError:
            # Not on its way out: untethered, it has not noticed. The lock proves that it lives, so the file names it
            # and no recycled process id.
            with suppress(ValueError, ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGINT)
            descriptor = lock(path, fcntl.LOCK_EX, STOP_SECONDS)
        os.ftruncate(descriptor, 0)
        self.locks[name] = descriptor
        return descriptor

    def serve(
        self,
        name: str,
        command: Callable[[int], Command],
        ready: Callable[[Process], bool] = lambda process: listens(process.port),
        *,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        cwd: str | Path = "/",
    ) -> Process:
        """Start a server, on the port of last time if that is free; returns when it is ready.

        Args:
            name: Of its files in `directory`.
            command: What to run, given the port. Secrets belong into files or `env`: everybody may read a command.
            ready: Asked again and again while the process lives.
            env: More variables for the process.
            options: More options for setpriv.
            cwd: The working directory.

        Raises:
            DevServerError: It ends, or is not ready after `START_SECONDS`.
        """
        if name in self.processes:
            if self.processes[name].lives:
                return self.processes[name]
            del self.processes[name]
            os.close(self.locks.pop(name))  # its children have it, too, while they live
        self.claim(name)  # before we look for a port: the last process may still hold it
        log = self.directory / f"{name}.log"
        for _ in range(3):  # somebody may take the port between our look and the server's
            port = free_port(self.directory / f"{name}.port")
            line = command(port)
            with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
                process = Process(self.spawn(name, line, output.fileno(), env=env, options=options, cwd=cwd), port)
            self.processes[name] = process
            deadline = time.monotonic() + START_SECONDS
            while process.lives and time.monotonic() < deadline:
                if ready(process):
                    write(self.directory / f"{name}.port", str(port))
                    return process
                time.sleep(0.002)
            end(self.processes.pop(name).popen)
            reason = log.read_text(errors="replace")
            if "address already in use" not in reason.lower():
                break
        raise self.failed(name, reason)

    def run(
        self,
        name: str,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> str:
        """Run a program that ends by itself; returns what it says.

        Raises:
            DevServerError: It fails; with its reason.
        """
        process = self.spawn(name, command, subprocess.PIPE, env=env, options=options)
        output = process.communicate()[0].decode(errors="replace")
        if process.returncode:
            raise self.failure(f"{command[0]} failed", output)
        return output

    def spawn(
        self,
        name: str,
        command: Command,
        output: int,
        *,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        cwd: str | Path = "/",
    ) -> subprocess.Popen[bytes]:
        """Start a process that does not outlive us."""
        alive = self.claim(name)
        # The tether ties it to the life of the thread that starts it, not of the process: we have only one.
        process = subprocess.Popen(  # noqa: S603
            [*self.tether, *options, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(env or {})},  # we read what they say
            pass_fds=[alive],
        )
        os.pwrite(alive, f"{process.pid:<20}".encode(), 0)
        return process

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


def end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # politely, at once, by force
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return
