"""Addresses as people and providers write them: what they mean, and that no part of a login gets out of them."""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextlib import suppress
from io import StringIO
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from my_agent.sessions import (
    PostgresSession,
    PostgresSettings,
    PostgresStore,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    backend,
    open_store,
)
from my_agent.sessions.postgres.address import parse_address
from my_agent.sessions.postgres.checks import check_postgres
from my_agent.sessions.postgres.schema import upgrade
from my_agent.sessions.postgres.sdk import open_postgres_source
from proof.postgres.fixtures import POOLER, run_sql, settings_for
from proof.support.command import invoke

pytestmark = pytest.mark.skipif(POOLER == "transaction", reason="a pooler refuses some parameters of an address")

MARK = "TOPSECRET"


def chain(error: BaseException) -> str:
    """Everything that a log, a debugger or a tool that records errors may show of it."""
    shown, todo, seen = [], [error], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        text = traceback.TracebackException.from_exception(each, capture_locals=True, max_group_width=99)
        shown += [repr(each), str(each), repr(vars(each)), *text.format()]
        todo += [one for one in (each.__cause__, each.__context__) if one is not None]
    return "\n".join(shown)


SECRETS = st.builds(
    lambda before, after: before + MARK + after,
    *[st.text(st.sampled_from("/?#@:[]%& '\"\\,=.;+é~aZ0"), max_size=4) for _ in range(2)],
)
HOSTS = st.sampled_from(["127.0.0.1:1", "[::1]:1", "127.0.0.1:1,127.0.0.1:2", "h:port", "h:0", "[::1", "a..b", ""])
SCHEMES = st.sampled_from(["postgresql", "postgres", "postgresql+asyncpg", "POSTGRESQL", "mysql", ""])
NAMES = st.sampled_from(["password", "sslpassword", "user", "options", "passfile", "application_name", "unknown"])


@st.composite
def urls(draw: st.DrawFn) -> str:
    """Addresses with a secret in user, password or a parameter, escaped or not, and cut or doubled somewhere."""
    secret = draw(SECRETS)
    secret = draw(st.sampled_from([secret, quote(secret, safe="")]))
    place = draw(st.sampled_from(["user", "password", "both", "query"]))
    user = secret if place in ("user", "both") else "ada"
    password = secret if place in ("password", "both") else "p"
    query = f"?{draw(NAMES)}={secret}&connect_timeout=2" if place == "query" else draw(st.sampled_from(["", "?a", "?"]))
    # With a host: without one, nothing tells the end of a password from a name of a host.
    return f"{draw(SCHEMES)}://{user}:{password}@{draw(HOSTS)}/db{query}"


async def attempts(url: str) -> str:
    """What comes out when it is used in every way."""
    configured = PostgresSettings(database_url=SecretStr(url)).model_copy(
        update={"session_retry_seconds": 0.0, "database_timeout_seconds": 1.0}
    )
    shown = [repr(configured), str(configured)]

    async def source(secret: list[str]) -> None:
        async with open_postgres_source(secret.pop()):
            pass

    async def session() -> None:
        async with PostgresSession("s", settings=configured) as session:
            await session.get_items()

    async def store() -> None:
        async with open_store(configured):
            pass

    with suppress(SettingMissing):
        shown += [configured.where, repr(configured.address)]
    for work in (store, session, lambda: upgrade(configured, backend.migrations()), lambda: source([url])):
        with pytest.raises(SessionStoreError, match=r"^.+$") as caught:  # one of ours, in one line
            await work()
        error = caught.value
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # not the frame of this test
        shown.append(chain(error))
    async for check in check_postgres(configured, backend.migrations()):
        shown.append(repr(check))
    return "\n".join(shown)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(url=urls())
def test_no_part_of_a_login_gets_out_of_any_address(url: str) -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        shown = asyncio.run(attempts(url))
    finally:
        root.removeHandler(handler)
    assert MARK not in shown + stream.getvalue()
    assert MARK.lower() not in shown + stream.getvalue()


