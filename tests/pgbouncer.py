"""A real PgBouncer in transaction mode in front of a real PostgreSQL, for as long as a test needs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .conftest import Project, embedded_server, free_port, installed_program, serving

POOL_SIZE = 2


@contextmanager
def running(project: Project, folder: Path) -> Iterator[str]:
    """The address of PgBouncer, whose every database is the one of that name at the embedded server of `project`."""
    program = installed_program("pgbouncer", "pgbouncer")
    with (
        embedded_server(project, folder / "dev") as environment,
        _pgbouncer(program, urlsplit(environment["DATABASE_URL"]).netloc, folder) as port,
    ):
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@contextmanager
def _pgbouncer(program: str, address: str, folder: Path) -> Iterator[int]:
    login, _, place = address.rpartition("@")
    host, _, server_port = place.partition(":")
    user, _, password = login.partition(":")
    port = free_port()
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
    with settings.open() as file:
        command = [*other, "--", program, "-q", f"/dev/fd/{file.fileno()}"]
        with serving(command, port, folder / "pgbouncer.log", pass_fds=[file.fileno()]):
            yield port
