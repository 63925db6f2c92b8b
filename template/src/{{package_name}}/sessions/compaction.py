"""What the SDK's `OpenAIResponsesCompactionSession` needs to replace the end of a history in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .codec import UnreadableItem, decode_item, decode_items

if TYPE_CHECKING:
    from agents.items import TResponseInputItem
    from agents.memory.session import _CompactionSnapshot

    from .session import StoredSession


async def compaction_snapshot(
    session: StoredSession, limit: int, prune_prefix: Callable[[TResponseInputItem], bool] | None
) -> _CompactionSnapshot | None:
    """The newest `limit` items, and a way to replace a suffix of them if nobody wrote in between.

    Args:
        session: The session to compact.
        limit: How many items at most.
        prune_prefix: Says of an item at the very start of the history whether it may go as well (expired ciphertext).

    Returns:
        None if a row is unreadable or the SDK has no snapshots: it then falls back to reading everything.
    """
    try:
        from agents.memory.session import _CompactionSnapshot
    except ImportError:  # an SDK without this hook
        return None

    fetched = await session.tail(limit + 1)
    rows = fetched[-limit:]
    try:
        items = decode_items(rows)
    except UnreadableItem:
        return None

    async def replace_suffix(start: int, output: list[TResponseInputItem]) -> bool:
        if not rows[start:]:
            return False
        if prune_prefix is None:
            return await session.replace_tail(rows[start:], output)
        # The expired prefix goes in the same step, so the whole history is compared and rewritten.
        history = await session.tail(None)
        if history[-len(rows) :] != rows:
            return False
        kept = [decode_item(row) for row in history[: len(history) - len(rows) + start]]
        while kept and prune_prefix(kept[0]):
            kept.pop(0)
        return await session.replace_tail(history, [*kept, *output])

    return _CompactionSnapshot(items=items, complete=len(fetched) <= limit, replace_suffix=replace_suffix)