def leak(depth: int) -> None:
    local = MARK if depth == 1 else ""
    try:
        raise ValueError(MARK if depth == 2 else "")
    except ValueError as error:
        raise RuntimeError(MARK if depth == 0 else str(len(local))) from error


def test_the_search_would_find_a_secret() -> None:
    """The check above is not blind: the marker is seen in a message, a local variable and a cause."""
    for depth in range(3):
        with pytest.raises(RuntimeError) as caught:
            leak(depth)
        caught.value.__traceback__ = caught.value.__traceback__ and caught.value.__traceback__.tb_next
        assert MARK in chain(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ada@contoso.com:{MARK}@db.example.invalid/app",
        f"postgresql://u:pa@{MARK}:SECRET@h/db",
        f"postgresql://u:pa/{MARK}@h/db",
        f"postgresql://u:1/{MARK}@h/db",
        f"postgresql://u:1?{MARK}@h/db",
        f"postgresql://u:1#{MARK}@h/db",
        f"postgresql://u:planted@h/db?password={MARK}@x",
    ],
)
@pytest.mark.parametrize("command", [["doctor"], ["db", "upgrade"], ["db", "status"], ["chat", "Hi"]], ids=" ".join)
async def test_an_at_sign_that_is_not_escaped_is_one_sentence(
    url: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    done = await invoke(*command)
    assert done.code == 1
    told = done.out + done.err
    assert "%40" in told
    assert "DATABASE_URL cannot be used" in told
    assert MARK not in told
    assert "SECRET" not in told
    assert "Traceback" not in told


async def test_a_password_with_every_character_works_when_it_is_escaped(server_url: str, database_url: str) -> None:
    password = "p/?#@:[]% '\"&=+é"
    role = "ada@contoso.com"
    await run_sql(server_url, f"""CREATE ROLE "{role}" LOGIN SUPERUSER PASSWORD '{password.replace("'", "''")}'""")
    try:
        parts = urlsplit(database_url)
        login = f"{quote(role, safe='')}:{quote(password, safe='')}"
        at = f"{parts.hostname}:{parts.port}"
        for url in (
            f"postgresql://{login}@{at}{parts.path}",
            f"postgresql://{at}{parts.path}?user={quote(role, safe='')}&password={quote(password, safe='')}",
        ):
            async with PostgresStore(settings_for(url)) as store:
                assert await store._call("SELECT current_user::text") == role
    finally:
        await run_sql(server_url, f'DROP ROLE "{role}"')


async def test_a_server_that_repeats_the_user_or_an_option_is_not_quoted(database_url: str) -> None:
    parts = urlsplit(database_url)
    at = f"{parts.hostname}:{parts.port}{parts.path}"
    login = parts.netloc.rpartition("@")[0]
    for url in (f"postgresql://{MARK}:p@{at}", f"postgresql://{login}@{at}?options=-c%20{MARK}%3D1"):
        with pytest.raises((StoreRefused, SettingMissing), match="PostgreSQL at") as caught:
            await PostgresStore(settings_for(url)).ping()
        error = caught.value
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # not the frame of this test
        assert MARK not in chain(error)


# ── What is pasted ──────────────────────────────────────────────────────────

WORKING = [
    "channel_binding=require",
    "channel_binding=prefer",
    "pgbouncer=true&connection_limit=1&pool_timeout=20&schema=public&sslaccept=accept_invalid_certs",
    "pgbouncer=false",
    "connect_timeout=10",
    "connect_timeout=0",
    "application_name=mine",
    "fallback_application_name=mine",
    "options=-c%20statement_timeout%3D7s",
    "options=-c+statement_timeout%3D7s",
    "keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=10000",
    "keepalives=0",
    "target_session_attrs=any",
    "target_session_attrs=read-write",
    "target_session_attrs=primary",
    "target_session_attrs=prefer-standby",
    "load_balance_hosts=random",
    "load_balance_hosts=disable",
    "gssencmode=disable",
    "krbsrvname=postgres",
    "sslmode=prefer",
    "sslmode=disable",
    "ssl=false",
    "client_encoding=utf8",
    "client_encoding=UTF8",
    "requiressl=0",
    "sslnegotiation=postgres",
    "prepared_statement_cache_size=0",
    "async_fallback=true",
    "statement_cache_size=0",
    "app.tenant=7",
    "timezone=UTC",
    "sslcompression=0&sslsni=1",
    "sslmode=PREFER&gssencmode=Disable&channel_binding=Require",
    "ssl=False",
    "target_session_attrs=Primary",
    "pgbouncer=TRUE",
    "min_protocol_version=3.0&max_protocol_version=latest",
    "",
    "&connect_timeout=5&",
]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2"])
async def test_the_schemes_of_others_work(database_url: str, scheme: str) -> None:
    url = database_url.replace("postgresql://", f"{scheme}://")
    for written in (url, f" {url}\n", f"'{url}'", f'"{url}"'):
        async with PostgresStore(settings_for(written)) as store:
            assert await store._call("SELECT 1") == 1


@pytest.mark.parametrize("query", WORKING)
async def test_a_pasted_parameter_works(database_url: str, query: str) -> None:
    async with PostgresStore(settings_for(f"{database_url}?{query}")) as store:
        await store.session("s").add_items([{"role": "user", "content": "Hi"}])
        assert len(await store.session("s").get_items()) == 1
        if "application_name=mine" in query:
            assert await store._call("SELECT current_setting('application_name')") == "mine"
        if "statement_timeout" in query:
            assert await store._call("SELECT current_setting('statement_timeout')") == "7s"
        if query.startswith("app."):
            assert await store._call("SELECT current_setting('app.tenant')") == "7"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("service=mine", "service"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("gssencmode=require", "gssencmode"),
        ("client_encoding=latin1", "client_encoding"),
        ("sslmode=strange", "sslmode"),
        ("ssl=strange", "ssl"),
        ("target_session_attrs=strange", "target_session_attrs"),
        ("replication=database", "replication"),
        ("sslrootcert=system&sslmode=require", "sslmode=verify-full"),
        ("sslrootcert=/nowhere/ca.pem&sslmode=verify-full", "/nowhere/ca.pem"),
        ("sslmode=verify-ca", "sslrootcert"),
        ("connect_timeout=soon", "connect_timeout"),
        ("sslnegotiation=strange", "sslnegotiation"),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version"),
        ("ssl_max_protocol_version=TLSv1.1", "ssl_max_protocol_version must be one of TLSv1.2, TLSv1.3"),
        ("ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=tlsv1.2", "is newer than ssl_max_protocol_version"),
        ("unknown=1", "unknown"),
        ("scram_client_key=TOPSECRET", "scram_client_key"),
        ("sslkeylogfile=/tmp/keys", "sslkeylogfile"),
        ("sslcrldir=/tmp/lists", "sslcrl"),
        ("requirepeer=postgres", "requirepeer"),
        ("oauth_client_secret=TOPSECRET", "OAuth"),
        ("min_protocol_version=3.2", "min_protocol_version"),
        ("work_mem=much", "does not know work_mem, or does not allow its value"),
        ("nothing.here=1&options=-c%20nothing_here%3D1", "a setting in options"),
        ("options=--work_mem%3Dmuch", "a setting in options"),
        ("schema=mine", "schema"),
        ("host=h&hostaddr=127.0.0.1", "hostaddr"),
        ("port=1,2", "port"),
        ("password=a&rest", "%26"),
        ("sslpassword=a&TOPSECRET=1", "parameter 2"),
    ],
)
async def test_what_cannot_be_used_is_named(
    database_url: str, query: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{database_url}?{query}")
    monkeypatch.setenv("HOME", "/nowhere")
    done = await invoke("sessions", "list")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: DATABASE_URL")
    assert named in done.err
    assert done.err.count("\n") == 1
    assert MARK not in done.err
    assert "Trying again" not in done.err


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://u:p@h1:5432,h2:5433/db", "h1:5432,h2:5433/db"),
        ("postgresql://u:p@[::1]:5433,h2/db", "[::1]:5433,h2:5432/db"),
        ("postgresql://u:p@[fe80::1%25eth0]/db", "[fe80::1%eth0]:5432/db"),
        ("postgresql:///db?host=/run/postgresql", "/run/postgresql:5432/db"),
        ("postgresql://u@%2Frun%2Fpostgresql/db", "/run/postgresql:5432/db"),
        ("postgresql://u@%2Frun%2Fpostgresql:5433/db", "/run/postgresql:5433/db"),
        ("postgresql://u:p@localhost/db?host=/cloudsql/p:r:i", "/cloudsql/p:r:i:5432/db"),
        ("postgresql://u:p@/db?host=h1:1&host=h2:2", "h1:1,h2:2/db"),
        ("postgresql://u:p@/db?host=h1,h2&port=1,2", "h1:1,h2:2/db"),
        ("postgresql:///db", "localhost:5432/db"),
        ("postgresql://", "localhost:5432"),
        ("postgresql://u:p@h/my%20db", "h:5432/my db"),
    ],
)
def test_messages_name_hosts_and_database(url: str, where: str) -> None:
    assert parse_address(url, "DATABASE_URL").where == where


