"""Reading a PostgreSQL URL as libpq, SQLAlchemy, Prisma and hosting providers write it.

No message quotes a part of it that may be, or be cut from, a user, a password or another value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

from ..errors import SettingMissing

EXAMPLE = "postgresql://user:password@host:5432/name"

_CUT = (
    "cannot be used: its port is not a number from 1 to 65535, its host is not a name, or user or password contains "
    "one of / ? # @ : [ ] % which must be written as %2F %3F %23 %40 %3A %5B %5D %25."
)
# Not `urlsplit`: it allows one host, and its versions differ in what they accept between brackets.
_URL = re.compile(r"([^:/?#\s]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL)
_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>(?:[\w.-]|%[0-9a-fA-F]{2})*))(?::(?P<port>[0-9]{1,5}))?")
_SOCKET = re.compile(r"(?P<name>/[^\x00-\x1f]*?)(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,62}")

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ON, _OFF = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What other clients do with these, the settings of this app decide, or it makes no difference here.
_IGNORED = _words(
    "async_fallback command_timeout connection_limit fallback_application_name max_idle_connection_lifetime pgbouncer "
    "authtype pool_timeout prepared_statement_cache_size prepared_statement_name_func socket_timeout sslcompression "
    "sslsni statement_cache_size supa timeout tty uselibpqcompat workaround"
)
# Words, in upper or lower case. Other values ask for something that the driver cannot do, or mean nothing.
_VALUES = {
    "channel_binding": ("disable", "prefer", "require"),  # the doctor says that `require` is not checked
    "client_encoding": ("auto", "utf8", "utf-8", "unicode"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "gsslib": ("gssapi", "sspi"),
    "load_balance_hosts": ("disable", "random"),
    "max_protocol_version": ("3.0", "3.2", "latest"),  # of the wire; the driver speaks the first
    "min_protocol_version": ("3.0",),
    "replication": _OFF,
    "requiressl": ("0", "1"),
    "schema": ("public",),
    "ssl": (*SSL_MODES, "no-verify", *_ON, *_OFF),
    "ssl_max_protocol_version": ("TLSv1.2", "TLSv1.3"),
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "sslaccept": ("accept_invalid_certs", "strict"),
    "sslcertmode": ("allow",),
    "sslmode": (*SSL_MODES, "no-verify"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
}
_FILES = _words("sslcert sslkey sslrootcert sslcrl")
_TLS = _FILES | _words("sslmode sslpassword sslnegotiation ssl_min_protocol_version ssl_max_protocol_version")
_DRIVER = _words("krbsrvname gsslib passfile")
_SOCKET_OPTIONS = _words(
    "keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout connect_timeout"
)
_LOGIN = _words("user password dbname database host hostaddr port target_session_attrs")
# Settings of the server that people put into addresses; others go into `options`. Those of extensions have a dot.
_SERVER = _words(
    "application_name options datestyle intervalstyle timezone search_path role jit work_mem temp_buffers "
    "statement_timeout lock_timeout transaction_timeout idle_in_transaction_session_timeout idle_session_timeout "
    "synchronous_commit default_transaction_isolation default_transaction_read_only default_transaction_deferrable "
    "default_tablespace extra_float_digits bytea_output session_replication_role log_statement row_security"
)
_SECRETS = _words("user password sslpassword options passfile sslkey scram_client_key oauth_client_secret")
_OAUTH = "the driver cannot log in with OAuth; let a function give the token as the password (DATABASE_CREDENTIALS)"
_REFUSED = {
    "service": "write what the service file says into the address",
    "servicefile": "write what the service file says into the address",
    "oauth_client_id": _OAUTH,
    "oauth_client_secret": _OAUTH,
    "oauth_issuer": _OAUTH,
    "oauth_scope": _OAUTH,
    "require_auth": "the driver does not let the app choose login methods",
    "requirepeer": "the driver cannot check which user runs the server",
    "scram_client_key": "the driver logs in with the password itself",
    "scram_server_key": "the driver logs in with the password itself",
    "sslcrldir": "name one file with all lists in sslcrl",
    "sslkeylogfile": "set the environment variable SSLKEYLOGFILE",
    "sslidentity": "write sslcert and sslkey, which name PEM files",
}


class Login(NamedTuple):
    """User and password. Tools that show local variables show neither."""

    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return "Login(…)"


@dataclass(frozen=True)
class PostgresAddress:
    """What a URL says. Its repr contains no secrets."""

    where: str
    """Hosts, ports and database, for messages."""
    hosts: tuple[tuple[str, int], ...]
    """A path stands for a socket on this machine; empty: where the driver looks by itself."""
    login: Login
    database: str | None
    target: str | None
    """Which of several servers: `target_session_attrs`."""
    shuffled: bool
    pooler: bool
    """Whether the address announces a transaction pooler."""
    driver: Mapping[str, str] = field(repr=False)
    """More arguments of `asyncpg.connect`."""
    tls: Mapping[str, str] = field(repr=False)
    server: Mapping[str, str] = field(repr=False)
    """Settings of the server."""
    socket: Mapping[str, int]
    bound: bool
    """Whether TLS was asked to be bound to the login (channel_binding=require), which the driver does not do."""

    @property
    def is_remote(self) -> bool:
        """Whether others can listen on the way."""
        return any(not _is_local(host) for host, _ in self.hosts)

    @property
    def ssl_mode(self) -> str:
        return self.tls.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"

    def without_secrets(self, text: str) -> str:
        """A server's words, without what the address says of the login."""
        secrets = {*self.login, *self.server.values()}
        secrets |= {word for text in self.server.values() for word in re.split(r"[\s=]+", text) if len(word) > 2}
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "…", text)  # a short one may be a part of any word
        return re.sub(r'\b(user|role) "[^"]*"', r'\1 "…"', text)  # it may be what `credentials` gave


