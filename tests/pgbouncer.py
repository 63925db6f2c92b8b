"""A real PgBouncer in transaction mode in front of a real PostgreSQL, for as long as a test needs them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .conftest import Project, embedded_server

POOL_SIZE = 2
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def running(project: Project, folder: Path) -> Iterator[str]:
    """The address of PgBouncer, whose every database is the one of that name at the embedded server of `project`."""
    assert PROGRAM
    with (
        embedded_server(project, folder / "dev") as environment,
        _pgbouncer(urlsplit(environment["DATABASE_URL"]).netloc, folder) as port,
    ):
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@contextmanager
def _pgbouncer(address: str, folder: Path) -> Iterator[int]:
    login, _, place = address.rpartition("@")
    host, _, server_port = place.partition(":")
    user, _, password = login.partition(":")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = folder / "pgbouncer.ini"
    settings.write_text(f"""
[databases]
* = host={host} port={server_port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {POOL_SIZE}
max_client_conn = 500
""")
    # It refuses to run as root, and it must not outlive us.
    other = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    with (folder / "pgbouncer.log").open("w") as log, settings.open() as file:
        pooler = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *other, "--", str(PROGRAM), "-q", f"/dev/fd/{file.fileno()}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[file.fileno()],
        )
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert pooler.poll() is None, (folder / "pgbouncer.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        pooler.terminate()
        pooler.wait(10)
