"""Several real servers that belong together: a primary and a replica with a Sentinel, a cluster.

What TEST_REDIS_TOPOLOGY names is started by `start`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from proof.redis.proxy import proxy
from proof.redis.servers import (
    PASSWORD,
    QUOTED,
    Server,
    Started,
    behind_tls,
    follows,
    free_port,
    one,
    started,
    until,
    with_users,
)


def start_again(killed: Server) -> None:
    """Start it with the same options, and what is left in its folder. `Server.kill` ends it."""
    with (killed.folder / "log").open("ab") as output:
        command = killed.process.args
        killed.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    until(killed.settled, f"{killed.folder.name} listens again")


@dataclass
class Watched:
    """A primary, its replica, and the Sentinel that watches them."""

    primary: Server
    replica: Server
    sentinel: Server

    @property
    def url(self) -> str:
        return f"redis+sentinel://:{QUOTED}@127.0.0.1:{self.sentinel.port}/0?service=main&sentinel_password={QUOTED}"

    def primary_port(self) -> int:
        """Whom the Sentinel calls the primary now."""
        with self.sentinel.client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])


@contextmanager
def watched(folder: Path, *options: str) -> Iterator[Watched]:
    """A primary and a replica, both with `options`, and one Sentinel, which is in a hurry."""
    at_once = ("--repl-diskless-sync-delay", "0", *options)
    with ExitStack() as stack:
        primary = stack.enter_context(one(folder / "primary", "--masterauth", PASSWORD, *at_once))
        follow = ("--masterauth", PASSWORD, "--replicaof", f"127.0.0.1 {primary.port}", *at_once)
        replica = stack.enter_context(one(folder / "replica", *follow))
        until(partial(follows, replica), "the replica follows its primary")
        config = folder / "sentinel.conf"
        config.write_text(
            f'requirepass "{PASSWORD}"\n'
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            f'sentinel auth-pass main "{PASSWORD}"\n'
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 3000\n"
        )
        sentinel = stack.enter_context(started(folder / "sentinel", program_arguments=(str(config), "--sentinel")))
        with sentinel.client() as client:
            periods = ("INFO-PERIOD", "100", "PUBLISH-PERIOD", "100", "PING-PERIOD", "100")
            client.execute_command("SENTINEL", "DEBUG", *periods)
            until(partial(can_be_promoted, client), "the Sentinel has looked at the replica")
        yield Watched(primary, replica, sentinel)


def can_be_promoted(sentinel: Any) -> bool:
    replicas = sentinel.execute_command("SENTINEL", "REPLICAS", "main")
    return ["master-link-status", "ok"] in [replica[at : at + 2] for replica in replicas for at in range(len(replica))]


@contextmanager
def start(topology: str, folder: Path) -> Iterator[Started]:
    """What TEST_REDIS_TOPOLOGY names: tls, acl, sentinel, cluster, proxy, or nothing for one server."""
    with ExitStack() as stack:
        if topology == "cluster":
            nodes = stack.enter_context(cluster(folder))
            yield Started(nodes.url, nodes.nodes)
        elif topology == "sentinel":
            group = stack.enter_context(watched(folder))
            yield Started(group.url, [group.primary])
        elif topology == "proxy":
            server = stack.enter_context(one(folder, "--appendonly", "yes", "--appendfsync", "no"))
            yield Started(f"redis+proxy://:{QUOTED}@127.0.0.1:{stack.enter_context(proxy(server.port))}", [server])
        elif topology == "acl":
            server = stack.enter_context(with_users(folder))
            yield Started(f"redis://agent:change-me@127.0.0.1:{server.port}/0", [server])
        elif topology == "tls":
            server = stack.enter_context(behind_tls(folder))
            yield Started(f"{server.url}?ssl_ca_certs={folder / 'ca.pem'}", [server])
        else:
            assert topology == "", f"TEST_REDIS_TOPOLOGY={topology} is none of tls, acl, sentinel, cluster, proxy"
            # With a file, so that the doctor is content.
            server = stack.enter_context(one(folder, "--appendonly", "yes", "--appendfsync", "no"))
            yield Started(server.url, [server])


@dataclass
class Cluster:
    """Primaries that share all slots, and their replicas."""

    nodes: list[Server]
    replicas: list[Server]

    @property
    def url(self) -> str:
        scheme = "rediss+cluster" if self.nodes[0].tls else "redis+cluster"
        return f"{scheme}://:{QUOTED}@" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)


@contextmanager
def cluster(folder: Path, *options: str, size: int = 3, replicas: int = 0) -> Iterator[Cluster]:
    """A cluster; `replicas` of its primaries have one, the first primaries first.

    Takes two seconds: the servers' own pause before a new cluster may be written.
    """
    with ExitStack() as stack:
        folders = [folder / str(number) for number in range(size + replicas)]
        nodes = [stack.enter_context(node_of_cluster(each, *options)) for each in folders]
        for number, node in enumerate(nodes):
            with node.client() as client:
                if number < size:
                    first, last = (16384 * end // size for end in (number, number + 1))
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                for other in nodes[:number]:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, cluster_port(other))
        until(lambda: all(_knows(node, len(nodes)) for node in nodes), "all nodes know each other")
        for primary, replica in zip(nodes, nodes[size:], strict=False):
            with replica.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", node_id(primary))
            until(partial(follows, replica), "the replica follows its primary")
        until(lambda: all(cluster_info(node)["cluster_state"] == "ok" for node in nodes), "the cluster serves")
        yield Cluster(nodes[:size], nodes[size:])


def node_of_cluster(folder: Path, *options: str, tls: bool = False) -> AbstractContextManager[Server]:
    """A server that can be part of a cluster."""
    bus = str(free_port())  # chosen, because the one it would choose may be beyond the last port
    fast = ("--cluster-port", bus, "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0")
    return one(folder, "--cluster-enabled", "yes", *fast, "--masterauth", PASSWORD, *options, tls=tls)


def node_id(node: Server) -> str:
    """How the cluster calls it."""
    with node.client() as client:
        return str(client.execute_command("CLUSTER", "MYID"))


def cluster_port(node: Server) -> int:
    """Where the nodes talk with each other."""
    with node.client() as client:
        return int(client.config_get("cluster-port")["cluster-port"])


def cluster_info(node: Server) -> dict[str, str]:
    """What CLUSTER INFO says."""
    with node.client() as client:
        return dict(line.split(":") for line in str(client.execute_command("CLUSTER", "INFO")).split())


def _knows(node: Server, size: int) -> bool:
    with node.client() as client:
        known = str(client.execute_command("CLUSTER", "NODES"))
    return len(known.splitlines()) == size and "handshake" not in known
