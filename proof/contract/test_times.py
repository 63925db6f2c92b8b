"""What every store promises of times."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.paging import encode_cursor
from my_agent.sessions.records import Batch, Row


async def test_a_time_without_a_time_zone_is_refused(store: SessionStore) -> None:
    await store.append(SessionRef("", "s"), Batch.of([Row("a")]))
    naive = datetime(2030, 1, 1)
    with pytest.raises(ValueError, match=r"datetime\.now\(UTC\)"):
        await store.prune(naive)
    assert len((await store.list_sessions()).sessions) == 1


async def test_a_cursor_without_a_time_zone_is_refused(store: SessionStore) -> None:
    await store.append(SessionRef("", "s"), Batch.of([Row("a")]))
    (info,) = (await store.list_sessions()).sessions
    naive = replace(info, updated_at=info.updated_at.replace(tzinfo=None))
    with pytest.raises(ValueError, match="Invalid cursor"):
        await store.list_sessions(cursor=encode_cursor(naive))
