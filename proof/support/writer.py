"""Writes to a session from a process of its own, and says for each batch when it was begun and when acknowledged.

Usage: `python writer.py NAME`, with the server in the environment. It says "ready" once its store is open, begins when
a line comes in, and ends with one JSON line: a list of [begun, acknowledged], on a clock that all processes share.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic_ns

from my_agent.sessions import SessionRef, open_store
from my_agent.sessions.records import Batch, Row

KEY = SessionRef("", "shared")
BATCHES = 50
ITEMS = 7


def batch_of(name: str, number: int) -> list[str]:
    """What the items of a writer's batch say."""
    return [f"{name}.{number}.{item}" for item in range(ITEMS)]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def write(name: str) -> list[tuple[int, int]]:
    times = []
    async with open_store() as store:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        for number in range(BATCHES):
            batch = Batch.of([Row(text) for text in batch_of(name, number)])
            begun = monotonic_ns()
            await store.append(KEY, batch)
            times.append((begun, monotonic_ns()))
    return times


if __name__ == "__main__":
    say(json.dumps(asyncio.run(write(sys.argv[1]))))
