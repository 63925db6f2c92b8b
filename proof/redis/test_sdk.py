"""What the SDK's own RedisSession has stored comes over exactly, once, and its keys are only read."""

from __future__ import annotations

from typing import Any

import pytest
from agents.extensions.memory import RedisSession

from my_agent.sessions import SessionRef, SessionStore
from proof.redis.servers import Started
from proof.support.command import Done, invoke
from proof.support.helpers import anything, texts, user

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:redis")


@pytest.fixture(autouse=True)
def configured(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, servers: Started) -> str:
    """The address; everything lives on the test's server, in other keys than ours."""
    if "+" in servers.url.partition("://")[0] or "rediss" in servers.url:
        pytest.skip("for one server alone: the SDK's class is given a plain address here")
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)
    return servers.url


async def put(url: str, session_id: str, *items: Any, **how: Any) -> None:
    """Store items as an app does that uses the SDK's session."""
    session = RedisSession.from_url(session_id, url=url, **how)
    await session.add_items(list(items))
    await session.close()


async def import_from(url: str, *options: str) -> Done:
    return await invoke("sessions", "import", "--from", url, *options)


async def test_every_text_comes_over_exactly_once_and_in_order(
    store: SessionStore, configured: str, servers: Started
) -> None:
    difficult = [user("NUL \0, half a pair \ud83d, 😀"), anything(z=-0.0, big=2**70, a=float("nan"))]
    await put(configured, "#a:b{c}*", *difficult)
    await put(configured, "#a:b{c}*", user("last"))
    key = "agents:session:#a:b{c}*:messages"
    with servers.servers[0].client() as client:
        for number in range(600):
            client.rpush(f"agents:session:{number}:messages", '{"role":"user","content":"x"}')
        stored, keys = client.lrange(key, 0, -1), client.keys("agents:session:*")
    done = await import_from(configured, "--user", "ada")
    assert (done.code, done.err) == (0, "Done: 601 imported (603 items).\n")
    assert await store.tail(SessionRef("ada", "#a:b{c}*"), None) == stored
    newest = (await store.list_sessions(limit=1)).sessions[0]
    assert newest.session_id == "#a:b{c}*"  # the only one whose time is known was written last
    assert (await import_from(configured, "--user", "ada")).err == "Done: 601 already there (603 items).\n"
    with servers.servers[0].client() as client:
        assert client.lrange(key, 0, -1) == stored
        assert sorted(client.keys("agents:session:*")) == sorted(keys)


async def test_another_prefix_is_found_and_nothing_else(store: SessionStore, configured: str) -> None:
    await put(configured, "s", user("1"), key_prefix="a[b]*")
    await put(configured, "t", user("1"), key_prefix="ab")
    await put(configured, "u", user("1"))
    done = await import_from(f"{configured}?key_prefix=a[b]*")
    assert done.err == "Done: 1 imported (1 item).\n"
    assert texts(await store.session("s").get_items()) == ["1"]


async def test_unreadable_rows_are_named_and_all_others_come(
    store: SessionStore, configured: str, servers: Started
) -> None:
    await put(configured, "s", *(user(str(number)) for number in range(4)))
    with servers.servers[0].client() as client:
        client.lset("agents:session:s:messages", 0, "{not json")
        client.lset("agents:session:s:messages", 2, b'{"role":"user","content":"\xff"}')
        client.rpush(b"agents:session:\xff:messages", "{}")
        client.set("agents:session:text:messages", "no list")
    done = await import_from(configured)
    assert done.code == 1
    assert sorted(done.err.splitlines()) == [
        "Done: 1 imported (2 items).",
        "Error: Skipped 3 rows or sessions (listed above); the source is unchanged.",
        'Left out: row 1 of session "s" (not JSON).',
        'Left out: row 3 of session "s" (not UTF-8).',
        'Left out: session "\ufffd" (its id is not UTF-8).',
    ]
    assert texts(await store.session("s").get_items()) == ["1", "3"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("redis://127.0.0.1:1/0", "Cannot reach Redis at 127.0.0.1:1/0"),
        ("redis://user:hidden@host:port", "--from cannot be used: a port in it is not a number"),
        ("redis://host/0?timeout=1", "--from has the parameter timeout that this app does not take"),
        ("redis+cluster://host", "--from: this project reads sqlite:///file.db"),
    ],
)
async def test_an_address_that_cannot_be_read_says_so(store: SessionStore, address: str, words: str) -> None:
    done = await import_from(address)
    assert done.code == 1
    assert done.err.startswith(f"Error: {words}"), done.err
    assert "hidden" not in done.err
    assert "REDIS_URL" not in done.err
