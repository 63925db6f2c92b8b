"""A subclass that changes what goes in and comes out: nothing goes past the methods that it overrides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents import Agent, Runner, set_tracing_disabled
from agents.items import TResponseInputItem
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI

from my_agent.dev.offline import OfflineModel
from my_agent.sessions import SessionStore, StoredSession
from proof.support.helpers import anything, texts, user

SUMMARY = anything(type="message", role="user", content="a summary")


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)


class MaskingSession(StoredSession):
    """Stores each text reversed behind a mark, and gives it back as it was."""

    async def get_items(self, limit: int | None = None, wrapper: Any = None) -> list[TResponseInputItem]:
        return [_mapped(item, _unmasked) for item in await super().get_items(limit, wrapper)]

    async def add_items(self, items: list[TResponseInputItem], wrapper: Any = None) -> None:
        await super().add_items([_mapped(item, _masked) for item in items], wrapper)


def _mapped(item: TResponseInputItem, change: Callable[[str], str]) -> TResponseInputItem:
    content = cast(Any, item)["content"]
    if isinstance(content, str):
        return cast(TResponseInputItem, {**item, "content": change(content)})
    return cast(TResponseInputItem, {**item, "content": [{**part, "text": change(part["text"])} for part in content]})


def _masked(text: str) -> str:
    return "masked:" + text[::-1]


def _unmasked(text: str) -> str:
    assert text.startswith("masked:"), "something went past add_items"
    return text.removeprefix("masked:")[::-1]


def masking(store: SessionStore, **options: Any) -> MaskingSession:
    return MaskingSession(lambda: store, store.session("s").ref, **options)


def compacting(session: StoredSession, asked: list[Any]) -> OpenAIResponsesCompactionSession:
    async def compact(**request: Any) -> SimpleNamespace:
        asked.append(request["input"])
        return SimpleNamespace(output=[SUMMARY], usage=None)

    client = cast(AsyncOpenAI, SimpleNamespace(responses=SimpleNamespace(compact=compact)))
    return OpenAIResponsesCompactionSession(
        session.session_id, session, client=client, compaction_mode="input", should_trigger_compaction=lambda _: True
    )


async def test_a_compaction_by_hand_goes_through_overridden_methods(store: SessionStore) -> None:
    session, asked = masking(store), list[Any]()
    await session.add_items([user("secret"), user("whisper")])
    await compacting(session, asked).run_compaction({"force": True})
    assert texts(asked[0]) == ["secret", "whisper"]
    assert texts(await session.get_items()) == ["a summary"]
    assert texts(await store.session("s").get_items()) == ["masked:yrammus a"]


@pytest.mark.parametrize("limit", [None, 50])
async def test_an_automatic_compaction_goes_through_overridden_methods(store: SessionStore, limit: int | None) -> None:
    session, asked = masking(store, session_settings={"limit": limit}), list[Any]()
    agent = Agent[Any](name="Assistant", model=OfflineModel())
    async for _ in Runner.run_streamed(agent, "secret", session=compacting(session, asked)).stream_events():
        pass
    assert asked, "no compaction happened"
    assert texts(asked[0])[0] == "secret"
    assert texts(await session.get_items()) == ["a summary"]
    assert texts(await store.session("s").get_items()) == ["masked:yrammus a"]


async def _nothing(*_: Any, **__: Any) -> None:
    return None


async def _no_items(*_: Any, **__: Any) -> list[TResponseInputItem]:
    return []


OVERRIDES: list[tuple[str, Callable[..., Awaitable[Any]]]] = [
    ("get_items", _no_items),
    ("add_items", _nothing),
    ("pop_item", _nothing),
    ("clear_session", _nothing),
]


@pytest.mark.parametrize(("name", "override"), OVERRIDES)
@pytest.mark.parametrize("where", ["class", "mixin", "object"])
async def test_hooks_are_offered_only_where_no_method_is_overridden(
    store: SessionStore, name: str, override: Callable[..., Awaitable[Any]], where: str
) -> None:
    plain = store.session("s")
    await plain.add_items([user("a")])
    assert await plain._get_compaction_snapshot(10) is not None

    mixin = type("Mixin", (), {name: override})
    bases: dict[str, tuple[type, ...]] = {"class": (StoredSession,), "mixin": (mixin, StoredSession)}
    own = {name: override} if where == "class" else {}
    session = type("Own", bases.get(where, (StoredSession,)), own)(lambda: store, plain.ref)
    if where == "object":
        setattr(session, name, override)
    assert await session._get_compaction_snapshot(10) is None
    assert await session._atomic_replace_items([user("past the override")]) is False
    assert texts(await plain.get_items()) == ["a"]


async def test_a_subclass_that_overrides_nothing_keeps_the_hooks(store: SessionStore) -> None:
    class Named(StoredSession):
        label = "support"

    session = Named(lambda: store, store.session("s").ref)
    await session.add_items([user("a"), user("b")])
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    assert await snapshot.replace_suffix(1, [user("summary")])
    assert await session._atomic_replace_items([user("c")])
    assert texts(await session.get_items()) == ["c"]
