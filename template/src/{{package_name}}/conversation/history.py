"""Which part of a long history the model gets to see.

A history cut anywhere breaks the request: a tool's output without its call, a call or a message without the reasoning
that belongs to it, and the API refuses the whole turn, and every later one. So it is only cut in front of a user's
message or of a summary that the SDK's compaction left, and what lacks its other half is left out (see `items.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from agents.items import TResponseInputItem
from agents.memory import SessionInputCallback, SessionSettings

from ..sessions import StoredSession
from ..sessions.codec import encode_item
from .items import is_summary, opens, usable
from .summary import SummaryPlace

BYTES_PER_TOKEN = 4
"""OpenAI's rule of thumb for English ("1 token is about 4 characters"). Other scripts have more tokens a character, and
more bytes as well. The field names of an item count like its text, which makes the estimate a cautious one."""
IMAGE_TOKENS = 1536
"""For an image or a file whose data are in the item: the most that GPT-4.1 counts for an image (one token for each of
at most 1,536 patches). How many bytes it has says nothing about that."""
ITEM_TOKENS = 50
"""Few items are smaller: the JSON around an answer of one word has 40."""

_INLINED = re.compile(r'"data:[^",]{0,200};base64,[^"]*"|"(?:file_data|result)":"[A-Za-z0-9+/_-]{1000,}={0,2}"')


def history_settings(max_items: int, max_tokens: int | None = None) -> SessionSettings:
    """How much the Runner reads for a turn: twice the window, to find a good place for the cut."""
    if max_tokens is not None:
        max_items = min(max_items, max_tokens // ITEM_TOKENS + 1)
    return SessionSettings(limit=2 * max_items)


def history_window(
    session: StoredSession, max_items: int, max_tokens: int | None = None, summary: SummaryPlace | None = None
) -> SessionInputCallback:
    """What the Runner calls to put history and new input together.

    Args:
        session: Read again, further back, in the rare case that one turn alone is longer than what was read, or that
            more items fit into `max_tokens` than was expected.
        max_items: How many items of the history the model may see; more only if a single turn has more.
        max_tokens: The same in tokens, as `tokens_of` estimates them.
        summary: Where the newest summary is, in case that it is further back. Without it, such a one is not seen.
    """

    async def combine(
        history: list[TResponseInputItem], new_items: list[TResponseInputItem]
    ) -> list[TResponseInputItem]:
        read = history_settings(max_items, max_tokens).limit or 1
        while len(history) >= read and (_fits(history, max_items, max_tokens) or not any(map(opens, history))):
            read *= 2
            # In place: the Runner takes what this list holds for stored, and stores every other item that it gets.
            history[:] = await session.get_items(read)
        if summary is not None and (earlier := await summary.before(history, is_all=len(history) < read)):
            history.insert(0, earlier)
        # None: no user ever said anything here, and nothing can be cut off without breaking what is left.
        return [*(window(history, max_items, max_tokens) or []), *new_items]

    return combine


def window(
    history: Sequence[TResponseInputItem], max_items: int, max_tokens: int | None = None
) -> list[TResponseInputItem] | None:
    """The newest items of a history, from a user's message or a summary on; the last summary in front in any case.

    Returns:
        At most `max_items` items of `max_tokens`, and more only if the last turn alone has more. The summary counts as
        tokens, but not as an item. All items if they are no more than that, whatever they begin with. Without what
        lacks its other half, see `usable`. None without a place to cut.
    """
    if _fits(history, max_items, max_tokens):
        return usable(history)
    places = [index for index, item in enumerate(history) if opens(item)]
    if not places:
        return None
    # A summary stands for all that came before it: without it the model would forget that at once.
    summary = next((index for index in reversed(places) if is_summary(history[index])), None)
    on_top = 0 if max_tokens is None or summary is None else tokens_of(history[summary])

    def is_short_enough(start: int, tokens: int) -> bool:
        extra = on_top if summary is not None and start > summary else 0
        return len(history) - start <= max_items and (max_tokens is None or tokens + extra <= max_tokens)

    left = [0] * len(history) if max_tokens is None else _tokens_from(history)
    start = next((index for index in places if is_short_enough(index, left[index])), places[-1])
    kept = usable(history[start:])
    return kept if summary is None or summary >= start else [history[summary], *kept]


def tokens_of(item: TResponseInputItem) -> int:
    """About how many tokens the model reads for an item. Inlined images and files do not count by their bytes."""
    text, images = _INLINED.subn("", encode_item(item))
    return len(text.encode()) // BYTES_PER_TOKEN + images * IMAGE_TOKENS + 1


def _fits(history: Sequence[TResponseInputItem], max_items: int, max_tokens: int | None) -> bool:
    return len(history) <= max_items and (max_tokens is None or sum(map(tokens_of, history)) <= max_tokens)


def _tokens_from(history: Sequence[TResponseInputItem]) -> list[int]:
    """How many tokens there are from each item on."""
    return [*accumulate(tokens_of(item) for item in reversed(history))][::-1]
