"""Our sessions in a store of few items and in one of many: what an operation costs, and what it reads.

Usage: `make bench BACKEND=postgres ITEMS=10000000`. Items of 200 bytes, 100 in a session, 1,000 users; written in ten
rounds over all sessions, so that the items of one are far apart on the disk. Each operation then takes sessions at
random, so that little of what it needs is in the server's buffers.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from my_agent.dev import server as devserver
from my_agent.sessions import SessionRef, SessionStore, backend, open_store
from my_agent.sessions.records import Batch, Row
from my_agent.settings import load_settings

EACH, ROUNDS, USERS, WRITERS = 100, 10, 1000, 16
FEW = 10_000
CALLS = 1000
TEXT = '{"content":"' + "The quick brown fox jumps over the lazy dog. " * 4 + '","role":"user"}'
ROWS = [Row(TEXT, "user") for _ in range(EACH // ROUNDS)]

Operation = Callable[[SessionStore, SessionRef], Awaitable[object]]

OPERATIONS: dict[str, Operation] = {
    "append 2": lambda store, ref: store.append(ref, Batch.of(ROWS[:2])),
    "read 20": lambda store, ref: store.tail(ref, 20),
    "pop": lambda store, ref: store.pop(ref),
    "list 20": lambda store, ref: store.list_sessions(ref.user_id, limit=20),
}


def ref_of(number: int) -> SessionRef:
    return SessionRef(f"user-{number % USERS}", f"session-{number}")


async def fill(store: SessionStore, sessions: int) -> None:
    async def write(numbers: range) -> None:
        for number in numbers:
            await store.append(ref_of(number), Batch.of(ROWS))

    for _ in range(ROUNDS):
        await asyncio.gather(*(write(range(first, sessions, WRITERS)) for first in range(WRITERS)))
        print(".", end="", flush=True, file=sys.stderr)


async def measure(items: int) -> dict[str, tuple[float, str]]:
    """For each operation: median latency in µs, and what the server read for it."""
    sessions = items // EACH
    chance = random.Random(1)  # noqa: S311 - no secret
    found = {}
    async with open_store(load_settings()) as store:
        begin = perf_counter()
        await fill(store, sessions)
        print(f" {items:,} items in {perf_counter() - begin:.0f} s", file=sys.stderr)
    for name, operation in OPERATIONS.items():
        before, times = await reads(), []
        async with open_store(load_settings()) as store:  # a server process reports what it read when it ends
            for _ in range(CALLS):
                ref = ref_of(chance.randrange(sessions))
                start = perf_counter()
                await operation(store, ref)
                times.append(perf_counter() - start)
        await asyncio.sleep(0.5)
        after = await reads()
        read = {what: (after[what] - count) / CALLS for what, count in before.items()}
        found[name] = median(times) * 1e6, ", ".join(f"{count:.1f} {what}" for what, count in read.items())
    return found


async def reads() -> dict[str, int]:
    """Pages that the server has read so far. PostgreSQL alone tells."""
    if (url := os.environ.get("DATABASE_URL")) is None:
        return {}
    import asyncpg

    connection = await asyncpg.connect(url)
    row = await connection.fetchrow(
        "SELECT sum(heap_blks_read + coalesce(toast_blks_read, 0)), sum(idx_blks_read), "
        "sum(heap_blks_hit + idx_blks_hit) FROM pg_statio_user_tables"
    )
    await connection.close()
    return dict(zip(("of tables", "of indexes", "found in the buffers"), map(int, row), strict=True))


def main() -> None:
    name, items = sys.argv[1], int(sys.argv[2])
    results = []
    for size in (FEW, items):
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            devserver.start(Path(folder) / "dev", durable=False) as server,
        ):
            os.environ.update(server.environment)
            asyncio.run(prepare())
            results.append(asyncio.run(measure(size)))
    few, many = results
    title = importlib.import_module(f"sides_{name}").NAME
    print(f"\n{title}, nothing forced to disk; items of 200 bytes, sessions of {EACH}, taken at random, 1 client\n")
    print(f"{'':>10}{f'{FEW:,} items':>18}{f'{items:,} items':>20}   pages read for one call, among {items:,}")
    for operation, (time, _) in few.items():
        slower, read = many[operation]
        print(f"{operation:>10}{f'{time:.0f} µs':>18}{f'{slower:.0f} µs':>20}   {read}")


async def prepare() -> None:
    await backend.prepare(load_settings())


if __name__ == "__main__":
    main()
