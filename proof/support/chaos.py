"""Breaks a real server while sessions are written, then holds what was acknowledged against what is stored.

Usage: `uv run python -m proof.support.chaos`, or with `--appends 10000 --faults 200`. It takes some minutes, starts a
server of its own in a temporary folder, prints a table, and fails if anything was lost, doubled, torn or moved.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from my_agent.sessions import SessionStore, SessionStoreError, StoreUnavailable, open_store
from my_agent.sessions.backend import prepare
from my_agent.settings import Settings
from proof.support.backend import BACKEND
from proof.support.chaos_servers import Stage
from proof.support.helpers import text, user

stage = import_module(f"proof.{BACKEND}.chaos").stage

SESSIONS = 3
WRITERS = 4
"""On each session; every other one does not repeat what failed, but goes on with its next batch."""
SIZES = (1, 2, 3, 7)
"""Items of a batch, in turn."""


class Name(NamedTuple):
    """Which batch an item belongs to. It is all that the item says."""

    writer: int
    number: int
    size: int


@dataclass
class Attempt:
    """One append, and what became of it."""

    session: int
    name: Name
    fault: str = ""
    """The fault that was made last before it ended."""
    acknowledged: bool = False


@dataclass
class Report:
    """What happened between one kind of fault and the next."""

    faults: int = 0
    appends: int = 0
    errors: int = 0
    """Appends whose writer was told that they may have failed."""
    stored: int = 0
    """Of these: stored all the same, once and whole."""
    wrong: Counter[str] = field(default_factory=Counter)


WRONG = ("lost", "doubled", "torn", "moved")
QUIET = "(none yet)"


class Chaos:
    """One run: writers and readers at work, faults among them.

    Args:
        settings: Reach the server through the relay.
        appends: How many are to be acknowledged.
        faults: How often something is broken, one kind after the other.
    """

    def __init__(self, settings: Settings, faults: Stage, appends: int, count: int) -> None:
        self.settings, self.stage, self.appends, self.count = settings, faults, appends, count
        self.attempts: list[Attempt] = []
        self.reports: dict[str, Report] = {QUIET: Report()}
        self.fault = QUIET
        self.over = False
        self.done = 0
        self.progress = asyncio.Event()

    async def run(self) -> dict[str, Report]:
        """What happened, by the kind of fault."""
        patient = self.settings.model_copy(update={"session_retry_seconds": 60.0})
        impatient = self.settings.model_copy(update={"session_retry_seconds": 0.0})
        async with open_store(patient) as store, open_store(impatient) as other, asyncio.TaskGroup() as tasks:
            for session in range(SESSIONS):
                for number in range(WRITERS):
                    writer = session * WRITERS + number
                    tasks.create_task(self.write(other if number % 2 else store, session, writer))
                tasks.create_task(self.read(store, session))
            tasks.create_task(self.break_things())
        async with open_store(patient) as store:
            for session in range(SESSIONS):
                self.compare(session, await names(store, session))
        return self.reports

    async def break_things(self) -> None:
        kinds = list(self.stage.faults)
        for made in range(self.count):
            await self.acknowledged((made + 1) * self.appends // (self.count + 1))
            self.fault = kinds[made % len(kinds)]
            self.reports.setdefault(self.fault, Report()).faults += 1
            await self.stage.faults[self.fault]()
        await self.acknowledged(self.appends)
        self.over = True

    async def acknowledged(self, appends: int) -> None:
        """Wait until so many are."""
        while self.done < appends:
            self.progress.clear()
            await self.progress.wait()

    async def write(self, store: SessionStore, session: int, writer: int) -> None:
        handle = store.session(f"chaos-{session}")
        number = 0
        while not self.over:
            name = Name(writer, number, SIZES[number % len(SIZES)])
            attempt = Attempt(session, name)
            self.attempts.append(attempt)
            number += 1
            try:
                await handle.add_items([user(" ".join(map(str, name)))] * name.size)
                attempt.acknowledged = True
                self.done += 1
                self.progress.set()
            except StoreUnavailable:
                await asyncio.sleep(0.02)
            attempt.fault = self.fault

    async def read(self, store: SessionStore, session: int) -> None:
        """A reader sees whole batches only, and what it has seen stays where it was."""
        seen: list[Name] = []
        during = self.fault
        while not self.over:
            now = await names(store, session)
            known = len(seen)
            if now[:known] != seen:
                self.reports[during].wrong["moved"] += 1
                known = 0
            if any(length % name.size for name, length in runs(now[known:])):
                self.reports[self.fault].wrong["torn"] += 1
            seen, during = now, self.fault
            await asyncio.sleep(0.05 + len(seen) / 20_000)  # reading is not what is tried here

    def compare(self, session: int, stored: Sequence[Name]) -> None:
        """Hold what was acknowledged against what is stored."""
        found: Counter[Name] = Counter()
        torn: set[Name] = set()
        last: dict[int, int] = {}
        moved: set[Name] = set()
        for name, length in runs(stored):
            found[name] += length // name.size
            if length % name.size:
                torn.add(name)
            if last.get(name.writer, -1) > name.number:
                moved.add(name)
            last[name.writer] = name.number
        for attempt in self.attempts:
            if attempt.session != session:
                continue
            report, times = self.reports[attempt.fault], found.pop(attempt.name, 0)
            report.appends += 1
            if not attempt.acknowledged:
                report.errors += 1
                report.stored += times > 0
            report.wrong["lost"] += attempt.acknowledged and not times
            report.wrong["doubled"] += times > 1
            report.wrong["torn"] += attempt.name in torn
            report.wrong["moved"] += attempt.name in moved
        assert not found, f"nobody wrote {found}"


async def names(store: SessionStore, session: int) -> list[Name]:
    items = await store.session(f"chaos-{session}").get_items()
    return [Name(*map(int, text(item).split())) for item in items]


def runs(stored: Sequence[Name]) -> list[tuple[Name, int]]:
    """Neighbours of the same batch, and how many there are."""
    return [(name, sum(1 for _ in group)) for name, group in groupby(stored)]


def table(reports: Mapping[str, Report]) -> str:
    """What happened, a line for each kind of fault, and their sum."""
    whole = Report()
    for report in reports.values():
        whole.faults += report.faults
        whole.appends += report.appends
        whole.errors += report.errors
        whole.stored += report.stored
        whole.wrong += report.wrong
    headings = ("faults", "appends", "errors", "stored", *WRONG)
    lines = [f"{'':32}" + "".join(f"{heading:>9}" for heading in headings)]
    for name, report in [*reports.items(), ("all", whole)]:
        numbers = [report.faults, report.appends, report.errors, report.stored, *(report.wrong[it] for it in WRONG)]
        lines.append(f"{name:32}" + "".join(f"{number:>9}" for number in numbers))
    return "\n".join(lines)


async def unleash(
    folder: Path,
    appends: int,
    faults: int,
    place: Callable[[Path], AbstractAsyncContextManager[Stage]] = stage,
) -> dict[str, Report]:
    """Run chaos on a server of its own in `folder`."""
    async with place(folder) as scene:
        settings = Settings().with_environment(scene.environment)
        await prepare(settings)
        return await Chaos(settings, scene, appends, faults).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appends", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=200)
    arguments = parser.parse_args()
    logging.disable()  # every repeat is told there
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            reports = asyncio.run(unleash(Path(folder, "dev"), arguments.appends, arguments.faults))
        except SessionStoreError as error:
            sys.exit(f"Error: {error}")
    sys.stdout.write(f"{table(reports)}\n")
    sys.stdout.write("errors: the writer was told that it may have failed; stored: and it had not, once and whole.\n")
    sys.exit(any(report.wrong.total() for report in reports.values()))


if __name__ == "__main__":
    main()
