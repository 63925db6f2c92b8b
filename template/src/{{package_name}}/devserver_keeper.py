"""The process that keeps the development server running while somebody uses it; `devserver.py` tells the story.

`python devserver_keeper.py DIRECTORY BINARIES durable|fast UID:GID COMMAND...` says "ready", or why it cannot. COMMAND
runs a program as the user UID. The process stands apart from the project and imports the standard library only.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

BINARIES = "DEV_POSTGRES_BIN"
START_SECONDS = 120.0  # initdb on a slow and busy machine, or recovery after a crash
STOP_SECONDS = 20.0  # a checkpoint; who takes longer is stopped the hard way, and the next start recovers
SETTINGS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200")  # sockets need short paths
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class StartError(Exception):
    """Why PostgreSQL does not start, as a sentence to the user."""


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


def explain(error: OSError | StartError, directory: Path) -> str:
    """The error as a sentence to the user."""
    if isinstance(error, StartError):
        return str(error)
    if isinstance(error, BlockingIOError):
        return f"The server in {directory} is stuck: see pg.log there, and end the process named in keeper.lock."
    return f"The development server cannot use {directory}: {error}. Correct that, or set DATABASE_URL."


class Keeper:
    """Starts PostgreSQL, reports it, sleeps until the last user has left, stops PostgreSQL."""

    def __init__(self, directory: Path, binaries: str, durability: str, owner: str, *prefix: str) -> None:
        self.directory, self.binaries, self.prefix = directory, Path(binaries), prefix
        self.settings = SETTINGS if durability == "durable" else SETTINGS + NOT_DURABLE
        self.owner = [int(number) for number in owner.split(":") if number]
        self.data, self.log = directory / "pg", directory / "pg.log"

    def keep(self) -> None:
        """Live from the first user to the last.

        Raises:
            StartError, OSError: PostgreSQL does not start.
        """
        keeper = lock(self.directory / "keeper.lock", fcntl.LOCK_EX, STOP_SECONDS)
        os.truncate(keeper, 0)
        os.write(keeper, str(os.getpid()).encode())  # for people who look
        users = os.open(self.directory / "lock", os.O_RDWR)
        self.alive = self.lock_server()
        if not self.data.exists():
            self.create_data()
        elif self.owner and self.data.stat().st_uid != self.owner[0]:  # copied by root, or from another system
            self.give(self.data, *self.data.rglob("*"))
        server = self.start_server()
        try:
            # Besides the last user, two things end the wait: PostgreSQL ends by itself, or we are told to end.
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, lambda *_: sys.exit())
            if server.poll() is None:
                report("ready")
                fcntl.flock(users, fcntl.LOCK_EX)  # held until we exit: a new user waits, then starts afresh
        finally:
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            stop(server)
            (self.directory / "url").unlink(missing_ok=True)

    def lock_server(self) -> int:
        """Wait for the PostgreSQL of a killed keeper, then take the lock that ours will inherit."""
        path, pid_file = self.directory / "server.lock", self.data / "postmaster.pid"
        try:
            alive = lock(path, fcntl.LOCK_EX, 2)
        except BlockingIOError:
            # Not on its way out: without setpriv it has not noticed. The lock proves that it lives, so the file names
            # it and no recycled process id; `pg_ctl stop` would send the same signal and know less.
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGINT)
            alive = lock(path, fcntl.LOCK_EX, STOP_SECONDS)
        # A crash leaves this file, and PostgreSQL would not start if its process id is another program's by now (usual
        # in containers). If a server answers, somebody started it by hand: PostgreSQL will see it and say so.
        if pid_file.exists() and len(lines := pid_file.read_text().splitlines()) > 3 and not answers(lines[3]):
            pid_file.unlink()
        return alive

    def create_data(self) -> None:
        """Run initdb beside the place, and move the result there when it is complete."""
        new = self.directory / "pg.new"
        if new.exists():  # interrupted
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        password = secrets.token_urlsafe(24)
        write(new / "password", password)
        if self.owner:
            self.give(new, new / "password")
        access = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={new / 'password'}"]
        options = [f"--pgdata={new / 'pg'}", *access, "--encoding=UTF8", "--locale=C", "--no-sync"]
        initdb = self.spawn("initdb", *options, output=subprocess.PIPE)
        output = initdb.communicate()[0].decode(errors="replace")
        if initdb.returncode:
            raise failure(f"{self.binaries / 'initdb'} failed", output)
        write(self.directory / "password", password)
        (new / "pg").rename(self.data)
        shutil.rmtree(new)

    def give(self, *paths: Path) -> None:
        """Make these the property of PostgreSQL's user."""
        for path in paths:
            os.chown(path, *self.owner, follow_symlinks=False)

    def start_server(self) -> subprocess.Popen[bytes]:
        """Start PostgreSQL, on the port of last time if that is free; write `url` when it is ready."""
        password = (self.directory / "password").read_text()
        for _ in range(3):  # somebody may take the port between our look and PostgreSQL's
            port = free_port(self.directory / "port")
            options = [f"--{setting}" for setting in (*self.settings, f"port={port}")]
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            server = self.spawn("postgres", "-D", str(self.data), *options, output=log)
            os.close(log)
            if self.becomes_ready(server):
                write(self.directory / "port", str(port))
                write(self.directory / "url", f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres")
                return server
            stop(server)
            reason = self.log.read_text(errors="replace")
            if "Address already in use" not in reason:
                break
        if versions := re.search(r"version (\d+), which is not compatible with this version (\d+)", reason):
            raise StartError(
                f"{self.data} is of PostgreSQL {versions[1]}, but {self.binaries} holds PostgreSQL {versions[2]}: move "
                f"{self.directory} away to start afresh, or set {BINARIES} to the folder of PostgreSQL {versions[1]}."
            )
        raise failure(f"PostgreSQL does not start on {self.data}", reason)

    def becomes_ready(self, server: subprocess.Popen[bytes]) -> bool:
        """Line 8 of the pid file tells; line 1 says whether this server wrote it."""
        deadline = time.monotonic() + START_SECONDS
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                lines = (self.data / "postmaster.pid").read_text().splitlines()
                if len(lines) >= 8 and lines[0] == str(server.pid) and lines[7].startswith("ready"):
                    return True
            time.sleep(0.002)
        return False

    def spawn(self, program: str, *arguments: str, output: int) -> subprocess.Popen[bytes]:
        # The prefix ties it to the life of the thread that starts it, not of the process: we have only one.
        return subprocess.Popen(  # noqa: S603
            [*self.prefix, self.binaries / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=os.environ | {"LC_ALL": "C"},  # we read what they say
            pass_fds=[self.alive],
        )


def stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # politely, at once, by force
        server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
            return


def answers(port: str) -> bool:
    """Whether a server listens on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def free_port(last: Path) -> int:
    """The port of last time, which a database tool may remember, else one that is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
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


def failure(what: str, output: str) -> StartError:
    reason = "\n".join(output.strip().splitlines()[-5:]) or "It gives no reason (is the disk full?)."
    return StartError(f"{what}: correct the reason below, or set DATABASE_URL.\n{reason}")


def report(message: str) -> None:
    """Tell the starter, and let go of the output that it reads to its end."""
    os.write(1, message.encode(errors="replace"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def main(directory: Path, *arguments: str) -> None:
    if os.fork():  # The starter waits for us alone; so the keeper is nobody's child that could become a zombie.
        os._exit(0)
    try:
        Keeper(directory, *arguments).keep()
    except (StartError, OSError) as error:
        report(explain(error, directory))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
