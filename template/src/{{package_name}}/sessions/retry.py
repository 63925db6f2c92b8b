"""Repeating a call while the store is away; seeing a change through although its caller is cancelled."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from .store import StoreUnavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


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


async def settled(change: Awaitable[T]) -> T:
    """Wait until a change is finished, even when the caller is cancelled; then let the cancellation go on."""
    task = asyncio.ensure_future(change)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and task.exception() is not None:
            logger.warning("A cancelled call failed: %s", task.exception())
        raise cancelled
    return task.result()


def settles(change: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """For a method of a store: it is finished before a cancellation goes on, so that nothing happens later."""

    @wraps(change)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await settled(change(*args, **kwargs))

    return call


def cancellations() -> int:
    """How often the running task was asked to stop so far; more than before a call means that the call was cancelled.

    A driver may swallow a cancellation, or make another error of it.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