def parse_address(url: str, variable: str) -> PostgresAddress:
    """Read a URL.

    Args:
        url: The text as people paste it.
        variable: Where it comes from, for messages.

    Raises:
        SettingMissing: It cannot be used; the message says what is wrong and how to write it.
    """
    authority, path, parameters = _parts(url, variable)
    login, _, servers = authority.rpartition("@")
    user, _, password = login.partition(":")
    query = _query(parameters, variable)
    # As for libpq and Prisma, those of the query count more.
    hosts = _hosts(query.get("host") or query.get("hostaddr") or servers, query, variable)
    database = query.get("dbname") or query.get("database") or unquote(path.removeprefix("/")) or None
    names = ",".join(f"[{host}]:{port}" if ":" in host and host[0] != "/" else f"{host}:{port}" for host, port in hosts)
    shown = database if database is None or database.isprintable() else repr(database)
    return PostgresAddress(
        where=(names or "localhost:5432") + (f"/{shown}" if shown else ""),
        hosts=hosts,
        login=Login(query.get("user") or unquote(user) or None, query.get("password") or unquote(password) or None),
        database=database,
        target=query.get("target_session_attrs") or None,
        shuffled=query.get("load_balance_hosts") == "random",
        pooler=any(port == 6543 for _, port in hosts)
        or query.get("pgbouncer", "").lower() in _ON
        or any(query.get(name) == "0" for name in ("statement_cache_size", "prepared_statement_cache_size")),
        driver={name: query[name] for name in sorted(_DRIVER & query.keys()) if query[name]},
        tls=_tls(query, variable),
        server=_server(query),
        socket=_numbers(query, variable),
        bound=query.get("channel_binding") == "require",
    )


def _parts(url: str, variable: str) -> tuple[str, str, str]:
    """Authority, path and query."""
    url = url.strip()
    if len(url) > 1 and url[0] == url[-1] and url[0] in "'\"":  # as shells and some files need it
        url = url[1:-1].strip()
    parts = _URL.fullmatch(url)
    # What SQLAlchemy calls postgresql+asyncpg is the same address.
    if parts is None or parts[1].lower().partition("+")[0] not in ("postgresql", "postgres"):
        raise SettingMissing(f"{variable} is not a PostgreSQL URL. Write {EXAMPLE}.")
    _, authority, path, query, fragment = parts.groups()
    # A second @, or one behind the hosts, or a # is the rest of a user or password that was not escaped.
    if fragment or url.count("@") != authority.count("@") or authority.count("@") > 1:
        raise SettingMissing(f"{variable} {_CUT}")
    if not _can_be_sent(unquote(url)):
        raise SettingMissing(f"{variable} cannot be used: it contains %00 or text that is not UTF-8.")
    return authority, path, query or ""


