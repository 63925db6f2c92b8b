"""Lets replicas take over from their primaries while sessions are written, and counts what that costs.

Usage: `uv run python -m proof.redis.failover`, or with `--appends 4000 --faults 40`. It takes some minutes, starts a
cluster and a primary with a Sentinel of its own, prints a table for each, and fails if anything was doubled or torn, or
if anything was wrong after a failover that loses nothing. Other losses are Redis' own: it answers, then it replicates.
`--min-replicas-to-write 1` shows how many are left if primaries without a replica refuse to write.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

from redis.crc import key_slot

from proof.redis import groups as redis_groups
from proof.redis.servers import Server, info, until
from proof.support.chaos import SESSIONS, Report, table, unleash
from proof.support.chaos_servers import Fault, Stage

BEHIND_SECONDS = 0.1
"""For how long a primary cannot reach its replica before it dies. What a killed process has sent still arrives."""
ORDERLY = "CLUSTER FAILOVER"
"""The old primary stops writing, and hands over when its replica has everything. With Sentinel it writes on."""


@dataclass
class Pair:
    """A primary and its replica, which change places."""

    primary: Server
    replica: Server
    leads: Callable[[Server], bool]
    """Whether a server has become the primary, for clients too."""

    async def order(self, server: Server, *command: str | int) -> None:
        """Have the replica take over by a command."""
        with server.client() as client:
            client.execute_command(*command)
        await self.changed()

    async def kill(self) -> None:
        """End the primary without warning. When the replica has taken over it comes back."""
        self.primary.kill()
        await self.taken_over()
        redis_groups.start_again(self.primary)
        await self.changed()

    async def kill_when_ahead(self) -> None:
        """The same after the primary was cut off from its replica, and wrote on."""
        self.replica.process.send_signal(signal.SIGSTOP)
        with self.primary.client() as client:
            client.client_kill_filter(_type="replica")
        await asyncio.sleep(BEHIND_SECONDS)
        self.primary.kill()
        self.replica.process.send_signal(signal.SIGCONT)
        await self.kill()

    async def hang(self) -> None:
        """The primary stops, like a virtual machine that is moved, and goes on when the replica has taken over."""
        self.primary.process.send_signal(signal.SIGSTOP)
        await self.taken_over()
        self.primary.process.send_signal(signal.SIGCONT)
        await self.changed()

    async def taken_over(self) -> None:
        await asyncio.to_thread(until, lambda: self.leads(self.replica), "the replica takes over")

    async def changed(self) -> None:
        """Wait until they have changed places."""
        await self.taken_over()
        self.primary, self.replica = self.replica, self.primary
        await self.following()

    async def following(self) -> None:
        follows = partial(_has, self.replica, role="slave", master_port=self.primary.port, master_link_status="up")
        await asyncio.to_thread(until, follows, "the replica follows its primary")

    async def settled(self) -> None:
        """Wait until the replica is sent what is written: up to a second after it follows its primary."""
        known = info(self.primary)["master_repl_offset"]
        await asyncio.to_thread(until, lambda: _acknowledged(self.primary) >= known, "the replica keeps up")


def _has(server: Server, **expected: object) -> bool:
    return expected.items() <= info(server).items()


def _acknowledged(primary: Server) -> int:
    """How much its replica has, by its own word."""
    return int(info(primary).get("slave0", {"offset": -1})["offset"])


@asynccontextmanager
async def cluster(folder: Path, options: Sequence[str] = (), kinds: Sequence[str] = ()) -> AsyncIterator[Stage]:
    """Three primaries, each with a session and a replica; one after the other suffers. `kinds`: only these faults."""
    with ExitStack() as stack:
        started = stack.enter_context(redis_groups.cluster(folder, *options, replicas=3))
        nodes = [*started.nodes, *started.replicas]
        for node in nodes:
            stack.callback(node.kill)
        leads = partial(_has, role="master")
        pairs = [Pair(*both, leads) for both in zip(started.nodes, started.replicas, strict=True)]
        turn = cycle(pairs[key_slot(f"/chaos-{number}".encode()) * 3 // 16384] for number in range(SESSIONS))

        def each(fault: Callable[[Pair], Awaitable[None]]) -> Fault:
            async def happens() -> None:
                pair = next(turn)
                await pair.settled()
                await fault(pair)
                await asyncio.to_thread(until, lambda: all(map(_serves, nodes)), "the cluster serves")

            return happens

        faults = {
            "CLUSTER FAILOVER": each(lambda pair: pair.order(pair.replica, "CLUSTER", "FAILOVER")),
            "kill -9 of a primary": each(Pair.kill),
            "kill -9 when 0.1 s ahead": each(Pair.kill_when_ahead),
            "a primary hangs": each(Pair.hang),
        }
        yield Stage({"REDIS_URL": started.url}, {name: faults[name] for name in kinds or faults})


def _serves(node: Server) -> bool:
    with node.client() as client:
        nodes = str(client.execute_command("CLUSTER", "NODES"))
    return redis_groups.cluster_info(node)["cluster_state"] == "ok" and "fail" not in nodes


@asynccontextmanager
async def sentinel(folder: Path, options: Sequence[str] = (), kinds: Sequence[str] = ()) -> AsyncIterator[Stage]:
    """A primary and a replica that a Sentinel watches. `kinds`: only these faults."""
    with ExitStack() as stack:
        group = stack.enter_context(redis_groups.watched(folder, *options))
        pair = Pair(group.primary, group.replica, lambda server: group.primary_port() == server.port)
        for server in (group.primary, group.replica):
            stack.callback(server.kill)
        # Before that, a primary that wants replicas has none.
        await asyncio.to_thread(until, lambda: info(group.primary).get("min_slaves_good_slaves", 1), "it may write")

        def each(fault: Callable[[], Awaitable[None]]) -> Fault:
            async def happens() -> None:
                await pair.settled()
                await fault()
                with group.sentinel.client() as client:
                    can = partial(redis_groups.can_be_promoted, client)
                    await asyncio.to_thread(until, can, "the Sentinel knows the replica")

            return happens

        faults = {
            "SENTINEL FAILOVER": each(lambda: pair.order(group.sentinel, "SENTINEL", "FAILOVER", "main")),
            "kill -9 of the primary": each(pair.kill),
            "kill -9 when 0.1 s ahead": each(pair.kill_when_ahead),
            "the primary hangs": each(pair.hang),
        }
        yield Stage({"REDIS_URL": group.url}, {name: faults[name] for name in kinds or faults})


def unexcused(reports: Mapping[str, Report]) -> bool:
    """Whether anything happened that asynchronous replication does not explain."""
    return any(
        report.wrong["doubled"] + report.wrong["torn"] + (report.wrong["lost"] if name == ORDERLY else 0)
        for name, report in reports.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appends", type=int, default=4000)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--min-replicas-to-write", default="0")
    arguments = parser.parse_args()
    logging.disable()  # every repeat is told there
    options = ("--min-replicas-to-write", arguments.min_replicas_to_write)
    failed = False
    for name, place in (("cluster", cluster), ("sentinel", sentinel)):
        with tempfile.TemporaryDirectory(prefix="failover-") as folder:
            started = partial(place, options=options)
            reports = asyncio.run(unleash(Path(folder), arguments.appends, arguments.faults, started))
        sys.stdout.write(f"{name}\n{table(reports)}\n\n")
        failed = failed or unexcused(reports)
    sys.stdout.write(
        "errors: the writer was told that it may have failed; stored: and it had not, once and whole.\n"
        "lost: acknowledged by a primary whose replica never got it; moved: a reader had seen what then was lost.\n"
    )
    sys.exit(failed)


if __name__ == "__main__":
    main()
