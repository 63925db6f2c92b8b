"""`db server-key`: how a key comes into being, is exchanged for another one, and goes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import SecretStr

from my_agent.sessions import SettingMissing, StoreRefused, SupabaseSession
from my_agent.sessions.supabase.server_key import hash_of, new_server_key
from proof.supabase.fixtures import Environment, ask, settings_for, token
from proof.support.command import Done, invoke
from proof.support.helpers import texts, user

ALICE = "a11ce000-0000-4000-8000-000000000001"
KEY = re.compile(r"[A-Za-z0-9_-]{43}")


@pytest.fixture(autouse=True)
async def keys_as_before(project: Environment, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Commands reach the project; the keys that they make are gone afterwards."""
    for name in ("SUPABASE_URL", "SUPABASE_KEY", "SUPABASE_DB_URL"):
        monkeypatch.setenv(name, project[name])
    await ask(project, "DELETE FROM agent_session_server_keys")
    yield
    await ask(project, "DELETE FROM agent_session_server_keys")
    await ask(project, "SELECT agent_session_add_server_key($1)", hash_of(project["SUPABASE_SERVER_KEY"]))


async def server_key(*options: str, code: int = 0) -> Done:
    done = await invoke("db", "server-key", *options)
    assert done.code == code, done
    return done


async def works(project: Environment, key: str) -> bool:
    """Whether a server with this key may write for a signed-in user."""
    publishable = SecretStr(project["SUPABASE_PUBLISHABLE_KEY"])
    settings = settings_for(project, supabase_key=publishable, supabase_server_key=SecretStr(key))
    async with SupabaseSession("s", access_token=token(project, ALICE), settings=settings) as session:
        try:
            await session.add_items([user("x")])
        except StoreRefused:
            return False
        return bool(texts(await session.get_items()))


async def test_a_key_is_printed_once_and_kept_as_a_hash(project: Environment) -> None:
    done = await server_key()
    key = done.out.strip()
    assert KEY.fullmatch(key)
    assert "SUPABASE_SERVER_KEY; it is not shown again" in done.err
    assert key not in done.err
    assert await ask(project, "SELECT array_agg(sha256) FROM agent_session_server_keys") == [hash_of(key)]
    assert await works(project, key)


async def test_keys_are_exchanged_without_a_break(project: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (await server_key()).out.strip()
    new = (await server_key()).out.strip()
    assert old != new
    assert await works(project, old)
    assert await works(project, new)

    done = await server_key(code=1)  # a third one
    assert done.out == ""
    assert "knows two server keys already" in done.err
    assert "db server-key --remove" in done.err

    monkeypatch.setenv("SUPABASE_SERVER_KEY", new)
    listed = (await server_key("--list")).out.splitlines()
    assert [line.split()[0] for line in listed] == [hash_of(old)[:8], hash_of(new)[:8]]
    assert [line.endswith("SUPABASE_SERVER_KEY") for line in listed] == [False, True]

    await server_key("--remove", hash_of(old)[:8])
    assert not await works(project, old)
    assert await works(project, new)
    assert "knows no server key" in (await server_key("--remove", hash_of(old)[:8], code=1)).err


async def test_the_sql_holds_the_hash_alone(project: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPABASE_DB_URL")
    monkeypatch.delenv("SUPABASE_KEY")
    assert "server-key --sql" in (await server_key(code=1)).err
    done = await server_key("--sql")
    found = re.search(r"^SUPABASE_SERVER_KEY=(.*)$", done.err, re.MULTILINE)
    assert found is not None
    key = found[1]
    assert key not in done.out
    assert hash_of(key) in done.out
    await ask(project, done.out)
    assert await works(project, key)
    for _ in range(2):  # running it again changes nothing
        await ask(project, done.out)
    await ask(project, f"SELECT agent_session_add_server_key('{hash_of(new_server_key())}')")
    with pytest.raises(asyncpg.RaiseError, match="there are two server keys already") as caught:
        await ask(project, f"SELECT agent_session_add_server_key('{hash_of(new_server_key())}')")
    await ask(project, str(caught.value.hint).partition(": ")[2])  # the hint is a statement that does it
    assert not await works(project, key)


async def test_many_at_once_make_two_keys_at_most(project: Environment) -> None:
    statement = "SELECT agent_session_add_server_key($1)"
    adding = (ask(project, statement, hash_of(new_server_key())) for _ in range(8))
    outcomes = await asyncio.gather(*adding, return_exceptions=True)
    assert sum(isinstance(outcome, asyncpg.RaiseError) for outcome in outcomes) == 6
    assert await ask(project, "SELECT count(*) FROM agent_session_server_keys") == 2


@pytest.mark.parametrize("none", ["planted", "x" * 42, "x" * 44, "planted key" + "x" * 32, "é" * 43])
async def test_what_is_not_a_key_is_refused_before_any_call(project: Environment, none: str) -> None:
    settings = settings_for(project, supabase_url="http://127.0.0.1:1", supabase_server_key=SecretStr(none))
    with pytest.raises(SettingMissing, match=r"not a server key\. .*Run `my-agent db server-key` to make") as caught:
        SupabaseSession("s", access_token=token(project, ALICE), settings=settings)
    assert none not in str(caught.value)


async def test_a_database_without_the_table_says_what_to_do(project: Environment) -> None:
    await ask(project, "ALTER TABLE agent_session_server_keys RENAME TO hidden")
    try:
        for options in ([], ["--list"], ["--remove", "0"]):
            assert "db upgrade` first" in (await server_key(*options, code=1)).err
    finally:
        await ask(project, "ALTER TABLE hidden RENAME TO agent_session_server_keys")


async def test_one_thing_at_a_time() -> None:
    assert "one at a time" in (await server_key("--sql", "--list", code=1)).err


async def test_the_key_is_not_shown_or_logged(project: Environment, caplog: pytest.LogCaptureFixture) -> None:
    key = (await server_key()).out.strip()
    settings = settings_for(project, supabase_server_key=SecretStr(key))
    with caplog.at_level(logging.DEBUG):
        async with SupabaseSession("s", access_token=token(project, ALICE), settings=settings) as session:
            await session.add_items([user("x")])
            shown = f"{settings!r} {session!r} {session.store!r} {vars(session)!r} {vars(session.store)!r}"
    assert key not in caplog.text + shown


async def test_db_upgrade_needs_the_address_of_the_database_alone(
    project: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checkout, where an embedded server would be started for what has no SUPABASE_URL."""
    monkeypatch.delenv("SUPABASE_URL")
    monkeypatch.delenv("SUPABASE_KEY")
    done = await invoke("db", "upgrade")
    assert done.code == 0
    assert "embedded" not in done.err
    assert "Applied" not in done.err  # it is the project that was migrated before
    assert "embedded" not in (await invoke("db", "status")).err
