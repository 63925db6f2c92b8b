"""Says of rows that cannot be read where they are: once each, however often they are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from .contract import RowStore
from .refs import SessionRef

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 10_000
"""How many damaged rows of a store are remembered as logged. With more of them, some are logged again."""
MAX_NAMED = 10
"""How many rows a line names."""

_logged: WeakKeyDictionary[RowStore, dict[int, None]] = WeakKeyDictionary()
"""Hashes of what was logged, the oldest first. Not the texts, which may be megabytes."""


def report_damage(store: RowStore, ref: SessionRef, damaged: Mapping[int, tuple[str, str]]) -> None:
    """Log rows that were skipped, in one line, unless all of them were logged before. Never logs their content.

    Args:
        store: Where they were read.
        key: Their session.
        damaged: By their number from the newest: their text, and what is wrong with it.
    """
    logged = _logged.setdefault(store, {})
    found = {hash((ref, text)): (age, problem) for age, (text, problem) in damaged.items()}
    fresh = {mark: found[mark] for mark in found if mark not in logged}
    if not fresh:
        return
    logged.update(dict.fromkeys(fresh))
    while len(logged) > MAX_REMEMBERED:
        del logged[next(iter(logged))]
    ages = sorted(age for age, _ in fresh.values())
    logger.warning(
        "Skipped %d unreadable row%s of %r (%s): number %s from the newest. Logged once; what is stored stays.",
        len(ages),
        "" if len(ages) == 1 else "s",
        ref,
        ", ".join(sorted({problem for _, problem in fresh.values()})),
        ", ".join(map(str, ages[:MAX_NAMED])) + (", …" if len(ages) > MAX_NAMED else ""),
    )
