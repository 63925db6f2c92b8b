"""What is Redis' own: keys, scripts, time to live, indexes, the friendly constructor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from my_agent.sessions import (
    RedisSession,
    RedisSettings,
    RedisStore,
    SchemaOutdated,
    SessionRef,
    SessionStoreError,
    SettingMissing,
    StoreRefused,
    StoreUnavailable,
)
from my_agent.sessions.records import Batch, Row
from my_agent.sessions.redis.keys import keys_of, microseconds, session_of, time_of
from proof.redis.fixtures import TOPOLOGY, settings_for
from proof.redis.servers import PASSWORD, Started, one
from proof.support.helpers import texts, user
from proof.support.lost import check_writes_are_stored_once
from proof.support.relay import Relay

KEY = SessionRef("", "s")
CLUSTER = TOPOLOGY in ("cluster", "proxy")
one_server = pytest.mark.skipif(TOPOLOGY != "", reason="for one server alone: its bytes are looked at on the way")


def batch(*contents: str, title: str | None = None) -> Batch:
    return Batch.of([Row(content) for content in contents], title)


def ask(servers: Started, *command: object) -> list[Any]:
    """What each server answers."""
    answers = []
    for server in servers.servers:
        with server.client() as client:
            answers.append(client.execute_command(*command))
    return answers


def stored_keys(servers: Started) -> set[str]:
    return {key for keys in ask(servers, "KEYS", "*") for key in keys}


async def listed(store: RedisStore, user_id: str | None = None) -> list[str]:
    return [info.session_id for info in (await store.list_sessions(user_id)).sessions]


@pytest.fixture
async def relay(servers: Started) -> AsyncIterator[Relay]:
    parts = urlsplit(servers.url.split(",")[0])
    async with Relay("127.0.0.1", parts.port or 0).running() as relay:
        yield relay


@pytest.fixture
async def relayed(relay: Relay, servers: Started) -> AsyncIterator[RedisStore]:
    """An open store whose connections go through the relay."""
    store = await RedisStore(settings_for(relay.url(servers.url)))
    yield store
    await store.close()


# ── Round trips and lost answers ────────────────────────────────────────────


@one_server
async def test_every_operation_is_one_round_trip(relayed: RedisStore, relay: Relay) -> None:
    session = relayed.session("s")

    async def operations() -> AsyncIterator[tuple[str, Awaitable[object]]]:
        yield "append", session.add_items([user("a"), user("b")])
        yield "tail", session.get_items()
        yield "tail 1", session.get_items(1)
        yield "pop", session.pop_item()
        yield "replace", relayed.replace_tail(KEY, ["?"], batch("c"))
        yield "find", relayed.find_session(KEY)
        yield "update", relayed.update_session(KEY, title="t")
        yield "clear", session.clear_session()
        yield "delete", relayed.delete_session(KEY)
        yield "ping", relayed.ping()

    async for _, operation in operations():  # the first time, the server learns the scripts
        await operation
    counts = {}
    async for name, operation in operations():
        before = relay.round_trips
        await operation
        counts[name] = relay.round_trips - before
    assert set(counts.values()) == {1}, counts
    await session.add_items([user("a")])
    before = relay.round_trips
    await relayed.list_sessions(limit=20)
    assert relay.round_trips - before == 2  # the index, then all sessions at once


@one_server
@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_write_whose_message_is_lost_is_stored_once(relayed: RedisStore, relay: Relay, lost: str) -> None:
    await check_writes_are_stored_once(relayed, relay, lost)


@one_server
async def test_a_pop_whose_answer_is_lost_is_not_repeated(relayed: RedisStore, relay: Relay) -> None:
    session = relayed.session("s")
    await session.add_items([user("a"), user("b"), user("c")])
    await session.pop_item()  # so that the server knows the script, and the lost answer is not that it does not
    relay.answers_to_lose = 1
    with pytest.raises(StoreUnavailable) as caught:
        await session.pop_item()
    assert caught.value.maybe_applied
    assert texts(await session.get_items()) == ["a"]


async def test_a_batch_repeated_much_later_stays_away(store: RedisStore) -> None:
    repeated = batch("x", "y")
    for remove in (store.pop, store.clear, store.delete_session):
        await store.append(KEY, repeated)
        assert await store.tail(KEY, None) in (["x", "y"], [])
        await remove(KEY)
        for _ in range(100):
            await store.append(KEY, batch("z"))
        await store.append(KEY, repeated)
        assert (await store.tail(KEY, None)).count("y") == 0
        await store.clear(KEY)


async def test_scripts_that_the_server_forgot_are_sent_again(store: RedisStore, servers: Started) -> None:
    session = store.session("s")
    for text in ("a", "b", "c"):
        ask(servers, "SCRIPT", "FLUSH")
        await session.add_items([user(text)])
    ask(servers, "SCRIPT", "FLUSH")
    await session.pop_item()
    assert texts(await session.get_items()) == ["a", "b"]


# ── Keys ────────────────────────────────────────────────────────────────────

STRANGE = ["a/b", "a", "{x}", "}{", "%2F", "%", "/", " ", "é😀", "a:items", "\n", "}:items"]


async def test_strange_ids_never_meet(store: RedisStore, servers: Started) -> None:
    keys = [SessionRef(user_id, session_id) for user_id in ["", *STRANGE] for session_id in STRANGE]
    for key in keys:
        await store.append(key, batch(repr(key)))
    for key in keys:
        assert await store.tail(key, None) == [repr(key)]
        assert session_of(keys_of("agent", key).member) == key
    for user_id in STRANGE:
        assert sorted(await listed(store, user_id)) == sorted(STRANGE)
        assert await store.delete_user(user_id) == len(STRANGE)
    assert sorted(await listed(store)) == sorted(STRANGE)


async def test_all_keys_of_a_session_live_in_one_slot(store: RedisStore, servers: Started) -> None:
    ref = SessionRef("a{da}", "s/{1}")
    await store.append(ref, batch("x"))
    keys = [name for name in stored_keys(servers) if name.endswith((":items", ":info", ":batches"))]
    assert len(keys) == 3
    slots = {tuple(ask(servers, "CLUSTER", "KEYSLOT", name)) for name in keys} if CLUSTER else {(1,)}
    assert len(slots) == 1
    assert {name.rpartition(":")[0] for name in keys} == {"agent:{a%7Bda%7D/s%2F%7B1%7D}"}


async def test_apps_with_different_prefixes_do_not_see_each_other(store: RedisStore, other_store: RedisStore) -> None:
    await store.append(KEY, batch("ours"))
    await other_store.append(KEY, batch("theirs"))
    assert await store.tail(KEY, None) == ["ours"]
    assert await store.delete_user("") == 1
    assert await listed(other_store) == ["s"]


@pytest.mark.parametrize("prefix", ["", "a{b}", "a b", "x" * 101])
def test_a_prefix_that_would_break_keys_is_refused(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_KEY_PREFIX", prefix)
    if prefix == "":
        assert RedisSettings().session_key_prefix == "agent"  # empty is unset
    else:
        with pytest.raises(ValueError, match="session_key_prefix"):
            RedisSettings()


def test_times_are_kept_to_the_microsecond() -> None:
    for time in (datetime.now(UTC), datetime(2255, 1, 1, 0, 0, 0, 999999, UTC)):
        assert time_of(microseconds(time)) == time
        assert int(float(microseconds(time))) == microseconds(time)


# ── Time to live ────────────────────────────────────────────────────────────


async def ttls(servers: Started) -> dict[str, int]:
    """Time to live of the session's list and hash, in milliseconds."""
    found = {}
    for server in servers.servers:
        with server.client() as client:
            for key in client.keys("*"):
                if key.endswith((":items", ":info")):
                    found[key.rpartition(":")[2]] = client.pttl(key)
    return found


