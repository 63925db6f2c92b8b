"""Reading REDIS_URL: one server, the servers behind Sentinels, or a cluster, and how to connect to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from .store import SettingMissing

EXAMPLE = "redis://user:password@host:6379/0"
_OTHERS = ".env.example shows how to write TLS, Sentinel, a cluster and a socket"

Kind = Literal["server", "sentinel", "cluster"]
_KINDS: dict[str, Kind] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL = ("service", "sentinel_username", "sentinel_password")
_CUT = (
    "REDIS_URL cannot be used: a port in it is not a number from 1 to 65535, an IPv6 address in it is not written as "
    "[::1], or its password holds one of / ? # @ : % which must be written as %2F %3F %23 %40 %3A %25."
)
# Not `urlsplit`: its newer versions allow one host, and brackets only at its beginning.
_URL = re.compile(
    r"(?P<scheme>[^:/?#]*)://(?P<servers>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<rest>.*)", re.DOTALL
)
_SERVER = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]\s]*))(?::(?P<port>[0-9]{0,5}))?")


@dataclass(frozen=True)
class RedisAddress:
    """What a REDIS_URL says. Its repr holds no secrets."""

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


def parse_address(url: str) -> RedisAddress:
    """Read a REDIS_URL.

    Raises:
        SettingMissing: It is none; the message says what is wrong and how to write it, and quotes no secret.
    """
    parts = _URL.fullmatch(url.strip())
    scheme = parts["scheme"].lower() if parts else ""
    kind = _KINDS.get(scheme)
    if parts is None or kind is None:
        raise SettingMissing(f"REDIS_URL is not a Redis URL. Write {EXAMPLE} ({_OTHERS}).")
    path, parameters = parts["path"], parts["query"] or ""
    # An @ or # behind the host is the rest of a password that was cut at one of its own characters.
    if parts["rest"] or "@" in path + parameters:
        raise SettingMissing(_CUT)
    login, _, servers = parts["servers"].rpartition("@")
    user, _, password = login.partition(":")
    query = dict(parse_qsl(parameters, keep_blank_values=True))
    tls = scheme.startswith("rediss")
    options: dict[str, Any] = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        **_tls_options(query, tls),
    }
    if scheme == "unix":
        options |= {"path": unquote(path), "db": _database(query.pop("db", ""))}
        _refuse_rest(query)
        return RedisAddress(kind, tls, f"{options['path']} database {options['db']}", (), options)
    hosts = _hosts(servers, 26379 if kind == "sentinel" else 6379)
    names = ",".join(f"{host}:{port}" for host, port in hosts)
    options["db"] = database = _database(query.pop("db", "") or path.removeprefix("/"))
    if kind == "sentinel":
        service = query.pop("service", "")
        if not service:
            raise SettingMissing("REDIS_URL does not say what the Sentinels call the primary: add ?service=mymaster.")
        keys = (("username", "sentinel_username"), ("password", "sentinel_password"))
        sentinel_login = {key: query.pop(name) for key, name in keys if name in query}
        _refuse_rest(query)
        where = f"{service}/{database} (Sentinels {names})"
        return RedisAddress(kind, tls, where, hosts, options, service, sentinel_login)
    _refuse_rest(query)
    if kind == "cluster" and database:
        raise SettingMissing("REDIS_URL names a database, but a cluster has only database 0. Leave it out.")
    if kind == "server" and len(hosts) > 1:
        raise SettingMissing(
            f"REDIS_URL names several hosts. Write redis+cluster://… or redis+sentinel://… ({_OTHERS})."
        )
    return RedisAddress(kind, tls, f"{names} (cluster)" if kind == "cluster" else f"{names}/{database}", hosts, options)


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
    if not 0 < port < 65536:
        raise SettingMissing(_CUT)
    return name or "localhost", port


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise SettingMissing("REDIS_URL: the part behind the host must be the number of a database, such as /0.")
    return int(text or 0)


def _tls_options(query: dict[str, str], tls: bool) -> dict[str, Any]:
    """Take the TLS parameters out of `query`."""
    options: dict[str, Any] = {name: query.pop(name) for name in _TLS if name in query}
    if options and not tls:
        raise SettingMissing(f"REDIS_URL: {min(options)} is for TLS. Write rediss:// to use it.")
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options and not Path(options[name]).is_file():
            raise SettingMissing(f"REDIS_URL: the file that {name} names does not exist: {options[name]}")
    if options.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise SettingMissing("REDIS_URL: ssl_cert_reqs must be required, optional or none.")
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "f", "false", "n", "no")
    return options


def _refuse_rest(query: Mapping[str, str]) -> None:
    if query:
        known = ", ".join(("db", *_TLS, *_SENTINEL))
        raise SettingMissing(
            f"REDIS_URL has parameters that this app does not take. It takes {known}; timeouts and the number of "
            "connections are REDIS_TIMEOUT_SECONDS and REDIS_POOL_MAX."
        )
