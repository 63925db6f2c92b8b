"""Repeating a call while the store is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from .store import StoreUnavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")


async def retried(operation: Callable[[], Awaitable[T]], seconds: float, *, repeatable: bool = True) -> T:
    """Call `operation`, and again while it raises `StoreUnavailable`, for `seconds` after the first failure at most.

    An operation that is not repeatable is repeated only if it certainly was not carried out.
    """
    pause, deadline = 0.0, None
    while True:
        try:
            return await operation()
        except StoreUnavailable as problem:
            now = monotonic()
            deadline = deadline or now + seconds
            if now >= deadline or (problem.maybe_applied and not repeatable):
                raise
            logger.warning("%s Trying again.", problem)
        # At once the first time (an idle connection was cut), then slower, and not all clients together.
        await asyncio.sleep(min(pause * random.uniform(0.5, 1), deadline - now))  # noqa: S311 - no secret
        pause = min(max(pause * 2, 0.05), 1.0)
