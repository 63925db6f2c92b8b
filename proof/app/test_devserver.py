"""The development server: it is there when somebody needs it, and gone when nobody does, whatever happens."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from urllib.parse import urlsplit

import pytest

from my_agent.dev import engine
from my_agent.dev import server as devserver
from proof.support.dev_servers import (
    another_process,
    environment_of,
    eventually,
    is_down,
    is_up,
    keeper_of,
    kill,
    kill_keeper,
    pid_of,
    ports_of,
    recall,
    remember,
    servers_of,
    start,
    works,
)

needs_setpriv = pytest.mark.skipif(not shutil.which("setpriv"), reason="only setpriv ends the server at once")
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do too much for this test")


# ── It works ──


@pytest.mark.parametrize("durable", [True, False])
def test_data_survive_a_restart(new_home: Path, durable: bool) -> None:
    with devserver.start(new_home, durable=durable) as server:
        assert server.started
        remember(server.environment, "kept")
    with devserver.start(new_home, durable=durable) as server:
        assert server.started
        assert recall(server.environment) == "kept"


def test_the_port_is_that_of_last_time(home: Path) -> None:
    with start(home) as first:
        pass
    with start(home) as second:
        assert second.environment == first.environment


def test_a_port_that_was_taken_meanwhile_is_no_obstacle(home: Path) -> None:
    with start(home) as first:
        pass
    with ExitStack() as stack:
        for port in ports_of(first.environment):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        second = stack.enter_context(start(home))
        assert not ports_of(second.environment) & ports_of(first.environment)
        assert works(second.environment)


def test_it_listens_on_loopback_only(home: Path) -> None:
    with start(home) as server, socket.socket() as probe:
        for port in ports_of(server.environment):
            assert probe.connect_ex(("127.0.0.2", port)) != 0  # the whole of 127/8 is this machine


def test_a_folder_may_have_spaces_and_other_letters_and_a_long_name(new_home: Path) -> None:
    with start(new_home / "mein Projekt, ünïcode 工作" / ("x" * 120) / ".dev") as server:
        assert works(server.environment)


def test_a_folder_may_lie_where_others_cannot_go(new_home: Path) -> None:
    new_home.mkdir(mode=0o700)
    with start(new_home / ".dev") as server:
        assert works(server.environment)
    assert new_home.stat().st_mode & 0o777 == 0o700


def test_secrets_are_for_this_user_only_and_not_for_git(new_home: Path) -> None:
    with start(new_home):
        assert new_home.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in new_home.iterdir() if path.stat().st_mode & 0o077} == {".gitignore"}
        assert (new_home / ".gitignore").read_text() == "*\n"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux shows all command lines there")
def test_no_command_line_tells_a_secret(home: Path) -> None:
    with start(home) as server:
        passwords = [urlsplit(value).password or value for value in server.environment.values()]
        secrets = [secret for secret in passwords if secret and "://" not in secret]
        processes = [of(home, name) for name in servers_of(home) for of in (pid_of, keeper_of)]
        commands = "".join((Path("/proc") / str(process) / "cmdline").read_text() for process in processes)
        assert secrets
        assert str(home) in commands
        assert not [secret for secret in secrets if secret in commands]


# ── It lives as long as somebody uses it ──


def test_one_process_may_share_with_itself(home: Path) -> None:
    with start(home) as first, start(home) as second:
        assert (first.started, second.started) == (True, False)
        first.close()
        first.close()
        assert works(second.environment)


def test_the_process_that_started_the_server_may_leave_first(home: Path) -> None:
    with another_process(home) as first:
        environment = environment_of(first)
        second = start(home)
    with second:
        assert (second.environment, second.started) == (environment, False)
        assert works(environment)


def test_the_last_to_leave_stops_the_server(home: Path) -> None:
    first, second = start(home), start(home)
    first.close()
    assert is_up(second.environment)
    second.close()
    assert is_down(second.environment)


def test_killing_the_only_user_leaves_no_server(home: Path) -> None:
    with another_process(home) as process:
        environment = environment_of(process)
        process.kill()
    assert eventually(lambda: is_down(environment))


def test_ctrl_c_in_a_terminal_spares_the_users_in_others(home: Path) -> None:
    with another_process(home) as process:
        environment = environment_of(process)
        server = start(home)
        assert (server.environment, server.started) == (environment, False)
        os.killpg(process.pid, signal.SIGINT)
    with server:
        assert works(server.environment)


def test_ten_processes_at_once_get_one_server(new_home: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(another_process(new_home)) for _ in range(10)]
        first, *others = [environment_of(process) for process in processes]
        assert others == [first] * 9
        assert works(first)


def test_whoever_comes_while_the_server_stops_gets_a_new_one(home: Path) -> None:
    for _ in range(5):
        with another_process(home) as process:
            environment_of(process)
            process.kill()
        with start(home) as server:
            assert works(server.environment)


# ── Accidents ──


@needs_setpriv
def test_killing_the_keeper_leaves_no_server(home: Path) -> None:
    with start(home) as server:
        for name in servers_of(home):
            kill_keeper(home, name)
        assert eventually(lambda: is_down(server.environment))


def test_whatever_is_killed_the_next_start_finds_the_data(home: Path) -> None:
    start(home).close()
    for name in servers_of(home):
        for kill_one in (kill_keeper, kill):
            with devserver.start(home) as before:
                remember(before.environment, f"{name} lives")
                kill_one(home, name)
                with devserver.start(home) as after:
                    assert after.started
                    assert recall(after.environment) == f"{name} lives"


def test_a_server_that_has_just_died_is_not_shared(home: Path) -> None:
    with start(home) as before:
        for name in servers_of(home):
            keeper = keeper_of(home, name)
            os.kill(keeper, signal.SIGSTOP)  # it will notice late
            os.kill(pid_of(home, name), signal.SIGKILL)
            Timer(0.2, os.kill, (keeper, signal.SIGCONT)).start()
        assert eventually(lambda: is_down(before.environment))
        with start(home) as after:
            assert after.started


def test_a_keeper_that_is_told_to_end_stops_its_process(home: Path) -> None:
    with start(home) as server:
        for name in servers_of(home):
            os.kill(keeper_of(home, name), signal.SIGTERM)
        assert eventually(lambda: is_down(server.environment))


@not_as_root
def test_a_server_that_outlived_its_keeper_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = devserver.Engine.find(home)
    monkeypatch.setattr(devserver.Engine, "find", lambda directory: programs)
    monkeypatch.setenv("PATH", "/nowhere")  # no setpriv, as on macOS
    with start(home) as before:
        remember(before.environment, "kept")
        orphans = {name: pid_of(home, name) for name in servers_of(home)}
        for name in orphans:
            kill_keeper(home, name)
        with start(home) as after:
            assert after.started
            assert all(pid_of(home, name) != pid for name, pid in orphans.items())
            assert recall(after.environment) == "kept"
    assert is_down(before.environment)
    assert is_down(after.environment)


def test_a_recycled_process_id_is_not_taken_for_a_server(home: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        for name in servers_of(home):
            (home / f"{name}.lock").write_text(str(bystander.pid))
        with start(home) as server:
            assert works(server.environment)
        assert bystander.poll() is None
        bystander.kill()


# ── Errors are sentences ──


def test_a_process_that_does_not_end_is_called_stuck(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "STOP_SECONDS", 0.1)
    start(home).close()
    with (home / f"{servers_of(home)[0]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(devserver.DevServerError, match=f"The server in {home} is stuck: .* end what"):
            start(home)


@not_as_root
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(devserver.DevServerError, match=f"Permission denied: '{tmp_path}"):
        start(tmp_path / ".dev")


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".dev").touch()
    with pytest.raises(devserver.DevServerError, match=f"cannot use {tmp_path}.*, or set {devserver.Engine.VARIABLE}"):
        start(tmp_path / ".dev")
