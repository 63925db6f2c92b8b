"""A token that ends in the middle of a turn: a function gives a fresh one, and the answer is stored."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner
from pydantic import SecretStr

from my_agent.dev.offline import OfflineModel
from my_agent.sessions import (
    SettingMissing,
    StoreRefused,
    StoreUnavailable,
    SupabaseSession,
    SupabaseSettings,
    SupabaseStore,
    WrongOwner,
)
from my_agent.sessions.layers import wrap_store
from my_agent.sessions.supabase import token as token_module
from proof.supabase.fixtures import Environment, settings_for, token
from proof.support.helpers import texts, user

ADA, BOB = "0d0aa2a3-7b8b-4e4f-9f68-1d7f0c6e7a01", "0d0aa2a3-7b8b-4e4f-9f68-1d7f0c6e7a02"
ENDED = -3600


class SignedIn:
    """The client of a signed-in user: gives the tokens of this list, then the last one again."""

    def __init__(self, project: Environment, *ends_in: float, user_id: str = ADA) -> None:
        self.tokens = [token(project, user_id, exp=int(time.time() + seconds)) for seconds in ends_in]
        self.asked = 0

    def plain(self) -> str:
        self.asked += 1
        return self.tokens[min(self.asked, len(self.tokens)) - 1]

    async def fresh(self) -> str:
        await asyncio.sleep(0.01)
        return self.plain()


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of this machine is behind, so that it learns from the server alone that a token has ended."""
    monkeypatch.setattr(token_module, "_ends_soon", lambda token: False)


@pytest.fixture
def settings(project: Environment) -> SupabaseSettings:
    return settings_for(project, supabase_key=settings_for(project).supabase_key)


def session_of(client: SignedIn, settings: SupabaseSettings, name: str = "s") -> SupabaseSession:
    return SupabaseSession(name, settings=settings, access_token=client.fresh, user_id=ADA)


class Thinking(OfflineModel):
    """While it thinks, something happens."""

    def __init__(self, happens: Callable[[], Any]) -> None:
        self.happens = happens

    async def get_response(self, *args: Any, **kwargs: Any) -> Any:
        self.happens()
        return await super().get_response(*args, **kwargs)


@pytest.mark.usefixtures("slow_clock")
async def test_the_answer_is_stored_when_the_token_ends_in_the_middle_of_a_turn(
    project: Environment, settings: SupabaseSettings
) -> None:
    client = SignedIn(project, 3600, 3600)
    async with session_of(client, settings) as session:
        await session.get_items()
        (share,) = session._shares.values()

        def token_ends() -> None:
            store: Any = share.store
            inner = getattr(store, "_store", store)
            expired = token(project, ADA, exp=int(time.time()) + ENDED)
            inner._caller._token._current = SecretStr(expired)

        agent = Agent[Any](name="Assistant", model=Thinking(token_ends))
        quiet = RunConfig(tracing_disabled=True)
        result = await Runner.run(agent, "My name is Ada", session=session, run_config=quiet)
        assert result.final_output == "Nice to meet you, Ada!"
        assert texts(await session.get_items()) == ["My name is Ada", "Nice to meet you, Ada!"]
    assert client.asked == 2


@pytest.mark.usefixtures("slow_clock")
@pytest.mark.parametrize("kind", ["async", "plain", "coroutine object"])
async def test_a_token_that_the_server_refuses_is_replaced(
    project: Environment, settings: SupabaseSettings, kind: str
) -> None:
    client = SignedIn(project, ENDED, 3600)
    functions: dict[str, Callable[[], str | Awaitable[str]]] = {
        "async": client.fresh,
        "plain": client.plain,
        "coroutine object": lambda: client.fresh(),
    }
    async with SupabaseSession("s", settings=settings, access_token=functions[kind], user_id=ADA) as session:
        await session.add_items([user("x")])
        assert texts(await session.get_items()) == ["x"]
    assert client.asked == 2


async def test_a_token_that_ends_soon_is_replaced_before_it_does(
    project: Environment, settings: SupabaseSettings
) -> None:
    client = SignedIn(project, 3, 3600)
    async with session_of(client, settings) as session:
        for number in range(3):
            await session.add_items([user(str(number))])
    assert client.asked == 2


async def test_a_function_that_has_no_other_token_is_not_asked_at_each_call(
    project: Environment, settings: SupabaseSettings
) -> None:
    client = SignedIn(project, 5)
    async with session_of(client, settings) as session:
        for number in range(5):
            await session.add_items([user(str(number))])
    assert client.asked == 2


