"""Summaries of long conversations: the API writes one in place of what came before, as an item of kind `compaction`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import openai
from agents.items import TResponseInputItem
from agents.memory import OpenAIResponsesCompactionSession
from agents.models.interface import Model
from agents.models.openai_responses import OpenAIResponsesModel

from ..sessions import StoredSession
from ..sessions.codec import try_decode
from ..sessions.paging import again
from .errors import forget_key, reason
from .events import SessionBusy, TurnFailed
from .hold import LEASE_SECONDS, Hold, hold
from .items import is_summary, usable
from .notes import SOMEWHERE, TurnNote, record

if TYPE_CHECKING:
    from agents.memory.session import Session, _CompactionSnapshot


_ALL = 2**31 - 2


class SummaryPlace:
    """Where the newest summary of a session is, so that it is found although a turn reads less than that.

    Args:
        position: Of its row; `SOMEWHERE`: it has to be looked for; None: it has none.
    """

    def __init__(self, session: StoredSession, position: int | None) -> None:
        self._session, self.position = session, position

    async def before(self, history: list[TResponseInputItem], *, is_all: bool) -> TResponseInputItem | None:
        """The summary that stands for what came before this history; None if the history has one itself, or is all."""
        if any(map(is_summary, history)):
            self.position = SOMEWHERE
            return None
        if is_all:
            self.position = None
        if self.position is None:
            return None
        store, ref = self._session.store, self._session.ref
        before, limit = (None, 500) if self.position == SOMEWHERE else (self.position + 1, 1)
        while True:
            page = await again(store, store.page, ref, before, limit)
            for row, position in zip(reversed(page.rows), reversed(page.positions), strict=True):
                item = try_decode(row)
                if item is not None and is_summary(item):
                    self.position = position
                    return item
            if not page.more:
                self.position = None
                return None
            before, limit = page.positions[0], 500


async def summarise(session: StoredSession, model: Model, *, after_items: int) -> bool:
    """Have the API replace a long history by a summary and what it keeps beside it.

    Call it between turns. The session is held meanwhile, so other turns wait. A program that writes without a lease is
    noticed: then nothing is replaced.

    Args:
        after_items: How many items there must be at least, without messages of the user and the last summary.

    Returns:
        Whether the history was replaced. False as well if a turn is running or waits for an approval, if it was stopped
        (`store.release`), and for models that do not come from OpenAI's Responses API.

    Raises:
        TurnFailed: The API refused. The history is as it was.
        SessionStoreError: The store failed.
    """
    if not isinstance(model, OpenAIResponsesModel) or session.overridden:
        return False
    store = session.store
    info = await again(store, store.find_session, session.ref)
    if info is None or info.item_count < after_items:
        return False
    view = _Unchanged(session)
    try:
        compaction = OpenAIResponsesCompactionSession(
            session.session_id,
            cast("Session", view),
            client=model._client,
            model=str(model.model),
            compaction_mode="input",
            should_trigger_compaction=lambda context: len(context["compaction_candidate_items"]) >= after_items,
        )
    except ValueError as error:
        raise TurnFailed(f"The conversation was not summarised. {error}") from error
    try:
        async with hold(session, wait_seconds=0, limit=0) as held:
            if held.last is not None and held.last.status == "approval":
                return False
            view.held = held
            await compaction.run_compaction()
            if view.replaced and (note := TurnNote.of(held.last)) is not None and held.last is not None:
                noted = record(held.last.status, replace(note, summary=SOMEWHERE), held.last)
                await held.change(held.last, noted)
    except (SessionBusy, _Changed):
        return False
    except openai.OpenAIError as error:
        forget_key(error)
        raise TurnFailed(f"The conversation was not summarised. {reason(error)}") from error
    return view.replaced


class _Changed(Exception):
    """Somebody wrote while the summary was made."""


class _Unchanged:
    """A session for one compaction by the SDK, which is replaced only if it still is what was read."""

    def __init__(self, session: StoredSession) -> None:
        self.session_id, self.session_settings = session.session_id, None
        self.replaced = False
        self.held: Hold | None = None
        self._session = session
        self._read: _CompactionSnapshot | None = None

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        if self._read is None:
            self._read = await self._session._get_compaction_snapshot(_ALL)
        # The API refuses what lacks its other half, such as calls that were discarded.
        return [] if self._read is None else usable(self._read.items)

    async def _still_held(self) -> bool:
        """Whether nobody stopped this, as a run is stopped."""
        held, store = self.held, self._session.store
        return held is not None and await store.renew(self._session.ref, held.buffer.lease, LEASE_SECONDS)

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        # Errors, not False: then the SDK would clear the session and add the items.
        if not any(map(is_summary, items)):
            raise TurnFailed("The conversation was not summarised. The model's server answered without a summary.")
        if self._read is None or not await self._still_held() or not await self._read.replace_suffix(0, items):
            raise _Changed
        self.replaced = True
        return True
