"""Which server keeps a key: always the same, the primary that Sentinels name, or one node of a cluster.

A proxy that hides the nodes of a cluster is one server, to which each command with keys of one slot can be sent.

redis-py finds primaries and slots. The commands do not go through its clients: its cluster client repeats commands,
breaks calls of others when a node fails, and after ASK may send the command on another connection.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from ..credentials import Credentials
from ..retry import cancellations
from .address import RedisAddress
from .line import NotSent
from .multiplexer import Multiplexer
from .opener import Opener

Key = str | bytes | int | None
REDIRECTIONS = 16
"""How often a node of a cluster may point to another one, or be in the middle of a move. The same as redis-py's."""


class Topology(Protocol):
    """Sends packed commands to the server that has their key, which it may have to find first.

    Raises what `Multiplexer` raises; among the replies of `exchange_all` may be errors.
    """

    async def exchange(self, key: Key, packed: bytes, deadline: float, **how: bool) -> Any: ...
    async def exchange_all(self, commands: Sequence[tuple[Key, bytes]], deadline: float, **how: bool) -> list[Any]: ...
    async def everywhere(self, packed: bytes, deadline: float) -> dict[str, Any]: ...
    async def close(self) -> None: ...


def open_topology(
    address: RedisAddress, settle_seconds: float, timeout: float, credentials: Credentials | None = None
) -> Topology:
    """No I/O happens before the first command."""
    return (Cluster if address.kind == "cluster" else Server)(address, settle_seconds, timeout, credentials)


class Server:
    """One server, or whichever one the Sentinels call the primary."""

    def __init__(
        self, address: RedisAddress, settle_seconds: float, timeout: float, credentials: Credentials | None
    ) -> None:
        self._address = address
        self._opener = Opener(address, credentials)
        self._lines = Multiplexer(self._connect, settle_seconds, timeout)
        self._primary: tuple[str, int] | None = address.hosts[0] if address.hosts else None
        self._sentinel: Sentinel | None = None
        if address.kind == "sentinel":
            tls = {name: value for name, value in address.options.items() if name.startswith("ssl_")}
            options = {**_finding(timeout), **address.sentinel_login, **tls, "ssl": address.tls}
            self._sentinel = Sentinel(address.hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]

    async def exchange(self, key: Key, packed: bytes, deadline: float, **how: bool) -> Any:
        try:
            return await self._lines.exchange(packed, deadline, **how)
        except (NotSent, RedisError, OSError) as error:
            if _lost(error):
                await self._lines.forget_idle()
            raise

    async def exchange_all(self, commands: Sequence[tuple[Key, bytes]], deadline: float, **how: bool) -> list[Any]:
        packed = b"".join(packed for _, packed in commands)
        try:
            replies = await self._lines.exchange_all(packed, len(commands), deadline, **how)
        except (NotSent, RedisError, OSError):
            await self._lines.forget_idle()
            raise
        if any(map(_lost, replies)):
            await self._lines.forget_idle()
        return replies

    async def everywhere(self, packed: bytes, deadline: float) -> dict[str, Any]:
        return {self._address.where: await self.exchange(None, packed, deadline)}

    async def close(self) -> None:
        await self._lines.close()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _connect(self) -> AbstractConnection:
        if self._sentinel is not None:
            await self._opener.check_files()
            before = cancellations()
            primary = await self._sentinel.discover_master(self._address.service)
            notice_cancellation(before)
            # Until the next time, a firewall may drop these in silence.
            for sentinel in self._sentinel.sentinels:
                with suppress(RedisError, OSError):
                    await sentinel.connection_pool.disconnect(inuse_connections=False)
            if primary != self._primary:
                self._primary = primary
                await self._lines.forget_idle()
        return await self._opener.open(self._primary)


