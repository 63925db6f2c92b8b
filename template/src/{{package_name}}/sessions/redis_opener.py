"""Opening a connection to one Redis server, with the options that an address and our way of sending ask for."""

from __future__ import annotations

from typing import Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    RedisSSLContext,
    SSLConnection,
    UnixDomainSocketConnection,
)

from .redis_address import RedisAddress
from .tracebacks import forget_locals


class Opener:
    """Opens connections to the servers of an address."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._tls: RedisSSLContext | None = None
        # RESP2 is what every server and proxy speaks. No CLIENT SETINFO: users confined by an ACL may not send it.
        # No timeouts: `RedisPool` has one for a whole exchange, which costs less than two for its halves.
        self._options: dict[str, Any] = {
            **address.options,
            "protocol": 2,
            "decode_responses": True,
            "encoding_errors": "replace",
            "driver_info": None,
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }

    async def open(self, server: tuple[str, int] | None) -> AbstractConnection:
        """A connection that is logged in. No server: the socket on this machine that the address names."""
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
        if not self._address.tls:
            return Connection(host=host, port=port, **self._options)
        connection = SSLConnection(host=host, port=port, **self._options)
        # Reading all certificates that this machine trusts takes 20 ms, so it is done once.
        self._tls = connection.ssl_context = self._tls or connection.ssl_context
        return connection
