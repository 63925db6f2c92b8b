"""`/v1/responses`: one turn, its stored answer, and stopping it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from hashlib import sha256
from typing import Annotated, Any
from uuid import UUID

from agents import Agent
from fastapi import APIRouter, Body, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sse_starlette import EventSourceResponse

from ..conversation.approvals import pending
from ..conversation.notes import TurnNote, turn_id
from ..conversation.report import Usage
from ..conversation.turn import ApprovalNeeded, Done, Message, SdkEvent, run_turn
from ..sessions.errors import LeaseLost
from ..sessions.records import Turn, new_id
from .problems import Problem, problem_of
from .requests import CreateResponse, checked
from .service import Caller, Known, until_gone
from .shapes import (
    Item,
    approval_request,
    no_response,
    parse_response_id,
    response,
    response_id,
    shown_rows,
    usage,
    waiting_calls,
)
from .stream import Event, ResponseEvents, encoded

HEARTBEAT_SECONDS = 15
router = APIRouter()


@router.post("/v1/responses")
async def create(
    request: Request,
    known: Known,
    body: Annotated[Any, Body()],
    request_id: Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)] = None,
) -> Response:
    """Say something in a conversation, or decide about tool calls that wait."""
    agent = await known.service.agent()
    asked = _asked(body, agent)
    turn = await _Asked.of(known, agent, asked, request_id)
    if not asked.stream:
        return JSONResponse(await until_gone(request, turn.whole()))
    events = turn.events()
    try:
        first = await until_gone(request, anext(events))
    except BaseException:
        await events.aclose()
        raise

    async def lines() -> AsyncGenerator[dict[str, str], None]:
        async with aclosing(events):
            yield encoded(first)
            async for event in events:
                yield encoded(event)

    return EventSourceResponse(lines(), ping=HEARTBEAT_SECONDS, headers={"X-Accel-Buffering": "no"})


@router.get("/v1/responses/{name}")
async def retrieve(name: str, known: Known) -> Item:
    """The stored answer: all items of its turn, with those that came after an approval."""
    turn, session_id = await _stored(known, name)
    agent = await known.service.agent()
    note, waiting = TurnNote.of(turn), waiting_calls(turn)
    output = [item for item in await _rows(known, turn, session_id, waiting) if item.get("role") != "user"]
    output += [approval_request(call) for call in waiting]
    done = turn.status in ("done", "approval")
    return response(
        name,
        session_id,
        agent.name,
        status="completed" if done else "cancelled",
        output=output,
        usage=usage(note.usage if note else Usage()),
        metadata=note.metadata if note else {},
    )


@router.post("/v1/responses/{name}/cancel")
async def cancel(name: str, known: Known) -> Item:
    """Stop this turn, in whatever process it runs. (OpenAI cancels background responses alone.)"""
    _, session_id, token = parse_response_id(name)
    if not await known.store.release(known.ref(session_id), token):
        turn, _ = await _stored(known, name)  # or 404
        raise Problem(409, f"This response is not being made any more: it is {turn.status}.", code="not_running")
    agent = await known.service.agent()
    return response(name, session_id, agent.name, status="cancelled")


def _asked(body: Any, agent: Agent[Any]) -> CreateResponse:
    try:
        return CreateResponse.model_validate(checked(body, agent.name))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


class _Asked:
    """One request for a turn."""

    def __init__(self, known: Caller, agent: Agent[Any], session_id: str, said: Message | ApprovalNeeded) -> None:
        self._known, self._agent, self._session_id, self._said = known, agent, session_id, said
        self._token = new_id()
        self._calls: list[Item] = []
        self._request_id: str | None = None
        self._metadata: dict[str, str] = {}
        self._previous: str | None = None

    @classmethod
    async def of(cls, known: Caller, agent: Agent[Any], asked: CreateResponse, request_id: str | None) -> _Asked:
        """Find the conversation, and what is decided about.

        Raises:
            Problem: It is not there, or something else waits.
        """
        session_id = await _session_id(known, asked, request_id)
        decisions = asked.decisions()
        if decisions is None:
            turn = cls(known, agent, session_id, asked.message())
            turn._request_id = request_id
        else:
            waiting = await _decided(known, agent, session_id, decisions)
            turn = cls(known, agent, session_id, waiting)
            turn._token = UUID(waiting.turn_id.removeprefix("resp_"))  # a turn is one response, also after a pause
            turn._calls = [
                {"type": "function_call", "id": f"fc_{new_id().hex}", **_call_of(call)}
                for call in waiting.state.get_interruptions()
            ]
        turn._metadata, turn._previous = asked.metadata or {}, asked.previous_response_id
        return turn

    async def whole(self) -> Item:
        """The response when it is made.

        Raises:
            Exception: What `run_turn` raises.
        """
        made: Item = {}
        async with aclosing(self.events(told=False)) as events:
            async for event in events:
                made = event.get("response", made)
        return made

    async def events(self, *, told: bool = True) -> AsyncGenerator[Event, None]:
        """The events of the response.

        Args:
            told: Whether what fails after the first event becomes an event.
        """
        settings, known = self._known.service.settings, self._known
        frame = response(
            response_id(turn_id(self._token), self._session_id),
            self._session_id,
            self._agent.name,
            metadata=self._metadata,
            previous_response_id=self._previous,
        )
        answer, begun = ResponseEvents(frame, self._calls), False
        turn = run_turn(
            self._agent,
            known.session(self._session_id),
            self._said,
            max_items=settings.history_max_items,
            max_tokens=settings.history_max_tokens,
            wait_seconds=settings.session_wait_seconds,
            trace_content=settings.trace_content,
            request_id=self._request_id,
            metadata=self._metadata,
            sdk_events=True,
            token=self._token,
        )
        try:
            async with aclosing(turn):
                async for event in turn:
                    if not begun and isinstance(event, Done | ApprovalNeeded):  # it was answered before
                        stored = await _again(known, event.turn_id, self._session_id)
                        for each in ResponseEvents({**stored, "output": []}).replayed(stored["output"]):
                            yield each
                        return
                    if not begun:
                        begun = True
                        for each in answer.begin():
                            yield each
                    if isinstance(event, SdkEvent):
                        for each in answer.of_sdk(event.event):
                            yield each
                    elif isinstance(event, ApprovalNeeded):
                        calls = [_call_of(call) for call in event.state.get_interruptions()]
                        for each in (*answer.waits(calls), *answer.completed(event.usage)):
                            yield each
                    elif isinstance(event, Done):
                        for each in answer.completed(event.usage):
                            yield each
        except Exception as error:
            if not (begun and told):
                raise
            stopped = isinstance(error, LeaseLost) or "stopped from elsewhere" in str(error)
            for each in answer.failed(problem_of(error).message, "cancelled" if stopped else "failed"):
                yield each


async def _session_id(known: Caller, asked: CreateResponse, request_id: str | None) -> str:
    if asked.session_id is not None and asked.previous_response_id is not None:
        raise Problem(400, "Name the conversation or the previous response, not both.", param="previous_response_id")
    if asked.session_id is not None:
        return (await known.info(asked.session_id)).session_id
    if asked.previous_response_id is None:
        # A request that is repeated begins the same conversation, and so counts once as well.
        return f"conv_{new_id().hex if request_id is None else sha256(request_id.encode()).hexdigest()[:32]}"
    turn, session_id = await _stored(known, asked.previous_response_id)
    newest = await known.store.turns(known.ref(session_id), 1)
    if newest and newest[0].id != turn.id:
        raise Problem(
            400,
            "The conversation went on after this response. Name the conversation, or make a copy of what came before: "
            f"POST /v1/conversations/{session_id}/fork.",
            param="previous_response_id",
        )
    return session_id


async def _decided(known: Caller, agent: Agent[Any], session_id: str, decisions: dict[str, bool]) -> ApprovalNeeded:
    waiting = await pending(agent, known.session(session_id))
    if waiting is None:
        raise Problem(409, "Nothing waits for a decision in this conversation.", code="approval_gone")
    calls = {f"mcpr_{_call_of(call)['call_id']}": call for call in waiting.state.get_interruptions()}
    if unknown := decisions.keys() - calls.keys():
        raise Problem(409, f"{sorted(unknown)[0]!r} waits for no decision.", code="approval_gone")
    if missing := calls.keys() - decisions.keys():
        raise Problem(400, f"Decide about all calls that wait; missing: {', '.join(sorted(missing))}.", param="input")
    for name, call in calls.items():
        (waiting.state.approve if decisions[name] else waiting.state.reject)(call)
    return waiting


async def _stored(known: Caller, name: str) -> tuple[Turn, str]:
    turn_name, session_id, _ = parse_response_id(name)
    for turn in await known.store.turns(known.ref(session_id), 1, turn_name):
        return turn, session_id
    raise no_response(name)


async def _rows(known: Caller, turn: Turn, session_id: str, waiting: list[dict[str, str]]) -> list[Item]:
    """The items between the first and the last of a turn, oldest first."""
    found: list[Item] = []
    before = None if turn.last is None else turn.last + 1
    while before is not None and turn.first is not None:
        page = await known.store.page(known.ref(session_id), before)
        part = [pair for pair in zip(page.rows, page.positions, strict=True) if pair[1] >= turn.first]
        found = shown_rows([row for row, _ in part], [position for _, position in part], waiting) + found
        before = page.positions[0] if page.more and len(part) == len(page.rows) else None
    return found


async def _again(known: Caller, name: str, session_id: str) -> Item:
    return await retrieve(response_id(name, session_id), known)


def _call_of(call: Any) -> dict[str, str]:
    return {"call_id": call.call_id or "", "name": call.name or "?", "arguments": call.arguments or ""}
