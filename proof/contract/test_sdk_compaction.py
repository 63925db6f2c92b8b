"""The SDK's own wrappers on our sessions. Pins the private hooks that `sessions/compaction.py` serves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents.items import TResponseInputItem
from agents.memory import OpenAIResponsesCompactionSession
from agents.memory.session import _CompactionSnapshot
from openai import AsyncOpenAI

from my_agent.sessions import SessionStore, StoredSession
from proof.support.helpers import answer, anything, texts, user

SUMMARY = anything(id="cmp_1", type="compaction", encrypted_content="…")


async def snapshot(session: StoredSession, limit: int, **options: Any) -> _CompactionSnapshot:
    found = await session._get_compaction_snapshot(limit, **options)
    assert found is not None
    return found


async def test_a_snapshot_replaces_a_suffix(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user(str(n)) for n in range(6)])
    found = await snapshot(session, 4)
    assert (texts(found.items), found.complete) == (["2", "3", "4", "5"], False)
    assert await found.replace_suffix(1, [user("summary")])
    assert texts(await session.get_items()) == ["0", "1", "2", "summary"]
    assert (await snapshot(session, 4)).complete
    assert not await (await snapshot(session, 4)).replace_suffix(4, [user("nothing to replace")])


async def test_a_snapshot_that_is_out_of_date_replaces_nothing(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("a"), user("b")])
    found = await snapshot(session, 10)
    await session.add_items([user("meanwhile")])
    assert not await found.replace_suffix(0, [user("summary")])
    assert texts(await session.get_items()) == ["a", "b", "meanwhile"]


async def test_a_snapshot_prunes_an_expired_prefix_in_the_same_step(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user(word) for word in ("old", "old", "kept", "old", "a", "b")])
    found = await snapshot(session, 2, prune_prefix=lambda item: item == user("old"))
    assert await found.replace_suffix(0, [user("summary")])
    assert texts(await session.get_items()) == ["kept", "old", "summary"]


async def test_a_snapshot_begins_after_an_unreadable_row(store: SessionStore, damage_row: Any) -> None:
    session = store.session("s")
    await session.add_items([user("a"), user("b")])
    await damage_row(2, "unreadable")
    found = await snapshot(session, 10)
    assert (texts(found.items), found.complete) == (["b"], False)
    assert await found.replace_suffix(0, [SUMMARY])
    assert len(await session.tail(None)) == 2


async def test_nothing_goes_past_a_method_that_a_subclass_overrides(store: SessionStore) -> None:
    class Loud(StoredSession):
        async def add_items(self, items: list[TResponseInputItem], wrapper: Any = None) -> None:
            await super().add_items([user(text.upper()) for text in texts(items)], wrapper)

    session = Loud(lambda: store, store.session("s").ref)
    await session.add_items([user("a"), user("b")])
    assert await session._get_compaction_snapshot(10) is None
    assert not await session._atomic_replace_items([user("c")])
    assert texts(await session.get_items()) == ["A", "B"]


class Responses:
    """Answers the one call that compaction makes, and lets something happen meanwhile."""

    def __init__(self, session: StoredSession, meanwhile: list[TResponseInputItem]) -> None:
        self.session, self.meanwhile = session, meanwhile

    async def compact(self, **_: Any) -> SimpleNamespace:
        await self.session.add_items(self.meanwhile)
        return SimpleNamespace(output=[SUMMARY], usage=None)


def compacting(session: StoredSession, meanwhile: list[TResponseInputItem]) -> OpenAIResponsesCompactionSession:
    client = cast(AsyncOpenAI, SimpleNamespace(responses=Responses(session, meanwhile)))
    return OpenAIResponsesCompactionSession(session.session_id, session, client=client, compaction_mode="input")


async def test_the_sdk_compacts_a_session_in_one_step(store: SessionStore) -> None:
    session = store.session("s")
    await session.add_items([user("a"), answer("b")])
    seen: list[int] = []

    async def watch(compaction: asyncio.Task[None]) -> None:
        while not compaction.done():
            seen.append(len(await session.get_items()))

    compaction = asyncio.create_task(compacting(session, []).run_compaction({"force": True}))
    await watch(compaction)
    await compaction
    assert await session.get_items() == [SUMMARY]
    assert set(seen) <= {1, 2}, "a reader found the history empty"


async def test_the_sdk_encrypts_a_session(store: SessionStore) -> None:
    pytest.importorskip("cryptography", reason="the SDK's EncryptedSession needs it: uv add cryptography")
    from agents.extensions.memory import EncryptedSession

    session = store.session("s")
    encrypted = EncryptedSession("s", cast(Any, session), encryption_key="a key for the test", ttl=60)
    await encrypted.add_items([user("secret"), answer("whisper")])
    assert texts(await encrypted.get_items()) == ["secret", "whisper"]
    assert not any("secret" in row for row in await session.tail(None))
    assert texts([await encrypted.pop_item() or user("nothing")]) == ["whisper"]
