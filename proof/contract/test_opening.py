"""Nothing is read or written by a program that does not fit what is stored, whatever it calls first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest

from my_agent.sessions import BackendSettings, BackendStore, SessionRef, SessionStore, WrongKey, open_store
from my_agent.sessions.contract import admit_all, refuse_encrypted
from my_agent.sessions.records import Batch, Row
from my_agent.settings import Settings
from proof.support.helpers import user
from proof.support.network import ADDRESSES
from proof.support.operations import session_without_store
from proof.support.relay import Relay

KEY = SessionRef("", "s")
CANARY = "sealed:0badc0de:AAAA"

FIRST: dict[str, Callable[[SessionStore], Awaitable[object]]] = {
    "add_items": lambda store: store.session("s").add_items([user("plain")]),
    "get_items": lambda store: store.session("s").get_items(),
    "pop_item": lambda store: store.session("s").pop_item(),
    "clear_session": lambda store: store.session("s").clear_session(),
    "append": lambda store: store.append(KEY, Batch.of([Row("{}")])),
    "replace_tail": lambda store: store.replace_tail(KEY, None, Batch.of([Row("{}")])),
    "update": lambda store: store.update_session(KEY, title="plain"),
    "list": lambda store: store.list_sessions(),
    "delete_user": lambda store: store.delete_user(""),
    "ping": lambda store: store.ping(),
    "open": lambda store: store.open(),
}


@pytest.fixture
async def encrypted(settings: BackendSettings, store: SessionStore) -> BackendStore:
    """What is stored looks encrypted, by another program."""
    raw = BackendStore(settings)
    raw.guard(admit_all)
    if (kept := await raw.canary()) is not None:
        await raw.canary(kept, None)
    await raw.append(KEY, Batch.of([Row("sealed:0badc0de:item")], "sealed:0badc0de:title"))
    assert await raw.canary(None, CANARY) == CANARY
    return raw


@pytest.mark.parametrize("call", FIRST.values(), ids=FIRST.keys())
async def test_an_encrypted_database_is_refused_by_the_first_call(
    encrypted: BackendStore, settings: BackendSettings, call: Callable[[SessionStore], Awaitable[object]]
) -> None:
    plain = BackendStore(settings)
    plain.guard(refuse_encrypted)
    for _ in range(2):
        with pytest.raises(WrongKey):
            await call(plain)
    outcomes = await asyncio.gather(*(call(plain) for _ in range(8)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {WrongKey}
    assert await encrypted.tail(KEY, None) == ["sealed:0badc0de:item"]
    await plain.close()
    await encrypted.close()


async def test_an_encrypted_database_is_refused_by_a_session_without_a_store(
    encrypted: BackendStore, settings: BackendSettings
) -> None:
    session = session_without_store(settings)
    for call in (session.get_items, session.pop_item, lambda: session.add_items([user("plain")])):
        with pytest.raises(WrongKey):
            await call()
    assert (await encrypted.list_sessions()).sessions[0].item_count == 1
    await session.close()
    await encrypted.close()


async def test_opening_asks_one_question(store: SessionStore, server_environment: dict[str, str]) -> None:
    """After the first time, which may have to write something down."""
    await store.open()
    name = next(name for name in ADDRESSES if name in server_environment)
    address = urlsplit(server_environment[name])
    if "+" in address.scheme:
        pytest.skip("for one server alone: the others tell their own addresses")
    async with Relay(address.hostname or "", address.port or 0).running() as relay:
        url = relay.url(server_environment[name])
        behind = open_store(Settings().with_environment({**server_environment, name: url}))
        async with behind:
            connecting = relay.round_trips - 1
            await behind.session("s").get_items()  # a driver may prepare its statements
            before = relay.round_trips
            await behind.open(again=True)
            assert relay.round_trips - before == 1
            await behind.session("s").get_items()
            assert relay.round_trips - before == 2
        before = relay.round_trips
        async with behind:
            assert relay.round_trips - before <= connecting + 1
