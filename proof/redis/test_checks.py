"""The doctor finds what is wrong with a Redis or Valkey server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from my_agent.sessions.redis import checks as redis_checks
from proof.app.test_doctor import diagnosis
from proof.redis import groups as redis_groups
from proof.redis import servers as redis_servers
from proof.redis.servers import PASSWORD, QUOTED, Server, until


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server as it should be, that the doctor is asked about."""
    with redis_servers.one(tmp_path / "redis", "--appendonly", "yes") as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        yield server


def configure(server: Server, **options: str) -> None:
    with server.client() as client:
        for name, value in options.items():
            client.config_set(name.replace("_", "-"), value)


def be_user(server: Server, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the app log in as a user with these rights."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "visitor", "on", ">visiting", *rules.split())
    monkeypatch.setenv("REDIS_URL", f"redis://visitor:visiting@127.0.0.1:{server.port}")


async def test_a_server_as_it_should_be_is_healthy(server: Server) -> None:
    found = await diagnosis()
    assert {name: check["says"] for name, check in found.items() if check["state"] != "ok"}.keys() == {"model"}
    assert found["persistence"]["says"] == "Every write goes to disk (AOF)."
    assert found["rights"]["says"].endswith("and erase the whole server as well.")
    with server.client() as client:
        assert client.keys("*:items") == []


# ── Reaching it ─────────────────────────────────────────────────────────────


async def test_a_server_that_is_down_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://u:planted@127.0.0.1:1")
    found = await diagnosis(code=1)
    assert "Cannot reach Redis at 127.0.0.1:1/0" in found["connection"]["todo"]
    assert list(found)[-1] == "connection"
    assert "planted" not in str(found)


@pytest.mark.parametrize("url", ["planted", "redis://u:planted@h:port"])
async def test_an_address_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    found = await diagnosis(code=1)
    assert found["settings"]["state"] == "fail"
    assert "REDIS_URL" in found["settings"]["todo"]
    assert "connection" not in found
    assert "planted" not in str(found)


async def test_an_old_server_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_checks, "OLDEST", (99, 0))
    check = (await diagnosis(code=1))["server version"]
    assert "too old for this app" in check["says"]


async def test_a_replica_is_found(server: Server) -> None:
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
    check = (await diagnosis(code=1))["topology"]
    assert "is a replica" in check["says"]
    assert "redis+sentinel://" in check["todo"]


async def test_a_sentinel_that_is_taken_for_a_server_is_found(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "sentinel.conf"
    config.write_text(f'requirepass "{PASSWORD}"\nsentinel monitor main 127.0.0.1 {server.port} 1\n')
    with redis_servers.started(tmp_path / "s", program_arguments=(str(config), "--sentinel")) as sentinel:
        monkeypatch.setenv("REDIS_URL", f"redis://:{QUOTED}@127.0.0.1:{sentinel.port}")
        check = (await diagnosis(code=1))["topology"]
    assert "is a Sentinel" in check["says"]


async def test_a_node_that_is_taken_for_a_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_groups.node_of_cluster(tmp_path / "node") as node:
        monkeypatch.setenv("REDIS_URL", node.url)
        check = (await diagnosis(code=1))["topology"]
    assert "is a node of a cluster" in check["says"]
    assert "redis+cluster://" in check["todo"]


async def test_slots_that_nobody_serves_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_groups.node_of_cluster(tmp_path / "node") as node:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        monkeypatch.setenv("REDIS_URL", redis_groups.Cluster([node], []).url)
        found = await diagnosis(code=1)
        assert found["topology"]["says"] == "It is a cluster of 1 primary."
        assert "8192 of 16384 slots" in found["cluster"]["says"]
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        until(lambda: redis_groups.cluster_info(node)["cluster_state"] == "ok", "the cluster serves")
        assert (await diagnosis())["cluster"]["says"] == "All slots are served."


# ── Keeping what it is given ────────────────────────────────────────────────


async def test_a_server_that_forgets_is_a_warning(server: Server) -> None:
    configure(server, appendonly="no")
    check = (await diagnosis())["persistence"]
    assert check["state"] == "warn"
    assert "loses all sessions" in check["says"]
    assert "appendonly yes" in check["todo"]
    configure(server, save="60 1")
    check = (await diagnosis())["persistence"]
    assert check["state"] == "warn"
    assert "after the last snapshot" in check["says"]
    assert "appendonly yes" in check["todo"]


async def test_what_cannot_be_seen_of_persistence_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    be_user(server, "~* +@all -config", monkeypatch)
    assert (await diagnosis())["persistence"]["says"] == "Every write goes to disk (AOF)."
    configure(server, appendonly="no")
    check = (await diagnosis())["persistence"]
    assert check["state"] == "warn"
    assert "this user cannot see it" in check["says"]
    with server.client() as client:
        client.save()
    assert "after the last snapshot" in (await diagnosis())["persistence"]["says"]


async def test_a_disk_that_cannot_be_written_is_found(server: Server) -> None:
    (server.folder / "dump.rdb").mkdir()  # a file cannot take its place
    with server.client() as client:
        client.bgsave()
    until(lambda: redis_servers.info(server)["rdb_last_bgsave_status"] == "err", "the snapshot failed")
    assert "failed to write to its disk" in (await diagnosis(code=1))["persistence"]["says"]


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_deletes_sessions_is_a_warning(server: Server, policy: str) -> None:
    configure(server, maxmemory_policy=policy)
    check = (await diagnosis())["memory"]
    assert check["state"] == "warn"
    assert policy in check["says"]
    assert "noeviction" in check["todo"]


async def test_sessions_of_a_newer_format_are_found(server: Server) -> None:
    with server.client() as client:
        client.set("agent:format", 99)
    found = await diagnosis(code=1)
    assert "Deploy the current version" in found["format"]["todo"]
    assert "round trip" not in found


# ── Rights ──────────────────────────────────────────────────────────────────


async def test_the_user_of_the_example_has_all_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_servers.with_users(tmp_path / "redis") as server:
        configure(server, appendonly="yes")
        monkeypatch.setenv("REDIS_URL", f"redis://agent:change-me@127.0.0.1:{server.port}")
        found = await diagnosis()
    assert [name for name, check in found.items() if check["state"] != "ok"] == ["model"]
    assert found["rights"]["says"].endswith("and not erase the server.")


async def test_missing_rights_are_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    be_user(server, "~agent:* +@all -rpop -zadd", monkeypatch)
    check = (await diagnosis(code=1))["rights"]
    assert "lacks RPOP, ZADD on" in check["says"]
    assert "redis/users.acl" in check["todo"]


@pytest.mark.parametrize("rules", ["~other:* +@all", "~agent:* +@all -eval -evalsha"])
async def test_a_user_without_scripts_or_keys_is_found(
    server: Server, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    be_user(server, rules, monkeypatch)
    assert "may not run scripts on the keys" in (await diagnosis(code=1))["rights"]["says"]


async def test_a_user_who_may_not_ask_about_the_server_is_told_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_user(server, "~agent:* +@all -info", monkeypatch)
    found = await diagnosis()
    assert found["server"]["state"] == "warn"
    assert "INFO" in found["server"]["says"]
    assert found["rights"]["state"] == "ok"
