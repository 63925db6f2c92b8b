"""No part of a login gets out of SUPABASE_URL and SUPABASE_DB_URL, whatever they look like."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from my_agent.sessions import SessionStoreError, SettingMissing, SupabaseSession, SupabaseSettings, backend, open_store
from my_agent.sessions.postgres.schema import upgrade
from my_agent.sessions.supabase.checks import check_supabase

MARK = "TOPSECRET"
SECRETS = st.builds(
    lambda before, after: before + MARK + after,
    *[st.text(st.sampled_from("/?#@:[]%& '\"\\,=.;+é~aZ0"), max_size=4) for _ in range(2)],
)


@st.composite
def urls(draw: st.DrawFn) -> str:
    secret = draw(SECRETS)
    secret = draw(st.sampled_from([secret, quote(secret, safe="")]))
    scheme = draw(st.sampled_from(["https", "http", "postgresql", ""]))
    login = draw(st.sampled_from([f"{secret}:p", f"u:{secret}", f"u:1/{secret}", f"u:1?{secret}"]))
    host = draw(st.sampled_from(["127.0.0.1:1", "[::1]:1", "h:port", "[::1", "a..b"]))
    end = draw(st.sampled_from(["", "/db", "/rest/v1", f"?apikey={secret}", f"#{secret}"]))
    return f"{scheme}://{login}@{host}{end}"


def shown_of(error: BaseException) -> str:
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # not the frame of this test
    text, todo = "", [error]
    while todo:
        each = todo.pop()
        text += "".join(traceback.TracebackException.from_exception(each, capture_locals=True).format()) + repr(each)
        todo += [one for one in (each.__cause__, each.__context__) if one is not None]
    return text


async def attempts(url: str) -> str:
    configured = SupabaseSettings(
        supabase_url=url, supabase_key=SecretStr("sb_secret_planted"), supabase_db_url=SecretStr(url)
    ).model_copy(update={"session_retry_seconds": 0.0, "supabase_timeout_seconds": 1.0})
    shown = [repr(configured), repr(configured.database)]

    async def store() -> None:
        async with open_store(configured):
            pass

    async def session() -> None:
        async with SupabaseSession("s", settings=configured) as session:
            await session.get_items()

    with suppress(SettingMissing):
        shown.append(configured.where)
    with suppress(SettingMissing):
        shown.append(configured.database.where)
    for work in (store, session, lambda: upgrade(configured.database, backend.migrations())):
        with pytest.raises(SessionStoreError) as caught:  # one of ours
            await work()
        shown.append(shown_of(caught.value))
    async for check in check_supabase(configured, backend.migrations()):
        shown.append(repr(check))
    return "\n".join(shown)


@settings(max_examples=100, deadline=None)
@given(url=urls())
def test_no_part_of_a_login_gets_out_of_any_address(url: str) -> None:
    assert MARK.lower() not in asyncio.run(attempts(url)).lower()


@pytest.mark.parametrize("url", [f"https://u:1/{MARK}@h.example/", f"https://{MARK}@h.example", f"http://u:{MARK}@h"])
def test_a_login_in_the_address_of_a_project_is_refused(url: str) -> None:
    with pytest.raises(SettingMissing, match="SUPABASE_URL is not the address of a project") as caught:
        _ = SupabaseSettings(supabase_url=url).url
    assert MARK not in str(caught.value)
