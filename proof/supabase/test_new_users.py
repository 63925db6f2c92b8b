"""A new user has no canary yet. In their name, too, a program is refused that does not fit what others have stored."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from my_agent.sessions import SupabaseStore, WrongKey
from my_agent.sessions.contract import admit_all, refuse_encrypted
from proof.supabase.fixtures import Environment, ask, settings_for, token
from proof.support.helpers import texts, user

CANARY = "sealed:0badc0de:AAAA"
ENCRYPTION = "my_agent.sessions.encryption.cipher"  # not in every project
COUNT = "SELECT count(*) FROM agent_sessions"
OPENING = "rpc/agent_session_open"

encrypted = pytest.mark.skipif(find_spec(ENCRYPTION.rpartition(".")[0]) is None, reason="made without encryption")


def store_of(project: Environment, user_id: str | None, admit: object = refuse_encrypted) -> SupabaseStore:
    """The store of a signed-in user; None: that of the secret key."""
    store = SupabaseStore(settings_for(project), None if user_id is None else token(project, user_id))
    store.guard(admit)  # type: ignore[arg-type]
    return store


@pytest.fixture
async def nothing_stored(project: Environment, store: SupabaseStore) -> None:
    await ask(project, "DELETE FROM agent_session_canary")


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    ("before", "new"), [(None, "new"), ("ada", "new"), ("ada", None)], ids=["app, user", "user, user", "user, app"]
)
async def test_without_encryption_nothing_is_written_for_a_new_user_of_an_encrypted_database(
    project: Environment, before: str | None, new: str | None
) -> None:
    first = store_of(project, before, admit_all)
    assert await first.canary(None, CANARY) == CANARY
    await first.close()
    plain = store_of(project, new)
    for _ in range(2):
        with pytest.raises(WrongKey, match="encrypted with key 0badc0de"):
            await plain.session("s").add_items([user("plain")])
    await plain.close()
    assert await ask(project, COUNT) == 0


@encrypted
@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("before", [None, "ada"], ids=["app", "user"])
async def test_with_another_key_nothing_is_written_for_a_new_user(project: Environment, before: str | None) -> None:
    encryption = import_module(ENCRYPTION)
    encrypted_store = import_module("my_agent.sessions.encryption.store").EncryptedStore
    ours, other = (
        encryption.EncryptionSettings(session_encryption_keys=SecretStr(encryption.new_key())) for _ in range(2)
    )
    async with encrypted_store(store_of(project, before), ours) as first:
        await first.session("s", user_id=before or "").add_items([user("mine")])
    wrong = encrypted_store(store_of(project, "new"), other)
    with pytest.raises(WrongKey):
        await wrong.session("s").add_items([user("sealed with another key")])
    await wrong.close()
    async with encrypted_store(store_of(project, "new"), ours) as right:
        await right.session("s").add_items([user("mine")])
        assert texts(await right.session("s").get_items()) == ["mine"]
    assert await ask(project, "SELECT count(*) FROM agent_session_canary") == 2


@pytest.mark.usefixtures("nothing_stored")
async def test_a_canary_of_the_time_when_users_could_write_one_counts_for_its_user_alone(project: Environment) -> None:
    await ask(
        project, "INSERT INTO agent_session_canary (user_id, text, created_at) VALUES ('mallory', $1, NULL)", CANARY
    )
    for user_id in ("new", None):
        store = store_of(project, user_id)
        await store.session("s").add_items([user("hello")])
        await store.close()
    theirs = store_of(project, "mallory")
    with pytest.raises(WrongKey):
        await theirs.session("s").get_items()
    await theirs.close()


@pytest.mark.usefixtures("nothing_stored")
async def test_only_the_server_learns_of_the_canaries_of_others(project: Environment) -> None:
    await ask(project, "INSERT INTO agent_session_canary VALUES ('', $1), ('ada', 'of ada')", CANARY)
    signed_in = {
        "apikey": project["SUPABASE_PUBLISHABLE_KEY"],
        "Authorization": f"Bearer {token(project, str(uuid4()))}",
    }
    server = {**signed_in, "x-agent-session-key": project["SUPABASE_SERVER_KEY"]}
    async with httpx.AsyncClient(base_url=f"{project['SUPABASE_URL']}/rest/v1/", timeout=20) as api:
        for headers, seen in ((signed_in, None), (server, CANARY)):
            for name in ("", "ada"):
                answer = await api.post(OPENING, json={"p_user_id": name}, headers=headers)
                assert answer.json()[2:] == [None, seen]
            answer = await api.post("rpc/agent_session_canary_of_others", json={}, headers=headers)
            assert answer.json() == seen
