"""What the tests of the development server share: folders, other processes that use it, a note to be found again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from my_agent.dev import server as devserver
from proof.support.backend import BACKEND

Environment = Mapping[str, str]
_notes = import_module("proof.redis.notes" if BACKEND == "redis" else "proof.sql.notes")

USER = f"""
import json, sys
from pathlib import Path
from {devserver.__package__} import server as devserver

server = devserver.start(Path(sys.argv[1]), durable=False)
print(json.dumps(server.environment), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def new_home(tmp_path: Path) -> Iterator[Path]:
    """A folder for a server that does not exist yet."""
    yield tmp_path / ".dev"
    shutil.rmtree(tmp_path, ignore_errors=True)  # pytest would keep the data of each test


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("prepared")
    start(folder / ".dev").close()
    for port in (folder / ".dev").glob("*.port"):
        port.unlink()
    yield folder / ".dev"
    shutil.rmtree(folder)


@pytest.fixture
def home(prepared: Path, new_home: Path) -> Path:
    """A folder in which a server has run before: copying it is faster than making it."""
    shutil.copytree(prepared, new_home)
    return new_home


def start(home: Path) -> devserver.DevServer:
    return devserver.start(home, durable=False)


@contextmanager
def another_process(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the server until the end of the block."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", USER, str(home)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        yield process


def environment_of(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    return dict(json.loads(line)) if line else pytest.fail(process.stderr.read())


def pid_of(home: Path, name: str) -> int:
    return int((home / f"{name}.lock").read_text())


def keeper_of(home: Path, name: str) -> int:
    return int((home / f"{name}.keeper").read_text())


def servers_of(home: Path) -> list[str]:
    """The names of the processes that make up the server."""
    return sorted(file.stem for file in home.glob("*.keeper"))


def kill(home: Path, name: str) -> None:
    """`kill -9` a process; returns when the kernel and its keeper have cleaned up."""
    os.kill(pid_of(home, name), signal.SIGKILL)
    _wait_for(home / f"{name}.lock")


def kill_keeper(home: Path, name: str) -> None:
    """`kill -9` the keeper of a process; returns when the kernel has cleaned up."""
    os.kill(keeper_of(home, name), signal.SIGKILL)
    _wait_for(home / f"{name}.keeper")


def _wait_for(path: Path) -> None:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def ports_of(environment: Environment) -> set[int]:
    return {port for value in environment.values() if (port := urlsplit(value).port)}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_up(environment: Environment) -> bool:
    return all(map(listens, ports_of(environment)))


def is_down(environment: Environment) -> bool:
    return not any(map(listens, ports_of(environment)))


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def remember(environment: Environment, note: str) -> None:
    """Keep a note in the server."""
    _notes.remember(environment, note)


def recall(environment: Environment) -> str:
    """The note."""
    return str(_notes.recall(environment))


def works(environment: Environment) -> bool:
    """Whether the server keeps what it is told."""
    remember(environment, "works")
    return recall(environment) == "works"
