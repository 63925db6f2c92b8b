"""What the SDK's `OpenAIResponsesCompactionSession` needs to replace a history, or its end, in one step.

Rows that cannot be read are never part of what is replaced: a summary does not stand for them, and a key that was lost
may be found again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from .codec import role_in, try_decode
from .records import Row

if TYPE_CHECKING:
    from agents.items import TResponseInputItem
    from agents.memory.session import _CompactionSnapshot


class History(Protocol):
    """The part of a session that is needed here."""

    async def tail(self, limit: int | None) -> list[str]: ...

    async def replace_tail(
        self, expected_tail: Sequence[str] | None, items: list[TResponseInputItem], after: Sequence[Row] = ()
    ) -> bool: ...


async def replace_history(session: History, items: list[TResponseInputItem]) -> bool:
    """Put `items` in the place of everything that can be read.

    As the SDK's hook has it, this does not notice what others wrote since the SDK read the history.
    """
    while True:
        rows = await session.tail(None)
        readable = [try_decode(row) is not None for row in rows]
        if all(readable):
            return await session.replace_tail(None, items)
        # Damaged rows at the very beginning are not touched; damaged rows after them move to the end of the prefix.
        first = readable.index(True) if any(readable) else len(rows)
        damaged = [Row(row) for row, fine in zip(rows[first:], readable[first:], strict=True) if not fine]
        if await session.replace_tail(rows[first:], items, after=damaged):
            return True


async def compaction_snapshot(
    session: History, limit: int, prune_prefix: Callable[[TResponseInputItem], bool] | None
) -> _CompactionSnapshot | None:
    """The newest items, and a compare-and-replace of a suffix of them.

    Args:
        session: The session to compact.
        limit: How many items at most. Fewer if there is an unreadable row among them: those after it.
        prune_prefix: Says of an item at the very start of the history whether it may go as well (expired ciphertext).

    Returns:
        None if the SDK does not use snapshots: it then reads everything.
    """
    try:
        from agents.memory.session import _CompactionSnapshot
    except ImportError:  # an SDK without this hook
        return None

    fetched = await session.tail(limit + 1)
    rows = fetched[-limit:]
    decoded = [try_decode(row) for row in rows]
    if None in decoded:
        damaged = max(position for position, item in enumerate(decoded) if item is None)
        rows, decoded = rows[damaged + 1 :], decoded[damaged + 1 :]
    items = [item for item in decoded if item is not None]

    async def replace_suffix(start: int, output: list[TResponseInputItem]) -> bool:
        if not rows[start:]:
            return False
        if prune_prefix is not None:
            history = await session.tail(None)
            if history[-len(rows) :] != rows:
                return False
            before = history[: len(history) - len(rows) + start]
            if expired := _count_expired(before, prune_prefix):
                # The expired prefix goes in the same step, so the whole history is compared and rewritten.
                kept = [Row(row, role_in(row)) for row in before[expired:]]
                return await session.replace_tail(history, output, after=kept)
        return await session.replace_tail(rows[start:], output)

    return _CompactionSnapshot(items=items, complete=len(rows) == len(fetched), replace_suffix=replace_suffix)


def _count_expired(rows: list[str], is_expired: Callable[[TResponseInputItem], bool]) -> int:
    for count, row in enumerate(rows):
        if (item := try_decode(row)) is None or not is_expired(item):
            return count
    return len(rows)
