"""Sessions in PostgreSQL, through asyncpg and the SQL functions of `migrations/`.

Usage::

    session = PostgresSession("chat-1", dsn="postgresql://user:password@localhost:5432/yourdb")
    await Runner.run(agent, "Hi", session=session)
    await session.close()
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
from pydantic import SecretStr

from ..credentials import Credentials
from ..errors import LeaseLost, forgets_locals
from ..paging import Bookmark, Place, decode_cursor, encode_cursor
from ..records import (
    Batch,
    Content,
    Id,
    Leased,
    RowPage,
    SessionInfo,
    SessionPage,
    SessionRef,
    Turn,
    check_aware,
    encode_metadata,
    id_text,
)
from ..settings import from_environment
from ..shared import SharedStoreSession
from ..store import ConnectedStore
from .connection import DRIVER_ERRORS, OPENING_STATEMENT, PostgresSettings, in_schema, read_opening
from .errors import translate
from .pool import ConnectFailed, ConnectionPool

if TYPE_CHECKING:
    from agents.memory import SessionSettings

MAX_LIMIT = 2**63 - 1
"""Largest LIMIT that PostgreSQL takes; callers may ask for more."""

# What the function agent_session_append does, without calling a function: a tenth less time where the server keeps the
# plan (358 instead of 394 µs, fsync on), a third more where it does not. The template's proof compares them.
_APPEND = """
WITH batch AS (
  INSERT INTO public.agent_session_batches (user_id, session_id, batch_id)
  VALUES ($1, $2, $3)
  ON CONFLICT DO NOTHING
  RETURNING batch_id
), session AS (
  INSERT INTO public.agent_session_info AS info (user_id, session_id, title, item_count, updated_at)
  SELECT $1, $2, $6, cardinality($4::text[]), clock_timestamp() FROM batch
  ON CONFLICT (user_id, session_id) DO UPDATE
    SET item_count = info.item_count + excluded.item_count,
        updated_at = clock_timestamp(),
        title = coalesce(info.title, excluded.title)
  RETURNING updated_at, CASE WHEN random() < 0.01 THEN public.agent_session_forget(200) END
)
INSERT INTO public.agent_sessions (user_id, session_id, role, content, created_at)
  SELECT $1, $2, item.role, item.content, session.updated_at
  FROM session, unnest($4, $5::text[]) AS item (content, role)
"""
# What the function agent_session_tail does, but as rows: putting them into an array takes as long as finding them.
_TAIL = """
SELECT content FROM public.agent_sessions
  WHERE user_id = $1 AND session_id = $2
  ORDER BY id DESC
  LIMIT (SELECT $3::bigint)  -- a number would make the planner sort where it takes a history for short
