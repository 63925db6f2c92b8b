"""A cluster behind a proxy that hides its nodes, and servers that are too old: what an address says of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from my_agent.sessions import RedisStore, SessionRef, SessionStoreError, SettingMissing, StoreRefused
from my_agent.sessions.records import Batch, Row
from proof.app.test_doctor import diagnosis
from proof.redis.fixtures import settings_for
from proof.redis.proxy import proxy
from proof.redis.servers import QUOTED, Server

KEY = SessionRef("ada", "s")


@pytest.fixture
def host(own_server: Server) -> Iterator[str]:
    """The host and login of a proxy in front of an empty server."""
    with own_server.client() as client:
        client.flushall()
    with proxy(own_server.port) as port:
        yield f":{QUOTED}@127.0.0.1:{port}"


async def failure(url: str) -> SessionStoreError:
    store = RedisStore(settings_for(url))
    try:
        with pytest.raises(SessionStoreError) as caught:
            await store.append(KEY, Batch.of([Row("x")]))
    finally:
        await store.close()
    return caught.value


async def test_the_address_for_it_works(host: str) -> None:
    async with RedisStore(settings_for(f"redis+proxy://{host}", session_ttl=100.0)) as store:
        for number in range(40):
            await store.append(SessionRef("ada", f"{number}"), Batch.of([Row("x")]))
        assert len((await store.list_sessions("ada")).sessions) == 40
        assert await store.delete_user("ada") == 40
        assert (await store.list_sessions()).sessions == []


async def test_other_addresses_name_it(host: str) -> None:
    for scheme in ("redis", "redis+cluster"):
        error = await failure(f"{scheme}://{host}")
        assert isinstance(error, SettingMissing)
        assert "redis+proxy://" in str(error)


async def test_the_doctor_names_it(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://{host}")
    check = (await diagnosis(code=1))["topology"]
    assert "redis+proxy://" in check["todo"]
    monkeypatch.setenv("REDIS_URL", f"redis+proxy://{host}")
    found = await diagnosis()
    assert [name for name, check in found.items() if check["state"] == "fail"] == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+proxy://u:planted@h/1", "only database 0"),
        ("redis+proxy://u:planted@h,i", "several hosts"),
    ],
)
def test_what_it_cannot_have_is_told(url: str, says: str) -> None:
    with pytest.raises(SettingMissing, match=says) as caught:
        _ = settings_for(url).where
    assert "planted" not in str(caught.value)


# ── Servers that are too old ────────────────────────────────────────────────


@asynccontextmanager
async def old_server(version: bytes | None) -> AsyncIterator[int]:
    """What Redis 6 answers to what opens a store, byte by byte. None: it does not tell its version."""
    info = b"-NOPERM no permissions\r\n"
    if version is not None:
        text = b"# Server\r\nredis_version:" + version + b"\r\n"
        info = b"$%d\r\n%s\r\n" % (len(text), text)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while header := await reader.readline():
            words = []
            for _ in range(int(header[1:])):
                await reader.readline()
                words.append((await reader.readline()).strip().upper())
            replies = {b"GET": b"$-1\r\n", b"SET": b"-ERR syntax error\r\n", b"INFO": info}
            writer.write(replies.get(words[0], b"+OK\r\n"))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


@pytest.mark.parametrize("version", [b"6.2.14", b"5.0.7", None])
async def test_a_server_that_is_too_old_is_one_sentence(version: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async with old_server(version) as port:
        error = await failure(f"redis://127.0.0.1:{port}")
        assert isinstance(error, StoreRefused)
        assert "Redis 7 or newer" in str(error)
        assert (version or b"older").decode() in str(error)
        if version:
            monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}")
            found = await diagnosis(code=1)
            assert found["server version"]["todo"] == "Upgrade it to Redis 7."
            assert list(found)[-1] == "server version"