async def test_a_session_expires_as_a_whole_and_later_with_every_write(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=100.0)) as store:
        for write in (
            store.append(KEY, batch("a", "b", "c")),
            store.pop(KEY),
            store.replace_tail(KEY, ["b"], batch("d")),
            store.append(KEY, batch("e")),
        ):
            for server in servers.servers:
                with server.client() as client:
                    for key in client.keys("*:i*"):
                        client.pexpire(key, 50_000)
            await write
            left = await ttls(servers)
            assert left.keys() == {"items", "info"}
            assert all(90_000 < milliseconds <= 100_000 for milliseconds in left.values()), left
        await store.tail(KEY, None)
        await store.update_session(KEY, title="t")
        assert all(milliseconds <= 100_000 for milliseconds in (await ttls(servers)).values())


async def test_an_expired_session_is_gone_and_may_come_back(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=0.05)) as store:
        await store.append(KEY, batch("a", title="Old"))
        async with asyncio.timeout(5):
            while await store.find_session(KEY):  # noqa: ASYNC110 - the server sends no event
                await asyncio.sleep(0.01)
        assert await store.tail(KEY, None) == []
        assert await listed(store) == []
        await store.append(KEY, batch("b"))
        found = await store.find_session(KEY)
        assert found is not None
        assert (found.title, found.item_count) == (None, 1)


