"""Compares our sessions with the SDK's and with the bare driver, interleaved in one run, and prints ratios.

Usage: `make bench`, or `make bench BACKEND=redis`. Times are this machine's; only the ratios of one run mean something.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

from my_agent.dev import server as devserver
from proof.support.relay import Relay
from side import Items, Side

backend = importlib.import_module(f"sides_{sys.argv[1]}")

ROUNDS = 5
SECONDS = 0.5
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

Cell = tuple[int, str, str]


async def measure(environment: Mapping[str, str]) -> dict[Cell, tuple[float, float]]:
    """For each (clients, operation, side): median latency in µs, operations a second."""
    latencies: dict[Cell, list[float]] = defaultdict(list)
    rates: dict[Cell, list[float]] = defaultdict(list)
    for clients in (1, 16):
        for round_number in range(ROUNDS):
            # New connections each round: where the kernel puts a server process decides much of its latency.
            async with backend.sides(environment, clients) as all_sides:
                for sessions in all_sides.values():
                    await asyncio.gather(*(session.add_items(THREE * 100) for session in sessions))
                for name, operation in OPERATIONS.items():
                    order = list(all_sides.items())
                    for side, sessions in order[round_number % len(order) :] + order[: round_number % len(order)]:
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


async def round_trips(environment: Mapping[str, str]) -> dict[tuple[str, str], int]:
    """For each (operation, side): round trips of one warm call, counted on the wire."""
    url = environment[backend.ADDRESS]
    parts = urlsplit(url)
    relay = Relay(parts.hostname or "", parts.port or 0)
    async with relay.running(), backend.sides({**environment, backend.ADDRESS: relay.url(url)}, 1) as all_sides:
        return await count_trips(all_sides, relay)


async def count_trips(all_sides: Mapping[str, list[Side]], relay: Relay) -> dict[tuple[str, str], int]:
    counts = {}
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
    for name, (p50_1, p50_16, rate_16, floor_1) in backend.GOALS.items():
        for clients in (1, 16):
            ours, ours_rate = results[clients, name, "ours"]
            floor, _ = results[clients, name, "floor"]
            cells = {"": name, "clients": str(clients), "ours p50": f"{ours:.0f} µs", "floor p50": f"{floor:.0f} µs"}
            cells |= {"ours/s": f"{ours_rate:.0f}"}
            cells["p50/floor"] = marked(ours / floor, clients != 1 or ours / floor <= floor_1, digits=2)
            if theirs := results.get((clients, name, "sdk")):
                sdk, sdk_rate = theirs
                cells |= {"sdk p50": f"{sdk:.0f} µs", "sdk/s": f"{sdk_rate:.0f}"}
                cells["p50 x sdk"] = marked(sdk / ours, sdk / ours >= (p50_1 if clients == 1 else p50_16))
                cells["thr. x sdk"] = marked(ours_rate / sdk_rate, clients == 1 or ours_rate / sdk_rate >= rate_16)
            counted = (trips.get((name, side)) for side in ("ours", "sdk", "floor"))
            cells["trips"] = " ".join("-" if count is None else str(count) for count in counted)
            print("".join(f"{cells.get(heading, '-'):>12}" for heading in ("", *HEADINGS.split(" | "))))


def main() -> None:
    gc.collect()
    gc.freeze()
    for mode, durable in backend.MODES.items():
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            devserver.start(Path(folder) / "dev", durable=durable) as server,
        ):
            trips = asyncio.run(round_trips(server.environment))
            results = asyncio.run(measure(server.environment))
        print(f"\n{backend.NAME}, {mode}; both ends on one machine, items of 1.5 kB\n")
        report(results, trips)
    print("\nA ! marks a goal that was missed.")


if __name__ == "__main__":
    main()