def _can_be_sent(text: str) -> bool:
    """The protocol ends texts with NUL, and half a surrogate pair cannot be encoded."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _query(text: str, variable: str) -> dict[str, str]:
    """The parameters, those that cannot be used refused."""
    query: dict[str, str] = {}
    secret = False
    for number, part in enumerate(filter(None, text.split("&")), 1):
        name, equals, value = part.partition("=")
        name = unquote(name)
        # What follows a secret may be its rest, cut at an & that was not escaped.
        called = name if equals and not secret and _NAME.fullmatch(name) else f"parameter {number} behind the ?"
        if not equals:
            raise SettingMissing(f"{variable}: {called} has no value. A & within a value is written %26.")
        value = unquote_plus(value) if name in _SERVER else unquote(value)
        known = name in _IGNORED | _TLS | _DRIVER | _SOCKET_OPTIONS | _LOGIN | _SERVER or "." in name
        if name in _VALUES:
            value = value and _word(name, value, variable)
        elif name in _REFUSED:
            raise SettingMissing(f"{variable}: this app does not take {name}; {_REFUSED[name]}.")
        elif not known or not _NAME.fullmatch(name):
            raise SettingMissing(
                f"{variable}: this app does not know {called}. Remove it; a setting of the server is written "
                "options=-c%20name%3Dvalue."
            )
        secret = secret or name in _SECRETS
        if name == "host" and name in query:  # so SQLAlchemy writes several
            value = f"{query[name]},{value}"
        query[name] = value
    if "host" in query and "hostaddr" in query:
        raise SettingMissing(f"{variable}: this app takes host or hostaddr, not both.")
    return query


def _word(name: str, value: str, variable: str) -> str:
    words = _VALUES[name]
    for word in words:
        if word.lower() == value.lower():
            return word
    must = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    instead = " DATABASE_SCHEMA names another one." if name == "schema" else ""
    raise SettingMissing(f"{variable}: {name} must be {must} for this app.{instead}")


def _hosts(servers: str, query: Mapping[str, str], variable: str) -> tuple[tuple[str, int], ...]:
    default = query.get("port") or os.environ.get("PGPORT") or "5432"
    ports = default.split(",")
    names = servers.split(",")
    if names == [""]:
        if "port" not in query:
            return ()
        names = ["localhost"]
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise SettingMissing(f"{variable}: there must be one port, or as many as hosts.")
    return tuple(_host(name, port, variable) for name, port in zip(names, ports, strict=True))


def _host(text: str, default_port: str, variable: str) -> tuple[str, int]:
    problem = SettingMissing(f"{variable} {_CUT}")
    plain = unquote(text)
    found = _SOCKET.fullmatch(plain) if plain.startswith("/") else _HOST.fullmatch(text)
    if found is None:
        raise problem
    port = found["port"] or default_port
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise problem
    if found.re is _SOCKET:
        return found["name"], int(port)
    try:
        if found["ipv6"] is not None:
            return str(IPv6Address(unquote(found["ipv6"]))), int(port)
        name = unquote(found["name"]).lower()
        name.encode("idna")  # as the driver does it; raises for what is not a host name
    except ValueError:
        raise problem from None
    if not re.fullmatch(r"[\w.-]*", name):
        raise problem
    return name or "localhost", int(port)


def _tls(query: Mapping[str, str], variable: str) -> dict[str, str]:
    """The TLS parameters as libpq calls them."""
    tls = {name: query[name] for name in _TLS if query.get(name)}
    mode = tls.get("sslmode") or query.get("ssl", "")
    mode = "require" if mode in _ON else "disable" if mode in _OFF else mode
    if query.get("requiressl") == "1" and mode in ("", "allow", "prefer"):
        mode = "require"
    if mode == "no-verify":  # as Node.js calls it
        mode = "require"
    if query.get("sslaccept") == "strict" and mode != "disable":  # Prisma's
        mode = "verify-full"
    oldest, newest = (tls.get(f"ssl_{end}_protocol_version") for end in ("min", "max"))
    if oldest in ("TLSv1", "TLSv1.1"):  # this computer's OpenSSL may have neither
        oldest = tls["ssl_min_protocol_version"] = "TLSv1.2"
    if oldest and newest and oldest > newest:
        raise SettingMissing(f"{variable}: ssl_min_protocol_version is newer than ssl_max_protocol_version.")
    if tls.get("sslrootcert") == "system":
        mode = mode or "verify-full"
        if mode != "verify-full":
            raise SettingMissing(f"{variable}: sslrootcert=system needs sslmode=verify-full.")
    for name in _FILES:
        if name in tls and tls[name] != "system":
            tls[name] = os.path.expanduser(tls[name])  # without a home it stays as it is
    return {**tls, "sslmode": mode} if mode else tls


def _server(query: Mapping[str, str]) -> dict[str, str]:
    settings = {name: value for name, value in query.items() if name in _SERVER or "." in name}
    if "fallback_application_name" in query:
        settings.setdefault("application_name", query["fallback_application_name"])
    return settings


def _numbers(query: Mapping[str, str], variable: str) -> dict[str, int]:
    """Seconds and counts that are applied to the socket."""
    numbers = {}
    for name in sorted(_SOCKET_OPTIONS & query.keys()):
        if not re.fullmatch(r"-?[0-9]{1,9}", query[name], re.ASCII):
            raise SettingMissing(f"{variable}: {name} must be a number.")
        numbers[name] = int(query[name])
    return numbers


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