@pytest.mark.usefixtures("slow_clock")
async def test_many_calls_at_once_ask_once(project: Environment, settings: SupabaseSettings) -> None:
    client = SignedIn(project, ENDED, 3600)
    async with session_of(client, settings) as session:
        await asyncio.gather(*(session.add_items([user(str(number))]) for number in range(8)))
        assert len(await session.get_items()) == 8
    assert client.asked == 2


async def test_without_a_function_the_message_says_that_there_can_be_one(
    project: Environment, settings: SupabaseSettings
) -> None:
    ended = token(project, ADA, exp=int(time.time()) + ENDED)
    async with SupabaseSession("s", settings=settings, access_token=ended) as session:
        with pytest.raises(StoreRefused, match=r"has expired\. Take a fresh one .* or pass a function"):
            await session.get_items()


async def test_a_function_whose_tokens_have_all_ended_is_refused_at_once(
    project: Environment, settings: SupabaseSettings
) -> None:
    client = SignedIn(project, ENDED)
    async with session_of(client, settings) as session:
        async with asyncio.timeout(8):
            with pytest.raises(StoreRefused, match="has expired"):
                await session.add_items([user("x")])
    assert client.asked <= 3


async def test_the_token_of_another_user_is_refused(project: Environment, settings: SupabaseSettings) -> None:
    client = SignedIn(project, 2, 3600)
    client.tokens[1] = token(project, BOB)
    async with session_of(client, settings) as session:
        with pytest.raises(WrongOwner, match="the token of another user"):
            await session.add_items([user("x")])
    async with SupabaseSession("s", settings=settings, access_token=token(project, BOB)) as bob:
        assert await bob.get_items() == []


async def test_whose_session_it_is_must_be_known(project: Environment, settings: SupabaseSettings) -> None:
    client = SignedIn(project, 3600)
    with pytest.raises(SettingMissing, match="Pass user_id as well"):
        SupabaseSession("s", settings=settings, access_token=client.fresh)
    session = SupabaseSession("s", settings=settings, access_token=client.plain)
    assert session.user_id == ADA
    store = wrap_store(SupabaseStore(settings, client.fresh, user_id=ADA))
    with pytest.raises(WrongOwner):
        store.session("s", user_id=BOB)
    async with store:
        await store.session("s").add_items([user("x")])
    async with session:
        assert texts(await session.get_items()) == ["x"]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ConnectionError("planted"), StoreUnavailable),
        (asyncio.CancelledError("planted"), StoreUnavailable),  # which nobody asked for
        (KeyError("planted"), StoreRefused),
    ],
)
async def test_a_function_that_fails_is_one_sentence(
    settings: SupabaseSettings, failure: BaseException, kind: type[Exception]
) -> None:
    async def fails() -> str:
        raise failure

    short = settings.model_copy(update={"session_retry_seconds": 0.2})
    async with SupabaseSession("s", settings=short, access_token=fails, user_id=ADA) as session:
        with pytest.raises(kind, match=r"access_token\(\) ") as caught:
            await session.get_items()
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "planted", None, 7])
async def test_what_a_function_returns_must_be_a_token(settings: SupabaseSettings, wrong: Any) -> None:
    async def fresh() -> str:
        return wrong  # type: ignore[no-any-return]

    async with SupabaseSession("s", settings=settings, access_token=fresh, user_id=ADA) as session:
        with pytest.raises(SettingMissing, match="not a token of a signed-in user") as caught:
            await session.get_items()
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert wrong != "planted" or "planted" not in shown.replace("wrong = 'planted'", "")


async def test_sessions_with_the_same_function_share_a_store(project: Environment, settings: SupabaseSettings) -> None:
    client, other = SignedIn(project, 3600), SignedIn(project, 3600)
    one, two, three = session_of(client, settings, "a"), session_of(client, settings, "b"), session_of(other, settings)
    async with one, two, three:
        assert one.store is two.store
        assert one.store is not three.store


async def test_no_token_is_in_an_error(project: Environment, settings: SupabaseSettings) -> None:
    client = SignedIn(project, ENDED, ENDED - 1)
    async with session_of(client, settings) as session:
        with pytest.raises(StoreRefused) as caught:
            await session.get_items()
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert not any(each in shown for each in client.tokens)