# Every keyword of libpq 18 (PQconndefaults), with a value that it takes, and what happens to it here.
USED, IGNORED = "used", "ignored"
LIBPQ = {
    "service": ("mine", "service file"),
    "servicefile": ("/etc/pg_service.conf", "service file"),
    "user": ("ada", USED),
    "password": ("p", USED),
    "passfile": ("/nowhere/pgpass", USED),
    "channel_binding": ("require", USED),
    "connect_timeout": ("10", USED),
    "dbname": ("db", USED),
    "host": ("h", USED),
    "hostaddr": ("127.0.0.1", USED),
    "port": ("5433", USED),
    "client_encoding": ("UTF8", IGNORED),
    "options": ("-c geqo=off", USED),
    "application_name": ("mine", USED),
    "fallback_application_name": ("mine", USED),
    "keepalives": ("0", USED),
    "keepalives_idle": ("30", USED),
    "keepalives_interval": ("5", USED),
    "keepalives_count": ("3", USED),
    "tcp_user_timeout": ("10000", USED),
    "replication": ("database", "replication must be one of false"),
    "gssencmode": ("require", "gssencmode must be one of disable, prefer"),
    "sslmode": ("require", USED),
    "sslnegotiation": ("direct", USED),
    "sslcompression": ("1", IGNORED),
    "sslcert": ("/nowhere/me.pem", USED),
    "sslkey": ("/nowhere/me.key", USED),
    "sslpassword": ("p", USED),
    "sslcertmode": ("require", "sslcertmode must be allow"),
    "sslrootcert": ("/nowhere/ca.pem", USED),
    "sslcrl": ("/nowhere/crl.pem", USED),
    "sslcrldir": ("/nowhere", "sslcrldir; name one file with all lists in sslcrl"),
    "sslsni": ("1", IGNORED),
    "sslkeylogfile": ("/tmp/keys", "sslkeylogfile; set the environment variable SSLKEYLOGFILE"),
    "requirepeer": ("postgres", "requirepeer; the driver cannot check which user runs"),
    "require_auth": ("scram-sha-256", "require_auth; the driver does not let the app choose"),
    "min_protocol_version": ("3.2", "min_protocol_version must be 3.0"),
    "max_protocol_version": ("latest", IGNORED),
    "ssl_min_protocol_version": ("TLSv1.3", USED),
    "ssl_max_protocol_version": ("TLSv1.3", USED),
    "krbsrvname": ("pg", USED),
    "gsslib": ("gssapi", USED),
    "gssdelegation": ("1", "gssdelegation must be 0"),
    "target_session_attrs": ("primary", USED),
    "load_balance_hosts": ("random", USED),
    "scram_client_key": ("TOPSECRET", "scram_client_key; the driver logs in with the password itself"),
    "scram_server_key": ("TOPSECRET", "scram_server_key; the driver logs in with the password itself"),
    "oauth_issuer": ("https://TOPSECRET", "oauth_issuer; the driver cannot log in with OAuth"),
    "oauth_client_id": ("TOPSECRET", "oauth_client_id; the driver cannot log in with OAuth"),
    "oauth_client_secret": ("TOPSECRET", "oauth_client_secret; the driver cannot log in with OAuth"),
    "oauth_scope": ("TOPSECRET", "oauth_scope; the driver cannot log in with OAuth"),
}


