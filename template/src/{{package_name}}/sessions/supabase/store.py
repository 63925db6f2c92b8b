"""Sessions in Supabase, through supabase-py and the SQL functions of `supabase/migrations/`.

Usage::

    session = SupabaseSession("chat-1")  # SUPABASE_URL and SUPABASE_KEY from the environment
    await Runner.run(agent, "Hi", session=session)
    await session.close()

On a server that knows its users by Supabase Auth, pass `access_token=`: the database then lets each see only their own.
A function in its place, with `user_id=`, gives fresh tokens to what lasts longer than one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import SecretStr

from ..errors import LeaseLost, WrongOwner, forgets_locals
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
from ..retry import settles
from ..settings import from_environment
from ..shared import SharedStoreSession
from ..store import ConnectedStore
from .connection import SupabaseSettings, deadline_of
from .errors import timed_out
from .token import AccessToken, Token

if TYPE_CHECKING:
    from agents.memory import SessionSettings

    from .client import Caller

MAX_LIMIT = 2**63 - 1
"""Largest LIMIT that PostgreSQL takes; callers may ask for more."""


class SupabaseStore(ConnectedStore):
    """All sessions of one project, or with an access token those of one user. Stores of a project share connections.

    Args:
        settings: From the environment if left out.
        access_token: The token of a signed-in user, as long as it is valid, or a function (it may be async) that
            returns a fresh one; None: the key acts for everybody.
        user_id: The user of the access token; needed with an async function.

    Raises:
        SettingMissing: The access token is none.
        WrongOwner: `user_id` is not the access token's user.
    """

    settings: SupabaseSettings

    @forgets_locals
    def __init__(
        self,
        settings: SupabaseSettings | None = None,
        access_token: Token | AccessToken | None = None,
        *,
        user_id: Id | None = None,
    ) -> None:
        super().__init__(settings or from_environment(SupabaseSettings))
        self._token = _access_token(access_token, user_id)
        self._owner = None if self._token is None else self._token.owner
        self._caller: Caller | None = None
        self._bookmark = Bookmark()

    def owner(self, user_id: str) -> str:
        """With an access token, its user.

        Raises:
            WrongOwner: `user_id` is not the access token's user.
        """
        return _owner(user_id, self._owner)

    @settles
    async def append(self, ref: SessionRef, batch: Batch) -> None:
        arguments = {**_named(ref), **_named_batch(batch)}
        if batch.lease is None:
            await self._call("agent_session_append", **arguments)
        elif not await self._call("agent_session_append_v2", **arguments, **_named_lease(batch)):
            raise LeaseLost

    async def tail(self, ref: SessionRef, limit: int | None) -> list[str]:
        limit = None if limit is None else min(limit, MAX_LIMIT)
        rows: list[str] = await self._call("agent_session_tail", **_named(ref), p_limit=limit)
        rows.reverse()
        return rows

    @settles
    async def pop(self, ref: SessionRef) -> str | None:
        content: str | None = await self._call("agent_session_pop", **_named(ref))
        return content

    @settles
    async def pop_object(self, ref: SessionRef) -> str | None:
        content: str | None = await self._call("agent_session_pop_object", **_named(ref))
        return content

    @settles
    async def take(self, ref: SessionRef, expected_tail: Sequence[str]) -> bool:
        return bool(await self._call("agent_session_take", **_named(ref), p_expected=list(expected_tail)))

    @settles
    async def replace_tail(self, ref: SessionRef, expected_tail: Sequence[str] | None, batch: Batch) -> bool:
        if expected_tail is None and not batch.rows:
            await self._call("agent_session_clear_v2", **_named(ref), p_batch_id=str(batch.id))
            return True
        expected = None if expected_tail is None else list(expected_tail)
        arguments = {**_named(ref), "p_expected": expected, **_named_batch(batch)}
        return bool(await self._call("agent_session_replace_tail", **arguments))

    async def page(self, ref: SessionRef, before: int | None = None, limit: int = 100) -> RowPage:
        limit = max(1, min(limit, 500))
        # One more than asked for shows whether there are older ones.
        found = await self._call("agent_session_page", **_named(ref), p_before=before, p_limit=limit + 1)
        return RowPage.of_rows(found, limit)

    @settles
    async def lease(
        self, ref: SessionRef, token: UUID, seconds: float, *, limit: int | None = 0, request_id: str | None = None
    ) -> Leased | None:
        limit = None if limit is None else min(limit, MAX_LIMIT)
        asked = {"p_token": str(token), "p_seconds": seconds, "p_limit": limit, "p_request_id": request_id}
        return Leased.of_array(await self._call("agent_session_lease", **_named(ref), **asked))

    @settles
    async def renew(self, ref: SessionRef, token: UUID, seconds: float) -> bool:
        return bool(await self._call("agent_session_renew", **_named(ref), p_token=str(token), p_seconds=seconds))

    @settles
    async def release(self, ref: SessionRef, token: UUID | None) -> bool:
        given = None if token is None else str(token)
        return bool(await self._call("agent_session_release", **_named(ref), p_token=given))

    async def turns(self, ref: SessionRef, limit: int = 1, turn_id: str | None = None) -> list[Turn]:
        found = await self._call("agent_session_turns", **_named(ref), p_turn_id=turn_id, p_limit=max(1, limit))
        return [Turn.of_row(row) for row in found]

    @settles
    async def change_turn(self, ref: SessionRef, before: Turn, after: Turn, lease: UUID | None = None) -> bool:
        changes = {
            "p_lease": None if lease is None else str(lease),
            "p_turn_id": before.id,
            "p_expected_status": before.status,
            "p_expected_content": before.content,
            "p_status": after.status,
            "p_content": after.content,
        }
        return bool(await self._call("agent_session_change_turn", **_named(ref), **changes))

    @settles
    async def fork(self, ref: SessionRef, new_ref: SessionRef, before: int | None = None) -> bool:
        if ref.user_id != new_ref.user_id:
            return await super().fork(ref, new_ref, before)
        arguments = {"p_new_session_id": new_ref.session_id, "p_before": before}
        return bool(await self._call("agent_session_fork", **_named(ref), **arguments))

    async def find_session(self, ref: SessionRef) -> SessionInfo | None:
        found = await self._call("agent_session_find", **_named(ref))
        return None if found is None else SessionInfo.of_row(found)

    async def list_sessions(self, user_id: Id | None = None, limit: int = 50, cursor: str | None = None) -> SessionPage:
        user_id = None if user_id is None else id_text("user_id", user_id)
        limit = max(1, min(limit, 500))
        updated_at, last_user_id, last_session_id = decode_cursor(cursor) if cursor else (None, None, None)
        page = await self._call(
            "agent_session_list",
            p_user_id=user_id,
            p_limit=limit + 1,  # one more than asked for shows whether there is a next page
            p_before=None if updated_at is None else updated_at.isoformat(),
            p_before_user_id=last_user_id,
            p_before_session_id=last_session_id,
        )
        sessions = [SessionInfo.of_row(row) for row in page]
        return SessionPage(sessions[:limit], encode_cursor(sessions[limit - 1]) if len(sessions) > limit else None)

    @settles
    async def update_session(
        self, ref: SessionRef, *, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        # Through JSON, because the library would convert what JSON cannot represent (bytes, dates) in its own way.
        plain = None if metadata is None else json.loads(encode_metadata(metadata))
        return bool(await self._call("agent_session_update", **_named(ref), p_title=title, p_metadata=plain))

    @settles
    async def rewrite(self, ref: SessionRef, before: Content, after: Content) -> bool:
        return await self._bookmark.rewrite(self._rewrite, ref, before, after)

    async def _rewrite(self, place: Place, before: Content, after: Content) -> int | None:
        changes = {
            "p_after": place.row_id,
            "p_skip": before.first - place.rows,
            "p_expected": list(before.rows),
            "p_contents": list(after.rows),
            "p_expected_title": before.title,
            "p_title": after.title,
            "p_expected_metadata": before.metadata,
            "p_metadata": after.metadata,
        }
        last: int | None = await self._call("agent_session_rewrite_v2", **_named(place.ref), **changes)
        return last

    @settles
    async def delete_session(self, ref: SessionRef) -> bool:
        return bool(await self._call("agent_session_delete", **_named(ref)))

    @settles
    async def delete_user(self, user_id: Id) -> int:
        return int(await self._call("agent_session_delete_user", p_user_id=id_text("user_id", user_id)))

    @settles
    async def prune(self, older_than: datetime, limit: int = 500) -> int:
        before = check_aware(older_than).astimezone(UTC).isoformat()
        return int(await self._call("agent_session_prune", p_older_than=before, p_limit=limit))

    @settles
    async def canary(self, kept: str | None = None, text: str | None = None) -> str | None:
        owner = self._owner or ""  # a signed-in user has one of their own
        now: str | None = await self._call("agent_session_canary", p_user_id=owner, p_kept=kept, p_text=text)
        return now

    # ── Connections ─────────────────────────────────────────────────────────

    async def _call(self, function: str, /, **arguments: object) -> Any:
        """The single value that the function returns, in one round trip."""
        deadline = deadline_of(self.settings)
        if not self._admitted or self._loop is not asyncio.get_running_loop():
            try:
                async with asyncio.timeout_at(deadline):
                    await self.open()
            except TimeoutError:
                raise timed_out(self.settings) from None
        assert self._caller is not None  # noqa: S101 - it is open
        return await self._caller.call(function, arguments, deadline)

    async def _connect(self) -> str | None:
        from .client import Caller  # imported late: supabase takes half a second

        if self._caller is None:
            self._caller = Caller(self.settings, self._token)
        own, others = await self._caller.open(self._owner or "")
        if others is not None:
            await self._admit(others)  # for a new user there is not a canary yet
        return own

    async def _disconnect(self) -> None:
        caller, self._caller = self._caller, None
        if caller is not None:
            await caller.close()

    def _forget(self) -> None:
        self._caller = None


class SupabaseSession(SharedStoreSession):
    """A session that needs no store of its own: all with the same settings share one per event loop.

    user_id and session_id are text, a number or a UUID; 42 and "42" are the same user. An app whose run context carries
    a user_id passes it here too: otherwise the session is refused as another user's.

    Args:
        session_id: Name of the conversation, unique for its user; at most 1,000 bytes.
        url: https://<project>.supabase.co; SUPABASE_URL if left out.
        key: The secret key, or with an access token the publishable one; SUPABASE_KEY if left out.
        access_token: The token of the signed-in user whose conversation it is, or a function (it may be async) that
            returns a fresh one: it is asked shortly before a token ends, and when the server says that it has. Sessions
            share connections if it is the same function.
        user_id: Whose conversation it is; with an access token, its user. Needed with an async function.
        session_settings: Default limit for reads; an object or a dict.
        settings: Everything else; from the environment if left out.

    Raises:
        SettingMissing: No url, key or access token, or no usable one.
        WrongOwner: `user_id` is not the access token's user.
        InvalidSessionId: See `SessionRef.check`.
    """

    @forgets_locals
    def __init__(
        self,
        session_id: Id,
        url: str | None = None,
        key: str | None = None,
        *,
        access_token: Token | None = None,
        user_id: Id | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        settings: SupabaseSettings | None = None,
    ) -> None:
        given = {"supabase_url": url, "supabase_key": None if key is None else SecretStr(key)}
        settings = (settings or from_environment(SupabaseSettings)).model_copy(
            update={name: value for name, value in given.items() if value is not None}
        )
        token = _access_token(access_token, user_id)
        owner = _owner(user_id, None if token is None else token.owner)
        _ = settings.url, settings.key, settings.server_key  # which raise what is wrong with them
        key_of_session = SessionRef(owner, session_id)
        super().__init__(
            settings, lambda: SupabaseStore(settings, token), key_of_session, session_settings, token=token
        )


def _access_token(given: Token | AccessToken | None, user_id: Id | None) -> AccessToken | None:
    # Not just any false value: an empty token must never become the rights of the key.
    return given if given is None or isinstance(given, AccessToken) else AccessToken(given, user_id)


def _owner(user_id: Id | None, signed_in: str | None) -> str:
    """Whose session is meant: the signed-in user's, if there is one."""
    named = "" if user_id is None else id_text("user_id", user_id)
    if signed_in is None or named == signed_in:
        return named
    if named:
        raise WrongOwner("user_id is not the user of the access token. Leave user_id out.")
    return signed_in


def _named(ref: SessionRef) -> dict[str, object]:
    return {"p_user_id": ref.user_id, "p_session_id": ref.session_id}


def _named_batch(batch: Batch) -> dict[str, object]:
    return {
        "p_batch_id": str(batch.id),
        "p_contents": [row.content for row in batch.rows],
        "p_roles": [row.role for row in batch.rows],
        "p_title": batch.title,
    }


def _named_lease(batch: Batch) -> dict[str, object]:
    turn = batch.turn
    return {
        "p_lease": str(batch.lease),
        "p_release": batch.release,
        "p_turn_id": None if turn is None else turn.id,
        "p_request_id": None if turn is None else turn.request_id,
        "p_status": None if turn is None else turn.status,
        "p_content": None if turn is None else turn.content,
    }
