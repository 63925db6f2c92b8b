"""`/v1/conversations`: OpenAI's own routes, and ours: the list, copies, and leaving with everything."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from io import BytesIO
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from ..conversation.edit import fork
from ..sessions.paging import again, chosen_sessions
from ..sessions.records import Batch, new_id
from ..transfer.sessions import export_sessions
from .problems import Problem
from .requests import ChangeConversation, Fork, NewConversation
from .service import Known
from .shapes import Item, approval_request, conversation, no_conversation, page, position_of, shown_rows, waiting_calls

router = APIRouter(prefix="/v1")
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/conversations")
async def create(known: Known, asked: NewConversation | None = None) -> Item:
    """Begin a conversation, without anything said yet."""
    session_id = f"conv_{new_id().hex}"
    ref = known.ref(session_id)
    await known.store.append(ref, Batch.of([]))
    if asked is not None and asked.metadata:
        await known.store.update_session(ref, metadata=asked.metadata)
    return conversation(await known.info(session_id))


@router.get("/conversations")
async def list_(known: Known, limit: Limit = 30, after: str | None = None) -> Item:
    """The user's conversations, the last written first. (OpenAI has no such list.)"""
    try:
        found = await known.store.list_sessions(known.ref("any").user_id, limit, after)
    except ValueError as error:
        raise Problem(400, "Take `after` from `last_id` of the page before.", param="after") from error
    return page([conversation(info) for info in found.sessions], found.next_cursor, found.next_cursor is not None)


@router.delete("/conversations")
async def delete_all(known: Known) -> Item:
    """Remove everything of the user."""
    return {"object": "list.deleted", "deleted": await known.store.delete_user(known.ref("any").user_id)}


# These two come first: an id may have slashes in it.


@router.get("/conversations/{session_id:path}/items")
async def items(
    session_id: str, known: Known, limit: Limit = 20, after: str | None = None, order: str | None = None
) -> Item:
    """What was said, the newest first, with what waits for an approval."""
    if order not in (None, "desc"):
        raise Problem(400, "Items are listed from the newest on: leave `order` out.", param="order")
    await known.info(session_id)
    before = None
    if after is not None:
        if not after.isdecimal() or len(after) > 18:
            raise Problem(400, "Take `after` from `last_id` of the page before.", param="after")
        before = int(after)
    ref = known.ref(session_id)
    turns = await again(known.store, known.store.turns, ref, 1)
    waiting = waiting_calls(turns[0] if turns else None)
    found = await again(known.store, known.store.page, ref, before, limit)
    data = shown_rows(found.rows, found.positions, waiting)
    if before is None:
        data += [approval_request(call) for call in waiting]
    return page(data[::-1], str(found.positions[0]) if found.positions else None, found.more)


@router.post("/conversations/{session_id:path}/fork")
async def copy(session_id: str, known: Known, asked: Fork | None = None) -> Item:
    """A new conversation with all of this one, or with what came before a message of the user (to say it anew)."""
    await known.info(session_id)
    name = f"conv_{new_id().hex}"
    before = position_of(asked.before_item) if asked is not None and asked.before_item is not None else None
    if before is not None and not (await known.store.page(known.ref(session_id), before, 1)).rows:
        await known.store.append(known.ref(name), Batch.of([]))  # nothing came before
    else:
        await fork(known.session(session_id), name, before)
    return conversation(await known.info(name))


@router.get("/conversations/{session_id:path}")
async def retrieve(session_id: str, known: Known) -> Item:
    return conversation(await known.info(session_id))


@router.post("/conversations/{session_id:path}")
async def update(session_id: str, known: Known, asked: ChangeConversation) -> Item:
    """Change the title or the metadata."""
    if not await known.store.update_session(known.ref(session_id), title=asked.title, metadata=asked.metadata):
        raise no_conversation(session_id)
    return conversation(await known.info(session_id))


@router.delete("/conversations/{session_id:path}")
async def delete(session_id: str, known: Known) -> Item:
    if not await known.store.delete_session(known.ref(session_id)):
        raise no_conversation(session_id)
    return {"id": session_id, "object": "conversation.deleted", "deleted": True}


@router.get("/export")
async def export(known: Known) -> StreamingResponse:
    """Everything of the user, as `sessions import` reads it."""
    user_id = known.ref("any").user_id

    async def lines() -> AsyncGenerator[bytes, None]:
        async for info in chosen_sessions(known.store, user_id):
            part = BytesIO()
            await export_sessions(known.store, part, user_id=info.user_id, session_id=info.session_id)
            yield part.getvalue()

    headers = {"Content-Disposition": 'attachment; filename="conversations.jsonl"'}
    return StreamingResponse(lines(), media_type="application/jsonl", headers=headers)
