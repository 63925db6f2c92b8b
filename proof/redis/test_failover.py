"""Replicas take over from their primaries: short runs of proof/redis/failover.py, and what must not come of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from my_agent.sessions import SessionRef
from proof.redis import groups as redis_groups
from proof.redis.failover import cluster
from proof.redis.test_topologies import batch, opened
from proof.support.chaos import table, unleash


async def test_an_orderly_failover_loses_nothing(tmp_path: Path) -> None:
    reports = await unleash(tmp_path, 200, 2, partial(cluster, kinds=["CLUSTER FAILOVER"]))
    assert reports["CLUSTER FAILOVER"].faults == 2
    assert not any(report.wrong.total() for report in reports.values()), table(reports)


async def test_nothing_is_doubled_or_torn_when_a_primary_dies(tmp_path: Path) -> None:
    """Although what it acknowledged last is lost."""
    reports = await unleash(tmp_path, 200, 1, partial(cluster, kinds=["kill -9 when 0.1 s ahead"]))
    assert reports["kill -9 when 0.1 s ahead"].faults == 1
    wrong = [report.wrong[kind] for report in reports.values() for kind in ("doubled", "torn")]
    assert not any(wrong), table(reports)


async def test_one_call_pops_one_item_though_another_node_is_away(tmp_path: Path) -> None:
    """The session is on the first node, the lists of sessions are on the others."""
    ref = SessionRef("", "chaos-2")
    with redis_groups.cluster(tmp_path) as nodes:
        async with opened(nodes.url) as store:
            await store.append(ref, batch("a", "b", "c"))
            nodes.nodes[1].kill()
            assert await store.pop(ref) == "c"
            assert await store.tail(ref, None) == ["a", "b"]
            await store.append(ref, batch("d"))  # the session is listed already
            assert await store.tail(ref, None) == ["a", "b", "d"]
