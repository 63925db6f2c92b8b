"""Compares our sessions with the SDK's and with the bare driver, interleaved in one run, and prints ratios.

Usage: `make bench`, or `make bench BACKEND=redis`. Times are this machine's; only the ratios of one run mean something.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import tempfile
import tracemalloc
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

from my_agent.dev import server as devserver
from proof.support.relay import Relay
from side import Goal, Items, Make, Side

backend = importlib.import_module(f"sides_{sys.argv[1]}")

CLIENTS = (1, 16, 64)
ROUNDS = 5
SECONDS = 0.4
"""Length of one measurement; each operation is measured in every round, the sides in turn."""
SESSIONS = 2000
"""How many objects tell what one takes in memory."""

TEXT = "The quick brown fox jumps over the lazy dog. " * 32
PROMPT = {"role": "user", "content": TEXT}
ANSWER = {
    "id": "msg_68d1c2f3a4b5c6d7e8f9a0b1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
}
TWO: Items = [PROMPT, ANSWER]
ONE: Items = [PROMPT]
THREE: Items = [ANSWER, ANSWER, ANSWER]


async def turn(side: Side) -> None:
    """What the Runner does for a plain turn: read, store the question, store the answer."""
    await side.get_items(50)
    await side.add_items(ONE)
    await side.add_items(THREE)


def same(operation: Callable[[Side], Awaitable[object]]) -> Callable[[Make], Callable[[], Awaitable[object]]]:
    """An operation of one session object that is kept."""
    return lambda make: partial(operation, make())


OPERATIONS: dict[str, Callable[[Make], Callable[[], Awaitable[object]]]] = {
    "append 2": same(lambda side: side.add_items(TWO)),
    "read 20": same(lambda side: side.get_items(20)),
    "pop": same(lambda side: side.pop_item()),
    "turn": same(turn),
    "request": lambda make: lambda: turn(make()),  # a web request: a new session object, and a turn
}

Cell = tuple[int, str, str]


async def measure(environment: Mapping[str, str]) -> dict[Cell, tuple[float, float]]:
    """For each (clients, operation, side): median latency in µs, operations a second."""
    latencies: dict[Cell, list[float]] = defaultdict(list)
    rates: dict[Cell, list[float]] = defaultdict(list)
    for clients in CLIENTS:
        for round_number in range(ROUNDS):
            # New connections each round: where the kernel puts a server process decides much of its latency.
            async with backend.sides(environment, clients) as all_sides:
                for makes in all_sides.values():
                    await asyncio.gather(*(make().add_items(THREE * 100) for make in makes))
                for name, operation in OPERATIONS.items():
                    order = list(all_sides.items())
                    for side, makes in order[round_number % len(order) :] + order[: round_number % len(order)]:
                        cell = (clients, name, side)
                        times, elapsed = await run([operation(make) for make in makes])
                        latencies[cell] += times
                        rates[cell].append(len(times) / elapsed)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return {cell: (median(times) * 1e6, median(rates[cell])) for cell, times in latencies.items()}


async def run(calls: list[Callable[[], Awaitable[object]]]) -> tuple[list[float], float]:
    """Every client works at once for `SECONDS`; the time of each operation, and of all, in seconds."""
    times: list[float] = []

    async def client(call: Callable[[], Awaitable[object]]) -> None:
        end = perf_counter() + SECONDS
        while (start := perf_counter()) < end:
            await call()
            times.append(perf_counter() - start)

    for _ in range(8):  # connections are opened, statements prepared and planned for good
        await asyncio.gather(*(call() for call in calls))
    start = perf_counter()
    await asyncio.gather(*map(client, calls))
    return times, perf_counter() - start


Cost = tuple[int, int]
"""Round trips, and bytes in both directions, of one warm call."""


async def costs(environment: Mapping[str, str]) -> dict[tuple[str, str], Cost]:
    """For each (operation, side), counted on the wire."""
    counts = {}
    async with relayed(environment, 1) as (all_sides, relay):
        for side, (make,) in all_sides.items():
            await make().add_items(THREE * 10)
            for name, operation in OPERATIONS.items():
                call = operation(make)
                for _ in range(3):
                    await call()
                before = relay.round_trips, relay.bytes
                await call()
                counts[name, side] = relay.round_trips - before[0], relay.bytes - before[1]
    return counts


async def footprint(environment: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """For each side: connections that 64 busy clients hold, and bytes of memory that a session object takes."""
    found = {}
    clients = CLIENTS[-1]
    async with relayed(environment, clients) as (all_sides, relay):
        for side, makes in all_sides.items():
            before = relay.connections
            operations = [OPERATIONS["turn"](make) for make in makes]
            for _ in range(5):
                await asyncio.gather(*(call() for call in operations))
            held = relay.connections - before
            tracemalloc.start()
            objects = [makes[0]() for _ in range(SESSIONS)]
            memory, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            # The floor's were opened before.
            found[side] = (held or clients, memory // len(objects))
    return found


@asynccontextmanager
async def relayed(environment: Mapping[str, str], clients: int) -> AsyncIterator[tuple[dict[str, list[Make]], Relay]]:
    """The sides, through a relay that counts."""
    url = environment[backend.ADDRESS]
    parts = urlsplit(url)
    relay = Relay(parts.hostname or "", parts.port or 0)
    async with relay.running(), backend.sides({**environment, backend.ADDRESS: relay.url(url)}, clients) as all_sides:
        yield all_sides, relay


HEADINGS = "clients | ours p50 | sdk p50 | floor p50 | ours/s | sdk/s | p50 x sdk | goal | p50/floor | goal"
ROW = "{:>10}{:>9}{:>12}{:>12}{:>12}{:>10}{:>10}{:>12}{:>7}{:>12}{:>7}"
BESIDE = "{:>10}{:>16}{:>24}"


def report(results: dict[Cell, tuple[float, float]]) -> None:
    """Times and ratios. A goal that was missed is marked with !."""
    print(ROW.format("", *HEADINGS.split(" | ")))
    goals: Mapping[str, Goal] = backend.GOALS
    for name, goal in goals.items():
        for clients, times in zip(CLIENTS, goal.sdk, strict=True):
            ours, ours_rate = results[clients, name, "ours"]
            floor, _ = results[clients, name, "floor"]
            sdk, sdk_rate = results.get((clients, name, "sdk"), (0.0, 0.0))
            bound = goal.floor if clients == 1 else 0
            print(
                ROW.format(
                    name,
                    clients,
                    f"{ours:.0f} µs",
                    f"{sdk:.0f} µs" if sdk else "-",
                    f"{floor:.0f} µs",
                    f"{ours_rate:.0f}",
                    f"{sdk_rate:.0f}" if sdk else "-",
                    f"{sdk / ours:.1f}" if sdk else "-",
                    f"{times:g}{'!' if sdk / ours < times else ''}" if times else "",
                    f"{ours / floor:.2f}",
                    f"{bound:g}{'!' if ours / floor > bound else ''}" if bound else "",
                )
            )


def report_costs(counted: Mapping[tuple[str, str], Cost], held: Mapping[str, tuple[int, int]]) -> None:
    """What an operation and an object cost: ours, the SDK's, the floor's."""
    every = [side for side in ("ours", "sdk", "floor") if side in held]
    print(f"\n{' / '.join(every)}\n")
    print(BESIDE.format("", "round trips", "bytes on the wire"))
    for name in OPERATIONS:
        trips, size = (" / ".join(str(counted[name, side][place]) for side in every) for place in (0, 1))
        print(BESIDE.format(name, trips, size))
    connections, memory = (" / ".join(str(held[side][place]) for side in every) for place in (0, 1))
    print(f"\nconnections of {CLIENTS[-1]} clients: {connections}; bytes of a session object: {memory}")


def main() -> None:
    gc.collect()
    gc.freeze()
    for mode, durable in backend.MODES.items():
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            devserver.start(Path(folder) / "dev", durable=durable) as server,
        ):
            counted = asyncio.run(costs(server.environment))
            held = asyncio.run(footprint(server.environment))
            results = asyncio.run(measure(server.environment))
        print(f"\n{backend.NAME}, {mode}; both ends on one machine, items of 1.5 kB\n")
        report(results)
        report_costs(counted, held)
    print("\nA ! marks a goal that was missed.")


if __name__ == "__main__":
    main()
