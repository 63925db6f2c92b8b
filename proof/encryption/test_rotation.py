"""Keys are changed, and encryption turned on and off, while nothing is lost and the app may go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from my_agent.sessions import SessionRef, SessionStore, StoreUnavailable, WrongKey
from my_agent.sessions.codec import encode_item
from my_agent.sessions.contract import refuse_encrypted
from my_agent.sessions.encryption.cipher import new_key
from my_agent.sessions.encryption.reencrypt import Report, reencrypt
from my_agent.sessions.encryption.store import EncryptedStore
from my_agent.sessions.records import Batch, Content, Row, SessionInfo, Turn, new_id
from proof.encryption.test_encryption import inner_of, sealed, settings_with, with_keys
from proof.support.helpers import texts, user

OLD, NEW = new_key(), new_key()
NUMBER = 7
"""How many sessions there are."""


class Stored:
    """All that the stored sessions say, and what listings show of them."""

    def __init__(
        self, infos: Sequence[SessionInfo], rows: Sequence[Sequence[str]], turns: Sequence[Sequence[Turn]]
    ) -> None:
        self.infos = infos
        self.rows = rows
        self.turns = turns

    def __eq__(self, other: object) -> bool:
        mine = (self.infos, self.rows, self.turns)
        return isinstance(other, Stored) and mine == (other.infos, other.rows, other.turns)


async def stored(store: SessionStore) -> Stored:
    infos = (await store.list_sessions()).sessions
    refs = [SessionRef(info.user_id, info.session_id) for info in infos]
    rows = [await store.tail(ref, None) for ref in refs]
    return Stored(infos, rows, [await store.turns(ref, 10) for ref in refs])


async def fill(store: SessionStore) -> Stored:
    """Sessions with and without title, metadata and items."""
    for number in range(NUMBER):
        ref = SessionRef("ada" if number % 2 else "", f"s{number}")
        rows = [Row(encode_item(user(f"{number}.{part}")), "user") for part in range(number)]
        await store.append(ref, Batch.of(rows, title=f"title {number}" if number % 3 else None))
        if number % 2:
            await store.update_session(ref, metadata={"number": number, "é": [None, 0.5]})
            token, turn = new_id(), Turn("t", "paused", f"state é {number}", "request")
            assert await store.lease(ref, token, 60)
            await store.append(ref, Batch.of([])._replace(lease=token, turn=turn, release=True))
    return await stored(store)


async def rotate(store: SessionStore, *keys: str, decrypt: bool = False) -> Report:
    return await reencrypt(inner_of(store), settings_with(*keys).cipher, decrypt=decrypt)


# ── Rotation ────────────────────────────────────────────────────────────────


async def test_any_key_reads_and_the_newest_writes(store: SessionStore) -> None:
    await with_keys(store, OLD).session("s").add_items([user("old")])
    both = with_keys(store, NEW, OLD)
    await both.session("s").add_items([user("new")])
    assert texts(await both.session("s").get_items()) == ["old", "new"]
    names = [row.split(":")[1] for row in await inner_of(store).tail(SessionRef("", "s"), None)]
    assert names == settings_with(OLD, NEW).cipher.names


async def test_after_a_rotation_the_old_key_can_go(store: SessionStore) -> None:
    before = await fill(with_keys(store, OLD))
    assert await stored(with_keys(store, NEW, OLD)) == before
    report = await rotate(store, NEW, OLD)
    assert (report.sessions, report.rows, report.unreadable) == (NUMBER, sum(range(NUMBER)), 0)
    assert await stored(with_keys(store, NEW)) == before  # times and order as well
    with pytest.raises(WrongKey):
        await with_keys(store, OLD)
    assert (await rotate(store, NEW)).rewritten == 0


async def test_a_rotation_with_the_wrong_keys_changes_nothing(store: SessionStore) -> None:
    await fill(with_keys(store, OLD))
    before = await stored(inner_of(store))
    for decrypt in (False, True):
        with pytest.raises(WrongKey):
            await rotate(store, NEW, decrypt=decrypt)
    assert await stored(inner_of(store)) == before


async def test_what_opens_with_no_key_is_counted_and_left_alone(store: SessionStore) -> None:
    before = await fill(with_keys(store, OLD))
    key, strange = SessionRef("ada", "s1"), sealed("{}")
    await inner_of(store).append(key, Batch.of([Row(strange)]))
    assert (await rotate(store, NEW, OLD)).unreadable == 1
    assert (await inner_of(store).tail(key, None))[-1] == strange
    assert (await rotate(store, NEW, decrypt=True)).unreadable == 1
    assert (await inner_of(store).tail(key, None))[-1] == strange
    assert (await inner_of(store).tail(SessionRef("", "s6"), None)) == before.rows[0]


# ── On and off ──────────────────────────────────────────────────────────────


async def test_encryption_is_turned_on_and_off_and_nothing_is_changed(store: SessionStore) -> None:
    inner = inner_of(store)
    before = await fill(inner)
    report = await rotate(store, NEW)
    assert (report.sessions, report.rows) == (NUMBER, sum(range(NUMBER)))
    assert await stored(with_keys(store, NEW)) == before
    assert all(row.startswith("sealed:") for rows in (await stored(inner)).rows for row in rows)
    await rotate(store, NEW, decrypt=True)
    assert await stored(inner) == before
    assert await inner.canary() is None
    inner.guard(refuse_encrypted)
    await inner.open()  # a project without encryption may have it


async def test_a_store_that_is_encrypted_by_half_is_not_taken_for_done(store: SessionStore) -> None:
    await fill(inner_of(store))
    with pytest.raises(StoreUnavailable):
        await broken_after(3, store)
    with pytest.raises(Exception, match="not encrypted"):
        await with_keys(store, NEW)


# ── Interruptions ───────────────────────────────────────────────────────────


async def broken_after(count: int, store: SessionStore) -> None:
    """A rotation that ends in its middle."""
    inner = inner_of(store)
    rewrite = inner.rewrite
    left = count

    async def fragile(ref: SessionRef, before: Content, after: Content) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("Gone.")
        return await rewrite(ref, before, after)

    inner.rewrite = fragile  # type: ignore[method-assign]
    seconds, inner.settings = inner.settings, inner.settings.model_copy(update={"session_retry_seconds": 0.0})
    try:
        await rotate(store, NEW, OLD)
    finally:
        inner.settings = seconds
        inner.rewrite = rewrite  # type: ignore[method-assign]


@pytest.mark.parametrize("count", range(NUMBER - 1))
async def test_an_interrupted_rotation_is_gone_on_with(store: SessionStore, count: int) -> None:
    before = await fill(with_keys(store, OLD))
    with pytest.raises(StoreUnavailable):
        await broken_after(count, store)
    assert await stored(with_keys(store, NEW, OLD)) == before
    assert await stored(with_keys(store, OLD, NEW)) == before
    report = await rotate(store, NEW, OLD)
    assert (report.sessions, report.rewritten) == (NUMBER, NUMBER - 1 - count)  # the first has nothing to seal
    assert await stored(with_keys(store, NEW)) == before


async def test_what_is_written_during_a_rotation_is_kept(store: SessionStore) -> None:
    await fill(with_keys(store, OLD))
    app = with_keys(store, NEW, OLD)
    sessions = [app.session(f"s{number}") for number in range(0, NUMBER, 2)]
    said = [texts(await session.get_items()) for session in sessions]
    rotating = asyncio.create_task(rotate(store, NEW, OLD))

    async def talk(number: int) -> None:
        for turn in range(30):
            await sessions[number].add_items([user(f"a{turn}"), user(f"b{turn}")])
            if turn % 3 == 0:
                assert texts([(await sessions[number].pop_item()) or user("nothing")]) == [f"b{turn}"]
            said[number] += [f"a{turn}"] if turn % 3 == 0 else [f"a{turn}", f"b{turn}"]
            await app.update_session(sessions[number].ref, title=f"turn {turn}")

    await asyncio.gather(*map(talk, range(len(sessions))))
    report = await rotating
    assert report.unreadable == 0
    for keys in ((NEW, OLD), (NEW,)):
        after = with_keys(store, *keys)
        assert [texts(await after.session(s.session_id).get_items()) for s in sessions] == said
        assert {(await found(after, s.session_id)).title for s in sessions} == {"turn 29"}


async def found(store: EncryptedStore, session_id: str) -> SessionInfo:
    info = await store.find_session(SessionRef("", session_id))
    assert info is not None
    return info


async def test_a_long_session_is_rotated_in_parts(store: SessionStore) -> None:
    old = with_keys(store, OLD)
    rows = [Row(encode_item(user(str(number) * (4000 if number % 500 == 0 else 2)))) for number in range(2500)]
    await old.append(SessionRef("", "long"), Batch.of(rows))
    before = await stored(old)
    assert (await rotate(store, NEW, OLD)).rows == 2500
    assert await stored(with_keys(store, NEW)) == before
