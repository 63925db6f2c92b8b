"""TLS on a real server with an authority of our own: what is trusted, what is refused, and what the doctor says."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from my_agent.dev import server as devserver
from my_agent.dev.postgres import PostgresEngine, give
from my_agent.sessions import PostgresStore, SettingMissing, StoreRefused
from my_agent.sessions.postgres.checks import _check_transport
from my_agent.sessions.postgres.connection import connect
from my_agent.sessions.postgres.socket import is_encrypted
from proof.postgres.fixtures import POOLER, settings_for
from proof.support.helpers import missing

pytestmark = pytest.mark.skipif(POOLER == "transaction", reason="a server of its own")


def certificates(folder: Path, name: str, host: str) -> None:
    """An authority, and a certificate of it for a host, with all that strict clients ask for."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    uses = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *new, "-keyout", f"{name}-ca.key", "-out", f"{name}-ca.pem", "-subj", "/CN=tests", *uses)
    openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (folder / "ext").write_text(f"subjectAltName={host}\nauthorityKeyIdentifier=keyid\nkeyUsage=digitalSignature\n")
    authority = ("-CA", f"{name}-ca.pem", "-CAkey", f"{name}-ca.key", "-CAcreateserial", "-days", "1")
    openssl("x509", "-req", "-in", f"{name}.csr", *authority, "-extfile", "ext", "-out", f"{name}.pem")


