"""Summaries in place of long histories: made between turns, found again however far back they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from agents import set_tracing_disabled
from agents.items import TResponseInputItem
from agents.models.openai_responses import OpenAIResponsesModel
from pydantic import SecretStr

from my_agent.app import open_model
from my_agent.conversation.edit import NothingToEdit, fork, fork_before
from my_agent.conversation.history import history_settings, history_window
from my_agent.conversation.notes import SOMEWHERE, TurnNote
from my_agent.conversation.summary import SummaryPlace, summarise
from my_agent.conversation.turn import ApprovalNeeded, Done, TurnFailed
from my_agent.dev.offline import OfflineModel
from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.records import new_id
from my_agent.settings import Settings
from proof.support.helpers import answer, anything, texts, user
from proof.support.model_servers import Answer, ModelServer, refusal
from proof.support.scripted_model import ScriptedModel, call, say
from proof.support.turns import KEY, agent_of, outcome, session_of

SUMMARY = anything(id="cmp_1", type="compaction", encrypted_content="sealed")


@pytest.fixture(autouse=True)
def no_traces() -> None:
    set_tracing_disabled(True)


def compacted(path: str, body: dict[str, Any]) -> Answer:
    """What the API answers: messages of the user as they were, and the summary."""
    assert path.endswith("/responses/compact")
    kept = [
        {
            "type": "message",
            "id": "msg",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": item["content"]}],
        }
        for item in body["input"]
        if item.get("role") == "user"
    ]
    usage = {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }
    found = {
        "id": "resp_1",
        "object": "response.compaction",
        "created_at": 1,
        "output": [*kept, SUMMARY],
        "usage": usage,
    }
    return 200, "application/json", json.dumps(found)


@asynccontextmanager
async def served(server: ModelServer, name: str = "gpt-test") -> AsyncIterator[OpenAIResponsesModel]:
    async with server.running():
        settings = Settings(
            openai_api_key=SecretStr("sk-planted-0123456789"), openai_base_url=server.url, openai_model=name
        )
        async with open_model(settings) as model:
            assert isinstance(model, OpenAIResponsesModel)
            yield model


def long_history(turns: int = 6) -> list[TResponseInputItem]:
    return [item for n in range(turns) for item in (user(f"question {n}"), answer(f"answer {n}"))]


async def test_a_long_history_is_replaced_by_its_summary(store: SessionStore) -> None:
    session = session_of(store)
    await session.add_items(long_history())
    await outcome(agent_of(say("hi")), session)
    async with served(ModelServer(compacted)) as model:
        assert not await summarise(session, model, after_items=8)
        assert await summarise(session, model, after_items=7)
        items = await session.get_items()
        assert items[-1] == SUMMARY
        assert len(items) == 8
        assert not await summarise(session, model, after_items=7), "nothing came since"
    scripted = ScriptedModel(say("fine"))
    assert await outcome(agent_of(model=scripted), session, "Next") == Done("fine")
    assert scripted.seen[0][-2:] == [SUMMARY, user("Next")]
    note = TurnNote.of((await store.turns(KEY))[0])
    assert note is not None
    assert note.summary == SOMEWHERE


async def test_what_is_written_meanwhile_stays(store: SessionStore) -> None:
    session = session_of(store)
    await session.add_items(long_history())
    server = ModelServer(compacted)
    serve = server._serve

    async def interrupted(reader: Any, writer: Any) -> None:
        await session.add_items([user("meanwhile")])  # by a program that takes no lease
        await serve(reader, writer)

    server._serve = interrupted  # type: ignore[method-assign]
    async with served(server) as model:
        assert not await summarise(session, model, after_items=3)
    assert server.requests
    assert texts(await session.get_items()) == [*texts(long_history()), "meanwhile"]


async def test_a_refused_summary_changes_nothing(store: SessionStore) -> None:
    session, before = session_of(store), long_history()
    await session.add_items(before)
    async with served(ModelServer(lambda path, body: refusal(404, "Incorrect key sk-planted-0123456789"))) as model:
        with pytest.raises(TurnFailed, match=r"^The conversation was not summarised\. ") as failed:
            await summarise(session, model, after_items=3)
    assert "planted" not in str(failed.value)
    async with served(ModelServer(compacted), "llama") as model:
        with pytest.raises(TurnFailed, match="llama"):
            await summarise(session, model, after_items=3)
    assert await session.get_items() == before
    assert await store.lease(KEY, new_id(), 1) is not None


async def test_nothing_is_summarised_while_a_turn_runs_or_waits(store: SessionStore) -> None:
    session, token = session_of(store), new_id()
    await session.add_items(long_history())
    server = ModelServer(compacted)
    async with served(server) as model:
        assert await store.lease(KEY, token, 5) is not None
        assert not await summarise(session, model, after_items=3)
        await store.release(KEY, token)
        assert isinstance(await outcome(agent_of(call("launch_rocket")), session), ApprovalNeeded)
        assert not await summarise(session, model, after_items=3)
    assert not await summarise(session, OfflineModel(), after_items=3)
    assert server.requests == []


async def test_a_summary_is_seen_however_far_back_it_is(store: SessionStore) -> None:
    session = session_of(store)
    await session.add_items([user("old"), SUMMARY])
    for number in range(7):
        scripted = ScriptedModel(say(f"answer {number}"))
        await outcome(agent_of(model=scripted), session, f"question {number}", max_items=4)
        assert [item for item in scripted.seen[0] if item.get("type") == "compaction"] == [SUMMARY], number
    note = TurnNote.of((await store.turns(KEY))[0])
    assert note is not None
    assert note.summary == (await store.page(KEY)).positions[1], "it is not looked for again"
    assert (await session.get_items()).count(SUMMARY) == 1, "it is not stored again"


async def test_a_summary_that_is_gone_is_not_looked_for_for_ever(store: SessionStore) -> None:
    session = session_of(store)
    await session.add_items(long_history(60))
    for position in (SOMEWHERE, 10**9):
        place = SummaryPlace(session, position)
        seen = await cast(Any, history_window(session, 3, None, place)(await session.get_items(6), [user("new")]))
        assert texts(seen) == ["question 59", "answer 59", "new"]
        assert place.position is None


async def test_a_summary_counts_as_tokens_and_is_sent_with_the_newest_turn(store: SessionStore) -> None:
    session = session_of(store)
    sealed = anything(id="cmp_1", type="compaction", encrypted_content="x" * 4_000)
    await session.add_items([user("old"), sealed, *long_history(40)])
    place = SummaryPlace(session, SOMEWHERE)
    window = history_window(session, 100, 1_500, place)
    seen = await cast(Any, window)(await session.get_items(history_settings(100, 1_500).limit), [user("new")])
    assert seen[0] == sealed
    assert texts(seen[1:2])[0].startswith("question ")
    assert 3 < len(seen) < 20
    assert place.position == (await store.page(KEY)).positions[1]


async def test_rows_that_cannot_be_read_stay_in_front_of_a_summary(store: SessionStore, damage_row: Any) -> None:
    session = store.session("s")
    await session.add_items(long_history())
    await damage_row(11, "unreadable")
    async with served(ModelServer(compacted)) as model:
        assert await summarise(session, model, after_items=3)
    rows = await session.tail(None)
    assert rows[1] == "unreadable"
    assert (await session.get_items())[-1] == SUMMARY


@pytest.mark.parametrize("output", [[], [{"type": "message", "role": "user", "content": "question 0"}]])
async def test_an_answer_without_a_summary_replaces_nothing(store: SessionStore, output: list[Any]) -> None:
    def without(path: str, body: dict[str, Any]) -> Answer:
        status, kind, text = compacted(path, body)
        return status, kind, json.dumps({**json.loads(text), "output": output})

    session, before = session_of(store), long_history()
    await session.add_items(before)
    async with served(ModelServer(without)) as model:
        with pytest.raises(TurnFailed, match="without a summary"):
            await summarise(session, model, after_items=3)
    assert await session.get_items() == before


async def test_what_lacks_its_other_half_is_not_sent(store: SessionStore) -> None:
    session = session_of(store)
    orphan = anything(type="function_call", id="fc_1", call_id="c1", name="t", arguments="{}")
    await session.add_items([*long_history(), orphan, user("and then")])
    server = ModelServer(compacted)
    async with served(server) as model:
        assert await summarise(session, model, after_items=3)
    ((_, _, body),) = server.requests
    assert not [item for item in body["input"] if item.get("type") == "function_call"]


async def test_a_summary_can_be_stopped(store: SessionStore) -> None:
    session, before = session_of(store), long_history()
    await session.add_items(before)
    server = ModelServer(compacted)
    serve = server._serve

    async def stopped(reader: Any, writer: Any) -> None:
        assert await store.release(KEY, None)
        await serve(reader, writer)

    server._serve = stopped  # type: ignore[method-assign]
    async with served(server) as model:
        assert not await summarise(session, model, after_items=3)
    assert await session.get_items() == before


async def test_what_a_summary_stands_for_cannot_be_edited(store: SessionStore) -> None:
    session = session_of(store)
    await session.add_items(long_history())
    async with served(ModelServer(compacted)) as model:
        assert await summarise(session, model, after_items=3)
    with pytest.raises(NothingToEdit, match="A summary stands for"):
        await fork_before(session, "copy")
    assert await store.find_session(SessionRef(KEY.user_id, "copy")) is None


@pytest.mark.parametrize("how", ["fork", "no note"])
async def test_a_summary_is_found_without_a_note_of_it(store: SessionStore, how: str) -> None:
    session = session_of(store)
    await session.add_items([user("old"), SUMMARY, *long_history(20)])
    if how == "fork":
        await fork(session, "copy")
        session = store.session("copy", user_id=KEY.user_id)
    scripted = ScriptedModel(say("fine"))
    await outcome(agent_of(model=scripted), session, max_items=4)
    assert SUMMARY in scripted.seen[0]
