"""TLS: own authorities, the system's, client certificates, and what the doctor says of connections without."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from my_agent.sessions import RedisStore, SessionRef, SessionStoreError, SettingMissing, StoreRefused
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.redis.address import parse_address
from my_agent.sessions.redis.checks import _check_tls
from proof.app.test_doctor import diagnosis
from proof.redis import servers as redis_servers
from proof.redis.fixtures import settings_for
from proof.redis.servers import Server

KEY = SessionRef("ada", "s")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_servers.behind_tls(tmp_path_factory.mktemp("tls") / "tls", "--appendonly", "yes") as server:
        yield server


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It wants a certificate of its clients."""
    folder = tmp_path_factory.mktemp("tls") / "tls"
    with redis_servers.behind_tls(folder, "--tls-auth-clients", "yes") as server:
        key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
        (folder / "locked.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"open it"),
            )
        )
        (folder / "both.pem").write_bytes((folder / "server.pem").read_bytes() + (folder / "server.key").read_bytes())
        (folder / "empty.pem").write_text("")
        yield server


async def works(url: str) -> None:
    async with RedisStore(settings_for(url)) as store:
        await store.append(KEY, Batch.of([Row("x")]))
        assert await store.tail(KEY, 1) == ["x"]


async def failure(url: str) -> SessionStoreError:
    with pytest.raises(SessionStoreError) as caught:
        await works(url)
    return caught.value


def of_client(server: Server, certificate: str = "server.pem", more: str = "&ssl_keyfile={folder}/server.key") -> str:
    folder = server.folder
    return f"{server.url}?ssl_ca_certs={folder}/ca.pem&ssl_certfile={folder}/{certificate}" + more.format(folder=folder)


async def test_the_authorities_of_the_system_count(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(await failure(server.url), StoreRefused)
    monkeypatch.setenv("SSL_CERT_FILE", str(server.folder / "ca.pem"))
    await works(server.url)


@pytest.mark.parametrize("value", ["none", "CERT_NONE", "None"])
async def test_a_certificate_of_ones_own_making_is_accepted_on_demand(server: Server, value: str) -> None:
    await works(f"{server.url}?ssl_cert_reqs={value}")


@pytest.mark.parametrize(
    ("certificate", "more"),
    [
        ("server.pem", "&ssl_keyfile={folder}/server.key"),
        ("server.pem", "&ssl_keyfile={folder}/locked.key&ssl_password=open%20it"),
        ("both.pem", ""),
    ],
)
async def test_a_certificate_of_the_client_is_shown(strict: Server, certificate: str, more: str) -> None:
    await works(of_client(strict, certificate, more))


async def test_a_missing_certificate_of_the_client_is_told(strict: Server) -> None:
    error = await failure(f"{strict.url}?ssl_ca_certs={strict.folder}/ca.pem")
    assert "wants a certificate of its clients" in str(error)  # which the end of the connection may overtake
    assert "ssl_certfile=…&ssl_keyfile=…" in str(error)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("{url}?ssl_ca_certs=/no/such/ca.pem", "/no/such/ca.pem"),
        ("{url}?ssl_certfile=/no/such.pem", "/no/such.pem"),
        ("{url}?ssl_ca_certs={folder}", "ssl_ca_certs"),
        ("{url}?ssl_ca_certs={folder}/empty.pem", "empty.pem"),
        ("{url}?ssl_ca_certs={folder}/server.key", "server.key"),
        ("{url}?ssl_certfile={folder}/ca.pem&ssl_keyfile={folder}/server.key", "server.key"),
        ("{url}?ssl_certfile={folder}/server.pem&ssl_keyfile={folder}/locked.key", "ssl_password"),
        ("{url}?ssl_certfile={folder}/server.pem&ssl_keyfile={folder}/locked.key&ssl_password=x", "ssl_password"),
        ("{url}?ssl_keyfile={folder}/server.key", "ssl_certfile"),
    ],
)
@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "rediss+proxy", "rediss+sentinel"])
async def test_a_file_that_cannot_be_used_is_named_and_not_tried_again(
    strict: Server, url: str, named: str, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = url.format(url=strict.url.replace("rediss:", f"{scheme}:"), folder=strict.folder)
    if "sentinel" in scheme:
        url += "&service=main"
    try:
        store = RedisStore(settings_for(url))
        with pytest.raises(SettingMissing, match=r"REDIS_URL") as caught:
            await store.session("s").get_items()
    finally:
        await store.close()
    assert named in str(caught.value)
    assert "Trying again" not in caplog.text


# ── The doctor ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("redis://h", "warn"),
        ("redis://10.0.0.7", "warn"),
        ("redis+cluster://localhost,h", "warn"),
        ("redis+sentinel://h?service=main", "warn"),
        ("redis+proxy://h", "warn"),
        ("redis://[fe80::1]", "warn"),
        ("redis://", None),
        ("redis://127.0.0.2", None),
        ("redis://[::1]", None),
        ("unix:///run/r.sock", None),
        ("rediss://h", "ok"),
        ("rediss://h?ssl_cert_reqs=none", "warn"),
        ("rediss://h?ssl_check_hostname=false", "warn"),
    ],
)
def test_what_crosses_a_network_in_the_clear_is_told(url: str, state: str | None) -> None:
    check = _check_tls(parse_address(url))
    assert (check and check.state) == state


async def test_the_doctor_tells_that_nobody_looks_at_the_certificate(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"{server.url}?ssl_cert_reqs=none")
    found = await diagnosis()
    assert found["tls"]["state"] == "warn"
    assert "ssl_ca_certs" in found["tls"]["todo"]
    monkeypatch.setenv("REDIS_URL", f"{server.url}?ssl_ca_certs={server.folder}/ca.pem")
    assert (await diagnosis())["tls"]["state"] == "ok"


def test_a_file_that_vanished_after_the_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingMissing, match="ssl_ca_certs"):
        parse_address(f"rediss://h?ssl_ca_certs={tmp_path / ('x' * 300)}")
