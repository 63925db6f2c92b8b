"""Opening a connection to one Redis server, with the options that an address and our way of sending ask for."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    RedisSSLContext,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from ..credentials import Credentials, ask, mark_asked
from ..errors import forget_locals
from .address import RedisAddress, check_files

KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}
"""So that firewalls see that a connection is in use, and the system that its other end is gone."""


class Asked(CredentialProvider):
    """What `Credentials` returns, as redis-py asks for it."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        user, password = await ask(self._credentials)
        return (user, password) if user else (password,)  # the server's default user has no name


class Opener:
    """Opens connections to the servers of an address."""

    def __init__(self, address: RedisAddress, credentials: Credentials | None = None) -> None:
        self._address = address
        self._checked = False
        self.login: dict[str, Any] = {name: address.options[name] for name in ("username", "password")}
        """For redis-py's own clients."""
        self.asks = credentials is not None
        if credentials is not None:
            self.login = {"credential_provider": Asked(credentials)}
        rest = {name: value for name, value in address.options.items() if name not in ("username", "password")}
        self._tls: RedisSSLContext | None = None
        # RESP2 is what every server and proxy speaks. No CLIENT SETINFO: users confined by an ACL may not send it.
        # No timeouts: `Multiplexer` has one for a whole exchange, which costs less than two for its halves.
        self._options: dict[str, Any] = {
            **rest,
            **self.login,
            "protocol": 2,
            "decode_responses": True,
            "encoding_errors": "replace",
            "driver_info": None,
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }

    async def open(self, server: tuple[str, int] | None) -> AbstractConnection:
        """A connection that is logged in. No server: the socket on this machine that the address names.

        What `Credentials` returned may have expired on its way, or be remembered for too long: it is asked twice.
        """
        await self.check_files()
        try:
            return await self._open(server)
        except AuthenticationError:
            if not self.asks:
                raise
        try:
            return await self._open(server)
        except AuthenticationError as error:
            mark_asked(error)
            raise

    async def check_files(self) -> None:
        """Whether the files that the address names for TLS can be used.

        Raises:
            SettingMissing: One of them cannot.
        """
        if not self._checked:
            await asyncio.to_thread(check_files, self._address.options)
            self._checked = True

    async def _open(self, server: tuple[str, int] | None) -> AbstractConnection:
        connection = self._make(server)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            forget_locals(error)  # the driver's hold the password
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _make(self, server: tuple[str, int] | None) -> AbstractConnection:
        if server is None:
            return UnixDomainSocketConnection(**self._options)
        host, port = server
        options = {**self._options, "socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
        if not self._address.tls:
            return Connection(host=host, port=port, **options)
        connection = SSLConnection(host=host, port=port, **options)
        # Reading all certificates that this machine trusts takes 20 ms, so it is done once.
        self._tls = connection.ssl_context = self._tls or connection.ssl_context
        return connection
