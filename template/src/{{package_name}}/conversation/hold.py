"""One run at a time on a session, in all processes: a run takes a lease and gives it back with its last write.

Whoever loses the lease (it expired, or somebody stopped the run) cannot write any more, so turns never interleave.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from ..sessions import SessionStoreError, StoredSession
from ..sessions.paging import again
from ..sessions.records import Leased, Turn, new_id
from ..sessions.retry import run_to_completion, with_retries
from ..sessions.turn_buffer import TurnBuffer
from .events import SessionBusy

LEASE_SECONDS = 15.0
"""How long others wait at most after a run has died."""
RENEW_SECONDS = 1.5
"""How often a run keeps its lease: it notices within this time that it was stopped from elsewhere."""
LONGEST_PAUSE = 0.5
"""Between two questions whether a session is free."""
WHILE_STORING = "Stopped while the turn was being stored: all of it is, or nothing."
"""Text of a cancellation that came too late to say which of the two."""


class Hold:
    """A session that belongs to one run.

    Attributes:
        session: The session as the run sees it; see `StoredSession.leased`.
        buffer: What was read of it, and what the run adds.
        last: The newest turn of the session.
        same: The turn of the same request, if there was one before.
        lost: Whether the lease is lost.
        on_lost: Called once if it is.
        acted: Whether the run did or said anything yet that would come twice if it were repeated.
    """

    def __init__(self, session: StoredSession, token: UUID) -> None:
        self.buffer = TurnBuffer(token)
        self.session = session.leased(self.buffer)
        self.last: Turn | None = None
        self.same: Turn | None = None
        self.lost = self.acted = False
        self.on_lost: Callable[[], None] = lambda: None

    async def commit(self, turn: Turn) -> None:
        """Store the whole turn and give the session back, in one write.

        Raises:
            SessionStoreError: It is not stored; after `StoreUnavailable` with `maybe_applied` it may be, as a whole.
            LeaseLost: Another run took the session over, or it was deleted. Nothing is stored.
            asyncio.CancelledError: With `WHILE_STORING` as its text.
        """
        try:
            await self.session.commit(turn)
        except asyncio.CancelledError:
            raise asyncio.CancelledError(WHILE_STORING) from None

    async def change(self, before: Turn, after: Turn) -> bool:
        """`RowStore.change_turn` under this lease."""
        store, ref = self.session.store, self.session.ref
        return await again(store, store.change_turn, ref, before, after, self.buffer.lease)


@asynccontextmanager
async def hold(
    session: StoredSession,
    *,
    wait_seconds: float,
    limit: int | None,
    request_id: str | None = None,
    token: UUID | None = None,
) -> AsyncIterator[Hold]:
    """Take a session for one run and read it, in one round trip; give it back at the end.

    Args:
        wait_seconds: How long to wait for another run to end.
        limit: How many of the newest items to read; None: all.
        request_id: Also find the turn of this request.
        token: Of the lease; None: a new one.

    Raises:
        SessionBusy: Another run did not end in time.
        SessionStoreError: The store failed.
    """
    store, ref, token = session.store, session.ref, token or new_id()
    held = Hold(session, token)

    async def give_back() -> None:
        await run_to_completion(store.release(ref, token), store.settings.session_settle_seconds)

    try:
        leased = await _take(held, wait_seconds, limit, request_id)
    except asyncio.CancelledError:
        with suppress(SessionStoreError):  # it expires
            await give_back()
        raise
    held.buffer.read(leased.rows, limit)
    held.last, held.same = leased.last, leased.same
    renewal = asyncio.create_task(_renew(held))
    try:
        yield held
    finally:
        renewal.cancel()
        try:
            await wait_for_end(renewal)
        except asyncio.CancelledError:
            raise asyncio.CancelledError(*[WHILE_STORING] * held.buffer.released) from None
        finally:
            if not (held.buffer.released or held.lost):
                with suppress(SessionStoreError):  # it expires
                    await give_back()


async def wait_for_end(task: asyncio.Task[None]) -> None:
    """Wait until a task has ended, however often the caller is cancelled (anyio repeats it); then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _take(held: Hold, wait_seconds: float, limit: int | None, request_id: str | None) -> Leased:
    store, ref, buffer = held.session.store, held.session.ref, held.buffer
    clock, seconds = asyncio.get_running_loop().time, store.settings.session_retry_seconds
    deadline, pause = clock() + wait_seconds, 0.05

    def ask() -> Awaitable[Leased | None]:
        return store.lease(ref, buffer.lease, LEASE_SECONDS, limit=limit, request_id=request_id)

    while True:
        leased = await with_retries(ask, seconds, on_retry=buffer.count_retry)
        if leased is not None:
            return leased
        left = deadline - clock()
        if left <= 0:
            raise SessionBusy(
                f"Another run is still at work on this session (waited {wait_seconds:g} s). Try again when it is done, "
                "or stop it."
            )
        await asyncio.sleep(min(pause * random.uniform(0.5, 1), left))  # noqa: S311 - no secret
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def _renew(held: Hold) -> None:
    store, ref = held.session.store, held.session.ref
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        try:
            kept = await store.renew(ref, held.buffer.lease, LEASE_SECONDS)
        except SessionStoreError:
            continue  # the write at the end will tell
        if not kept:
            held.lost = True
            held.on_lost()
            return
