"""Which part of a long history the model gets to see.

A history cut anywhere breaks the request: a tool's output without its call, a call or a message without the reasoning
that belongs to it, and the API refuses the whole turn, and every later one. So it is only cut in front of a user's
message or of a summary that the SDK's compaction left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from agents.items import TResponseInputItem
from agents.memory import SessionInputCallback, SessionSettings

from ..sessions import StoredSession


def history_settings(max_items: int) -> SessionSettings:
    """How much the Runner reads for a turn: twice the window, to find a good place for the cut.

    A summary that is further back is not seen either. Sessions that are compacted hardly get that long.
    """
    return SessionSettings(limit=2 * max_items)


def history_window(session: StoredSession, max_items: int) -> SessionInputCallback:
    """What the Runner calls to put history and new input together.

    Args:
        session: Read again, further back, in the rare case that one turn alone is longer than what was read.
        max_items: How many items of the history the model may see; more only if a single turn has more.
    """

    async def combine(
        history: list[TResponseInputItem], new_items: list[TResponseInputItem]
    ) -> list[TResponseInputItem]:
        read = 2 * max_items
        while (kept := window(history, max_items)) is None and len(history) >= read:
            read *= 2
            # In place: the Runner takes what this list holds for stored, and stores every other item that it gets.
            history[:] = await session.get_items(read)
        # None: no user ever said anything here, and nothing can be cut off without breaking what is left.
        return [*(kept or []), *new_items]

    return combine


def window(history: Sequence[TResponseInputItem], max_items: int) -> list[TResponseInputItem] | None:
    """The newest items of a history, from a user's message or a summary on; the last summary in front in any case.

    Returns:
        At most `max_items` items, and more only if the last turn alone has more; the summary comes on top. All items
        if they are no more than that, whatever they begin with. None without a place to cut.
    """
    if len(history) <= max_items:
        return without_orphans(history)
    places = [index for index, item in enumerate(history) if _opens(item)]
    if not places:
        return None
    start = next((index for index in places if index >= len(history) - max_items), places[-1])
    kept = without_orphans(history[start:])
    # A summary stands for all that came before it: without it the model would forget that at once.
    summary = next((index for index in reversed(places) if _kind(history[index]) == "compaction"), None)
    return kept if summary is None or summary >= start else [history[summary], *kept]


def without_orphans(items: Sequence[TResponseInputItem]) -> list[TResponseInputItem]:
    """The items but for outputs of tools whose calls are not among them.

    The SDK drops calls without outputs, but outputs without calls are left to the caller that chooses the history.
    """
    calls = {_call_id(item) for item in items if not _kind(item).endswith("_output")}
    return [item for item in items if not _kind(item).endswith("_output") or _call_id(item) in calls]


def _opens(item: TResponseInputItem) -> bool:
    """Whether nothing before this item belongs to it."""
    return _kind(item) == "compaction" or (_kind(item) == "message" and _field(item, "role") == "user")


def _kind(item: TResponseInputItem) -> str:
    return str(_field(item, "type") or "message")


def _call_id(item: TResponseInputItem) -> object:
    return _field(item, "call_id")


def _field(item: TResponseInputItem, name: str) -> Any:
    return cast(dict[str, Any], item).get(name)