"""
_APPEND_FUNCTION = "SELECT public.agent_session_append($1, $2, $3, $4, $5, $6)"
_LEASED_APPEND = "SELECT public.agent_session_append_v2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"


class PostgresStore(ConnectedStore):
    """All sessions of one database, over one connection pool, which opens at the first call.

    Args:
        settings: From the environment if left out.
        credentials: Asked for user and password of every new connection, where they expire (RDS IAM, Entra).
    """

    settings: PostgresSettings

    def __init__(self, settings: PostgresSettings | None = None, *, credentials: Credentials | None = None) -> None:
        super().__init__(settings or from_environment(PostgresSettings))
        self._credentials = credentials
        self._pool: ConnectionPool | None = None
        self._bookmark = Bookmark()

    async def append(self, ref: SessionRef, batch: Batch) -> None:
        rows = ([row.content for row in batch.rows], [row.role for row in batch.rows])
        if batch.lease is None:
            statement = _APPEND_FUNCTION if self._behind_pooler else _APPEND
            await self._rows(statement, *ref, batch.id, *rows, batch.title)
        elif not await self._call(
            _LEASED_APPEND, *ref, batch.id, *rows, batch.title, batch.lease, batch.release, *_note(batch)
        ):
            raise LeaseLost

    async def tail(self, ref: SessionRef, limit: int | None) -> list[str]:
        limit = None if limit is None else min(limit, MAX_LIMIT)
        if self._behind_pooler:
            texts: list[str] = await self._call("SELECT public.agent_session_tail($1, $2, $3)", *ref, limit)
        else:
            texts = [row[0] for row in await self._rows(_TAIL, *ref, limit)]
        texts.reverse()
        return texts

    async def pop(self, ref: SessionRef) -> str | None:
        content: str | None = await self._call("SELECT public.agent_session_pop($1, $2)", *ref)
        return content

    async def pop_object(self, ref: SessionRef) -> str | None:
        content: str | None = await self._call("SELECT public.agent_session_pop_object($1, $2)", *ref)
        return content

    async def take(self, ref: SessionRef, expected_tail: Sequence[str]) -> bool:
        return bool(await self._call("SELECT public.agent_session_take($1, $2, $3)", *ref, list(expected_tail)))

    async def replace_tail(self, ref: SessionRef, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        if expected_tail is None and not batch.rows:
            await self._call("SELECT public.agent_session_clear_v2($1, $2, $3)", *ref, batch.id)
            return True
        contents = [row.content for row in batch.rows]
        roles = [row.role for row in batch.rows]
        expected = None if expected_tail is None else list(expected_tail)
        statement = "SELECT public.agent_session_replace_tail($1, $2, $3, $4, $5, $6, $7)"
        return bool(await self._call(statement, *ref, expected, batch.id, contents, roles, batch.title))

    async def page(self, ref: SessionRef, before: int | None = None, limit: int = 100) -> RowPage:
        limit = max(1, min(limit, 500))
        # One more than asked for shows whether there are older ones.
        found = await self._call("SELECT public.agent_session_page($1, $2, $3, $4)", *ref, before, limit + 1)
        return RowPage.of_rows(json.loads(found), limit)

    async def lease(
        self, ref: SessionRef, token: UUID, seconds: float, *, limit: int | None = 0, request_id: str | None = None
    ) -> Leased | None:
        limit = None if limit is None else min(limit, MAX_LIMIT)
        statement = "SELECT public.agent_session_lease($1, $2, $3, $4, $5, $6)"
        return Leased.of_array(await self._call(statement, *ref, token, seconds, limit, request_id))

    async def renew(self, ref: SessionRef, token: UUID, seconds: float) -> bool:
        return bool(await self._call("SELECT public.agent_session_renew($1, $2, $3, $4)", *ref, token, seconds))

    async def release(self, ref: SessionRef, token: UUID | None) -> bool:
        return bool(await self._call("SELECT public.agent_session_release($1, $2, $3)", *ref, token))

    async def turns(self, ref: SessionRef, limit: int = 1, turn_id: str | None = None) -> list[Turn]:
        found = await self._call("SELECT public.agent_session_turns($1, $2, $3, $4)", *ref, turn_id, max(1, limit))
        return [Turn.of_row(row) for row in json.loads(found)]

    async def change_turn(self, ref: SessionRef, before: Turn, after: Turn, lease: UUID | None = None) -> bool:
        statement = "SELECT public.agent_session_change_turn($1, $2, $3, $4, $5, $6, $7, $8)"
        texts = (before.status, before.content, after.status, after.content)
        return bool(await self._call(statement, *ref, lease, before.id, *texts))

    async def fork(self, ref: SessionRef, new_ref: SessionRef, before: int | None = None) -> bool:
        if ref.user_id != new_ref.user_id:
            return await super().fork(ref, new_ref, before)
        statement = "SELECT public.agent_session_fork($1, $2, $3, $4)"
        return bool(await self._call(statement, *ref, new_ref.session_id, before))

    async def find_session(self, ref: SessionRef) -> SessionInfo | None:
        found = await self._call("SELECT public.agent_session_find($1, $2)", *ref)
        return None if found is None else SessionInfo.of_row(json.loads(found))

    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        user_id = None if user_id is None else id_text("user_id", user_id)
        limit = max(1, min(limit, 500))
        before = decode_cursor(cursor) if cursor else (None, None, None)
        # One more than asked for shows whether there is a next page.
        page = await self._call("SELECT public.agent_session_list($1, $2, $3, $4, $5)", user_id, limit + 1, *before)
        sessions = [SessionInfo.of_row(row) for row in json.loads(page)]
        return SessionPage(sessions[:limit], encode_cursor(sessions[limit - 1]) if len(sessions) > limit else None)

    async def update_session(
        self, ref: SessionRef, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        encoded = None if metadata is None else encode_metadata(metadata)
        return bool(await self._call("SELECT public.agent_session_update($1, $2, $3, $4)", *ref, title, encoded))

    async def rewrite(self, ref: SessionRef, before: Content, after: Content) -> bool:
        return await self._bookmark.rewrite(self._rewrite, ref, before, after)

    async def _rewrite(self, place: Place, before: Content, after: Content) -> int | None:
        statement = "SELECT public.agent_session_rewrite_v2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        where = (place.row_id, before.first - place.rows)
        rows = (list(before.rows), list(after.rows))
        metadata = (json.dumps(before.metadata), json.dumps(after.metadata))
        last: int | None = await self._call(statement, *place.ref, *where, *rows, before.title, after.title, *metadata)
        return last

    async def delete_session(self, ref: SessionRef) -> bool:
        return bool(await self._call("SELECT public.agent_session_delete($1, $2)", *ref))

    async def delete_user(self, user_id: Id) -> int:
        return int(await self._call("SELECT public.agent_session_delete_user($1)", id_text("user_id", user_id)))

    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        return int(await self._call("SELECT public.agent_session_prune($1, $2)", check_aware(older_than), limit))

    async def canary(self, kept: str | None = None, text: str | None = None) -> str | None:
        now: str | None = await self._call("SELECT public.agent_session_canary($1, $2, $3)", "", kept, text)
        return now

    # ── Connections ─────────────────────────────────────────────────────────

    @cached_property
    def _behind_pooler(self) -> bool:
        """Whether every statement is planned anew, so that only functions keep their plans."""
        return self.settings.behind_pooler

    async def _call(self, statement: str, *arguments: object) -> Any:
        """The single value that `statement` returns, in one round trip."""
        return (await self._rows(statement, *arguments))[0][0]

    async def _rows(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        if not self._admitted or self._loop is not asyncio.get_running_loop():
            await self.open()
        assert self._pool is not None  # noqa: S101 - it is open
        return await self._fetch(self._pool, statement, *arguments)

    async def _fetch(self, pool: ConnectionPool, statement: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            return await pool.fetch(in_schema(statement, self.settings.database_schema), arguments)
        except ConnectFailed as error:
            cause = error.__cause__ or error
            problem = translate(cause, self.settings, sent=False)
            raise problem from (cause.__cause__ if problem is cause else cause)
        except DRIVER_ERRORS as error:
            raise translate(error, self.settings, sent=True) from _without_values(error)

    async def _connect(self) -> str | None:
        if self._pool is None:
            self._pool = ConnectionPool(self.settings, self._credentials)
        return read_opening((await self._fetch(self._pool, OPENING_STATEMENT, ""))[0][0])

    async def _disconnect(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def _forget(self) -> None:
        self._pool = None


class PostgresSession(SharedStoreSession):
    """A session that needs no store of its own: all with the same settings share one per event loop.

    user_id and session_id are text, a number or a UUID; 42 and "42" are the same user. An app whose run context carries
    a user_id passes it here too: otherwise the session is refused as another user's.

    Args:
        session_id: Name of the conversation, unique for its user; at most 1,000 bytes.
        dsn: postgresql://user:password@host:5432/name; DATABASE_URL if left out.
        user_id: Whose conversation it is.
        session_settings: Default limit for reads; an object or a dict.
        settings: Everything else; from the environment if left out.
        credentials: As for `PostgresStore`. Sessions with the same function share a store. DATABASE_CREDENTIALS is not
            used for a dsn with a password.

    Raises:
        SettingMissing: No dsn, or no usable one.
        InvalidSessionId: See `SessionRef.check`.
    """

    @forgets_locals
    def __init__(
        self,
        session_id: Id,
        dsn: str | None = None,
        *,
        user_id: Id = "",
        session_settings: SessionSettings | dict[str, Any] | None = None,
        settings: PostgresSettings | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        settings = settings or from_environment(PostgresSettings)
        if dsn is not None:
            settings = settings.model_copy(update={"database_url": SecretStr(dsn)})
            if settings.database_credentials and settings.address.login.password:  # which is for this address
                settings = settings.model_copy(update={"database_credentials": None})
        _ = settings.address  # which raises what is wrong with it
        ref = SessionRef(user_id, session_id)
        make_store = partial(PostgresStore, settings, credentials=credentials)
        super().__init__(settings, make_store, ref, session_settings, token=credentials)


def _note(batch: Batch) -> tuple[str | None, ...]:
    turn = batch.turn
    return (None,) * 4 if turn is None else (turn.id, turn.request_id, turn.status, turn.content)


def _without_values(error: BaseException) -> BaseException | None:
    """The cause of an error as tracebacks may show it: values of a call and rows of a table stay out of logs."""
    if isinstance(error, asyncpg.PostgresError):
        error.detail = None
    return None if isinstance(error, asyncpg.DataError) else error
