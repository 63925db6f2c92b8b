"""A program whose event loop ends while a change of it waits for a lock at the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import asyncpg

SECONDS = 20
"""How long each step may take."""


class Left(NamedTuple):
    """What was found at the server when the program had ended."""

    waiting: int
    """Statements that wait for a lock."""
    rows: int
    """Rows of the session "s", after the lock was released."""


def run_beside_a_lock(
    url: str, lock: str, main: Callable[[Callable[[], Awaitable[object]]], Coroutine[Any, Any, None]]
) -> Left:
    """Run `main` with `asyncio.run` in a thread.

    Args:
        url: Of a role that may lock.
        lock: The statement that takes the lock.
        main: Gets an async function that returns as soon as the lock is held.
    """
    ready, held = threading.Event(), threading.Event()

    async def is_held() -> None:
        ready.set()
        await asyncio.to_thread(held.wait)

    program = threading.Thread(target=lambda: asyncio.run(main(is_held)))
    with asyncio.Runner() as outside:
        holder = outside.run(asyncpg.connect(url))
        program.start()
        ready.wait(SECONDS)
        outside.run(holder.execute(f"BEGIN; {lock}"))
        held.set()
        program.join(SECONDS)
        waiting = outside.run(holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        outside.run(holder.execute("ROLLBACK"))
        rows = outside.run(holder.fetchval("SELECT count(*) FROM agent_sessions WHERE session_id = 's'"))
        outside.run(holder.close())
    return Left(waiting, rows)