@pytest.mark.parametrize("name", LIBPQ)
def test_every_keyword_of_libpq_has_a_decision(name: str) -> None:
    value, decision = LIBPQ[name]
    plain = parse_address("postgresql://", "DATABASE_URL")
    url = f"postgresql://?{name}={quote(value)}"
    if decision in (USED, IGNORED):
        assert (vars(parse_address(url, "DATABASE_URL")) != vars(plain)) == (decision == USED)
        return
    with pytest.raises(SettingMissing, match=r"^DATABASE_URL: [^.]+(\.0?[^.]*)?\.$") as caught:
        parse_address(url, "DATABASE_URL")
    assert decision in str(caught.value)
    assert MARK not in str(caught.value)
    assert "does not know" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "field", "expected"),
    [
        ("ssl=True", "tls", {"sslmode": "require"}),
        ("ssl=ON", "tls", {"sslmode": "require"}),
        ("ssl=False", "tls", {"sslmode": "disable"}),
        ("ssl=Require", "tls", {"sslmode": "require"}),
        ("ssl=no-verify", "tls", {"sslmode": "require"}),
        ("sslmode=REQUIRE", "tls", {"sslmode": "require"}),
        ("sslmode=Verify-Full", "tls", {"sslmode": "verify-full"}),
        ("sslmode=NO-VERIFY", "tls", {"sslmode": "require"}),
        ("sslmode=require&sslaccept=Strict", "tls", {"sslmode": "verify-full"}),
        ("sslmode=require&sslnegotiation=DIRECT", "tls", {"sslmode": "require", "sslnegotiation": "direct"}),
        ("ssl_min_protocol_version=tlsv1.3", "tls", {"ssl_min_protocol_version": "TLSv1.3"}),
        ("ssl_min_protocol_version=TLSV1", "tls", {"ssl_min_protocol_version": "TLSv1.2"}),
        ("ssl_max_protocol_version=TLSV1.2", "tls", {"ssl_max_protocol_version": "TLSv1.2"}),
        ("channel_binding=Require", "bound", True),
        ("channel_binding=PREFER", "bound", False),
        ("pgbouncer=TRUE", "pooler", True),
        ("pgbouncer=True", "pooler", True),
        ("pgbouncer=False", "pooler", False),
        ("target_session_attrs=Read-Write", "target", "read-write"),
        ("target_session_attrs=", "target", None),
        ("load_balance_hosts=Random", "shuffled", True),
        ("gsslib=SSPI", "driver", {"gsslib": "sspi"}),
        ("gssencmode=Disable", "driver", {}),
        ("client_encoding=Utf8", "server", {}),
        ("replication=OFF", "server", {}),
        ("sslcertmode=ALLOW", "tls", {}),
        ("sslmode=", "tls", {}),
    ],
)
def test_known_words_are_read_in_upper_and_lower_case(query: str, field: str, expected: object) -> None:
    assert getattr(parse_address(f"postgresql://h/db?{query}", "DATABASE_URL"), field) == expected


def test_a_pooler_is_known_by_its_port_or_by_what_clients_write_for_it() -> None:
    for query in (
        "?pgbouncer=true",
        "?pgbouncer=True",
        "?pgbouncer=1",
        "?statement_cache_size=0",
        "?prepared_statement_cache_size=0",
    ):
        assert settings_for(f"postgresql://h/db{query}", database_pooler="auto").behind_pooler
    assert settings_for("postgresql://h:6543/db", database_pooler="auto").behind_pooler
    assert not settings_for("postgresql://h/db?pgbouncer=false", database_pooler="auto").behind_pooler
