"""Scripts do not roll back: a call that the server refuses has changed nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from my_agent.sessions import RedisSettings, RedisStore, SessionRef, SessionStoreError, StoreRefused, StoreUnavailable
from my_agent.sessions.records import Batch, Content, Row, Turn, new_id
from my_agent.sessions.redis import store as redis_store
from my_agent.sessions.redis.checks import COMMANDS
from my_agent.sessions.redis.connection import RedisConnection
from my_agent.sessions.redis.keys import keys_of
from proof.redis import groups as redis_groups
from proof.redis.fixtures import settings_for
from proof.redis.servers import PASSWORD, Server, until

KEY = SessionRef("ada", "s")
KEYS = keys_of("agent", KEY)
LEASED, EMPTY, NEW = (SessionRef("ada", name) for name in ("leased", "empty", "new"))
TOKEN, OTHER = new_id(), new_id()
TURN = Turn("t", "paused", "{}", "r")
Snapshot = dict[bytes, tuple[object, bool]]


def batch(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


CALLS: dict[str, Callable[[RedisStore], Awaitable[object]]] = {
    "append": lambda store: store.append(KEY, batch("c")),
    "pop": lambda store: store.pop(KEY),
    "clear": lambda store: store.clear(KEY),
    "replace all": lambda store: store.replace_tail(KEY, None, batch("summary")),
    "replace tail": lambda store: store.replace_tail(KEY, ["b"], batch("x", "y")),
    "update": lambda store: store.update_session(KEY, title="t", metadata={"a": 1}),
    "rewrite": lambda store: store.rewrite(KEY, Content(None, {}, ["a", "b"]), Content(None, {"b": 2}, ["A", "B"])),
    "delete": lambda store: store.delete_session(KEY),
    "lease": lambda store: store.lease(KEY, OTHER, 60, limit=None, request_id="r"),
    "lease of a new one": lambda store: store.lease(NEW, OTHER, 60),
    "renew": lambda store: store.renew(LEASED, TOKEN, 60),
    "leased append": lambda store: store.append(LEASED, batch("c")._replace(lease=TOKEN, turn=TURN, release=True)),
    "release": lambda store: store.release(LEASED, TOKEN),
    "release of an empty one": lambda store: store.release(EMPTY, TOKEN),
    "change turn": lambda store: store.change_turn(LEASED, TURN, TURN._replace(status="done")),
    "clear turns": lambda store: store.clear(LEASED),
    "fork": lambda store: store.fork(KEY, NEW),
}


async def fill(store: RedisStore) -> None:
    """A session of the rows a and b, one that is leased and has a turn, and one that has nothing but its lease."""
    await store.append(KEY, batch("a", "b"))
    for ref in (LEASED, EMPTY):
        assert await store.lease(ref, TOKEN, 60) is not None
    await store.append(LEASED, batch("a")._replace(lease=TOKEN, turn=TURN))


def admin(server: Server) -> redis.Redis:
    return redis.Redis("127.0.0.1", server.port, password=PASSWORD)


def snapshot(server: Server) -> Snapshot:
    """Everything stored, byte for byte, and what will expire; but for the format, written when a store opens."""
    with admin(server) as client:
        keys = sorted(key for key in client.keys("*") if key != b"agent:format")
        return {key: (client.dump(key), client.pttl(key) > 0) for key in keys}


@pytest.fixture
async def store(own_server: Server, connection: RedisConnection) -> AsyncIterator[RedisStore]:
    """An open store with what `fill` puts in, on a server of its own."""
    async with RedisStore(settings_for(own_server.url, session_ttl=100.0, redis_timeout_seconds=2.0)) as store:
        await fill(store)
        yield store


async def changes_nothing_if_refused(server: Server, call: Awaitable[object]) -> SessionStoreError | None:
    before = snapshot(server)
    try:
        await call
    except SessionStoreError as refusal:
        assert snapshot(server) == before
        return refusal
    return None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("part", ["items", "info", "batches", "all_index", "user_index"])
async def test_a_key_of_another_app_in_the_way_changes_nothing(
    store: RedisStore, own_server: Server, part: str, call: str
) -> None:
    with admin(own_server) as client:
        for ref in (KEY, LEASED, EMPTY, NEW):
            client.set(getattr(keys_of("agent", ref), part), "of another app")
    refusal = await changes_nothing_if_refused(own_server, CALLS[call](store))
    assert refusal is None or "SESSION_KEY_PREFIX" in str(refusal)


@pytest.mark.parametrize("call", ["delete_user", "prune"])
@pytest.mark.parametrize("kind", ["one server", "cluster"])
async def test_one_session_with_a_key_of_another_app_keeps_no_other_from_being_deleted(
    own_server: Server, tmp_path: Path, kind: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "CHUNK", 2)
    with ExitStack() as stack:
        server = own_server
        if kind == "cluster":
            server = stack.enter_context(redis_groups.node_of_cluster(tmp_path / "node"))
            stack.enter_context(server.client()).execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await asyncio.to_thread(
                until, lambda: redis_groups.cluster_info(server)["cluster_state"] == "ok", "the cluster serves"
            )
        with server.client() as client:
            client.flushall()
        url = server.url.replace("redis://", "redis+cluster://").removesuffix("/0") if kind == "cluster" else server.url
        async with RedisStore(settings_for(url)) as store:
            refs = [SessionRef("ada", f"s{number}") for number in range(7)]
            for ref in refs:
                await store.append(ref, batch("a"))
            foreign = [keys_of("agent", ref).info for ref in (refs[0], refs[3])]
            with admin(server) as client:
                for key in foreign:
                    client.set(key, "of another app")
            later = datetime.now(UTC) + timedelta(minutes=5)
            act = store.delete_user("ada") if call == "delete_user" else store.prune(later)
            with pytest.raises(StoreRefused, match=r"2 of 7 sessions stay\. .*SESSION_KEY_PREFIX"):
                await act
            with admin(server) as client:
                kept = {key.decode() for key in client.keys("agent:*:info")}
                assert kept == {*foreign}
                assert [client.get(key) for key in foreign] == [b"of another app"] * 2
                assert client.zcard("agent:sessions") == 2
                for key in foreign:
                    client.delete(key)
            # Their rows are still listed, and can be deleted now.
            assert await (store.delete_user("ada") if call == "delete_user" else store.prune(later)) in (0, 2)
            with admin(server) as client:
                assert client.keys("agent:*:items") == []


@pytest.mark.parametrize("command", [command.split()[0].lower() for command in COMMANDS])
@pytest.mark.parametrize("ttl", [None, 100.0])
async def test_a_user_who_lacks_one_command_changes_nothing_or_all(
    store: RedisStore, own_server: Server, command: str, ttl: float | None
) -> None:
    with admin(own_server) as client:
        client.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">x", "~agent:*", "+@all", f"-{command}")
    settings = settings_for(f"redis://poor:x@127.0.0.1:{own_server.port}/0", session_ttl=ttl)
    poor = RedisStore(settings)
    for call in CALLS.values():
        with admin(own_server) as client:
            client.flushall()
        await fill(store)
        refusal = await changes_nothing_if_refused(own_server, call(poor))
        assert refusal is None or (isinstance(refusal, StoreRefused) and "Grant the rights" in str(refusal)), refusal
        assert refusal is None or "user_script" not in str(refusal)
    await poor.close()


@pytest.mark.parametrize(
    ("option", "value", "kind"), [("maxmemory", "1", StoreRefused), ("min-replicas-to-write", "1", StoreUnavailable)]
)
async def test_a_server_that_takes_no_writes_has_changed_nothing(
    store: RedisStore, own_server: Server, option: str, value: str, kind: type[SessionStoreError]
) -> None:
    refused = []
    for name, call in CALLS.items():
        with admin(own_server) as client:
            before = client.config_get(option)[option]
            client.config_set(option, value)
            try:
                refusal = await changes_nothing_if_refused(own_server, call(store))
            finally:
                client.config_set(option, before)
        if refusal is not None:
            assert isinstance(refusal, kind), refusal
            refused.append(name)
    assert "append" in refused


@pytest.mark.parametrize("field", ["created_at", "updated_at", "item_count", "ttl", "tidied"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_damaged_field_of_a_session_changes_nothing_or_is_mended(
    store: RedisStore, own_server: Server, call: str, field: str
) -> None:
    with admin(own_server) as client:
        client.hset(KEYS.info, field, "nonsense")
    assert await changes_nothing_if_refused(own_server, CALLS[call](store)) is None
    if call in ("append", "pop", "clear", "replace all", "replace tail") and field != "tidied":
        with admin(own_server) as client:
            assert client.hget(KEYS.info, field) != b"nonsense"


async def test_a_batch_of_many_rows_is_stored_whole(store: RedisStore) -> None:
    await store.append(KEY, batch(*(str(n) for n in range(20_000))))
    assert await store.replace_tail(KEY, [str(n) for n in range(10_000, 20_000)], batch(*(["x"] * 20_000)))
    assert len(await store.tail(KEY, None)) == 2 + 10_000 + 20_000


@pytest.mark.parametrize("ttl", ["1e16", "inf", "nan", "0.0001", "-1", "315360001"])
def test_a_time_to_live_out_of_bounds_is_refused(ttl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_TTL", ttl)
    with pytest.raises(ValueError, match=r"0 \(never\), or between 1 second and 10 years"):
        RedisSettings()


@pytest.mark.parametrize("ttl", ["", "0", "1", "86400", "315360000"])
async def test_a_time_to_live_within_bounds_is_taken(
    own_server: Server, ttl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TTL", ttl)
    async with RedisStore(RedisSettings(redis_url=SecretStr(own_server.url))) as store:
        await store.append(KEY, batch("c"))
    with admin(own_server) as client:
        left = client.pttl(KEYS.info)
    expected = float(ttl or 0) * 1000
    assert (left == -1) if not expected else (expected - 1000 <= left <= expected)
