"""The Responses API as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from agents import Agent, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from my_agent.sessions import SessionRef, SessionStore
from proof.support.helpers import texts
from proof.support.scripted_model import ScriptedModel, call, say
from proof.support.turns import SlowModel, launch_rocket, launched
from proof.web.serving import app_of, serving


@function_tool
def look_up(text: str = "") -> str:
    """Look something up."""
    return f"found {text}"


class Talk:
    """A client, and the model that it talks to."""

    def __init__(self) -> None:
        self.client = AsyncOpenAI(api_key="none", base_url="http://unset")
        self.model: ScriptedModel = ScriptedModel()
        self.url = ""
        self.tools: list[Any] = [look_up, launch_rocket]

    def agent(self, _: Any) -> Agent[Any]:
        return Agent(name="Front", model=_Follows(self), tools=self.tools)

    def says(self, *script: Any) -> None:
        self.model = ScriptedModel(*script)


class _Follows(ScriptedModel):
    """The model that the test set last."""

    def __init__(self, talk: Talk) -> None:
        super().__init__()
        self.talk = talk

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for event in self.talk.model.stream_response(*args, **kwargs):
            yield event


@pytest.fixture
async def talk(store: SessionStore, server_environment: dict[str, str]) -> AsyncIterator[Talk]:
    set_tracing_disabled(True)
    launched.clear()
    talk = Talk()
    async with serving(app_of(server_environment, talk.agent)) as talk.url:  # noqa: SIM117 - the address comes first
        async with AsyncOpenAI(api_key="none", base_url=f"{talk.url}/v1", max_retries=0) as talk.client:
            yield talk


# ── Turns ───────────────────────────────────────────────────────────────────


async def test_a_response_is_stored_and_the_conversation_goes_on(talk: Talk, store: SessionStore) -> None:
    talk.says(say("hi Ada"), say("Ada"))
    first = await talk.client.responses.create(input="I am Ada", metadata={"from": "test"})
    assert (first.output_text, first.status, first.model) == ("hi Ada", "completed", "Front")
    assert first.conversation is not None
    assert first.usage is not None
    assert first.usage.total_tokens > 0
    second = await talk.client.responses.create(input="Who am I?", conversation=first.conversation.id)
    assert second.output_text == "Ada"
    assert texts(await store.session(first.conversation.id).get_items()) == ["I am Ada", "hi Ada", "Who am I?", "Ada"]
    again = await talk.client.responses.retrieve(first.id)
    assert (again.output_text, again.status, again.metadata) == ("hi Ada", "completed", {"from": "test"})
    assert again.usage == first.usage
    assert [item.id for item in again.output] == [item.id for item in first.output]


async def test_previous_responses_go_on_too_but_only_the_newest(talk: Talk) -> None:
    talk.says(say("one"), say("two"), say("three"))
    first = await talk.client.responses.create(input="1")
    second = await talk.client.responses.create(input="2", previous_response_id=first.id)
    assert second.conversation == first.conversation
    with pytest.raises(openai.BadRequestError, match="fork"):
        await talk.client.responses.create(input="3", previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError, match="not both"):
        await talk.client.responses.create(input="3", previous_response_id=second.id, conversation="x")
    for unknown in ("resp_nothing", first.id[:-3], "resp_" + "0" * 32 + "YQ"):
        with pytest.raises(openai.NotFoundError):
            await talk.client.responses.create(input="3", previous_response_id=unknown)
    with pytest.raises(openai.NotFoundError):
        await talk.client.responses.create(input="3", conversation="nowhere")


async def test_the_strict_stream_helper_accepts_a_turn_with_tools(talk: Talk) -> None:
    talk.says(call("look_up", "look_up", text="it"), say("It is found."))
    async with talk.client.responses.stream(input="Find it", model="Front") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert [item.type for item in final.output] == [*["function_call", "function_call_output"] * 2, "message"]
    assert final.output_text == "It is found."
    stored = await talk.client.responses.retrieve(final.id)
    assert sorted(item.type for item in stored.output) == sorted(item.type for item in final.output)


async def test_the_numbers_of_a_stream_grow_and_each_item_has_one_id(talk: Talk) -> None:
    talk.says(call("look_up", text="it"), say("It is found."))
    events: list[Any] = [event async for event in await talk.client.responses.create(input="Find it", stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.output == []
    ids: dict[int, set[str]] = {}
    for event in events:
        if hasattr(event, "output_index"):
            ids.setdefault(event.output_index, set()).add(event.item.id if hasattr(event, "item") else event.item_id)
    assert [len(ids[index]) for index in range(3)] == [1, 1, 1]
    final = events[-1].response
    assert [{item.id} for item in final.output] == [ids[index] for index in range(3)]
    # A client that acts on a call when it is done must know by then that it was made.
    done = [event.item.type for event in events if event.type == "response.output_item.done"]
    assert done == ["function_call", "function_call_output", "message"]


async def test_images_and_several_messages_reach_the_model(talk: Talk) -> None:
    talk.says(say("a cat"))
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
    said: Any = [
        {"role": "user", "content": "Look"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is it?"}, image]},
    ]
    done = await talk.client.responses.create(input=said)
    assert done.output_text == "a cat"
    assert [item.get("role") for item in talk.model.seen[0]] == ["user", "user"]
    assert image in talk.model.seen[0][1]["content"]  # type: ignore[typeddict-item]


async def test_a_repeated_request_counts_once(talk: Talk) -> None:
    talk.says(say("once"), say("twice"))
    conversation = await talk.client.conversations.create()
    options: Any = {"conversation": conversation.id, "extra_headers": {"Idempotency-Key": "k1"}}
    first = await talk.client.responses.create(input="Hi", **options)
    again = await talk.client.responses.create(input="Hi", **options)
    assert (again.id, again.output_text) == (first.id, "once")
    events: list[Any] = [
        event async for event in await talk.client.responses.create(input="Hi", stream=True, **options)
    ]
    assert events[-1].response.output_text == "once"
    assert len(talk.model.seen) == 1


async def test_a_repeated_request_begins_one_conversation(talk: Talk, store: SessionStore) -> None:
    talk.says(say("once"), say("twice"))
    options: Any = {"input": "Hi", "extra_headers": {"Idempotency-Key": "k1"}}
    answers = [await talk.client.responses.create(**options) for _ in range(2)]
    assert answers[0].id == answers[1].id
    assert len((await store.list_sessions()).sessions) == 1


async def test_a_conversation_may_have_any_name(talk: Talk, store: SessionStore) -> None:
    for name in ("a/b", "ü & ? #", "%2F"):
        await store.session(name).add_items([{"role": "user", "content": name}])
        assert (await talk.client.conversations.retrieve(name)).id == name
        talk.says(say("yes"))
        assert (await talk.client.responses.create(input="Hi", conversation=name)).output_text == "yes"
    listed = await talk.client.conversations.items.list("a/b")
    assert len(listed.data) == 3


async def test_a_tool_that_breaks_down_ends_the_stream_with_an_event(talk: Talk) -> None:
    @function_tool(failure_error_function=None)
    def break_down() -> str:
        """Fail."""
        raise MemoryError("planted")

    talk.tools = [break_down]
    talk.says(call("break_down"))
    events: list[Any] = [event async for event in await talk.client.responses.create(input="Hi", stream=True)]
    assert events[-1].type == "response.failed"
    assert "planted" not in events[-1].response.error.message or "break_down" in events[-1].response.error.message


# ── Approvals ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("approve", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_waits_for_its_approval(talk: Talk, store: SessionStore, approve: bool, stream: bool) -> None:
    talk.says(call("launch_rocket", text="Apollo"), say("done"))
    waiting = await talk.client.responses.create(input="Launch it")
    (request,) = waiting.output
    assert request.type == "mcp_approval_request"
    assert (request.name, request.server_label) == ("launch_rocket", "agent")
    assert waiting.conversation is not None
    listed = await talk.client.conversations.items.list(waiting.conversation.id)
    assert [item.type for item in listed.data] == ["mcp_approval_request", "message"]
    with pytest.raises(openai.ConflictError) as pending:
        await talk.client.responses.create(input="Something else", conversation=waiting.conversation.id)
    assert pending.value.code == "approval_pending"
    answer: Any = [{"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve}]
    options: Any = {"input": answer, "previous_response_id": waiting.id}
    if stream:
        events: list[Any] = [event async for event in await talk.client.responses.create(stream=True, **options)]
        done = events[-1].response
    else:
        done = await talk.client.responses.create(**options)
    assert [item.type for item in done.output] == ["function_call", "function_call_output", "message"]
    assert done.output_text == "done"
    assert launched == (["Apollo"] if approve else [])
    with pytest.raises(openai.ConflictError):
        await talk.client.responses.create(**options)
    whole = await talk.client.responses.retrieve(waiting.id)
    assert [item.type for item in whole.output] == ["function_call", "function_call_output", "message"]


async def test_all_calls_are_decided_at_once_and_nothing_is_said_beside(talk: Talk) -> None:
    talk.says(call("launch_rocket", "launch_rocket"), say("done"))
    waiting = await talk.client.responses.create(input="Launch both")
    answers: Any = [
        {"type": "mcp_approval_response", "approval_request_id": item.id, "approve": True} for item in waiting.output
    ]
    for wrong in (answers[:1], [*answers, {"role": "user", "content": "and this"}]):
        with pytest.raises(openai.BadRequestError):
            await talk.client.responses.create(input=wrong, previous_response_id=waiting.id)
    made_up: Any = [{"type": "mcp_approval_response", "approval_request_id": "mcpr_other", "approve": True}]
    with pytest.raises(openai.ConflictError):
        await talk.client.responses.create(input=made_up, previous_response_id=waiting.id)
    assert launched == []
    assert (await talk.client.responses.create(input=answers, previous_response_id=waiting.id)).output_text == "done"
    assert len(launched) == 2


# ── Stopping and failing ────────────────────────────────────────────────────


async def test_a_running_response_is_cancelled(talk: Talk, store: SessionStore) -> None:
    talk.model = SlowModel(say("never"), seconds=20)
    stream = await talk.client.responses.create(input="Think", stream=True)
    first: Any = await anext(aiter(stream))
    stopped = await talk.client.responses.cancel(first.response.id)
    assert stopped.status == "cancelled"
    events: list[Any] = [event async for event in stream]
    assert (events[-1].type, events[-1].response.status) == ("response.failed", "cancelled")
    assert await store.find_session(SessionRef("", first.response.conversation.id)) is None
    with pytest.raises(openai.NotFoundError):
        await talk.client.responses.cancel(first.response.id)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_stops_the_turn(talk: Talk, store: SessionStore, stream: bool) -> None:
    conversation = await talk.client.conversations.create()
    ref = SessionRef("", conversation.id)
    talk.model = slow = SlowModel(say("never"), seconds=20)

    async def ask() -> None:
        answer = await talk.client.responses.create(input="Think", conversation=conversation.id, stream=stream)
        if stream:
            async for _ in answer:  # type: ignore[union-attr]
                pass

    asking = asyncio.create_task(ask())
    await asyncio.wait_for(slow.asked.wait(), timeout=10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    talk.says(say("free"))
    async with asyncio.timeout(5):
        done = await talk.client.responses.create(input="Next", conversation=conversation.id)
    assert done.output_text == "free"
    assert texts(await store.session(ref.session_id).get_items()) == ["Next", "free"]


async def test_a_model_that_fails_is_told_and_nothing_is_stored(talk: Talk, store: SessionStore) -> None:
    talk.says(openai.APIConnectionError(request=None))  # type: ignore[arg-type]
    with pytest.raises(openai.InternalServerError, match="cannot be reached") as failed:
        await talk.client.responses.create(input="Hi")
    assert failed.value.code == "turn_failed"
    assert failed.value.response.headers["x-should-retry"] == "false"
    talk.says(call("look_up"), openai.APIConnectionError(request=None))  # type: ignore[arg-type]
    events: list[Any] = [event async for event in await talk.client.responses.create(input="Hi", stream=True)]
    assert events[-1].type == "response.failed"
    assert "cannot be reached" in events[-1].response.error.message
    assert (await store.list_sessions()).sessions == []


# ── Conversations ───────────────────────────────────────────────────────────


async def test_conversations_are_made_listed_changed_copied_and_removed(talk: Talk, store: SessionStore) -> None:
    made = await talk.client.conversations.create(metadata={"topic": "test"})
    assert (await talk.client.conversations.retrieve(made.id)).metadata == {"topic": "test"}
    talk.says(say("one"), say("two"))
    for text in ("first", "second"):
        await talk.client.responses.create(input=text, conversation=made.id)
    changed: Any = await talk.client.conversations.update(made.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    renamed = await talk.client.post(f"/conversations/{made.id}", body={"title": "A title"}, cast_to=dict[str, Any])
    assert (renamed["title"], renamed["item_count"]) == ("A title", 4)

    items = [item async for item in talk.client.conversations.items.list(made.id, limit=1)]
    assert [item.type for item in items] == ["message"] * 4
    assert len({item.id for item in items}) == 4
    newest_question: Any = next(item for item in items if item.role == "user")  # type: ignore[union-attr]
    body = {"before_item": newest_question.id}
    copy = await talk.client.post(f"/conversations/{made.id}/fork", body=body, cast_to=dict[str, Any])
    assert texts(await store.session(copy["id"]).get_items()) == ["first", "one"]
    first: Any = items[-1]
    empty = await talk.client.post(
        f"/conversations/{made.id}/fork", body={"before_item": first.id}, cast_to=dict[str, Any]
    )
    assert empty["item_count"] == 0

    listed = await talk.client.get("/conversations?limit=2", cast_to=dict[str, Any])
    rest = await talk.client.get(f"/conversations?limit=2&after={listed['last_id']}", cast_to=dict[str, Any])
    assert len({*(each["id"] for each in listed["data"] + rest["data"])}) == 3
    assert (listed["has_more"], rest["has_more"]) == (True, False)
    assert (await talk.client.conversations.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await talk.client.conversations.retrieve(made.id)
    gone = await talk.client.delete("/conversations", cast_to=dict[str, Any])
    assert gone["deleted"] == 2


async def test_everything_can_be_taken_along(talk: Talk, store: SessionStore) -> None:
    await store.session("mine").add_items([{"role": "user", "content": "Hi"}])
    await store.session("other", user_id="bob").add_items([{"role": "user", "content": "secret"}])
    exported = await talk.client.get("/export", cast_to=str)
    assert "mine" in exported
    assert "secret" not in exported


async def test_there_is_one_model(talk: Talk) -> None:
    assert [model.id async for model in talk.client.models.list()] == ["Front"]
    with pytest.raises(openai.NotFoundError, match="one model here: 'Front'"):
        await talk.client.responses.create(input="Hi", model="gpt-5")
