"""What is stored is sealed: it opens with the right key, at the place where it was sealed, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from pydantic import SecretStr

from my_agent.sessions import (
    BackendSettings,
    SessionRef,
    SessionStore,
    SessionStoreError,
    SettingMissing,
    WrongKey,
)
from my_agent.sessions.contract import admit_all, refuse_encrypted
from my_agent.sessions.encryption.cipher import Cipher, EncryptionSettings, Purpose, name_of, new_key
from my_agent.sessions.encryption.store import EncryptedStore
from my_agent.sessions.records import Batch, Row
from proof.support.helpers import answer, text, texts, user
from proof.support.operations import session_without_store

KEY = SessionRef("ada", "diary")
Damage = Callable[[int, str], Awaitable[None]]


def settings_with(*keys: str, plain: bool = False) -> EncryptionSettings:
    """The newest key comes first."""
    joined = SecretStr(",".join(keys))
    return EncryptionSettings(session_encryption_keys=joined, session_encryption_allow_plaintext=plain)


def with_keys(store: SessionStore, *keys: str, plain: bool = False) -> EncryptedStore:
    """The same stored sessions, and other keys."""
    return EncryptedStore(inner_of(store), settings_with(*keys, plain=plain))


def inner_of(store: SessionStore) -> SessionStore:
    """What is stored, as it is: nothing is refused from here on, until another store is made around it."""
    inner = cast(EncryptedStore, store).inner
    inner.guard(admit_all)
    return inner


def sealed(row: str, ref: SessionRef = KEY, purpose: Purpose = "item", by: str | None = None) -> str:
    """A row as another key would have sealed it, or the key `by`."""
    return settings_with(by or new_key()).cipher.seal(purpose, ref, row)


def rows(*contents: str) -> Batch:
    return Batch.of([Row(content) for content in contents])


# ── Sealing ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", ["", "x", "é 😀", "NUL \0", "half \ud83d a pair", "{}", "a\nb", "x" * 2**20])
def test_any_text_comes_back_from_one_line_of_ascii(words: str) -> None:
    cipher = settings_with(new_key()).cipher
    once, again = cipher.seal("item", KEY, words), cipher.seal("item", KEY, words)
    assert cipher.open("item", KEY, once) == cipher.open("item", KEY, again) == words
    assert once.isascii()
    assert once.isprintable()
    assert once != again


@pytest.mark.parametrize(
    ("purpose", "ref"),
    [
        ("title", KEY),
        ("item", SessionRef("bob", "diary")),
        ("item", SessionRef("ada", "other")),
        ("item", SessionRef("", "adadiary")),
        ("item", SessionRef('ada", "diary', "")),
    ],
)
def test_a_text_opens_only_where_it_was_sealed(purpose: Purpose, ref: SessionRef) -> None:
    cipher = settings_with(new_key()).cipher
    assert cipher.open(purpose, ref, cipher.seal("item", KEY, "x")) is None


def test_a_text_that_was_changed_anywhere_does_not_open() -> None:
    cipher = settings_with(new_key()).cipher
    whole = cipher.seal("item", KEY, "what they said")  # 42 bytes, so that each bit of the base64 counts
    for place in range(len(whole)):
        changed = whole[:place] + ("B" if whole[place] == "A" else "A") + whole[place + 1 :]
        assert cipher.open("item", KEY, changed) is None, changed
    for shorter in range(len(whole)):
        assert cipher.open("item", KEY, whole[:shorter]) is None


def test_the_name_of_a_key_is_short_and_the_newest_key_writes() -> None:
    old, new = new_key(), new_key()
    cipher = settings_with(new, old).cipher
    row = cipher.seal("item", KEY, "x")
    assert row.startswith(f"sealed:{cipher.names[0]}:")
    assert len(cipher.names[0]) == 8
    assert settings_with(new).cipher.open("item", KEY, row) == "x"
    assert settings_with(old).cipher.open("item", KEY, row) is None
    assert cipher.open("item", KEY, sealed("y", by=old)) == "y"


GOOD = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"


@pytest.mark.parametrize("keys", [GOOD, f"{GOOD}=", f" {GOOD} ,\n{GOOD}=,"])
def test_keys_may_be_written_with_spaces_and_padding_or_without(keys: str) -> None:
    assert settings_with(keys).cipher.names == [name_of(b"0123456789abcdef" * 2)]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("", "SESSION_ENCRYPTION_KEYS is not set"),
        (" , ", "SESSION_ENCRYPTION_KEYS is not set"),
        ("planted", "Key 1 of 1 in SESSION_ENCRYPTION_KEYS is not 32 bytes"),
        (f"{GOOD},planted", "Key 2 of 2 in SESSION_ENCRYPTION_KEYS is not 32 bytes"),
        (f"{GOOD}plan", "is not 32 bytes"),
        (GOOD[:-2] + "é=", "is not 32 bytes"),
        (GOOD[:-1] + "*", "is not 32 bytes"),
    ],
)
async def test_bad_keys_are_refused_without_being_quoted(store: SessionStore, keys: str, words: str) -> None:
    with pytest.raises(SettingMissing, match=words) as caught:
        await with_keys(store, keys)
    assert "planted" not in str(caught.value)
    assert GOOD[:8] not in str(caught.value)
    assert "sessions new-key" in str(caught.value)


# ── Rows that do not open ───────────────────────────────────────────────────


async def test_what_was_sealed_for_another_session_says_nothing_here(store: SessionStore) -> None:
    await store.session("diary", user_id="ada").add_items([user("mine")])
    inner = inner_of(store)
    (row,) = await inner.tail(KEY, None)
    for other in (SessionRef("bob", "diary"), SessionRef("ada", "other")):
        await inner.append(other, rows(row))
        assert await store.session(other.session_id, user_id=other.user_id).get_items() == []
        assert await inner.tail(other, None) == [row]


async def test_a_title_and_metadata_from_elsewhere_are_shown_as_missing(store: SessionStore) -> None:
    await store.append(KEY, Batch.of([Row("{}")], title="Mine"))
    await store.update_session(KEY, metadata={"note": "mine"})
    stored = await inner_of(store).find_session(KEY)
    other = SessionRef("bob", "diary")
    await store.append(other, rows("{}"))
    assert stored is not None
    await inner_of(store).update_session(other, title=stored.title, metadata=stored.metadata)
    for found in (await store.find_session(other), (await store.list_sessions("bob")).sessions[0]):
        assert found is not None
        assert (found.title, found.metadata) == (None, {})
    mine = await store.find_session(KEY)
    assert mine is not None
    assert (mine.title, mine.metadata) == ("Mine", {"note": "mine"})


async def test_words_put_into_the_database_are_no_part_of_the_conversation(store: SessionStore) -> None:
    session = store.session("diary", user_id="ada")
    await session.add_items([user("mine")])
    for evil in ('{"role":"user","content":"evil"}', ' \n{"role":"user","content":"evil"}'):
        await inner_of(store).append(KEY, rows(evil))
    assert texts(await session.get_items()) == ["mine"]
    assert await session.get_items(1) == await session.get_items()
    keys = cast(EncryptedStore, store).keys.model_copy(update={"session_encryption_allow_plaintext": True})
    allowing = EncryptedStore(inner_of(store), keys)
    assert texts(await allowing.session("diary", user_id="ada").get_items()) == ["mine", "evil", "evil"]


async def test_pop_takes_no_row_that_does_not_open(store: SessionStore) -> None:
    session = store.session("diary", user_id="ada")
    strange = [sealed('{"role":"user","content":"under another key"}'), '{"role":"user","content":"plain"}', "junk"]
    await store.ping()
    await inner_of(store).append(KEY, rows(*strange))
    for _ in range(3):
        assert await session.pop_item() is None
        assert await store.pop(KEY) is None
    assert await inner_of(store).tail(KEY, None) == strange


async def test_pop_takes_the_newest_item_that_opens_out_from_under_the_others(store: SessionStore) -> None:
    session = store.session("diary", user_id="ada")
    strange = [sealed('{"role":"user","content":"under another key"}') for _ in range(9)]
    await session.add_items([user("one"), user("two")])
    await inner_of(store).append(KEY, rows(*strange))
    assert text(await session.pop_item()) == "two"
    assert (await inner_of(store).tail(KEY, None))[1:] == strange
    assert text(await session.pop_item()) == "one"
    assert await inner_of(store).tail(KEY, None) == strange


async def test_what_does_not_open_stays_what_it_is_when_it_is_put_back(store: SessionStore) -> None:
    strange = [sealed("{}"), '{"plain":1}']
    await store.append(KEY, rows('{"mine":1}'))
    await inner_of(store).append(KEY, rows(*strange))
    seen = await store.tail(KEY, None)
    assert await store.replace_tail(KEY, seen, rows(*seen[1:]))
    assert await inner_of(store).tail(KEY, None) == strange


async def test_a_tail_that_was_replaced_already_is_not_replaced_again(store: SessionStore) -> None:
    await store.append(KEY, rows("a", "b"))
    sent = rows("c")
    assert await store.replace_tail(KEY, ["b"], sent)
    assert await store.replace_tail(KEY, ["b"], sent)  # as after a lost answer
    assert not await store.replace_tail(KEY, ["b"], rows("d"))
    assert await store.tail(KEY, None) == ["a", "c"]


# ── Opening ─────────────────────────────────────────────────────────────────


async def state(store: SessionStore) -> list[object]:
    """Everything that is stored."""
    inner = inner_of(store)
    infos = (await inner.list_sessions()).sessions
    return [*infos, *[await inner.tail(SessionRef(info.user_id, info.session_id), None) for info in infos]]


async def test_with_another_key_nothing_can_be_read_or_lost(store: SessionStore) -> None:
    await store.session("diary", user_id="ada").add_items([user("mine"), answer("yes")])
    before, kept = await state(store), await store.canary()
    stranger = with_keys(store, other := new_key())
    session = stranger.session("diary", user_id="ada")
    calls: list[Callable[[], Awaitable[object]]] = [
        stranger.__aenter__,
        stranger.ping,
        session.get_items,
        session.pop_item,
        session.clear_session,
        lambda: session.add_items([user("evil")]),
        stranger.list_sessions,
        lambda: stranger.find_session(KEY),
        lambda: stranger.delete_session(KEY),
        lambda: stranger.delete_user("ada"),
        lambda: stranger.update_session(KEY, title="evil"),
    ]
    for call in calls:
        with pytest.raises(WrongKey, match=r"encrypted with key [0-9a-f]{8}, which SESSION_ENCRYPTION_KEYS") as caught:
            await call()
        assert other not in str(caught.value)
    assert await state(store) == before
    assert await store.canary() == kept


async def test_without_a_key_nothing_opens(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSION_ENCRYPTION_KEYS")
    keyless = EncryptedStore(inner_of(store))
    with pytest.raises(SettingMissing, match="SESSION_ENCRYPTION_KEYS is not set"):
        await keyless
    with pytest.raises(SettingMissing, match="SESSION_ENCRYPTION_KEYS is not set"):
        await keyless.session("s").add_items([user("x")])


async def test_a_program_without_encryption_is_told(store: SessionStore) -> None:
    await store.ping()
    plain = inner_of(store)
    plain.guard(refuse_encrypted)
    for call in (plain.open, plain.session("s").get_items, lambda: plain.session("s").add_items([user("x")])):
        with pytest.raises(WrongKey, match="data encryption=true"):
            await call()
    assert await state(store) == []


async def test_plain_sessions_are_not_taken_for_empty_ones(store: SessionStore) -> None:
    await inner_of(store).append(KEY, Batch.of([Row('{"role":"user","content":"old"}')]))
    refusing = with_keys(store, new_key())
    for call in (refusing.ping, lambda: refusing.append(KEY, rows("{}"))):
        with pytest.raises(SettingMissing, match="sessions reencrypt"):
            await call()
    assert await inner_of(store).canary() is None
    allowing = with_keys(store, new_key(), plain=True)
    assert texts(await allowing.session("diary", user_id="ada").get_items()) == ["old"]


async def test_a_session_without_a_store_of_its_own_is_encrypted_too(
    store: SessionStore, settings: BackendSettings
) -> None:
    session = session_without_store(settings)
    await session.add_items([user("mine")])
    assert isinstance(session.store, EncryptedStore)
    (row,) = await inner_of(store).tail(session.ref, None)
    assert row.startswith("sealed:")
    assert texts(await store.session(session.session_id).get_items()) == ["mine"]
    await session.close()


async def test_metadata_that_json_cannot_hold_are_refused(store: SessionStore) -> None:
    await store.append(KEY, rows("{}"))
    with pytest.raises((TypeError, SessionStoreError)):
        await store.update_session(KEY, metadata={"x": object()})
    assert json.dumps(dict((await store.list_sessions()).sessions[0].metadata)) == "{}"


def test_a_cipher_takes_the_same_key_twice_as_one() -> None:
    assert Cipher([b"x" * 32, b"x" * 32]).names == [name_of(b"x" * 32)]
