"""What lies under a connection to PostgreSQL: TLS, and the signs of life of an idle socket."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import asyncpg

from ..errors import SettingMissing, forgets_locals

_FILES = {"sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL"}

# Parameter of the address, names of the socket option (Linux and Windows; macOS), and our default: firewalls and load
# balancers drop what was silent for four minutes (Azure) or six (AWS), and say nothing.
_KEEP_ALIVE = (
    ("keepalives_idle", ("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 60),
    ("keepalives_interval", ("TCP_KEEPINTVL",), 10),
    ("keepalives_count", ("TCP_KEEPCNT",), 3),
    ("tcp_user_timeout", ("TCP_USER_TIMEOUT",), 0),
)


@forgets_locals
def tls_options(tls: Mapping[str, str], variable: str) -> dict[str, Any]:
    """The TLS parameters of an address as arguments of `asyncpg.connect`.

    Raises:
        SettingMissing: A file that is named cannot be read, or is not what it should be.
    """
    chosen = {name: tls.get(name) or os.environ.get(environment, "") for name, environment in _FILES.items()}
    _check_files(chosen, tls.get("sslpassword"), variable)
    mode = tls.get("sslmode") or os.environ.get("PGSSLMODE") or ""
    own_roots = chosen["sslrootcert"] or os.path.isfile(os.path.expanduser("~/.postgresql/root.crt"))
    if chosen["sslrootcert"] == "system" or (mode == "verify-full" and not own_roots):
        return {"ssl": _system_context(chosen, tls), "direct_tls": tls.get("sslnegotiation") == "direct"}
    if mode == "verify-ca" and not own_roots:
        raise SettingMissing(
            f"{variable}: sslmode=verify-ca needs sslrootcert=…, the file of your authority. With an authority that "
            "the system knows write sslmode=verify-full."
        )
    # The driver takes all of these from an address only.
    return {"dsn": f"postgresql://?{urlencode(tls)}"} if tls else {}


def _system_context(chosen: Mapping[str, str], tls: Mapping[str, str]) -> ssl.SSLContext:
    """The server must show a certificate for its name from an authority that the system knows."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    _load(context, {**chosen, "sslrootcert": ""}, tls.get("sslpassword"))
    if oldest := tls.get("ssl_min_protocol_version"):
        context.minimum_version = ssl.TLSVersion[oldest.replace(".", "_")]
    if newest := tls.get("ssl_max_protocol_version"):
        context.maximum_version = ssl.TLSVersion[newest.replace(".", "_")]
    return context


def _check_files(chosen: Mapping[str, str], password: str | None, variable: str) -> None:
    for name, file in chosen.items():
        if file and file != "system" and not os.access(file, os.R_OK):
            raise SettingMissing(f"{variable}: the file that {name} names does not exist or cannot be read: {file}")
    for names in (("sslrootcert",), ("sslcrl",), ("sslcert", "sslkey")):
        some = {name: file for name, file in chosen.items() if name in names and file != "system"}
        try:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), {**dict.fromkeys(chosen, ""), **some}, password)
        except (OSError, ValueError):
            files = " and ".join(f"{name} ({some[name]})" for name in names if some.get(name))
            what = "do not hold a certificate and its key" if "sslcert" in names else "does not hold a certificate"
            raise SettingMissing(f"{variable}: {files} {what} in PEM format, or sslpassword is wrong.") from None


def _load(context: ssl.SSLContext, files: Mapping[str, str], password: str | None) -> None:
    if files["sslrootcert"]:
        context.load_verify_locations(files["sslrootcert"])
    if files["sslcrl"]:
        context.load_verify_locations(files["sslcrl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if files["sslcert"]:
        context.load_cert_chain(files["sslcert"], files["sslkey"] or None, lambda: password or "")


def keep_alive(connection: asyncpg.Connection, wanted: Mapping[str, int]) -> None:
    """Let the system ask from time to time whether the other end is there, and end the connection if not."""
    found = _of_transport(connection, "socket")
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6) or wanted.get("keepalives") == 0:
        return
    with suppress(OSError):  # a system may refuse one; the connection works all the same
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, options, default in _KEEP_ALIVE:
            value = wanted.get(name) or default
            for option in options:
                if value > 0 and (number := getattr(socket, option, None)) is not None:
                    found.setsockopt(socket.IPPROTO_TCP, number, value)
                    break


def reset(connection: asyncpg.Connection) -> None:
    """Before a connection is cut: what the system still holds of a statement is not sent any more."""
    found = _of_transport(connection, "socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def is_encrypted(connection: asyncpg.Connection) -> bool:
    return _of_transport(connection, "ssl_object") is not None


def _of_transport(connection: asyncpg.Connection, name: str) -> Any:
    transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined] # the driver has no way of its own
    return transport.get_extra_info(name)
