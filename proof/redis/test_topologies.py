"""Sessions on every arrangement of servers: behind TLS, with users, with Sentinels, as a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from my_agent.sessions import RedisStore, SessionRef, SessionStoreError, StoreRefused, StoreUnavailable
from my_agent.sessions.records import Batch, Row
from proof.redis import groups as redis_groups
from proof.redis import servers as redis_servers
from proof.redis.fixtures import settings_for
from proof.redis.groups import Cluster
from proof.redis.servers import QUOTED, Server, until

KEY = SessionRef("", "s")


@asynccontextmanager
async def opened(url: str, **more: object) -> AsyncIterator[RedisStore]:
    async with RedisStore(settings_for(url, **more)) as store:
        yield store


async def failure(url: str, **more: object) -> SessionStoreError:
    """What a read raises, which is not tried again."""
    with pytest.raises(SessionStoreError) as caught:
        async with opened(url, **more):
            pass
    return caught.value


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


CONNECTIONS = "killed or cancelled or closes or popped or interleave or large or five_hundred or thousands"
"""The tests of the contract in which it makes a difference how the same commands reach the same kind of server."""


# With Sentinels, in a cluster and behind a proxy, tests/test_project.py runs this and more.
@pytest.mark.parametrize(("topology", "tests"), [("acl", ""), ("tls", CONNECTIONS)], ids=["acl", "tls"])
def test_the_contract_holds(topology: str, tests: str) -> None:
    redis_servers.program(tls=topology == "tls")  # skips here and not there
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-c",
            "proof/pytest.ini",
            "-k",
            tests,
            "proof/contract/test_contract.py",
        ],
        env=os.environ | {"TEST_REDIS_TOPOLOGY": topology, "PYTEST_ADDOPTS": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


# ── TLS ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_servers.behind_tls(tmp_path_factory.mktemp("tls") / "tls") as server:
        yield server


async def test_a_certificate_of_an_unknown_authority_is_refused(tls_server: Server) -> None:
    error = await failure(tls_server.url)
    assert isinstance(error, StoreRefused)
    assert "certificate is not trusted" in str(error)
    assert "ssl_ca_certs=" in str(error)


async def test_a_certificate_of_another_host_is_refused(tls_server: Server) -> None:
    url = tls_server.url.replace("127.0.0.1", "localhost")
    error = await failure(f"{url}?ssl_ca_certs={tls_server.folder}/ca.pem")
    assert isinstance(error, StoreRefused)
    assert "not valid for 'localhost'" in str(error)


@pytest.mark.parametrize("trust", ["ssl_ca_certs={ca}", "ssl_cert_reqs=none"])
async def test_a_trusted_certificate_is_accepted(tls_server: Server, trust: str) -> None:
    trust = trust.format(ca=tls_server.folder / "ca.pem")
    async with opened(f"{tls_server.url}?{trust}") as store:
        await store.append(KEY, batch("é"))
        assert (await store.tail(KEY, 1)) == ["é"]


async def test_tls_on_one_side_only_is_told(tls_server: Server, tmp_path: Path) -> None:
    error = await failure(tls_server.url.replace("rediss:", "redis:"), redis_timeout_seconds=1.0)
    assert isinstance(error, StoreUnavailable)
    assert "rediss://" in str(error)
    with redis_servers.one(tmp_path / "plain") as server:
        error = await failure(server.url.replace("redis:", "rediss:"), redis_timeout_seconds=1.0)
    assert "rediss:// if it has TLS, and only then" in str(error)


async def test_a_cluster_behind_tls_is_reached(tmp_path: Path) -> None:
    files = redis_servers.tls_options(tmp_path)
    with redis_groups.node_of_cluster(tmp_path, *files, "--tls-cluster", "yes", tls=True) as node:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: redis_groups.cluster_info(node)["cluster_state"] == "ok", "the cluster serves")
        url = Cluster([node], []).url
        async with opened(f"{url}?ssl_ca_certs={tmp_path}/ca.pem") as store:
            await store.append(KEY, batch("x"))
            assert [info.item_count for info in (await store.list_sessions()).sessions] == [1]


async def test_sentinels_behind_tls_are_asked(tmp_path: Path) -> None:
    files = redis_servers.tls_options(tmp_path)
    with redis_servers.one(tmp_path, *files, tls=True) as primary:
        config = tmp_path / "sentinel.conf"
        config.write_text(f"sentinel monitor main 127.0.0.1 {primary.port} 1\ntls-replication yes\n")
        arguments = (str(config), "--sentinel")
        folder = tmp_path / "sentinel"
        with redis_servers.started(folder, *files, tls=True, program_arguments=arguments) as sentinel:
            url = f"rediss+sentinel://:{QUOTED}@127.0.0.1:{sentinel.port}/0?service=main&ssl_ca_certs={tmp_path}/ca.pem"
            async with opened(url) as store:
                await store.append(KEY, batch("x"))
                assert await store.tail(KEY, None) == ["x"]
