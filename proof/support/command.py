"""Runs the command of this project: in this process where that will do, in one of its own where that matters."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr
from typer.testing import CliRunner

from my_agent.cli import main as cli
from my_agent.settings import Settings

PROGRAM = (sys.executable, "-m", "my_agent")
SOURCE = str(Path(cli.__file__).parents[2])


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


async def invoke(*arguments: str, stdin: str | bytes | None = None) -> Done:
    """The command in this process, but in a thread: it brings an event loop of its own."""
    result = await asyncio.to_thread(CliRunner().invoke, cli.app, arguments, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return _checked(Done(result.exit_code, result.stdout, result.stderr))


async def run(
    *arguments: str,
    stdin: bytes = b"",
    stdout: int = subprocess.PIPE,
    program: Sequence[str] = PROGRAM,
    traceback: bool = False,
) -> Done:
    """The command in a process of its own, as from a script: no terminal anywhere.

    Args:
        traceback: Whether one may be shown.
    """
    process = await asyncio.create_subprocess_exec(
        *program, *arguments, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE, env=environment()
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), timeout=30)
    assert process.returncode is not None
    return _checked(Done(process.returncode, (out or b"").decode(), err.decode()), traceback=traceback)


class Terminal:
    """The command at a terminal of its own, and the person in front of it."""

    def __init__(self, *arguments: str, program: Sequence[str] = PROGRAM) -> None:
        self.seen = ""
        self._command = [*program, *arguments]
        self._read_to = 0

    def __enter__(self) -> Terminal:
        self._master, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (40, 100))
        self._process = subprocess.Popen(
            self._command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment(TERM="xterm-256color", PROMPT_TOOLKIT_NO_CPR="1"),
            start_new_session=True,
            # Makes it the terminal that Ctrl-C is typed at.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def wait_for(self, text: str) -> None:
        """Read until the text appears, after what was waited for before."""
        while (place := self.seen.find(text, self._read_to)) < 0:
            assert self._read(), f"{text!r} did not appear: {self.seen[self._read_to :]!r}"
        self._read_to = place + len(text)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self, again: str = "") -> int:
        """Read all that is left; the exit code.

        Args:
            again: Typed each second until the command ends. A Ctrl-C between Python's last look for signals and its
                waiting for input goes unnoticed; a person would press it again.
        """
        for _ in range(20 if again else 0):
            try:
                self._process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                self.type(again)
        while self._read():
            pass
        code = self._process.wait(timeout=20)
        _checked(Done(code, "", self.seen))
        return code

    def _read(self) -> bool:
        try:
            if not select.select([self._master], [], [], 20)[0]:
                return False
            data = os.read(self._master, 65536)
        except OSError:  # so Linux tells that the other side is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def environment(**more: str) -> dict[str, str]:
    """The environment for a process of its own: this package is found there even when it is not installed."""
    # An empty PYTHONUNBUFFERED is none: output is buffered as it is for users.
    return os.environ | {"PYTHONPATH": SOURCE, "PYTHONUNBUFFERED": ""} | more


def _checked(done: Done, *, traceback: bool = False) -> Done:
    """What holds for every command, whatever happens: no traceback (but one of a tool, where asked), no secret."""
    assert traceback or "Traceback" not in done.err, done.err
    for secret in secrets():
        assert secret not in done.out + done.err
    return done


def secrets() -> set[str]:
    """What the settings in the environment keep secret: keys, and the passwords in addresses."""
    fields = (name.upper() for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None)
    values = {os.environ.get(name, "") for name in fields}
    return {secret for value in values if (secret := urlsplit(value).password if "://" in value else value)}
