"""24 workers do everything that a store can do to 6 sessions: no deadlock, and the tables agree with each other.

PROOF_OPERATIONS says how many operations, 4,000 if it is not set. The long run:

    PROOF_OPERATIONS=200000 make prove BACKEND=postgres ONLY=deadlocks
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from time import perf_counter

import asyncpg

from my_agent.sessions import BackendSettings, BackendStore, SessionRef, SessionStore, SessionStoreError
from my_agent.sessions.records import Batch, Content, Row
from proof.support.backend import BACKEND

OPERATIONS = int(os.environ.get("PROOF_OPERATIONS", "4000"))
WORKERS = 24
USERS = ("a11ce000-0000-4000-8000-000000000001", "b0b00000-0000-4000-8000-000000000002")
KEYS = [SessionRef(user_id, name) for user_id in USERS for name in ("r", "s", "t")]

POOL = {"database_pool_max": WORKERS} if BACKEND == "postgres" else {"supabase_pool_max": WORKERS}

OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
WRONG_COUNTS = """
    SELECT array_agg(format('%s: %s counted, %s stored', session_id, item_count, stored))
    FROM agent_session_info AS info, LATERAL (
      SELECT count(*) AS stored FROM agent_sessions AS item
      WHERE item.user_id = info.user_id AND item.session_id = info.session_id
    ) AS rows WHERE stored <> item_count
"""
OUTSIDE = """
    SELECT array_agg(content) FROM agent_sessions AS item WHERE NOT EXISTS (
      SELECT FROM agent_session_info AS info WHERE info.user_id = item.user_id AND info.session_id = item.session_id
    )
"""
TWICE = "SELECT array_agg(content) FROM (SELECT content FROM agent_sessions GROUP BY content HAVING count(*) > 1) AS c"
MIXED = """
    SELECT array_agg(content) FROM (
      SELECT content, split_part(content, ' ', 1) AS batch, split_part(content, ' ', 2)::int AS number,
             lag(content) OVER session AS before
      FROM agent_sessions WINDOW session AS (PARTITION BY user_id, session_id ORDER BY id)
    ) AS item
    WHERE number > 0 AND before <> format('%s %s', batch, number - 1)
