"""What poolers, proxies and networks answer to a new connection is one sentence that says what to do."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from my_agent.sessions import PostgresStore, SessionStoreError, SettingMissing, StoreRefused, StoreUnavailable
from my_agent.sessions.postgres.errors import translate
from proof.postgres.fixtures import settings_for

SSL_REQUEST = 80877103


@asynccontextmanager
async def refusing(code: str, message: str, *, tls_refused_with: bytes = b"N") -> AsyncIterator[tuple[int, list[int]]]:
    """A server that answers every login with an error; its port, and how many logins there were."""
    logins: list[int] = []

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                length, kind = struct.unpack("!ii", await reader.readexactly(8))
                await reader.readexactly(length - 8)
                if kind != SSL_REQUEST:
                    break
                writer.write(tls_refused_with)
            logins.append(kind)
            fields = b"".join(
                f"{name}{value}\0".encode() for name, value in (("S", "FATAL"), ("C", code), ("M", message))
            )
            writer.write(b"E" + struct.pack("!i", len(fields) + 5) + fields + b"\0")
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], logins
    finally:
        server.close()
        await server.wait_closed()


HBA = 'no pg_hba.conf entry for host "10.0.0.1", user "planted", database "app", '
REFUSED = [
    ("XX000", "Tenant or user not found", "postgres.<project ref>"),
    ("XX000", "FATAL: (ENOTFOUND) tenant/user postgres.planted not found", "postgres.<project ref>"),
    ("08P01", "no such database: app", "this database does not exist"),
    ("3D000", 'database "app" does not exist', "this database does not exist"),
    ("08P01", "no such user: planted", "refused the login"),
    ("08P01", "SASL authentication failed", "refused the login"),
    ("28P01", 'password authentication failed for user "planted"', "refused the login"),
    ("28000", 'role "planted" does not exist', "refused the login"),
    ("28000", HBA + "no encryption", "Add ?sslmode=require"),
    ("28000", HBA + "SSL off", "Add ?sslmode=require"),
    ("08P01", "SSL required", "Add ?sslmode=require"),
    ("XX000", "(ESSLREQUIRED) SSL connection is required", "Add ?sslmode=require"),
    ("28000", HBA + "SSL encryption", "pg_hba.conf"),
    ("08P01", "unsupported startup parameter: search_path", "ignore_startup_parameters"),
    ("XX000", "The endpoint has been disabled", "The endpoint has been disabled"),
]
AWAY = [
    ("XX000", "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size"),
    ("XX000", "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to pool_size: 15"),
    ("XX000", "Max client connections reached"),
    ("XX000", "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 15000ms"),
    ("08P01", "no more connections allowed (max_client_conn)"),
    ("08P01", "query_wait_timeout"),
    ("08P01", "server login has been failing, try again later (server_login_retry)"),
    ("53300", "sorry, too many clients already"),
    ("57P03", "the database system is starting up"),
]


@pytest.mark.parametrize(("code", "message", "says"), REFUSED)
async def test_what_no_retry_changes_is_said_once(
    code: str, message: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with refusing(code, message) as (port, logins):
        settings = settings_for(f"postgresql://planted:p@127.0.0.1:{port}/app", session_retry_seconds=2.0)
        with caplog.at_level(logging.WARNING), pytest.raises(StoreRefused) as caught:
            await PostgresStore(settings).session("s").get_items()
    assert says in str(caught.value)
    assert "planted" not in str(caught.value) + caplog.text
    assert "Trying again" not in caplog.text
    assert len(logins) <= 2  # the driver tries `prefer` a second time


@pytest.mark.parametrize(("code", "message"), AWAY)
async def test_what_passes_is_tried_again(code: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    async with refusing(code, message) as (port, logins):
        settings = settings_for(f"postgresql://planted:p@127.0.0.1:{port}/app", session_retry_seconds=0.5)
        with caplog.at_level(logging.WARNING), pytest.raises(StoreUnavailable) as caught:
            await PostgresStore(settings).session("s").get_items()
    assert len(logins) > 2
    assert message in str(caught.value) or "no connection left" in str(caught.value)
    assert caplog.text.count("Trying again") == 1


@pytest.mark.parametrize("query", ["", "?sslmode=prefer"])
async def test_a_server_that_cannot_fork_is_tried_again(query: str, caplog: pytest.LogCaptureFixture) -> None:
    """It answers the question for TLS with an error, which the driver reports as a refusal of TLS."""
    async with refusing("53000", "never seen", tls_refused_with=b"Ecould not fork") as (port, logins):
        settings = settings_for(f"postgresql://u:p@127.0.0.1:{port}/app{query}", session_retry_seconds=0.5)
        with caplog.at_level(logging.WARNING), pytest.raises(StoreUnavailable):
            await PostgresStore(settings).session("s").get_items()
    assert logins == []
    assert caplog.text.count("Trying again") == 1


async def test_a_server_without_tls_is_told_when_tls_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async with refusing("57P03", "never seen") as (port, logins):
        settings = settings_for(f"postgresql://u:p@127.0.0.1:{port}/app?sslmode=require", session_retry_seconds=2.0)
        with pytest.raises(StoreRefused, match="offers no TLS, which sslmode=require in DATABASE_URL asks for"):
            await PostgresStore(settings).session("s").get_items()
    assert logins == []
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"), StoreRefused),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), StoreRefused),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), StoreUnavailable),
        (OSError(101, "Network is unreachable"), StoreRefused),
        (
            OSError("Multiple exceptions: [Errno 101] Connect call failed, [Errno 101] Connect call failed"),
            StoreRefused,
        ),
        (ConnectionRefusedError(111, "Connection refused"), StoreUnavailable),
    ],
)
def test_supabases_address_that_has_ipv6_only_names_the_session_pooler(
    error: OSError, kind: type[SessionStoreError]
) -> None:
    direct = settings_for("postgresql://postgres:p@db.abcdefghijklmnopqrst.supabase.co:5432/postgres")
    said = translate(error, direct, sent=False)
    assert type(said) is kind
    assert ("session pooler" in str(said)) == (kind is StoreRefused)
    other = settings_for("postgresql://postgres:p@db.example.com/postgres")
    assert "session pooler" not in str(translate(error, other, sent=False))


@pytest.mark.parametrize("query", ["statement_timeout=abc", "work_mem=much"])
async def test_a_value_that_the_server_refuses_is_one_sentence(database_url: str, query: str) -> None:
    store = PostgresStore(settings_for(f"{database_url}?{query}", session_retry_seconds=2.0))
    with pytest.raises(SettingMissing, match=f"does not know {query.partition('=')[0]}, or does not allow its value"):
        await store.session("s").get_items()
