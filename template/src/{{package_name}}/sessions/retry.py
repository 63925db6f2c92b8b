"""Repeating a call while the store is away; seeing a change through although its caller is cancelled."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError as EndedAsCancelled
from contextlib import contextmanager, suppress
from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from .errors import StoreUnavailable

if TYPE_CHECKING:
    from .contract import RowStore

logger = logging.getLogger(__name__)
S = TypeVar("S", bound="RowStore")
T = TypeVar("T")
P = ParamSpec("P")

SHORTEST_ATTEMPT = 0.05
"""Seconds that must be left for one more attempt."""


async def with_retries(
    operation: Callable[[], Awaitable[T]],
    seconds: float,
    *,
    repeatable: bool = True,
    settle: float | None = None,
    on_retry: Callable[[], None] = lambda: None,
) -> T:
    """Call `operation`, and again while it raises `StoreUnavailable`, for `seconds` after the first failure at most.

    An operation that is not repeatable is repeated only if it certainly was not carried out.

    Args:
        settle: For a repeatable change whose caller is cancelled: how many seconds it may take to finish it. It is sent
            once more, which is idempotent and gives a definite answer. None: it is left as it is.
        on_retry: Called before each further attempt.
    """
    problem: StoreUnavailable | None = None
    attempts, pause, deadline = 0, 0.0, 0.0
    uncertain = False
    while True:
        started = monotonic()
        attempts += 1
        try:
            if problem is None:
                return await operation()
            on_retry()
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - started):
                result = await operation()
            logger.warning("The store answers again, at attempt %d.", attempts)
            return result
        except StoreUnavailable as error:
            uncertain = uncertain or error.maybe_applied
            error.maybe_applied = uncertain
            if problem is None:
                deadline = monotonic() + seconds
            first, problem = problem is None, error
        except TimeoutError:  # of this loop's own making: a store raises StoreUnavailable
            if problem is None:
                raise
            first, uncertain = False, True
        except asyncio.CancelledError:
            # A store may have taken time of its own to settle, at most since the attempt began.
            await _send_once_more(operation, settle, monotonic() - started)
            raise
        left = deadline - monotonic()
        if left <= 0 or (not first and left < SHORTEST_ATTEMPT) or (uncertain and not repeatable):
            if not first:
                logger.warning("Gave up after %d attempts in %.1f s.", attempts, seconds - left)
            problem.maybe_applied = uncertain
            raise problem
        if first:
            logger.warning("%s Trying again for %g s.", problem, seconds)
        try:
            # At once the first time (an idle connection was cut), then slower, and not all clients together. Half of
            # the time left is for the attempt: one without any would be cut, and its outcome unknown.
            await asyncio.sleep(min(pause * random.uniform(0.5, 1), left / 2))  # noqa: S311 - no secret
        except asyncio.CancelledError:
            if uncertain:
                await _send_once_more(operation, settle)
            raise
        pause = min(max(pause * 2, 0.05), 1.0)


async def _send_once_more(operation: Callable[[], Awaitable[Any]], settle: float | None, spent: float = 0.0) -> None:
    # What a store could not find out in half of the time, it would not find out in the rest.
    if settle is not None and spent < settle / 2:
        await finish(asyncio.ensure_future(operation()), settle - spent)


async def run_to_completion(change: Coroutine[Any, Any, T], seconds: float) -> T:
    """Wait until a change is finished, even when the caller is cancelled; then raise the cancellation.

    Args:
        change: What must not be left half done.
        seconds: How long it may take after the cancellation, see `finish`.
    """
    task = hidden(asyncio.create_task(change))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await finish(task, seconds)
        raise


async def finish(task: asyncio.Future[Any], seconds: float) -> None:
    """For a caller who is cancelled already: wait for the task, but no longer than this. Raises nothing.

    The last quarter of the time is for cancelling it as well: a store that can end its call at the server does it then,
    and what still waits there for a lock is not carried out after the caller got its error.
    """
    deadline = monotonic() + seconds
    await ended(task, deadline - seconds / 4)
    if not task.done():
        abandon(task)
        await ended(task, deadline)
        logger.warning("The outcome of a cancelled call is not known after %g s.", seconds)
    elif not task.cancelled() and getattr(error := task.exception(), "maybe_applied", error is not None):
        logger.warning("A cancelled call failed: %s", error)


def abandon(task: asyncio.Future[Any]) -> None:
    """Cancel a task and let it end by itself; its outcome is not needed."""
    task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio complains of it


def unnoticed(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """A task that serves others: an event loop that ends before it is closed does not complain of it."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task


def hidden(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """A task that `asyncio.run` does not cancel at its end: a caller that it cancels may wait for the outcome."""
    asyncio._unregister_task(task)
    return unnoticed(task)


async def ended(task: asyncio.Future[Any], deadline: float) -> None:
    """For a caller who is cancelled already: wait until the task is done, or until then (`time.monotonic`)."""
    while not task.done() and (left := deadline - monotonic()) > 0:
        with suppress(asyncio.CancelledError):  # being cancelled once is enough
            await asyncio.wait({task}, timeout=left)


def settles(
    change: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """For a method of a store: it is finished before a cancellation propagates, so that nothing happens later.

    It takes `SESSION_SETTLE_SECONDS` at most.
    """

    @wraps(change)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_to_completion(change(self, *args, **kwargs), self.settings.session_settle_seconds)

    return call


@contextmanager
def cancelled_by_caller_alone() -> Iterator[None]:
    """Around a function of the app, which may end as cancelled although nobody cancelled its caller.

    Raises:
        concurrent.futures.CancelledError: It did: for the caller, that is an error as any other.
    """
    before = cancellations()
    try:
        yield
    except asyncio.CancelledError as error:
        if cancellations() > before:
            raise
        raise EndedAsCancelled from error


def cancellations() -> int:
    """How often the running task was asked to stop so far; more than before a call means that the call was cancelled.

    A driver may swallow a cancellation, or make another error of it.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