async def test_without_a_time_to_live_a_session_stays_for_good(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url, session_ttl=100.0)) as store:
        await store.append(KEY, batch("a"))
    async with RedisStore(settings_for(servers.url)) as store:
        await store.append(KEY, batch("b"))
        assert set((await ttls(servers)).values()) == {-1}


# ── Indexes ─────────────────────────────────────────────────────────────────


def vanish(servers: Started, session_id: str) -> None:
    """As if the session had expired an hour after it was last written to."""
    keys = keys_of("agent", SessionRef("ada", session_id))
    for server in servers.servers:
        with server.client() as client:
            if client.keys(keys.info.replace("{", "*").replace("}", "*")):
                client.delete(keys.info)
                client.delete(keys.items)
            for index in client.keys("agent:sessions*"):
                score = client.zscore(index, keys.member)
                if CLUSTER and score is not None:  # what is younger may be of a write on its way
                    client.zadd(index, {keys.member: score - 3_600_000_000})


async def index_size(servers: Started) -> int:
    """Entries of both indexes."""
    return sum(
        client.zcard(key)
        for server in servers.servers
        for client in [server.client()]
        for key in client.keys("agent:sessions*")
    )


@pytest.mark.parametrize("tidy", ["list", "list of the user", "prune", "delete_user"])
async def test_entries_of_expired_sessions_go_when_they_are_met(store: RedisStore, servers: Started, tidy: str) -> None:
    for number in range(5):
        await store.append(SessionRef("ada", str(number)), batch("x"))
    for number in (0, 2, 4):
        vanish(servers, str(number))
    assert await index_size(servers) == 10
    match tidy:
        case "list":
            assert await listed(store) == ["3", "1"]
        case "list of the user":
            assert await listed(store, "ada") == ["3", "1"]
        case "prune":
            assert await store.prune(datetime.now(UTC) + timedelta(hours=1)) == 2
        case "delete_user":
            assert await store.delete_user("ada") == 2
    assert await index_size(servers) == (4 if tidy.startswith("list") else 0)


async def test_a_page_is_full_although_sessions_expired(store: RedisStore, servers: Started) -> None:
    for number in range(30):
        await store.append(SessionRef("ada", str(number)), batch("x"))
    for number in range(5, 30):
        vanish(servers, str(number))
    first = await store.list_sessions("ada", limit=3)
    assert [info.session_id for info in first.sessions] == ["4", "3", "2"]
    rest = await store.list_sessions("ada", limit=3, cursor=first.next_cursor)
    assert ([info.session_id for info in rest.sessions], rest.next_cursor) == (["1", "0"], None)


async def test_many_sessions_of_one_microsecond_are_all_listed(store: RedisStore) -> None:
    for number in range(40):
        await store.append(SessionRef("ada", str(number)), batch("x"))
        keys = keys_of("agent", SessionRef("ada", str(number)))
        for index in (keys.all_index, keys.user_index):
            await (await store._ready()).call("ZADD", index, 1_800_000_000_000_000, keys.member)
    found: list[str] = []
    cursor = None
    for _ in range(20):
        page = await store.list_sessions("ada", limit=3, cursor=cursor)
        found += [info.session_id for info in page.sessions]
        if (cursor := page.next_cursor) is None:
            break
    assert sorted(found, key=int) == [str(number) for number in range(40)]


