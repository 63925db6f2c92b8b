"""A dump of everything that the server keeps shows none of what was said."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.records import Batch, Row
from proof.encryption.test_encryption import inner_of
from proof.support.helpers import answer, user

WORDS = ("planted question", "planted answer", "planted title", "planted note", "planted compaction")
KEY = SessionRef("ada", "diary")

Dump = Callable[[], Awaitable[str]]


def shown(dump: str) -> list[str]:
    """Which of the words are in it, as they are or in base64."""
    coded = {word: b64encode(word.encode()).decode().rstrip("=")[:-1] for word in WORDS}
    return [word for word in WORDS if word in dump or coded[word] in dump]


async def test_a_dump_shows_who_spoke_when_and_not_what(store: SessionStore, dump: Dump) -> None:
    session = store.session("diary", user_id="ada")
    await session.add_items([user("planted question"), answer("planted answer")])
    await store.update_session(KEY, metadata={"planted note": ["planted note"]})
    await store.append(SessionRef("ada", "titled"), Batch.of([], title="planted title"))
    await session.add_items([user("planted compaction"), user("planted compaction")])
    tail = await session.tail(1)
    assert await session.replace_tail(tail, [answer("planted answer")])
    dumped = await dump()
    assert shown(dumped) == []
    assert "ada" in dumped
    assert "diary" in dumped
    assert dumped.count("sealed:") >= 7


async def test_what_is_not_encrypted_would_be_seen(store: SessionStore, dump: Dump) -> None:
    rows = [Row('"planted question"'), Row('"planted answer"'), Row('"planted compaction"')]
    await inner_of(store).append(KEY, Batch.of(rows, title="planted title"))
    await inner_of(store).update_session(KEY, metadata={"planted note": 1})
    assert shown(await dump()) == list(WORDS)