class TlsEngine(PostgresEngine):
    """PostgreSQL that lets nobody in without TLS, except the user `plain`."""

    @classmethod
    def find(cls, directory: Path) -> list[str]:
        programs = [str(place) for place in sorted(Path("/usr/lib/postgresql").glob("[1-9][0-9]/bin"))]
        if not programs or shutil.which("openssl") is None:
            missing("no PostgreSQL with OpenSSL in /usr/lib/postgresql, or no openssl")
        return programs[-1:]

    def create_data(self) -> None:
        super().create_data()
        places = []
        for name in ("server.pem", "server.key"):
            shutil.copy(self.directory / name, place := self.data / name)
            place.chmod(0o600)
            places.append(place)
        if self.owner:
            give(self.owner, *places)
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write("ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\n")
        (self.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server with TLS, and the folder of its certificates."""
    folder = tmp_path_factory.mktemp("tls")
    TlsEngine.find(folder)
    certificates(folder, "server", "IP:127.0.0.1")
    certificates(folder, "other", "DNS:elsewhere.example")
    with devserver.start(folder, engine=TlsEngine) as server:
        yield server.environment["DATABASE_URL"], folder


async def is_on(url: str) -> bool:
    connection = await connect(settings_for(url))
    try:
        assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is is_encrypted(
            connection
        )
        return is_encrypted(connection)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?sslmode=prefer",
        "?sslmode=require",
        "?sslmode=require&channel_binding=require",
        "?sslmode=no-verify",
        "?sslmode=REQUIRE&channel_binding=Require",
        "?ssl=True",
        "?requiressl=1",
        "?sslmode=verify-ca&sslrootcert={folder}/server-ca.pem",
        "?sslmode=verify-full&sslrootcert={folder}/server-ca.pem",
        "?sslmode=verify-full&sslrootcert={folder}/server-ca.pem&ssl_min_protocol_version=TLSv1.3",
        "?sslmode=require&sslrootcert={folder}/server-ca.pem",
        "?sslmode=require&sslcert={folder}/server.pem&sslkey={folder}/server.key",
    ],
)
async def test_what_trusts_the_server_connects_with_tls(tls: tuple[str, Path], query: str) -> None:
    url, folder = tls
    assert await is_on(url + query.format(folder=folder))


@pytest.mark.parametrize("mode", ["require", "verify-full&sslrootcert={folder}/server-ca.pem", "verify-full"])
@pytest.mark.parametrize(
    ("bound", "version"),
    [
        ("ssl_max_protocol_version=tlsv1.2", "TLSv1.2"),
        ("ssl_min_protocol_version=TLSV1.3", "TLSv1.3"),
        ("ssl_min_protocol_version=TLSv1&ssl_max_protocol_version=TLSv1.3", "TLSv1.3"),
    ],
)
async def test_the_versions_of_tls_have_bounds(
    tls: tuple[str, Path], mode: str, bound: str, version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, folder = tls
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "server-ca.pem"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))  # what a refused sslkeylogfile is told to use
    connection = await connect(settings_for(f"{url}?sslmode={mode.format(folder=folder)}&{bound}"))
    try:
        assert await connection.fetchval("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == version
    finally:
        await connection.close()
    assert (tmp_path / "keys").stat().st_size > 0


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=verify-full",
        "sslrootcert=system",
        "sslmode=verify-full&sslrootcert=system",
        "sslmode=require&sslaccept=strict",
    ],
)
async def test_the_systems_authorities_are_those_of_verify_full(
    tls: tuple[str, Path], query: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, folder = tls
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "server-ca.pem"))
    assert await is_on(f"{url}?{query}")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "other-ca.pem"))
    with pytest.raises(StoreRefused, match="certificate that is not trusted"):
        await PostgresStore(settings_for(f"{url}?{query}"))


@pytest.mark.parametrize(
    ("host", "query"),
    [
        ("127.0.0.1", "sslmode=verify-full&sslrootcert={folder}/other-ca.pem"),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={folder}/other-ca.pem"),
        ("127.0.0.1", "sslmode=require&sslrootcert={folder}/other-ca.pem"),
        ("localhost", "sslmode=verify-full&sslrootcert={folder}/server-ca.pem"),
    ],
)
async def test_a_certificate_that_is_not_trusted_is_one_sentence_and_not_tried_again(
    tls: tuple[str, Path], host: str, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    url, folder = tls
    url = url.replace("127.0.0.1", host)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreRefused, match="sslrootcert") as caught:
        await PostgresStore(settings_for(f"{url}?{query.format(folder=folder)}")).session("s").get_items()
    assert "certificate that is not trusted" in str(caught.value)
    assert urlsplit(url).password not in (None, *str(caught.value).split())
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["sslrootcert", "sslcert", "sslkey", "sslcrl"])
@pytest.mark.parametrize("fault", ["missing", "empty", "noise"])
async def test_a_file_that_cannot_be_used_is_named_and_not_tried_again(
    tls: tuple[str, Path], name: str, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, folder = tls
    files = {"sslcert": folder / "server.pem", "sslkey": folder / "server.key"} if name in ("sslcert", "sslkey") else {}
    files[name] = tmp_path / "file.pem"
    if fault != "missing":
        files[name].write_text("" if fault == "empty" else "no certificate")
    query = "&".join(f"{parameter}={file}" for parameter, file in files.items())
    with caplog.at_level(logging.WARNING), pytest.raises(SettingMissing) as caught:
        await PostgresStore(settings_for(f"{url}?sslmode=require&{query}")).session("s").get_items()
    assert name in str(caught.value)
    assert str(files[name]) in str(caught.value)
    assert caplog.text == ""


async def test_a_server_that_wants_tls_is_told_so(tls: tuple[str, Path]) -> None:
    url, _ = tls
    with pytest.raises(StoreRefused, match=r"with TLS only. Add \?sslmode=require to DATABASE_URL"):
        await PostgresStore(settings_for(f"{url}?sslmode=disable")).session("s").get_items()


def test_the_doctor_warns_of_a_remote_host_without_tls() -> None:
    for query in ("", "?sslmode=disable", "?sslmode=prefer"):
        for host, state in (("db.example.com", "warn"), ("127.0.0.1", "ok"), ("localhost", "ok"), ("[::1]", "ok")):
            check = _check_transport(settings_for(f"postgresql://u:p@{host}/db{query}"), encrypted=False)
            assert check.state == state
            assert ("sslmode=verify-full" in check.todo) == (state == "warn")
        check = _check_transport(settings_for(f"postgresql://u:p@db.example.com/db{query}"), encrypted=True)
        assert check.state == "warn"
    socket = settings_for("postgresql:///db?host=/run/postgresql")
    assert _check_transport(socket, encrypted=False).state == "ok"
    several = settings_for("postgresql://u:p@localhost,db.example.com/db")
    assert _check_transport(several, encrypted=False).state == "warn"
    for mode in ("require", "verify-ca", "verify-full"):
        assert _check_transport(settings_for(f"postgresql://h.example/db?sslmode={mode}"), encrypted=True).state == "ok"
    bound = settings_for("postgresql://h.example/db?sslmode=require&channel_binding=require")
    assert "channel_binding=require is not checked" in _check_transport(bound, encrypted=True).says