async def test_a_session_that_came_back_stays_listed(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and the removal of its entry."""
    from my_agent.sessions.redis import index as redis_index

    await store.append(KEY, batch("x"))
    await (await store._ready()).call("DEL", keys_of("agent", KEY).info)
    tidy = redis_index.tidy

    async def late(*arguments: Any) -> Any:
        await store.append(KEY, batch("back"))
        return await tidy(*arguments)

    monkeypatch.setattr(redis_index, "tidy", late)
    assert await listed(store) == []
    monkeypatch.undo()
    assert await listed(store) == ["s"]


async def test_pruning_spares_what_was_written_to_since(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old", "busy"):
        await store.append(SessionRef("", name), batch("x"))
    cut = datetime.now(UTC)
    delete = store._delete

    async def late(*arguments: Any) -> int:
        await store.append(SessionRef("", "busy"), batch("y"))
        return await delete(*arguments)

    monkeypatch.setattr(store, "_delete", late)
    assert await store.prune(cut) == 1
    assert await store.prune(cut) == 0
    assert await listed(store) == ["busy"]


# ── Limits of the server ────────────────────────────────────────────────────


async def test_a_full_memory_is_an_error_that_leaves_history_alone(tmp_path: Path) -> None:
    with one(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        async with RedisStore(settings_for(server.url)) as store:
            session = store.session("s")
            await session.add_items([user("before")])

            async def fill() -> None:
                for number in range(100):
                    await session.add_items([user(f"{number}" + "x" * 500_000)])

            with pytest.raises(StoreRefused, match="memory"):
                await fill()
            stored = await session.get_items()
            found = await store.find_session(KEY)
            assert found is not None
            assert found.item_count == len(stored)
            assert await session.pop_item() == stored[-1]
        async with RedisStore(settings_for(server.url)) as store:
            assert await store.session("s").get_items() == stored[:-1]


async def test_two_connections_to_each_server_carry_all_calls(servers: Started) -> None:
    async with RedisStore(settings_for(servers.url)) as store:
        sessions = [store.session(str(number)) for number in range(200)]
        await asyncio.gather(*(session.add_items([user("x")]) for session in sessions))
        for server in servers.servers:
            with server.client() as client:
                # Ours, the one that asks, and in a cluster one that looked for slots.
                assert len(client.client_list(_type="normal")) <= 2 + 2


async def test_data_of_a_newer_program_are_refused(store: RedisStore, servers: Started) -> None:
    await (await store._ready()).call("SET", "agent:format", "2")
    with pytest.raises(SchemaOutdated, match=r"format 2, newer than this program knows \(1\)"):
        await RedisStore(settings_for(servers.url))


# ── Loops, secrets, the friendly constructor ────────────────────────────────


def test_a_store_serves_one_loop_after_another(settings: RedisSettings) -> None:
    store = RedisStore(settings)

    async def use(text: str) -> list[str]:
        await store.append(KEY, batch(text))
        rows = await store.tail(KEY, None)
        await store.close()
        return rows

    assert asyncio.run(use("a")) == ["a"]
    assert asyncio.run(use("b")) == ["a", "b"]


async def test_a_store_in_use_on_another_loop_is_refused(store: RedisStore) -> None:
    await store.ping()
    with pytest.raises(SessionStoreError, match="on another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(store.ping()))


async def test_no_secret_is_shown(servers: Started) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wrong = f"redis://someone:planted@127.0.0.1:{servers.servers[0].port}/0"
    for url in (wrong, f"redis://someone:planted@127.0.0.1:{port}/0", "redis://u:planted@h:port/0", "planted"):
        with pytest.raises(SessionStoreError) as caught:
            await RedisSession("s", redis_url=url, settings=RedisSettings(session_retry_seconds=0)).get_items()
        assert "planted" not in repr(caught.value) + str(caught.value) + repr(caught.value.__cause__)
    assert PASSWORD not in repr(settings_for(servers.url))


async def test_the_friendly_constructor_shares_a_store(servers: Started) -> None:
    first = RedisSession(session_id="my-session-id", redis_url=servers.url)
    second = RedisSession("my-session-id", servers.url, user_id="ada", session_settings={"limit": 1})
    assert first.store is second.store
    await first.add_items([user("Hi")])
    await second.add_items([user("a"), user("b")])
    assert texts(await first.get_items()) == ["Hi"]
    assert texts(await second.get_items()) == ["b"]
    await first.close()
    assert texts(await second.get_items()) == ["b"]
    await second.close()


def test_without_an_address_it_says_what_is_missing() -> None:
    with pytest.raises(SettingMissing, match="REDIS_URL is not set"):
        RedisSession("s")