"""


class Worker:
    """One client. Every text that it stores is `<batch> <number>`, so that each row shows where it belongs."""

    def __init__(self, store: SessionStore, sent: deque[tuple[SessionRef, Batch]], done: Counter[str]) -> None:
        self.store = store
        self.sent = sent
        """Batches of all workers that may be sent again."""
        self.done = done
        self.random = random.Random()
        self.operations: list[Callable[[SessionRef], Awaitable[object]]] = [
            *(self.append,) * 6,
            *(self.replace_all, self.replace_tail) * 2,
            *(self.repeat,) * 4,
            *(self.pop,) * 3,
            *(self.clear, self.delete_session, self.delete_user, self.prune) * 2,
            *(self.tail, self.find, self.list, self.update, self.rewrite),
        ]

    async def work(self, numbers: deque[int]) -> None:
        while numbers:
            numbers.pop()
            operation = self.random.choice(self.operations)
            try:
                await operation(self.random.choice(KEYS))
                self.done[operation.__name__] += 1
            except SessionStoreError as error:
                self.done[f"{operation.__name__}: {error}"] += 1

    def batch(self, ref: SessionRef, size: int) -> Batch:
        named = Batch.of([])
        new = named._replace(rows=[Row(f"{named.id.hex} {number}") for number in range(size)])
        self.sent.append((ref, new))
        return new

    async def append(self, ref: SessionRef) -> None:
        await self.store.append(ref, self.batch(ref, self.random.randint(0, 4)))

    async def repeat(self, ref: SessionRef) -> None:
        if self.sent:
            ref, known = self.random.choice(self.sent)
            # Of one id, an append and a replacement are the same: whichever comes first is done.
            if self.random.random() < 0.7:
                await self.store.append(ref, known)
            else:
                await self.store.replace_tail(ref, None, known)

    async def replace_all(self, ref: SessionRef) -> None:
        await self.store.replace_tail(ref, None, self.batch(ref, self.random.randint(0, 2)))

    async def replace_tail(self, ref: SessionRef) -> None:
        tail = await self.store.tail(ref, self.random.randint(1, 3))
        await self.store.replace_tail(ref, tail, self.batch(ref, self.random.randint(0, 2)))

    async def pop(self, ref: SessionRef) -> None:
        await self.store.pop(ref)

    async def clear(self, ref: SessionRef) -> None:
        await self.store.clear(ref)

    async def delete_session(self, ref: SessionRef) -> None:
        await self.store.delete_session(ref)

    async def delete_user(self, ref: SessionRef) -> None:
        await self.store.delete_user(ref.user_id)

    async def prune(self, ref: SessionRef) -> None:
        await self.store.prune(datetime.now(UTC) + timedelta(seconds=1), self.random.randint(1, 6))

    async def tail(self, ref: SessionRef) -> None:
        await self.store.tail(ref, None)

    async def find(self, ref: SessionRef) -> None:
        await self.store.find_session(ref)

    async def list(self, ref: SessionRef) -> None:
        await self.store.list_sessions(self.random.choice([None, ref.user_id]))

    async def update(self, ref: SessionRef) -> None:
        await self.store.update_session(ref, title=str(self.random.random()), metadata={"a": self.random.random()})

    async def rewrite(self, ref: SessionRef) -> None:
        found, rows = await self.store.find_session(ref), await self.store.tail(ref, None)
        if found is not None:
            before = Content(found.title, found.metadata, rows[1:], 1)
            await self.store.rewrite(ref, before, before)


AGE = """
    UPDATE agent_session_batches SET created_at = now() - interval '2 hours'
    WHERE batch_id <> ALL ($1) AND created_at BETWEEN now() - interval '1 hour' AND now() - interval '5 seconds'
"""


async def age_batches(url: str, sent: deque[tuple[SessionRef, Batch]], workers: list[asyncio.Task[None]]) -> None:
    """Let batches that nobody sends again grow old, so that they are tidied beside all the rest."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        while not all(worker.done() for worker in workers):
            await connection.execute(AGE, [batch.id for _, batch in list(sent)])
            await asyncio.sleep(0.5)
    finally:
        await connection.close()


async def test_everything_at_once_makes_no_deadlock_and_every_count_is_right(
    settings: BackendSettings, owner: asyncpg.Connection, owner_url: str
) -> None:
    operations = OPERATIONS if BACKEND == "postgres" else OPERATIONS // 4
    before = await owner.fetchval(DEADLOCKS)
    numbers, sent, done = deque(range(operations)), deque[tuple[SessionRef, Batch]](maxlen=200), Counter[str]()
    begin = perf_counter()
    async with BackendStore(settings.model_copy(update=POOL)) as store:
        workers = [asyncio.create_task(Worker(store, sent, done).work(numbers)) for _ in range(WORKERS)]
        await asyncio.gather(*workers, age_batches(owner_url, sent, workers))
    seconds = perf_counter() - begin
    async with asyncio.timeout(20):
        # Connections report what they counted when they end, at the latest.
        while BACKEND == "postgres" and await owner.fetchval(OTHERS):  # noqa: ASYNC110 - the server sends no event
            await asyncio.sleep(0.1)
    print(f"\n{operations} operations in {seconds:.0f} s: {dict(done)}")  # noqa: T201
    assert (await owner.fetchval(DEADLOCKS)) - before == 0
    assert [name for name in done if ":" in name] == []
    assert await owner.fetchval(WRONG_COUNTS) is None
    assert await owner.fetchval(OUTSIDE) is None
    assert await owner.fetchval(TWICE) is None
    assert await owner.fetchval(MIXED) is None
