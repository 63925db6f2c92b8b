"""Every failure of the server or the way to it says what to do, and whether anything may have been done."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from redis.asyncio.connection import DefaultParser

from my_agent.sessions.errors import SessionStoreError, SettingMissing, StoreRefused, StoreUnavailable
from my_agent.sessions.redis.address import parse_address
from my_agent.sessions.redis.connection import RedisConnection, Script
from my_agent.sessions.redis.errors import translate
from proof.redis.fixtures import settings_for
from proof.redis.servers import QUOTED, Server


async def failure(url: str, **more: object) -> SessionStoreError:
    """What a command to this address raises."""
    connection = RedisConnection(settings_for(url, **more))
    try:
        with pytest.raises(SessionStoreError) as caught:
            await connection.call("GET", "agent:x")
    finally:
        await connection.close()
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:planted@127.0.0.1:1",
        "rediss://u:planted@127.0.0.1:1",
        "redis+cluster://u:planted@127.0.0.1:1,127.0.0.1:2",
        "redis+sentinel://u:planted@127.0.0.1:1?service=main",
        "unix://u:planted@/no/such/socket",
    ],
)
async def test_a_server_that_is_down_is_unavailable_and_was_not_asked(url: str) -> None:
    error = await failure(url)
    assert isinstance(error, StoreUnavailable)
    assert not error.maybe_applied
    assert parse_address(url).where in str(error)
    assert "REDIS_URL right" in str(error)
    assert "planted" not in str(error)


async def test_a_silent_server_is_given_up() -> None:
    silence = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silence.wait()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        login = await failure(f"redis://:planted@127.0.0.1:{port}", redis_timeout_seconds=0.1)
        command = await failure(f"redis://127.0.0.1:{port}", redis_timeout_seconds=0.1)
        silence.set()
    assert (type(login), type(command)) == (StoreUnavailable, StoreUnavailable)
    assert "within 0.1 s (REDIS_TIMEOUT_SECONDS)" in str(login)
    assert [cast(StoreUnavailable, error).maybe_applied for error in (login, command)] == [False, True]


async def test_what_is_no_redis_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        error = await failure(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    assert isinstance(error, SettingMissing)
    assert "is not a Redis server" in str(error)


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("redis://:planted@{host}", StoreRefused, "refused the login. Check user and password"),
        ("redis://planted:planted@{host}", StoreRefused, "refused the login"),
        ("redis://{host}", StoreRefused, "refused the login"),
        ("redis://:{password}@{host}/99", StoreRefused, "database does not exist"),
        ("redis+cluster://:{password}@{host}", SettingMissing, "Write redis:// in REDIS_URL"),
        ("redis+cluster://:planted@{host}", StoreRefused, "refused the login"),
        ("redis+sentinel://{host}?service=main&sentinel_password={password}", SettingMissing, "no Sentinel answers"),
    ],
)
async def test_a_server_of_another_kind_or_another_login_is_named(
    own_server: Server, url: str, kind: type[SessionStoreError], says: str
) -> None:
    error = await failure(url.format(host=f"127.0.0.1:{own_server.port}", password=QUOTED))
    assert isinstance(error, kind)
    assert says in str(error)
    assert "planted" not in str(error)


async def test_too_many_clients_are_told(own_server: Server) -> None:
    with own_server.client() as client:
        client.config_set("maxclients", 1)
        try:
            error = await failure(own_server.url)
        finally:
            client.config_set("maxclients", 1000)
    assert isinstance(error, StoreUnavailable)
    assert "aise its maxclients" in str(error)
    assert not error.maybe_applied


async def test_a_full_server_is_told(own_server: Server, connection: RedisConnection) -> None:
    with own_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreRefused, match=r"no memory left; nothing was stored.*SESSION_TTL"):
                await connection.evaluate(Script.of("return redis.call('RPUSH', KEYS[1], 'x')"), ["a"], [])
        finally:
            client.config_set("maxmemory", 0)
    assert await connection.call("LLEN", "a") == 0


async def test_what_the_server_quotes_is_not_repeated(connection: RedisConnection) -> None:
    with pytest.raises(SessionStoreError, match="refused the command: unknown command") as caught:
        await connection.call("NOSUCH", "planted")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable, "loading the dataset"),
        ("MISCONF Redis is configured to save RDB snapshots, but", StoreRefused, "cannot write to its disk"),
        ("READONLY You can't write against a read only replica.", StoreUnavailable, "read-only replica"),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable, "Not enough good replicas"),
        ("BUSY Redis is busy running a script.", StoreUnavailable, "busy running a script"),
        ("CLUSTERDOWN The cluster is down", StoreUnavailable, "The cluster is down"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreUnavailable, "during rehashing"),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailable, "Link with MASTER"),
        ("MOVED 1 127.0.0.1:7001", SettingMissing, "redis+cluster://"),
        ("CROSSSLOT Keys in request don't hash to the same slot", SettingMissing, "redis+proxy://"),
        ("ERR unknown command 'CLUSTER', with args beginning with: 'SLOTS'", SettingMissing, "redis+proxy://"),
        ("ERR SELECT is not allowed in cluster mode", SettingMissing, "redis+cluster://"),
        ("NOPERM User app has no permissions to run the 'set' command", StoreRefused, "docs/database.md"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", StoreRefused, "SESSION_KEY_PREFIX"),
        ("DENIED Redis is running in protected mode because", StoreRefused, "protected mode"),
        ("ERR something new", SessionStoreError, "refused the command: something new"),
    ],
)
def test_every_refusal_says_what_to_do_and_that_nothing_was_done(
    reply: str, kind: type[SessionStoreError], says: str
) -> None:
    # As redis-py reads what a server wrote.
    read = DefaultParser.parse_error(reply)  # type: ignore[no-untyped-call]
    error = translate(read, settings_for("redis://:planted@h"), sent=True)
    assert type(error) is kind
    assert says in str(error)
    assert "h:6379/0" in str(error)
    assert not getattr(error, "maybe_applied", False)