class Cluster:
    """The primaries of a cluster, each with the slots of keys that it has."""

    def __init__(
        self, address: RedisAddress, settle_seconds: float, timeout: float, credentials: Credentials | None
    ) -> None:
        self._opener = Opener(address, credentials)
        self._settle_seconds, self._timeout = settle_seconds, timeout
        tls = {name: value for name, value in address.options.items() if name.startswith("ssl_")}
        self._nodes = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            require_full_coverage=False,  # sessions on the other nodes stay usable
            ssl=address.tls,
            **tls,
            **self._opener.login,
            **_finding(timeout),
        ).nodes_manager
        self._to: dict[tuple[str, int], Multiplexer] = {}
        self._gone: list[Multiplexer] = []
        """Of nodes that left the cluster, for calls that are still on their way."""
        self._stale = True
        self._finding = asyncio.Lock()

    async def exchange(self, key: Key, packed: bytes, deadline: float, **how: bool) -> Any:
        problem: Exception = TryAgainError("The cluster is being rearranged")
        asked: tuple[str, int] | None = None
        """Where to ask for this one command alone."""
        for _ in range(REDIRECTIONS):
            host, port = asked or await self._node_of(key, deadline)
            try:
                if asked is None:
                    return await self._lines(host, port).exchange(packed, deadline, **how)
                # On the same connection, one right after the other.
                _, reply = await self._lines(host, port).exchange_all(_ASKING + packed, 2, deadline, **how)
                if isinstance(reply, RedisError):
                    raise reply
                return reply
            except MovedError as moved:
                problem, asked = moved, None
                if moved.host:
                    await self._nodes.move_slot(moved)
                else:
                    self._stale = True
            except AskError as ask:
                asked = ask.host or host, ask.port
            except TryAgainError:
                asked = None
                await asyncio.sleep(0.05)
            except (NotSent, RedisError, OSError) as error:
                self._stale = self._stale or _lost(error)
                raise
        raise problem

    async def exchange_all(self, commands: Sequence[tuple[Key, bytes]], deadline: float, **how: bool) -> list[Any]:
        shares = defaultdict(list)
        for index, (key, _) in enumerate(commands):
            shares[await self._node_of(key, deadline)].append(index)
        replies: list[Any] = [None] * len(commands)

        async def exchange_share(node: tuple[str, int], indexes: Sequence[int]) -> None:
            packed = b"".join(commands[index][1] for index in indexes)
            answers = await self._lines(*node).exchange_all(packed, len(indexes), deadline, **how)
            for index, reply in zip(indexes, answers, strict=True):
                if isinstance(reply, AskError | TryAgainError):  # it moves, or has moved
                    key, again = commands[index]
                    try:
                        replies[index] = await self.exchange(key, again, deadline, **how)
                    except ResponseError as error:
                        replies[index] = error
                else:
                    self._stale = self._stale or _lost(reply)
                    replies[index] = reply

        done = await asyncio.gather(*map(exchange_share, shares, shares.values()), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                self._stale = True
                raise error
        return replies

    async def everywhere(self, packed: bytes, deadline: float) -> dict[str, Any]:
        await self._node_of(None, deadline)
        nodes = [(node.host, int(node.port)) for node in self._nodes.get_nodes_by_server_type("primary")]
        return {f"{host}:{port}": await self._lines(host, port).exchange(packed, deadline) for host, port in nodes}

    async def close(self) -> None:
        every = [*self._to.values(), *self._gone]
        self._to, self._gone, self._stale = {}, [], True
        for lines in every:
            await lines.close()
        await self._nodes.aclose()
        await self._nodes.aclose("startup_nodes")

    async def _node_of(self, key: Key, deadline: float) -> tuple[str, int]:
        try:
            if self._stale:
                await self._find_nodes(deadline)
            if key is None:
                node = self._nodes.default_node
            else:
                node = self._nodes.get_node_from_slot(key_slot(key if isinstance(key, bytes) else str(key).encode()))
        except (RedisError, RedisClusterException, OSError, KeyError) as error:
            self._stale = True
            raise NotSent from error
        return node.host, int(node.port)

    async def _find_nodes(self, deadline: float) -> None:
        async with asyncio.timeout_at(deadline), self._finding:
            if not self._stale:
                return  # somebody else has found them
            await self._opener.check_files()
            before = cancellations()
            try:
                await self._nodes.initialize()
            except RedisClusterException as error:
                if not (self._opener.asks and isinstance(error.__cause__, AuthenticationError)):
                    raise
                await self._nodes.initialize()
            notice_cancellation(before)
            self._stale = False
            # Until the next time, a firewall may drop these connections in silence, or their login expire.
            for node in (*self._nodes.startup_nodes.values(), *self._nodes.nodes_cache.values()):
                with suppress(RedisError, OSError):
                    await node.disconnect()
        known = {(node.host, int(node.port)) for node in self._nodes.nodes_cache.values()}
        for gone in self._to.keys() - known:
            self._gone.append(self._to.pop(gone))
            await self._gone[-1].forget_idle()

    def _lines(self, host: str, port: int) -> Multiplexer:
        if (lines := self._to.get((host, port))) is None:
            lines = Multiplexer(lambda: self._opener.open((host, port)), self._settle_seconds, self._timeout)
            self._to[host, port] = lines
        return lines


_ASKING = b"*1\r\n$6\r\nASKING\r\n"


def _finding(timeout: float) -> dict[str, Any]:
    """Options for asking Sentinels and nodes who is where: fast enough to ask another one if the first is silent."""
    return {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": timeout / 3,
        "socket_connect_timeout": timeout / 3,
        "driver_info": None,
    }


def _lost(reply: object) -> bool:
    """Whether an error, or one among the replies, means that the server is gone or not the one to talk to any more."""
    if isinstance(reply, ResponseError):
        return isinstance(reply, ReadOnlyError | ClusterDownError)
    return isinstance(reply, Exception)


def notice_cancellation(before: int) -> None:
    """Raise a cancellation that `asyncio.wait_for` of Python 3.11 swallowed inside the client library.

    Args:
        before: What `cancellations()` was when the library was called.
    """
    if cancellations() > before:
        raise asyncio.CancelledError
