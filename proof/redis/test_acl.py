"""The users of redis/users.acl: what the app logs in as may do what the app does, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from my_agent.sessions import RedisStore, SessionRef, StoreRefused
from my_agent.sessions.records import Content, Turn, new_id
from my_agent.sessions.redis.checks import COMMANDS
from proof.redis import servers as redis_servers
from proof.redis.servers import Server
from proof.redis.test_topologies import KEY, batch, failure, opened


@pytest.fixture
def confining(tmp_path: Path) -> Iterator[Server]:
    """A server with the users of redis/users.acl."""
    with redis_servers.with_users(tmp_path / "acl") as server:
        yield server


def as_agent(server: Server) -> redis.Redis:
    return redis.Redis("127.0.0.1", server.port, username="agent", password="change-me", decode_responses=True)


async def use_everything(store: RedisStore) -> None:
    """Call every method of the store, with what makes it send every command that it has."""
    await store.append(KEY, batch("a", "b"))
    await store.append(SessionRef("ada", "t"), batch("c"))
    assert await store.tail(KEY, 1) == ["b"]
    assert await store.pop(KEY) == "b"
    assert await store.replace_tail(KEY, ["a"], batch("x"))
    assert await store.update_session(KEY, title="T", metadata={"a": 1})
    assert await store.find_session(KEY) is not None
    assert len((await store.list_sessions("ada")).sessions) == 1
    rows = await store.tail(KEY, None)
    assert await store.rewrite(KEY, Content("T", {"a": 1}, rows), Content("U", {}, [row.upper() for row in rows]))
    assert await store.canary(None, "a") == "a"
    assert await store.canary("a", None) is None
    await use_turns(store)
    await store.clear(KEY)
    assert await store.delete_session(KEY)
    assert await store.delete_user("ada") == 1
    await store.append(KEY, batch("a"))
    assert await store.prune(datetime.now(UTC)) == 1


async def use_turns(store: RedisStore) -> None:
    token, turn = new_id(), Turn("t", "paused", "{}", "r")
    assert await store.lease(KEY, token, 60, limit=None, request_id="r") is not None
    assert await store.renew(KEY, token, 60)
    await store.append(KEY, batch("d")._replace(lease=token, turn=turn, release=True))
    assert await store.change_turn(KEY, turn, turn._replace(status="done"))
    assert [found.status for found in await store.turns(KEY)] == ["done"]
    assert (await store.page(KEY)).rows[-1] == "d"
    copy = SessionRef("ada", "copy")
    assert await store.fork(KEY, copy)
    assert await store.delete_session(copy)
    assert await store.lease(copy, token, 60) is not None
    assert await store.release(copy, token)
    assert await store.find_session(copy) is None


async def test_the_user_may_do_what_the_store_does_and_nothing_else(confining: Server) -> None:
    url = f"redis://agent:change-me@127.0.0.1:{confining.port}"
    with confining.client() as client:
        client.config_resetstat()
    for ttl in (None, 60.0):
        async with opened(f"{url}/1", session_ttl=ttl) as store:
            await use_everything(store)
            await asyncio.sleep(1.1 if ttl is None else 0)  # for what has to expire
            listed = f"{store.settings.session_key_prefix}:sessions"
            with confining.client() as client:
                client.select(1)
                client.zadd(listed, {"/gone": 1})
            await store.list_sessions()
            await store.append(KEY, batch("a session that will not expire any more, or will from now on"))
    async with opened(f"{url}/1") as store:
        await store.append(KEY, batch("b"))
    with confining.client() as client:
        used = {name.removeprefix("cmdstat_") for name, stat in client.info("commandstats").items() if stat["calls"]}
        (rules,) = [line for line in client.acl_list() if line.startswith("user agent ")]
    allowed = {word[1:] for word in rules.split() if word.startswith("+")}
    # Of the doctor, of clusters, and of the test's own client.
    others = {"ping", "info", "cluster|slots", "cluster|info", "asking"}
    assert allowed - others == used - {"auth", "hello", "client|setinfo", "config|resetstat", "acl|list", "info"}
    assert {name.split()[0].lower() for name in COMMANDS} == allowed - others - {"eval", "evalsha", "select"}


FORBIDDEN = [
    "GET other:x",
    "SET other:x 1",
    "DEL other:x",
    "LRANGE agents:x 0 1",
    "KEYS *",
    "SCAN 0",
    "DBSIZE",
    "RANDOMKEY",
    "FLUSHDB",
    "FLUSHALL",
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "ACL LIST",
    "ACL SETUSER agent +@all",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "SCRIPT FLUSH",
    "FUNCTION FLUSH",
    "MONITOR",
    "SAVE",
    "SHUTDOWN NOSAVE",
    "REPLICAOF 127.0.0.1 1",
    "CLUSTER RESET",
    "RENAME agent:x other:x",
    "COPY agent:x other:x",
    "SORT agent:x STORE other:x",
    "DUMP agent:x",
    "MIGRATE 127.0.0.1 1 agent:x 0 1",
    "PUBLISH channel x",
    "SUBSCRIBE channel",
    "MULTI",
]


def test_the_user_may_do_nothing_else_and_nobody_else_may_do_anything(confining: Server) -> None:
    with confining.client() as client:
        client.set("other:x", "of another app")
    with as_agent(confining) as agent:
        assert agent.set("agent:x", 1)
        for command in FORBIDDEN:
            with pytest.raises(redis.exceptions.NoPermissionError):
                agent.execute_command(*command.split())
        for script in ("redis.call('GET', 'other:x')", "redis.call('FLUSHALL')", "redis.call('DBSIZE')"):
            with pytest.raises(redis.exceptions.ResponseError, match=r"permission|can't access|can't run"):
                agent.eval(f"return {script}", 1, "agent:x")
        with pytest.raises(redis.exceptions.NoPermissionError):
            agent.eval("return 1", 1, "other:x")
    nobody = redis.Redis("127.0.0.1", confining.port, retry=Retry(NoBackoff(), 0))
    with nobody, pytest.raises(redis.exceptions.AuthenticationError):
        nobody.ping()
    with confining.client() as client:
        assert client.get("other:x") == "of another app"


async def test_another_prefix_is_refused_with_what_to_do(confining: Server) -> None:
    error = await failure(f"redis://agent:change-me@127.0.0.1:{confining.port}", session_key_prefix="other")
    assert isinstance(error, StoreRefused)
    assert "Grant the rights" in str(error)
