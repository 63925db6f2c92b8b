"""Reading REDIS_URL: one server, the servers behind Sentinels, or a cluster, and how to connect to them.

What a message or a repr may show of it is checked character by character: in an address that was mistyped, any part may
be one of a password.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from ..errors import SettingMissing, forgets_locals

EXAMPLE = "redis://user:password@host:6379/0"
_OTHERS = ".env.example shows how to write TLS, Sentinel, a cluster and a socket"
PROXY = "redis+proxy://"
"""For a cluster behind one address that hides its nodes: Redis Enterprise, Azure Managed Redis."""

Kind = Literal["server", "sentinel", "cluster", "proxy"]
_KINDS: dict[str, Kind] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
    "redis+proxy": "proxy",
    "rediss+proxy": "proxy",
}
_LOGIN = ("username", "password")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS = (*_FILES, "ssl_password", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL = ("service", "sentinel_username", "sentinel_password")
_CUT = (
    "REDIS_URL cannot be used: a port in it is not a number from 1 to 65535, an IPv6 address in it is not written as "
    "[::1], or its user or password holds one of / ? # @ : % which must be written as %2F %3F %23 %40 %3A %25."
)
# Not `urlsplit`: its newer versions allow one host, and brackets only at its beginning.
_URL = re.compile(
    r"(?P<scheme>[^:/?#]*)://(?P<servers>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<rest>.*)", re.DOTALL
)
_SERVER = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]\s]*))(?::(?P<port>[0-9]{0,5}))?")
_HOST = re.compile(r"([\w-]{1,63}\.)*([\w-]{1,63})?")  # in any script
_SERVICE = re.compile(r"[\w.-]+", re.ASCII)
_PATH = re.compile(r"[\w./\\: ~+-]*")
_PARAMETER = re.compile(r"[a-z][a-z_]{1,40}")


@dataclass(frozen=True)
class RedisAddress:
    """What a REDIS_URL says. Its repr contains no secrets."""

    kind: Kind
    tls: bool
    where: str
    """For messages."""
    hosts: tuple[tuple[str, int], ...]
    """Servers, Sentinels or some nodes of the cluster; empty for a socket on this machine."""
    options: Mapping[str, Any] = field(repr=False)
    """For `redis.asyncio.Connection`: login, database, TLS."""
    service: str = ""
    """What the Sentinels call the primary."""
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)
    doubt: str = ""
    """Ends a message about a server that cannot be reached or refuses the login."""

    @property
    def remote(self) -> str:
        """The first host that is not this machine; empty: none."""
        return next((host for host, _ in self.hosts if not _is_loopback(host)), "")


@forgets_locals
def parse_address(url: str) -> RedisAddress:
    """Read a REDIS_URL.

    Raises:
        SettingMissing: It is none; the message says what is wrong and how to write it, and quotes no secret.
    """
    if any("\ud800" <= char <= "\udfff" for char in url):
        raise SettingMissing("REDIS_URL is not UTF-8 text.")
    parts = _URL.fullmatch(url.strip())
    scheme = parts["scheme"].lower() if parts else ""
    scheme = re.sub(r"^valkey(s?)(?=$|\+)", r"redis\1", scheme)
    kind = _KINDS.get(scheme)
    if parts is None or kind is None:
        raise SettingMissing(f"REDIS_URL is not a Redis URL. Write {EXAMPLE} ({_OTHERS}).")
    path, parameters = parts["path"], parts["query"] or ""
    # An @ or # behind the host is the rest of a password that was cut at one of its own characters.
    if parts["rest"] or "@" in path + parameters:
        raise SettingMissing(_CUT)
    login, _, servers = parts["servers"].rpartition("@")
    user, _, password = login.partition(":")
    # Before the files for TLS, which are named: a host that is none is the rest of something else.
    hosts = _hosts(servers, 26379 if kind == "sentinel" else 6379) if scheme != "unix" else ()
    query = dict(parse_qsl(parameters, keep_blank_values=True))
    secret = any("password" in name for name in query)
    tls = scheme.startswith("rediss")
    # As redis-py's own addresses, which may have both behind the ? as well.
    more = {name: query.pop(name, "") for name in _LOGIN}
    options: dict[str, Any] = {
        "username": unquote(user) or more["username"] or None,
        "password": unquote(password) or more["password"] or None,
        **_tls_options(query, tls),
    }
    doubt = " An @ in a user or password must be written as %40." if "@" in login else ""
    if scheme == "unix":
        if servers:
            raise SettingMissing("REDIS_URL: a socket has no host. Write unix:///path/to/socket?db=0.")
        options |= {"path": unquote(path), "db": _database(query.pop("db", ""))}
        _refuse_rest(query, secret=secret)
        where = f"{_shown(options['path'])} database {options['db']}"
        return RedisAddress(kind, tls, where, (), options, doubt=doubt)
    names = ",".join(f"{host}:{port}" for host, port in hosts)
    options["db"] = database = _database(query.pop("db", "") or path.removeprefix("/"))
    if kind == "sentinel":
        service = query.pop("service", "")
        if not _SERVICE.fullmatch(service):
            raise SettingMissing("REDIS_URL does not say what the Sentinels call the primary: add ?service=mymaster.")
        keys = ((name, f"sentinel_{name}") for name in _LOGIN)
        sentinel_login = {key: query.pop(name) for key, name in keys if name in query}
        _refuse_rest(query, secret=secret)
        where = f"{service}/{database} (Sentinels {names})"
        return RedisAddress(kind, tls, where, hosts, options, service, sentinel_login, doubt)
    _refuse_rest(query, secret=secret)
    if kind == "cluster" and "ssl_password" in options:
        raise SettingMissing("REDIS_URL: redis-py takes no ssl_password for a cluster. Store the key without one.")
    if kind != "server" and database:
        raise SettingMissing("REDIS_URL names a database, but a cluster has only database 0. Leave it out.")
    if kind != "cluster" and len(hosts) > 1:
        raise SettingMissing(
            f"REDIS_URL names several hosts. Write redis+cluster://… or redis+sentinel://… ({_OTHERS})."
        )
    where = {"server": f"{names}/{database}", "cluster": f"{names} (cluster)", "proxy": f"{names} (proxy)"}[kind]
    return RedisAddress(kind, tls, where, hosts, options, doubt=doubt)


def _hosts(servers: str, default_port: int) -> tuple[tuple[str, int], ...]:
    return tuple(_host(server, default_port) for server in servers.split(","))


def _host(server: str, default_port: int) -> tuple[str, int]:
    found = _SERVER.fullmatch(server)
    if found is None:
        raise SettingMissing(_CUT)
    port = int(found["port"] or default_port)
    try:
        name = unquote(found["name"]).lower() if found["ipv6"] is None else str(IPv6Address(unquote(found["ipv6"])))
    except ValueError:
        raise SettingMissing(_CUT) from None
    if not 0 < port < 65536 or (found["ipv6"] is None and not _HOST.fullmatch(name)):
        raise SettingMissing(_CUT)
    return name or "localhost", port


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # too long a name
        return False


def _shown(path: str) -> str:
    """A path for a message, unless more than a path may have got into it."""
    return path if _PATH.fullmatch(path) else "(a path with unusual characters)"


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise SettingMissing("REDIS_URL: the part behind the host must be the number of a database, such as /0.")
    return int(text or 0)


def _tls_options(query: dict[str, str], tls: bool) -> dict[str, Any]:
    """Take the TLS parameters out of `query`."""
    options: dict[str, Any] = {name: query.pop(name) for name in _TLS if name in query}
    if options and not tls:
        raise SettingMissing(f"REDIS_URL: {min(options)} is for TLS. Write rediss:// to use it.")
    for name in _FILES:
        if name in options and not _is_file(options[name]):
            raise SettingMissing(f"REDIS_URL: the file that {name} names does not exist: {_shown(options[name])}")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise SettingMissing("REDIS_URL: ssl_keyfile needs ssl_certfile, the client certificate that it belongs to.")
    # Celery and Django write CERT_NONE.
    required = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if required not in ("required", "optional", "none"):
        raise SettingMissing("REDIS_URL: ssl_cert_reqs must be required, optional or none.")
    if "ssl_cert_reqs" in options:
        options["ssl_cert_reqs"] = required
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "f", "false", "n", "no")
    return options


def _refuse_rest(query: Mapping[str, str], *, secret: bool) -> None:
    """`secret`: a password stands behind the ?, whose rest may look like a parameter if it holds an &."""
    if query:
        names = sorted(filter(_PARAMETER.fullmatch, query))
        what = f"the parameter {names[0]}" if names and not secret else "a parameter"
        known = ", ".join(("db", *_LOGIN, *_TLS, *_SENTINEL))
        raise SettingMissing(
            f"REDIS_URL has {what} that this app does not take. It takes {known}; the timeout is REDIS_TIMEOUT_SECONDS."
        )


def check_files(options: Mapping[str, Any]) -> None:
    """Whether the files of `_tls_options` can be used. They are read, so it takes a moment.

    Raises:
        SettingMissing: One of them cannot; the message names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities := options.get("ssl_ca_certs"):
        try:
            context.load_verify_locations(authorities)
        except (OSError, ValueError):
            raise SettingMissing(_UNUSABLE.format("ssl_ca_certs", "certificates", _shown(authorities))) from None
    if certificate := options.get("ssl_certfile"):
        key = options.get("ssl_keyfile") or certificate
        try:
            context.load_cert_chain(certificate, key, options.get("ssl_password") or "")
        except (OSError, ValueError):
            files = f"{_shown(certificate)} and {_shown(key)}"
            raise SettingMissing(_UNUSABLE.format("ssl_certfile", "a certificate with its key", files)) from None


_UNUSABLE = "REDIS_URL: what {} names does not contain a readable {} (PEM; ssl_password if the key is encrypted): {}"
