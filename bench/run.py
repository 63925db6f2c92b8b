"""Compares our sessions with the SDK's and with the bare driver, interleaved in one run, and prints ratios.

Usage: `make bench`. Times are this machine's; only the ratios of one run mean something.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

import postgres
from my_agent import devserver
from postgres import Items, Side
from tests.relay import Relay

ROUNDS = 8
SECONDS = 0.12
"""Length of one measurement; each operation is measured in every round, the sides in turn."""

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


OPERATIONS: dict[str, Callable[[Side], Awaitable[object]]] = {
    "append 2": lambda side: side.add_items(TWO),
    "read 20": lambda side: side.get_items(20),
    "pop": lambda side: side.pop_item(),
    "turn": turn,
}

# At least so many times better than the SDK (p50 at 1, p50 at 16, throughput at 16); p50 at most so far from the floor.
GOALS = {"append 2": (5, 6.5, 6, 1.3), "read 20": (5, 7, 6.5, 1.45), "pop": (5, 8, 7, 1.3), "turn": (5, 4.5, 4.5, 1.4)}

Cell = tuple[int, str, str]


async def measure(url: str) -> dict[Cell, tuple[float, float]]:
    """For each (clients, operation, side): median latency in µs, operations a second."""
    latencies: dict[Cell, list[float]] = defaultdict(list)
    rates: dict[Cell, list[float]] = defaultdict(list)
    for clients in (1, 16):
        for round_number in range(ROUNDS):
            # New connections each round: where the kernel puts a server process decides much of its latency.
            async with postgres.sides(url, clients) as all_sides:
                for sessions in all_sides.values():
                    await asyncio.gather(*(session.add_items(THREE * 100) for session in sessions))
                for name, operation in OPERATIONS.items():
                    order = list(all_sides.items())
                    for side, sessions in order[round_number % 3 :] + order[: round_number % 3]:
                        cell = (clients, name, side)
                        times, elapsed = await run(operation, sessions)
                        latencies[cell] += times
                        rates[cell].append(len(times) / elapsed)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return {cell: (median(times) * 1e6, median(rates[cell])) for cell, times in latencies.items()}


async def run(operation: Callable[[Side], Awaitable[object]], sessions: list[Side]) -> tuple[list[float], float]:
    """Every session works at once for `SECONDS`; the time of each operation, and of all, in seconds."""
    times: list[float] = []

    async def client(session: Side) -> None:
        end = perf_counter() + SECONDS
        while (start := perf_counter()) < end:
            await operation(session)
            times.append(perf_counter() - start)

    for _ in range(8):  # connections are opened, statements prepared and planned for good
        await asyncio.gather(*map(operation, sessions))
    start = perf_counter()
    await asyncio.gather(*map(client, sessions))
    return times, perf_counter() - start


async def round_trips(url: str) -> dict[tuple[str, str], int]:
    """For each (operation, side): round trips of one warm call, counted on the wire."""
    parts = urlsplit(url)
    counts = {}
    relay = Relay(parts.hostname or "", parts.port or 5432)
    async with relay.running(), postgres.sides(relay.url(url), 1) as all_sides:
        for side, (session,) in all_sides.items():
            for name, operation in OPERATIONS.items():
                for _ in range(3):
                    await operation(session)
                before = relay.round_trips
                await operation(session)
                counts[name, side] = relay.round_trips - before
    return counts


HEADINGS = "clients | ours p50 | sdk p50 | floor p50 | ours/s | sdk/s | p50 x sdk | thr. x sdk | p50/floor | trips"


def report(results: dict[Cell, tuple[float, float]], trips: dict[tuple[str, str], int]) -> None:
    """A table. A goal that was missed is marked with !; trips are ours, the SDK's, the floor's."""

    def marked(value: float, reached: bool, digits: int = 1) -> str:
        return f"{value:.{digits}f}{' ' if reached else '!'}"

    print("".join(f"{heading:>12}" for heading in ("", *HEADINGS.split(" | "))))
    for name, (p50_1, p50_16, rate_16, floor_1) in GOALS.items():
        for clients in (1, 16):
            ours, ours_rate = results[clients, name, "ours"]
            sdk, sdk_rate = results[clients, name, "sdk"]
            floor, _ = results[clients, name, "floor"]
            better, faster, above = sdk / ours, ours_rate / sdk_rate, ours / floor
            cells = [
                name,
                str(clients),
                *(f"{time:.0f} µs" for time in (ours, sdk, floor)),
                *(f"{rate:.0f}" for rate in (ours_rate, sdk_rate)),
                marked(better, better >= (p50_1 if clients == 1 else p50_16)),
                marked(faster, clients == 1 or faster >= rate_16),
                marked(above, clients != 1 or above <= floor_1, digits=2),
                " ".join(str(trips[name, side]) for side in ("ours", "sdk", "floor")),
            ]
            print("".join(f"{cell:>12}" for cell in cells))


def main() -> None:
    gc.collect()
    gc.freeze()
    for durable in (True, False):
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            devserver.start(Path(folder) / "dev", durable=durable) as server,
        ):
            trips = asyncio.run(round_trips(server.environment["DATABASE_URL"]))
            results = asyncio.run(measure(server.environment["DATABASE_URL"]))
        print(f"\nPostgreSQL, fsync {'on' if durable else 'off'}; both ends on one machine, items of 1.5 kB\n")
        report(results, trips)
    print("\nA ! marks a goal that was missed. Without fsync, what is left is round trips and work.")


if __name__ == "__main__":
    main()
