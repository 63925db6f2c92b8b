"""A short run of proof/support/chaos.py: every kind of fault, again and again, while sessions are written."""

from __future__ import annotations

from pathlib import Path

from proof.support.chaos import table, unleash


async def test_nothing_is_lost_or_doubled_whatever_breaks(tmp_path: Path) -> None:
    reports = await unleash(tmp_path / "dev", appends=400, faults=16)
    assert sum(report.faults for report in reports.values()) == 16
    assert sum(report.appends for report in reports.values()) >= 400
    assert not any(report.wrong.total() for report in reports.values()), table(reports)
